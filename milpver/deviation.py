"""The neuron-pruning paper's margin-deviation bounds (Propositions 1 to 4), proven in floating point.

With x_k a layer's activations without pruning, and its neurons gated behind the activation,

    delta_k = ||W_k||_2 delta_{k-1} + ||top_s(x_k)||_2,     |margin_j pruned - margin_j| <= ||w_t - w_j||_2
    delta_K,

where delta is 0 before the first gated layer and the second term is 0 in layers without a budget. Single
layers, selected layers and all layers (Propositions 2, 4, 3) are that one rule; biases change nothing in it.
Here it is a rule for every kind of node: an affine map passes on its spectral norm, ReLU is 1-Lipschitz, a
maximum over windows passes on the root of how many windows share an entry, a gate adds the largest s of its
neurons. Each class gets its own ``||w_t - w_j||_2``; the paper's form takes the largest for all.

Everything is rounded outward: spectral norms are proven upper bounds, clean margins and activations are
enclosed, sums and roots rounded up. So what is said to be proven is, with a margin > 0 strictly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milpver import registry
from milpver.bounding import margin_rows
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Dense, Float, LinearMap
from milpver.network import Network
from milpver.query import Budget, check_inputs

__all__ = ["DeviationScreen", "deviation_screen", "spectral_norm_bound"]

#: Inputs that are bounded together.
_BATCH = 512

#: Entries of a matrix up to which its singular values are computed; above, a cheaper bound is taken.
_DENSE = 4_000_000

_UNIT = 2.0**-53
_TINY = 2.0**-1000


@dataclass(frozen=True, slots=True, eq=False)
class DeviationScreen:
    """What the bounds say about a batch of inputs.

    Attributes:
        proven: bool [n]: no removal within the budget changes the class (margins proven > 0).
        lower: lower bounds of the worst margin to each competing class, in the order of the classes without
        the
            label, float64 [n, outputs - 1].
        margin: gamma, a lower bound of the smallest margin without pruning, float64 [n].
        deviation: delta in the paper's form, ``max_j ||w_t - w_j||_2 delta_K``, rounded up, float64 [n].
    """

    proven: NDArray[np.bool_]
    lower: Float
    margin: Float
    deviation: Float


def deviation_screen(
    network: Network, inputs: NDArray[np.float32], labels: Sequence[int], budget: Budget
) -> DeviationScreen:
    """Which inputs keep their class under every removal within a budget, by deviation bounds alone.

    It never says that an input is vulnerable: what is not proven is open. Point inputs only.

    Args:
        network: the classifier, its normalisation included.
        inputs: float32 [n, inputs], in the data's units.
        labels: the class of each.
        budget: the admissible masks; of a group over several gates each gate is taken to lose all s.

    Returns:
        The bounds. An input that is not classified as labelled is not proven.

    Raises:
        QueryError: a label out of range, or an input that is not finite.
    """
    check_inputs(network, inputs, labels, None)
    graph = network.graph
    norms = _Norms(graph)
    parts = [
        _screened(graph, norms, inputs[start : start + _BATCH], labels[start : start + _BATCH], budget)
        for start in range(0, len(inputs), _BATCH)
    ]
    if not parts:
        nothing = np.zeros(0)
        return DeviationScreen(
            nothing.astype(np.bool_), np.zeros((0, graph.outputs - 1)), nothing, nothing.copy()
        )
    return DeviationScreen(
        np.concatenate([part.proven for part in parts]),
        np.concatenate([part.lower for part in parts]),
        np.concatenate([part.margin for part in parts]),
        np.concatenate([part.deviation for part in parts]),
    )


def spectral_norm_bound(linear: LinearMap) -> float:
    """A proven upper bound of ``||M||_2``.

    Up to some size by a computed singular value decomposition: ``||M|| <= ||U|| s_1 ||V|| + ||M - U S
    V||_F``, where ``||U||^2 <= 1 + ||U^T U - I||_F`` and every product is charged its rounding error, so that
    nothing is assumed of the decomposition. That is within 1e-12 of the norm. Larger matrices get
    ``sqrt(||M||_1 ||M||_inf)``.
    """
    if linear.inputs * linear.outputs > _DENSE:
        entries = abs(linear.csr)
        columns, rows = entries.sum(axis=0).max(initial=0.0), entries.sum(axis=1).max(initial=0.0)
        return float(_up(np.sqrt(_up(columns, linear.outputs) * _up(rows, linear.inputs)), 4))
    matrix = linear.weight if isinstance(linear, Dense) else linear.csr.toarray()
    if not np.any(matrix):
        return 0.0
    try:
        left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:  # no convergence
        return _frobenius(matrix)
    scaled = left * singular
    # |fl(A B) - A B| <= gamma_n |A| |B|; the scaling of the columns is one rounding more
    terms = len(singular) + 8
    residual = np.abs(matrix - scaled @ right) + 4 * terms * _UNIT * (
        np.abs(scaled) @ np.abs(right) + np.abs(matrix)
    )
    bound = _orthogonal_norm(left) * float(singular.max()) * _orthogonal_norm(right.T)
    return float(_up(_up(bound, 8 + len(singular)) + _frobenius(residual), 4))


def _orthogonal_norm(columns: Float) -> float:
    """Upper bound of the spectral norm of a matrix with almost orthonormal columns."""
    gram = columns.T @ columns
    error = 4 * (len(columns) + 8) * _UNIT * (np.abs(columns).T @ np.abs(columns))
    return float(_up(np.sqrt(1.0 + _frobenius(np.abs(gram - np.eye(gram.shape[0])) + error)), 8))


def _frobenius(matrix: Float) -> float:
    """Upper bound of the Frobenius norm."""
    return float(_up(np.sqrt(_up(np.sum(np.square(matrix)), matrix.size + 4)), 4))


def _up(value: Float | float, roundings: int) -> Float:
    """What a sum of products of numbers >= 0 is at most, computed with so many roundings (at least 1)."""
    raised: Float = np.asarray(value, dtype=np.float64) * (1.0 + 4 * (roundings + 4) * _UNIT) + _TINY
    return raised


class _Norms:
    """What the maps behind a gate pass on, computed once for all inputs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._spectral: dict[tuple[int, int], float] = {}
        self._rows: dict[int, Float] = {}

    def spectral(self, index: int, term: int, linear: LinearMap) -> float:
        """Of a term of an affine node."""
        if (index, term) not in self._spectral:
            self._spectral[index, term] = spectral_norm_bound(linear)
        return self._spectral[index, term]

    def differences(self, term: int) -> Float:
        """``||w_t - w_j||_2`` over the rows of a term of the output node, float64 [outputs, outputs]."""
        if term not in self._rows:
            node = self._graph.nodes[-1]
            if not isinstance(node, Affine):
                raise TypeError("the output is no affine node")
            linear = node.terms[term][1]
            rows = linear.weight if isinstance(linear, Dense) else linear.csr.toarray()
            found = np.empty((len(rows), len(rows)))
            for t, row in enumerate(rows):
                apart = np.abs(row - rows) + 2 * _UNIT * (np.abs(row) + np.abs(rows))
                found[t] = _up(np.sqrt(_up(np.square(apart).sum(axis=1), rows.shape[1] + 8)), 8)
            self._rows[term] = found
        return self._rows[term]


