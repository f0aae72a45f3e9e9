"""Branch and bound over boxes of inputs: the native search behind properties and balls.

A property's counterexamples are alternatives ``A y <= b``; what is minimised is the smallest value
``max_r (A_r y - b_r)`` over the box. An attack looks for counterexamples; linear bounds of the whole box drop
the alternatives that cannot hold; the rest is searched by halving the box where the inputs are few
(``_inputs``), else by the signs of ReLUs (``_phases``).

Every lower bound is rounded outward, so what the search proves needs no solver's word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray

from milpver.attack.pgd import Goal
from milpver.bounds._crown import Multipliers, crown_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Max
from milpver.linear import Float, Int
from milpver.query import Budget
from milpver.search._alternatives import Alternatives, corners
from milpver.search._collapsed import collapsed
from milpver.search._compressed import compressed, without_max
from milpver.search._descent import descend
from milpver.search._inputs import FEW_INPUTS, halve
from milpver.search._masks import MaskBranching, masked
from milpver.search._phases import PhaseSearch, Root
from milpver.search._plain import PlainCrown
from milpver.search.limits import OfferInputs, SearchLimits, SearchResult
from milpver.solver import Stop

__all__ = ["BoxSearch", "root_steps"]

#: Starts of the first attack for each alternative, and its gradient steps.
_STARTS, _STEPS = 2, 10
#: The same for the attack on what bounds leave open.
_MORE_STARTS, _MORE_STEPS = 20, 60
#: Steps of ascent on intermediate bounds of the whole box, and what (steps x rows x values) they may take.
_ROOT_STEPS, _ROOT_WORK = 12, 50_000_000


class BoxSearch:
    """Branch and bound over a box of inputs.

    Args:
        tensors: the graph on its device.
        budget: the admissible masks.
        lower, upper: the closed box, float64 [inputs].
        alternatives: (A float64 [k, outputs], b float64 [k]) pairs: the counterexamples of each are
            ``A y <= b``, its value at a point is ``max_r (A_r y - b_r)``.
        offer: replays candidates; float64 [n, inputs], masks (Gate node -> bool [n, gates], or {}) -> the
            best value known of each alternative, float64 [alternatives].
    """

    def __init__(
        self,
        tensors: TensorGraph,
        budget: Budget,
        lower: Float,
        upper: Float,
        alternatives: Sequence[tuple[Float, Float]],
        offer: OfferInputs,
    ) -> None:
        self._tensors = tensors
        self._budget = budget
        self._lower = tensors.tensor(lower).unsqueeze(0)
        self._upper = tensors.tensor(upper).unsqueeze(0)
        self._alternatives = Alternatives.of(alternatives, tensors.device)
        self._given = alternatives
        self._replay = offer
        self._best: Float = np.full(len(alternatives), np.inf)
        self._nodes = 0

    def run(self, limits: SearchLimits) -> SearchResult:
        """Search until the smallest value is known, its sign is proven, or the limits say stop."""
        if self._budget.groups:
            return self._over_masks(limits)
        count = self._alternatives.count
        root: Float = np.full(count, -np.inf)
        self._attack(_STARTS, _STEPS)
        if limits.decide and self._best.min() <= 0:
            return SearchResult(root, root.copy(), 0, Stop.TARGET)
        workspace, best, root = self._bounded(limits, 0, None)
        open_ = self._open(root, limits)
        few = int((self._lower < self._upper).sum()) <= FEW_INPUTS
        if not few and open_.any():
            self._attack(_MORE_STARTS, _MORE_STEPS, np.flatnonzero(open_))
            if limits.decide and self._best.min() <= 0:
                return SearchResult(root, root.copy(), self._nodes, Stop.TARGET)
            steps = root_steps(workspace)
            if steps:
                workspace, best, better = self._bounded(limits, steps, workspace)
                root = np.maximum(root, better)
                open_ = self._open(root, limits)
        if not open_.any():
            return SearchResult(root, root.copy(), self._nodes, Stop.OPTIMAL)
        if any(isinstance(node, Max) for node in self._tensors.graph.nodes):
            self._tensors = TensorGraph(without_max(self._tensors.graph), self._tensors.device)
            workspace, best, _ = self._bounded(limits, 0, None)
        lower, nodes, stop = (self._halve if few else self._branch)(workspace, best, open_, limits)
        self._nodes += nodes
        final = root.copy()
        final[open_] = np.maximum(root[open_], lower)
        return SearchResult(final, root, self._nodes, stop)

    def _over_masks(self, limits: SearchLimits) -> SearchResult:
        """Branch on masks, and search the box of every mask that bounds leave open."""
        given = self._given
        box = self._lower[0].cpu().numpy(), self._upper[0].cpu().numpy()

        def search_mask(removed: dict[int, NDArray[np.bool_]]) -> SearchResult:
            def offer(x: Float, _: Mapping[int, NDArray[np.bool_]]) -> Float:
                masks = {node: np.tile(gone, (len(x), 1)) for node, gone in removed.items()}
                self._best = np.minimum(self._best, self._replay(x, masks))
                return self._best

            tensors = TensorGraph(masked(self._tensors.graph, removed), self._tensors.device)
            return BoxSearch(tensors, Budget(), *box, given, offer).run(limits)

        nothing = search_mask(self._budget.least(self._tensors.graph))
        if nothing.stop is not Stop.OPTIMAL:
            # Nothing is proven about the other masks.
            none: Float = np.full(len(given), -np.inf)
            return SearchResult(none, none.copy(), nothing.nodes, nothing.stop)
        search = MaskBranching(
            self._tensors,
            self._budget,
            (self._lower, self._upper),
            self._alternatives,
            lambda: self._best,
            search_mask,
        )
        found = search.run(limits)
        return SearchResult(found.lower, found.root, found.nodes + nothing.nodes, found.stop)

    def _open(self, root: Float, limits: SearchLimits) -> NDArray[np.bool_]:
        """Alternatives that are not proven, or may lie below the best value known by more than the gap."""
        return root <= 0 if limits.decide else root < self._best.min() - limits.gap

    def _bounded(
        self, limits: SearchLimits, steps: int, known: Workspace | None
    ) -> tuple[Workspace, Multipliers, Float]:
        """Bound the whole box: of every node, of the rows with their multipliers, of each alternative."""
        self._nodes += 1
        workspace = Workspace(
            self._tensors,
            self._budget,
            point=bool(torch.equal(self._lower, self._upper)),
            hurry=lambda: limits.expired() is not None,
        )
        if known is not None:
            workspace.known = dict(enumerate(zip(known.lows, known.highs, strict=True)))
        rows = self._alternatives.rows.unsqueeze(0)
        found, best = crown_bounds(workspace, self._lower, self._upper, rows, steps=steps, row_steps=20)
        return workspace, best, self._alternatives.lower(found)[0].cpu().numpy()

    def _halve(
        self, workspace: Workspace, best: Multipliers, open_: NDArray[np.bool_], limits: SearchLimits
    ) -> tuple[Float, int, Stop]:
        """Halve boxes for the open alternatives: their lower bounds, the nodes, and why it stopped."""
        tensors, workspace, _ = compressed(self._tensors, workspace, best)
        lower, upper = self._lower[0].cpu().numpy(), self._upper[0].cpu().numpy()
        lows, highs = ([one[0].cpu().numpy() for one in part] for part in (workspace.lows, workspace.highs))
        plain = PlainCrown(
            tensors.graph, lower, upper, lambda: limits.expired() is not None, known=(lows, highs)
        )
        goal = Goal.of(lower, upper, list(compress(self._given, open_)))
        return halve(plain, goal, self._offer_for(open_), self._best[open_], limits)

    def _branch(
        self, workspace: Workspace, best: Multipliers, open_: NDArray[np.bool_], limits: SearchLimits
    ) -> tuple[Float, int, Stop]:
        """Branch on signs for the open alternatives; as ``_halve``."""
        rows = torch.as_tensor(open_, device=self._lower.device)[self._alternatives.owner]
        best = Multipliers({node: alpha[:, rows] for node, alpha in best.alpha.items()})
        small = collapsed(self._tensors, workspace, best)
        tensors, workspace, best = small or compressed(self._tensors, workspace, best)
        alternatives = self._alternatives.only(open_)
        search = PhaseSearch(
            Root.of(tensors, workspace, best, dense=small is not None, recompute=small is None),
            alternatives,
            self._offer_for(open_),
            self._best[open_],
            limits,
            early=True,
        )
        stop = search.run()
        return np.minimum(search.closed, search.frontier.smallest(alternatives.count)), search.nodes, stop

    def _offer_for(self, open_: NDArray[np.bool_]) -> OfferInputs:
        """``_offer`` of some alternatives."""

        def offer(x: Float, _: Mapping[int, NDArray[np.bool_]]) -> Float:
            return self._offer(x)[open_]

        return offer

    def _offer(self, x: Float) -> Float:
        """Have candidates replayed; the best value known of each alternative."""
        self._best = np.minimum(self._best, self._replay(x, {}))
        return self._best

    def _attack(self, starts: int, steps: int, which: Int | None = None) -> None:
        """Offer what gradient descent finds for alternatives (None: all), from random points too."""
        chosen = np.arange(self._alternatives.count) if which is None else which
        count = len(chosen)
        generator = torch.Generator().manual_seed(starts)
        shape = (count * starts, self._lower.shape[1])
        share = torch.rand(shape, generator=generator, dtype=torch.float64).to(self._lower.device)
        x = self._lower + share * (self._upper - self._lower)
        x[:count] = corners(torch.zeros_like(self._lower), self._lower, self._upper)
        x = x.clamp(min=self._lower, max=self._upper)
        wanted = torch.as_tensor(chosen, device=x.device).repeat(starts)
        points, values = descend(
            self._tensors, self._alternatives, self._lower[0], self._upper[0], x, wanted, steps=steps
        )
        order = values.argsort()[: max(4, count)]
        self._offer(points[order].cpu().numpy())


def root_steps(workspace: Workspace) -> int:
    """Steps of ascent on intermediate bounds that a box is worth, by its first bounds.

    The work of a step: the rows that intermediate bounds take, times the values they pass through.
    """
    total, work = 0, 1
    for index, (low, high) in enumerate(zip(workspace.lows, workspace.highs, strict=True)):
        total += low.shape[1]
        if index in workspace.tightened:
            work += 2 * total * int(((low < 0) & (high > 0)).sum())
    return min(_ROOT_STEPS, _ROOT_WORK // work)
