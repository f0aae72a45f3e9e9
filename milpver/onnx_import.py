"""ONNX file -> Network: reads, checks and lowers a model, and refuses what cannot be verified.

Operators are lowered by the functions in ``milpver.ops``; here is what they have in common: which nodes
matter, what the batch dimension is, and how every unsupported node gets named at once.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.errors import ModelError
from milpver.graph import Gate
from milpver.linear import selection
from milpver.network import GateableLayer, Network, Port
from milpver.onnx_file import DEFAULT_DOMAINS, OnnxFile, check_model, first_line, read_model
from milpver.op import (
    FREE,
    LARGEST,
    BatchError,
    Builder,
    Call,
    Constant,
    InvalidWeightsError,
    Lowering,
    Tensor,
    UnsupportedError,
    Value,
)

__all__ = ["load_network", "lowerings"]

#: Operators that a softmax's output may pass on its way to the network's output.
_AFTER_SOFTMAX = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})

#: Operators whose weights may stand in Constant nodes.
_WEIGHTED = frozenset({"BatchNormalization", "Conv", "Gemm", "MatMul"})


def lowerings() -> dict[str, Lowering]:
    """All supported operators, from the tables of the modules in ``milpver.ops``."""
    found: dict[str, Lowering] = {}
    package = importlib.import_module("milpver.ops")
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"milpver.ops.{entry.name}")
        found.update(getattr(module, "LOWERINGS", {}))
    return found


def load_network(
    path: Path | str, *, channels: bool = False, several: bool = False, hidden: Sequence[str] = ()
) -> Network:
    """Read a network from an ONNX file.

    Every hidden fully connected layer's activation gets a Gate, and with ``channels`` that of every hidden
    convolution one whose entries share a gate a channel: ``Network.conv_layers``. A softmax at the end is
    dropped. Where the first axis is fixed at 1 or free, or N and no node mixes it, it is the batch.

    Args:
        path: the file. Weights in external files have to lie in its folder.
        channels: whether channels of convolutions may be removed.
        several: whether it may have several inputs and outputs, which ``Network.inputs`` and ``outputs``
            name; such a network has no batch dimension.
        hidden: tensors inside of the network that become outputs in front of the others (with ``several``).

    Raises:
        ModelError: the file is missing or damaged, its weights are not finite, or it uses what milpver does
            not support; the message names all of it.
    """
    file = read_model(Path(path))
    known = lowerings()
    _refuse_missing(file, hidden)
    outputs = (*hidden, *_outputs(file, several))
    nodes = _needed_nodes(file, outputs)
    _refuse_unknown(file.path, nodes, known)
    sources = _sources(file, several)
    initializers = _initializers(file, nodes)
    check_model(file.path, file.model)
    if several:  # what one of them calls a batch need not be one of the others
        sources = tuple(replace(each, batch=None, declared=0, shape=each.whole) for each in sources)
    try:
        lowered = _lower(file, nodes, known, sources, initializers, outputs, channels)
    except _RereadError as error:
        sources = tuple(each.read_as(error.reading) for each in sources)
        lowered = _lower(file, nodes, known, sources, initializers, outputs, channels)
    builder, results = lowered
    ports = tuple(
        Port(name, each.shape, hidden=place < len(hidden))
        for place, (name, each) in enumerate(zip(outputs, results, strict=True))
    )
    return _network(file, nodes, sources, ports, builder, results)


@dataclass(frozen=True, slots=True)
class _Source:
    """The network's input.

    Attributes:
        name: the ONNX tensor.
        shape: its shape; a batch axis that counts is 1.
        dtype: its element type.
        batch: size of the batch axis, FREE, or None where it does not count (fixed at 1, or absent).
        declared: as Network.batch has it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    batch: int | None
    declared: int | None

    @property
    def whole(self) -> tuple[int, ...]:
        """Its shape with the batch axis at its size, a free one at 1."""
        return self.shape if self.batch in (None, FREE) else (self.batch or 1, *self.shape[1:])

    def read_as(self, reading: str) -> _Source:
        """The same input with a batch of one, or without a batch axis."""
        if reading == "single":
            return replace(self, batch=None, declared=1)
        return replace(self, shape=(self.batch or 1, *self.shape[1:]), batch=None, declared=0)


class _RereadError(Exception):
    """The first axis is not the batch axis that it seemed to be."""

    def __init__(self, reading: str) -> None:
        super().__init__(reading)
        self.reading = reading