def _screened(
    graph: Graph, norms: _Norms, inputs: NDArray[np.float32], labels: Sequence[int], budget: Budget
) -> DeviationScreen:
    """The bounds of one batch."""
    x = inputs.astype(np.float64)
    rows = margin_rows(tuple(labels), graph.outputs)
    clean = registry.load("bounds", "interval").bound(graph, x, x, Budget(), rows, "cpu")
    moved: list[Float] = []
    last = len(graph.nodes) - 1
    for index, node in enumerate(graph.nodes):
        if index == last and isinstance(node, Affine):
            break
        magnitude = np.maximum(np.abs(clean.lower[index]), np.abs(clean.upper[index]))
        moved.append(_moved(index, node, moved, magnitude, norms, budget))
    label = np.asarray(labels)
    others = np.stack([np.delete(np.arange(graph.outputs), t) for t in label])
    output = graph.nodes[last]
    change = np.zeros(others.shape)
    if isinstance(output, Affine):
        for term, (source, _) in enumerate(output.terms):
            apart = norms.differences(term)[label[:, None], others]
            change = _up(change + _up(apart * moved[source][:, None], 2), 2)
        change = np.where(_unmoved(output, moved)[:, None], 0.0, change)
    else:
        # f_t - f_j is a functional of norm sqrt(2) of the outputs
        change = np.where(moved[last] > 0, _up(np.sqrt(2.0) * moved[last], 4), 0.0)[:, None] + change
    lower = np.nextafter(clean.rows_lower - change, -np.inf)
    lower = np.where(np.isfinite(lower), lower, -np.inf)
    return DeviationScreen(
        proven=np.all(lower > 0, axis=1),
        lower=lower,
        margin=clean.rows_lower.min(axis=1),
        deviation=change.max(axis=1),
    )


