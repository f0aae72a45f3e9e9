"""Training methods: what is minimised in one step.

``standard``: cross-entropy. ``robust``: the neuron-pruning paper's eq. 11, CE + lambda1 max(delta - gamma, 0)
+ lambda2 delta / max(gamma, eps). ``sam``: sharpness-aware minimisation (Foret et al. 2020).
``targeted-dropout``: of each hidden layer's share of neurons with the smallest weight norms, each is dropped
with a probability (Gomez et al. 2019). ``exact-bound``: cross-entropy, plus lambda1 times that of the worst
logits that budget-aware linear bounds allow, plus lambda2 times that under the masks that an attack finds:
the two sides of the worst case that the exact search will find.

Where lambda1 and lambda2 follow the curriculum, the caller passes ``strength``, which grows from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from milpver.train.architecture import Classifier
from milpver.train.surrogates import (
    SpectralNorms,
    attacked_logits,
    deviation_bound,
    margin_bounds,
    nominal_margin,
)

__all__ = ["METHODS", "Method", "Settings", "Step", "make_method"]

METHODS = ("standard", "robust", "sam", "targeted-dropout", "exact-bound")

#: ``exact-bound`` computes bounds in one of so many steps (with attacks, and without), for so many images
#: that no more rows of shares (weight times activation) are searched for their largest: that keeps it below
#: three times the cost of standard training. Attacks see every image in every step: they run behind the first
#: gated layer alone.
_EVERY, _EVERY_ALONE, _MOST_ROWS = 6, 2, 2800


@dataclass(frozen=True, slots=True)
class Settings:
    """What methods can be told.

    Attributes:
        budget: neurons that may go, one number a hidden fully connected layer.
        lambda1: weight of the hinge term; of the bound's cross-entropy in ``exact-bound``.
        lambda2: weight of the ratio term; of the cross-entropy under attack in ``exact-bound``.
        epsilon: smallest margin that the ratio term divides by (the paper does not say which).
        rho: radius of ``sam``.
        dropout: (share of a layer that is targeted, probability to be dropped).
    """

    budget: tuple[int, ...]
    lambda1: float = 0.3
    lambda2: float = 0.1
    epsilon: float = 0.1
    rho: float = 0.05
    dropout: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What a step found.

    Attributes:
        loss: that was minimised.
        entropy: cross-entropy without pruning.
        penalty: the method's own term, weighted; 0 where it has none.
        right: images of the batch classified correctly.
    """

    loss: float
    entropy: float
    penalty: float
    right: int


class Method(Protocol):
    """One method's work on a batch."""

    def gradients(self, net: Classifier, x: Tensor, labels: Tensor, strength: float) -> Step:
        """Set the gradients of the network's parameters for a batch."""

    def state(self) -> dict[str, Any]:
        """What has to be kept to resume."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


def make_method(name: str, settings: Settings, net: Classifier, generator: torch.Generator) -> Method:
    """The method of that name; random numbers are drawn from ``generator``."""
    match name:
        case "robust":
            return _Robust(settings, SpectralNorms(_weights(net), generator))
        case "sam":
            return _Sam(settings.rho)
        case "targeted-dropout":
            return _TargetedDropout(settings, generator)
        case "exact-bound":
            return _ExactBound(settings)
        case _:
            return _Standard()


def _weights(net: Classifier) -> list[Tensor]:
    return [layer.weight for layer in _layers(net)]


def _layers(net: Classifier) -> list[nn.Linear]:
    return [layer for layer in net.dense if isinstance(layer, nn.Linear)]


def _descend(net: Classifier, loss: Tensor, entropy: Tensor, logits: Tensor, labels: Tensor) -> Step:
    """Set the gradients of a loss."""
    net.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    right = int((logits.detach().argmax(dim=1) == labels).sum())
    value, plain = float(loss.detach()), float(entropy.detach())
    return Step(value, plain, value - plain, right)


class _Stateless:
    """A method that keeps nothing from step to step."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is nothing."""


class _Standard(_Stateless):
    """Cross-entropy."""

    def gradients(self, net: Classifier, x: Tensor, labels: Tensor, strength: float) -> Step:
        del strength
        logits, _ = net(x)
        entropy = functional.cross_entropy(logits, labels)
        return _descend(net, entropy, entropy, logits, labels)


