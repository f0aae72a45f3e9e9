"""The contract of an operator: one function that lowers an ONNX node to the five kinds of the IR.

``milpver.ops`` holds the functions, grouped by family; each of its modules has a table ``LOWERINGS`` from
operator to function. A function gets a :class:`Call` (inputs, attributes, opset), adds IR nodes through the
call's :class:`Builder`, and returns the values of its outputs. Nothing else knows about operators.

Shapes. A value is either a :class:`Constant` (folded as the operator's own arithmetic has it) or a
:class:`Tensor`, whose entries are one IR node's flat vector in row-major order. Where the network has a batch
axis that counts, it is axis 0 of every tensor and stands in ``Tensor.shape`` as 1; an operator that would
move or mix it raises :class:`BatchError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Conv, Dense, Float, Int, LinearMap, Sparse, diagonal, identity, selection

__all__ = [
    "FREE",
    "LARGEST",
    "BatchError",
    "Builder",
    "Call",
    "Constant",
    "GatedTensor",
    "InvalidWeightsError",
    "Lowering",
    "Tensor",
    "UnsupportedError",
    "Value",
    "check_size",
    "finite",
    "indices",
]

#: Stands for a free batch dimension in folded shapes: a prime that no real dimension equals.
FREE = 1_000_003

#: No tensor and no constant may have more entries than this: a damaged file must not ask for all memory.
LARGEST = 50_000_000


class UnsupportedError(Exception):
    """A node whose operator is known, but not with these inputs or attributes; the text says which."""


class BatchError(UnsupportedError):
    """A node that moves or mixes the batch axis.

    Attributes:
        reading: how the file makes sense all the same: ``single`` (it insists on a batch of one), ``none``
            (its first axis is no batch axis), or nothing.
    """

    def __init__(self, text: str, reading: Literal["", "single", "none"] = "") -> None:
        super().__init__(text)
        self.reading = reading


class InvalidWeightsError(UnsupportedError):
    """A constant that holds NaN or infinity; the text names it."""


@dataclass(frozen=True, eq=False, slots=True)
class Constant:
    """A value that does not depend on the input.

    Attributes:
        array: as the ONNX graph types it.
        name: the initializer or tensor it came from, for messages.
        batch: whether it depends on the size of a free batch (FREE stands in it then).
    """

    array: NDArray[Any]
    name: str
    batch: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A value that depends on the input.

    Attributes:
        node: the IR node that holds it, flattened.
        shape: its ONNX shape; a batch axis counts 1.
        dtype: its ONNX element type.
        dense: whether it is a fully connected layer's output, before its activation.
        logits: name of the tensor before the softmax, where this is a softmax's output.
        conv: its shape as a convolution's output, before its activation; () where it is none.
    """

    node: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dense: bool = False
    logits: str = ""
    conv: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries, of one input."""
        return int(np.prod(self.shape, dtype=np.int64))


Value: TypeAlias = Constant | Tensor


@dataclass(frozen=True, slots=True)
class GatedTensor:
    """A gate behind a layer's activation: ONNX tensor, its shape, IR node, and whether it gates channels."""

    name: str
    shape: tuple[int, ...]
    node: int
    channels: bool = False


