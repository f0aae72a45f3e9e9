from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from milpver import registry
from milpver.errors import PluginError, QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import pyomo
from milpver.solvers._common import Job, Outcome, Watch, package_availability
from milpver.solvers._pyomo_processes import Cbc, Glpk, Seen
from milpver.solvers.pyomo import PyomoSolver

INF = float("inf")

PROGRAM = Program(
    objective=np.array([1.0, 2.0, 0.0]),
    offset=0.5,
    lower=np.array([0.0, -1.0, 0.2]),
    upper=np.array([3.0, 4.0, 5.0]),
    integer=np.array([True, False, True]),
    matrix=sparse.csr_array(np.array([[1.0, 1.0, 0.0]])),
    row_lower=np.array([1.5]),
    row_upper=np.array([INF]),
)


def backend(name: str) -> PyomoSolver:
    solver = registry.load("solvers", name)
    assert isinstance(solver, PyomoSolver)
    state = solver.availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    return solver


def test_names() -> None:
    assert registry.variants("solvers", "pyomo") == ("pyomo:cbc", "pyomo:glpk", "pyomo:highs", "pyomo:scip")
    with pytest.raises(PluginError, match="did you mean glpk"):
        registry.load("solvers", "pyomo:glkp")
    with pytest.raises(PluginError, match="without an argument"):
        registry.load("solvers", "pyomo")


@pytest.mark.parametrize("name", ["pyomo:cbc", "pyomo:glpk"])
def test_a_missing_program_is_unavailable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = registry.load("solvers", name)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    state = solver.availability()
    assert not state.available
    if package_availability("pyomo", "Pyomo", "").available:
        assert "is not on the PATH; fix: apt install" in state.reason
    with pytest.raises(SolverUnavailableError, match=f"solver {name}"):
        solver.solve(PROGRAM, Limits())


def test_pyomo_itself_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = package_availability("not_there", "Pyomo", "pip install pyomo")
    monkeypatch.setattr(pyomo, "package_availability", lambda *_: missing)
    with pytest.raises(SolverUnavailableError, match="fix: pip install pyomo"):
        registry.load("solvers", "pyomo:highs").solve(PROGRAM, Limits())


@pytest.mark.parametrize("name", registry.variants("solvers", "pyomo"))
def test_columns_that_stand_nowhere_are_within_their_bounds(name: str) -> None:
    found = backend(name).solve(PROGRAM, Limits(seconds=20.0))
    assert found.stop is Stop.OPTIMAL
    assert found.upper == pytest.approx(3.0 + -1.0 * 2.0 + 0.5)
    assert found.x is not None
    assert 1.0 <= found.x[2] <= 5.0
    assert found.x[2] == round(found.x[2])


