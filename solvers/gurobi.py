"""Gurobi through gurobipy's matrix API; an extra (``pip install milpver[gurobi]``).

The pip package carries a licence for programs of up to 2000 columns and 2000 rows, within which many pruning
queries stay. An environment lives for one solve: it may hold a licence token, and it is not
thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.linear import Float
from milpver.program import Program
from milpver.solver import Availability, Limits, Progress, Solution, Stop
from milpver.solvers._common import (
    TOLERANCE,
    Job,
    Outcome,
    Traits,
    Watch,
    converted_option,
    imported,
    package_availability,
    reserved_option,
    solved,
    unknown_option,
)

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["SOLVER", "Gurobi"]

#: IntFeasTol and OptimalityTol; FeasibilityTol is ``TOLERANCE``.
FINE_TOLERANCE = 1e-9
#: Gurobi ignores entries smaller than this.
SMALLEST_ENTRY = 1e-13
#: Gurobi takes numbers of this size for infinite.
INFINITE = 1e20
TRAITS = Traits("Gurobi", INFINITE, SMALLEST_ENTRY, takes_ctrl_c=True, squares=True)
#: What the licence in the pip package allows, columns and rows each; columns where there are squares.
FREE_SIZE, FREE_SQUARES = 2000, 200

#: Error numbers of Gurobi that are about the licence, not about the program.
NO_LICENCE, SIZE_LIMIT = 10009, 10010
LICENCE_ERRORS = frozenset(
    {NO_LICENCE, SIZE_LIMIT, 10022, 10024, 10025, 10026, 10027, 10028, 10029, 10030, 10032}
)

#: Parameters that the contract sets itself (in lower case: Gurobi ignores case), and where to say the same.
RESERVED = {
    "timelimit": "give the time limit as --timeout",
    "mipgap": "give the (absolute) gap as --gap",
    "mipgapabs": "give the gap as --gap",
    "threads": "give the number of threads as --threads",
    "seed": "give the seed as --seed",
    "outputflag": "give LogFile=FILE for a log",
    "logtoconsole": "give LogFile=FILE for a log",
    "bestobjstop": "ask for a decision (--decide) in place of it",
    "bestbdstop": "ask for a decision (--decide) in place of it",
    "cutoff": "leave it: what it cuts off would count as infeasible",
    "feasibilitytol": "leave it: results state the tolerance that they rest on",
    "intfeastol": "leave it: results state the tolerance that they rest on",
    "optimalitytol": "leave it: results state the tolerance that they rest on",
}


class Gurobi:
    """The Gurobi backend; it holds no state."""

    name = "gurobi"
    tolerance = TOLERANCE
    squares = True

    def availability(self) -> Availability:
        """Whether gurobipy is installed; takes no licence, so whether that is valid shows when solving."""
        return package_availability(
            "gurobipy",
            "gurobipy",
            "pip install gurobipy",
            limits=f"{FREE_SIZE} columns and {FREE_SIZE} rows ({FREE_SQUARES} columns for L2) "
            "with the licence in the pip package",
        )

    def solve(
        self,
        program: Program,
        limits: Limits,
        *,
        start: Float | None = None,
        options: Mapping[str, str] | None = None,
        should_stop: Callable[[Progress], bool] | None = None,
    ) -> Solution:
        """See ``Solver.solve``; options are the parameters of Gurobi's reference manual.

        Raises:
            SolverUnavailableError: gurobipy is not installed, or its licence is missing or too small.
            QueryError: an unknown parameter, a value that Gurobi does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        gurobipy = _gurobipy()
        try:
            with gurobipy.Env(empty=True) as environment:
                # Before the start, which would print the licence otherwise.
                environment.setParam("OutputFlag", 0)
                environment.start()
                settings = _settings(gurobipy, environment, limits, options or {})

                def run(job: Job) -> Outcome:
                    with gurobipy.Model(env=environment) as model:
                        job.stoppers.append(model.terminate)
                        try:
                            return _minimise(gurobipy, model, settings, job)
                        finally:
                            job.stoppers.clear()

                return solved(
                    TRAITS, program, limits, run, start=start, options=options, should_stop=should_stop
                )
        except gurobipy.GurobiError as error:
            raise _licence_error(error, program) or error from None


def _gurobipy() -> ModuleType:
    return imported("gurobi", "gurobipy", "gurobipy")


