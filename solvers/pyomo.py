"""Solvers that Pyomo drives, as ``pyomo:NAME``; an extra (``pip install milpver[pyomo]``).

Two kinds. ``highs`` and ``scip``: Pyomo builds a model of Python objects and fills the solver's own with it;
how it went is read off the solver, since Pyomo's results lack what the contract asks for (nodes, a reason for
every stop). ``cbc`` and ``glpk``: programs of their own, which get an LP file; Pyomo gives the command line
and reads the results, the process is ours, so that it can be stopped; bounds and nodes are read off its log.
Pyomo's ``solve`` itself keeps global state (temporary files, captured streams), which two solves at a time or
a progress bar do not survive.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from milpver.errors import PluginError, QueryError, SolverUnavailableError
from milpver.exchange import lp_text
from milpver.linear import Float
from milpver.program import Program
from milpver.registry import Factory, near
from milpver.solver import Availability, Limits, Progress, Solution, Stop
from milpver.solvers import highs as native_highs
from milpver.solvers import scip as native_scip
from milpver.solvers._common import (
    TOLERANCE,
    Outcome,
    Watch,
    checked,
    checked_start,
    conditioned,
    package_availability,
    reserved_option,
    run_watched,
    sound,
    too_large,
    trivial,
    unknown_option,
)

__all__ = ["SOLVER", "Pyomo", "PyomoSolver"]

#: CBC and GLPK take numbers from 1e30 and about 1.8e308 on for infinite; entries below 1e-10 count as zeros.
INFINITE, SMALLEST_ENTRY = 1e20, 1e-9
#: Numbers in mixed-integer programs beyond this are refused for CBC and GLPK: at 1e7, CBC 2.10 cut an optimum
#: off in the conformance suite (30 switches ``y <= 1e7 p``), whatever its tolerances.
LARGEST = 1e6
#: Seconds that a process may take to end after its time limit, or after it was asked to stop.
GRACE = 1.0

#: Pyomo's stack of temporary files and its captured streams are one for all threads.
_STACK = threading.Lock()

_NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"


class Pyomo(Factory):
    """``pyomo:NAME``."""

    def known_arguments(self) -> tuple[str, ...]:
        """The solvers that there is a driver for."""
        return tuple(sorted(_DRIVERS))

    def with_argument(self, argument: str) -> PyomoSolver:
        """The backend that drives a solver through Pyomo.

        Raises:
            PluginError: there is no driver for it.
        """
        if argument not in _DRIVERS:
            raise PluginError(
                f"solver 'pyomo:{argument}'",
                needed=f"one of {', '.join(f'pyomo:{name}' for name in sorted(_DRIVERS))}",
                fix=near(argument, _DRIVERS),
            )
        return PyomoSolver(_DRIVERS[argument])


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One solve: what a driver is asked.

    Attributes:
        program: conditioned, with columns.
        start: for the program, NaN where unknown, or None.
        limits, options: as asked.
        watch: to report to.
        stoppers: what makes the solver stop, while it runs; filled by the driver.
    """

    program: Program
    start: Float | None
    limits: Limits
    options: Mapping[str, str]
    watch: Watch
    stoppers: list[Callable[[], None]] = field(default_factory=list)

    def feasibility(self) -> _Job:
        """The same without an objective and a start."""
        program = self.program.with_objective(np.zeros(0, dtype=np.int64), np.zeros(0), 0.0)
        return replace(self, program=program, start=None)


class _Driver:
    """What differs from one solver to the next."""

    name: str
    tolerance = TOLERANCE

    def availability(self) -> Availability:
        """Of the solver, given that Pyomo is there."""
        raise NotImplementedError

    def check_options(self, limits: Limits, options: Mapping[str, str]) -> None:
        """Refuse options that are unknown or not the user's to set.

        Raises:
            QueryError: one of them is.
        """
        raise NotImplementedError

    def run(self, job: _Job) -> Outcome | None:
        """Solve; None for "infeasible or unbounded"."""
        raise NotImplementedError


