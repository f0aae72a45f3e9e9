"""Backward linear bounds for batches of search nodes, of the neurons that need them and of no others.

``bounds._crown`` pulls back the same rows for every box of a batch, with slopes that an ascent moves. A
search over boxes bounds thousands of boxes in which few neurons are unstable, and in each others: here every
row belongs to one box and to one neuron, rows of many boxes go through the network together (the weights are
the same), and slopes are the first ones (``ReluLines.flat``). The lines and the rounding are those of
``bounds._crown``; what rounding is charged is taken at the root's bounds, which hold in all boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from milpver.bounds._crown import ReluLines, affine_terms
from milpver.bounds._norm_ball import BallWorkspace
from milpver.bounds._rounding import gamma, outward
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine, Gate, Graph, Input, Relu
from milpver.linear import Dense

__all__ = ["FlatCrown", "Layout", "Passes"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the bounds of each pre-activation stand in the flat arrays of search nodes.

    Attributes:
        graph: the network, of Input, Affine, Relu and unbudgeted Gate nodes.
    """

    graph: Graph

    @cached_property
    def relus(self) -> tuple[int, ...]:
        """The Relu nodes, in order."""
        return tuple(i for i, node in enumerate(self.graph.nodes) if isinstance(node, Relu))

    @cached_property
    def spans(self) -> dict[int, tuple[int, int]]:
        """Node that some Relu reads -> first and last entry, in graph order."""
        found: dict[int, tuple[int, int]] = {}
        at = 0
        for source in sorted({self.graph.nodes[relu].sources[0] for relu in self.relus}):
            found[source] = (at, at + self.graph.nodes[source].size)
            at = found[source][1]
        return found

    @property
    def neurons(self) -> int:
        """Number of entries."""
        return max((last for _, last in self.spans.values()), default=0)

    def joined(self, values: list[torch.Tensor]) -> torch.Tensor:
        """Values of every node, [batch, size] each, as [batch, neurons]."""
        parts = [values[source] for source in self.spans]
        return torch.cat(parts, dim=1) if parts else values[0].new_zeros(len(values[0]), 0)


