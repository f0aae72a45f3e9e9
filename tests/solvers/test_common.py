from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from milpver.errors import QueryError
from milpver.linear import Float
from milpver.program import Program
from milpver.solver import Limits, Progress, Solution, Stop
from milpver.solvers import _common as common
from milpver.solvers._common import Outcome, Watch

INF = float("inf")
NAN = float("nan")


def program_with(matrix: Float, *, integer: bool = True) -> Program:
    """min x_0 + x_1, matrix @ x >= 1, 0 <= x <= 2."""
    rows, columns = matrix.shape
    return Program(
        objective=np.ones(columns),
        offset=0.0,
        lower=np.zeros(columns),
        upper=np.full(columns, 2.0),
        integer=np.full(columns, integer),
        matrix=sparse.csr_array(matrix),
        row_lower=np.ones(rows),
        row_upper=np.full(rows, INF),
    )


PROGRAM = program_with(np.array([[1.0, 1.0]]))
BEST = np.array([1.0, 0.0])


def check(outcome: Outcome, limits: Limits | None = None, start: Float | None = None) -> Solution:
    return common.checked(PROGRAM, limits or Limits(), outcome, start, 0.5)


def test_an_honest_optimum_passes() -> None:
    solution = check(Outcome(Stop.OPTIMAL, 1.0, 1.0, BEST, 3))
    assert (solution.stop, solution.lower, solution.upper, solution.nodes) == (Stop.OPTIMAL, 1.0, 1.0, 3)
    assert solution.seconds == 0.5
    assert solution.message == ""


def test_a_dual_bound_above_by_rounding_is_brought_down() -> None:
    solution = check(Outcome(Stop.OPTIMAL, 1.0 + 1e-9, 1.0, BEST))
    assert solution.stop is Stop.OPTIMAL
    assert solution.lower == 1.0


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome(Stop.OPTIMAL, 0.0, 0.0, np.zeros(2)), "violates"),
        (Outcome(Stop.OPTIMAL, 1.0, 1.0, np.array([0.5, 0.5])), "violates"),
        (Outcome(Stop.OPTIMAL, 1.0, 1.0, np.array([NAN, 1.0])), "violates"),
        (Outcome(Stop.OPTIMAL, 1.0, 1.0, np.array([INF, 1.0])), "violates"),
        (Outcome(Stop.OPTIMAL, 1.0, 1.0, None), "without a point"),
        (Outcome(Stop.OPTIMAL, 0.9, 0.9, BEST), "objective is"),
        (Outcome(Stop.OPTIMAL, 1.0, NAN, BEST), "objective is"),
        (Outcome(Stop.OPTIMAL, NAN, 1.0, BEST), "dual bound nan"),
        (Outcome(Stop.OPTIMAL, 0.5, 1.0, BEST), "the gap is 0.5"),
        (Outcome(Stop.OPTIMAL, -INF, 1.0, BEST), "the gap is inf"),
        (Outcome(Stop.OPTIMAL, 1.1, 1.0, BEST), "above the incumbent"),
        (Outcome(Stop.TIMEOUT, 1.1, 1.0, BEST), "above the incumbent"),
        (Outcome(Stop.TIMEOUT, INF, INF, None), "dual bound inf"),
        (Outcome(Stop.TARGET, 0.0, 1.0, BEST), "does not reach"),
        (Outcome(Stop.ERROR, 1.0, 1.0, BEST, message="it failed"), "it failed"),
    ],
)
def test_what_cannot_be_so_is_an_error_without_a_bound(outcome: Outcome, message: str) -> None:
    solution = check(outcome)
    assert solution.stop is Stop.ERROR
    assert solution.lower == -INF
    assert message in solution.message
    assert not np.isnan(solution.upper) or outcome.x is not None


def test_a_false_incumbent_is_dropped_where_the_bound_may_still_be_right() -> None:
    solution = check(Outcome(Stop.TIMEOUT, 0.5, 0.0, np.zeros(2)))
    assert (solution.stop, solution.lower, solution.upper, solution.x) == (Stop.TIMEOUT, 0.5, INF, None)
    assert "violates" in solution.message


@pytest.mark.parametrize("stop", [Stop.INFEASIBLE, Stop.TIMEOUT])
def test_a_feasible_start_refutes_infeasible_and_too_high_a_bound(stop: Stop) -> None:
    outcome = Outcome(stop, INF if stop is Stop.INFEASIBLE else 1.5)
    solution = check(outcome, start=BEST)
    assert solution.stop is Stop.ERROR
    assert solution.lower == -INF
    assert "above the start's objective" in solution.message
    assert check(outcome).stop is stop


@pytest.mark.parametrize("start", [np.zeros(2), np.array([1.0, NAN]), np.array([0.5, 0.3])])
def test_a_start_that_is_no_point_refutes_nothing(start: Float) -> None:
    assert check(Outcome(Stop.INFEASIBLE), start=start).stop is Stop.INFEASIBLE


