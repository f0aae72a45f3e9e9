"""Interval propagation through the graph, with or without the budget, rounded outward.

Without the budget a gated value v in [l, u] becomes [min(l, 0), max(u, 0)]: every neuron of the layer may
vanish at once (neuron-pruning paper, eq. 9, with the values after the gate).

With it, a row w over gated values p = m v, at most s gates of a budget group removed, is bounded by

    lower = sum_g A_g - (sum of the s largest of max(A_g, 0)),   A_g = sum_{r in g} min(w_r l_r, w_r u_r),

A_g summed over all the entries (of all layers of the group) that share gate g; the upper bound mirrored.
Removing gate g takes A_g away, which lowers the row only where A_g > 0, so the s largest are the worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from milpver.bounding import Bounds
from milpver.bounds._rounding import gamma, outward, sum_error
from milpver.bounds._tensors import TensorGraph
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.query import Budget, BudgetGroup

__all__ = ["interval_bounds"]

#: Elements of the largest temporary (batch x rows x entries) of the budget rule.
_CHUNK = 1 << 24


def interval_bounds(
    tensors: TensorGraph,
    lower: torch.Tensor,
    upper: torch.Tensor,
    budget: Budget,
    rows: torch.Tensor,
    *,
    aware: bool,
) -> Bounds:
    """Bounds of every node and of the rows over the output.

    Args:
        tensors: the graph on its device.
        lower, upper: float64 [batch, inputs].
        budget: the admissible masks.
        rows: float64 [batch, rows, outputs].
        aware: whether a row counts at most s removals, or lets every gated neuron vanish.
    """
    graph = tensors.graph
    lows: list[torch.Tensor] = []
    highs: list[torch.Tensor] = []
    for index, node in enumerate(graph.nodes):
        match node:
            case Input():
                low, high = lower, upper
            case Affine():
                low, high = _affine(tensors, index, node, lows, highs, budget if aware else Budget())
            case Relu():
                low, high = lows[node.source].clamp(min=0.0), highs[node.source].clamp(min=0.0)
            case Max():
                groups = torch.as_tensor(node.groups, device=tensors.device)
                low = lows[node.source][:, groups].amax(dim=2)
                high = highs[node.source][:, groups].amax(dim=2)
            case Gate():
                low, high = lows[node.source], highs[node.source]
                if budget.group_of(index) is not None:
                    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        lows.append(low)
        highs.append(high)
    bound = _output_rows(tensors, rows, lows, highs, budget if aware else Budget())
    return Bounds(
        tuple(part.cpu().numpy() for part in lows),
        tuple(part.cpu().numpy() for part in highs),
        bound.cpu().numpy(),
    )


def _affine(
    tensors: TensorGraph,
    index: int,
    node: Affine,
    lows: Sequence[torch.Tensor],
    highs: Sequence[torch.Tensor],
    budget: Budget,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds of an Affine node: free terms by interval products, gated terms by the budget rule."""
    bias = tensors.biases[index]
    low, high = bias.expand(len(lows[0]), -1), bias.expand(len(lows[0]), -1)
    magnitude = bias.abs().expand(len(lows[0]), -1)
    terms = 1
    gated: dict[int, torch.Tensor] = {}
    gated_terms = 0
    for (source, _), operator in zip(node.terms, tensors.operators[index], strict=True):
        if budget.group_of(source) is not None:
            coefficients = operator.dense.unsqueeze(0)
            gated[source] = gated[source] + coefficients if source in gated else coefficients
            gated_terms += operator.linear.inputs
            continue
        part_low, part_high, part_magnitude = operator.interval(lows[source], highs[source])
        low, high, magnitude = low + part_low, high + part_high, magnitude + part_magnitude
        terms += 2 * operator.row_terms + 1
    if gated:
        rest = _gated_rows(tensors.graph, gated, lows, highs, budget)
        low, high, magnitude = low + rest[0], high - rest[1], magnitude + rest[2]
        terms += 2 * gated_terms + 2
    return outward(low, high, sum_error(magnitude, terms))


