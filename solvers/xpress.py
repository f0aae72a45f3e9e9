"""FICO Xpress through the package xpress, arrays all the way; an extra (``pip install milpver[xpress]``).

The pip package carries a community licence for programs of up to 5000 rows and columns together; a full one
is found through the variable XPAUTH_PATH. The licence is taken with the process's first problem, and kept.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

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
    settled,
    solved,
    unknown_option,
)

__all__ = ["SOLVER", "Xpress"]

#: Optimality tolerance; those of feasibility and integrality are ``TOLERANCE``.
FINE_TOLERANCE = 1e-9
#: Xpress takes numbers of 1e20 for infinite, 1e40 for "none yet", and entries of 1e-9 for zero (MATRIXTOL).
INFINITE, SMALLEST_ENTRY = 1e20, 1e-9
TRAITS = Traits("Xpress", INFINITE, SMALLEST_ENTRY, takes_ctrl_c=True)
#: What the licence in the pip package allows, rows and columns together.
FREE_SIZE = 5000

#: The list of warnings to leave out is one for all threads.
_FILTERS = threading.Lock()

_TOLERANCES = "leave it: results state the tolerance that they rest on"
_CUTOFF = "leave it: what it cuts off would count as infeasible"
#: Controls that the contract sets itself (in lower case: Xpress ignores case), and where to say the same.
RESERVED = {
    **dict.fromkeys(("timelimit", "maxtime", "soltimelimit"), "give the time limit as --timeout"),
    "miprelstop": "give the (absolute) gap as --gap",
    "mipabsstop": "give the gap as --gap",
    "threads": "give the number of threads as --threads",
    "randomseed": "give the seed as --seed",
    "outputlog": "ask for a log with --solver-log",
    **dict.fromkeys(("mipabscutoff", "mipaddcutoff", "miprelcutoff"), _CUTOFF),
    **dict.fromkeys(("feastol", "miptol", "optimalitytol"), _TOLERANCES),
    **dict.fromkeys(("feastoltarget", "miptoltarget", "optimalitytoltarget"), _TOLERANCES),
    **dict.fromkeys(("presolve", "presolveops"), "leave it: other presolving gives wrong optima"),
    "matrixtol": "leave it: it would change the program",
}


class Xpress:
    """The Xpress backend; it holds no state."""

    name = "xpress"
    tolerance = TOLERANCE

    def availability(self) -> Availability:
        """Whether the package xpress is installed; takes no licence, so that shows when solving."""
        return package_availability(
            "xpress",
            "xpress",
            "pip install xpress",
            limits=f"{FREE_SIZE} rows and columns together with the licence in the pip package",
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
        """See ``Solver.solve``; options are the controls of Xpress's reference manual.

        Raises:
            SolverUnavailableError: the package is not installed, or its licence is missing or too small.
            QueryError: an unknown control, a value that Xpress does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        xpress = _xpress()
        try:
            settings = _settings(xpress, limits, options or {})
            return solved(
                TRAITS,
                program,
                limits,
                lambda job: settled("Xpress", lambda part: _run(xpress, settings, part), job),
                start=start,
                options=options,
                should_stop=should_stop,
            )
        except (xpress.SolverError, xpress.ModelError, xpress.InterfaceError) as error:
            raise _licence_error(error, program) or error from None


def _xpress() -> ModuleType:
    return imported("xpress", "xpress", "xpress")


def _licence_error(error: Exception, program: Program) -> SolverUnavailableError | None:
    """The one line for an error that is about the licence, or None; Xpress has text for it, no code."""
    said = " ".join(str(error).split())
    if "too many rows and columns" in said:
        return SolverUnavailableError(
            f"solver xpress: a program of {program.columns} columns and {program.rows} rows",
            needed=f"a licence for that size (the one in the pip package ends at {FREE_SIZE} together)",
            fix="name the file of a full licence in XPAUTH_PATH, or choose --solver highs",
        )
    if "licens" not in said.casefold() and "licenc" not in said.casefold():
        return None
    return SolverUnavailableError(
        f"solver xpress: {said}", needed="a valid licence", fix="renew it, or choose --solver highs"
    )


