"""What every MILP backend does the same way: checks before and after, a thread that can be stopped.

Solvers are not trusted (statuses of all of them have been wrong in public): what comes back is compared with
the program itself and with the start that was given, and turned into ``Stop.ERROR`` where it cannot be so.
The underscore keeps this file out of the registry.
"""

from __future__ import annotations

import difflib
import importlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver.errors import QueryError, SolverUnavailableError
from milpver.linear import Float
from milpver.program import Program
from milpver.registry import near
from milpver.solver import Availability, Limits, Progress, Solution, Stop

__all__ = [
    "LARGEST_NUMBER",
    "TOLERANCE",
    "Conditioned",
    "Job",
    "Outcome",
    "Traits",
    "Watch",
    "checked",
    "checked_start",
    "conditioned",
    "converted_option",
    "package_availability",
    "parse_bool",
    "relative_violation",
    "reserved_option",
    "run_watched",
    "settled",
    "solved",
    "sound",
    "too_large",
    "trivial",
    "unknown_option",
    "with_whole_bounds",
]

#: Violation and objective error that is put down to a solver's tolerances, relative to the row's own size.
SLACK = 1e-6
#: Entries whose contribution varies by no more than this are folded into their row; constants are among them.
NEGLIGIBLE = 1e-8
#: How far a bound of an integer column may be from a whole number and still mean that one.
INTEGRAL = 1e-9
#: Relative error that is put down to rounding where a row of constants is checked.
ROUNDING = 1e-12
#: Feasibility and integrality tolerance asked of every solver for mixed-integer programs. Measured on 9,000
#: random networks encoded with big-M below 1e8, against enumeration: with 1e-7, HiGHS 1.15.1 gave no wrong
#: answer; its default 1e-6 gave optima too low by more than 1e-6 (slack times M), and 1e-9 gave wrong optima
#: and wrong "infeasible", from M = 1e4 on (HiGHS issues 2033 and 3258 report the same).
TOLERANCE = 1e-7
#: Numbers of mixed-integer programs beyond this are refused. At 1e9 one rounding (1e9 * 2^-53) is as large as
#: the tolerance; HiGHS, Gurobi 13 and SCIP 10 all gave wrong optima or wrong "infeasible" from there on, with
#: every tolerance tried.
LARGEST_NUMBER = 1e8
#: How often the caller's thread looks at the clock, the memory and ``should_stop``, seconds.
POLL = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a backend read off its solver, before any check; fields as in ``Solution``."""

    stop: Stop
    lower: float = -np.inf
    upper: float = np.inf
    x: Float | None = None
    nodes: int = 0
    message: str = ""


class Watch:
    """Shared by the thread that solves and the one that waits: the last progress, and whether to stop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._reason: Stop | None = None
        self._begin = time.monotonic()
        self.progress = Progress(0.0, 0, -np.inf, np.inf)

    @property
    def reason(self) -> Stop | None:
        """Why it has to stop, or None."""
        return self._reason

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the start."""
        return time.monotonic() - self._begin

    @property
    def remaining(self) -> float:
        """Seconds left of the limit, at least 0."""
        return max(0.0, self._limits.seconds - self.seconds)

    def cancel(self, reason: Stop) -> None:
        """Ask the solver to stop; the first reason stands."""
        if self._reason is None:
            self._reason = reason

    def report(self, nodes: int, lower: float, upper: float) -> bool:
        """Called by the solving thread now and then, cheap; True asks it to stop.

        Args:
            nodes: nodes so far.
            lower, upper: bracket on the optimum so far, infinite where there is none.
        """
        self.progress = Progress(self.seconds, nodes, lower, upper)
        limits = self._limits
        if (limits.objective_stop is not None and upper <= limits.objective_stop) or (
            limits.bound_stop is not None and limits.bound_stop < lower < np.inf
        ):
            # An infinite bound means that no node is left: the solver is about to say so itself.
            self.cancel(Stop.TARGET)
        return self._reason is not None


@dataclass(frozen=True, slots=True)
class Traits:
    """What sets a solver apart from the others where it is asked.

    Attributes:
        name: for messages.
        infinite: size from which on it takes a number for infinite.
        smallest: entries of the matrix of this size and below it takes for zero.
        takes_ctrl_c: it puts a handler of its own in the way of Ctrl-C.
        squares: it takes squares in the objective.
    """

    name: str
    infinite: float
    smallest: float
    takes_ctrl_c: bool = False
    squares: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One run of a solver: what is left to do once everything that all backends share has been done.

    Attributes:
        program: conditioned, neither trivial nor too large.
        start: for that program, NaN where unknown, or None.
        limits, options: as asked.
        watch: to report to; it knows the time left.
        stoppers: thread-safe calls that make the solver stop; the backend fills the list while it runs.
    """

    program: Program
    start: Float | None
    limits: Limits
    options: Mapping[str, str]
    watch: Watch
    stoppers: list[Callable[[], None]] = field(default_factory=list)

    def feasibility(self) -> Job:
        """The same without an objective and a start."""
        program = self.program.with_objective(np.zeros(0, dtype=np.int64), np.zeros(0), 0.0)
        return replace(self, program=program, start=None)

    def relaxation(self) -> Job:
        """The same without integrality."""
        return replace(
            self, program=replace(self.program, integer=np.zeros(self.program.columns, dtype=np.bool_))
        )

    def stop(self) -> None:
        """Make the solver stop, if it runs."""
        for each in tuple(self.stoppers):
            each()


