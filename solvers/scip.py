"""SCIP through PySCIPOpt; an extra (``pip install milpver[scip]``).

PySCIPOpt has no matrix interface that is one: rows are built as dictionaries of terms, one Python step a row
(9 ms for 1200 rows with 5,000 entries, 38 ms with 100,000; writing and reading MPS took three times that).
SCIP searches with one thread; ``Limits.threads`` is for its LP solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from milpver.errors import QueryError
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
    parse_bool,
    reserved_option,
    solved,
    unknown_option,
)

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["SOLVER", "Scip"]

#: SCIP takes numbers of this size for infinite.
INFINITE = 1e20
#: SCIP takes entries of this size for zero (numerics/epsilon).
SMALLEST_ENTRY = 1e-9
TRAITS = Traits("SCIP", INFINITE, SMALLEST_ENTRY, squares=True)

#: Parameters that the contract sets itself, and where to say the same.
RESERVED = {
    "limits/time": "give the time limit as --timeout",
    "limits/softtime": "give the time limit as --timeout",
    "limits/gap": "give the (absolute) gap as --gap",
    "limits/absgap": "give the gap as --gap",
    "limits/primal": "ask for a decision (--decide) in place of it",
    "limits/dual": "ask for a decision (--decide) in place of it",
    "lp/threads": "give the number of threads as --threads",
    "randomization/randomseedshift": "give the seed as --seed",
    "misc/catchctrlc": "leave it: Ctrl-C belongs to Python",
    "display/verblevel": "leave it: milpver prints by itself",
    "numerics/feastol": "leave it: results state the tolerance that they rest on",
    "numerics/dualfeastol": "leave it: results state the tolerance that they rest on",
    "numerics/checkfeastolfac": "leave it: results state the tolerance that they rest on",
    "numerics/lpfeastolfactor": "leave it: results state the tolerance that they rest on",
    "numerics/epsilon": "leave it: results state the tolerance that they rest on",
    "numerics/sumepsilon": "leave it: results state the tolerance that they rest on",
    "presolving/maxrounds": "leave it: presolving gives wrong optima",
    "presolving/donotaggr": "leave it: it makes SCIP hang",
    "presolving/donotmultaggr": "leave it: it gives wrong optima",
    "numerics/infinity": "leave it: it would change the program",
    "numerics/hugeval": "leave it: it would change the program",
}


class Scip:
    """The SCIP backend; it holds no state."""

    name = "scip"
    tolerance = TOLERANCE
    squares = True

    def availability(self) -> Availability:
        """Whether PySCIPOpt, which brings SCIP along, is installed; the version is that of PySCIPOpt."""
        return package_availability("pyscipopt", "PySCIPOpt", "pip install pyscipopt")

    def solve(
        self,
        program: Program,
        limits: Limits,
        *,
        start: Float | None = None,
        options: Mapping[str, str] | None = None,
        should_stop: Callable[[Progress], bool] | None = None,
    ) -> Solution:
        """See ``Solver.solve``; options are the parameters of https://scipopt.org/doc/html/PARAMETERS.php.

        Raises:
            SolverUnavailableError: PySCIPOpt is not installed.
            QueryError: an unknown parameter, a value that SCIP does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        pyscipopt = _pyscipopt()
        settings = _settings(pyscipopt, limits, options or {})
        return solved(
            TRAITS,
            program,
            limits,
            lambda job: _minimise(pyscipopt, settings, job),
            start=start,
            options=options,
            should_stop=should_stop,
        )


def _pyscipopt() -> ModuleType:
    return imported("scip", "pyscipopt", "PySCIPOpt")