@pytest.mark.parametrize("name", ["pyomo:cbc", "pyomo:glpk"])
def test_large_numbers_are_refused(name: str) -> None:
    program = replace(PROGRAM, matrix=sparse.csr_array(np.array([[1e7, 1.0, 0.0]])))
    found = backend(name).solve(program, Limits(seconds=20.0))
    assert found.stop is Stop.ERROR
    assert "use tighter bounds" in found.message
    relaxed = replace(program, integer=np.zeros(3, dtype=np.bool_))
    assert backend(name).solve(relaxed, Limits(seconds=20.0)).stop is Stop.OPTIMAL


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("pyomo:cbc", "seconds", "3", "--timeout"),
        ("pyomo:cbc", "preprocess", "on", "it gives wrong answers"),
        ("pyomo:cbc", "sec", "3", "--timeout"),
        ("pyomo:cbc", "solu", "x", "reads and writes by itself"),
        ("pyomo:cbc", "solution", "x", "reads and writes by itself"),
        ("pyomo:cbc", "strategi", "1", "did you mean strategy"),
        ("pyomo:cbc", "cuts", "off -solve", "a word or a number"),
        ("pyomo:glpk", "tmlim", "3", "--timeout"),
        ("pyomo:glpk", "mipgap", "3", "--gap"),
        ("pyomo:glpk", "gomori", "", "did you mean gomory"),
        ("pyomo:highs", "time_limit", "3", "--timeout"),
        ("pyomo:scip", "limits/time", "3", "--timeout"),
    ],
)
def test_options_that_are_refused(name: str, key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        backend(name).solve(PROGRAM, Limits(), options={key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "proof"),
    [
        ("pyomo:cbc", "strategy", "0", "strategy was changed from 1 to 0"),
        ("pyomo:glpk", "gomory", "", "--gomory"),
        ("pyomo:highs", "presolve", "off", ""),
        ("pyomo:scip", "limits/nodes", "100", ""),
    ],
)
def test_options_reach_the_solver(tmp_path: Path, name: str, key: str, value: str, proof: str) -> None:
    log = tmp_path / "solve.log"
    found = backend(name).solve(PROGRAM, Limits(seconds=20.0, log=log), options={key: value})
    assert found.stop is Stop.OPTIMAL
    assert proof in log.read_text(encoding="utf-8")


def test_lines_of_cbc() -> None:
    seen = Seen()
    read = Cbc().read
    read("Continuous objective value is -7009.58 - 0.00 seconds\n", seen)
    assert -7009.7 < seen.lower < -7009.58
    read("Cbc0012I Integer solution of -6945 found by DiveCoefficient after 0 iterations\n", seen)
    read("Cbc0010I After 1000 nodes, 520 on tree, -6970 best solution, best possible -7006.3 (0.9 s)\n", seen)
    assert (seen.nodes, seen.upper, seen.lower) == (1000, -6970.0, -7006.3)
    read("Cbc0010I After 0 nodes, 1 on tree, 1e+50 best solution, best possible -7007 (0.01 s)\n", seen)
    assert (seen.upper, seen.lower) == (-6970.0, -7006.3)
    read(
        "Cbc0005I Partial search - best objective -6975 (best possible -7000.5), "
        "took 291756 iterations and 101221 nodes (3.14 seconds)\n",
        seen,
    )
    assert (seen.nodes, seen.upper, seen.lower) == (101221, -6975.0, -7000.5)
    assert not seen.no_point
    read("No feasible solution found\n", seen)
    assert seen.no_point


def test_lines_of_glpk() -> None:
    seen = Seen()
    read = Glpk().read
    read("+    12: mip =     not found yet >=              -inf        (1; 0)\n", seen)
    assert (seen.upper, seen.lower) == (INF, -INF)
    read("+ 37288: mip =  -6.983000000e+03 >=  -6.995000000e+03   0.2% (9989; 5703)\n", seen)
    assert (seen.nodes, seen.upper, seen.lower) == (15692, -6983.0, -6995.0)
    read("+   109: mip =  -1.149000000e+03 >=     tree is empty   0.0% (0; 63)\n", seen)
    assert seen.lower == -6995.0
    assert not seen.no_optimum
    read("PROBLEM HAS NO PRIMAL FEASIBLE SOLUTION\n", seen)
    assert seen.no_optimum


def test_what_a_process_may_say_and_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, and files that Pyomo does not read, are errors."""
    solver = backend("pyomo:cbc")
    monkeypatch.setattr(Cbc, "_watched", lambda *_: (Seen(lower=0.0), -11))
    found = solver.solve(PROGRAM, Limits(seconds=20.0))
    assert (found.stop, found.lower, found.message) == (Stop.ERROR, -INF, "cbc ended with code -11")


def test_infeasible_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says infeasible, and then gives a point without an objective, is an error."""
    solver = backend("pyomo:cbc")
    answers = [None, Outcome(Stop.OPTIMAL, 0.0, 0.0, np.array([3.0, 0.0, 1.0])), Outcome(Stop.OPTIMAL)]
    monkeypatch.setattr(Cbc, "run", lambda *_: answers.pop(0))
    found = solver.solve(PROGRAM, Limits(seconds=20.0))
    assert found.stop is Stop.ERROR
    assert "no optimum, but a point and no ray" in found.message


def test_the_watch_is_asked_before_a_process_starts() -> None:
    watch = Watch(Limits(seconds=0.0))
    found = Cbc().run(Job(PROGRAM, None, Limits(seconds=0.0), {}, watch))
    assert found is not None
    assert found.stop is Stop.TIMEOUT
