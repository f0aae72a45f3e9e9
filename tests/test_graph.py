"""The IR: what each kind of node computes, masks, gradients, prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Dense, identity, selection


def small_graph(seed: int = 0) -> Graph:
    """A graph with all kinds of nodes, a fan-out behind a gate with shared masks, and a residual sum."""
    rng = np.random.default_rng(seed)
    return Graph(
        (
            Input(3),
            Affine(((0, Dense(rng.normal(size=(4, 3)))),), rng.normal(size=4), "first"),
            Relu(1, 4),
            Gate(2, np.array([0, 1, 1, 2]), 3, "gate"),
            Affine(((3, Dense(rng.normal(size=(4, 4)))), (3, identity(4))), rng.normal(size=4), "residual"),
            Max(4, np.array([[0, 1], [2, 3], [1, 1]]), "pool"),
            Gate(5, np.arange(3), 3, "gate2"),
            Affine(
                ((6, Dense(rng.normal(size=(2, 3)))), (3, selection(np.array([0, -1]), 4))),
                np.zeros(2),
                "out",
            ),
        )
    )


def by_hand(graph: Graph, x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The same network on one input, written out; first and second are the masks m of the gates."""
    affine1, affine2, affine3 = graph.nodes[1], graph.nodes[4], graph.nodes[7]
    assert isinstance(affine1, Affine)
    assert isinstance(affine2, Affine)
    assert isinstance(affine3, Affine)
    h = np.maximum(affine1.terms[0][1].csr.toarray() @ x + affine1.bias, 0)
    p = h * first[[0, 1, 1, 2]]
    s = affine2.terms[0][1].csr.toarray() @ p + p + affine2.bias
    q = second * np.array([max(s[0], s[1]), max(s[2], s[3]), s[1]])
    last = affine3.terms[0][1].csr.toarray() @ q + np.array([p[0], 0.0])
    return np.asarray(last)


masks = st.lists(st.booleans(), min_size=3, max_size=3).map(np.array)


@given(st.integers(0, 1000), masks, masks)
def test_a_graph_computes_what_is_written_out(seed: int, first: np.ndarray, second: np.ndarray) -> None:
    graph = small_graph(seed)
    x = np.random.default_rng(seed).normal(size=(2, 3))
    found = graph.evaluate(x, {3: first, 6: second})
    for row, value in zip(x, found, strict=True):
        np.testing.assert_allclose(value, by_hand(graph, row, ~first * 1.0, ~second * 1.0), atol=1e-12)


def test_masks_may_differ_between_inputs() -> None:
    graph = small_graph()
    rng = np.random.default_rng(1)
    x, removed = rng.normal(size=(5, 3)), rng.random((5, 3)) < 0.5
    together = graph.evaluate(x, {3: removed})
    for i in range(5):
        np.testing.assert_allclose(together[i], graph.evaluate(x[i : i + 1], {3: removed[i]})[0], atol=1e-12)


def test_without_masks_gates_do_nothing() -> None:
    graph = small_graph()
    x = np.random.default_rng(1).normal(size=(5, 3))
    none = np.zeros(3, dtype=bool)
    np.testing.assert_array_equal(graph.evaluate(x), graph.evaluate(x, {3: none, 6: none}))


def test_what_a_graph_knows_about_itself() -> None:
    graph = small_graph()
    assert (graph.inputs, graph.outputs) == (3, 2)
    assert graph.gate_nodes == (3, 6)
    assert graph.consumers == ((1,), (2,), (3,), (4, 7), (5,), (6,), (7,), ())
    first, second = graph.nodes[3], graph.nodes[6]
    assert isinstance(first, Gate)
    assert isinstance(second, Gate)
    assert (first.private, second.private) == (False, True)
    assert [value.shape for value in graph.trace(np.zeros((7, 3)))] == [
        (7, node.size) for node in graph.nodes
    ]


@given(st.integers(0, 1000), masks)
def test_a_prefix_normalises(seed: int, removed: np.ndarray) -> None:
    graph = small_graph(seed)
    rng = np.random.default_rng(seed)
    x, scale, shift = rng.normal(size=(2, 3)), rng.normal(size=3), rng.normal(size=3)
    prefixed = graph.prefixed(scale, shift, "normalisation")
    assert prefixed.gate_nodes == (4, 7)
    expected = graph.evaluate(x * scale + shift, {3: removed, 6: removed})
    np.testing.assert_allclose(prefixed.evaluate(x, {4: removed, 7: removed}), expected, atol=1e-12)


@given(st.integers(0, 1000), masks)
def test_gradients_are_differences(seed: int, removed: np.ndarray) -> None:
    graph = small_graph(seed)
    rng = np.random.default_rng(seed)
    x, rows, step = rng.normal(size=(1, 3)), rng.normal(size=(1, 2)), 1e-6
    gone = {3: removed, 6: removed[None]}
    found = graph.pullback(graph.trace(x, gone), rows, gone)[0]
    for i in range(3):
        shift = np.eye(3)[i] * step
        ahead, behind = (graph.evaluate(x + sign * shift, gone)[0] @ rows[0] for sign in (1, -1))
        here = graph.evaluate(x, gone)[0] @ rows[0]
        if abs(ahead + behind - 2 * here) < 1e-9:  # no kink in between
            assert found[i] == pytest.approx((ahead - behind) / (2 * step), abs=1e-6)