def _problem(xpress: Any) -> Any:
    """An empty problem that prints nothing, and does not warn of its licence either."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", xpress.LicenseWarning)
        problem = xpress.problem()
    problem.setOutputEnabled(False)
    return problem


def _settings(xpress: Any, limits: Limits, options: Mapping[str, str]) -> dict[str, Any]:
    """All controls to set, the user's checked against Xpress's own list and types."""
    settings: dict[str, Any] = {
        "outputlog": int(limits.log is not None),
        "miprelstop": 0.0,
        "mipabsstop": limits.gap,
        # By default a node has to promise 1e-5 and 1e-4 times the incumbent more, which is not exact.
        "mipaddcutoff": 0.0,
        "miprelcutoff": 0.0,
        "threads": limits.threads,
        "randomseed": limits.seed % 2**31,
        "feastol": TOLERANCE,
        "miptol": TOLERANCE,  # less than that Xpress does not take
        "optimalitytol": FINE_TOLERANCE,
        # All but the elimination of variables. Of 9,000 random networks with faint neurons or big-M to 1e8,
        # Xpress 9.9 got 2 wrong by more than its tolerances with it, 3 without any presolving, none so.
        "presolveops": 255,
    }
    if not options:
        return settings
    problem = _problem(xpress)
    known = [name for name in dir(problem.controls) if not name.startswith("_")]
    kinds = xpress.enums.ParameterType
    convert: dict[Any, Callable[[str], object]] = {
        kinds.INT: int,
        kinds.INT64: int,
        kinds.DOUBLE: float,
        kinds.STRING: str,
    }
    for key, text in options.items():
        name = key.casefold().removeprefix("xprs_")
        if name in RESERVED:
            raise reserved_option("xpress", key, RESERVED[name])
        if name not in known:
            raise unknown_option("xpress", key, known)
        settings[name] = converted_option("xpress", key, text, convert[problem.getControlInfo(name)[1]])
        try:
            problem.setControl(name, settings[name])
        except (xpress.SolverError, xpress.ModelError, xpress.InterfaceError) as error:
            raise QueryError(
                f"xpress option {key}={text}: {' '.join(str(error).split())}",
                needed="a value that Xpress takes",
                fix=f"look {name} up in the manual of Xpress",
            ) from error
    return settings


def _run(xpress: Any, settings: Mapping[str, Any], job: Job) -> Outcome | None:
    """One run of Xpress; None where it says "unbounded"."""
    mixed, watch = bool(job.program.integer.any()), job.watch
    if watch.remaining <= 0:
        return Outcome(Stop.TIMEOUT)
    problem = _problem(xpress)
    if job.limits.log is not None:
        problem.setLogFile(str(job.limits.log))
    problem.setControl({**settings, "timelimit": min(watch.remaining, INFINITE)})
    _build(problem, job.program)
    if job.start is not None and mixed:
        known = np.flatnonzero(~np.isnan(job.start))
        problem.addMipSol(job.start[known], known)

    def report(part: Any, _data: object) -> None:
        found = part.attributes
        stop = watch.reason is not None
        if mixed:
            stop = watch.report(int(found.nodes), _bound(xpress, found), _finite(found.mipobjval))
        if stop:
            part.interrupt()

    problem.addCheckTimeCallback(report, None)
    job.stoppers.append(problem.interrupt)
    try:
        if watch.reason is None:
            problem.optimize()
    finally:
        job.stoppers.clear()
    return _outcome(xpress, problem, mixed, watch)


def _build(problem: Any, program: Program) -> None:
    """Hand the program over in whole arrays; rows without limits stay behind."""
    bounded = np.flatnonzero(np.isfinite(program.row_lower) | np.isfinite(program.row_upper))
    low, high = program.row_lower[bounded], program.row_upper[bounded]
    matrix = program.matrix[bounded].tocsc()
    kinds = np.where(np.isfinite(high), "L", "G")
    kinds[low == high] = "E"
    ranged = np.isfinite(low) & np.isfinite(high) & (low < high)
    kinds[ranged] = "R"  # rhs - range <= row <= rhs
    width = np.zeros(len(bounded))
    width[ranged] = (high - low)[ranged]
    whole = np.flatnonzero(program.integer)
    problem.loadMIP(
        rowtype=kinds.tolist(),
        rhs=np.where(np.isfinite(high), high, low),
        rng=width,
        objcoef=program.objective,
        start=matrix.indptr,
        rowind=matrix.indices,
        rowcoef=matrix.data,
        lb=np.maximum(program.lower, -INFINITE),
        ub=np.minimum(program.upper, INFINITE),
        coltype=["I"] * len(whole),
        entind=whole,
    )
    problem.chgObj([-1], [-program.offset])  # the constant stands on the other side


def _finite(value: float) -> float:
    """Xpress's 1e20 and 1e40 as an infinity."""
    return float(np.copysign(np.inf, value)) if abs(value) >= INFINITE else float(value)


