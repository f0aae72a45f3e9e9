"""Backward linear bounds in numpy, for batches of boxes: what small networks need no torch for.

Loading torch takes longer than most properties of small networks need. Every row belongs to one box and to
one neuron, of which only those are bounded whose sign is open, as in ``_flat``; the lines around a ReLU and
what rounding is charged are the same:

    relu(z) >= f z,        f = 1 where u > -l, else 0
    relu(z) <= s z + t,    s = u / (u - l),  t = max(-s l, (1 - s) u)

for z in [l, u] of open sign (CROWN, Zhang et al. 2018); a row c over the ReLU's output becomes
``c+ f + c- s = c f + c- (s - f)`` over z, with ``c- t`` to the constant. Through ``y = M x + b`` it becomes
``c M``, with ``c b`` to the constant, and n products charge ``gamma_n |c| (|M| max|x| + |b|)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from milpver.graph import Affine, Graph, Input, Max, Relu
from milpver.linear import Dense, Float, Int, LinearMap, magnitude
from milpver.rounding import gamma

__all__ = ["PlainCrown", "supported"]

_TINY = 2.0**-1022
#: Numbers that are too large end as infinities and NaN, which ``_outward`` turns into no bound.
_quiet = np.errstate(over="ignore", invalid="ignore")
#: Elements of a temporary of one step backward.
_CHUNK = 1 << 15


def supported(graph: Graph) -> bool:
    """Whether a graph has only nodes that this file knows."""
    return not any(isinstance(node, Max) for node in graph.nodes)


@dataclass(eq=False)
class PlainCrown:
    """Bounds boxes that lie in one, the root; gates count as the identity.

    Attributes:
        graph: the network, of Input, Affine, Relu and Gate nodes.
        lower, upper: the root, float64 [inputs].
        expired: asked before each step; True ends with what is known by then, which is sound.
        known: bounds known of every node in the root, float64 [size] each; none: intervals are computed.
        spans: node that some Relu reads -> where its bounds stand in flat arrays [boxes, neurons].
        low, high: the root's bounds of these nodes, float64 [1, neurons].
    """

    graph: Graph
    lower: Float
    upper: Float
    expired: Callable[[], bool]
    known: tuple[list[Float], list[Float]] | None = None
    spans: dict[int, tuple[int, int]] = field(init=False)
    low: Float = field(init=False)
    high: Float = field(init=False)
    _largest: list[Float] = field(init=False)
    _charges: dict[int, Float] = field(init=False)
    _absolute: dict[int, tuple[LinearMap, ...]] = field(init=False)

    @_quiet
    def __post_init__(self) -> None:
        self.spans, at = {}, 0
        for source in sorted({node.source for node in self.graph.nodes if isinstance(node, Relu)}):
            self.spans[source] = (at, at + self.graph.nodes[source].size)
            at = self.spans[source][1]
        self.low, self.high = np.full((1, at), -np.inf), np.full((1, at), np.inf)
        self._absolute = {
            index: tuple(magnitude(linear) for _, linear in node.terms)
            for index, node in enumerate(self.graph.nodes)
            if isinstance(node, Affine)
        }
        self._forward(tighten=True)
        self._forward(tighten=False)  # rounding is charged by the bounds there are

    def _forward(self, *, tighten: bool) -> None:
        """Bounds of every node in the root, met with those known, and the charges for rounding."""
        lows, highs = [self.lower], [self.upper]
        box = self.lower[None], self.upper[None]
        lines: dict[int, Float] = {}
        self._largest, self._charges = [], {}
        for index, node in enumerate(self.graph.nodes):
            size = np.zeros(node.size)
            match node:
                case Input():
                    low, high = self.lower, self.upper
                    size = size + gamma(2 * node.size + 8) * np.maximum(np.abs(low), np.abs(high))
                case Affine():
                    low, high, sizes = self._affine(index, node, lows, highs)
                    size = size + gamma(4 * (node.size + 4)) * sizes
                case Relu():
                    low, high = np.maximum(lows[node.source], 0.0), np.maximum(highs[node.source], 0.0)
                case _:
                    low, high = lows[node.sources[0]], highs[node.sources[0]]
            if self.known is not None:
                low = np.maximum(low, self.known[0][index])
                high = np.minimum(high, self.known[1][index])
            if index in self.spans:
                part = slice(*self.spans[index])
                low, high = np.maximum(low, self.low[0, part]), np.minimum(high, self.high[0, part])
                self.low[0, part], self.high[0, part] = low, high
                if tighten:
                    self._tighten(index, box, self.low[:, part], self.high[:, part], lines)
                    low, high = self.low[0, part].copy(), self.high[0, part].copy()
            largest = np.maximum(np.abs(low), np.abs(high))
            if index in self.spans:
                size = size + gamma(32) * largest
            self._largest.append(largest)
            if size.any():
                self._charges[index] = size * (1 + gamma(64))
            if index > 0:
                lows.append(low)
                highs.append(high)

    def _affine(
        self, index: int, node: Affine, lows: list[Float], highs: list[Float]
    ) -> tuple[Float, Float, Float]:
        """Interval bounds of an Affine node, rounded outward, and ``|M| max|x| + |b|``; float64 [size].

        By centre and radius: ``M x`` lies within ``|M| r`` of ``M c``, both of which round.
        """
        centre, radius, sizes = node.bias[None], np.zeros((1, node.size)), np.abs(node.bias)[None]
        terms = 8
        for (source, linear), absolute in zip(node.terms, self._absolute[index], strict=True):
            low, high = lows[source][None], highs[source][None]
            centre = centre + linear.apply((low + high) / 2)
            radius = radius + absolute.apply((high - low) / 2)
            sizes = sizes + absolute.apply(np.maximum(np.abs(low), np.abs(high)))
            terms += 2 * linear.row_terms + 8
        error = sizes * gamma(2 * terms + 6) + (terms + 1) * _TINY
        return *_outward(centre[0] - radius[0], centre[0] + radius[0], error[0]), sizes[0]

    @_quiet
    def refresh(self, lower: Float, upper: Float, low: Float, high: Float) -> tuple[Float, Float]:
        """Tighten the bounds of neurons whose sign is open.

        Args:
            lower, upper: the boxes, float64 [boxes, inputs].
            low, high: bounds known of every neuron, float64 [boxes, neurons].

        Returns:
            New ``low`` and ``high``; where one lies above the other, the box is empty but for rounding.
        """
        low, high = low.copy(), high.copy()
        lines: dict[int, Float] = {}
        for source, (a, b) in self.spans.items():
            self._tighten(source, (lower, upper), low[:, a:b], high[:, a:b], lines)
        return low, high

    def _tighten(
        self, source: int, box: tuple[Float, Float], low: Float, high: Float, lines: dict[int, Float]
    ) -> None:
        """Meet a node's bounds, in place, with backward ones of neurons whose sign is open; add its lines.

        Args:
            source: the node.
            box: lower and upper limits, float64 [boxes, inputs].
            low, high: bounds known of the node, float64 [boxes, size].
            lines: for each node before it that a Relu reads, from ``_lines``.
        """
        owner, neuron = np.nonzero((low < 0) & (high > 0))
        step = self._rows_at_once // 2
        for start in range(0, len(owner) if source > 0 else 0, step):
            if self.expired():
                break
            at, which = owner[start : start + step], neuron[start : start + step]
            rows, constant = self._neurons(source, which)
            both = {node: np.concatenate([part, -part]) for node, part in rows.items()}
            found, _ = self._backward(both, np.concatenate([constant, -constant]), np.tile(at, 2), box, lines)
            low[at, which] = np.maximum(low[at, which], found[: len(at)])
            high[at, which] = np.minimum(high[at, which], -found[len(at) :])
        lines[source] = _lines(low, high)

    @_quiet
    def rows(self, lower: Float, upper: Float, low: Float, high: Float, rows: Float) -> tuple[Float, Float]:
        """Bound rows over the output from below in every box.

        Args:
            lower, upper, low, high: as for ``refresh``.
            rows: float64 [rows, outputs].

        Returns:
            Bounds, float64 [boxes, rows], rounded outward, and the coefficients of the inputs in the linear
            functions that they are minima of, float64 [boxes, rows, inputs].
        """
        lines = {source: _lines(low[:, a:b], high[:, a:b]) for source, (a, b) in self.spans.items()}
        owner = np.repeat(np.arange(len(low)), len(rows))
        which = np.tile(np.arange(len(rows)), len(low))
        bounds, slopes = [], []
        for start in range(0, len(owner), self._rows_at_once):
            part = slice(start, start + self._rows_at_once)
            begin = {len(self.graph.nodes) - 1: rows[which[part]]}
            zero = np.zeros(len(owner[part]))
            found, slope = self._backward(begin, zero, owner[part], (lower, upper), lines)
            bounds.append(found)
            slopes.append(slope)
        shape = (len(low), len(rows))
        return np.concatenate(bounds).reshape(shape), np.concatenate(slopes).reshape(*shape, -1)

    def _neurons(self, source: int, which: Int) -> tuple[dict[int, Float], Float]:
        """Neurons of a node, int64 [rows], as rows: over what feeds it where its matrices give them exactly.

        Returns:
            Node -> rows over it, float64 [rows, size], and constants, float64 [rows].
        """
        node = self.graph.nodes[source]
        if isinstance(node, Affine) and len(set(node.sources)) == len(node.terms):
            maps = [linear for _, linear in node.terms if isinstance(linear, Dense)]
            if len(maps) == len(node.terms):
                parts = (linear.weight[which] for linear in maps)
                return dict(zip(node.sources, parts, strict=True)), node.bias[which]
        unit = np.zeros((len(which), node.size))
        unit[np.arange(len(which)), which] = 1.0
        return {source: unit}, np.zeros(len(which))

    @property
    def _rows_at_once(self) -> int:
        """Rows that go through the network together."""
        return max(32, _CHUNK // max(node.size for node in self.graph.nodes))

    def _backward(
        self,
        pending: dict[int, Float],
        constant: Float,
        owner: Int,
        box: tuple[Float, Float],
        lines: dict[int, Float],
    ) -> tuple[Float, Float]:
        """Bound rows from below, each in its own box.

        Args:
            pending: node -> rows over it, float64 [rows, size], which are added up.
            constant: what is added to them, float64 [rows].
            owner: the box of each row, int64 [rows].
            box: lower and upper limits, float64 [boxes, inputs].
            lines: for each node that a Relu reads, from ``_lines``.

        Returns:
            The bounds, rounded outward, float64 [rows], and the coefficients of the inputs.
        """
        error, summed = np.zeros_like(constant), np.abs(constant)
        additions = 8
        slope = np.zeros((len(constant), self.graph.inputs))
        while pending:
            index = max(pending)
            c, node = pending.pop(index), self.graph.nodes[index]
            additions += 4
            if index in self._charges:
                error += np.abs(c) @ self._charges[index]
            sent: list[tuple[int, Float]] = []
            added: Float | None = None
            match node:
                case Input():
                    slope, added = c, _least(c, owner, box)
                case Affine():
                    sent = [(source, linear.adjoint(c)) for source, linear in node.terms]
                    added = c @ node.bias
                case Relu():
                    through, added = _through_relu(c, owner, lines[node.source])
                    error -= gamma(2 * node.size + 32) * added
                    sent = [(node.source, through)]
                case _:
                    sent = [(node.sources[0], c)]
            if added is not None:
                constant = constant + added
                summed += np.abs(added)
            for source, part in sent:
                before = pending.get(source)
                if before is not None:
                    error += gamma(4) * ((np.abs(before) + np.abs(part)) @ self._largest[source])
                pending[source] = part if before is None else before + part
        error = error * (1 + gamma(4096)) + gamma(4 * additions) * summed + 1e-300
        return _outward(constant, constant, error)[0], slope

    @_quiet
    def smear(self, low: Float, high: Float, rows: Float) -> Float:
        """How fast rows over the output may change with each input, for branching: not rounded outward.

        The largest magnitude of the gradient over the box by interval arithmetic (smear, as in ReluVal, Wang
        et al. 2018, section 4.2.3).

        Args:
            low, high: as for ``refresh``.
            rows: one for each box, float64 [boxes, outputs].

        Returns:
            float64 [boxes, inputs].
        """
        pending = {len(self.graph.nodes) - 1: (rows, np.zeros_like(rows))}
        while max(pending) > 0:
            index = max(pending)
            (c, r), node = pending.pop(index), self.graph.nodes[index]
            sent: list[tuple[int, tuple[Float, Float]]] = []
            match node:
                case Affine():
                    for (source, linear), absolute in zip(node.terms, self._absolute[index], strict=True):
                        sent.append((source, (linear.adjoint(c), absolute.adjoint(r))))
                case Relu():
                    a, b = self.spans[node.source]
                    active, dead = low[:, a:b] >= 0, high[:, a:b] <= 0
                    least = np.where(dead, 0.0, np.where(active, c - r, np.minimum(c - r, 0.0)))
                    most = np.where(dead, 0.0, np.where(active, c + r, np.maximum(c + r, 0.0)))
                    sent.append((node.source, ((least + most) / 2, (most - least) / 2)))
                case _:
                    sent.append((node.sources[0], (c, r)))
            for source, (part, spread) in sent:
                before = pending.get(source)
                pending[source] = (part, spread) if before is None else (before[0] + part, before[1] + spread)
        c, r = pending[0]
        return np.asarray(np.abs(c) + r)


def _outward(low: Float, high: Float, error: Float) -> tuple[Float, Float]:
    """``[low - error, high + error]``, each rounded outward; NaN (inf - inf) becomes no bound."""
    below, above = np.nextafter(low - error, -np.inf), np.nextafter(high + error, np.inf)
    return np.where(np.isnan(below), -np.inf, below), np.where(np.isnan(above), np.inf, above)


def _lines(low: Float, high: Float) -> Float:
    """The lines around ``relu(z)``, z in [low, high]: f, s - f and t, float64 [boxes, 3 size]."""
    open_: NDArray[np.bool_] = (low < 0) & (high > 0)
    flat = np.where(open_, high > -low, low >= 0).astype(np.float64)
    steep = np.where(open_, high / np.maximum(high - low, 1e-300), flat)
    missed = np.where(open_, np.maximum(-steep * low, (1 - steep) * high), 0.0)
    return np.concatenate([flat, steep - flat, missed], axis=1)


def _through_relu(c: Float, owner: Int, lines: Float) -> tuple[Float, Float]:
    """Coefficients before a ReLU, float64 [rows, size], and what goes to the constant, float64 [rows]."""
    size = c.shape[1]
    own = lines.take(owner, axis=0)
    down = np.minimum(c, 0.0)
    through = c * own[:, :size]
    own[:, size : 2 * size] *= down
    through += own[:, size : 2 * size]
    return through, np.einsum("ri,ri->r", down, own[:, 2 * size :])


def _least(c: Float, owner: Int, box: tuple[Float, Float]) -> Float:
    """The minimum of ``c x`` over each row's box, float64 [rows]; not rounded outward."""
    lower, upper = box
    up, down = np.maximum(c, 0.0), np.minimum(c, 0.0)
    if len(lower) == 1:
        return np.asarray(up @ lower[0] + down @ upper[0])
    return np.asarray(np.einsum("ri,ri->r", up, lower[owner]) + np.einsum("ri,ri->r", down, upper[owner]))
