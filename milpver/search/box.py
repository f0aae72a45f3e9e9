"""Branch and bound over boxes of inputs: the native search behind properties and balls.

A property's counterexamples are alternatives ``A y <= b``; what is minimised is the smallest value
``max_r (A_r y - b_r)`` over the box. An attack looks for counterexamples; linear bounds of the whole box drop
the alternatives that cannot hold; the rest is searched by halving the box where the inputs are few
(``_inputs``), else by the signs of ReLUs (``_phases``).

Every lower bound is rounded outward, so what the search proves needs no solver's word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from milpver.bounds._crown import crown_bounds
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.linear import Float
from milpver.query import Budget
from milpver.search._alternatives import Alternatives, OfferInputs, corners
from milpver.search._descent import descend
from milpver.search._flat import FlatCrown, Layout
from milpver.search._inputs import halve
from milpver.search.bab import SearchLimits, SearchResult
from milpver.search.frontier import torch_threads
from milpver.solver import Stop

__all__ = ["BoxSearch", "SearchLimits", "SearchResult", "torch_threads"]

#: Inputs up to which boxes are halved.
_FEW_INPUTS = 12
#: Starts of the first attack for each alternative, and its gradient steps.
_STARTS, _STEPS = 4, 20


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
        self._replay = offer
        self._best: Float = np.full(len(alternatives), np.inf)
        self._nodes = 0

    def run(self, limits: SearchLimits) -> SearchResult:
        """Search until the smallest value is known, its sign is proven, or the limits say stop."""
        count = self._alternatives.count
        root: Float = np.full(count, -np.inf)
        self._attack(_STARTS, _STEPS)
        if limits.decide and self._best.min() <= 0:
            return SearchResult(root, root.copy(), 0, Stop.TARGET)
        workspace = Workspace(
            self._tensors,
            self._budget,
            point=bool(torch.equal(self._lower, self._upper)),
            hurry=lambda: limits.expired() is not None,
        )
        found, _ = crown_bounds(
            workspace, self._lower, self._upper, self._alternatives.rows.unsqueeze(0), steps=0, row_steps=20
        )
        self._nodes += 1
        root = self._alternatives.lower(found)[0].cpu().numpy()
        open_ = root <= 0 if limits.decide else root < self._best.min() - limits.gap
        if not open_.any():
            return SearchResult(root, root.copy(), self._nodes, Stop.OPTIMAL)
        layout = Layout(self._tensors.graph)
        lower, nodes, stop = halve(
            FlatCrown(self._tensors, workspace, layout),
            self._alternatives.only(open_),
            (self._lower, self._upper),
            (layout.joined(workspace.lows), layout.joined(workspace.highs)),
            lambda x, _: self._offer(x)[open_],
            self._best[open_],
            limits,
        )
        self._nodes += nodes
        final = root.copy()
        final[open_] = np.maximum(root[open_], lower)
        return SearchResult(final, root, self._nodes, stop)

    def _offer(self, x: Float) -> Float:
        """Have candidates replayed; the best value known of each alternative."""
        self._best = np.minimum(self._best, self._replay(x, {}))
        return self._best

    def _attack(self, starts: int, steps: int) -> None:
        """Offer what gradient descent finds from the middle, a corner and random points."""
        count = self._alternatives.count
        generator = torch.Generator().manual_seed(0)
        shape = (count * starts, self._lower.shape[1])
        share = torch.rand(shape, generator=generator, dtype=torch.float64).to(self._lower.device)
        x = self._lower + share * (self._upper - self._lower)
        x[:count] = corners(torch.zeros_like(self._lower), self._lower, self._upper)
        x = x.clamp(min=self._lower, max=self._upper)
        wanted = torch.arange(count, device=x.device).repeat(starts)
        points, values = descend(
            self._tensors, self._alternatives, self._lower[0], self._upper[0], x, wanted, steps=steps
        )
        order = values.argsort()[: max(4, count)]
        self._offer(points[order].cpu().numpy())
