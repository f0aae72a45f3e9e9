"""What every MILP backend has to get right; a new backend joins by being found by the registry.

Expected values come from enumeration: integer columns over their ranges, continuous ones over the vertices,
so no solver is compared with another. A backend that cannot run here is skipped with its own reason.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import minimize

from milpver import registry
from milpver.errors import QueryError
from milpver.linear import Float
from milpver.program import Program, ProgramBuilder
from milpver.solver import Limits, Progress, Solution, Solver, Stop

INF = float("inf")
NAN = float("nan")
NAMES = [variant for name in registry.names("solvers") for variant in registry.variants("solvers", name)]


#: What a solver cannot do, told by the tests that need it.
LACKS = {"pyomo:glpk": ("points when stopped", "starts")}


def needs(solver: Solver, ability: str) -> None:
    """Skip where a solver does not have what a test is about."""
    if ability in LACKS.get(solver.name, ()):
        pytest.skip(f"{solver.name} has no {ability}")


@pytest.fixture(params=NAMES)
def solver(request: pytest.FixtureRequest) -> Solver:
    backend: Solver = registry.load("solvers", request.param)
    state = backend.availability()
    if not state.available:
        pytest.skip(f"{request.param}: {state.reason}")
    return backend


# --- programs -----------------------------------------------------------------------------------------------


def program_of(  # noqa: PLR0917 - the parts of a program in their usual order
    objective: Sequence[float],
    matrix: Sequence[Sequence[float]],
    row_lower: Sequence[float],
    row_upper: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    integer: Sequence[int] = (),
    offset: float = 0.0,
) -> Program:
    """A program from lists; ``integer`` holds column numbers."""
    columns, rows = len(objective), len(row_lower)
    whole = np.zeros(columns, dtype=np.bool_)
    whole[list(integer)] = True
    return Program(
        objective=np.array(objective, dtype=np.float64),
        offset=offset,
        lower=np.array(lower, dtype=np.float64),
        upper=np.array(upper, dtype=np.float64),
        integer=whole,
        matrix=sparse.csr_array(np.array(matrix, dtype=np.float64).reshape(rows, columns)),
        row_lower=np.array(row_lower, dtype=np.float64),
        row_upper=np.array(row_upper, dtype=np.float64),
    )


def knapsack(items: int = 60, rows: int = 4, seed: int = 0) -> Program:
    """Strongly correlated multi-dimensional knapsack: incumbents at once, a proof not within minutes."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 100, (rows, items)).astype(np.float64)
    value = weights.sum(axis=0) + rng.integers(0, 30, items)
    capacity = np.floor(weights.sum(axis=1) / 2)
    return program_of(
        list(-value), weights.tolist(), [-INF] * rows, list(capacity), [0] * items, [1] * items, range(items)
    )


def market_split(rows: int = 5, seed: int = 0) -> Program:
    """Cornuejols and Dawande (1998): equalities of random numbers; no incumbent within minutes."""
    rng = np.random.default_rng(seed)
    items = 10 * (rows - 1)
    weights = rng.integers(0, 100, (rows, items)).astype(np.float64)
    half = np.floor(weights.sum(axis=1) / 2)
    return program_of(
        [0.0] * items, weights.tolist(), list(half), list(half), [0] * items, [1] * items, range(items)
    )


def relu_network(seed: int, slack: float, *, faint: bool = False) -> tuple[Program, float]:
    """Minimum of y_0 - y_1 over the masks of a small ReLU network, as big-M, and its true value.

    Args:
        seed: for widths, weights, input and budget.
        slack: how much wider than interval arithmetic each layer's big-M is.
        faint: scale two hidden neurons in five down by 1e-5 to 1e-11, as weight decay and pruning do.
    """
    rng = np.random.default_rng(seed)
    widths = [int(rng.integers(2, 5)), *(int(w) for w in rng.integers(2, 6, size=2)), 2]
    layers = [
        (rng.normal(size=(b, a)) / np.sqrt(a), 0.5 * rng.normal(size=b))
        for a, b in itertools.pairwise(widths)
    ]
    for k, (weight, bias) in enumerate(layers[:-1] if faint else []):
        factor = np.where(rng.random(len(bias)) < 0.4, 10.0 ** rng.uniform(-11, -5, len(bias)), 1.0)
        layers[k] = (weight * factor[:, None], bias * factor)
    x = rng.normal(size=widths[0])
    budgets = [int(min(s, w - 1)) for s, w in zip(rng.integers(0, 3, size=2), widths[1:], strict=False)]

    builder = ProgramBuilder()
    columns, lower, upper = builder.add_columns("x", x, x), x, x
    for k, (weight, bias) in enumerate(layers):
        positive, negative = np.maximum(weight, 0), np.minimum(weight, 0)
        low = positive @ lower + negative @ upper + bias
        high = positive @ upper + negative @ lower + bias
        low, high = low - slack * (1 + np.abs(low)), high + slack * (1 + np.abs(high))
        count = len(bias)
        z = builder.add_columns(f"z{k}", low, high)
        builder.add_matrix_rows([(columns, weight), (z, -np.eye(count))], -bias, -bias, count)
        if k == len(layers) - 1:
            columns = z
            break
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        phase, kept = builder.add_binaries(f"p{k}", count), builder.add_binaries(f"m{k}", count)
        h = builder.add_columns(f"h{k}", np.zeros(count), high)
        y = builder.add_columns(f"y{k}", np.zeros(count), high)
        builder.add_rows([(h, 1.0), (z, -1.0)], 0.0, INF)
        builder.add_rows([(h, 1.0), (phase, -high)], -INF, 0.0)
        builder.add_rows([(h, 1.0), (z, -1.0), (phase, -low)], -INF, -low)
        builder.add_rows([(y, 1.0), (h, -1.0)], -INF, 0.0)
        builder.add_rows([(y, 1.0), (kept, -high)], -INF, 0.0)
        builder.add_rows([(y, 1.0), (h, -1.0), (kept, -high)], -high, INF)
        builder.add_matrix_rows([(kept, np.ones((1, count)))], count - budgets[k], INF, 1)
        columns, lower, upper = y, np.zeros(count), high

    def margin(masks: Sequence[tuple[int, ...]]) -> float:
        value = x
        for (weight, bias), mask in zip(layers, [*masks, None], strict=True):
            value = weight @ value + bias
            if mask is not None:
                value = np.array(mask) * np.maximum(value, 0.0)
        return float(value[0] - value[1])

    choices = [
        [mask for mask in itertools.product((0, 1), repeat=width) if width - sum(mask) <= budget]
        for width, budget in zip(widths[1:-1], budgets, strict=True)
    ]
    true = min(margin(masks) for masks in itertools.product(*choices))
    return builder.build().with_objective(columns, np.array([1.0, -1.0]), 0.0), true


