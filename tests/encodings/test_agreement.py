"""The reference encoding is the papers' to the letter, and every encoding has the network's points."""

from __future__ import annotations

import gzip
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver import registry
from milpver.bounding import margin_rows
from milpver.encoder import Encoded, encode
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Dense, identity
from milpver.margin import margins
from milpver.network import Network
from milpver.program import Program
from milpver.query import Budget, BudgetGroup, Options, ball, parse_budget
from milpver.solver import Limits, Stop
from milpver.verdict import Status
from tests.nets import group_masks, handmade, network_of, random_network

Float = NDArray[np.float64]


def encoded(graph: Graph, budget: Budget, x: Float, radius: float, encoding: str, bounds: str) -> Encoded:
    box = ball(x, radius, None)
    rows = np.eye(graph.outputs)[None]
    found = registry.load("bounds", bounds).bound(
        graph, box.lower[None], box.upper[None], budget, rows, "cpu"
    )
    return encode(graph, box, budget, found, registry.load("encodings", encoding))


@pytest.mark.parametrize(("budget", "columns", "binaries"), [("13,0,0", 928, 352), ("6,3,3", 1120, 448)])
def test_the_papers_columns_are_counted(tmp_path: Path, budget: str, columns: int, binaries: int) -> None:
    network = random_network(tmp_path / "n.onnx", [784, 128, 64, 32, 10], 0)
    x = np.random.default_rng(0).uniform(size=784).astype(np.float32).astype(float)
    wanted = parse_budget(budget, network)
    program = encoded(network.graph, wanted, x, 0.0, "reference", "interval").program(np.eye(10)[0])
    assert program.columns == columns
    assert int(program.integer.sum()) == binaries
    fused = encoded(network.graph, wanted, x, 0.0, "fused", "interval").program(np.eye(10)[0])
    assert fused.columns < columns
    assert int(fused.integer.sum()) < binaries


def columns_of(program: Program, name: str) -> NDArray[np.int64]:
    first, count = next((first, count) for n, first, count in program.column_blocks if n == name)
    return np.arange(first, first + count)


def test_the_reference_rows_are_equations_7_to_9(tmp_path: Path) -> None:
    """Row for row, as sets: x >= z, x <= u a, x <= z - l (1 - a); McCormick; sum m >= n - s."""
    weights = [np.array([[1.0, -1.0], [0.5, 2.0]]), np.array([[1.0, -2.0], [3.0, 1.0]])]
    biases = [np.array([0.25, -1.0]), np.array([0.0, 0.5])]
    network = network_of(tmp_path / "n.onnx", weights, biases)
    x = np.array([1.0, 0.5])
    made = encoded(network.graph, parse_budget("1", network), x, 0.0, "reference", "interval")
    program = made.program(np.array([1.0, -1.0]))
    names = [name for name, _, _ in program.column_blocks]
    z, out, a, m, p = (columns_of(program, name) for name in names)
    value = weights[0] @ x + biases[0]
    assert np.allclose(program.lower[z], value, atol=1e-12)
    assert np.array_equal(program.lower[z], program.upper[z]), "the fixed input's constants are fixed columns"
    low, high = value, np.maximum(value, 0)
    expected = []
    for i in range(2):
        expected += [
            ({out[i]: 1.0, z[i]: -1.0}, 0.0, np.inf),
            ({out[i]: 1.0, a[i]: -value[i]}, -np.inf, 0.0),
            ({out[i]: 1.0, z[i]: -1.0, a[i]: -low[i]}, -np.inf, -low[i]),
            ({p[i]: 1.0, m[i]: -high[i]}, -np.inf, 0.0),
            ({p[i]: 1.0, m[i]: -high[i]}, 0.0, np.inf),  # L = U = h: the input is fixed
            ({p[i]: 1.0, out[i]: -1.0, m[i]: -high[i]}, -np.inf, -high[i]),
            ({p[i]: 1.0, out[i]: -1.0, m[i]: -high[i]}, -high[i], np.inf),
        ]
    expected.append(({m[0]: -1.0, m[1]: -1.0}, -np.inf, -1.0))
    dense = program.matrix.toarray()
    found = list(zip(dense, program.row_lower, program.row_upper, strict=True))
    assert len(found) == len(expected)
    for entries, lower, upper in expected:
        row = np.zeros(program.columns)
        for column, coefficient in entries.items():
            row[column] = coefficient
        at = [
            i
            for i, (r, lo, up) in enumerate(found)
            if np.allclose(r, row, atol=1e-9)
            and np.isclose(lo, lower, atol=1e-9)
            and np.isclose(up, upper, atol=1e-9)
        ]
        assert at, (entries, lower, upper)
        found.pop(at[0])
    assert np.allclose(program.objective[p], weights[1][0] - weights[1][1])
    assert program.offset == pytest.approx(-0.5)


