"""Drivers of ``pyomo:NAME`` for solvers that are programs of their own: CBC and GLPK.

They get an LP file; Pyomo gives the command line and reads the results, the process is ours, so that it can
be stopped; bounds and nodes are read off its log. Pyomo's ``solve`` itself keeps global state (temporary
files, captured streams), which two solves at a time or a progress bar do not survive.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from milpver.errors import QueryError
from milpver.exchange import lp_text
from milpver.program import Program
from milpver.solver import Availability, Limits, Stop
from milpver.solvers._common import (
    TOLERANCE,
    Job,
    Outcome,
    Watch,
    reserved_option,
    unknown_option,
)
from milpver.solvers._pyomo_driver import STACK, Driver

__all__ = ["Cbc", "Glpk", "Seen", "with_a_row"]

#: Numbers in mixed-integer programs beyond this are refused: at 1e7, CBC 2.10 cut an optimum off in the
#: conformance suite (30 switches ``y <= 1e7 p``), whatever its tolerances.
LARGEST = 1e6
#: Seconds that a process may take to end after its time limit, or after it was asked to stop.
GRACE = 1.0

_NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"


@dataclass(slots=True)
class Seen:
    """What a log has said so far."""

    nodes: int = 0
    lower: float = -np.inf
    upper: float = np.inf
    no_point: bool = False
    no_optimum: bool = False
    refused: str = ""


class Process(Driver):
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

    def read(self, line: str, seen: Seen) -> None:
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

    def run(self, job: Job) -> Outcome | None:
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
        program, names = with_a_row(job.program)
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

        with STACK:
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

    def pass_start(self, plugin: Any, job: Job, path: Path) -> None:
        """Hand a start over where the solver takes one."""

    def _watched(self, command: list[str], log: Path, job: Job) -> tuple[Seen, int]:
        """Run the process, reading its log; the exit code is negative where it was killed."""
        buffered = shutil.which("stdbuf")  # else the log comes in blocks, and progress late
        if buffered is not None:
            command = [buffered, "-oL", *command]
        seen, watch = Seen(), job.watch
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

    def _outcome(self, plugin: Any, seen: Seen, code: int, job: Job) -> Outcome | None:
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
    def out_of_time(job: Job) -> bool:
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


def with_a_row(program: Program) -> tuple[Program, list[str]]:
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


class Cbc(Process):
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

    def pass_start(self, plugin: Any, job: Job, path: Path) -> None:
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

    def read(self, line: str, seen: Seen) -> None:
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
    def _bracket(seen: Seen, upper: str, lower: str) -> None:
        if abs(float(upper)) < 1e49:
            seen.upper = min(seen.upper, float(upper))
        if abs(float(lower)) < 1e49:
            seen.lower = max(seen.lower, float(lower))


class Glpk(Process):
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

    def read(self, line: str, seen: Seen) -> None:
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
