"""What the search on signs computes with: unstable neurons alone, supergradients, compiled loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import sparse

from milpver.bounds._crown import Multipliers, backward, crown_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine, Gate, Graph, Input, Node, Relu
from milpver.linear import Conv, Dense, Float, Sparse, identity
from milpver.query import Budget
from milpver.search._alternatives import Alternatives
from milpver.search._ascent import Lines
from milpver.search._collapsed import _Collapse, collapsed
from milpver.search._flat import FlatCrown, Layout, Passes
from milpver.search._flat_kernel import CompiledPasses
from milpver.search._phases import PhaseSearch, Root, SearchNodes
from milpver.search.limits import SearchLimits
from tests.nets import exact_trace

CPU = torch.device("cpu")


def network(seed: int) -> Graph:
    """A branch from rectified inputs, convolutions, a node that two ReLUs depend on, a gate, dense layers."""
    rng = np.random.default_rng(seed)
    first = Conv(rng.normal(size=(3, 1, 2, 2)), (1, 4, 4), strides=(2, 2))
    second = Conv(rng.normal(size=(2, 3, 2, 2)), (3, 2, 2), pads=(1, 1, 0, 0))
    pool = Sparse(sparse.csr_array(np.kron(np.eye(4), [[0.5, 0.5]])))
    nodes: tuple[Node, ...] = (
        Input(16),
        Affine(((0, first),), rng.normal(size=12), "first"),
        Relu(1, 12),
        Gate(2, np.arange(12), 12, "gate"),
        Affine(((3, second),), rng.normal(size=8), "second"),
        Relu(4, 8),
        Affine(((5, identity(8)), (4, identity(8))), rng.normal(size=8), "both"),
        Relu(6, 8),
        Affine(((7, pool),), np.zeros(4), "pool"),
        Relu(0, 16),
        Affine(
            (
                (8, Dense(rng.normal(size=(6, 4)))),
                (9, Dense(rng.normal(size=(6, 16)))),
                (0, Dense(rng.normal(size=(6, 16)))),
            ),
            rng.normal(size=6),
            "hidden",
        ),
        Relu(10, 6),
        Affine(((11, Dense(rng.normal(size=(3, 6)))),), rng.normal(size=3), "output"),
    )
    return Graph(nodes)


def bounded(
    graph: Graph, width: float, rows: Float
) -> tuple[TensorGraph, Workspace, Multipliers, Float, Float]:
    """Bounds over a box around a point, with multipliers of rows."""
    centre = np.linspace(-0.5, 1.0, graph.inputs)
    lower, upper = centre - width, centre + width
    tensors = TensorGraph(graph, CPU)
    space = Workspace(tensors, Budget())
    box = tensors.tensor(lower)[None], tensors.tensor(upper)[None]
    _, best = crown_bounds(space, *box, torch.tensor(rows)[None], steps=0, row_steps=3)
    return tensors, space, best, lower, upper


@pytest.mark.parametrize("seed", range(8))
def test_the_collapsed_network_is_off_by_delta_at_most(seed: int) -> None:
    graph = network(seed)
    tensors, space, _, lower, upper = bounded(graph, 0.1, np.eye(3))
    spans = sorted({node.source for node in graph.nodes if isinstance(node, Relu)})
    signs = {source: (space.lows[source] < 0) & (space.highs[source] > 0) for source in spans}
    open_ = {source: sign[0].nonzero()[:, 0] for source, sign in signs.items()}
    work = _Collapse(tensors, space, open_)
    for source in spans:
        if len(open_[source]):
            work.affine(source, open_[source])
            work.relu(source, len(open_[source]))
    work.affine(len(graph.nodes) - 1, torch.arange(3))
    small = Graph(tuple(work.nodes))
    assert sum(len(places) for places in open_.values()) < 50
    rng = np.random.default_rng(seed)
    for _ in range(3):
        x = [Fraction(float(value)) for value in rng.uniform(lower, upper)]
        large_values, small_values = exact_trace(graph, x, {}), exact_trace(small, x, {})
        for node, (source, places, delta) in work.origin.items():
            for k, place in enumerate(places.tolist()):
                assert abs(small_values[node][k] - large_values[source][place]) <= Fraction(float(delta[k]))
                assert float(delta[k]) < 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_the_collapsed_network_is_bounded_as_the_large_one_is(seed: int) -> None:
    graph = network(seed)
    rows = np.random.default_rng(seed).normal(size=(2, 3))
    tensors, space, best, lower, upper = bounded(graph, 0.05, rows)
    found = collapsed(tensors, space, best)
    assert found is not None
    small, tight, multipliers = found
    assert not any(isinstance(one.linear, Conv) for each in small.operators.values() for one in each)
    shaped = torch.tensor(rows)[None]
    large, _ = backward(space, len(graph.nodes) - 1, shaped, best, rounded=True)
    value, _ = backward(tight, len(small.graph.nodes) - 1, shaped, multipliers, rounded=True)
    assert torch.allclose(value, large, atol=1e-9)
    points = np.random.default_rng(seed).uniform(lower, upper, size=(200, 16))
    assert np.all(value[0].numpy() <= (graph.evaluate(points) @ rows.T).min(axis=0))


def test_a_network_that_would_grow_is_left_alone() -> None:
    narrow = Graph(
        (
            Input(2),
            Affine(((0, Dense(np.ones((40, 2)))),), np.zeros(40), "a"),
            Relu(1, 40),
            Affine(((2, Dense(np.eye(40))),), np.zeros(40), "b"),
            Relu(3, 40),
            Affine(((4, Dense(np.ones((1, 40)))),), np.zeros(1), "c"),
        )
    )
    tensors, space, best, _, _ = bounded(narrow, 5.0, np.ones((1, 1)))
    assert collapsed(tensors, space, best) is None


def search_of(graph: Graph, width: float, rows: Float, *, dense: bool = False) -> PhaseSearch:
    tensors, space, best, _, _ = bounded(graph, width, rows)
    if dense:
        fewer = collapsed(tensors, space, best)
        assert fewer is not None
        tensors, space, best = fewer
    alternatives = Alternatives.of([(row[None], np.array([0.25])) for row in rows], CPU)
    limits = SearchLimits(gap=0.0, decide=True, memory=1 << 30, expired=lambda: None)
    none = np.full(len(rows), np.inf)
    return PhaseSearch(
        Root.of(tensors, space, best, dense=dense), alternatives, lambda *_: none, none, limits
    )


def nodes_of(search: PhaseSearch, seed: int) -> SearchNodes:
    """Nodes with a sign each fixed, none of an input's, at random multipliers."""
    generator = torch.Generator().manual_seed(seed)
    nodes = search.first()
    inner = (search.unstable >= search.root.layout.spans.get(0, (0, 0))[1]).nonzero()[:, 0]
    for k in range(len(nodes)):
        place = int(inner[torch.randint(len(inner), (1,), generator=generator)])
        nodes.sign[k, place] = 1 if k % 2 else -1
        (nodes.low if k % 2 else nodes.high)[k, place] = 0.0
    nodes.alpha = torch.rand(nodes.alpha.shape, generator=generator)
    nodes.mu = nodes.sign.float().unsqueeze(1) * torch.rand(nodes.alpha.shape, generator=generator)
    return nodes


