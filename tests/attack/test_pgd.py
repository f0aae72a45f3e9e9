"""The attack: the torch evaluation against the graph's, gradients, and what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from milpver.attack.pgd import Goal, GraphOracle, TensorOracle, attack, evaluate
from milpver.bounds._tensors import TensorGraph
from milpver.graph import Gate
from milpver.query import parse_budget
from tests.nets import Float, Mask, brute_force_margins, handmade, random_network

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(12))
def test_torch_evaluates_as_the_graph_does(seed: int) -> None:
    graph = handmade(seed).graph
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, graph.inputs))
    removed = {
        index: rng.random((7, node.gates)) < 0.4
        for index, node in enumerate(graph.nodes)
        if isinstance(node, Gate)
    }
    tensors = TensorGraph(graph, CPU)
    masks = {node: tensors.tensor((~gone).astype(np.float64)) for node, gone in removed.items()}
    found = evaluate(tensors, tensors.tensor(x), masks).numpy()
    assert np.allclose(found, graph.evaluate(x, removed), rtol=1e-12, atol=1e-12)
    assert np.allclose(
        evaluate(tensors, tensors.tensor(x)).numpy(), graph.evaluate(x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(6))
def test_both_oracles_pull_the_same_gradients(seed: int) -> None:
    graph = handmade(seed).graph
    rng = np.random.default_rng(seed)
    x, rows = rng.normal(size=(5, graph.inputs)), rng.normal(size=(5, graph.outputs))
    gates = graph.gate_nodes
    slopes = []
    for oracle in (GraphOracle(graph), TensorOracle(TensorGraph(graph, CPU), gates)):
        oracle.forward(x, {})
        slopes.append(oracle.pull(rows))
    assert np.allclose(slopes[0][0], slopes[1][0])
    assert set(slopes[1][1]) == set(gates)
    tensors = TensorGraph(graph, CPU)
    for node, slope in slopes[1][1].items():  # by finite differences in m
        gate = graph.nodes[node]
        assert isinstance(gate, Gate)
        masks = torch.ones(5, gate.gates, dtype=torch.float64)
        before = evaluate(tensors, tensors.tensor(x), {node: masks})
        masks[:, 0] -= 1e-7
        after = evaluate(tensors, tensors.tensor(x), {node: masks})
        found = ((before - after).numpy() * rows).sum(axis=1) / 1e-7
        assert np.allclose(found, slope[:, 0], atol=1e-4)


def test_values_are_the_largest_excess_of_each_alternative() -> None:
    goal = Goal.of(
        np.zeros(1),
        np.ones(1),
        [
            (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1.0, 2.0])),
            (np.array([[-1.0, 0.0]]), np.array([0.5])),
        ],
    )
    assert goal.values(np.array([[3.0, 3.0], [-1.0, 0.0]])).tolist() == [[2.0, -3.5], [-2.0, 0.5]]


@pytest.mark.parametrize("torch_oracle", [False, True])
def test_it_finds_what_a_grid_finds(torch_oracle: bool, tmp_path: Path) -> None:
    graph = random_network(tmp_path / "net.onnx", (2, 8, 6, 3), seed=4).graph
    lower, upper = np.array([-1.0, -0.5]), np.array([1.0, 1.5])
    axes = np.meshgrid(np.linspace(-1, 1, 81), np.linspace(-0.5, 1.5, 81))
    outputs = graph.evaluate(np.stack(axes, axis=-1).reshape(-1, 2))
    pairs = [(row[None], np.array([outputs.min() - 10.0])) for row in np.eye(3)]
    goal = Goal.of(lower, upper, pairs)
    oracle = TensorOracle(TensorGraph(graph, CPU)) if torch_oracle else GraphOracle(graph)
    best, points = attack(oracle, goal, lambda *_: False, restarts=8, steps=40, seed=0)
    assert np.all(best <= goal.values(outputs).min(axis=0) + 1e-2)
    assert np.all((points >= lower) & (points <= upper))
    assert np.allclose(np.diag(goal.values(graph.evaluate(points))), best)


def test_candidates_are_offered_and_end_the_attack(tmp_path: Path) -> None:
    graph = random_network(tmp_path / "net.onnx", (2, 8, 2), seed=1).graph
    goal = Goal.of(-np.ones(2), np.ones(2), [(np.array([[1.0, 0.0]]), np.array([1e3]))])
    offered: list[Float] = []

    def offer(x: Float, _: object) -> bool:
        offered.append(x)
        return True

    attack(GraphOracle(graph), goal, offer, restarts=4, steps=50, seed=0)
    assert len(offered) == 1
    assert np.all(goal.values(graph.evaluate(offered[0])) <= 0)


@pytest.mark.parametrize("seed", range(5))
def test_masks_come_close_to_the_worst(seed: int, tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (3, 6, 5, 3), seed=seed)
    graph = network.graph
    x = np.random.default_rng(seed).normal(size=3)
    label = int(graph.evaluate(x[None])[0].argmax())
    worst = brute_force_margins(network, x, label, (2, 1)).min()
    rows = np.eye(3)[label] - np.delete(np.eye(3), label, axis=0)
    goal = Goal.of(x, x, [(row[None], np.array([worst + 1e-9])) for row in rows])
    budget = parse_budget("2,1", network)
    gates = [node for group in budget.groups for node in group.nodes]
    found: list[dict[int, Mask]] = []

    def offer(_: Float, removed: object) -> bool:
        assert isinstance(removed, dict)
        found.append(removed)
        return True

    oracle = TensorOracle(TensorGraph(graph, CPU), gates)
    attack(oracle, goal, offer, restarts=16, steps=20, seed=0, budget=budget, graph=graph)
    assert found
    assert all(budget.admits(graph, {node: gone[0] for node, gone in each.items()}) for each in found)
