"""Rows over L1 and L2 balls met with a box, each row compiled to a few passes over its entries.

Nothing is sorted: what an L1 ball's steepest entries are is found by bisection on the steepness, and an L2
ball's factor by rounds, which rise to it. What comes out of ``gains`` is sound whatever they have come to.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from milpver.bounds._rounding import gamma
from milpver.linear import Float
from milpver.search._compile import compiled

__all__ = ["gains", "lowest", "multiplier"]

#: Bisections of a steepness, halvings of what entries are picked out by, and rounds of the factor.
_HALVINGS = 24
_PICKS = 40
_ROUNDS = 10
#: What a round adds to the factor, relative to it, once that is close: bounds are off by its square.
_CLOSE = 1e-5


def lowest(
    norm: str,
    c: torch.Tensor,
    centre: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    """Where rows are smallest; see ``_region.Balls``.

    Args:
        norm: ``l1`` or ``l2``.
        c: float32 [nodes, R, inputs].
        centre, down, up: float32 [inputs].
        radius: float32 [nodes, R].
    """
    out = torch.empty(c.shape, dtype=c.dtype)
    rows = c.reshape(-1, c.shape[2]).contiguous().numpy()
    ball = centre.numpy(), down.numpy(), up.numpy(), radius.reshape(-1).contiguous().numpy()
    found = out.view(-1, c.shape[2]).numpy()
    if norm == "l1":
        _lowest_l1(rows, *ball, _scratch(c), found)
    else:
        _lowest_l2(rows, *ball, found)
    return out


def gains(norm: str, c: torch.Tensor, down: torch.Tensor, up: torch.Tensor, radius: float) -> torch.Tensor:
    """What a ball adds to the minimum of rows over its box, rounded downward; see ``bounds._norm_ball``.

    Args:
        norm: ``l1`` or ``l2``.
        c: float64 [rows, inputs].
        down, up: the way from the centre to the box's edges, float64 [inputs], finite.
        radius: of the ball.
    """
    out = c.new_empty(len(c))
    rows, ways, rounding = c.contiguous().numpy(), (down.numpy(), up.numpy()), gamma(4 * c.shape[1] + 64)
    if norm == "l1":
        _gains_l1(rows, *ways, radius, rounding, _scratch(c), out.numpy())
    else:
        _gains_l2(rows, *ways, radius, rounding, out.numpy())
    return out


def multiplier(norm: str, size: torch.Tensor, room: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """See ``bounds._norm_ball.ball_multiplier``."""
    out = size.new_empty(size.shape[:2])
    sizes, rooms = (part.reshape(-1, size.shape[2]).contiguous().numpy() for part in (size, room))
    radii, found = radius.expand(out.shape).reshape(-1).contiguous().numpy(), out.view(-1).numpy()
    if norm == "l1":
        _thresholds(sizes, rooms, radii, _scratch(size), found)
    else:
        _shares(sizes, rooms, radii, found)
    return out


def _scratch(c: torch.Tensor) -> Float:
    """Room for the entries of a row that are picked out."""
    return np.empty((2, c.shape[-1]))


@compiled
def _factor(row: Float, down: Float, up: Float, radius: float) -> float:
    """The factor of an L2 ball, from below; infinite where every entry goes to its edge."""
    factor = 0.0
    for _ in range(_ROUNDS):
        free = 0.0
        capped = 0.0
        for i in range(row.shape[0]):
            value = row[i]
            room = down[i] if value > 0 else up[i]
            size = abs(value)
            over = factor * size >= room
            capped += room * room if over else 0.0
            free += 0.0 if over else size * size
        left = radius * radius - capped
        if free <= 0.0:
            return math.inf
        if left <= 0.0:
            return factor
        found = math.sqrt(left / free)
        if found <= factor * (1 + _CLOSE):
            return factor
        factor = found
    return factor


@compiled
def _picked(
    row: Float, down: Float, up: Float, radius: float, cut: float, sizes: Float, rooms: Float
) -> tuple[int, float]:
    """Pick out the steepest entries, with room for the radius together: how many, and what all are above."""
    for _ in range(_PICKS):
        above = 0.0
        for i in range(row.shape[0]):
            value = row[i]
            room = down[i] if value > 0 else up[i]
            above += room if abs(value) > cut else 0.0
        if above > radius:
            break
        cut *= 0.5
    else:
        cut = 0.0
    count = 0
    for i in range(row.shape[0]):
        value = row[i]
        if abs(value) > cut:
            sizes[count] = abs(value)
            rooms[count] = down[i] if value > 0 else up[i]
            count += 1
    return count, cut


@compiled
def _threshold(
    row: Float, down: Float, up: Float, radius: float, sizes: Float, rooms: Float
) -> tuple[float, float, float]:
    """The steepness of an L1 ball, 0 where it holds the box; the room of steeper, of as steep entries."""
    most = 0.0
    whole = 0.0
    for i in range(row.shape[0]):
        value = row[i]
        room = down[i] if value > 0 else up[i]
        size = abs(value)
        most = max(most, size if room > 0.0 else 0.0)
        whole += room if size > 0.0 else 0.0
    if whole <= radius:
        return 0.0, whole, 0.0
    count, cut = _picked(row, down, up, radius, 0.5 * most, sizes, rooms)
    low, high = cut, most
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        above = 0.0
        for i in range(count):
            above += rooms[i] if sizes[i] > middle else 0.0
        if above <= radius:
            high = middle
        else:
            low = middle
    found = 0.0
    for i in range(count):
        found = max(found, sizes[i] if sizes[i] <= high and rooms[i] > 0.0 else 0.0)
    above = 0.0
    level = 0.0
    for i in range(count):
        above += rooms[i] if sizes[i] > found else 0.0
        level += rooms[i] if sizes[i] == found else 0.0
    return found, above, level


@compiled
def _thresholds(size: Float, room: Float, radius: Float, scratch: Float, out: Float) -> None:
    """The t of each row."""
    for k in range(size.shape[0]):
        out[k] = _threshold(size[k], room[k], room[k], radius[k], scratch[0], scratch[1])[0]


@compiled
def _shares(size: Float, room: Float, radius: Float, out: Float) -> None:
    """The v of each row."""
    for k in range(size.shape[0]):
        factor = _factor(size[k], room[k], room[k], radius[k])
        out[k] = 1.0 / factor if factor > 0.0 else 0.0


@compiled
def _lowest_l1(
    rows: Float, centre: Float, down: Float, up: Float, radius: Float, scratch: Float, out: Float
) -> None:
    """Each row's smallest point; entries as steep as the last one share what is left."""
    for k in range(rows.shape[0]):
        row = rows[k]
        least, above, level = _threshold(row, down, up, radius[k], scratch[0], scratch[1])
        part = min(max(radius[k] - above, 0.0) / level, 1.0) if level > 0.0 else 0.0
        for i in range(row.shape[0]):
            value = row[i]
            room = down[i] if value > 0 else up[i]
            size = abs(value)
            step = room if size > least else (part * room if size == least else 0.0)
            out[k, i] = centre[i] - step if value > 0 else centre[i] + step


