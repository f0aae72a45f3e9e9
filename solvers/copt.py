"""COPT through coptpy's matrix API; an extra (``pip install milpver[copt]``).

Without a licence file the pip package solves mixed-integer programs of up to 2000 columns and 2000 rows, for
non-commercial use. COPT takes no random seed: the same program is searched the same way.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

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
    settled,
    solved,
    unknown_option,
)

__all__ = ["SOLVER", "Copt"]

#: Integrality and dual tolerance; that of feasibility is ``TOLERANCE``.
FINE_TOLERANCE = 1e-9
#: COPT takes 1e30 for infinite (its bounds are best below 1e20), and drops entries of 1e-10 (MatrixTol).
INFINITE, SMALLEST_ENTRY = 1e20, 1e-10
TRAITS = Traits("COPT", INFINITE, SMALLEST_ENTRY, takes_ctrl_c=True)
#: What COPT solves without a licence, columns and rows each.
FREE_SIZE = 2000
#: COPT takes this for "no limit" of time.
FOREVER = 1e20
#: The code of COPT's errors about the licence.
LICENCE_ERROR = 4

#: Where C's standard output points to is one thing for all threads.
_MUTE = threading.Lock()

_TOLERANCES = "leave it: results state the tolerance that they rest on"
#: Parameters that the contract sets itself (in lower case: COPT ignores case), and where to say the same.
RESERVED = {
    "timelimit": "give the time limit as --timeout",
    "soltimelimit": "give the time limit as --timeout",
    "relgap": "give the (absolute) gap as --gap",
    "absgap": "give the gap as --gap",
    "threads": "give the number of threads as --threads",
    "memlimit": "give the memory limit as --memory",
    "logging": "ask for a log with --solver-log",
    "logtoconsole": "ask for a log with --solver-log",
    "presolve": "leave it: presolving gives wrong optima",
    "feastol": _TOLERANCES,
    "inttol": _TOLERANCES,
    "dualtol": _TOLERANCES,
    "matrixtol": "leave it: it would change the program",
}


class Copt:
    """The COPT backend; it holds no state."""

    name = "copt"
    tolerance = TOLERANCE

    def availability(self) -> Availability:
        """Whether coptpy is installed; takes no licence, so whether that is valid shows when solving."""
        return package_availability(
            "coptpy",
            "coptpy",
            "pip install coptpy",
            limits=f"{FREE_SIZE} columns and {FREE_SIZE} rows without a licence file, non-commercial use",
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
        """See ``Solver.solve``; options are the parameters of COPT's reference manual.

        Raises:
            SolverUnavailableError: coptpy is not installed, or its licence is invalid or too small.
            QueryError: an unknown parameter, a value that COPT does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or a misplaced infinity, or the start has a wrong length.
        """
        coptpy = _coptpy()
        try:
            environment = _environment(coptpy)
            try:
                settings = _settings(coptpy, environment, limits, options or {})
                return solved(
                    TRAITS,
                    program,
                    limits,
                    lambda job: settled("COPT", lambda part: _run(coptpy, environment, settings, part), job),
                    start=start,
                    options=options,
                    should_stop=should_stop,
                )
            finally:
                environment.close()
        except coptpy.CoptError as error:
            raise _licence_error(error, program) or error from None


def _coptpy() -> ModuleType:
    return imported("copt", "coptpy", "coptpy")


def _licence_error(error: Any, program: Program) -> SolverUnavailableError | None:
    """The one line for an error that is about the licence, or None."""
    if error.retcode != LICENCE_ERROR:
        return None
    if max(program.columns, program.rows) > FREE_SIZE:
        return SolverUnavailableError(
            f"solver copt: a program of {program.columns} columns and {program.rows} rows",
            needed=f"a licence for that size (without one COPT ends at {FREE_SIZE} of each)",
            fix="install a licence (www.shanshu.ai/copt), or choose --solver highs",
        )
    said = " ".join(str(error.message).split())
    return SolverUnavailableError(
        f"solver copt: {said}", needed="a valid licence", fix="renew it, or choose --solver highs"
    )


@contextmanager
def _muted() -> Iterator[None]:
    """C's standard output into nowhere: COPT says there which licence it found, whatever it is asked."""
    with _MUTE:
        try:
            kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # there is none
            yield
            return
        try:
            os.dup2(nowhere, 1)
            yield
        finally:
            with suppress(OSError, AttributeError, TypeError):  # not everywhere is libc called so
                ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)


def _environment(coptpy: Any) -> Any:
    with _muted():
        config = coptpy.EnvrConfig()
        config.set("nobanner", "1")
        return coptpy.Envr(config)


def _model(environment: Any) -> Any:
    """An empty model that prints nothing."""
    model = environment.createModel("")
    model.setParam("Logging", 0)
    model.setParam("LogToConsole", 0)
    return model


def _settings(coptpy: Any, environment: Any, limits: Limits, options: Mapping[str, str]) -> dict[str, Any]:
    """All parameters to set, the user's checked against COPT's own list, types and ranges."""
    settings: dict[str, Any] = {
        "RelGap": 0.0,
        "AbsGap": limits.gap,
        "Threads": min(limits.threads, 128),
        "FeasTol": TOLERANCE,
        "IntTol": FINE_TOLERANCE,
        "DualTol": FINE_TOLERANCE,
        # Of 7,500 random networks (big-M up to 1e8, faint neurons), COPT 8 cut the optimum of 11 off and said
        # "infeasible" of one with presolving, whatever its tolerances; of none without.
        "Presolve": 0,
    }
    if not options:
        return settings
    known = {name.casefold(): name for name in dir(coptpy.COPT.Param) if not name.startswith("_")}
    model = _model(environment)
    for key, text in options.items():
        if key.casefold() in RESERVED:
            raise reserved_option("copt", key, RESERVED[key.casefold()])
        if key.casefold() not in known:
            raise unknown_option("copt", key, known.values())
        name = known[key.casefold()]
        _, _, default, least, most = model.getParamInfo(name)
        value = converted_option("copt", key, text, type(default))
        if not least <= value <= most:
            raise QueryError(
                f"copt option {key}={text}",
                needed=f"a value from {least:g} to {most:g}",
                fix=f"look {name} up in the manual of COPT",
            )
        settings[name] = value
    return settings