def solved(
    traits: Traits,
    program: Program,
    limits: Limits,
    run: Callable[[Job], Outcome],
    *,
    start: Float | None,
    options: Mapping[str, str] | None,
    should_stop: Callable[[Progress], bool] | None,
) -> Solution:
    """Everything of ``Solver.solve`` but the solver: checks before, trivial answers, scaling, checks after.

    Args:
        traits: of the solver.
        program, limits, start, options, should_stop: as ``Solver.solve`` gets them.
        run: the solver; called in a thread of its own, with the options not yet looked at.

    Raises:
        ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        QueryError: the objective has squares, and the solver takes none.
        KeyboardInterrupt: Ctrl-C; and whatever ``run`` and ``should_stop`` raise.
    """
    program = sound(program)
    if program.squares is not None and not traits.squares:
        raise QueryError(
            f"a quadratic objective for {traits.name}",
            needed="a backend that solves mixed-integer quadratic programs (gurobi, scip)",
            fix="use --solver scip or --solver gurobi",
        )
    start = checked_start(program, start)
    watch = Watch(limits)
    outcome = trivial(program) or too_large(program, traits.name, traits.infinite)
    whole = with_whole_bounds(program)
    outcome = outcome or trivial(whole)
    if outcome is None:
        easier = conditioned(whole, traits.smallest)
        job = Job(easier.program, easier.start(start), limits, options or {}, watch)
        found = run_watched(
            lambda: run(job), watch, limits, should_stop, job.stop, takes_ctrl_c=traits.takes_ctrl_c
        )
        if traits.takes_ctrl_c and found.stop is Stop.INTERRUPTED and watch.reason is None:
            raise KeyboardInterrupt  # it came while the solver's own handler was in place
        outcome = easier.back(found)
    return checked(program, limits, outcome, start, watch.seconds)