class PyomoSolver:
    """A solver that Pyomo drives; it holds no state."""

    def __init__(self, driver: _Driver) -> None:
        self._driver = driver
        self.name = f"pyomo:{driver.name}"
        self.tolerance = driver.tolerance

    def availability(self) -> Availability:
        """Whether Pyomo and the solver are installed; imports neither."""
        pyomo = package_availability("pyomo", "Pyomo", "pip install pyomo")
        if not pyomo.available:
            return pyomo
        state = self._driver.availability()
        return (
            replace(state, version=f"{state.version} (Pyomo {pyomo.version})") if state.available else state
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
        """See ``Solver.solve``; options are those of the solver that is driven.

        Raises:
            SolverUnavailableError: Pyomo or the solver is not installed.
            QueryError: an unknown option, a value that the solver does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        program = sound(program)
        start = checked_start(program, start)
        state = self.availability()
        if not state.available:
            found, _, fix = state.reason.partition("; fix: ")
            raise SolverUnavailableError(
                f"solver {self.name}: {found}", needed="an installed solver", fix=fix
            )
        importlib.import_module("pyomo.environ")  # seconds the first time, which are not the solver's
        watch = Watch(limits)
        self._driver.check_options(limits, options or {})
        outcome = trivial(program) or too_large(program, self.name, INFINITE)
        if outcome is None:
            whole = _whole_bounds(program)
            outcome = trivial(whole) or _idle(whole)
        if outcome is None:
            easier = conditioned(whole, SMALLEST_ENTRY)
            job = _Job(easier.program, easier.start(start), limits, options or {}, watch)

            def interrupt() -> None:
                for stop in tuple(job.stoppers):
                    stop()

            outcome = easier.back(
                run_watched(lambda: self._minimise(job), watch, limits, should_stop, interrupt)
            )
        return checked(program, limits, outcome, start, watch.seconds)

    def _minimise(self, job: _Job) -> Outcome:
        """Solve, and resolve "infeasible or unbounded", which several solvers say too soon or mix up."""
        # What was to be solved can have been emptied by ``conditioned``.
        outcome = trivial(job.program) or _idle(job.program)
        if outcome is not None:
            return outcome
        with _quiet():
            outcome = self._driver.run(job)
            if outcome is not None:
                return outcome
            feasible = job.feasibility()
            outcome = _idle(feasible.program) or self._driver.run(feasible)
        if outcome is None:
            # Nothing can be unbounded here.
            return Outcome(Stop.INFEASIBLE, np.inf, np.inf)
        if outcome.stop is not Stop.OPTIMAL:
            return outcome
        # A point, so what is left is a ray of the relaxation (Meyer 1974, rational data).
        relaxed = replace(
            job, program=replace(job.program, integer=np.zeros(job.program.columns, dtype=bool))
        )
        with _quiet():
            ray = self._driver.run(relaxed)
        if ray is None or ray.stop is Stop.UNBOUNDED:
            return Outcome(Stop.UNBOUNDED, nodes=outcome.nodes)
        return Outcome(Stop.ERROR, message=f"{self.name} finds no optimum, but a point and no ray")


def _whole_bounds(program: Program) -> Program:
    """The program with whole bounds of its integer columns, which readers of files round as they like."""
    lower = np.where(program.integer, np.ceil(program.lower), program.lower)
    return replace(
        program, lower=lower, upper=np.where(program.integer, np.floor(program.upper), program.upper)
    )


def _idle(program: Program) -> Outcome | None:
    """The answer where nothing is asked, which some solvers call an empty model; None otherwise."""
    if program.matrix.nnz or program.objective.any():
        return None
    return Outcome(Stop.OPTIMAL, program.offset, program.offset, _nearest_zero(program))


def _nearest_zero(program: Program) -> Float:
    """The point within the columns' bounds that is nearest to 0."""
    nearest: Float = np.clip(0.0, program.lower, program.upper)
    return nearest


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pyomo's warnings from stderr: what they are about is in the outcome."""
    logger = logging.getLogger("pyomo")
    silent = logging.NullHandler()
    propagate, handlers, level = logger.propagate, list(logger.handlers), logger.level
    logger.handlers, logger.propagate = [silent], False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


# --- models of Python objects -------------------------------------------------------------------------------


def _model(program: Program) -> tuple[Any, list[Any]]:
    """The program as a Pyomo model, and its columns.

    Expressions are made as ``LinearExpression`` whole, not by adding terms up, which takes ten times as long.
    """
    import pyomo.environ as pyo  # noqa: PLC0415 - an extra, 0.5 s
    from pyomo.core.expr import LinearExpression  # noqa: PLC0415 - as above

    def finite(values: Float) -> list[float | None]:
        return [value if math.isfinite(value) else None for value in values.tolist()]

    model = pyo.ConcreteModel()
    lower, upper, whole = finite(program.lower), finite(program.upper), program.integer.tolist()
    model.x = pyo.Var(
        range(program.columns),
        bounds=lambda _, j: (lower[j], upper[j]),
        domain=lambda _, j: pyo.Integers if whole[j] else pyo.Reals,
    )
    columns = [model.x[j] for j in range(program.columns)]
    matrix = program.matrix
    data, indices, first = matrix.data.tolist(), matrix.indices.tolist(), matrix.indptr.tolist()
    low, high = finite(program.row_lower), finite(program.row_upper)

    def row(_model: Any, i: int) -> Any:
        span = slice(first[i], first[i + 1])
        if first[i] == first[i + 1] or (low[i] is None and high[i] is None):
            return pyo.Constraint.Skip  # ``trivial`` has seen to rows without entries
        body = LinearExpression(linear_coefs=data[span], linear_vars=[columns[j] for j in indices[span]])
        return (low[i], body, high[i]) if low[i] != high[i] else (body, high[i])

    model.rows = pyo.Constraint(range(program.rows), rule=row)
    chosen = np.flatnonzero(program.objective).tolist()
    model.objective = pyo.Objective(
        expr=LinearExpression(
            constant=program.offset,
            linear_coefs=program.objective[chosen].tolist(),
            linear_vars=[columns[j] for j in chosen],
        )
    )
    return model, columns


def _highs_class(watch: Watch) -> Any:
    """Pyomo's interface to HiGHS with a run of ours: no captured streams, stops, an outcome of its own."""
    from pyomo.contrib.solver.solvers.highs import Highs  # noqa: PLC0415 - an extra

    highspy = native_highs._highspy()

    class Driven(Highs):  # type: ignore[misc, unused-ignore]  # imported lazily
        def fill(self, model: Any) -> Any:
            """Pyomo's part: the model into HiGHS."""
            self._active_config = self.config(value={}, preserve_implicit=True)
            self.set_instance(model)
            return self._solver_model

        def column_of(self, column: Any) -> int:
            """Where HiGHS has a column; -1 for one that stands nowhere."""
            return int(self._pyomo_var_to_solver_var_map.get(id(column), -1))

        def minimise(self, settings: Mapping[str, Any], mixed: bool) -> Outcome | None:
            """HiGHS's part; ``mixed``: it has integer columns."""
            solver = self._solver_model
            for key, value in settings.items():
                if solver.setOptionValue(key, value) != highspy.HighsStatus.kOk:
                    raise RuntimeError(f"HiGHS does not take {key} = {value!r}")

            def callback(_kind: int, _text: str, data: Any, answer: Any, _user: object) -> None:
                if mixed:
                    stop = watch.report(int(data.mip_node_count), data.mip_dual_bound, data.mip_primal_bound)
                else:
                    stop = watch.reason is not None
                if stop:
                    answer.user_interrupt = True

            kinds = highspy.cb.HighsCallbackType
            plain = highspy._core._Highs
            plain.setCallback(solver, callback, None)
            for kind in (
                kinds.kCallbackMipInterrupt,
                kinds.kCallbackSimplexInterrupt,
                kinds.kCallbackIpmInterrupt,
            ):
                plain.startCallback(solver, kind)
            plain.run(solver)
            return native_highs._outcome(highspy, solver, mixed, watch)

    return Driven()


class _HighsDriver(_Driver):
    """HiGHS, filled by ``pyomo.contrib.solver``."""

    name = "highs"

    def availability(self) -> Availability:
        return package_availability("highspy", "highspy", "pip install highspy")

    def check_options(self, limits: Limits, options: Mapping[str, str]) -> None:
        native_highs._settings(native_highs._highspy(), limits, options)

    def run(self, job: _Job) -> Outcome | None:
        highspy = native_highs._highspy()
        settings = native_highs._settings(highspy, job.limits, job.options)
        model, columns = _model(job.program)
        driver = _highs_class(job.watch)
        try:
            with _STACK:  # it captures the streams of the whole process meanwhile
                solver = driver.fill(model)
            at = np.array([driver.column_of(column) for column in columns])
            if not (at >= 0).any():
                # Rows without limits are no rows to Pyomo: nothing is asked of any column.
                offset = job.program.offset
                return Outcome(Stop.OPTIMAL, offset, offset, _nearest_zero(job.program))
            mixed = bool(job.program.integer[at >= 0].any())
            if job.start is not None and mixed:
                known = np.flatnonzero(~np.isnan(job.start) & (at >= 0))
                solver.setSolution(len(known), at[known].astype(np.int32), job.start[known])
            outcome = driver.minimise({**settings, "time_limit": job.watch.remaining}, mixed)
        finally:
            highspy._core._Highs.resetGlobalScheduler(False)
        return _rearranged(outcome, at, job.program)


def _rearranged(outcome: Outcome | None, at: Any, program: Program) -> Outcome | None:
    """An outcome in the program's order of columns; one that stands in no row takes its value nearest 0."""
    if outcome is None or outcome.x is None:
        return outcome
    return replace(outcome, x=np.where(at >= 0, outcome.x[np.maximum(at, 0)], _nearest_zero(program)))


class _ScipDriver(_Driver):
    """SCIP, filled by ``pyomo.contrib.solver``."""

    name = "scip"

    def availability(self) -> Availability:
        return package_availability("pyscipopt", "PySCIPOpt", "pip install pyscipopt")

    def check_options(self, limits: Limits, options: Mapping[str, str]) -> None:
        native_scip._settings(native_scip._pyscipopt(), limits, options)

    def run(self, job: _Job) -> Outcome | None:
        from pyomo.contrib.solver.solvers.scip.scip_direct import ScipDirect  # noqa: PLC0415 - an extra

        pyscipopt = native_scip._pyscipopt()
        settings = native_scip._settings(pyscipopt, job.limits, job.options)
        pyomo_model, columns = _model(job.program)
        driver = ScipDirect()
        config = driver.config(value={}, preserve_implicit=True)
        config.timer = _timer()
        model, _, _ = driver._create_solver_model(pyomo_model, config)
        try:
            for column in columns:
                if column not in driver._pyomo_var_to_solver_var_map:
                    driver._add_var(column)
            places = [driver._pyomo_var_to_solver_var_map[column] for column in columns]
            model.hideOutput()
            model.setParams({**settings, "limits/time": min(job.watch.remaining, native_scip.INFINITE)})
            if job.limits.log is not None:
                model.setLogfile(str(job.limits.log))
            if job.start is not None:
                _pass_scip_start(model, places, job.start)
            model.includeEventhdlr(native_scip._handler(pyscipopt, job.watch), "milpver", "asks to stop")
            job.stoppers.append(model.interruptSolve)
            try:
                if job.watch.reason is None:
                    model.optimizeNogil()
            finally:
                job.stoppers.clear()
            outcome = native_scip._outcome(model, places, job.watch)
            if outcome is None or outcome.x is None:
                return outcome
            # Pyomo's column for the objective meets the point within a tolerance only.
            return replace(outcome, upper=job.program.value(outcome.x))
        finally:
            model.free()


def _timer() -> Any:
    from pyomo.common.timing import HierarchicalTimer  # noqa: PLC0415 - an extra

    return HierarchicalTimer()


def _pass_scip_start(model: Any, places: list[Any], start: Float) -> None:
    """A partial solution: Pyomo adds a column for the objective, which SCIP finds itself."""
    solution = model.createPartialSol()
    for j in np.flatnonzero(~np.isnan(start)).tolist():
        model.setSolVal(solution, places[j], float(start[j]))
    model.addSol(solution)


# --- programs of their own ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """What a log has said so far."""

    nodes: int = 0
    lower: float = -np.inf
    upper: float = np.inf
    no_point: bool = False
    no_optimum: bool = False
    refused: str = ""


class _Process(_Driver):
    """A solver that is a program of its own."""

    executable: str
    package: str
    plugin: str
    #: Whether SIGINT makes it stop and write the best point; others are killed.
    graceful: bool
    reserved: ClassVar[Mapping[str, str]]

    def availability(self) -> Availability:
        path = shutil.which(self.executable)
        if path is None:
            reason = f"the program {self.executable} is not on the PATH; fix: apt install {self.package}"
            return Availability(False, reason=reason)
        found = re.search(r"(?:Version:|Solver) *v?([0-9][0-9.]*)", self._said(path))
        return Availability(True, found[1] if found else "0")

    def _said(self, path: str) -> str:
        """What it prints with its version in it."""
        raise NotImplementedError

    def known_options(self) -> dict[str, str]:
        """The options that it has, without signs in front: shortest form that it takes -> name."""
        raise NotImplementedError

    def settings(self, limits: Limits, seconds: float) -> dict[str, object]:
        """Options that carry the limits."""
        raise NotImplementedError

    def read(self, line: str, seen: _Seen) -> None:
        """Take from a line of the log what it says."""
        raise NotImplementedError

    def check_options(self, limits: Limits, options: Mapping[str, str]) -> None:
        del limits
        if not options:
            return
        known = self.known_options()
        full = {name.casefold(): name for name in known.values()}
        full |= {short.casefold(): name for short, name in known.items()}
        for key, value in options.items():
            name = full.get(key.casefold(), key)
            if name.casefold() in self.reserved:
                raise reserved_option(f"pyomo:{self.name}", key, self.reserved[name.casefold()])
            if key.casefold() not in full:
                raise unknown_option(f"pyomo:{self.name}", key, known.values())
            if re.search(r"[\s\"']", value) or value.startswith("-"):
                raise QueryError(
                    f"pyomo:{self.name} option {key}={value}",
                    needed="a word or a number",
                    fix=f"look {key} up in the manual of {self.name}",
                )

    def run(self, job: _Job) -> Outcome | None:
        from pyomo.environ import SolverFactory  # noqa: PLC0415 - an extra, 0.5 s

        largest = _largest(job.program)
        if largest > LARGEST:
            message = (
                f"the program holds {largest:.3g}, beyond the {LARGEST:g} that {self.name} is right with"
            )
            return Outcome(Stop.ERROR, message=f"{message}; use tighter bounds")
        seconds = job.watch.remaining
        if seconds <= 0 or job.watch.reason is not None:
            return Outcome(job.watch.reason or Stop.TIMEOUT)
        program, names = _with_a_row(job.program)
        with TemporaryDirectory(prefix="milpver-") as folder:
            source, log = Path(folder, "program.lp"), Path(folder, "solver.log")
            source.write_text(lp_text(program, names), encoding="ascii")
            plugin = SolverFactory(self.plugin)
            plugin._log_file, plugin._timelimit = str(log), None
            for key, value in (self.settings(job.limits, seconds) | dict(job.options)).items():
                plugin.options[key] = value
            if job.start is not None and job.program.integer.any():
                self.pass_start(plugin, job, Path(folder, "start.txt"))
            command = self._command(plugin, source)
            seen, code = self._watched(command, log, job)
            if job.limits.log is not None:
                with suppress(OSError):
                    shutil.copyfile(log, job.limits.log)
            if seen.refused and any(key in seen.refused for key in (*job.options, *job.options.values())):
                raise QueryError(
                    f"pyomo:{self.name}: {seen.refused}",
                    needed="options that it takes",
                    fix=f"look them up in the manual of {self.name}",
                )
            return self._outcome(plugin, seen, code, job)

    def _command(self, plugin: Any, source: Path) -> list[str]:
        """The command line; files that Pyomo makes in its global stack go to the folder of the source."""
        from pyomo.common.tempfiles import TempfileManager  # noqa: PLC0415 - an extra

        with _STACK:
            TempfileManager.push()
            try:
                words = list(plugin.create_command_line(shutil.which(self.executable), [str(source)]).cmd)
            finally:
                TempfileManager.pop()
        for attribute in ("_glpfile", "_rawfile", "_soln_file"):
            before = getattr(plugin, attribute, None)
            if before is not None:
                after = str(source.with_name(f"result{attribute}"))
                words = [after if word == before else word for word in words]
                setattr(plugin, attribute, after)
        return words

    def pass_start(self, plugin: Any, job: _Job, path: Path) -> None:
        """Hand a start over where the solver takes one."""

    def _watched(self, command: list[str], log: Path, job: _Job) -> tuple[_Seen, int]:
        """Run the process, reading its log; the exit code is negative where it was killed."""
        buffered = shutil.which("stdbuf")  # else the log comes in blocks, and progress late
        if buffered is not None:
            command = [buffered, "-oL", *command]
        seen, watch = _Seen(), job.watch
        with (
            log.open("w", encoding="utf-8", errors="replace") as kept,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C belongs to Python
            ) as process,
        ):
            asked: list[float] = []

            def stop() -> None:
                """Called every moment once there is a reason: asks first, then kills."""
                if process.poll() is not None:
                    return
                if self.graceful and not asked:
                    asked.append(watch.seconds)
                    with suppress(OSError):
                        os.kill(process.pid, signal.SIGINT)
                elif not self.graceful or watch.seconds > asked[0] + GRACE:
                    process.kill()

            def overdue() -> None:
                """Every moment from the start: it may not keep to its time or memory limit."""
                if job.limits.memory is not None and _resident_bytes(process.pid) > job.limits.memory:
                    watch.cancel(Stop.MEMORY)
                if watch.seconds > job.limits.seconds + GRACE / 2:
                    process.kill()

            ticker = _Ticker(watch, stop, overdue)
            job.stoppers.append(stop)
            try:
                with ticker:
                    for line in process.stdout or ():
                        kept.write(line)
                        self.read(line, seen)
                        offset = job.program.offset
                        # One that gives no point when it is stopped goes on to the end.
                        told = self.graceful or job.limits.objective_stop is None
                        watch.report(seen.nodes, seen.lower + offset, seen.upper + offset if told else np.inf)
                    process.wait()
            finally:
                job.stoppers.clear()
                if process.poll() is None:
                    process.kill()
        return seen, process.returncode

    def _outcome(self, plugin: Any, seen: _Seen, code: int, job: _Job) -> Outcome | None:
        """Every termination condition of Pyomo, mapped; one that is not listed is an error."""
        reason = job.watch.reason
        lower = _outward(seen.lower) + job.program.offset
        if code != 0:
            if code < 0 and (reason is not None or job.watch.remaining <= 0):
                return Outcome(reason or Stop.TIMEOUT, lower, nodes=seen.nodes)
            return Outcome(Stop.ERROR, message=f"{self.name} ended with code {code}")
        try:
            results = plugin.process_logfile()
            plugin.process_soln_file(results)
        except Exception as error:  # whatever a parser meets in a file that was cut off
            message = (
                f"Pyomo does not read the result: {type(error).__name__}: {' '.join(str(error).split())}"
            )
            return (
                Outcome(reason, lower, nodes=seen.nodes) if reason else Outcome(Stop.ERROR, message=message)
            )
        condition = str(results.solver.termination_condition)
        unsettled = {"infeasible", "unbounded", "infeasibleOrUnbounded"}
        if condition in unsettled or (seen.no_optimum and condition not in {"optimal", "feasible"}):
            return None
        mixed = bool(job.program.integer.any())
        values = dict(results.solution(0).variable) if len(results.solution) else {}
        x, upper = None, np.inf
        if values and not seen.no_point and (mixed or condition == "optimal"):
            x = np.array([_value(values, f"x{j}") for j in range(job.program.columns)])
            upper = job.program.value(x)
        if condition == "optimal":
            # What is printed has 8 to 10 digits; the point itself says more.
            gap = job.limits.gap if mixed and self.uses_gap else 0.0
            return Outcome(Stop.OPTIMAL, upper - gap, upper, x, seen.nodes)
        stop = reason or _STOPPED.get(condition, Stop.ERROR)
        if stop is Stop.ERROR and self.out_of_time(job):
            stop = Stop.TIMEOUT
        told = stop is not Stop.ERROR and (reason is not None or self.out_of_time(job))
        return Outcome(stop, lower, upper, x, seen.nodes, "" if told else f"{self.name}: {condition}")

    #: Whether it stops at the absolute gap asked for, rather than going on to the end.
    uses_gap = False

    @staticmethod
    def out_of_time(job: _Job) -> bool:
        """Whether the time limit is why it stopped."""
        return job.watch.remaining <= 0.05 * min(1.0, job.limits.seconds)


