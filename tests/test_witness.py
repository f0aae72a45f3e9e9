"""Candidates become witnesses only inside the box and the budget, and with finite outputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from milpver.network import Network
from milpver.query import ball, parse_budget
from milpver.replay import Replay
from milpver.witness import RejectedWitnessError, check_float32, evaluate
from tests.nets import network_of, random_network

X = np.array([0.5, -0.25, 1.0])


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return random_network(tmp_path / "n.onnx", [3, 4, 5, 3], 1)


def gone(network: Network, layer: int, *neurons: int) -> dict[int, np.ndarray]:
    mask = np.zeros(network.layers[layer - 1].width, dtype=bool)
    mask[list(neurons)] = True
    return {network.layers[layer - 1].node: mask}


def test_a_witness_is_what_the_network_says(network: Network) -> None:
    budget = parse_budget("1,2", network)
    mask = {**gone(network, 1, 2), **gone(network, 2, 0, 4)}
    found = evaluate(network.graph, ball(X, 0.1, None), budget, X + 0.05, mask)
    weights = [network.graph.nodes[i].terms[0][1].weight for i in (1, 4, 7)]  # type: ignore[union-attr]
    biases = [network.graph.nodes[i].bias for i in (1, 4, 7)]  # type: ignore[union-attr]
    h = np.maximum(weights[0] @ (X + 0.05) + biases[0], 0)
    h[2] = 0
    h = np.maximum(weights[1] @ h + biases[1], 0)
    h[[0, 4]] = 0
    logits = weights[2] @ h + biases[2]
    np.testing.assert_allclose(found.logits, logits, atol=1e-12)
    np.testing.assert_allclose(found.margins(1), [logits[1] - logits[0], logits[1] - logits[2]], atol=1e-12)


def test_what_lies_outside_is_refused(network: Network) -> None:
    budget, box = parse_budget("1,0", network), ball(X, 0.5, (-1.0, 1.0))
    edge = X.copy()
    edge[0] = 1.0
    evaluate(network.graph, box, budget, edge, {})
    for value in (math.nextafter(1.0, 2.0), math.nextafter(0.0, -1.0), math.nan, math.inf):
        outside = X.copy()
        outside[0] = value
        with pytest.raises(RejectedWitnessError, match="outside of the input box"):
            evaluate(network.graph, box, budget, outside, {})


def test_masks_over_the_budget_are_refused(network: Network) -> None:
    budget, box = parse_budget("1,0", network), ball(X, 0.0, None)
    for mask in (gone(network, 1, 0, 1), gone(network, 2, 0)):
        with pytest.raises(RejectedWitnessError, match="budget forbids"):
            evaluate(network.graph, box, budget, X, mask)


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weights = [np.full((2, 1), 1e38), np.full((2, 2), 1e38)]
    network = network_of(tmp_path / "n.onnx", weights, None)
    box = ball(np.array([1e300]), 0.0, None)
    with np.errstate(over="ignore"), pytest.raises(RejectedWitnessError, match="not finite"):
        evaluate(network.graph, box, parse_budget(None, network), np.array([1e300]), {})


def test_float32_is_checked_inside_of_the_box(network: Network) -> None:
    budget, box = parse_budget("1,1", network), ball(X, 0.1, None)
    x = box.clip(X + np.array([0.1, -0.1, 1 / 30]))
    witness = evaluate(network.graph, box, budget, x, gone(network, 1, 3))
    check = check_float32(network, Replay(network), box, witness)
    assert check.x.dtype == np.float32
    assert box.contains(check.x.astype(float))
    assert np.abs(check.x - x).max() < 1e-7
    assert np.all(np.abs(check.logits - witness.logits) <= check.error)
    assert check.error.max() < 1e-4
    margin = check.margin(0, 2)
    assert margin == float(check.logits[0]) - float(check.logits[2])
    assert abs(margin - (witness.logits[0] - witness.logits[2])) <= check.margin_error(0, 2)
