"""The distance to the decision boundary by branch and bound on signs of ReLUs, bounded on the radius itself.

In a ball that is known to hold an adversarial input, every node of ``_phases`` has a linear function below
its margin. The smallest radius at which that function can reach 0 is a lower bound of the distance on the
node; nodes are taken by it, and closed where it comes up to the closest adversarial input known. A radius
counts once a backward pass over its own ball, rounded outward, has found a bound > 0 there. With all signs
fixed a linear program (for L2 a projection) gives the distance on the node, and its duals a function that
proves it. L1 and L2 balls are never taken for the boxes around them, by bounds of pre-activations neither.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse

from milpver.bounds._crown import Multipliers, backward, crown_bounds
from milpver.bounds._norm_ball import BallWorkspace
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Max
from milpver.linear import Float, Int
from milpver.query import Box
from milpver.search._alternatives import Alternatives
from milpver.search._collapsed import collapsed
from milpver.search._compressed import compressed, without_max
from milpver.search._flat import Layout
from milpver.search._phases import PhaseSearch, Root, SearchNodes
from milpver.search._projection import project
from milpver.search._region import (
    Balls,
    Regions,
    TracedSpace,
    TriedSpace,
    around,
    reach_of,
    root_space,
)
from milpver.search.bab import SearchLimits, SearchResult
from milpver.search.box import root_steps
from milpver.solver import Stop

__all__ = ["search_distance"]

#: Offers points, float64 [n, inputs], for targets, int64 [n]; the closest known adversarial input's distance.
OfferPoints = Callable[[Float, Int], float]
#: Nodes of a batch whose points are offered.
_CANDIDATES = 4
#: Points of one batch in 2^this are offered where those offered before were of no use.
_RARELY = 4
#: What a radius is taken back by, relative to it, so that rounding does not undo it.
_BACK = 1e-9
#: Unstable neurons up to which nodes get bounds of their own in L1 and L2 where convolutions went away.
_RECOMPUTED = 200
#: How often a radius that rounding refuses is taken back by what it lacks.
_PROOFS = 3
#: What a margin is to be below 0 by, relative to the outputs, where a leaf's closest input does not replay.
_INSIDE = (1e-13, 1e-11, 1e-9, 1e-7)
#: What a unit of contradicting signs costs in a leaf's linear program.
_PENALTY = 1e4


def search_distance(
    tensors: TensorGraph,
    ball: Box,
    radius: float,
    rows: Float,
    offer: OfferPoints,
    limits: SearchLimits,
    known: Float | None = None,
    *,
    norm: str = "linf",
) -> SearchResult:
    """Search a ball for the closest adversarial input.

    Args:
        tensors: the graph on its device.
        ball: around x0, clipped to the domain; for ``l1`` and ``l2`` the box around it.
        radius: of the ball; an adversarial input is known at its edge.
        rows: ``f_label - f_j`` of each target, float64 [targets, outputs]; adversarial where one is <= 0.
        offer: replays points.
        limits: when to stop; ``gap`` is one of distances.
        known: certified radius of each target, float64 [targets]; None: 0.
        norm: ``linf``, ``l1`` or ``l2``.

    Returns:
        Lower bounds of each target's distance, float64 [targets], at most ``radius``.
    """
    if any(isinstance(node, Max) for node in tensors.graph.nodes):
        tensors = TensorGraph(without_max(tensors.graph), tensors.device)
    alternatives = Alternatives.of([(row[None], np.zeros(1)) for row in rows], tensors.device)
    box = tensors.tensor(ball.lower).unsqueeze(0), tensors.tensor(ball.upper).unsqueeze(0)
    floor: Float = np.zeros(len(rows)) if known is None else np.minimum(known, radius)
    bounded: Workspace | None = None
    best = Multipliers()
    found = torch.full((1, len(rows)), -torch.inf, dtype=torch.float64, device=tensors.device)
    for ascent in (False, True):
        steps = root_steps(bounded) if ascent and bounded is not None else 0
        if ascent and (not steps or _all_but_closed(tensors, ball, radius, rows, found, limits.gap)):
            break
        space = root_space(tensors, norm, tensors.tensor(ball.centre), radius)
        space.hurry = lambda: limits.expired() is not None
        if bounded is not None:
            space.known = dict(enumerate(zip(bounded.lows, bounded.highs, strict=True)))
        found, best = crown_bounds(space, *box, alternatives.rows.unsqueeze(0), steps=steps, row_steps=10)
        bounded = space
    if bounded is None:
        raise TypeError("no bounds")
    proven = (found[0] > 0).cpu().numpy()
    lower = np.where(proven, radius, floor)
    if proven.all():
        return SearchResult(lower, lower.copy(), 1, Stop.OPTIMAL)
    kept = torch.as_tensor(~proven, device=tensors.device)
    best = Multipliers({node: alpha[:, kept] for node, alpha in best.alpha.items()})
    fewer = collapsed(tensors, bounded, best)
    small, space, best = compressed(tensors, bounded, best) if fewer is None else fewer
    if norm != "linf":
        space = around(space, norm, tensors.tensor(ball.centre), tensors.tensor(np.array([radius])))
    unstable = sum(int(((space.lows[i] < 0) & (space.highs[i] > 0)).sum()) for i in Layout(small.graph).spans)
    recompute = fewer is None or (norm != "linf" and unstable <= _RECOMPUTED)
    search = (_DistanceSearch if norm == "linf" else _BallSearch)(
        Root.of(small, space, best, recompute=recompute),
        alternatives.only(~proven),
        (tensors.tensor(ball.centre), radius),
        floor[~proven],
        lambda x, which: offer(x, np.flatnonzero(~proven)[which]),
        limits,
    )
    stop = search.run()
    inner = np.minimum(search.closed, search.frontier.smallest(int((~proven).sum())))
    lower[~proven] = np.clip(inner, floor[~proven], radius)
    return SearchResult(lower, np.where(proven, radius, 0.0), search.nodes, stop)


def _all_but_closed(
    tensors: TensorGraph, ball: Box, radius: float, rows: Float, found: torch.Tensor, gap: float
) -> bool:
    """Whether bounds of the rows in the ball, float64 [1, targets], reach 0 within the gap of its edge.

    As they would, falling in proportion to the radius from the margins at x0: an estimate of what is worth
    its while, which no bound rests on.
    """
    at_centre = rows @ tensors.graph.evaluate(ball.centre[None])[0]
    below = np.maximum(-found[0].cpu().numpy(), 0.0)
    return bool(np.all(radius * below <= gap * (at_centre + below)))


class _DistanceSearch(PhaseSearch):
    """``PhaseSearch`` with radii in place of values: ``lower`` holds them, the best value is a distance."""

    def __init__(
        self,
        root: Root,
        alternatives: Alternatives,
        ball: tuple[torch.Tensor, float],
        floor: Float,
        offer: OfferPoints,
        limits: SearchLimits,
    ) -> None:
        self.centre, self.radius = ball
        self.floor = torch.as_tensor(floor, device=self.centre.device)
        self.offer_points = offer
        self.batches = self.failures = 0
        best: Float = np.full(alternatives.count, self.radius)
        super().__init__(root, alternatives, lambda *_: best, best, limits)

    def first(self) -> SearchNodes:
        nodes = super().first()
        nodes.lower.diagonal().copy_(self.floor)
        return nodes

    def decided(self) -> bool:
        return False

    def alive(self, lower: torch.Tensor) -> torch.Tensor:
        return lower < float(self.best.min()) - self.limits.gap

    def hopeful(self, value: torch.Tensor) -> bool:
        return len(value) > 0

    def space(self, low: torch.Tensor, high: torch.Tensor, nodes: SearchNodes) -> Workspace:
        space = super().space(low, high, nodes)
        lower, upper = self.ball(self.own(nodes).clamp(min=0.0))
        space.lows[0], space.highs[0] = lower.to(low.dtype), upper.to(low.dtype)
        return space

    def ball(self, radius: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Balls around x0 within the root's, rounded outward, float64 [nodes, inputs] each."""
        infinity = torch.full((), torch.inf, dtype=torch.float64, device=radius.device)
        lower = torch.nextafter(self.centre - radius.unsqueeze(1), -infinity)
        upper = torch.nextafter(self.centre + radius.unsqueeze(1), infinity)
        outer = self.root.workspace
        return torch.maximum(lower, outer.lows[0]), torch.minimum(upper, outer.highs[0])

    def valued(
        self, space: Workspace, nodes: SearchNodes, alpha: torch.Tensor, mu: torch.Tensor
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], torch.Tensor]:
        rows = self.rows[nodes.which]
        radius, points, arrived = self.reached(space, rows, self.multipliers(alpha, mu), self.own(nodes))
        self.batches += 1
        if self.batches % (1 << min(self.failures, _RARELY)) == 0:
            least = radius.topk(min(_CANDIDATES, len(radius)), largest=False).indices
            near = self.offer_points(points[least].cpu().numpy(), nodes.which[least].cpu().numpy())
            self.failures = 0 if near < self.best.min() else self.failures + 1
            self.best = np.minimum(self.best, near)
        return radius, arrived, torch.zeros_like(nodes.which)

    def reached(
        self, space: Workspace, rows: torch.Tensor, multipliers: Multipliers, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
        """The smallest radii at which the linear functions below rows can reach 0.

        With ``a x + c`` the function and ``room_i`` the way to the box's edge, the radius r solves
        ``a x0 + c = sum_i |a_i| min(r, room_i)``; Newton's steps from the left approach it from the left,
        the right-hand side being concave.

        Args:
            space: bounds of nodes.
            rows: float64 [nodes, 1, outputs].
            multipliers: of the rows.
            start: radii known before, float64 [nodes].

        Returns:
            Radii, proven by a rounded pass over their own balls or else ``start``, float64 [nodes]; the
            points where the functions reach 0; and the coefficients that arrive at each Relu.
        """
        last = len(self.graph.nodes) - 1
        with torch.enable_grad():
            space.lows[0] = space.lows[0].detach().expand(len(rows), -1).clone().requires_grad_()
            space.highs[0] = space.highs[0].detach().expand(len(rows), -1).clone().requires_grad_()
            found, arrived = backward(space, last, rows, multipliers, rounded=False)
            down, up = torch.autograd.grad(found.sum(), (space.lows[0], space.highs[0]))
        with torch.no_grad():
            slope = down + up
            constant = found[:, 0] - (down * space.lows[0] + up * space.highs[0]).sum(dim=1)
            value = constant + slope @ self.centre
            outer = self.root.workspace
            room = torch.where(slope > 0, self.centre - outer.lows[0], outer.highs[0] - self.centre)
            weight = slope.abs()
            radius = torch.zeros_like(value)
            for _ in range(12):
                covered = (weight * torch.minimum(radius.unsqueeze(1), room)).sum(dim=1)
                rate = (weight * (room > radius.unsqueeze(1))).sum(dim=1)
                step = (value - covered).clamp(min=0.0) / rate
                radius = (radius + step.nan_to_num(nan=0.0, posinf=torch.inf)).clamp(max=self.radius)
            radius = torch.maximum(radius * (1 - _BACK) - 1e-15, start)
            lower, upper = self.ball(radius)
            points = torch.where(slope > 0, lower, torch.where(slope < 0, upper, self.centre))
            points = points.clamp(min=outer.lows[0], max=outer.highs[0])
            for _ in range(_PROOFS):
                space.lows[0], space.highs[0] = lower, upper
                sure = backward(space, last, rows, multipliers, rounded=True)[0][:, 0]
                failed = (sure <= 0) & (radius > start)
                if not bool(failed.any()):
                    break
                # What rounding takes is small, and the same in a ball that is smaller by a little.
                rate = (weight * (room > radius.unsqueeze(1))).sum(dim=1)
                less = (radius + 2 * sure / rate).nan_to_num(nan=-torch.inf)
                radius = torch.where(failed, torch.maximum(less, start), radius)
                lower, upper = self.ball(radius)
            return torch.where(sure > 0, radius, start), points, arrived

    def leaf(self, nodes: SearchNodes, k: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        one = nodes.pick(torch.tensor([k], device=low.device))
        low, high = low[k : k + 1], high[k : k + 1]
        rows = self.rows[one.which][0]
        before = self.own(one)[0]
        slopes, constants, places, signs = self.linear_leaf(one, rows, low, high)
        solved = self.solve_leaf(slopes.cpu().numpy(), constants.cpu().numpy())
        if solved is None:
            return before
        x, duals = solved
        self.best = np.minimum(self.best, self.offer_points(x[None], one.which.cpu().numpy()))
        weights = torch.as_tensor(duals, device=low.device)
        mu = torch.zeros(1, 1, nodes.sign.shape[1], dtype=torch.float64, device=low.device)
        mu[0, 0, places] = signs * weights[1:]
        multipliers = self.multipliers(torch.zeros_like(mu), mu)
        space = self.space(low, high, one)
        radius, _, _ = self.reached(space, weights[0] * rows.unsqueeze(0), multipliers, self.own(one))
        return radius[0]

    def solve_leaf(self, slopes: Float, constants: Float) -> tuple[Float, Float] | None:
        """``min r + P s`` with ``|x - x0| <= r``, margin <= 0, ``sign_i z_i + s >= 0``: x and the duals.

        Args:
            slopes, constants: of the margin, then of each ``sign_i z_i``, float64 [1 + signs, inputs].

        Returns:
            x, float64 [inputs], and the multipliers of the margin and of the signs, float64 [1 + signs]; None
            where the solver fails.
        """
        from scipy.optimize import linprog  # noqa: PLC0415  # most searches need no leaf

        x0 = self.centre.cpu().numpy()
        inputs, signs = len(x0), len(constants) - 1
        way = np.concatenate([[1.0], -np.ones(signs)])
        eye, one = sparse.eye_array(inputs), np.ones((inputs, 1))
        matrix = sparse.vstack(
            [
                sparse.hstack([eye, -one, 0 * one]),
                sparse.hstack([-eye, -one, 0 * one]),
                sparse.csr_array(
                    np.hstack([way[:, None] * slopes, np.zeros((1 + signs, 1)), np.minimum(way, 0)[:, None]])
                ),
            ]
        ).tocsr()
        limits = np.concatenate([x0, -x0, -way * constants])
        box = self.root.workspace.lows[0][0].cpu().numpy(), self.root.workspace.highs[0][0].cpu().numpy()
        sides = [*zip(*box, strict=True), (0.0, None), (0.0, None)]
        cost = np.concatenate([np.zeros(inputs), [1.0, _PENALTY]])
        found = linprog(cost, A_ub=matrix, b_ub=limits, bounds=sides, method="highs")
        if found.status != 0:
            return None
        duals = np.maximum(-np.asarray(found.ineqlin.marginals)[2 * inputs :], 0.0)
        return np.clip(np.asarray(found.x[:inputs]), *box), duals


class _BallSearch(_DistanceSearch):
    """``_DistanceSearch`` in L1 and L2; the root's workspace is that of the ball."""

    leaf_functions: tuple[Float, Float] | None = None

    @property
    def outer(self) -> BallWorkspace:
        """The root's bounds."""
        space = self.root.workspace
        if not isinstance(space, BallWorkspace):
            raise TypeError("not the bounds of a ball")
        return space

    def space(self, low: torch.Tensor, high: torch.Tensor, nodes: SearchNodes) -> Workspace:
        space = super().space(low, high, nodes)
        radius = self.own(nodes).clamp(min=0.0)
        if low.dtype == torch.float64:
            return around(space, self.outer.norm, self.centre, radius)
        found = TriedSpace.of(space)
        down, up = self.centre - self.outer.lows[0][0], self.outer.highs[0][0] - self.centre
        found.balls = Balls(self.outer.norm, self.centre.float(), down.float(), up.float(), radius.float())
        return found

    def inputs(self, space: Workspace) -> Regions:
        if not isinstance(space, TriedSpace) or space.balls is None:
            raise TypeError("not nodes in balls")
        return space.balls

    def reached(
        self, space: Workspace, rows: torch.Tensor, multipliers: Multipliers, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
        last = len(self.graph.nodes) - 1
        outer = self.outer
        with torch.no_grad():
            traced = TracedSpace.of(space)
            constant, arrived = backward(traced, last, rows, multipliers, rounded=False)
            slope = torch.zeros_like(outer.lows[0]) if traced.slope is None else traced.slope[:, 0]
            value = constant[:, 0] + slope @ self.centre
            reach = reach_of(
                outer.norm,
                self.centre.cpu().numpy(),
                slope.expand(len(rows), -1).cpu().numpy(),
                value.cpu().numpy(),
                outer.lows[0][0].cpu().numpy(),
                outer.highs[0][0].cpu().numpy(),
            )
            points, radius, rate = (
                torch.as_tensor(part, device=value.device)
                for part in (reach.points, reach.radius, reach.rate)
            )
            radius = torch.maximum(radius.clamp(max=self.radius) * (1 - _BACK) - 1e-15, start)
            for _ in range(_PROOFS):
                lower, upper = self.ball(radius)
                proof = around(space, outer.norm, self.centre, radius)
                proof.lows[0], proof.highs[0] = lower, upper
                sure = backward(proof, last, rows, multipliers, rounded=True)[0][:, 0]
                failed = (sure <= 0) & (radius > start)
                if not bool(failed.any()):
                    break
                less = (radius + 2 * sure / rate).nan_to_num(nan=-torch.inf)
                radius = torch.where(failed, torch.maximum(less, start), radius)
            return torch.where(sure > 0, radius, start), points, arrived

    def leaf(self, nodes: SearchNodes, k: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        found = super().leaf(nodes, k, low, high)
        if self.leaf_functions is None or not bool(self.alive(found.unsqueeze(0))[0]):
            return found
        # The closest input lies on the boundary, and may not replay where no slope leads into the region.
        slopes, constants = self.leaf_functions
        which = nodes.which[k : k + 1].cpu().numpy()
        scale = 1.0 + float(self.root.workspace.largest(len(self.graph.nodes) - 1).max())
        for share in _INSIDE:
            deeper = constants.copy()
            deeper[0] += share * scale
            solved = self.closest(slopes, deeper)
            if solved is not None:
                self.best = np.minimum(self.best, self.offer_points(solved[0][None], which))
            if not bool(self.alive(found.unsqueeze(0))[0]):
                break
        return found

    def solve_leaf(self, slopes: Float, constants: Float) -> tuple[Float, Float] | None:
        way = np.concatenate([[1.0], -np.ones(len(constants) - 1)])
        self.leaf_functions = way[:, None] * slopes, way * constants
        return self.closest(*self.leaf_functions)

    def closest(self, slopes: Float, constants: Float) -> tuple[Float, Float] | None:
        """See ``project``."""
        outer = self.outer
        box = outer.lows[0][0].cpu().numpy(), outer.highs[0][0].cpu().numpy()
        return project(outer.norm, self.centre.cpu().numpy(), slopes, constants, box, self.radius)
