"""Worst margins equal what enumeration finds; what a solver says wrongly never becomes a verdict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from milpver import registry
from milpver.errors import PluginError, QueryError, SolverUnavailableError
from milpver.margin import margins
from milpver.network import Network
from milpver.program import Program
from milpver.query import Options, ball, parse_budget
from milpver.solver import Availability, Limits, Solution, Stop
from milpver.verdict import Answer, Assurance, Status, Verdict
from tests.nets import (
    brute_force_margins,
    masks_within,
    network_of,
    pattern_minimum,
    random_layers,
    random_network,
    saved,
)

Float = NDArray[np.float64]
#: How far float64 evaluation, and the gap, may take an answer from the enumerated one.
CLOSE = 2e-6


def ask(network: Network, x: Any, label: int, budget: Any = None, **options: Any) -> Verdict:
    """One question, answered, by a MILP solver unless told otherwise."""
    radius, domain = options.pop("radius", 0.0), options.pop("domain", None)
    should_stop = options.pop("should_stop", None)
    found = margins(
        network,
        np.asarray(x, dtype=np.float32)[None],
        [label],
        budget=parse_budget(budget, network),
        radius=radius,
        domain=domain,
        options=Options(**({"solver": "highs"} | options)),
        should_stop=should_stop,
    )
    return next(found)


def predicted(network: Network, x: Any) -> int:
    return int(network.graph.evaluate(np.asarray(x, dtype=np.float32).astype(float)[None])[0].argmax())


def assert_exact(network: Network, verdict: Verdict, truth: Float) -> None:
    """The bracket is closed at the truth, every class's holds it, the mask attains it."""
    assert verdict.status is Status.OPTIMAL, verdict.message
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert verdict.lower <= verdict.upper
    assert verdict.upper == pytest.approx(truth.min(), abs=CLOSE)
    assert verdict.lower == pytest.approx(truth.min(), abs=CLOSE)
    targets = [j for j in range(network.graph.outputs) if j != verdict.label]
    assert [each.target for each in verdict.classes] == targets
    for each, value in zip(verdict.classes, truth, strict=True):
        assert each.lower is not None
        assert each.lower <= value + CLOSE
        assert each.upper is not None
        assert each.upper >= value - 1e-9
    assert verdict.mask is not None
    assert verdict.witness is not None
    logits = network.graph.evaluate(verdict.witness[None], verdict.mask)[0]
    assert verdict.target is not None
    assert logits[verdict.label] - logits[verdict.target] == pytest.approx(verdict.upper, abs=1e-12)
    pairs = {
        (layer.number, int(k))
        for layer in network.layers
        for k in np.flatnonzero(verdict.mask.get(layer.node, np.zeros(layer.width, dtype=bool)))
    }
    assert verdict.removed is not None
    assert set(verdict.removed) == pairs
    assert isinstance(verdict.budget, tuple)
    for layer, most in zip(network.layers, verdict.budget, strict=True):
        assert sum(number == layer.number for number, _ in pairs) <= most
    assert verdict.verdict is not Answer.ROBUST or truth.min() > -CLOSE
    assert verdict.verdict is not Answer.VULNERABLE or truth.min() <= CLOSE


@st.composite
def pruning_cases(draw: st.DrawFn) -> tuple[list[int], list[int], int, bool]:
    """Hidden widths, budgets, seed, bias."""
    depth = draw(st.integers(2, 3))
    widths = [draw(st.integers(1, 8)) for _ in range(depth)]
    budget = [draw(st.integers(0, n - 1)) for n in widths]
    masks = math.prod(sum(math.comb(n, k) for k in range(s + 1)) for n, s in zip(widths, budget, strict=True))
    assume(masks <= 40_000)
    return widths, budget, draw(st.integers(0, 10**6)), draw(st.booleans())


SETUPS = [
    *itertools.product(("fused", "reference"), ("interval", "budget", "alpha-crown"), ("highs",)),
    ("fused", "alpha-crown", "bab"),
]