def _settings(pyscipopt: ModuleType, limits: Limits, options: Mapping[str, str]) -> dict[str, Any]:
    """All parameters to set, the user's checked against SCIP's own list, types and ranges."""
    settings: dict[str, Any] = {
        "limits/gap": 0.0,
        "limits/absgap": limits.gap,
        "lp/threads": min(limits.threads, 64),
        "randomization/randomseedshift": limits.seed % 2**31,
        "misc/catchctrlc": False,
        "numerics/feastol": TOLERANCE,
        "numerics/dualfeastol": TOLERANCE,
        # Of 1,500 random networks with faint neurons (1e-5 to 1e-11), SCIP 10 got 29 wrong as it stands,
        # none without presolving; conditioned, 4 of 500 with it, none without. Aggregation is at fault, but
        # without that alone SCIP hangs on small programs, or says that min x + y, x + y >= 1, binary, is 2.
        "presolving/maxrounds": 0,
        # Cuts cost most of the time at the root and close little of a big-M gap: programs of 784-128-64-32-10
        # networks took 6 to 20 times the processor time with them. They also cut optima off: 9 of 4,285 in
        # random networks with faint neurons or big-M up to 1e8, none of them without.
        "separating/maxrounds": 0,
        "separating/maxroundsroot": 0,
    }
    if not options:
        return settings
    model = _model(pyscipopt)
    known = model.getParams()
    kinds: dict[type, Callable[[str], object]] = {bool: parse_bool, int: int, float: float, str: str}
    for key, text in options.items():
        if key in RESERVED:
            raise reserved_option("scip", key, RESERVED[key])
        if key not in known:
            raise unknown_option("scip", key, known)
        kind = kinds[type(known[key])]
        settings[key] = converted_option("scip", key, text, kind)
        try:
            model.setParam(key, settings[key])
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise QueryError(
                f"scip option {key}={text}: {error}",
                needed="a value that SCIP takes",
                fix=f"look {key} up at https://scipopt.org/doc/html/PARAMETERS.php",
            ) from error
    return settings


def _model(pyscipopt: ModuleType) -> Any:
    model = pyscipopt.Model()
    model.hideOutput()
    return model


def _minimise(pyscipopt: ModuleType, settings: Mapping[str, Any], job: Job) -> Outcome:
    """Solve, and resolve what SCIP leaves open: "infeasible or unbounded", a ray without a point."""
    outcome = _run(pyscipopt, settings, job)
    if outcome is not None:
        return outcome
    outcome = _run(pyscipopt, settings, job.feasibility())
    if outcome is None:
        return Outcome(Stop.ERROR, message="SCIP: infeasible or unbounded, it does not say which")
    if outcome.stop is not Stop.OPTIMAL:
        return outcome
    # A point, so what is left is whether there is a ray of the relaxation (Meyer 1974, rational data).
    return Outcome(Stop.UNBOUNDED, nodes=outcome.nodes)


def _run(pyscipopt: ModuleType, settings: Mapping[str, Any], job: Job) -> Outcome | None:
    """One run of SCIP; None where it says "unbounded" or "infeasible or unbounded"."""
    model = _model(pyscipopt)
    try:
        columns = _build(model, job.program)
        return _search(pyscipopt, model, columns, settings, job)
    finally:
        model.free()


def _search(
    pyscipopt: ModuleType, model: Any, columns: list[Any], settings: Mapping[str, Any], job: Job
) -> Outcome | None:
    """Run a model that holds the program, under all settings; ``columns``: its variables in order."""
    model.setParams({**settings, "limits/time": min(job.watch.remaining, INFINITE)})
    if job.limits.log is not None:
        model.setLogfile(str(job.limits.log))
    if job.start is not None:
        _pass_start(model, columns, job.start)
    model.includeEventhdlr(_handler(pyscipopt, job.watch), "milpver", "asks whether to stop")
    job.stoppers.append(model.interruptSolve)
    try:
        if job.watch.reason is None:
            model.optimizeNogil()
    finally:
        job.stoppers.clear()
    return _outcome(model, columns, job.watch)


