"""Forms of affine nodes over columns, and what an encoding has to know."""

from __future__ import annotations

import numpy as np
import pytest

from milpver import registry
from milpver.encoding import Emission, Encoding, Values
from milpver.errors import PluginError
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Dense, identity, selection
from milpver.query import Budget, BudgetGroup


def emission(budget: Budget) -> Emission:
    rng = np.random.default_rng(0)
    nodes = (
        Input(3),
        Affine(((0, Dense(rng.normal(size=(4, 3)))),), rng.normal(size=4), "a"),
        Gate(1, np.arange(4), 4, "gate"),
        Affine(((2, Dense(rng.normal(size=(2, 4)))), (1, selection(np.array([3, -1]), 4))), np.ones(2), "b"),
        Affine(((3, identity(2)), (0, Dense(rng.normal(size=(2, 3))))), np.zeros(2), "c"),
    )
    graph = Graph(nodes)
    rows = np.eye(2)[None]
    low, high = -np.ones((1, 3)), np.ones((1, 3))
    return Emission(
        graph, budget, registry.load("bounds", "interval").bound(graph, low, high, budget, rows, "cpu")
    )


def test_affine_nodes_are_composed_and_gates_without_a_budget_pass_through() -> None:
    made = emission(Budget())
    columns = made.builder.add_columns("input", -np.ones(3), np.ones(3))
    made.values[0] = Values.columns(columns)
    form = made.form(4)
    x = np.random.default_rng(1).normal(size=(1, 3))
    np.testing.assert_array_equal(form.columns, columns)
    np.testing.assert_allclose(form.matrix @ x[0] + form.constant, made.graph.evaluate(x)[0], atol=1e-12)
    assert made.resolve(2) == 1
    assert not made.form(4).fixed


def test_constants_stay_constants_until_columns_are_asked_for() -> None:
    made = emission(Budget())
    x = np.array([0.5, -0.25, 1.0])
    made.values[0] = Values.constants(x)
    form = made.form(4)
    assert form.fixed
    np.testing.assert_allclose(form.constant, made.graph.evaluate(x[None])[0], atol=1e-12)
    assert not np.any(made.materialise(1).column >= 0)
    columns = made.columns_of(1)
    program = made.builder.build()
    np.testing.assert_array_equal(program.lower[columns], program.upper[columns])
    np.testing.assert_array_equal(made.columns_of(1), columns, "asked twice, made once")
    assert made.values[1].all_columns


def test_a_gate_with_a_budget_has_to_be_encoded_first() -> None:
    made = emission(Budget((BudgetGroup((2,), 1),)))
    made.values[0] = Values.constants(np.zeros(3))
    assert made.resolve(2) == 2
    with pytest.raises(ValueError, match="node 2"):
        made.form(3)


def test_values_are_affine_in_their_columns() -> None:
    values = Values(np.array([4, -1, 4]), np.array([2.0, 0.0, -1.0]), np.array([1.0, 7.0, 0.0]))
    assert not values.all_columns
    new = values.replaced(np.array([1]), np.array([9]), 3.0)
    assert (list(new.column), list(new.coefficient), list(new.constant)) == ([4, 9, 4], [2, 3, -1], [1, 0, 0])
    assert list(values.column) == [4, -1, 4], "the old values stay"


def test_an_encoding_without_a_rule_says_which() -> None:
    with pytest.raises(PluginError, match=r"half has no rule for Max nodes.*Relu") as caught:
        Encoding("half", {Relu: lambda _, __: Values.constants(np.zeros(1))}).rule(Max)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["fused", "reference"])
def test_the_encodings_know_every_node(name: str) -> None:
    encoding = registry.load("encodings", name)
    assert encoding.name == name
    assert {Relu, Max, Gate} <= set(encoding.rules)
