"""Pruning heuristics: how important neurons are thought to be, and the mask that removes the least of them.

``l1``, ``l2``: norm of the weights that make the neuron (Li et al. 2017; Han et al. 2015). ``taylor``: mean
of ``|h dL/dh|`` over data, the first-order change of the cross-entropy (Molchanov et al. 2017). ``actmean``:
mean activation over data (the same authors). ``random``: a random number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from milpver.attack.masks import row_norms
from milpver.attack.pgd import TensorOracle
from milpver.errors import QueryError
from milpver.graph import Graph
from milpver.linear import Float
from milpver.query import Budget
from milpver.registry import near

__all__ = ["HEURISTICS", "NEED_DATA", "least_important", "scores"]

HEURISTICS = ("l1", "l2", "taylor", "actmean", "random")

#: Heuristics that look at data.
NEED_DATA = ("taylor", "actmean")

_CHUNK = 2048


def scores(
    graph: Graph,
    budget: Budget,
    method: str,
    *,
    inputs: Float | None = None,
    labels: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> dict[int, Float]:
    """Importance of the neurons of every gated layer with a budget.

    Args:
        graph: the network.
        budget: whose layers are asked about.
        method: one of ``HEURISTICS``.
        inputs, labels: for those that need data, float64 [n, inputs] and int64 [n].
        seed: of ``random``.

    Returns:
        Gate node -> float64 [gates]; what is least goes first.

    Raises:
        QueryError: an unknown method, or one that needs data and got none.
    """
    nodes = [node for group in budget.groups for node in group.nodes]
    if method not in HEURISTICS:
        raise QueryError(
            f"--method {method}", needed=f"one of {', '.join(HEURISTICS)}", fix=near(method, HEURISTICS)
        )
    if method in ("l1", "l2"):
        return {node: row_norms(graph, node, 1 if method == "l1" else 2) for node in nodes}
    if method == "random":
        rng = np.random.default_rng(seed)
        return {node: rng.random(graph.gate(node).gates) for node in nodes}
    if inputs is None or labels is None or len(inputs) == 0:
        raise QueryError(
            f"--method {method} without data",
            needed="data on which activations are measured",
            fix="pass --data, or use l1, l2 or random",
        )
    if method == "actmean":
        return _mean_activations(graph, nodes, inputs)
    return _taylor(graph, nodes, inputs, labels)


def _mean_activations(graph: Graph, nodes: list[int], inputs: Float) -> dict[int, Float]:
    """Means over the data of each gate's values; of a gate with several entries over these too."""
    total = {node: np.zeros(graph.gate(node).gates) for node in nodes}
    for start in range(0, len(inputs), _CHUNK):
        values = graph.trace(inputs[start : start + _CHUNK])
        for node in nodes:
            gate = graph.gate(node)
            np.add.at(total[node], gate.owner, values[node].sum(axis=0))
    return {
        node: total[node] / (len(inputs) * np.maximum(np.bincount(graph.gate(node).owner), 1))
        for node in nodes
    }


def _taylor(graph: Graph, nodes: list[int], inputs: Float, labels: NDArray[np.int64]) -> dict[int, Float]:
    """Means over the data of ``|dL/dm|``, which at m = 1 is ``|sum of h dL/dh over the gate's entries|``."""
    import torch  # noqa: PLC0415  seconds, which other heuristics do not cost

    from milpver.bounds._tensors import TensorGraph  # noqa: PLC0415  as above

    oracle = TensorOracle(TensorGraph(graph, torch.device("cpu")), nodes)
    total = {node: np.zeros(graph.gate(node).gates) for node in nodes}
    for start in range(0, len(inputs), _CHUNK):
        outputs = oracle.forward(inputs[start : start + _CHUNK], {})
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        slope = shifted / shifted.sum(axis=1, keepdims=True)
        slope[np.arange(len(slope)), labels[start : start + _CHUNK]] -= 1.0
        _, gates = oracle.pull(slope)
        for node in nodes:
            total[node] += np.abs(gates[node]).sum(axis=0)
    return {node: value / len(inputs) for node, value in total.items()}


def least_important(budget: Budget, importance: Mapping[int, Float]) -> dict[int, NDArray[np.bool_]]:
    """The mask that removes the least important neurons of each budget group, as many as may go.

    Args:
        budget: the budget.
        importance: Gate node -> float64 [gates]; of equal ones the first goes.

    Returns:
        Gate node -> bool [gates], True for removed.
    """
    removed = {node: np.zeros(len(value), dtype=np.bool_) for node, value in importance.items()}
    for group in budget.groups:
        joined = np.concatenate([importance[node] for node in group.nodes])
        gone = np.zeros(len(joined), dtype=np.bool_)
        gone[np.argsort(joined, kind="stable")[: group.removable]] = True
        ends = np.cumsum([len(importance[node]) for node in group.nodes])[:-1]
        removed |= dict(zip(group.nodes, np.split(gone, ends), strict=True))
    return removed
