"""The native searches answer as enumeration does, and stay honest when they have to stop before.

One suite for both: the one in batches of nodes, and the compiled one wherever the network is a chain.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver import worst_margin
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Fixed, SortedShares, Workspace
from milpver.graph import Affine, Gate, Graph, Input, Node, Relu
from milpver.linear import Dense, Float
from milpver.query import Budget, BudgetGroup
from milpver.search._tensors import torch_threads
from milpver.search.bab import MaskSearch
from milpver.search.chain import Chains, chain_of, prefix_values
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop
from milpver.verdict import Status
from tests.nets import exact_trace, group_masks, handmade, network_of, random_layers

CPU = torch.device("cpu")
GAP = 1e-6
#: What replaying in float64 may differ from what enumeration computes, batch sizes apart.
CLOSE = 1e-9
Masks = Mapping[int, NDArray[np.bool_]]


def dense_graph(widths: list[int], seed: int, *, bias: bool, integer: bool = False) -> Graph:
    """``Affine, Relu, Gate, ..., Affine`` with random weights; small integers make ties likely."""
    weights, biases = random_layers(widths, seed)
    if integer:
        weights, biases = [np.rint(2 * w) for w in weights], [np.rint(3 * b) for b in biases]
    nodes: list[Node] = [Input(widths[0])]
    for i, (weight, offset) in enumerate(zip(weights, biases, strict=True)):
        constant = offset if bias else np.zeros_like(offset)
        nodes.append(Affine(((len(nodes) - 1, Dense(weight)),), constant, f"affine{i}"))
        if i < len(weights) - 1:
            nodes.append(Relu(len(nodes) - 1, len(weight)))
            nodes.append(Gate(len(nodes) - 1, np.arange(len(weight)), len(weight), f"gate{i}"))
    return Graph(tuple(nodes))


def gates_of(graph: Graph) -> dict[int, int]:
    """Gate node -> number of gates."""
    return {index: node.gates for index, node in enumerate(graph.nodes) if isinstance(node, Gate)}


class Task:
    """A query with its truth by enumeration: ``truth`` is the minimum of each row."""

    def __init__(self, graph: Graph, budget: Budget, x: Float, rows: Float) -> None:
        self.graph, self.budget, self.x, self.rows = graph, budget, x, rows
        masks = group_masks(graph, budget)
        stacked = {node: np.stack([mask[node] for mask in masks]) for node in masks[0]}
        self.truth: Float = self.values(stacked).min(axis=0)
        self.upper: Float = np.full(len(rows), np.inf)
        self.offered = 0

    def values(self, masks: Masks) -> Float:
        """Every row for a batch of masks, float64 [batch, rows]."""
        count = len(next(iter(masks.values())))
        found: Float = self.graph.evaluate(np.repeat(self.x[None], count, axis=0), masks) @ self.rows.T
        return found

    def offer(self, masks: Masks) -> Float:
        """Replay, as the caller of a search does; only admissible masks may come."""
        count = len(next(iter(masks.values())))
        for i in range(count):
            assert self.budget.admits(self.graph, {node: mask[i] for node, mask in masks.items()})
        self.offered += count
        self.upper = np.minimum(self.upper, self.values(masks).min(axis=0))
        return self.upper

    @property
    def engines(self) -> list[str]:
        """The searches that take this query."""
        chain = chain_of(self.graph, self.budget) is not None
        return ["bab", "chain", "settled chain", "folded chain"] if chain else ["bab"]

    def search(
        self,
        *,
        engine: str = "bab",
        decide: bool = False,
        gap: float = GAP,
        memory: int = 1 << 30,
        expired: Callable[[], Stop | None] = lambda: None,
    ) -> SearchResult:
        """Run the search from scratch."""
        self.upper = np.full(len(self.rows), np.inf)
        tensors = TensorGraph(self.graph, CPU)
        limits = SearchLimits(gap=gap, decide=decide, memory=memory, expired=expired)
        if engine == "bab":
            with torch_threads(1):
                return MaskSearch(tensors, self.budget, self.x, self.rows, self.offer).run(limits)
        layers = chain_of(self.graph, self.budget)
        assert layers is not None
        low, high = prefix_values(tensors, self.budget, layers.start, self.x[None])
        chains = Chains(layers, self.graph, self.budget)
        search = chains.search((low[0], high[0]), self.rows)
        if engine == "settled chain":  # as batches begin them
            search.settle(gap, decide, 4)
        if engine == "folded chain":  # as wide layers are searched
            with mock.patch.multiple("milpver.search.chain", _BRIEF_ENTRIES=-1, _WORTH_FOLDING=1.0):
                return search.run(limits, self.offer)
        return search.run(limits, self.offer)

    def assert_bracket(self, result: SearchResult) -> None:
        """Every row's bracket holds its truth, to the last digit that enumeration is good for."""
        assert not np.isnan(result.lower).any()
        assert np.all(result.root <= result.lower)
        assert np.all(result.lower <= self.truth + CLOSE), (result.lower, self.truth)
        assert np.all(self.upper >= self.truth - CLOSE)

    def assert_solved(self) -> list[SearchResult]:
        """Exact mode finds the smallest value over all rows, and proves it."""
        results = []
        for engine in self.engines:
            result = self.search(engine=engine)
            self.assert_bracket(result)
            assert result.stop is Stop.OPTIMAL
            assert self.upper.min() == pytest.approx(self.truth.min(), abs=CLOSE + GAP)
            assert result.lower.min() >= self.truth.min() - GAP - CLOSE
            results.append(result)
        return results

    def assert_decided(self) -> list[SearchResult]:
        """Decision mode gets the sign right, and has a proof or a witness for it."""
        results = []
        for engine in self.engines:
            result = self.search(engine=engine, decide=True)
            self.assert_bracket(result)
            assert result.stop in (Stop.OPTIMAL, Stop.TARGET)
            if self.truth.min() > CLOSE:
                assert result.lower.min() > 0
            elif self.truth.min() < -CLOSE:
                assert self.upper.min() <= 0
            else:  # a tie, or rounding apart from one: never proven positive
                assert result.lower.min() <= CLOSE
            results.append(result)
        return results


