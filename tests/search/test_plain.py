"""Bounds in numpy hold in exact arithmetic, are as tight as those in torch, and survive absurd numbers."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver.graph import Affine, Graph, Input, Max, Node, Relu
from milpver.linear import Dense, Float
from milpver.query import Budget
from milpver.registry import load
from milpver.search._compressed import without_max
from milpver.search._plain import PlainCrown, supported
from tests.nets import exact_trace, handmade, network_of, random_layers

SEEDS = st.integers(min_value=0, max_value=10**6)


def never() -> bool:
    return False


def plain_graph(seed: int, *, integer: bool = False) -> Graph:
    """A network with fan-outs, residual sums, convolutions and pooling, gates in it as the identity."""
    return without_max(handmade(seed, integer=integer).graph)


def boxes(rng: np.random.Generator, inputs: int, count: int) -> tuple[Float, Float, Float, Float]:
    """A root box, and boxes in it; the last one is a point, and one shares the root's sides."""
    low = rng.normal(size=inputs)
    high = low + rng.uniform(0.0, 2.0, size=inputs) * (rng.random(inputs) < 0.8)
    ends = np.sort(rng.uniform(low, high, size=(2, count, inputs)), axis=0)
    ends[0, 0], ends[1, 0] = low, high
    ends[1, -1] = ends[0, -1]
    return low, high, ends[0], ends[1]


def exact(graph: Graph, x: NDArray[np.float64]) -> list[list[Fraction]]:
    return exact_trace(graph, [Fraction(float(v)) for v in x], {})


@settings(max_examples=60)
@given(seed=SEEDS, integer=st.booleans())
def test_bounds_hold_in_exact_arithmetic(seed: int, integer: bool) -> None:
    """Of pre-activations and of rows, in boxes within the root: at corners, on edges and inside."""
    graph = plain_graph(seed, integer=integer)
    rng = np.random.default_rng(seed)
    low, high, lower, upper = boxes(rng, graph.inputs, 4)
    plain = PlainCrown(graph, low, high, never)
    tile = (len(lower), 1)
    below, above = plain.refresh(lower, upper, np.tile(plain.low, tile), np.tile(plain.high, tile))
    rows = rng.normal(size=(3, graph.outputs))
    found, slopes = plain.rows(lower, upper, below, above, rows)
    assert slopes.shape == (len(lower), 3, graph.inputs)
    for box in range(len(lower)):
        for _ in range(3):
            x = np.where(rng.random(graph.inputs) < 0.5, lower[box], upper[box])
            inside = rng.uniform(lower[box], upper[box])
            x = np.clip(np.where(rng.random(graph.inputs) < 0.3, inside, x), lower[box], upper[box])
            values = exact(graph, x)
            for source, (a, b) in plain.spans.items():
                ends = zip(below[box, a:b], values[source], above[box, a:b], strict=True)
                assert all(Fraction(float(lo)) <= v <= Fraction(float(hi)) for lo, v, hi in ends)
            for k, row in enumerate(rows):
                value = sum(Fraction(float(c)) * v for c, v in zip(row, values[-1], strict=True))
                assert Fraction(float(found[box, k])) <= value


@settings(max_examples=30)
@given(seed=SEEDS)
def test_a_point_is_bounded_to_rounding(seed: int) -> None:
    """No looser than rounding explains, where no sign is open but for zeros."""
    graph = plain_graph(seed)
    x = np.random.default_rng(seed).normal(size=graph.inputs)
    plain = PlainCrown(graph, x, x, never)
    values = exact(graph, x)
    rows = np.concatenate([np.eye(graph.outputs), -np.eye(graph.outputs)])
    found, _ = plain.rows(x[None], x[None], plain.low, plain.high, rows)
    size = 1 + max(abs(float(v)) for node in values for v in node)
    output = np.array([float(v) for v in values[-1]])
    assert np.all(found[0] <= np.concatenate([output, -output]) + 1e-15 * size)
    assert np.all(found[0] >= np.concatenate([output, -output]) - 1e-9 * size)


