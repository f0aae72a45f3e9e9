"""The alternatives of a property as stacked rows: what a search over boxes minimises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from milpver.linear import Float

__all__ = ["Alternatives", "account", "alive", "corners"]


@dataclass(frozen=True, slots=True, eq=False)
class Alternatives:
    """Alternatives ``A y <= b``, each with the value ``max_r (A_r y - b_r)``, their rows one after the other.

    Attributes:
        rows: A, float64 [rows, outputs].
        limits: b, float64 [rows].
        owner: the alternative of each row, int64 [rows].
        count: number of alternatives.
    """

    rows: torch.Tensor
    limits: torch.Tensor
    owner: torch.Tensor
    count: int

    @classmethod
    def of(cls, alternatives: Sequence[tuple[Float, Float]], device: torch.device) -> Alternatives:
        """Stack (A, b) pairs."""
        sizes = [len(b) for _, b in alternatives]
        return cls(
            torch.tensor(np.vstack([a for a, _ in alternatives]), dtype=torch.float64, device=device),
            torch.tensor(np.concatenate([b for _, b in alternatives]), dtype=torch.float64, device=device),
            torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device),
            len(sizes),
        )

    def only(self, wanted: NDArray[np.bool_]) -> Alternatives:
        """Those that are wanted, bool [alternatives], renumbered in order."""
        keep = torch.as_tensor(wanted, device=self.owner.device)
        rows = keep[self.owner]
        number = keep.cumsum(dim=0) - 1
        return Alternatives(self.rows[rows], self.limits[rows], number[self.owner[rows]], int(keep.sum()))

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Value of each alternative, float64 [..., outputs] -> [..., alternatives]; not rounded outward."""
        return self.largest(outputs @ self.rows.T - self.limits)

    def lower(self, bounds: torch.Tensor) -> torch.Tensor:
        """Lower bounds of the values from those of ``A y``, float64 [..., rows] -> [..., alternatives]."""
        below = torch.nextafter(bounds - self.limits, torch.full_like(bounds, -torch.inf))
        return self.largest(torch.nan_to_num(below, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf))

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The largest of each alternative's rows, float64 [..., rows] -> [..., alternatives]."""
        shape = (*values.shape[:-1], self.count)
        start = torch.full(shape, -torch.inf, dtype=values.dtype, device=values.device)
        return start.scatter_reduce(-1, self.owner.expand(values.shape), values, "amax")

    def place(self, values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """The row that is the largest of an alternative, float64 [n, rows], int64 [n] -> int64 [n]."""
        own = self.owner == chosen.unsqueeze(1)
        return values.masked_fill(~own, -torch.inf).argmax(dim=1)


def alive(lower: torch.Tensor, best: float, gap: float, *, decide: bool) -> torch.Tensor:
    """Which bounds leave their node open: not proven > 0, or not within the gap of the best value known."""
    return lower <= 0 if decide else lower < best - gap


def account(closed: Float, lower: torch.Tensor) -> None:
    """Lower each alternative's closed bound to the smallest of some nodes, float64 [nodes, alternatives]."""
    if len(lower):
        np.minimum(closed, lower.amin(dim=0).cpu().numpy(), out=closed)


def corners(slope: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Where linear functions are smallest over boxes, the middle where they are flat; all [n, inputs]."""
    middle = (lower + (upper - lower) / 2).clamp(min=lower, max=upper)
    return torch.where(slope > 0, lower, torch.where(slope < 0, upper, middle))
