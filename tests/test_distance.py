"""Distances to the boundary equal what enumeration of activation patterns finds, by either method."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from milpver import registry
from milpver.distance import distances
from milpver.errors import QueryError
from milpver.network import Network
from milpver.program import Program
from milpver.query import Options
from milpver.solver import Availability, Limits, Solution, Stop
from milpver.verdict import Assurance, Status, Verdict
from tests.nets import network_of, pattern_distance, random_layers, saved

Float = NDArray[np.float64]
#: The gap, and the slack of the solver's tolerance over the slope of a margin.
CLOSE = 3e-6


def ask(network: Network, x: Any, label: int, **options: Any) -> Verdict:
    """One question, answered."""
    query = {
        name: options.pop(name)
        for name in ("domain", "method", "norm", "target", "should_stop")
        if name in options
    }
    inputs = np.asarray(x, dtype=np.float32)[None]
    return next(distances(network, inputs, [label], options=Options(**options), **query))


def predicted(network: Network, x: Any) -> int:
    return int(network.graph.evaluate(np.asarray(x, dtype=float)[None])[0].argmax())


def assert_exact(network: Network, x: Float, verdict: Verdict, truth: dict[int, float]) -> None:
    """The bracket is closed at the smallest distance, every target's holds its own."""
    least = min(truth.values())
    assert verdict.verdict is None
    if least == math.inf:
        assert verdict.status is Status.INFEASIBLE, verdict.message
        assert (verdict.upper, verdict.adversarial, verdict.adversarial_label) == (None, None, None)
        return
    assert verdict.status is Status.OPTIMAL, verdict.message
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert verdict.lower <= verdict.upper
    assert verdict.upper == pytest.approx(least, abs=CLOSE)
    assert verdict.lower == pytest.approx(least, abs=CLOSE)
    for each in verdict.classes:
        assert each.lower is not None
        assert each.lower <= truth[each.target] + CLOSE
        assert each.upper is None or each.upper >= truth[each.target] - CLOSE
        assert each.status is not Status.INFEASIBLE or truth[each.target] == math.inf
    assert verdict.witness is not None
    assert np.abs(verdict.witness - x).max() <= verdict.upper
    logits = network.graph.evaluate(verdict.witness[None])[0]
    assert verdict.target is not None
    assert logits[verdict.label] - logits[verdict.target] <= 0
    assert verdict.adversarial == tuple(verdict.witness)
    assert verdict.adversarial_label == verdict.target


#: What a random question is made of.
TASKS = {
    "seed": st.integers(0, 10**6),
    "hidden": st.sampled_from([[3], [5], [3, 2]]),
    "inputs": st.integers(2, 3),
    "clipped": st.booleans(),
}


def drawn(
    tmp_path: Path, seed: int, sizes: list[int], clipped: bool
) -> tuple[list[Float], list[Float], Network, Float]:
    """Weights, biases, their network, and an input; on the domain's edge now and then where there is one."""
    weights, biases = random_layers(sizes, seed, scale=1.5)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=sizes[0]).astype(np.float32).astype(float)
    if clipped and rng.random() < 0.5:
        x[0] = 1.0
    return weights, biases, network, x


