"""Attacks on pruning masks: admissible removals that lower the margins of many images, batched in torch.

``random``: masks drawn uniformly, the same for all images, as the neuron-pruning paper's table has them.
``l2``: the neurons with the largest weight rows go, the same for all images. ``pgd``: importance scores,
turned into masks by a straight-through top-k, 400 steps; one mask an image, or one shared by all. ``greedy``:
one removal after the other, the worst first. ``swap``: greedy, then exchanges.

An attack proves nothing, but what it finds is a fact: the mask is admissible, counted in integers, and the
margin is that of the float64 oracle, so that it is an upper bound of the exact worst margin. An attack
returns the best of the masks it tried, keeping everything among them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from milpver.errors import QueryError
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.linear import Dense, Float
from milpver.query import Budget

if TYPE_CHECKING:
    import torch

    from milpver.bounds._tensors import TensorGraph

__all__ = ["METHODS", "Found", "MaskAttack", "row_norms"]

METHODS = ("random", "l2", "pgd", "greedy", "swap")

#: Gate node -> bool [n, gates], True for removed.
Removed = dict[int, NDArray[np.bool_]]

#: Masked runs in one batch.
_CHUNK = 8192
#: Removals that greedy search tries at a time, those that promise most to first order; and pairs of ``swap``.
_CANDIDATES, _PAIRED = 16, 6
#: Competing classes that greedy search is run for, each by itself, the closest first.
_TARGETS = 3
#: Exchanges a search may make.
_ROUNDS = 20
#: First step of ``pgd`` on scores in [0, 1], where the largest slope counts 1; and its momentum.
_STEP, _MOMENTUM = 0.2, 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What an attack found.

    Attributes:
        method: its name.
        margins: the smallest ``f_label - f_j`` found for each image, float64 [n].
        removed: the masks that have them, Gate node -> bool [n, gates].
        accuracies: shares of the images classified correctly under each mask that was meant for all of them,
            float64 [masks]; empty where every image has its own.
        hits: bool [masks, n], which images each of these masks leaves correct (margin > 0).
    """

    method: str
    margins: Float
    removed: Removed
    accuracies: Float
    hits: NDArray[np.bool_]


