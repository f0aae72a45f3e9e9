"""The ascent of a collapsed network, whose products with all inputs become one.

``_collapsed`` writes a network within one box as dense maps between its unstable neurons and the inputs:

    z = A relu(z) + B x + d,   y = A_o relu(z) + B_o x + d_o,   A strictly lower block triangular.

There are tens of times as many inputs as neurons, so nearly all work is the product with B. Pulled back layer
by layer, rows would meet it once a layer; with B_o over B they meet it once.
"""

from __future__ import annotations

from functools import cached_property

import torch

from milpver.bounds._tensors import TensorGraph
from milpver.graph import Affine
from milpver.search._ascent import Ascent, Lines

__all__ = ["DenseAscent"]


class DenseAscent(Ascent):
    """``Ascent`` over a network of dense maps, every neuron of which is unstable."""

    def __init__(self, tensors: TensorGraph, places: dict[int, tuple[slice, torch.Tensor]]) -> None:
        super().__init__(tensors, places, {})
        self.outputs = self.graph.outputs
        self.neurons = sum(len(local) for _, local in places.values())

    @cached_property
    def stacked(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A_o over A, B_o over B, d_o over d: float32 [outputs + U, U], [.., inputs] and [..]."""
        size = self.outputs + self.neurons
        device = self.tensors.device
        neurons = torch.zeros(size, self.neurons, device=device)
        inputs, bias = torch.zeros(size, self.graph.inputs, device=device), torch.zeros(size, device=device)
        ends = {self.graph.nodes[relu].sources[0]: part for relu, (part, _) in self.places.items()}
        ends = {node: slice(self.outputs + p.start, self.outputs + p.stop) for node, p in ends.items()}
        for index, where in {**ends, len(self.graph.nodes) - 1: slice(0, self.outputs)}.items():
            node = self.graph.nodes[index]
            if not isinstance(node, Affine):
                raise TypeError(f"node {index} is a {type(node).__name__}")
            bias[where] = self.tensors.biases[index]
            for (source, _), operator in zip(node.terms, self.tensors.operators[index], strict=True):
                if source == 0:
                    inputs[where] += operator.weight
                else:
                    neurons[where, self.places[source][0]] += operator.weight
        return neurons, inputs, bias

    @cached_property
    def parts(self) -> list[slice]:
        """The neurons of each layer, in order."""
        return sorted((part for part, _ in self.places.values()), key=lambda part: part.start)

    def backward(
        self, rows: torch.Tensor, lines: Lines, alpha: torch.Tensor, mu: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See ``Ascent.backward``."""
        neurons, inputs, bias = self.stacked
        shape, first = rows.shape[:2], self.outputs
        slope = torch.addcmul(lines.active, alpha, lines.free)
        arrived = torch.empty_like(slope)
        sent = rows.new_empty(*shape, first + self.neurons)
        sent[:, :, :first] = rows
        constant = rows.new_zeros(shape)
        for part in reversed(self.parts):
            own = rows @ neurons[:first, part]
            if part.stop < self.neurons:
                own = own + sent[:, :, first + part.stop :] @ neurons[first + part.stop :, part]
            arrived[:, :, part] = own
            down = own.clamp(max=0.0)
            constant = constant + (down * lines.missed[:, :, part]).sum(dim=2)
            through = (own - down).mul_(slope[:, :, part]).sub_(mu[:, :, part])
            sent[:, :, first + part.start : first + part.stop] = through.addcmul_(
                down, lines.steep[:, :, part]
            )
        c = sent @ inputs
        point = lines.inputs.lowest(c)
        return constant + sent @ bias + (c * point).sum(dim=2), arrived, point

    def forward(
        self, lines: Lines, alpha: torch.Tensor, arrived: torch.Tensor, point: torch.Tensor
    ) -> torch.Tensor:
        """See ``Ascent.forward``."""
        neurons, inputs, bias = self.stacked
        first = self.outputs
        own = torch.addcmul(lines.active, alpha, lines.free)
        found = torch.nn.functional.linear(point, inputs[first:], bias[first:])
        value = torch.empty_like(found)
        for part in self.parts:
            mine = found[:, :, part]
            if part.start:
                rows = slice(first + part.start, first + part.stop)
                mine += value[:, :, : part.start] @ neurons[rows, : part.start].T
            chord = torch.addcmul(lines.missed[:, :, part], mine, lines.steep[:, :, part])
            value[:, :, part] = torch.where(arrived[:, :, part] >= 0, mine * own[:, :, part], chord)
        return found