@pytest.mark.parametrize(("encoding", "bounds", "solver"), SETUPS)
@settings(max_examples=7, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=pruning_cases())
@example(case=([5, 7, 7], [0, 3, 0], 15, False))  # a mask with margin 0 stopped decisions short of the worst
def test_worst_margins_are_those_of_enumeration(
    tmp_path: Path, case: tuple[list[int], list[int], int, bool], encoding: str, bounds: str, solver: str
) -> None:
    widths, budget, seed, bias = case
    network = random_network(tmp_path / "n.onnx", [3, *widths, 3], seed, bias=bias, scale=1.5)
    x = np.random.default_rng(seed).normal(size=3).astype(np.float32).astype(float)
    label = predicted(network, x)
    truth = brute_force_margins(network, x, label, budget)
    options = {"encoding": encoding, "bounds": bounds, "solver": solver}
    verdict = ask(network, x, label, budget, **options)
    assert_exact(network, verdict, truth)
    decided = ask(network, x, label, budget, decide=True, **options)
    if abs(truth.min()) > 1e-4:
        assert decided.verdict is (Answer.ROBUST if truth.min() > 0 else Answer.VULNERABLE)
        assert decided.status in (Status.DECIDED, Status.OPTIMAL)
    assert decided.verdict is not Answer.ROBUST or truth.min() > 0
    assert decided.verdict is not Answer.VULNERABLE or truth.min() <= 1e-12
    assert decided.lower is None or decided.lower <= truth.min() + CLOSE
    assert decided.upper is not None
    assert decided.upper >= truth.min() - CLOSE


@pytest.mark.parametrize("budget", [[0, 0], [7, 0], [0, 7], [7, 7]])
@pytest.mark.parametrize("encoding", ["fused", "reference"])
def test_whole_layers_but_one_neuron(tmp_path: Path, budget: list[int], encoding: str) -> None:
    for bias in (True, False):
        network = random_network(tmp_path / "n.onnx", [4, 8, 8, 3], 11, bias=bias)
        x = np.array([0.5, -1.0, 0.25, 2.0])
        label = predicted(network, x)
        truth = brute_force_margins(network, x, label, budget)
        assert_exact(network, ask(network, x, label, budget, encoding=encoding), truth)


@st.composite
def integer_cases(draw: st.DrawFn) -> tuple[int, list[int]]:
    return draw(st.integers(0, 10**6)), draw(st.sampled_from([[1, 0], [0, 1], [1, 1], [2, 1]]))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=integer_cases(), shift=st.sampled_from([0.0, 1e-12, -1e-12]), decide=st.booleans())
def test_margins_within_1e12_of_a_tie(
    tmp_path: Path, case: tuple[int, list[int]], shift: float, decide: bool
) -> None:
    """Integer weights times 2^-30: the worst margin is 0 or +-1e-12, exactly, in float32 as well."""
    seed, budget = case
    rng = np.random.default_rng(seed)
    widths = [3, 4, 3, 2]
    weights = [rng.integers(-2, 3, size=(n, m)).astype(float) for m, n in itertools.pairwise(widths)]
    weights[-1] *= 2.0**-30
    biases = [rng.integers(-2, 3, size=n).astype(float) for n in widths[1:]]
    biases[-1] *= 2.0**-30
    x = rng.integers(-2, 3, size=3).astype(float)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    worst = brute_force_margins(network, x, 0, budget).min()
    biases[-1][0] = np.float32(biases[-1][0] - worst + shift)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    truth = brute_force_margins(network, x, 0, budget).min()
    assert abs(truth - shift) < 1e-14
    if predicted(network, x) != 0:
        return
    for encoding in ("fused", "reference"):
        verdict = ask(network, x, 0, budget, encoding=encoding, decide=decide)
        assert verdict.verdict is not Answer.ROBUST or truth > 0
        assert verdict.verdict is not Answer.VULNERABLE or truth <= 0
        if truth <= 0 and not decide and budget[0] == 0:
            assert verdict.verdict is Answer.VULNERABLE, "the closed form replays the worst mask"


