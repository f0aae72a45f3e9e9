"""What every question shares while it runs: plug-ins, clock, solver calls, the constant part of a verdict."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver import __version__, registry
from milpver.bounding import Bounding
from milpver.bounds._tensors import TensorGraph, pick_device
from milpver.cross_check import CrossCheck
from milpver.encoding import Encoding
from milpver.errors import PluginError, QueryError
from milpver.network import Network
from milpver.program import Program
from milpver.query import NATIVE, Options
from milpver.replay import Replay
from milpver.solver import Limits, Progress, Solution, Solver, Stop
from milpver.verdict import SCHEMA_VERSION, Status

__all__ = [
    "CROSS_CHECK_FOLDER",
    "NATIVE",
    "Clock",
    "RunContext",
    "load_solver",
    "make_folder",
    "solver_named",
    "status_of",
]

#: Where disagreements go without ``--solver-log``.
CROSS_CHECK_FOLDER = Path("milpver-cross-check")


class Clock:
    """The time of one input: a limit, and what of it is left."""

    def __init__(self, limit: float, spent: float = 0.0) -> None:
        self._start = time.perf_counter() - spent
        self._limit = limit
        self._end: float | None = None

    def stop(self) -> None:
        """Let no more time pass."""
        self._end = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent."""
        return (time.perf_counter() if self._end is None else self._end) - self._start

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._limit - self.seconds)


@dataclass(frozen=True, eq=False)
class RunContext:
    """What is the same for all inputs of a run, whatever the question.

    Attributes:
        network: the classifier.
        options: how to answer.
        bounding, encoding, solver: the plug-ins that the options name.
        replay: the original file in ONNX Runtime.
        should_stop: asked now and then; True means that the user wants to stop.
    """

    network: Network
    options: Options
    bounding: Bounding
    encoding: Encoding
    solver: Solver
    replay: Replay
    should_stop: Callable[[], bool] | None = None

    @classmethod
    def create(
        cls, network: Network, options: Options, should_stop: Callable[[], bool] | None = None
    ) -> RunContext:
        """Load the plug-ins and the replay session.

        Raises:
            PluginError: an unknown name.
            QueryError: the folder for logs cannot be made, or solvers to cross-check make no sense.
        """
        if options.solver_log is not None:
            make_folder(options.solver_log)
        return cls(
            network=network,
            options=options,
            bounding=registry.load("bounds", options.bounds),
            encoding=registry.load("encodings", options.encoding),
            solver=load_solver(options),
            replay=Replay(network, threads=options.threads),
            should_stop=should_stop,
        )

    @cached_property
    def tensors(self) -> TensorGraph:
        """The graph on the device of the run, for native searches."""
        return TensorGraph(self.network.graph, pick_device(self.options.device))

    @cached_property
    def solver_version(self) -> str:
        """Version of what the options name: of milpver itself, and of its fallback, for native searches."""
        version = self.solver.availability().version
        return f"{__version__} ({self.solver.name} {version})" if self.native else version

    @property
    def native(self) -> bool:
        """Whether milpver's own search answers where there is one.

        ``auto`` leaves the field to its backend where options are given that only a backend has.
        """
        options = self.options
        backend = bool(options.solver_options) or options.solver_log is not None
        own = options.solver == "bab" or (options.solver == "auto" and not backend)
        return own and not options.cross_check

    def interrupted(self) -> bool:
        """Whether the user wants to stop."""
        return self.should_stop is not None and self.should_stop()

    def solve(
        self,
        program: Program,
        seconds: float,
        *,
        objective_stop: float | None = None,
        bound_stop: float | None = None,
        gap: float | None = None,
        name: str = "program",
    ) -> Solution:
        """Minimise a program under the run's options, within ``seconds``.

        Half of the gap is the solver's (where none is given), so that the bracket between its bound and the
        replayed witness closes within the whole of it. ``name`` says in the log's file name what is solved.

        Raises:
            SolverUnavailableError: the solver is missing, or not licensed for this program.
        """
        limits = Limits(
            seconds=seconds,
            gap=self.options.gap / 2 if gap is None else gap,
            threads=self.options.threads,
            seed=self.options.seed,
            memory=self.options.memory,
            objective_stop=objective_stop,
            bound_stop=bound_stop,
            log=self._log(name),
        )
        return self.solver.solve(
            program,
            limits,
            options=self.options.solver_options,
            should_stop=None if self.should_stop is None else self._asked,
        )

    def _log(self, name: str) -> Path | None:
        """A file for the log of a solve that is not there yet."""
        folder = self.options.solver_log
        if folder is None:
            if not self.options.cross_check:
                return None
            folder = CROSS_CHECK_FOLDER
        stem = f"{name}-{self.solver.name}".replace(":", "-").replace(",", "-")
        path, again = folder / f"{stem}.log", 1
        while path.exists():
            again += 1
            path = folder / f"{stem}-{again}.log"
        return path

    def _asked(self, progress: Progress) -> bool:
        del progress
        return self.interrupted()

    @staticmethod
    def hashed(x: NDArray[np.float32]) -> str:
        """What records call ``input_sha256``."""
        return hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").data).hexdigest()

    def constant_fields(self, x: NDArray[np.float32] | None = None) -> dict[str, Any]:
        """The fields of a verdict that only the run and the input decide; without one, the run alone."""
        options = self.options
        return {
            "schema_version": SCHEMA_VERSION,
            "milpver": __version__,
            "solver_version": self.solver_version,
            "model_sha256": self.network.sha256,
            "encoding": options.encoding,
            "bounds": options.bounds,
            "gap": options.gap,
            "timeout": options.timeout,
            "threads": options.threads,
            "seed": options.seed,
            **({} if x is None else {"input_sha256": self.hashed(x)}),
        }


