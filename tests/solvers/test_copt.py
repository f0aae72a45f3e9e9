from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import copt as backend
from milpver.solvers._common import TOLERANCE, Watch

coptpy = pytest.importorskip("coptpy", reason="coptpy is not installed")
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


@pytest.mark.parametrize(("columns", "rows"), [(2001, 3), (30, 2001)])
def test_a_program_too_large_without_a_licence(
    columns: int, rows: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SolverUnavailableError, match=f"{columns} columns and {rows} rows") as caught:
        SOLVER.solve(chain(columns, rows), Limits(seconds=30.0))
    assert "\n" not in str(caught.value)
    assert "--solver highs" in caught.value.fix
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coptpy", None)
    with pytest.raises(SolverUnavailableError, match="pip install"):
        SOLVER.solve(chain(5, 4), Limits())


def test_muting_gives_standard_output_back(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), backend._muted():
        raise ZeroDivisionError
    os.write(1, b"heard")
    assert capfd.readouterr().out == "heard"


def test_everything_that_was_asked_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = backend._outcome
    wanted = {
        "RelGap": 0.0,
        "AbsGap": 0.25,
        "Threads": 2,
        "FeasTol": TOLERANCE,
        "IntTol": 1e-9,
        "Presolve": 0,
        "CutLevel": 1,
    }

    def spy(codes: object, model: object, *rest: object) -> object:
        for name in ("TimeLimit", *wanted):
            seen[name] = model.getParam(name)  # type: ignore[attr-defined]  # a COPT model
        return original(codes, model, *rest)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(backend, "_outcome", spy)
    SOLVER.solve(chain(5, 4), Limits(seconds=7.0, gap=0.25, threads=2), options={"cutlevel": "1"})
    assert 6.0 < seen.pop("TimeLimit") <= 7.0
    assert seen == wanted


@pytest.mark.parametrize("key", sorted(backend.RESERVED))
def test_options_that_the_contract_sets_are_refused(key: str) -> None:
    assert key in {name.casefold() for name in dir(coptpy.COPT.Param)}
    with pytest.raises(QueryError, match="does not set itself"):
        SOLVER.solve(chain(5, 4), Limits(), options={key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NodeLimit", "many", "a whole number"),
        ("PDLPTol", "x", "a number"),
        ("CutLevel", "17", "a value from -1 to"),
        ("CutLevle", "1", "did you mean CutLevel"),
    ],
)
def test_bad_options(key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SOLVER.solve(chain(5, 4), Limits(), options={key: value})


class Fake:
    """A model that has run and says what it is told to say."""

    NodeCnt, HasMipSol, BestBnd = 7, 0, -1e30

    def __init__(self, status: int) -> None:
        self.Status = status


@pytest.mark.parametrize(
    ("status", "stop"),
    [
        ("OPTIMAL", Stop.OPTIMAL),
        ("INFEASIBLE", Stop.INFEASIBLE),
        ("UNBOUNDED", None),
        ("INF_OR_UNB", None),
        ("TIMEOUT", Stop.TIMEOUT),
        ("NODELIMIT", Stop.TIMEOUT),
        ("INTERRUPTED", Stop.INTERRUPTED),
        ("NUMERICAL", Stop.ERROR),
        ("IMPRECISE", Stop.ERROR),
        ("UNFINISHED", Stop.ERROR),
        ("UNSTARTED", Stop.ERROR),
    ],
)
def test_every_status_has_a_meaning(status: str, stop: Stop | None) -> None:
    fake = Fake(getattr(coptpy.COPT, status))
    outcome = backend._outcome(coptpy.COPT, fake, True, Watch(Limits()))
    assert (outcome.stop if outcome else None) is stop
    if outcome is not None and stop is Stop.ERROR:
        assert outcome.message == f"COPT: {status.lower()}"
    if outcome is not None and stop is Stop.TIMEOUT:
        assert (outcome.lower, outcome.nodes, outcome.x) == (-np.inf, 7, None)