@pytest.mark.parametrize("seed", [2, 7, 13])
def test_bisection_tells_margins_from_0_that_are_smaller_than_the_gap(tmp_path: Path, seed: int) -> None:
    weights, biases = random_layers([2, 5, 4, 3], seed)
    weights[-1], biases[-1] = weights[-1] / 1024, biases[-1] / 1024
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.random.default_rng(seed).normal(size=2).astype(np.float32)
    x0, label = x.astype(np.float64), int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    found = ask(network, x, label, method="bisect", solver="highs", gap=1e-3, domain=(-4.0, 4.0))
    edge = np.full(2, 4.0)
    truth = min(
        pattern_distance(weights, biases, x0, np.eye(3)[label] - np.eye(3)[j], -edge, edge)
        for j in range(3)
        if j != label
    )
    assert found.lower is not None
    if found.status is Status.INFEASIBLE:
        assert math.isinf(truth)
    else:
        assert found.status is Status.OPTIMAL
        assert found.upper is not None
        assert found.lower - 1e-6 <= truth <= found.upper + 1e-6


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(**TASKS)
@example(seed=29810, hidden=[3], inputs=2, clipped=False)  # a margin within the solver's tolerance of 0
def test_distances_are_those_of_enumeration(
    tmp_path: Path, seed: int, hidden: list[int], inputs: int, clipped: bool
) -> None:
    weights, biases, network, x = drawn(tmp_path, seed, [inputs, *hidden, 3], clipped)
    domain = (-1.0, 1.0)
    label = predicted(network, x)
    low, high = np.full(inputs, -1.0), np.full(inputs, 1.0)
    if not clipped:
        low, high = np.full(inputs, -np.inf), np.full(inputs, np.inf)
    truth = {
        j: pattern_distance(weights, biases, x, np.eye(3)[label] - np.eye(3)[j], low, high)
        for j in range(3)
        if j != label
    }
    setups = [
        {"method": "direct"},
        {"method": "bisect", "bounds": "budget"},
        {"method": "direct", "encoding": "reference", "bounds": "interval"},
    ]
    for setup in setups:
        if clipped:
            assert_exact(network, x, ask(network, x, label, domain=domain, **setup), truth)
        elif min(truth.values()) < 100:
            assert_exact(network, x, ask(network, x, label, **setup), truth)
    for target, value in truth.items():
        if clipped:
            alone = ask(network, x, label, domain=domain, target=target)
            assert_exact(network, x, alone, {target: value})
            assert alone.requested_target == target


NORMS = ("linf", "l1", "l2")
QUADRATIC = [name for name in ("scip", "gurobi") if registry.load("solvers", name).availability().available]


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(**TASKS)
def test_distances_in_other_norms_are_those_of_enumeration(
    tmp_path: Path, seed: int, hidden: list[int], inputs: int, clipped: bool
) -> None:
    weights, biases, network, x = drawn(tmp_path, seed, [inputs, *hidden, 3], clipped)
    label = predicted(network, x)
    low, high = np.full(inputs, -1.0 if clipped else -np.inf), np.full(inputs, 1.0 if clipped else np.inf)
    domain = {"domain": (-1.0, 1.0)} if clipped else {}
    setups: dict[str, list[dict[str, Any]]] = {
        "l1": [
            {},
            {"solver": QUADRATIC[0]} if QUADRATIC else {},
            {"encoding": "reference", "bounds": "interval"},
            {"method": "bisect", "bounds": "budget"},
        ],
        "l2": [{}, *({"solver": name} for name in QUADRATIC)],
    }
    for norm, ways in setups.items():
        truth = {
            j: pattern_distance(weights, biases, x, np.eye(3)[label] - np.eye(3)[j], low, high, norm)
            for j in range(3)
            if j != label
        }
        if not clipped and min(truth.values()) >= 100:
            continue
        for way in ways:
            verdict = ask(network, x, label, norm=norm, **domain, **way)
            assert verdict.norm == norm
            assert_exact(network, x, verdict, truth)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), targeted=st.booleans())
def test_norms_of_one_step_bound_each_other(tmp_path: Path, seed: int, targeted: bool) -> None:
    """linf <= l2 <= l1 <= n linf and l2 <= sqrt(n) linf hold of every step, so of the shortest ones too."""
    weights, biases = random_layers([4, 6, 3], seed, scale=1.5)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.random.default_rng(seed).uniform(0, 1, size=4).astype(np.float32)
    label = predicted(network, x)
    chosen = {"target": (label + 1) % 3} if targeted else {}
    found = {}
    for norm in NORMS:
        verdict = ask(network, x, label, norm=norm, domain=(0.0, 1.0), **chosen)
        if verdict.status is Status.INFEASIBLE:
            found[norm] = (math.inf, math.inf)
            continue
        assert verdict.status is Status.OPTIMAL, verdict.message
        assert verdict.lower is not None
        assert verdict.upper is not None
        found[norm] = verdict.lower, verdict.upper
        assert not targeted or verdict.adversarial_label == chosen["target"]
        # ONNX Runtime agrees up to float32, on a point of the domain.
        assert verdict.witness_float32 is not None
        assert np.all((verdict.witness_float32 >= 0) & (verdict.witness_float32 <= 1))
        assert verdict.witness_margin_float32 is not None
        assert verdict.witness_margin_float32 <= 1e-4
        step = np.abs(np.asarray(verdict.adversarial) - x.astype(float))
        size = {"linf": step.max(), "l1": step.sum(), "l2": math.sqrt(float(step @ step))}[norm]
        assert size <= verdict.upper <= size + 1e-9
    assert len({math.isinf(lower) for lower, _ in found.values()}) == 1
    assert found["linf"][0] <= found["l2"][1] + CLOSE
    assert found["l2"][0] <= found["l1"][1] + CLOSE
    assert found["l1"][0] <= 4 * found["linf"][1] + CLOSE
    assert found["l2"][0] <= 2 * found["linf"][1] + CLOSE


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_large_networks_are_attacked_and_certified_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, norm: str
) -> None:
    monkeypatch.setattr("milpver.distance._RADII_WORK", 1)
    weights, biases = random_layers([3, 5, 3], seed, scale=1.5)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.random.default_rng(seed).uniform(-1, 1, size=3).astype(np.float32).astype(float)
    label = predicted(network, x)
    truth = {
        j: pattern_distance(
            weights, biases, x, np.eye(3)[label] - np.eye(3)[j], np.full(3, -1.0), np.ones(3), norm
        )
        for j in range(3)
        if j != label
    }
    assert_exact(network, x, ask(network, x, label, norm=norm, domain=(-1.0, 1.0)), truth)