def margins(outputs: int, label: int) -> Float:
    """``e_label - e_j`` for every other j."""
    unit = np.eye(outputs)
    return np.delete(unit[label] - unit, label, axis=0)


def count_masks(sizes: list[int], budget: list[int]) -> int:
    """How many masks enumeration has to try."""
    each = (sum(math.comb(n, k) for k in range(s + 1)) for n, s in zip(sizes, budget, strict=True))
    return math.prod(each)


def layered(graph: Graph, counts: list[int]) -> Budget:
    """One group a Gate node; none where nothing may go."""
    pairs = zip(gates_of(graph), counts, strict=True)
    return Budget(tuple(BudgetGroup((node,), s) for node, s in pairs if s), tuple(counts))


@st.composite
def dense_tasks(draw: st.DrawFn) -> Task:
    """Dense networks with 2-3 hidden layers of up to 8 neurons, any budget that can be enumerated."""
    hidden = draw(st.lists(st.integers(1, 8), min_size=2, max_size=3))
    sizes = [draw(st.integers(1, 5)), *hidden, draw(st.integers(2, 4))]
    seed = draw(st.integers(0, 2**20))
    integer = draw(st.booleans())
    graph = dense_graph(sizes, seed, bias=draw(st.booleans()), integer=integer)
    counts = [draw(st.integers(0, n)) for n in hidden]
    while count_masks(hidden, counts) > 2500:
        counts[int(np.argmax(counts))] -= 1
    if not any(counts):
        counts[-1] = 1
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=sizes[0]).astype(np.float64) if integer else rng.normal(size=sizes[0])
    return Task(graph, layered(graph, counts), x, margins(sizes[-1], int(rng.integers(sizes[-1]))))


def handmade_task(seed: int, *, integer: bool) -> Task:
    """A graph by hand: shared gates, totals over layers, gates on values of either sign, fan-outs."""
    made = handmade(seed, integer=integer)
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=made.graph.inputs).astype(np.float64)
    rows = margins(3, int(rng.integers(3)))
    return Task(made.graph, made.budget, x if integer else x + rng.normal(size=len(x)), rows)


