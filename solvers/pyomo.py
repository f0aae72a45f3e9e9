"""Solvers that Pyomo drives, as ``pyomo:NAME``; an extra (``pip install milpver[pyomo]``).

Two kinds: ``_pyomo_models`` for those that Pyomo fills in this process, ``_pyomo_processes`` for programs of
their own. Here is what both share: the names, and what is made of answers that several solvers mix up.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from milpver.errors import PluginError, SolverUnavailableError
from milpver.linear import Float
from milpver.program import Program
from milpver.registry import Factory, near
from milpver.solver import Availability, Limits, Progress, Solution
from milpver.solvers._common import (
    Job,
    Outcome,
    Traits,
    package_availability,
    settled,
    solved,
    trivial,
)
from milpver.solvers._pyomo_driver import Driver, idle
from milpver.solvers._pyomo_models import HighsDriver, ScipDriver
from milpver.solvers._pyomo_processes import Cbc, Glpk

__all__ = ["SOLVER", "Pyomo", "PyomoSolver"]

#: CBC and GLPK take numbers from 1e30 and about 1.8e308 on for infinite; entries below 1e-10 count as zeros.
INFINITE, SMALLEST_ENTRY = 1e20, 1e-9

_DRIVERS: dict[str, Driver] = {driver.name: driver for driver in (HighsDriver(), ScipDriver(), Cbc(), Glpk())}


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


class PyomoSolver:
    """A solver that Pyomo drives; it holds no state."""

    def __init__(self, driver: Driver) -> None:
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
        state = self.availability()
        if not state.available:
            found, _, fix = state.reason.partition("; fix: ")
            raise SolverUnavailableError(
                f"solver {self.name}: {found}", needed="an installed solver", fix=fix
            )
        importlib.import_module("pyomo.environ")  # seconds the first time, which are not the solver's
        self._driver.check_options(limits, options or {})
        return solved(
            Traits(self.name, INFINITE, SMALLEST_ENTRY),
            program,
            limits,
            self._minimise,
            start=start,
            options=options,
            should_stop=should_stop,
        )

    def _minimise(self, job: Job) -> Outcome:
        """Solve, and resolve "infeasible or unbounded", which several solvers say too soon or mix up."""
        # What was to be solved can have been emptied by ``conditioned``.
        outcome = trivial(job.program) or idle(job.program)
        if outcome is not None:
            return outcome
        with _quiet():
            return settled(self.name, lambda part: idle(part.program) or self._driver.run(part), job)


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


SOLVER = Pyomo()
