"""L1 and L2 distances by the native search are those of enumeration and of backends, and never too large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from milpver import boundary_distance, registry
from milpver.bounds._tensors import TensorGraph
from milpver.network import Network
from milpver.norm import lengths
from milpver.query import ball
from milpver.search.distance import search_distance
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop
from milpver.verdict import Assurance, Status
from tests.nets import network_of, pattern_distance, random_layers, saved, small_conv

Float = NDArray[np.float64]
BALLS = pytest.mark.parametrize("norm", ["l1", "l2"])
BACKEND = {
    norm: [name for name in names if registry.load("solvers", name).availability().available]
    for norm, names in {"l1": ["highs"], "l2": ["scip", "gurobi"]}.items()
}


def stopping(most: int) -> Callable[[], Stop | None]:
    """A limit that is met once it has been asked a number of times."""
    calls = iter(range(10**9))
    return lambda: Stop.TIMEOUT if next(calls) > most else None


def searched(
    network: Network, x0: Float, rows: Float, radius: float, norm: str, **options: object
) -> SearchResult:
    """A search without an attack: what is offered counts for nothing."""
    domain = (0.0, 1.0) if options.pop("clipped", True) else None
    most = options.pop("most", 10**9)
    assert isinstance(most, int)
    gap = options.pop("gap", 1e-6)
    assert isinstance(gap, float)
    limits = SearchLimits(gap=gap, decide=False, memory=1 << 30, expired=stopping(most))
    tensors = TensorGraph(network.graph, torch.device("cpu"))
    box = ball(x0, radius, domain)
    return search_distance(tensors, box, radius, rows, lambda *_: radius, limits, norm=norm)


def drawn(
    tmp_path: Path, sizes: list[int], seed: int
) -> tuple[list[Float], list[Float], Network, Float, Float]:
    """Weights, biases, their network, an input (now and then at the domain's edge), and the rows."""
    weights, biases = random_layers(sizes, seed, scale=1.5)
    network = network_of(tmp_path / "net.onnx", weights, biases)
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(0.1, 0.9, size=sizes[0]).astype(np.float32).astype(np.float64)
    if seed % 3 == 0:
        x0[: sizes[0] // 2] = 1.0
    label = int(network.graph.evaluate(x0[None])[0].argmax())
    eye = np.eye(sizes[-1])
    return weights, biases, network, x0, np.array([eye[label] - row for row in np.delete(eye, label, axis=0)])


@BALLS
@pytest.mark.parametrize("seed", range(8))
def test_distances_are_those_of_all_patterns(tmp_path: Path, seed: int, norm: str) -> None:
    """Of every target, with a domain and without, in a ball that holds none of them or some."""
    sizes = [[3, 4, 3, 3], [2, 5, 3], [4, 4, 2, 3]][seed % 3]
    weights, biases, network, x0, rows = drawn(tmp_path, sizes, seed)
    clipped = seed % 2 == 0
    edge = np.inf if not clipped else 1.0
    low, high = np.full(sizes[0], 0.0 if clipped else -np.inf), np.full(sizes[0], edge)
    truth = np.array([pattern_distance(weights, biases, x0, row, low, high, norm) for row in rows])
    for radius in (0.4, 1.5):
        result = searched(network, x0, rows, radius, norm, clipped=clipped)
        assert result.stop is Stop.OPTIMAL
        assert np.all(result.lower <= np.minimum(truth, radius) + 1e-9)
        # Without an incumbent, bounds of all targets close at their distances, or at the ball's edge.
        assert result.lower == pytest.approx(np.minimum(truth, radius), abs=3e-6)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["l1", "l2"]),
    hidden=st.sampled_from([[6], [4, 4], [4, 3, 3]]),
    clipped=st.booleans(),
    most=st.sampled_from([3, 5, 10**9]),
)
def test_no_sampled_adversarial_input_is_closer_than_a_bound(
    tmp_path: Path, seed: int, norm: str, hidden: list[int], clipped: bool, most: int
) -> None:
    _, _, network, x0, rows = drawn(tmp_path, [5, *hidden, 3], seed)
    radius = 1.0
    result = searched(network, x0, rows, radius, norm, clipped=clipped, most=most, gap=1e-3)
    rng = np.random.default_rng(seed)
    ways = rng.normal(size=(3000, 5)) * (rng.random((3000, 5)) < rng.uniform(0.2, 1.0, size=(3000, 1)))
    ways *= rng.random((3000, 1)) * radius / np.maximum(lengths(norm, ways)[:, None], 1e-9)
    points = x0 + ways
    if clipped:
        points = np.clip(points, 0.0, 1.0)
    margins = network.graph.evaluate(points) @ rows.T
    away = lengths(norm, points - x0)
    for k in range(len(rows)):
        hit = margins[:, k] <= 0
        assert away[hit].min(initial=np.inf) >= result.lower[k] * (1 - 1e-12)


