"""Mask attacks stay within the budget and above the exact worst margin, which they mostly reach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milpver.attack.masks import Found, MaskAttack, row_norms
from milpver.bounds._tensors import TensorGraph
from milpver.errors import QueryError
from milpver.margin import margins
from milpver.network import Network
from milpver.query import Budget, BudgetGroup, Options, parse_budget
from tests.nets import group_masks, handmade, random_layers, random_network

ATTACKS: dict[str, Callable[[MaskAttack], Found]] = {
    "clean": lambda attack: attack.clean(),
    "l2": lambda attack: attack.l2(),
    "random": lambda attack: attack.random(samples=20, seed=1),
    "pgd": lambda attack: attack.pgd(steps=25, seed=1),
    "shared": lambda attack: attack.pgd(steps=25, seed=1, shared=True),
    "greedy": lambda attack: attack.greedy(),
    "swap": lambda attack: attack.swap(),
}


def attack_on(network: Network, x: np.ndarray, labels: np.ndarray, budget: Budget) -> MaskAttack:
    return MaskAttack(TensorGraph(network.graph, torch.device("cpu")), x, labels, budget)


def smallest(out: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rest = np.stack([np.delete(row, t) for row, t in zip(out, labels, strict=True)])
    found: np.ndarray = (out[np.arange(len(labels)), labels][:, None] - rest).min(1)
    return found


def check(network: Network, x: np.ndarray, labels: np.ndarray, budget: Budget, found: Found) -> None:
    """The masks are admissible and have the margins that are said, none below the enumerated minimum."""
    graph = network.graph
    for row in range(len(x)):
        assert budget.admits(graph, {node: gone[row] for node, gone in found.removed.items()})
    np.testing.assert_allclose(found.margins, smallest(graph.evaluate(x, found.removed), labels), rtol=1e-12)
    clean = smallest(graph.evaluate(x), labels)
    least = np.min([smallest(graph.evaluate(x, m), labels) for m in group_masks(graph, budget)], axis=0)
    assert np.all(found.margins <= clean + 1e-12)
    assert np.all(found.margins >= least - 1e-9)


@given(st.integers(0, 10**6), st.sampled_from(["2,0,0", "0,1,0", "0,0,2", "1,1,1", "2,1,0"]))
@settings(max_examples=6)
def test_attacks_are_upper_bounds(tmp_path_factory: pytest.TempPathFactory, seed: int, budget: str) -> None:
    network = random_network(tmp_path_factory.mktemp("net") / "net.onnx", (4, 6, 5, 4, 3), seed, scale=2.0)
    rng = np.random.default_rng(seed)
    x, labels = rng.random((5, 4)), rng.integers(0, 3, 5)
    allowed = parse_budget(budget, network)
    for run in ATTACKS.values():
        check(network, x, labels, allowed, run(attack_on(network, x, labels, allowed)))


@given(st.integers(0, 10**6))
@settings(max_examples=6)
def test_attacks_work_on_any_graph(seed: int) -> None:
    """Shared gates, branches, pooling, budgets over several layers."""
    made = handmade(seed)
    network = Network(made.graph, Path("made.onnx"), "", b"", "x", "y", (made.graph.inputs,), None, (), {}, 0)
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(3, made.graph.inputs)), rng.integers(0, 3, 3)
    for name in ("random", "pgd", "greedy", "swap"):
        check(network, x, labels, made.budget, ATTACKS[name](attack_on(network, x, labels, made.budget)))


def test_searches_mostly_reach_the_exact_minimum(tmp_path: Path) -> None:
    reached = dict.fromkeys(("pgd", "greedy", "swap"), 0)
    total = 0
    for seed in range(6):
        network = random_network(tmp_path / f"{seed}.onnx", (4, 8, 6, 3), seed, scale=2.0)
        x = np.random.default_rng(seed).random((10, 4))
        labels = network.graph.evaluate(x).argmax(1)
        budget = parse_budget("2,1", network)
        masks = group_masks(network.graph, budget)
        least = np.min([smallest(network.graph.evaluate(x, m), labels) for m in masks], axis=0)
        total += len(x)
        for name in reached:
            found = ATTACKS[name](attack_on(network, x, labels, budget))
            reached[name] += int((found.margins <= least + 1e-9).sum())
    assert reached["swap"] >= reached["greedy"] > 0.7 * total
    assert reached["swap"] > 0.75 * total
    assert reached["pgd"] > 0.4 * total


def test_no_attack_goes_below_the_exact_answer(tmp_path: Path) -> None:
    """The exact search's margins, image by image, on a network too large to enumerate."""
    network = random_network(tmp_path / "net.onnx", (6, 24, 16, 4), 3, scale=2.0)
    x = np.random.default_rng(0).random((8, 6)).astype(np.float32)
    labels = network.graph.evaluate(x.astype(np.float64)).argmax(1)
    budget = parse_budget("3,2", network)
    options = Options(solver="bab")
    exact = [v.lower for v in margins(network, x, labels.tolist(), budget=budget, options=options)]
    attack = attack_on(network, x.astype(np.float64), labels, budget)
    for run in ATTACKS.values():
        for lower, upper in zip(exact, run(attack).margins, strict=True):
            assert lower is not None
            assert lower <= upper + 1e-9


def test_masks_for_all_images_have_accuracies(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 0, scale=2.0)
    x = np.random.default_rng(0).random((40, 4))
    labels = network.graph.evaluate(x).argmax(1)
    attack = attack_on(network, x, labels, parse_budget("2,1", network))
    random = attack.random(samples=50, seed=2)
    assert random.accuracies.shape == (50,)
    assert random.hits.shape == (50, 40)
    assert random.accuracies.std() > 0
    again = attack.random(samples=50, seed=2)
    np.testing.assert_array_equal(random.hits, again.hits)
    shared = attack.pgd(steps=60, shared=True)
    assert shared.accuracies.min() <= random.accuracies.mean()
    assert attack.pgd(steps=60).accuracies.shape == (0,)


def test_the_l2_adversary_removes_the_largest_rows(tmp_path: Path) -> None:
    weights, _ = random_layers((4, 6, 5, 3), 0)
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 0)
    first, second = (layer.node for layer in network.layers)
    np.testing.assert_allclose(row_norms(network.graph, first, 2), np.linalg.norm(weights[0], axis=1))
    np.testing.assert_allclose(row_norms(network.graph, second, 1), np.abs(weights[1]).sum(1))
    x = np.random.default_rng(0).random((30, 4))
    labels = network.graph.evaluate(x).argmax(1)
    found = attack_on(network, x, labels, parse_budget("2,0", network)).l2()
    largest = set(np.argsort(-np.linalg.norm(weights[0], axis=1))[:2])
    chosen = {tuple(np.flatnonzero(row)) for row in found.removed[first]}
    assert chosen <= {(), tuple(sorted(largest))}
    assert len(chosen) >= 1


def test_a_total_over_layers_is_counted_over_layers(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 1, scale=2.0)
    nodes = tuple(layer.node for layer in network.layers)
    budget = Budget((BudgetGroup(nodes, 2),))
    x = np.random.default_rng(0).random((10, 4))
    labels = network.graph.evaluate(x).argmax(1)
    for run in ATTACKS.values():
        found = run(attack_on(network, x, labels, budget))
        assert int(sum(gone.sum(1) for gone in found.removed.values()).max()) <= 2
        check(network, x, labels, budget, found)


def test_no_budget_is_refused(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 3), 0)
    with pytest.raises(QueryError, match="budget of 0"):
        attack_on(network, np.zeros((1, 4)), np.zeros(1, dtype=np.int64), parse_budget("0", network))