class MaskAttack:
    """Attacks on one batch of images.

    Args:
        tensors: the graph on its device.
        inputs: float64 [n, inputs].
        labels: int64 [n]; of the images that are classified otherwise the margin is <= 0 from the start.
        budget: the admissible masks.

    Raises:
        QueryError: the budget allows no removal, or forces some.
    """

    def __init__(
        self, tensors: TensorGraph, inputs: Float, labels: NDArray[np.int64], budget: Budget
    ) -> None:
        if not budget.groups:
            raise QueryError(
                "a budget of 0", needed="a budget that allows a removal", fix="pass e.g. --budget 10%,0,0"
            )
        if budget.kept or budget.gone:
            raise QueryError(
                "an attack with neurons that have to stay or go",
                needed="a budget alone",
                fix="leave out what is forced, or ask `milpver margin`",
            )
        self.graph = tensors.graph
        self.budget = budget
        self.inputs = inputs
        self.labels = labels
        self.nodes = tuple(node for group in budget.groups for node in group.nodes)
        self._network = _Behind(tensors, inputs, labels, self.nodes)

    def clean(self) -> Found:
        """Nothing removed."""
        return self._checked("clean", self._none(), shared=False)

    def l2(self) -> Found:
        """The neurons with the largest L2 norm of their weight row go, as many as may."""
        removed: Removed = {}
        for group in self.budget.groups:
            sizes = np.concatenate([row_norms(self.graph, node, 2) for node in group.nodes])
            removed |= self._split(group.nodes, _largest(sizes[None], group.removable))
        return self._checked("l2", removed, shared=True)

    def random(self, samples: int = 1000, seed: int = 0) -> Found:
        """Masks drawn uniformly among those that remove as many as may, each for all images."""
        rng = np.random.default_rng(seed)
        drawn: Removed = {}
        for group in self.budget.groups:
            gates = sum(self._gates(node) for node in group.nodes)
            drawn |= self._split(group.nodes, _largest(rng.random((samples, gates)), group.removable))
        return self._checked("random", drawn, shared=True)

    def pgd(self, steps: int = 400, seed: int = 0, *, shared: bool = False) -> Found:
        """Gradient ascent on importance scores; the s highest of a group go (straight-through top-k).

        Args:
            steps: of the ascent.
            seed: of the first scores.
            shared: one mask for all images, that lowers their mean cross-entropy's opposite, in place of one
                an image, that lowers its smallest margin.
        """
        import torch  # noqa: PLC0415  only where torch is loaded already

        network = self._network
        generator = torch.Generator().manual_seed(seed)
        rows = 1 if shared else len(self.labels)
        slopes = network.slopes(self._kept(rows), shared=shared)
        scores = {node: 0.5 + 0.3 * _unit(slope) for node, slope in slopes.items()}
        for node, score in scores.items():
            scores[node] = score + 0.05 * torch.rand(score.shape, generator=generator).to(score)
        speed = {node: torch.zeros_like(score) for node, score in scores.items()}
        best = self._none() if not shared else {node: gone[:1] for node, gone in self._none().items()}
        value = self._value(best, shared=shared)
        tried: list[Removed] = []
        for step in range(steps):
            removed = self._chosen(scores)
            found = self._value(removed, shared=shared)
            better = found < value
            value = np.where(better, found, value)
            best = {node: np.where(better[:, None], removed[node], gone) for node, gone in best.items()}
            if shared and bool(better.any()):
                tried.append(removed)
            slopes = network.slopes(
                {node: network.tensor((~gone).astype(np.float64)) for node, gone in removed.items()},
                shared=shared,
            )
            length = _STEP * (1.0 - step / steps)
            for node, slope in slopes.items():
                speed[node] = _MOMENTUM * speed[node] + (1 - _MOMENTUM) * _unit(slope)
                scores[node] = (scores[node] + length * _unit(speed[node])).clamp(0.0, 1.0)
        if not shared:
            return self._checked("pgd", best, shared=False)
        masks = {node: np.concatenate([each[node] for each in tried] or [best[node]]) for node in self.nodes}
        return self._checked("pgd", masks, shared=True)

    def greedy(self) -> Found:
        """One removal after the other, each the worst of the candidates, while that lowers the margin."""
        return self._checked("greedy", self._best(*self._greedily()), shared=False)

    def swap(self) -> Found:
        """Greedy, then exchanges of a removed neuron for a kept one while that lowers the margin."""
        rows, removed, value = self._greedily()
        active = np.arange(len(value))
        for _ in range(_ROUNDS):
            if len(active) == 0:
                break
            active = active[self._exchange(rows, removed, value, active)]
        return self._checked("swap", self._best(rows, removed, value), shared=False)

    # ------------------------------------------------------------------------------------------ searches

    def _greedily(self) -> tuple[_Rows, Removed, Float]:
        """Greedy searches: what each is about, its mask, and the margin to its target, float64 [rows]."""
        rows = self._network.closest(_TARGETS)
        removed = {
            node: np.zeros((len(rows.images), self._gates(node)), dtype=np.bool_) for node in self.nodes
        }
        value = self._values(self._joined(removed), rows)
        active = np.arange(len(value))
        most = sum(group.removable for group in self.budget.groups)
        for _ in range(most):
            if len(active) == 0:
                break
            now = {node: gone[active] for node, gone in removed.items()}
            gain = self._promising(now, rows.pick(active))
            gates = gain.shape[1]
            count = min(_CANDIDATES, gates)
            order = np.argsort(-gain, axis=1)[:, :count]
            trial = np.repeat(self._joined(now)[:, None], count, axis=1)
            np.put_along_axis(trial, order[:, :, None], True, axis=2)
            allowed = np.isfinite(np.take_along_axis(gain, order, axis=1))
            tried = rows.pick(np.repeat(active, count))
            found = self._values(trial.reshape(-1, gates), tried).reshape(-1, count)
            better = self._take(trial, np.where(allowed, found, np.inf), removed, value, active)
            active = active[better]
        return rows, removed, value

    def _promising(self, removed: Removed, rows: _Rows) -> Float:
        """First-order gain of each removal, float64 [rows, gates]; -inf where it is not allowed."""
        slopes = self._slopes(removed, rows)
        parts = []
        for group in self.budget.groups:
            gone = np.concatenate([removed[node] for node in group.nodes], axis=1)
            full = gone.sum(axis=1) >= group.removable
            gain = np.concatenate([slopes[node] for node in group.nodes], axis=1)
            parts.append(np.where(gone | full[:, None], -np.inf, gain))
        return np.concatenate(parts, axis=1)

    def _exchange(
        self, rows: _Rows, removed: Removed, value: Float, active: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """The best exchange of each search, made in place where it lowers the margin; whether it did."""
        now = {node: gone[active] for node, gone in removed.items()}
        slopes = self._slopes(now, rows.pick(active))
        joined, lines = self._joined(now), np.arange(len(active))
        trials: list[NDArray[np.bool_]] = []
        allowed: list[NDArray[np.bool_]] = []
        start = 0
        for group in self.budget.groups:
            slope = np.concatenate([slopes[node] for node in group.nodes], axis=1)
            width = slope.shape[1]
            gone = joined[:, start : start + width]
            back = np.argsort(np.where(gone, slope, np.inf), axis=1)[:, : min(_PAIRED, width)]
            away = np.argsort(np.where(gone, np.inf, -slope), axis=1)[:, : min(_PAIRED, width)]
            for i, j in itertools.product(range(back.shape[1]), range(away.shape[1])):
                trial = joined.copy()
                trial[lines, start + back[:, i]] = False
                trial[lines, start + away[:, j]] = True
                trials.append(trial)
                allowed.append(gone[lines, back[:, i]] & ~gone[lines, away[:, j]])
            start += width
        stacked = np.stack(trials, axis=1)
        count = stacked.shape[1]
        tried = rows.pick(np.repeat(active, count))
        found = self._values(stacked.reshape(-1, start), tried).reshape(-1, count)
        found = np.where(np.stack(allowed, axis=1), found, np.inf)
        return self._take(stacked, found, removed, value, active)

    def _take(
        self,
        trials: NDArray[np.bool_],
        found: Float,
        removed: Removed,
        value: Float,
        active: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Make the best trial of each search, in place, where it lowers the margin; whether it did.

        Args:
            trials: masks, bool [active, trials, gates of all].
            found: margins, float64 [active, trials].
            removed, value: masks and margins of all searches.
            active: the searches that tried.
        """
        lines, pick = np.arange(len(active)), found.argmin(axis=1)
        lower: NDArray[np.bool_] = found[lines, pick] < value[active]
        for node, gone in self._apart(trials[lines, pick][lower]).items():
            removed[node][active[lower]] = gone
        value[active[lower]] = found[lines, pick][lower]
        return lower

    def _best(self, rows: _Rows, removed: Removed, value: Float) -> Removed:
        """The mask of each image's best search."""
        order = np.lexsort((value, rows.images))
        first = order[np.unique(rows.images[order], return_index=True)[1]]
        return {node: gone[first] for node, gone in removed.items()}

    def _slopes(self, removed: Removed, rows: _Rows) -> dict[int, Float]:
        kept = {node: self._network.tensor((~gone).astype(np.float64)) for node, gone in removed.items()}
        return {node: slope.cpu().numpy() for node, slope in self._network.slopes(kept, rows=rows).items()}

    # -------------------------------------------------------------------------------------------- masks

    def _gates(self, node: int) -> int:
        return self.graph.gate(node).gates

    def _none(self) -> Removed:
        """Nothing removed, a row an image."""
        return {node: np.zeros((len(self.labels), self._gates(node)), dtype=np.bool_) for node in self.nodes}

    def _kept(self, rows: int) -> dict[int, torch.Tensor]:
        """All ones."""
        return {node: self._network.tensor(np.ones((rows, self._gates(node)))) for node in self.nodes}

    def _split(self, nodes: Sequence[int], joined: NDArray[np.bool_]) -> Removed:
        """Masks of several nodes that stand side by side, [rows, gates of all]."""
        ends = np.cumsum([self._gates(node) for node in nodes])[:-1]
        return dict(zip(nodes, np.split(joined, ends, axis=1), strict=True))

    def _joined(self, removed: Removed) -> NDArray[np.bool_]:
        return np.concatenate([removed[node] for node in self.nodes], axis=1)

    def _apart(self, joined: NDArray[np.bool_]) -> Removed:
        return self._split(self.nodes, joined)

    def _chosen(self, scores: Mapping[int, torch.Tensor]) -> Removed:
        """The highest scores of each group go."""
        removed: Removed = {}
        for group in self.budget.groups:
            joined = np.concatenate([scores[node].cpu().numpy() for node in group.nodes], axis=1)
            removed |= self._split(group.nodes, _largest(joined, group.removable))
        return removed

    def _values(self, joined: NDArray[np.bool_], rows: _Rows) -> Float:
        """Margins of masks [rows, gates of all], float64 [rows]."""
        found = [
            self._network.margins(
                self._apart(joined[start : start + _CHUNK]), rows.pick(slice(start, start + _CHUNK))
            )
            for start in range(0, len(joined), _CHUNK)
        ]
        return np.concatenate(found) if found else np.zeros(0)

    def _value(self, removed: Removed, *, shared: bool) -> Float:
        """What an attack lowers: each image's margin; or, for one mask, the share of images left correct."""
        if not shared:
            return self._values(self._joined(removed), _Rows(np.arange(len(self.labels)), None))
        margins = self._network.margins(removed, None)
        # among masks with the same accuracy the one with the lower margins
        squashed = np.tanh(margins / max(float(np.abs(margins).max()), 1e-30)).mean()
        return np.array([(margins > 0).mean() + 1e-6 * squashed])

    def _checked(self, method: str, removed: Removed, *, shared: bool) -> Found:
        """Run masks in the float64 oracle; for each image keep the best of them and of no removal."""
        count = len(next(iter(removed.values())))
        for row in range(count):
            if not self.budget.admits(self.graph, {node: gone[row] for node, gone in removed.items()}):
                raise AssertionError(f"{method} chose a mask that the budget forbids")
        best, least = self._none(), _margins(self.graph.evaluate(self.inputs), self.labels)
        hits: list[NDArray[np.bool_]] = []
        for row in range(count if shared else 1):
            mask = {node: gone[row] if shared else gone for node, gone in removed.items()}
            if shared and count > 1:  # the oracle runs for those that matter
                found = self._network.margins({node: gone[None] for node, gone in mask.items()}, None)
            else:
                found = _margins(self.graph.evaluate(self.inputs, mask), self.labels)
            hits.append(found > 0)
            lower = found < least
            least = np.where(lower, found, least)
            for node, gone in mask.items():
                best[node][lower] = gone[lower] if not shared else gone
        exact = _margins(self.graph.evaluate(self.inputs, best), self.labels)
        table = np.stack(hits) if shared else np.zeros((0, len(self.labels)), dtype=np.bool_)
        return Found(method, exact, best, table.mean(axis=1) if shared else np.zeros(0), table)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What each row of a batch is about.

    Attributes:
        images: int64 [rows].
        targets: the competing class, int64 [rows]; None: the one with the smallest margin.
    """

    images: NDArray[np.int64]
    targets: NDArray[np.int64] | None

    def pick(self, places: NDArray[np.int64] | slice) -> _Rows:
        """Some of the rows."""
        return _Rows(self.images[places], None if self.targets is None else self.targets[places])


class _Behind:
    """The part of a network that pruning changes, in torch; the rest is computed once.

    Args:
        tensors: the graph on its device.
        inputs: float64 [n, inputs].
        labels: int64 [n].
        gates: Gate nodes that masks are for.
    """

    def __init__(
        self, tensors: TensorGraph, inputs: Float, labels: NDArray[np.int64], gates: Sequence[int]
    ) -> None:
        import torch  # noqa: PLC0415  only where torch is loaded already

        self._tensors = tensors
        graph = tensors.graph
        moved = set(gates)
        for index, node in enumerate(graph.nodes):
            if moved.intersection(node.sources):
                moved.add(index)
        self._moved = moved
        needed = {source for index in moved for source in graph.nodes[index].sources} - moved
        if len(graph.nodes) - 1 not in moved:
            needed.add(len(graph.nodes) - 1)
        values = graph.trace(inputs)
        self._fixed = {index: tensors.tensor(np.ascontiguousarray(values[index])) for index in needed}
        self._labels = torch.as_tensor(labels, device=tensors.device)
        self._count = len(labels)

    def tensor(self, values: Float) -> torch.Tensor:
        """An array on the device."""
        return self._tensors.tensor(values)

    def closest(self, count: int) -> _Rows:
        """For each image the competing classes with the smallest margins, a row each."""
        import torch  # noqa: PLC0415  only where torch is loaded already

        with torch.no_grad():
            outputs, labels = self.outputs({}, None)
            others = outputs.scatter(1, labels[:, None], -float("inf"))
            found = others.topk(min(count, outputs.shape[1] - 1), dim=1).indices.cpu().numpy()
        return _Rows(np.repeat(np.arange(len(found)), found.shape[1]), found.reshape(-1))

    def outputs(
        self, kept: Mapping[int, torch.Tensor], rows: _Rows | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs [rows, outputs] and labels [rows] under masks, one a row or one for all.

        Args:
            kept: Gate node -> m, float64 [rows or 1, gates].
            rows: what each row is about; None: all images, in order.
        """
        import torch  # noqa: PLC0415  only where torch is loaded already

        graph, tensors = self._tensors.graph, self._tensors
        pick = None if rows is None else torch.as_tensor(rows.images, device=tensors.device)
        values = {index: v if pick is None else v[pick] for index, v in self._fixed.items()}
        for index in sorted(self._moved):
            node = graph.nodes[index]
            match node:
                case Input():
                    raise ValueError("an input is no gate")
                case Affine():
                    first = values[node.sources[0]]
                    total = tensors.biases[index].expand(len(first), -1)
                    for (source, _), operator in zip(node.terms, tensors.operators[index], strict=True):
                        total = total + operator.forward(values[source])
                    values[index] = total
                case Relu():
                    values[index] = values[node.source].clamp(min=0.0)
                case Max():
                    places = torch.as_tensor(node.groups, device=tensors.device)
                    values[index] = values[node.source][:, places].amax(dim=2)
                case Gate():
                    value = values[node.source]
                    if index in kept:
                        mask = kept[index]
                        owner = torch.as_tensor(node.owner, device=tensors.device)
                        value = value * (mask if node.private else mask[:, owner])
                    values[index] = value
        labels = self._labels if pick is None else self._labels[pick]
        return values[len(graph.nodes) - 1], labels

    def _margins(self, outputs: torch.Tensor, labels: torch.Tensor, rows: _Rows | None) -> torch.Tensor:
        """Margins to the rows' targets, or the smallest."""
        import torch  # noqa: PLC0415  only where torch is loaded already

        own = outputs.gather(1, labels[:, None])[:, 0]
        if rows is not None and rows.targets is not None:
            targets = torch.as_tensor(rows.targets, device=outputs.device)
            return own - outputs.gather(1, targets[:, None])[:, 0]
        return own - outputs.scatter(1, labels[:, None], -float("inf")).amax(dim=1)

    def margins(self, removed: Removed, rows: _Rows | None) -> Float:
        """Margins, float64 [rows]; see ``outputs``."""
        import torch  # noqa: PLC0415  only where torch is loaded already

        with torch.no_grad():
            kept = {node: self.tensor((~gone).astype(np.float64)) for node, gone in removed.items()}
            result: Float = self._margins(*self.outputs(kept, rows), rows).cpu().numpy()
        return result

    def slopes(
        self, kept: Mapping[int, torch.Tensor], *, shared: bool = False, rows: _Rows | None = None
    ) -> dict[int, torch.Tensor]:
        """How much removing a gate lowers the margin to first order (or raises the mean cross-entropy).

        Returns:
            Gate node -> float64 [rows or 1, gates].
        """
        import torch  # noqa: PLC0415  only where torch is loaded already

        leaves = {node: mask.clone().requires_grad_() for node, mask in kept.items()}
        outputs, labels = self.outputs(leaves, rows)
        if shared:
            total = -torch.nn.functional.cross_entropy(outputs, labels)
        else:
            total = self._margins(outputs, labels, rows).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return {
            node: torch.zeros_like(leaf) if slope is None else slope
            for (node, leaf), slope in zip(leaves.items(), found, strict=True)
        }


def row_norms(graph: Graph, gate: int, order: int) -> Float:
    """The L1 or L2 norm of the weights that make each neuron of a gated layer, biases left out.

    Args:
        graph: the network.
        gate: its Gate node.
        order: 1 or 2.

    Returns:
        float64 [gates]; over all entries of a gate that has several.
    """
    node = graph.nodes[gate]
    entries = graph.gate(gate)
    while not isinstance(node, Affine):
        if isinstance(node, Input):
            raise QueryError(
                f"gate {gate} stands behind no layer",
                needed="a layer with weights in front of it",
                fix="choose another layer",
            )
        node = graph.nodes[node.sources[0]]
    total = np.zeros(node.size)
    for _, linear in node.terms:
        matrix = linear.weight if isinstance(linear, Dense) else linear.csr
        total = total + np.asarray((abs(matrix) ** order).sum(axis=1)).reshape(-1)
    if len(total) != entries.size:
        raise QueryError(
            f"gate {gate} has {entries.size} entries, the layer in front of it {len(total)}",
            needed="a gate on a layer's own activations",
            fix="choose another layer",
        )
    summed: Float = np.zeros(entries.gates)
    np.add.at(summed, entries.owner, total)
    return summed if order == 1 else np.sqrt(summed)


def _largest(values: Float, count: int) -> NDArray[np.bool_]:
    """True at the ``count`` largest of each row (the first of equal ones)."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(values.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def _margins(outputs: Float, labels: NDArray[np.int64]) -> Float:
    """Smallest ``f_label - f_j``, float64 [n]."""
    others = outputs.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    found: Float = outputs[np.arange(len(labels)), labels] - others.max(axis=1)
    return found


def _unit(values: torch.Tensor) -> torch.Tensor:
    """Rows scaled to a largest magnitude of 1."""
    return values / values.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