@BALLS
@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("seed", range(2))
def test_brackets_are_those_of_backends(tmp_path: Path, seed: int, kind: str, norm: str) -> None:
    if not BACKEND[norm]:
        pytest.skip("no backend for quadratic programs is installed")
    rng = np.random.default_rng(seed)
    if kind == "dense":
        _, _, network, x0, _ = drawn(tmp_path, [6, 8, 6, 4], 100 + seed)
    else:
        network = small_conv(tmp_path / "conv.onnx", rng, 2, 4, 5)
        x0 = rng.uniform(0.2, 0.8, size=16)
    x = x0.astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    other = (label + 1) % network.graph.outputs
    for target in (None, other):
        own, backend = (
            boundary_distance(
                network, x, label, domain=(0.0, 1.0), norm=norm, solver=solver, gap=1e-4, target=target
            )
            for solver in ("auto", BACKEND[norm][0])
        )
        assert own.status is backend.status
        assert own.solver in ("bab", "bounds")
        assert own.assurance is Assurance.ROUNDED
        if own.status is Status.INFEASIBLE:
            continue
        assert own.status is Status.OPTIMAL
        assert own.lower is not None
        assert own.upper is not None
        assert backend.lower is not None
        assert backend.upper is not None
        assert own.lower <= backend.upper + 1e-7
        assert own.upper >= backend.lower - 1e-5
        assert target is None or own.adversarial_label == target


def wide_case(tmp_path: Path, norm: str) -> tuple[Network, Float, Float, float]:
    """A network whose margin of 1 comes of numbers so large that rounding is many times 1e-9 of it."""
    rng = np.random.default_rng(0)
    weights = [100 * rng.normal(size=(200, 300)), rng.normal(size=(2, 200))]
    biases = [100 * rng.normal(size=200), np.zeros(2)]
    x0 = rng.uniform(0.2, 0.8, size=300).astype(np.float32).astype(np.float64)
    graph = network_of(tmp_path / "net.onnx", weights, biases).graph
    biases[1] = np.array([1.0 - float(np.subtract(*graph.evaluate(x0[None])[0])), 0.0])
    network = network_of(tmp_path / "net.onnx", weights, biases)
    slope = network.graph.pullback(network.graph.trace(x0[None]), np.array([[1.0, -1.0]]))
    steep = np.abs(slope).max() if norm == "l1" else np.linalg.norm(slope)
    return network, x0, np.array([[1.0, -1.0]]), 3.0 / float(steep)


@BALLS
def test_rounding_takes_a_radius_back_by_what_it_is_and_no_more(tmp_path: Path, norm: str) -> None:
    network, x0, rows, radius = wide_case(tmp_path, norm)
    result = searched(network, x0, rows, radius, norm, clipped=False, most=8, gap=0.01 * radius)
    assert result.lower[0] > 0.1 * radius, "a bound was thrown away for rounding's sake"
    ways = np.random.default_rng(1).normal(size=(2000, 300))
    ways = np.vstack([ways, np.eye(300), -np.eye(300)])
    points = x0 + ways * (result.lower[0] / lengths(norm, ways))[:, None]
    assert np.all(network.graph.evaluate(points) @ rows[0] > 0)


