"""A network's linear relaxation over boxes and budgets, with rows that hold exactly, and bounds by its duals.

With q = 1 - m in [0, 1], 1 meaning removed, sum q <= s for each budget group, and [l, u] the bounds so far:

    y = relu(z), l < 0 < u:     y >= 0,  y >= z,        y <= a z + b
    y = m relu(z), l < 0 < u:   y >= 0,  y >= z - u q,  y <= a z + b,  y <= u (1 - q)
    p = m v, v in [L, U]:       p <= U (1 - q),  p >= L (1 - q),  p <= v - L q,  p >= v - U q   (McCormick)
    y = max_k v_k:              y >= v_k,  y <= sum_k v_k - sum_k l_k + max_k l_k

a z + b is the chord of ReLU, the sums are over the entries that can be the largest, and Affine nodes are
equations. The second is what the rows of the fused encoding (y <= u p, y <= z - l (1 - p), p + q <= 1) leave
where p in [0, 1] is eliminated, and the convex hull of a removed and a kept neuron. Values that the input
fixes are folded into constants.

A row holds in rational arithmetic for every input of the box and every admissible mask: its sides rl, ru are
widened by what the rounding of its coefficients can be off. So for any multipliers y, whatever a solver's
tolerances (Neumaier and Shcherbina 2004, Safe bounds in linear and mixed-integer programming),

    min c x  >=  sum_i (y_i rl_i if y_i > 0 else y_i ru_i)  +  sum_j min(d_j xl_j, d_j xu_j),  d = c - A^T y,

every column having finite bounds, and the error of d being charged at max(|xl|, |xu|).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from milpver.bounds._rounding import gamma
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Float, Int
from milpver.query import Budget

__all__ = ["LARGEST", "Cost", "LinearProgram", "Relaxation", "relaxed"]

#: Bounds beyond this are left to the other methods: solvers refuse large entries, or call them infinite.
LARGEST = 1e9
_TINY = 2.0**-1022
_Terms = Sequence[tuple["_Values", Float]]


def _error(magnitude: Float, terms: int) -> Float:
    """As ``_rounding.sum_error``, for arrays."""
    error: Float = magnitude * gamma(2 * terms + 6) + (terms + 1) * _TINY
    return error


def _down(x: Float) -> Float:
    """The next smaller floats."""
    return np.nextafter(x, -np.inf)


def _up(x: Float) -> Float:
    """The next larger floats."""
    return np.nextafter(x, np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """A node's values: ``v[i] - coefficient[i] x[column[i]]`` lies in [low[i], high[i]].

    Attributes:
        column: int64 [size]; -1 where the value is a constant.
        coefficient: float64 [size].
        low, high: float64 [size].
    """

    column: Int
    coefficient: Float
    low: Float
    high: Float

    @classmethod
    def columns(cls, column: Int) -> _Values:
        """Values that are columns themselves."""
        size = len(column)
        return cls(column, np.ones(size), np.zeros(size), np.zeros(size))

    @classmethod
    def constants(cls, low: Float, high: Float) -> _Values:
        """Values that are known up to rounding."""
        return cls(np.full(len(low), -1, dtype=np.int64), np.zeros(len(low)), low, high)

    def pick(self, at: Int) -> _Values:
        """The entries ``at``, int64 of any shape."""
        return _Values(self.column[at], self.coefficient[at], self.low[at], self.high[at])

    def replaced(self, at: Int, other: _Values) -> _Values:
        """The same with other values for the entries ``at``."""
        new = replace(
            self,
            column=self.column.copy(),
            coefficient=self.coefficient.copy(),
            low=self.low.copy(),
            high=self.high.copy(),
        )
        new.column[at], new.coefficient[at] = other.column, other.coefficient
        new.low[at], new.high[at] = other.low, other.high
        return new


@dataclass(frozen=True, slots=True, eq=False)
class Cost:
    """Rows to minimise over a program's columns.

    Attributes:
        slopes: float64 CSR [rows, columns].
        slack: how far each slope may be off, float64 CSR [rows, columns].
        constant: a lower bound of what is no column's, float64 [rows].
    """

    slopes: sparse.csr_array
    slack: sparse.csr_array
    constant: Float

    def pick(self, rows: Int) -> Cost:
        """Some of the rows."""
        return Cost(self.slopes[rows], self.slack[rows], self.constant[rows])


@dataclass(frozen=True, eq=False)
class LinearProgram:
    """``row_lower <= A x <= row_upper``, ``lower <= x <= upper``, all of which holds exactly.

    Attributes:
        matrix: A, float64 CSR [rows, columns].
        row_lower, row_upper: float64 [rows], infinite where there is no such side.
        lower, upper: float64 [columns], finite.
    """

    matrix: sparse.csr_array
    row_lower: Float
    row_upper: Float
    lower: Float
    upper: Float

    @cached_property
    def _magnitude(self) -> sparse.csr_array:
        return abs(self.matrix)

    @cached_property
    def _largest(self) -> Float:
        """max(|xl|, |xu|), float64 [columns]."""
        largest: Float = np.maximum(np.abs(self.lower), np.abs(self.upper))
        return largest

    def proven(self, cost: Cost, duals: Float) -> Float:
        """What multipliers of the rows prove, rounded outward; they may come from anywhere.

        Args:
            cost: of as many rows as there are multipliers.
            duals: y, float64 [rows to minimise, rows of the program], >= 0 at a lower side, <= 0 at an upper.

        Returns:
            Lower bounds of the rows, float64.
        """
        y = np.nan_to_num(duals, nan=0.0, posinf=0.0, neginf=0.0)
        y = np.where((y > 0) & np.isneginf(self.row_lower), 0.0, y)
        y = np.where((y < 0) & np.isposinf(self.row_upper), 0.0, y)
        side = np.where(y > 0, self.row_lower, np.where(y < 0, self.row_upper, 0.0))
        given = cost.slopes.toarray()
        slopes = given - (self.matrix.T @ y.T).T
        size = np.abs(given) + (self._magnitude.T @ np.abs(y).T).T
        longest = int(np.bincount(self.matrix.indices, minlength=1).max(initial=0)) + 2
        slack = cost.slack.toarray() + _error(size, longest)
        at_rows = y * side
        at_columns = np.minimum(slopes * self.lower, slopes * self.upper)
        total = at_rows.sum(axis=1) + at_columns.sum(axis=1) + cost.constant
        summed = np.abs(at_rows).sum(axis=1) + np.abs(slopes) @ self._largest + np.abs(cost.constant)
        terms = y.shape[1] + slopes.shape[1] + 4
        loose = (slack @ self._largest) * (1 + gamma(2 * terms))
        found: Float = _down(total - _up(_up(loose + _error(summed, terms))))
        return np.nan_to_num(found, nan=-np.inf, posinf=-np.inf, neginf=-np.inf)


@dataclass(slots=True, eq=False)
class Relaxation:
    """A relaxation under construction, node by node.

    Attributes:
        graph, budget: the query.
        lows, highs: bounds of every node it has, float64 [size].
        constants: nodes whose values the input alone fixes.
        values: of the nodes done so far.
    """

    graph: Graph
    budget: Budget
    lows: Sequence[Float]
    highs: Sequence[Float]
    constants: frozenset[int]
    values: dict[int, _Values] = field(default_factory=dict)
    _lower: Float = field(default_factory=lambda: np.zeros(0))
    _upper: Float = field(default_factory=lambda: np.zeros(0))
    _blocks: list[tuple[Int, Int, Float, int]] = field(default_factory=list)
    _sides: list[tuple[Float, Float]] = field(default_factory=list)
    _removed: dict[int, Int] = field(default_factory=dict)

    def program(self) -> LinearProgram:
        """What has been added, with one row a budget group."""
        for group in self.budget.groups:
            here = [self._removed[node] for node in group.nodes if node in self._removed]
            if here:
                q = np.concatenate(here)
                limit = np.array([float(group.removable)])
                self._close(np.zeros(len(q), np.int64), q, np.ones(len(q)), np.array([-np.inf]), limit)
        nothing = np.zeros(0, dtype=np.int64)
        parts, start = [(nothing, nothing, np.zeros(0))], 0
        for row, column, value, count in self._blocks:
            parts.append((row + start, column, value))
            start += count
        rows, columns, data = (np.concatenate(part) for part in zip(*parts, strict=True))
        matrix = sparse.csr_array((data, (rows, columns)), shape=(start, len(self._lower)), dtype=np.float64)
        matrix.sum_duplicates()
        return LinearProgram(
            matrix,
            np.concatenate([np.zeros(0), *(low for low, _ in self._sides)]),
            np.concatenate([np.zeros(0), *(high for _, high in self._sides)]),
            self._lower,
            self._upper,
        )

    def cost(self, node: int, rows: sparse.csr_array) -> Cost:
        """Rows over a node's values as costs, float64 CSR [rows, size]."""
        v = self.values[node]
        used = np.flatnonzero(v.column >= 0)
        spread = sparse.csr_array(
            (v.coefficient[used], (used, v.column[used])), shape=(len(v.column), len(self._lower))
        )
        positive, negative = rows.maximum(0), rows.minimum(0)
        constant = positive @ v.low + negative @ v.high
        size = abs(rows) @ np.maximum(np.abs(v.low), np.abs(v.high))
        terms = rows.shape[1] + 1
        constant = np.where(size == 0, 0.0, _down(constant - _up(_error(size, terms))))
        slopes = sparse.csr_array(rows @ spread)
        slack = sparse.csr_array(slopes.shape)
        if np.any(v.coefficient[used] != 1.0) or len(np.unique(v.column[used])) < len(used):
            slack = sparse.csr_array(abs(rows) @ abs(spread))
            slack.data = _error(slack.data, terms)
        return Cost(slopes, slack, constant)

    def add(self, index: int) -> None:
        """Add a node; what it reads has been added."""
        node = self.graph.nodes[index]
        if index in self.constants:
            self.values[index] = _Values.constants(self.lows[index], self.highs[index])
            return
        match node:
            case Input():
                self.values[index] = self._new(self.lows[index], self.highs[index])
            case Affine():
                self.values[index] = self._affine(index, node)
            case Relu():
                if not self._fused(index):
                    self.values[index] = self._relu(node)
            case Max():
                self.values[index] = self._max(index, node)
            case Gate():
                group = self.budget.group_of(index)
                self.values[index] = self.values[node.source] if group is None else self._gate(index, node)

    def _new(self, low: Float, high: Float) -> _Values:
        """New columns, whose bounds are their sides."""
        first = len(self._lower)
        self._lower = np.concatenate([self._lower, low])
        self._upper = np.concatenate([self._upper, high])
        return _Values.columns(np.arange(first, first + len(low), dtype=np.int64))

    def _close(self, row: Int, column: Int, value: Float, low: Float, high: Float) -> None:
        self._blocks.append((row, column, value, len(low)))
        self._sides.append((low, high))

    def _rows(self, terms: _Terms, lower: Float | float, upper: Float | float) -> None:
        """Add one row an entry, ``lower[i] <= sum_t w_t[i] v_t[i] <= upper[i]``, widened by its rounding.

        Args:
            terms: pairs (values v_t of n entries, w_t float64 [n]).
            lower, upper: float64 [n] or one number.
        """
        count = len(terms[0][1])
        if count == 0:
            return
        least, most, size = np.zeros(count), np.zeros(count), np.zeros(count)
        exact = np.ones(count, dtype=np.bool_)
        rows, columns, data = [], [], []
        for v, w in terms:
            used = np.flatnonzero(v.column >= 0)
            rows.append(used)
            columns.append(v.column[used])
            data.append(w[used] * v.coefficient[used])
            at_low, at_high = w * v.low, w * v.high
            least, most = least + np.minimum(at_low, at_high), most + np.maximum(at_low, at_high)
            size += np.maximum(np.abs(at_low), np.abs(at_high))
            size[used] += np.abs(data[-1]) * self._reach(v.column[used])
            exact &= ((v.coefficient == 1.0) | (v.column < 0)) & (v.low == 0) & (v.high == 0)
        place = np.stack([np.where(v.column >= 0, v.column, -1 - t) for t, (v, _) in enumerate(terms)])
        place.sort(axis=0)
        exact &= np.all(place[1:] != place[:-1], axis=0)
        sides = (np.broadcast_to(np.asarray(side, dtype=np.float64), (count,)) for side in (lower, upper))
        low, high = sides
        finite = np.maximum(*(np.where(np.isfinite(side), np.abs(side), 0.0) for side in (low, high)))
        error = _up(_error(size + finite, 2 * len(terms) + 2))
        low = np.where(exact, low, _down(low - most - error))
        high = np.where(exact, high, _up(high - least + error))
        self._close(np.concatenate(rows), np.concatenate(columns), np.concatenate(data), low, high)

    def _reach(self, columns: Int) -> Float:
        """max(|xl|, |xu|) of columns."""
        reach: Float = np.maximum(np.abs(self._lower[columns]), np.abs(self._upper[columns]))
        return reach

    def _affine(self, index: int, node: Affine) -> _Values:
        """``z - sum_t M_t v_t = b``: columns for z, one equation each."""
        z = self._new(self.lows[index], self.highs[index])
        constant_low, constant_high, size = node.bias, node.bias, np.abs(node.bias)
        rows, columns, data = [np.arange(node.size)], [z.column], [np.ones(node.size)]
        terms = 4
        exact = True
        for source, linear in node.terms:
            v, matrix = self.values[source], linear.csr
            terms += linear.row_terms + 4
            magnitude = abs(matrix)
            up, down = matrix.maximum(0), matrix.minimum(0)
            constant_low = constant_low + (up @ v.low + down @ v.high)
            constant_high = constant_high + (up @ v.high + down @ v.low)
            reach = np.maximum(np.abs(v.low), np.abs(v.high))
            used = v.column >= 0
            reach[used] += np.abs(v.coefficient[used]) * self._reach(v.column[used])
            size = size + magnitude @ reach
            exact &= bool(np.all(used & (v.coefficient == 1.0) & (v.low == 0.0) & (v.high == 0.0)))
            exact &= len(np.unique(v.column)) == len(v.column) and bool(matrix.has_canonical_format)
            entries = matrix.tocoo()
            kept = used[entries.col]
            columns.append(v.column[entries.col[kept]])
            rows.append(entries.row[kept].astype(np.int64))
            data.append(-entries.data[kept] * v.coefficient[entries.col[kept]])
        # Coefficients that go over as they are are exact; all else is charged.
        exact &= len(node.terms) == 1
        error = np.zeros(node.size) if exact else _up(_error(size, terms))
        low = np.where(exact, constant_low, _down(constant_low - error))
        high = np.where(exact, constant_high, _up(constant_high + error))
        self._close(np.concatenate(rows), np.concatenate(columns), np.concatenate(data), low, high)
        return z

    def _signed(self, source: int) -> tuple[_Values, Int, Float, Float]:
        """ReLU of a node's values where their sign is known; which are open; bounds of those."""
        z, low, high = self.values[source], self.lows[source], self.highs[source]
        known = z.column < 0
        values = _Values(
            np.where(high <= 0, -1, z.column),
            np.where(high <= 0, 0.0, z.coefficient),
            np.where(known, np.maximum(z.low, 0.0), np.where(high <= 0, 0.0, z.low)),
            np.where(known, np.maximum(z.high, 0.0), np.where(high <= 0, 0.0, z.high)),
        )
        open_ = np.flatnonzero(~known & (low < 0) & (high > 0))
        return values, open_, low[open_], high[open_]

    def _relu(self, node: Relu) -> _Values:
        """The triangle over open neurons; the others are z or 0."""
        values, open_, low, high = self._signed(node.source)
        if len(open_) == 0:
            return values
        z, one = self.values[node.source].pick(open_), np.ones(len(open_))
        y = self._new(np.zeros(len(open_)), high)
        self._rows([(y, one), (z, -one)], 0.0, np.inf)
        self._chord(y, z, low, high)
        return values.replaced(open_, y)

    def _chord(self, y: _Values, z: _Values, low: Float, high: Float) -> None:
        """``y <= a z + b``: any a in [0, 1] will do, b being taken from the end where the line is lowest."""
        a = np.clip(high / np.maximum(high - low, 1e-300), 0.0, 1.0)
        b = np.maximum(_up(-a * low), _up(_up(1.0 - a) * high))
        self._rows([(y, np.ones(len(a))), (z, -a)], -np.inf, b)

    def _max(self, index: int, node: Max) -> _Values:
        """The largest of a window; the entry itself where no other can be."""
        v = self.values[node.source]
        low, high = self.lows[node.source][node.groups], self.highs[node.source][node.groups]
        repeated = np.tril(node.groups[:, :, None] == node.groups[:, None, :], -1).any(axis=2)
        surest = np.where(repeated, -np.inf, low).argmax(axis=1)
        candidate = ~repeated & (high > low.max(axis=1, keepdims=True))
        candidate[np.arange(node.size), surest] = True
        values = v.pick(node.groups[np.arange(node.size), surest])
        open_ = np.flatnonzero(candidate.sum(axis=1) > 1)
        if len(open_) == 0:
            return values
        y = self._new(self.lows[index][open_], self.highs[index][open_])
        one, rest = np.ones(len(open_)), np.zeros(len(open_))
        terms: list[tuple[_Values, Float]] = [(y, one)]
        size = np.zeros(len(open_))
        for slot in range(node.groups.shape[1]):
            member, counts = v.pick(node.groups[open_, slot]), candidate[open_, slot]
            at = np.flatnonzero(counts)
            self._rows([(y.pick(at), one[at]), (member.pick(at), -one[at])], 0.0, np.inf)
            absent = _Values.constants(rest, rest)
            terms.append((absent.replaced(at, member.pick(at)), -one))
            size += np.where(counts, np.abs(low[open_, slot]), 0.0)
        bottoms = np.where(candidate, low, 0.0)[open_].sum(axis=1)
        top = low.max(axis=1)[open_]
        slots = node.groups.shape[1] + 2
        self._rows(terms, -np.inf, _up(top - bottoms + _up(_error(size + np.abs(top), slots))))
        return values.replaced(open_, y)

    def _fused(self, index: int) -> bool:
        """Whether a node is a Relu whose only reader, a Gate with a budget, adds it as well."""
        readers = self.graph.consumers[index]
        return (
            len(readers) == 1
            and isinstance(self.graph.nodes[index], Relu)
            and isinstance(self.graph.nodes[readers[0]], Gate)
            and self.budget.group_of(readers[0]) is not None
        )

    def _gate(self, index: int, node: Gate) -> _Values:
        """Columns q for the gates, and the product with each entry."""
        kept, gone = self.budget.forced(index, node.gates)
        self._removed[index] = self._new(gone.astype(np.float64), (~kept).astype(np.float64)).column
        q = _Values.columns(self._removed[index][node.owner])
        behind = self.graph.nodes[node.source]
        if node.source not in self.constants and isinstance(behind, Relu) and self._fused(node.source):
            v, open_, *ends = self._signed(behind.source)
            z = self.values[behind.source].pick(open_)
        else:
            z = v = self.values[node.source]
            open_, ends = np.zeros(0, dtype=np.int64), []
        # A constant v in [low, high]: v (1 - q) = middle (1 - q) + (v - middle) (1 - q), the last part
        # between low - middle <= 0 and high - middle >= 0 whatever q.
        middle = np.clip(v.low / 2 + v.high / 2, v.low, v.high)
        constant = v.column < 0
        values = replace(
            v,
            column=np.where(constant & (middle != 0), q.column, -1),
            coefficient=np.where(constant, -middle, 0.0),
        )
        others = np.setdiff1d(np.flatnonzero(~constant), open_)
        if len(others):
            low, high = self.lows[node.source][others], self.highs[node.source][others]
            p = self._new(self.lows[index][others], self.highs[index][others])
            removed, at, one = q.pick(others), v.pick(others), np.ones(len(others))
            self._rows([(p, one), (removed, high)], -np.inf, high)
            self._rows([(p, one), (removed, low)], low, np.inf)
            self._rows([(p, one), (at, -one), (removed, low)], -np.inf, 0.0)
            self._rows([(p, one), (at, -one), (removed, high)], 0.0, np.inf)
            values = values.replaced(others, p)
        if len(open_):
            low, high = ends
            y = self._new(np.zeros(len(open_)), np.maximum(self.highs[index][open_], 0.0))
            removed, one = q.pick(open_), np.ones(len(open_))
            self._rows([(y, one), (z, -one), (removed, high)], 0.0, np.inf)
            self._rows([(y, one), (removed, high)], -np.inf, high)
            self._chord(y, z, low, high)
            values = values.replaced(open_, y)
        return values


def relaxed(
    graph: Graph,
    budget: Budget,
    lows: Sequence[Float],
    highs: Sequence[Float],
    constants: frozenset[int],
    node: int,
) -> Relaxation | None:
    """The relaxation of a node and everything in front of it.

    Args:
        graph, budget: the query.
        lows, highs: bounds of the nodes up to this one, float64 [size].
        constants: nodes whose values the input alone fixes.
        node: the node, not one of them.

    Returns:
        The relaxation, or None where a bound is infinite or larger than ``LARGEST``.
    """
    needed, waiting = set(), [node]
    while waiting:
        index = waiting.pop()
        if index not in needed:
            needed.add(index)
            waiting += [] if index in constants else graph.nodes[index].sources
    order = sorted(needed)
    for index in order:
        if not (np.all(np.abs(lows[index]) <= LARGEST) and np.all(np.abs(highs[index]) <= LARGEST)):
            return None
    found = Relaxation(graph, budget, lows, highs, constants)
    for index in order:
        found.add(index)
    return found
