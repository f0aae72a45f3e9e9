"""What training minimises through: bounds hold for every mask (enumerated), some are exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from milpver.train.architecture import Classifier, build, parse_architecture
from milpver.train.surrogates import (
    SpectralNorms,
    attacked_logits,
    deviation_bound,
    margin_bounds,
    nominal_margin,
)
from tests.nets import masks_within

HIDDEN = (5, 4, 3)


def layers_of(net: Classifier) -> list[nn.Linear]:
    return [layer for layer in net.dense if isinstance(layer, nn.Linear)]


def case(seed: int, *, bias: bool) -> tuple[Classifier, Tensor, Tensor]:
    net = build(parse_architecture("6-5-4-3-3"), (6,), seed=seed, bias=bias).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    return net, x, torch.randint(0, 3, (4,), generator=generator)


def all_margins(net: Classifier, x: Tensor, labels: Tensor, budget: tuple[int, ...]) -> Tensor:
    """``f_label - f_j`` for every admissible mask, [masks, batch, classes]."""
    found = []
    for masks in masks_within(HIDDEN, budget):
        kept = [torch.from_numpy(~mask).double() for mask in masks]
        logits = net(x, kept)[0]
        found.append(logits.gather(1, labels[:, None]) - logits)
    return torch.stack(found)


BUDGETS = [b for b in itertools.product((0, 1, 2), repeat=3) if any(b)]


@given(st.integers(0, 10**6), st.sampled_from(BUDGETS), st.booleans())
@settings(max_examples=40)
def test_linear_bounds_are_below_every_mask(seed: int, budget: tuple[int, ...], bias: bool) -> None:
    net, x, labels = case(seed, bias=bias)
    with torch.no_grad():
        lower = margin_bounds(layers_of(net), net(x)[1], labels, budget)
        least = all_margins(net, x, labels, budget).amin(0)
    assert bool((lower <= least + 1e-9).all())
    assert bool((lower.gather(1, labels[:, None]) == 0).all())


@given(st.integers(0, 10**6), st.integers(1, 2))
@settings(max_examples=20)
def test_linear_bounds_of_the_last_layer_are_exact(seed: int, removable: int) -> None:
    net, x, labels = case(seed, bias=True)
    budget = (0, 0, removable)
    with torch.no_grad():
        lower = margin_bounds(layers_of(net), net(x)[1], labels, budget)
        least = all_margins(net, x, labels, budget).amin(0)
    np.testing.assert_allclose(lower.numpy(), least.numpy(), atol=1e-9)


@given(st.integers(0, 10**6), st.sampled_from(BUDGETS), st.booleans())
@settings(max_examples=40)
def test_deviations_of_every_mask_are_within_delta(seed: int, budget: tuple[int, ...], bias: bool) -> None:
    net, x, labels = case(seed, bias=bias)
    layers = layers_of(net)
    norms = SpectralNorms([layer.weight for layer in layers], torch.Generator().manual_seed(1))
    # the exact singular vectors, from which a step of power iteration does not move
    norms.vectors = [torch.linalg.svd(layer.weight.detach())[2][0] for layer in layers]
    with torch.no_grad():
        logits, hidden = net(x)
        delta = deviation_bound(layers, hidden, labels, budget, norms)
        moved = (all_margins(net, x, labels, budget) - (logits.gather(1, labels[:, None]) - logits)).abs()
    assert bool((moved.amax((0, 2)) <= delta + 1e-9).all())


def test_power_iteration_reaches_the_spectral_norm_from_below() -> None:
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    norms = SpectralNorms([weight], torch.Generator().manual_seed(1))
    found = [float(norms.norm(0, weight)) for _ in range(60)]
    exact = float(torch.linalg.matrix_norm(weight, 2))
    assert all(value <= exact * (1 + 1e-6) for value in found)
    assert found[-1] == pytest.approx(exact, rel=1e-4)


def test_the_nominal_margin_is_to_the_next_class() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, -1.0, 4.0]])
    assert nominal_margin(logits, torch.tensor([0, 1])).tolist() == [0.5, -5.0]


@given(st.integers(0, 10**6), st.sampled_from(BUDGETS), st.booleans())
@settings(max_examples=40)
def test_an_attack_is_one_of_the_masks_and_never_below_the_bounds(
    seed: int, budget: tuple[int, ...], bias: bool
) -> None:
    net, x, labels = case(seed, bias=bias)
    logits, hidden = net(x)
    found = attacked_logits(layers_of(net), hidden, logits, labels, budget).detach()
    margins = found.gather(1, labels[:, None]) - found
    every = all_margins(net, x, labels, budget).detach()
    assert bool(((every - margins).abs().amax(2) < 1e-9).any(0).all())
    lower = margin_bounds(layers_of(net), hidden, labels, budget).detach()
    assert bool((lower <= margins + 1e-9).all())


@given(st.integers(0, 10**6), st.integers(1, 3))
@settings(max_examples=20)
def test_an_attack_on_the_last_layer_against_one_class_is_the_worst_mask_of_that_size(
    seed: int, removable: int
) -> None:
    net = build(parse_architecture("6-5-4-2"), (6,), seed=seed).double()
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        hidden, rows = net(x)[1], layers_of(net)[-1].weight
        shares = hidden[1] * (rows[labels] - rows[1 - labels])
        clean = net(x)[0]
        wanted = (
            clean.gather(1, labels[:, None])[:, 0]
            - clean.gather(1, 1 - labels[:, None])[:, 0]
            - shares.topk(removable, dim=1).values.sum(1)
        )
    logits, hidden = net(x)
    found = attacked_logits(layers_of(net), hidden, logits, labels, (0, removable)).detach()
    margin = found.gather(1, labels[:, None]) - found.gather(1, 1 - labels[:, None])
    torch.testing.assert_close(margin[:, 0], wanted)


def test_attacks_pass_gradients_to_the_weights() -> None:
    net = build(parse_architecture("6-20-20-20-3"), (6,), seed=0)
    x, labels = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    logits, hidden = net(x)
    total = attacked_logits(layers_of(net), hidden, logits, labels, (1, 1, 1)).square().sum()
    for slope in torch.autograd.grad(total, list(net.parameters())):
        assert bool(torch.isfinite(slope).all())
        assert float(slope.abs().sum()) > 0


def test_bounds_pass_gradients_to_the_weights() -> None:
    net, x, labels = case(3, bias=True)
    total = margin_bounds(layers_of(net), net(x)[1], labels, (1, 1, 1)).sum()
    for slope in torch.autograd.grad(total, list(net.parameters())):
        assert bool(torch.isfinite(slope).all())
        assert float(slope.abs().sum()) > 0
