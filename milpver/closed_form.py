"""Worst margins in closed form, for whole batches: point inputs, one budget, nothing nonlinear behind it.

With h the values in front of the only Gate node with a budget and c = (w_label - w_j) pulled back to it,

    min_m f_label - f_j = b + sum_g A_g - (sum of the s largest of max(A_g, 0)),  A_g = sum_{r in g} c_r h_r,

which the budget-aware interval rule gives exactly (rounded outward) when its input is a point. Here is the
test whether a query is of this kind, and the masks that attain it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver.graph import Affine, Gate, Graph
from milpver.linear import Float
from milpver.query import Budget, BudgetGroup

__all__ = ["closed_form_gate", "worst_masks"]


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


def worst_masks(graph: Graph, group: BudgetGroup, values: Float, rows: Float) -> NDArray[np.bool_]:
    """The masks that attain the closed form.

    Args:
        graph: the network.
        group: the budget, on one Gate node.
        values: h, values of the node in front of the Gate, float64 [batch, size].
        rows: rows over the output, float64 [batch, rows, outputs].

    Returns:
        bool [batch, rows, gates], True for removed: per row the (at most s) gates with the largest A_g > 0.
    """
    (index,) = group.nodes
    gate = graph.nodes[index]
    if not isinstance(gate, Gate):
        raise TypeError(f"node {index} is not a Gate")
    share = _pulled_back(graph, index, rows) * values[:, None, :]
    if not gate.private:
        owner = sparse.csr_array(
            (np.ones(gate.size), (np.arange(gate.size), gate.owner)), shape=(gate.size, gate.gates)
        )
        share = (share.reshape(-1, gate.size) @ owner).reshape(*share.shape[:2], gate.gates)
    count = min(group.removable, gate.gates)
    worst = np.argpartition(-share, count - 1, axis=2)[:, :, :count]
    removed = np.zeros(share.shape, dtype=np.bool_)
    np.put_along_axis(removed, worst, np.take_along_axis(share, worst, axis=2) > 0, axis=2)
    return removed


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
