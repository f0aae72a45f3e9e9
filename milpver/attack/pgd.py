"""Projected gradient descent with restarts: inputs (and masks) that come closest to ``A y <= b``.

All restarts and all alternatives of a box run in one batch. The value of an alternative at a point is
``max_r (A_r y - b_r)``; a counterexample has a value <= 0. Restarts differ in where they start, in their
step and in whether they follow the gradient's sign or the gradient itself (Madry et al. 2018); those that
meet a zero gradient start again from a random point. The network is reached through an oracle, in numpy
(small networks: torch alone takes longer to load than they take to be attacked) or in torch, where masks can
be attacked as well: gates are removed where that lowers the value to first order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver.graph import Gate, Graph
from milpver.linear import Float
from milpver.query import Budget

if TYPE_CHECKING:
    import torch

    from milpver.bounds._tensors import TensorGraph

__all__ = ["Goal", "GraphOracle", "Offer", "Oracle", "TensorOracle", "attack", "evaluate"]

#: Gate node -> bool [n, gates], True for removed.
RemovedGates: TypeAlias = Mapping[int, NDArray[np.bool_]]

#: Replays candidates (inputs, float64 [n, inputs], and masks); True once the question is settled.
Offer: TypeAlias = Callable[[Float, RemovedGates], bool]

#: First steps of the restarts in turn, as shares of the box's width.
_STEPS = (0.25, 0.08, 0.02, 0.5)


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """What the attack looks for.

    Attributes:
        lower, upper: the box, float64 [inputs].
        rows: A of all alternatives, float64 [rows, outputs].
        limits: b, float64 [rows].
        owner: which alternative each row belongs to, int64 [rows], ascending.
    """

    lower: Float
    upper: Float
    rows: Float
    limits: Float
    owner: NDArray[np.int64]

    @classmethod
    def of(cls, lower: Float, upper: Float, alternatives: Sequence[tuple[Float, Float]]) -> Goal:
        """A goal of alternatives (A, b)."""
        return cls(
            lower,
            upper,
            np.concatenate([rows for rows, _ in alternatives]),
            np.concatenate([limits for _, limits in alternatives]),
            np.repeat(np.arange(len(alternatives)), [len(limits) for _, limits in alternatives]),
        )

    @property
    def alternatives(self) -> int:
        """Number of alternatives."""
        return int(self.owner[-1]) + 1

    def excess(self, outputs: Float) -> Float:
        """``A y - b``, float64 [n, outputs] -> [n, rows]."""
        found: Float = outputs @ self.rows.T - self.limits
        return found

    def values(self, outputs: Float) -> Float:
        """The value of each alternative, float64 [n, outputs] -> [n, alternatives]."""
        return self._largest(self.excess(outputs))

    def below(self, bounds: Float) -> Float:
        """Lower bounds of the values from those of ``A y``, float64 [n, rows] -> [n, alternatives]."""
        with np.errstate(invalid="ignore"):
            excess = np.nextafter(bounds - self.limits, -np.inf)
        return self._largest(np.where(np.isnan(excess), -np.inf, excess))

    def _largest(self, excess: Float) -> Float:
        """The largest of each alternative's rows, float64 [n, rows] -> [n, alternatives]."""
        first = np.searchsorted(self.owner, np.arange(self.alternatives))
        found: Float = np.maximum.reduceat(excess, first, axis=1)
        return found


class Oracle(Protocol):
    """Runs a network and pulls gradients back."""

    def forward(self, x: Float, removed: RemovedGates) -> Float:
        """Outputs, float64 [n, inputs] -> [n, outputs]; what ``pull`` refers to."""

    def pull(self, rows: Float) -> tuple[Float, Mapping[int, Float]]:
        """Gradients of one row a point, float64 [n, outputs].

        Returns:
            With respect to the input, float64 [n, inputs], and to m of each Gate node, float64 [n, gates].
        """


