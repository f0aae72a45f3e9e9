"""Worst margins in closed form, for whole batches: point inputs, one budget, nothing nonlinear behind it.

With h the values in front of the only Gate node with a budget and c = (w_label - w_j) pulled back to it,

    min_m f_label - f_j = b + sum_g A_g - (sum of the s largest of max(A_g, 0)),  A_g = sum_{r in g} c_r h_r,

where s and the sums leave out gates that are kept or removed for certain. Here is the test whether a query
is of this kind, the masks that attain it, and the value itself for a batch: the network is run once, with a
bound on its rounding, and what follows the gate is pulled back to it once for every label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver.bounding import label_margins, margin_rows
from milpver.bounds._rounding import gamma
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Float, LinearMap, magnitude
from milpver.query import Budget, BudgetGroup

__all__ = ["ClosedForm", "Worst", "closed_form_gate", "worst_masks"]

#: Error bounds are themselves computed: sums of numbers >= 0, off by far less than this.
_OUTWARD = 1 + 2.0**-20
_TINY = 2.0**-1000


def closed_form_gate(graph: Graph, budget: Budget) -> int | None:
    """The Gate node of a query that the closed form answers, or None where it does not.

    The budget must be on one Gate node alone, behind which there are only Affine nodes.
    """
    if len(budget.groups) != 1 or len(budget.groups[0].nodes) != 1:
        return None
    (gate,) = budget.groups[0].nodes
    reached = {gate}
    for index in range(gate + 1, len(graph.nodes)):
        node = graph.nodes[index]
        if reached.intersection(node.sources):
            if not isinstance(node, Affine):
                return None
            reached.add(index)
    return gate if len(graph.nodes) - 1 in reached else None


def worst_masks(graph: Graph, budget: Budget, values: Float, rows: Float) -> NDArray[np.bool_]:
    """The masks that attain the closed form.

    Args:
        graph: the network.
        budget: the admissible masks, on one Gate node.
        values: h, values of the node in front of the Gate, float64 [batch, size].
        rows: rows over the output, float64 [batch, rows, outputs].

    Returns:
        bool [batch, rows, gates], True for removed: per row the (at most s) gates with the largest A_g > 0.
    """
    group: BudgetGroup = budget.groups[0]
    (index,) = group.nodes
    gate = graph.gate(index)
    share = _per_gate(_pulled_back(graph, index, rows) * values[:, None, :], gate)
    kept, gone = budget.forced(index, gate.gates)
    removed = _largest(np.where(kept | gone, -np.inf, share), budget.left(group))[0]
    return removed | gone


def _per_gate(shares: Float, gate: Gate) -> Float:
    """Sums over the entries of each gate, [..., size] -> [..., gates]."""
    if gate.private:
        return shares
    place = (np.arange(gate.size), gate.owner)
    owner = sparse.csr_array((np.ones(gate.size), place), shape=(gate.size, gate.gates))
    summed: Float = (shares.reshape(-1, gate.size) @ owner).reshape(*shares.shape[:-1], gate.gates)
    return summed


def _largest(shares: Float, count: int) -> tuple[NDArray[np.bool_], Float]:
    """The ``count`` largest entries > 0 along the last axis, as a mask, and their sums."""
    count = min(count, shares.shape[-1])
    chosen = np.zeros(shares.shape, dtype=np.bool_)
    if count == 0:
        return chosen, np.zeros(shares.shape[:-1])
    places = np.argpartition(shares, -count, axis=-1)[..., -count:]
    values = np.take_along_axis(shares, places, axis=-1)
    np.put_along_axis(chosen, places, values > 0, axis=-1)
    return chosen, np.maximum(values, 0.0).sum(axis=-1)


def _pulled_back(graph: Graph, gate: int, rows: Float) -> Float:
    """Coefficients of rows over the output on the values behind a Gate, float64 [batch, rows, size]."""
    batch, count, _ = rows.shape
    pending: dict[int, Float] = {len(graph.nodes) - 1: rows.reshape(batch * count, -1)}
    while (index := max(pending)) != gate:
        coefficients = pending.pop(index)
        node = graph.nodes[index]
        if isinstance(node, Affine):
            for source, linear in node.terms:
                if source >= gate:
                    pulled = np.asarray((linear.csr.T @ coefficients.T).T)
                    pending[source] = pending[source] + pulled if source in pending else pulled
    return pending[gate].reshape(batch, count, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Worst:
    """The closed form of a batch.

    Attributes:
        lower: lower bounds of every class's worst margin, rounded outward, float64 [batch, outputs - 1].
        masks: what is removed at the worst for each class, bool [batch, outputs - 1, gates].
        margins: ``f_label - f_j`` in float64 at each of these masks and, first, with nothing removed but what
            is removed for certain, float64 [batch, outputs, outputs - 1].
        scale: the largest |logit| met, float64 [batch].
    """

    lower: Float
    masks: NDArray[np.bool_]
    margins: Float
    scale: Float


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of one label, pulled back to the gate and to what else the output reads.

    Attributes:
        coefficients: node -> C, float64 [rows, size].
        slack: node -> a bound of how far C is off, float64 [rows, size].
        constant, error, magnitude: of the constant, float64 [rows].
    """

    coefficients: dict[int, Float]
    slack: dict[int, Float]
    constant: Float
    error: Float
    magnitude: Float


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """A query that the closed form answers.

    Attributes:
        graph: the network.
        budget: the admissible masks, on one Gate node.
        node: that node, as ``closed_form_gate`` finds it.
    """

    graph: Graph
    budget: Budget
    node: int

    @cached_property
    def _gate(self) -> Gate:
        return self.graph.gate(self.node)

    @cached_property
    def _behind(self) -> tuple[int, ...]:
        """The nodes that depend on the gate."""
        reached = {self.node}
        for index in range(self.node + 1, len(self.graph.nodes)):
            if reached.intersection(self.graph.nodes[index].sources):
                reached.add(index)
        return tuple(sorted(reached - {self.node}))

    @cached_property
    def _magnitudes(self) -> Mapping[int, tuple[LinearMap, ...]]:
        """|M| of the terms of the Affine nodes that do not depend on the gate."""
        return {
            index: tuple(magnitude(linear) for _, linear in node.terms)
            for index, node in enumerate(self.graph.nodes)
            if isinstance(node, Affine) and index not in self._behind
        }

    @cached_property
    def _of_label(self) -> dict[int, _Rows]:
        """What has been pulled back so far, by label."""
        return {}

    def worst(self, values: Sequence[Float], labels: NDArray[np.int64]) -> Worst:
        """The closed form of a batch.

        Args:
            values: of every node without removals, as ``Graph.trace`` gives them, float64 [batch, size] each.
            labels: the class of each, int64 [batch].
        """
        batch, outputs = len(labels), self.graph.outputs
        errors = self._errors(values)
        kept, gone = self.budget.forced(self.node, self._gate.gates)
        left = self.budget.left(self.budget.groups[0])
        lower = np.empty((batch, outputs - 1))
        masks = np.empty((batch, outputs - 1, self._gate.gates), dtype=np.bool_)
        for label in np.unique(labels):
            at = np.flatnonzero(labels == label)
            rows = self._rows(int(label))
            total = np.broadcast_to(rows.constant, (len(at), outputs - 1))
            size = np.broadcast_to(rows.magnitude, total.shape)
            error, terms = np.broadcast_to(rows.error, total.shape), 2
            for node, c in rows.coefficients.items():
                source = self._gate.source if node == self.node else node
                value, known = values[source][at], errors[source]
                seen = np.abs(value)
                off = np.zeros_like(seen) if known is None else known[at]
                size = size + seen @ np.abs(c).T
                error = error + off @ np.abs(c).T + (seen + off) @ rows.slack[node].T
                terms += 2 * c.shape[1] + 2
                if node != self.node:
                    total = total + value @ c.T
                    continue
                shares = _per_gate(c * value[:, None, :], self._gate)
                masks[at], most = _largest(np.where(kept | gone, -np.inf, shares), left)
                total = total + np.where(gone, 0.0, shares).sum(axis=2) - most
            loose = (error + gamma(2 * terms + 8) * size) * _OUTWARD + _TINY
            lower[at] = np.nextafter(total - loose, -np.inf)
        masks |= gone
        margins, scale = self._margins(values, labels, masks, gone)
        return Worst(lower, masks, margins, scale)

    def _errors(self, values: Sequence[Float]) -> dict[int, Float | None]:
        """How far the values of the nodes that do not depend on the gate can be off, float64 [batch, size].

        ``e' = |M| e + gamma_n (|M| (|v| + e) + |b|)``, as in ``milpver.rounding``; None: not at all.
        """
        errors: dict[int, Float | None] = {}
        for index, node in enumerate(self.graph.nodes):
            if index in self._behind:
                continue
            match node:
                case Input():
                    errors[index] = None
                case Affine():
                    terms = sum(linear.row_terms + 1 for _, linear in node.terms)
                    unit = gamma(2 * terms + 8)
                    found = unit * np.abs(node.bias) + _TINY
                    for (source, _), linear in zip(node.terms, self._magnitudes[index], strict=True):
                        error, seen = errors[source], np.abs(values[source])
                        if error is None:
                            found = found + unit * linear.apply(seen)
                        else:
                            found = found + linear.apply(error * (1 + unit) + unit * seen)
                    errors[index] = found * _OUTWARD
                case Relu() | Gate():
                    errors[index] = errors[node.source]
                case Max():
                    before = errors[node.source]
                    errors[index] = None if before is None else before[:, node.groups].max(axis=2)
        return errors

    def _rows(self, label: int) -> _Rows:
        """Pull the rows of a label back through the Affine nodes behind the gate."""
        if label in self._of_label:
            return self._of_label[label]
        rows = margin_rows((label,), self.graph.outputs)[0]
        pending = {len(self.graph.nodes) - 1: (rows, np.zeros_like(rows))}
        constant, error, size = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
        for index in reversed(self._behind):
            if index not in pending:
                continue
            c, slack = pending.pop(index)
            node = self.graph.nodes[index]
            if not isinstance(node, Affine):
                raise TypeError(f"node {index} is not linear")
            constant = constant + c @ node.bias
            size = size + np.abs(c) @ np.abs(node.bias)
            error = error + slack @ np.abs(node.bias) + gamma(2 * node.size + 8) * size
            for source, linear in node.terms:
                back = abs(linear.csr.T)
                pushed = linear.adjoint(c)
                loose = np.asarray((back @ (slack + gamma(2 * node.size + 8) * (np.abs(c) + slack)).T).T)
                if source in pending:
                    before, before_loose = pending[source]
                    pushed = before + pushed
                    loose = loose + before_loose + gamma(4) * (np.abs(before) + np.abs(pushed))
                pending[source] = (pushed, loose * _OUTWARD)
        found = _Rows(
            {index: c for index, (c, _) in pending.items()},
            {index: slack for index, (_, slack) in pending.items()},
            constant,
            error * _OUTWARD,
            size * _OUTWARD,
        )
        self._of_label[label] = found
        return found

    def _margins(
        self,
        values: Sequence[Float],
        labels: NDArray[np.int64],
        masks: NDArray[np.bool_],
        gone: NDArray[np.bool_],
    ) -> tuple[Float, Float]:
        """Margins in float64 at the masks, the nodes behind the gate evaluated as ``Graph.trace`` does."""
        batch, classes, gates = masks.shape
        removed = np.concatenate([np.broadcast_to(gone, (batch, 1, gates)), masks], axis=1)
        removed = removed.reshape(-1, gates)
        logits = self.graph.resumed(values, {self.node: removed}, self._behind, classes + 1)
        scale = np.abs(logits).reshape(batch, -1).max(axis=1)
        return label_margins(logits.reshape(batch, classes + 1, -1), labels), scale
