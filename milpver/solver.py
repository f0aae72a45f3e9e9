"""The contract of a MILP solver: what it is asked, what it answers, and why it stopped.

A backend is one file in ``solvers/`` with a ``SOLVER`` object that fulfils ``Solver``. What a solver says
is never a verdict by itself: see ``witness`` and the assurance rule of ``verdict``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from milpver.linear import Float
from milpver.program import Program

__all__ = ["Availability", "Limits", "Progress", "Solution", "Solver", "Stop"]


class Stop(Enum):
    """Why a solver stopped; what it found stands beside it in the Solution."""

    OPTIMAL = "optimal"
    """The gap closed; the dual bound and the incumbent are within the gap asked for."""
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    TARGET = "target"
    """A stop of decision mode: the incumbent reached ``objective_stop`` or the bound ``bound_stop``."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    INTERRUPTED = "interrupted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop.

    Attributes:
        seconds: wall-clock limit; infinity for none.
        gap: absolute gap between incumbent and dual bound at which the program counts as solved.
        threads: number of threads, at least 1.
        seed: random seed.
        memory: bytes that the process may hold while solving (as far as the system tells), or None.
        objective_stop: stop as soon as an incumbent has an objective <= this.
        bound_stop: stop as soon as the dual bound is > this.
        log: file that the solver's own log goes to, in a folder that is there; None for no log.
    """

    seconds: float = float("inf")
    gap: float = 1e-6
    threads: int = 1
    seed: int = 0
    memory: int | None = None
    objective_stop: float | None = None
    bound_stop: float | None = None
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running solver reports."""

    seconds: float
    nodes: int
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What came back.

    Attributes:
        stop: why it stopped.
        lower: dual bound on the optimum (minimisation); -inf where there is none, +inf where infeasible.
        upper: objective of the incumbent as the solver states it; +inf where there is none.
        x: the incumbent, float64 [columns], or None.
        nodes: branch-and-bound nodes.
        seconds: wall-clock time inside the solver.
        message: one line, where something went wrong.
        disputed: solvers contradict each other on this program.
    """

    stop: Stop
    lower: float
    upper: float
    x: Float | None
    nodes: int
    seconds: float
    message: str = ""
    disputed: bool = False


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a backend can run here.

    Attributes:
        available: it can.
        version: of the solver, or "" where it is missing.
        reason: why it cannot, one line with the way to mend it; "" where it can.
        limits: licence limits in words, "" for none.
    """

    available: bool
    version: str = ""
    reason: str = ""
    limits: str = ""


class Solver(Protocol):
    """A MILP backend.

    One that also takes squares in the objective (``Program.squares``) says so by an attribute
    ``squares = True``; the others raise QueryError for such a program.
    """

    @property
    def name(self) -> str:
        """The name it is asked for by, e.g. ``highs``."""

    @property
    def tolerance(self) -> float:
        """Absolute feasibility and integrality tolerance that its bounds are subject to."""

    def availability(self) -> Availability:
        """Whether it can run here; never raises, never takes a licence it would have to give back."""

    def solve(
        self,
        program: Program,
        limits: Limits,
        *,
        start: Float | None = None,
        options: Mapping[str, str] | None = None,
        should_stop: Callable[[Progress], bool] | None = None,
    ) -> Solution:
        """Minimise the program.

        Args:
            program: what to solve.
            limits: when to stop.
            start: a feasible point to start from, float64 [columns], NaN where unknown; a hint only. A
                complete one also guards: a dual bound above it, or "infeasible", becomes ``Stop.ERROR``.
            options: the solver's own parameters.
            should_stop: asked now and then in the caller's thread; True interrupts (``Stop.INTERRUPTED``).

        Raises:
            SolverUnavailableError: not installed, not licensed, or the licence is too small.
            QueryError: an unknown option, a value the solver does not take, one that ``limits`` sets.
            ValueError: the program holds NaN or misplaced infinities, or the start has a wrong length.
            KeyboardInterrupt: Ctrl-C, once the solver has stopped; ``should_stop`` saw the last bracket.
        """
