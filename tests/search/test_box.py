"""The search over boxes answers as enumerating activation patterns does, and is honest on stopping early."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from milpver.bounds._interval import interval_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.encoder import encode
from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Conv, Dense, Float, Sparse, identity
from milpver.query import Box, Budget, BudgetGroup
from milpver.registry import load
from milpver.search import box as box_module
from milpver.search._tensors import torch_threads
from milpver.search.box import BoxSearch
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Limits, Stop
from tests.nets import group_masks, handmade, random_layers

CPU = torch.device("cpu")
GAP = 1e-6
#: What two evaluations in float64 may differ by, and what a linear program's tolerances let through.
CLOSE = 1e-8
Alternative = tuple[Float, Float]


def dense_graph(widths: Sequence[int], seed: int, *, integer: bool = False) -> Graph:
    """``Affine, Relu, ..., Affine`` with random weights; small integers make ties likely."""
    weights, biases = random_layers(widths, seed, scale=1.5)
    if integer:
        weights, biases = [np.rint(2 * w) for w in weights], [np.rint(3 * b) for b in biases]
    nodes: list[Node] = [Input(widths[0])]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        nodes.append(Affine(((len(nodes) - 1, Dense(weight)),), bias, f"affine{i}"))
        if i < len(weights) - 1:
            nodes.append(Relu(len(nodes) - 1, len(weight)))
    return Graph(tuple(nodes))


def conv_graph(seed: int) -> Graph:
    """Convolution, pooling by maximum, a residual block, pooling by average, and a dense layer."""
    rng = np.random.default_rng(seed)
    first = Conv(rng.normal(size=(2, 1, 2, 2)), (1, 4, 4), strides=(2, 2))
    windows = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [1, 3]])
    mean = Sparse(sparse.csr_array(np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1.0]])))
    inner = Dense(rng.normal(size=(5, 5)))
    return Graph(
        (
            Input(16),
            Affine(((0, first),), 0.3 * rng.normal(size=8), "conv"),
            Relu(1, 8),
            Max(2, windows),
            Affine(((3, inner),), 0.2 * rng.normal(size=5), "inner"),
            Relu(4, 5),
            Affine(((5, identity(5)), (3, Dense(0.5 * rng.normal(size=(5, 5))))), np.zeros(5), "residual"),
            Relu(6, 5),
            Affine(((7, mean),), np.zeros(3), "mean"),
            Affine(((8, Dense(rng.normal(size=(3, 3)))),), 0.1 * rng.normal(size=3), "output"),
        )
    )


def margins(outputs: int, label: int) -> list[Alternative]:
    """One alternative for every other class: ``f_label - f_j <= 0``."""
    eye = np.eye(outputs)
    return [((eye[label] - eye[j])[None], np.zeros(1)) for j in range(outputs) if j != label]


def random_alternatives(rng: np.random.Generator, outputs: int) -> list[Alternative]:
    """One to three alternatives of one to three rows."""
    sizes = rng.integers(1, 4, size=rng.integers(1, 4))
    return [(rng.normal(size=(k, outputs)), 0.5 * rng.normal(size=k)) for k in sizes]


class Task:
    """A property over a box."""

    def __init__(
        self,
        graph: Graph,
        lower: Float,
        upper: Float,
        alternatives: list[Alternative],
        budget: Budget | None = None,
    ) -> None:
        self.graph, self.lower, self.upper, self.alternatives = graph, lower, upper, alternatives
        self.budget = budget or Budget()
        self.best: Float = np.full(len(alternatives), np.inf)

    def values(self, x: Float, masks: Mapping[int, NDArray[np.bool_]] | None = None) -> Float:
        """Value of each alternative at points, float64 [points, alternatives]."""
        outputs = self.graph.evaluate(x, masks)
        return np.stack([(outputs @ a.T - b).max(axis=1) for a, b in self.alternatives], axis=1)

    def offer(self, x: Float, masks: Mapping[int, NDArray[np.bool_]]) -> Float:
        """Replay, as the caller of a search does; only points of the box and admissible masks may come."""
        assert np.all((x >= self.lower) & (x <= self.upper))
        for i in range(len(x)):
            assert self.budget.admits(self.graph, {node: mask[i] for node, mask in masks.items()})
        self.best = np.minimum(self.best, self.values(x, masks or None).min(axis=0))
        return self.best

    def search(
        self,
        *,
        decide: bool = False,
        gap: float = GAP,
        expired: Callable[[], Stop | None] = lambda: None,
        memory: int = 1 << 30,
    ) -> SearchResult:
        """Run the search from scratch."""
        self.best = np.full(len(self.alternatives), np.inf)
        search = BoxSearch(
            TensorGraph(self.graph, CPU), self.budget, self.lower, self.upper, self.alternatives, self.offer
        )
        with torch_threads(1):
            return search.run(SearchLimits(gap=gap, decide=decide, memory=memory, expired=expired))

    def sampled(self, seed: int, count: int = 2000) -> Float:
        """Smallest value of each alternative over random points, corners and edges of the box."""
        rng = np.random.default_rng(seed)
        x = rng.uniform(self.lower, self.upper, size=(count, len(self.lower)))
        edge = rng.random(x.shape) < 0.5
        x = np.where(edge, np.where(rng.random(x.shape) < 0.5, self.lower, self.upper), x)
        least: Float = self.values(x).min(axis=0)
        return least

    def assert_sound(self, result: SearchResult, seed: int = 0) -> None:
        """No lower bound lies above a value that is met."""
        assert not np.isnan(result.lower).any()
        assert np.all(result.root <= result.lower)
        assert np.all(result.lower <= self.sampled(seed) + CLOSE)
        assert np.all(result.lower <= self.best + CLOSE)


def pattern_truth(graph: Graph, task: Task) -> Float:
    """Smallest value of each alternative: a linear program for each pattern of a dense network."""
    affines = [node for node in graph.nodes if isinstance(node, Affine)]
    layers = [(node.terms[0][1].csr.toarray(), node.bias) for node in affines]
    hidden = [len(bias) for _, bias in layers[:-1]]
    best = np.full(len(task.alternatives), np.inf)
    for signs in itertools.product(*(itertools.product([0.0, 1.0], repeat=n) for n in hidden)):
        slope, constant = np.eye(graph.inputs), np.zeros(graph.inputs)
        rows, limits = [np.zeros((0, graph.inputs))], [np.zeros(0)]
        for (weight, bias), sign in zip(layers[:-1], signs, strict=True):
            slope, constant = weight @ slope, weight @ constant + bias
            side = 1.0 - 2.0 * np.array(sign)
            rows.append(side[:, None] * slope)
            limits.append(-side * constant)
            slope, constant = np.array(sign)[:, None] * slope, np.array(sign) * constant
        slope, constant = layers[-1][0] @ slope, layers[-1][0] @ constant + layers[-1][1]
        region = np.vstack(rows)
        for k, (a, b) in enumerate(task.alternatives):
            one = np.ones((len(b), 1))
            found = linprog(
                np.append(np.zeros(graph.inputs), 1.0),
                A_ub=np.vstack(
                    [np.hstack([a @ slope, -one]), np.hstack([region, np.zeros((len(region), 1))])]
                ),
                b_ub=np.concatenate([b - a @ constant, *limits]),
                bounds=[*zip(task.lower, task.upper, strict=True), (None, None)],
                method="highs",
            )
            if found.status == 0:
                best[k] = min(best[k], float(found.fun))
    return best


def assert_exact(task: Task, truth: Float) -> SearchResult:
    """Exact mode finds the smallest value over all alternatives, and proves it."""
    result = task.search()
    task.assert_sound(result)
    assert np.all(result.lower <= truth + CLOSE), (result.lower, truth)
    assert result.stop is Stop.OPTIMAL
    assert task.best.min() == pytest.approx(truth.min(), abs=GAP + CLOSE)
    assert result.lower.min() >= truth.min() - GAP - CLOSE
    return result


def assert_decided(task: Task, truth: Float) -> None:
    """Decision mode gets the sign right, and has a proof or a witness for it."""
    result = task.search(decide=True)
    task.assert_sound(result)
    if truth.min() > CLOSE:
        assert result.lower.min() > 0
    elif truth.min() < -CLOSE:
        assert task.best.min() <= 0
    else:
        assert result.lower.min() <= CLOSE


@pytest.fixture(params=["halve", "branch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to search, whatever the number of inputs."""
    way = str(request.param)
    monkeypatch.setattr(box_module, "FEW_INPUTS", 100 if way == "halve" else 0)
    return way


