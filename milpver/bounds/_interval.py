"""Interval bounds of every node and of rows over the output, rounded outward."""

from __future__ import annotations

import torch

from milpver.bounding import Bounds
from milpver.bounds._rounding import gamma, outward, sum_error
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine

__all__ = ["as_bounds", "interval_bounds"]


def interval_bounds(
    workspace: Workspace, lower: torch.Tensor, upper: torch.Tensor, rows: torch.Tensor
) -> Bounds:
    """Bounds of every node and of the rows over the output.

    Args:
        workspace: an empty one.
        lower, upper: the boxes, float64 [batch, inputs].
        rows: float64 [batch, rows, outputs].
    """
    for _ in workspace.graph.nodes:
        workspace.add(lower, upper)
    return as_bounds(workspace, _output_rows(workspace, rows))


def as_bounds(workspace: Workspace, rows_lower: torch.Tensor) -> Bounds:
    """A full workspace as arrays."""
    return Bounds(
        tuple(part.cpu().numpy() for part in workspace.lows),
        tuple(part.cpu().numpy() for part in workspace.highs),
        rows_lower.cpu().numpy(),
    )


def _output_rows(workspace: Workspace, rows: torch.Tensor) -> torch.Tensor:
    """Lower bounds of rows over the output, pushed back through Affine nodes first.

    ``C (M x + b) = (C M) x + C b`` keeps what the outputs have in common, which subtracting their bounds
    would lose. The rounding of C M, at most gamma_n |C| |M| an entry, is charged at max(|l|, |u|) of x.
    """
    graph, tensors = workspace.graph, workspace.tensors
    lows, highs = workspace.lows, workspace.highs
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
        largest = workspace.largest(index).unsqueeze(1)
        error = error + (slack * largest).sum(dim=-1)
        if workspace.counted(index) is not None:
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
        low, _, size = workspace.gated_rows(gated)
        constant, magnitude = constant + low, magnitude + size
    total = error * (1 + gamma(2 * terms)) + sum_error(magnitude, terms)
    return outward(constant, constant, total)[0]
