"""Nodes with every sign fixed: a linear program over the inputs, and what its duals prove.

With no sign open the network is linear on the node, so that the smallest value is that of

    min t + P s   subject to   A_r y(x) - b_r <= t,   sign_i z_i(x) + s >= 0,   x in the box,   s >= 0,

s being 0 unless the signs contradict each other. The duals of the rows weigh them, those of the signs are
multipliers mu: one backward pass at them, rounded outward, gives the bound, whatever the solver's tolerances
(weak duality). The point is a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from milpver.linear import Float

__all__ = ["LeafPoint", "solve_leaf"]

#: What a unit of contradiction costs, relative to the values' scale.
_PENALTY = 1e4


@dataclass(frozen=True, slots=True, eq=False)
class LeafPoint:
    """What a solver says about a leaf; nothing of it is proven.

    Attributes:
        x: where the value is smallest, float64 [inputs].
        weights: of the rows, float64 [rows], >= 0, their sum 1.
        multipliers: of the signs, float64 [signs], >= 0.
    """

    x: Float
    weights: Float
    multipliers: Float


def solve_leaf(
    lower: Float, upper: Float, rows: tuple[Float, Float], signs: tuple[Float, Float]
) -> LeafPoint | None:
    """Solve a leaf's linear program by HiGHS.

    Args:
        lower, upper: the box, float64 [inputs].
        rows: slopes, float64 [rows, inputs], and constants, float64 [rows], of ``A_r y - b_r``.
        signs: the same of ``sign_i z_i``, float64 [signs, inputs] and [signs].

    Returns:
        The point and the duals, or None where the solver fails.
    """
    from scipy.optimize import linprog  # noqa: PLC0415  # most searches need no leaf

    inputs, count = len(lower), len(rows[1])
    scale = max(1.0, float(np.abs(rows[1]).max(initial=0.0)))
    cost = np.concatenate([np.zeros(inputs), [1.0, _PENALTY * scale]])
    one, zero = np.ones((count, 1)), np.zeros((len(signs[1]), 1))
    matrix = np.vstack([np.hstack([rows[0], -one, 0 * one]), np.hstack([-signs[0], zero, zero - 1.0])])
    limits = np.concatenate([-rows[1], signs[1]])
    sides = [*zip(lower, upper, strict=True), (None, None), (0.0, None)]
    found = linprog(cost, A_ub=matrix, b_ub=limits, bounds=sides, method="highs")
    if found.status != 0:
        return None
    duals = np.maximum(-np.asarray(found.ineqlin.marginals), 0.0)
    weights = duals[:count]
    if not weights.sum() > 0:
        return None
    x = np.clip(np.asarray(found.x[:inputs]), lower, upper)
    return LeafPoint(x, weights / weights.sum(), duals[count:])