class Passes:
    """What is done with the coefficients c of rows, float64 [rows, size], beside products with matrices."""

    #: Elements of a temporary of one step backward: what stays in a core's cache.
    chunk = 1 << 16

    def weighed(
        self, c: torch.Tensor, charge: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``|c| @ charge`` and ``c @ bias``, float64 [rows]; charge and bias are [size]."""
        return c.abs() @ charge, None if bias is None else c @ bias

    def least(
        self, c: torch.Tensor, owner: torch.Tensor, box: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The minimum of ``c x`` over each row's box, float64 [rows]; limits are [boxes or 1, inputs]."""
        at = owner if len(box[0]) > 1 else torch.zeros_like(owner)
        return torch.where(c > 0, c * box[0][at], c * box[1][at]).sum(dim=1)

    def through_relu(
        self, c: torch.Tensor, owner: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Coefficients before a ReLU, and what goes to the constant; ``table`` is float64 [boxes, 3 size]."""
        flat, steep, missed = table[owner].chunk(3, dim=1)
        down = c.clamp(max=0.0)
        return torch.addcmul((c - down) * flat, down, steep), (down * missed).sum(dim=1)


class FlatCrown:
    """Bounds many boxes that lie in one, the root.

    Args:
        tensors: the graph on its device.
        root: the root's bounds of every node, a batch of one; those of a ball stand for all boxes.
        layout: of the arrays that bounds come in and go out by.
        many: there will be many rows, so that compiled code, which takes a second to load, is worth it.
    """

    def __init__(self, tensors: TensorGraph, root: Workspace, layout: Layout, *, many: bool = False) -> None:
        self._passes = Passes()
        if many and tensors.device.type == "cpu":
            from milpver.search._flat_kernel import CompiledPasses  # noqa: PLC0415  it takes a second to load

            self._passes = CompiledPasses()
        self._tensors = tensors
        self._graph = tensors.graph
        self._layout = layout
        self._root = root
        self._largest = [root.largest(index)[0] for index in range(len(self._graph.nodes))]
        self._charges = self._rounding(root)

    def _rounding(self, root: Workspace) -> dict[int, torch.Tensor]:
        """What a coefficient of 1 at an entry is charged for rounding, float64 [size] by node.

        At an Affine node, as ``_crown._affine``: the products with M and b, n the terms of the longest sum.
        Where a Relu reads the node, the slope that was sent on, rounded, and its constant: at most 8
        roundings of ``|C| (u - l)``.
        """
        charges: dict[int, torch.Tensor] = {}
        for index, node in enumerate(self._graph.nodes):
            size = torch.zeros_like(self._largest[index])
            read = any(isinstance(self._graph.nodes[reader], Relu) for reader in self._graph.consumers[index])
            if read:
                size = size + gamma(32) * self._largest[index]
            if isinstance(node, Affine):
                size = size + gamma(affine_terms(self._tensors, index)) * root.magnitudes[index][0]
            if isinstance(node, Input):
                size = size + gamma(2 * node.size + 8) * self._largest[index]
            if bool((size > 0).any()):
                charges[index] = size * (1 + gamma(64))
        return charges

    def refresh(
        self,
        lower: torch.Tensor,
        upper: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        behind: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tighten the bounds of unstable neurons.

        Args:
            lower, upper: the boxes, float64 [batch, inputs].
            low, high: bounds known of every neuron, float64 [batch, neurons].
            behind: only nodes behind this one are tightened, int64 [batch]; None: all.

        Returns:
            New ``low`` and ``high``. Where one lies above the other, no input of the box fulfils the signs
            that the known bounds stand for.
        """
        low, high = low.clone(), high.clone()
        lines: dict[int, torch.Tensor] = {}
        for source, (a, b) in self._layout.spans.items():
            if source > 0:
                open_ = (low[:, a:b] < 0) & (high[:, a:b] > 0)
                if behind is not None:
                    open_ &= (behind < source).unsqueeze(1)
                self._tighten(source, open_, (lower, upper), low[:, a:b], high[:, a:b], lines)
            lines[source] = _table(low[:, a:b], high[:, a:b])
        return low, high

    def linear(
        self, source: int, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows over a node as linear functions below them, for one node; rounding is not accounted for.

        Args:
            source: the node.
            rows: float64 [rows, size].
            low, high: bounds of every neuron, float64 [1, neurons]; where all signs are known the functions
                are the rows themselves.

        Returns:
            Slopes, float64 [rows, inputs], and constants, float64 [rows].
        """
        spans = self._layout.spans.items()
        lines = {node: _table(low[:, a:b], high[:, a:b]) for node, (a, b) in spans}
        owner = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        constant, slopes = self._backward({source: rows}, rows.new_zeros(len(rows)), owner, None, lines)
        return slopes, constant

    def _tighten(
        self,
        source: int,
        open_: torch.Tensor,
        box: tuple[torch.Tensor, torch.Tensor],
        low: torch.Tensor,
        high: torch.Tensor,
        lines: dict[int, torch.Tensor],
    ) -> None:
        """Meet a node's bounds, in place, with backward ones of some neurons, bool [batch, size]."""
        owner, neuron = open_.nonzero(as_tuple=True)
        step = self._rows_at_once // 2
        for start in range(0, len(owner), step):
            at, which = owner[start : start + step], neuron[start : start + step]
            rows, constant = self._neurons(source, which)
            both = {node: torch.cat([part, -part]) for node, part in rows.items()}
            found, _ = self._backward(both, torch.cat([constant, -constant]), at.repeat(2), box, lines)
            low[at, which] = torch.maximum(low[at, which], found[: len(at)])
            high[at, which] = torch.minimum(high[at, which], -found[len(at) :])

    def _neurons(self, source: int, which: torch.Tensor) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Neurons of a node, int64 [rows], as rows: over what feeds it where its matrices give them exactly.

        Returns:
            Node -> rows over it, float64 [rows, size], and constants, float64 [rows].
        """
        node = self._graph.nodes[source]
        if isinstance(node, Affine) and len(set(node.sources)) == len(node.terms):
            operators = self._tensors.operators[source]
            if all(isinstance(operator.linear, Dense) for operator in operators):
                parts = [operator.weight[which] for operator in operators]
                return dict(zip(node.sources, parts, strict=True)), self._tensors.biases[source][which]
        unit = torch.nn.functional.one_hot(which, node.size).double()
        return {source: unit}, unit.new_zeros(len(which))

    @cached_property
    def _rows_at_once(self) -> int:
        """Rows that go through the network together."""
        return max(32, self._passes.chunk // max(node.size for node in self._graph.nodes))

    def functions(
        self,
        rows: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        alpha: torch.Tensor,
        mu: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Linear functions of the inputs below rows over the output, at multipliers.

        Args:
            rows: float64 [batch, R, outputs].
            low, high: as for ``refresh``.
            alpha: slopes of the lines below neurons of open sign, float64 [batch, R, neurons].
            mu: multipliers of the neurons whose sign is fixed, with that sign, 0 elsewhere, like ``alpha``.

        Returns:
            Slopes a, float64 [batch, R, inputs], constants c, float64 [batch, R], and what arrives at the
            neurons, float64 [batch, R, neurons]. Everywhere in the root's box ``a x + c``, computed in
            float64, is a lower bound but for the rounding of the last addition.
        """
        batch, count = rows.shape[:2]
        lines, taken = {}, {}
        for source, (a, b) in self._layout.spans.items():
            open_ = ((low[:, a:b] < 0) & (high[:, a:b] > 0)).unsqueeze(1)
            table = _table(low[:, a:b], high[:, a:b]).unsqueeze(1).repeat(1, count, 1)
            table[:, :, : b - a] = torch.where(
                open_, alpha[:, :, a:b].clamp(min=0.0, max=1.0), table[:, :, : b - a]
            )
            lines[source] = table.flatten(0, 1)
            taken[source] = mu[:, :, a:b].flatten(0, 1)
        owner = torch.arange(batch * count, device=rows.device)
        arrived = torch.zeros(batch * count, self._layout.neurons, dtype=rows.dtype, device=rows.device)
        last = len(self._graph.nodes) - 1
        start = {last: rows.flatten(0, 1)}
        zero = rows.new_zeros(batch * count)
        found, slope = self._backward(start, zero, owner, None, lines, (taken, arrived))
        shape = (batch, count)
        return slope.view(*shape, -1), found.view(shape), arrived.view(*shape, -1)

    def _least(
        self, c: torch.Tensor, owner: torch.Tensor, box: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The minimum of ``c x`` over each row's box, or the root's ball if it is one, float64 [rows]."""
        root = self._root
        if not isinstance(root, BallWorkspace):
            return self._passes.least(c, owner, box)
        if c.device.type != "cpu" or root.centre is None or root.radius is None:
            return root.least(c.unsqueeze(0))[0]
        from milpver.search._region_kernel import gains  # noqa: PLC0415  it takes a second to load

        down, up = root.centre - root.lows[0][0], root.highs[0][0] - root.centre
        whole = self._passes.least(c, torch.zeros_like(owner), (root.lows[0], root.highs[0]))
        return whole + gains(root.norm, c, down, up, float(root.radius[0]))

    def _released(
        self,
        source: int,
        c: torch.Tensor,
        through: torch.Tensor,
        fixed: tuple[dict[int, torch.Tensor], torch.Tensor] | None,
    ) -> torch.Tensor:
        """Coefficients of a node's pre-activations less the multipliers of their signs; see ``_backward``.

        Signs are fixed where none is open: there the slope sent on is 0 or 1 and rounds nothing.
        """
        if fixed is None:
            return through
        a, b = self._layout.spans[source]
        fixed[1][:, a:b] = c
        return through - fixed[0][source]

    def _backward(
        self,
        pending: dict[int, torch.Tensor],
        constant: torch.Tensor,
        owner: torch.Tensor,
        box: tuple[torch.Tensor, torch.Tensor] | None,
        lines: dict[int, torch.Tensor],
        fixed: tuple[dict[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bound rows from below, each in its own box.

        Args:
            pending: node -> rows over it, float64 [rows, size], which are added up.
            constant: what is added to them, float64 [rows].
            owner: the box of each row, int64 [rows].
            box: lower and upper limits, float64 [batch, inputs]; None: the bounds are those at inputs of 0.
            lines: node that a Relu reads -> flat slope, chord's slope and constant, float64 [batch, 3 size].
            fixed: node that a Relu reads -> multipliers of fixed signs, float64 [rows, size]; and where what
                arrives is written to, float64 [rows, neurons].

        Returns:
            The bounds, rounded outward, float64 [rows], and the coefficients of the inputs.
        """
        error, summed = torch.zeros_like(constant), constant.abs()
        additions = 8
        slope: torch.Tensor | None = None  # none where no input is reached
        while pending:
            index = max(pending)
            c, node = pending.pop(index), self._graph.nodes[index]
            additions += 4
            charge = self._charges.get(index)
            added: torch.Tensor | None = None
            if charge is not None:
                charged, added = self._passes.weighed(c, charge, self._tensors.biases.get(index))
                error = error + charged
            sent: list[tuple[int, torch.Tensor]] = []
            match node:
                case Input():
                    slope = c
                    added = None if box is None else self._least(c, owner, box)
                case Affine():
                    operators = self._tensors.operators[index]
                    pairs = zip(node.terms, operators, strict=True)
                    sent = [(source, operator.adjoint(c)) for (source, _), operator in pairs]
                    if added is None:
                        added = c @ self._tensors.biases[index]
                case Relu():
                    through, added = self._passes.through_relu(c, owner, lines[node.source])
                    error = error - gamma(2 * node.size + 32) * added
                    through = self._released(node.source, c, through, fixed)
                    sent = [(node.source, through)]
                case Gate():
                    sent = [(node.source, c)]
                case _:
                    raise TypeError(f"node {index} is a {type(node).__name__}")
            if added is not None:
                constant = constant + added
                summed = summed + added.abs()
            for source, part in sent:
                before = pending.get(source)
                if before is not None:
                    error = error + gamma(4) * ((before.abs() + part.abs()) @ self._largest[source])
                pending[source] = part if before is None else before + part
        error = error * (1 + gamma(4096)) + gamma(4 * additions) * summed + 1e-300
        if slope is None:
            slope = constant.new_zeros(len(constant), self._graph.inputs)
        return outward(constant, constant, error)[0], slope


def _table(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The lines of a Relu for its input's bounds: flat, steep and missed, float64 [batch, 3 size]."""
    lines = ReluLines.of(low, high)
    return torch.cat([lines.flat, lines.steep, lines.missed], dim=1)
