"""CPLEX through IBM's package cplex; an extra (``pip install milpver[cplex]``).

The pip package is the Community Edition, for programs of up to 1000 columns and 1000 rows. Rows go over as
pairs of lists, all in one call: the package has no interface for sparse arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
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

__all__ = ["SOLVER", "Cplex"]

#: Integrality and optimality tolerance; that of feasibility is ``TOLERANCE``.
FINE_TOLERANCE = 1e-9
#: CPLEX takes bounds of this size for infinite, and ignores entries of 1e-11 and below.
INFINITE, SMALLEST_ENTRY = 1e20, 1e-11
TRAITS = Traits("CPLEX", INFINITE, SMALLEST_ENTRY, takes_ctrl_c=True)
#: What the Community Edition allows, columns and rows each.
FREE_SIZE = 1000
#: CPLEX takes this for "no limit" of time.
FOREVER = 1e75
#: CPLEX's error for a program that is too large for the Community Edition, and those about the licence.
SIZE_LIMIT = 1016
LICENCE_ERRORS = frozenset({SIZE_LIMIT, *range(32000, 33000)})

#: Parameters that the contract sets itself, and where to say the same.
_TOLERANCES = "leave it: results state the tolerance that they rest on"
RESERVED = {
    "timelimit": "give the time limit as --timeout",
    "clocktype": "leave it: time limits are in wall-clock seconds",
    "mip.tolerances.mipgap": "give the (absolute) gap as --gap",
    "mip.tolerances.absmipgap": "give the gap as --gap",
    "threads": "give the number of threads as --threads",
    "randomseed": "give the seed as --seed",
    "mip.limits.lowerobjstop": "ask for a decision (--decide) in place of it",
    "mip.limits.upperobjstop": "ask for a decision (--decide) in place of it",
    "mip.tolerances.lowercutoff": "leave it: what it cuts off would count as infeasible",
    "mip.tolerances.uppercutoff": "leave it: what it cuts off would count as infeasible",
    "mip.tolerances.objdifference": "leave it: what it cuts off would count as infeasible",
    "mip.tolerances.relobjdifference": "leave it: what it cuts off would count as infeasible",
    "preprocessing.aggregator": "leave it: it gives wrong optima",
    "mip.tolerances.integrality": _TOLERANCES,
    "simplex.tolerances.feasibility": _TOLERANCES,
    "simplex.tolerances.optimality": _TOLERANCES,
}


class Cplex:
    """The CPLEX backend; it holds no state."""

    name = "cplex"
    tolerance = TOLERANCE

    def availability(self) -> Availability:
        """Whether the package cplex is installed; takes no licence."""
        return package_availability(
            "cplex",
            "cplex",
            "pip install cplex",
            limits=f"{FREE_SIZE} columns and {FREE_SIZE} rows with the Community Edition of the pip package",
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
        """See ``Solver.solve``; options are parameters as in ``mip.strategy.search`` of CPLEX's Python API.

        Raises:
            SolverUnavailableError: the package is not installed, or its licence is missing or too small.
            QueryError: an unknown parameter, a value that CPLEX does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        cplex = _cplex()
        try:
            settings = _settings(cplex, limits, options or {})
            return solved(
                TRAITS,
                program,
                limits,
                lambda job: settled("CPLEX", lambda part: _run(cplex, settings, part), job),
                start=start,
                options=options,
                should_stop=should_stop,
            )
        except cplex.exceptions.CplexError as error:
            raise _licence_error(error, program) or error from None


def _cplex() -> ModuleType:
    return imported("cplex", "cplex", "cplex")


def _licence_error(error: Any, program: Program) -> SolverUnavailableError | None:
    """The one line for an error that is about the licence, or None."""
    code = error.args[2] if len(error.args) > 2 else None
    if code == SIZE_LIMIT:
        return SolverUnavailableError(
            f"solver cplex: a program of {program.columns} columns and {program.rows} rows",
            needed=f"a licence for that size (the Community Edition ends at {FREE_SIZE} of each)",
            fix="install a full CPLEX and its package cplex, or choose --solver highs",
        )
    if code not in LICENCE_ERRORS:
        return None
    said = " ".join(str(error.args[0]).split())
    return SolverUnavailableError(
        f"solver cplex: {said}", needed="a valid licence", fix="renew it, or choose --solver highs"
    )


def _new(cplex: Any) -> Any:
    """A CPLEX object that prints nothing."""
    model = cplex.Cplex()
    for silence in (
        model.set_log_stream,
        model.set_results_stream,
        model.set_warning_stream,
        model.set_error_stream,
    ):
        silence(None)
    return model