def _unmoved(node: Affine, moved: list[Float]) -> NDArray[np.bool_]:
    """Inputs at which nothing that feeds a node is moved, bool [batch]."""
    still: NDArray[np.bool_] = np.all([moved[source] == 0 for source in node.sources], axis=0)
    return still


def _moved(
    index: int,
    node: Input | Affine | Relu | Max | Gate,
    moved: list[Float],
    magnitude: Float,
    norms: _Norms,
    budget: Budget,
) -> Float:
    """How far pruning moves a node's values in the L2 norm, at most, float64 [batch].

    Args:
        index, node: the node.
        moved: the same of the nodes before it.
        magnitude: upper bounds of the node's values without pruning, float64 [batch, size]; of a Gate, which
            removes nothing then, those of its source.
        norms: of the graph.
        budget: what may be removed.
    """
    match node:
        case Input():
            return np.zeros(len(magnitude))
        case Affine():
            total = np.zeros(len(magnitude))
            for term, (source, linear) in enumerate(node.terms):
                if moved[source].any():
                    total = _up(total + _up(norms.spectral(index, term, linear) * moved[source], 2), 2)
            return np.where(_unmoved(node, moved), 0.0, total)
        case Relu():
            return moved[node.source]
        case Max():
            before = moved[node.source]
            shared = _shared(node, needed=bool(before.any()))
            return np.where(before > 0, _up(np.sqrt(float(shared)) * before, 4), 0.0)
        case Gate():
            group = budget.group_of(index)
            if group is None:
                return moved[node.source]
            gone = _largest(node, magnitude, group.removable)
            return np.where(moved[node.source] > 0, _up(moved[node.source] + gone, 2), gone)


def _shared(node: Max, *, needed: bool) -> int:
    """How many windows one entry stands in, at most."""
    if not needed:
        return 1
    windows = np.sort(node.groups, axis=1)
    first = np.ones_like(windows, dtype=np.bool_)
    first[:, 1:] = windows[:, 1:] != windows[:, :-1]
    return int(np.bincount(windows[first]).max(initial=1))


def _largest(node: Gate, magnitude: Float, removable: int) -> Float:
    """``||top_s||_2`` over whole gates, rounded up, float64 [batch]; exactly 0 where all values are 0."""
    squares = np.square(magnitude)
    if not node.private:
        per_gate = np.zeros((node.gates, len(magnitude)))
        np.add.at(per_gate, node.owner, squares.T)
        squares = per_gate.T
    count = min(removable, squares.shape[1])
    top = np.partition(squares, squares.shape[1] - count, axis=1)[:, squares.shape[1] - count :].sum(axis=1)
    none = ~magnitude.any(axis=1)
    return np.where(none, 0.0, _up(np.sqrt(_up(top, node.size + 8)), 8))
