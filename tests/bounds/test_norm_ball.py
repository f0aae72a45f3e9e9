"""Bounds over L1 and L2 balls hold at points of the ball, and are exact for linear functions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from milpver.bounds._norm_ball import BallWorkspace, ball_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.graph import Affine, Graph, Input, Relu
from milpver.linear import Conv, Dense, Float
from milpver.query import Budget, ball


def net(seed: int, size: int) -> Graph:
    rng = np.random.default_rng(seed)
    return Graph(
        (
            Input(size),
            Affine(((0, Dense(rng.normal(size=(7, size)))),), rng.normal(size=7), ""),
            Relu(1, 7),
            Affine(((2, Dense(rng.normal(size=(5, 7)))),), rng.normal(size=5), ""),
            Relu(3, 5),
            Affine(((4, Dense(rng.normal(size=(2, 5)))),), rng.normal(size=2), ""),
        )
    )


def points_of(norm: str, x0: Float, radius: float, seed: int) -> Float:
    """Points in the ball, many at its edge and at its corners."""
    rng = np.random.default_rng(seed)
    ways = rng.normal(size=(400, len(x0))) * (rng.random((400, len(x0))) < rng.uniform(0.2, 1, size=(400, 1)))
    sizes = np.abs(ways).sum(axis=1) if norm == "l1" else np.linalg.norm(ways, axis=1)
    reach = np.where(rng.random(400) < 0.5, 1.0, rng.random(400)) * radius
    corners = radius * np.vstack([np.eye(len(x0)), -np.eye(len(x0))])
    return x0 + np.vstack([ways * (reach / np.maximum(sizes, 1e-12))[:, None], corners]) * (1 - 1e-12)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["l1", "l2"]), st.sampled_from([0.05, 0.4, 2.0]), st.booleans())
def test_bounds_hold_in_the_ball(seed: int, norm: str, radius: float, clipped: bool) -> None:
    graph = net(seed, 4)
    x0 = np.random.default_rng(seed).uniform(0, 1, size=4)
    domain = (0.0, 1.0) if clipped else None
    boxes = [ball(x0, each, domain) for each in (radius, radius / 2)]
    lower, upper = np.stack([box.lower for box in boxes]), np.stack([box.upper for box in boxes])
    rows = np.broadcast_to(np.vstack([np.eye(2), -np.eye(2)]), (2, 4, 2))
    found = ball_bounds(
        TensorGraph(graph, torch.device("cpu")),
        norm,
        x0,
        np.array([radius, radius / 2]),
        (lower, upper),
        rows,
        steps=2,
        row_steps=3,
    )
    for k, box in enumerate(boxes):
        points = points_of(norm, x0, radius / (k + 1), seed)
        if clipped:
            points = np.clip(points, 0.0, 1.0)  # x0 lies inside: clipping brings points closer
        assert all(box.contains(point) for point in points)
        for index, value in enumerate(graph.trace(points)):
            assert np.all(found.lower[index][k] <= value)
            assert np.all(value <= found.upper[index][k])
        outputs = graph.evaluate(points)
        assert np.all(found.rows_lower[k] <= np.hstack([outputs, -outputs]).min(axis=0))


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["l1", "l2"]), st.sampled_from([0.1, 0.7, 3.0]))
def test_linear_functions_are_bounded_exactly(seed: int, norm: str, radius: float) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 6))
    x0 = rng.uniform(0, 1, size)
    if rng.random() < 0.5:
        x0[0] = 0.0
    c = rng.normal(size=size)
    box = ball(x0, radius, (0.0, 1.0))
    tensors = TensorGraph(
        Graph((Input(size), Affine(((0, Dense(c[None])),), np.zeros(1), ""))), torch.device("cpu")
    )
    space = BallWorkspace(
        tensors,
        Budget(),
        norm=norm,
        centre=torch.tensor(x0),
        radius=torch.tensor([radius], dtype=torch.float64),
    )
    space.add(torch.tensor(box.lower)[None], torch.tensor(box.upper)[None])
    found = float(space.least(torch.tensor(c)[None, None])[0, 0])
    # Any multiplier of the ball gives a bound from below of the exact minimum, by Lagrange.
    if norm == "l1":
        split = linprog(
            np.concatenate([c, -c]),
            A_ub=np.ones((1, 2 * size)),
            b_ub=[radius],
            bounds=[
                *zip(np.zeros(size), box.upper - x0, strict=True),
                *zip(np.zeros(size), x0 - box.lower, strict=True),
            ],
        )
        exact = float(c @ x0 + split.fun)
    else:
        # Lagrange: the step of a weight, bisected until its norm is the radius.
        def step(weight: float) -> Float:
            return np.clip(-c / (2 * weight), box.lower - x0, box.upper - x0)

        low, high = 1e-12, 1e12
        for _ in range(200):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if np.linalg.norm(step(middle)) > radius else (low, middle)
        exact = float(c @ (x0 + step(high)))
    assert found <= exact + 1e-12 * (1 + abs(exact))
    assert found == pytest.approx(exact, abs=1e-9 * (1 + abs(exact)))


def test_rounding_is_outward() -> None:
    """The bound of c x over an l1 ball in exact arithmetic, where floats cannot hold it."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        c, x0, radius = rng.normal(size=3), rng.uniform(0, 1, 3), float(rng.uniform(0.01, 0.3))
        graph = Graph((Input(3), Affine(((0, Dense(c[None])),), np.zeros(1), "")))
        box = ball(x0, radius, None)
        found = ball_bounds(
            TensorGraph(graph, torch.device("cpu")),
            "l1",
            x0,
            np.array([radius]),
            (box.lower[None], box.upper[None]),
            np.ones((1, 1, 1)),
            steps=0,
            row_steps=0,
        )
        parts = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(c, x0, strict=True)]
        exact = sum(parts) - Fraction(radius) * max(abs(Fraction(float(a))) for a in c)
        assert Fraction(float(found.rows_lower[0, 0])) <= exact
        assert float(exact) - float(found.rows_lower[0, 0]) < 1e-12


def test_convolutions_are_bounded_through_the_ball_too() -> None:
    rng = np.random.default_rng(1)
    conv = Conv(rng.normal(size=(2, 1, 2, 2)), (1, 4, 4), (2, 2), (0, 0, 0, 0), (1, 1), 1)
    graph = Graph(
        (
            Input(16),
            Affine(((0, conv),), np.zeros(8), ""),
            Relu(1, 8),
            Affine(((2, Dense(rng.normal(size=(2, 8)))),), np.zeros(2), ""),
        )
    )
    x0 = rng.uniform(0, 1, 16)
    box = ball(x0, 0.5, (0.0, 1.0))
    found = ball_bounds(
        TensorGraph(graph, torch.device("cpu")),
        "l2",
        x0,
        np.array([0.5]),
        (box.lower[None], box.upper[None]),
        np.eye(2)[None],
        steps=0,
        row_steps=0,
    )
    points = np.clip(points_of("l2", x0, 0.5, 3), 0, 1)
    values = graph.trace(points)[1]
    assert np.all((found.lower[1][0] <= values) & (values <= found.upper[1][0]))
    widths = found.upper[1][0] - found.lower[1][0]
    kernel = np.linalg.norm(conv.kernel.reshape(2, -1), axis=1)
    unstable = (found.lower[1][0] < 0) & (found.upper[1][0] > 0)
    limit = np.repeat(2 * 0.5 * kernel, 4)
    assert np.all(widths[unstable] <= limit[unstable] + 1e-9), (
        "the dual norm, not the box, bounds what is open"
    )