def settled(name: str, run: Callable[[Job], Outcome | None], job: Job) -> Outcome:
    """The outcome of a run, resolved where the solver leaves it open.

    Args:
        name: of the solver, for messages.
        run: None for "unbounded" and "infeasible or unbounded", which solvers say too soon or mix up.
        job: what to run.
    """
    outcome = run(job)
    if outcome is not None:
        return outcome
    outcome = run(job.feasibility())
    if outcome is None:
        # Nothing can be unbounded there.
        return Outcome(Stop.INFEASIBLE, np.inf, np.inf)
    if outcome.stop is not Stop.OPTIMAL:
        return outcome
    # A point, so what is left is a ray of the relaxation (Meyer 1974, rational data).
    ray = run(job.relaxation())
    if ray is None or ray.stop is Stop.UNBOUNDED:
        return Outcome(Stop.UNBOUNDED, nodes=outcome.nodes)
    return Outcome(Stop.ERROR, message=f"{name} finds no optimum, but a point and no ray")


def run_watched(
    work: Callable[[], Outcome],
    watch: Watch,
    limits: Limits,
    should_stop: Callable[[Progress], bool] | None,
    interrupt: Callable[[], None] | None = None,
    *,
    takes_ctrl_c: bool = False,
) -> Outcome:
    """Run ``work`` in a thread of its own, and watch it from this one.

    The caller's thread stays in Python, so Ctrl-C (KeyboardInterrupt) reaches it at once, no signal handler
    is needed, and ``should_stop`` is asked in the thread that passed it. Any exception, here or there, stops
    the solver first and is raised then; a second Ctrl-C does not wait for the solver.

    Args:
        work: solves, calling ``watch.report`` when it can and returning soon after that says True.
        watch: as given to ``work``.
        limits: for the memory limit.
        should_stop: see ``Solver.solve``.
        interrupt: thread-safe call that makes the solver stop, for those whose callbacks come rarely.
        takes_ctrl_c: the solver puts a handler of its own in the way of Ctrl-C.
    """
    box: list[Outcome] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            box.append(work())
        except BaseException as error:  # handed over to the caller's thread below
            failure.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=body, name="milpver-solver", daemon=True)
    thread.start()
    try:
        while not done.wait(POLL):
            if takes_ctrl_c:
                _give_ctrl_c_back()
            if should_stop is not None and should_stop(replace(watch.progress, seconds=watch.seconds)):
                watch.cancel(Stop.INTERRUPTED)
            if limits.memory is not None and _resident_bytes() > limits.memory:
                watch.cancel(Stop.MEMORY)
            if watch.reason is not None and interrupt is not None:
                interrupt()
    except BaseException:
        watch.cancel(Stop.INTERRUPTED)
        while not done.wait(POLL):
            if interrupt is not None:
                interrupt()
        thread.join()
        raise
    thread.join()
    if failure:
        raise failure[0]
    return box[0]


def _give_ctrl_c_back() -> None:
    """Put the handler that Python believes in place back where a solver's C code has replaced it."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)


def _resident_bytes() -> int:
    """Memory of this process now, bytes; 0 where the system does not tell (so there is no limit)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * _page_size()


def _page_size() -> int:
    import resource  # noqa: PLC0415 - Unix only, and so is /proc

    return resource.getpagesize()


def sound(program: Program) -> Program:
    """The program with a canonical matrix (no duplicates, int32 indices), or an error.

    Raises:
        ValueError: NaN anywhere, infinite coefficients, wrong lengths, a lower bound of +inf or an upper
            bound of -inf: a defect of whoever built it.
    """
    columns, rows = program.columns, program.rows
    if program.matrix.shape != (rows, columns):
        raise ValueError(f"matrix is {program.matrix.shape}, not {(rows, columns)}")
    for name, length in (("lower", columns), ("upper", columns), ("integer", columns), ("row_upper", rows)):
        if getattr(program, name).shape != (length,):
            raise ValueError(f"{name} has shape {getattr(program, name).shape}, not {(length,)}")
    if not (np.isfinite(program.objective).all() and np.isfinite(program.offset)):
        raise ValueError("the objective holds NaN or infinity")
    if program.squares is not None and not (
        program.squares.shape == (columns,) and np.all((program.squares >= 0) & np.isfinite(program.squares))
    ):
        raise ValueError("squares have a wrong shape, or hold a negative number, NaN or infinity")
    if not np.isfinite(program.matrix.data).all():
        raise ValueError("the matrix holds NaN or infinity")
    for name in ("lower", "row_lower", "upper", "row_upper"):
        bounds = getattr(program, name)
        wrong = np.isnan(bounds) | (bounds == (-np.inf if name.endswith("upper") else np.inf))
        if wrong.any():
            raise ValueError(f"{name}[{int(np.argmax(wrong))}] is {bounds[np.argmax(wrong)]}")
    matrix = program.matrix
    if not matrix.has_canonical_format or (matrix.nnz and not matrix.data.all()):
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    if matrix.indices.dtype != np.int32 or matrix.indptr.dtype != np.int32:
        parts = (matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32))
        matrix = sparse.csr_array(parts, shape=matrix.shape)
    return program if matrix is program.matrix else replace(program, matrix=matrix)