def full(search: PhaseSearch, nodes: SearchNodes) -> tuple[torch.Tensor, torch.Tensor]:
    return search.filled(nodes.low, search.root.low), search.filled(nodes.high, search.root.high)


def unrounded(search: PhaseSearch, nodes: SearchNodes, alpha: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """Bounds by the general backward pass."""
    space = search.space(*full(search, nodes), nodes)
    rows, last = search.rows[nodes.which], len(search.graph.nodes) - 1
    return backward(space, last, rows, search.multipliers(alpha, mu), rounded=False)[0]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_supergradients_are_those_of_automatic_differentiation(seed: int, dense: bool) -> None:
    search = search_of(network(seed), 0.1, np.random.default_rng(seed).normal(size=(3, 3)), dense=dense)
    nodes = nodes_of(search, seed)
    exact_alpha, exact_mu = nodes.alpha.double().requires_grad_(), nodes.mu.double().requires_grad_()
    value = unrounded(search, nodes, exact_alpha, exact_mu)
    wanted = torch.autograd.grad(value.sum(), (exact_alpha, exact_mu))
    lines = Lines.of(nodes.low, nodes.high, search.inputs(nodes))
    rows = search.rows[nodes.which].float()
    found, arrived, point = search.ascent.backward(rows, lines, nodes.alpha, nodes.mu)
    assert torch.allclose(found, value.float(), atol=1e-4)
    z = search.ascent.forward(lines, nodes.alpha, arrived, point)
    fixed = nodes.sign.abs().unsqueeze(1)
    assert torch.allclose(arrived.clamp(min=0.0) * lines.free * z, wanted[0].float(), atol=1e-3)
    assert torch.allclose(-z * fixed, (wanted[1] * fixed).float(), atol=1e-3)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_functions_of_nodes_lie_below_their_rows(seed: int, dense: bool) -> None:
    graph = network(seed)
    search = search_of(graph, 0.1, np.random.default_rng(seed).normal(size=(3, 3)), dense=dense)
    nodes = nodes_of(search, seed)
    rows = search.rows[nodes.which]
    slope, constant, arrived = search.functions(rows, *full(search, nodes), (nodes.alpha, nodes.mu))
    box = search.root.workspace.lows[0][0], search.root.workspace.highs[0][0]
    least = slope.clamp(min=0.0) @ box[0] + slope.clamp(max=0.0) @ box[1] + constant
    wanted = unrounded(search, nodes, nodes.alpha.double(), nodes.mu.double())
    assert torch.allclose(least, wanted, atol=1e-10)
    assert arrived.shape == nodes.alpha.shape
    seen = 0
    for x in np.random.default_rng(seed).uniform(box[0].numpy(), box[1].numpy(), size=(20, graph.inputs)):
        at = [Fraction(v) for v in x.tolist()]
        trace, small = exact_trace(graph, at, {}), exact_trace(search.graph, at, {})
        joined = [v for source in search.root.layout.spans for v in small[source]]
        for k in range(len(nodes)):
            place = int(nodes.sign[k].nonzero()[0, 0])
            if joined[int(search.unstable[place])] * int(nodes.sign[k, place]) < 0:
                continue
            seen += 1
            below = sum(Fraction(a) * v for a, v in zip(slope[k, 0].tolist(), at, strict=True))
            value = sum(Fraction(c) * v for c, v in zip(rows[k, 0].tolist(), trace[-1], strict=True))
            assert below + Fraction(float(constant[k, 0])) <= value
    assert seen > 10


@pytest.mark.parametrize("dense", [False, True])
def test_a_sign_on_trial_is_that_sign(dense: bool) -> None:
    search = search_of(network(2), 0.1, np.random.default_rng(2).normal(size=(3, 3)), dense=dense)
    nodes = search.first()
    lines = Lines.of(nodes.low, nodes.high, search.inputs(nodes))
    neuron = torch.arange(len(nodes)) % len(search.unstable)
    at = torch.arange(len(nodes))
    for side in (0, 1):
        low, high = nodes.low.clone(), nodes.high.clone()
        (low if side else high)[at, neuron] = 0.0
        wanted, found = Lines.of(low, high, search.inputs(nodes)), lines.with_sign(neuron, side)
        for part in ("free", "active", "steep", "missed"):
            assert torch.equal(getattr(wanted, part), getattr(found, part))
    assert bool((lines.free[at, 0, neuron] == 1).all())


@pytest.mark.parametrize("stops", [False, True])
def test_an_ascent_ends_no_lower_than_it_began(stops: bool) -> None:
    search = search_of(network(3), 0.3, np.random.default_rng(3).normal(size=(6, 3)))
    nodes = search.first()
    nodes.alpha = torch.full_like(nodes.alpha, 0.5)
    lines = Lines.of(nodes.low, nodes.high, search.inputs(nodes))
    rows, limits = search.rows[nodes.which].float(), search.row_limits[nodes.which].float()

    def value(alpha: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        return search.ascent.backward(rows, lines, alpha, mu)[0] - limits

    before = value(nodes.alpha, nodes.mu)
    middle = float(before.median()) + 0.05
    found = search.ascent.run(
        (rows, limits),
        lines,
        nodes.sign.float().unsqueeze(1),
        (nodes.alpha, nodes.mu),
        20,
        (lambda bound: bound > middle) if stops else None,
    )
    after = value(found[0], found[1])
    assert torch.allclose(found[2], after, atol=1e-5)
    assert bool((after >= before - 1e-5).all())
    assert bool((after > before + 1e-3).any())


@pytest.mark.parametrize("boxes", [1, 5])
def test_compiled_passes_give_what_torch_gives(boxes: int) -> None:
    generator = torch.Generator().manual_seed(boxes)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    c, owner = random(40, 17), torch.randint(boxes, (40,), generator=generator)
    low = random(boxes, 17)
    box = low, low + random(boxes, 17).abs()
    plain, fast = Passes(), CompiledPasses()
    for part, other in zip(
        plain.weighed(c, low[0].abs(), low[0]), fast.weighed(c, low[0].abs(), low[0]), strict=True
    ):
        assert part is not None
        assert other is not None
        assert torch.allclose(part, other, rtol=1e-13)
    assert fast.weighed(c, low[0].abs(), None)[1] is None
    assert torch.allclose(plain.least(c, owner, box), fast.least(c, owner, box), rtol=1e-12)
    table = random(boxes, 3 * 17)
    for part, other in zip(
        plain.through_relu(c, owner, table), fast.through_relu(c, owner, table), strict=True
    ):
        assert torch.allclose(part, other, rtol=1e-12)


def test_compiled_bounds_are_those_of_torch() -> None:
    graph = network(5)
    tensors, space, _, _, _ = bounded(graph, 0.2, np.eye(3))
    layout = Layout(graph)
    low, high = layout.joined(space.lows), layout.joined(space.highs)
    box = space.lows[0], space.highs[0]
    plain = FlatCrown(tensors, space, layout).refresh(*box, low - 1.0, high + 1.0)
    fast = FlatCrown(tensors, space, layout, many=True).refresh(*box, low - 1.0, high + 1.0)
    for part, other in zip(plain, fast, strict=True):
        assert torch.allclose(part, other, rtol=1e-11)
