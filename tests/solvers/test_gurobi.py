from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import gurobi
from milpver.solvers._common import TOLERANCE

gurobipy = pytest.importorskip("gurobipy", reason="gurobipy is not installed")
INF = float("inf")
SOLVER = gurobi.SOLVER


def chain(columns: int, rows: int) -> Program:
    """min sum x, x_j + x_{j+1} >= 1 for the first rows, x binary."""
    at = np.arange(rows)
    entries = (np.ones(2 * rows), (np.tile(at, 2), np.concatenate([at, at + 1]) % columns))
    return Program(
        objective=np.ones(columns),
        offset=0.0,
        lower=np.zeros(columns),
        upper=np.ones(columns),
        integer=np.ones(columns, dtype=np.bool_),
        matrix=sparse.csr_array(entries, shape=(rows, columns)),
        row_lower=np.ones(rows),
        row_upper=np.full(rows, INF),
    )


@pytest.mark.parametrize(("columns", "rows"), [(2500, 10), (10, 2500)])
def test_a_program_over_the_licence_is_one_clear_line(columns: int, rows: int) -> None:
    try:
        SOLVER.solve(chain(columns, rows), Limits(seconds=20.0))
    except SolverUnavailableError as error:
        message = str(error)
    else:
        pytest.skip("this machine has a full licence")
    assert f"{columns} columns and {rows} rows" in message
    assert "\n" not in message
    assert "--solver highs" in message


def squares(columns: int) -> Program:
    return chain(columns, columns - 1).with_squares(np.arange(columns), np.ones(columns))


def test_a_program_with_squares_just_within_the_licence_is_solved() -> None:
    solution = SOLVER.solve(squares(200), Limits(seconds=30.0))
    assert solution.stop is Stop.OPTIMAL
    assert solution.upper == pytest.approx(200.0)


def test_squares_need_a_licence_sooner() -> None:
    try:
        SOLVER.solve(squares(201), Limits(seconds=20.0))
    except SolverUnavailableError as error:
        message = str(error)
    else:
        pytest.skip("this machine has a full licence")
    assert "200 columns with squares" in message
    assert "--solver auto" in message


def test_a_program_just_within_the_licence_is_solved() -> None:
    solution = SOLVER.solve(chain(2000, 1999), Limits(seconds=30.0))
    assert solution.stop is Stop.OPTIMAL
    assert solution.upper == pytest.approx(1000.0)


def test_rows_with_two_sides_do_not_count_twice() -> None:
    program = chain(900, 900)
    ranged = Program(
        program.objective,
        0.0,
        program.lower,
        program.upper,
        program.integer,
        program.matrix,
        program.row_lower,
        np.full(900, 1.5),
    )
    solution = SOLVER.solve(ranged, Limits(seconds=30.0))
    assert solution.stop is Stop.OPTIMAL
    assert solution.x is not None
    assert solution.x.shape == (900,)
    assert ranged.violation(solution.x) <= 1e-6
    assert solution.upper == pytest.approx(450.0)


def test_a_missing_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gurobipy", None)
    with pytest.raises(SolverUnavailableError, match="pip install"):
        SOLVER.solve(chain(5, 4), Limits())


@pytest.mark.parametrize("number", sorted(gurobi.LICENCE_ERRORS))
def test_licence_errors_are_one_line(number: int) -> None:
    error = gurobipy.GurobiError(number, "the licence\nis not right")
    found = gurobi._licence_error(error, chain(5, 4))
    assert isinstance(found, SolverUnavailableError)
    assert "\n" not in str(found)
    assert gurobi._licence_error(gurobipy.GurobiError(10003, "invalid argument"), chain(5, 4)) is None


def test_an_error_that_is_not_about_the_licence_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> Mapping[str, object]:
        raise gurobipy.GurobiError(10003, "invalid argument")

    monkeypatch.setattr(gurobi, "_settings", fail)
    with pytest.raises(gurobipy.GurobiError, match="invalid argument"):
        SOLVER.solve(chain(5, 4), Limits())


def test_everything_that_was_asked_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    original = gurobi._outcome

    def spy(module: object, model: object, *rest: object) -> object:
        for name in (
            "TimeLimit",
            "MIPGap",
            "MIPGapAbs",
            "Threads",
            "Seed",
            "FeasibilityTol",
            "IntFeasTol",
            "MIPFocus",
        ):
            seen[name] = getattr(model.Params, name)  # type: ignore[attr-defined]  # a gurobipy model
        return original(module, model, *rest)  # type: ignore[arg-type]  # passed on as they come

    monkeypatch.setattr(gurobi, "_outcome", spy)
    SOLVER.solve(chain(5, 4), Limits(seconds=7.0, gap=0.25, threads=2, seed=5), options={"mipfocus": "2"})
    assert 6.0 < seen.pop("TimeLimit") <= 7.0
    assert seen == {
        "MIPGap": 0.0,
        "MIPGapAbs": 0.25,
        "Threads": 2,
        "Seed": 5,
        "FeasibilityTol": TOLERANCE,
        "IntFeasTol": 1e-9,
        "MIPFocus": 2,
    }


@pytest.mark.parametrize("key", sorted(gurobi.RESERVED))
def test_options_that_the_contract_sets_are_refused(key: str) -> None:
    assert key in {name.casefold() for name in dir(gurobipy.GRB.Param)}
    with pytest.raises(QueryError, match="does not set itself"):
        SOLVER.solve(chain(5, 4), Limits(), options={key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NodeLimit", "many", "a number"),
        ("MIPFocus", "x", "a whole number"),
        ("MIPFocus", "17", "a value that Gurobi takes"),
        ("MIPFocsu", "1", "did you mean MIPFocus"),
    ],
)
def test_bad_options(key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SOLVER.solve(chain(5, 4), Limits(), options={key: value})


def test_a_log_goes_to_the_file_and_nowhere_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "gurobi.log"
    SOLVER.solve(chain(5, 4), Limits(), options={"LogFile": str(log)})
    assert "Best objective" in log.read_text(encoding="utf-8")
    assert capfd.readouterr() == ("", "")
