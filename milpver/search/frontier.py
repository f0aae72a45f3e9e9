"""Open nodes of a branch and bound in growing arrays: what searches share, in torch or in numpy alone."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Generic, Self, TypeVar

import numpy as np

from milpver.linear import Float

__all__ = ["ArrayNodes", "Frontier", "Nodes"]


class Nodes(ABC):
    """Search nodes, a structure of arrays: every field of a dataclass is an array or a tensor [nodes, ...].

    One of the fields is ``lower``: bounds of what is minimised, float64 [nodes, rows].
    """

    __slots__ = ()

    def pick(self, at: Any) -> Self:  # Any: what the fields are indexed by
        """The nodes at some places, int64 [some] or bool [nodes]."""
        return type(self)(*(part[at] for part in self.parts()))

    def parts(self) -> list[Any]:  # Any: arrays or tensors, as the class has them
        """The fields' arrays, in order."""
        return [getattr(self, part.name) for part in fields(self)]  # type: ignore[arg-type]  # subclasses are dataclasses

    def __len__(self) -> int:
        return len(self.parts()[0])

    @abstractmethod
    def room(self, size: int) -> Self:
        """Uninitialised arrays of the same kind for a number of nodes."""

    @abstractmethod
    def smallest(self) -> Float:
        """The smallest bound of each row, float64 [rows]."""

    @abstractmethod
    def best(self) -> list[float]:
        """The smallest bound of each node."""

    @abstractmethod
    def node_bytes(self) -> int:
        """Bytes of one node."""


@dataclass(slots=True, eq=False)
class ArrayNodes(Nodes):
    """Nodes in numpy arrays; see ``Nodes``."""

    lower: Float

    def room(self, size: int) -> Self:
        """See ``Nodes``."""
        return type(self)(*(np.empty((size, *part.shape[1:]), dtype=part.dtype) for part in self.parts()))

    def smallest(self) -> Float:
        """See ``Nodes``."""
        return np.asarray(self.lower.min(axis=0))

    def best(self) -> list[float]:
        """See ``Nodes``."""
        found: list[float] = self.lower.min(axis=1).tolist()
        return found

    def node_bytes(self) -> int:
        """See ``Nodes``."""
        return sum(part[:1].nbytes for part in self.parts())


NodesT = TypeVar("NodesT", bound=Nodes)


class Frontier(Generic[NodesT]):
    """Open nodes in slots of growing arrays, popped best bound first, or newest first when they are many.

    Args:
        memory: bytes that open nodes may take before the newest are popped first.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._store: NodesT | None = None
        self._free: list[int] = []
        self._heap: list[tuple[float, int, int]] = []
        self._stamp = 0
        self._stamps: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._stamps)

    def push(self, nodes: NodesT) -> None:
        """Add nodes."""
        store = self._grown(nodes)
        slots = [self._free.pop() for _ in range(len(nodes))]
        place = np.array(slots, dtype=np.int64)
        for held, new in zip(store.parts(), nodes.parts(), strict=True):
            held[place] = new
        for slot, bound in zip(slots, nodes.best(), strict=True):
            self._stamp += 1
            self._stamps[slot] = self._stamp
            heapq.heappush(self._heap, (bound, self._stamp, slot))

    def pop(self, count: int) -> NodesT:
        """Take out up to ``count`` nodes (at least one)."""
        if self._store is None:
            raise IndexError("an empty frontier")
        slots: list[int] = []
        if self._store.node_bytes() * len(self) > self._memory:
            slots = list(self._stamps)[-count:]
            for slot in slots:
                del self._stamps[slot]
        while self._heap and len(slots) < count and self._stamps:
            _, stamp, slot = heapq.heappop(self._heap)
            if self._stamps.get(slot) == stamp:
                del self._stamps[slot]
                slots.append(slot)
        self._free.extend(slots)
        return self._store.pick(np.array(slots, dtype=np.int64))

    def smallest(self, rows: int) -> Float:
        """The smallest bound of each row over all open nodes, float64 [rows]; infinity for none."""
        if self._store is None or not self._stamps:
            return np.full(rows, np.inf)
        return self._store.pick(np.array(list(self._stamps), dtype=np.int64)).smallest()

    def _grown(self, nodes: NodesT) -> NodesT:
        """The arrays, with room for more nodes."""
        if len(self._free) < len(nodes) or self._store is None:
            old = 0 if self._store is None else len(self._store)
            size = max(2 * old, old + len(nodes), 1024)
            grown = nodes.room(size)
            if self._store is not None:
                for held, before in zip(grown.parts(), self._store.parts(), strict=True):
                    held[:old] = before
            self._store = grown
            self._free.extend(range(size - 1, old - 1, -1))
        return self._store
