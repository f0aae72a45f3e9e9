"""Distances by the native search are those of a linear program for each activation pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from milpver import boundary_distance
from milpver.bounds._tensors import TensorGraph
from milpver.query import ball
from milpver.search.distance import search_distance
from milpver.search.limits import SearchLimits
from milpver.solver import Stop
from milpver.verdict import Assurance, Status
from tests.nets import network_of, pattern_distance, random_layers, small_conv


def stopping(most: int) -> Callable[[], Stop | None]:
    """A limit that is met once it has been asked a number of times."""
    calls = iter(range(10**9))
    return lambda: Stop.TIMEOUT if next(calls) > most else None


@pytest.mark.parametrize("seed", range(6))
def test_distances_are_those_of_all_patterns(tmp_path: Path, seed: int) -> None:
    weights, biases = random_layers([3, 4, 3, 3], seed, scale=1.5)
    network = network_of(tmp_path / "net.onnx", weights, biases)
    x0 = np.random.default_rng(seed).uniform(0.2, 0.8, size=3).astype(np.float32)
    label = int(network.graph.evaluate(x0[None].astype(np.float64))[0].argmax())
    rows = [np.eye(3)[label] - np.eye(3)[j] for j in range(3) if j != label]
    low, high = np.zeros(3), np.ones(3)
    truth = min(pattern_distance(weights, biases, x0.astype(np.float64), row, low, high) for row in rows)
    found = boundary_distance(network, x0, label, domain=(0.0, 1.0), solver="bab")
    if not np.isfinite(truth):
        # No attack finds a ball to search then: the backend answers.
        assert found.status is Status.INFEASIBLE
        return
    assert found.status is Status.OPTIMAL
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower <= truth + 1e-9
    assert found.upper >= truth - 1e-9
    assert found.upper == pytest.approx(truth, abs=2e-6)
    assert found.lower == pytest.approx(truth, abs=2e-6)
    assert found.assurance is Assurance.ROUNDED


@pytest.mark.parametrize("seed", range(4))
def test_a_stopped_search_keeps_a_bracket(tmp_path: Path, seed: int) -> None:
    """Without time, and without any incumbent but the ball, each target's bound lies below its distance."""
    weights, biases = random_layers([3, 5, 4, 3], 10 + seed, scale=1.5)
    network = network_of(tmp_path / "net.onnx", weights, biases)
    x0 = np.random.default_rng(seed).uniform(0.2, 0.8, size=3)
    label = int(network.graph.evaluate(x0[None])[0].argmax())
    rows = np.array([np.eye(3)[label] - np.eye(3)[j] for j in range(3) if j != label])
    radius = 0.6
    box = ball(x0, radius, (0.0, 1.0))
    truth = [pattern_distance(weights, biases, x0, row, np.zeros(3), np.ones(3)) for row in rows]
    tensors = TensorGraph(network.graph, torch.device("cpu"))
    for most in (3, 10**9):
        limits = SearchLimits(gap=1e-6, decide=False, memory=1 << 30, expired=stopping(most))
        result = search_distance(tensors, box, radius, rows, lambda *_: radius, limits)
        assert np.all(result.lower <= np.minimum(truth, radius) + 1e-9)
        if most > 3:
            assert result.stop is Stop.OPTIMAL
            assert result.lower.min() == pytest.approx(min(*truth, radius), abs=2e-6)


def wide_case(tmp_path: Path) -> tuple[TensorGraph, np.ndarray, np.ndarray, float]:
    """A network whose margin of 1 comes of numbers so large that rounding is many times 1e-9 of it."""
    rng = np.random.default_rng(0)
    weights = [100 * rng.normal(size=(200, 300)), rng.normal(size=(2, 200))]
    biases = [100 * rng.normal(size=200), np.zeros(2)]
    x0 = rng.uniform(0.2, 0.8, size=300).astype(np.float32).astype(np.float64)
    graph = network_of(tmp_path / "net.onnx", weights, biases).graph
    margin = float(np.subtract(*graph.evaluate(x0[None])[0]))
    biases[1] = np.array([1.0 - margin, 0.0])
    graph = network_of(tmp_path / "net.onnx", weights, biases).graph
    slope = np.abs(graph.pullback(graph.trace(x0[None]), np.array([[1.0, -1.0]]))).sum()
    return TensorGraph(graph, torch.device("cpu")), x0, np.array([[1.0, -1.0]]), 3.0 / float(slope)


def test_rounding_takes_a_radius_back_by_what_it_is_and_no_more(tmp_path: Path) -> None:
    tensors, x0, rows, radius = wide_case(tmp_path)
    box = ball(x0, radius, None)
    limits = SearchLimits(gap=0.01 * radius, decide=False, memory=1 << 30, expired=stopping(8))
    result = search_distance(tensors, box, radius, rows, lambda *_: radius, limits)
    assert result.lower[0] > 0.1 * radius, "a bound was thrown away for rounding's sake"
    points = np.random.default_rng(1).uniform(-1, 1, (2000, 300)) * result.lower[0] + x0
    assert np.all(tensors.graph.evaluate(points) @ rows[0] > 0)


def test_a_search_begins_at_what_is_certified(tmp_path: Path) -> None:
    tensors, x0, rows, radius = wide_case(tmp_path)
    box = ball(x0, radius, None)
    limits = SearchLimits(gap=1e-9, decide=False, memory=1 << 30, expired=lambda: Stop.TIMEOUT)
    known = np.array([radius / 4])
    result = search_distance(tensors, box, radius, rows, lambda *_: radius, limits, known)
    assert radius / 4 <= result.lower[0] <= radius


@pytest.mark.parametrize("seed", range(3))
def test_convolutions_are_searched_over_what_is_unstable(tmp_path: Path, seed: int) -> None:
    """A convolutional network, written over its unstable neurons, has the distance of its program."""
    rng = np.random.default_rng(seed)
    network = small_conv(tmp_path / "conv.onnx", rng, 3, 5, 6)
    x = rng.uniform(0.2, 0.8, size=25).astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    ways = {
        solver: boundary_distance(network, x, label, domain=(0.0, 1.0), solver=solver, gap=1e-5)
        for solver in ("bab", "highs")
    }
    assert {found.status for found in ways.values()} <= {Status.OPTIMAL, Status.INFEASIBLE}
    if ways["highs"].status is Status.OPTIMAL:
        assert ways["bab"].upper == pytest.approx(ways["highs"].upper, abs=1.1e-5)
        assert ways["bab"].lower is not None
        assert ways["highs"].upper is not None
        assert ways["bab"].lower <= ways["highs"].upper + 1e-7
        assert ways["bab"].solver in ("bab", "bounds")