def _outputs(file: OnnxFile, several: bool) -> tuple[str, ...]:
    """The names of the outputs."""
    names = tuple(output.name for output in file.model.graph.output)
    if len(names) != 1 and not several:
        raise ModelError(
            f"{file.path} has {len(names)} outputs: {', '.join(map(repr, names))}",
            needed="one output",
            fix="export the one that is to be verified, for example with onnx.utils.extract_model",
        )
    return names


def _refuse_missing(file: OnnxFile, hidden: Sequence[str]) -> None:
    """Refuse hidden tensors that no node makes."""
    made = {name for node in file.model.graph.node for name in node.output if name}
    if missing := [name for name in hidden if name not in made]:
        raise ModelError(
            f"{file.path} has no node that makes the tensor {missing[0]!r}",
            needed="the name of a tensor that the network computes",
            fix="look the name up, for example with Netron",
        )


def _needed_nodes(file: OnnxFile, outputs: Sequence[str]) -> list[Any]:
    """The nodes that outputs depend on, in the file's order."""
    wanted = set(outputs)
    found = []
    for node in reversed(file.model.graph.node):
        if wanted.intersection(node.output):
            found.append(node)
            wanted.update(name for name in node.input if name)
    return found[::-1]


def _operator(node: Any) -> str:
    """A node's operator, with its domain unless it is the standard one."""
    return str(node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}")


def _label(node: Any) -> str:
    """What a node is called in messages."""
    return node.name or next((name for name in node.output if name), "") or "?"


def _refuse_unknown(path: Path, nodes: Sequence[Any], known: Mapping[str, Lowering]) -> None:
    """Refuse operators that have no lowering, all at once."""
    unknown = [node for node in nodes if _operator(node) not in known]
    if unknown:
        _refuse(path, [(node, "") for node in unknown], known)


def _refuse(path: Path, problems: Sequence[tuple[Any, str]], known: Mapping[str, Lowering]) -> None:
    """Name every node that is not supported."""
    groups: dict[tuple[str, str], list[str]] = {}
    for node, reason in problems:
        groups.setdefault((_operator(node), reason), []).append(repr(_label(node)))
    parts = []
    for (operator, reason), names in groups.items():
        count = f"{len(names)} x " if len(names) > 1 else ""
        parts.append(f"{count}{operator} ({', '.join(names)})" + (f" {reason}" if reason else ""))
    nodes = "node that is" if len(problems) == 1 else "nodes that are"
    raise ModelError(
        f"{path} has {len(problems)} {nodes} not supported: {'; '.join(parts)}",
        needed=f"only the operators {', '.join(sorted(known))}",
        fix="export the network without these nodes, or replace them by supported ones",
    )


def _sources(file: OnnxFile, several: bool) -> tuple[_Source, ...]:
    """The inputs that are no initializers."""
    stored = {tensor.name for tensor in file.model.graph.initializer}
    inputs = [entry for entry in file.model.graph.input if entry.name not in stored]
    if len(inputs) != 1 and not (several and inputs):
        names = ", ".join(repr(entry.name) for entry in inputs) or "none"
        raise ModelError(
            f"{file.path} has {len(inputs)} inputs: {names}",
            needed="one input",
            fix="export the network with one input, the others as constants",
        )
    found = tuple(_source(file.path, entry) for entry in inputs)
    kinds = [each.dtype.name for each in found]
    if len(set(kinds)) > 1:
        raise ModelError(
            f"{file.path} has inputs of the types {', '.join(kinds)}",
            needed="one type",
            fix="export the network with inputs of one type",
        )
    return found