def test_a_solver_bound_within_its_tolerance_is_not_robust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worst margin of 1e-7, with bounds too loose to prove it: unknown on a solver's word."""
    network, x, label, budget, truth = a_hard_query(tmp_path)
    weights, biases = random_layers([3, 6, 6, 3], 180)
    biases[-1][label] -= truth - 1e-7
    shifted = network_of(tmp_path / "s.onnx", weights, biases)
    if predicted(shifted, x) != label:
        pytest.fail("the shifted network has another label")
    worst = brute_force_margins(shifted, x, label, budget).min()
    assert 0 < worst < 5e-7
    for decide in (True, False):
        verdict = ask(shifted, x, label, budget, bounds="interval", decide=decide)
        assert verdict.verdict is Answer.UNKNOWN
    del network, monkeypatch


# ---- balls -----------------------------------------------------------------------------------------------


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    hidden=st.sampled_from([[4], [3, 2], [2, 3]]),
    removable=st.integers(0, 1),
    clipped=st.booleans(),
    radius=st.sampled_from([0.05, 0.3, 1.0]),
)
def test_balls_with_masks_against_a_program_for_each_pattern(
    tmp_path: Path, seed: int, hidden: list[int], removable: int, clipped: bool, radius: float
) -> None:
    widths = [2, *hidden, 3]
    weights, biases = random_layers(widths, seed, scale=1.5)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.random.default_rng(seed).uniform(-1, 1, size=2).astype(np.float32).astype(float)
    domain = (-1.0, 1.0) if clipped else None
    budget = [min(removable, n - 1) for n in hidden]
    label = predicted(network, x)
    box = ball(x, radius, domain)
    targets = [j for j in range(3) if j != label]
    truth = np.array(
        [
            min(
                pattern_minimum(weights, biases, mask, box.lower, box.upper, np.eye(3)[label] - np.eye(3)[j])
                for mask in masks_within(hidden, budget)
            )
            for j in targets
        ]
    )
    for encoding, bounds in (("fused", "alpha-crown"), ("reference", "interval"), ("fused", "budget")):
        verdict = ask(
            network, x, label, budget, radius=radius, domain=domain, encoding=encoding, bounds=bounds
        )
        assert_exact(network, verdict, truth)
        assert verdict.witness is not None
        assert box.contains(verdict.witness)
        assert verdict.witness_float32 is not None
        assert box.contains(verdict.witness_float32.astype(float))


def odd_networks(folder: Path) -> dict[str, Network]:
    """Networks with other activations, built as ONNX."""
    rng = np.random.default_rng(3)

    def dense(n: int, m: int) -> Float:
        return np.asarray(rng.normal(size=(n, m)))

    def gemm(source: str, number: int, out: str) -> Any:
        return helper.make_node("Gemm", [source, f"w{number}", f"b{number}"], [out], transB=1)

    tensors: dict[str, Any] = {"w1": dense(5, 2), "b1": 0.3 * rng.normal(size=5), "w2": dense(4, 5),
                               "b2": 0.3 * rng.normal(size=4), "w3": dense(3, 4),
                               "b3": 0.3 * rng.normal(size=3)}  # fmt: skip

    def sequence(first: Any, second: Any, *last: Any) -> list[Any]:
        final = "logits" if last else "output"
        return [gemm("input", 1, "z1"), *first, gemm("h1", 2, "z2"), *second, gemm("h2", 3, final), *last]

    relu = [helper.make_node("Relu", [f"z{i}"], [f"h{i}"]) for i in (1, 2)]
    leaky = [helper.make_node("LeakyRelu", [f"z{i}"], [f"h{i}"], alpha=0.1) for i in (1, 2)]
    clip = [helper.make_node("Clip", [f"z{i}", "low", "high"], [f"h{i}"]) for i in (1, 2)]
    limits = {"low": np.array(0.0), "high": np.array(1.0)}
    images = {
        "w1": dense(8, 2), "b1": 0.3 * rng.normal(size=8), "w2": dense(4, 2), "b2": tensors["b2"],
        "w3": tensors["w3"], "b3": tensors["b3"], "image": np.array([-1, 1, 2, 4]), "flat": np.array([-1, 2]),
    }  # fmt: skip
    pool = [
        helper.make_node("Reshape", ["z1", "image"], ["i1"]),
        helper.make_node("MaxPool", ["i1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p1", "flat"], ["h1"]),
    ]
    residual = {**tensors, "w2": dense(5, 5), "b2": 0.3 * rng.normal(size=5), "w3": dense(3, 5)}
    add = [helper.make_node("Relu", ["z2"], ["r2"]), helper.make_node("Add", ["r2", "h1"], ["h2"])]
    last = helper.make_node("Relu", ["logits"], ["output"])
    built = {
        "relu-at-the-end": (sequence(relu[:1], relu[1:], last), tensors),
        "leaky": (sequence(leaky[:1], leaky[1:]), tensors),
        "clip": (sequence(clip[:1], clip[1:]), {**tensors, **limits}),
        "pool": (sequence(pool, relu[1:]), images),
        "residual": (sequence(relu[:1], add), residual),
    }
    return {
        name: saved(folder / f"{name}.onnx", nodes, made, [2], 3) for name, (nodes, made) in built.items()
    }


