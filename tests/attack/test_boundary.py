"""The attack's points are adversarial, inside the limits, and on linear networks the closest ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from milpver.attack.boundary import closest_adversarials
from milpver.graph import Affine, Graph, Input, Relu
from milpver.linear import Dense
from milpver.norm import closest_steps, lengths


def net(seed: int, *, linear: bool) -> Graph:
    rng = np.random.default_rng(seed)
    if linear:
        return Graph((Input(3), Affine(((0, Dense(rng.normal(size=(3, 3)))),), rng.normal(size=3), "")))
    return Graph(
        (
            Input(3),
            Affine(((0, Dense(rng.normal(size=(6, 3)))),), rng.normal(size=6), ""),
            Relu(1, 6),
            Affine(((2, Dense(rng.normal(size=(3, 6)))),), rng.normal(size=3), ""),
        )
    )


@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_points_are_adversarial_and_inside(seed: int, linear: bool, limited: bool) -> None:
    graph = net(seed, linear=linear)
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-1, 1, size=3)
    low, high = (np.full(3, -1.0), np.full(3, 1.0)) if limited else (np.full(3, -np.inf), np.full(3, np.inf))
    label = int(graph.evaluate(x0[None])[0].argmax())
    targets = [j for j in range(3) if j != label]
    found, points = closest_adversarials(graph, x0, label, targets, low, high, steps=15, seed=seed)
    again, _ = closest_adversarials(graph, x0, label, targets, low, high, steps=15, seed=seed)
    np.testing.assert_array_equal(found, again)
    for k, j in enumerate(targets):
        if not np.isfinite(found[k]):
            continue
        assert np.all((points[k] >= low) & (points[k] <= high))
        assert np.abs(points[k] - x0).max() == pytest.approx(found[k])
        logits = graph.evaluate(points[k][None])[0]
        assert logits[label] - logits[j] <= 1e-12
    if linear:
        weight, bias = graph.nodes[1].terms[0][1].weight, graph.nodes[1].bias  # type: ignore[union-attr]
        for k, j in enumerate(targets):
            row, constant = weight[label] - weight[j], bias[label] - bias[j]
            ways = np.hstack([np.vstack([np.eye(3), -np.eye(3)]), -np.ones((6, 1))])
            exact = linprog(
                [0, 0, 0, 1],
                A_ub=np.vstack([ways, [*row, 0]]),
                b_ub=[*x0, *-x0, -constant],
                bounds=[*zip(low, high, strict=True), (0, None)],
            )
            if exact.status == 0 and exact.fun < 0.99:
                assert found[k] == pytest.approx(exact.fun, rel=1e-4, abs=1e-6)
            if exact.status == 2:
                assert found[k] == np.inf


@given(st.integers(0, 10**6), st.sampled_from(["l1", "l2"]), st.booleans())
def test_parts_of_steps_lead_closer_and_stay_inside(seed: int, norm: str, limited: bool) -> None:
    graph = net(seed, linear=False)
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-1, 1, size=3)
    low, high = (np.full(3, -1.0), np.full(3, 1.0)) if limited else (np.full(3, -np.inf), np.full(3, np.inf))
    label = int(graph.evaluate(x0[None])[0].argmax())
    targets = [j for j in range(3) if j != label]
    found, points = closest_adversarials(graph, x0, label, targets, low, high, steps=5, seed=seed, norm=norm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("milpver.attack.boundary._DESCENTS", 0)
        before, _ = closest_adversarials(graph, x0, label, targets, low, high, steps=5, seed=seed, norm=norm)
    assert np.all(found <= before)
    for k in np.flatnonzero(np.isfinite(found)):
        assert np.all((points[k] >= low) & (points[k] <= high))
        assert lengths(norm, points[k] - x0) == pytest.approx(found[k], abs=1e-12)
        logits = graph.evaluate(points[k][None])[0]
        assert logits[label] - logits[targets[k]] <= 1e-12


@given(st.integers(0, 10**6))
def test_a_linear_margin_drops_by_what_is_needed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-1, 1, size=4)
    slope = rng.normal(size=(5, 4)) * (rng.random((5, 4)) < 0.8)
    low, high = np.full(4, -1.0), np.full(4, 1.0)
    high[0] = np.inf
    room = np.where(slope > 0, x0 - low, high - x0)
    with np.errstate(invalid="ignore"):
        most = np.where(slope != 0, np.abs(slope) * room, 0.0).sum(axis=1)
    needed = np.where(np.isfinite(most), most, 3.0) * rng.uniform(0, 1, size=5)
    moved = closest_steps("linf", x0, slope, needed, low, high)
    assert np.all((moved >= low) & (moved <= high))
    np.testing.assert_allclose(np.einsum("bi,bi->b", slope, x0 - moved), needed, atol=1e-9)


def test_nothing_to_do_and_nothing_possible() -> None:
    x0, low, high = np.zeros(2), np.full(2, -1.0), np.full(2, 1.0)
    slope = np.array([[1.0, 2.0], [1.0, -2.0], [0.0, 0.0]])
    moved = closest_steps("linf", x0, slope, np.array([-1.0, 100.0, 1.0]), low, high)
    np.testing.assert_array_equal(moved, [[0, 0], [-1, 1], [0, 0]])