@pytest.mark.parametrize("seed", range(6))
def test_answers_as_enumerating_patterns_does(way: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = dense_graph([2, 4, 3, 3], seed, integer=seed % 3 == 2)
    centre = rng.normal(size=2)
    task = Task(graph, centre - 0.7, centre + 0.7, random_alternatives(rng, 3))
    truth = pattern_truth(graph, task)
    assert_decided(task, truth)
    if way == "branch":
        assert_exact(task, truth)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
@example(13)
def test_a_milp_backend_agrees(seed: int) -> None:
    """Random dense networks on boxes: the smallest margin is that of HiGHS on the encoded program."""
    rng = np.random.default_rng(seed)
    graph = dense_graph([5, 7, 6, 3], seed)
    centre = rng.normal(size=5)
    task = Task(graph, centre - 0.5, centre + 0.5, margins(3, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_module, "FEW_INPUTS", 0)
        result = task.search()
    task.assert_sound(result, seed)
    space = Workspace(TensorGraph(graph, CPU), Budget())
    rows = np.vstack([a for a, _ in task.alternatives])
    low, high = torch.tensor(task.lower)[None], torch.tensor(task.upper)[None]
    bounds = interval_bounds(space, low, high, torch.tensor(rows)[None])
    whole = Box(centre, task.lower, task.upper, task.lower, task.upper)
    encoded = encode(graph, whole, Budget(), bounds, load("encodings", "fused"))
    solver = load("solvers", "highs")
    solutions = [solver.solve(encoded.program(row), Limits(gap=1e-8)) for row in rows]
    assume(all(solution.stop is Stop.OPTIMAL for solution in solutions))
    truth = min(solution.lower for solution in solutions)
    assert result.lower.min() == pytest.approx(truth, abs=5e-6)
    assert task.best.min() == pytest.approx(truth, abs=5e-6)


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_convolutions_pooling_and_residuals(way: str, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    graph = conv_graph(seed)
    centre = rng.uniform(0, 1, size=16)
    radius = np.where(np.arange(16) < 3, 0.1, 0.0) if way == "halve" else np.full(16, 0.1)
    label = int(graph.evaluate(centre[None])[0].argmax())
    task = Task(graph, centre - radius, centre + radius, margins(3, label))
    result = task.search(decide=True)
    task.assert_sound(result, seed)
    assert result.stop in (Stop.OPTIMAL, Stop.TARGET)
    assert result.lower.min() > 0 or task.best.min() <= 0
    if way == "branch":
        exact = task.search()
        task.assert_sound(exact, seed)
        assert exact.stop is Stop.OPTIMAL
        assert task.best.min() - exact.lower.min() <= GAP + CLOSE


def test_a_counterexample_in_a_tiny_region(way: str) -> None:
    """A spike of width 1e-5 around one point of the box, flat anywhere else: never proven away."""
    inputs, height, width = 2, 1.0, 1e-5
    peak = np.array([0.3141, -0.2718])
    # |x_i - p_i| by two ReLUs each, then height - sum / width, positive only near the peak.
    first = np.vstack([np.eye(inputs), -np.eye(inputs)])
    second = np.full((1, 2 * inputs), -1.0 / width)
    graph = Graph(
        (
            Input(inputs),
            Affine(((0, Dense(first)),), np.concatenate([-peak, peak]), "away"),
            Relu(1, 2 * inputs),
            Affine(((2, Dense(second)),), np.array([height]), "near"),
            Relu(3, 1),
            Affine(((4, Dense(np.array([[-1.0]]))),), np.array([0.5]), "output"),
        )
    )
    task = Task(graph, np.full(2, -1.0), np.full(2, 1.0), [(np.array([[1.0]]), np.zeros(1))])
    result = task.search(decide=True)
    assert result.lower[0] <= -0.5 + CLOSE
    assert task.best[0] <= 0
    assert result.stop is Stop.TARGET
    assert way in ("halve", "branch")


@pytest.mark.parametrize("offset", [-1e-7, -1e-12, 0.0, 1e-12, 1e-7])
def test_the_decision_boundary_from_both_sides(way: str, offset: float) -> None:
    """The smallest value is ``offset``, met on an edge; a tie counts as a counterexample."""
    weights = np.array([[1.0, 1.0], [1.0, -1.0]])
    graph = Graph(
        (
            Input(2),
            Affine(((0, Dense(weights)),), np.zeros(2), "a"),
            Relu(1, 2),
            Affine(((2, Dense(np.array([[-1.0, -1.0]]))),), np.zeros(1), "b"),
        )
    )
    # The output is -(|x0 + x1|+ + |x0 - x1|+) >= -2 on the unit box, with equality on the edge x0 = 1.
    task = Task(graph, -np.ones(2), np.ones(2), [(np.array([[1.0]]), np.array([-2.0 - offset]))])
    result = task.search(decide=True)
    if offset <= 0:
        assert not result.lower[0] > 0
    if offset >= 1e-7:
        assert result.lower[0] > 0
        assert result.stop is Stop.OPTIMAL
    if offset <= -1e-7:
        assert task.best[0] <= 0
    assert way in ("halve", "branch")


def test_time_that_runs_out_leaves_a_bracket(way: str) -> None:
    rng = np.random.default_rng(3)
    graph = dense_graph([6, 12, 12, 3], 3)
    centre = rng.normal(size=6)
    task = Task(graph, centre - 1.5, centre + 1.5, margins(3, 0))
    calls = iter(range(10**9))
    result = task.search(expired=lambda: Stop.TIMEOUT if next(calls) > 40 else None)
    task.assert_sound(result)
    assert result.stop is Stop.TIMEOUT
    assert way in ("halve", "branch")


def test_a_memory_limit_changes_the_order_and_nothing_else(way: str) -> None:
    rng = np.random.default_rng(4)
    graph = dense_graph([3, 8, 8, 3], 4)
    centre = rng.normal(size=3)
    task = Task(graph, centre - 1.0, centre + 1.0, margins(3, int(graph.evaluate(centre[None]).argmax())))
    free, tight = task.search(decide=True), task.search(decide=True, memory=1)
    assert (free.lower.min() > 0) == (tight.lower.min() > 0)
    assert way in ("halve", "branch")


def test_the_same_twice(way: str) -> None:
    graph = dense_graph([4, 10, 10, 3], 5)
    task = Task(graph, -np.ones(4), np.ones(4), margins(3, 0))
    first, second = task.search(decide=True), task.search(decide=True)
    assert first.nodes == second.nodes
    assert first.lower.tolist() == second.lower.tolist()
    assert way in ("halve", "branch")


@pytest.mark.parametrize("seed", [0, 1, 2, 5, 8, 13, 21])
def test_masks_and_boxes_together(seed: int) -> None:
    """Gates of every kind over a box: no lower bound lies above what some input and mask give."""
    made = handmade(seed)
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=made.graph.inputs)
    alternatives = [(rng.normal(size=(1, 3)), np.zeros(1)), (rng.normal(size=(2, 3)), np.zeros(2))]
    task = Task(made.graph, centre - 0.1, centre + 0.1, alternatives, made.budget)
    result = task.search(decide=True)
    x = rng.uniform(task.lower, task.upper, size=(50, made.graph.inputs))
    x[:2] = task.lower, task.upper
    least = np.full(2, np.inf)
    for mask in group_masks(made.graph, made.budget):
        least = np.minimum(least, task.values(x, mask).min(axis=0))
    assert np.all(result.lower <= least + CLOSE)
    assert result.stop in (Stop.OPTIMAL, Stop.TARGET)
    assert result.lower.min() > 0 or task.best.min() <= 0


def test_a_mask_decides_where_no_input_does() -> None:
    """Every input is robust with all neurons in place; removing one of them turns the sign."""
    graph = Graph(
        (
            Input(2),
            Affine(((0, Dense(np.eye(2))),), np.array([3.0, 3.0]), "a"),
            Relu(1, 2),
            Gate(2, np.arange(2), 2, "g"),
            Affine(((3, Dense(np.array([[1.0, 1.0]]))),), np.array([-3.5]), "b"),
        )
    )
    alternatives = [(np.array([[1.0]]), np.zeros(1))]
    low, high = -0.5 * np.ones(2), 0.5 * np.ones(2)
    robust = Task(graph, low, high, alternatives).search(decide=True)
    assert robust.lower[0] == pytest.approx(1.5)
    task = Task(graph, low, high, alternatives, Budget((BudgetGroup((3,), 1),)))
    assert task.search(decide=True).lower[0] <= -1.0 + CLOSE
    assert task.best[0] <= 0
    exact = task.search()
    assert exact.lower[0] == pytest.approx(-1.0, abs=GAP)
    assert task.best[0] == pytest.approx(-1.0, abs=GAP)
