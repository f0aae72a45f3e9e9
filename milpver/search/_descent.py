"""Gradient attack on a property over a box: candidates before, and beside, branching.

Projected descent with momentum on the sign of the gradient (Madry et al. 2018; momentum: Dong et al. 2018),
several starts for each alternative. Half of the starts let a part of the gradient through inactive ReLUs:
where a whole layer is inactive, the true gradient is zero and leads nowhere.
"""

from __future__ import annotations

import torch

from milpver.bounds._tensors import TensorGraph
from milpver.graph import Affine, Gate, Input, Max, Relu
from milpver.search._alternatives import Alternatives

__all__ = ["descend", "forward"]

#: Part of the gradient that inactive ReLUs let through, in half of the starts.
_LEAK = 0.1


def forward(
    tensors: TensorGraph,
    x: torch.Tensor,
    leak: torch.Tensor | None = None,
    removed: dict[int, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Outputs of a batch, float64 [batch, inputs] -> [batch, outputs], differentiable.

    Args:
        tensors: the graph.
        x: the inputs.
        leak: part of the gradient that inactive ReLUs let through, float64 [batch, 1]; values do not change.
        removed: Gate node -> removed gates, bool [batch, gates].
    """
    values: list[torch.Tensor] = []
    for index, node in enumerate(tensors.graph.nodes):
        match node:
            case Input():
                value = x
            case Affine():
                value = tensors.biases[index].expand(len(x), -1)
                for (source, _), operator in zip(node.terms, tensors.operators[index], strict=True):
                    value = value + operator.forward(values[source])
            case Relu():
                z = values[node.source]
                value = z.clamp(min=0.0)
                if leak is not None:
                    below = leak * z.clamp(max=0.0)
                    value = value + (below - below.detach())
            case Max():
                groups = torch.as_tensor(node.groups, device=x.device)
                value = values[node.source][:, groups].amax(dim=2)
            case Gate():
                value = values[node.source]
                if removed is not None and index in removed:
                    owner = torch.as_tensor(node.owner, device=x.device)
                    value = value.masked_fill(removed[index][:, owner], 0.0)
        values.append(value)
    return values[-1]


def descend(
    tensors: TensorGraph,
    alternatives: Alternatives,
    lower: torch.Tensor,
    upper: torch.Tensor,
    starts: torch.Tensor,
    wanted: torch.Tensor,
    *,
    steps: int,
    removed: dict[int, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move inputs so that alternatives become small.

    Args:
        tensors: the graph.
        alternatives: what to minimise.
        lower, upper: the box, float64 [inputs].
        starts: float64 [n, inputs].
        wanted: the alternative of each start, int64 [n].
        steps: gradient steps; it ends before where a value <= 0 is met.
        removed: Gate node -> removed gates of each start, bool [n, gates].

    Returns:
        The best point met from each start, float64 [n, inputs] in the box, and its value as computed here.
    """
    x = starts.clone()
    at = torch.arange(len(x), device=x.device).unsqueeze(1)
    leak = _LEAK * (at % 2).to(x.dtype)
    best, value = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    motion = torch.zeros_like(x)
    width = upper - lower
    for step in range(steps + 1):
        x.requires_grad_(True)
        found = alternatives.values(forward(tensors, x, leak, removed)).gather(1, wanted.unsqueeze(1))[:, 0]
        (gradient,) = torch.autograd.grad(found.sum(), x)
        with torch.no_grad():
            x = x.detach()
            better = found < value
            best[better], value = x[better], torch.where(better, found, value)
            if step == steps or bool((value <= 0).any()):
                break
            gradient = gradient / gradient.abs().mean(dim=1, keepdim=True).clamp(min=1e-300)
            motion = 0.75 * motion + gradient
            size = 0.25 * (1.0 - step / steps) ** 1.5 + 0.002
            x = (x - size * width * motion.sign()).clamp(min=lower, max=upper)
    return best, value.detach()