_STOPPED = {
    "maxTimeLimit": Stop.TIMEOUT,
    "maxEvaluations": Stop.TIMEOUT,
    "maxIterations": Stop.TIMEOUT,
    "feasible": Stop.TIMEOUT,
}


class _Ticker:
    """A thread that looks after a process whose reader waits for the next line."""

    def __init__(self, watch: Watch, stop: Callable[[], None], always: Callable[[], None]) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, args=(watch, stop, always), daemon=True)

    def _tick(self, watch: Watch, stop: Callable[[], None], always: Callable[[], None]) -> None:
        while not self._done.wait(0.02):
            always()
            if watch.reason is not None:
                stop()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _largest(program: Program) -> float:
    """The largest finite number in the rows and bounds of a mixed-integer program; 0 for others."""
    if not program.integer.any():
        return 0.0
    parts = (program.matrix.data, program.lower, program.upper, program.row_lower, program.row_upper)
    sizes = np.abs(np.concatenate(parts))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _value(values: Mapping[str, Any], name: str) -> float:
    """A column's value in Pyomo's results; zeros are left out of some."""
    return float(values[name]["Value"]) if name in values else 0.0


def _outward(lower: float) -> float:
    """A bound that was printed with 8 digits or more, rounded down by what they leave open."""
    return lower - 1e-7 * abs(lower) - 1e-9 if math.isfinite(lower) else -np.inf