class Builder:
    """The graph under construction.

    Affine nodes that follow each other become one where that is exact: no coefficient of the result is
    rounded that was not rounded before.

    Args:
        size: length of the input vector.
        name: of the input.
        channels: whether channels of convolutions get gates.
    """

    def __init__(self, size: int, name: str, *, channels: bool = False) -> None:
        self.channels = channels
        self._nodes: list[Node] = [Input(size, name)]
        self._gated: list[GatedTensor] = []

    def size(self, node: int) -> int:
        """Length of a node's vector."""
        return self._nodes[node].size

    def _add(self, node: Node) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1

    def relu(self, source: int, name: str) -> int:
        """Add ``max(x, 0)``."""
        return self._add(Relu(source, self.size(source), name))

    def max(self, source: int, groups: Int, name: str) -> int:
        """Add maxima over groups, int64 [size, window]."""
        return self._add(Max(source, groups, name))

    def gate(self, source: int, name: str, shape: tuple[int, ...]) -> int:
        """Add a gate for every entry, behind a fully connected layer's activation."""
        size = self.size(source)
        node = self._add(Gate(source, np.arange(size, dtype=np.int64), size, name))
        self._gated.append(GatedTensor(name, shape, node))
        return node

    def channel_gate(self, source: int, name: str, shape: tuple[int, ...], channels: int) -> int:
        """Add a gate for every channel, behind a convolution's activation."""
        size = self.size(source)
        owner = np.repeat(np.arange(channels, dtype=np.int64), size // channels)
        node = self._add(Gate(source, owner, channels, name))
        self._gated.append(GatedTensor(name, shape, node, channels=True))
        return node

    def affine(self, terms: Sequence[tuple[int, LinearMap]], bias: Float, name: str) -> int:
        """Add ``sum M x + b``, merged with the affine node before it where that is exact."""
        bias = np.array(bias, dtype=np.float64)  # its own: torch warns of read-only views of constants
        if len(terms) == 1:
            source, linear = terms[0]
            before = self._nodes[source]
            if _is_identity(linear) and not bias.any():
                return source
            if isinstance(before, Affine) and (merged := _merged(before, linear, bias, name)) is not None:
                return self._add(merged)
        return self._add(Affine(tuple(terms), bias, name))

    def finish(self, output: int) -> tuple[Graph, tuple[GatedTensor, ...]]:
        """The graph that ends in a node, without what does not influence it.

        A gate that only scaling, selection or an elementwise activation separates from the output gates
        the output itself, not a hidden layer: it is left out.
        """
        outer = self._output_gates(output)
        moved: dict[int, int] = {}
        kept: list[Node] = []
        needed = self._ancestors(output)
        for index, node in enumerate(self._nodes):
            if index in outer:
                moved[index] = moved[node.sources[0]]
            elif index in needed or index == 0:
                kept.append(_rewired(node, moved))
                moved[index] = len(kept) - 1
        last = moved[output]
        if last == 0:
            size = self._nodes[0].size
            kept.append(Affine(((0, identity(size)),), np.zeros(size), "output"))
        gated = tuple(
            replace(entry, node=moved[entry.node])
            for entry in self._gated
            if entry.node in needed and entry.node not in outer
        )
        return Graph(tuple(kept)), gated

    def _output_gates(self, output: int) -> set[int]:
        """The gates of the output itself."""
        found: set[int] = set()
        index = output
        while True:
            match self._nodes[index]:
                case Gate(source=source):
                    found.add(index)
                    index = source
                case Relu(source=source):
                    index = source
                case Affine(terms=((source, Sparse() as linear),)) if linear.row_terms <= 1:
                    index = source
                case _:
                    return found

    def _ancestors(self, output: int) -> set[int]:
        """The nodes that a node depends on, itself included."""
        found: set[int] = set()
        waiting = [output]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting.extend(self._nodes[index].sources)
        return found


def _rewired(node: Node, moved: Mapping[int, int]) -> Node:
    """A node with its sources renumbered."""
    match node:
        case Input():
            return node
        case Affine():
            return replace(node, terms=tuple((moved[source], linear) for source, linear in node.terms))
        case Relu() | Max() | Gate():
            return replace(node, source=moved[node.source])


def _selected(linear: LinearMap) -> Int | None:
    """The indices of a map that only selects entries (-1: a zero), or None for any other map."""
    if not isinstance(linear, Sparse) or linear.row_terms > 1 or not np.all(linear.matrix.data == 1.0):
        return None
    indices = np.full(linear.outputs, -1, dtype=np.int64)
    indices[np.diff(linear.matrix.indptr) == 1] = linear.matrix.indices
    return indices


def _is_identity(linear: LinearMap) -> bool:
    indices = _selected(linear)
    return (
        indices is not None
        and linear.inputs == linear.outputs
        and np.array_equal(indices, np.arange(linear.inputs))
    )


def _merged(before: Affine, linear: LinearMap, bias: Float, name: str) -> Affine | None:
    """``linear(before(x)) + bias`` as one node, or None where that would round a coefficient."""
    after = _selected(linear)
    if after is None:
        return _merged_into_layer(before, linear, bias, name)
    picked = np.where(after >= 0, before.bias[after], 0.0)
    if np.any((picked != 0) & (bias != 0)):
        return None
    if _is_identity(linear):
        return Affine(before.terms, picked + bias, name)
    if len(before.terms) > 1 or isinstance(before.terms[0][1], Conv):
        return None
    source, first = before.terms[0]
    return Affine(((source, _rows(first, after)),), picked + bias, name)


def _merged_into_layer(before: Affine, linear: LinearMap, bias: Float, name: str) -> Affine | None:
    """The same for a layer behind a node that may only select."""
    if len(before.terms) > 1 or before.bias.any() or isinstance(linear, Conv):
        return None
    source, first = before.terms[0]
    ahead = _selected(first)
    if ahead is None:
        return None
    used = ahead[ahead >= 0]
    if len(np.unique(used)) != len(used):
        return None
    return Affine(((source, _columns(linear, ahead, first.inputs)),), bias, name)


def _rows(linear: LinearMap, indices: Int) -> LinearMap:
    """The map whose outputs are selected from another's (-1: a zero row)."""
    if isinstance(linear, Dense):
        return Dense(np.where(indices[:, None] >= 0, linear.weight[indices], 0.0))
    return Sparse(sparse.csr_array(selection(indices, linear.outputs).matrix @ linear.csr))


def _columns(linear: LinearMap, indices: Int, inputs: int) -> LinearMap:
    """The map on inputs that were selected from a vector of ``inputs`` entries, each at most once."""
    if isinstance(linear, Dense):
        weight = np.zeros((linear.outputs, inputs))
        kept = indices >= 0
        weight[:, indices[kept]] = linear.weight[:, kept]
        return Dense(weight)
    return Sparse(sparse.csr_array(linear.csr @ selection(indices, inputs).matrix))


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One ONNX node on its way into the IR.

    Attributes:
        op: the operator.
        inputs: its inputs; None for an optional one that is not given.
        input_names: their names in the file.
        outputs: names of its outputs; empty for one that is not wanted.
        attributes: decoded; strings as str, tensors as arrays.
        opset: version of the operator set.
        builder: where IR nodes go.
        batch: size of the batch axis (FREE where it is free), or None where tensors have none that counts.
    """

    op: str
    inputs: tuple[Value | None, ...]
    input_names: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    opset: int
    builder: Builder
    batch: int | None

    @property
    def name(self) -> str:
        """Name of the first output, for messages and IR nodes."""
        return self.outputs[0]

    @property
    def folds(self) -> bool:
        """Whether no input depends on the network's input."""
        return not any(isinstance(value, Tensor) for value in self.inputs)

    @property
    def tainted(self) -> bool:
        """Whether a constant among the inputs depends on the size of a free batch."""
        return any(isinstance(value, Constant) and value.batch for value in self.inputs)

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def value(self, position: int) -> Value:
        """An input that has to be there.

        Raises:
            UnsupportedError: it is not.
        """
        found = self.inputs[position] if position < len(self.inputs) else None
        if found is None:
            raise UnsupportedError(f"input {position} is missing")
        return found

    def tensor(self, position: int) -> Tensor:
        """An input that has to depend on the network's input.

        Raises:
            UnsupportedError: it is a constant.
        """
        found = self.value(position)
        if isinstance(found, Constant):
            raise UnsupportedError(f"input {position} ({found.name}) is a constant")
        return found

    def constant(self, position: int) -> Constant:
        """An input that has to be a constant.

        Raises:
            UnsupportedError: it depends on the network's input.
        """
        found = self.value(position)
        if isinstance(found, Tensor):
            raise UnsupportedError(f"input {position} is computed from the network's input")
        return found

    def weights(self, position: int) -> Float:
        """A constant input as weights, float64 in its own shape.

        Raises:
            UnsupportedError: it is not constant, not floating-point, or depends on the batch size.
            InvalidWeightsError: it holds NaN or infinity.
        """
        return finite(self.constant(position))

    def integers(self, position: int, attribute: str = "") -> tuple[int, ...] | None:
        """Integers that older opsets give as an attribute and newer ones as an input; None if neither is."""
        if attribute and attribute in self.attributes:
            return tuple(int(entry) for entry in self.attributes[attribute])
        if not self.has(position):
            return None
        array = self.constant(position).array
        if not np.issubdtype(array.dtype, np.integer):
            raise UnsupportedError(f"input {position} has to hold integers, not {array.dtype}")
        return tuple(int(entry) for entry in array.reshape(-1))

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front.

        Raises:
            UnsupportedError: there is no such axis.
        """
        if not -rank <= axis < rank:
            raise UnsupportedError(f"axis {axis} of a tensor with {rank} axes")
        return axis % rank

    def full_shape(self, value: Value) -> tuple[int, ...]:
        """The shape with the batch axis at its real size (FREE where that is free)."""
        if isinstance(value, Constant):
            return tuple(value.array.shape)
        if self.batch is None:
            return value.shape
        return (self.batch, *value.shape[1:])

    def guard_axis(self, value: Value, axis: int) -> None:
        """Refuse an operation along a tensor's batch axis.

        Raises:
            BatchError: the axis is the batch axis.
        """
        if self.batch is not None and isinstance(value, Tensor) and axis == 0:
            raise BatchError("works along the batch axis")

    def rearranged(self, value: Value, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Value:
        """A value whose entries another one holds in another order or number.

        Args:
            value: a constant or a tensor.
            function: from an array in the value's shape to the result; applied to the entries' indices.
        """
        if isinstance(value, Constant):
            return replace(value, array=function(value.array))
        return self.selected(value, function(indices(value)))

    def selected(self, tensor: Tensor, picked: Int) -> Tensor:
        """The tensor of the shape of ``picked`` whose entries are a tensor's (-1: a zero)."""
        if picked.size == 0:
            raise UnsupportedError(f"its result of shape {picked.shape} is empty")
        check_size(picked.size)
        flat = picked.reshape(-1)
        if np.array_equal(flat, np.arange(tensor.size)):
            return replace(tensor, shape=picked.shape)
        node = self.builder.affine(
            ((tensor.node, selection(flat, tensor.size)),), np.zeros(len(flat)), self.name
        )
        return Tensor(node, picked.shape, tensor.dtype)

    def scaled(self, tensor: Tensor, scale: Float, shift: Float) -> Tensor:
        """``scale * x + shift``, both float64 in the tensor's shape; a fully connected layer stays one."""
        node = self.builder.affine(
            ((tensor.node, diagonal(scale.reshape(-1))),), shift.reshape(-1), self.name
        )
        return replace(tensor, node=node)

    def activated(self, tensor: Tensor, node: int) -> Tensor:
        """The activation ``node`` of a tensor, with its gate where a layer feeds it that may be pruned."""
        shape = tensor.shape if self.batch is None else tensor.shape[1:]
        if tensor.dense:
            node = self.builder.gate(node, self.name, shape)
        elif tensor.conv and tensor.conv == tensor.shape and self.builder.channels:
            node = self.builder.channel_gate(node, self.name, shape, tensor.shape[1])
        return replace(tensor, node=node, dense=False, conv=())

    def folded(self, array: NDArray[Any]) -> Constant:
        """A constant result of this call.

        Raises:
            UnsupportedError: it is too large.
        """
        check_size(array.size)
        names = [value.name for value in self.inputs if isinstance(value, Constant)]
        return Constant(array, names[0] if names else self.name, self.tainted)

    def text(self, attribute: str, default: str) -> str:
        """A string attribute."""
        return str(self.attributes.get(attribute, default))

    def number(self, attribute: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(attribute, default))


#: What lowers one operator.
Lowering: TypeAlias = Callable[[Call], Value | Sequence[Value]]


def indices(tensor: Tensor) -> Int:
    """The position of every entry in the flat vector, in the tensor's shape."""
    return np.arange(tensor.size, dtype=np.int64).reshape(tensor.shape)


def check_size(entries: int) -> None:
    """Refuse what would not fit into memory.

    Raises:
        UnsupportedError: it has more entries than LARGEST.
    """
    if entries > LARGEST:
        raise UnsupportedError(f"needs {entries} entries, more than {LARGEST}")


def finite(constant: Constant) -> Float:
    """A constant as float64.

    Raises:
        UnsupportedError: it is not floating-point, or depends on the size of a free batch.
        InvalidWeightsError: it holds NaN or infinity.
    """
    if constant.batch:
        raise UnsupportedError(f"{constant.name} depends on the size of the batch")
    if not np.issubdtype(constant.array.dtype, np.floating):
        kind = constant.array.dtype
        raise UnsupportedError(f"{constant.name} has to hold floating-point numbers, not {kind}")
    values = constant.array.astype(np.float64)
    if not np.all(np.isfinite(values)):
        bad = np.argwhere(~np.isfinite(values))[0]
        place = f" at {tuple(int(i) for i in bad)}" if values.ndim else ""
        raise InvalidWeightsError(f"{constant.name} holds {values[tuple(bad)]}{place}")
    return values