def _bound(xpress: Any, attributes: Any) -> float:
    """The dual bound so far; before the first LP the attribute holds 0, which is none."""
    begun = attributes.lpstatus != xpress.enums.LPStatus.UNSTARTED
    return _finite(attributes.bestbound) if begun else -np.inf


def _outcome(xpress: Any, problem: Any, mixed: bool, watch: Watch) -> Outcome | None:
    """Every status of Xpress, mapped; one that is not listed is an error."""
    found, enums = problem.attributes, xpress.enums
    solve, solution, why = (
        enums.SolveStatus(found.solvestatus),
        enums.SolStatus(found.solstatus),
        found.stopstatus,
    )
    stop, told = Stop.ERROR, False
    if solve is enums.SolveStatus.UNSTARTED and watch.reason is not None:
        return Outcome(watch.reason)
    if solve is enums.SolveStatus.COMPLETED:
        if solution is enums.SolStatus.UNBOUNDED:
            return None
        stop = {enums.SolStatus.OPTIMAL: Stop.OPTIMAL, enums.SolStatus.INFEASIBLE: Stop.INFEASIBLE}.get(
            solution, Stop.ERROR
        )
        told = stop is not Stop.ERROR
    elif solve is enums.SolveStatus.STOPPED:
        reasons = enums.StopType
        stop = {
            reasons.TIMELIMIT: Stop.TIMEOUT,
            reasons.NODELIMIT: Stop.TIMEOUT,
            reasons.ITERLIMIT: Stop.TIMEOUT,
            reasons.SOLLIMIT: Stop.TIMEOUT,
            reasons.WORKLIMIT: Stop.TIMEOUT,
            reasons.MIPGAP: Stop.OPTIMAL,
            reasons.MEMORYERROR: Stop.MEMORY,
            reasons.USER: watch.reason or Stop.INTERRUPTED,
            reasons.CTRLC: watch.reason or Stop.INTERRUPTED,
        }.get(why, Stop.ERROR)
        told = why in {reasons.TIMELIMIT, reasons.USER, reasons.CTRLC, reasons.MIPGAP}
    message = "" if told else f"Xpress: {solve.name}, {solution.name}, stop {why}".lower()
    nodes = int(found.nodes) if mixed else 0
    if stop is Stop.INFEASIBLE:
        return Outcome(stop, np.inf, np.inf, None, nodes)
    x, lower, upper = None, -np.inf, np.inf
    if solution in {enums.SolStatus.OPTIMAL, enums.SolStatus.FEASIBLE}:
        x = np.array(problem.getSolution(), dtype=np.float64)
        upper = float(found.objval)
    if mixed:
        lower = _finite(found.bestbound) if stop is Stop.OPTIMAL else _bound(xpress, found)
    elif stop is Stop.OPTIMAL:
        lower = upper
    return Outcome(stop, lower, upper, x, nodes, message)


SOLVER = Xpress()
