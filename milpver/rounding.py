"""How far a float32 run of a network can lie from the exact one: an a-priori bound, in float64.

With v a node's exact value, e a bound on its error and d what an affine node ``M v + b`` adds to it,

    ``e' = |M| e + d,   d = gamma_n (|M| (|v| + e) + |b|) + n tau,   gamma_n = n u / (1 - n u)``

(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), for any order of sums. n is
the longest sum in the node and 8 more roundings for layers that a runtime folds into one; u is the unit
roundoff of the file's arithmetic (2^-24; 2^-11 for float16 files); tau is its smallest normal number, since
results below it may be flushed to zero. ReLU and maxima are 1-Lipschitz; where ``v <= 0`` a ReLU's error
is at most ``max(v + e, 0)``; a removed neuron is 0 without error.

That grows with the product of the layers' norms. But where every ReLU on the way is surely active or surely
inactive (``|v| > e``), errors pass on linearly, signs and all, so that

    ``|error of y| <= sum_k |dy / dv_k| d_k + sum over unsure entries i |dy / dv_i| e_i``

along the exact activation pattern, unsure entries passing nothing further back. Each node takes the smaller
of the two bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from milpver.graph import Affine, Gate, Graph, Input, Masks, Max, Relu
from milpver.linear import Dense, Float, LinearMap, magnitude
from milpver.network import Network

__all__ = ["float32_error", "gamma"]

#: Roundings a layer may have beside its sums and products: a normalisation folded into it, a reciprocal.
_SLACK = 8

#: What the second bound of one node may cost: its entries, products (a sparse one takes as long as 8 dense
#: ones), entries of a Jacobian.
_WIDEST = 512
_MOST_PRODUCTS = 300_000_000
_SPARSE_PRODUCT = 8
_MOST_ENTRIES = 16_000_000

#: The bounds are themselves sums of rounded products, all of them of numbers >= 0.
_OUTWARD = 1 + 2.0**-20


def gamma(terms: int) -> float:
    """An upper bound of gamma_n for n = ``terms`` in float64, u = 2^-53."""
    unit = 2.0**-53
    return terms * unit / (1.0 - 2.0 * terms * unit)


def float32_error(
    network: Network, x: Float, removed: Masks | None = None, *, input_error: Float | None = None
) -> Float:
    """How far a run of a network in the file's arithmetic can lie from the exact one.

    Args:
        network: the network; its weights are those of the file and not rounded.
        x: float64 [batch, inputs], the exact inputs.
        removed: Gate node -> bool [gates] or [batch, gates].
        input_error: float64 [batch, inputs], how far the run's inputs lie from ``x``; absent: not at all.

    Returns:
        float64 [batch, outputs]; infinity where no bound exists: where a value overflows, and where a
        float16 sum is too long.
    """
    graph = network.graph
    half = network.dtype == "float16"
    unit = 2.0**-11 if half else 2.0**-24
    tiny = float(np.finfo(np.float16).smallest_subnormal if half else np.finfo(np.float32).tiny)
    largest = float(np.finfo(np.float16 if half else np.float32).max)
    x = np.asarray(x, dtype=np.float64)
    start = np.zeros_like(x) if input_error is None else np.asarray(input_error, dtype=np.float64)
    if half:
        start = start + unit * (np.abs(x) + start) + tiny
    terms = {index: _terms(node) for index, node in enumerate(graph.nodes) if isinstance(node, Affine)}
    if max(terms.values(), default=0) * unit >= 0.5:
        return np.full((len(x), graph.outputs), np.inf)
    magnitudes = {
        index: tuple(magnitude(linear) for _, linear in node.terms)
        for index, node in enumerate(graph.nodes)
        if isinstance(node, Affine)
    }
    rounding = {index: (n * unit / (1 - n * unit), n * tiny) for index, n in terms.items()}
    bound = partial(_bound, graph, rounding, magnitudes, largest)
    return np.array([bound(*row) for row in _rows(graph, x, start, removed or {})]).reshape(-1, graph.outputs)


def _rows(graph: Graph, x: Float, start: Float, removed: Masks) -> list[tuple[list[Float], Float, Masks]]:
    """For each input its values [size] of every node, its own error, and its masks [gates]."""
    values = graph.trace(x, removed)
    masks = {node: np.broadcast_to(gone, (len(x), np.shape(gone)[-1])) for node, gone in removed.items()}
    return [
        ([value[i] for value in values], start[i], {node: gone[i] for node, gone in masks.items()})
        for i in range(len(x))
    ]


def _terms(node: Affine) -> int:
    """The longest sum in a node, with some roundings to spare."""
    return sum(linear.row_terms + 1 for _, linear in node.terms) + _SLACK


def _bound(
    graph: Graph,
    rounding: Mapping[int, tuple[float, float]],
    magnitudes: Mapping[int, tuple[LinearMap, ...]],
    largest: float,
    values: list[Float],
    start: Float,
    removed: Masks,
) -> Float:
    """The bound for one input, float64 [outputs]."""
    if any(not np.all(np.abs(value) < largest) for value in values):
        return np.full(graph.outputs, np.inf)
    errors: list[Float] = []
    added: dict[int, Float] = {}
    refined = _affordable(graph)
    for index, node in enumerate(graph.nodes):
        match node:
            case Input():
                errors.append(start)
            case Affine(terms=terms, bias=bias):
                gamma, flush = rounding[index]
                passed, own = np.zeros(node.size), gamma * np.abs(bias) + flush
                for (source, _), linear in zip(terms, magnitudes[index], strict=True):
                    seen = np.abs(values[source]) + errors[source]
                    passed = passed + linear.apply(errors[source][None])[0]
                    own = own + gamma * linear.apply(seen[None])[0]
                added[index] = own * _OUTWARD
                errors.append((passed + own) * _OUTWARD)
                if index in refined:
                    second = _pulled_back(graph, index, values, errors, added, removed)
                    errors[index] = np.minimum(errors[index], second * _OUTWARD)
            case Relu(source=source):
                exact, error = values[source], errors[source]
                errors.append(np.where(exact > 0, error, np.maximum(exact + error, 0.0)))
            case Max(source=source, groups=groups):
                errors.append(errors[source][groups].max(axis=1))
            case Gate(source=source, owner=owner):
                gone = removed.get(index)
                errors.append(errors[source] if gone is None else np.where(gone[owner], 0.0, errors[source]))
    return errors[-1]


def _affordable(graph: Graph) -> frozenset[int]:
    """The affine nodes that get the second bound: behind larger ones (images) it takes too long."""
    found, coefficients, widest = set(), 0, 0
    for index, node in enumerate(graph.nodes):
        widest = max(widest, node.size)
        if isinstance(node, Affine):
            coefficients += sum(_coefficients(linear) for _, linear in node.terms)
            cheap = node.size * coefficients <= _MOST_PRODUCTS and node.size * widest <= _MOST_ENTRIES
            if cheap and node.size <= _WIDEST:
                found.add(index)
    return frozenset(found)


def _coefficients(linear: LinearMap) -> int:
    """What one product with a map's matrix costs, in dense products."""
    return linear.outputs * linear.row_terms * (1 if isinstance(linear, Dense) else _SPARSE_PRODUCT)