@BALLS
@pytest.mark.parametrize("solver", ["auto", "bab"])
def test_a_tip_that_no_slope_leads_into(tmp_path: Path, norm: str, solver: str) -> None:
    """The margin is ``10 |x1 - a| - 3 (x2 - b)``: adversarial is a thin cone whose tip is the closest."""
    a, b = float(np.float32(1 / 3)), float(np.float32(0.7 / 3))
    weights = [
        np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),
        np.array([[10.0, 10.0, 0.0], [0.0, 0.0, 3.0]]),
    ]
    biases = [np.array([-a, a, 0.0]), np.array([3 * b, 0.0])]
    network = network_of(tmp_path / "tip.onnx", weights, biases)
    found = boundary_distance(network, np.array([a, 0.0], dtype=np.float32), 0, norm=norm, solver=solver)
    assert found.status is Status.OPTIMAL, found.message
    # The slope of the cone's sides leaves the float32 biases' error times 3 / 10 to either side.
    assert found.upper == pytest.approx(b, abs=3e-6)
    assert found.lower == pytest.approx(b, abs=3e-6)


def test_l2_needs_no_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the domain holds no adversarial input, and there is no incumbent to begin with."""
    monkeypatch.setattr("milpver.distance._takes_squares", lambda _: False)
    weights, biases = random_layers([3, 5, 3], 4, scale=1.5)
    network = network_of(tmp_path / "net.onnx", weights, biases)
    x = np.array([0.25, 0.5, 0.75], dtype=np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    biases[-1] = biases[-1] + 50 * np.eye(3)[label]
    far = network_of(tmp_path / "far.onnx", weights, biases)
    for norm in ("l1", "l2"):
        near = boundary_distance(network, x, label, norm=norm)
        assert near.status is Status.OPTIMAL, near.message
        none = boundary_distance(far, x, label, norm=norm, domain=(0.0, 1.0))
        assert none.status is Status.INFEASIBLE, none.message
        assert (none.upper, none.assurance) == (None, Assurance.ROUNDED)
        grown = boundary_distance(far, x, label, norm=norm)
        assert grown.status in (Status.OPTIMAL, Status.ERROR)
        assert grown.lower is None or grown.upper is None or grown.lower <= grown.upper
    weights[-1][:] = 0.0
    flat = network_of(tmp_path / "flat.onnx", weights, biases)
    endless = boundary_distance(flat, x, label, norm="l2")
    assert endless.status is Status.ERROR
    assert "no domain" in endless.message
    alone = boundary_distance(flat, x[:3] * 0 + 0.5, label, norm="l2", domain=(0.5, 0.5))
    assert alone.status is Status.INFEASIBLE


@BALLS
def test_small_balls_are_searched_before_the_incumbents(
    tmp_path: Path, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Radii rise to the incumbent's; the bracket is closed at the end, and every part of it proven."""
    radii: list[float] = []

    def counted(*given: object, **options: object) -> SearchResult:
        radius = given[2]
        assert isinstance(radius, float)
        radii.append(radius)
        return search_distance(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("milpver.distance.search_distance", counted)
    monkeypatch.setattr("milpver.distance._Search.certify", lambda _: None)
    weights, biases = random_layers([4, 8, 6, 3], 2, scale=1.5)
    network = network_of(tmp_path / "net.onnx", weights, biases)
    x = np.linspace(0.1, 0.9, 4).astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    found = boundary_distance(network, x, label, norm=norm, gap=1e-4, solver="bab")
    assert found.status is Status.OPTIMAL
    assert found.upper is not None
    assert len(radii) > 1
    assert radii[0] < 0.5 * radii[-1]
    assert radii[-1] == pytest.approx(found.upper, rel=0.12)


@BALLS
def test_signs_of_inputs_are_searched_as_others_are(tmp_path: Path, norm: str) -> None:
    """A network whose first layer is a leaky ReLU, around an input in both halves."""
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("LeakyRelu", ["input"], ["bent"], alpha=0.1),
        helper.make_node("Gemm", ["bent", "w1", "b1"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["output"], transB=1),
    ]
    tensors = {
        "w1": rng.normal(size=(6, 5)), "b1": 0.3 * rng.normal(size=6),
        "w2": rng.normal(size=(3, 6)), "b2": 0.3 * rng.normal(size=3),
    }  # fmt: skip
    network = saved(tmp_path / "net.onnx", nodes, tensors, [5], 3)
    x = np.array([0.2, -0.1, 0.3, -0.4, 0.05], dtype=np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    found = boundary_distance(network, x, label, norm=norm, solver="bab", timeout=60.0)
    assert found.status is Status.OPTIMAL
    for name in BACKEND[norm]:
        other = boundary_distance(network, x, label, norm=norm, solver=name, timeout=60.0)
        assert found.upper == pytest.approx(other.upper, abs=1e-5)