def _build(model: Any, program: Program) -> list[Any]:
    """Hand the program over, one Python step a column and a row; returns SCIP's columns."""
    from pyscipopt.scip import Expr, ExprCons, Term  # noqa: PLC0415 - an extra

    kinds = np.where(program.integer, "I", "C").tolist()
    lower, upper = (np.clip(part, -INFINITE, INFINITE).tolist() for part in (program.lower, program.upper))
    objective = program.objective.tolist()
    columns = [
        model.addVar("", vtype=kind, lb=low, ub=high, obj=cost)
        for kind, low, high, cost in zip(kinds, lower, upper, objective, strict=True)
    ]
    model.addObjoffset(program.offset)
    terms = np.empty(len(columns), dtype=object)
    terms[:] = [Term(column) for column in columns]
    matrix = program.matrix
    keys, values, first = terms[matrix.indices].tolist(), matrix.data.tolist(), matrix.indptr.tolist()
    row_lower, row_upper = (
        np.clip(part, -INFINITE, INFINITE).tolist() for part in (program.row_lower, program.row_upper)
    )
    if program.squares is not None:
        # SCIP's objective is linear: squares go below a column of their own.
        squared = np.flatnonzero(program.squares).tolist()
        sums = dict(
            zip([Term(columns[j], columns[j]) for j in squared], program.squares[squared], strict=True)
        )
        above = model.addVar("", lb=0.0, ub=None, obj=1.0)
        model.addCons(ExprCons(Expr({**sums, Term(above): -1.0}), -INFINITE, 0.0))
    bounded = np.isfinite(program.row_lower) | np.isfinite(program.row_upper)
    bounded &= np.diff(matrix.indptr) > 0  # ``trivial`` has seen to rows without entries
    for i in np.flatnonzero(bounded).tolist():
        row = dict(zip(keys[first[i] : first[i + 1]], values[first[i] : first[i + 1]], strict=True))
        model.addCons(ExprCons(Expr(row), row_lower[i], row_upper[i]))
    return columns


def _pass_start(model: Any, columns: list[Any], start: Float) -> None:
    """Hand a start over; SCIP completes a partial one and rejects an infeasible one, which is harmless."""
    known = ~np.isnan(start)
    complete = known.all() and model.getNVars() == len(columns)  # Pyomo adds a column for the objective
    solution = model.createOrigSol() if complete else model.createPartialSol()
    for j in np.flatnonzero(known).tolist():
        model.setSolVal(solution, columns[j], float(start[j]))
    model.addSol(solution)


def _handler(pyscipopt: ModuleType, watch: Watch) -> Any:
    """An event handler that reports after every node, LP and new incumbent."""
    events = pyscipopt.SCIP_EVENTTYPE
    wanted = (events.NODESOLVED, events.BESTSOLFOUND, events.LPSOLVED)

    class Handler(pyscipopt.Eventhdlr):  # type: ignore[misc, name-defined]  # imported lazily
        def eventinit(self) -> None:
            for event in wanted:
                self.model.catchEvent(event, self)

        def eventexit(self) -> None:
            for event in wanted:
                self.model.dropEvent(event, self)

        def eventexec(self, _event: object) -> None:
            model = self.model
            lower, upper = _finite(model.getDualbound()), _finite(model.getPrimalbound())
            if watch.report(int(model.getNTotalNodes()), lower, upper):
                model.interruptSolve()

    return Handler()


def _finite(value: float) -> float:
    return float(np.copysign(np.inf, value)) if abs(value) >= INFINITE else float(value)


def _outcome(model: Any, columns: list[Any], watch: Watch) -> Outcome | None:
    """Every status of SCIP, mapped; one that is not listed is an error."""
    status = str(model.getStatus())
    if status in {"unbounded", "inforunbd"}:
        return None
    stops = {
        "optimal": Stop.OPTIMAL,
        "gaplimit": Stop.OPTIMAL,
        "infeasible": Stop.INFEASIBLE,
        "timelimit": Stop.TIMEOUT,
        "nodelimit": Stop.TIMEOUT,
        "totalnodelimit": Stop.TIMEOUT,
        "stallnodelimit": Stop.TIMEOUT,
        "sollimit": Stop.TIMEOUT,
        "bestsollimit": Stop.TIMEOUT,
        "restartlimit": Stop.TIMEOUT,
        "memlimit": Stop.MEMORY,
        "userinterrupt": watch.reason or Stop.INTERRUPTED,
    }
    stop = stops.get(status, Stop.ERROR)
    if status == "unknown" and watch.reason is not None:
        return Outcome(watch.reason)
    told = stop is not Stop.ERROR and (stop is not Stop.TIMEOUT or status == "timelimit")
    message = "" if told else f"SCIP: {status}"
    nodes = int(model.getNTotalNodes())
    if stop is Stop.INFEASIBLE:
        return Outcome(stop, np.inf, np.inf, None, nodes)
    x, upper = None, np.inf
    if model.getNSols() > 0:
        best = model.getBestSol()
        x = np.array([model.getSolVal(best, column) for column in columns], dtype=np.float64)
        upper = float(model.getSolObjVal(best))
    return Outcome(stop, _finite(model.getDualbound()), upper, x, nodes, message)


SOLVER = Scip()
