"""What training differentiates through: the paper's deviation bound, and budget-aware linear bounds.

Both say how far pruning within a budget can move the class margins of an image, for the fully connected part
of a network. They are computed in float32 without outward rounding: they guide training and prove nothing
(``milpver.deviation`` and ``milpver.bounds`` do).

Deviation (neuron-pruning paper, Propositions 2 to 4): ``delta_k = ||W_k||_2 delta_{k-1} + ||top_s(x_k)||_2``,
times ``max_j ||w_t - w_j||_2``; spectral norms by power iteration, one step a call.

Linear bounds: the interval rule bounds the neurons behind the first gated layer, ``lower = sum_r A_r - (sum
of the s largest of max(A_r, 0))`` with ``A_r = min(w_r l_r, w_r u_r)``; the margins are then propagated
backwards to that layer's activations, which are fixed numbers, so that the exact top-s sum ends the chain. A
gated layer on the way pays ``lambda s`` for ``min(C v, lambda)`` in place of ``C v`` (any lambda >= 0; here
the (s+1)-th largest).

On the other side stands an attack: masks of the neurons whose removal raises the loss most to first order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "SpectralNorms",
    "attacked_logits",
    "deviation_bound",
    "margin_bounds",
    "nominal_margin",
    "top_sum",
]

_TINY = 1e-12

#: Times that an attack chooses its masks, each from where the masks before left the network.
_ROUNDS = 2


class SpectralNorms:
    """Spectral norms by power iteration, continued from call to call: they lag behind and underestimate.

    Attributes:
        vectors: the right singular vector of each weight as far as it is known, [inputs] each.
    """

    def __init__(self, weights: Sequence[Tensor], generator: torch.Generator) -> None:
        self.vectors = [
            functional.normalize(torch.randn(weight.shape[1], generator=generator), dim=0)
            for weight in weights
        ]

    def norm(self, k: int, weight: Tensor) -> Tensor:
        """One step for weight k, then ``||W v||_2``, differentiable in W."""
        with torch.no_grad():
            back = weight.T @ functional.normalize(weight @ self.vectors[k], dim=0)
            self.vectors[k] = functional.normalize(back, dim=0)
        norm: Tensor = torch.linalg.vector_norm(weight @ self.vectors[k])
        return norm


def nominal_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """gamma: the label's logit minus the largest other one, [batch]."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.max(dim=1).values


def deviation_bound(
    layers: Sequence[nn.Linear],
    hidden: Sequence[Tensor],
    labels: Tensor,
    budget: Sequence[int],
    norms: SpectralNorms,
) -> Tensor:
    """delta(S, x, t): how far a margin can move, were the spectral norms exact (Propositions 2 to 4).

    Args:
        layers: the fully connected layers, the last gives the logits.
        hidden: activations of the hidden ones, [batch, width] each.
        labels: int64 [batch].
        budget: neurons that may go, one number a hidden layer.
        norms: of the layers' weights.

    Returns:
        [batch], >= 0.
    """
    delta = hidden[0].new_zeros(len(labels))
    moved = False
    for k, (h, removable) in enumerate(zip(hidden, budget, strict=True)):
        if moved:
            delta = delta * norms.norm(k, layers[k].weight)
        if removable:
            delta = delta + torch.linalg.vector_norm(h.topk(removable, dim=1).values, dim=1)
            moved = True
    rows = layers[-1].weight
    apart = (rows[labels][:, None] - rows[None]).square().sum(2).clamp(min=_TINY).sqrt()
    return delta * apart.max(dim=1).values


def attacked_logits(
    layers: Sequence[nn.Linear],
    hidden: Sequence[Tensor],
    logits: Tensor,
    labels: Tensor,
    budget: Sequence[int],
) -> Tensor:
    """Logits under masks that raise the cross-entropy, each image's own and within the budget.

    The masks remove as many neurons as may go, those with the largest ``-m dL/dm``: first at the whole
    network, then again where those masks led. What comes back is differentiable in the weights, the masks
    held fixed.

    Args:
        layers: the fully connected layers, the last gives the logits.
        hidden: activations of the hidden ones without pruning, [batch, width] each.
        logits: without pruning, computed from ``hidden``, [batch, classes].
        labels: int64 [batch].
        budget: neurons that may go, one number a hidden layer, at least one > 0.

    Returns:
        [batch, classes].
    """
    gated = [k for k, removable in enumerate(budget) if removable]
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    slopes = torch.autograd.grad(loss, [hidden[k] for k in gated], retain_graph=True)
    masks = {k: _worst(slope * hidden[k].detach(), budget[k]) for k, slope in zip(gated, slopes, strict=True)}
    fixed = hidden[gated[0]].detach()
    for _ in range(_ROUNDS - 1):
        varied = {k: mask.requires_grad_() for k, mask in masks.items()}
        loss = functional.cross_entropy(_masked(layers, fixed, gated[0], varied), labels, reduction="sum")
        slopes = torch.autograd.grad(loss, list(varied.values()))
        masks = {k: _worst(slope, budget[k]) for k, slope in zip(gated, slopes, strict=True)}
    return _masked(layers, hidden[gated[0]], gated[0], masks)


def _worst(slopes: Tensor, removable: int) -> Tensor:
    """Masks without the neurons of which the loss falls the most, [batch, width]."""
    gone = slopes.topk(removable, dim=1, largest=False, sorted=False).indices
    return torch.ones_like(slopes).scatter_(1, gone, 0.0)