def test_targets() -> None:
    by_point = check(Outcome(Stop.TARGET, -5.0, 1.0, BEST), Limits(objective_stop=1.0))
    assert (by_point.stop, by_point.lower, by_point.upper) == (Stop.TARGET, -5.0, 1.0)
    by_bound = check(Outcome(Stop.TARGET, 0.5, INF, None), Limits(bound_stop=0.4))
    assert (by_bound.stop, by_bound.lower, by_bound.upper) == (Stop.TARGET, 0.5, INF)
    assert check(Outcome(Stop.TARGET, 0.4, INF, None), Limits(bound_stop=0.4)).stop is Stop.ERROR


def test_relative_violation_measures_against_what_is_added_up() -> None:
    program = program_with(np.array([[1e6, -1e6]]), integer=False)
    assert program.violation(np.array([1.0, 1.0])) == 1.0
    assert common.relative_violation(program, np.array([1.0, 1.0])) == pytest.approx(0.5e-6)
    assert common.relative_violation(PROGRAM, np.zeros(2)) == 1.0
    assert common.relative_violation(PROGRAM, np.array([1.0, 0.25])) == 0.25


@st.composite
def odd_sizes(draw: st.DrawFn) -> Program:
    """Programs with entries, bounds and columns of all sizes, fixed and unbounded columns."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = rng.integers(1, 5), rng.integers(1, 6)
    size = 10.0 ** rng.integers(-12, 3, columns)
    program = program_with(rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-11, 2, (rows, columns)))
    lower = -size * rng.integers(0, 2, columns)
    return replace(
        program,
        objective=rng.normal(size=columns),
        lower=np.where(rng.random(columns) < 0.1, -INF, lower),
        upper=np.where(rng.random(columns) < 0.2, lower, size),
        integer=(size >= 1) & (rng.random(columns) < 0.5),
        row_lower=np.where(rng.random(rows) < 0.5, -INF, -rng.random(rows)),
        row_upper=np.where(rng.random(rows) < 0.5, INF, rng.random(rows)),
    )


def points_of(program: Program, count: int) -> Float:
    """Random points within the column bounds, integers integral."""
    rng = np.random.default_rng(0)
    lower = np.where(np.isfinite(program.lower), program.lower, -10.0)
    points = lower + rng.random((count, program.columns)) * (np.maximum(program.upper, lower) - lower)
    rounded: Float = np.where(program.integer, np.round(points), points)
    return rounded


@given(odd_sizes())
def test_conditioning_is_a_relaxation_that_gives_way_by_no_more_than_it_drops(program: Program) -> None:
    easier = common.conditioned(program, 1e-9)
    after = easier.program
    assert set(np.frexp(easier.scale)[0]) == {0.5}
    assert (easier.scale[program.integer] == 1.0).all()
    assert (easier.scale <= 1.0).all()
    entries = np.abs(after.matrix.data)
    assert entries.min(initial=1.0) > 1e-9
    largest = np.abs(after.matrix.toarray()).max(axis=1)
    assert ((largest == 0) | (largest >= 0.5)).all()
    ratio = np.where(np.isfinite(program.row_upper) & (largest > 0), 1.0, 0.0)
    for x in points_of(program, 20):
        scaled = x / easier.scale
        assert after.value(scaled) == pytest.approx(program.value(x), rel=1e-9, abs=1e-12)
        activity, other = program.matrix @ x, after.matrix @ scaled
        feasible = (activity >= program.row_lower) & (activity <= program.row_upper)
        slack = 1e-9 * np.maximum(1.0, np.abs(other))
        assert (other >= after.row_lower - slack)[feasible].all()
        assert (other <= after.row_upper + slack)[feasible].all()
        # What the relaxed row takes, the original takes up to the range of what was dropped.
        size = np.where(
            np.isfinite(program.lower), np.maximum(np.abs(program.lower), np.abs(program.upper)), INF
        )
        room = program.columns * (common.NEGLIGIBLE + 2e-9 * np.maximum(1.0, size).max())
        taken = (ratio > 0) & (other <= after.row_upper)
        assert (activity <= program.row_upper + room)[taken].all()


def test_conditioning_scales_a_faint_neuron_up_and_folds_constants() -> None:
    # y <= 3e-7 m, y >= 0, and a fixed column of 5 in the second row.
    program = Program(
        objective=np.array([2.0, 1.0, 0.0]),
        offset=0.0,
        lower=np.array([0.0, 0.0, 5.0]),
        upper=np.array([3e-7, 1.0, 5.0]),
        integer=np.array([False, True, False]),
        matrix=sparse.csr_array(np.array([[1.0, -3e-7, 0.0], [1.0, 1.0, 2.0]])),
        row_lower=np.array([-INF, 0.0]),
        row_upper=np.array([0.0, 11.0]),
    )
    easier = common.conditioned(program, 1e-9)
    scale = 2.0**-21
    assert easier.scale.tolist() == [scale, 1.0, 1.0]
    assert easier.program.upper[0] == 3e-7 / scale
    assert easier.program.objective[0] == 2.0 * scale
    assert easier.program.matrix.toarray()[0].tolist() == pytest.approx([0.5, -3e-7 * 2**20, 0.0])
    assert easier.program.matrix.toarray()[1].tolist() == pytest.approx([scale, 1.0, 0.0])
    assert (easier.program.row_lower[1], easier.program.row_upper[1]) == (-10.0, 1.0)
    back = easier.back(Outcome(Stop.OPTIMAL, 0.0, 0.0, np.array([0.5, 1.0, 5.0])))
    assert back.x is not None
    assert back.x.tolist() == [0.5 * scale, 1.0, 5.0]
    start = easier.start(np.array([1e-7, 0.8, NAN]))
    assert start is not None
    assert start[:2].tolist() == [1e-7 / scale, 1.0]
    assert np.isnan(start[2])


def test_a_row_gives_way_entirely_where_a_dropped_column_is_unbounded() -> None:
    program = program_with(np.array([[1.0, 1e-12], [1.0, -1e-12]]))
    program.upper[1] = INF
    assert common.conditioned(program, 1e-9).program.row_lower.tolist() == [-INF, 1.0]


def work_until_told(watch: Watch, seconds: float = 20.0) -> Outcome:
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        if watch.report(1, -1.0, 1.0):
            return Outcome(watch.reason or Stop.ERROR)
        time.sleep(0.001)
    return Outcome(Stop.ERROR)


def test_watched_work_can_be_stopped_from_outside() -> None:
    limits = Limits()
    watch = Watch(limits)
    outcome = common.run_watched(lambda: work_until_told(watch), watch, limits, lambda p: p.nodes == 1)
    assert outcome.stop is Stop.INTERRUPTED
    assert watch.seconds < 5.0


def test_an_exception_of_the_work_comes_out() -> None:
    def work() -> Outcome:
        raise ZeroDivisionError("in the thread")

    with pytest.raises(ZeroDivisionError, match="in the thread"):
        common.run_watched(work, Watch(Limits()), Limits(), None)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_while_waiting_stops_the_work_first(kind: type[BaseException]) -> None:
    limits = Limits()
    watch = Watch(limits)
    ended = threading.Event()
    calls: list[int] = []

    def work() -> Outcome:
        outcome = work_until_told(watch)
        time.sleep(0.2)
        ended.set()
        return outcome

    def should_stop(_progress: Progress) -> bool:
        raise kind

    with pytest.raises(kind):
        common.run_watched(work, watch, limits, should_stop, lambda: calls.append(1))
    assert ended.is_set()
    assert calls


def test_the_first_reason_stands() -> None:
    watch = Watch(Limits(objective_stop=0.0))
    assert not watch.report(0, -1.0, 1.0)
    assert watch.report(0, -1.0, 0.0)
    watch.cancel(Stop.INTERRUPTED)
    assert watch.reason is Stop.TARGET


def test_watch_counts_down() -> None:
    assert Watch(Limits()).remaining == INF
    assert 0.0 < Watch(Limits(seconds=5.0)).remaining <= 5.0
    assert Watch(Limits(seconds=0.0)).remaining == 0.0


@pytest.mark.parametrize(
    ("text", "value"), [("TRUE", True), ("on", True), ("1", True), ("Off", False), ("no", False)]
)
def test_parse_bool(text: str, value: bool) -> None:
    assert common.parse_bool(text) is value


def test_a_value_of_the_wrong_type_is_named() -> None:
    with pytest.raises(QueryError, match=r"toy option a=x; needed: a whole number"):
        common.converted_option("toy", "a", "x", int)
    with pytest.raises(QueryError, match="needed: true or false"):
        common.converted_option("toy", "a", "maybe", common.parse_bool)
    assert common.converted_option("toy", "a", "0x", str) == "0x"


def test_a_missing_package_is_unavailable_with_the_way_to_mend_it() -> None:
    state = common.package_availability("not_there_at_all", "not-there", "pip install not-there")
    assert not state.available
    assert state.version == ""
    assert state.reason == "the package not-there is not installed; fix: pip install not-there"


WRONG_LENGTHS = {
    "lower": replace(PROGRAM, lower=np.zeros(3)),
    "upper": replace(PROGRAM, upper=np.zeros(1)),
    "integer": replace(PROGRAM, integer=np.zeros(3, dtype=np.bool_)),
    "row_lower": replace(PROGRAM, row_lower=np.zeros(3)),
    "row_upper": replace(PROGRAM, row_upper=np.zeros(0)),
    "objective": replace(PROGRAM, objective=np.zeros(5)),
}


@pytest.mark.parametrize("part", sorted(WRONG_LENGTHS))
def test_wrong_lengths_are_a_defect(part: str) -> None:
    with pytest.raises(ValueError, match=r"has shape|matrix is"):
        common.sound(WRONG_LENGTHS[part])
