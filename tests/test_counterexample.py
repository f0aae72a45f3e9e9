"""Properties decided: against brute force, on traps for soundness, and on the benchmarks' known verdicts."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver.counterexample import Outcome, PropertyAnswer, verify_property
from milpver.errors import DataError, QueryError, SolverUnavailableError
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.properties.vnnlib1 import PROPERTY_FORMAT
from milpver.property import Property
from milpver.property_file import load_property
from milpver.query import Options, parse_budget
from tests.nets import brute_force_margins, network_of, pattern_minimum, random_layers, random_network

Float = NDArray[np.float64]

SOLVERS = ("auto", "highs")


def prop(inputs: Sequence[tuple[object, object]], outputs: int, text: str) -> Property:
    """A property over a box of decimal texts."""
    lines = [f"(declare-const X_{i} Real)" for i in range(len(inputs))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(outputs)]
    for i, (low, high) in enumerate(inputs):
        lines.append(f"(assert (and (>= X_{i} {low}) (<= X_{i} {high})))")
    return PROPERTY_FORMAT.read("\n".join([*lines, text]), Path("made.vnnlib"))


def decide(network: Network, asked: Property, solver: str = "auto", **options: float) -> PropertyAnswer:
    timeout = options.pop("timeout", 20.0)
    answer = verify_property(network, asked, options=Options(solver=solver, timeout=timeout))
    if answer.outcome is Outcome.SAT:
        assert_counterexample(network, asked, answer)
    return answer


def assert_counterexample(network: Network, asked: Property, answer: PropertyAnswer) -> None:
    """The input runs in ONNX Runtime on the file itself, and the outputs meet the formula exactly."""
    assert answer.x is not None
    assert answer.y is not None
    session = onnxruntime.InferenceSession(str(network.path), providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    (found,) = session.run(None, {entry.name: answer.x.reshape(shape)})
    assert np.array_equal(np.asarray(found).reshape(-1), answer.y)
    assert asked.violated(answer.x, answer.y)


# ------------------------------------------------------------------------------- against enumeration


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), level=st.floats(-1.0, 1.0))
def test_verdicts_agree_with_linear_programs_over_all_patterns(
    seed: int, level: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights, biases = random_layers((2, 4, 3, 2), seed)
    network = network_of(tmp_path_factory.mktemp("net") / "net.onnx", weights, biases)
    row = np.array([1.0, -1.0])
    none = [np.zeros(4, dtype=np.bool_), np.zeros(3, dtype=np.bool_)]
    least = pattern_minimum(weights, biases, none, -np.ones(2), np.ones(2), row)
    limit = round(least + level * 0.3, 6)
    asked = prop([(-1, 1), (-1, 1)], 2, f"(assert (<= (- Y_0 Y_1) {limit:.6f}))")
    for solver in SOLVERS:
        outcome = decide(network, asked, solver).outcome
        if limit > least + 1e-5:
            assert outcome is Outcome.SAT
        elif limit < least - 1e-5:
            assert outcome is Outcome.UNSAT
        else:
            assert outcome is not (Outcome.UNSAT if limit > least else Outcome.SAT)


def test_conjunctions_and_disjunctions_against_a_grid(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (2, 6, 3), seed=5)
    axis = np.linspace(-1, 1, 201)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    y = network.graph.evaluate(grid)
    cases = {
        "(assert (<= Y_0 Y_1)) (assert (<= Y_0 Y_2))": (y[:, 0] <= y[:, 1]) & (y[:, 0] <= y[:, 2]),
        "(assert (or (and (>= Y_0 3) (<= Y_1 0)) (>= Y_2 4)))": ((y[:, 0] >= 3) & (y[:, 1] <= 0))
        | (y[:, 2] >= 4),
        "(assert (or (<= X_0 -0.9) (>= X_0 0.9))) (assert (>= (+ Y_0 Y_1) (* 2 Y_2)))": (
            np.abs(grid[:, 0]) >= 0.9
        )
        & (y[:, 0] + y[:, 1] >= 2 * y[:, 2]),
        "(assert (<= (+ X_0 X_1) -1.5)) (assert (>= Y_0 Y_1))": (grid.sum(axis=1) <= -1.5)
        & (y[:, 0] >= y[:, 1]),
        "(assert (>= Y_0 (+ X_0 1.25)))": y[:, 0] >= grid[:, 0] + 1.25,
    }
    outcomes = set()
    for text, met in cases.items():
        for solver in SOLVERS:
            outcome = decide(network, prop([(-1, 1), (-1, 1)], 3, text), solver).outcome
            outcomes.add(outcome)
            # A finer set than the grid may hold a counterexample where the grid has none.
            assert outcome is Outcome.SAT if met.any() else outcome in (Outcome.UNSAT, Outcome.SAT)
    assert outcomes == {Outcome.SAT, Outcome.UNSAT}


def test_hundreds_of_boxes(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (1, 6, 5, 1), seed=2)
    ends = np.linspace(-1, 1, 401)
    y = network.graph.evaluate(np.linspace(-1, 1, 40001)[:, None])[:, 0]

    def asked(limit: float) -> Property:
        boxes = " ".join(
            f"(and (>= X_0 {low:.6f}) (<= X_0 {high:.6f}) (>= Y_0 {limit:.6f}))"
            for low, high in itertools.pairwise(ends)
        )
        text = f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (or {boxes}))"
        return PROPERTY_FORMAT.read(text, Path("made.vnnlib"))

    assert decide(network, asked(y.max() + 1e-3)).outcome is Outcome.UNSAT
    assert decide(network, asked(y.max() - 1e-3)).outcome is Outcome.SAT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("solver", SOLVERS)
def test_budgets_against_all_masks(seed: int, solver: str, tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (3, 5, 4, 3), seed=seed)
    x = np.random.default_rng(seed).uniform(-1, 1, 3).astype(np.float32).astype(np.float64)
    label = int(network.graph.evaluate(x[None])[0].argmax())
    worst = brute_force_margins(network, x, label, (2, 1)).min()
    point = [(Fraction(v).limit_denominator(2**200), v) for v in x]
    box = [(f"{float(v):.60f}", f"{float(v):.60f}") for _, v in point]
    others = " ".join(f"(<= (- Y_{label} Y_{j}) LIMIT)" for j in range(3) if j != label)
    for limit in (worst - 1e-3, worst + 1e-3):
        asked = prop(box, 3, f"(assert (or {others}))".replace("LIMIT", f"{limit:.12f}"))
        answer = verify_property(
            network, asked, budget=parse_budget("2,1", network), options=Options(solver=solver, timeout=20)
        )
        assert answer.outcome is (Outcome.SAT if limit > worst else Outcome.UNSAT)
        if answer.outcome is Outcome.SAT:
            counts = [sum(1 for layer, _ in answer.removed if layer == number) for number in (1, 2)]
            assert counts[0] <= 2
            assert counts[1] <= 1


# ------------------------------------------------------------------------------- traps


def linear(
    path: Path, *weights: Float | list[list[float]], biases: list[list[float]] | None = None
) -> Network:
    """A ReLU network with given weights."""
    made = [np.asarray(weight, dtype=np.float64) for weight in weights]
    own = [np.asarray(b, dtype=np.float64) for b in biases] if biases else [np.zeros(len(w)) for w in made]
    return network_of(path, made, own)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_counterexample_on_the_edge_alone(solver: str, tmp_path: Path) -> None:
    """y = |x| over [-1, 1]: only the two ends reach 1."""
    network = linear(tmp_path / "net.onnx", [[1.0], [-1.0]], [[1.0, 1.0]])
    on = decide(network, prop([(-1, 1)], 1, "(assert (>= Y_0 1))"), solver)
    assert on.outcome is not Outcome.UNSAT
    if solver == "auto":
        assert on.outcome is Outcome.SAT
    above = decide(network, prop([(-1, 1)], 1, "(assert (>= Y_0 1.0000001))"), solver)
    assert above.outcome is not Outcome.SAT
    assert decide(network, prop([(-1, 1)], 1, "(assert (>= Y_0 1.001))"), solver).outcome is Outcome.UNSAT


@pytest.mark.parametrize("digits", [6, 7, 8, 9, 12])
def test_limits_next_to_the_minimum(digits: int, tmp_path: Path) -> None:
    """The minimum is 1/4 at (1/2, 1/2): limits a hair below are no counterexamples, a hair above are."""
    network = linear(
        tmp_path / "net.onnx", [[1.0, 1.0], [-1.0, -1.0]], [[1.0, 1.0]], biases=[[-1.0, 1.0], [0.25]]
    )
    near = Fraction(1, 10**digits)
    for sign, never in ((-1, Outcome.SAT), (0, Outcome.UNSAT), (1, Outcome.UNSAT)):
        limit = Fraction(1, 4) + sign * near
        asked = prop([(0, 1), (0, 1)], 1, f"(assert (<= Y_0 {float(limit):.20f}))")
        assert decide(network, asked, timeout=5.0).outcome is not never


def test_a_decimal_edge_that_float32_overshoots(tmp_path: Path) -> None:
    """0.1 in float32 lies above 0.1: it is no input of [0, 0.1]."""
    network = linear(tmp_path / "net.onnx", [[1.0]], [[1.0]])
    beyond = float(np.float32(0.1))
    assert Fraction(beyond) > Fraction(1, 10)
    asked = prop([(0, "0.1")], 1, f"(assert (>= Y_0 {beyond:.40f}))")
    assert decide(network, asked, timeout=5.0).outcome is not Outcome.SAT
    below = float(np.nextafter(np.float32(0.1), np.float32(0)))
    asked = prop([(0, "0.1")], 1, f"(assert (>= Y_0 {below:.40f}))")
    assert decide(network, asked, timeout=5.0).outcome is Outcome.SAT


def test_a_box_without_float32_inputs_has_no_witness(tmp_path: Path) -> None:
    network = linear(tmp_path / "net.onnx", [[1.0]], [[1.0]])
    for solver in SOLVERS:
        answer = decide(network, prop([("0.1", "0.1")], 1, "(assert (>= Y_0 0))"), solver)
        assert answer.outcome is Outcome.UNKNOWN
        assert "no float32 input" in answer.message
    assert decide(network, prop([("0.1", "0.1")], 1, "(assert (>= Y_0 1))")).outcome is Outcome.UNSAT


def test_an_empty_box_is_an_error() -> None:
    with pytest.raises(DataError, match="an empty box"):
        prop([(f"{np.nextafter(0.1, 1):.60f}", "0.1")], 1, "(assert (>= Y_0 1))")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_tie_is_a_counterexample_of_a_closed_comparison(solver: str, tmp_path: Path) -> None:
    network = linear(tmp_path / "net.onnx", [[1.0]], [[1.0], [1.0]])
    assert decide(network, prop([(-1, 1)], 2, "(assert (<= Y_0 Y_1))"), solver).outcome is Outcome.SAT
    strict = decide(network, prop([(-1, 1)], 2, "(assert (< Y_0 Y_1))"), solver, timeout=1.5)
    assert strict.outcome is not Outcome.SAT


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("size", [1e4, 1e8, 1e15])
def test_huge_weights(size: float, solver: str, tmp_path: Path) -> None:
    """y = size * x - size * x + x, so that float32 loses x: never the wrong verdict."""
    network = linear(
        tmp_path / "net.onnx",
        [[size], [size], [1.0]],
        [[1.0, -1.0, 1.0]],
        biases=[[0.0, 0.0, 1.0], [-1.0]],
    )
    above = decide(network, prop([("0.25", "0.5")], 1, "(assert (<= Y_0 0.2))"), solver, timeout=1.5)
    assert above.outcome is not Outcome.SAT
    within = decide(network, prop([("0.25", "0.5")], 1, "(assert (<= Y_0 0.3))"), solver, timeout=1.5)
    assert within.outcome is not Outcome.UNSAT


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_planted_counterexample_in_a_tiny_region(solver: str, tmp_path: Path) -> None:
    """A spike of width 2e-3 around (0.37, -0.61): no gradient leads there."""
    steep = 1000.0
    at = (0.37, -0.61)
    # max(0, 1 - steep |x0 - a| - steep |x1 - b|) by two layers
    first = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    bias = [-at[0], at[0], -at[1], at[1]]
    network = linear(tmp_path / "net.onnx", first, [[-steep] * 4], [[1.0]], biases=[bias, [1.0], [0.0]])
    answer = decide(network, prop([(-1, 1), (-1, 1)], 1, "(assert (>= Y_0 0.5))"), solver)
    assert answer.outcome is Outcome.SAT
    elsewhere = decide(network, prop([(-1, 0), (-1, 1)], 1, "(assert (>= Y_0 0.5))"), solver)
    assert elsewhere.outcome is Outcome.UNSAT


def test_dead_layers_do_not_stop_the_attack(tmp_path: Path) -> None:
    """Nearly everywhere the gradient is zero; the corner that is not has to be found or searched."""
    network = linear(tmp_path / "net.onnx", [[1.0] * 4], [[1.0]], biases=[[-3.9], [0.0]])
    assert decide(network, prop([(-1, 1)] * 4, 1, "(assert (>= Y_0 0.05))")).outcome is Outcome.SAT
    assert decide(network, prop([(-1, 1)] * 4, 1, "(assert (>= Y_0 0.11))")).outcome is Outcome.UNSAT


# ------------------------------------------------------------------------------- what is refused


def test_properties_of_other_networks_are_refused(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (2, 4, 3), seed=0)
    with pytest.raises(QueryError, match="declares 3 inputs"):
        verify_property(network, prop([(0, 1)] * 3, 3, "(assert (<= Y_0 0))"))
    with pytest.raises(QueryError, match="declares 2 outputs"):
        verify_property(network, prop([(0, 1)] * 2, 2, "(assert (<= Y_0 0))"))
    softened = replace(network, softmax=True)
    with pytest.raises(QueryError, match="softmax"):
        verify_property(softened, prop([(0, 1)] * 2, 3, "(assert (<= Y_0 0))"))


def test_a_solver_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from milpver import registry  # noqa: PLC0415  only to take a solver away
    from milpver.solver import Availability  # noqa: PLC0415  as above

    network = random_network(tmp_path / "net.onnx", (2, 4, 3), seed=0)
    solver = registry.load("solvers", "highs")
    missing = Availability(False, "", "highspy is missing")
    monkeypatch.setattr(type(solver), "availability", lambda _: missing)
    with pytest.raises(SolverUnavailableError, match="highspy is missing"):
        decide(network, prop([(0, 1)] * 2, 3, "(assert (<= Y_0 0))"), "highs")


def test_time_and_interrupts_end_a_run(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (20, 60, 60, 2), seed=3, scale=1.4)
    asked = prop([(-1, 1)] * 20, 2, "(assert (>= Y_0 14))")
    answer = verify_property(network, asked, options=Options(solver="auto", timeout=1.0))
    assert answer.outcome in (Outcome.TIMEOUT, Outcome.SAT, Outcome.UNSAT)
    assert answer.seconds < 10
    stopped = verify_property(network, asked, options=Options(solver="auto"), should_stop=lambda: True)
    assert stopped.outcome is Outcome.UNKNOWN


# ------------------------------------------------------------------------------- benchmarks


@pytest.mark.parametrize(
    ("folder", "lines"), [("test", range(5)), ("acasxu", (0, 44, 58, 100, 130)), ("mnistfc", (6, 9))]
)
def test_known_verdicts_of_benchmarks(folder: str, lines: Sequence[int], shared_data: Path) -> None:
    root = shared_data / "vnncomp" / folder
    rows = list(csv.DictReader((root / "expected.csv").read_text(encoding="utf-8").splitlines()))
    for row in (rows[i] for i in lines):
        network, asked = load_network(root / row["net"]), load_property(root / row["property"])
        outcome = decide(network, asked, timeout=3.0).outcome
        if row["expected"] in ("sat", "unsat"):
            assert outcome.value in (row["expected"], "timeout", "unknown"), row