class GraphOracle:
    """The graph itself in numpy; it knows no gradients of masks."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._values: list[Float] = []
        self._removed: RemovedGates = {}

    def forward(self, x: Float, removed: RemovedGates) -> Float:
        """See ``Oracle``."""
        self._values, self._removed = self._graph.trace(x, removed), removed
        return self._values[-1]

    def pull(self, rows: Float) -> tuple[Float, Mapping[int, Float]]:
        """See ``Oracle``."""
        return self._graph.pullback(self._values, rows, self._removed), {}


class TensorOracle:
    """The graph in torch.

    Args:
        tensors: the graph on its device.
        gates: Gate nodes whose gradients are asked for.
    """

    def __init__(self, tensors: TensorGraph, gates: Sequence[int] = ()) -> None:
        self._tensors = tensors
        self._gates = tuple(gates)
        self._leaves: list[torch.Tensor] = []
        self._output: torch.Tensor | None = None

    def forward(self, x: Float, removed: RemovedGates) -> Float:
        """See ``Oracle``."""
        start = self._tensors.tensor(x).requires_grad_()
        masks = {node: self._tensors.tensor((~removed[node]).astype(np.float64)) for node in removed}
        for node in self._gates:
            if node not in masks:
                masks[node] = self._tensors.tensor(np.ones((len(x), self._tensors.graph.gate(node).gates)))
            masks[node].requires_grad_()
        self._leaves = [start, *(masks[node] for node in self._gates)]
        self._output = evaluate(self._tensors, start, masks)
        found: Float = self._output.detach().cpu().numpy()
        return found

    def pull(self, rows: Float) -> tuple[Float, Mapping[int, Float]]:
        """See ``Oracle``."""
        import torch  # noqa: PLC0415  only where torch is loaded already

        if self._output is None:
            raise ValueError("nothing was run yet")
        if not self._output.requires_grad:
            slopes = [torch.zeros_like(leaf) for leaf in self._leaves]
        else:
            # Of a sum: given rows, torch loads a computer algebra system, which takes a second.
            total = (self._output * self._tensors.tensor(rows)).sum()
            found = torch.autograd.grad(total, self._leaves, allow_unused=True)
            slopes = [
                torch.zeros_like(leaf) if slope is None else slope
                for leaf, slope in zip(self._leaves, found, strict=True)
            ]
        own, *gates = (slope.cpu().numpy() for slope in slopes)
        return own, dict(zip(self._gates, gates, strict=True))


def evaluate(
    tensors: TensorGraph, x: torch.Tensor, masks: Mapping[int, torch.Tensor] | None = None
) -> torch.Tensor:
    """The network in torch, differentiable; not rounded outward.

    Args:
        tensors: the graph on its device.
        x: float64 [batch, inputs].
        masks: Gate node -> m, float64 [batch or 1, gates]; absent: nothing removed.

    Returns:
        float64 [batch, outputs].
    """
    import torch  # noqa: PLC0415  only where torch is loaded already

    from milpver.graph import Affine, Input, Max, Relu  # noqa: PLC0415  beside torch

    values: list[torch.Tensor] = []
    for index, node in enumerate(tensors.graph.nodes):
        match node:
            case Input():
                values.append(x)
            case Affine():
                total = tensors.biases[index].expand(len(x), -1)
                for (source, _), operator in zip(node.terms, tensors.operators[index], strict=True):
                    total = total + operator.forward(values[source])
                values.append(total)
            case Relu(source=source):
                values.append(values[source].clamp(min=0.0))
            case Max(source=source, groups=groups):
                places = torch.as_tensor(groups, device=tensors.device)
                values.append(values[source][:, places].amax(dim=2))
            case Gate(source=source, owner=owner):
                mask = None if masks is None else masks.get(index)
                if mask is None:
                    values.append(values[source])
                else:
                    spread = mask if node.private else mask[:, torch.as_tensor(owner, device=mask.device)]
                    values.append(values[source] * spread)
    return values[-1]


def attack(
    oracle: Oracle,
    goal: Goal,
    offer: Offer,
    *,
    restarts: int,
    steps: int,
    seed: int,
    budget: Budget | None = None,
    graph: Graph | None = None,
    starts: Float | None = None,
    expired: Callable[[], bool] | None = None,
) -> tuple[Float, Float]:
    """Look for a counterexample.

    Args:
        oracle: the network.
        goal: the box and the alternatives.
        offer: replays candidates: points whose value of some alternative is <= 0 in float64.
        restarts: starts for each alternative.
        steps: gradient steps.
        seed: of the random starts.
        budget: masks that may be chosen as well; then ``graph`` is needed, and an oracle for these gates.
        graph: the network's.
        starts: points to begin with, float64 [some, inputs].
        expired: asked before each step; True ends the attack.

    Returns:
        The smallest value of each alternative, float64 [alternatives], and the points that have them,
        float64 [alternatives, inputs].
    """
    run = _Run(oracle, goal, offer, budget if budget is not None and budget.groups else None, graph)
    run.begin(restarts, np.random.default_rng(seed), starts)
    for step in range(steps):
        if (expired is not None and expired()) or run.step(step / max(steps, 1)):
            break
    return run.best, run.points


class _Run:
    """One attack under way."""

    def __init__(
        self, oracle: Oracle, goal: Goal, offer: Offer, budget: Budget | None, graph: Graph | None
    ) -> None:
        self._oracle = oracle
        self._goal = goal
        self._offer = offer
        self._budget = budget
        self._graph = graph
        self._width = goal.upper - goal.lower
        self.best: Float = np.full(goal.alternatives, np.inf)
        self.points: Float = np.tile((goal.lower + goal.upper) / 2, (goal.alternatives, 1))
        self._offered: Float = np.full(goal.alternatives, np.inf)

    def begin(self, restarts: int, rng: np.random.Generator, starts: Float | None) -> None:
        """Place the starts: the centre, given ones, random points, near and far, and corners."""
        goal = self._goal
        self._rng = rng
        count = restarts * goal.alternatives
        self._target = np.tile(np.arange(goal.alternatives), restarts)
        reach = np.resize([0.0, 1.0, 0.3, 1.0], restarts).repeat(goal.alternatives)[:, None]
        offsets = rng.uniform(-0.5, 0.5, (count, len(goal.lower)))
        corners = np.resize([False, False, False, True], restarts).repeat(goal.alternatives)
        offsets[corners] = np.sign(offsets[corners]) / 2
        self._x = np.clip(
            (goal.lower + goal.upper) / 2 + reach * offsets * self._width, goal.lower, goal.upper
        )
        if starts is not None and len(starts):
            self._x[: min(count, len(starts))] = np.clip(starts[:count], goal.lower, goal.upper)
        self._first = np.resize(_STEPS, restarts).repeat(goal.alternatives)[:, None]
        self._signed = np.resize([True, True, True, True, False], restarts).repeat(goal.alternatives)[:, None]
        self._removed: dict[int, NDArray[np.bool_]] = {}
        if self._budget is not None and self._graph is not None:
            for group in self._budget.groups:
                for node in group.nodes:
                    forced = self._budget.forced(node, self._graph.gate(node).gates)[1]
                    self._removed[node] = np.tile(forced, (count, 1))
        # How much chance there is in the choice of masks: none in the first restarts, then more and more.
        self._noise = np.linspace(0.0, 1.5, restarts).repeat(goal.alternatives)[:, None]

    def step(self, progress: float) -> bool:
        """One gradient step of all restarts; True once the question is settled."""
        goal, x = self._goal, self._x
        outputs = self._oracle.forward(x, self._removed)
        excess = goal.excess(outputs)
        if self._note(goal.values(outputs)):
            return True
        rows = self._weights(excess) @ goal.rows
        slope, gates = self._oracle.pull(rows)
        size = np.abs(slope).max(axis=1, keepdims=True)
        stuck = ~(size[:, 0] > 0)
        direction = np.where(self._signed, np.sign(slope), slope / np.where(size > 0, size, 1.0))
        length = self._first * (1.0 - progress) ** 1.5 * self._width
        x = x - length * direction
        if stuck.any():
            x[stuck] = self._rng.uniform(goal.lower, goal.upper, (int(stuck.sum()), len(goal.lower)))
        self._x = np.clip(x, goal.lower, goal.upper)
        if gates and self._budget is not None:
            self._remove(gates)
        return False

    def _weights(self, excess: Float) -> Float:
        """What of its alternative's rows each point descends: the positive ones by size, or the largest."""
        own = self._goal.owner == self._target[:, None]
        positive = np.where(own, np.maximum(excess, 0.0), 0.0)
        total = positive.sum(axis=1, keepdims=True)
        largest = np.where(own, excess, -np.inf).argmax(axis=1)
        single = np.eye(excess.shape[1])[largest]
        return np.where(total > 0, positive / np.where(total > 0, total, 1.0), single)

    def _note(self, values: Float) -> bool:
        """Keep the best points, and offer those that may be counterexamples."""
        lowest = values.argmin(axis=0)
        found = values[lowest, np.arange(values.shape[1])]
        better = found < self.best
        self.best = np.where(better, found, self.best)
        self.points[better] = self._x[lowest[better]]
        # A point that was refused (float32 sees it differently) is followed up where it gets clearly lower.
        worth = (found <= 0) & (found < self._offered)
        if not worth.any():
            return False
        self._offered = np.where(worth, found, self._offered)
        hits = np.unique(np.concatenate([np.argsort(values[:, k])[:4] for k in np.flatnonzero(worth)]))
        hits = hits[values[hits].min(axis=1) <= 0]
        return self._offer(self._x[hits], {node: gone[hits] for node, gone in self._removed.items()})

    def _remove(self, gates: Mapping[int, Float]) -> None:
        """Remove the gates whose removal lowers the value the most to first order, as the budget allows."""
        if self._budget is None:
            return
        for group in self._budget.groups:
            gains = np.concatenate([gates[node] for node in group.nodes], axis=1)
            gains = gains + self._noise * self._rng.standard_normal(gains.shape) * gains.std(
                axis=1, keepdims=True
            )
            forced = [self._budget.forced(node, gates[node].shape[1]) for node in group.nodes]
            kept, gone = (np.concatenate(state) for state in zip(*forced, strict=True))
            gains = np.where(kept | gone, -np.inf, gains)
            order = np.argsort(-gains, axis=1, kind="stable")[:, : self._budget.left(group)]
            chosen = np.zeros(gains.shape, dtype=np.bool_)
            np.put_along_axis(chosen, order, np.take_along_axis(gains, order, axis=1) > 0, axis=1)
            chosen |= gone
            start = 0
            for node in group.nodes:
                width = gates[node].shape[1]
                self._removed[node] = chosen[:, start : start + width]
                start += width