ODD = ("relu-at-the-end", "leaky", "clip", "pool", "residual")


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("radius", [0.0, 0.25])
def test_other_activations_with_masks(tmp_path: Path, name: str, radius: float) -> None:
    network = odd_networks(tmp_path)[name]
    assert network.layers, "nothing to prune"
    widths = [layer.width for layer in network.layers]
    budget = [1] * len(widths)
    rng = np.random.default_rng(7)
    for x in rng.uniform(-1, 1, size=(3, 2)).astype(np.float32).astype(float):
        label = predicted(network, x)
        box = ball(x, radius, (-1.0, 1.0))
        samples = rng.uniform(box.lower, box.upper, size=(400, 2))
        edges = np.stack([np.where(rng.random(2) < 0.5, box.lower, box.upper) for _ in range(8)])
        sampled = math.inf
        points = np.clip(np.concatenate([samples, edges, x[None]]), box.inner_lower, box.inner_upper)
        for masks in masks_within(widths, budget):
            gone = {layer.node: mask for layer, mask in zip(network.layers, masks, strict=True)}
            logits = network.graph.evaluate(points, gone)
            sampled = min(sampled, float((logits[:, [label]] - np.delete(logits, label, axis=1)).min()))
        found = [
            ask(network, x, label, budget, radius=radius, domain=(-1.0, 1.0), encoding=e, bounds=b)
            for e, b in (("fused", "alpha-crown"), ("reference", "interval"), ("fused", "budget"))
        ]
        for verdict in found:
            assert verdict.status is Status.OPTIMAL, verdict.message
            assert verdict.lower is not None
            assert verdict.upper is not None
            assert verdict.lower <= sampled + 1e-7
            assert verdict.upper == pytest.approx(found[0].upper, abs=CLOSE)
            assert radius > 0 or verdict.upper == pytest.approx(sampled, abs=CLOSE)
            assert verdict.upper <= sampled + CLOSE


# ---- what surrounds the search ---------------------------------------------------------------------------


def a_hard_query(folder: Path) -> tuple[Network, Float, int, list[int], float]:
    """A query that loose bounds leave open, whose worst margin is positive."""
    network = random_network(folder / "hard.onnx", [3, 6, 6, 3], 180)
    x = np.array([1.5, -0.5, 1.0])
    budget = [1, 1]
    label = predicted(network, x)
    truth = float(brute_force_margins(network, x, label, budget).min())
    return network, x, label, budget, truth


def test_a_misclassified_input_has_no_bounds(tmp_path: Path) -> None:
    network, x, label, budget, _ = a_hard_query(tmp_path)
    verdict = ask(network, x, (label + 1) % 3, budget)
    assert verdict.status is Status.MISCLASSIFIED
    assert verdict.verdict is Answer.UNKNOWN
    assert (verdict.lower, verdict.upper, verdict.target, verdict.removed) == (None, None, None, None)
    assert verdict.classes == ()
    assert verdict.predicted == label


