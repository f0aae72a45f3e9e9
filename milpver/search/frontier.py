"""Open nodes of a branch and bound in growing arrays, and torch's threads: what searches share."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Generic, Self, TypeVar

import numpy as np
import torch

from milpver.linear import Float

__all__ = ["Frontier", "Nodes", "torch_threads"]


@dataclass(slots=True, eq=False)
class Nodes:
    """Search nodes, a structure of arrays: every field of a subclass is a tensor [nodes, ...].

    Attributes:
        lower: bounds of what is minimised, float64 [nodes, rows].
    """

    lower: torch.Tensor

    def pick(self, at: torch.Tensor) -> Self:
        """The nodes at some places, int64 [some] or bool [nodes]."""
        return type(self)(*(getattr(self, part.name)[at] for part in fields(self)))

    def __len__(self) -> int:
        return len(self.lower)


NodesT = TypeVar("NodesT", bound=Nodes)


class Frontier(Generic[NodesT]):
    """Open nodes in slots of growing arrays, popped best bound first, or newest first when they are many."""

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
        place = torch.tensor(slots, device=nodes.lower.device)
        for part in fields(nodes):
            getattr(store, part.name)[place] = getattr(nodes, part.name)
        for slot, bound in zip(slots, nodes.lower.amin(dim=1).tolist(), strict=True):
            self._stamp += 1
            self._stamps[slot] = self._stamp
            heapq.heappush(self._heap, (bound, self._stamp, slot))

    def pop(self, count: int) -> NodesT:
        """Take out up to ``count`` nodes (at least one)."""
        if self._store is None:
            raise IndexError("an empty frontier")
        slots: list[int] = []
        if self._bytes() * len(self) > self._memory:
            slots = list(self._stamps)[-count:]
            for slot in slots:
                del self._stamps[slot]
        while self._heap and len(slots) < count and self._stamps:
            _, stamp, slot = heapq.heappop(self._heap)
            if self._stamps.get(slot) == stamp:
                del self._stamps[slot]
                slots.append(slot)
        self._free.extend(slots)
        return self._store.pick(torch.tensor(slots, device=self._store.lower.device))

    def smallest(self, rows: int) -> Float:
        """The smallest bound of each row over all open nodes, float64 [rows]; infinity for none."""
        if self._store is None or not self._stamps:
            return np.full(rows, np.inf)
        slots = torch.tensor(list(self._stamps), device=self._store.lower.device)
        found: Float = self._store.lower[slots].amin(dim=0).cpu().numpy()
        return found

    def _bytes(self) -> int:
        """Bytes of one node."""
        if self._store is None:
            return 0
        parts = [getattr(self._store, part.name) for part in fields(self._store)]
        return sum(part.element_size() * part[0].numel() for part in parts)

    def _grown(self, nodes: NodesT) -> NodesT:
        """The arrays, with room for more nodes."""
        if len(self._free) < len(nodes) or self._store is None:
            old = 0 if self._store is None else len(self._store)
            size = max(2 * old, old + len(nodes), 1024)
            parts = []
            for part in fields(nodes):
                new = getattr(nodes, part.name)
                grown = torch.empty((size, *new.shape[1:]), dtype=new.dtype, device=new.device)
                if self._store is not None:
                    grown[:old] = getattr(self._store, part.name)
                parts.append(grown)
            self._store = type(nodes)(*parts)
            self._free.extend(range(size - 1, old - 1, -1))
        return self._store


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside, and what it used before after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