def _gated_rows(
    graph: Graph,
    coefficients: Mapping[int, torch.Tensor],
    lows: Sequence[torch.Tensor],
    highs: Sequence[torch.Tensor],
    budget: Budget,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The budget rule on rows over gated values.

    Args:
        graph: whose Gate nodes the coefficients belong to.
        coefficients: Gate node -> w, float64 [batch or 1, rows, size].
        lows, highs: bounds of every node, float64 [batch, size].
        budget: the admissible masks; every node of ``coefficients`` belongs to a group.

    Returns:
        The lower bound of the rows, the lower bound of their negation, and the sum of magnitudes,
        float64 [batch, rows]; not rounded outward.
    """
    batch = len(lows[0])
    rows = next(iter(coefficients.values())).shape[1]
    device = lows[0].device
    total = [torch.zeros(batch, rows, dtype=torch.float64, device=device) for _ in range(3)]
    by_group: dict[BudgetGroup, list[int]] = {}
    for node in coefficients:
        group = budget.group_of(node)
        if group is None:
            raise ValueError(f"node {node} has no budget group")
        by_group.setdefault(group, []).append(node)
    for group, nodes in by_group.items():
        width = sum(coefficients[node].shape[2] for node in nodes)
        step = max(1, _CHUNK // max(1, batch * width))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            down, up = [], []
            for node in nodes:
                gate = graph.nodes[node]
                if not isinstance(gate, Gate):
                    raise TypeError(f"node {node} is not a Gate")
                w = coefficients[node][:, part]
                low, high = lows[gate.source].unsqueeze(1), highs[gate.source].unsqueeze(1)
                at_low, at_high = w * low, w * high
                total[2][:, part] += torch.maximum(at_low.abs(), at_high.abs()).sum(dim=2)
                down.append(_per_gate(torch.minimum(at_low, at_high), gate))
                up.append(_per_gate(-torch.maximum(at_low, at_high), gate))
            total[0][:, part] += _kept(torch.cat(down, dim=2), group.removable)
            total[1][:, part] += _kept(torch.cat(up, dim=2), group.removable)
    return total[0], total[1], total[2]


def _per_gate(values: torch.Tensor, gate: Gate) -> torch.Tensor:
    """Sums over the entries that share a gate, float64 [batch, rows, size] -> [batch, rows, gates]."""
    if gate.private:
        return values
    owner = torch.as_tensor(gate.owner, device=values.device).expand_as(values)
    sums = torch.zeros(*values.shape[:2], gate.gates, dtype=values.dtype, device=values.device)
    return sums.scatter_add_(2, owner, values)


def _kept(per_gate: torch.Tensor, removable: int) -> torch.Tensor:
    """``sum_g A_g - (sum of the s largest of max(A_g, 0))`` over the last axis."""
    worst = per_gate.clamp(min=0.0).topk(min(removable, per_gate.shape[2]), dim=2, sorted=False).values
    return per_gate.sum(dim=2) - worst.sum(dim=2)


def _output_rows(
    tensors: TensorGraph,
    rows: torch.Tensor,
    lows: Sequence[torch.Tensor],
    highs: Sequence[torch.Tensor],
    budget: Budget,
) -> torch.Tensor:
    """Lower bounds of rows over the output, pushed back through Affine nodes first.

    ``C (M x + b) = (C M) x + C b`` keeps what the outputs have in common, which subtracting their bounds
    would lose. The rounding of C M, at most gamma_n |C| |M| an entry, is charged at max(|l|, |u|) of x.
    """
    graph = tensors.graph
    pending: dict[int, tuple[torch.Tensor, torch.Tensor]] = {len(graph.nodes) - 1: (rows, rows.new_zeros(()))}
    constant, magnitude, error = (torch.zeros(rows.shape[:2], dtype=torch.float64, device=rows.device),) * 3
    terms = 1
    gated: dict[int, torch.Tensor] = {}
    while pending:
        index = max(pending)
        coefficients, slack = pending.pop(index)
        node = graph.nodes[index]
        if isinstance(node, Affine):
            bias = tensors.biases[index]
            constant = constant + coefficients @ bias
            magnitude = magnitude + coefficients.abs() @ bias.abs()
            error = error + (slack * bias.abs()).sum(dim=-1)
            terms += node.size + 1
            for (source, _), operator in zip(node.terms, tensors.operators[index], strict=True):
                pushed = operator.adjoint(coefficients)
                size = operator.adjoint(coefficients.abs() + slack, operator.absolute)
                loose = size * gamma(2 * operator.column_terms + 4)
                if slack.ndim:
                    loose = loose + operator.adjoint(slack, operator.absolute)
                if source in pending:
                    before, before_slack = pending[source]
                    loose = loose + before_slack + (before.abs() + pushed.abs()) * gamma(2)
                    pushed = before + pushed
                pending[source] = (pushed, loose * (1 + gamma(8)))
            continue
        largest = torch.maximum(lows[index].abs(), highs[index].abs()).unsqueeze(1)
        error = error + (slack * largest).sum(dim=-1)
        if budget.group_of(index) is not None:
            gated[index] = coefficients
        else:
            at_low, at_high = (
                coefficients * lows[index].unsqueeze(1),
                coefficients * highs[index].unsqueeze(1),
            )
            constant = constant + torch.minimum(at_low, at_high).sum(dim=2)
            magnitude = magnitude + torch.maximum(at_low.abs(), at_high.abs()).sum(dim=2)
        terms += 2 * node.size + 2
    if gated:
        low, _, size = _gated_rows(graph, gated, lows, highs, budget)
        constant, magnitude = constant + low, magnitude + size
    total = error * (1 + gamma(2 * terms)) + sum_error(magnitude, terms)
    return outward(constant, constant, total)[0]