def test_an_attack_leaves_a_plateau(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin is 1 - 30 relu(x1 + x2 - 1): its slope at 0 is 0, where the first attack gets nowhere."""
    monkeypatch.setattr("milpver.distance._RADII_WORK", 1)
    monkeypatch.setattr("milpver.distance.closest_adversarials", lambda *_, **__: (np.array([np.inf]), None))
    weights = [np.ones((1, 2)), np.array([[0.0], [30.0]])]
    network = network_of(tmp_path / "n.onnx", weights, [np.array([-1.0]), np.array([1.0, 0.0])])
    for solver in ("auto", "bab"):
        verdict = ask(network, [0.0, 0.0], 0, domain=(0.0, 1.0), solver=solver)
        assert verdict.upper == pytest.approx((1 + 1 / 30) / 2, abs=CLOSE)
        assert verdict.solver in ("bab", "bounds"), "it was found without a backend"


def test_a_corner_of_a_linear_network(tmp_path: Path) -> None:
    """The margin is 1.2 - x1 - 2 x2 over [0, 0.5]^2 at 0: known steps in every norm."""
    network = network_of(
        tmp_path / "n.onnx",
        [np.eye(2), np.array([[0.0, 0.0], [1.0, 2.0]])],
        [np.zeros(2), np.array([1.2, 0.0])],
    )
    known = {"linf": 0.4, "l1": 0.7, "l2": math.hypot(0.24, 0.48)}
    for norm in NORMS:
        verdict = ask(network, [0.0, 0.0], 0, norm=norm, domain=(0.0, 0.5))
        assert verdict.upper == pytest.approx(known[norm], abs=CLOSE), norm
        assert verdict.lower == pytest.approx(known[norm], abs=CLOSE), norm


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_norm_that_runs_out_of_time_keeps_a_bracket(tmp_path: Path, norm: str) -> None:
    weights, biases = random_layers([6, 20, 20, 3], 1)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.linspace(0.1, 0.9, 6)
    label = predicted(network, x)
    late = ask(network, x, label, norm=norm, domain=(0.0, 1.0), timeout=1e-9)
    assert late.status in (Status.TIMEOUT, Status.OPTIMAL)
    exact = ask(network, x, label, norm=norm, domain=(0.0, 1.0), timeout=60, gap=1e-4)
    assert exact.status is Status.OPTIMAL, exact.message
    for verdict in (late, exact):
        assert verdict.lower is not None
        assert exact.upper is not None
        assert verdict.lower <= exact.upper
        assert verdict.upper is None or exact.lower is None or verdict.upper >= exact.lower


def line(tmp_path: Path, slope: float, offset: float) -> Network:
    """One input; the margin of class 0 over class 1 is ``offset - slope x``."""
    weights = [np.array([[1.0], [-1.0]]), np.array([[0.0, 0.0], [slope, -slope]])]
    return network_of(tmp_path / "line.onnx", weights, [np.zeros(2), np.array([offset, 0.0])])


METHODS = ("direct", "bisect")


@pytest.mark.parametrize("method", METHODS)
def test_a_tie_at_the_input_is_at_distance_zero(tmp_path: Path, method: str) -> None:
    network = line(tmp_path, 1.0, 0.5)
    verdict = ask(network, [0.5], 0, method=method)
    assert verdict.status is Status.OPTIMAL
    assert (verdict.lower, verdict.upper) == (0.0, 0.0)
    assert verdict.adversarial == (0.5,)
    assert verdict.solver == "bounds"


@pytest.mark.parametrize("method", METHODS)
def test_constant_networks_have_no_boundary(tmp_path: Path, method: str) -> None:
    network = line(tmp_path, 0.0, 0.5)
    bounded = ask(network, [0.5], 0, method=method, domain=(0.0, 1.0))
    assert bounded.status is Status.INFEASIBLE
    assert (bounded.upper, bounded.adversarial) == (None, None)
    assert [each.status for each in bounded.classes] == [Status.INFEASIBLE]
    endless = ask(network, [0.5], 0, method=method)
    assert endless.status is Status.ERROR
    assert "no domain" in endless.message
    assert endless.upper is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [0.0, 1.0, 0.25])
def test_the_domain_ends_the_search(tmp_path: Path, method: str, x: float) -> None:
    beyond = ask(line(tmp_path, 1.0, 1.5), [x], 0, method=method, domain=(0.0, 1.0))
    assert beyond.status is Status.INFEASIBLE
    edge = ask(line(tmp_path, 1.0, 1.0), [x], 0, method=method, domain=(0.0, 1.0))
    assert edge.status is Status.OPTIMAL, "the edge of the domain counts"
    assert edge.upper == pytest.approx(1.0 - x, abs=CLOSE)
    inside = ask(line(tmp_path, 4.0, 2.0), [x], 0, method=method, domain=(0.0, 1.0))
    if x <= 0.5:
        assert inside.upper == pytest.approx(0.5 - x, abs=CLOSE)
    else:
        assert inside.status is Status.MISCLASSIFIED


@pytest.mark.parametrize("method", METHODS)
def test_an_adversarial_input_on_the_last_float_of_the_domain(tmp_path: Path, method: str) -> None:
    """The way from the input to the edge of the domain is no float: the ball must reach the edge."""
    rng = np.random.default_rng(0)
    for _ in range(12):
        edge = float(np.float32(rng.uniform(0, 1)))
        x = float(np.float32(-rng.uniform(500, 1000)))
        verdict = ask(line(tmp_path, 1.0, edge), [x], 0, method=method, domain=(-2000.0, edge))
        assert verdict.status is not Status.INFEASIBLE, "x = edge is a tie, which counts"
        assert verdict.upper == pytest.approx(edge - x, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("solver", ["highs", "bab"])
def test_a_domain_of_one_point(tmp_path: Path, method: str, solver: str) -> None:
    network = line(tmp_path, 1.0, 0.7)
    verdict = ask(network, [0.5], 0, domain=(0.5, 0.5), method=method, solver=solver, timeout=5.0)
    assert verdict.status is Status.INFEASIBLE
    almost = line(tmp_path, 1.0, float(np.nextafter(np.float32(0.5), np.float32(1))))
    for gap in (1e-6, 0.0):
        asked = {"method": method, "solver": solver, "gap": gap, "timeout": 5.0}
        assert ask(almost, [0.5], 0, domain=(0.5, 0.5), **asked).status is Status.INFEASIBLE


def test_misclassified_inputs_have_no_distance(tmp_path: Path) -> None:
    verdict = ask(line(tmp_path, 1.0, 0.5), [0.75], 0)
    assert verdict.status is Status.MISCLASSIFIED
    assert (verdict.lower, verdict.upper, verdict.adversarial, verdict.classes) == (None, None, None, ())
    assert verdict.predicted == 1


def test_questions_that_make_no_sense(tmp_path: Path) -> None:
    network = line(tmp_path, 1.0, 0.5)
    for wrong, said in (
        ({"method": "guess"}, "--method guess.*direct or bisect"),
        ({"norm": "l3"}, "--norm l3.*linf, l1, l2"),
        ({"norm": "l2", "solver": "highs"}, "--norm l2 with solver highs.*gurobi, scip"),
        ({"norm": "l2", "cross_check": ("scip", "highs")}, "--norm l2 with solver highs"),
        ({"norm": "l2", "method": "bisect"}, "--method bisect with --norm l2.*direct"),
        ({"target": 2}, "--target 2.*0 to 1"),
        ({"target": -1}, "--target -1"),
        ({"target": 0}, "--target 0.*label"),
        ({"domain": (1.0, 0.0)}, "empty domain"),
        ({"domain": (0.0, 0.1)}, "outside of the domain"),
    ):
        with pytest.raises(QueryError, match=said):
            ask(network, [0.25], 0, **wrong)


def test_a_distance_rests_on_what_found_it(tmp_path: Path) -> None:
    weights, biases = random_layers([3, 6, 4, 3], 3)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.array([0.25, -0.5, 0.75])
    for solver in ("highs", "bab"):
        verdict = ask(network, x, predicted(network, x), domain=(-1.0, 1.0), solver=solver)
        assert verdict.solver in (solver, "bounds")
        assert verdict.assurance is (Assurance.SOLVER if verdict.solver == "highs" else Assurance.ROUNDED)
    stopped = ask(network, x, predicted(network, x), should_stop=lambda: True, bounds="interval")
    assert stopped.status in (Status.INTERRUPTED, Status.OPTIMAL)
    late = ask(network, x, predicted(network, x), timeout=1e-9, bounds="interval")
    assert late.status in (Status.TIMEOUT, Status.OPTIMAL)
    for partial in (stopped, late):
        assert partial.lower is not None
        assert verdict.upper is not None
        assert partial.lower <= verdict.upper + CLOSE
        assert partial.upper is None or partial.upper >= verdict.upper - CLOSE


def odd_network(folder: Path, kind: str) -> Network:
    """Two inputs, three classes, another activation."""
    rng = np.random.default_rng(5)
    hidden = 8 if kind == "pool" else 5
    tensors: dict[str, Any] = {
        "w1": rng.normal(size=(hidden, 2)), "b1": 0.3 * rng.normal(size=hidden),
        "w2": rng.normal(size=(3, 2 if kind == "pool" else 5)), "b2": 0.3 * rng.normal(size=3),
        "low": np.array(0.0), "high": np.array(1.0), "image": np.array([-1, 1, 2, 4]),
        "flat": np.array([-1, 2]),
    }  # fmt: skip
    middle = {
        "relu": [helper.make_node("Relu", ["z"], ["h"])],
        "leaky": [helper.make_node("LeakyRelu", ["z"], ["h"], alpha=0.1)],
        "clip": [helper.make_node("Clip", ["z", "low", "high"], ["h"])],
        "pool": [
            helper.make_node("Reshape", ["z", "image"], ["i"]),
            helper.make_node("MaxPool", ["i"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Reshape", ["p", "flat"], ["h"]),
        ],
    }[kind]
    last = "logits" if kind == "relu" else "output"
    nodes = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["z"], transB=1),
        *middle,
        helper.make_node("Gemm", ["h", "w2", "b2"], [last], transB=1),
    ]
    used = {name for node in nodes for name in node.input}
    if kind == "relu":
        nodes.append(helper.make_node("Relu", ["logits"], ["output"]))
    return saved(folder / "odd.onnx", nodes, {k: v for k, v in tensors.items() if k in used}, [2], 3)


@pytest.mark.parametrize("kind", ["relu", "leaky", "clip", "pool"])
def test_other_activations_against_sampling(tmp_path: Path, kind: str) -> None:
    network = odd_network(tmp_path, kind)
    rng = np.random.default_rng(1)
    axis = np.linspace(-1, 1, 201)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    outputs = network.graph.evaluate(grid)
    for x in rng.uniform(-1, 1, size=(3, 2)).astype(np.float32).astype(float):
        label = predicted(network, x)
        hit = (outputs[:, [label]] <= np.delete(outputs, label, axis=1)).any(axis=1)
        sampled = np.abs(grid[hit] - x).max(axis=1).min(initial=math.inf)
        found = [
            ask(network, x, label, domain=(-1.0, 1.0), **setup)
            for setup in (
                {"method": "direct"},
                {"method": "bisect"},
                {"encoding": "reference", "bounds": "interval"},
            )
        ]
        for verdict in found:
            assert verdict.status in (Status.OPTIMAL, Status.INFEASIBLE), verdict.message
            assert verdict.lower is not None
            assert verdict.lower <= sampled + CLOSE
            if verdict.status is Status.INFEASIBLE:
                assert sampled == math.inf
            else:
                assert verdict.upper == pytest.approx(found[0].upper, abs=2 * CLOSE)
                assert verdict.upper is not None
                assert sampled == math.inf or verdict.upper <= sampled + CLOSE


class Liar:
    """A solver that answers with what a function makes of the true solution."""

    name = "liar"
    tolerance = 1e-7

    def __init__(self, change: Callable[[Program, Solution], Solution]) -> None:
        self.change = change
        self.honest = registry.load("solvers", "highs")

    def availability(self) -> Availability:
        return Availability(True, "0")

    def solve(self, program: Program, limits: Limits, **_: Any) -> Solution:
        return self.change(program, self.honest.solve(program, Limits(seconds=30, gap=limits.gap)))


def told(solution: Solution, **changes: Any) -> Solution:
    return Solution(**{**{name: getattr(solution, name) for name in Solution.__slots__}, **changes})


LIES: dict[str, Callable[[Program, Solution], Solution]] = {
    "unbounded": lambda _, s: told(s, stop=Stop.UNBOUNDED, lower=-math.inf, upper=math.inf, x=None),
    "optimal without a point": lambda _, s: told(s, x=None, upper=math.inf, lower=1e3),
    "NaN bound": lambda _, s: told(s, lower=math.nan),
    "NaN point": lambda _, s: told(s, x=None if s.x is None else np.full_like(s.x, math.nan)),
    "error": lambda _, s: told(s, stop=Stop.ERROR, message="out of luck", x=None, lower=-math.inf),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_solver_gives_no_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str, method: str
) -> None:
    weights, biases = random_layers([3, 6, 4, 3], 3)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.array([0.25, -0.5, 0.75])
    label = predicted(network, x)
    honest = ask(network, x, label, solver="highs", method=method, bounds="interval")
    load = registry.load
    liar = Liar(LIES[lie])
    monkeypatch.setattr(registry, "load", lambda kind, name: liar if name == "liar" else load(kind, name))
    verdict = ask(network, x, label, solver="liar", method=method, bounds="interval")
    assert honest.solver == "highs"
    assert honest.upper is not None
    assert verdict.status is Status.ERROR
    assert verdict.message
    assert verdict.lower is None or verdict.lower <= honest.upper + CLOSE


def test_what_a_solver_left_open_is_not_said_to_be_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds prove that of the last class for ever; of class 1, relu(x) - relu(x), nothing is known."""
    weights = [np.ones((2, 1)), np.array([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]])]
    network = network_of(tmp_path / "n.onnx", weights, [np.zeros(2), np.array([1.0, 0.0, 0.0])])
    load = registry.load
    liar = Liar(LIES["error"])
    monkeypatch.setattr(
        registry, "load", lambda kind, name, **more: liar if name == "liar" else load(kind, name, **more)
    )
    verdict = ask(network, [0.5], 0, solver="liar", bounds="interval")
    assert verdict.status is Status.ERROR
    assert verdict.message == "out of luck"
    assert verdict.lower is not None
    assert verdict.lower < 10


