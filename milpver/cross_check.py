"""Several solvers on the same program, which have to agree: what they all vouch for, or a dispute.

Each proves a bracket [lower, upper] of the optimum. Two brackets that do not meet, beyond tolerances, mean
that one of the solvers is wrong; which one cannot be told from here, so nothing of either is used. The
program and both logs are kept, for the solver's maintainers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from milpver.errors import MilpverError
from milpver.exchange import write_program
from milpver.linear import Float
from milpver.program import Program
from milpver.solver import Availability, Limits, Progress, Solution, Solver, Stop

__all__ = ["AGREEMENT", "CrossCheck", "contradiction"]

#: How far apart two brackets may be, times max(1, size of the objective), before they contradict each other:
#: ten times the feasibility tolerance of every backend.
AGREEMENT = 1e-6


class CrossCheck:
    """Solves with each of several solvers, one after the other, and compares.

    Args:
        solvers: at least two.
        keep: whether logs are wanted where all agree, too.
    """

    def __init__(self, solvers: Sequence[Solver], *, keep: bool = False) -> None:
        self._solvers = tuple(solvers)
        self._keep = keep
        self.name = f"cross-check:{','.join(solver.name for solver in solvers)}"
        self.squares = all(getattr(solver, "squares", False) for solver in solvers)
        self.tolerance = max(solver.tolerance for solver in solvers)

    def availability(self) -> Availability:
        """Available where all of them are."""
        states = [solver.availability() for solver in self._solvers]
        missing = [
            f"{solver.name}: {state.reason}"
            for solver, state in zip(self._solvers, states, strict=True)
            if not state.available
        ]
        if missing:
            return Availability(False, reason="; ".join(missing))
        return Availability(
            True,
            ", ".join(state.version for state in states),
            limits="; ".join(state.limits for state in states if state.limits),
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
        """See ``Solver.solve``; the time is shared equally, what one leaves goes to the next.

        The answer is what all vouch for: the lowest of their bounds, the best of their points. Where they
        contradict each other it is ``Stop.ERROR`` with ``disputed``, and the program stands beside the logs.

        Raises:
            SolverUnavailableError: one of them cannot run here, or not on this program.
            QueryError: an option that one of them does not take.
        """
        with TemporaryDirectory(prefix="milpver-") as folder:
            found: list[Solution] = []
            logs: list[Path] = []
            for k, solver in enumerate(self._solvers):
                spent = sum(solution.seconds for solution in found)
                seconds = max(0.0, limits.seconds - spent) / (len(self._solvers) - k)
                safe = solver.name.replace(":", "-")
                logs.append(Path(folder, f"{k}-{safe}.log"))
                own = replace(limits, seconds=seconds, log=None if limits.log is None else logs[-1])
                found.append(
                    solver.solve(program, own, start=start, options=options, should_stop=should_stop)
                )
                if found[-1].stop in (Stop.INTERRUPTED, Stop.MEMORY):
                    break
            said = self._dispute(program, found)
            target = None if limits.log is None else limits.log.with_suffix("")
            if target is not None and (said or self._keep):
                self._save(target, logs, program if said else None)
            if said:
                where = "" if target is None else f"; the program and the logs are in {target}.*"
                return _joined(found, Stop.ERROR, f"{said}{where}", disputed=True)
        return _combined(found)

    def _dispute(self, program: Program, found: Sequence[Solution]) -> str:
        """In words, the first contradiction among all pairs; "" for none."""
        named = list(zip(self._solvers, found, strict=False))
        for (one, a), (other, b) in permutations(named, 2):
            said = contradiction(program, a, b)
            if said:
                return f"solvers disagree: {one.name} says {said[0]}, {other.name} {said[1]}"
        return ""

    @staticmethod
    def _save(target: Path, logs: Sequence[Path], program: Program | None) -> None:
        """Put the logs beside each other, and the program where there is a dispute, as far as possible."""
        with suppress(OSError, MilpverError):
            target.parent.mkdir(parents=True, exist_ok=True)
            for log in logs:
                if log.is_file():
                    shutil.copyfile(log, Path(f"{target}.{log.name}"))
            if program is not None:
                write_program(program, Path(f"{target}.mps"))


def contradiction(program: Program, one: Solution, other: Solution) -> tuple[str, str] | None:
    """What two solvers say that cannot both be, seen from the first one's lower bound; None where they can.

    A bound above another's incumbent by more than ``AGREEMENT`` (times the size of what the objective adds up
    at it); "infeasible" against an incumbent; "unbounded" against a bound.
    """
    if Stop.ERROR in (one.stop, other.stop):
        return None
    if one.stop is Stop.UNBOUNDED:
        bounded = other.stop in (Stop.OPTIMAL, Stop.INFEASIBLE)
        return ("unbounded", _words(other)) if bounded else None
    if other.x is None:
        return None
    size = max(1.0, abs(program.offset) + float(np.abs(program.objective) @ np.abs(other.x)))
    if one.lower > other.upper + AGREEMENT * size:
        return _words(one), _words(other)
    return None


def _words(solution: Solution) -> str:
    if solution.stop in (Stop.INFEASIBLE, Stop.UNBOUNDED):
        return str(solution.stop.value)
    return f"[{solution.lower:.9g}, {solution.upper:.9g}] ({solution.stop.value})"


def _joined(found: Sequence[Solution], stop: Stop, message: str, *, disputed: bool = False) -> Solution:
    """One solution of several: the lowest bound, the best point."""
    best = min(found, key=lambda solution: solution.upper)
    error = stop is Stop.ERROR
    return Solution(
        stop=stop,
        lower=-np.inf if error else min(*(s.lower for s in found), best.upper),
        upper=best.upper,
        x=best.x,
        nodes=sum(solution.nodes for solution in found),
        seconds=sum(solution.seconds for solution in found),
        message=message,
        disputed=disputed,
    )


def _combined(found: Sequence[Solution]) -> Solution:
    """What solvers that do not contradict each other vouch for together; one that did not finish decides."""
    stops = [solution.stop for solution in found]
    for stop in (Stop.ERROR, Stop.INTERRUPTED, Stop.MEMORY, Stop.TIMEOUT):
        if stop in stops:
            return _joined(found, stop, found[stops.index(stop)].message)
    if len(set(stops)) == 1 and stops[0] is not Stop.OPTIMAL:
        return _joined(found, stops[0], "")
    if Stop.UNBOUNDED in stops:
        said = ", ".join(stop.value for stop in stops)
        return _joined(found, Stop.ERROR, f"solvers disagree: {said}", disputed=True)
    # Some stopped at a target that others went past, or all are optimal.
    return _joined(found, Stop.OPTIMAL if set(stops) == {Stop.OPTIMAL} else Stop.TARGET, "")