def enumerate_optimum(program: Program) -> float:
    """The minimum by enumeration, +inf where infeasible; all columns bounded.

    Integer columns over their ranges; for each, the continuous rest over the vertices of its polytope: every
    choice of as many active bounds and rows as there are columns.
    """
    whole, real = np.flatnonzero(program.integer), np.flatnonzero(~program.integer)
    matrix = program.matrix.toarray()
    ranges = [range(int(np.ceil(program.lower[j])), int(np.floor(program.upper[j])) + 1) for j in whole]
    sides = np.concatenate([np.eye(len(real)), np.eye(len(real)), matrix[:, real], matrix[:, real]])
    best = INF
    for values in itertools.product(*ranges):
        x = np.zeros(program.columns)
        x[whole] = values
        shift = matrix @ x
        right = np.concatenate(
            [program.lower[real], program.upper[real], program.row_lower - shift, program.row_upper - shift]
        )
        for active in itertools.combinations(np.flatnonzero(np.isfinite(right)), len(real)):
            square = sides[list(active)]
            if len(real) and abs(np.linalg.det(square)) < 1e-9:
                continue
            x[real] = np.linalg.solve(square, right[list(active)])
            if program.violation(x) <= 1e-7:
                best = min(best, program.value(x))
    return best


# --- checks that hold for every solution --------------------------------------------------------------------


def solve(
    solver: Solver, program: Program, limits: Limits | None = None, *, start: Float | None = None
) -> Solution:
    """Solve under a time limit that no test here should need, and check what every solution promises."""
    limits = limits or Limits(seconds=60.0)
    solution = solver.solve(program, limits, start=start)
    assert_consistent(program, limits, solution)
    return solution


def assert_consistent(program: Program, limits: Limits, solution: Solution) -> None:
    assert not np.isnan(solution.lower)
    assert not np.isnan(solution.upper)
    assert solution.lower <= solution.upper
    assert solution.nodes >= 0
    assert 0.0 <= solution.seconds < limits.seconds + 5.0
    assert "\n" not in solution.message
    if solution.x is None:
        assert solution.upper == INF
    else:
        assert solution.x.shape == (program.columns,)
        assert solution.x.dtype == np.float64
        assert program.violation(solution.x) <= 1e-5
        assert program.value(solution.x) == pytest.approx(solution.upper, rel=1e-6, abs=1e-6)
    if solution.stop is Stop.OPTIMAL:
        assert solution.x is not None
        assert solution.upper - solution.lower <= limits.gap + 1e-9 * max(1.0, abs(solution.upper))
    if solution.stop is Stop.INFEASIBLE:
        assert (solution.lower, solution.upper) == (INF, INF)
    if solution.stop is Stop.UNBOUNDED:
        assert solution.lower == -INF
    if solution.stop is Stop.ERROR:
        assert solution.lower == -INF
        assert solution.message


def assert_optimum(solution: Solution, value: float) -> None:
    assert solution.stop is Stop.OPTIMAL, solution
    assert solution.lower <= value + 1e-6 * max(1.0, abs(value))
    assert solution.upper == pytest.approx(value, rel=1e-6, abs=1e-6)


# --- what it answers ----------------------------------------------------------------------------------------