def test_batches_are_their_members(tmp_path: Path) -> None:
    network = random_network(tmp_path / "n.onnx", [3, 5, 4, 3], 2)
    inputs = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    labels = [predicted(network, x) for x in inputs]
    for budget in ("1,1", "0,1"):
        options = Options(bounds="budget", solver="highs")
        together = list(
            margins(
                network,
                inputs,
                labels,
                budget=parse_budget(budget, network),
                options=options,
                indices=range(10, 16),
            )
        )
        assert [verdict.index for verdict in together] == list(range(10, 16))
        for x, label, verdict in zip(inputs, labels, together, strict=True):
            alone = ask(network, x, label, budget, bounds="budget")
            assert alone.upper == pytest.approx(verdict.upper, abs=1e-12)
            assert alone.removed == verdict.removed


def test_threads_search_inputs_side_by_side_with_the_same_answers(tmp_path: Path) -> None:
    network = random_network(tmp_path / "n.onnx", [3, 8, 7, 3], 2)
    inputs = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    labels = [predicted(network, x) for x in inputs]
    labels[4] = (labels[4] + 1) % 3  # misclassified
    budget = parse_budget("2,1", network)
    one, two = (
        list(margins(network, inputs, labels, budget=budget, options=Options(solver="bab", threads=threads)))
        for threads in (1, 2)
    )
    assert [verdict.index for verdict in two] == list(range(9))
    assert {verdict.solver for verdict in two} == {"bab", "bounds"}
    for first, second in zip(one, two, strict=True):
        assert (first.lower, first.upper, first.removed, first.nodes, first.status) == (
            second.lower,
            second.upper,
            second.removed,
            second.nodes,
            second.status,
        )


@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
def test_a_radius_that_is_none(tmp_path: Path, radius: float) -> None:
    network, x, label, budget, _ = a_hard_query(tmp_path)
    with pytest.raises(QueryError, match="--radius"):
        ask(network, x, label, budget, radius=radius)


def test_unknown_plugins(tmp_path: Path) -> None:
    network, x, label, budget, _ = a_hard_query(tmp_path)
    for kind in ("solver", "encoding", "bounds"):
        with pytest.raises(PluginError, match="nothing"):
            ask(network, x, label, budget, **{kind: "nothing"})


def test_what_an_answer_rests_on(tmp_path: Path) -> None:
    network, x, label, _, _ = a_hard_query(tmp_path)
    closed = ask(network, x, label, "0,2")
    assert (closed.solver, closed.assurance, closed.nodes) == ("closed-form", Assurance.CLOSED_FORM, 0)
    plain = ask(network, x, label, "0,0")
    assert (plain.solver, plain.assurance) == ("bounds", Assurance.ROUNDED)
    solved = ask(network, x, label, "2,2", bounds="interval")
    assert (solved.solver, solved.assurance) == ("highs", Assurance.SOLVER)


def test_no_gap_at_all_is_no_error_of_the_closed_form(tmp_path: Path) -> None:
    network, x, label, _, _ = a_hard_query(tmp_path)
    truth = brute_force_margins(network, x, label, [0, 1]).min()
    verdict = ask(network, x, label, "0,1", gap=0.0)
    assert verdict.status is not Status.ERROR
    assert verdict.verdict is (Answer.ROBUST if truth > 0 else Answer.VULNERABLE)