def _source(path: Path, entry: Any) -> _Source:
    """One input."""
    from onnx import TensorProto, helper  # noqa: PLC0415  only where a file is read

    kind = entry.type.tensor_type
    if not entry.type.HasField("tensor_type") or kind.elem_type not in (
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
    ):
        typed = (
            TensorProto.DataType.Name(kind.elem_type) if entry.type.HasField("tensor_type") else "no tensor"
        )
        raise ModelError(
            f"{path}: input {entry.name!r} has element type {typed}",
            needed="FLOAT, DOUBLE or FLOAT16",
            fix="export the network with floating-point inputs",
        )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if not kind.HasField("shape"):
        raise ModelError(
            f"{path}: input {entry.name!r} has no shape", needed="a shape", fix="export the network with one"
        )
    sizes = [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    shown = [
        size if size is not None else dim.dim_param or "?"
        for size, dim in zip(sizes, kind.shape.dim, strict=True)
    ]
    first = 1 if len(sizes) > 1 else 0
    fixed = tuple(size for size in sizes[first:] if size is not None)
    if len(fixed) != len(sizes) - first or any(size is not None and size < 1 for size in sizes):
        raise ModelError(
            f"{path}: input {entry.name!r} has shape {shown}",
            needed="fixed dimensions >= 1, except for a free batch dimension in front of others",
            fix="export the network with a fixed input shape",
        )
    if math.prod(fixed) * (sizes[0] or 1 if sizes else 1) > LARGEST:
        raise ModelError(
            f"{path}: input {entry.name!r} has shape {shown}",
            needed=f"at most {LARGEST} entries",
            fix="verify a smaller network",
        )
    if len(sizes) < 2:
        return _Source(entry.name, fixed, dtype, batch=None, declared=0)
    declared = sizes[0]
    batch = FREE if declared is None else None if declared == 1 else declared
    return _Source(entry.name, (1, *fixed), dtype, batch, declared)


def _initializers(file: OnnxFile, nodes: Sequence[Any]) -> dict[str, Value]:
    """The initializers that some node reads."""
    graph = file.model.graph
    if graph.sparse_initializer:
        names = ", ".join(repr(entry.values.name) for entry in graph.sparse_initializer)
        raise ModelError(
            f"{file.path} has sparse initializers: {names}",
            needed="dense initializers",
            fix="export the network with dense weights",
        )
    read = {name for node in nodes for name in node.input}
    return {
        tensor.name: Constant(
            _array(file.path, tensor, f"weights {tensor.name!r}"), f"weights {tensor.name!r}"
        )
        for tensor in graph.initializer
        if tensor.name in read
    }


def _array(path: Path, tensor: Any, name: str) -> NDArray[Any]:
    """A stored tensor."""
    from onnx import numpy_helper  # noqa: PLC0415  only where a file is read

    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:
        raise ModelError(
            f"{path}: {name} of shape {list(tensor.dims)} cannot be read ({first_line(error)})",
            needed="as many numbers as the shape says",
            fix="export or download the file again",
        ) from error


def _attributes(path: Path, node: Any) -> dict[str, Any]:
    """A node's attributes, decoded."""
    from onnx import TensorProto, helper  # noqa: PLC0415  only where a file is read

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, TensorProto):
            value = _array(path, value, f"{attribute.name} of {_label(node)!r}")
        found[attribute.name] = value
    return found


def _lower(
    file: OnnxFile,
    nodes: Sequence[Any],
    known: Mapping[str, Lowering],
    sources: Sequence[_Source],
    initializers: Mapping[str, Value],
    outputs: Sequence[str],
    channels: bool,
) -> tuple[Builder, tuple[Tensor, ...]]:
    """Lower all nodes; the builder and the outputs.

    Raises:
        _RereadError: the first axis has to be read otherwise.
        ModelError: some nodes are not supported; all of them that can be told are named.
    """
    sizes = [math.prod(source.shape) for source in sources]
    builder = Builder(sum(sizes), sources[0].name, channels=channels)
    values: dict[str, Value | None] = {"": None, **initializers}
    for source, size, end in zip(sources, sizes, accumulate(sizes), strict=True):
        own = selection(np.arange(end - size, end), sum(sizes))
        node = builder.affine(((0, own),), np.zeros(size), source.name)
        values[source.name] = Tensor(node, source.shape, source.dtype)
    batch = sources[0].batch
    failed: set[str] = set()
    problems: list[tuple[Any, str]] = []
    for node in nodes:
        if failed.intersection(node.input):
            failed.update(node.output)
            continue
        missing = [name for name in node.input if name not in values]
        if missing:
            raise ModelError(
                f"{file.path}: {_operator(node)} {_label(node)!r} reads {missing[0]!r}, "
                "which nothing before it makes",
                needed="nodes in topological order",
                fix="export the network again",
            )
        call = Call(
            op=node.op_type,
            inputs=tuple(values[name] for name in node.input),
            input_names=tuple(node.input),
            outputs=tuple(node.output),
            attributes=_attributes(file.path, node),
            opset=file.opset,
            builder=builder,
            batch=batch,
        )
        try:
            made = _results(known[node.op_type], call)
        except InvalidWeightsError as error:
            raise ModelError(
                f"{file.path}: {_operator(node)} {_label(node)!r}: {error}",
                needed="finite weights",
                fix="repair the weights, or train the network again",
            ) from error
        except BatchError as error:
            if error.reading == "single" or (error.reading == "none" and batch != FREE):
                raise _RereadError(error.reading) from error
            problems.append((node, str(error)))
            failed.update(node.output)
        except UnsupportedError as error:
            problems.append((node, str(error)))
            failed.update(node.output)
        else:
            values.update(zip(node.output, made, strict=False))
    if problems:
        _refuse(file.path, problems, known)
    found = []
    for output in outputs:
        result = values.get(output)
        if not isinstance(result, Tensor):
            inputs = " or ".join(repr(source.name) for source in sources)
            raise ModelError(
                f"{file.path}: output {output!r} does not depend on input {inputs}",
                needed="an output computed from the input",
                fix="export the network again",
            )
        found.append(result)
    return builder, tuple(found)