def test_says_who_it_is(solver: Solver) -> None:
    assert solver.name in NAMES
    assert 0.0 < solver.tolerance <= 1e-6
    state = solver.availability()
    assert state.version[0].isdigit()
    assert state.reason == ""


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_squares_or_a_word_on_who_takes_them(solver: Solver, seed: int, integer: bool) -> None:
    """min sum q x^2 + c z over A x + B z >= b, z in {0, 1}^3 (or [0, 1]^3), against projected duals."""
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    x = builder.add_columns("x", np.full(4, -1.0), np.ones(4))
    z = builder.add_columns("z", np.zeros(3), np.ones(3), integer=integer)
    a, b = rng.normal(size=(2, 4)), rng.normal(size=(2, 3))
    builder.add_matrix_rows([(x, a), (z, b)], np.array([0.5, 0.7]), np.inf, 2)
    program = builder.build().with_objective(z, np.full(3, 0.2), 0.5).with_squares(x, np.full(4, 0.8))
    if not getattr(solver, "squares", False):
        with pytest.raises(QueryError, match=r"quadratic objective.*gurobi, scip"):
            solver.solve(program, Limits())
        return
    solution = solver.solve(program, Limits(gap=1e-7))
    assert solution.stop is Stop.OPTIMAL, solution.message
    assert solution.x is not None
    assert program.violation(solution.x) < 1e-6
    assert program.value(solution.x) == pytest.approx(solution.upper, abs=1e-6)
    assert solution.lower <= solution.upper <= solution.lower + 1e-6
    least = np.inf
    for fixed in itertools.product((0.0, 1.0), repeat=3) if integer else [()]:
        free = not fixed
        found = minimize(
            lambda v: float(0.8 * (v[:4] @ v[:4]) + 0.2 * v[4:].sum() + 0.5),
            np.concatenate([np.zeros(4), np.full(3, 0.5) if free else fixed]),
            bounds=[(-1, 1)] * 4 + ([(0, 1)] * 3 if free else [(part, part) for part in fixed]),
            constraints={"type": "ineq", "fun": lambda v: a @ v[:4] + b @ v[4:] - np.array([0.5, 0.7])},
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 300},
        )
        least = min(least, float(found.fun)) if found.success else least
    assert solution.upper == pytest.approx(least, abs=1e-5)


def test_linear_program(solver: Solver) -> None:
    # The vertices of a + b <= 4, a + 3b <= 6, a <= 3 that count: (3, 1) with -5, (0, 2) with -4.
    program = program_of([-1, -2], [[1, 1], [1, 3]], [-INF, -INF], [4, 6], [0, 0], [3, INF], offset=10.0)
    solution = solve(solver, program)
    assert_optimum(solution, 5.0)
    assert solution.x == pytest.approx([3.0, 1.0], abs=1e-6)


def test_linear_program_with_equalities_free_columns_and_negative_bounds(solver: Solver) -> None:
    # c = 2 - a - b, d = 2a - b: min a + b + 3c - d = 6 - 4a - b with a <= 1, b <= -2.
    program = program_of(
        [1, 1, 3, -1], [[1, 1, 1, 0], [2, -1, 0, -1]], [2, 0], [2, 0], [-3, -5, -INF, -INF], [1, -2, INF, INF]
    )
    solution = solve(solver, program)
    assert_optimum(solution, 4.0)
    assert solution.x == pytest.approx([1.0, -2.0, 3.0, 4.0], abs=1e-6)


def test_ranged_rows_use_either_side(solver: Solver) -> None:
    for sign, value in ((1.0, -1.5), (-1.0, -2.25)):
        program = program_of([sign], [[2.0]], [-3.0], [4.5], [-INF], [INF])
        assert_optimum(solve(solver, program), value)


def test_binary_program_against_all_points(solver: Solver) -> None:
    program = knapsack(items=14, rows=3, seed=1)
    points = np.array(list(itertools.product((0.0, 1.0), repeat=14)))
    admissible = (points @ program.matrix.toarray().T <= program.row_upper).all(axis=1)
    best = float((points[admissible] @ program.objective).min())
    assert_optimum(solve(solver, program), best)


def test_integers_beyond_zero_and_one(solver: Solver) -> None:
    # 3a + 5b = 1 over integers in [-7, 7]: (a, b) = (2, -1), (-3, 2), (7, -4); minimise a + 2b.
    program = program_of([1, 2], [[3, 5]], [1], [1], [-7, -7], [7, 7], [0, 1])
    solution = solve(solver, program)
    assert_optimum(solution, -1.0)
    assert solution.x == pytest.approx([7.0, -4.0], abs=1e-6)


def test_fractional_bounds_of_integer_columns(solver: Solver) -> None:
    assert_optimum(solve(solver, program_of([1, -1], [], [], [], [0.4, -2.7], [3.9, 2.6], [0, 1])), -1.0)
    program = program_of([1, 1], [[1, 1]], [-INF], [9], [0.3, 0], [0.7, 1], [0])
    assert solve(solver, program).stop is Stop.INFEASIBLE


@pytest.mark.parametrize("integer", [[], [0, 1]])
def test_infeasible(solver: Solver, integer: list[int]) -> None:
    solution = solve(
        solver, program_of([1, 1], [[1, 1], [1, -1]], [3, -INF], [INF, 5], [0, 0], [1, 1], integer)
    )
    assert solution.stop is Stop.INFEASIBLE, solution


def test_infeasible_through_integrality_only(solver: Solver) -> None:
    program = program_of([1, 1], [[2, 2]], [3], [3], [0, 0], [5, 5], [0, 1])
    assert solve(solver, program).stop is Stop.INFEASIBLE


@pytest.mark.parametrize("integer", [[], [0]])
def test_crossed_bounds_are_infeasible(solver: Solver, integer: list[int]) -> None:
    crossed_column = program_of([1, 1], [[1, 1]], [-INF], [5], [0, 1 + 1e-9], [1, 1], integer)
    crossed_row = program_of([1, 1], [[1, 1]], [1 + 1e-9], [1], [0, 0], [1, 1], integer)
    assert solve(solver, crossed_column).stop is Stop.INFEASIBLE
    assert solve(solver, crossed_row).stop is Stop.INFEASIBLE


