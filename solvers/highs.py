"""HiGHS through highspy: the solver that every installation has.

The program goes over as arrays (``passModel``), the search runs in a thread of its own with the GIL
released, and HiGHS's interrupt callbacks carry the stop conditions. HiGHS keeps one scheduler a thread, so a
thread of its own is also what lets the number of threads differ from one solve to the next.
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

__all__ = ["SOLVER", "Highs"]

#: Tolerances of the linear programs in the search, and of those without integers.
LP_TOLERANCE = 1e-9
#: HiGHS takes entries of this size and below for zeros (small_matrix_value). Lowering it is no way out: what
#: presolve leaves of cancelled entries then counts, and wrong optima were seen on big-M models.
SMALLEST_ENTRY = 1e-9
#: HiGHS takes bounds and costs of 1e20 and above for infinite, and refuses entries of 1e15 and above.
INFINITE = 1e15
TRAITS = Traits("HiGHS", INFINITE, SMALLEST_ENTRY)
#: Bit of presolve_rule_off that switches probing off. It draws wrong conclusions from the rounding that the
#: aggregator leaves: of 2,500 random networks with faint neurons (1e-5 to 1e-11) 4 got wrong optima with it,
#: none without, in the same time; ``conditioned`` alone leaves 5, the default tolerances 3 to 6.
NO_PROBING = 1 << 15
#: highspy's integers for the row-wise format and for minimisation.
ROW_WISE, MINIMISE = 2, 1

#: Options that the contract sets itself, and where to say the same thing.
RESERVED = {
    "time_limit": "give the time limit as --timeout",
    "mip_abs_gap": "give the gap as --gap",
    "mip_rel_gap": "give the (absolute) gap as --gap",
    "threads": "give the number of threads as --threads",
    "random_seed": "give the seed as --seed",
    "output_flag": "give log_file=FILE for a log",
    "log_to_console": "give log_file=FILE for a log",
    "small_matrix_value": "leave it: it would change the program",
    "large_matrix_value": "leave it: it would change the program",
    "infinite_bound": "leave it: it would change the program",
    "infinite_cost": "leave it: it would change the program",
    "user_objective_scale": "leave it: it would change the tolerances",
    "user_bound_scale": "leave it: it would change the tolerances",
    "mip_feasibility_tolerance": "leave it: results state the tolerance that they rest on",
    "primal_feasibility_tolerance": "leave it: results state the tolerance that they rest on",
    "dual_feasibility_tolerance": "leave it: results state the tolerance that they rest on",
    "kkt_tolerance": "leave it: results state the tolerance that they rest on",
    "presolve_rule_off": "leave it: one of the rules gives wrong optima",
    "read_solution_file": "give a start in place of it",
    "read_basis_file": "give a start in place of it",
}


class Highs:
    """The HiGHS backend; it holds no state.

    Its bounds hold up to ``tolerance``, a violation of rows and integrality that HiGHS lets pass: slack of
    that size times the big-M it stands at can move an optimum, mostly downwards.
    """

    name = "highs"
    tolerance = TOLERANCE

    def availability(self) -> Availability:
        """Whether highspy is installed; does not import it."""
        return package_availability("highspy", "highspy", "pip install highspy")

    def solve(
        self,
        program: Program,
        limits: Limits,
        *,
        start: Float | None = None,
        options: Mapping[str, str] | None = None,
        should_stop: Callable[[Progress], bool] | None = None,
    ) -> Solution:
        """See ``Solver.solve``; options are those of https://ergo-code.github.io/HiGHS/stable/options/definitions/.

        Raises:
            SolverUnavailableError: highspy is not installed.
            QueryError: an unknown option, a value that HiGHS does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        highspy = _highspy()
        settings = _settings(highspy, limits, options or {})
        return solved(
            TRAITS,
            program,
            limits,
            lambda job: _minimise(highspy, settings, job),
            start=start,
            options=options,
            should_stop=should_stop,
        )