@compiled
def _lowest_l2(rows: Float, centre: Float, down: Float, up: Float, radius: Float, out: Float) -> None:
    """Each row's smallest point."""
    for k in range(rows.shape[0]):
        row = rows[k]
        factor = min(_factor(row, down, up, radius[k]), 1e30)
        for i in range(row.shape[0]):
            value = row[i]
            room = down[i] if value > 0 else up[i]
            step = min(factor * abs(value), room)
            out[k, i] = centre[i] - step if value > 0 else centre[i] + step


@compiled
def _gains_l1(
    rows: Float, down: Float, up: Float, radius: float, rounding: float, scratch: Float, out: Float
) -> None:
    """``sum min(|c|, t) room - r t`` for each row, less rounding."""
    for k in range(rows.shape[0]):
        row = rows[k]
        most, _, _ = _threshold(row, down, up, radius, scratch[0], scratch[1])
        covered = 0.0
        for i in range(row.shape[0]):
            value = row[i]
            room = down[i] if value > 0 else up[i]
            covered += min(abs(value), most) * room
        spent = radius * most
        out[k] = max(covered - spent - (rounding * (covered + spent) + 1e-290), 0.0)


@compiled
def _gains_l2(rows: Float, down: Float, up: Float, radius: float, rounding: float, out: Float) -> None:
    """``sum b room - r |b|`` with ``b = min(|c|, room / factor)`` for each row, less rounding."""
    for k in range(rows.shape[0]):
        row = rows[k]
        factor = _factor(row, down, up, radius)
        share = 1.0 / factor if factor > 0.0 else 0.0
        covered = 0.0
        dual = 1e-300
        for i in range(row.shape[0]):
            value = row[i]
            room = down[i] if value > 0 else up[i]
            kept = min(abs(value), share * room)
            covered += kept * room
            dual += kept * kept
        spent = radius * math.sqrt(dual)
        out[k] = max(covered - spent - (rounding * (covered + spent) + 1e-290), 0.0)