def solver_named(name: str) -> Solver:
    """The backend of a name; that of what the native searches do not cover for theirs.

    Raises:
        PluginError: an unknown name.
    """
    try:
        found: Solver = registry.load("solvers", NATIVE.get(name, name))
    except PluginError:
        registry.check("solvers", name, also=NATIVE)  # the same, with the native searches in its message
        raise
    return found


def load_solver(options: Options) -> Solver:
    """The backend that the options name, or several that have to agree.

    Raises:
        PluginError: an unknown name.
        QueryError: fewer than two solvers to compare, or one of them twice.
    """
    names = options.cross_check
    if not names:
        return solver_named(options.solver)
    if options.solver == "bab":
        raise QueryError(
            f"--cross-check with --solver {options.solver}, which is milpver's own search",
            needed="MILP solvers to compare",
            fix="leave out --solver",
        )
    if len(names) < 2 or len(set(names)) < len(names):
        raise QueryError(
            f"--cross-check {','.join(names)}",
            needed="two or more different solvers",
            fix="write e.g. --cross-check highs,scip",
        )
    return CrossCheck([registry.load("solvers", name) for name in names], keep=options.solver_log is not None)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raises:
        QueryError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueryError(
            f"--solver-log {folder}: {error.strerror or error}",
            needed="a folder that can be written to",
            fix="name another folder",
        ) from error


_STATUS = {
    Stop.OPTIMAL: Status.OPTIMAL,
    Stop.TARGET: Status.DECIDED,
    Stop.TIMEOUT: Status.TIMEOUT,
    Stop.MEMORY: Status.MEMORY,
    Stop.INTERRUPTED: Status.INTERRUPTED,
    Stop.INFEASIBLE: Status.INFEASIBLE,
    Stop.UNBOUNDED: Status.ERROR,
    Stop.ERROR: Status.ERROR,
}


def status_of(stop: Stop) -> Status:
    """The status that a solver's stop amounts to."""
    return _STATUS[stop]