@pytest.mark.parametrize(
    ("solver", "norm", "method"),
    [
        ("bab", "l1", "direct"),
        ("highs", "linf", "direct"),
        ("highs", "linf", "bisect"),
        ("scip", "l2", "direct"),
    ],
)
def test_a_gap_that_no_tolerance_closes_keeps_its_bracket_and_says_so(
    tmp_path: Path, solver: str, norm: str, method: str
) -> None:
    weights, biases = random_layers([3, 4, 3], 3)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.array([0.25, -0.5, 0.75])
    label = predicted(network, x)
    verdict = ask(network, x, label, solver=solver, norm=norm, method=method, gap=0.0, timeout=60.0)
    assert verdict.seconds < 60.0
    assert verdict.status is Status.TIMEOUT
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert verdict.lower < verdict.upper <= verdict.lower + 1e-6
    assert "do not meet" in verdict.message
    wide = ask(network, x, label, solver=solver, norm=norm, method=method, gap=1e-4)
    assert (wide.status, wide.message) == (Status.OPTIMAL, "")


def test_a_bound_within_the_tolerance_of_an_adversarial_input_is_not_refuted_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, biases = random_layers([3, 4, 3], 3)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.array([0.25, -0.5, 0.75])
    load = registry.load
    liar = Liar(lambda _, s: told(s, lower=s.lower + 1e-8))
    monkeypatch.setattr(
        registry, "load", lambda kind, name, **more: liar if name == "liar" else load(kind, name, **more)
    )
    verdict = ask(network, x, predicted(network, x), solver="liar", bounds="interval", gap=0.0)
    assert verdict.status in (Status.OPTIMAL, Status.TIMEOUT), verdict.message
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert verdict.lower <= verdict.upper <= verdict.lower + 1e-6
