"""A solver-neutral mixed-integer linear program, and the builder that fills it in whole blocks.

    minimise  c^T x + offset   subject to  row_lower <= A x <= row_upper,  lower <= x <= upper,
    x_j integer for j in ``integer``.

The objective may have squares beside it, ``+ sum_j q_j x_j^2`` with q >= 0, for backends that take them.

Blocks of columns and rows are arrays, so that building costs no Python loop over neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver.linear import Float, Int

__all__ = ["Block", "Program", "ProgramBuilder"]

#: One summand of a block of rows: (columns [c], matrix [rows, c]).
Block: TypeAlias = tuple[Int, "sparse.csr_array | Float"]


@dataclass(frozen=True, eq=False)
class Program:
    """A mixed-integer linear program (minimisation).

    Attributes:
        objective: c, float64 [columns].
        offset: constant of the objective.
        lower, upper: column bounds, float64 [columns]; infinities allowed.
        integer: bool [columns].
        matrix: A, float64 CSR [rows, columns], no duplicates, no explicit zeros.
        row_lower, row_upper: float64 [rows]; infinities allowed.
        column_blocks: (name, first column, count) of each block, in order.
        squares: q, float64 [columns], >= 0; None for a linear objective.
    """

    objective: Float
    offset: float
    lower: Float
    upper: Float
    integer: NDArray[np.bool_]
    matrix: sparse.csr_array
    row_lower: Float
    row_upper: Float
    column_blocks: tuple[tuple[str, int, int], ...] = ()
    squares: Float | None = None

    @property
    def columns(self) -> int:
        """Number of columns."""
        return len(self.objective)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_lower)

    def column_names(self) -> list[str]:
        """``block[i]`` for each column, as exported files and messages show them."""
        return [f"{name}[{i}]" for name, _, count in self.column_blocks for i in range(count)]

    def with_objective(self, columns: Int, coefficients: Float, offset: float) -> Program:
        """The same feasible set with another, linear objective (all other coefficients zero)."""
        objective = np.zeros(self.columns)
        np.add.at(objective, columns, coefficients)
        return replace(self, objective=objective, offset=float(offset), squares=None)

    def with_squares(self, columns: Int, coefficients: Float) -> Program:
        """The same with ``sum_k coefficients_k x[columns_k]^2`` added to a linear objective."""
        squares = np.zeros(self.columns)
        np.add.at(squares, columns, coefficients)
        return replace(self, squares=squares)

    def value(self, x: Float) -> float:
        """The objective at a point, float64 [columns]."""
        linear = float(self.objective @ x) + self.offset
        return linear if self.squares is None else linear + float(self.squares @ (x * x))

    def violation(self, x: Float) -> float:
        """The largest violation of a bound, a row or integrality at a point, float64 [columns]."""
        activity = self.matrix @ x
        fractional = np.abs(x - np.round(x))[self.integer]
        excess = (self.lower - x, x - self.upper, self.row_lower - activity, activity - self.row_upper)
        return max((float(part.max(initial=0.0)) for part in (*excess, fractional)), default=0.0)


class ProgramBuilder:
    """Collects blocks of columns and rows; ``build`` joins them once."""

    def __init__(self) -> None:
        self._lower: list[Float] = []
        self._upper: list[Float] = []
        self._integer: list[NDArray[np.bool_]] = []
        self._blocks: list[tuple[str, int, int]] = []
        self._columns = 0
        self._rows = 0
        self._row_lower: list[Float] = []
        self._row_upper: list[Float] = []
        self._entries: list[tuple[Int, Int, Float]] = []

    @property
    def columns(self) -> int:
        """Columns added so far."""
        return self._columns

    def add_columns(self, name: str, lower: Float, upper: Float, *, integer: bool = False) -> Int:
        """Add a block of columns with bounds, float64 [n]; returns their indices, int64 [n]."""
        count = len(lower)
        first = self._columns
        self._lower.append(np.array(lower, dtype=np.float64))
        self._upper.append(np.array(upper, dtype=np.float64))
        self._integer.append(np.full(count, integer))
        self._blocks.append((name, first, count))
        self._columns += count
        return np.arange(first, first + count, dtype=np.int64)

    def add_binaries(self, name: str, count: int) -> Int:
        """Add a block of 0/1 columns; returns their indices, int64 [count]."""
        return self.add_columns(name, np.zeros(count), np.ones(count), integer=True)

    def fix(self, columns: Int, value: float) -> None:
        """Make the bounds of columns that were added one value."""
        for first, lower, upper in zip(
            (first for _, first, _ in self._blocks), self._lower, self._upper, strict=True
        ):
            here = columns[(columns >= first) & (columns < first + len(lower))] - first
            lower[here] = upper[here] = value

    def add_rows(
        self, terms: Sequence[tuple[Int, Float | float]], lower: Float | float, upper: Float | float
    ) -> None:
        """Add one row an entry: ``lower[i] <= sum_t coefficients_t[i] x[columns_t[i]] <= upper[i]``.

        Args:
            terms: pairs (columns int64 [n], coefficients float64 [n] or one number).
            lower, upper: float64 [n] or one number.
        """
        count = len(terms[0][0])
        rows = np.arange(self._rows, self._rows + count, dtype=np.int64)
        for columns, coefficients in terms:
            self._entries.append((rows, columns, np.broadcast_to(coefficients, (count,))))
        self._close_rows(count, lower, upper)

    def add_matrix_rows(
        self, blocks: Sequence[Block], lower: Float | float, upper: Float | float, rows: int
    ) -> None:
        """Add ``lower <= sum_b M_b x[columns_b] <= upper``.

        Args:
            blocks: pairs (columns int64 [c], matrix [rows, c], dense or CSR).
            lower, upper: float64 [rows] or one number.
            rows: number of rows.
        """
        for columns, matrix in blocks:
            if isinstance(matrix, np.ndarray):
                row, column = np.nonzero(matrix)
                data = matrix[row, column]
            else:
                coo = matrix.tocoo()
                row, column, data = coo.row.astype(np.int64), coo.col, coo.data
            self._entries.append((row + self._rows, columns[column], data))
        self._close_rows(rows, lower, upper)

    def _close_rows(self, count: int, lower: Float | float, upper: Float | float) -> None:
        self._row_lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), (count,)))
        self._row_upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), (count,)))
        self._rows += count

    def build(self) -> Program:
        """The program, its objective zero (see ``Program.with_objective``)."""
        rows, columns, values = zip(*self._entries, strict=True) if self._entries else ((), (), ())
        entries = (_joined(values), (_joined(rows).astype(np.int64), _joined(columns).astype(np.int64)))
        matrix = sparse.csr_array(entries, shape=(self._rows, self._columns), dtype=np.float64)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return Program(
            objective=np.zeros(self._columns),
            offset=0.0,
            lower=_joined(self._lower),
            upper=_joined(self._upper),
            integer=np.concatenate(self._integer) if self._integer else np.zeros(0, dtype=np.bool_),
            matrix=matrix,
            row_lower=_joined(self._row_lower),
            row_upper=_joined(self._row_upper),
            column_blocks=tuple(self._blocks),
        )


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The parts in one array; an empty one for no parts."""
    return np.concatenate(parts) if parts else np.zeros(0)
