"""Branch and bound over pruning masks for a fixed input: the native search.

With the input fixed, masks are all there is to branch on: a node is a set of masks (some gates removed, some
kept, the others free, a number of removals left), and with no freedom left the bound is one forward pass.
Nodes are bounded in batches by backward linear bounds (``bounds._crown``): what the fixed gates change in
the intermediate bounds is recomputed at every node and met with the parent's, and the multipliers alpha and
lambda of the rows are warm-started from the parent. All competing classes share everything but the last
step; a class is dropped in a node as soon as it cannot beat the incumbent there.

Every lower bound is rounded outward, so what the search proves needs no solver's word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from milpver.bounds._crown import Multipliers, bound_sensitivities, crown_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Fixed, SortedShares, Workspace, per_gate
from milpver.graph import Affine, Gate, Relu
from milpver.linear import Float
from milpver.query import Budget
from milpver.search._tensors import TensorNodes
from milpver.search.frontier import Frontier
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop

__all__ = ["MaskSearch"]

#: Parents branched together; their children are bounded together.
_BATCH = 128
#: Ascent steps on the rows: at a node, warm-started; at the root, from scratch; at the root for neurons.
_NODE_STEPS, _ROOT_STEPS, _ROOT_NEURON_STEPS = 3, 20, 8
#: Rounds of the gradient attack on masks at the root.
_ATTACK_ROUNDS = 6
#: What of a gated value's width an intermediate bound is taken to pass on, in branching scores.
_PASSED_ON = 0.3

#: Offers candidate masks (Gate node -> bool [candidates, gates]); returns the smallest margin known of each
#: row, float64 [rows], from masks that were replayed.
Offer = Callable[[Mapping[int, NDArray[np.bool_]]], Float]


@dataclass(slots=True, eq=False)
class _Nodes(TensorNodes):
    """Search nodes, a structure of arrays [nodes, ...]; G gates in all, R rows.

    Attributes:
        gone, kept: bool [nodes, G].
        left: removals left in each group, int64 [nodes, groups].
        bounds: lower and upper bounds of the intermediate nodes that branching changes, float64 [nodes, B].
        alpha: slopes of every row, float64 [nodes, R, A].
        lam: multipliers of every row, float64 [nodes, R, groups].
        branch: the gate to branch on, int64 [nodes]; -1 where no gate is free.
    """

    gone: torch.Tensor
    kept: torch.Tensor
    left: torch.Tensor
    bounds: torch.Tensor
    alpha: torch.Tensor
    lam: torch.Tensor
    branch: torch.Tensor


class MaskSearch:
    """Branch and bound over the masks of one fixed input.

    Args:
        tensors: the graph on its device.
        budget: the admissible masks, at least one group.
        x: the input, float64 [inputs].
        rows: rows over the output whose minima are asked for, float64 [rows, outputs].
        offer: replays candidate masks.
    """

    def __init__(self, tensors: TensorGraph, budget: Budget, x: Float, rows: Float, offer: Offer) -> None:
        self._tensors = tensors
        self._budget = budget
        self._rows = tensors.tensor(rows)
        self._x = tensors.tensor(x).unsqueeze(0)
        self._offer = offer
        self._nodes = 0
        self._upper: Float = np.full(len(rows), np.inf)
        self._gate_nodes = [node for group in budget.groups for node in group.nodes]
        self._groups = [g for g, group in enumerate(budget.groups) for _ in group.nodes]
        sizes = [tensors.graph.gate(node).gates for node in self._gate_nodes]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        self._layout: _Layout | None = None
        self._presorted: dict[int, SortedShares] = {}
        self._group_of_gate = torch.tensor(
            [g for g, size in zip(self._groups, sizes, strict=True) for _ in range(size)],
            device=tensors.device,
        )
        forced = [budget.forced(node, size) for node, size in zip(self._gate_nodes, sizes, strict=True)]
        self._kept, self._gone = (
            torch.as_tensor(np.concatenate(state), device=tensors.device).unsqueeze(0)
            for state in zip(*forced, strict=True)
        )

    def run(self, limits: SearchLimits) -> SearchResult:
        """Search until every row is closed, the sign is proven, or the limits say stop."""
        closed: Float = np.full(len(self._rows), np.inf)
        frontier = Frontier[_Nodes](limits.memory)
        self._attack()
        if limits.decide and self._upper.min() <= 0:
            nothing: Float = np.full(len(self._rows), -np.inf)
            return SearchResult(nothing, nothing.copy(), 0, Stop.TARGET)
        root = self._root()
        first: Float = root.lower[0].cpu().numpy()
        self._sort(root, frontier, closed, limits)
        stop = Stop.OPTIMAL
        while len(frontier):
            if limits.decide and self._upper.min() <= 0:
                stop = Stop.TARGET
                break
            expired = limits.expired()
            if expired is not None:
                stop = expired
                break
            parents = self._still_open(frontier.pop(_BATCH), closed, limits)
            if len(parents):
                self._sort(self._children(parents, limits), frontier, closed, limits)
        lower = np.maximum(np.minimum(closed, frontier.smallest(len(self._rows))), first)
        return SearchResult(lower, first, self._nodes, stop)

    def _alive(self, lower: torch.Tensor, limits: SearchLimits) -> torch.Tensor:
        """Rows of nodes that may still matter, bool [nodes, rows]."""
        if limits.decide:
            return lower <= 0
        return lower < float(self._upper.min()) - limits.gap

    def _still_open(self, nodes: _Nodes, closed: Float, limits: SearchLimits) -> _Nodes:
        """Drop the nodes that cannot matter any more, and those without freedom, accounting for both."""
        open_ = self._alive(nodes.lower, limits).any(dim=1) & (nodes.branch >= 0)
        _account(closed, nodes.lower[~open_])
        return nodes.pick(open_)

    def _sort(self, nodes: _Nodes, frontier: Frontier[_Nodes], closed: Float, limits: SearchLimits) -> None:
        """Put the nodes that still matter on the frontier."""
        rest = self._still_open(nodes, closed, limits)
        if len(rest):
            frontier.push(rest)

    def _root(self) -> _Nodes:
        device = self._tensors.device
        rows = len(self._rows)
        left = torch.tensor([[self._budget.left(group) for group in self._budget.groups]], device=device)
        empty = torch.zeros(1, 0, dtype=torch.float64, device=device)
        root = _Nodes(
            torch.full((1, rows), -torch.inf, dtype=torch.float64, device=device),
            self._gone.clone(),
            self._kept.clone(),
            left,
            empty,
            empty.unsqueeze(1).expand(1, rows, 0),
            empty.unsqueeze(1).expand(1, rows, 0),
            torch.full((1,), -1, dtype=torch.int64, device=device),
        )
        return self._bounded(
            root, torch.arange(rows, device=device).unsqueeze(0), _ROOT_STEPS, _ROOT_NEURON_STEPS
        )

    def _children(self, parents: _Nodes, limits: SearchLimits) -> _Nodes:
        """Bound the two children of every parent: its branching gate removed, and kept."""
        count = len(parents)
        twice = torch.arange(count, device=parents.lower.device).repeat(2)
        nodes = parents.pick(twice)
        one = torch.nn.functional.one_hot(parents.branch, parents.gone.shape[1]).to(torch.bool)
        nodes.gone[:count] |= one
        nodes.kept[count:] |= one
        spent = torch.nn.functional.one_hot(self._group_of_gate[parents.branch], nodes.left.shape[1])
        nodes.left[:count] -= spent
        return self._bounded(nodes, self._worst_rows(nodes, limits), _NODE_STEPS, 0)

    def _worst_rows(self, nodes: _Nodes, limits: SearchLimits) -> torch.Tensor:
        """The rows to bound at each node, the lowest first, int64 [nodes, as many as matter at any node]."""
        count = int(self._alive(nodes.lower, limits).sum(dim=1).max())
        return nodes.lower.argsort(dim=1, stable=True)[:, :count]

    def _own(self, group: int) -> torch.Tensor:
        """The gates of a group, bool [G]."""
        return self._group_of_gate == group

    def _spans(self) -> list[tuple[int, int]]:
        """First and last gate of each Gate node among all gates."""
        return list(zip(self._starts[:-1], self._starts[1:], strict=True))

    def _split(self, gates: torch.Tensor) -> dict[int, torch.Tensor]:
        """[nodes, G] by Gate node."""
        return {node: gates[:, a:b] for node, (a, b) in zip(self._gate_nodes, self._spans(), strict=True)}

    def _bounded(self, nodes: _Nodes, alive: torch.Tensor, steps: int, neuron_steps: int) -> _Nodes:
        """Bound nodes on some rows, offer their worst masks, and note what their children start from.

        Args:
            nodes: with the masks, bounds and multipliers they inherit.
            alive: the rows of each node, int64 [nodes, some].
            steps, neuron_steps: ascent steps on the rows, and on intermediate bounds.
        """
        self._nodes += len(nodes)
        undecided = ~nodes.gone & ~nodes.kept
        for g in range(nodes.left.shape[1]):
            # No more can go than is free: without this, lambda s would be charged for nothing.
            free = undecided[:, self._own(g)].sum(dim=1)
            nodes.left[:, g] = torch.minimum(nodes.left[:, g], free)
        workspace = self._workspace(nodes.gone, nodes.kept, nodes.left)
        keys = [group.nodes[0] for group in self._budget.groups]
        layout = self._layout
        start = None
        if layout is not None:
            workspace.known = layout.bounds_of(nodes.bounds)
            start = Multipliers(
                layout.alpha_of(nodes.alpha.gather(1, _wide(alive, nodes.alpha))),
                {key: nodes.lam[:, :, g].gather(1, alive) for g, key in enumerate(keys)},
            )
        x = self._x.expand(len(nodes), -1)
        rows = self._rows[alive]
        found, best = crown_bounds(workspace, x, x, rows, steps=neuron_steps, row_steps=steps, first=start)
        if layout is None:
            layout = self._layout = _Layout.of(workspace, best)
            shape = (len(nodes), len(self._rows))
            nodes.alpha = torch.zeros(*shape, layout.slopes, dtype=found.dtype, device=found.device)
            nodes.lam = torch.zeros(*shape, len(keys), dtype=found.dtype, device=found.device)
        nodes.lower = nodes.lower.scatter(1, alive, torch.maximum(nodes.lower.gather(1, alive), found))
        nodes.bounds = layout.join_bounds(workspace)
        if layout.slopes:
            nodes.alpha = nodes.alpha.scatter(1, _wide(alive, nodes.alpha), layout.join_alpha(best))
        for g, key in enumerate(keys):
            if key in best.lam:
                nodes.lam[:, :, g] = nodes.lam[:, :, g].scatter(1, alive, best.lam[key])
        shares, felt = self._shares(workspace, found, rows, best)
        self._offer_masks(self._worst_masks(nodes.gone, nodes.left, shares))
        nodes.branch = self._branching(shares, felt)
        return nodes

    def _workspace(self, gone: torch.Tensor, kept: torch.Tensor, left: torch.Tensor) -> Workspace:
        """An empty workspace for nodes."""
        by_group = {group.nodes[0]: left[:, g] for g, group in enumerate(self._budget.groups)}
        return Workspace(
            self._tensors,
            self._budget,
            fixed=Fixed(self._split(gone), self._split(kept), by_group),
            point=True,
            presorted=self._presorted,
        )

    def _shares(
        self, workspace: Workspace, found: torch.Tensor, rows: torch.Tensor, best: Multipliers
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What each gate may do to a node's worst row, both float64 [nodes, G].

        First, what removing it takes away at most, ``A_g = sum_{r in g} max(C_r l_r, C_r u_r)`` with the
        coefficients C that arrive at the gate; -inf for gates that are not free. Second, how far it moves
        the intermediate bounds, weighted by how much the row's bound depends on them.
        """
        worst = found.argmin(dim=1)
        at = torch.arange(len(worst), device=worst.device)
        multipliers = Multipliers(
            {key: value[at, worst].unsqueeze(1) for key, value in best.alpha.items()},
            {key: value[at, worst].unsqueeze(1) for key, value in best.lam.items()},
        )
        arrived, felt = bound_sensitivities(workspace, rows[at, worst].unsqueeze(1), multipliers)
        moved = self._moved(workspace, felt)
        shares, sums = [], []
        for node in self._gate_nodes:
            gate = workspace.gate(node)
            free, _ = workspace.states(node)
            c = arrived.get(node)
            if c is None:
                share = torch.zeros(free.shape, dtype=found.dtype, device=found.device)
            else:
                ends = (c * bound[gate.source].unsqueeze(1) for bound in (workspace.lows, workspace.highs))
                share = per_gate(torch.maximum(*ends), gate).squeeze(1)
            shares.append(share.masked_fill(~free, -torch.inf))
            pushed = moved.get(node)
            sums.append(
                torch.zeros_like(share)
                if pushed is None
                else per_gate((pushed * workspace.largest(gate.source)).unsqueeze(1), gate).squeeze(1)
            )
        return torch.cat(shares, dim=1), torch.cat(sums, dim=1)

    def _moved(self, workspace: Workspace, felt: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """For each Gate node what a unit of its values does to intermediate bounds, float64 [nodes, size].

        The sensitivities are pulled back through |M|, through what of each Relu may be active, and a part of
        them through gates.
        """
        graph = workspace.graph
        pulled: dict[int, torch.Tensor] = {}

        def send(source: int, value: torch.Tensor) -> None:
            pulled[source] = pulled[source] + value if source in pulled else value

        for index in range(len(graph.nodes) - 2, 0, -1):
            node = graph.nodes[index]
            if index in felt:
                send(index, felt[index])
            if index not in pulled:
                continue
            value = pulled[index]
            if isinstance(node, Affine):
                terms = zip(node.terms, self._tensors.operators[index], strict=True)
                for (source, _), operator in terms:
                    if source not in workspace.constants:
                        send(source, operator.adjoint(value, operator.absolute))
            elif isinstance(node, Relu):
                send(node.source, value * (workspace.highs[node.source] > 0))
            elif isinstance(node, Gate):
                send(node.source, _PASSED_ON * value)
        return pulled

    def _branching(self, shares: torch.Tensor, felt: torch.Tensor) -> torch.Tensor:
        """The gate to branch on, int64 [nodes]: in the first layer that matters, the one that moves most.

        What a gate moves is its share of the row and what it does to the intermediate bounds that the row
        depends on. The last gated layer's masks are where the relaxation is exact or nearly so (a sum of the
        largest shares), and what they feed is linear, so they come last.
        """
        chosen = torch.full((len(shares),), -1, dtype=torch.int64, device=shares.device)
        best, at = shares.max(dim=1)
        fallback = torch.where(best > -torch.inf, at, chosen)
        free = shares > -torch.inf
        score = shares.clamp(min=0.0) + felt
        score = score.masked_fill(~free | (score <= 0), -torch.inf)
        for node in np.argsort(self._gate_nodes):
            a, b = self._spans()[int(node)]
            best, at = score[:, a:b].max(dim=1)
            chosen = torch.where((chosen < 0) & (best > -torch.inf), at + a, chosen)
        return torch.where(chosen >= 0, chosen, fallback)

    def _worst_masks(self, gone: torch.Tensor, left: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Masks that remove, besides what is gone, the largest positive shares of free gates, bool [n, G]."""
        masks = gone.clone()
        for g, group in enumerate(self._budget.groups):
            worst = shares.masked_fill(~self._own(g), -torch.inf)
            top = worst.topk(min(group.removable, shares.shape[1]), dim=1)
            rank = torch.arange(top.indices.shape[1], device=shares.device)
            take = (rank < left[:, g : g + 1]) & (top.values > 0)
            masks |= torch.zeros_like(masks).scatter(1, top.indices, take)
        return masks

    def _split_masks(self, masks: torch.Tensor) -> dict[int, NDArray[np.bool_]]:
        """Distinct masks, bool [n, G], by Gate node."""
        unique = np.unique(masks.cpu().numpy(), axis=0)
        return {node: unique[:, a:b] for node, (a, b) in zip(self._gate_nodes, self._spans(), strict=True)}

    def _offer_masks(self, masks: torch.Tensor) -> None:
        """Have masks replayed, bool [n, G]."""
        self._upper = np.minimum(self._upper, self._offer(self._split_masks(masks)))

    def _attack(self) -> None:
        """Gradient attack on the masks, one start a row: incumbents before the first branching.

        With every mask fixed the backward pass is the network's gradient, so each round takes away what the
        gradient at the last round's mask says is best.
        """
        rows = self._rows.unsqueeze(1)
        count = len(rows)
        x = self._x.expand(count, -1)
        start = self._gone.repeat(count, 1)
        masks = start
        budgets = [self._budget.left(group) for group in self._budget.groups]
        none = torch.zeros(count, len(budgets), dtype=torch.int64, device=rows.device)
        left = torch.tensor(budgets, device=rows.device).expand(count, -1)
        found = [masks]
        for _ in range(_ATTACK_ROUNDS):
            workspace = self._workspace(masks, ~masks, none)
            for _ in workspace.graph.nodes:
                workspace.add(x, x)
            arrived, _ = bound_sensitivities(workspace, rows, Multipliers())
            shares = []
            for node in self._gate_nodes:
                gate = workspace.gate(node)
                c = arrived.get(node)
                values = workspace.lows[gate.source].unsqueeze(1)
                share = torch.zeros_like(values) if c is None else c * values
                shares.append(per_gate(share, gate).squeeze(1))
            free = torch.cat(shares, dim=1).masked_fill(self._kept | self._gone, -torch.inf)
            masks = self._worst_masks(start, left, free)
            found.append(masks)
        self._offer_masks(torch.cat(found))


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the bounds and slopes of each graph node stand in the flat arrays of the search nodes.

    Attributes:
        neurons: (graph node, first, last) of the nodes whose bounds are kept, [lower | upper].
        relus: (graph node, first, last) of the slopes.
    """

    neurons: tuple[tuple[int, int, int], ...]
    relus: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, workspace: Workspace, best: Multipliers) -> _Layout:
        """The layout for a graph, read off its root."""
        return cls(
            _placed((index, workspace.graph.nodes[index].size) for index in workspace.tightened),
            _placed((index, value.shape[2]) for index, value in best.alpha.items()),
        )

    @property
    def slopes(self) -> int:
        """Number of slopes of a row."""
        return self.relus[-1][2] if self.relus else 0

    def bounds_of(self, flat: torch.Tensor) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Lower and upper bounds by graph node, from [nodes, 2 B]."""
        half = flat.shape[1] // 2
        return {index: (flat[:, a:b], flat[:, half + a : half + b]) for index, a, b in self.neurons}

    def join_bounds(self, workspace: Workspace) -> torch.Tensor:
        """[nodes, 2 B] from a full workspace."""
        parts = [workspace.lows[index] for index, _, _ in self.neurons]
        parts += [workspace.highs[index] for index, _, _ in self.neurons]
        if not parts:
            return torch.zeros(workspace.batch, 0, dtype=torch.float64, device=workspace.lows[0].device)
        return torch.cat(parts, dim=1)

    def alpha_of(self, flat: torch.Tensor) -> dict[int, torch.Tensor]:
        """Slopes by Relu node, from [nodes, rows, A]."""
        return {index: flat[:, :, a:b] for index, a, b in self.relus}

    def join_alpha(self, best: Multipliers) -> torch.Tensor:
        """[nodes, rows, A] from multipliers; there has to be a Relu."""
        return torch.cat([best.alpha[index] for index, _, _ in self.relus], dim=2)


def _wide(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Indices [nodes, some] for gathering whole rows of [nodes, rows, entries]."""
    return rows.unsqueeze(2).expand(-1, -1, values.shape[2])


def _placed(sizes: Iterator[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    """(key, first, last) for (key, size) pairs put one after the other."""
    placed, at = [], 0
    for key, size in sizes:
        placed.append((key, at, at + size))
        at += size
    return tuple(placed)


def _account(closed: Float, lower: torch.Tensor) -> None:
    """Lower each row's closed bound to the smallest of some nodes."""
    if len(lower):
        np.minimum(closed, lower.amin(dim=0).cpu().numpy(), out=closed)