@settings(max_examples=25)
@given(dense_tasks())
def test_exact_mode_equals_enumeration(task: Task) -> None:
    task.assert_solved()


@settings(max_examples=25)
@given(dense_tasks())
def test_decision_mode_equals_enumeration(task: Task) -> None:
    task.assert_decided()


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans())
@example(0, True)
def test_shared_gates_totals_and_branches_equal_enumeration(seed: int, integer: bool) -> None:
    task = handmade_task(seed, integer=integer)
    task.assert_solved()
    task.assert_decided()


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans())
def test_totals_over_layers_equal_enumeration(seed: int, removable: int, shared: bool) -> None:
    """One group over every layer, the first included; with ``shared``, two neurons to a gate."""
    graph = dense_graph([3, 6, 6, 4, 3], seed, bias=seed % 2 == 0)
    if shared:
        nodes = [
            Gate(node.source, np.arange(node.size) // 2, node.size // 2, node.name)
            if isinstance(node, Gate)
            else node
            for node in graph.nodes
        ]
        graph = Graph(tuple(nodes))
    budget = Budget((BudgetGroup(tuple(gates_of(graph)), removable),))
    x = np.random.default_rng(seed).normal(size=3)
    task = Task(graph, budget, x, margins(3, seed % 3))
    task.assert_solved()
    task.assert_decided()


def hard_task(seed: int = 3) -> Task:
    """A query that needs several batches of nodes, yet can be enumerated."""
    graph = dense_graph([4, 10, 8, 6, 4], seed, bias=False)
    x = np.random.default_rng(seed).normal(size=4)
    return Task(graph, layered(graph, [3, 1, 1]), x, margins(4, int(graph.evaluate(x[None]).argmax())))


def test_the_hard_query_needs_branching() -> None:
    task = hard_task()
    for result in task.assert_solved():
        assert result.root.min() < task.truth.min() - 10 * GAP
        assert result.nodes > 2


@pytest.mark.parametrize("engine", ["bab", "chain"])
def test_the_same_query_takes_the_same_course(engine: str) -> None:
    first, again = hard_task(), hard_task()
    one, two = first.search(engine=engine), again.search(engine=engine)
    assert one.nodes == two.nodes
    assert first.offered == again.offered
    np.testing.assert_array_equal(one.lower, two.lower)
    np.testing.assert_array_equal(first.upper, again.upper)


@pytest.mark.parametrize("engine", ["bab", "chain"])
@pytest.mark.parametrize("stop", [Stop.TIMEOUT, Stop.INTERRUPTED])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_stopping_early_leaves_an_honest_bracket(engine: str, stop: Stop, after: int) -> None:
    task = hard_task()
    asked = itertools.count()
    result = task.search(engine=engine, expired=lambda: stop if next(asked) >= after else None)
    task.assert_bracket(result)
    if result.stop is not Stop.OPTIMAL:
        assert result.stop is stop
    else:
        assert next(asked) <= after


@pytest.mark.parametrize("engine", ["bab", "chain"])
def test_stopping_at_once_reports_the_root(engine: str) -> None:
    task = hard_task()
    result = task.search(engine=engine, expired=lambda: Stop.TIMEOUT)
    assert result.stop is Stop.TIMEOUT
    np.testing.assert_array_equal(result.lower, result.root)
    assert np.isfinite(task.upper).all()  # incumbents are there from the start


@pytest.mark.parametrize("engine", ["bab", "chain"])
@pytest.mark.parametrize("memory", [0, 1, 100_000])
def test_little_memory_makes_it_depth_first_with_the_same_answer(engine: str, memory: int) -> None:
    task = hard_task()
    result = task.search(engine=engine, memory=memory)
    task.assert_bracket(result)
    assert result.stop is Stop.OPTIMAL
    assert task.upper.min() == pytest.approx(task.truth.min(), abs=GAP)
    assert result.lower.min() >= task.truth.min() - GAP - CLOSE


@pytest.mark.parametrize("engine", ["bab", "chain"])
def test_little_memory_and_little_time_leave_an_honest_bracket(engine: str) -> None:
    task = hard_task()
    asked = itertools.count()
    result = task.search(engine=engine, memory=0, expired=lambda: Stop.TIMEOUT if next(asked) >= 2 else None)
    task.assert_bracket(result)


@pytest.mark.parametrize("engine", ["bab", "chain"])
def test_a_wide_gap_stops_sooner_within_it(engine: str) -> None:
    task = hard_task()
    narrow = task.search(engine=engine)
    wide = task.search(engine=engine, gap=0.5)
    task.assert_bracket(wide)
    assert wide.nodes <= narrow.nodes
    assert task.upper.min() - wide.lower.min() <= 0.5 + CLOSE


@pytest.mark.parametrize("engine", ["bab", "chain"])
def test_a_tie_is_never_proven_positive(engine: str) -> None:
    """Removing the only difference between two outputs ties them exactly: the minimum is 0."""
    weights = [np.eye(3), np.eye(3), np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])]
    nodes: list[Node] = [Input(3)]
    for i, weight in enumerate(weights):
        nodes.append(Affine(((len(nodes) - 1, Dense(weight)),), np.zeros(len(weight)), f"a{i}"))
        if i < 2:
            nodes += [Relu(len(nodes) - 1, 3), Gate(len(nodes), np.arange(3), 3, f"g{i}")]
    graph = Graph(tuple(nodes))
    task = Task(graph, layered(graph, [1, 1]), np.ones(3), np.array([[1.0, -1.0]]))
    assert task.truth.tolist() == [0.0]
    decided = task.search(engine=engine, decide=True)
    assert decided.lower[0] <= 0
    assert task.upper[0] == 0
    exact = task.search(engine=engine)
    assert -GAP <= exact.lower[0] <= 0
    assert exact.stop is Stop.OPTIMAL


