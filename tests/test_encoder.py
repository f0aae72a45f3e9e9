"""The way back from a solution, and which rule a node is given to."""

from __future__ import annotations

import numpy as np
import pytest

from milpver import registry
from milpver.encoder import Encoded, encode
from milpver.encoding import Encoding
from milpver.errors import PluginError
from milpver.graph import Affine, Gate, Graph, Input, Node, Relu
from milpver.linear import Dense
from milpver.query import Budget, BudgetGroup, ball


def graph_of(*, fan_out: bool = False) -> Graph:
    """Two gated layers; with a fan-out the second layer also reads what the first gate reads."""
    rng = np.random.default_rng(2)
    terms: list[tuple[int, Dense]] = [(3, Dense(rng.normal(size=(3, 4))))]
    if fan_out:
        terms.append((2, Dense(rng.normal(size=(3, 4)))))
    nodes: tuple[Node, ...] = (
        Input(2),
        Affine(((0, Dense(rng.normal(size=(4, 2)))),), rng.normal(size=4), ""),
        Relu(1, 4),
        Gate(2, np.arange(4), 4),
        Affine(tuple(terms), rng.normal(size=3), ""),
        Relu(4, 3),
        Gate(5, np.arange(3), 3),
        Affine(((6, Dense(rng.normal(size=(2, 3)))),), rng.normal(size=2), ""),
    )
    return Graph(nodes)


BOTH = Budget((BudgetGroup((3,), 1), BudgetGroup((6,), 2)))


def encoded(graph: Graph, budget: Budget, radius: float, encoding: str) -> Encoded:
    box = ball(np.array([0.5, -1.0]), radius, (-1.0, 1.0))
    bounds = registry.load("bounds", "budget").bound(
        graph, box.lower[None], box.upper[None], budget, np.eye(2)[None], "cpu"
    )
    return encode(graph, box, budget, bounds, registry.load("encodings", encoding))


@pytest.mark.parametrize("encoding", ["fused", "reference"])
def test_masks_and_inputs_come_back(encoding: str) -> None:
    made = encoded(graph_of(), BOTH, 0.75, encoding)
    program = made.program(np.array([1.0, -1.0]))
    assert set(made.gates) == {3, 6}
    x = np.zeros(program.columns)
    for node, gate in made.gates.items():
        for k, column in enumerate(gate.column):
            if column >= 0:
                gone = k == 1 and node == 3
                x[column] = float(gone == gate.removed_is_one) * 0.9999999
    assert made.input is not None
    x[made.input] = [7.0, -0.75]
    masks = made.removed(x)
    expected = np.zeros(4, dtype=bool)
    expected[1] = made.gates[3].column[1] >= 0
    np.testing.assert_array_equal(masks[3], expected)
    assert not masks[6].any()
    np.testing.assert_array_equal(made.point(x), [1.0, -0.75], "inside of the box")
    columns, coefficients, constant = made.row(np.array([1.0, -1.0]))
    assert program.value(x) == pytest.approx(coefficients @ x[columns] + constant)


def test_a_point_has_no_input_columns() -> None:
    made = encoded(graph_of(), BOTH, 0.0, "fused")
    assert made.input is None
    np.testing.assert_array_equal(made.point(np.zeros(made.builder.columns)), [0.5, -1.0])


def test_layers_without_a_budget_have_no_masks() -> None:
    for encoding in ("fused", "reference"):
        made = encoded(graph_of(), Budget((BudgetGroup((6,), 1),)), 0.5, encoding)
        assert set(made.gates) == {6}


@pytest.mark.parametrize("fan_out", [False, True])
def test_relu_and_gate_are_one_only_where_nothing_else_reads_the_relu(fan_out: bool) -> None:
    program = encoded(graph_of(fan_out=fan_out), BOTH, 0.5, "fused").program(np.array([1.0, 0.0]))
    names = {name for name, _, count in program.column_blocks if count}
    assert ("m3" in names) == fan_out
    assert ("q3" in names) == (not fan_out)


def test_a_missing_rule_is_named() -> None:
    bare = Encoding("bare", {})
    graph, box = graph_of(), ball(np.zeros(2), 1.0, None)
    bounds = registry.load("bounds", "budget").bound(
        graph, box.lower[None], box.upper[None], BOTH, np.eye(2)[None], "cpu"
    )
    with pytest.raises(PluginError, match="bare has no rule for Relu"):
        encode(graph, box, BOTH, bounds, bare)