def _with_a_row(program: Program) -> tuple[Program, list[str]]:
    """The program without its constant, and its names; readers want a row, so one that always holds."""
    names = [f"x{j}" for j in range(program.columns)]
    program = replace(program, offset=0.0)
    bounded = (np.isfinite(program.row_lower) | np.isfinite(program.row_upper)) & (
        np.diff(program.matrix.indptr) > 0
    )
    if bounded.all() and program.rows:
        return program, names
    kept = np.flatnonzero(bounded)
    if len(kept):
        matrix = program.matrix[kept]
        low, high = program.row_lower[kept], program.row_upper[kept]
        return replace(program, matrix=matrix, row_lower=low, row_upper=high), names
    from scipy import sparse  # noqa: PLC0415 - rarely

    # minimise ... subject to one = 1
    padded = replace(
        program,
        objective=np.append(program.objective, 0.0),
        lower=np.append(program.lower, 0.0),
        upper=np.append(program.upper, 2.0),
        integer=np.append(program.integer, False),
        matrix=sparse.csr_array(([1.0], ([0], [program.columns])), shape=(1, program.columns + 1)),
        row_lower=np.ones(1),
        row_upper=np.ones(1),
    )
    return padded, [*names, "one"]


def _resident_bytes(pid: int) -> int:
    """Memory of a process now, bytes; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * int(os.sysconf("SC_PAGE_SIZE"))
    except (OSError, IndexError, ValueError, AttributeError):
        return 0


def _output(command: list[str], text: str = "") -> str:
    """What a command prints, or "" where it does not come to that."""
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=10, check=False, errors="replace"
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


_LIMIT = {"time": "give the time limit as --timeout", "gap": "give the gap as --gap"}
_LEAVE = "leave it: results state the tolerance that they rest on"
_FILES = "leave it: milpver reads and writes by itself"


class _Cbc(_Process):
    """CBC: absolute gap, start, stops with its best point on SIGINT."""

    name, executable, package, plugin = "cbc", "cbc", "coinor-cbc", "_cbc_shell"
    graceful, uses_gap = True, True
    reserved: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("seconds", "sec", "timemode"), _LIMIT["time"]),
        **dict.fromkeys(("allowablegap", "ratiogap", "increment"), _LIMIT["gap"]),
        "threads": "give the number of threads as --threads",
        "preprocess": "leave it off: it gives wrong answers",
        **dict.fromkeys(("randomcbcseed", "randomseed"), "give the seed as --seed"),
        "cutoff": "leave it: what it cuts off would count as infeasible",
        **dict.fromkeys(
            ("integertolerance", "primaltolerance", "dualtolerance", "zerotolerance", "pretolerance"), _LEAVE
        ),
        **dict.fromkeys(
            ("direction", "maximize", "minimize", "dualbound"), "leave it: it changes the program"
        ),
        **dict.fromkeys(
            (
                *(
                    "import",
                    "export",
                    "directory",
                    "solution",
                    "gsolution",
                    "basisin",
                    "basisout",
                    "mipstart",
                ),
                *("printingoptions", "printmask", "messages", "log", "sloglevel", "stdin", "quit", "end"),
                *("exit", "stop", "savesolution", "restoresolution", "outputformat", "prioryin"),
            ),
            _FILES,
        ),
    }

    def _said(self, path: str) -> str:
        return _output([path, "-stop"])

    def known_options(self) -> dict[str, str]:
        said = _output([shutil.which("cbc") or "cbc"], "?\nquit\n").partition("Commands are:")[2]
        words = [word for line in said.splitlines() if line.startswith(" ") for word in line.split()]
        return {word.partition("(")[0]: word.replace("(", "").replace(")", "") for word in words}

    def settings(self, limits: Limits, seconds: float) -> dict[str, object]:
        settings: dict[str, object] = {
            "allowableGap": repr(limits.gap),
            "ratioGap": "0",
            # An incumbent has to be this much better than the last; the default of 1e-5 cuts optima off.
            "increment": "1e-9",
            "primalTolerance": repr(TOLERANCE),
            "dualTolerance": repr(TOLERANCE),
            "integerTolerance": repr(TOLERANCE),
            # With it, CBC 2.10 called 1 in 6 of the conformance suite's big-M networks infeasible.
            "preprocess": "off",
            "randomCbcSeed": str(limits.seed % 2**31),
            "randomSeed": str(limits.seed % 2**31 or 1234567),
        }
        if math.isfinite(seconds):
            settings |= {"sec": repr(max(seconds, 0.01)), "timeMode": "elapsed"}
        if limits.threads > 1 and "threads" in self.known_options():
            settings["threads"] = str(limits.threads)
        return settings

    def pass_start(self, plugin: Any, job: _Job, path: Path) -> None:
        start = job.start
        if start is None:
            return
        known = np.flatnonzero(job.program.integer & ~np.isnan(start))
        lines = [f"{k} x{j} {start[j]:.0f}\n" for k, j in enumerate(known.tolist())]
        path.write_text("".join(lines), encoding="ascii")
        plugin._warm_start_solve, plugin._warm_start_file_name = True, str(path)

    _AFTER = re.compile(
        rf"After (\d+) nodes, .*?({_NUMBER}) best solution, best possible ({_NUMBER})", re.ASCII
    )
    _PARTIAL = re.compile(
        rf"Partial search - best objective ({_NUMBER}) \(best possible ({_NUMBER})\), took \d+ iterations "
        r"and (\d+) nodes",
        re.ASCII,
    )
    _COMPLETE = re.compile(r"Search completed - best objective .* and (\d+) nodes", re.ASCII)
    _FOUND = re.compile(rf"[Ss]olution of ({_NUMBER}) found", re.ASCII)
    _RELAXED = re.compile(rf"Continuous objective value is ({_NUMBER})", re.ASCII)

    def read(self, line: str, seen: _Seen) -> None:
        if found := self._AFTER.search(line):
            seen.nodes = int(found[1])
            self._bracket(seen, found[2], found[3])
        elif found := self._PARTIAL.search(line):
            self._bracket(seen, found[1], found[2])
            seen.nodes = int(found[3])
        elif found := self._COMPLETE.search(line):
            seen.nodes = int(found[1])
        elif found := self._FOUND.search(line):
            seen.upper = min(seen.upper, float(found[1]))
        elif found := self._RELAXED.search(line):
            # Printed with six digits.
            seen.lower = max(seen.lower, float(found[1]) - 1e-5 * abs(float(found[1])) - 1e-6)
        elif "No feasible solution found" in line or "no integer solution" in line:
            seen.no_point = True
        elif line.startswith("No match for"):
            seen.refused = line.strip()

    @staticmethod
    def _bracket(seen: _Seen, upper: str, lower: str) -> None:
        if abs(float(upper)) < 1e49:
            seen.upper = min(seen.upper, float(upper))
        if abs(float(lower)) < 1e49:
            seen.lower = max(seen.lower, float(lower))


class _Glpk(_Process):
    """GLPK: no absolute gap, no start; its time limit is in whole seconds; stopped, it gives no point.

    It takes values within 1e-5 of an integer for one, which only relaxes what it searches: such a point is
    rounded, and then found to violate its rows, not its bound to be too high.
    """

    name, executable, package, plugin = "glpk", "glpsol", "glpk-utils", "_glpk_shell"
    graceful = False
    reserved: ClassVar[Mapping[str, str]] = {
        "tmlim": _LIMIT["time"],
        "mipgap": _LIMIT["gap"],
        "memlim": "give the memory limit as --memory",
        "objbnd": "leave it: what it cuts off would count as infeasible",
        **dict.fromkeys(("max", "min", "nomip", "relax", "ranges"), "leave it: it changes the program"),
        **dict.fromkeys(
            (
                *(
                    "mps",
                    "freemps",
                    "lp",
                    "glp",
                    "math",
                    "model",
                    "data",
                    "display",
                    "cpxlp",
                    "name",
                    "check",
                ),
                *("wmps", "wfreemps", "wlp", "wglp", "wcnf", "write", "read", "output", "log", "cnf", "hide"),
                *("help", "version", "mincost", "maxflow", "bib", "ini", "interior", "seed", "minisat"),
            ),
            _FILES,
        ),
    }

    def _said(self, path: str) -> str:
        return _output([path, "--version"])

    def known_options(self) -> dict[str, str]:
        names = re.findall(r"--([a-z]+)", _output([shutil.which("glpsol") or "glpsol", "--help"]))
        return {name: name for name in names}

    def settings(self, limits: Limits, seconds: float) -> dict[str, object]:
        del limits
        return {"tmlim": str(max(1, math.ceil(seconds)))} if seconds < 1e8 else {}

    _MIP = re.compile(
        rf"\+ *\d+: (?:mip =|>>>>>) +(not found yet|{_NUMBER}) >= +({_NUMBER}|tree is empty|-inf) "
        r".*\((\d+); (\d+)\)"
    )
    _EMPTY = re.compile(r"tree is empty .*\(0; (\d+)\)")

    def read(self, line: str, seen: _Seen) -> None:
        if found := self._MIP.search(line):
            if found[1] != "not found yet":
                seen.upper = min(seen.upper, float(found[1]))
            if found[2] not in {"tree is empty", "-inf"}:
                seen.lower = max(seen.lower, float(found[2]))
            seen.nodes = max(seen.nodes, int(found[3]) + int(found[4]))
        elif found := self._EMPTY.search(line):
            seen.nodes = max(seen.nodes, int(found[1]))
        elif re.search(r"HAS (UNBOUNDED|NO (DUAL |PRIMAL |INTEGER )?FEASIBLE)", line):
            seen.no_optimum = True
        elif line.startswith("Invalid option"):
            seen.refused = line.strip()


_DRIVERS: dict[str, _Driver] = {
    driver.name: driver for driver in (_HighsDriver(), _ScipDriver(), _Cbc(), _Glpk())
}

SOLVER = Pyomo()
