"""Lengths are rounded upward, and the closest steps are those of linear and least-distance programs."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from milpver.errors import QueryError
from milpver.norm import NORMS, check_norm, closest_steps, length, lengths


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 50]), st.sampled_from([1e-160, 1e-8, 1.0, 1e150]))
def test_lengths_are_not_below_the_exact_ones(seed: int, size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x0 = rng.normal(size=size)
    x = x0 + scale * rng.normal(size=size) * (rng.random(size) < 0.7)
    steps = [abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(x, x0, strict=True)]
    assert Fraction(length("linf", x, x0)) >= max(steps)
    assert Fraction(length("l1", x, x0)) >= sum(steps)
    assert Fraction(length("l2", x, x0)) ** 2 >= sum(step * step for step in steps)
    for norm in NORMS:
        near = float(lengths(norm, (x - x0)[None])[0])
        assert length(norm, x, x0) == pytest.approx(near, rel=1e-9)
        assert length(norm, x0, x0) == 0.0


def test_lengths_that_are_infinite() -> None:
    for norm in NORMS:
        assert length(norm, np.array([np.inf, 0.0]), np.zeros(2)) == math.inf


@given(st.integers(0, 10**6), st.sampled_from(NORMS), st.booleans())
def test_the_closest_steps_are_those_of_programs(seed: int, norm: str, bounded: bool) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 5))
    x0 = rng.uniform(-1, 1, size)
    edge = 1.0 if bounded else np.inf
    low, high = np.full(size, -edge), np.full(size, edge)
    if bounded and rng.random() < 0.5:
        x0[0] = 1.0
    slope = rng.normal(size=(1, size)) * (rng.random(size) < 0.8)
    room = np.where(slope[0] > 0, x0 - low, high - x0)
    with np.errstate(invalid="ignore"):
        most = float(np.where(slope[0] != 0, np.abs(slope[0]) * room, 0.0).sum())
    if most == 0:
        return
    needed = rng.uniform(0.05, 0.95) * min(most, 5.0)
    found = closest_steps(norm, x0, slope, np.array([needed]), low, high)[0]
    assert np.all((found >= low) & (found <= high))
    assert slope[0] @ (x0 - found) == pytest.approx(needed, rel=1e-9)
    if norm == "l2":
        start = np.clip(x0 - np.sign(slope[0]) * np.minimum(room, 1.0), low, high)
        best = minimize(
            lambda x: float((x - x0) @ (x - x0)),
            start,
            jac=lambda x: 2 * (x - x0),
            bounds=[*zip(low, high, strict=True)],
            constraints={"type": "eq", "fun": lambda x: slope[0] @ (x0 - x) - needed},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert length(norm, found, x0) ** 2 <= float(best.fun) + 1e-7 or not best.success
        return
    count = size if norm == "l1" else 1
    ways = np.eye(size) if norm == "l1" else np.ones((size, 1))
    found_by_program = linprog(
        np.concatenate([np.zeros(size), np.ones(count)]),
        A_ub=np.vstack([np.hstack([np.eye(size), -ways]), np.hstack([-np.eye(size), -ways])]),
        b_ub=np.concatenate([x0, -x0]),
        A_eq=np.concatenate([slope[0], np.zeros(count)])[None],
        b_eq=[slope[0] @ x0 - needed],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * count],
    )
    assert length(norm, found, x0) == pytest.approx(found_by_program.fun, rel=1e-6, abs=1e-9)


def test_what_is_no_norm() -> None:
    with pytest.raises(QueryError, match=r"--norm l0.*linf, l1, l2"):
        check_norm("l0")
