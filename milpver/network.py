"""A loaded network: its graph, where it came from, and how to run the original file.

The graph is what is verified; the original bytes are what a witness is replayed on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from milpver.errors import QueryError
from milpver.graph import Graph
from milpver.linear import Float

__all__ = ["GateableLayer", "Network", "Port"]


@dataclass(frozen=True, slots=True)
class GateableLayer:
    """A hidden fully connected layer whose neurons can be removed, or a convolution's channels.

    Attributes:
        number: 1-based position among the gateable layers of its kind, in graph order.
        name: the ONNX tensor that is gated (the layer's post-activation).
        width: number of neurons, or of channels.
        node: index of its Gate in the graph.
        shape: the gated tensor's shape in the ONNX file, without a batch dimension.
        channels: whether channels are gated.
    """

    number: int
    name: str
    width: int
    node: int
    shape: tuple[int, ...]
    channels: bool = False

    @property
    def label(self) -> str:
        """What budgets call it: its number, or ``conv`` and its number."""
        return f"conv{self.number}" if self.channels else str(self.number)

    @property
    def gates(self) -> str:
        """What can be removed from it."""
        return "channels" if self.channels else "neurons"

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """The shape of a mask that multiplies the gated tensor."""
        if not self.channels:
            return self.shape
        axis = 0 if self.shape[0] == self.width else 1
        return tuple(size if place == axis else 1 for place, size in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class Port:
    """An ONNX tensor at a network's edge.

    Attributes:
        name: the tensor.
        shape: its shape; a batch dimension counts as 1.
        hidden: whether it is no output of the file, but was asked for.
    """

    name: str
    shape: tuple[int, ...]
    hidden: bool = False

    @property
    def size(self) -> int:
        """Number of entries, of one input."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Network:
    """A network read from an ONNX file.

    Attributes:
        graph: the IR; every gateable layer has its Gate in it.
        path: the file it was read from.
        sha256: of ``model``, hexadecimal; that is the file's own, unless it keeps weights in other files.
        model: the ONNX model as bytes, weights inlined.
        input_name, output_name: the ONNX tensors; the output is the one before a dropped softmax.
        input_shape: without the batch dimension.
        batch: the file's batch dimension: a number where it is fixed, None where it is free, 0 where the
            input has none.
        layers: the gateable fully connected layers.
        operators: how often each ONNX operator occurs.
        parameters: number of weights in the file.
        dtype: the input's element type in the file, in which ONNX Runtime computes.
        softmax: whether a softmax at the end was dropped; questions about probabilities are then an error.
        mean, std: normalisation in front of the original file, float64 [inputs], or None.
        conv_layers: the convolutions whose channels can be removed; () unless the file was read for that.
        inputs, outputs: the tensors that the graph's input and output hold one after the other; more than one
            of either only where the file was read for that, and then without a batch dimension.
    """

    graph: Graph
    path: Path
    sha256: str
    model: bytes
    input_name: str
    output_name: str
    input_shape: tuple[int, ...]
    batch: int | None
    layers: tuple[GateableLayer, ...]
    operators: Mapping[str, int]
    parameters: int
    dtype: str = "float32"
    softmax: bool = False
    mean: Float | None = None
    std: Float | None = None
    conv_layers: tuple[GateableLayer, ...] = ()
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    @property
    def gateable(self) -> tuple[GateableLayer, ...]:
        """All layers from which something can be removed."""
        return (*self.layers, *self.conv_layers)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
        """The network on raw data: ``(x - mean) / std`` becomes its prefix.

        Args:
            mean, std: one number for all inputs or one a channel (of an image: the first axis, or
                the last where only that has as many entries).

        Raises:
            QueryError: the number of entries fits neither, or an entry of std is not positive.
        """
        shape = self.input_shape
        spread: list[Float] = []
        for name, values in (("--mean", mean), ("--std", std)):
            row = np.asarray(values, dtype=np.float64)
            if len(shape) == 3 and len(row) == shape[0]:
                row = row[:, None, None]
            elif len(row) != 1 and not (len(shape) == 3 and len(row) == shape[2]):
                counts = sorted({1, shape[0], shape[2]}) if len(shape) == 3 else [1]
                raise QueryError(
                    f"{name} has {len(values)} entries for input shape {shape}",
                    needed=f"{' or '.join(str(count) for count in counts)} entries",
                    fix="give one number, or one a channel, separated by commas",
                )
            spread.append(np.broadcast_to(row, shape or (1,)).reshape(-1))
        # NaN fails each comparison. Beyond these sizes float32, in which networks run, overflows.
        small, large = 1e-30, 1e30
        if not (np.all(np.abs(spread[0]) <= large) and np.all((small <= spread[1]) & (spread[1] <= large))):
            raise QueryError(
                f"--mean {','.join(map(str, mean))} --std {','.join(map(str, std))}",
                needed=f"finite means up to {large:g} in size, and std > 0, from {small:g} to {large:g}",
                fix="correct the numbers",
            )
        mean_row, std_row = spread
        layers = tuple(replace(layer, node=layer.node + 1) for layer in self.layers)
        convs = tuple(replace(layer, node=layer.node + 1) for layer in self.conv_layers)
        graph = self.graph.prefixed(1.0 / std_row, -mean_row / std_row, "normalisation")
        return replace(self, graph=graph, layers=layers, conv_layers=convs, mean=mean_row, std=std_row)
