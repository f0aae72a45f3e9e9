"""The original file with a mask applied: in ONNX Runtime, and as a file of its own.

The IR is not what a user runs. So a witness is replayed on the ONNX file itself, into which a multiplication
by the mask is inserted behind every gated tensor; ``milpver.rounding.float32_error`` says how far such a run
may lie from the exact network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.errors import ModelError
from milpver.graph import Affine, Gate, Graph, Masks
from milpver.linear import diagonal
from milpver.network import GateableLayer, Network
from milpver.onnx_file import DEFAULT_DOMAINS, first_line
from milpver.rounding import float32_error

__all__ = ["Replay", "float32_error", "pruned_model", "without"]

Float32 = NDArray[np.float32]

#: Inputs in one run of a network with a free batch.
_CHUNK = 1024

#: The newest file format that every supported ONNX Runtime reads.
_OLD_FORMAT = 8


class Replay:
    """The original file in ONNX Runtime, every gateable layer multiplied by a mask.

    Channels of convolutions are, in a session of their own, once a mask is about them.

    Args:
        network: the network; its normalisation is part of what runs.
        threads: of ONNX Runtime.

    Raises:
        ModelError: ONNX Runtime does not accept the file.
    """

    def __init__(self, network: Network, threads: int = 1) -> None:
        import onnx  # noqa: PLC0415  only where a network is run

        self._network = network
        self._threads = threads
        self._dtype = np.dtype(network.dtype)
        model = _prepared(network)
        types = _element_types(network, model)
        self._mask_types = {
            layer.label: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(types[layer.name]))
            for layer in network.gateable
        }
        self._session = self._opened(network.layers)
        self._channel_session: Any = None

    def _opened(self, layers: Sequence[GateableLayer]) -> Any:
        """A session with masks for these layers."""
        import onnx  # noqa: PLC0415  only where a network is run

        model = _prepared(self._network)
        types = _element_types(self._network, model)

        def masked(layer: GateableLayer) -> str:
            name = f"milpver_mask_{layer.label}"
            entry = onnx.helper.make_tensor_value_info(name, types[layer.name], None)
            model.graph.input.append(entry)
            return name

        _insert(model, layers, masked, lambda _layer, _name: ())
        _cut(model, self._network)
        return _session(self._network, model, self._threads)

    def outputs(self, x: NDArray[np.floating[Any]], removed: Masks | None = None) -> Float32:
        """Outputs in the arithmetic of the file (float32, as a rule), before a dropped softmax.

        Args:
            x: float32 [batch, inputs], not yet normalised.
            removed: Gate node -> bool [gates] or [batch, gates]; absent: none.

        Returns:
            float32 [batch, outputs].

        Raises:
            ModelError: ONNX Runtime fails on the network.
            ValueError: shapes do not fit, or a mask belongs to no gateable layer.
        """
        network = self._network
        x = np.asarray(x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != network.graph.inputs:
            raise ValueError(f"inputs of shape {x.shape} for a network with {network.graph.inputs} inputs")
        if len(x) == 0:
            return np.zeros((0, network.graph.outputs), dtype=np.float32)
        masks = _mask_arrays(network, removed or {}, len(x))
        step = _CHUNK if network.batch is None else max(network.batch, 1)
        parts = [
            self._run(x[start : start + step], {n: m[start : start + step] for n, m in masks.items()})
            for start in range(0, len(x), step)
        ]
        return np.concatenate(parts)

    def _run(self, x: Float32, masks: dict[str, NDArray[np.bool_]]) -> Float32:
        """One run: as many inputs as the file takes at once, or fewer."""
        network = self._network
        count = len(x)
        lead: tuple[int, ...] = (
            (count,) if network.batch is None else (network.batch,) if network.batch else ()
        )
        filled = lead[0] if lead else 1
        if filled > count:  # a fixed batch, filled up with copies of the last input
            rows = np.minimum(np.arange(filled), count - 1)
            x, masks = x[rows], {label: mask[rows] for label, mask in masks.items()}
        with np.errstate(over="ignore"):
            cast = x.astype(self._dtype)
        names = [network.output_name]
        if len(network.inputs) > 1 or len(network.outputs) > 1:
            ends = np.cumsum([port.size for port in network.inputs])
            parts = zip(network.inputs, np.split(cast[0], ends[:-1]), strict=True)
            feeds = {port.name: values.reshape(port.shape) for port, values in parts}
            names = [port.name for port in network.outputs]
        else:
            feeds = {network.input_name: cast.reshape(*lead, *network.input_shape)}
        convs = [layer for layer in network.conv_layers if masks[layer.label].any()]
        if convs and self._channel_session is None:
            self._channel_session = self._opened(network.gateable)
        for layer in network.gateable if convs else network.layers:
            # where only one input runs at a time the mask has no batch axis: the tensor may have lost it
            own = layer.mask_shape
            shape = own if filled == 1 and network.batch is not None else (filled, *own)
            kept = ~masks[layer.label]
            feeds[f"milpver_mask_{layer.label}"] = kept.reshape(shape).astype(self._mask_types[layer.label])
        try:
            session = self._channel_session if convs else self._session
            found = session.run(names, feeds)
        except Exception as error:
            raise _runtime_error(network, error) from error
        entries = np.concatenate([np.asarray(each).reshape(filled, -1) for each in found], axis=1)
        result: Float32 = entries[:count].astype(np.float32)
        return result


def pruned_model(network: Network, removed: Masks) -> bytes:
    """The network as an ONNX file with a mask burnt in, for anyone to run.

    Inputs, outputs and everything else are the file's own; a constant multiplication stands behind each layer
    that loses neurons. The normalisation of ``Network.normalised`` becomes part of the file.

    Args:
        network: the network.
        removed: Gate node -> bool [gates].

    Raises:
        ValueError: a mask belongs to no gateable layer, or has the wrong length.
    """
    import onnx  # noqa: PLC0415  only where a network is written

    masks = _mask_arrays(network, removed, 1)
    model = onnx.ModelProto.FromString(network.model)
    layers = [layer for layer in network.gateable if masks[layer.label].any()]
    types = _element_types(network, model)
    _normalise(model, network)

    taken = _names(model)

    def constant(layer: GateableLayer, name: str) -> tuple[Any, ...]:
        kind = onnx.helper.tensor_dtype_to_np_dtype(types[layer.name])
        values = (~masks[layer.label][0]).reshape(layer.mask_shape).astype(kind)
        tensor = onnx.numpy_helper.from_array(values, name)
        return (onnx.helper.make_node("Constant", [], [name], value=tensor),)

    _insert(model, layers, lambda layer: _fresh(f"milpver_mask_{layer.label}", taken), constant)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def without(network: Network, removed: Masks) -> Network:
    """The network with neurons removed for good; what is not touched stays gateable.

    Its model is ``pruned_model``'s, its ``sha256`` that of the network: it is the same file, with a mask.

    Args:
        network: the network.
        removed: Gate node -> bool [gates].

    Raises:
        ValueError: a mask belongs to no gateable layer, or has the wrong length.
    """
    gone = {node: mask for node, mask in removed.items() if np.any(mask)}
    if not gone:
        return network
    model = pruned_model(network, gone)
    nodes = list(network.graph.nodes)
    for index, mask in gone.items():
        gate = nodes[index]
        if not isinstance(gate, Gate):
            raise ValueError(f"node {index} is not a Gate")
        scale = (~mask)[gate.owner].astype(np.float64)
        nodes[index] = Affine(((gate.source, diagonal(scale)),), np.zeros(gate.size), gate.name)
    return replace(
        network,
        graph=Graph(tuple(nodes)),
        model=model,
        layers=tuple(layer for layer in network.layers if layer.node not in gone),
        conv_layers=tuple(layer for layer in network.conv_layers if layer.node not in gone),
        mean=None,
        std=None,
    )


def _mask_arrays(network: Network, removed: Masks, batch: int) -> dict[str, NDArray[np.bool_]]:
    """What is removed by layer label, bool [batch, width] each."""
    nodes = {layer.node: layer for layer in network.gateable}
    if unknown := [node for node in removed if node not in nodes]:
        raise ValueError(f"masks for nodes {unknown}, which are no gateable layers")
    found = {}
    for layer in network.gateable:
        gone = np.asarray(removed.get(layer.node, np.zeros(layer.width, dtype=bool)), dtype=bool)
        if gone.shape[-1:] != (layer.width,) or gone.ndim > 2 or gone.shape[:-1] not in ((), (1,), (batch,)):
            raise ValueError(f"a mask of shape {gone.shape} for layer {layer.name!r} of width {layer.width}")
        found[layer.label] = np.broadcast_to(gone, (batch, layer.width))
    return found


def _prepared(network: Network) -> Any:
    """The model with its normalisation in front."""
    import onnx  # noqa: PLC0415  only where a network is run

    model = onnx.ModelProto.FromString(network.model)
    _normalise(model, network)
    return model


def _normalise(model: Any, network: Network) -> None:
    """Put ``(x - mean) / std`` in front of a model."""
    import onnx  # noqa: PLC0415  only where a network is run

    if network.mean is None or network.std is None:
        return
    taken = _names(model)
    shifted, scaled, mean, std = (
        _fresh(f"milpver_{part}", taken) for part in ("shifted", "normalised", "mean", "std")
    )
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == network.input_name:
                node.input[i] = scaled
    head = [
        onnx.helper.make_node(
            "Constant",
            [],
            [name],
            value=onnx.numpy_helper.from_array(
                values.reshape(network.input_shape).astype(network.dtype), name
            ),
        )
        for name, values in ((mean, network.mean), (std, network.std))
    ]
    head.append(onnx.helper.make_node("Sub", [network.input_name, mean], [shifted]))
    head.append(onnx.helper.make_node("Div", [shifted, std], [scaled]))
    _rebuilt(model, head + list(model.graph.node))


def _insert(
    model: Any,
    layers: Any,
    mask: Callable[[GateableLayer], str],
    before: Callable[[GateableLayer, str], tuple[Any, ...]],
) -> None:
    """Put a multiplication behind every gated tensor.

    The tensor's maker gets another name for its output and the product takes over the tensor's name, so that
    all its readers, the model's output among them, get the product.

    Args:
        model: the model, changed in place.
        layers: the layers to multiply.
        mask: makes the mask tensor, and names it.
        before: nodes to put in front of the multiplication.
    """
    import onnx  # noqa: PLC0415  only where a network is run

    gated = {layer.name: layer for layer in layers}
    taken = _names(model)
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in gated:
                layer = gated.pop(name)
                whole = _fresh(f"{name}_before_mask", taken)
                node.output[i] = whole
                factor = mask(layer)
                nodes.extend(before(layer, factor))
                nodes.append(
                    onnx.helper.make_node(
                        "Mul", [whole, factor], [name], name=_fresh(f"milpver_gate_{layer.label}", taken)
                    )
                )
    if gated:
        raise ValueError(f"the model does not make the gated tensors {sorted(gated)}")
    _rebuilt(model, nodes)


def _rebuilt(model: Any, nodes: list[Any]) -> None:
    """Replace a model's nodes."""
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _names(model: Any) -> set[str]:
    """All names of tensors and nodes in a model."""
    found = {name for node in model.graph.node for name in (node.name, *node.input, *node.output)}
    found.update(entry.name for entry in (*model.graph.input, *model.graph.initializer))
    return found


