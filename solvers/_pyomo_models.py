"""Drivers of ``pyomo:NAME`` for solvers that live in this process: HiGHS and SCIP.

Pyomo builds a model of Python objects and fills the solver's own with it; how it went is read off the solver,
since Pyomo's results lack what the contract asks for (nodes, a reason for every stop).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from milpver.linear import Float
from milpver.program import Program
from milpver.solver import Availability, Limits, Stop
from milpver.solvers import highs as native_highs
from milpver.solvers import scip as native_scip
from milpver.solvers._common import Job, Outcome, Watch, package_availability
from milpver.solvers._pyomo_driver import STACK, Driver, nearest_zero

__all__ = ["HighsDriver", "ScipDriver", "highs_class", "pyomo_model", "timer"]


def pyomo_model(program: Program) -> tuple[Any, list[Any]]:
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


def highs_class(watch: Watch) -> Any:
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

            native_highs._report_to(highspy, solver, mixed, watch)
            highspy._core._Highs.run(solver)
            return native_highs._outcome(highspy, solver, mixed, watch)

    return Driven()


class HighsDriver(Driver):
    """HiGHS, filled by ``pyomo.contrib.solver``."""

    name = "highs"

    def availability(self) -> Availability:
        return package_availability("highspy", "highspy", "pip install highspy")

    def check_options(self, limits: Limits, options: Mapping[str, str]) -> None:
        native_highs._settings(native_highs._highspy(), limits, options)

    def run(self, job: Job) -> Outcome | None:
        highspy = native_highs._highspy()
        settings = native_highs._settings(highspy, job.limits, job.options)
        model, columns = pyomo_model(job.program)
        driver = highs_class(job.watch)
        try:
            with STACK:  # it captures the streams of the whole process meanwhile
                solver = driver.fill(model)
            at = np.array([driver.column_of(column) for column in columns])
            if not (at >= 0).any():
                # Rows without limits are no rows to Pyomo: nothing is asked of any column.
                offset = job.program.offset
                return Outcome(Stop.OPTIMAL, offset, offset, nearest_zero(job.program))
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
    return replace(outcome, x=np.where(at >= 0, outcome.x[np.maximum(at, 0)], nearest_zero(program)))


class ScipDriver(Driver):
    """SCIP, filled by ``pyomo.contrib.solver``."""

    name = "scip"

    def availability(self) -> Availability:
        return package_availability("pyscipopt", "PySCIPOpt", "pip install pyscipopt")

    def check_options(self, limits: Limits, options: Mapping[str, str]) -> None:
        native_scip._settings(native_scip._pyscipopt(), limits, options)

    def run(self, job: Job) -> Outcome | None:
        from pyomo.contrib.solver.solvers.scip.scip_direct import ScipDirect  # noqa: PLC0415 - an extra

        pyscipopt = native_scip._pyscipopt()
        settings = native_scip._settings(pyscipopt, job.limits, job.options)
        filled, columns = pyomo_model(job.program)
        driver = ScipDirect()
        config = driver.config(value={}, preserve_implicit=True)
        config.timer = timer()
        model, _, _ = driver._create_solver_model(filled, config)
        try:
            for column in columns:
                if column not in driver._pyomo_var_to_solver_var_map:
                    driver._add_var(column)
            places = [driver._pyomo_var_to_solver_var_map[column] for column in columns]
            model.hideOutput()
            outcome = native_scip._search(pyscipopt, model, places, settings, job)
            if outcome is None or outcome.x is None:
                return outcome
            # Pyomo's column for the objective meets the point within a tolerance only.
            return replace(outcome, upper=job.program.value(outcome.x))
        finally:
            model.free()


def timer() -> Any:
    from pyomo.common.timing import HierarchicalTimer  # noqa: PLC0415 - an extra

    return HierarchicalTimer()
