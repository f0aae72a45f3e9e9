"""Branch and bound by halving boxes, for networks with few inputs; in numpy alone.

Each half is bounded anew, the bounds of unstable neurons included (``_plain``); what the parent knew is met
with it. The input to split is the one that may change the open alternative most (the largest gradient over
the box times the box's width, smear): the slope of the linear bound, in its place, overlooks inputs that only
loosen the relaxation, and needed up to a thousand times the boxes on ACAS Xu.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milpver.attack.pgd import Goal
from milpver.linear import Float, Int
from milpver.search._plain import PlainCrown
from milpver.search.frontier import ArrayNodes, Frontier
from milpver.search.limits import OfferInputs, SearchLimits
from milpver.solver import Stop

__all__ = ["FEW_INPUTS", "halve"]

#: Inputs up to which boxes are halved.
FEW_INPUTS = 12
#: Boxes split together.
_BATCH = 256
#: Candidates replayed of a batch.
_CANDIDATES = 8


@dataclass(slots=True, eq=False)
class _Boxes(ArrayNodes):
    """Boxes, a structure of arrays; ``lower`` bounds each alternative.

    Attributes:
        from_, to: lower and upper limits, float64 [boxes, inputs].
        low, high: bounds of the pre-activations, float64 [boxes, neurons].
        axis: the input to split, int64 [boxes]; -1 where floats leave none.
    """

    from_: Float
    to: Float
    low: Float
    high: Float
    axis: Int


class _Halving:
    """The search; see ``halve``."""

    def __init__(
        self, plain: PlainCrown, goal: Goal, offer: OfferInputs, best: Float, limits: SearchLimits
    ) -> None:
        self.plain = plain
        self.goal = goal
        self.offer = offer
        self.best = best
        self.limits = limits
        self.nodes = 0
        self.closed: Float = np.full(goal.alternatives, np.inf)
        self.frontier: Frontier[_Boxes] = Frontier(limits.memory)

    def run(self) -> Stop:
        self.sort(self.bounded(self.root()))
        while len(self.frontier):
            if self.limits.decide and self.best.min() <= 0:
                return Stop.TARGET
            expired = self.limits.expired()
            if expired is not None:
                return expired
            parents = self.open(self.frontier.pop(_BATCH))
            if len(parents):
                halves = self.halves(parents)
                halves.low, halves.high = self.plain.refresh(halves.from_, halves.to, halves.low, halves.high)
                self.sort(self.bounded(halves))
        return Stop.TARGET if self.limits.decide and self.best.min() <= 0 else Stop.OPTIMAL

    def root(self) -> _Boxes:
        """The whole box, its pre-activations bounded."""
        nothing: Float = np.full((1, self.goal.alternatives), -np.inf)
        box = self.plain.lower[None], self.plain.upper[None]
        return _Boxes(nothing, *box, self.plain.low, self.plain.high, np.full(1, -1))

    def open(self, boxes: _Boxes) -> _Boxes:
        """The boxes that still matter; the others are accounted for, and those too small to be split."""
        limit = 0.0 if self.limits.decide else float(self.best.min()) - self.limits.gap
        alive = boxes.lower <= limit if self.limits.decide else boxes.lower < limit
        open_: NDArray[np.bool_] = alive.any(axis=1) & (boxes.axis >= 0)
        self.closed = np.minimum(self.closed, boxes.lower[~open_].min(axis=0, initial=np.inf))
        return boxes.pick(open_)

    def sort(self, boxes: _Boxes) -> None:
        rest = self.open(boxes)
        if len(rest):
            self.frontier.push(rest)

    @staticmethod
    def halves(boxes: _Boxes) -> _Boxes:
        """Both halves of every box; they share the middle."""
        count = len(boxes)
        twice = boxes.pick(np.tile(np.arange(count), 2))
        at = np.arange(count), boxes.axis
        middle = boxes.from_[at] + (boxes.to[at] - boxes.from_[at]) / 2
        twice.to[at] = middle
        twice.from_[count + at[0], at[1]] = middle
        return twice

    def bounded(self, boxes: _Boxes) -> _Boxes:
        """Bound what is minimised, offer the worst corners, and choose where to split."""
        self.nodes += len(boxes)
        goal, every = self.goal, np.arange(len(boxes))
        found, slopes = self.plain.rows(boxes.from_, boxes.to, boxes.low, boxes.high, goal.rows)
        boxes.lower = np.maximum(boxes.lower, goal.below(found))
        worst = boxes.lower.argmin(axis=1)
        own = goal.owner == worst[:, None]
        place = np.where(own, found - goal.limits, -np.inf).argmax(axis=1)
        least = np.argsort(boxes.lower.min(axis=1), kind="stable")[:_CANDIDATES]
        points = _corners(slopes[every, place][least], boxes.from_[least], boxes.to[least])
        self.best = np.minimum(self.best, self.offer(points, {}))
        boxes.axis = _axes(boxes, self.plain.smear(boxes.low, boxes.high, goal.rows[place]))
        return boxes


def _corners(slope: Float, lower: Float, upper: Float) -> Float:
    """Where linear functions are smallest over boxes, the middle where they are flat; all [n, inputs]."""
    middle = np.clip(lower + (upper - lower) / 2, lower, upper)
    return np.where(slope > 0, lower, np.where(slope < 0, upper, middle))


def _axes(boxes: _Boxes, slope: Float) -> Int:
    """The input to split, int64 [boxes]; -1 where floats leave none."""
    width = boxes.to - boxes.from_
    middle = boxes.from_ + width / 2
    possible = (boxes.from_ < middle) & (middle < boxes.to)
    score = np.where(possible, slope * width, -1.0)
    widest = np.where(possible, width, -1.0).argmax(axis=1)
    axis = np.where(score.max(axis=1) > 0, score.argmax(axis=1), widest)
    return np.where(possible.any(axis=1), axis, -1)


def halve(
    plain: PlainCrown, goal: Goal, offer: OfferInputs, best: Float, limits: SearchLimits
) -> tuple[Float, int, Stop]:
    """Search a box by halving.

    Args:
        plain: bounds boxes; its root is the box.
        goal: what is minimised.
        offer: replays candidates.
        best: the smallest value known of each alternative, float64 [alternatives].
        limits: when to stop.

    Returns:
        Lower bounds of each alternative, float64 [alternatives], boxes bounded, and why it stopped.
    """
    search = _Halving(plain, goal, offer, best, limits)
    stop = search.run()
    return np.minimum(search.closed, search.frontier.smallest(goal.alternatives)), search.nodes, stop
