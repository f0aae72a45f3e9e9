"""Bounds by linear programs: every neuron whose ends matter by two of them (OBBT), then the rows.

Optimisation-based bound tightening (Tjeng, Xiao and Tedrake 2019, section 4.3, "LP") over the relaxation
of ``_relaxation``, which knows the budget: layer by layer, so that what one layer gains tightens the next. It
begins with alpha-CROWN's bounds and meets them: no bound is worse. HiGHS gives multipliers, nothing else is
taken from it; what they prove is computed here, rounded outward.

One program a layer, handed over once: only its objective changes, and each solve begins at the last basis.
An end that a solution before has reached is not asked for: no program can tighten it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from milpver.bounding import Bounds
from milpver.bounds._crown import entries_that_matter, worth_tightening
from milpver.bounds._relaxation import Cost, LinearProgram, relaxed
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.bounds.alpha_crown import BOUNDING as ALPHA_CROWN
from milpver.graph import Affine, Gate, Graph, Input
from milpver.linear import Float
from milpver.query import Budget

if TYPE_CHECKING:
    from types import ModuleType

#: highspy's integers: row-wise format, minimisation, the primal simplex method.
_ROW_WISE, _MINIMISE, _PRIMAL = 2, 1, 4
#: The last basis stays feasible where only the objective changes, which is the primal method's case.
_SETTINGS: dict[str, bool | int | float | str] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "solver": "simplex",
    "presolve": "off",
    "simplex_strategy": _PRIMAL,
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}
#: Multipliers proven at once.
_TOGETHER = 64
#: A row whose sides are closer than this, relative to their size, is an equation.
_NARROW = 1e-9
#: An end counts as reached by a solution this close to it, relative to the values' size.
_REACHED = 1e-7


@dataclass(frozen=True)
class LinearPrograms:
    """Bounds by linear programs.

    Attributes:
        name: as asked for.
    """

    name: str

    def bound(
        self,
        graph: Graph,
        lower: Float,
        upper: Float,
        budget: Budget,
        rows: Float,
        device: str,
        *,
        hurry: Callable[[], bool] | None = None,
    ) -> Bounds:
        """See ``milpver.bounding.Bounding``; in a hurry, what has been tightened so far.

        The programs are solved on the CPU, box by box, by one thread; alpha-CROWN runs on ``device``. What
        infinite or huge values (beyond 1e9) stand in front of keeps alpha-CROWN's bounds.
        """
        first = ALPHA_CROWN.bound(graph, lower, upper, budget, rows, device, hurry=hurry)
        tensors = TensorGraph(graph, torch.device("cpu"))
        found = [
            _Tightening(tensors, budget, first.of(i), rows[i], hurry).run(lower[i : i + 1], upper[i : i + 1])
            for i in range(len(lower))
        ]
        nodes = range(len(graph.nodes))
        return Bounds(
            tuple(np.concatenate([box.lower[node] for box in found]) for node in nodes),
            tuple(np.concatenate([box.upper[node] for box in found]) for node in nodes),
            np.concatenate([box.rows_lower for box in found]),
        )


@dataclass(eq=False)
class _Tightening:
    """One box.

    Attributes:
        tensors, budget: the query.
        first: alpha-CROWN's bounds, a batch of one.
        rows: float64 [rows, outputs].
        hurry: see ``Bounding``.
    """

    tensors: TensorGraph
    budget: Budget
    first: Bounds
    rows: Float
    hurry: Callable[[], bool] | None
    space: Workspace = field(init=False)

    def run(self, lower: Float, upper: Float) -> Bounds:
        """Tighten node by node; ``lower``, ``upper``: the box, float64 [1, inputs]."""
        graph, first = self.tensors.graph, self.first
        ends = zip(first.lower, first.upper, strict=True)
        known = {i: (torch.tensor(low), torch.tensor(high)) for i, (low, high) in enumerate(ends)}
        point = bool(np.array_equal(lower, upper))
        self.space = Workspace(self.tensors, self.budget, point=point, known=known, hurry=self.hurry)
        for index, node in enumerate(graph.nodes):
            self.space.add(torch.tensor(lower), torch.tensor(upper))
            if isinstance(node, Affine) and index not in self._plain:
                self._tighten(index, node)
        last = len(graph.nodes) - 1
        rows_lower = first.rows_lower[0]
        if not self.space.hurried and last not in self._plain:
            rows_lower = self._minima(last, sparse.csr_array(self.rows), rows_lower)
        return Bounds(
            tuple(part.numpy() for part in self.space.lows),
            tuple(part.numpy() for part in self.space.highs),
            rows_lower[None],
        )

    @cached_property
    def _plain(self) -> frozenset[int]:
        """Nodes that alpha-CROWN bounds exactly: linear in the box, and in masks of what the input fixes."""
        found: set[int] = set()
        for index, node in enumerate(self.tensors.graph.nodes):
            through = isinstance(node, Affine) or (
                isinstance(node, Gate) and self.budget.group_of(index) is None
            )
            if (
                index in self.space.constants
                or isinstance(node, Input)
                or (isinstance(node, Gate) and self.space.settled(index))
                or (through and found.issuperset(node.sources))
            ):
                found.add(index)
        return frozenset(found)

    def _minima(self, index: int, rows: sparse.csr_array, known: Float) -> Float:
        """Lower bounds of rows over a node, none worse than those known, float64 [rows]."""
        lows = [part[0].numpy() for part in self.space.lows]
        highs = [part[0].numpy() for part in self.space.highs]
        found = relaxed(self.tensors.graph, self.budget, lows, highs, self.space.constants, index)
        return known if found is None else minima(found.program(), found.cost(index, rows), known, self.hurry)

    def _tighten(self, index: int, node: Affine) -> None:
        """Two programs for each entry that matters."""
        if not worth_tightening(self.space, index, node):
            return
        picked = np.flatnonzero(entries_that_matter(self.space, index)[0].numpy())
        if len(picked) == 0 or self.space.hurried:
            return
        low, high = (part[index].numpy().copy() for part in (self.space.lows, self.space.highs))
        ones = np.ones(len(picked))
        unit = sparse.csr_array((ones, (np.arange(len(picked)), picked)), shape=(len(picked), low.shape[1]))
        rows = sparse.csr_array(sparse.vstack([unit, -unit]))
        known = np.concatenate([low[0, picked], -high[0, picked]])
        least, negated = np.split(self._minima(index, rows, known), 2)
        low[0, picked], high[0, picked] = least, -negated
        self.space.lows[index], self.space.highs[index] = torch.tensor(low), torch.tensor(high)


def minima(
    program: LinearProgram, cost: Cost, known: Float, hurry: Callable[[], bool] | None = None
) -> Float:
    """Lower bounds of costs over a program, by one linear program each.

    Args:
        program: which no feasible point is missing from.
        cost: what to minimise.
        known: lower bounds of the costs, float64 [costs].
        hurry: once True, the costs that are left keep what is known.

    Returns:
        float64 [costs], rounded outward.
    """
    if program.matrix.shape[0] == 0:
        return np.maximum(known, program.proven(cost, np.zeros((len(known), 0))))
    bound = known.copy()
    reached = np.zeros(len(known), dtype=np.bool_)
    close = known + _REACHED * np.where(np.isfinite(known), 1.0 + np.abs(known), 0.0)
    waiting: list[int] = []
    duals: list[Float] = []

    def prove() -> None:
        if waiting:
            at = np.array(waiting)
            bound[at] = np.maximum(bound[at], program.proven(cost.pick(at), np.stack(duals)))
            waiting.clear()
            duals.clear()

    solver = _Simplex(program, hurry)
    for i in range(len(known)):
        if reached[i]:
            continue
        if hurry is not None and hurry():
            break
        answer = solver.minimise(cost.slopes[[i]].toarray()[0])
        if answer is None:
            continue
        x, y = answer
        reached |= cost.slopes @ x + cost.constant <= close
        waiting.append(i)
        duals.append(y)
        if len(waiting) == _TOGETHER:
            prove()
    prove()
    return bound


class _Simplex:
    """HiGHS on one program with changing objectives, each solve from the basis of the last."""

    def __init__(self, program: LinearProgram, hurry: Callable[[], bool] | None) -> None:
        import highspy  # noqa: PLC0415 - 0.1 s, needed only to solve

        self._solver: Any = highspy._core._Highs()  # the plain class, without highspy's modelling layer
        for key, value in _SETTINGS.items():
            self._solver.setOptionValue(key, value)
        matrix = program.matrix
        rows, columns = matrix.shape
        # What is widened by rounding alone is an equation to the solver: multipliers may come from anywhere.
        lower, upper = program.row_lower, program.row_upper
        narrow = np.isfinite(lower) & np.isfinite(upper) & (upper - lower <= _NARROW * (1.0 + np.abs(lower)))
        middle = np.where(narrow, lower, 0.0) / 2 + np.where(narrow, upper, 0.0) / 2
        self._columns = np.arange(columns, dtype=np.int32)
        self._solver.passModel(
            columns,
            rows,
            matrix.nnz,
            _ROW_WISE,
            _MINIMISE,
            0.0,
            np.zeros(columns),
            program.lower,
            program.upper,
            np.where(narrow, middle, lower),
            np.where(narrow, middle, upper),
            matrix.indptr,
            matrix.indices,
            matrix.data,
            np.zeros(columns, dtype=np.int32),
        )
        if hurry is not None:
            self._stop_for(hurry, highspy)

    def _stop_for(self, hurry: Callable[[], bool], highspy: ModuleType) -> None:
        """Have the simplex method ask now and then whether to stop."""

        def callback(_kind: int, _text: str, _data: Any, answer: Any, _user: object) -> None:
            if hurry():
                answer.user_interrupt = True

        self._solver.setCallback(callback, None)
        self._solver.startCallback(highspy.cb.HighsCallbackType.kCallbackSimplexInterrupt)

    def minimise(self, slopes: Float) -> tuple[Float, Float] | None:
        """A point and multipliers of the rows, neither of them exact; None where there are none."""
        self._solver.changeColsCost(len(slopes), self._columns, slopes)
        self._solver.run()
        found = self._solver.getSolution()
        if not (found.value_valid and found.dual_valid):
            return None
        return np.array(found.col_value, dtype=np.float64), np.array(found.row_dual, dtype=np.float64)


BOUNDING = LinearPrograms("lp")
