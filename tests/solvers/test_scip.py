from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import scip
from milpver.solvers._common import TOLERANCE, Watch

pyscipopt = pytest.importorskip("pyscipopt", reason="PySCIPOpt is not installed")
INF = float("inf")
SOLVER = scip.SOLVER

PROGRAM = Program(
    objective=np.array([-1.0, -2.0]),
    offset=3.0,
    lower=np.zeros(2),
    upper=np.array([1.0, INF]),
    integer=np.array([True, False]),
    matrix=sparse.csr_array(np.array([[1.0, 1.0], [0.0, 1.0]])),
    row_lower=np.array([-INF, -INF]),
    row_upper=np.array([2.5, INF]),
)


def test_a_missing_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    with pytest.raises(SolverUnavailableError, match="pip install"):
        SOLVER.solve(PROGRAM, Limits())


def test_everything_that_was_asked_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = scip._outcome
    names = (
        "limits/time",
        "limits/gap",
        "limits/absgap",
        "lp/threads",
        "randomization/randomseedshift",
        "numerics/feastol",
        "misc/catchctrlc",
        "presolving/maxrounds",
        "separating/maxrounds",
        "separating/maxroundsroot",
        "branching/scorefac",
    )

    def spy(model: object, columns: list[object], watch: Watch) -> object:
        seen.update({name: model.getParam(name) for name in names})  # type: ignore[attr-defined]  # a model
        return original(model, columns, watch)

    monkeypatch.setattr(scip, "_outcome", spy)
    options = {"separating/maxrounds": "3", "branching/scorefac": "0.25"}
    solution = SOLVER.solve(PROGRAM, Limits(seconds=7.0, gap=0.25, threads=2, seed=5), options=options)
    assert solution.upper == pytest.approx(-2.0)
    assert 6.0 < seen["limits/time"] <= 7.0
    assert (seen["limits/gap"], seen["limits/absgap"], seen["lp/threads"]) == (0.0, 0.25, 2)
    assert (seen["randomization/randomseedshift"], seen["numerics/feastol"]) == (5, TOLERANCE)
    assert seen["misc/catchctrlc"] is False
    assert (seen["presolving/maxrounds"], seen["separating/maxrounds"]) == (0, 3)
    assert seen["separating/maxroundsroot"] == 0
    assert seen["branching/scorefac"] == 0.25


@pytest.mark.parametrize("key", sorted(scip.RESERVED))
def test_options_that_the_contract_sets_are_refused(key: str) -> None:
    assert key in pyscipopt.Model().getParams()
    with pytest.raises(QueryError, match="does not set itself"):
        SOLVER.solve(PROGRAM, Limits(), options={key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("limits/nodes", "many", "a whole number"),
        ("branching/scorefac", "x", "a number"),
        ("branching/scorefac", "-3", "a value that SCIP takes"),
        ("conflict/enable", "perhaps", "true or false"),
        ("limits/nodse", "1", "did you mean limits/nodes"),
    ],
)
def test_bad_options(key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SOLVER.solve(PROGRAM, Limits(), options={key: value})


class Fake:
    """A SCIP model that has run and says what it is told to say."""

    def __init__(self, status: str) -> None:
        self.status = status

    def getStatus(self) -> str:  # noqa: N802 - PySCIPOpt's name
        return self.status

    def getNTotalNodes(self) -> int:  # noqa: N802 - PySCIPOpt's name
        return 7

    def getNSols(self) -> int:  # noqa: N802 - PySCIPOpt's name
        return 0

    def getDualbound(self) -> float:  # noqa: N802 - PySCIPOpt's name
        return -1e20


@pytest.mark.parametrize(
    ("status", "stop"),
    [
        ("optimal", Stop.OPTIMAL),
        ("gaplimit", Stop.OPTIMAL),
        ("infeasible", Stop.INFEASIBLE),
        ("unbounded", None),
        ("inforunbd", None),
        ("timelimit", Stop.TIMEOUT),
        ("nodelimit", Stop.TIMEOUT),
        ("memlimit", Stop.MEMORY),
        ("userinterrupt", Stop.INTERRUPTED),
        ("terminate", Stop.ERROR),
        ("unknown", Stop.ERROR),
        ("primallimit", Stop.ERROR),
        ("duallimit", Stop.ERROR),
        ("something new", Stop.ERROR),
    ],
)
def test_every_status_of_scip_has_a_meaning(status: str, stop: Stop | None) -> None:
    outcome = scip._outcome(Fake(status), [], Watch(Limits()))
    assert (outcome.stop if outcome else None) is stop
    if outcome is not None and stop is Stop.ERROR:
        assert outcome.message == f"SCIP: {status}"
    if outcome is not None and stop is Stop.TIMEOUT:
        assert (outcome.lower, outcome.nodes, outcome.x) == (-INF, 7, None)
