"""Distances by the native search are those of a linear program for each activation pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milpver import boundary_distance
from milpver.bounds._tensors import TensorGraph
from milpver.query import ball
from milpver.search.distance import _DistanceSearch, search_distance
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


def test_the_closest_input_at_a_kink_is_stepped_over(tmp_path: Path) -> None:
    """It lies where no slope leads into the adversarial region: found on the boundary, it never replays."""
    first = [
        [-0.307082504, -0.556207895, 0.991693616, 0.15360409],
        [0.081186846, 0.331901729, -0.40252015, 0.184408709],
        [-0.698700786, -0.460785031, 0.147917405, -1.246432304],
    ]
    second = [
        [-0.356831253, -0.150926337, 0.112932175],
        [-0.086808026, -0.750181496, 0.632815301],
        [-0.373948186, -0.596968651, -0.771224499],
        [-0.145765036, -0.282614321, 0.700720549],
    ]
    third = [
        [1.133442268, -0.015817733, 0.152852057, -0.189153537],
        [0.768291602, 0.683664963, -0.721898153, -0.152652972],
        [0.107193708, 0.493891418, 0.278244369, 0.351661762],
    ]
    weights = [np.array(each, dtype=np.float32).astype(np.float64) for each in (first, second, third)]
    offsets = [[0.18284723, 0.11005851, -0.43433788], [-0.33235419, 0, 0, 0.03787502]]
    offsets.append([-0.33495039, 0.12075963, 0.17676805])
    biases = [np.array(each, dtype=np.float32).astype(np.float64) for each in offsets]
    network = network_of(tmp_path / "net.onnx", weights, biases)
    x0, anywhere = np.array([0.0, -2.0, -2.0, 1.0]), np.full(4, np.inf)
    rows = [np.eye(3)[2] - np.eye(3)[j] for j in (0, 1)]
    truth = min(pattern_distance(weights, biases, x0, row, -anywhere, anywhere) for row in rows)
    found = boundary_distance(network, x0, 2, solver="bab", timeout=60.0)
    assert found.status is Status.OPTIMAL
    assert found.lower is not None
    assert found.lower <= truth + 1e-9
    assert found.upper == pytest.approx(truth, abs=2e-6)


def test_a_leaf_without_a_solution_is_proven(tmp_path: Path) -> None:
    """With weights of 1e4 and of 1e-5: within the ball nothing has a leaf's signs and is adversarial."""
    first = [
        [-10260.77636719, 4981.09179688],
        [-13764.67089844, -6847.22998047],
        [-7316.95263672, 966.41314697],
        [-5719.94677734, -3349.97631836],
    ]
    second = [
        [-0.57209468, 0.39397293, 0.55358201, 0.48054585],
        [-1.71910286, 3.44576311, -0.00783545, 2.8574717],
    ]
    third = [
        [6.06420372e-06, -5.08104176e-06],
        [1.67760918e-05, 1.71785432e-05],
        [2.72945204e-06, 6.39484256e-07],
        [7.84217082e-06, -1.17870813e-05],
    ]
    offsets = [[4900.80859375, -958.6809082, -5512.82080078, -2325.42626953], [-0.01639459, 0.13598202]]
    offsets.append([3.82228166e-07, -6.33491209e-06, -2.1450976e-06, -2.50805783e-06])
    weights = [np.array(each) for each in (first, second, third)]
    network = network_of(tmp_path / "net.onnx", weights, [np.array(each) for each in offsets])
    x = np.array([-0.187059, 0.4927904], dtype=np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64)).argmax())
    found = boundary_distance(
        network, x, label, domain=(-1.0, 1.0), remove=[(2, 1)], solver="bab", timeout=60.0
    )
    weights[1][1], offsets[1][1] = 0.0, 0.0
    rows = [np.eye(4)[label] - np.eye(4)[j] for j in range(4) if j != label]
    biases = [np.array(each) for each in offsets]
    low, high = -np.ones(2), np.ones(2)
    truth = min(pattern_distance(weights, biases, x.astype(np.float64), row, low, high) for row in rows)
    assert found.status is Status.OPTIMAL
    assert found.upper == pytest.approx(truth, abs=1e-4)


def test_leaves_end_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of them takes seconds, which a search whose time is up does not have."""
    weights, biases = random_layers([3, 4, 3], 3, scale=1.5)
    network = network_of(tmp_path / "net.onnx", weights, biases)
    calls: list[int] = []
    leaf = _DistanceSearch.leaf

    def counted(self: _DistanceSearch, *given: Any) -> torch.Tensor:  # Any: passed on
        calls.append(1)
        return leaf(self, *given)

    monkeypatch.setattr(_DistanceSearch, "leaf", counted)
    x0 = np.full(3, 0.5)
    label = int(network.graph.evaluate(x0[None])[0].argmax())
    rows = np.array([np.eye(3)[label] - np.eye(3)[j] for j in range(3) if j != label])
    limits = SearchLimits(1e-6, False, 1 << 30, lambda: Stop.TIMEOUT if calls else None)
    tensors = TensorGraph(network.graph, torch.device("cpu"))
    found = search_distance(tensors, ball(x0, 5.0, None), 5.0, rows, lambda *_: np.inf, limits)
    assert found.stop is Stop.TIMEOUT
    assert len(calls) == 1
