from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import highspy
import numpy as np
import pytest
from scipy import sparse

from milpver import registry
from milpver.errors import QueryError, SolverUnavailableError
from milpver.program import Program
from milpver.solver import Limits, Stop
from milpver.solvers import highs
from milpver.solvers._common import Watch, sound

INF = float("inf")
SOLVER = highs.SOLVER


def box_program(columns: int = 2, *, integer: bool = True, big: float = 1.0) -> Program:
    """min -sum x, sum x <= columns - 1/2, 0 <= x <= 1, the last bound being ``big``."""
    upper = np.ones(columns)
    upper[-1] = big
    return Program(
        objective=-np.ones(columns),
        offset=0.0,
        lower=np.zeros(columns),
        upper=upper,
        integer=np.full(columns, integer),
        matrix=sparse.csr_array(np.ones((1, columns))),
        row_lower=np.array([-INF]),
        row_upper=np.array([columns - 0.5]),
    )


def test_the_registry_finds_it() -> None:
    assert "highs" in registry.names("solvers")
    assert registry.load("solvers", "highs") is SOLVER
    assert SOLVER.availability().version == highspy._core._Highs().version()


def test_asking_for_availability_imports_no_solver() -> None:
    code = (
        "import sys; from milpver import registry\n"
        "for name in registry.names('solvers'):\n"
        "    for variant in registry.variants('solvers', name):\n"
        "        registry.load('solvers', variant).availability()\n"
        "assert not {'highspy', 'gurobipy', 'pyscipopt'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_broken_installation_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(SolverUnavailableError, match="pip install highspy"):
        SOLVER.solve(box_program(), Limits())


def test_passing_a_program_of_a_real_network_takes_less_than_20_ms() -> None:
    """A 784-column input, a dense first layer of 128 neurons, and 1000 columns in all."""
    rng = np.random.default_rng(0)
    dense = sparse.csr_array(rng.normal(size=(128, 784)))
    rest = sparse.random_array((1200, 216), density=0.02, rng=rng)
    matrix = sparse.csr_array(sparse.block_diag([dense, rest]))
    rows, columns = matrix.shape
    program = Program(
        objective=rng.normal(size=columns),
        offset=0.0,
        lower=-np.ones(columns),
        upper=np.ones(columns),
        integer=np.arange(columns) >= 900,
        matrix=matrix,
        row_lower=np.full(rows, -1.0),
        row_upper=np.ones(rows),
    )
    seconds = []
    for _ in range(5):
        solver = highs._new(highspy, {"output_flag": False})
        begin = time.perf_counter()
        assert highs._pass(solver, sound(program)) == highspy.HighsStatus.kOk
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.02
    taken = solver.getLp()
    assert (taken.num_col_, taken.num_row_) == (columns, rows)
    assert np.array_equal(np.array(taken.col_cost_), program.objective)


def test_everything_that_was_asked_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = highs._pass

    def spy(solver: object, program: Program) -> object:
        options = solver.getOptions()  # type: ignore[attr-defined]  # a highspy object
        seen.append({name: getattr(options, name) for name in dir(options) if not name.startswith("_")})
        return original(solver, program)

    monkeypatch.setattr(highs, "_pass", spy)
    limits = Limits(seconds=7.0, gap=0.25, threads=2, seed=5)
    SOLVER.solve(box_program(), limits, options={"mip_heuristic_effort": "0.5", "presolve": "off"})
    (options,) = seen
    assert 6.0 < options["time_limit"] <= 7.0
    assert (options["mip_abs_gap"], options["mip_rel_gap"]) == (0.25, 0.0)
    assert (options["threads"], options["random_seed"]) == (2, 5)
    assert options["mip_feasibility_tolerance"] == SOLVER.tolerance
    assert (options["mip_heuristic_effort"], options["presolve"]) == (0.5, "off")
    assert options["output_flag"] is False


@pytest.mark.parametrize("key", sorted(highs.RESERVED))
def test_options_that_the_contract_sets_are_refused(key: str) -> None:
    assert highspy._core._Highs().getOptionType(key)[0] == highspy.HighsStatus.kOk
    with pytest.raises(QueryError, match="does not set itself"):
        SOLVER.solve(box_program(), Limits(), options={key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mip_max_nodes", "many", "a whole number"),
        ("mip_heuristic_effort", "high", "a number"),
        ("mip_heuristic_effort", "7", "a value that HiGHS takes"),
        ("mip_detect_symmetry", "perhaps", "true or false"),
        ("presolve", "sometimes", "a value that HiGHS takes"),
        ("mip_maxnodes", "7", "did you mean mip_max_nodes"),
    ],
)
def test_bad_options(key: str, value: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        SOLVER.solve(box_program(), Limits(), options={key: value})


def test_a_log_goes_to_the_file_and_nowhere_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "highs.log"
    SOLVER.solve(box_program(), Limits(), options={"log_file": str(log)})
    assert "Optimal" in log.read_text(encoding="utf-8")
    assert capfd.readouterr() == ("", "")


def test_a_node_limit_is_no_proof() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 100, (4, 60)).astype(np.float64)
    program = Program(
        objective=-weights.sum(axis=0),
        offset=0.0,
        lower=np.zeros(60),
        upper=np.ones(60),
        integer=np.ones(60, dtype=np.bool_),
        matrix=sparse.csr_array(weights),
        row_lower=np.full(4, -INF),
        row_upper=np.floor(weights.sum(axis=1) / 2) + 0.5,
    )
    solution = SOLVER.solve(program, Limits(), options={"mip_max_nodes": "1"})
    assert solution.stop is Stop.TIMEOUT
    assert "Solution limit" in solution.message
    assert solution.lower < solution.upper - 1e-6


@pytest.mark.parametrize("big", [1e8, 1e12])
def test_numbers_that_leave_the_tolerance_no_room_are_an_error(big: float) -> None:
    solution = SOLVER.solve(box_program(big=big), Limits())
    assert solution.stop is Stop.ERROR
    assert "upper holds" in solution.message
    assert SOLVER.solve(box_program(big=9e7), Limits()).stop is Stop.OPTIMAL
    assert SOLVER.solve(box_program(big=INF), Limits()).stop is Stop.OPTIMAL
    assert SOLVER.solve(box_program(big=big, integer=False), Limits()).stop is Stop.OPTIMAL
    assert SOLVER.solve(box_program(big=1e16, integer=False), Limits()).stop is Stop.ERROR


class Fake:
    """A HiGHS instance that has run and says what it is told to say."""

    def __init__(self, status: object, *, point: bool = True) -> None:
        self.status = status
        self.info = highspy.HighsInfo()
        self.info.mip_node_count = 4
        self.info.mip_dual_bound = -2.0
        self.info.objective_function_value = -1.0
        self.info.primal_solution_status = int(highspy.kSolutionStatusFeasible) if point else 0

    def getModelStatus(self) -> object:  # noqa: N802 - highspy's name
        return self.status

    def getInfo(self) -> object:  # noqa: N802 - highspy's name
        return self.info

    def getSolution(self) -> object:  # noqa: N802 - highspy's name
        solution = highspy.HighsSolution()
        solution.col_value = [1.0, 0.0]
        return solution

    def modelStatusToString(self, status: Any) -> str:  # noqa: N802 - highspy's name
        return str(highspy._core._Highs().modelStatusToString(status))


EXPECTED = {
    "kNotset": Stop.ERROR,
    "kLoadError": Stop.ERROR,
    "kModelError": Stop.ERROR,
    "kPresolveError": Stop.ERROR,
    "kSolveError": Stop.ERROR,
    "kPostsolveError": Stop.ERROR,
    "kModelEmpty": Stop.ERROR,
    "kOptimal": Stop.OPTIMAL,
    "kInfeasible": Stop.INFEASIBLE,
    "kUnboundedOrInfeasible": None,
    "kUnbounded": Stop.UNBOUNDED,
    "kObjectiveBound": Stop.TIMEOUT,
    "kObjectiveTarget": Stop.TIMEOUT,
    "kTimeLimit": Stop.TIMEOUT,
    "kIterationLimit": Stop.TIMEOUT,
    "kUnknown": Stop.ERROR,
    "kSolutionLimit": Stop.TIMEOUT,
    "kInterrupt": Stop.INTERRUPTED,
    "kHighsInterrupt": Stop.ERROR,
    "kMemoryLimit": Stop.MEMORY,
}


@pytest.mark.parametrize("name", sorted(highspy.HighsModelStatus.__members__))
@pytest.mark.parametrize("mixed", [True, False])
def test_every_status_of_highs_has_a_meaning(name: str, mixed: bool) -> None:
    status = highspy.HighsModelStatus.__members__[name]
    outcome = highs._outcome(highspy, Fake(status), mixed, Watch(Limits()))
    expected = EXPECTED[name]
    assert (outcome.stop if outcome else None) is expected
    if outcome is None or expected is None:
        return
    if expected is Stop.ERROR:
        assert outcome.message.startswith("HiGHS: ")
    if expected is Stop.INFEASIBLE:
        assert (outcome.lower, outcome.x) == (INF, None)
    elif expected is Stop.OPTIMAL:
        assert (outcome.lower, outcome.upper) == (-2.0 if mixed else -1.0, -1.0)
    else:
        assert outcome.lower in (-2.0 if mixed else -INF, -INF)


def test_without_a_feasible_point_there_is_no_incumbent() -> None:
    fake = Fake(highspy.HighsModelStatus.kTimeLimit, point=False)
    outcome = highs._outcome(highspy, fake, mixed=True, watch=Watch(Limits()))
    assert outcome is not None
    assert (outcome.x, outcome.upper, outcome.lower) == (None, INF, -2.0)
