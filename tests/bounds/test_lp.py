"""Bounds by linear programs: what duals prove, and that an independent solver's optima are no tighter."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from milpver import boundary_distance, registry, worst_margin
from milpver.bounding import Bounding, Bounds
from milpver.bounds import lp
from milpver.bounds._relaxation import Cost, LinearProgram
from milpver.encoder import encode
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Dense
from milpver.network import Network
from milpver.program import Program
from milpver.query import Budget, BudgetGroup, ball
from tests.nets import (
    brute_force_margins,
    group_masks,
    handmade,
    pattern_distance,
    random_layers,
    random_network,
)

Float = NDArray[np.float64]


def bounding(name: str) -> Bounding:
    found: Bounding = registry.load("bounds", name)
    return found


def relaxed_minimum(program: Program) -> float:
    """The optimum of a program without its integrality, by SciPy."""
    if program.columns == 0:
        return program.offset
    found = linprog(
        program.objective,
        A_ub=sparse.vstack([program.matrix, -program.matrix]).tocsr()[_finite(program)],
        b_ub=np.concatenate([program.row_upper, -program.row_lower])[_finite(program)],
        bounds=np.stack([program.lower, program.upper], axis=1),
        method="highs",
    )
    assert found.status == 0
    return float(found.fun) + program.offset


def _finite(program: Program) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.flatnonzero(
        np.isfinite(np.concatenate([program.row_upper, -program.row_lower]))
    )
    return found


def exactly(program: LinearProgram, slopes: Float, duals: Float) -> Fraction:
    """What multipliers prove, in rational arithmetic."""
    matrix = program.matrix.toarray()
    total = Fraction(0)
    for y, low, high in zip(duals, program.row_lower, program.row_upper, strict=True):
        side = low if y > 0 else high
        if y != 0 and np.isfinite(side):
            total += Fraction(float(y)) * Fraction(float(side))
    used = np.where(duals > 0, np.isfinite(program.row_lower), np.isfinite(program.row_upper))
    for j, c in enumerate(slopes):
        d = Fraction(float(c)) - sum(
            Fraction(float(y)) * Fraction(float(a))
            for y, a, counts in zip(duals, matrix[:, j], used, strict=True)
            if counts
        )
        total += min(d * Fraction(float(program.lower[j])), d * Fraction(float(program.upper[j])))
    return total


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e6]))
def test_what_any_multipliers_prove_is_never_more_than_exact_arithmetic_says(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    matrix = rng.normal(size=(rows, columns)) * scale * (rng.random((rows, columns)) < 0.7)
    low = rng.normal(size=rows)
    high = low + rng.random(rows) * (rng.random(rows) < 0.7)
    low[rng.random(rows) < 0.3] = -np.inf
    high[rng.random(rows) < 0.3] = np.inf
    start = rng.normal(size=columns) * scale
    program = LinearProgram(sparse.csr_array(matrix), low, high, start, start + rng.random(columns) * scale)
    slopes, duals = rng.normal(size=(4, columns)), rng.normal(size=(4, rows))
    duals[0] = 0.0
    cost = Cost(sparse.csr_array(slopes), sparse.csr_array(slopes.shape), np.zeros(4))
    found = program.proven(cost, duals)
    for k in range(4):
        truth = exactly(program, slopes[k], duals[k])
        assert found[k] <= truth
        assert truth - Fraction(float(found[k])) <= Fraction(1, 10**9) * (1 + Fraction(scale) ** 2)


def test_multipliers_that_are_no_numbers_prove_what_the_columns_do() -> None:
    program = LinearProgram(
        sparse.csr_array(np.ones((2, 1))), np.zeros(2), np.ones(2), np.array([-2.0]), np.array([3.0])
    )
    cost = Cost(sparse.csr_array(np.ones((1, 1))), sparse.csr_array((1, 1)), np.zeros(1))
    assert program.proven(cost, np.array([[np.nan, np.inf]]))[0] == pytest.approx(-2.0)
    assert program.proven(cost, np.array([[1.0, 0.0]]))[0] == pytest.approx(0.0)


def is_met(found: Bounds, first: Bounds) -> bool:
    """Whether no bound is worse."""
    return (
        all(np.all(a >= b) for a, b in zip(found.lower, first.lower, strict=True))
        and all(np.all(a <= b) for a, b in zip(found.upper, first.upper, strict=True))
        and bool(np.all(found.rows_lower >= first.rows_lower))
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 1.0]))
def test_bounds_are_those_of_the_relaxed_program(seed: int, radius: float) -> None:
    """The rows are the optimum of the fused encoding's relaxation; no bound is worse than alpha-CROWN's."""
    made = handmade(seed)
    graph, budget = made.graph, made.budget
    x = np.random.default_rng(seed).normal(size=graph.inputs)
    rows = np.eye(3) - np.roll(np.eye(3), 1, axis=0)
    box = ball(x, radius, None)
    lower, upper = box.lower[None], box.upper[None]
    found = bounding("lp").bound(graph, lower, upper, budget, rows[None], "cpu")
    assert is_met(found, bounding("alpha-crown").bound(graph, lower, upper, budget, rows[None], "cpu"))
    again = bounding("lp").bound(graph, lower, upper, budget, rows[None], "cpu")
    assert all(np.array_equal(a, b) for a, b in zip(found.lower, again.lower, strict=True))
    if any(isinstance(node, Max) for node in graph.nodes):
        return  # neither program of a Max contains the other
    encoded = encode(graph, box, budget, found, registry.load("encodings", "fused"))
    for k, row in enumerate(rows):
        optimum = relaxed_minimum(encoded.program(row))
        assert found.rows_lower[0, k] >= optimum - 1e-6 * (1 + abs(optimum))


def gated_layers(seed: int) -> tuple[Graph, Budget]:
    """Three gated layers that nothing is known about but by the budget."""
    rng = np.random.default_rng(seed)
    widths = (4, 10, 8, 6)
    nodes: list[Input | Affine | Relu | Gate | Max] = [Input(widths[0])]
    for m, n in itertools.pairwise(widths):
        last = len(nodes) - 1
        nodes.append(Affine(((last, Dense(rng.normal(size=(n, m)))),), rng.normal(size=n) * 0.3))
        nodes.append(Relu(last + 1, n))
        nodes.append(Gate(last + 2, np.arange(n), n))
    nodes.append(Affine(((len(nodes) - 1, Dense(rng.normal(size=(2, widths[-1])))),), np.zeros(2)))
    return Graph(tuple(nodes)), Budget((BudgetGroup((3,), 2), BudgetGroup((6,), 1), BudgetGroup((9,), 1)))


def test_neurons_are_tightened_layer_by_layer() -> None:
    """Each neuron's ends are at least as tight as by the program at alpha-CROWN's bounds, and some gain."""
    graph, budget = gated_layers(1)
    x = np.random.default_rng(2).normal(size=(1, 4))
    rows = np.array([[[1.0, -1.0]]])
    first = bounding("alpha-crown").bound(graph, x, x, budget, rows, "cpu")
    found = bounding("lp").bound(graph, x, x, budget, rows, "cpu")
    assert is_met(found, first)
    gained = 0
    for node in (4, 7):
        part = Graph(graph.nodes[: node + 1])
        kept = Budget(tuple(group for group in budget.groups if group.nodes[0] < node))
        encoded = encode(part, ball(x[0], 0.0, None), kept, first, registry.load("encodings", "fused"))
        for i, unit in enumerate(np.eye(part.outputs)):
            low, high = first.lower[node][0, i], first.upper[node][0, i]
            if high <= 0:
                continue
            least, most = (sign * relaxed_minimum(encoded.program(sign * unit)) for sign in (1.0, -1.0))
            assert found.lower[node][0, i] >= least - 1e-6
            assert found.upper[node][0, i] <= most + 1e-6
            gained += int(least > low + 1e-6) + int(most < high - 1e-6)
    assert gained > 5
    assert found.rows_lower[0, 0] > first.rows_lower[0, 0]


def test_in_a_hurry_what_there_is_is_kept() -> None:
    graph, budget = gated_layers(1)
    x = np.random.default_rng(2).normal(size=(1, 4))
    rows = np.array([[[1.0, -1.0]]])
    full, plain = (bounding(name).bound(graph, x, x, budget, rows, "cpu") for name in ("lp", "budget"))
    total, sure = 0, []
    for patience in (0, 20, 60, 100, 10**6):
        asked = 0

        def hurry(patience: int = patience) -> bool:
            nonlocal asked
            asked += 1
            return asked > patience

        found = bounding("lp").bound(graph, x, x, budget, rows, "cpu", hurry=hurry)
        assert np.all(found.lower[4] <= full.lower[4] + 1e-9)
        assert all(np.all(a >= b) for a, b in zip(found.lower, plain.lower, strict=True))
        assert asked <= patience + 20
        sure.append(float((found.upper[7] - found.lower[7]).sum()))
        total = asked
    assert total > 100
    assert sure[0] > sure[-1]
    assert sure[-1] == pytest.approx(float((full.upper[7] - full.lower[7]).sum()))


def test_costs_that_a_solver_gives_nothing_for_keep_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, budget = gated_layers(3)
    x, rows = np.ones((1, 4)), np.array([[[1.0, -1.0]]])
    monkeypatch.setattr(lp._Simplex, "minimise", lambda *_: None)
    found = bounding("lp").bound(graph, x, x, budget, rows, "cpu")
    first = bounding("alpha-crown").bound(graph, x, x, budget, rows, "cpu")
    assert np.array_equal(found.rows_lower, first.rows_lower)
    assert all(np.array_equal(a, b) for a, b in zip(found.upper, first.upper, strict=True))


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_wrong_multipliers_prove_nothing_wrong(seed: int) -> None:
    """Whatever a solver says, the bound holds for every mask."""
    made = handmade(seed)
    rng = np.random.default_rng(seed)
    x, rows = rng.normal(size=(1, made.graph.inputs)), np.eye(3)[None]
    truth = bounding("lp").bound(made.graph, x, x, made.budget, rows, "cpu")
    with pytest.MonkeyPatch.context() as patch:
        honest = lp._Simplex.minimise

        def lying(solver: lp._Simplex, slopes: Float) -> tuple[Float, Float] | None:
            answer = honest(solver, slopes)
            return None if answer is None else (answer[0], answer[1] + rng.normal(size=len(answer[1])))

        patch.setattr(lp._Simplex, "minimise", lying)
        found = bounding("lp").bound(made.graph, x, x, made.budget, rows, "cpu")
    exact = np.array([np.inf] * 3)
    for mask in group_masks(made.graph, made.budget):
        exact = np.minimum(exact, made.graph.evaluate(x, mask)[0])
    assert np.all(found.rows_lower[0] <= exact + 1e-9 * (1 + np.abs(exact)))
    assert np.all(truth.rows_lower[0] <= exact + 1e-9 * (1 + np.abs(exact)))


def test_max_is_relaxed_between_its_entries_and_their_sum() -> None:
    """max(x, 1 - x) over [0, 1]: the program's least value is 1/2, its largest 1."""
    nodes = (
        Input(1),
        Affine(((0, Dense(np.array([[1.0], [-1.0]]))),), np.array([0.0, 1.0])),
        Max(1, np.array([[0, 1]])),
        Affine(((2, Dense(np.array([[1.0]]))),), np.zeros(1)),
    )
    rows = np.array([[[1.0], [-1.0]]])
    found = bounding("lp").bound(Graph(nodes), np.zeros((1, 1)), np.ones((1, 1)), Budget(), rows, "cpu")
    np.testing.assert_allclose(found.rows_lower[0], [0.5, -1.0], atol=1e-7)


