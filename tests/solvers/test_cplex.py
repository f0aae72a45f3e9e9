from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import cplex as backend
from milpver.solvers._common import TOLERANCE, Watch

cplex = pytest.importorskip("cplex", reason="the package cplex is not installed")
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


@pytest.mark.parametrize(("columns", "rows"), [(1001, 3), (30, 1001)])
def test_a_program_too_large_for_the_community_edition(columns: int, rows: int) -> None:
    with pytest.raises(SolverUnavailableError, match=f"{columns} columns and {rows} rows") as caught:
        SOLVER.solve(chain(columns, rows), Limits(seconds=30.0))
    assert "\n" not in str(caught.value)
    assert "--solver highs" in caught.value.fix


def test_a_missing_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cplex", None)
    with pytest.raises(SolverUnavailableError, match="pip install"):
        SOLVER.solve(chain(5, 4), Limits())


@pytest.mark.parametrize(("code", "licence"), [(1016, True), (32201, True), (1003, False)])
def test_licence_errors_are_one_line(code: int, licence: bool) -> None:
    error = cplex.exceptions.CplexSolverError("the licence\nis not right", None, code)
    found = backend._licence_error(error, chain(5, 4))
    assert (found is not None) == licence
    assert found is None or "\n" not in str(found)


def test_everything_that_was_asked_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = backend._build

    def spy(model: object, program: Program) -> None:
        known = dict(backend._parameters(model.parameters))  # type: ignore[attr-defined]  # a CPLEX object
        seen.update({name: known[name].get() for name in wanted})
        original(model, program)

    wanted = {
        "mip.tolerances.mipgap": 0.0,
        "mip.tolerances.absmipgap": 0.25,
        "threads": 2,
        "randomseed": 5,
        "simplex.tolerances.feasibility": TOLERANCE,
        "mip.tolerances.integrality": 1e-9,
        "preprocessing.aggregator": 0,
        "mip.strategy.probe": -1,
        "mip.limits.nodes": 1000,
    }
    monkeypatch.setattr(backend, "_build", spy)
    options = {"mip.strategy.probe": "-1", "MIP.limits.nodes": "1000"}
    found = SOLVER.solve(chain(5, 4), Limits(seconds=7.0, gap=0.25, threads=2, seed=5), options=options)
    assert found.upper == pytest.approx(2.0)
    assert seen == wanted


@pytest.mark.parametrize("key", sorted(backend.RESERVED))
def test_options_that_the_contract_sets_are_refused(key: str) -> None:
    with cplex.Cplex() as model:
        assert key in dict(backend._parameters(model.parameters))
    with pytest.raises(QueryError, match="does not set itself"):
        SOLVER.solve(chain(5, 4), Limits(), options={key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mip.limits.nodes", "many", "a whole number"),
        ("mip.strategy.backtrack", "x", "a number"),
        ("mip.strategy.probe", "17", "a value that CPLEX takes"),
        ("mip.limits.ndoes", "1", "did you mean mip.limits.nodes"),
        ("heuristicfrq", "1", "did you mean mip.strategy.heuristicfreq"),
    ],
)
def test_bad_options(key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SOLVER.solve(chain(5, 4), Limits(), options={key: value})


class Fake:
    """A solution that says what it is told to say."""

    def __init__(self, status: int) -> None:
        self.code = status
        self.status = cplex.Cplex().solution.status
        self.progress, self.MIP = self, self

    def get_status(self) -> int:
        return self.code

    def get_status_string(self) -> str:
        return "in words"

    def get_num_nodes_processed(self) -> int:
        return 7

    def is_primal_feasible(self) -> bool:
        return False

    def get_best_objective(self) -> float:
        return -1e75


@pytest.mark.parametrize(
    ("status", "stop"),
    [
        ("MIP_optimal", Stop.OPTIMAL),
        ("optimal_tolerance", Stop.OPTIMAL),
        ("MIP_infeasible", Stop.INFEASIBLE),
        ("MIP_unbounded", None),
        ("MIP_infeasible_or_unbounded", None),
        ("MIP_time_limit_feasible", Stop.TIMEOUT),
        ("node_limit_infeasible", Stop.TIMEOUT),
        ("mem_limit_feasible", Stop.MEMORY),
        ("MIP_abort_feasible", Stop.INTERRUPTED),
        ("MIP_optimal_infeasible", Stop.ERROR),
        ("fail_feasible", Stop.ERROR),
        ("relaxation_unbounded", Stop.ERROR),
        ("unknown", Stop.ERROR),
    ],
)
def test_every_status_has_a_meaning(status: str, stop: Stop | None) -> None:
    fake = Fake(getattr(cplex.Cplex().solution.status, status))
    outcome = backend._outcome(fake, True, Watch(Limits()))
    assert (outcome.stop if outcome else None) is stop
    if outcome is not None and stop is Stop.ERROR:
        assert outcome.message == "CPLEX: in words"
    if outcome is not None and stop is Stop.TIMEOUT:
        assert (outcome.lower, outcome.nodes, outcome.x) == (-np.inf, 7, None)