def _pulled_back(
    graph: Graph,
    top: int,
    values: list[Float],
    errors: list[Float],
    added: Mapping[int, Float],
    removed: Masks,
) -> Float:
    """The second bound, on the node ``top``, from the errors of the nodes before it."""
    size = graph.nodes[top].size
    slopes: dict[int, Float] = {top: np.eye(size)}
    total = np.zeros(size)

    def pass_to(source: int, slope: Float) -> None:
        slopes[source] = slopes[source] + slope if source in slopes else slope

    for index in range(top, -1, -1):
        slope = slopes.pop(index, None)
        if slope is None:
            continue
        match graph.nodes[index]:
            case Affine(terms=terms):
                total += np.abs(slope) @ added[index]
                for source, linear in terms:
                    pass_to(source, linear.adjoint(slope))
            case Relu(source=source):
                exact, error = values[source], errors[source]
                unsure = np.abs(exact) <= error
                total += np.abs(slope[:, unsure]) @ errors[index][unsure]
                pass_to(source, np.where(exact > error, slope, 0.0))
            case Gate(source=source, owner=owner):
                gone = removed.get(index)
                pass_to(source, slope if gone is None else np.where(gone[owner], 0.0, slope))
            case Input() | Max():
                total += np.abs(slope) @ errors[index]
    return total
