"""The closest input, in L1 or L2, at which some linear functions are <= 0: what a search does with a leaf.

L1 is a linear program over the entries' ways up and down. In L2 the dual is maximised,

    q(w) = min over the box of |x - x0|^2 / 2 + w (G x + g),   w >= 0,

concave, its slope G x + g at the minimiser ``x = clip(x0 - G^T w)``, its curvature that of the entries that
are not clipped: by Newton's steps, each to the maximum over w >= 0 of the quadratic piece (Lawson and
Hanson, Solving Least Squares Problems, 1974, chapter 23), of which few are needed. Where no input of the
ball will do, the multipliers prove that: some sum of the functions is > 0 there. Nothing rests on what a
solver says: see ``distance``.
"""

from __future__ import annotations

import numpy as np

from milpver.linear import Float

__all__ = ["project"]

#: Newton's steps, and halvings of one.
_STEPS, _HALVINGS = 100, 60
#: What the functions may be above 0 by, relative to their scale, at the end.
_EXACT = 1e-13
#: Curvature where there is none, relative to that of one function.
_CURVED = 1e-12


def project(
    norm: str, x0: Float, slopes: Float, constants: Float, box: tuple[Float, Float], radius: float
) -> tuple[Float, Float] | None:
    """The closest input of a box at which every function is <= 0.

    Args:
        norm: ``l1`` or ``l2``.
        x0: float64 [inputs], in the box.
        slopes, constants: of the functions, float64 [functions, inputs] and [functions].
        box: lower and upper limits, float64 [inputs].
        radius: farther inputs do not matter.

    Returns:
        An input, float64 [inputs], and multipliers, float64 [functions], >= 0; None where a solver fails.
    """
    size = np.linalg.norm(slopes, axis=1)
    size = np.where(size > 0, size, 1.0)
    unit, at_centre = slopes / size[:, None], (constants + slopes @ x0) / size
    steps = box[0] - x0, box[1] - x0
    found = (
        _program(unit, at_centre, steps, radius) if norm == "l1" else _newton(unit, at_centre, steps, radius)
    )
    if found is None:
        return None
    step, weights = found
    weights = weights / size
    largest = float(weights.max(initial=0.0))
    return np.clip(x0 + step, *box), weights / largest if largest > 0 else weights


def _program(
    matrix: Float, constants: Float, steps: tuple[Float, Float], radius: float
) -> tuple[Float, Float] | None:
    """The step of l1 and the duals; where there is none, those of the smallest violation in the ball."""
    from scipy.optimize import linprog  # noqa: PLC0415  # most searches need no leaf

    count = len(constants)
    room = np.concatenate([np.maximum(steps[1], 0.0), np.maximum(-steps[0], 0.0)])
    used = np.flatnonzero(room > 0)
    ways = np.hstack([matrix, -matrix])[:, used]
    sides = np.column_stack([np.zeros(len(used)), room[used]])
    # Presolving takes longer than what is left to do.
    quick = {"presolve": False}
    found = linprog(
        np.ones(len(used)), A_ub=ways, b_ub=-constants, bounds=sides, method="highs", options=quick
    )
    if found.status != 0:
        above = -np.ones((count, 1))
        length = np.append(np.ones(len(used)), 0.0)
        found = linprog(
            1.0 - length,
            A_ub=np.vstack([np.hstack([ways, above]), length[None]]),
            b_ub=np.append(-constants, radius),
            bounds=[*map(tuple, sides), (None, None)],
            method="highs",
            options=quick,
        )
    if found.status != 0:
        return None
    moved = np.zeros(len(room))
    moved[used] = np.asarray(found.x)[: len(used)]
    up, down = np.split(moved, 2)
    return up - down, np.maximum(-np.asarray(found.ineqlin.marginals)[:count], 0.0)


def _newton(
    matrix: Float, constants: Float, steps: tuple[Float, Float], radius: float
) -> tuple[Float, Float]:
    """The step of l2 and the multipliers."""
    enough = 0.51 * radius**2

    def at(weights: Float) -> tuple[float, Float, Float]:
        step = np.clip(-(weights @ matrix), *steps)
        above = matrix @ step + constants
        return float(0.5 * step @ step + weights @ above), step, above

    weights: Float = np.zeros(len(constants))
    value, step, above = at(weights)
    scale = 1.0 + float(np.abs(constants).max(initial=0.0))
    for _ in range(_STEPS):
        if value > enough or np.all(np.where(weights > 0, np.abs(above), above) <= _EXACT * scale):
            break
        part = matrix[:, (step > steps[0]) & (step < steps[1])]
        curvature = part @ part.T
        curvature[np.diag_indices_from(curvature)] += _CURVED
        way = _highest(curvature, above + curvature @ weights) - weights
        length = 1.0
        for _ in range(_HALVINGS):
            moved = weights + length * way
            found = at(moved)
            if found[0] >= value + 1e-4 * length * float(above @ way):
                break
            length *= 0.5
        else:
            break
        weights, (value, step, above) = moved, found
    return step, weights


def _highest(curvature: Float, slope: Float) -> Float:
    """The w >= 0 at which ``slope w - w curvature w / 2`` is largest, float64 [n]."""
    weights = np.zeros_like(slope)
    inside = np.zeros(len(slope), dtype=np.bool_)
    for _ in range(4 * len(slope)):
        rising = np.where(inside, -np.inf, slope - curvature @ weights)
        if rising.max(initial=-np.inf) <= _EXACT * np.abs(slope).max():
            break
        inside[rising.argmax()] = True
        while True:
            wanted = np.zeros_like(slope)
            wanted[inside] = np.linalg.solve(curvature[np.ix_(inside, inside)], slope[inside])
            below = inside & (wanted <= 0)
            if not below.any():
                break
            share = (weights[below] / (weights[below] - wanted[below])).min()
            weights = weights + share * (wanted - weights)
            inside &= ~below | (weights > 1e-15 * weights.max())
            inside &= weights > 0
            if not inside.any():
                break
        weights = wanted
    return weights