def test_a_class_that_rounding_leaves_open_is_not_called_optimal(tmp_path: Path) -> None:
    found = []
    for seed in (4, 6, 38):  # outputs of 1e15 and more: their rounding is wider than any gap
        network = random_network(tmp_path / "n.onnx", [3, 5, 4, 4, 4], seed, scale=1e4)
        x = np.random.default_rng(seed).normal(size=3).astype(np.float32)
        label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
        verdict = ask(network, x, label, "total:1", solver="bab")
        assert verdict.lower is not None
        assert verdict.upper is not None
        truth = min(
            brute_force_margins(network, x.astype(np.float64), label, budget).min()
            for budget in np.eye(3, dtype=int).tolist()
        )
        assert verdict.lower <= truth <= verdict.upper
        for each in verdict.classes:
            assert each.lower is not None
            assert each.upper is not None
            assert each.status is not Status.OPTIMAL or each.upper - each.lower <= verdict.gap
        if verdict.status is Status.ERROR:
            assert "rounding" in verdict.message
        found.append(verdict.status)
    assert Status.ERROR in found


def test_time_and_interruption_keep_the_bracket(tmp_path: Path) -> None:
    network, x, label, budget, truth = a_hard_query(tmp_path)
    late = ask(network, x, label, budget, bounds="interval", timeout=1e-9)
    assert late.status is Status.TIMEOUT
    stopped = ask(network, x, label, budget, bounds="interval", should_stop=lambda: True)
    assert stopped.status is Status.INTERRUPTED
    for verdict in (late, stopped):
        assert verdict.verdict is Answer.UNKNOWN
        assert verdict.lower is not None
        assert verdict.upper is not None
        assert verdict.lower <= truth <= verdict.upper


# ---- solvers that are wrong ------------------------------------------------------------------------------


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
        whole = Limits(seconds=30, gap=limits.gap)
        return self.change(program, self.honest.solve(program, whole))


def lying(monkeypatch: pytest.MonkeyPatch, change: Callable[[Program, Solution], Solution]) -> None:
    load = registry.load
    liar = Liar(change)
    monkeypatch.setattr(registry, "load", lambda kind, name: liar if name == "liar" else load(kind, name))


def told(solution: Solution, **changes: Any) -> Solution:
    values = {name: getattr(solution, name) for name in Solution.__slots__}
    return Solution(**{**values, **changes})


def block(program: Program, name: str) -> slice:
    """The columns of a block."""
    first, count = next((first, count) for n, first, count in program.column_blocks if n.startswith(name))
    return slice(first, first + count)


def all_removed(program: Program, solution: Solution) -> Solution:
    assert solution.x is not None
    x = solution.x.copy()
    x[block(program, "q")] = 1.0
    return told(solution, x=x)


def nothing_found(_: Program, solution: Solution) -> Solution:
    """Another point than the optimum: no mask at all."""
    assert solution.x is not None
    x = np.zeros_like(solution.x)
    return told(solution, x=x)


LIES: dict[str, Callable[[Program, Solution], Solution]] = {
    "infeasible": lambda _, s: told(s, stop=Stop.INFEASIBLE, lower=math.inf, upper=math.inf, x=None),
    "unbounded": lambda _, s: told(s, stop=Stop.UNBOUNDED, lower=-math.inf, upper=math.inf, x=None),
    "too high": lambda _, s: told(s, lower=1e3, upper=1e3),
    "infinite bound": lambda _, s: told(s, lower=math.inf),
    "NaN bound": lambda _, s: told(s, lower=math.nan),
    "optimal without a point": lambda _, s: told(s, x=None, upper=math.inf, lower=s.lower + 0.01),
    "another point": nothing_found,
    "NaN point": lambda _, s: told(s, x=np.full_like(s.x, math.nan)),
    "over the budget": all_removed,
    "error": lambda _, s: told(s, stop=Stop.ERROR, message="out of luck"),
}


@pytest.mark.parametrize("decide", [True, False])
@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_solver_gives_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str, decide: bool
) -> None:
    network, x, label, budget, truth = a_hard_query(tmp_path)
    assert truth > 0.01
    lying(monkeypatch, LIES[lie])
    verdict = ask(network, x, label, budget, solver="liar", bounds="interval", decide=decide)
    assert verdict.status is Status.ERROR
    assert verdict.verdict is Answer.UNKNOWN
    assert verdict.message
    assert "\n" not in verdict.message
    assert verdict.lower is None or verdict.lower <= truth


