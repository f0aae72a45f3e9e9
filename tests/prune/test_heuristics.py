"""Heuristic scores against their formulas, computed by hand and by finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from milpver.errors import QueryError
from milpver.prune.heuristics import HEURISTICS, least_important, scores
from milpver.query import Budget, BudgetGroup, parse_budget
from tests.nets import random_layers, random_network


def test_norms_and_means(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 0)
    weights, biases = random_layers((4, 6, 5, 3), 0)
    first, second = (layer.node for layer in network.layers)
    budget = parse_budget("2,1", network)
    x = np.random.default_rng(1).random((50, 4))
    l1 = scores(network.graph, budget, "l1")
    np.testing.assert_allclose(l1[first], np.abs(weights[0]).sum(1))
    np.testing.assert_allclose(
        scores(network.graph, budget, "l2")[second], np.linalg.norm(weights[1], axis=1)
    )
    hidden = np.maximum(x @ weights[0].T + biases[0], 0)
    labels = np.zeros(50, dtype=np.int64)
    mean = scores(network.graph, budget, "actmean", inputs=x, labels=labels)
    np.testing.assert_allclose(mean[first], hidden.mean(0))
    removed = least_important(budget, l1)
    assert set(np.flatnonzero(removed[first])) == set(np.argsort(np.abs(weights[0]).sum(1))[:2])
    assert int(removed[second].sum()) == 1


def test_taylor_is_the_slope_of_the_loss(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 2)
    budget = parse_budget("1,1", network)
    rng = np.random.default_rng(0)
    x, labels = rng.random((20, 4)), rng.integers(0, 3, 20)
    found = scores(network.graph, budget, "taylor", inputs=x, labels=labels)
    weights, biases = random_layers((4, 6, 5, 3), 2)

    def losses(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        h = np.maximum(x @ weights[0].T + biases[0], 0) * first
        h = np.maximum(h @ weights[1].T + biases[1], 0) * second
        out = h @ weights[2].T + biases[2]
        loss: np.ndarray = np.log(np.exp(out).sum(1)) - out[np.arange(20), labels]
        return loss

    for k, node in enumerate(layer.node for layer in network.layers):
        for i in range(len(found[node])):
            masks = [np.ones(6), np.ones(5)]
            masks[k][i] -= 1e-6
            slope = (losses(np.ones(6), np.ones(5)) - losses(*masks)) / 1e-6
            assert found[node][i] == pytest.approx(np.abs(slope).mean(), abs=1e-4)


def test_random_depends_on_the_seed(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 2)
    budget = parse_budget("1,0", network)
    first, again, other = (scores(network.graph, budget, "random", seed=seed) for seed in (1, 1, 2))
    node = network.layers[0].node
    np.testing.assert_array_equal(first[node], again[node])
    assert not np.array_equal(first[node], other[node])


def test_a_total_takes_the_least_of_all_layers(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 2)
    first, second = (layer.node for layer in network.layers)
    importance = {first: np.array([5.0, 1, 4, 2, 6, 7]), second: np.array([0.5, 9, 9, 9, 1.5])}
    removed = least_important(Budget((BudgetGroup((first, second), 3),)), importance)
    assert np.flatnonzero(removed[first]).tolist() == [1]
    assert np.flatnonzero(removed[second]).tolist() == [0, 4]


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 2)
    budget = parse_budget("1,0", network)
    with pytest.raises(QueryError, match="--method magic"):
        scores(network.graph, budget, "magic")
    for method in set(HEURISTICS) - {"l1", "l2", "random"}:
        with pytest.raises(QueryError, match="without data"):
            scores(network.graph, budget, method)
