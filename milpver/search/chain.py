"""The native search on dense chains: what most classifiers are behind their first gated layer.

With the input fixed, everything up to the first gated layer is constant, so that a network whose budgets are
on its fully connected layers (and at most one convolutional layer in front of them) becomes a chain of dense
layers over masks. ``search._kernel`` searches such chains in compiled code, one node after the other;
``search.bab`` searches whatever is no chain, in batches of nodes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from milpver.bounds._rounding import gamma
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine, Gate, Graph, Input, Node, Relu
from milpver.linear import Dense, Float, LinearMap
from milpver.query import Budget, BudgetGroup
from milpver.search.bab import Offer
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop

if TYPE_CHECKING:
    from types import ModuleType

    from milpver.search._kernel import Chain, Tree, Work

__all__ = ["ChainSearch", "Chains", "Layers", "chain_of", "prefix_values", "warm_up"]

#: Entries of the dense matrices of a chain at most: 8 bytes each.
_MOST_ENTRIES = 1 << 26
#: Ascent steps at the root, on the bounds of neurons and on the rows.
_NEURON_STEPS, _ROW_STEPS = 8, 20
#: Nodes between two looks at the clock; doubled and halved towards _SLICE seconds.
_QUOTA, _SLICE = 4, 0.05
#: Entries that a compiled loop takes at once: rows of weights are filled up to a multiple of it.
_VECTOR = 32
#: Slots of the tree to begin with.
_SLOTS = 64
#: Share of the last layer's neurons that are unstable at the root, up to which the others are folded away.
_WORTH_FOLDING = 0.8
#: Nodes that ``settle`` bounds at most, about, and entries of weights up to which that is no wait.
_SETTLING, _BRIEF_ENTRIES = 32, 1 << 17


@cache
def kernel() -> ModuleType:
    """The compiled search, which takes its time to load."""
    from milpver.search import _kernel  # noqa: PLC0415  loads the compiler

    return _kernel


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """A network as a chain, whatever the input.

    Attributes:
        start: the Gate node whose source the input fixes.
        inner: the map from that Gate to the first pre-activations.
        weights: W_2 .. W_T, float64 [n_t, n_{t-1}].
        biases: b_1 .. b_T.
        gates: Gate node of layer 0 .. T, None where a layer has no budget.
        out, out_bias: the output layer, float64 [outputs, n_T] and [outputs].
    """

    start: int
    inner: LinearMap
    weights: tuple[Float, ...]
    biases: tuple[Float, ...]
    gates: tuple[int | None, ...]
    out: Float
    out_bias: Float


def chain_of(graph: Graph, budget: Budget) -> Layers | None:
    """Read a network as a chain for point queries; None where it is none.

    It is one where, behind the first Gate with a budget, every node has one source, Affine and Relu take
    turns, a Gate with a budget comes right after a Relu and is private, and an Affine node is the output.
    """
    budgeted = {node for group in budget.groups for node in group.nodes}
    if not budgeted:
        return None
    start = min(budgeted)
    behind = [index for index in range(start + 1, len(graph.nodes)) if _depends(graph, index, start)]
    if not budgeted <= {start, *behind} or not _in_line(graph, [start, *behind]):
        return None
    affines: list[Affine] = []
    gates: list[int | None] = [start]
    kind: type[Node] = Gate
    for index in behind:
        node = graph.nodes[index]
        match node:
            case Affine() if kind is not Affine:
                affines.append(node)
            case Relu() if kind is Affine:
                gates.append(None)
            case Gate() if index not in budgeted and kind is not Affine:
                pass
            case Gate() if kind is Relu and node.private:
                gates[-1] = index
            case _:
                return None
        kind = type(node)
    if kind is not Affine or len(affines) != len(gates) or len(affines) < 2:
        return None
    entries = sum(math.prod(node.terms[0][1].csr.shape) for node in affines[1:])
    if entries + affines[0].size * graph.nodes[start].size > _MOST_ENTRIES:
        return None
    return Layers(
        start=start,
        inner=affines[0].terms[0][1],
        weights=tuple(_dense(node.terms[0][1]) for node in affines[1:-1]),
        biases=tuple(node.bias for node in affines[:-1]),
        gates=tuple(gates),
        out=_dense(affines[-1].terms[0][1]),
        out_bias=affines[-1].bias,
    )


def _in_line(graph: Graph, indices: Sequence[int]) -> bool:
    """Whether each node feeds the next alone and is all that feeds it, up to the output."""
    linked = all(graph.nodes[after].sources == (before,) for before, after in itertools.pairwise(indices))
    alone = all(len(graph.consumers[index]) == 1 for index in indices[:-1])
    return linked and alone and indices[-1] == len(graph.nodes) - 1


def _depends(graph: Graph, index: int, start: int) -> bool:
    """Whether a node comes after ``start``."""
    pending, seen = [index], set()
    while pending:
        here = pending.pop()
        if here == start:
            return True
        if here > start and here not in seen:
            seen.add(here)
            pending.extend(graph.nodes[here].sources)
    return False


def _dense(linear: LinearMap) -> Float:
    """A map as a matrix, float64 [outputs, inputs]."""
    if isinstance(linear, Dense):
        return np.ascontiguousarray(linear.weight)
    return np.ascontiguousarray(linear.csr.toarray())


class Chains:
    """Searches over the masks of fixed inputs, on one chain.

    Args:
        layers: the network as a chain.
        graph, budget: the same, and the admissible masks.
    """

    def __init__(self, layers: Layers, graph: Graph, budget: Budget) -> None:
        self._layers = layers
        self._budget = budget
        self._gates = {node: graph.gate(node) for node in layers.gates if node is not None}
        self._groups = [budget.group_of(node) if node is not None else None for node in layers.gates]
        self._forced = [
            budget.forced(node, self._gates[node].gates) for node in layers.gates if node is not None
        ]
        inner = layers.inner
        #: W_1 and its absolute values, where its gates are single neurons.
        plain = isinstance(inner, Dense) and self._gates[layers.start].private
        self._inner = inner.weight if isinstance(inner, Dense) and plain else None
        self._inner_size: Float = np.zeros((0, 0)) if self._inner is None else np.abs(self._inner)
        #: W_2 .. W_T as the kernel has them, and what interval bounds take of them.
        self._padded = [_padded(w) for w in layers.weights]
        self._signs = [(np.maximum(w, 0.0), np.minimum(w, 0.0)) for w in layers.weights]

    @property
    def start(self) -> int:
        """The Gate node whose source the input fixes."""
        return self._layers.start

    @property
    def brief(self) -> bool:
        """Whether a node is so little work that inputs may be begun with many at a time."""
        first = self._gates[self._layers.start].gates * len(self._layers.biases[0])
        return first + sum(w.size for w in self._layers.weights) <= _BRIEF_ENTRIES

    def search(self, values: tuple[Float, Float], rows: Float) -> ChainSearch:
        """The search of one input.

        Args:
            values: lower and upper bounds of the values in front of the first gate, float64 [entries] each
                (of one input: they differ by rounding).
            rows: rows over the output whose minima are asked for, float64 [rows, outputs].
        """
        layers, groups = self._layers, self._groups
        first, loose = self._effective(values)
        #: The gates of layer 0 that do anything.
        used = np.flatnonzero((first != 0).any(axis=0))
        first = first[:, used]
        sizes = np.array([len(used), *(len(b) for b in layers.biases)])
        neurons = int(sizes[1:].sum())
        slack = gamma(8 * (neurons + int(sizes[0]) + len(rows)) + 1024)
        low, high, magnitudes = [], [], []
        least, most = np.zeros(0), np.zeros(0)
        for t, b in enumerate(layers.biases, start=1):
            if t == 1:
                up, down = np.maximum(first, 0.0).sum(axis=1), np.minimum(first, 0.0).sum(axis=1)
                # Errors of the matrix itself are counted with the magnitudes, which Gamma multiplies.
                size = up - down + np.abs(b) + loose / slack
            else:
                positive, negative = self._signs[t - 2]
                up, down = positive @ most + negative @ least, positive @ least + negative @ most
                size = positive @ most - negative @ most + np.abs(b)
            size *= 1 + slack
            low.append(down + b - slack * size)
            high.append(up + b + slack * size)
            magnitudes.append(size)
            most = np.maximum(high[-1], 0.0)
            least = np.zeros(len(b)) if groups[t] is not None else np.maximum(low[-1], 0.0)
        spread = np.abs(rows) @ (np.abs(layers.out) @ most + np.abs(layers.out_bias))
        gated = [group is not None for group in groups]
        starts = np.cumsum([0] + [int(size) if has else 0 for size, has in zip(sizes, gated, strict=True)])
        places = {group: g for g, group in enumerate(self._budget.groups)}
        padded = [_padded(first), *self._padded]
        order = np.argsort(-first, axis=1).astype(np.int32)
        chain = kernel().Chain(
            sizes=sizes,
            strides=np.array([0, *(w.shape[1] for w in padded)]),
            first=np.concatenate([[0, 0], np.cumsum(sizes[1:-1])]).astype(np.int64),
            gates=np.where(gated, starts[:-1], -1),
            group=np.array([places[group] if group is not None else -1 for group in groups]),
            alone=groups.count(groups[0]) == 1,
            weights=np.concatenate([w.ravel() for w in padded]),
            offsets=np.concatenate([[0, 0], np.cumsum([w.size for w in padded[:-1]])]).astype(np.int64),
            bias=np.concatenate(layers.biases),
            size=np.concatenate(magnitudes),
            down=order,
            up=np.ascontiguousarray(order[:, ::-1]),
            rows=np.ascontiguousarray(rows @ layers.out),
            constant=rows @ layers.out_bias,
            slack=slack * spread + 1e-300,
            direct=np.zeros((len(rows), 0)),
            gamma=slack,
            removable=np.array([group.removable for group in self._budget.groups]),
            scale=np.zeros(len(self._budget.groups)),
            reach=np.zeros(1),
        )
        return ChainSearch(self, chain, used, self._planted(chain, used, low, high))

    def _effective(self, values: tuple[Float, Float]) -> tuple[Float, Float]:
        """``E_jg = sum_{r in g} W_jr v_r``, float64 [n_1, gates], and a bound of each row's error, [n_1].

        An entry is off by at most ``sum_r |W_jr| (rad_r + gamma |v_r|)``, v within rad of the middle.
        """
        gate = self._gates[self._layers.start]
        middle = 0.5 * (values[0] + values[1])
        radius = np.maximum(values[1] - middle, middle - values[0])
        off = radius + gamma(gate.size + 8) * np.abs(middle)
        if self._inner is not None:
            return self._inner * middle, self._inner_size @ off * (1 + 1e-9)
        owner = sparse.csr_array((middle, (np.arange(gate.size), gate.owner)), shape=(gate.size, gate.gates))
        matrix = self._layers.inner.csr
        loose = np.asarray(abs(matrix) @ off)
        return np.ascontiguousarray((matrix @ owner).toarray()), loose * (1 + 1e-9)

    def _planted(
        self, chain: Chain, used: NDArray[np.intp], low: Sequence[Float], high: Sequence[Float]
    ) -> Tree:
        """A tree with the root in slot 0, not bounded yet."""
        rows, neurons, groups = len(chain.constant), len(chain.bias), len(chain.removable)
        gates = int(chain.sizes[chain.gates >= 0].sum())
        tree: Tree = kernel().Tree(
            state=np.zeros((_SLOTS, gates), dtype=np.int8),
            left=np.zeros((_SLOTS, groups), dtype=np.int64),
            low=np.zeros((_SLOTS, neurons)),
            high=np.zeros((_SLOTS, neurons)),
            alpha=np.zeros((_SLOTS, rows, neurons), dtype=np.float32),
            lam=np.zeros((_SLOTS, rows, groups)),
            lower=np.full((_SLOTS, rows), -np.inf),
            branch=np.full(_SLOTS, -1),
            heap=np.zeros(_SLOTS, dtype=np.int64),
            spare=np.arange(_SLOTS)[::-1].copy(),
            counts=np.array([0, _SLOTS - 1, 0, -1]),
            root=np.full(rows, -np.inf),
            closed=np.full(rows, np.inf),
            upper=np.full(rows, np.inf),
            masks=np.zeros((rows, gates), dtype=np.bool_),
        )
        tree.left[0] = [self._budget.left(group) for group in self._budget.groups]
        (first_kept, first_gone), *others = self._forced
        kept = np.concatenate([first_kept[used], *(each[0] for each in others)])
        gone = np.concatenate([first_gone[used], *(each[1] for each in others)])
        tree.state[0] = np.where(gone, 2, np.where(kept, 1, 0))
        tree.low[0] = np.concatenate(low)
        tree.high[0] = np.concatenate(high)
        return tree

    def masks(self, used: NDArray[np.intp], found: NDArray[np.bool_]) -> dict[int, NDArray[np.bool_]]:
        """Masks over the kernel's gates, bool [n, G], as Gate node -> bool [n, gates].

        ``used``: the gates of layer 0 that the kernel has.
        """
        masks: dict[int, NDArray[np.bool_]] = {}
        at, forced = 0, iter(self._forced)
        for t, node in enumerate(self._layers.gates):
            if node is None:
                continue
            gone = next(forced)[1]
            width = len(used) if t == 0 else len(gone)
            part = found[:, at : at + width]
            if t == 0:
                masks[node] = np.tile(gone, (len(found), 1))
                masks[node][:, used] = part
            else:
                masks[node] = part
            at += width
        return masks


class ChainSearch:
    """Branch and bound over the masks of one fixed input, on a chain; ``Chains.search`` makes one.

    Attributes:
        finished: why ``settle`` ended the search; None where there is more to do.
        seconds: that ``settle`` took.
    """

    def __init__(self, chains: Chains, chain: Chain, used: NDArray[np.intp], tree: Tree) -> None:
        self._chains = chains
        self._chain = chain
        self._used = used
        self._tree = tree
        self._work: Work = kernel().scratch(chain)
        self._why: int | None = None
        self._seen: Float = np.full(len(chain.constant), np.inf)
        self.finished: Stop | None = None
        self.seconds = 0.0

    def settle(self, gap: float, decide: bool, quota: int = _SETTLING) -> None:
        """Attack the root, bound it, and bound at most about ``quota`` nodes; nothing is replayed."""
        begun = time.perf_counter()
        self._why = kernel().settle(
            self._chain, self._work, self._tree, gap, decide, _NEURON_STEPS, _ROW_STEPS, quota
        )
        self._finish()
        self.seconds = time.perf_counter() - begun

    def _finish(self) -> None:
        if self._why in (kernel().DECIDED, kernel().FINISHED):
            self.finished = Stop.TARGET if self._why == kernel().DECIDED else Stop.OPTIMAL

    def _fold(self) -> None:
        """Take what is stable at the root out of the last layer, after ``settle`` with quota 0.

        Inactive neurons are 0; of active ones rows read ``C_j (W_j p + b_j)``, which is a row over p, the
        layer before. What their products round is charged to the rows at once.
        """
        chain, tree = self._chain, self._tree
        last = len(chain.sizes) - 1
        first, width, stride = (int(each[last]) for each in (chain.first, chain.sizes, chain.strides))
        low, high = tree.low[0, first:], tree.high[0, first:]
        active, kept = low >= 0, (low < 0) & (high > 0)
        if chain.gates[last] >= 0 or tree.counts[2] != 1 or kept.mean() > _WORTH_FOLDING:
            return
        offset = int(chain.offsets[last])
        weights = chain.weights[offset : offset + width * stride].reshape(width, stride)
        coefficients, size = chain.rows[:, active], chain.size[first:][active]
        stays = np.concatenate([np.ones(first, dtype=np.bool_), kept])
        self._chain = chain._replace(
            sizes=np.append(chain.sizes[:-1], np.count_nonzero(kept)),
            weights=np.concatenate([chain.weights[:offset], weights[kept].ravel()]),
            bias=chain.bias[stays],
            size=chain.size[stays],
            down=chain.down[kept] if last == 1 else chain.down,
            up=chain.up[kept] if last == 1 else chain.up,
            rows=np.ascontiguousarray(chain.rows[:, kept]),
            constant=chain.constant + coefficients @ chain.bias[first:][active],
            slack=chain.slack + 2 * chain.gamma * (np.abs(coefficients) @ size),
            direct=np.ascontiguousarray((coefficients @ weights[active])[:, : chain.sizes[last - 1]]),
        )
        self._tree = tree._replace(
            low=np.ascontiguousarray(tree.low[:, stays]),
            high=np.ascontiguousarray(tree.high[:, stays]),
            alpha=np.ascontiguousarray(tree.alpha[:, :, stays]),
        )
        self._work = kernel().scratch(self._chain)

    def candidates(self, nearest: bool) -> dict[int, NDArray[np.bool_]]:
        """The mask of each row's smallest margin met so far, Gate node -> bool [rows, gates].

        ``nearest``: that of the smallest of all margins alone.
        """
        tree = self._tree
        found = tree.masks[tree.upper.argmin()][None] if nearest else tree.masks
        return self._chains.masks(self._used, found)

    def result(self, stop: Stop) -> SearchResult:
        """What is proven so far."""
        tree = self._tree
        open_ = list(tree.heap[: tree.counts[0]])
        if tree.counts[3] >= 0:
            open_.append(tree.counts[3])
        lower = np.minimum(tree.closed, tree.lower[open_].min(axis=0, initial=np.inf))
        # Where nothing was bounded, nothing is proven.
        lower = np.maximum(lower, tree.root) if tree.counts[2] else tree.root.copy()
        return SearchResult(lower, tree.root.copy(), int(tree.counts[2]), stop)

    def run(self, limits: SearchLimits, offer: Offer) -> SearchResult:
        """Search until every row is closed, the sign is proven, or the limits say stop.

        Args:
            limits: when to stop.
            offer: replays candidate masks.
        """
        if self._why is None:
            self.settle(limits.gap, limits.decide, 0)
        if self.finished is None and not self._chains.brief:
            self._fold()
        chain, tree = self._chain, self._tree
        size = sum(part[0].nbytes for part in (*tree[:8], tree.heap, tree.spare))
        self._replay(limits.decide, offer)
        quota = _QUOTA
        while self.finished is None:
            expired = limits.expired()
            if expired is not None and tree.counts[0] > 0:
                return self.result(expired)
            if self._why == kernel().FULL:
                self._tree = tree = _grown(tree)
            begun = time.perf_counter()
            deep = len(tree.heap) * size > limits.memory
            self._why = kernel().search(chain, self._work, tree, limits.gap, limits.decide, deep, quota)
            self._finish()
            self._replay(limits.decide, offer)
            if self._why == kernel().PAUSED and time.perf_counter() - begun < _SLICE / 2:
                quota *= 2
            elif self._why == kernel().PAUSED and time.perf_counter() - begun > _SLICE * 2:
                quota = max(1, quota // 2)
        return self.result(self.finished)

    def _replay(self, decide: bool, offer: Offer) -> None:
        """Have the masks replayed that lowered a row's smallest margin since the last time.

        Where only the sign matters, that is the mask of the smallest margin alone.
        """
        tree = self._tree
        better = np.flatnonzero(tree.upper < self._seen)
        if not len(better) or (decide and tree.upper.min() >= self._seen.min()):
            return
        if decide:
            better = np.array([tree.upper.argmin()])
        self._seen = tree.upper.copy()
        offer(self._chains.masks(self._used, np.unique(tree.masks[better], axis=0)))


def _padded(weight: Float) -> Float:
    """A matrix with its rows filled up with zeros."""
    filled = np.zeros((len(weight), weight.shape[1] + -weight.shape[1] % _VECTOR))
    filled[:, : weight.shape[1]] = weight
    return filled


@cache
def warm_up() -> None:
    """Load the compiled search, and compile it where that has not been done on this machine yet."""
    ones = np.ones((2, 2))
    layers = Layers(1, Dense(ones), (), (np.zeros(2),), (1, None), ones, np.zeros(2))
    gate = Gate(0, np.arange(2), 2)
    graph = Graph((Input(2), gate))
    budget = Budget((BudgetGroup((1,), 1),), (1,))
    rows = np.array([[1.0, -0.5]])
    search = Chains(layers, graph, budget).search((np.ones(2), np.ones(2)), rows)
    limits = SearchLimits(gap=0.0, decide=False, memory=1 << 20, expired=lambda: None)
    search.run(limits, lambda _: np.zeros(1))


def prefix_values(tensors: TensorGraph, budget: Budget, start: int, x: Float) -> tuple[Float, Float]:
    """Bounds of the values in front of a Gate that the inputs fix, float64 [batch, entries] each.

    Args:
        tensors: the graph.
        budget: the admissible masks; ``start`` is its first Gate node.
        start: the Gate.
        x: float64 [batch, inputs].
    """
    workspace = Workspace(tensors, budget, point=True)
    points = tensors.tensor(x)
    with torch.no_grad():
        for _ in range(start):
            workspace.add(points, points)
    (source,) = tensors.graph.nodes[start].sources
    return workspace.lows[source].cpu().numpy(), workspace.highs[source].cpu().numpy()


def _grown(tree: Tree) -> Tree:
    """The tree with twice the slots."""
    slots = len(tree.heap)
    parts = [np.concatenate([part, np.zeros_like(part)]) for part in (*tree[:8], tree.heap, tree.spare)]
    counts = tree.counts.copy()
    spare = parts[9]
    spare[counts[1] : counts[1] + slots] = np.arange(2 * slots - 1, slots - 1, -1)
    counts[1] += slots
    return tree._replace(
        **dict(zip(tree._fields[:8], parts[:8], strict=True)), heap=parts[8], spare=spare, counts=counts
    )