def test_a_budget_beyond_what_is_active_costs_nothing() -> None:
    """Every neuron may go, most are dead: the minimum over all masks is still met exactly."""
    graph = dense_graph([2, 5, 4, 2], 7, bias=False)
    task = Task(graph, layered(graph, [5, 4]), np.array([0.5, -1.0]), margins(2, 0))
    task.assert_solved()


def test_rows_that_cannot_win_keep_their_bracket() -> None:
    """A row far above the others is dropped early; its lower bound still holds, and is finite."""
    graph = dense_graph([3, 6, 6, 3], 11, bias=True)
    x = np.random.default_rng(11).normal(size=3)
    rows = np.vstack([margins(3, 0), 100.0 + margins(3, 1)])
    task = Task(graph, layered(graph, [2, 2]), x, rows)
    for result in task.assert_solved():
        assert np.isfinite(result.lower).all()


def test_a_first_attack_decides_without_bounds() -> None:
    """Where a gradient step finds a mask that turns the sign, nothing is bounded, and nothing is claimed."""
    graph = dense_graph([3, 6, 6, 3], 5, bias=False)
    x = np.random.default_rng(5).normal(size=3)
    lowest = int(graph.evaluate(x[None]).argmin())
    task = Task(graph, layered(graph, [2, 2]), x, margins(3, lowest))
    for result in task.assert_decided():
        assert result.stop is Stop.TARGET
        assert result.nodes == 0
        assert result.lower.tolist() == [-np.inf, -np.inf]


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_presorted_shares_give_the_same_bounds(seed: int) -> None:
    """What is sorted once for a fixed input bounds as sorting for every node does."""
    made = handmade(seed)
    rng = np.random.default_rng(seed)
    batch = 5
    gone, kept, left = {}, {}, {}
    for group in made.budget.groups:
        for node in group.nodes:
            gate = made.graph.nodes[node]
            assert isinstance(gate, Gate)
            state = torch.as_tensor(rng.integers(0, 4, size=(batch, gate.gates)))
            gone[node], kept[node] = state == 0, state == 1
        left[group.nodes[0]] = torch.as_tensor(rng.integers(0, group.removable + 1, size=batch))
    x = torch.as_tensor(rng.normal(size=made.graph.inputs)).expand(batch, -1)
    known: dict[int, SortedShares] = {}
    spaces = [
        Workspace(
            TensorGraph(made.graph, CPU),
            made.budget,
            fixed=Fixed(gone, kept, left),
            point=True,
            presorted=shares,
        )
        for shares in (None, known, known)
    ]
    for space in spaces:
        for _ in made.graph.nodes:
            space.add(x, x)
    for found in spaces[1:]:
        for one, other in zip(spaces[0].lows + spaces[0].highs, found.lows + found.highs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_torch_threads_are_put_back() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.get_num_threads() == before


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(1, 3))
def test_the_chains_bounds_hold_in_exact_arithmetic(seed: int, hidden: list[int], removable: int) -> None:
    """Root and final bounds are below the exact rational minimum, to the last bit."""
    graph = dense_graph([3, *hidden, 3], seed, bias=seed % 2 == 0)
    x = np.random.default_rng(seed).normal(size=3)
    budget = layered(graph, [min(removable, n) for n in hidden])
    task = Task(graph, budget, x, margins(3, seed % 3))
    exact_x = [Fraction(float(v)) for v in x]
    least = [Fraction(10**9)] * len(task.rows)
    for mask in group_masks(graph, budget):
        outputs = exact_trace(graph, exact_x, mask)[-1]
        for r, row in enumerate(task.rows):
            value = sum((Fraction(float(c)) * y for c, y in zip(row, outputs, strict=True)), Fraction(0))
            least[r] = min(least[r], value)
    for gap, engine in itertools.product((0.0, GAP, 1.0), ("chain", "folded chain")):
        result = task.search(engine=engine, gap=gap)
        for bounds in (result.root, result.lower):
            assert all(Fraction(float(b)) <= exact for b, exact in zip(bounds, least, strict=True))
        assert result.lower.min() >= float(min(least)) - gap - CLOSE