def test_an_honest_solver_behind_the_same_double_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, label, budget, truth = a_hard_query(tmp_path)
    lying(monkeypatch, lambda _, solution: solution)
    for decide in (True, False):
        verdict = ask(network, x, label, budget, solver="liar", bounds="interval", decide=decide)
        assert verdict.verdict is Answer.ROBUST
        assert decide or verdict.upper == pytest.approx(truth, abs=CLOSE)


def test_a_point_outside_of_the_box_is_moved_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies outside is clipped and replayed; the solver's value does not count."""

    def outside(program: Program, solution: Solution) -> Solution:
        assert solution.x is not None
        x = solution.x.copy()
        x[block(program, "input")] += 50.0
        return told(solution, x=x, upper=-1.0)

    network, x, label, budget, _ = a_hard_query(tmp_path)
    lying(monkeypatch, outside)
    verdict = ask(network, x, label, budget, solver="liar", bounds="interval", radius=0.01)
    assert verdict.verdict is not Answer.VULNERABLE
    assert verdict.witness is not None
    assert ball(x, 0.01, None).contains(verdict.witness)


def test_a_bounding_that_a_witness_refutes_gives_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, label, budget, truth = a_hard_query(tmp_path)
    load = registry.load
    honest = load("bounds", "budget")

    class Wrong:
        name = "wrong"

        def bound(self, *arguments: Any, **options: Any) -> Any:
            found = honest.bound(*arguments, **options)
            return replace(found, rows_lower=found.rows_lower + 100.0)

    monkeypatch.setattr(registry, "load", lambda kind, name: Wrong() if name == "wrong" else load(kind, name))
    verdict = ask(network, x, label, budget, bounds="wrong")
    assert verdict.verdict is Answer.UNKNOWN
    assert verdict.status is Status.ERROR
    assert verdict.message
    assert verdict.lower is None or verdict.lower <= truth


def test_a_solver_that_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Program, __: Solution) -> Solution:
        raise SolverUnavailableError("no licence", needed="one", fix="buy it")

    network, x, label, budget, _ = a_hard_query(tmp_path)
    lying(monkeypatch, missing)
    verdict = ask(network, x, label, budget, solver="liar", bounds="interval")
    assert verdict.status is Status.UNAVAILABLE
    assert verdict.verdict is Answer.UNKNOWN
    assert "no licence" in verdict.message


@pytest.mark.parametrize("budget", ["1,0", "0,1", "1,1"])
def test_a_pre_screen_answers_as_the_search_does(tmp_path: Path, budget: str) -> None:
    weights, biases = random_layers((4, 8, 6, 3), 5, scale=1.5)
    biases[-1][0] += 2.5  # margins large enough for these bounds, which are loose
    network = network_of(tmp_path / "net.onnx", weights, biases)
    x = np.random.default_rng(0).random((40, 4)).astype(np.float32)
    labels = network.graph.evaluate(x.astype(np.float64)).argmax(1).tolist()
    labels[3] = (labels[3] + 1) % 3
    allowed = parse_budget(budget, network)
    plain, screened = (
        list(
            margins(network, x, labels, budget=allowed, options=Options("bab", decide=True, pre_screen=name))
        )
        for name in ("none", "deviation")
    )
    assert [v.verdict for v in screened] == [v.verdict for v in plain]
    by_screen = [v for v in screened if v.solver == "deviation"]
    assert 0 < len(by_screen) < 39
    for verdict in by_screen:
        assert verdict.status in (Status.DECIDED, Status.OPTIMAL)
        assert verdict.assurance is Assurance.ROUNDED
        assert verdict.lower is not None
        assert verdict.lower > 0
    assert screened[3].status is Status.MISCLASSIFIED
    with pytest.raises(QueryError, match="--pre-screen deviation with --radius"):
        next(
            margins(
                network, x, labels, budget=allowed, radius=0.1,
                options=Options(decide=True, pre_screen="deviation"),
            )
        )  # fmt: skip
    with pytest.raises(QueryError, match="--decide beside it"):
        Options(pre_screen="deviation")