@dataclass(frozen=True, slots=True, eq=False)
class Conditioned:
    """A program made easier on a solver's absolute tolerances, and the way back.

    Attributes:
        program: what to solve: a relaxation of the original by at most what was dropped from each row.
        scale: original point = ``scale`` * point of ``program``, powers of two, float64 [columns].
    """

    program: Program
    scale: Float

    def start(self, start: Float | None) -> Float | None:
        """A start for ``program``: integers rounded, inside the bounds, NaN where unknown."""
        if start is None:
            return None
        point = np.where(self.program.integer, np.round(start), start / self.scale)
        return np.clip(point, self.program.lower, self.program.upper)

    def back(self, outcome: Outcome) -> Outcome:
        """The outcome in terms of the original program."""
        return outcome if outcome.x is None else replace(outcome, x=outcome.x * self.scale)


def conditioned(program: Program, smallest: float) -> Conditioned:
    """Fold what cannot matter into the rows, and scale tiny columns and rows up to size 1, exactly.

    A column whose bounds are of the size of the tolerance is a trap: a solver that infers a mask m from
    ``y = 1.5e-7 m`` divides its tolerance by 1.5e-7. HiGHS cut optima off by 0.2 and more that way on a
    784-128-64-32-10 network with ordinary weights (one neuron was active by 1.5e-7; compare HiGHS issue
    3258). Nothing is scaled down, so tolerances only get tighter in the program's own units.

    Args:
        program: as asked.
        smallest: entries of |a| <= this are dropped by the solver without making up for it; here the row
            gives way by the range of what is dropped (networks trained with weight decay do hold 1e-20).
    """
    ranges = program.upper - program.lower
    matrix = program.matrix
    program = _without(program, np.abs(matrix.data) * ranges[matrix.indices] <= NEGLIGIBLE)
    size = np.maximum(np.abs(program.lower), np.abs(program.upper))
    scale = _power_of_two(np.where(program.integer, 1.0, size))
    matrix = program.matrix.copy()
    matrix.data *= scale[matrix.indices]
    entry_rows = np.repeat(np.arange(program.rows), np.diff(matrix.indptr))
    largest = np.zeros(program.rows)
    np.maximum.at(largest, entry_rows, np.abs(matrix.data))
    row_scale = 1.0 / _power_of_two(largest)
    matrix.data *= row_scale[entry_rows]
    scaled = replace(
        program,
        objective=program.objective * scale,
        squares=None if program.squares is None else program.squares * scale * scale,
        lower=program.lower / scale,
        upper=program.upper / scale,
        matrix=matrix,
        row_lower=program.row_lower * row_scale,
        row_upper=program.row_upper * row_scale,
    )
    return Conditioned(_without(scaled, np.abs(matrix.data) <= smallest), scale)


def _power_of_two(size: Float) -> Float:
    """The power of two next above each size < 1; 1 for larger ones, for 0 and for infinity."""
    small = (size > 0.0) & (size < 1.0)
    exponent = np.frexp(np.where(small, size, 1.0))[1]
    return np.where(small, np.ldexp(1.0, np.maximum(exponent, -100)), 1.0)


