"""No bound excludes a value that exact rational arithmetic finds, whatever the network, budget and box."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver import registry
from milpver.bounding import Bounding, Bounds
from milpver.bounds._crown import crown_bounds
from milpver.bounds._interval import interval_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Fixed, Workspace
from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Dense, identity
from milpver.query import Budget, BudgetGroup
from tests.nets import HandMade, exact_trace, group_masks, handmade

BOUNDINGS = ("interval", "budget", "crown", "alpha-crown", "lp")
Float = NDArray[np.float64]
Rows = list[list[Fraction]]


def bounding(name: str) -> Bounding:
    found: Bounding = registry.load("bounds", name)
    return found


def corners_and_samples(
    rng: np.random.Generator, lower: Float, upper: Float, count: int
) -> list[list[Fraction]]:
    """Points of a box, exactly: random corners, and random points in between; infinite sides are cut."""
    low, high = np.maximum(lower, -1e3), np.minimum(upper, 1e3)
    points = [np.where(rng.random(len(low)) < 0.5, low, high) for _ in range(count)]
    points += [np.clip(rng.uniform(low, high), low, high) for _ in range(count)]
    points += [low, high]
    return [[Fraction(float(v)) for v in point] for point in points]


def extremes(
    graph: Graph, points: list[list[Fraction]], masks: list[dict[int, NDArray[np.bool_]]], rows: Float
) -> tuple[Rows, Rows, list[Fraction]]:
    """Smallest and largest exact value met of every entry of every node, and smallest of every row."""
    traces = [exact_trace(graph, x, mask) for x in points for mask in masks]
    least = [[min(column) for column in zip(*values, strict=True)] for values in zip(*traces, strict=True)]
    most = [[max(column) for column in zip(*values, strict=True)] for values in zip(*traces, strict=True)]
    exact_rows = [[Fraction(float(c)) for c in row] for row in rows]
    outputs = [trace[-1] for trace in traces]
    products = [
        min(sum(c * y for c, y in zip(row, out, strict=True)) for out in outputs) for row in exact_rows
    ]
    return least, most, [Fraction(value) for value in products]


def assert_contains(bounds: Bounds, index: int, least: Rows, most: Rows, products: list[Fraction]) -> None:
    """Every bound of one box holds for the exact extremes."""
    for node, (low, high) in enumerate(zip(least, most, strict=True)):
        for i, (smallest, largest) in enumerate(zip(low, high, strict=True)):
            assert bounds.lower[node][index, i] <= smallest, f"node {node}, entry {i}"
            assert bounds.upper[node][index, i] >= largest, f"node {node}, entry {i}"
    for row, product in enumerate(products):
        assert bounds.rows_lower[index, row] <= product, f"row {row}"


def some(
    rng: np.random.Generator, masks: list[dict[int, NDArray[np.bool_]]], count: int
) -> list[dict[int, NDArray[np.bool_]]]:
    """At most ``count`` of the masks."""
    if len(masks) <= count:
        return masks
    return [masks[i] for i in rng.choice(len(masks), count, replace=False)]


def boxes(rng: np.random.Generator, inputs: int, *, integer: bool) -> tuple[Float, Float]:
    """A batch of boxes: two points or narrow and wide ones, around random centres."""
    centre = rng.integers(-2, 3, size=(3, inputs)).astype(float) if integer else rng.normal(size=(3, inputs))
    radius = np.array([0.0, 2.0**-4, 1.5])[:, None] * (1.0 if rng.random() < 0.5 else 0.0)
    return centre - radius, centre + radius


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_bounds_contain_exact_values(seed: int, integer: bool, bias: bool) -> None:
    made = handmade(seed, integer=integer, bias=bias)
    rng = np.random.default_rng(seed)
    lower, upper = boxes(rng, made.graph.inputs, integer=integer)
    rows = np.vstack([np.eye(3) - np.roll(np.eye(3), 1, axis=0), rng.normal(size=(2, 3))])
    batch = np.broadcast_to(rows, (3, *rows.shape))
    masks = some(rng, group_masks(made.graph, made.budget), 24)
    truths = []
    for i in range(3):
        points = (
            corners_and_samples(rng, lower[i], upper[i], 2)
            if np.any(lower[i] < upper[i])
            else [[Fraction(float(v)) for v in lower[i]]]
        )
        truths.append(extremes(made.graph, points, masks, rows))
    for name in BOUNDINGS:
        found = bounding(name).bound(made.graph, lower, upper, made.budget, batch, "cpu")
        assert not any(np.isnan(part).any() for part in (*found.lower, *found.upper, found.rows_lower))
        for i in range(3):
            assert_contains(found, i, *truths[i])


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_infinite_boxes_have_no_finite_bounds_that_are_wrong(seed: int) -> None:
    made = handmade(seed)
    rng = np.random.default_rng(seed)
    lower = rng.normal(size=(1, made.graph.inputs))
    upper = lower + 1.0
    lower[rng.random(lower.shape) < 0.5] = -np.inf
    upper[rng.random(upper.shape) < 0.5] = np.inf
    rows = np.eye(3)
    masks = some(rng, group_masks(made.graph, made.budget), 8)
    truth = extremes(made.graph, corners_and_samples(rng, lower[0], upper[0], 4), masks, rows)
    for name in BOUNDINGS:
        found = bounding(name).bound(made.graph, lower, upper, made.budget, rows[None], "cpu")
        assert not any(np.isnan(part).any() for part in (*found.lower, *found.upper, found.rows_lower))
        assert_contains(found, 0, *truth)


@settings(max_examples=6)
@given(st.integers(0, 10**6))
def test_a_batch_is_its_members(seed: int) -> None:
    made = handmade(seed)
    rng = np.random.default_rng(seed)
    lower, upper = boxes(rng, made.graph.inputs, integer=False)
    if np.any(lower < upper):  # a batch is of points or of boxes: only then are points treated as such
        lower, upper = lower - 0.1, upper + 0.1
    rows = rng.normal(size=(3, 4, 3))
    for name in BOUNDINGS:
        together = bounding(name).bound(made.graph, lower, upper, made.budget, rows, "cpu")
        for i in range(3):
            part = slice(i, i + 1)
            alone = bounding(name).bound(made.graph, lower[part], upper[part], made.budget, rows[part], "cpu")
            # What ascent finds may depend on the batch by its steps' scale; intervals do not.
            tolerance = 1e-9 if name in ("interval", "budget", "crown") else 5e-2
            scale = 1.0 + np.abs(alone.rows_lower)
            assert np.all(np.abs(together.of(i).rows_lower - alone.rows_lower) <= tolerance * scale), name


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans())
def test_gates_that_a_search_has_fixed(seed: int, integer: bool) -> None:
    made = handmade(seed, integer=integer)
    graph, budget = made.graph, made.budget
    rng = np.random.default_rng(seed)
    lower, upper = boxes(rng, graph.inputs, integer=integer)
    lower, upper = lower[:2], upper[:2]
    if rng.random() < 0.5:
        upper = lower
    masks = group_masks(graph, budget)
    chosen = [masks[rng.integers(len(masks))] for _ in range(2)]
    decided = [{node: rng.random(len(mask)) < 0.5 for node, mask in one.items()} for one in chosen]
    nodes = [node for group in budget.groups for node in group.nodes]
    gone = {n: torch.tensor(np.stack([chosen[b][n] & decided[b][n] for b in range(2)])) for n in nodes}
    kept = {n: torch.tensor(np.stack([~chosen[b][n] & decided[b][n] for b in range(2)])) for n in nodes}
    left = {
        group.nodes[0]: torch.tensor(
            [group.removable - sum(int(gone[n][b].sum()) for n in group.nodes) for b in range(2)]
        )
        for group in budget.groups
    }
    rows = np.eye(3) - np.roll(np.eye(3), 1, axis=0)
    batch = torch.tensor(np.broadcast_to(rows, (2, 3, 3)).copy())
    truths = []
    for b in range(2):
        compatible = [
            mask
            for mask in masks
            if all(
                bool(np.all(mask[n][gone[n][b].numpy()])) and not bool(np.any(mask[n][kept[n][b].numpy()]))
                for n in nodes
            )
        ]
        points = corners_and_samples(rng, lower[b], upper[b], 2)
        truths.append(extremes(graph, points, some(rng, compatible, 16), rows))
    for method in ("budget", "crown", "alpha"):
        tensors = TensorGraph(graph, torch.device("cpu"))
        point = bool(np.array_equal(lower, upper))
        workspace = Workspace(tensors, budget, fixed=Fixed(gone, kept, left), point=point)
        low, high = torch.tensor(lower), torch.tensor(upper)
        if method == "budget":
            rows_lower = interval_bounds(workspace, low, high, batch).rows_lower
        else:
            steps = 5 if method == "alpha" else 0
            rows_lower = crown_bounds(workspace, low, high, batch, steps=steps, row_steps=steps)[0].numpy()
        found = Bounds(
            tuple(part.numpy() for part in workspace.lows),
            tuple(part.numpy() for part in workspace.highs),
            rows_lower,
        )
        for b in range(2):
            assert_contains(found, b, *truths[b])


def with_output_bias(made: HandMade, shift: float) -> Graph:
    """The same graph with ``shift`` added to the first output."""
    last = made.graph.nodes[-1]
    assert isinstance(last, Affine)
    bias = last.bias.copy()
    bias[0] += shift
    return Graph((*made.graph.nodes[:-1], Affine(last.terms, bias, last.name)))


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([0.0, 1e-12, -1e-12, 2.0**-50, -(2.0**-50), 1e-15]),
)
def test_margins_near_zero_are_never_proven_that_exact_arithmetic_refutes(
    seed: int, integer: bool, wanted: float
) -> None:
    made = handmade(seed, integer=integer)
    if not isinstance(made.graph.nodes[-1], Affine):
        return
    rng = np.random.default_rng(seed)
    x: Float = rng.normal(size=made.graph.inputs)
    if integer:
        x = rng.integers(-4, 5, size=made.graph.inputs).astype(np.float64) / 2
    masks = group_masks(made.graph, made.budget)
    if len(masks) > 80:
        return
    exact_x = [Fraction(float(v)) for v in x]
    row = np.array([[1.0, -1.0, 0.0]])

    def worst(graph: Graph) -> Fraction:
        return min(out[0] - out[1] for mask in masks for out in [exact_trace(graph, exact_x, mask)[-1]])

    graph = with_output_bias(made, wanted - float(worst(made.graph)))
    truth = worst(graph)
    assert abs(truth - Fraction(wanted)) < Fraction(1, 10**11)
    for name in BOUNDINGS:
        found = bounding(name).bound(graph, x[None], x[None], made.budget, row[None], "cpu").rows_lower[0, 0]
        assert found <= truth
        assert truth > 0 or found <= 0


#: 1, then many halves of its last bit, then -1: added up one by one, in floats, the halves are lost.
LOST = np.concatenate([[1.0], np.full(398, -(2.0**-54)), [-1.0]])


def windows_on_one_entry() -> Graph:
    """Coefficients that the windows of a Max node add up on one entry."""
    nodes = (
        Input(1),
        Affine(((0, Dense(np.ones((2, 1)))),), np.array([0.0, -1e14]), ""),
        Relu(1, 2),
        Max(2, np.tile([[0, 1]], (len(LOST), 1))),
        Affine(((3, Dense(LOST[None])),), np.zeros(1), ""),
    )
    return Graph(nodes)


def branches_of_one_node() -> Graph:
    """Coefficients that many branches add up on the node they read."""
    nodes: list[Node] = [Input(1), Affine(((0, identity(1)),), np.zeros(1), ""), Relu(1, 1)]
    nodes += [Affine(((2, identity(1)),), np.zeros(1), "") for _ in LOST]
    terms = [(3 + i, Dense(np.array([[w]]))) for i, w in enumerate(LOST[::-1])]
    return Graph((*nodes, Affine(tuple(terms), np.zeros(1), "")))


def constants_of_a_chain() -> Graph:
    """Biases that many layers add up."""
    biases = LOST[::-1] * 2.0**39
    nodes: list[Node] = [Input(1), Affine(((0, Dense(np.zeros((1, 1)))),), np.zeros(1), "")]
    nodes += [Affine(((1 + i, identity(1)),), np.array([b]), "") for i, b in enumerate(biases)]
    return Graph(tuple(nodes))


@pytest.mark.parametrize("name", ["interval", "budget", "crown"])
@pytest.mark.parametrize("make", [windows_on_one_entry, branches_of_one_node, constants_of_a_chain])
def test_what_floats_lose_in_long_sums_is_charged(name: str, make: Callable[[], Graph]) -> None:
    graph, high = make(), 2.0**39
    truth = exact_trace(graph, [Fraction(high)], {})[-1][0]
    assert truth < Fraction(-1, 100)
    box = np.array([[-4 * high]]), np.array([[high]])
    found = bounding(name).bound(graph, *box, Budget(), np.ones((1, 1, 1)), "cpu")
    assert found.rows_lower[0, 0] <= truth
    assert found.lower[-1][0, 0] <= truth


@pytest.mark.parametrize("name", BOUNDINGS)
def test_neurons_that_are_zero_or_constant(name: str) -> None:
    """u <= 0, l = u, u = 0 and l = 0 exactly, at a point and over a box."""
    weight = np.array([[0.0], [0.0], [1.0], [1.0], [-1.0], [0.0]])
    bias = np.array([-1.0, 0.0, 1.0, -1.0, -1.0, 2.0])
    budget = Budget((BudgetGroup((3,), 2),))
    nodes = (
        Input(1),
        Affine(((0, Dense(weight)),), bias, ""),
        Relu(1, 6),
        Gate(2, np.arange(6), 6),
        Affine(((3, Dense(np.array([[1.0, -1, 1, 1, -1, 1], [0, 0, 0, 0, 0, 0]]))),), np.zeros(2), ""),
    )
    graph = Graph(nodes)
    rows = np.array([[[1.0, -1.0], [-1.0, 1.0]]])
    masks = group_masks(graph, budget)
    for low, high in ((0.0, 0.0), (-1.0, 1.0), (1.0, 1.0), (-1.0, -1.0)):
        box = np.array([[low]]), np.array([[high]])
        found = bounding(name).bound(graph, *box, budget, rows, "cpu")
        points = [[Fraction(low)], [Fraction(high)], [Fraction(low + high) / 2]]
        assert_contains(found, 0, *extremes(graph, points, masks, rows[0]))
        if name != "interval" and low == high:
            exact = extremes(graph, points, masks, rows[0])[2]
            np.testing.assert_allclose(found.rows_lower[0], [float(v) for v in exact], atol=1e-12)


def test_a_total_is_charged_once() -> None:
    """One group over two layers: what one layer loses the other keeps."""
    nodes = (
        Input(1),
        Affine(((0, Dense(np.ones((2, 1)))),), np.zeros(2), ""),
        Relu(1, 2),
        Gate(2, np.arange(2), 2),
        Affine(((3, identity(2)),), np.zeros(2), ""),
        Relu(4, 2),
        Gate(5, np.arange(2), 2),
        Affine(((6, Dense(np.ones((1, 2)))),), np.zeros(1), ""),
    )
    graph = Graph(nodes)
    x, rows = np.ones((1, 1)), np.ones((1, 1, 1))
    for removable, truth in ((1, 1.0), (2, 0.0)):
        budget = Budget((BudgetGroup((3, 6), removable),))
        for name in BOUNDINGS:
            found = bounding(name).bound(graph, x, x, budget, rows, "cpu").rows_lower[0, 0]
            assert found <= truth
        assert bounding("alpha-crown").bound(graph, x, x, budget, rows, "cpu").rows_lower[0, 0] > truth - 0.1


@settings(max_examples=15)
@given(st.integers(0, 10**6))
@example(0)
def test_each_method_is_at_least_as_tight_as_the_simpler_one(seed: int) -> None:
    made = handmade(seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, made.graph.inputs))
    rows = np.eye(3)[None]
    found = {name: bounding(name).bound(made.graph, x, x, made.budget, rows, "cpu") for name in BOUNDINGS}
    slack = 1e-9 * (1 + np.abs(found["interval"].rows_lower))
    assert np.all(found["budget"].rows_lower >= found["interval"].rows_lower - slack)
    assert np.all(
        found["alpha-crown"].rows_lower
        >= found["crown"].rows_lower - 0.2 * (1 + np.abs(found["crown"].rows_lower))
    )
    for node in range(len(made.graph.nodes)):
        assert np.all(
            found["crown"].lower[node]
            >= found["budget"].lower[node] - 1e-9 * (1 + np.abs(found["budget"].lower[node]))
        )


def test_every_combination_of_masks_is_listed() -> None:
    """The enumeration that these tests rest on."""
    made = handmade(3)
    masks = group_masks(made.graph, made.budget)
    assert all(made.budget.admits(made.graph, mask) for mask in masks)
    slots = sum(
        gate.gates
        for group in made.budget.groups
        for n in group.nodes
        for gate in [made.graph.nodes[n]]
        if isinstance(gate, Gate)
    )
    everything = itertools.product([False, True], repeat=slots)
    nodes = [n for group in made.budget.groups for n in group.nodes]
    count = 0
    for bits in everything:
        place, mask = 0, {}
        for n in nodes:
            gate = made.graph.nodes[n]
            assert isinstance(gate, Gate)
            mask[n] = np.array(bits[place : place + gate.gates], dtype=bool)
            place += gate.gates
        count += made.budget.admits(made.graph, mask)
    assert count == len(masks)
