"""Distances of inputs: L-inf, L1 and L2, each with what an attack and the bounds of a ball need of it.

For a linear function ``m + g . d`` of the step d from x0 and a box of steps (``room_i`` is the way to the
box's edge in the direction that lowers the function), the shortest step that lowers it by ``needed`` has

- linf: the norm r with ``sum_i |g_i| min(r, room_i) = needed``;
- l2: the entries ``min(v |g_i|, room_i)`` with ``sum_i |g_i| min(v |g_i|, room_i) = needed`` (KKT);
- l1: entries go to their edge in the order of |g_i|, the largest first, until the sum is reached.
"""

from __future__ import annotations

import math

import numpy as np

from milpver.errors import QueryError
from milpver.linear import Float
from milpver.registry import near

__all__ = ["NORMS", "check_norm", "closest_steps", "length", "lengths"]

NORMS = ("linf", "l1", "l2")


def check_norm(norm: str) -> None:
    """Refuse what is no norm.

    Raises:
        QueryError: it is none of NORMS.
    """
    if norm not in NORMS:
        raise QueryError(f"--norm {norm}", needed=f"one of {', '.join(NORMS)}", fix=near(norm, NORMS))


def lengths(norm: str, steps: Float) -> Float:
    """The norm of each step, float64 [..., inputs] -> [...]; rounded to nearest."""
    sizes = np.abs(steps)
    match norm:
        case "l1":
            found = sizes.sum(axis=-1)
        case "l2":
            found = np.linalg.norm(sizes, axis=-1)
        case _:
            found = sizes.max(axis=-1, initial=0.0)
    return np.asarray(found, dtype=np.float64)


def length(norm: str, x: Float, x0: Float) -> float:
    """``|x - x0|``, rounded upward; inputs float64 [inputs].

    Entries are rounded once when they are subtracted; ``fsum`` adds exactly. A square is rounded once more,
    and the root.
    """
    sizes = np.abs(x - x0)
    if not sizes.any():
        return 0.0
    if norm == "linf":
        return math.nextafter(float(sizes.max()), math.inf)
    if not np.isfinite(sizes).all():
        return math.inf
    if norm == "l1":
        return math.fsum(np.nextafter(sizes[sizes > 0], np.inf).tolist()) * (1 + 2.0**-52)
    largest = float(sizes.max())
    # Scaled, so that no square underflows to what is not counted.
    return math.sqrt(math.fsum(((sizes / largest) ** 2).tolist())) * largest * (1 + 2.0**-48)


def closest_steps(norm: str, x0: Float, slope: Float, needed: Float, low: Float, high: Float) -> Float:
    """The closest points to x0 at which linear functions have dropped by ``needed``, inside a box.

    Entries move against the sign of their slope, and stop at the box's edge. Where the whole box is not
    enough, every entry goes to its edge (or, without an edge, as far as the others go).

    Args:
        norm: of NORMS.
        x0: float64 [inputs].
        slope: g, float64 [batch, inputs].
        needed: float64 [batch]; points with ``needed <= 0`` stay at x0.
        low, high: limits of every entry, float64 [inputs], infinities allowed.

    Returns:
        float64 [batch, inputs].
    """
    weight = np.abs(slope)
    room = np.where(slope > 0, x0 - low, high - x0)
    room = np.where(weight > 0, room, 0.0)
    needed = np.maximum(needed, 0.0)[:, None]
    sizes = _greedy(weight, room, needed) if norm == "l1" else _together(norm, weight, room, needed)
    inside: Float = np.clip(x0 - np.sign(slope) * sizes, low, high)
    return inside


def _greedy(weight: Float, room: Float, needed: Float) -> Float:
    """Sizes of the steps for l1, float64 [batch, inputs]."""
    order = np.argsort(-weight, axis=1, kind="stable")
    steep, wide = (np.take_along_axis(part, order, axis=1) for part in (weight, room))
    with np.errstate(invalid="ignore"):
        gain = np.where(steep > 0, steep * wide, 0.0)
    before = np.zeros_like(gain)
    before[:, 1:] = np.cumsum(gain, axis=1)[:, :-1]
    left = np.maximum(needed - before, 0.0)
    sorted_sizes = np.minimum(wide, left / np.where(steep > 0, steep, 1.0)) * (steep > 0)
    sizes: Float = np.empty_like(sorted_sizes)
    np.put_along_axis(sizes, order, sorted_sizes, axis=1)
    return sizes


def _together(norm: str, weight: Float, room: Float, needed: Float) -> Float:
    """Sizes ``min(v speed_i, room_i)`` of the steps for linf (speed 1) and l2 (speed |g_i|)."""
    speed = (weight > 0).astype(np.float64) if norm == "linf" else weight
    with np.errstate(divide="ignore", invalid="ignore"):
        until = np.where(speed > 0, room / speed, 0.0)
    order = np.argsort(until, axis=1)
    edge, rate, gain = (
        np.take_along_axis(part, order, axis=1)
        for part in (until, weight * speed, weight * np.where(np.isfinite(room), room, 0.0))
    )
    # Up to the k-th edge the entries before it have given all they can, the others move on together.
    given = np.cumsum(gain, axis=1) - gain
    rest = np.cumsum(rate[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        time = (needed - given) / rest
    fits = (rest > 0) & (time <= edge)
    first = fits.argmax(axis=1)
    found = np.take_along_axis(time, first[:, None], axis=1)
    farthest = np.where(np.isfinite(until), until, 0.0).max(axis=1, initial=0.0)[:, None]
    found = np.where(fits.any(axis=1)[:, None], found, farthest)
    sizes: Float = np.minimum(np.maximum(found, 0.0) * speed, room)
    return sizes
