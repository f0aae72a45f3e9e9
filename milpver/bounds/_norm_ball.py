"""Bounds over L1 and L2 balls: backward bounds whose last step, over the input, knows the ball.

The ball is held with a box around it, clipped to the domain. Let ``c x`` be a row that has arrived at the
input, ``room_i >= 0`` the way from x0 to the box's edge in the direction that lowers it. For every b with
``|b| <= |c|`` entry by entry, and of the same signs, ``c = b + (c - b)`` with the dual norm for the one part
and the box for the other gives

    min over ball and box of c x  >=  (min over the box of c x)  +  sum_i |b_i| room_i  -  r ||b||_dual.

The best b is that of the dual problem: for l1 ``min(|c|, t)`` with the smallest t whose steeper entries have
no more room than r together; for l2 ``min(|c|, v room)`` with v = ||b||_2 / r (KKT), approached from above.
Any t and v are sound, so neither is rounded; what is added is (downward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from milpver.bounding import Bounds
from milpver.bounds._crown import crown_bounds
from milpver.bounds._interval import as_bounds
from milpver.bounds._rounding import gamma
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.linear import Float
from milpver.query import Budget

__all__ = ["BallWorkspace", "Multiplier", "ball_bounds", "ball_multiplier"]

#: Rounds of ``v <- sqrt(sum of free c^2 / (r^2 - sum of capped room^2))``, which falls towards its limit.
_ROUNDS = 8


#: As ``ball_multiplier``.
Multiplier = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(eq=False)
class BallWorkspace(Workspace):
    """A batch of balls around one centre, each met with its box.

    Attributes:
        norm: ``l1`` or ``l2``.
        centre: x0, float64 [inputs], inside every box.
        radius: float64 [batch].
        multiplier: finds t or v; None: by torch.
    """

    norm: str = "l2"
    centre: torch.Tensor | None = None
    radius: torch.Tensor | None = None
    multiplier: Multiplier | None = None

    @property
    def box_shaped(self) -> bool:
        return False

    def least(self, c: torch.Tensor) -> torch.Tensor:
        """See ``Workspace.least``; what the ball adds is rounded downward already."""
        found = super().least(c)
        if self.centre is None or self.radius is None:
            raise TypeError("a ball without a centre")
        down, up = self.centre - self.lows[0], self.highs[0] - self.centre
        size = c.abs()
        # A room that is too small by rounding is paid for by the error below; an infinite one would be NaN.
        room = torch.where(c > 0, down.unsqueeze(1), up.unsqueeze(1)).clamp(max=2.0**500)
        radius = self.radius.view(-1, 1)
        found_by = self.multiplier or ball_multiplier
        multiplier = found_by(self.norm, size.detach(), room.detach(), radius).unsqueeze(2)
        if self.norm == "l1":
            kept = torch.minimum(size, multiplier)
            dual = kept.amax(dim=2)
        else:
            kept = torch.minimum(size, multiplier * room)
            dual = (kept.square().sum(dim=2) + 1e-300).sqrt()
        covered, spent = (kept * room).sum(dim=2), radius * dual
        with torch.no_grad():
            error = gamma(4 * c.shape[2] + 64) * (covered + spent) + 1e-290
        more: torch.Tensor = (covered - spent - error).clamp(min=0.0)
        return found + more


def ball_multiplier(norm: str, size: torch.Tensor, room: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The t of l1 or the v of l2, float64 [batch, rows].

    Args:
        norm: ``l1`` or ``l2``.
        size: |c|, float64 [batch, rows, inputs].
        room: of every entry, float64 [batch, rows, inputs].
        radius: float64 [batch, rows or 1].
    """
    return (_threshold if norm == "l1" else _share)(size, room, radius)


def _threshold(size: torch.Tensor, room: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The t of l1, float64 [batch, rows]: where the steepest entries have room for the radius, or 0."""
    steep, order = size.sort(dim=2, descending=True)
    reached = room.gather(2, order).cumsum(dim=2) >= radius.unsqueeze(2)
    first = reached.to(torch.int8).argmax(dim=2, keepdim=True)
    found = steep.gather(2, first)[..., 0]
    return torch.where(reached.any(dim=2), found, torch.zeros_like(found))


def _share(size: torch.Tensor, room: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The v of l2, float64 [batch, rows]."""
    found: torch.Tensor = size.norm(dim=2) / radius.clamp(min=1e-300)
    for _ in range(_ROUNDS):
        capped = size > found.unsqueeze(2) * room
        free = size.masked_fill(capped, 0.0).square().sum(dim=2)
        left = radius.square() - room.masked_fill(~capped, 0.0).square().sum(dim=2)
        found = torch.where(left > 0, (free / left.clamp(min=1e-300)).sqrt(), torch.zeros_like(found))
    return found


def ball_bounds(
    tensors: TensorGraph,
    norm: str,
    centre: Float,
    radii: Float,
    boxes: tuple[Float, Float],
    rows: Float,
    *,
    steps: int,
    row_steps: int,
    hurry: Callable[[], bool] | None = None,
    multiplier: Multiplier | None = None,
) -> Bounds:
    """CROWN bounds over balls around one centre.

    Args:
        tensors: the graph on its device.
        norm: ``l1`` or ``l2``.
        centre: x0, float64 [inputs].
        radii: float64 [batch].
        boxes: around each ball, clipped to the domain: lower and upper, float64 [batch, inputs].
        rows: over the output, float64 [batch, rows, outputs].
        steps, row_steps: of ascent, for intermediate bounds and for the rows.
        hurry: as for ``milpver.bounding.Bounding``.
        multiplier: as for ``BallWorkspace``.
    """
    lower, upper = boxes
    workspace = BallWorkspace(
        tensors,
        Budget(),
        point=bool(np.array_equal(lower, upper)),
        hurry=hurry,
        norm=norm,
        centre=tensors.tensor(centre),
        radius=tensors.tensor(radii),
        multiplier=multiplier,
    )
    found, _ = crown_bounds(
        workspace,
        tensors.tensor(lower),
        tensors.tensor(upper),
        tensors.tensor(rows),
        steps=steps,
        row_steps=row_steps,
    )
    return as_bounds(workspace, found)