def _without(program: Program, entries: NDArray[np.bool_]) -> Program:
    """A relaxation without some entries of the matrix, bool [nonzeros].

    Row i gives way by the range of what is dropped: with t = sum of the dropped a_ij x_j in [t-, t+],
    ``row_lower - t+ <= rest <= row_upper - t-``. So a dual bound stays one.
    """
    if not entries.any():
        return program
    matrix = program.matrix
    rows = np.repeat(np.arange(program.rows), np.diff(matrix.indptr))
    ends = np.stack([matrix.data * side[matrix.indices] for side in (program.lower, program.upper)])
    lowest, highest = (
        np.bincount(rows[entries], end[entries], program.rows) for end in (ends.min(axis=0), ends.max(axis=0))
    )
    row_lower, row_upper = program.row_lower - highest, program.row_upper - lowest
    # A row that is left without entries holds, to rounding, or stays whole, for the solver to refute.
    emptied = np.bincount(rows[~entries], minlength=program.rows) == 0
    size = np.bincount(rows, np.abs(ends).max(axis=0), program.rows)
    room = ROUNDING * np.maximum(1.0, np.where(np.isfinite(size), size, 1.0))
    holds = emptied & (row_lower <= room) & (row_upper >= -room)
    whole = emptied & ~holds
    kept = ~entries | whole[rows]
    first = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=program.rows))])
    parts = (matrix.data[kept], matrix.indices[kept], first.astype(np.int32))
    return replace(
        program,
        matrix=sparse.csr_array(parts, shape=matrix.shape),
        row_lower=np.where(holds, -np.inf, np.where(whole, program.row_lower, row_lower)),
        row_upper=np.where(holds, np.inf, np.where(whole, program.row_upper, row_upper)),
    )


def too_large(program: Program, solver: str, infinite: float) -> Outcome | None:
    """An error where numbers leave ``TOLERANCE`` no room, or are infinite to the solver; None otherwise.

    Args:
        program: only mixed-integer ones are held to ``LARGEST_NUMBER``.
        solver: its name for the message.
        infinite: size from which on it takes a number for infinite.
    """
    limit, why = (
        LARGEST_NUMBER,
        f"a tolerance of {TOLERANCE:g} is then within the rounding of double precision",
    )
    if not program.integer.any():
        limit, why = infinite, f"{solver} takes that for infinite"
    for name in ("lower", "upper", "row_lower", "row_upper", "matrix", "objective", "squares"):
        part = getattr(program, name)
        if part is None:
            continue
        sizes = np.abs(part.data if name == "matrix" else part)
        largest = sizes[np.isfinite(sizes)].max(initial=0.0)
        if largest >= limit:
            message = f"{name} holds {largest:.3g}, beyond {limit:g}: {why}; use tighter bounds"
            return Outcome(Stop.ERROR, message=message)
    return None


def with_whole_bounds(program: Program) -> Program:
    """The program with whole bounds of its integer columns: some solvers refuse others, or round at will.

    What is within 1e-9 of a whole number is that one.
    """
    lower, upper, integer = program.lower, program.upper, program.integer
    return replace(
        program,
        lower=np.where(integer, np.ceil(lower - INTEGRAL), lower),
        upper=np.where(integer, np.floor(upper + INTEGRAL), upper),
    )