def _licence_error(error: Any, program: Program) -> SolverUnavailableError | None:
    """The one line for an error that is about the licence, or None."""
    if error.errno not in LICENCE_ERRORS:
        return None
    if error.errno == SIZE_LIMIT:
        squares = program.squares is not None
        end = f"{FREE_SQUARES} columns with squares" if squares else f"{FREE_SIZE} of each"
        return SolverUnavailableError(
            f"solver gurobi: a program of {program.columns} columns and {program.rows} rows",
            needed=f"a licence for that size (the one in the pip package ends at {end})",
            fix="install a full licence (https://www.gurobi.com/downloads), or choose --solver "
            + ("auto" if squares else "highs"),
        )
    return SolverUnavailableError(
        f"solver gurobi: {error}", needed="a valid licence", fix="renew it, or choose --solver highs"
    )


def _settings(
    gurobipy: ModuleType, environment: Any, limits: Limits, options: Mapping[str, str]
) -> dict[str, Any]:
    """All parameters to set, the user's checked against Gurobi's own list, types and ranges."""
    settings: dict[str, Any] = {
        "LogToConsole": 0,
        "OutputFlag": int(limits.log is not None or any(key.casefold() == "logfile" for key in options)),
        "MIPGap": 0.0,
        "MIPGapAbs": limits.gap,
        "Threads": limits.threads,
        "Seed": limits.seed % 2_000_000_000,
        "FeasibilityTol": TOLERANCE,
        "IntFeasTol": FINE_TOLERANCE,
        "OptimalityTol": FINE_TOLERANCE,
    }
    if limits.objective_stop is not None:
        settings["BestObjStop"] = limits.objective_stop
    if limits.bound_stop is not None:
        # Gurobi stops at a bound that is >= this; asked for is > bound_stop.
        settings["BestBdStop"] = float(np.nextafter(limits.bound_stop, np.inf))
    if limits.log is not None:
        settings["LogFile"] = str(limits.log)
    if not options:
        return settings
    known = {name.casefold(): name for name in dir(gurobipy.GRB.Param) if not name.startswith("_")}
    with gurobipy.Model(env=environment) as model:
        model.setParam("OutputFlag", 0)
        for key, text in options.items():
            if key.casefold() in RESERVED:
                raise reserved_option("gurobi", key, RESERVED[key.casefold()])
            if key.casefold() not in known:
                raise unknown_option("gurobi", key, known.values())
            name = known[key.casefold()]
            kind = model.getParamInfo(name)[1]
            settings[name] = converted_option("gurobi", key, text, kind)
            if name == "LogFile":
                continue
            try:
                model.setParam(name, settings[name])
            except gurobipy.GurobiError as error:
                raise QueryError(
                    f"gurobi option {key}={text}: {error}",
                    needed="a value that Gurobi takes",
                    fix=f"look {name} up in the manual of Gurobi",
                ) from error
    return settings


def _minimise(gurobipy: ModuleType, model: Any, settings: Mapping[str, Any], job: Job) -> Outcome:
    """Build, run, and resolve what Gurobi leaves open: "infeasible or unbounded", a ray without a point."""
    program, watch = job.program, job.watch
    for name, value in settings.items():
        model.setParam(name, value)
    columns = _build(gurobipy, model, program)
    mixed = bool(program.integer.any())
    if job.start is not None and mixed:
        columns.Start = np.where(np.isnan(job.start), gurobipy.GRB.UNDEFINED, job.start)

    def callback(_model: Any, where: int) -> None:
        codes = gurobipy.GRB.Callback
        if where == codes.MIP:
            lower, upper = model.cbGet(codes.MIP_OBJBND), model.cbGet(codes.MIP_OBJBST)
            if watch.report(int(model.cbGet(codes.MIP_NODCNT)), _finite(lower), _finite(upper)):
                model.terminate()
        elif watch.reason is not None:
            model.terminate()

    codes = gurobipy.GRB.Status

    def run() -> int:
        model.setParam(
            "TimeLimit", watch.remaining if np.isfinite(watch.remaining) else gurobipy.GRB.INFINITY
        )
        model.optimize(callback)
        return int(model.Status)

    status = run()
    if status == codes.USER_OBJ_LIMIT and not watch.report(0, _lower(model, mixed), _upper(model)):
        # It stopped within its tolerances of a target that is not reached: go on, the callback watches.
        model.setParam("BestObjStop", -np.inf)
        model.setParam("BestBdStop", np.inf)
        status = run()
    if status == codes.INF_OR_UNBD:
        model.setParam("DualReductions", 0)
        status = run()
    if status == codes.UNBOUNDED:
        # That says a ray, not a point (Gurobi's manual on status codes).
        columns.Obj = np.zeros(program.columns)
        status = run()
        if status == codes.OPTIMAL:
            return Outcome(Stop.UNBOUNDED)
    return _outcome(gurobipy, model, status, columns, mixed, watch)


