"""Branch and bound on the signs of ReLUs, for boxes with many inputs.

A node is one alternative with the signs of some pre-activations fixed. It is bounded backward at slopes
alpha and multipliers mu of the fixed signs (Wang et al. 2021, beta-CROWN), warm-started from its parent and
moved by a few steps of ascent, in float32; the bound that counts is evaluated once more in float64, rounded
outward. Bounds of the neurons behind the layer that was split are computed anew (``_flat``). Where to branch
is estimated: at the neuron whose lines miss its ReLU most, weighed with the coefficient that arrives there;
where nodes have bounds of their own, a few such neurons are split on trial (filtered smart branching, De
Palma et al. 2021). With every sign fixed the network is linear on the node, and a linear program ends it
(``_leaf``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from milpver.bounds._crown import Multipliers, ReluLines, backward
from milpver.bounds._rounding import gamma
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine, Gate, Relu
from milpver.linear import Conv, Float
from milpver.query import Budget
from milpver.search._alternatives import Alternatives, account, alive
from milpver.search._ascent import Ascent, Lines
from milpver.search._compressed import SingleTensors
from milpver.search._dense import DenseAscent
from milpver.search._flat import FlatCrown, Layout
from milpver.search._leaf import solve_leaf
from milpver.search._region import Boxes, Regions
from milpver.search._tensors import TensorNodes
from milpver.search.frontier import Frontier
from milpver.search.limits import OfferInputs, SearchLimits
from milpver.solver import Stop

__all__ = ["PhaseSearch", "Root", "SearchNodes"]

#: Steps of ascent on a child.
_STEPS = 10
#: What a bound in float32 may be off by, relative to it, where it decides whether to go on.
_SINGLE = 1e-5
#: Neurons that are split on trial, for each node with bounds of its own; the others are cheaper than trials.
_TRIALS = 10
#: What a neuron counts for, as a candidate for branching, whose line below alone misses its ReLU.
_MINOR = 1e-3
#: Elements (nodes x neurons) of a batch.
_ELEMENTS = 1 << 18
_BATCH = 128


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """The whole box.

    Attributes:
        tensors: the graph, without Max nodes.
        workspace: bounds of every node, a batch of one.
        layout: of the arrays below.
        low, high: bounds of the pre-activations, float64 [1, neurons].
        best: multipliers of the rows of the alternatives, [1, rows, size].
        recompute: whether nodes have their own bounds of pre-activations, or the root's.
        dense: whether the graph is what ``collapsed`` makes.
    """

    tensors: TensorGraph
    workspace: Workspace
    layout: Layout
    low: torch.Tensor
    high: torch.Tensor
    best: Multipliers
    recompute: bool
    dense: bool

    @classmethod
    def of(
        cls,
        tensors: TensorGraph,
        workspace: Workspace,
        best: Multipliers,
        *,
        dense: bool = False,
        recompute: bool = True,
    ) -> Root:
        """The root of a graph; through convolutions a row costs as much as a node, too much at each."""
        layout = Layout(tensors.graph)
        low, high = layout.joined(workspace.lows), layout.joined(workspace.highs)
        operators = [one for each in tensors.operators.values() for one in each]
        recompute = recompute and not any(isinstance(one.linear, Conv) for one in operators)
        return cls(tensors, workspace, layout, low, high, best, recompute, dense)


@dataclass(slots=True, eq=False)
class SearchNodes(TensorNodes):
    """Search nodes, a structure of arrays; U neurons are unstable at the root, R rows an alternative at most.

    Attributes:
        which: the alternative, int64 [nodes]; ``lower`` of the others is infinite.
        sign: fixed signs of the unstable neurons, int8 [nodes, U]; 0 where free.
        low, high: bounds of the unstable neurons, float64 [nodes, U].
        alpha, mu: multipliers of the rows, float32 [nodes, R, U].
        branch: the neuron to branch on, int64 [nodes]; -1 where none is free.
        last: the neuron that was branched on, int64 [nodes].
    """

    which: torch.Tensor
    sign: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    alpha: torch.Tensor
    mu: torch.Tensor
    branch: torch.Tensor
    last: torch.Tensor


class PhaseSearch:
    """The search.

    Args:
        root: bounds of the whole box.
        alternatives: what is minimised.
        offer: replays candidates.
        best: the smallest value known of each alternative, float64 [alternatives].
        limits: when to stop.
        early: stop the ascent of nodes that a bound closes, of the value, alone.
    """

    def __init__(
        self,
        root: Root,
        alternatives: Alternatives,
        offer: OfferInputs,
        best: Float,
        limits: SearchLimits,
        *,
        early: bool = False,
    ) -> None:
        self.root = root
        self.graph = root.tensors.graph
        self.alternatives = alternatives
        self.offer = offer
        self.best = best
        self.limits = limits
        self.nodes = 0
        self.closed: Float = np.full(alternatives.count, np.inf)
        self.frontier: Frontier[SearchNodes] = Frontier(limits.memory)
        self.flat = FlatCrown(root.tensors, root.workspace, root.layout, many=root.recompute)
        self.unstable = ((root.low < 0) & (root.high > 0))[0].nonzero()[:, 0]
        self.places = self._places()
        self.rows, self.row_limits = self._stacked()
        self.recompute = root.recompute
        self.single = SingleTensors(root.tensors.graph, root.tensors.device)
        active = {
            relu: (root.low[0, a:b] >= 0).float()
            for relu in self.places
            for a, b in [root.layout.spans[self.graph.nodes[relu].sources[0]]]
        }
        self.ascent = (
            DenseAscent(self.single, self.places) if root.dense else Ascent(self.single, self.places, active)
        )
        self.early = early
        self.cut: Stop | None = None

    def _places(self) -> dict[int, tuple[slice, torch.Tensor]]:
        """Relu node -> its part of the U unstable neurons, and their entries in its input."""
        places = {}
        for relu in self.root.layout.relus:
            a, b = self.root.layout.spans[self.graph.nodes[relu].sources[0]]
            first, last = (int((self.unstable < end).sum()) for end in (a, b))
            places[relu] = (slice(first, last), self.unstable[first:last] - a)
        return places

    def _stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of each alternative, float64 [alternatives, R, outputs], and limits; short ones repeat one."""
        owner = self.alternatives.owner
        most = int(torch.bincount(owner).max())
        index = torch.zeros(self.alternatives.count, most, dtype=torch.int64, device=owner.device)
        for k in range(self.alternatives.count):
            own = (owner == k).nonzero()[:, 0]
            index[k] = own[torch.arange(most, device=owner.device).clamp(max=len(own) - 1)]
        self._index = index
        return self.alternatives.rows[index], self.alternatives.limits[index]

    def run(self) -> Stop:
        """Search until nothing is open, the sign is decided, or the limits say stop."""
        self.sort(self.bounded(self.first(), 0))
        size = max(node.size for node in self.graph.nodes)
        batch = max(2, min(_BATCH, _ELEMENTS // (2 * size)))
        while len(self.frontier):
            if self.decided():
                return Stop.TARGET
            expired = self.limits.expired()
            if expired is not None:
                return expired
            parents = self.open(self.frontier.pop(batch))
            if len(parents):
                self.sort(self.bounded(self.children(parents), _STEPS))
        return Stop.TARGET if self.decided() else self.cut or Stop.OPTIMAL

    def decided(self) -> bool:
        return self.limits.decide and bool(self.best.min() <= 0)

    def first(self) -> SearchNodes:
        """One node for each alternative, at the root's multipliers."""
        count, neurons = self.alternatives.count, len(self.unstable)
        device = self.unstable.device
        lower = torch.full((count, count), torch.inf, dtype=torch.float64, device=device)
        lower.fill_diagonal_(-torch.inf)
        alpha = torch.ones(count, self.rows.shape[1], neurons, dtype=torch.float32, device=device)
        for relu, (part, local) in self.places.items():
            if relu in self.root.best.alpha:
                alpha[:, :, part] = self.root.best.alpha[relu][0][self._index][:, :, local].float()
        none = torch.full((count,), -1, dtype=torch.int64, device=device)
        return SearchNodes(
            lower,
            torch.arange(count, device=device),
            torch.zeros(count, neurons, dtype=torch.int8, device=device),
            self.root.low[:, self.unstable].repeat(count, 1),
            self.root.high[:, self.unstable].repeat(count, 1),
            alpha,
            torch.zeros_like(alpha),
            none,
            none.clone(),
        )

    def own(self, nodes: SearchNodes) -> torch.Tensor:
        """Bound of each node's own alternative, float64 [nodes]."""
        return nodes.lower.gather(1, nodes.which.unsqueeze(1))[:, 0]

    def alive(self, lower: torch.Tensor) -> torch.Tensor:
        return alive(lower, float(self.best.min()), self.limits.gap, decide=self.limits.decide)

    def open(self, nodes: SearchNodes) -> SearchNodes:
        """The nodes that still matter; the others are accounted for."""
        open_ = self.alive(self.own(nodes)) & (nodes.branch >= 0)
        account(self.closed, nodes.lower[~open_])
        return nodes.pick(open_)

    def sort(self, nodes: SearchNodes) -> None:
        rest = self.open(nodes)
        if len(rest):
            self.frontier.push(rest)

    def children(self, parents: SearchNodes) -> SearchNodes:
        """Both signs of every parent's branching neuron."""
        count = len(parents)
        nodes = parents.pick(torch.arange(count, device=parents.which.device).repeat(2))
        at = torch.arange(count, device=parents.which.device)
        nodes.sign[at, parents.branch] = 1
        nodes.sign[at + count, parents.branch] = -1
        nodes.low[at, parents.branch] = nodes.low[at, parents.branch].clamp(min=0.0)
        nodes.high[at + count, parents.branch] = nodes.high[at + count, parents.branch].clamp(max=0.0)
        nodes.last = nodes.branch.clone()
        return nodes

    def filled(self, values: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Bounds of all neurons, [nodes, neurons], from those of the unstable ones and the root's."""
        return base.repeat(len(values), 1).index_copy(1, self.unstable, values)

    def space(self, low: torch.Tensor, high: torch.Tensor, nodes: SearchNodes) -> Workspace:
        """A full workspace of nodes for bounds of their pre-activations, [nodes, neurons]."""
        del nodes  # where L1 and L2 radii are searched, nodes have balls
        root = self.root.workspace
        single = low.dtype == torch.float32
        space = Workspace(self.single if single else self.root.tensors, Budget())
        for index, node in enumerate(self.graph.nodes):
            if index in self.root.layout.spans:
                a, b = self.root.layout.spans[index]
                both = low[:, a:b], high[:, a:b]
            elif isinstance(node, Relu):
                both = space.lows[node.source].clamp(min=0.0), space.highs[node.source].clamp(min=0.0)
            elif isinstance(node, Gate):
                both = space.lows[node.source], space.highs[node.source]
            else:
                both = (
                    root.lows[index].to(low.dtype).expand(len(low), -1),
                    root.highs[index].to(low.dtype).expand(len(low), -1),
                )
            space.lows.append(both[0])
            space.highs.append(both[1])
        space.magnitudes = {index: value.expand(len(low), -1) for index, value in root.magnitudes.items()}
        return space

    def multipliers(self, alpha: torch.Tensor, mu: torch.Tensor) -> Multipliers:
        """Multipliers of every neuron, from those of the unstable ones, [nodes, R, U]."""
        found = Multipliers()
        for relu, (part, local) in self.places.items():
            size = self.graph.nodes[relu].size
            if len(local) == size:
                found.alpha[relu], found.mu[relu] = alpha[:, :, part], mu[:, :, part]
                continue
            zero = torch.zeros(*alpha.shape[:2], size, dtype=alpha.dtype, device=alpha.device)
            found.alpha[relu] = zero.index_copy(2, local, alpha[:, :, part])
            found.mu[relu] = zero.index_copy(2, local, mu[:, :, part])
        return found

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Multipliers of all neurons, float64 [nodes, R, neurons], from those of the unstable ones."""
        if values.shape[2] == self.root.layout.neurons:
            return values.double()
        shape = (*values.shape[:2], self.root.layout.neurons)
        zero = torch.zeros(shape, dtype=torch.float64, device=values.device)
        return zero.index_copy(2, self.unstable, values.double())

    def functions(
        self,
        rows: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
        multipliers: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``FlatCrown.functions`` of nodes, at alpha and mu of the unstable neurons, [nodes, R, U] each."""
        with torch.no_grad():
            alpha, mu = (self.spread(part) for part in multipliers)
            slope, constant, arrived = self.flat.functions(rows, low, high, alpha, mu)
        return slope, constant, arrived[:, :, self.unstable]

    def bounded(self, nodes: SearchNodes, steps: int) -> SearchNodes:
        """Bound nodes, close those that no input reaches, and choose where to branch."""
        self.nodes += len(nodes)
        low, high = self.filled(nodes.low, self.root.low), self.filled(nodes.high, self.root.high)
        if self.recompute and steps:
            behind = self.behind(nodes)
            if self.early:
                # What the parent's bounds close already needs none of its own.
                nodes.alpha, nodes.mu, value = self.ascended(nodes, steps // 2)
                behind = behind.masked_fill(self.done(value.amax(dim=1)), len(self.graph.nodes))
            low, high = self.flat.refresh(
                self.root.workspace.lows[0], self.root.workspace.highs[0], low, high, behind
            )
        empty = (low > high).any(dim=1)
        middle = torch.minimum(low, high)
        low, high = (
            torch.where(empty.unsqueeze(1), middle, low),
            torch.where(empty.unsqueeze(1), middle, high),
        )
        nodes.low, nodes.high = low[:, self.unstable], high[:, self.unstable]
        if steps:
            nodes.alpha, nodes.mu, _ = self.ascended(nodes, steps)
        found, arrived, row = self.valued(nodes, low, high)
        found = torch.maximum(self.own(nodes), found.masked_fill(empty, torch.inf))
        linear = ((low >= 0) | (high <= 0)).all(dim=1) & self.alive(found)
        for k in linear.nonzero()[:, 0].tolist():
            self.cut = self.limits.expired()
            if self.cut is not None:
                break  # a leaf takes many milliseconds; without it, a node keeps the bound that it has
            found[k] = torch.maximum(found[k], self.leaf(nodes, k, low, high))
        nodes.lower = nodes.lower.scatter(1, nodes.which.unsqueeze(1), found.unsqueeze(1))
        loosened = self.loosened(nodes, low, high, row) if self.recompute else None
        self.choose(nodes, arrived, row, loosened)
        return nodes

    def valued(
        self, nodes: SearchNodes, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bounds of nodes at their multipliers, float64 [nodes], rounded outward.

        Args:
            nodes: the nodes.
            low, high: their bounds of every neuron, float64 [nodes, neurons].

        Returns:
            Beside the bounds what arrives at the unstable neurons, float64 [nodes, R, U], and the row that
            gives each bound.
        """
        limits = self.row_limits[nodes.which]
        slope, constant, arrived = self.functions(self.rows[nodes.which], low, high, (nodes.alpha, nodes.mu))
        box = self.root.workspace.lows[0][0], self.root.workspace.highs[0][0]
        least = slope.clamp(min=0.0) @ box[0] + slope.clamp(max=0.0) @ box[1]
        value = least + constant - limits
        value = value - gamma(16) * (least.abs() + constant.abs() + limits.abs()) - 1e-300
        value = torch.nan_to_num(value, nan=-torch.inf)
        return value.amax(dim=1), arrived, value.argmax(dim=1)

    def leaf(self, nodes: SearchNodes, k: int, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Bound of a node that has no sign open, float64 [], from the duals of its linear program."""
        one = nodes.pick(torch.tensor([k], device=low.device))
        low, high, which = low[k : k + 1], high[k : k + 1], one.which[0]
        box = self.root.workspace.lows[0][0], self.root.workspace.highs[0][0]
        last = len(self.graph.nodes) - 1
        rows, limits = self.rows[which], self.row_limits[which]
        slopes, constants, places, signs = self.linear_leaf(one, rows, low, high)
        count = len(rows)
        found = solve_leaf(
            box[0].cpu().numpy(),
            box[1].cpu().numpy(),
            (slopes[:count].cpu().numpy(), (constants[:count] - limits).cpu().numpy()),
            (slopes[count:].cpu().numpy(), constants[count:].cpu().numpy()),
        )
        if found is None:
            return torch.full_like(constants[0], -torch.inf)
        self.best = np.minimum(self.best, self.offer(found.x[None], {}))
        weights = torch.as_tensor(found.weights, device=rows.device)
        row = weights @ rows
        mu = torch.zeros(1, 1, nodes.sign.shape[1], dtype=rows.dtype, device=rows.device)
        mu[0, 0, places] = signs * torch.as_tensor(found.multipliers, device=rows.device)
        space = self.space(low, high, one)
        with torch.no_grad():
            multipliers = self.multipliers(torch.zeros_like(mu), mu)
            bound, _ = backward(space, last, row.view(1, 1, -1), multipliers, rounded=True)
        # The weighted sum of the rows, and its limit, are rounded; and the weights sum to 1 but for rounding.
        size = weights @ (rows.abs() @ space.largest(last)[0] + limits.abs())
        value = bound[0, 0] - weights @ limits
        return torch.nan_to_num(
            value - gamma(2 * len(weights) + 16) * (2 * size + value.abs()), nan=-torch.inf
        )

    def linear_leaf(
        self, one: SearchNodes, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """A leaf as linear functions of the inputs.

        Args:
            one: the node.
            rows: over the output, float64 [R, outputs].
            low, high: its bounds of every neuron, float64 [1, neurons].

        Returns:
            Slopes and constants of the rows, then of ``sign_i z_i`` for every sign that was fixed; and which
            of the unstable neurons these are, with their signs.
        """
        places = (one.sign[0] != 0).nonzero()[:, 0]
        signs = one.sign[0, places].double()
        parts = [self.flat.linear(len(self.graph.nodes) - 1, rows, low, high)]
        entries = self.unstable[places]
        for source, (a, b) in self.root.layout.spans.items():
            own = (entries >= a) & (entries < b)
            if bool(own.any()):
                unit = torch.nn.functional.one_hot(entries[own] - a, b - a).to(rows.dtype)
                slopes, constants = self.flat.linear(source, unit, low, high)
                parts.append((signs[own].unsqueeze(1) * slopes, signs[own] * constants))
        both = [torch.cat(part) for part in zip(*parts, strict=True)]
        return both[0], both[1], places, signs

    def loosened(
        self, nodes: SearchNodes, low: torch.Tensor, high: torch.Tensor, row: torch.Tensor
    ) -> torch.Tensor:
        """What a unit at each unstable neuron does to the bounds that its node's bound depends on.

        How fast the bound falls as bounds of pre-activations widen, pulled back through ``|M|`` and the
        chords' slopes to the neurons before; float32 [nodes, U], for branching alone.
        """
        low, high = low.float().requires_grad_(), high.float().requires_grad_()
        at = torch.arange(len(nodes), device=row.device)
        alpha, mu = nodes.alpha[at, row].unsqueeze(1), nodes.mu[at, row].unsqueeze(1)
        rows = self.rows[nodes.which, row].unsqueeze(1).float()
        last = len(self.graph.nodes) - 1
        space = self.space(low, high, nodes)
        found, _ = backward(space, last, rows, self.multipliers(alpha, mu), rounded=False)
        if not found.requires_grad:
            return torch.zeros_like(alpha[:, 0])
        felt = sum(part.abs().nan_to_num(0.0) for part in torch.autograd.grad(found.sum(), (low, high)))
        assert isinstance(felt, torch.Tensor)
        steep = ReluLines.of(low.detach(), high.detach()).steep
        pulled: dict[int, torch.Tensor] = {}
        total = torch.zeros_like(felt)
        for index in range(last, 0, -1):
            node = self.graph.nodes[index]
            value = pulled.pop(index, None)
            if isinstance(node, Relu):
                a, b = self.root.layout.spans[node.source]
                if value is not None:
                    total[:, a:b] += value
                    felt[:, a:b] += steep[:, a:b] * value
                continue
            if index in self.root.layout.spans:
                a, b = self.root.layout.spans[index]
                value = felt[:, a:b] if value is None else value + felt[:, a:b]
            if value is None or not isinstance(node, Affine):
                continue
            for (source, _), operator in zip(node.terms, self.single.operators[index], strict=True):
                if source > 0:
                    part = operator.adjoint(value, operator.absolute)
                    pulled[source] = pulled[source] + part if source in pulled else part
        return total[:, self.unstable]

    def behind(self, nodes: SearchNodes) -> torch.Tensor:
        """The graph node whose sign was fixed last, int64 [nodes]; -1 at the root."""
        place = self.unstable[nodes.last.clamp(min=0)]
        found = torch.full_like(nodes.last, -1)
        for source, (a, b) in self.root.layout.spans.items():
            found = torch.where((place >= a) & (place < b), torch.full_like(found, source), found)
        return torch.where(nodes.last >= 0, found, torch.full_like(found, -1))

    def ascended(self, nodes: SearchNodes, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each node's best multipliers in some steps of ascent, and their bounds; see ``Ascent.run``."""
        with torch.no_grad():
            return self.ascent.run(
                (self.rows[nodes.which].float(), self.row_limits[nodes.which].float()),
                Lines.of(nodes.low, nodes.high, self.inputs(nodes)),
                nodes.sign.float().unsqueeze(1),
                (nodes.alpha, nodes.mu),
                steps,
                self.done if self.early else None,
            )

    def inputs(self, nodes: SearchNodes) -> Regions:
        """The regions of inputs that nodes range over."""
        del nodes  # all of the box; where radii are searched, a ball of their own
        return Boxes.of(self.root.workspace.lows[0], self.root.workspace.highs[0])

    def done(self, value: torch.Tensor) -> torch.Tensor:
        """Nodes whose bound closes them for all that float32 may be off, bool [nodes]."""
        return ~self.alive(value - _SINGLE * value.abs())

    def choose(
        self,
        nodes: SearchNodes,
        arrived: torch.Tensor,
        row: torch.Tensor,
        loosened: torch.Tensor | None,
    ) -> None:
        """Set the neuron to branch on: the best of a few that are split on trial."""
        at = torch.arange(len(nodes), device=row.device)
        c, alpha = arrived[at, row], nodes.alpha[at, row].double()
        lines = ReluLines.of(nodes.low, nodes.high)
        above = lines.missed
        below = torch.maximum(-alpha * nodes.low, (1 - alpha) * nodes.high)
        # With c >= 0 the slope has been chosen: fixing the sign wins nothing before others move as well.
        missed = torch.where(c < 0, -c * above, _MINOR * c * below)
        if loosened is not None:
            missed = missed + loosened * above
        score = torch.where(lines.unstable, missed, torch.full_like(missed, -1.0))
        trials = min(_TRIALS if self.recompute else 1, score.shape[1])
        best, top = score.topk(trials, dim=1) if trials else (score, score)
        if not trials:
            nodes.branch = torch.full_like(nodes.which, -1)
            return
        nodes.branch = torch.where(best[:, 0] >= 0, top[:, 0], torch.full_like(top[:, 0], -1))
        wanted = (self.alive(self.own(nodes)) & (nodes.branch >= 0)).nonzero()[:, 0]
        if trials > 1 and len(wanted):
            nodes.branch[wanted] = self.tried(nodes.pick(wanted), top[wanted], best[wanted])

    def tried(self, nodes: SearchNodes, top: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """Of some neurons of each node, int64 [nodes, trials], the one that lifts the lower child most."""
        rows, limits = self.rows[nodes.which].float(), self.row_limits[nodes.which].float()
        lines = Lines.of(nodes.low, nodes.high, self.inputs(nodes))
        lifts = []
        for neuron in top.T:
            lifted = []
            for side in (1, 0):
                with torch.no_grad():
                    child = lines.with_sign(neuron, side)
                    value, _, _ = self.ascent.backward(rows, child, nodes.alpha, nodes.mu)
                lifted.append((value - limits).amax(dim=1))
            lift = torch.minimum(*lifted)
            lifts.append(lift + 1e-3 * (torch.maximum(*lifted) - lift))
        lift = torch.stack(lifts, dim=1).masked_fill(score < 0, -torch.inf)
        return top.gather(1, lift.argmax(dim=1, keepdim=True))[:, 0]
