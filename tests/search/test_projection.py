"""The closest inputs of leaves are those of independent solvers, and their multipliers prove them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from milpver.norm import closest_steps, lengths
from milpver.search._projection import project


@settings(max_examples=60, deadline=None)
@example(500535, "l2", 2, 6)
@given(st.integers(0, 10**6), st.sampled_from(["l1", "l2"]), st.integers(1, 6), st.integers(1, 12))
def test_multipliers_prove_the_distance(seed: int, norm: str, inputs: int, count: int) -> None:
    """Weak duality: the sum that the multipliers make reaches 0 no closer, and the point is feasible."""
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(0, 1, inputs)
    box = np.zeros(inputs), np.ones(inputs)
    if rng.random() < 0.5:
        x0[0] = float(rng.integers(0, 2))
    slopes, constants = rng.normal(size=(count, inputs)), rng.normal(size=count)
    if rng.random() < 0.3:
        slopes[-1] = slopes[0]
    feasible = linprog(np.zeros(inputs), slopes, -constants, bounds=np.column_stack(box)).status == 0
    found = project(norm, x0, slopes, constants, box, 10.0)
    assert found is not None
    x, weights = found
    assert np.all((weights >= 0) & np.isfinite(weights))
    assert np.all((box[0] <= x) & (x <= box[1]))
    slope, constant = weights @ slopes, float(weights @ constants)
    most = np.abs(slope).sum() + abs(constant)
    if not feasible:
        # The sum is > 0 in the whole box.
        assert constant + np.minimum(slope * box[0], slope * box[1]).sum() > -1e-7 * most
        return
    assert np.all(slopes @ x + constants <= 1e-9 * (1 + np.abs(constants).max()))
    distance = float(lengths(norm, x - x0))
    if norm == "l1":
        ways = np.hstack([slopes, -slopes])
        room = np.column_stack([np.zeros(2 * inputs), np.concatenate([1 - x0, x0])])
        exact = float(linprog(np.ones(2 * inputs), ways, -constants - slopes @ x0, bounds=room).fun)
    else:
        other = minimize(
            lambda y: 0.5 * float((y - x0) @ (y - x0)),
            x,
            jac=lambda y: y - x0,
            bounds=np.column_stack(box),
            constraints={
                "type": "ineq",
                "fun": lambda y: -(slopes @ y + constants),
                "jac": lambda _: -slopes,
            },
        )
        exact = min(distance, float(np.linalg.norm(other.x - x0))) if other.success else distance
    assert distance == pytest.approx(exact, abs=1e-5)
    if distance > 1e-6:
        # Just inside of the distance the sum is > 0: sampled, at the box's points closest to where it falls.
        value = np.array([constant + slope @ x0])
        point = closest_steps(norm, x0, slope[None], value, *box)[0]
        reached = constant + slope @ point <= 1e-9 * most
        assert not reached or float(lengths(norm, point - x0)) == pytest.approx(distance, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_functions_that_hold_at_the_centre_take_no_step(norm: str) -> None:
    x0 = np.array([0.5, 0.5])
    found = project(
        norm, x0, np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([-2.0, 0.0]), (x0 * 0, x0 * 2), 1.0
    )
    assert found is not None
    assert np.array_equal(found[0], x0)