def _highspy() -> ModuleType:
    return imported("highs", "highspy", "highspy")


def _settings(highspy: ModuleType, limits: Limits, options: Mapping[str, str]) -> dict[str, Any]:
    """All options to set, the user's checked against HiGHS's own list and types."""
    settings: dict[str, Any] = {
        "output_flag": "log_file" in options or limits.log is not None,
        "log_to_console": False,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": limits.gap,
        "threads": limits.threads,
        "parallel": "on" if limits.threads > 1 else "off",
        "random_seed": limits.seed % 2**31,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": LP_TOLERANCE,
        "dual_feasibility_tolerance": LP_TOLERANCE,
        "small_matrix_value": SMALLEST_ENTRY,
        "presolve_rule_off": NO_PROBING,
    }
    if limits.log is not None:
        settings["log_file"] = str(limits.log)
    if not options:
        return settings
    solver = _new(highspy, {"output_flag": False})
    known = [name for name in dir(highspy.HighsOptions) if not name.startswith("_")]
    kinds = highspy.HighsOptionType
    convert: dict[Any, Callable[[str], object]] = {
        kinds.kBool: parse_bool,
        kinds.kInt: int,
        kinds.kDouble: float,
        kinds.kString: str,
    }
    for key, text in options.items():
        if key in RESERVED:
            raise reserved_option("highs", key, RESERVED[key])
        status, kind = solver.getOptionType(key)
        if status != highspy.HighsStatus.kOk:
            raise unknown_option("highs", key, known)
        settings[key] = converted_option("highs", key, text, convert[kind])
        if solver.setOptionValue(key, settings[key]) != highspy.HighsStatus.kOk:
            raise QueryError(
                f"highs option {key}={text}",
                needed="a value that HiGHS takes",
                fix=f"look {key} up in the manual of HiGHS",
            )
    return settings


def _new(highspy: ModuleType, settings: Mapping[str, Any]) -> Any:
    """A HiGHS instance with options set; the plain class, without highspy's modelling layer."""
    solver = highspy._core._Highs()
    for key, value in settings.items():
        if solver.setOptionValue(key, value) != highspy.HighsStatus.kOk:
            raise RuntimeError(f"HiGHS does not take {key} = {value!r}")
    return solver


def _minimise(highspy: ModuleType, settings: Mapping[str, Any], job: Job) -> Outcome:
    """Solve in this thread, which has to be a fresh one, and resolve "infeasible or unbounded"."""
    try:
        outcome = _run(highspy, settings, job)
        if outcome is not None:
            return outcome
        outcome = _run(highspy, {**settings, "presolve": "off"}, job)
        if outcome is not None:
            return outcome
        # Unbounded is said of the relaxation; with a feasible point it holds for the program as well
        # (Meyer 1974, rational data). So what is left to find is whether there is one.
        outcome = _run(highspy, settings, job.feasibility())
        if outcome is not None and outcome.stop is Stop.OPTIMAL:
            return Outcome(Stop.UNBOUNDED, nodes=outcome.nodes)
        return outcome or Outcome(Stop.ERROR, message="HiGHS: infeasible or unbounded, it does not say which")
    finally:
        # Without this, threads of HiGHS may outlive this one and deadlock (HiGHS pull request 1886).
        highspy._core._Highs.resetGlobalScheduler(False)


def _run(highspy: ModuleType, settings: Mapping[str, Any], job: Job) -> Outcome | None:
    """One run of HiGHS; None where it says "infeasible or unbounded"."""
    program, watch = job.program, job.watch
    solver = _new(highspy, {**settings, "time_limit": watch.remaining})
    if _pass(solver, program) == highspy.HighsStatus.kError:
        return Outcome(Stop.ERROR, message="HiGHS does not take the program")
    mixed = bool(program.integer.any())
    if job.start is not None and mixed:
        _pass_start(solver, job.start)
    _report_to(highspy, solver, mixed, watch)
    solver.run()
    return _outcome(highspy, solver, mixed, watch)