@pytest.mark.parametrize("integer", [[], [0], [0, 1]])
def test_unbounded(solver: Solver, integer: list[int]) -> None:
    program = program_of([-1, -1], [[1, -1]], [0], [0], [0, 0], [INF, INF], integer)
    solution = solve(solver, program)
    assert solution.stop is Stop.UNBOUNDED, solution


@pytest.mark.parametrize("integer", [[], [0], [0, 1]])
def test_unbounded_without_rows(solver: Solver, integer: list[int]) -> None:
    program = program_of([1, 0], [], [], [], [-INF, 0], [0, 1], integer)
    assert solve(solver, program).stop is Stop.UNBOUNDED


@pytest.mark.parametrize("integer", [[], [0], [0, 1, 2]])
def test_infeasible_in_spite_of_a_ray(solver: Solver, integer: list[int]) -> None:
    # Column 0 can fall for ever, but the others cannot meet their row.
    program = program_of([-1, 0, 0], [[0, 1, 1]], [3], [INF], [0, 0, 0], [INF, 1, 1], integer)
    assert solve(solver, program).stop is Stop.INFEASIBLE


def test_no_columns(solver: Solver) -> None:
    assert_optimum(solve(solver, program_of([], [], [], [], [], [], offset=3.0)), 3.0)
    assert_optimum(solve(solver, program_of([], [], [0, -1], [1, 0], [], [], offset=-1.0)), -1.0)
    assert solve(solver, program_of([], [], [1], [2], [], [])).stop is Stop.INFEASIBLE


def test_no_rows(solver: Solver) -> None:
    assert_optimum(solve(solver, program_of([1, -2], [], [], [], [-1, 0], [5, 4], offset=1.0)), -8.0)
    assert_optimum(solve(solver, program_of([1, -2], [], [], [], [-1, 0], [5, 4], [0, 1])), -9.0)


def test_empty_rows(solver: Solver) -> None:
    program = program_of([1, 1], [[0, 0], [1, 1]], [-1, 1], [1, INF], [0, 0], [1, 1], [0, 1])
    assert_optimum(solve(solver, program), 1.0)
    program = program_of([1, 1], [[0, 0], [1, 1]], [1, 1], [2, INF], [0, 0], [1, 1], [0, 1])
    assert solve(solver, program).stop is Stop.INFEASIBLE


def test_no_objective(solver: Solver) -> None:
    assert_optimum(solve(solver, program_of([0, 0], [[1, 1]], [1], [1], [0, 0], [1, 1], [0, 1])), 0.0)


@pytest.mark.parametrize("integer", [[], [0], [0, 1, 2]])
def test_fixed_columns(solver: Solver, integer: list[int]) -> None:
    program = program_of([1, 1, 1], [[1, 2, 3]], [8], [INF], [1, -2, 0], [1, -2, 9], integer)
    # 3c >= 8 - 1 + 4
    assert_optimum(solve(solver, program), 3.0 if 2 in integer else -1 + 11 / 3)
    everything = program_of([1, 1, 1], [[1, 2, 3]], [-3], [-3], [1, -2, 0], [1, -2, 0], integer)
    assert_optimum(solve(solver, everything), -1.0)


def test_duplicates_unsorted_entries_and_zeros_in_the_matrix(solver: Solver) -> None:
    program = program_of([-1, -1], [[0, 0]], [-INF], [4], [0, 0], [9, 9], [0, 1])
    data, indices = np.array([1.0, 0.0, 1.0, 1.0, -1.0]), np.array([1, 0, 0, 0, 1])
    matrix = sparse.csr_array((data, indices, np.array([0, 5])), shape=(1, 2))
    before = matrix.copy()
    # 2 x_0 + 0 x_1 <= 4
    assert_optimum(solve(solver, replace(program, matrix=matrix)), -11.0)
    assert np.array_equal(matrix.data, before.data)
    assert np.array_equal(matrix.indices, before.indices)


def test_long_indices(solver: Solver) -> None:
    program = program_of([-1, -2], [[1, 1], [1, 0]], [-INF, -INF], [4, 3], [0, 0], [9, 2], [0])
    matrix = program.matrix
    parts = (matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64))
    assert_optimum(solve(solver, replace(program, matrix=sparse.csr_array(parts, shape=matrix.shape))), -6.0)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("objective", NAN),
        ("objective", INF),
        ("offset", NAN),
        ("lower", NAN),
        ("lower", INF),
        ("upper", NAN),
        ("upper", -INF),
        ("row_lower", NAN),
        ("row_lower", INF),
        ("row_upper", NAN),
        ("row_upper", -INF),
        ("matrix", NAN),
        ("matrix", INF),
    ],
)
def test_nan_and_misplaced_infinity_are_refused(solver: Solver, part: str, value: float) -> None:
    program = program_of([1, 1], [[1, 1]], [1], [2], [0, 0], [1, 1], [0])
    if part == "matrix":
        program = replace(program, matrix=sparse.csr_array(np.array([[1.0, value]])))
    elif part == "offset":
        program = replace(program, offset=value)
    else:
        getattr(program, part)[-1] = value
    with pytest.raises(ValueError, match=r"NaN|infinity|\bis (nan|inf|-inf)"):
        solver.solve(program, Limits())


# --- random programs ----------------------------------------------------------------------------------------