@settings(max_examples=30)
@given(seed=SEEDS, widths=st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_as_tight_as_crown_in_torch(seed: int, widths: list[int]) -> None:
    weights, biases = random_layers([*widths, 3], seed)
    nodes: list[Node] = [Input(widths[0])]
    for weight, bias in zip(weights, biases, strict=True):
        nodes.append(Affine(((len(nodes) - 1, Dense(weight)),), bias))
        nodes.append(Relu(len(nodes) - 1, len(bias)))
    graph = Graph(tuple(nodes[:-1]))
    low, high, _, _ = boxes(np.random.default_rng(seed), graph.inputs, 2)
    rows = np.random.default_rng(seed).normal(size=(4, 3))
    plain = PlainCrown(graph, low, high, never)
    found, _ = plain.rows(low[None], high[None], plain.low, plain.high, rows)
    bounds = load("bounds", "crown").bound(graph, low[None], high[None], Budget(), rows[None], "cpu")
    assert found[0] == pytest.approx(bounds.rows_lower[0], rel=1e-9, abs=1e-9)


def test_a_search_that_expires_at_once_leaves_sound_bounds() -> None:
    graph = plain_graph(3)
    rng = np.random.default_rng(3)
    low, high, _, _ = boxes(rng, graph.inputs, 2)
    hurried = PlainCrown(graph, low, high, lambda: True)
    patient = PlainCrown(graph, low, high, never)
    assert np.all(hurried.low <= patient.low + 1e-12)
    assert np.all(hurried.high >= patient.high - 1e-12)
    assert np.any(hurried.low < patient.low - 1e-6)


@pytest.mark.parametrize("scale", [1e160, 1e308])
def test_numbers_that_overflow_become_no_bound(scale: float) -> None:
    """Without a warning, and without a finite bound that infinities made up."""
    weight = np.array([[scale, -scale], [scale, scale]])
    nodes: list[Node] = [Input(2)]
    for _ in range(3):
        nodes.append(Affine(((len(nodes) - 1, Dense(weight)),), np.array([1.0, -1.0])))
        nodes.append(Relu(len(nodes) - 1, 2))
    graph = Graph(tuple(nodes[:-1]))
    plain = PlainCrown(graph, -np.ones(2), np.ones(2), never)
    rows = np.concatenate([np.eye(2), -np.eye(2)])
    found, _ = plain.rows(-np.ones((1, 2)), np.ones((1, 2)), plain.low, plain.high, rows)
    assert not np.isnan(found).any()
    assert np.all(found[0] <= -scale)


def test_maxima_are_not_supported() -> None:
    assert not supported(Graph((Input(2), Max(0, np.array([[0, 1]])))))
    assert supported(plain_graph(1))


def test_small_networks_are_decided_without_torch(tmp_path: Path) -> None:
    """Bounds of the whole box settle one property, halving the other, an attack the third."""
    weights, biases = random_layers([3, 12, 12, 2], 5, scale=1.0)
    network_of(tmp_path / "net.onnx", weights, biases)
    script = """
import sys
from pathlib import Path
import numpy as np
from milpver.counterexample import verify_property
from milpver.onnx_import import load_network
from milpver.properties.vnnlib1 import PROPERTY_FORMAT
network = load_network(Path(sys.argv[1]))
low = network.graph.evaluate(np.random.default_rng(0).uniform(-1, 1, (20000, 3))).min(axis=0)[0]
for limit in (low - 100, low - 0.1 * abs(low), low + 0.1):
    lines = [f"(declare-const {name} Real)" for name in ("X_0", "X_1", "X_2", "Y_0", "Y_1")]
    lines += [f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(3)]
    lines += [f"(assert (<= Y_0 {limit:.9f}))"]
    asked = PROPERTY_FORMAT.read("\\n".join(lines), Path("made.vnnlib"))
    answer = verify_property(network, asked)
    print(answer.outcome.value, answer.engine)
assert "torch" not in sys.modules
"""
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "net.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr == ""
    assert found.stdout.split("\n")[:3] == ["unsat bounds", "unsat search", "sat attack"]