def _report_to(highspy: ModuleType, solver: Any, mixed: bool, watch: Watch) -> None:
    """Have a HiGHS instance report and stop; ``mixed``: it has integer columns."""

    def callback(_kind: int, _text: str, data: Any, answer: Any, _user: object) -> None:
        if mixed:
            stop = watch.report(int(data.mip_node_count), data.mip_dual_bound, data.mip_primal_bound)
        else:
            stop = watch.reason is not None
        if stop:
            answer.user_interrupt = True

    plain = highspy._core._Highs  # highspy's modelling layer has methods of the same names
    kinds = highspy.cb.HighsCallbackType
    plain.setCallback(solver, callback, None)
    for kind in (kinds.kCallbackMipInterrupt, kinds.kCallbackSimplexInterrupt, kinds.kCallbackIpmInterrupt):
        plain.startCallback(solver, kind)


def _pass(solver: Any, program: Program) -> Any:
    """Hand the program over, whole arrays at a time."""
    matrix = program.matrix
    return solver.passModel(
        program.columns,
        program.rows,
        matrix.nnz,
        ROW_WISE,
        MINIMISE,
        program.offset,
        program.objective,
        program.lower,
        program.upper,
        program.row_lower,
        program.row_upper,
        matrix.indptr,
        matrix.indices,
        matrix.data,
        program.integer.astype(np.int32),
    )


def _pass_start(solver: Any, start: Float) -> None:
    """Hand a start over; HiGHS may reject it, which is harmless."""
    known = np.flatnonzero(~np.isnan(start)).astype(np.int32)
    solver.setSolution(len(known), known, start[known])


def _outcome(highspy: ModuleType, solver: Any, mixed: bool, watch: Watch) -> Outcome | None:
    """Every model status of HiGHS, mapped; one that is not listed is an error.

    Limits that the user sets through options (nodes, solutions, objective) count as a limit of time.
    """
    statuses = highspy.HighsModelStatus
    status = solver.getModelStatus()
    if status == statuses.kUnboundedOrInfeasible:
        return None
    stops = {
        statuses.kOptimal: Stop.OPTIMAL,
        statuses.kInfeasible: Stop.INFEASIBLE,
        statuses.kUnbounded: Stop.UNBOUNDED,
        statuses.kTimeLimit: Stop.TIMEOUT,
        statuses.kIterationLimit: Stop.TIMEOUT,
        statuses.kSolutionLimit: Stop.TIMEOUT,
        statuses.kInterrupt: watch.reason or Stop.INTERRUPTED,
        statuses.kMemoryLimit: Stop.MEMORY,
        statuses.kObjectiveTarget: Stop.TIMEOUT,
        statuses.kObjectiveBound: Stop.TIMEOUT,
    }
    stop = stops.get(status, Stop.ERROR)
    said = f"HiGHS: {solver.modelStatusToString(status)}"
    told = stop in (Stop.OPTIMAL, Stop.INFEASIBLE, Stop.UNBOUNDED, Stop.INTERRUPTED) or (
        status in (statuses.kTimeLimit, statuses.kInterrupt)
    )
    info = solver.getInfo()
    nodes = max(0, int(info.mip_node_count)) if mixed else 0
    if stop is Stop.INFEASIBLE:
        return Outcome(stop, np.inf, np.inf, None, nodes)
    if stop is Stop.UNBOUNDED:
        return Outcome(stop, -np.inf, np.inf, None, nodes)
    x, upper = None, np.inf
    if int(info.primal_solution_status) == int(highspy.kSolutionStatusFeasible):
        x = np.array(solver.getSolution().col_value, dtype=np.float64)
        upper = float(info.objective_function_value)
    lower = -np.inf
    if mixed:
        lower = float(info.mip_dual_bound)
    elif stop is Stop.OPTIMAL:
        lower = upper
    return Outcome(stop, lower, upper, x, nodes, "" if told else said)


SOLVER = Highs()
