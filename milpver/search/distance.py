"""The distance to the decision boundary by branch and bound on signs of ReLUs, bounded on the radius itself.

In a ball, every node of ``_phases`` has a linear function below its margin. The smallest radius at which that
function can reach 0 is a lower bound of the distance on the node; nodes are taken by it, and closed where it
comes up to the ball's, or to the closest adversarial input known. What rounding may take from the function
is taken from it first (``FlatCrown.functions``); in L1 and L2 a radius counts once a backward pass over its
own ball, rounded outward, has found a bound > 0 there. With all signs fixed a linear program (for L2 a
projection) gives the distance on the node, and its duals a function that proves it. L1 and L2 balls are never
taken for the boxes around them, by bounds of pre-activations neither.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse

from milpver.bounds._crown import Multipliers, backward, crown_bounds
from milpver.bounds._norm_ball import BallWorkspace
from milpver.bounds._rounding import gamma
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Max, Relu
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
    Boxes,
    Regions,
    TriedSpace,
    around,
    reach_of,
    root_space,
)
from milpver.search.box import root_steps
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop

__all__ = ["SLACK", "search_distance"]

#: Offers points, float64 [n, inputs], for targets, int64 [n]; the closest known adversarial input's distance.
OfferPoints = Callable[[Float, Int], float]
#: Nodes of a batch whose points are offered.
_CANDIDATES = 4
#: Points of one batch in 2^this are offered where those offered before were of no use.
_RARELY = 4
#: What a node's radius may lack of the ball's, as a share of the gap: rounding takes a little.
SLACK = 0.1
#: What a radius is taken back by, relative to it, so that rounding does not undo it.
_BACK = 1e-12
#: Unstable neurons up to which nodes get bounds of their own in L1 and L2 where convolutions went away.
_RECOMPUTED = 200
#: How often a radius that rounding refuses is taken back by what it lacks.
_PROOFS = 3
#: Newton's steps towards a radius.
_NEWTON = 12
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
    upper: float | None = None,
) -> SearchResult:
    """Search a ball for the closest adversarial input.

    Args:
        tensors: the graph on its device.
        ball: around x0, clipped to the domain; for ``l1`` and ``l2`` the box around it.
        radius: of the ball: what is to be proven, the distance of the closest adversarial input known less
            the gap, or more.
        rows: ``f_label - f_j`` of each target, float64 [targets, outputs]; adversarial where one is <= 0.
        offer: replays points.
        limits: when to stop; ``gap`` is one of distances.
        known: certified radius of each target, float64 [targets]; None: 0.
        norm: ``linf``, ``l1`` or ``l2``.
        upper: distance of the closest adversarial input known; None: ``radius``.

    Returns:
        Lower bounds of each target's distance, float64 [targets], at most ``radius``.
    """
    if any(isinstance(node, Max) for node in tensors.graph.nodes):
        tensors = TensorGraph(without_max(tensors.graph), tensors.device)
    if any(isinstance(node, Relu) and node.source == 0 for node in tensors.graph.nodes):
        # A sign of an input is a bound of it, and balls need all of the box around x0: so it gets a node.
        size = tensors.graph.inputs
        apart = tensors.graph.prefixed(np.ones(size), np.zeros(size), "input")
        tensors = TensorGraph(apart, tensors.device)
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
    recompute = fewer is None or (norm != "linf" and _unstable(small, space) <= _RECOMPUTED)
    search = (_DistanceSearch if norm == "linf" else _BallSearch)(
        Root.of(small, space, best, dense=fewer is not None, recompute=recompute),
        alternatives.only(~proven),
        (tensors.tensor(ball.centre), radius),
        floor[~proven],
        lambda x, which: offer(x, np.flatnonzero(~proven)[which]),
        limits,
        radius if upper is None else upper,
    )
    stop = search.run()
    inner = np.minimum(search.closed, search.frontier.smallest(int((~proven).sum())))
    lower[~proven] = np.clip(inner, floor[~proven], radius)
    return SearchResult(lower, np.where(proven, radius, 0.0), search.nodes, stop)


def _unstable(tensors: TensorGraph, space: Workspace) -> int:
    """Neurons whose sign is open."""
    spans = Layout(tensors.graph).spans
    return sum(int(((space.lows[node] < 0) & (space.highs[node] > 0)).sum()) for node in spans)


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
        best: float,
    ) -> None:
        self.centre, self.radius = ball
        self.floor = torch.as_tensor(floor, device=self.centre.device)
        self.offer_points = offer
        self.batches = self.failures = 0
        known: Float = np.full(alternatives.count, best)
        super().__init__(root, alternatives, lambda *_: known, known, limits, early=True)

    def first(self) -> SearchNodes:
        nodes = super().first()
        nodes.lower.diagonal().copy_(self.floor)
        return nodes

    def decided(self) -> bool:
        return False

    def alive(self, lower: torch.Tensor) -> torch.Tensor:
        return lower < self.wanted

    @property
    def wanted(self) -> float:
        """The radius that closes a node."""
        return min(float(self.best.min()) - self.limits.gap, self.radius - SLACK * self.limits.gap)

    def inputs(self, nodes: SearchNodes) -> Regions:
        del nodes  # what is tried may be tried anywhere: a bound > 0 in this ball closes a node
        return Boxes.of(*self.ball(self.centre.new_full((1,), self.wanted)))

    def done(self, value: torch.Tensor) -> torch.Tensor:
        return value > 0

    def ball(self, radius: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Balls around x0 within the root's, rounded outward, float64 [nodes, inputs] each."""
        wide = radius.unsqueeze(1) * (1 + gamma(8)) + self.centre.abs() * gamma(8) + 1e-300
        outer = self.root.workspace
        return torch.maximum(self.centre - wide, outer.lows[0]), torch.minimum(
            self.centre + wide, outer.highs[0]
        )

    def valued(
        self, nodes: SearchNodes, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = self.rows[nodes.which]
        radius, slope, arrived = self.measured(nodes, rows, low, high, (nodes.alpha, nodes.mu))
        self.batches += 1
        if self.batches % (1 << min(self.failures, _RARELY)) == 0:
            least = radius.topk(min(_CANDIDATES, len(radius)), largest=False).indices
            points = self.points(slope[least], radius[least])
            near = self.offer_points(points.cpu().numpy(), nodes.which[least].cpu().numpy())
            self.failures = 0 if near < self.best.min() else self.failures + 1
            self.best = np.minimum(self.best, near)
        return radius, arrived, torch.zeros_like(nodes.which)

    def measured(
        self,
        nodes: SearchNodes,
        rows: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        multipliers: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The smallest radii at which linear functions below rows can reach 0.

        Args:
            nodes: the nodes.
            rows: float64 [nodes, 1, outputs].
            low, high: the nodes' bounds of every neuron, float64 [nodes, neurons].
            multipliers: alpha and mu, [nodes, 1, U].

        Returns:
            Radii, proven or else those known before, float64 [nodes]; the functions' slopes, float64 [nodes,
            inputs]; and what arrives at the unstable neurons, float64 [nodes, 1, U].
        """
        slope, constant, arrived = self.functions(rows, low, high, multipliers)
        return self.reached(slope[:, 0], constant[:, 0], self.own(nodes)), slope[:, 0], arrived

    def points(self, slope: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        """Where linear functions are smallest in balls, float64 [nodes, inputs]."""
        steps = torch.where(slope > 0, -radius.unsqueeze(1), radius.unsqueeze(1)) * (slope != 0)
        outer = self.root.workspace
        return (self.centre + steps).clamp(min=outer.lows[0], max=outer.highs[0])

    def reached(self, slope: torch.Tensor, constant: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The smallest radii at which linear functions can reach 0, float64 [nodes], rounded downward.

        With ``a x + c`` the function and ``room_i`` the way to the box's edge, the radius r solves
        ``a x0 + c = sum_i |a_i| min(r, room_i)``; Newton's steps from the left approach it from the left,
        the right-hand side being concave. What rounding may take of either side is taken from the left one.

        Args:
            slope, constant: of functions as ``FlatCrown.functions`` gives them.
            start: radii known before, float64 [nodes].

        Returns:
            Radii, at least ``start`` and at most the ball's.
        """
        outer = self.root.workspace
        rise, fall = slope.clamp(min=0.0), (-slope).clamp(min=0.0)
        down, up = self.centre - outer.lows[0][0], outer.highs[0][0] - self.centre
        centre = self.centre
        value = slope @ centre + constant
        sizes = (rise + fall) @ (centre.abs() + down + up) + constant.abs()
        value = value - gamma(4 * slope.shape[1] + 64) * sizes - 1e-300
        # Beyond this every entry of some is at its edge.
        least = float(torch.minimum(down, up).min())

        def covered(radius: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if float(radius.max()) <= least:
                rate = rise.sum(dim=1) + fall.sum(dim=1)
                return rate * radius, rate
            most = radius.unsqueeze(1)
            total = (rise * torch.minimum(most, down)).sum(dim=1) + (fall * torch.minimum(most, up)).sum(
                dim=1
            )
            return total, (rise * (most < down)).sum(dim=1) + (fall * (most < up)).sum(dim=1)

        radius = torch.zeros_like(value)
        for _ in range(_NEWTON):
            before = radius
            total, rate = covered(radius)
            step = (value - total).clamp(min=0.0) / rate
            radius = (radius + step.nan_to_num(nan=0.0, posinf=torch.inf)).clamp(max=self.radius)
            if bool((radius <= before * (1 + _BACK)).all()):
                break
        radius = radius * (1 - _BACK)
        return torch.where(value > covered(radius)[0], torch.maximum(radius, start), start)

    def leaf(self, nodes: SearchNodes, k: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        one = nodes.pick(torch.tensor([k], device=low.device))
        low, high = low[k : k + 1], high[k : k + 1]
        rows, which = self.rows[one.which][0], one.which.cpu().numpy()
        slopes, constants, places, signs = self.linear_leaf(one, rows, low, high)
        functions = slopes.cpu().numpy(), constants.cpu().numpy()
        weight = torch.ones((), dtype=torch.float64, device=low.device)
        mu = torch.zeros(1, 1, nodes.sign.shape[1], dtype=torch.float64, device=low.device)
        solved = self.solve_leaf(*functions)
        # Without a solution the margin is above 0 in all of the box, and that needs no sign to be proven.
        if solved is not None:
            x, duals = solved
            self.best = np.minimum(self.best, self.offer_points(x[None], which))
            weights = torch.as_tensor(duals, device=low.device)
            weight, mu[0, 0, places] = weights[0], signs * weights[1:]
        radius, _, _ = self.measured(one, weight * rows.unsqueeze(0), low, high, (torch.zeros_like(mu), mu))
        if solved is None:
            return radius[0]
        # The closest input lies on the boundary, and may not replay where no slope leads into the region.
        scale = 1.0 + float(self.root.workspace.largest(len(self.graph.nodes) - 1).max())
        for share in _INSIDE:
            if not bool(self.alive(radius)[0]):
                break
            deeper = functions[1].copy()
            deeper[0] += share * scale
            solved = self.solve_leaf(functions[0], deeper)
            if solved is not None:
                self.best = np.minimum(self.best, self.offer_points(solved[0][None], which))
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
        # In units of the inputs each: what a contradiction costs and the solver's tolerances are absolute.
        size = np.abs(slopes).sum(axis=1)
        size = np.exp2(np.round(np.log2(np.where(size > 0, size, 1.0))))
        slopes, constants = slopes / size[:, None], constants / size
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
        return np.clip(np.asarray(found.x[:inputs]), *box), duals / size


class _BallSearch(_DistanceSearch):
    """``_DistanceSearch`` in L1 and L2; the root's workspace is that of the ball."""

    @property
    def outer(self) -> BallWorkspace:
        """The root's bounds."""
        space = self.root.workspace
        if not isinstance(space, BallWorkspace):
            raise TypeError("not the bounds of a ball")
        return space

    def space(self, low: torch.Tensor, high: torch.Tensor, nodes: SearchNodes) -> Workspace:
        space = super().space(low, high, nodes)
        if low.dtype == torch.float64:
            return space
        found = TriedSpace.of(space)
        found.balls = self.inputs(nodes)
        return found

    def inputs(self, nodes: SearchNodes) -> Balls:
        down, up = self.centre - self.outer.lows[0][0], self.outer.highs[0][0] - self.centre
        radius = self.centre.new_full((len(nodes),), max(self.wanted, 0.0))
        return Balls(self.outer.norm, self.centre.float(), down.float(), up.float(), radius.float())

    def points(self, slope: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
        outer = self.outer
        balls = Balls(
            outer.norm, self.centre, self.centre - outer.lows[0][0], outer.highs[0][0] - self.centre, radius
        )
        return balls.lowest(slope.unsqueeze(1))[:, 0]

    def measured(
        self,
        nodes: SearchNodes,
        rows: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        multipliers: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        last = len(self.graph.nodes) - 1
        outer, start = self.outer, self.own(nodes)
        slopes, constant, arrived = self.functions(rows, low, high, multipliers)
        slope = slopes[:, 0]
        reach = reach_of(
            outer.norm,
            self.centre.cpu().numpy(),
            slope.cpu().numpy(),
            (constant[:, 0] + slope @ self.centre).cpu().numpy(),
            outer.lows[0][0].cpu().numpy(),
            outer.highs[0][0].cpu().numpy(),
        )
        radius, rate = (torch.as_tensor(part, device=start.device) for part in (reach.radius, reach.rate))
        radius = torch.maximum(radius.clamp(max=self.radius) * (1 - _BACK) - 1e-15, start)
        every = self.multipliers(*(part.double() for part in multipliers))
        sure = torch.full_like(radius, -torch.inf)
        with torch.no_grad():
            for _ in range(_PROOFS):
                proof = around(self.space(low, high, nodes), outer.norm, self.centre, radius)
                proof.lows[0], proof.highs[0] = self.ball(radius)
                sure = backward(proof, last, rows, every, rounded=True)[0][:, 0]
                failed = (sure <= 0) & (radius > start)
                if not bool(failed.any()):
                    break
                less = (radius + 2 * sure / rate).nan_to_num(nan=-torch.inf)
                radius = torch.where(failed, torch.maximum(less, start), radius)
        return torch.where(sure > 0, radius, start), slope, arrived

    def solve_leaf(self, slopes: Float, constants: Float) -> tuple[Float, Float] | None:
        way = np.concatenate([[1.0], -np.ones(len(constants) - 1)])
        outer = self.outer
        box = outer.lows[0][0].cpu().numpy(), outer.highs[0][0].cpu().numpy()
        functions = way[:, None] * slopes, way * constants
        return project(outer.norm, self.centre.cpu().numpy(), *functions, box, self.radius)
