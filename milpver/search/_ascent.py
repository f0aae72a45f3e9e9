"""Linear bounds of many nodes in float32, and the ascent on their multipliers: what a search only tries.

For one node with slopes alpha of its open ReLUs and multipliers mu of its fixed signs, the bound of a row is

    g(alpha, mu) = min over the box of c_0 x + constants,   c = A^T(...) pulled back through the lines.

It is concave, and a supergradient needs no automatic differentiation: at the box's corner x* that attains the
minimum, sent forward through the same lines (z = M v + b; v = alpha z where c >= 0, the chord where c < 0),

    dg / d alpha_i = max(c_i, 0) z_i,   dg / d mu_i = - z_i.

So a step is one product with each matrix there and one back. Nothing rests on what is computed here: bounds
that count are evaluated once more in float64 at the multipliers found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from milpver.bounds._tensors import TensorGraph
from milpver.graph import Affine, Input, Relu
from milpver.search._region import Boxes, Regions

__all__ = ["Ascent", "Lines"]

#: Rate of the slopes' ascent, of the multipliers', and what they fall by in each step.
_RATE, _RATE_MU, _DECAY = 0.2, 0.1, 0.95
#: Share of the nodes that have to be done before the others go on without them.
_DROP = 0.25


@dataclass(slots=True, eq=False)
class Lines:
    """The lines around the unstable neurons of a batch, float32 [nodes, 1, U] each; see ``ReluLines``.

    Attributes:
        free: 1 where the sign is open.
        active: 1 where it is surely >= 0.
        steep, missed: the chord.
        inputs: the regions of inputs.
    """

    free: torch.Tensor
    active: torch.Tensor
    steep: torch.Tensor
    missed: torch.Tensor
    inputs: Regions

    @classmethod
    def of(
        cls,
        low: torch.Tensor,
        high: torch.Tensor,
        inputs: tuple[torch.Tensor, torch.Tensor] | Regions,
    ) -> Lines:
        """The lines for bounds, [nodes, U], in boxes, [nodes or 1, inputs], or in other regions."""
        low, high = low.float(), high.float()
        open_ = (low < 0) & (high > 0)
        active = (low >= 0).float()
        steep = torch.where(open_, high / (high - low).clamp(min=1e-30), active)
        missed = torch.where(open_, -steep * low, torch.zeros_like(low))
        return cls(
            open_.float().unsqueeze(1),
            active.unsqueeze(1),
            steep.unsqueeze(1),
            missed.unsqueeze(1),
            Boxes.of(*inputs) if isinstance(inputs, tuple) else inputs,
        )

    def pick(self, at: torch.Tensor) -> Lines:
        """Those of some nodes."""
        inputs = self.inputs.pick(at)
        return Lines(self.free[at], self.active[at], self.steep[at], self.missed[at], inputs)

    def with_sign(self, neuron: torch.Tensor, active: float) -> Lines:
        """With one neuron of each node, int64 [nodes], fixed: 1 where it is active, 0 where it is dead."""
        at = torch.arange(len(neuron), device=neuron.device)

        def at_neuron(part: torch.Tensor, value: float) -> torch.Tensor:
            part = part.clone()
            part[at, 0, neuron] = value
            return part

        free, missed = at_neuron(self.free, 0.0), at_neuron(self.missed, 0.0)
        return Lines(free, at_neuron(self.active, active), at_neuron(self.steep, active), missed, self.inputs)


@dataclass(slots=True, eq=False)
class _State:
    """What moves in an ascent; every tensor is [nodes, R, U]."""

    alpha: torch.Tensor
    mu: torch.Tensor
    moments: list[torch.Tensor] = field(default_factory=list)

    def pick(self, at: torch.Tensor) -> _State:
        """Those of some nodes."""
        return _State(self.alpha[at], self.mu[at], [part[at] for part in self.moments])


class Ascent:
    """Bounds rows over the output in float32.

    Args:
        tensors: the graph, in float32, of Input, Affine, Relu and unbudgeted Gate nodes.
        places: Relu node -> its part of the U unstable neurons, and their entries in its input.
        active: Relu node -> 1 for entries of its input that pass unchanged, float32 [size].
    """

    def __init__(
        self,
        tensors: TensorGraph,
        places: dict[int, tuple[slice, torch.Tensor]],
        active: dict[int, torch.Tensor],
    ) -> None:
        self.tensors = tensors
        self.graph = tensors.graph
        self.places = places
        self.passes = {
            relu: None if len(local) == self.graph.nodes[relu].size else active[relu]
            for relu, (_, local) in places.items()
        }

    def backward(
        self, rows: torch.Tensor, lines: Lines, alpha: torch.Tensor, mu: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pull rows back.

        Args:
            rows: float32 [nodes, R, outputs].
            lines: of the nodes.
            alpha, mu: float32 [nodes, R, U].

        Returns:
            The bounds, float32 [nodes, R]; the coefficients that arrive at the unstable neurons' ReLUs,
            float32 [nodes, R, U]; and the inputs that attain the bounds, float32 [nodes, R, inputs].
        """
        slope = torch.addcmul(lines.active, alpha, lines.free)
        constant = rows.new_zeros(rows.shape[:2])
        arrived = torch.zeros_like(slope)
        pending = {len(self.graph.nodes) - 1: rows}
        while True:
            index = max(pending)
            c, node = pending.pop(index), self.graph.nodes[index]
            match node:
                case Input():
                    point = lines.inputs.lowest(c)
                    return constant + (c * point).sum(dim=2), arrived, point
                case Affine():
                    constant = constant + c @ self.tensors.biases[index]
                    pairs = zip(node.terms, self.tensors.operators[index], strict=True)
                    sent = [(source, operator.adjoint(c)) for (source, _), operator in pairs]
                case Relu():
                    part, local = self.places[index]
                    passes = self.passes[index]
                    own = c if passes is None else c.index_select(2, local)
                    arrived[:, :, part] = own
                    down = own.clamp(max=0.0)
                    constant = constant + (down * lines.missed[:, :, part]).sum(dim=2)
                    through = (own - down).mul_(slope[:, :, part]).sub_(mu[:, :, part])
                    through.addcmul_(down, lines.steep[:, :, part])
                    if passes is not None:
                        through = (c * passes).index_copy_(2, local, through)
                    sent = [(node.source, through)]
                case _:
                    sent = [(node.sources[0], c)]
            for source, through in sent:
                pending[source] = pending[source] + through if source in pending else through

    def forward(
        self, lines: Lines, alpha: torch.Tensor, arrived: torch.Tensor, point: torch.Tensor
    ) -> torch.Tensor:
        """The values z of the unstable neurons at inputs, through the lines, float32 [nodes, R, U]."""
        own = torch.addcmul(lines.active, alpha, lines.free)
        found = torch.zeros_like(arrived)
        values: list[torch.Tensor] = []
        for index, node in enumerate(self.graph.nodes[:-1]):
            match node:
                case Input():
                    values.append(point)
                case Affine():
                    shape = (*arrived.shape[:2], node.size)
                    total = self.tensors.biases[index].expand(shape).reshape(-1, node.size)
                    for (source, _), operator in zip(node.terms, self.tensors.operators[index], strict=True):
                        value = values[source]
                        total = total + operator.forward(value.reshape(-1, value.shape[-1]))
                    values.append(total.view(shape))
                case Relu():
                    part, local = self.places[index]
                    passes, z = self.passes[index], values[node.source]
                    mine = z if passes is None else z.index_select(2, local)
                    found[:, :, part] = mine
                    chord = torch.addcmul(lines.missed[:, :, part], mine, lines.steep[:, :, part])
                    value = torch.where(arrived[:, :, part] >= 0, mine * own[:, :, part], chord)
                    values.append(value if passes is None else (z * passes).index_copy_(2, local, value))
                case _:
                    values.append(values[node.sources[0]])
        return found

    def run(
        self,
        rows: tuple[torch.Tensor, torch.Tensor],
        lines: Lines,
        sign: torch.Tensor,
        start: tuple[torch.Tensor, torch.Tensor],
        steps: int,
        done: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ascend (Adam, projected), and keep each row's best multipliers.

        Args:
            rows: with limits that bounds are less, float32 [nodes, R, outputs] and [nodes, R].
            lines: of the nodes.
            sign: fixed signs, float32 [nodes, 1, U]; 0 where free.
            start: alpha and mu to begin with, float32 [nodes, R, U].
            steps: of ascent.
            done: which bounds need no more, float32 [nodes] -> bool [nodes]; None: none of them.

        Returns:
            alpha and mu, float32 [nodes, R, U], and the bounds less their limits, float32 [nodes, R].
        """
        best_alpha, best_mu = start[0].clone(), start[1].clone()
        wanted, limits = rows
        value = torch.full_like(limits, -torch.inf)
        at = torch.arange(len(limits), device=limits.device)
        state = _State(*start)
        scale: torch.Tensor | None = None
        for step in range(1, steps + 1):
            found, arrived, point = self.backward(wanted, lines, state.alpha, state.mu)
            found = found - limits[at]
            better = (found > value[at]).unsqueeze(2)
            best_alpha[at] = torch.where(better, state.alpha, best_alpha[at])
            best_mu[at] = torch.where(better, state.mu, best_mu[at])
            value[at] = torch.maximum(value[at], found)
            if step == steps:
                break
            if done is not None:
                open_ = ~done(value[at].amax(dim=1))
                count = int(open_.sum())
                if not count:
                    break
                if count <= (1 - _DROP) * len(open_):
                    keep = open_.nonzero()[:, 0]
                    at, state, lines = at[keep], state.pick(keep), lines.pick(keep)
                    wanted, sign, arrived, point = wanted[keep], sign[keep], arrived[keep], point[keep]
                    scale = None if scale is None else scale[keep]
            if scale is None:
                scale = self._scale(arrived)
            z = self.forward(lines, state.alpha, arrived, point)
            self._move(state, (arrived.clamp(min=0.0) * lines.free * z, -z * sign.abs()), step, scale)
            state.mu = sign * (sign * state.mu).clamp(min=0.0)
        return best_alpha, best_mu, value

    def _scale(self, arrived: torch.Tensor) -> torch.Tensor:
        """What a multiplier is measured by: the mean size of its layer's coefficients, [nodes, R, U]."""
        scale = torch.ones_like(arrived)
        for part, _ in self.places.values():
            if part.stop > part.start:
                scale[:, :, part] = arrived[:, :, part].abs().mean(dim=2, keepdim=True)
        return scale

    @staticmethod
    def _move(
        state: _State, slopes: tuple[torch.Tensor, torch.Tensor], step: int, scale: torch.Tensor
    ) -> None:
        """One step of Adam; alpha is projected on [0, 1]."""
        if not state.moments:
            state.moments = [torch.zeros_like(state.alpha) for _ in range(4)]
        shrink = _DECAY ** (step - 1)
        moved = []
        for k, slope in enumerate(slopes):
            mean, square = state.moments[2 * k], state.moments[2 * k + 1]
            mean.mul_(0.9).add_(slope, alpha=0.1)
            square.mul_(0.999).addcmul_(slope, slope, value=0.001)
            size = (square / (1 - 0.999**step)).sqrt_().add_(1e-12)
            moved.append((mean / (1 - 0.9**step)).div_(size))
        state.alpha = (state.alpha + moved[0] * (_RATE * shrink)).clamp_(min=0.0, max=1.0)
        state.mu = torch.addcmul(state.mu, moved[1], scale, value=_RATE_MU * shrink)