def solved(program: Program, fixed: dict[int, float]) -> tuple[Stop, float]:
    """Minimise with some columns fixed."""
    lower, upper = program.lower.copy(), program.upper.copy()
    for column, value in fixed.items():
        lower[column] = upper[column] = value
    solution = registry.load("solvers", "highs").solve(
        replace(program, lower=lower, upper=upper), Limits(seconds=20, gap=1e-9)
    )
    return solution.stop, solution.upper


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), integer=st.booleans())
@pytest.mark.parametrize(
    ("encoding", "bounds"), [("reference", "interval"), ("fused", "interval"), ("fused", "alpha-crown")]
)
def test_each_mask_gives_the_networks_outputs(seed: int, integer: bool, encoding: str, bounds: str) -> None:
    """With masks and input fixed the program's only value is the network's: graphs of every kind."""
    made = handmade(seed, integer=integer)
    graph, budget = made.graph, made.budget
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=graph.inputs).astype(float) if integer else rng.normal(size=graph.inputs)
    row = rng.normal(size=3)
    for radius in (0.0, 0.5):
        built = encoded(graph, budget, x, radius, encoding, bounds)
        program = built.program(row)
        masks = group_masks(graph, budget)
        for i in rng.choice(len(masks), size=min(3, len(masks)), replace=False):
            mask, point = masks[i], x if radius == 0 else x + rng.uniform(-radius, radius, size=len(x))
            fixed: dict[int, float] = {}
            expected_mask = dict(mask)
            for node, gate in built.gates.items():
                for k, column in enumerate(gate.column):
                    if column >= 0:
                        fixed[int(column)] = float(mask[node][k] == gate.removed_is_one)
                    else:
                        expected_mask[node] = np.where(
                            np.arange(len(gate.column)) == k, False, expected_mask[node]
                        )
            if built.input is not None:
                fixed.update({int(c): v for c, v in zip(built.input, point, strict=True)})
            truth = graph.evaluate(point[None], mask)[0] @ row
            for sign in (1.0, -1.0):
                stop, value = solved(program if sign > 0 else built.program(-row), fixed)
                assert stop is Stop.OPTIMAL
                assert value * sign == pytest.approx(truth, abs=1e-5 * (1 + abs(truth)))
            same = graph.evaluate(point[None], expected_mask)[0] @ row
            assert same == pytest.approx(truth, abs=1e-9), "a gate without a column changes nothing"


def test_masks_over_the_budget_are_infeasible() -> None:
    for seed in range(12):
        made = handmade(seed)
        x = np.random.default_rng(seed).normal(size=made.graph.inputs)
        for encoding in ("reference", "fused"):
            built = encoded(made.graph, made.budget, x, 0.0, encoding, "interval")
            program = built.program(np.ones(3))
            for group in made.budget.groups:
                slots = [
                    (int(column), built.gates[node].removed_is_one)
                    for node in group.nodes
                    for column in built.gates[node].column
                    if column >= 0
                ]
                if len(slots) <= group.removable:
                    continue
                over = {column: float(one) for column, one in slots[: group.removable + 1]}
                assert solved(program, over)[0] is Stop.INFEASIBLE


def test_max_windows_with_repeats_and_sure_winners() -> None:
    bias = np.array([0.0, 0.0, 5.0, -5.0])
    windows = np.array([[0, 1], [0, 0], [2, 3], [3, 3], [1, 2], [0, 3]])
    nodes = (
        Input(2),
        Affine(((0, Dense(np.array([[1.0, 0], [0, 1.0], [0.1, 0], [0, 0.1]]))),), bias, ""),
        Max(1, windows),
        Relu(2, 6),
        Gate(3, np.array([0, 0, 1, 1, 2, 2]), 3),
        Affine(((4, Dense(np.arange(12.0).reshape(2, 6) - 5)), (2, Dense(np.ones((2, 6))))), np.zeros(2), ""),
    )
    graph = Graph(nodes)
    budget = Budget((BudgetGroup((4,), 2),))
    rng = np.random.default_rng(0)
    for encoding, radius in itertools.product(("reference", "fused"), (0.0, 1.0)):
        x = rng.normal(size=2)
        built = encoded(graph, budget, x, radius, encoding, "interval")
        stop, value = solved(built.program(np.array([1.0, -1.0])), {})
        points = x + radius * rng.uniform(-1, 1, size=(2000, 2))
        corners = x + radius * np.array(list(itertools.product([-1, 0, 1], repeat=2)))
        sampled = min(
            (graph.evaluate(p, mask) @ [1.0, -1.0]).min()
            for mask in group_masks(graph, budget)
            for p in (points, corners)
        )
        assert stop is Stop.OPTIMAL
        assert value <= sampled + 1e-6
        assert value >= sampled - (1e-6 if radius == 0 else 0.5)


