"""The bounds of a batch while they are computed, node by node, and the interval rule for each node.

Without the budget a gated value v in [l, u] becomes [min(l, 0), max(u, 0)]: every neuron of the layer may
vanish at once (neuron-pruning paper, eq. 9, with the values after the gate).

With it, a row w over gated values p = m v, at most s gates of a budget group removed, is bounded by

    lower = sum_g A_g - (sum of the s largest of max(A_g, 0)),   A_g = sum_{r in g} min(w_r l_r, w_r u_r),

A_g summed over all the entries (of all layers of the group) that share gate g; the upper bound mirrored.
Removing gate g takes A_g away, which lowers the row only where A_g > 0, so the s largest are the worst.
Gates that a search has fixed count as they are: gone ones not at all, kept ones in full, and s is what the
gone ones have left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from milpver.bounds._rounding import outward, sum_error
from milpver.bounds._tensors import TensorGraph
from milpver.graph import Affine, Gate, Graph, Input, Max, Relu
from milpver.query import Budget, BudgetGroup

__all__ = ["Fixed", "SortedShares", "Workspace", "per_gate", "top_kept"]

#: Elements of the largest temporary (batch x rows x entries) of the budget rule.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Fixed:
    """Gates of a batch that branching has decided.

    Attributes:
        gone, kept: Gate node -> bool [batch, gates]; a gate is free where both are False.
        left: budget group's first node -> removals left in the group, int64 [batch], >= 0.
    """

    gone: Mapping[int, torch.Tensor]
    kept: Mapping[int, torch.Tensor]
    left: Mapping[int, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class SortedShares:
    """The shares A_g of fixed rows over gated values that one input fixes, sorted once for many masks.

    Attributes:
        values: A, for the rows and for their negation, float64 [2 rows, gates].
        largest: max(A, 0), descending, float64 [2 rows, gates].
        gates: which gates these are, int64 [2 rows, gates].
        magnitude: sum of magnitudes of each row, float64 [rows].
    """

    values: torch.Tensor
    largest: torch.Tensor
    gates: torch.Tensor
    magnitude: torch.Tensor

    @classmethod
    def of(cls, gate: Gate, w: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> SortedShares:
        """Sort the shares of rows ``w``, float64 [rows, size], over values in [low, high], float64 [size]."""
        at_low, at_high = (w * low).unsqueeze(0), (w * high).unsqueeze(0)
        down = per_gate(torch.minimum(at_low, at_high), gate)
        up = per_gate(-torch.maximum(at_low, at_high), gate)
        values = torch.cat([down, up], dim=1).squeeze(0)
        largest, gates = values.clamp(min=0.0).sort(dim=1, descending=True, stable=True)
        return cls(values, largest, gates, torch.maximum(at_low.abs(), at_high.abs()).sum(dim=2).squeeze(0))

    def kept(self, free: torch.Tensor, gone: torch.Tensor, most: int, left: torch.Tensor) -> torch.Tensor:
        """The budget rule, as ``top_kept``, for the rows and for their negation, float64 [batch, 2 rows].

        Only the first s gates that are free count, so that no more need be looked at than s and the largest
        number of gates that are not.

        Args:
            free, gone: bool [batch, gates].
            most: the group's s.
            left: removals left, int64 [batch], at most s.
        """
        total = (~gone).to(self.values.dtype) @ self.values.T
        closed = (~free & (left > 0).unsqueeze(1)).sum(dim=1)
        count = min(most + int(closed.max()), self.values.shape[1])
        places = self.gates[:, :count]
        open_ = free[:, places.reshape(-1)].reshape(len(free), *places.shape)
        rank = open_.to(torch.int32).cumsum(dim=2)
        taken = open_ & (rank <= left.view(-1, 1, 1))
        worst: torch.Tensor = total - (taken * self.largest[:, :count]).sum(dim=2)
        return worst


@dataclass(eq=False)
class Workspace:
    """A batch of boxes with the bounds known so far, in the order of the nodes.

    Attributes:
        tensors: the graph on its device.
        budget: the admissible masks.
        aware: whether a row counts at most s removals, or lets every gated neuron vanish.
        fixed: gates decided by branching, those that the budget forces among them; None: those alone.
        point: whether every box of the batch is a point.
        lows, highs: bounds of the nodes done so far, float64 [batch, size].
        magnitudes: for Affine nodes ``|M| max|x| + |b|``, float64 [batch, size].
        known: bounds known beforehand of some nodes (a parent's), met with what is computed.
        tightened: nodes whose bounds a backward pass has improved, in order.
        presorted: where every box is the same point: the shares of Affine nodes right behind gates that the
            input fixes, filled in and used again; None where the boxes differ.
        hurry: asked before each expensive step, which is left out once it says True; None: never.
    """

    tensors: TensorGraph
    budget: Budget
    aware: bool = True
    fixed: Fixed | None = None
    point: bool = False
    lows: list[torch.Tensor] = field(default_factory=list)
    highs: list[torch.Tensor] = field(default_factory=list)
    magnitudes: dict[int, torch.Tensor] = field(default_factory=dict)
    known: Mapping[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    tightened: list[int] = field(default_factory=list)
    presorted: dict[int, SortedShares] | None = None
    hurry: Callable[[], bool] | None = None

    @property
    def graph(self) -> Graph:
        """The network."""
        return self.tensors.graph

    @property
    def hurried(self) -> bool:
        """Whether to leave out what is not needed."""
        return self.hurry is not None and self.hurry()

    @property
    def batch(self) -> int:
        """Number of boxes."""
        return len(self.lows[0])

    @cached_property
    def constants(self) -> frozenset[int]:
        """Nodes whose values the input alone fixes (none unless every box is a point)."""
        found: set[int] = {0} if self.point else set()
        for index, node in enumerate(self.graph.nodes[1:], start=1):
            gated = isinstance(node, Gate) and self.budget.group_of(index) is not None
            if not gated and found.issuperset(node.sources):
                found.add(index)
        return frozenset(found)

    def settled(self, node: int) -> bool:
        """Whether the input alone fixes a Gate's source, and the Gate is its group's only node."""
        group = self.budget.group_of(node)
        return group is not None and group.nodes == (node,) and self.gate(node).source in self.constants

    def largest(self, node: int) -> torch.Tensor:
        """``max(|l|, |u|)`` of a node, float64 [batch, size]."""
        return torch.maximum(self.lows[node].abs(), self.highs[node].abs())

    @property
    def box_shaped(self) -> bool:
        """Whether all of a box is asked about: then intervals are exact for what reads the input alone."""
        return True

    def least(self, c: torch.Tensor) -> torch.Tensor:
        """``min c x`` over the inputs, float64 [batch, rows, inputs] -> [batch, rows]; not rounded."""
        least = c.clamp(min=0.0) @ self.lows[0].unsqueeze(2) + c.clamp(max=0.0) @ self.highs[0].unsqueeze(2)
        return least.squeeze(2)

    def counted(self, node: int) -> BudgetGroup | None:
        """The group of a Gate node whose removals rows count, or None where they do not."""
        return self.budget.group_of(node) if self.aware else None

    def removable(self, group: BudgetGroup) -> torch.Tensor:
        """Removals left in a group, int64 [batch]."""
        if self.fixed is None:
            left = self.budget.left(group)
            return torch.full((self.batch,), left, dtype=torch.int64, device=self.tensors.device)
        return self.fixed.left[group.nodes[0]]

    def gate(self, index: int) -> Gate:
        """A node that is a Gate."""
        return self.graph.gate(index)

    def owner(self, index: int) -> torch.Tensor:
        """The gate of each entry of a Gate node, int64 [size]."""
        return torch.as_tensor(self.gate(index).owner, device=self.tensors.device)

    def states(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For the gates of a Gate node with a budget: may be removed, is removed; bool [batch, gates]."""
        group = self.budget.group_of(index)
        if group is None:
            raise ValueError(f"node {index} has no budget")
        left = (self.removable(group) > 0).unsqueeze(1)
        shape = (self.batch, self.gate(index).gates)
        if self.fixed is None:
            forced = self.budget.forced(index, shape[1])
            kept, gone = (torch.as_tensor(state, device=left.device).expand(shape) for state in forced)
            return left & ~gone & ~kept, gone
        gone, kept = self.fixed.gone[index], self.fixed.kept[index]
        return left & ~gone & ~kept, gone

    def add(self, lower: torch.Tensor, upper: torch.Tensor) -> None:
        """Append the next node's bounds by the interval rule (``lower``, ``upper``: of the input)."""
        index = len(self.lows)
        node = self.graph.nodes[index]
        match node:
            case Input():
                low, high = lower, upper
            case Affine():
                low, high = self._affine(index, node)
            case Relu():
                low, high = self.lows[node.source].clamp(min=0.0), self.highs[node.source].clamp(min=0.0)
            case Max():
                groups = torch.as_tensor(node.groups, device=self.tensors.device)
                low = self.lows[node.source][:, groups].amax(dim=2)
                high = self.highs[node.source][:, groups].amax(dim=2)
            case Gate():
                low, high = self.lows[node.source], self.highs[node.source]
                if self.budget.group_of(index) is not None:
                    free, gone = (state[:, self.owner(index)] for state in self.states(index))
                    low = torch.where(free, low.clamp(max=0.0), low).masked_fill(gone, 0.0)
                    high = torch.where(free, high.clamp(min=0.0), high).masked_fill(gone, 0.0)
        if index in self.known:
            low = torch.maximum(low, self.known[index][0])
            high = torch.minimum(high, self.known[index][1])
        self.lows.append(low)
        self.highs.append(high)

    def _affine(self, index: int, node: Affine) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds of an Affine node: free terms by interval products, gated terms by the budget rule."""
        bias = self.tensors.biases[index]
        low = high = bias.expand(self.batch, -1)
        magnitude = bias.abs().expand(self.batch, -1)
        terms = 1
        gated: dict[int, torch.Tensor] = {}
        for (source, _), operator in zip(node.terms, self.tensors.operators[index], strict=True):
            if self.counted(source) is not None:
                coefficients = operator.dense.unsqueeze(0)
                gated[source] = gated[source] + coefficients if source in gated else coefficients
                terms += 2 * operator.linear.inputs + 2
                continue
            part_low, part_high, part_magnitude = operator.interval(self.lows[source], self.highs[source])
            low, high, magnitude = low + part_low, high + part_high, magnitude + part_magnitude
            terms += 2 * operator.row_terms + 1
        if gated:
            down, up, size = self._presorted_rows(index, gated) or self.gated_rows(gated)
            low, high, magnitude = low + down, high - up, magnitude + size
        self.magnitudes[index] = magnitude
        return outward(low, high, sum_error(magnitude, terms))

    def _presorted_rows(
        self, index: int, coefficients: Mapping[int, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """As ``gated_rows``, for an Affine node that reads one gate, fixed by the input; None for others."""
        if self.presorted is None or len(coefficients) != 1:
            return None
        ((node, w),) = coefficients.items()
        group = self.budget.group_of(node)
        if group is None or not self.settled(node):
            return None
        gate = self.gate(node)
        if index not in self.presorted:
            low, high = self.lows[gate.source][0], self.highs[gate.source][0]
            self.presorted[index] = SortedShares.of(gate, w[0], low, high)
        shares = self.presorted[index]
        free, gone = self.states(node)
        both = shares.kept(free, gone, group.removable, self.removable(group))
        rows = len(shares.magnitude)
        return both[:, :rows], both[:, rows:], shares.magnitude.expand(self.batch, -1)

    def gated_rows(
        self, coefficients: Mapping[int, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The budget rule on rows over gated values.

        Args:
            coefficients: Gate node -> w, float64 [batch or 1, rows, size]; every node has a budget.

        Returns:
            The lower bound of the rows, the lower bound of their negation, and the sum of magnitudes,
            float64 [batch, rows]; not rounded outward.
        """
        rows = next(iter(coefficients.values())).shape[1]
        total = [
            torch.zeros(self.batch, rows, dtype=torch.float64, device=self.tensors.device) for _ in "123"
        ]
        by_group: dict[BudgetGroup, list[int]] = {}
        for node in coefficients:
            group = self.budget.group_of(node)
            if group is None:
                raise ValueError(f"node {node} has no budget")
            by_group.setdefault(group, []).append(node)
        for group, nodes in by_group.items():
            width = sum(coefficients[node].shape[2] for node in nodes)
            step = max(1, _CHUNK // max(1, self.batch * width))
            for start in range(0, rows, step):
                part = slice(start, start + step)
                found = self._group_rows(group, {node: coefficients[node][:, part] for node in nodes})
                for sums, value in zip(total, found, strict=True):
                    sums[:, part] += value
        return total[0], total[1], total[2]

    def _group_rows(
        self, group: BudgetGroup, coefficients: Mapping[int, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The budget rule on rows over one group's gated values; as ``gated_rows``."""
        down, up, free_gates = [], [], []
        size = torch.zeros((), dtype=torch.float64, device=self.tensors.device)
        for node, w in coefficients.items():
            gate = self.gate(node)
            low, high = self.lows[gate.source].unsqueeze(1), self.highs[gate.source].unsqueeze(1)
            at_low, at_high = w * low, w * high
            size = size + torch.maximum(at_low.abs(), at_high.abs()).sum(dim=2)
            free, gone = (state.unsqueeze(1) for state in self.states(node))
            down.append(per_gate(torch.minimum(at_low, at_high), gate).masked_fill(gone, 0.0))
            up.append(per_gate(-torch.maximum(at_low, at_high), gate).masked_fill(gone, 0.0))
            free_gates.append(free)
        free = torch.cat(free_gates, dim=2)
        left = self.removable(group)
        return (
            top_kept(torch.cat(down, dim=2), free, group.removable, left),
            top_kept(torch.cat(up, dim=2), free, group.removable, left),
            size,
        )


def per_gate(values: torch.Tensor, gate: Gate) -> torch.Tensor:
    """Sums over the entries of each gate, float64 [batch, rows, size] -> [batch, rows, gates]."""
    if gate.private:
        return values
    owner = torch.as_tensor(gate.owner, device=values.device).expand(values.shape)
    sums = torch.zeros(*values.shape[:2], gate.gates, dtype=values.dtype, device=values.device)
    return sums.scatter_add(2, owner, values)


def top_kept(shares: torch.Tensor, free: torch.Tensor, most: int, left: torch.Tensor) -> torch.Tensor:
    """``sum_g A_g - (sum of the largest positive A_g of free gates, as many as are left)``.

    Args:
        shares: A, float64 [batch, rows, gates].
        free: bool [batch, 1, gates].
        most: the group's s.
        left: removals left, int64 [batch], at most s.
    """
    count = min(most, shares.shape[2])
    worst = (shares.clamp(min=0.0) * free).topk(count, dim=2).values
    rank = torch.arange(count, device=shares.device)
    return shares.sum(dim=2) - (worst * (rank < left.unsqueeze(1)).unsqueeze(1)).sum(dim=2)