def _fresh(name: str, taken: set[str]) -> str:
    """A name that is not taken; takes it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _element_types(network: Network, model: Any) -> dict[str, int]:
    """The ONNX element type of every gated tensor."""
    import onnx  # noqa: PLC0415  only where a network is run

    default: int = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(network.dtype))
    found: dict[str, int] = {layer.name: default for layer in network.gateable}
    if any(node.op_type == "Cast" for node in model.graph.node):
        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except Exception as error:
            raise _runtime_error(network, error) from error
        for entry in (*inferred.graph.value_info, *inferred.graph.output):
            if entry.name in found:
                found[entry.name] = entry.type.tensor_type.elem_type
    return found


def _cut(model: Any, network: Network) -> None:
    """Make the tensor before a dropped softmax the model's output, and add hidden ones that are asked for."""
    import onnx  # noqa: PLC0415  only where a network is run

    own = {output.name for output in model.graph.output}
    for port in network.outputs if len(network.outputs) > 1 else ():
        if port.name not in own:
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(network.dtype))
            model.graph.output.append(onnx.helper.make_tensor_value_info(port.name, kind, None))
    if network.softmax:
        output = model.graph.output[0]
        output.name = network.output_name
        output.type.tensor_type.ClearField("shape")


def _session(network: Network, model: Any, threads: int) -> Any:
    """An ONNX Runtime session.

    A file format or opset newer than ONNX Runtime's is relabelled as the oldest opset in which the model's
    operators mean the same.
    """
    import onnxruntime  # noqa: PLC0415  only where a network is run

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        try:
            _relabel(model)
            return onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:
            raise _runtime_error(network, error) from error


def _relabel(model: Any) -> None:
    """Declare the oldest opset in which all operators are the ones that the model uses."""
    import onnx  # noqa: PLC0415  only where a network is run

    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS:
            entry.version = max(
                onnx.defs.get_schema(node.op_type, entry.version).since_version for node in model.graph.node
            )
    model.ir_version = min(model.ir_version, _OLD_FORMAT)


def _runtime_error(network: Network, error: Exception) -> ModelError:
    return ModelError(
        f"{network.path}: ONNX Runtime does not run it ({first_line(error)})",
        needed="a model that ONNX Runtime runs",
        fix="export it again, or install a newer onnxruntime",
    )
