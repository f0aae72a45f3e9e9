"""Adds the distance to x0 to an encoded query: as what is minimised, or as a limit.

With x the columns of the input and d = x - x0, at most R in the norm:

- linf: a column eps in [0, R] and the rows ``x - eps <= x0``, ``x + eps >= x0``; minimise eps;
- l1: ``|d_i|`` is ``d_i`` or ``-d_i`` where x0 lies on the box's edge, else a column t_i with the rows
  ``t_i - x_i >= -x0_i``, ``t_i + x_i >= x0_i``; minimise their sum;
- l2: columns ``u_i = d_i / R``; minimise ``sum_i u_i^2`` (the square of the distance over R^2), for backends
  that take squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from milpver.encoder import Encoded
from milpver.linear import Float, Int
from milpver.program import Program

__all__ = ["Nearest", "limit_distance", "nearest"]

#: Gap of squares that solvers still close.
_FINEST = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class _Sum:
    """``constant + coefficients @ x[columns]``, the l1 distance."""

    columns: Int
    coefficients: Float
    constant: float


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """A program that minimises the distance, and the way back.

    Attributes:
        program: the program.
        norm: of the distance.
        radius: R.
    """

    program: Program
    norm: str
    radius: float

    def distance(self, value: float) -> float:
        """The distance that an objective (or a bound of it) stands for; at least 0."""
        value = max(value, 0.0)
        return value if self.norm != "l2" else math.sqrt(value) * self.radius

    def value(self, distance: float) -> float:
        """The objective of a distance."""
        return distance if self.norm != "l2" else (distance / self.radius) ** 2

    def gap(self, gap: float, lower: float) -> float:
        """The gap of objectives that closes ``gap`` between distances of at least ``lower``.

        No finer than solvers are. For squares ``b - a = (sqrt b - sqrt a)(sqrt b + sqrt a)``, and the sum is
        at least the root of b.
        """
        return gap if self.norm != "l2" else max(gap * max(lower, gap) / self.radius**2, _FINEST)


def nearest(
    encoded: Encoded, norm: str, x0: Float, radius: float, floor: float, row: Float, below: float = 0.0
) -> Nearest:
    """Minimise the distance to x0 over the inputs at which a row over the output is <= 0 (or ``-below``).

    Args:
        encoded: the query over a box around the ball, its input not a point; gets columns and rows.
        norm: ``linf``, ``l1`` or ``l2``.
        x0: the centre, float64 [inputs].
        radius: R > 0; farther inputs do not matter.
        floor: no such input is known to be closer.
        row: float64 [outputs].
        below: what the row has to be below 0 by.
    """
    builder = encoded.builder
    columns, coefficients, constant = encoded.row(row)
    builder.add_matrix_rows([(columns, coefficients.reshape(1, -1))], -np.inf, -constant - below, 1)
    inputs = _input(encoded)
    match norm:
        case "linf":
            eps = _largest(encoded, x0, min(floor, radius), radius)
            return Nearest(builder.build().with_objective(eps, np.ones(1), 0.0), norm, radius)
        case "l1":
            total = _sum(encoded, x0)
            program = builder.build().with_objective(total.columns, total.coefficients, total.constant)
            return Nearest(program, norm, radius)
        case _:
            steps = builder.add_columns("u", np.full(len(x0), -1.0), np.ones(len(x0)))
            builder.add_rows([(inputs, 1.0), (steps, -radius)], x0, x0)
            program = builder.build().with_objective(steps[:0], np.zeros(0), 0.0)
            return Nearest(program.with_squares(steps, np.ones(len(x0))), norm, radius)


def limit_distance(encoded: Encoded, norm: str, x0: Float, radius: float) -> None:
    """Keep to the inputs within a radius: the box is the ball for linf already, l1 takes a row.

    Raises:
        ValueError: l2, which no row can say.
    """
    if norm == "l1":
        total = _sum(encoded, x0)
        row = total.coefficients.reshape(1, -1)
        encoded.builder.add_matrix_rows([(total.columns, row)], -np.inf, radius - total.constant, 1)
    elif norm != "linf":
        raise ValueError(f"a limit of {norm} distances is not linear")


def _input(encoded: Encoded) -> Int:
    if encoded.input is None:
        raise ValueError("the input is a point")
    return encoded.input


def _largest(encoded: Encoded, x0: Float, lower: float, upper: float) -> Int:
    """A column that every ``|x_i - x0_i|`` stays below, int64 [1]."""
    eps = encoded.builder.add_columns("eps", np.array([lower]), np.array([upper]))
    every, inputs = np.repeat(eps, len(x0)), _input(encoded)
    encoded.builder.add_rows([(inputs, 1.0), (every, -1.0)], -np.inf, x0)
    encoded.builder.add_rows([(inputs, 1.0), (every, 1.0)], x0, np.inf)
    return eps


def _sum(encoded: Encoded, x0: Float) -> _Sum:
    """``sum_i |x_i - x0_i|``, or something above it."""
    inputs, box = _input(encoded), encoded.box
    up = box.lower >= x0
    down = (box.upper <= x0) & ~up
    both = np.flatnonzero(~up & ~down)
    size = np.maximum(x0 - box.lower, box.upper - x0)[both]
    above = encoded.builder.add_columns("t", np.zeros(len(both)), size)
    encoded.builder.add_rows([(above, 1.0), (inputs[both], -1.0)], -x0[both], np.inf)
    encoded.builder.add_rows([(above, 1.0), (inputs[both], 1.0)], x0[both], np.inf)
    one_sided = np.where(up, 1.0, -1.0)[up | down]
    return _Sum(
        np.concatenate([inputs[up | down], above]),
        np.concatenate([one_sided, np.ones(len(both))]),
        -math.fsum((one_sided * x0[up | down]).tolist()),
    )