def _run(coptpy: Any, environment: Any, settings: Mapping[str, Any], job: Job) -> Outcome | None:
    """One run of COPT; None where it says "unbounded" or "infeasible or unbounded"."""
    mixed, watch, codes = bool(job.program.integer.any()), job.watch, coptpy.COPT
    if watch.remaining <= 0:
        return Outcome(Stop.TIMEOUT)
    model = _model(environment)
    try:
        if job.limits.log is not None:
            with _muted():  # it says that it is told to say nothing
                model.setLogCallback(None)
                model.setLogFile(str(job.limits.log))
                model.setParam("Logging", 1)
                model.setParam("LogToConsole", 0)
        for name, value in {**settings, "TimeLimit": min(watch.remaining, FOREVER)}.items():
            model.setParam(name, value)
        _build(model, job.program, codes.INFINITY)
        if mixed:
            if job.start is not None:
                _pass_start(model, job.start)
            model.setCallback(
                _callback(coptpy, watch),
                codes.CBCONTEXT_INCUMBENT | codes.CBCONTEXT_MIPNODE | codes.CBCONTEXT_MIPRELAX,
            )
        job.stoppers.append(model.interrupt)
        try:
            if watch.reason is None:
                model.solve()
        finally:
            job.stoppers.clear()
        return _outcome(codes, model, mixed, watch)
    finally:
        model.dispose()


def _build(model: Any, program: Program, infinity: float) -> None:
    """Hand the program over in whole arrays; rows without limits stay behind."""
    bounded = np.flatnonzero(np.isfinite(program.row_lower) | np.isfinite(program.row_upper))
    model.loadMatrix(
        program.objective,
        sparse.csc_matrix(program.matrix[bounded]),  # coptpy takes no array of scipy
        np.maximum(program.row_lower[bounded], -infinity),
        np.minimum(program.row_upper[bounded], infinity),
        np.maximum(program.lower, -infinity),
        np.minimum(program.upper, infinity),
        np.where(program.integer, "I", "C"),
    )
    model.setObjConst(program.offset)


def _pass_start(model: Any, start: Float) -> None:
    """Hand a start over; COPT completes a partial one and rejects an infeasible one, which is harmless."""
    columns = model.getVars()
    known = np.flatnonzero(~np.isnan(start)).tolist()
    model.setMipStart([columns[j] for j in known], start[known].tolist())
    model.loadMipStart()


def _callback(coptpy: Any, watch: Watch) -> Any:
    """A callback that reports after nodes, relaxations and new incumbents."""
    info = coptpy.COPT.CbInfo

    class Callback(coptpy.CallbackBase):  # type: ignore[misc]  # imported lazily
        nodes = 0

        def callback(self) -> None:
            self.nodes += self.where() == coptpy.COPT.CBCONTEXT_MIPNODE
            lower = _finite(self.getInfo(info.BestBnd))
            upper = _finite(self.getInfo(info.BestObj)) if self.getInfo(info.HasIncumbent) else np.inf
            if watch.report(self.nodes, lower, upper):
                self.interrupt()

    return Callback()


def _finite(value: float) -> float:
    """COPT's 1e30 as an infinity."""
    return float(np.copysign(np.inf, value)) if abs(value) >= INFINITE else float(value)


def _outcome(codes: Any, model: Any, mixed: bool, watch: Watch) -> Outcome | None:
    """Every status of COPT, mapped; one that is not listed is an error."""
    status = model.Status
    if status in {codes.UNBOUNDED, codes.INF_OR_UNB}:
        return None
    stops = {
        codes.OPTIMAL: Stop.OPTIMAL,
        codes.INFEASIBLE: Stop.INFEASIBLE,
        codes.TIMEOUT: Stop.TIMEOUT,
        codes.NODELIMIT: Stop.TIMEOUT,
        codes.ITERLIMIT: Stop.TIMEOUT,
        codes.INTERRUPTED: watch.reason or Stop.INTERRUPTED,
    }
    if status == codes.UNSTARTED and watch.reason is not None:
        return Outcome(watch.reason)
    stop = stops.get(status, Stop.ERROR)
    told = stop is not Stop.ERROR and (stop is not Stop.TIMEOUT or status == codes.TIMEOUT)
    names = ("NUMERICAL", "IMPRECISE", "UNFINISHED", "UNSTARTED", "NODELIMIT", "ITERLIMIT")
    said = next((name.lower() for name in names if getattr(codes, name) == status), status)
    message = "" if told else f"COPT: {said}"
    nodes = max(0, int(model.NodeCnt)) if mixed else 0
    if stop is Stop.INFEASIBLE:
        return Outcome(stop, np.inf, np.inf, None, nodes)
    x, lower, upper = None, -np.inf, np.inf
    if model.HasMipSol if mixed else stop is Stop.OPTIMAL:
        x = np.array(model.getValues(), dtype=np.float64)
        upper = float(model.ObjVal)
    if mixed:
        lower = _finite(model.BestBnd)
    elif stop is Stop.OPTIMAL:
        lower = upper
    return Outcome(stop, lower, upper, x, nodes, message)


SOLVER = Copt()