def test_what_is_no_chain_is_left_to_the_other_search() -> None:
    made = handmade(0)
    assert chain_of(made.graph, made.budget) is None
    assert chain_of(made.graph, Budget()) is None
    graph = dense_graph([2, 3, 3, 2], 0, bias=True)
    first, second = gates_of(graph)
    assert chain_of(graph, layered(graph, [1, 1])) is not None
    assert chain_of(graph, layered(graph, [0, 1])) is None  # nothing nonlinear behind: the closed form's
    ends = Graph((*graph.nodes, Relu(len(graph.nodes) - 1, 2)))
    assert chain_of(ends, layered(graph, [1, 0])) is None
    assert (first, second) == (3, 6)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_channels_in_front_of_a_chain_equal_enumeration(seed: int) -> None:
    """The first gated layer may share gates: its entries are summed into one column a gate."""
    graph = dense_graph([3, 8, 5, 3], seed, bias=True)
    nodes = list(graph.nodes)
    nodes[3] = Gate(2, np.arange(8) // 2, 4, "channels")
    graph = Graph(tuple(nodes))
    task = Task(graph, layered(graph, [2, 1]), np.random.default_rng(seed).normal(size=3), margins(3, 0))
    assert task.engines == ["bab", "chain", "settled chain", "folded chain"]
    task.assert_solved()
    task.assert_decided()


def test_a_layer_that_rounds_to_nothing_leaves_a_bound(tmp_path: Path) -> None:
    """Behind a layer that is 0 the next one's bounds are denormal: the inverse of their span is infinite."""
    weights = [np.zeros((2, 1)), -np.ones((2, 2)), -np.ones((2, 2)), np.array([[-5.0, -5.0], [4.0, 4.0]])]
    biases = [np.zeros(2), np.zeros(2), np.zeros(2), np.array([1.0, 0.0])]
    network = network_of(tmp_path / "net.onnx", weights, biases)
    found = worst_margin(network, np.array([2.0]), 0, budget="total:2", solver="bab")
    assert found.status is Status.OPTIMAL
    assert found.lower == pytest.approx(1.0, abs=1e-9)