def trivial(program: Program) -> Outcome | None:
    """The answer where bounds alone give it, which solvers disagree on how to say; None otherwise.

    Crossed bounds (by any amount: they are what was asked), rows without entries, programs without columns
    or with fixed ones alone.
    """
    crossed = (program.lower > program.upper).any() or (program.row_lower > program.row_upper).any()
    empty = np.diff(program.matrix.indptr) == 0
    if crossed or (empty & ((program.row_lower > 0) | (program.row_upper < 0))).any():
        return Outcome(Stop.INFEASIBLE, np.inf, np.inf)
    if not np.array_equal(program.lower, program.upper):
        return None
    x = program.lower.copy()
    if relative_violation(program, x) > TOLERANCE:
        return Outcome(Stop.INFEASIBLE, np.inf, np.inf)
    value = program.value(x)
    return Outcome(Stop.OPTIMAL, value, value, x)


def relative_violation(program: Program, x: Float) -> float:
    """The largest violation at a point, each over the size of what was added up, at least 1.

    Rows over ``sum_j |a_ij x_j|``, bounds over themselves, integrality absolute.
    """
    if not np.isfinite(x).all():
        return np.inf
    activity = program.matrix @ x
    size = np.maximum(1.0, abs(program.matrix) @ np.abs(x))
    rows = np.maximum(program.row_lower - activity, activity - program.row_upper) / size
    columns = np.maximum(program.lower - x, x - program.upper) / np.maximum(1.0, np.abs(x))
    fractional = np.abs(x - np.round(x))[program.integer]
    return max(float(part.max(initial=0.0)) for part in (rows, columns, fractional))


def checked_start(program: Program, start: Float | None) -> Float | None:
    """A start of the right length, or None where it says nothing: all NaN, or an infinite value.

    Raises:
        ValueError: wrong length.
    """
    if start is None:
        return None
    if start.shape != (program.columns,):
        raise ValueError(f"the start has shape {start.shape}, not {(program.columns,)}")
    if np.isnan(start).all() or np.isinf(start).any():
        return None
    return start


def checked(
    program: Program, limits: Limits, outcome: Outcome, start: Float | None, seconds: float
) -> Solution:
    """The solution, its claims compared with the program and the start; what cannot be so is an ERROR.

    An incumbent that violates the program beyond ``SLACK`` is dropped, and makes OPTIMAL and TARGET an
    ERROR; a dual bound above an incumbent or a feasible start, a gap that is not closed, or "infeasible" in
    the face of a feasible start make the whole result an ERROR, without a dual bound.
    """
    stop, lower, upper, x, message = outcome.stop, outcome.lower, outcome.upper, outcome.x, outcome.message
    doubts: list[str] = []
    if x is not None:
        violation = relative_violation(program, x)
        if violation > SLACK:
            message = f"the incumbent violates the program by {violation:.3g}"
            doubts += [message] if stop in (Stop.OPTIMAL, Stop.TARGET) else []
            x = None
        elif not abs(program.value(x) - upper) <= SLACK * _objective_size(program, x):
            doubts.append(f"the incumbent's objective is {program.value(x)!r}, not {upper!r}")
    elif stop is Stop.OPTIMAL:
        doubts.append("optimal, but without a point")
    if x is None:
        upper = np.inf
    if stop is Stop.INFEASIBLE:
        lower = np.inf
    doubts += _doubts_on_bound(program, limits, replace(outcome, lower=lower, upper=upper, x=x), start)
    if doubts or stop is Stop.ERROR:
        message = "; ".join(doubts) or message
        return Solution(Stop.ERROR, -np.inf, upper, x, outcome.nodes, seconds, message)
    return Solution(
        stop, lower if x is None else min(lower, upper), upper, x, outcome.nodes, seconds, message
    )


