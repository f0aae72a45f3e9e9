"""Boxes with pruning masks: branching on gates until a mask is whole, then a search of its box alone.

A node is a set of masks, as in ``bab``; it is bounded over the whole box by budget-aware linear bounds
(``bounds._crown``). Once every gate is decided the network with that mask is an ordinary one, and its box is
searched by the rest of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from milpver.bounds._crown import bound_sensitivities, crown_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Fixed, Workspace, per_gate
from milpver.graph import Affine, Gate, Graph, Node
from milpver.linear import Float, diagonal
from milpver.query import Budget
from milpver.search._alternatives import Alternatives, account, alive
from milpver.search._tensors import TensorNodes
from milpver.search.frontier import Frontier
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop

__all__ = ["MaskBranching", "masked"]

#: Nodes branched together, and steps of ascent on their rows.
_BATCH, _STEPS = 16, 4
#: Searches the box of one mask (Gate node -> bool [gates]) of all alternatives.
SearchMask = Callable[[dict[int, NDArray[np.bool_]]], SearchResult]


@dataclass(slots=True, eq=False)
class _Masks(TensorNodes):
    """Sets of masks: gates removed and kept, bool [nodes, G], and the gate to branch on, int64 [nodes]."""

    gone: torch.Tensor
    kept: torch.Tensor
    branch: torch.Tensor


class MaskBranching:
    """Branch and bound over masks.

    Args:
        tensors: the graph.
        budget: the admissible masks, at least one group.
        box: lower and upper limits, float64 [1, inputs].
        alternatives: what is minimised.
        best: asked for the smallest value known of each alternative, float64 [alternatives].
        search_mask: searches one mask's box.
    """

    def __init__(
        self,
        tensors: TensorGraph,
        budget: Budget,
        box: tuple[torch.Tensor, torch.Tensor],
        alternatives: Alternatives,
        best: Callable[[], Float],
        search_mask: SearchMask,
    ) -> None:
        self.tensors = tensors
        self.budget = budget
        self.box = box
        self.alternatives = alternatives
        self.best = best
        self.search_mask = search_mask
        self.closed: Float = np.full(alternatives.count, np.inf)
        self.nodes = 0
        self.gate_nodes = [(node, g) for g, group in enumerate(budget.groups) for node in group.nodes]
        self.sizes = [self.tensors.graph.gate(node).gates for node, _ in self.gate_nodes]
        self.group = torch.repeat_interleave(
            torch.tensor([g for _, g in self.gate_nodes]), torch.tensor(self.sizes)
        ).to(tensors.device)

    def run(self, limits: SearchLimits) -> SearchResult:
        """Search until nothing is open, the sign is decided, or the limits say stop."""
        frontier: Frontier[_Masks] = Frontier(limits.memory)
        lower = torch.full((1, self.alternatives.count), -torch.inf, dtype=torch.float64)
        none = torch.zeros(1, dtype=torch.int64, device=self.tensors.device)
        root = self.bounded(_Masks(lower.to(none.device), self.forced(1), self.forced(0), none))
        first: Float = root.lower[0].cpu().numpy()
        stop = self.sort(root, frontier, limits)
        while stop is None and len(frontier):
            stop = limits.expired()
            if stop is None:
                parents = self.open(frontier.pop(_BATCH), limits)
                if len(parents):
                    stop = self.sort(self.bounded(self.children(parents)), frontier, limits)
            if limits.decide and self.best().min() <= 0:
                stop = Stop.TARGET
        found = np.maximum(np.minimum(self.closed, frontier.smallest(self.alternatives.count)), first)
        return SearchResult(found, first, self.nodes, stop or Stop.OPTIMAL)

    def forced(self, which: int) -> torch.Tensor:
        """Gates that every mask keeps (0), or removes (1), bool [1, G]."""
        parts = [self.budget.forced(node, size)[which] for (node, _), _, size in self.places()]
        return torch.as_tensor(np.concatenate(parts), device=self.tensors.device).unsqueeze(0)

    def open(self, nodes: _Masks, limits: SearchLimits) -> _Masks:
        """The nodes that still matter; the others are accounted for."""
        best = float(self.best().min())
        open_ = alive(nodes.lower, best, limits.gap, decide=limits.decide).any(dim=1)
        account(self.closed, nodes.lower[~open_])
        return nodes.pick(open_)

    def sort(self, nodes: _Masks, frontier: Frontier[_Masks], limits: SearchLimits) -> Stop | None:
        """Put open nodes on the frontier, and search those whose mask is whole; why to stop, or None."""
        nodes = self.open(nodes, limits)
        inner = nodes.branch >= 0
        if bool(inner.any()):
            frontier.push(nodes.pick(inner))
        stop: Stop | None = None
        for mask, before in zip(nodes.gone[~inner], nodes.lower[~inner], strict=True):
            lower = before
            if stop is None:
                result = self.search_mask(self.split(mask.cpu().numpy()))
                self.nodes += result.nodes
                lower = torch.maximum(before, torch.as_tensor(result.lower, device=before.device))
                stop = None if result.stop is Stop.OPTIMAL else result.stop
            account(self.closed, lower.unsqueeze(0))
        return stop

    def split(self, gates: NDArray[np.bool_]) -> dict[int, NDArray[np.bool_]]:
        """[..., G] by Gate node."""
        ends = np.cumsum([0, *self.sizes])
        return {
            node: gates[..., a:b]
            for (node, _), a, b in zip(self.gate_nodes, ends[:-1], ends[1:], strict=True)
        }

    def left(self, gone: torch.Tensor) -> torch.Tensor:
        """Removals left in each group, int64 [nodes, groups]."""
        spent = torch.nn.functional.one_hot(self.group, len(self.budget.groups))
        limits = torch.tensor([group.removable for group in self.budget.groups], device=gone.device)
        return limits - (gone.unsqueeze(2) & (spent > 0)).sum(dim=1)

    def children(self, parents: _Masks) -> _Masks:
        """A gate removed, and kept."""
        count = len(parents)
        nodes = parents.pick(torch.arange(count).repeat(2))
        at = torch.arange(count)
        nodes.gone[at, parents.branch] = True
        nodes.kept[at + count, parents.branch] = True
        return nodes

    def bounded(self, nodes: _Masks) -> _Masks:
        """Bound nodes over the box, and choose the gate to branch on."""
        self.nodes += len(nodes)
        left = self.left(nodes.gone)
        spent = (left <= 0)[:, self.group]
        nodes.kept |= spent & ~nodes.gone
        free = ~nodes.gone & ~nodes.kept
        parts = [
            {node: part[:, a : a + size] for (node, _), a, size in self.places()}
            for part in (nodes.gone, nodes.kept)
        ]
        remaining = {}
        for g, group in enumerate(self.budget.groups):
            # No more can go than is free.
            remaining[group.nodes[0]] = torch.minimum(left[:, g], (free & (self.group == g)).sum(dim=1))
        space = Workspace(self.tensors, self.budget, fixed=Fixed(parts[0], parts[1], remaining))
        box = [side.expand(len(nodes), -1) for side in self.box]
        rows = self.alternatives.rows.unsqueeze(0).expand(len(nodes), -1, -1)
        found, best = crown_bounds(space, box[0], box[1], rows, steps=0, row_steps=_STEPS)
        nodes.lower = torch.maximum(nodes.lower, self.alternatives.lower(found))
        arrived, _ = bound_sensitivities(space, rows, best)
        score = torch.zeros(free.shape, dtype=torch.float64, device=free.device)
        for (node, _), a, size in self.places():
            c = arrived.get(node)
            if c is not None:
                gate = self.tensors.graph.gate(node)
                low, high = space.lows[gate.source].unsqueeze(1), space.highs[gate.source].unsqueeze(1)
                taken = per_gate(torch.maximum(c * low, c * high), gate).clamp(min=0.0)
                score[:, a : a + size] = taken.amax(dim=1)
        score = score.masked_fill(~free, -1.0)
        most, nodes.branch = score.max(dim=1)
        nodes.branch = torch.where(most >= 0, nodes.branch, torch.full_like(nodes.branch, -1))
        return nodes

    def places(self) -> list[tuple[tuple[int, int], int, int]]:
        """Each Gate node with its group, its first gate and its number of gates."""
        starts = np.cumsum([0, *self.sizes])[:-1].tolist()
        return list(zip(self.gate_nodes, starts, self.sizes, strict=True))


def masked(graph: Graph, removed: dict[int, NDArray[np.bool_]]) -> Graph:
    """The network with gates removed for good: each of these Gate nodes as a diagonal of ones and zeros."""
    nodes: list[Node] = []
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Gate) and index in removed:
            present = (~removed[index][node.owner]).astype(np.float64)
            nodes.append(Affine(((node.source, diagonal(present)),), np.zeros(node.size), node.name))
        else:
            nodes.append(node)
    return Graph(tuple(nodes))
