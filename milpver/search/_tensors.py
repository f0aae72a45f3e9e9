"""What searches in torch share: nodes in tensors, and torch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from milpver.linear import Float
from milpver.search.frontier import Nodes

__all__ = ["TensorNodes", "torch_threads"]


@dataclass(slots=True, eq=False)
class TensorNodes(Nodes):
    """Nodes in tensors of one device; see ``Nodes``."""

    lower: torch.Tensor

    def room(self, size: int) -> Self:
        """See ``Nodes``."""
        return type(self)(*(part.new_empty((size, *part.shape[1:])) for part in self.parts()))

    def smallest(self) -> Float:
        """See ``Nodes``."""
        found: Float = self.lower.amin(dim=0).cpu().numpy()
        return found

    def best(self) -> list[float]:
        """See ``Nodes``."""
        found: list[float] = self.lower.amin(dim=1).tolist()
        return found

    def node_bytes(self) -> int:
        """See ``Nodes``."""
        return sum(part.element_size() * part[0].numel() for part in self.parts())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside, and what it used before after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
