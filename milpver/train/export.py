"""A trained network as an ONNX file, checked against torch.

Built node by node (no tracing): float32, a free batch dimension ``N``, operators Sub, Div, Conv, Relu,
MaxPool, Flatten and Gemm, opset 13, which every supported ONNX Runtime reads.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from milpver.errors import ModelError, QueryError
from milpver.train.architecture import Classifier

__all__ = ["EXPORT_TOLERANCE", "export_error", "onnx_model", "write_whole"]

OPSET, IR_VERSION = 13, 8

#: Difference allowed between torch and ONNX Runtime, relative to the largest logit.
EXPORT_TOLERANCE = 1e-5

_CHUNK = 512


def onnx_model(net: Classifier, name: str) -> bytes:
    """The network as an ONNX file's bytes; the same weights give the same bytes."""
    import onnx  # noqa: PLC0415  only where a network is written
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415  as above

    nodes: list[Any] = []
    tensors: list[Any] = []

    def node(op: str, label: str, inputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{label}_out"], name=label, **attributes))
        return f"{label}_out"

    def constant(label: str, value: torch.Tensor) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().cpu().numpy()), label))
        return label

    def layer(op: str, label: str, module: nn.Conv2d | nn.Linear, source: str, **attributes: Any) -> str:
        inputs = [source, *(constant(f"{label}.{role}", p) for role, p in module.named_parameters())]
        return node(op, label, inputs, **attributes)

    last = "input"
    if net.normalised:
        last = node("Sub", "shift", [last, constant("mean", net.mean)])
        last = node("Div", "scale", [last, constant("std", net.std)])
    for k, (conv, kind) in enumerate(zip(net.convs, net.architecture.convolutions, strict=True), start=1):
        if not isinstance(conv, nn.Conv2d):
            raise TypeError("a convolution of the network is none")
        stride = [1, 1] if kind.pooled else [2, 2]
        last = layer("Conv", f"conv{k}", conv, last, kernel_shape=[3, 3], strides=stride, pads=[1, 1, 1, 1])
        last = node("Relu", f"conv{k}_relu", [last])
        if kind.pooled:
            last = node("MaxPool", f"pool{k}", [last], kernel_shape=[2, 2], strides=[2, 2])
    if len(net.convs):
        last = node("Flatten", "flatten", [last], axis=1)
    for k, dense in enumerate(net.dense, start=1):
        if not isinstance(dense, nn.Linear):
            raise TypeError("a fully connected layer of the network is none")
        last = layer("Gemm", f"fc{k}", dense, last, transB=1)
        if k < len(net.dense):
            last = node("Relu", f"fc{k}_relu", [last])
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *net.input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", net.architecture.classes])],
        tensors,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="milpver"
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def export_error(net: Classifier, content: bytes, x: NDArray[np.float32]) -> float:
    """Largest difference between torch and ONNX Runtime, relative to the largest logit.

    Args:
        net: the network.
        content: the ONNX file.
        x: inputs to compare on, float32 [n, *input_shape] or flattened, n >= 1.

    Raises:
        ModelError: they differ by more than ``EXPORT_TOLERANCE``, or a logit is not finite.
    """
    import onnxruntime  # noqa: PLC0415  only where a network is written

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    x = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, *net.input_shape)
    found, wanted = [], []
    with torch.no_grad():
        for start in range(0, len(x), _CHUNK):
            part = x[start : start + _CHUNK]
            found.append(session.run(None, {"input": part})[0])
            wanted.append(net(torch.from_numpy(part))[0].numpy())
    one, other = np.concatenate(found), np.concatenate(wanted)
    error = float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-30))
    if not error <= EXPORT_TOLERANCE:
        raise ModelError(
            f"the exported network differs from torch's by {error:.1e} of the largest logit",
            needed=f"at most {EXPORT_TOLERANCE}, and finite logits",
            fix="train with a smaller --lr; the file is not written",
        )
    return error


def write_whole(path: Path, content: bytes, *, option: str) -> None:
    """Write a file whole or not at all.

    Raises:
        QueryError: it cannot be written; ``option`` names the flag that said where.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise QueryError(
            f"{option} {path} cannot be written ({error.strerror or error})",
            needed="a folder that can be written, with room",
            fix=f"name another file with {option}",
        ) from error
