"""The regions of inputs that search nodes are bounded over: boxes, and L1 and L2 balls met with a box.

In float32 an ascent asks for the input at which a linear function is smallest (``lowest``): in a box every
entry goes to its edge; in an L1 ball the steepest entries go first, each as far as it has room, until the
radius is used up; in an L2 ball every entry goes as far as it is steep, at most to its edge, with one factor
for all of them that uses the radius up. In float64, and rounded outward, it is ``bounds._norm_ball``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import torch

from milpver.bounds._norm_ball import BallWorkspace, Multiplier, ball_multiplier
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.linear import Float
from milpver.norm import closest_steps, lengths
from milpver.query import Budget

__all__ = [
    "Balls",
    "Boxes",
    "Reach",
    "Regions",
    "TriedSpace",
    "around",
    "fast_multiplier",
    "lowest_by_torch",
    "reach_of",
    "root_space",
]


class Regions(Protocol):
    """One region for each node."""

    def pick(self, at: torch.Tensor) -> Self:
        """Those of some nodes."""

    def lowest(self, c: torch.Tensor) -> torch.Tensor:
        """Where ``c x`` is smallest, float32 [nodes, R, inputs] -> [nodes, R, inputs]."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes: middles, and the way from there to lower limits, <= 0; float32 [nodes or 1, 1, inputs]."""

    middle: torch.Tensor
    down: torch.Tensor

    @classmethod
    def of(cls, lower: torch.Tensor, upper: torch.Tensor) -> Boxes:
        """Boxes by their limits, [nodes or 1, inputs]."""
        middle = (lower + upper) / 2
        return cls(middle.float().unsqueeze(1), (lower - middle).float().unsqueeze(1))

    def pick(self, at: torch.Tensor) -> Boxes:
        """Those of some nodes."""
        return self if len(self.middle) == 1 else Boxes(self.middle[at], self.down[at])

    def lowest(self, c: torch.Tensor) -> torch.Tensor:
        """See ``Regions``."""
        return torch.addcmul(self.middle, c.sign(), self.down)


@dataclass(frozen=True, slots=True, eq=False)
class Balls:
    """Balls around one centre, met with one box.

    Attributes:
        norm: ``l1`` or ``l2``.
        centre: x0, float32 [inputs].
        down, up: the way from there to the box's edges, float32 [inputs].
        radius: float32 [nodes].
    """

    norm: str
    centre: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor
    radius: torch.Tensor

    def pick(self, at: torch.Tensor) -> Balls:
        """Those of some nodes."""
        return replace(self, radius=self.radius[at])

    def lowest(self, c: torch.Tensor) -> torch.Tensor:
        """See ``Regions``."""
        radius = self.radius.unsqueeze(1).expand(c.shape[:2])
        if c.device.type == "cpu":
            from milpver.search._region_kernel import lowest  # noqa: PLC0415  it takes a second to load

            return lowest(self.norm, c, self.centre, self.down, self.up, radius)
        return lowest_by_torch(self.norm, c, self.centre, self.down, self.up, radius)


def lowest_by_torch(
    norm: str,
    c: torch.Tensor,
    centre: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    """As ``_region_kernel.lowest``, on any device."""
    size = c.abs()
    room = torch.where(c > 0, down, up)
    if norm == "l1":
        order = size.argsort(dim=2, descending=True)
        wide = room.gather(2, order)
        left = radius.unsqueeze(2) - (wide.cumsum(dim=2) - wide)
        steps = torch.zeros_like(size).scatter(2, order, torch.minimum(left.clamp(min=0.0), wide))
    else:
        share = ball_multiplier("l2", size.double(), room.double(), radius.double()).unsqueeze(2)
        steps = torch.minimum((size / share.clamp(min=1e-30)).to(c.dtype), room)
    return centre - c.sign() * steps


@dataclass(eq=False)
class TriedSpace(Workspace):
    """Nodes in balls, for what is only tried: a row is smallest where ``Balls.lowest`` says."""

    balls: Balls | None = None

    @classmethod
    def of(cls, space: Workspace) -> TriedSpace:
        """Of the same bounds as another."""
        return cls(**_parts(space))

    @property
    def box_shaped(self) -> bool:
        return False

    def least(self, c: torch.Tensor) -> torch.Tensor:
        """See ``Workspace.least``; its slope is that at the point, which is kept (Danskin)."""
        if self.balls is None:
            raise TypeError("nodes without balls")
        return (c * self.balls.lowest(c.detach())).sum(dim=2)


def _parts(space: Workspace) -> dict[str, Any]:
    return {part.name: getattr(space, part.name) for part in fields(Workspace)}


def fast_multiplier(device: torch.device) -> Multiplier | None:
    """What finds the multipliers of balls fast on a device; loading it takes a second."""
    if device.type != "cpu":
        return None
    from milpver.search._region_kernel import multiplier  # noqa: PLC0415  it takes a second to load

    return multiplier


def around(space: Workspace, norm: str, centre: torch.Tensor, radius: torch.Tensor) -> BallWorkspace:
    """The same bounds in balls around x0, float64 [inputs], of some radii, float64 [batch]."""
    return BallWorkspace(
        **_parts(space), norm=norm, centre=centre, radius=radius, multiplier=fast_multiplier(centre.device)
    )


def root_space(tensors: TensorGraph, norm: str, centre: torch.Tensor, radius: float) -> Workspace:
    """An empty workspace for one ball, or for its box where that is the ball."""
    if norm == "linf":
        return Workspace(tensors, Budget())
    return BallWorkspace(
        tensors,
        Budget(),
        norm=norm,
        centre=centre,
        radius=torch.tensor([radius], dtype=torch.float64, device=tensors.device),
        multiplier=fast_multiplier(tensors.device),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """Where linear functions reach 0, the closest points to x0; nothing of it is rounded outward.

    Attributes:
        points: float64 [nodes, inputs].
        radius: their distances, float64 [nodes]; infinite where a function stays > 0 in the whole box.
        rate: how fast the function's minimum falls as the ball grows, float64 [nodes], >= 0.
    """

    points: Float
    radius: Float
    rate: Float


def reach_of(norm: str, x0: Float, slope: Float, value: Float, lower: Float, upper: Float) -> Reach:
    """Where linear functions reach 0 within a box.

    Args:
        norm: ``l1`` or ``l2``.
        x0: float64 [inputs].
        slope: float64 [nodes, inputs].
        value: of the functions at x0, float64 [nodes]; where it is <= 0 the radius is 0.
        lower, upper: the box, float64 [inputs].
    """
    points = closest_steps(norm, x0, slope, value, lower, upper)
    steps = np.abs(points - x0)
    weight = np.abs(slope)
    lowered = (weight * steps).sum(axis=1)
    radius = np.where(lowered < value * (1 - 1e-12), np.inf, lengths(norm, steps))
    moved = (steps > 0) & (weight > 0)
    per_step = weight if norm == "l1" else weight / np.where(moved, steps, 1.0)
    rate = np.where(moved, per_step, np.inf).min(axis=1, initial=np.inf)
    rate = np.where(np.isfinite(rate), rate, 0.0)
    if norm == "l2":
        rate = rate * lengths(norm, steps)
    return Reach(points, radius, rate)