def _results(lowering: Lowering, call: Call) -> Sequence[Value]:
    """Lower one node; its outputs."""
    after = next((v.logits for v in call.inputs if isinstance(v, Tensor) and v.logits), None)
    if after is not None and call.op not in (*_AFTER_SOFTMAX, "Softmax", "LogSoftmax"):
        raise UnsupportedError("follows a softmax, which may only stand at the end")
    try:
        made = lowering(call)
    except (ValueError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise UnsupportedError(f"has inputs or attributes that do not fit ({first_line(error)})") from error
    return made if isinstance(made, Sequence) else (made,)


def _together(builder: Builder, results: Sequence[Tensor]) -> int:
    """The node that holds several results one after the other."""
    if len(results) == 1:
        return results[0].node
    total = sum(result.size for result in results)
    places: dict[int, NDArray[np.int64]] = {}
    start = 0
    for result in results:
        taken = places.setdefault(result.node, np.full(total, -1))
        taken[start : start + result.size] = np.arange(result.size)
        start += result.size
    terms = [(node, selection(taken, builder.size(node))) for node, taken in places.items()]
    return builder.affine(terms, np.zeros(total), "outputs")


def _network(
    file: OnnxFile,
    nodes: Sequence[Any],
    sources: Sequence[_Source],
    outputs: tuple[Port, ...],
    builder: Builder,
    results: Sequence[Tensor],
) -> Network:
    """The network around a lowered graph."""
    source, logits = sources[0], next((each.logits for each in results if each.logits), "")
    graph, gated = builder.finish(_together(builder, results))
    layers, conv_layers = (
        tuple(
            GateableLayer(
                number=number,
                name=entry.name,
                width=gate.gates if isinstance(gate := graph.nodes[entry.node], Gate) else 0,
                node=entry.node,
                shape=entry.shape[1:] if source.declared == 1 and entry.shape[:1] == (1,) else entry.shape,
                channels=entry.channels,
            )
            for number, entry in enumerate((each for each in gated if each.channels == of_channels), start=1)
        )
        for of_channels in (False, True)
    )
    return Network(
        graph=graph,
        path=file.path,
        sha256=file.sha256,
        model=file.content,
        input_name=source.name,
        output_name=logits or outputs[-1].name,
        input_shape=source.shape if source.declared == 0 else source.shape[1:],
        batch=source.declared,
        layers=layers,
        conv_layers=conv_layers,
        operators=dict(Counter(_operator(node) for node in file.model.graph.node)),
        parameters=_parameters(file, nodes),
        dtype=source.dtype.name,
        softmax=bool(logits),
        inputs=tuple(Port(each.name, each.shape) for each in sources),
        outputs=outputs,
    )


def _parameters(file: OnnxFile, nodes: Sequence[Any]) -> int:
    """Number of floating-point weights: initializers, and Constant nodes that feed a layer."""
    from onnx import TensorProto  # noqa: PLC0415  only where a file is read

    real = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    stored = [tensor for tensor in file.model.graph.initializer if tensor.data_type in real]
    fed = {name for node in nodes if node.op_type in _WEIGHTED for name in node.input[1:]}
    stored.extend(
        attribute.t
        for node in nodes
        if node.op_type == "Constant" and fed.intersection(node.output)
        for attribute in node.attribute
        if attribute.name == "value" and attribute.t.data_type in real
    )
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in stored)