def _build(gurobipy: ModuleType, model: Any, program: Program) -> Any:
    """Hand the program over in whole arrays; returns its columns.

    A row with two finite sides gets a slack column, as Gurobi's own ranges do: the licence counts rows.
    """
    infinity = gurobipy.GRB.INFINITY
    columns = model.addMVar(
        program.columns,
        lb=np.maximum(program.lower, -infinity),
        ub=np.minimum(program.upper, infinity),
        obj=program.objective,
        vtype=np.where(program.integer, "I", "C"),
    )
    if program.squares is not None:
        squared = np.flatnonzero(program.squares)
        weights = sparse.diags_array(program.squares[squared]).tocsr()
        model.setMObjective(
            weights, program.objective, program.offset, columns[squared], columns[squared], columns
        )
    model.ObjCon = program.offset
    low, high = np.isfinite(program.row_lower), np.isfinite(program.row_upper)
    ranged = np.flatnonzero(low & high & (program.row_lower < program.row_upper))
    sense = np.where(program.row_lower == program.row_upper, "=", np.where(high, "<", ">"))
    right = np.where(high, program.row_upper, program.row_lower)
    if len(ranged):
        # row + slack = row_upper, 0 <= slack <= row_upper - row_lower
        width = (program.row_upper - program.row_lower)[ranged]
        slack = model.addMVar(len(ranged), lb=0.0, ub=width)
        sense[ranged] = "="
        ones = (np.ones(len(ranged)), (ranged, np.arange(len(ranged))))
        shape = (program.rows, len(ranged))
        both = gurobipy.concatenate([columns, slack])
        matrix = sparse.hstack([program.matrix, sparse.csr_array(ones, shape=shape)], format="csr")
    else:
        both, matrix = columns, program.matrix
    bounded = np.flatnonzero(low | high)
    if len(bounded):
        kept = matrix if len(bounded) == program.rows else matrix[bounded]
        model.addMConstr(kept, both, sense[bounded], right[bounded])
    model.update()
    return columns


def _finite(value: float) -> float:
    """Gurobi's 1e100 and the like as an infinity."""
    return float(np.copysign(np.inf, value)) if abs(value) >= INFINITE else float(value)


def _upper(model: Any) -> float:
    return float(model.ObjVal) if model.SolCount else np.inf


def _lower(model: Any, mixed: bool) -> float:
    """The dual bound of a mixed-integer program, or what an optimal linear one is worth; -inf otherwise."""
    if mixed:
        return _finite(model.ObjBound)
    return float(model.ObjVal) if model.Status == 2 else -np.inf


def _outcome(
    gurobipy: ModuleType, model: Any, status: int, columns: Any, mixed: bool, watch: Watch
) -> Outcome:
    """Every status of Gurobi, mapped; one that is not listed is an error."""
    codes = gurobipy.GRB.Status
    stops = {
        codes.OPTIMAL: Stop.OPTIMAL,
        codes.INFEASIBLE: Stop.INFEASIBLE,
        codes.TIME_LIMIT: Stop.TIMEOUT,
        codes.ITERATION_LIMIT: Stop.TIMEOUT,
        codes.NODE_LIMIT: Stop.TIMEOUT,
        codes.SOLUTION_LIMIT: Stop.TIMEOUT,
        codes.WORK_LIMIT: Stop.TIMEOUT,
        codes.MEM_LIMIT: Stop.MEMORY,
        codes.INTERRUPTED: watch.reason or Stop.INTERRUPTED,
        codes.USER_OBJ_LIMIT: Stop.TARGET,
    }
    stop = stops.get(status, Stop.ERROR)
    names = {value: name for name, value in vars(codes).items() if isinstance(value, int)}
    told = stop is not Stop.ERROR and (stop is not Stop.TIMEOUT or status == codes.TIME_LIMIT)
    message = "" if told else f"Gurobi: {names.get(status, status)}"
    nodes = int(model.NodeCount) if mixed else 0
    if stop is Stop.INFEASIBLE:
        return Outcome(stop, np.inf, np.inf, None, nodes)
    x = np.array(columns.X, dtype=np.float64) if model.SolCount else None
    return Outcome(stop, _lower(model, mixed), _upper(model), x, nodes, message)


SOLVER = Gurobi()
