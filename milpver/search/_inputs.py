"""Branch and bound by halving boxes, for networks with few inputs.

Each half is bounded anew, the bounds of unstable neurons included (``_flat``); what the parent knew is met
with it. The input to split is the one that may change the open alternative most (the largest gradient over
the box times the box's width, smear): the slope of the linear bound, in its place, overlooks inputs that only
loosen the relaxation, and needed up to a thousand times the boxes on ACAS Xu.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from milpver.linear import Float
from milpver.search._alternatives import Alternatives, OfferInputs, account, alive, corners
from milpver.search._flat import FlatCrown
from milpver.search.bab import SearchLimits
from milpver.search.frontier import Frontier, Nodes
from milpver.solver import Stop

__all__ = ["halve"]

#: Boxes split together.
_BATCH = 256
#: Candidates replayed of a batch.
_CANDIDATES = 8


@dataclass(slots=True, eq=False)
class _Boxes(Nodes):
    """Boxes, a structure of arrays.

    Attributes:
        from_, to: lower and upper limits, float64 [boxes, inputs].
        low, high: bounds of the pre-activations, float64 [boxes, neurons].
        axis: the input to split, int64 [boxes].
    """

    from_: torch.Tensor
    to: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    axis: torch.Tensor


class _Halving:
    """The search; see ``halve``."""

    def __init__(
        self,
        flat: FlatCrown,
        alternatives: Alternatives,
        offer: OfferInputs,
        best: Float,
        limits: SearchLimits,
    ) -> None:
        self.flat = flat
        self.alternatives = alternatives
        self.offer = offer
        self.best = best
        self.limits = limits
        self.nodes = 0
        self.closed: Float = np.full(alternatives.count, np.inf)
        self.frontier: Frontier[_Boxes] = Frontier(limits.memory)

    def run(self, root: _Boxes) -> Stop:
        self.sort(self.bounded(root))
        while len(self.frontier):
            if self.limits.decide and self.best.min() <= 0:
                return Stop.TARGET
            expired = self.limits.expired()
            if expired is not None:
                return expired
            parents = self.open(self.frontier.pop(_BATCH))
            if len(parents):
                self.sort(self.bounded(self.halves(parents)))
        return Stop.TARGET if self.limits.decide and self.best.min() <= 0 else Stop.OPTIMAL

    def alive(self, lower: torch.Tensor) -> torch.Tensor:
        return alive(lower, float(self.best.min()), self.limits.gap, decide=self.limits.decide)

    def open(self, boxes: _Boxes) -> _Boxes:
        """The boxes that still matter; the others are accounted for, and those too small to be split."""
        open_ = self.alive(boxes.lower).any(dim=1) & (boxes.axis >= 0)
        account(self.closed, boxes.lower[~open_])
        return boxes.pick(open_)

    def sort(self, boxes: _Boxes) -> None:
        rest = self.open(boxes)
        if len(rest):
            self.frontier.push(rest)

    def halves(self, boxes: _Boxes) -> _Boxes:
        """Both halves of every box; they share the middle."""
        count = len(boxes)
        twice = boxes.pick(torch.arange(count, device=boxes.axis.device).repeat(2))
        axis = boxes.axis.unsqueeze(1)
        from_, to = boxes.from_.gather(1, axis), boxes.to.gather(1, axis)
        middle = from_ + (to - from_) / 2
        twice.to[:count] = twice.to[:count].scatter(1, axis, middle)
        twice.from_[count:] = twice.from_[count:].scatter(1, axis, middle)
        return twice

    def bounded(self, boxes: _Boxes) -> _Boxes:
        """Bound boxes, offer the worst corners, and choose where to split."""
        self.nodes += len(boxes)
        boxes.low, boxes.high = self.flat.refresh(boxes.from_, boxes.to, boxes.low, boxes.high)
        found, slopes = self.flat.rows(boxes.from_, boxes.to, boxes.low, boxes.high, self.alternatives.rows)
        boxes.lower = torch.maximum(boxes.lower, self.alternatives.lower(found))
        worst = boxes.lower.argmin(dim=1)
        place = self.alternatives.place(found - self.alternatives.limits, worst)
        slope = slopes[torch.arange(len(place), device=place.device), place]
        least = boxes.lower.amin(dim=1).topk(min(_CANDIDATES, len(boxes)), largest=False).indices
        points = corners(slope[least], boxes.from_[least], boxes.to[least])
        self.best = np.minimum(self.best, self.offer(points.cpu().numpy(), {}))
        boxes.axis = self.axes(boxes, self.flat.smear(boxes.low, boxes.high, self.alternatives.rows[place]))
        return boxes

    @staticmethod
    def axes(boxes: _Boxes, slope: torch.Tensor) -> torch.Tensor:
        """The input to split, int64 [boxes]; -1 where floats leave none."""
        width = boxes.to - boxes.from_
        middle = boxes.from_ + width / 2
        possible = (boxes.from_ < middle) & (middle < boxes.to)
        score = (slope * width).masked_fill(~possible, -1.0)
        most, axis = score.max(dim=1)
        widest = width.masked_fill(~possible, -1.0).argmax(dim=1)
        axis = torch.where(most > 0, axis, widest)
        return torch.where(possible.any(dim=1), axis, torch.full_like(axis, -1))


def halve(
    flat: FlatCrown,
    alternatives: Alternatives,
    box: tuple[torch.Tensor, torch.Tensor],
    known: tuple[torch.Tensor, torch.Tensor],
    offer: OfferInputs,
    best: Float,
    limits: SearchLimits,
) -> tuple[Float, int, Stop]:
    """Search a box by halving.

    Args:
        flat: bounds boxes.
        alternatives: what is minimised.
        box: lower and upper limits, float64 [1, inputs].
        known: bounds of the pre-activations over it, float64 [1, neurons].
        offer: replays candidates.
        best: the smallest value known of each alternative, float64 [alternatives].
        limits: when to stop.

    Returns:
        Lower bounds of each alternative, float64 [alternatives], boxes bounded, and why it stopped.
    """
    search = _Halving(flat, alternatives, offer, best, limits)
    lower = torch.full((1, alternatives.count), -torch.inf, dtype=torch.float64, device=box[0].device)
    none = torch.full((1,), -1, dtype=torch.int64, device=box[0].device)
    stop = search.run(_Boxes(lower, *box, *known, none))
    return np.minimum(search.closed, search.frontier.smallest(alternatives.count)), search.nodes, stop
