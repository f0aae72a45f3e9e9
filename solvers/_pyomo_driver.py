"""What the drivers of ``pyomo:NAME`` have in common; the underscore keeps this file out of the registry."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from milpver.linear import Float
from milpver.program import Program
from milpver.solver import Availability, Limits, Stop
from milpver.solvers._common import TOLERANCE, Job, Outcome

__all__ = ["STACK", "Driver", "idle", "nearest_zero"]

#: Pyomo's stack of temporary files and its captured streams are one for all threads.
STACK = threading.Lock()


class Driver:
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

    def run(self, job: Job) -> Outcome | None:
        """Solve; None for "infeasible or unbounded"."""
        raise NotImplementedError


def idle(program: Program) -> Outcome | None:
    """The answer where nothing is asked, which some solvers call an empty model; None otherwise."""
    if program.matrix.nnz or program.objective.any():
        return None
    return Outcome(Stop.OPTIMAL, program.offset, program.offset, nearest_zero(program))


def nearest_zero(program: Program) -> Float:
    """The point within the columns' bounds that is nearest to 0."""
    nearest: Float = np.clip(0.0, program.lower, program.upper)
    return nearest