small = st.integers(-3, 3).map(float)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Small integer data, so that feasibility is never a matter of rounding."""
    whole, real = draw(st.integers(0, 4)), draw(st.integers(0, 2))
    columns, rows = whole + real, draw(st.integers(0, 3))
    lower = draw(st.lists(st.integers(-2, 1).map(float), min_size=columns, max_size=columns))
    width = draw(st.lists(st.integers(0, 3).map(float), min_size=columns, max_size=columns))
    row_lower = draw(
        st.lists(st.sampled_from([-INF, -4.0, -1.0, 0.0, 1.0, 3.0]), min_size=rows, max_size=rows)
    )
    room = draw(st.lists(st.sampled_from([0.0, 1.0, 5.0, INF]), min_size=rows, max_size=rows))
    entries = draw(st.lists(small, min_size=rows * columns, max_size=rows * columns))
    return program_of(
        draw(st.lists(small, min_size=columns, max_size=columns)),
        np.array(entries).reshape(rows, columns).tolist(),
        row_lower,
        [room[i] if row == -INF else row + room[i] for i, row in enumerate(row_lower)],
        lower,
        [low + more for low, more in zip(lower, width, strict=True)],
        range(whole),
        offset=draw(small),
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=programs())
def test_random_programs_against_enumeration(solver: Solver, program: Program) -> None:
    best = enumerate_optimum(program)
    solution = solve(solver, program)
    if solver.name == "pyomo:cbc" and "ended with code -11" in solution.message:
        return  # CBC 2.10 crashes on some programs without an integer point: an honest failure
    if best == INF:
        assert solution.stop is Stop.INFEASIBLE, solution
    else:
        assert_optimum(solution, best)


@pytest.mark.parametrize("slack", [0.0, 1.0, 10.0])
def test_big_m_networks_against_enumeration(solver: Solver, slack: float) -> None:
    for seed in range(15):
        program, true = relu_network(seed, slack)
        assert_optimum(solve(solver, program), true)


# --- traps --------------------------------------------------------------------------------------------------


def assert_not_cut_off_and_caught(program: Program, solution: Solution, true: float) -> None:
    """Either the optimum, or an honest failure, or too low an optimum that rounding the integers exposes."""
    assert solution.lower <= true + 1e-6 * max(1.0, abs(true)), solution
    assert solution.stop in (Stop.OPTIMAL, Stop.ERROR), solution
    if solution.stop is Stop.OPTIMAL and solution.upper < true - 1e-6 * max(1.0, abs(true)):
        assert solution.x is not None
        rounded = np.where(program.integer, np.round(solution.x), solution.x)
        assert program.violation(rounded) > 1e-6


@pytest.mark.parametrize("big", [1e3, 1e5, 1e7, 1e9])
def test_trap_integrality_slack_that_pays(solver: Solver, big: float) -> None:
    """``y >= 1`` and ``y <= big p``: p = 1 / big passes for 0 once 1 / big is below the tolerance."""
    program = program_of([0, 1], [[1, -big]], [-INF], [0], [1, 0], [5, 1], [1])
    assert_not_cut_off_and_caught(program, solve(solver, program), 1.0)


@pytest.mark.parametrize("big", [1e3, 1e5, 1e7])
def test_trap_slack_added_over_many_switches(solver: Solver, big: float) -> None:
    """At most 2 of 30 switches on; with slack in each of them, more of ``y_i <= big p_i`` could flow."""
    count = 30
    builder = ProgramBuilder()
    y = builder.add_columns("y", np.zeros(count), np.full(count, 1.0))
    p = builder.add_binaries("p", count)
    builder.add_rows([(y, 1.0), (p, -big)], -INF, 0.0)
    builder.add_matrix_rows([(p, np.ones((1, count)))], -INF, 2.0, 1)
    program = builder.build().with_objective(y, -np.ones(count), 0.0)
    assert_not_cut_off_and_caught(program, solve(solver, program), -2.0)


@pytest.mark.parametrize("big", [1e3, 1e5, 1e7])
def test_trap_optimum_on_a_thin_edge(solver: Solver, big: float) -> None:
    """Only one point is feasible, and any rounding of a big-M away from it cuts it off.

    y = big p with y in [big, big]: p = 1; z = y - big = 0 exactly, and w >= 1 - 10 z.
    """
    program = program_of(
        [0, 0, 0, 1],
        [[1, -big, 0, 0], [1, 0, -1, 0], [0, 0, 10, 1]],
        [0, big, 1],
        [0, big, INF],
        [big, 0, 0, 0],
        [big, 1, 1, 1],
        [1],
    )
    assert_not_cut_off_and_caught(program, solve(solver, program), 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_trap_networks_with_hopeless_big_m(solver: Solver, seed: int) -> None:
    """Big-M from 1e5 to 1e9 in the last layer: an honest failure is right, an optimum cut off is not."""
    program, true = relu_network(seed, 300.0)
    assert_not_cut_off_and_caught(program, solve(solver, program), true)


def test_trap_activations_of_the_size_of_the_tolerance(solver: Solver) -> None:
    """A solver that infers a mask m from ``y = 1e-7 m`` divides its tolerance by 1e-7."""
    for seed in range(60):
        program, true = relu_network(seed, 0.0, faint=True)
        assert_optimum(solve(solver, program), true)


def test_trap_kappa_of_a_cubed_row(solver: Solver) -> None:
    """Coefficients over ten orders of magnitude in one chain of equalities, all exactly solvable."""
    scale = [1.0, 1e-3, 1e-5, 1e4]
    # x_{k+1} = s_k x_k with x_0 in {1, 2, 3}; minimise -x_4.
    builder = ProgramBuilder()
    x = builder.add_columns("x", np.full(5, 0.0), np.full(5, 1e4))
    whole = builder.add_columns("k", np.array([1.0]), np.array([3.0]), integer=True)
    builder.add_rows([(x[:1], 1.0), (whole, -1.0)], 0.0, 0.0)
    builder.add_rows([(x[1:], -1.0), (x[:-1], np.array(scale))], 0.0, 0.0)
    program = builder.build().with_objective(x[-1:], np.array([-1e4]), 0.0)
    assert_not_cut_off_and_caught(program, solve(solver, program), -3.0)


def test_entries_too_small_for_a_solver_do_not_cut_anything_off(solver: Solver) -> None:
    """Networks trained with weight decay hold weights of 1e-20; here 900 entries of 1e-10 make up 9e-4."""
    count = 900
    builder = ProgramBuilder()
    x = builder.add_columns("x", np.zeros(count), np.full(count, 1e4))
    y = builder.add_columns("y", np.zeros(1), np.full(1, 2.0))
    p = builder.add_binaries("p", 1)
    builder.add_matrix_rows([(x, np.full((1, count), 1e-10)), (y, np.ones((1, 1)))], 1.0, INF, 1)
    builder.add_rows([(y, 1.0), (p, -2.0)], -INF, 0.0)
    program = builder.build().with_objective(y, np.ones(1), 0.0)
    solution = solve(solver, program)
    assert solution.stop in (Stop.OPTIMAL, Stop.ERROR)
    assert solution.lower <= 0.9991 + 1e-6
    if solution.stop is Stop.OPTIMAL:
        assert solution.lower >= 0.9991 - 1e-6 - solver.tolerance


# --- when it stops ------------------------------------------------------------------------------------------


def test_time_limit_with_incumbent(solver: Solver) -> None:
    program, limits = knapsack(), Limits(seconds=1.0)
    solution = solve(solver, program, limits)
    assert solution.stop is Stop.TIMEOUT, solution
    assert 0.5 < solution.seconds < 3.0
    assert solution.x is not None
    assert -INF < solution.lower < solution.upper < 0.0
    assert solution.nodes > 0


def test_time_limit_without_incumbent(solver: Solver) -> None:
    solution = solve(solver, market_split(), Limits(seconds=1.0))
    assert solution.stop is Stop.TIMEOUT, solution
    assert solution.x is None
    assert solution.upper == INF
    assert solution.lower <= 0.0


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_no_time_at_all(solver: Solver, seconds: float) -> None:
    solution = solve(solver, knapsack(), Limits(seconds=seconds))
    assert solution.stop is Stop.TIMEOUT, solution
    assert solution.seconds < 2.0


def test_gap_is_absolute_and_honoured(solver: Solver) -> None:
    program = knapsack(items=25, rows=2, seed=3)
    exact = solve(solver, program)
    assert exact.stop is Stop.OPTIMAL
    wide = solve(solver, program, Limits(seconds=60.0, gap=50.0))
    assert wide.stop is Stop.OPTIMAL
    assert wide.lower <= exact.upper + 1e-6
    assert wide.upper >= exact.upper - 1e-6
    assert wide.nodes <= exact.nodes


def test_gap_is_not_relative_to_a_large_objective(solver: Solver) -> None:
    """With a relative gap of 1e-4, anything within 100 of the optimum 1e6 + k would pass for it."""
    program = replace(knapsack(items=18, rows=3, seed=4), offset=1e6)
    points = np.array(list(itertools.product((0.0, 1.0), repeat=18)))
    admissible = (points @ program.matrix.toarray().T <= program.row_upper).all(axis=1)
    best = float((points[admissible] @ program.objective).min()) + 1e6
    solution = solve(solver, program)
    assert solution.stop is Stop.OPTIMAL
    assert solution.upper == pytest.approx(best, abs=1e-3)
    assert solution.lower == pytest.approx(best, abs=1e-3)


def test_should_stop_interrupts_and_sees_progress(solver: Solver) -> None:
    needs(solver, "points when stopped")
    seen: list[Progress] = []
    threads: set[int] = set()

    def should_stop(progress: Progress) -> bool:
        seen.append(progress)
        threads.add(threading.get_ident())
        return progress.seconds > 0.6

    program, limits = knapsack(), Limits(seconds=30.0)
    solution = solver.solve(program, limits, should_stop=should_stop)
    assert_consistent(program, limits, solution)
    assert solution.stop is Stop.INTERRUPTED, solution
    assert solution.seconds < 3.0
    assert solution.x is not None
    assert solution.lower > -INF
    assert threads == {threading.get_ident()}
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(seen))
    assert all(p.lower <= p.upper + 1e-6 for p in seen)
    assert seen[-1].upper < INF
    assert seen[-1].lower > -INF


def test_should_stop_is_asked_in_a_linear_program_or_it_is_quick(solver: Solver) -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(300, 400))
    program = program_of(
        list(rng.normal(size=400)),
        dense.tolist(),
        [-INF] * 300,
        list(rng.uniform(1, 2, 300)),
        [-1] * 400,
        [1] * 400,
    )
    limits = Limits(seconds=60.0)
    begin = time.monotonic()
    solution = solver.solve(program, limits, should_stop=lambda _: True)
    assert_consistent(program, limits, solution)
    assert solution.stop in (Stop.INTERRUPTED, Stop.OPTIMAL)
    assert time.monotonic() - begin < 5.0


def test_an_exception_in_should_stop_stops_the_solver_and_comes_out(solver: Solver) -> None:
    def should_stop(_progress: Progress) -> bool:
        raise ZeroDivisionError("from the callback")

    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="from the callback"):
        solver.solve(knapsack(), Limits(seconds=30.0), should_stop=should_stop)
    assert time.monotonic() - begin < 3.0
    assert_optimum(solve(solver, program_of([1], [], [], [], [2], [3], [0])), 2.0)


#: What runs in the background of a shell starts with Ctrl-C ignored, which its children inherit.
INTERRUPTED_SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {folder!r})
import importlib.util
spec = importlib.util.spec_from_file_location("conformance", {file!r})
module = importlib.util.module_from_spec(spec)
sys.modules["conformance"] = module
spec.loader.exec_module(module)
backend = module.registry.load("solvers", {name!r})
program = module.knapsack()
backend.solve(program, module.Limits(seconds=0.2))
print("ready", flush=True)
begin = time.monotonic()
try:
    backend.solve(program, module.Limits(seconds=60.0))
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - begin < 5.0)
small = module.program_of([1], [], [], [], [2], [3], [0])
print(backend.solve(small, module.Limits()).stop)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one child alone")
def test_ctrl_c_comes_out_as_keyboard_interrupt_at_once(solver: Solver) -> None:
    file = Path(__file__).resolve()
    code = INTERRUPTED_SCRIPT.format(folder=str(file.parents[2]), file=str(file), name=solver.name)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "ready"
        time.sleep(0.7)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert out.splitlines() == ["interrupted True", "Stop.OPTIMAL"], err
    assert err == ""
    assert child.returncode == 0


def test_objective_stop(solver: Solver) -> None:
    needs(solver, "points when stopped")
    program = knapsack()
    target = 0.9 * solve(solver, program, Limits(seconds=1.0)).upper
    solution = solve(solver, program, Limits(seconds=30.0, objective_stop=target))
    assert solution.stop is Stop.TARGET, solution
    assert solution.x is not None
    assert program.value(solution.x) <= target + 1e-6
    assert solution.seconds < 10.0


def test_bound_stop(solver: Solver) -> None:
    program = knapsack()
    relaxed = solve(solver, replace(program, integer=np.zeros(program.columns, dtype=np.bool_)))
    bound = relaxed.lower - 5.0
    solution = solve(solver, program, Limits(seconds=30.0, bound_stop=bound))
    assert solution.stop is Stop.TARGET, solution
    assert solution.lower > bound
    assert solution.seconds < 10.0


def test_stops_of_decision_mode_never_change_an_answer(solver: Solver) -> None:
    for seed in range(10):
        program, true = relu_network(seed, 0.0)
        for offset in (-0.3, -1e-3, 1e-3, 0.3):
            shifted = replace(program, offset=-true + offset)
            solution = solve(solver, shifted, Limits(seconds=60.0, objective_stop=0.0, bound_stop=0.0))
            assert solution.stop in (Stop.OPTIMAL, Stop.TARGET)
            assert solution.lower <= offset + 1e-6
            assert solution.upper >= offset - 1e-6
            assert (solution.lower > 0.0) == (offset > 0.0)
            assert (solution.upper <= 0.0) == (offset < 0.0)


def test_stops_that_are_never_reached(solver: Solver) -> None:
    program = knapsack(items=14, rows=3, seed=1)
    exact = solve(solver, program)
    solution = solve(solver, program, Limits(seconds=60.0, objective_stop=-1e6, bound_stop=1e6))
    assert_optimum(solution, exact.upper)


def test_memory_limit(solver: Solver) -> None:
    limits = Limits(seconds=20.0, memory=2**20)
    solution = solver.solve(knapsack(), limits)
    if sys.platform == "linux":
        assert solution.stop is Stop.MEMORY, solution
        assert solution.seconds < 5.0
    assert_consistent(knapsack(), limits, solution)


# --- how it is asked ----------------------------------------------------------------------------------------


def test_start_is_used(solver: Solver) -> None:
    """A good point, and no time to find one: what comes back is at least as good."""
    needs(solver, "starts")
    program = knapsack(items=150, rows=8, seed=5)
    good = solve(solver, program, Limits(seconds=2.0))
    assert good.x is not None
    solution = solve(solver, program, Limits(seconds=1.0), start=np.round(good.x))
    assert solution.upper <= program.value(np.round(good.x)) + 1e-6


def test_optimal_start(solver: Solver) -> None:
    program = knapsack(items=14, rows=3, seed=1)
    exact = solve(solver, program)
    assert exact.x is not None
    assert_optimum(solve(solver, program, start=exact.x), exact.upper)
    assert_optimum(solve(solver, program, start=exact.x + 1e-9), exact.upper)


@pytest.mark.parametrize("case", ["ones", "fractions", "outside", "far outside", "infinite", "unknown"])
def test_start_that_cannot_be_is_harmless(solver: Solver, case: str) -> None:
    program = knapsack(items=14, rows=3, seed=1)
    exact = solve(solver, program)
    start = {
        "ones": np.ones(14),
        "fractions": np.full(14, 0.5),
        "outside": np.full(14, 7.0),
        "far outside": np.full(14, -1e30),
        "infinite": np.full(14, INF),
        "unknown": np.full(14, NAN),
    }[case]
    assert_optimum(solve(solver, program, start=start), exact.upper)


def test_partial_start(solver: Solver) -> None:
    program = knapsack(items=14, rows=3, seed=1)
    exact = solve(solver, program)
    assert exact.x is not None
    start = np.where(np.arange(14) < 7, np.round(exact.x), NAN)
    assert_optimum(solve(solver, program, start=start), exact.upper)
    wrong = np.where(np.arange(14) < 7, 1.0 - np.round(exact.x), NAN)
    assert_optimum(solve(solver, program, start=wrong), exact.upper)


def test_start_of_a_linear_and_of_an_infeasible_program(solver: Solver) -> None:
    program = program_of([1, 1], [[1, 1]], [1], [2], [0, 0], [1, 1])
    assert_optimum(solve(solver, program, start=np.array([1.0, 1.0])), 1.0)
    infeasible = program_of([1, 1], [[2, 2]], [3], [3], [0, 0], [5, 5], [0, 1])
    assert solve(solver, infeasible, start=np.array([1.0, 0.5])).stop is Stop.INFEASIBLE


def test_start_of_the_wrong_length_is_refused(solver: Solver) -> None:
    with pytest.raises(ValueError, match="the start has shape"):
        solver.solve(knapsack(items=14), Limits(), start=np.zeros(13))


def test_start_does_not_change_networks(solver: Solver) -> None:
    for seed in range(5):
        program, true = relu_network(seed, 1.0)
        first = solve(solver, program)
        assert_optimum(solve(solver, program, start=first.x), true)
        rng = np.random.default_rng(seed)
        assert_optimum(solve(solver, program, start=rng.normal(size=program.columns)), true)


def test_threads_can_change_from_one_solve_to_the_next(solver: Solver) -> None:
    program = knapsack(items=25, rows=2, seed=3)
    values = [solve(solver, program, Limits(seconds=60.0, threads=threads)).upper for threads in (1, 2, 1, 2)]
    assert values == pytest.approx([values[0]] * 4, abs=1e-6)


def test_two_solves_at_the_same_time(solver: Solver) -> None:
    cases = [relu_network(seed, 1.0) for seed in range(6)]
    found: dict[int, Solution] = {}

    def work(first: int) -> None:
        for i in range(first, len(cases), 2):
            found[i] = solver.solve(cases[i][0], Limits(seconds=60.0))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (_, true) in enumerate(cases):
        assert_optimum(found[i], true)


def test_same_seed_same_search(solver: Solver) -> None:
    program = knapsack(items=25, rows=2, seed=3)
    runs = [solve(solver, program, Limits(seconds=60.0, seed=7)) for _ in range(2)]
    assert runs[0].nodes == runs[1].nodes
    assert np.array_equal(runs[0].x, runs[1].x)  # type: ignore[arg-type]  # optimal, so there is a point
    other = solve(solver, program, Limits(seconds=60.0, seed=2**40 + 3))
    assert other.upper == pytest.approx(runs[0].upper, abs=1e-6)


def test_unknown_option_names_near_ones(solver: Solver) -> None:
    with pytest.raises(QueryError, match="needed: an option of") as caught:
        solver.solve(knapsack(items=14), Limits(), options={"presolv": "1"})
    assert "did you mean" in caught.value.fix
    assert "pres" in caught.value.fix.casefold()


def test_a_log_goes_to_its_file(solver: Solver, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program, log = knapsack(items=25, rows=2, seed=3), tmp_path / "solve.log"
    assert solve(solver, program, Limits(seconds=60.0, log=log)).stop is Stop.OPTIMAL
    assert len(log.read_text(encoding="utf-8", errors="replace").splitlines()) > 5
    assert capfd.readouterr() == ("", "")


def test_the_program_is_left_as_it_was(solver: Solver) -> None:
    program, _ = relu_network(3, 1.0)
    before = replace(
        program, lower=program.lower.copy(), upper=program.upper.copy(), matrix=program.matrix.copy()
    )
    solve(solver, program)
    assert np.array_equal(program.lower, before.lower)
    assert np.array_equal(program.upper, before.upper)
    assert np.array_equal(program.matrix.toarray(), before.matrix.toarray())


def test_nothing_is_printed(solver: Solver, capfd: pytest.CaptureFixture[str]) -> None:
    solve(solver, knapsack(items=14, rows=3, seed=1))
    solve(solver, program_of([1, 1], [[2, 2]], [3], [3], [0, 0], [5, 5], [0, 1]))
    solve(solver, program_of([1], [], [], [], [-INF], [0]))
    with pytest.raises(QueryError):
        solver.solve(knapsack(items=14), Limits(), options={"presolv": "1"})
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


# --- programs that a modelling layer empties ----------------------------------------------------------------


@pytest.mark.parametrize(("coefficient", "limit"), [(1e-30, 0.0), (1.0, INF)])
def test_rows_that_ask_nothing_leave_an_optimum(solver: Solver, coefficient: float, limit: float) -> None:
    """A negligible entry, or a row without limits, on columns that nothing else touches."""
    program = Program(
        objective=np.zeros(2),
        offset=1.5,
        lower=np.zeros(2),
        upper=np.array([0.0, 1.0]),
        integer=np.zeros(2, dtype=np.bool_),
        matrix=sparse.csr_array(np.array([[coefficient, 0.0]])),
        row_lower=np.array([-INF]),
        row_upper=np.array([limit]),
    )
    assert_optimum(solve(solver, program), 1.5)
