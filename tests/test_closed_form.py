"""The closed form: where it applies, and that its masks are the worst ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milpver.bounding import margin_rows
from milpver.closed_form import closed_form_gate, worst_masks
from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Dense, identity
from milpver.margin import margins
from milpver.query import Budget, BudgetGroup, Options, parse_budget
from milpver.verdict import Assurance, Status
from tests.nets import brute_force_margins, group_masks, random_network


def with_tail(*tail: Node, owner: list[int] | None = None, seed: int = 0) -> Graph:
    """Input, Affine, Relu, Gate (node 3, shared masks where given), then the tail."""
    rng = np.random.default_rng(seed)
    owners = np.array(owner if owner is not None else range(5))
    head = (
        Input(2),
        Affine(((0, Dense(rng.normal(size=(5, 2)))),), rng.normal(size=5), ""),
        Relu(1, 5),
        Gate(2, owners, int(owners.max()) + 1),
    )
    return Graph((*head, *tail))


def dense(source: int, n: int, m: int, seed: int = 1) -> Affine:
    rng = np.random.default_rng(seed)
    return Affine(((source, Dense(rng.normal(size=(n, m)))),), rng.normal(size=n), "")


ONE = Budget((BudgetGroup((3,), 2),))


def test_where_it_applies() -> None:
    assert closed_form_gate(with_tail(dense(3, 3, 5)), ONE) == 3
    assert closed_form_gate(with_tail(dense(3, 4, 5), dense(4, 3, 4)), ONE) == 3
    summed = Affine(((4, identity(5)), (3, identity(5))), np.zeros(5), "")
    assert closed_form_gate(with_tail(dense(3, 5, 5), summed, dense(5, 3, 5)), ONE) == 3
    beside = with_tail(Relu(1, 5), Affine(((3, identity(5)), (4, identity(5))), np.zeros(5), ""))
    assert closed_form_gate(beside, ONE) == 3, "what is nonlinear stands beside, not behind"


def test_where_it_does_not() -> None:
    assert closed_form_gate(with_tail(dense(3, 3, 5), Relu(4, 3)), ONE) is None
    assert closed_form_gate(with_tail(dense(3, 4, 5), Max(4, np.array([[0, 1], [2, 3]]))), ONE) is None
    twice = with_tail(dense(3, 3, 5), Gate(4, np.arange(3), 3), dense(5, 2, 3))
    assert closed_form_gate(twice, ONE) is None
    assert closed_form_gate(twice, Budget((BudgetGroup((5,), 1),))) == 5
    assert closed_form_gate(twice, Budget((BudgetGroup((3, 5), 1),))) is None
    assert closed_form_gate(twice, Budget((BudgetGroup((3,), 1), BudgetGroup((5,), 1)))) is None
    assert closed_form_gate(twice, Budget()) is None
    unread = Graph((*with_tail().nodes, dense(0, 3, 2)))
    assert closed_form_gate(unread, ONE) is None, "the output does not depend on the gate"


@given(st.integers(0, 10**6), st.sampled_from([None, [0, 1, 1, 2, 0], [0, 0, 0, 0, 0]]), st.integers(0, 2))
def test_its_masks_are_the_worst(seed: int, owner: list[int] | None, kind: int) -> None:
    tails: tuple[tuple[Node, ...], ...] = (
        (dense(3, 3, 5, seed),),
        (dense(3, 5, 5, seed), Affine(((4, identity(5)), (3, identity(5))), np.zeros(5), ""), dense(5, 3, 5)),
        (Relu(1, 5), Affine(((3, identity(5)), (4, identity(5))), np.zeros(5), ""), dense(5, 3, 5, seed)),
    )
    graph = with_tail(*tails[kind], owner=owner, seed=seed)
    budget = Budget((BudgetGroup((3,), 2),))
    assert closed_form_gate(graph, budget) == 3
    x = np.random.default_rng(seed).normal(size=(4, 2))
    rows = margin_rows((0, 1, 2, 0), 3)
    found = worst_masks(graph, budget, graph.trace(x)[2], rows)
    gate = graph.nodes[3]
    assert isinstance(gate, Gate)
    assert found.shape == (4, 2, gate.gates)
    assert found.sum(axis=2).max() <= 2
    for b in range(4):
        for r in range(2):
            attained = rows[b, r] @ graph.evaluate(x[b : b + 1], {3: found[b, r]})[0]
            least = min(
                rows[b, r] @ graph.evaluate(x[b : b + 1], mask)[0] for mask in group_masks(graph, budget)
            )
            assert attained == pytest.approx(least, abs=1e-9)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), width=st.integers(2, 8), bias=st.booleans())
def test_batches_against_programs_and_enumeration(tmp_path: Path, seed: int, width: int, bias: bool) -> None:
    network = random_network(tmp_path / "n.onnx", [3, 5, width, 4], seed, bias=bias)
    inputs = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
    labels = [int(k) for k in network.graph.evaluate(inputs.astype(float)).argmax(axis=1)]
    budget = [0, width - 1]
    wanted = parse_budget(budget, network)
    found = list(margins(network, inputs, labels, budget=wanted))
    for x, label, verdict in zip(inputs, labels, found, strict=True):
        truth = brute_force_margins(network, x.astype(float), label, budget)
        assert verdict.status is Status.OPTIMAL
        assert verdict.solver == "closed-form"
        assert verdict.assurance is Assurance.CLOSED_FORM
        for each, value in zip(verdict.classes, truth, strict=True):
            assert each.lower is not None
            assert each.upper == pytest.approx(value, abs=1e-9)
            assert value - 1e-9 <= each.lower <= value + 1e-12
    by_program = next(
        margins(
            network,
            inputs[:1],
            labels[:1],
            budget=wanted,
            radius=1e-12,
            options=Options(bounds="interval", encoding="reference"),
        )
    )
    assert by_program.solver != "closed-form"
    assert by_program.upper == pytest.approx(found[0].upper, abs=2e-6)
