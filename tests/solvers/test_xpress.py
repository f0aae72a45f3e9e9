from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import xpress as backend
from milpver.solvers._common import TOLERANCE, Watch

xpress = pytest.importorskip("xpress", reason="the package xpress is not installed")
SOLVER = backend.SOLVER


def chain(columns: int, rows: int) -> Program:
    """Minimise sum x, binaries, x_i + x_{i+1} >= 1."""
    at = np.repeat(np.arange(rows), 2)
    to = (np.arange(rows)[:, None] + np.arange(2)).ravel() % columns
    return Program(
        objective=np.ones(columns),
        offset=0.0,
        lower=np.zeros(columns),
        upper=np.ones(columns),
        integer=np.ones(columns, dtype=np.bool_),
        matrix=sparse.csr_array((np.ones(2 * rows), (at, to)), shape=(rows, columns)),
        row_lower=np.ones(rows),
        row_upper=np.full(rows, np.inf),
    )


@pytest.mark.parametrize(("columns", "rows"), [(4998, 3), (30, 4971)])
def test_a_program_too_large_for_the_community_licence(columns: int, rows: int) -> None:
    with pytest.raises(SolverUnavailableError, match=f"{columns} columns and {rows} rows") as caught:
        SOLVER.solve(chain(columns, rows), Limits(seconds=30.0))
    assert "\n" not in str(caught.value)
    assert "--solver highs" in caught.value.fix


def test_a_missing_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xpress", None)
    with pytest.raises(SolverUnavailableError, match="pip install"):
        SOLVER.solve(chain(5, 4), Limits())


@pytest.mark.parametrize(
    ("said", "licence"),
    [
        ("?120 Error: Problem has too many rows and columns. The maximum is 5000", True),
        ("?4 Error: No license\nfound", True),
        ("?29 Error: Input aborted", False),
    ],
)
def test_licence_errors_are_one_line(said: str, licence: bool) -> None:
    found = backend._licence_error(xpress.SolverError(said), chain(5, 4))
    assert (found is not None) == licence
    assert found is None or "\n" not in str(found)


def test_everything_that_was_asked_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = backend._outcome
    wanted = {
        "miprelstop": 0.0,
        "mipabsstop": 0.25,
        "mipaddcutoff": 0.0,
        "miprelcutoff": 0.0,
        "threads": 2,
        "randomseed": 5,
        "feastol": TOLERANCE,
        "miptol": TOLERANCE,
        "presolveops": 255,
        "cutstrategy": 1,
    }

    def spy(module: object, problem: object, *rest: object) -> object:
        for name in ("timelimit", *wanted):
            seen[name] = problem.getControl(name)  # type: ignore[attr-defined]  # an Xpress problem
        return original(module, problem, *rest)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(backend, "_outcome", spy)
    limits = Limits(seconds=7.0, gap=0.25, threads=2, seed=5)
    SOLVER.solve(chain(5, 4), limits, options={"XPRS_CUTSTRATEGY": "1"})
    assert 6.0 < seen.pop("timelimit") <= 7.0
    assert seen == wanted


@pytest.mark.parametrize("key", sorted(backend.RESERVED))
def test_options_that_the_contract_sets_are_refused(key: str) -> None:
    assert key in dir(backend._problem(xpress).controls)
    with pytest.raises(QueryError, match="does not set itself"):
        SOLVER.solve(chain(5, 4), Limits(), options={key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("maxnode", "many", "a whole number"),
        ("heursearcheffort", "x", "a number"),
        ("maxnoed", "1", "did you mean maxnode"),
    ],
)
def test_bad_options(key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SOLVER.solve(chain(5, 4), Limits(), options={key: value})


class Fake:
    """A problem that has run and says what it is told to say."""

    nodes, bestbound = 7, -1e40

    def __init__(self, solve: str, solution: str, why: str) -> None:
        self.attributes = self
        self.solvestatus = getattr(xpress.enums.SolveStatus, solve)
        self.solstatus = getattr(xpress.enums.SolStatus, solution)
        self.stopstatus = getattr(xpress.enums.StopType, why)
        self.lpstatus = xpress.enums.LPStatus.OPTIMAL


@pytest.mark.parametrize(
    ("solve", "solution", "why", "stop"),
    [
        ("COMPLETED", "INFEASIBLE", "NONE", Stop.INFEASIBLE),
        ("COMPLETED", "UNBOUNDED", "NONE", None),
        ("COMPLETED", "NOTFOUND", "NONE", Stop.ERROR),
        ("STOPPED", "NOTFOUND", "TIMELIMIT", Stop.TIMEOUT),
        ("STOPPED", "NOTFOUND", "NODELIMIT", Stop.TIMEOUT),
        ("STOPPED", "NOTFOUND", "USER", Stop.INTERRUPTED),
        ("STOPPED", "NOTFOUND", "CTRLC", Stop.INTERRUPTED),
        ("STOPPED", "NOTFOUND", "MEMORYERROR", Stop.MEMORY),
        ("STOPPED", "NOTFOUND", "LICENSELOST", Stop.ERROR),
        ("STOPPED", "NOTFOUND", "NUMERICALERROR", Stop.ERROR),
        ("FAILED", "NOTFOUND", "NONE", Stop.ERROR),
        ("UNSTARTED", "NOTFOUND", "NONE", Stop.ERROR),
    ],
)
def test_every_status_has_a_meaning(solve: str, solution: str, why: str, stop: Stop | None) -> None:
    outcome = backend._outcome(xpress, Fake(solve, solution, why), True, Watch(Limits()))
    assert (outcome.stop if outcome else None) is stop
    if outcome is not None and stop is Stop.ERROR:
        assert outcome.message.startswith(f"xpress: {solve.lower()}")
    if outcome is not None and stop is Stop.TIMEOUT:
        assert (outcome.lower, outcome.nodes, outcome.x) == (-np.inf, 7, None)


def test_a_bound_counts_from_the_first_relaxation_on() -> None:
    fake = Fake("STOPPED", "NOTFOUND", "USER")
    fake.bestbound = 0.0
    assert backend._bound(xpress, fake) == 0.0
    fake.lpstatus = xpress.enums.LPStatus.UNSTARTED
    assert backend._bound(xpress, fake) == -np.inf