def _parameters(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All parameters of CPLEX by their dotted names."""
    for name in dir(group):
        if name.startswith("_"):
            continue
        part = getattr(group, name)
        if hasattr(part, "default"):
            yield prefix + name, part
        elif hasattr(part, "get_all"):
            yield from _parameters(part, f"{prefix}{name}.")


def _settings(cplex: Any, limits: Limits, options: Mapping[str, str]) -> dict[str, Any]:
    """All parameters to set, the user's checked against CPLEX's own list, types and ranges."""
    settings: dict[str, Any] = {
        "threads": limits.threads,
        "randomseed": limits.seed % 2_000_000_000,
        "clocktype": 2,  # wall clock
        "mip.tolerances.mipgap": 0.0,
        "mip.tolerances.absmipgap": limits.gap,
        "mip.tolerances.integrality": FINE_TOLERANCE,
        "simplex.tolerances.feasibility": TOLERANCE,
        "simplex.tolerances.optimality": FINE_TOLERANCE,
        # Of 7,500 random networks (big-M up to 1e8, faint neurons), CPLEX 22.2 cut the optimum of 5 off and
        # contradicted itself on 4 with the aggregator, whatever its tolerances; of none without.
        "preprocessing.aggregator": 0,
    }
    if not options:
        return settings
    with _new(cplex) as model:
        known = dict(_parameters(model.parameters))
        for key, text in options.items():
            name = key.casefold()
            if name in RESERVED:
                raise reserved_option("cplex", key, RESERVED[name])
            if name not in known:
                raise unknown_option("cplex", key, known)
            settings[name] = converted_option("cplex", key, text, known[name].type())
            try:
                known[name].set(settings[name])
            except cplex.exceptions.CplexError as error:
                raise QueryError(
                    f"cplex option {key}={text}: {error.args[0]}",
                    needed="a value that CPLEX takes",
                    fix=f"look {name} up in the manual of CPLEX",
                ) from error
    return settings


def _run(cplex: Any, settings: Mapping[str, Any], job: Job) -> Outcome | None:
    """One run of CPLEX; None where it says "unbounded" or "infeasible or unbounded"."""
    mixed, watch = bool(job.program.integer.any()), job.watch
    if watch.remaining <= 0:
        return Outcome(Stop.TIMEOUT)
    with ExitStack() as stack:
        model = stack.enter_context(_new(cplex))
        if job.limits.log is not None:
            log = stack.enter_context(job.limits.log.open("a", encoding="utf-8"))
            model.set_log_stream(log)
            model.set_results_stream(log)
        known = dict(_parameters(model.parameters))
        for name, value in {**settings, "timelimit": min(watch.remaining, FOREVER)}.items():
            known[name].set(value)
        _build(model, job.program)
        if mixed:
            if job.start is not None:
                _pass_start(model, job.start)
            _report_to(cplex, model, job.limits, known, watch)
        aborter = model.use_aborter(cplex.Aborter())
        job.stoppers.append(aborter.abort)
        try:
            if watch.reason is None:
                model.solve()
        finally:
            job.stoppers.clear()
            model.remove_aborter()
        return _outcome(model.solution, mixed, watch)


def _build(model: Any, program: Program) -> None:
    """Hand the program over, whole lists at a time; rows without limits stay behind."""
    model.variables.add(
        obj=program.objective.tolist(),
        lb=np.maximum(program.lower, -INFINITE).tolist(),
        ub=np.minimum(program.upper, INFINITE).tolist(),
        # Without types it stays a linear program.
        types="".join(np.where(program.integer, "I", "C").tolist()) if program.integer.any() else "",
    )
    model.objective.set_offset(program.offset)
    low, high = np.isfinite(program.row_lower), np.isfinite(program.row_upper)
    sense = np.where(high, "L", "G")
    sense[program.row_lower == program.row_upper] = "E"
    ranged = low & high & (program.row_lower < program.row_upper)
    sense[ranged] = "R"  # rhs <= row <= rhs + range
    right = np.where(high & ~ranged, program.row_upper, program.row_lower)
    width = np.zeros(program.rows)
    width[ranged] = (program.row_upper - program.row_lower)[ranged]
    matrix = program.matrix
    indices, data, first = matrix.indices.tolist(), matrix.data.tolist(), matrix.indptr.tolist()
    bounded = np.flatnonzero(low | high).tolist()
    model.linear_constraints.add(
        lin_expr=[(indices[first[i] : first[i + 1]], data[first[i] : first[i + 1]]) for i in bounded],
        senses="".join(sense[bounded].tolist()),
        rhs=right[bounded].tolist(),
        range_values=width[bounded].tolist(),
    )


def _pass_start(model: Any, start: Float) -> None:
    """Hand a start over; CPLEX completes a partial one and rejects an infeasible one, which is harmless."""
    known = np.flatnonzero(~np.isnan(start))
    levels = model.MIP_starts.effort_level
    model.MIP_starts.add([known.tolist(), start[known].tolist()], levels.auto)


def _report_to(cplex: Any, model: Any, limits: Limits, known: Mapping[str, Any], watch: Watch) -> None:
    """Have CPLEX report and stop.

    It stops by itself at an incumbent <= one number, at a bound >= another; asked for is a bound beyond it.
    """
    if limits.objective_stop is not None and np.isfinite(limits.objective_stop):
        known["mip.limits.lowerobjstop"].set(limits.objective_stop)
    if limits.bound_stop is not None and np.isfinite(limits.bound_stop):
        known["mip.limits.upperobjstop"].set(float(np.nextafter(limits.bound_stop, np.inf)))
    context = cplex.callbacks.Context

    class Callback:
        def invoke(self, caller: Any) -> None:
            info = context.info
            lower = _finite(caller.get_double_info(info.best_bound))
            upper = _finite(caller.get_double_info(info.best_solution))
            if watch.report(int(caller.get_long_info(info.node_count)), lower, upper):
                caller.abort()

    model.set_callback(Callback(), context.id.global_progress | context.id.local_progress)


def _finite(value: float) -> float:
    """CPLEX's 1e75 and the like as an infinity."""
    return float(np.copysign(np.inf, value)) if abs(value) >= INFINITE else float(value)


def _outcome(solution: Any, mixed: bool, watch: Watch) -> Outcome | None:
    """Every status of CPLEX, mapped; one that is not listed is an error."""
    codes = solution.status
    status = solution.get_status()
    if status in {
        codes.unbounded,
        codes.infeasible_or_unbounded,
        codes.MIP_unbounded,
        codes.MIP_infeasible_or_unbounded,
    }:
        return None
    aborted = watch.reason or Stop.INTERRUPTED
    stops = {
        codes.optimal: Stop.OPTIMAL,
        codes.MIP_optimal: Stop.OPTIMAL,
        codes.optimal_tolerance: Stop.OPTIMAL,
        codes.infeasible: Stop.INFEASIBLE,
        codes.MIP_infeasible: Stop.INFEASIBLE,
        codes.abort_time_limit: Stop.TIMEOUT,
        codes.MIP_time_limit_feasible: Stop.TIMEOUT,
        codes.MIP_time_limit_infeasible: Stop.TIMEOUT,
        codes.abort_iteration_limit: Stop.TIMEOUT,
        codes.node_limit_feasible: Stop.TIMEOUT,
        codes.node_limit_infeasible: Stop.TIMEOUT,
        codes.solution_limit: Stop.TIMEOUT,
        codes.MIP_dettime_limit_feasible: Stop.TIMEOUT,
        codes.MIP_dettime_limit_infeasible: Stop.TIMEOUT,
        codes.mem_limit_feasible: Stop.MEMORY,
        codes.mem_limit_infeasible: Stop.MEMORY,
        codes.abort_user: aborted,
        codes.MIP_abort_feasible: aborted,
        codes.MIP_abort_infeasible: aborted,
    }
    if status == 0 and watch.reason is not None:
        return Outcome(watch.reason)
    stop = stops.get(status, Stop.ERROR)
    timed = {codes.abort_time_limit, codes.MIP_time_limit_feasible, codes.MIP_time_limit_infeasible}
    told = stop is not Stop.ERROR and (stop is not Stop.TIMEOUT or status in timed)
    message = "" if told else f"CPLEX: {solution.get_status_string()}"
    nodes = int(solution.progress.get_num_nodes_processed()) if mixed else 0
    if stop is Stop.INFEASIBLE:
        return Outcome(stop, np.inf, np.inf, None, nodes)
    x, lower, upper = None, -np.inf, np.inf
    if solution.is_primal_feasible():
        x = np.array(solution.get_values(), dtype=np.float64)
        upper = float(solution.get_objective_value())
    if mixed:
        lower = _finite(solution.MIP.get_best_objective())
    elif stop is Stop.OPTIMAL:
        lower = upper
    return Outcome(stop, lower, upper, x, nodes, message)


SOLVER = Cplex()