def _doubts_on_bound(program: Program, limits: Limits, outcome: Outcome, start: Float | None) -> list[str]:
    """What contradicts the dual bound."""
    stop, lower, upper = outcome.stop, outcome.lower, outcome.upper
    doubts: list[str] = []
    if np.isnan(lower) or (lower == np.inf and stop is not Stop.INFEASIBLE):
        doubts.append(f"dual bound {lower}")
    for whose, value in (("the start's objective", _known_value(program, start)), ("the incumbent", upper)):
        if lower > value + SLACK * max(1.0, abs(value)):
            doubts.append(f"dual bound {lower!r} above {whose} {value!r}")
    near = 0.0 if limits.objective_stop is None else limits.objective_stop + SLACK * max(1.0, abs(upper))
    reached = (limits.objective_stop is not None and upper <= near) or (
        limits.bound_stop is not None and lower > limits.bound_stop
    )
    if stop is Stop.TARGET and not reached:
        doubts.append(f"stopped at a target that the bracket [{lower!r}, {upper!r}] does not reach")
    if stop is Stop.OPTIMAL and not upper - lower <= limits.gap + 1e-9 * max(1.0, abs(upper)):
        doubts.append(f"optimal, but the gap is {upper - lower:.3g}")
    return doubts


def _objective_size(program: Program, x: Float) -> float:
    """Size of what the objective adds up at a point, at least 1."""
    squared = 0.0 if program.squares is None else float(program.squares @ (x * x))
    return max(1.0, float(np.abs(program.objective) @ np.abs(x)) + abs(program.offset) + squared)


def _known_value(program: Program, start: Float | None) -> float:
    """The objective of a start that is a feasible point (to 1e-9), integers rounded; +inf for others."""
    if start is None or not np.isfinite(start).all():
        return np.inf
    point = np.where(program.integer, np.round(start), start)
    return program.value(point) if program.violation(point) <= 1e-9 else np.inf


def imported(solver: str, module: str, package: str) -> ModuleType:
    """A solver's package, which is needed only to solve.

    Raises:
        SolverUnavailableError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SolverUnavailableError(
            f"solver {solver}: {error}",
            needed=f"the package {package}",
            fix=f"pip install {package.casefold()}",
        ) from error


def package_availability(module: str, distribution: str, fix: str, limits: str = "") -> Availability:
    """Whether a solver's Python package is installed; it is not imported."""
    if find_spec(module) is None:
        return Availability(False, reason=f"the package {distribution} is not installed; fix: {fix}")
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "unknown"
    return Availability(True, version, limits=limits)


def unknown_option(solver: str, key: str, known: Iterable[str]) -> QueryError:
    """The error for an option that a solver does not have, naming near ones.

    Names in groups (``mip.limits.nodes``, ``limits/nodes``) are also compared by their last part.
    """
    known = sorted(known)
    fix = near(key, known)
    if not fix.startswith("did you mean"):
        last = {re.split("[./]", name)[-1].casefold(): name for name in known}
        close = difflib.get_close_matches(key.casefold(), last, n=3, cutoff=0.5)
        if close:
            fix = f"did you mean {' or '.join(last[each] for each in close)}?"
    return QueryError(f"{solver} option {key!r}", needed=f"an option of {solver}", fix=fix)


def reserved_option(solver: str, key: str, owner: str) -> QueryError:
    """The error for an option that the contract sets itself, so that what it reports stays true."""
    return QueryError(
        f"{solver} option {key!r}", needed="an option that milpver does not set itself", fix=owner
    )


def parse_bool(text: str) -> bool:
    """``true/false``, ``on/off``, ``yes/no``, ``1/0`` in any case.

    Raises:
        ValueError: anything else.
    """
    lowered = text.strip().casefold()
    if lowered in {"true", "on", "yes", "1"}:
        return True
    if lowered in {"false", "off", "no", "0"}:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def converted_option(solver: str, key: str, text: str, convert: Callable[[str], object]) -> object:
    """An option's value from its text.

    Raises:
        QueryError: the text is no value of the option's type.
    """
    try:
        return convert(text)
    except ValueError:
        wanted: Mapping[Callable[[str], object], str] = {
            int: "a whole number",
            float: "a number",
            parse_bool: "true or false",
        }
        raise QueryError(
            f"{solver} option {key}={text}",
            needed=wanted.get(convert, "another value"),
            fix=f"look {key} up in the manual of {solver}",
        ) from None