def test_a_network_of_active_neurons_needs_no_rows() -> None:
    graph, rows = Graph((Input(2), Relu(0, 2))), np.array([[[1.0, -1.0]]])
    found = bounding("lp").bound(graph, np.ones((1, 2)), np.full((1, 2), 3.0), Budget(), rows, "cpu")
    assert found.rows_lower[0, 0] == pytest.approx(-2.0)
    assert found.rows_lower[0, 0] <= -2.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return random_network(tmp_path_factory.mktemp("lp") / "net.onnx", (4, 5, 4, 3), 4)


@pytest.mark.parametrize("encoding", ["fused", "reference"])
def test_margins_by_a_milp_backend_are_those_of_enumeration(network: Network, encoding: str) -> None:
    x = np.random.default_rng(1).normal(size=4).astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    verdict = worst_margin(
        network, x, label, budget=(2, 1), bounds="lp", encoding=encoding, solver="highs", device="cpu"
    )
    truth = brute_force_margins(network, x.astype(np.float64), label, (2, 1)).min()
    assert verdict.bounds == "lp"
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert verdict.lower - 1e-6 <= truth <= verdict.upper + 1e-6
    assert verdict.upper - verdict.lower <= 1e-5


def test_distances_by_a_milp_backend_are_those_of_all_patterns(network: Network) -> None:
    weights, biases = random_layers((4, 5, 4, 3), 4)
    x = np.random.default_rng(1).normal(size=4).astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
    verdict = boundary_distance(network, x, label, bounds="lp", solver="highs", device="cpu")
    truth = min(
        pattern_distance(
            weights,
            biases,
            x.astype(np.float64),
            np.eye(3)[label] - np.eye(3)[other],
            np.full(4, -np.inf),
            np.full(4, np.inf),
        )
        for other in set(range(3)) - {label}
    )
    assert verdict.lower is not None
    assert verdict.upper is not None
    assert verdict.lower - 1e-5 <= truth <= verdict.upper + 1e-5
    assert verdict.upper - verdict.lower <= 1e-4