def _masked(
    layers: Sequence[nn.Linear], activations: Tensor, first: int, masks: Mapping[int, Tensor]
) -> Tensor:
    """Logits, from the activations of the first gated layer on, those of gated layers times their masks."""
    h = activations * masks[first]
    for k in range(first + 1, len(layers) - 1):
        h = torch.relu(layers[k](h))
        if k in masks:
            h = h * masks[k]
    logits: Tensor = layers[-1](h)
    return logits


def top_sum(values: Tensor, count: int) -> Tensor:
    """Sum of the ``count`` largest of ``max(v, 0)`` along the last axis."""
    if count == 0:
        return values.new_zeros(values.shape[:-1])
    return values.topk(count, dim=-1).values.clamp(min=0.0).sum(-1)


@dataclass(slots=True)
class _Layer:
    """What backward propagation needs of a hidden layer: bounds of its pre-activations, [batch, width]."""

    lower: Tensor
    upper: Tensor
    removable: int


def margin_bounds(
    layers: Sequence[nn.Linear], hidden: Sequence[Tensor], labels: Tensor, budget: Sequence[int]
) -> Tensor:
    """Lower bounds of all class margins over every removal within the budget.

    Args:
        layers: the fully connected layers, the last gives the logits.
        hidden: activations of the hidden ones without pruning, [batch, width] each.
        labels: int64 [batch].
        budget: neurons that may go, one number a hidden layer, at least one > 0.

    Returns:
        [batch, classes]; the label's own entry is 0.
    """
    first = next(k for k, removable in enumerate(budget) if removable)
    fixed = hidden[first]
    behind = _neuron_bounds(layers, fixed, first, budget)
    rows = layers[-1].weight
    coefficients = rows[labels][:, None] - rows[None]
    bias = layers[-1].bias
    constant = coefficients.new_zeros(coefficients.shape[:2])
    if bias is not None:
        constant = constant + bias[labels][:, None] - bias[None]
    for k in range(len(hidden) - 1, first, -1):
        coefficients, shift = _through(coefficients, behind[k - first - 1])
        constant = constant + shift
        if layers[k].bias is not None:
            constant = constant + coefficients @ layers[k].bias
        coefficients = coefficients @ layers[k].weight
    shares = coefficients * fixed[:, None, :]
    return constant + shares.sum(2) - top_sum(shares, budget[first])


def _neuron_bounds(
    layers: Sequence[nn.Linear], fixed: Tensor, first: int, budget: Sequence[int]
) -> list[_Layer]:
    """Interval bounds of the pre-activations of the hidden layers behind the first gated one."""
    found: list[_Layer] = []
    low, high = fixed, fixed
    for k in range(first + 1, len(layers) - 1):
        weight, removable = layers[k].weight, budget[k - 1]
        if k == first + 1:
            shares = weight * fixed[:, None, :]
            exact = fixed @ weight.T
            low, high = exact - top_sum(shares, removable), exact + top_sum(-shares, removable)
        elif removable:
            up, down = weight.clamp(min=0.0), weight.clamp(max=0.0)
            least = up * low[:, None, :] + down * high[:, None, :]
            most = up * high[:, None, :] + down * low[:, None, :]
            low = least.sum(2) - top_sum(least, removable)
            high = most.sum(2) + top_sum(-most, removable)
        else:
            middle, reach = (low + high) / 2 @ weight.T, (high - low) / 2 @ weight.abs().T
            low, high = middle - reach, middle + reach
        if layers[k].bias is not None:
            low, high = low + layers[k].bias, high + layers[k].bias
        found.append(_Layer(low, high, budget[k]))
        low, high = low.clamp(min=0.0), high.clamp(min=0.0)
    return found


def _through(coefficients: Tensor, layer: _Layer) -> tuple[Tensor, Tensor]:
    """Propagate rows [batch, rows, width] through gate and ReLU; the constant left is [batch, rows]."""
    low, high = layer.lower[:, None, :], layer.upper[:, None, :]
    active, open_ = low >= 0, (low < 0) & (high > 0)
    most, least = high.clamp(min=0.0), low.clamp(min=0.0)
    chord = torch.where(active, 1.0, torch.where(open_, most / (high - low).clamp(min=_TINY), 0.0))
    alpha = torch.where(active | (open_ & (high > -low)), 1.0, 0.0)
    below, above = coefficients.clamp(max=0.0), coefficients.clamp(min=0.0)
    shift = (below * torch.where(open_, -chord * low, 0.0)).sum(2)
    if layer.removable == 0:
        return below * chord + above * alpha, shift
    worth = above * most
    price = worth.detach().topk(layer.removable + 1, dim=2).values[:, :, -1:]
    capped = torch.minimum(above, price / most.clamp(min=_TINY)) * alpha
    ends = torch.minimum(above * least, price), torch.minimum(worth, price)
    slope = (ends[1] - ends[0]) / (high - low).clamp(min=_TINY)
    slope = torch.where(active & (high - low > _TINY), slope, 0.0)
    start = torch.where(active, ends[0] - slope * least, 0.0)
    shift = shift + start.sum(2) - price[:, :, 0] * layer.removable
    return below * chord + torch.where(active, slope, capped), shift