def test_a_point_needs_no_columns_in_front_of_the_first_gate() -> None:
    """The fused encoding folds constants, pooling included."""
    nodes = (
        Input(2),
        Affine(((0, Dense(np.array([[1.0, 2.0], [2.0, 1.0], [0.5, 0.5], [1.0, -1.0]]))),), np.zeros(4), ""),
        Max(1, np.array([[0, 1], [2, 3]])),
        Relu(2, 2),
        Affine(((3, identity(2)),), np.zeros(2), ""),
        Relu(4, 2),
        Gate(5, np.arange(2), 2),
        Affine(((6, identity(2)),), np.zeros(2), ""),
    )
    budget = Budget((BudgetGroup((6,), 1),))
    built = encoded(Graph(nodes), budget, np.array([1.0, 1.0]), 0.0, "fused", "interval")
    program = built.program(np.array([1.0, -1.0]))
    assert [name for name, _, count in program.column_blocks if count] == ["q6"]


# ---- the benchmark's architecture ------------------------------------------------------------------------


def read_idx(path: Path, skip: int) -> NDArray[np.uint8]:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=skip)


@pytest.fixture(scope="module")
def mnist(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, Float, list[int]]:
    """784-128-64-32-10, trained for a moment on 6,000 digits; with correctly classified ones."""
    folder = shared_data / "mnist"
    images = read_idx(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 784)[:6000] / 255.0
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz", 8)[:6000].astype(np.int64)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    sizes = [784, 128, 64, 32, 10]
    layers = [torch.nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=2e-3)
    x, y = torch.tensor(images, dtype=torch.float32), torch.tensor(labels)
    for _ in range(2):
        for part in torch.randperm(len(x)).split(64):  # type: ignore[no-untyped-call]  # torch gives no types
            h = x[part]
            for layer in layers[:-1]:
                h = torch.relu(layer(h))
            loss = torch.nn.functional.cross_entropy(layers[-1](h), y[part])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch gives no types
            optimiser.step()
    torch.random.set_rng_state(state)
    weights = [layer.weight.detach().double().numpy() for layer in layers]
    biases = [layer.bias.detach().double().numpy() for layer in layers]
    network = network_of(tmp_path_factory.mktemp("mnist") / "net.onnx", weights, biases)
    inputs = images[:50].astype(np.float32).astype(float)
    right = np.flatnonzero(network.graph.evaluate(inputs).argmax(axis=1) == labels[:50])
    return network, inputs[right], [int(v) for v in labels[:50][right]]


@pytest.mark.parametrize("budget", ["2,0,0", "0,2,0", "0,0,3"])
def test_the_encodings_agree_on_mnist(mnist: tuple[Network, Float, list[int]], budget: str) -> None:
    """The worst class as a program: the reference's optimum is the fused one's and the verdict's."""
    network, inputs, labels = mnist
    wanted = parse_budget(budget, network)
    x, label = inputs[0], labels[0]
    rows = margin_rows((label,), 10)[0]
    verdict = next(
        margins(
            network,
            x[None].astype(np.float32),
            [label],
            budget=wanted,
            options=Options(timeout=100, solver="highs"),
        )
    )
    assert verdict.status is Status.OPTIMAL
    highs = registry.load("solvers", "highs")
    fused = encoded(network.graph, wanted, x, 0.0, "fused", "alpha-crown")
    reference = encoded(network.graph, wanted, x, 0.0, "reference", "interval")
    assert verdict.target is not None
    hardest = verdict.target - (verdict.target > label)
    optima = []
    for built in (fused, reference):
        solution = highs.solve(built.program(rows[hardest]), Limits(seconds=60, gap=5e-7))
        assert solution.stop is Stop.OPTIMAL
        optima.append(solution.upper)
    assert optima[0] == pytest.approx(optima[1], abs=3e-6)
    assert optima[0] == pytest.approx(verdict.upper, abs=3e-6)