@dataclass(slots=True)
class _Robust:
    """The paper's eq. 11; each term is the mean over the batch."""

    settings: Settings
    norms: SpectralNorms

    def gradients(self, net: Classifier, x: Tensor, labels: Tensor, strength: float) -> Step:
        own = self.settings
        logits, hidden = net(x)
        entropy = functional.cross_entropy(logits, labels)
        delta = deviation_bound(_layers(net), hidden, labels, own.budget, self.norms)
        gamma = nominal_margin(logits, labels)
        hinge = (delta - gamma).clamp(min=0.0).mean()
        ratio = (delta / gamma.clamp(min=own.epsilon)).mean()
        loss = entropy + strength * (own.lambda1 * hinge + own.lambda2 * ratio)
        return _descend(net, loss, entropy, logits, labels)

    def state(self) -> dict[str, Any]:
        return {"vectors": list(self.norms.vectors)}

    def restore(self, state: dict[str, Any]) -> None:
        self.norms.vectors = list(state["vectors"])


@dataclass(slots=True)
class _Sam(_Stateless):
    """Gradients at ``w + rho g / ||g||_2``, g being the gradient at w."""

    rho: float

    def gradients(self, net: Classifier, x: Tensor, labels: Tensor, strength: float) -> Step:
        del strength
        logits, _ = net(x)
        entropy = functional.cross_entropy(logits, labels)
        found = _descend(net, entropy, entropy, logits, labels)
        parameters = [p for p in net.parameters() if p.grad is not None]
        slopes = [p.grad for p in parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in slopes]))
        ascent = [g * (self.rho / (norm + 1e-12)) for g in slopes]
        with torch.no_grad():
            for parameter, step in zip(parameters, ascent, strict=True):
                parameter.add_(step)
        moved = functional.cross_entropy(net(x)[0], labels)
        there = _descend(net, moved, entropy, logits, labels)
        with torch.no_grad():
            for parameter, step in zip(parameters, ascent, strict=True):
                parameter.sub_(step)
        return Step(there.loss, found.entropy, there.penalty, found.right)


@dataclass(slots=True)
class _TargetedDropout(_Stateless):
    """Neurons with small incoming weights are dropped at random, for each image anew.

    In the layers with a budget; in all where there is none.
    """

    settings: Settings
    generator: torch.Generator

    def gradients(self, net: Classifier, x: Tensor, labels: Tensor, strength: float) -> Step:
        del strength
        logits, _ = net(x, self._kept(net, len(x)))
        entropy = functional.cross_entropy(logits, labels)
        return _descend(net, entropy, entropy, logits, labels)

    def _kept(self, net: Classifier, batch: int) -> list[Tensor | None]:
        share, probability = self.settings.dropout
        kept: list[Tensor | None] = []
        for layer, removable in zip(_layers(net)[:-1], self.settings.budget, strict=True):
            targeted = round(share * layer.out_features)
            if targeted == 0 or (any(self.settings.budget) and removable == 0):
                kept.append(None)
                continue
            size = torch.linalg.vector_norm(layer.weight.detach(), dim=1)
            least = size.topk(targeted, largest=False).indices
            mask = torch.ones(batch, layer.out_features)
            mask[:, least] = (torch.rand(batch, targeted, generator=self.generator) >= probability).to(
                mask.dtype
            )
            kept.append(mask)
        return kept


@dataclass(slots=True)
class _ExactBound:
    """Cross-entropy, plus lambda1 times that of the margins' bounds, plus lambda2 times that under attack.

    With L_j a lower bound of the margin to class j, the bound's cross-entropy is ``log(1 + sum_j
    exp(-L_j))``. It is estimated: in one of several steps, weighted by how many, on the first images of the
    batch (which was drawn at random). The attack's is of all images in all steps.
    """

    settings: Settings
    steps: int = 0

    def gradients(self, net: Classifier, x: Tensor, labels: Tensor, strength: float) -> Step:
        own, layers = self.settings, _layers(net)
        logits, hidden = net(x)
        loss = entropy = functional.cross_entropy(logits, labels)
        self.steps += 1
        if strength > 0 and own.lambda2 > 0:
            attacked = attacked_logits(layers, hidden, logits, labels, own.budget)
            loss = loss + strength * own.lambda2 * functional.cross_entropy(attacked, labels)
        every = _EVERY if own.lambda2 > 0 else _EVERY_ALONE
        if strength > 0 and own.lambda1 > 0 and self.steps % every == 0:
            count = self._images(layers, len(x))
            some = labels[:count]
            lower = margin_bounds(layers, [h[:count] for h in hidden], some, own.budget)
            weight = strength * own.lambda1 * every
            loss = loss + weight * functional.cross_entropy(-lower, some)
        return _descend(net, loss, entropy, logits, labels)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])

    def _images(self, layers: Sequence[nn.Linear], batch: int) -> int:
        """How many images of a batch get bounds: those whose rows may be looked through in one step."""
        rows = 0
        for k, removable in enumerate(self.settings.budget):
            if removable:
                rows += layers[-1].out_features
                rows += 2 * layers[k + 1].out_features if k + 2 < len(layers) else 0
        return min(batch, max(1, _MOST_ROWS // rows))
