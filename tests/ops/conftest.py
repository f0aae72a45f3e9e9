"""One-operator networks, compared with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from milpver.network import Network
from milpver.onnx_import import load_network

Build: TypeAlias = Callable[..., Path]
Check: TypeAlias = Callable[..., Network]

#: ONNX Runtime's newest opset in the versions that are supported here.
NEWEST_RUNTIME_OPSET = 26


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Write a model: nodes, input shape (None: free), constants, opset."""
    folder = tmp_path_factory.mktemp("ops")

    def write(
        nodes: Sequence[Any],
        input_shape: Sequence[int | str | None],
        constants: Mapping[str, NDArray[Any]] | None = None,
        *,
        opset: int = 17,
        kind: int = onnx.TensorProto.FLOAT,
        output: str = "y",
    ) -> Path:
        graph = helper.make_graph(
            list(nodes),
            "test",
            [helper.make_tensor_value_info("x", kind, input_shape)],
            [helper.make_tensor_value_info(output, kind, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture(scope="session")
def check(build: Build) -> Check:
    """Load a model and compare it with ONNX Runtime on batches that its input shape allows."""

    def compare(
        nodes: Sequence[Any],
        input_shape: Sequence[int | str | None],
        constants: Mapping[str, NDArray[Any]] | None = None,
        *,
        scale: float = 3.0,
        rtol: float = 1e-5,
        **options: Any,
    ) -> Network:
        network = load_network(build(nodes, input_shape, constants, **options))
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        session = onnxruntime.InferenceSession(network.model, settings, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        batch = network.batch if network.batch is not None else 3
        x = (scale * rng.standard_normal((max(batch, 1), network.graph.inputs))).astype(network.dtype)
        shape = ((batch,) if batch else ()) + network.input_shape
        (expected,) = session.run(None, {"x": x.reshape(shape)})
        found = network.graph.evaluate(x.astype(np.float64))
        assert found.size == expected.size
        largest = max(float(np.abs(expected).max()), 1.0)
        assert np.abs(found - expected.reshape(found.shape)).max() <= rtol * largest
        return network

    return compare
