"""A network without the neurons that a mask removes: smaller layers in a smaller ONNX file.

A removed neuron's activation is 0, so its column can go from the matrices that read it, and then its row from
the one that makes it. Both are found by walking the file's nodes from the gated tensor: back to a Gemm,
MatMul through elementwise operators, forth to every Gemm or MatMul that reads it. What lies otherwise is
refused.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.errors import ModelError
from milpver.graph import Masks
from milpver.network import GateableLayer, Network
from milpver.onnx_import import load_network
from milpver.replay import Replay

__all__ = ["Shrunk", "shrink"]

#: Operators that treat every neuron by itself: what is in front of them decides how many there are.
_ELEMENTWISE = ("Relu", "LeakyRelu", "Clip", "Identity", "Dropout", "Cast")
#: Those of them that need not keep 0 at 0 may stand in front of a gate, not behind it.
_KEEPS_ZERO = ("Relu", "LeakyRelu", "Identity", "Dropout", "Cast", "Flatten")

#: Inputs on which the small network is compared with the masked one, and the difference allowed in shares of
#: the largest output (sums of fewer terms round differently).
_COMPARED, _TOLERANCE = 256, 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Shrunk:
    """A smaller network.

    Attributes:
        content: the ONNX file.
        widths: of the gateable layers now.
        parameters: weights before and now.
        difference: from the masked network, in ONNX Runtime, in shares of the largest output.
    """

    content: bytes
    widths: tuple[int, ...]
    parameters: tuple[int, int]
    difference: float


def shrink(network: Network, removed: Masks, inputs: NDArray[np.float32] | None = None) -> Shrunk:
    """Take neurons out of a network's file.

    Args:
        network: as loaded; a normalisation given outside of the file stays outside.
        removed: Gate node -> bool [gates]; a layer keeps at least one neuron.
        inputs: float32 [n, inputs], on which the outcome is compared with the masked network; random numbers
            where absent.

    Returns:
        The file, which has been run.

    Raises:
        ModelError: a layer's neurons do not stand in matrices that can be cut, or the outcome differs from
        the
            masked network.
    """
    import onnx  # noqa: PLC0415  only where a network is written

    cut = {layer.node for layer in network.layers}
    if other := [node for node, gone in removed.items() if node not in cut and np.any(gone)]:
        names = [layer.label for layer in network.gateable if layer.node in other] or other
        raise ModelError(
            f"{network.path}: a mask for {', '.join(str(name) for name in names)}",
            needed="neurons of fully connected layers, the only ones that are cut out",
            fix="leave channels out of --budget; milpver margin --save-witness writes masked networks",
        )
    model = onnx.ModelProto.FromString(network.model)
    cutter = _Cutter(network, model)
    before = cutter.parameters()
    widths = []
    for layer in network.layers:
        gone = removed.get(layer.node)
        kept = np.arange(layer.width) if gone is None else np.flatnonzero(~np.asarray(gone, dtype=np.bool_))
        if len(kept) == 0:
            raise ModelError(
                f"layer {layer.number} ({layer.name}) would lose all its {layer.width} neurons",
                needed="at least one neuron a layer",
                fix="give a smaller budget",
            )
        widths.append(len(kept))
        if len(kept) < layer.width:
            cutter.cut(layer, kept)
    cutter.finish()
    content: bytes = model.SerializeToString(deterministic=True)
    difference = _difference(network, removed, content, inputs)
    return Shrunk(content, tuple(widths), (before, cutter.parameters()), difference)


class _Cutter:
    """A model whose layers get smaller, in place."""

    def __init__(self, network: Network, model: Any) -> None:
        from onnx import numpy_helper  # noqa: PLC0415  only where a network is written

        self._path = network.path
        self._model = model
        self._tensors: dict[str, NDArray[Any]] = {
            entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer
        }
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self._maker = {name: node for node in model.graph.node for name in node.output}

    def parameters(self) -> int:
        """How many numbers the initializers hold."""
        return sum(int(np.prod(tuple(entry.dims))) for entry in self._model.graph.initializer)

    def cut(self, layer: GateableLayer, kept: NDArray[np.int64]) -> None:
        """Keep only these neurons of a layer."""
        self._back(layer, layer.name, kept)
        self._forth(layer, layer.name, kept)

    def finish(self) -> None:
        """Drop what the file says about intermediate shapes, and tensors that nothing reads any more."""
        graph = self._model.graph
        del graph.value_info[:]
        read = {name for node in graph.node for name in node.input}
        read |= {entry.name for entry in graph.output}
        unread = [node for node in graph.node if not read.intersection(node.output)]
        for node in unread:
            if node.op_type == "Constant":
                graph.node.remove(node)
        for entry in [entry for entry in graph.initializer if entry.name not in read]:
            graph.initializer.remove(entry)
            for declared in [each for each in graph.input if each.name == entry.name]:
                graph.input.remove(declared)

    def _back(self, layer: GateableLayer, name: str, kept: NDArray[np.int64]) -> None:
        """From the gated tensor back to the matrix that makes it."""
        while True:
            node = self._maker.get(name)
            if node is None:
                raise self._refused(layer, f"is made by nothing that can be cut ({name})")
            if node.op_type == "Gemm":
                axis = 0 if _attribute(node, "transB") else 1
                self._take(layer, node, 1, kept, axis)
                if len(node.input) > 2 and node.input[2]:
                    self._take_elementwise(layer, node, 2, kept)
                return
            if node.op_type == "MatMul":
                self._take(layer, node, 1, kept, -1)
                return
            constants = [k for k, each in enumerate(node.input) if each in self._tensors]
            if node.op_type in ("Add", "Sub", "Mul", "Div") and len(constants) == 1:
                self._take_elementwise(layer, node, constants[0], kept)
                name = node.input[1 - constants[0]]
            elif node.op_type == "BatchNormalization":
                for k in range(1, 5):
                    self._take_elementwise(layer, node, k, kept)
                name = node.input[0]
            elif node.op_type in _ELEMENTWISE:
                name = node.input[0]
            else:
                raise self._refused(layer, f"is made by {node.op_type}, which is not cut")
            self._only_reader(layer, name, node)

    def _forth(self, layer: GateableLayer, name: str, kept: NDArray[np.int64]) -> None:
        """From the gated tensor to all matrices that read it."""
        readers = [node for node in self._model.graph.node if name in node.input]
        if not readers or any(entry.name == name for entry in self._model.graph.output):
            raise self._refused(layer, "is an output of the network")
        for node in readers:
            if node.op_type == "Gemm" and node.input[0] == name and not _attribute(node, "transA"):
                self._take(layer, node, 1, kept, 1 if _attribute(node, "transB") else 0)
            elif node.op_type == "MatMul" and node.input[0] == name:
                self._take(layer, node, 1, kept, -2)
            elif node.op_type in _KEEPS_ZERO and node.input[0] == name:
                self._forth(layer, node.output[0], kept)
            else:
                raise self._refused(layer, f"is read by {node.op_type}, which is not cut")

    def _only_reader(self, layer: GateableLayer, name: str, node: Any) -> None:
        """Refuse a tensor in front of the gate that is read elsewhere too."""
        if sum(name in each.input for each in self._model.graph.node) > 1:
            raise self._refused(layer, f"shares {name} with another branch than {node.op_type}")

    def _take(self, layer: GateableLayer, node: Any, place: int, kept: NDArray[np.int64], axis: int) -> None:
        """Keep some rows or columns of the constant that a node reads."""
        name = node.input[place]
        if name not in self._tensors:
            raise self._refused(layer, f"has weights {name} that are no constants")
        tensor = self._tensors[name]
        if tensor.ndim != 2 or tensor.shape[axis] != layer.width:
            raise self._refused(layer, f"has weights {name} of shape {tensor.shape}")
        self._replace(node, place, np.take(tensor, kept, axis=axis))

    def _take_elementwise(self, layer: GateableLayer, node: Any, place: int, kept: NDArray[np.int64]) -> None:
        """The same for a bias or a scale, which may be one number for all neurons."""
        name = node.input[place]
        if name not in self._tensors:
            raise self._refused(layer, f"has a bias {name} that is no constant")
        tensor = self._tensors[name]
        if tensor.size == 1:
            return
        if tensor.shape[-1] != layer.width or tensor.size != layer.width:
            raise self._refused(layer, f"has a bias {name} of shape {tensor.shape}")
        self._replace(node, place, np.take(tensor, kept, axis=-1))

    def _replace(self, node: Any, place: int, value: NDArray[Any]) -> None:
        """Give a node a constant of its own, which leaves other readers of the old one alone."""
        from onnx import numpy_helper  # noqa: PLC0415  only where a network is written

        taken = set(self._tensors) | set(self._maker) | {each.name for each in self._model.graph.input}
        name = f"{node.input[place]}_kept"
        while name in taken:
            name += "_"
        self._tensors[name] = value
        self._model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        node.input[place] = name

    def _refused(self, layer: GateableLayer, why: str) -> ModelError:
        return ModelError(
            f"{self._path}: layer {layer.number} ({layer.name}) {why}",
            needed="a layer between Gemm or MatMul nodes with constant weights",
            fix="leave the layer out of --budget; milpver margin --save-witness writes masked networks",
        )


def _attribute(node: Any, name: str) -> int:
    """An integer attribute, 0 where it is absent."""
    return next((int(each.i) for each in node.attribute if each.name == name), 0)


def _difference(
    network: Network, removed: Masks, content: bytes, inputs: NDArray[np.float32] | None
) -> float:
    """How far the small network is from the masked one, in ONNX Runtime."""
    if inputs is None:
        rng = np.random.default_rng(0)
        inputs = rng.random((_COMPARED, network.graph.inputs), dtype=np.float32)
    inputs = inputs[:_COMPARED]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / network.path.name
        path.write_bytes(content)
        small = load_network(path)
    small = replace(small, mean=network.mean, std=network.std)
    wanted = Replay(network).outputs(inputs, removed).astype(np.float64)
    found = Replay(small).outputs(inputs).astype(np.float64)
    scale = max(float(np.abs(wanted).max()), 1e-30)
    difference = float(np.abs(found - wanted).max()) / scale
    if not difference <= _TOLERANCE:
        raise ModelError(
            f"{network.path}: the smaller network is {difference:.1e} of the largest output off the masked",
            needed=f"at most {_TOLERANCE}",
            fix="please report this network; nothing is written",
        )
    return difference
