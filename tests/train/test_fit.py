"""Runs are reproducible, go on from checkpoints as if never interrupted, and follow their curriculum."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from milpver.errors import QueryError, RecordError
from milpver.train.architecture import build, parse_architecture
from milpver.train.export import onnx_model
from milpver.train.fit import Recipe, Training, log_text
from milpver.train.methods import METHODS, Settings, make_method
from milpver.train.surrogates import SpectralNorms, attacked_logits, deviation_bound, margin_bounds

RECIPE = Recipe(
    "8-16-12-3", "standard", Settings((2, 1), lambda1=0.5), warmup=1, ramp=1, epochs=4, batch=32,
    learning_rate=1e-2,
)  # fmt: skip


def data(count: int = 400) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Three clouds that are easy to tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    centres = rng.random((3, 8))
    x = centres[labels] + 0.08 * rng.normal(size=(count, 8))
    return x.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_is_reproducible(method: str) -> None:
    recipe = replace(RECIPE, method=method)
    runs = [Training(recipe, *data(), test=data()) for _ in range(2)]
    for run in runs:
        found = list(run.run())
    assert found[-1].test_accuracy > 0.9
    assert len(found) == 4
    assert onnx_model(runs[0].net, "net") == onnx_model(runs[1].net, "net")


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, method: str) -> None:
    recipe = replace(RECIPE, method=method)
    whole = Training(recipe, *data())
    for _ in whole.run():
        pass
    file = tmp_path / "run.ckpt"
    for _ in islice(Training(recipe, *data(), checkpoint=file).run(), 2):
        pass
    again = Training(recipe, *data(), checkpoint=file)
    assert len(again.epochs) == 2
    for _ in again.run():
        pass
    assert onnx_model(again.net, "net") == onnx_model(whole.net, "net")
    assert [epoch.loss for epoch in again.epochs] == [epoch.loss for epoch in whole.epochs]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.ckpt"
    next(Training(RECIPE, *data(), checkpoint=file).run())
    with pytest.raises(RecordError, match="another recipe"):
        Training(replace(RECIPE, seed=1), *data(), checkpoint=file)
    with pytest.raises(RecordError, match="another data"):
        Training(RECIPE, *data(300), checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RecordError, match=r"cannot be read \(no checkpoint, or damaged\)"):
        Training(RECIPE, *data(), checkpoint=file)


def test_the_curriculum_waits_then_grows_linearly() -> None:
    recipe = replace(RECIPE, warmup=5, ramp=10, epochs=120)
    assert [recipe.strength(at) for at in (0, 5, 10, 12.5, 15, 100)] == [0, 0, 0.5, 0.75, 1, 1]
    assert replace(recipe, ramp=0).strength(4.9) == 0
    assert replace(recipe, ramp=0).strength(5) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"method": "robust", "settings": Settings((0, 0))},
        {"method": "exact-bound", "warmup": 4},
        {"epochs": 0},
        {"learning_rate": math.nan},
        {"schedule": "steps"},
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(QueryError):
        replace(RECIPE, **wrong)


def test_the_robust_loss_is_equation_11() -> None:
    """Computed again from the paper's formula, with exact spectral norms."""
    net = build(parse_architecture("8-6-5-3"), (8,), seed=0)
    x, y = (torch.from_numpy(part[:16]) for part in data())
    own = Settings((2, 1), lambda1=0.7, lambda2=0.3, epsilon=0.2)
    method = make_method("robust", own, net, torch.Generator().manual_seed(0))
    for _ in range(200):  # power iteration converges while the weights stay
        step = method.gradients(net, x, y, 0.5)
    layers = [layer for layer in net.dense if isinstance(layer, nn.Linear)]
    logits, hidden = net(x)
    top = [
        h.sort(dim=1, descending=True).values[:, :removable].square().sum(1).sqrt()
        for h, removable in zip(hidden, (2, 1), strict=True)
    ]
    last = top[0] * torch.linalg.matrix_norm(layers[1].weight, 2) + top[1]
    rows = layers[-1].weight
    delta = last * torch.cdist(rows, rows)[y].amax(1)
    others = logits.clone()
    others[torch.arange(16), y] = -math.inf
    gamma = logits[torch.arange(16), y] - others.amax(1)
    entropy = functional.cross_entropy(logits, y)
    own_terms = 0.7 * (delta - gamma).clamp(min=0).mean() + 0.3 * (delta / gamma.clamp(min=0.2)).mean()
    assert step.loss == pytest.approx(float((entropy + 0.5 * own_terms).detach()), rel=1e-4)
    assert step.entropy == pytest.approx(float(entropy.detach()), rel=1e-5)
    fresh = SpectralNorms([layer.weight for layer in layers], torch.Generator().manual_seed(3))
    assert bool((deviation_bound(layers, hidden, y, (2, 1), fresh) <= delta * (1 + 1e-5)).all())


def test_exact_bound_adds_bounds_now_and_then_and_attacks_always() -> None:
    net = build(parse_architecture("8-6-5-3"), (8,), seed=0)
    x, y = (torch.from_numpy(part[:16]) for part in data())
    layers = [layer for layer in net.dense if isinstance(layer, nn.Linear)]
    logits, hidden = net(x)
    attacked = functional.cross_entropy(attacked_logits(layers, hidden, logits, y, (2, 1)), y)
    bounded = functional.cross_entropy(-margin_bounds(layers, hidden, y, (2, 1)), y)
    for lambda1, lambda2, every in ((0.3, 2.0, 6), (0.3, 0.0, 2), (0.0, 2.0, 1)):
        method = make_method("exact-bound", Settings((2, 1), lambda1, lambda2), net, torch.Generator())
        found = [method.gradients(net, x, y, 0.5).penalty for _ in range(2 * every)]
        base, extra = 0.5 * lambda2 * float(attacked.detach()), 0.5 * lambda1 * float(bounded.detach())
        wanted = [base + (every * extra if step % every == 0 else 0.0) for step in range(1, 2 * every + 1)]
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert method.gradients(net, x, y, 0.0).penalty == 0


def test_sam_takes_the_gradient_uphill_and_comes_back() -> None:
    net = build(parse_architecture("8-6-3"), (8,), seed=0)
    x, y = (torch.from_numpy(part[:16]) for part in data())
    before = [p.detach().clone() for p in net.parameters()]
    make_method("sam", Settings((0,), rho=0.5), net, torch.Generator()).gradients(net, x, y, 1.0)
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    after = [p.detach() for p in net.parameters()]
    torch.testing.assert_close(before, after)
    plain = torch.autograd.grad(functional.cross_entropy(net(x)[0], y), list(net.parameters()))
    norm = torch.cat([g.flatten() for g in plain]).norm()
    with torch.no_grad():
        for parameter, slope in zip(net.parameters(), plain, strict=True):
            parameter.add_(0.5 * slope / norm)
    wanted = torch.autograd.grad(functional.cross_entropy(net(x)[0], y), list(net.parameters()))
    torch.testing.assert_close(found, list(wanted))


def test_the_log_has_a_line_an_epoch() -> None:
    run = Training(RECIPE, *data())
    epochs = list(run.run())
    rows = list(csv.DictReader(io.StringIO(log_text(epochs))))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[2]["loss"]) == pytest.approx(epochs[2].loss, rel=1e-6)


def test_a_loss_that_diverges_is_said() -> None:
    x, y = data()
    with pytest.raises(QueryError, match="finite loss"):
        list(Training(replace(RECIPE, learning_rate=1e30), x, y).run())
