"""Loading networks: agreement with ONNX Runtime, gates, batch dimensions, weights' types, and bad files."""

from __future__ import annotations

import gzip
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from milpver.errors import ModelError
from milpver.graph import Gate, Relu
from milpver.network import Network
from milpver.onnx_import import load_network, lowerings

NEWEST = int(onnx.defs.onnx_opset_version())
RUNTIME_NEWEST = 26


def model(
    nodes: Sequence[Any],
    inputs: dict[str, Sequence[int | str | None] | None],
    outputs: Sequence[str],
    weights: dict[str, NDArray[Any]],
    *,
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def dense_weights(*widths: int, kind: Any = np.float32) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(7)
    weights = {}
    for i, (m, n) in enumerate(itertools.pairwise(widths), start=1):
        weights[f"w{i}"] = rng.normal(size=(m, n)).astype(kind)
        weights[f"b{i}"] = rng.normal(size=n).astype(kind)
    return weights


def dense_nodes(layers: int) -> list[Any]:
    """``x -> Gemm -> z1 -> Relu -> h1 -> ... -> y``."""
    nodes, current = [], "x"
    for i in range(1, layers + 1):
        last = i == layers
        nodes.append(helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], ["y" if last else f"z{i}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i}"]))
            current = f"h{i}"
    return nodes


def dense(*widths: int, batch: int | str | None = "N", **options: Any) -> onnx.ModelProto:
    kind = options.pop("weights_kind", np.float32)
    weights = dense_weights(*widths, kind=kind)
    return model(dense_nodes(len(widths) - 1), {"x": [batch, widths[0]]}, ["y"], weights, **options)


def load(tmp_path: Path, proto: onnx.ModelProto) -> Network:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return load_network(path)


def runtime(network: Network, x: NDArray[Any]) -> NDArray[Any]:
    """Outputs of ONNX Runtime on the file itself, one batch or one input at a time."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(network.model, options, providers=["CPUExecutionProvider"])
    lead = (len(x),) if network.batch is None else (network.batch,) if network.batch else ()
    step = lead[0] if lead else 1
    parts = [
        session.run(None, {network.input_name: x[i : i + step].reshape(*lead, *network.input_shape)})[0]
        for i in range(0, len(x), step)
    ]
    return np.concatenate([part.reshape(step, -1) for part in parts])


def assert_agrees(network: Network, x: NDArray[Any], tolerance: float = 1e-5) -> None:
    expected = runtime(network, x)
    found = network.graph.evaluate(x.astype(np.float64))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


# ---- the networks that are there


@pytest.mark.parametrize("name", ["digits_fc", "digits_conv"])
def test_the_shipped_networks_agree_with_onnx_runtime(repo_root: Path, name: str) -> None:
    network = load_network(repo_root / "onnx_models" / f"{name}.onnx")
    with np.load(repo_root / "onnx_models" / "digits_test.npz") as data:
        x = data["x"].reshape(len(data["x"]), -1).astype(np.float32)
    assert_agrees(network, x)
    assert_agrees(network, np.random.default_rng(0).normal(size=x.shape).astype(np.float32))
    assert len(network.layers) == 2


def all_shared(shared_data: Path) -> list[Path]:
    return sorted(shared_data.glob("**/*.onnx"))


def inputs_like(shared_data: Path, network: Network) -> NDArray[np.float32]:
    """Images where the network takes images, and random inputs."""
    rng = np.random.default_rng(1)
    size = network.graph.inputs
    random = rng.uniform(-0.5, 1.0, (4, size)).astype(np.float32)
    if size == 784:
        with gzip.open(shared_data / "mnist" / "t10k-images-idx3-ubyte.gz") as stream:
            raw = stream.read(16 + 6 * 784)[16:]
        images = np.frombuffer(raw, dtype=np.uint8).reshape(6, 784).astype(np.float32) / np.float32(255)
        return np.concatenate([images, random])
    if size == 3072:
        with np.load(shared_data / "cifar10" / "cifar10_test.npz") as data:
            pixels = data["x_test"][:4]
        if network.input_shape[-1] == 3:
            pixels = pixels.transpose(0, 2, 3, 1)
        return np.concatenate([pixels.reshape(4, -1).astype(np.float32) / np.float32(255), random])
    return random


def test_every_shared_network_agrees_with_onnx_runtime(shared_data: Path) -> None:
    files = all_shared(shared_data)
    assert len(files) >= 60
    for file in files:
        network = load_network(file)
        assert_agrees(network, inputs_like(shared_data, network))


def test_what_is_known_about_the_shared_networks(shared_data: Path) -> None:
    def shared(name: str) -> Network:
        (file,) = shared_data.glob(f"**/{name}.onnx")
        return load_network(file)

    acas = shared("ACASXU_run2a_1_1_batch_2000")
    assert (acas.parameters, acas.batch, acas.input_shape) == (13310, 1, (1, 1, 5))
    assert [layer.width for layer in acas.layers] == [50] * 6
    assert acas.operators == {"Sub": 1, "Flatten": 1, "MatMul": 7, "Add": 7, "Relu": 6}
    eran = shared("mnist_relu_9_200")
    assert [layer.width for layer in eran.layers] == [200] * 8  # a ReLU follows the last layer too
    assert isinstance(eran.graph.nodes[-1], Relu)
    assert eran.parameters == 440410
    small = shared("cifar10_small")
    assert (small.batch, small.input_shape) == (None, (32, 32, 3))
    assert shared("test_nano").batch == 0
    assert shared("test_nano").layers == ()
    assert [layer.shape for layer in shared("test_small").layers] == [(2,), (2,)]
    assert [layer.name for layer in shared("resnet_2b").layers] == ["32"]
    assert shared("Convnet_maxpool").layers == ()
    assert shared("mnist_cnn_a_adv").parameters == 166406


# ---- gates


def gated(network: Network) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the gateable layers, having checked them against the graph."""
    assert [layer.number for layer in network.layers] == list(range(1, len(network.layers) + 1))
    assert tuple(layer.node for layer in network.layers) == network.graph.gate_nodes
    for layer in network.layers:
        gate = network.graph.nodes[layer.node]
        assert isinstance(gate, Gate)
        assert gate.private
        assert gate.size == layer.width == int(np.prod(layer.shape))
        assert gate.name == layer.name
    return [(layer.name, layer.shape) for layer in network.layers]


def test_hidden_fully_connected_layers_are_gateable(tmp_path: Path) -> None:
    network = load(tmp_path, dense(4, 5, 3, 2))
    assert gated(network) == [("h1", (5,)), ("h2", (3,))]
    kinds = [type(node).__name__ for node in network.graph.nodes]
    assert kinds == ["Input", "Affine", "Relu", "Gate", "Affine", "Relu", "Gate", "Affine"]


@pytest.mark.parametrize(
    "activation",
    [
        ("Relu", {}),
        ("LeakyRelu", {"alpha": 0.1}),
        ("Clip", {"min": 0.0, "max": 6.0}),
        ("Clip", {"min": -1.0}),
    ],
)
@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_the_gate_stands_behind_any_activation(
    tmp_path: Path, activation: tuple[str, dict[str, float]], batch: int | str
) -> None:
    operator, attributes = activation
    ones = {name: np.linspace(0.5, 1.5, 4, dtype=np.float32) for name in ("s", "o", "m", "v")}
    options: dict[str, Any] = dict(attributes)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Add", ["a", "b1"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "s", "o", "m", "v"], ["c"]),
        helper.make_node("Mul", ["c", "s"], ["d"]),
        helper.make_node("Sub", ["d", "o"], ["e"]),
        helper.make_node("Div", ["e", "s"], ["f"]),
        helper.make_node("Unsqueeze", ["f"], ["g"], axes=[2]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node(operator, ["h"], ["act"], **options),
        helper.make_node("Dropout", ["act"], ["drop"]),
        helper.make_node("Gemm", ["drop", "w2", "b2"], ["y"]),
    ]
    weights = dense_weights(3, 4, 2) | ones
    network = load(tmp_path, model(nodes, {"x": [batch, 3]}, ["y"], weights, opset=10))
    assert gated(network) == [("act", (4,))]
    x = np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)
    assert_agrees(network, x)
    # removing a neuron removes its post-activation, whatever its value
    gone = np.array([False, True, False, False])
    layer = network.layers[0]
    values = network.graph.trace(x.astype(np.float64), {layer.node: gone})
    assert np.all(values[layer.node][:, 1] == 0)


def test_the_gate_stands_before_the_fan_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["a"]),
        helper.make_node("Add", ["a", "h"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Gemm", ["r", "w3", "b3"], ["y"]),
    ]
    network = load(tmp_path, model(nodes, {"x": ["N", 3]}, ["y"], dense_weights(3, 4, 4, 2)))
    assert gated(network) == [("h", (4,)), ("r", (4,))]
    first = network.layers[0].node
    assert len(network.graph.consumers[first]) == 2
    assert network.graph.consumers[first - 1] == (first,)


def test_an_activation_of_the_output_is_no_hidden_layer(tmp_path: Path) -> None:
    nodes = [
        *dense_nodes(2),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Mul", ["r", "two"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "shape"], ["out"]),
    ]
    weights = dense_weights(3, 4, 2)
    weights["two"] = np.array([2.0, 3.0], dtype=np.float32)
    weights["shape"] = np.array([-1, 1, 2])
    network = load(tmp_path, model(nodes, {"x": ["N", 3]}, ["out"], weights))
    assert gated(network) == [("h1", (4,))]


def test_layers_without_influence_are_not_gateable(tmp_path: Path) -> None:
    nodes = [
        *dense_nodes(2),
        helper.make_node("Gemm", ["h1", "w1t", "b"], ["dead"]),
        helper.make_node("Relu", ["dead"], ["deader"]),
        helper.make_node("Elu", ["deader"], ["deadest"]),
    ]
    weights = dense_weights(3, 4, 2) | {"w1t": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
    network = load(tmp_path, model(nodes, {"x": ["N", 3]}, ["y"], weights))
    assert gated(network) == [("h1", (4,))]
    assert len(network.graph.nodes) == 5


def test_shared_weights_over_positions_and_convolutions_are_not_gateable(tmp_path: Path) -> None:
    weights = {
        "w1": np.ones((3, 4), np.float32),
        "w2": np.ones((8, 2), np.float32),
        "k": np.ones((2, 2, 1), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "k"], ["c"]),
        helper.make_node("Relu", ["c"], ["s"]),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["y"]),
    ]
    network = load(tmp_path, model(nodes, {"x": ["N", 2, 3]}, ["y"], weights))
    assert gated(network) == []
    nodes[0] = helper.make_node("MatMul", ["x", "w1"], ["a"])
    one = model(
        [*nodes[:2], helper.make_node("MatMul", ["r", "w3"], ["y"])],
        {"x": ["N", 1, 3]},
        ["y"],
        {"w1": weights["w1"], "w3": np.ones((4, 2), np.float32)},
    )
    assert gated(load(tmp_path, one)) == [("r", (1, 4))]


# ---- batches, element types, opsets


@pytest.mark.parametrize(("batch", "declared"), [("N", None), (None, None), (1, 1), (5, 5), (2000, 2000)])
def test_batch_dimensions(tmp_path: Path, batch: int | str | None, declared: int | None) -> None:
    network = load(tmp_path, dense(4, 5, 3, batch=batch))
    assert network.batch == declared
    assert network.input_shape == (4,)
    assert_agrees(network, np.random.default_rng(3).normal(size=(declared or 7, 4)).astype(np.float32))


def test_initializers_that_are_inputs_too(tmp_path: Path) -> None:
    proto = dense(4, 5, 3, opset=8, ir_version=3)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    network = load(tmp_path, proto)
    assert network.input_name == "x"
    assert_agrees(network, np.ones((2, 4), np.float32))


def test_a_network_in_double_is_read_exactly(tmp_path: Path) -> None:
    proto = dense(4, 5, 3, kind=TensorProto.DOUBLE, weights_kind=np.float64)
    network = load(tmp_path, proto)
    assert network.dtype == "float64"
    assert_agrees(network, np.random.default_rng(4).normal(size=(3, 4)), tolerance=1e-14)


def test_a_network_in_half_precision_keeps_its_weights(tmp_path: Path) -> None:
    network = load(tmp_path, dense(4, 5, 3, kind=TensorProto.FLOAT16, weights_kind=np.float16))
    weights = dense_weights(4, 5, 3, kind=np.float16)
    x = np.random.default_rng(4).normal(size=(3, 4))
    exact = np.maximum(x @ weights["w1"].astype(float) + weights["b1"], 0) @ weights["w2"].astype(float)
    np.testing.assert_allclose(network.graph.evaluate(x), exact + weights["b2"], atol=1e-12)
    assert network.dtype == "float16"
    assert_agrees(network, x.astype(np.float16), tolerance=1e-2)  # ONNX Runtime rounds to half


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_another_type_pass_a_cast(tmp_path: Path, kind: Any) -> None:
    nodes = [helper.make_node("Cast", [f"{n}s"], [n], to=TensorProto.FLOAT) for n in ("w1", "b1", "w2", "b2")]
    weights = {f"{name}s": value for name, value in dense_weights(4, 5, 3, kind=kind).items()}
    network = load(tmp_path, model([*nodes, *dense_nodes(2)], {"x": ["N", 4]}, ["y"], weights))
    assert_agrees(network, np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32))


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_every_opset_is_read(tmp_path: Path, opset: int) -> None:
    network = load(tmp_path, dense(4, 5, 3, opset=opset))
    assert len(network.layers) == 1
    if opset <= RUNTIME_NEWEST:
        assert_agrees(network, np.ones((2, 4), np.float32))


def test_what_a_network_says_about_itself(tmp_path: Path) -> None:
    proto = dense(4, 5, 3)
    network = load(tmp_path, proto)
    assert network.operators == {"Gemm": 2, "Relu": 1}
    assert network.parameters == 4 * 5 + 5 + 5 * 3 + 3
    assert network.model == (tmp_path / "model.onnx").read_bytes()
    assert len(network.sha256) == 64
    assert (network.input_name, network.output_name, network.softmax) == ("x", "y", False)


def test_weights_in_constant_nodes_count_as_parameters(tmp_path: Path) -> None:
    weights = dense_weights(4, 3)
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in weights.items()
    ]
    network = load(tmp_path, model([*nodes, *dense_nodes(1)], {"x": ["N", 4]}, ["y"], {}))
    assert network.parameters == 15


def test_an_identity_network_is_a_network(tmp_path: Path) -> None:
    network = load(tmp_path, model([helper.make_node("Identity", ["x"], ["y"])], {"x": ["N", 4]}, ["y"], {}))
    np.testing.assert_array_equal(network.graph.evaluate(np.eye(4)), np.eye(4))
    assert len(network.graph.nodes) == 2


def test_every_operator_that_the_project_promises_is_there() -> None:
    promised = """
    Add AveragePool BatchNormalization Clip Concat Constant Conv Div Dropout Flatten Gather Gemm
    GlobalAveragePool Identity LeakyRelu MatMul MaxPool Mul Pad Relu Reshape Slice Softmax Split Squeeze Sub
    Transpose Unsqueeze
    """
    assert set(promised.split()) <= set(lowerings())


def test_reading_a_network_loads_neither_torch_nor_onnx_runtime(repo_root: Path) -> None:
    code = (
        "import sys; from milpver.onnx_import import load_network; assert 'onnx' not in sys.modules;"
        f"load_network({str(repo_root / 'onnx_models' / 'digits_fc.onnx')!r});"
        "print([name for name in ('torch', 'onnxruntime', 'matplotlib', 'rich') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repo_root
    )
    assert found.stdout.strip() == "[]"


# ---- external data


def external(folder: Path, location: str = "weights.bin", **fields: str) -> Path:
    """A dense network whose first weights lie elsewhere; returns its path."""
    proto = dense(4, 5, 3)
    tensor = proto.graph.initializer[0]
    raw = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(b"1234" + raw if "offset" in fields else raw)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("fields", [{}, {"offset": "4"}, {"offset": "4", "length": "80"}, {"length": "80"}])
def test_external_weights_are_read_and_inlined(tmp_path: Path, fields: dict[str, str]) -> None:
    network = load_network(external(tmp_path / "m", **fields))
    inside = load(tmp_path, dense(4, 5, 3))
    x = np.random.default_rng(4).normal(size=(3, 4))
    np.testing.assert_array_equal(network.graph.evaluate(x), inside.graph.evaluate(x))
    assert_agrees(network, x.astype(np.float32))


def test_external_weights_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = external(tmp_path / "m")
    before = load_network(path).sha256
    raw = bytearray((tmp_path / "m" / "weights.bin").read_bytes())
    raw[0] ^= 1
    (tmp_path / "m" / "weights.bin").write_bytes(raw)
    assert load_network(path).sha256 != before


@pytest.mark.parametrize(
    "location",
    [
        "../weights.bin",
        "a/../../weights.bin",
        "/etc/hostname",
        "C:\\weights.bin",
        "..\\weights.bin",
        "\\\\host\\w",
        "",
    ],
)
def test_external_weights_elsewhere_are_refused_unread(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external(tmp_path / "m", location)
    (tmp_path / "weights.bin").write_bytes((tmp_path / "m" / "weights.bin").read_bytes())
    opened: list[Path] = []
    monkeypatch.setattr(Path, "open", lambda self, *_args, **_options: opened.append(self))
    monkeypatch.setattr(Path, "read_bytes", lambda self: self.__class__.__mro__ and _content(self))
    with pytest.raises(ModelError, match="inside of the model's folder"):
        load_network(path)
    assert opened == []


def _content(path: Path) -> bytes:
    """Read without Path.open, which a test replaces."""
    with open(path, "rb") as stream:  # noqa: PTH123  Path.open is replaced here
        return stream.read()


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "m", "link.bin")
    outside = tmp_path / "weights.bin"
    outside.write_bytes((tmp_path / "m" / "weights.bin").read_bytes())
    (tmp_path / "m" / "link.bin").symlink_to(outside)
    with pytest.raises(ModelError, match="links out of"):
        load_network(path)
    (tmp_path / "m" / "link.bin").unlink()
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "m" / "weights.bin")
    assert load_network(path).graph.outputs == 3


def test_external_weights_in_an_attribute_are_refused_too(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.ones(3, np.float32))
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="/etc/hostname")
    nodes = [helper.make_node("Constant", [], ["c"], value=value), helper.make_node("Add", ["x", "c"], ["y"])]
    with pytest.raises(ModelError, match="inside of the model's folder"):
        load(tmp_path, model(nodes, {"x": ["N", 3]}, ["y"], {}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "missing.bin"}, "not there"),
        ({"length": "8000"}, "ends after 80 of 8000 bytes"),
        ({"offset": "80", "length": "80"}, "ends after"),
        ({"offset": "-3"}, "offset '-3'"),
        ({"length": "many"}, "length 'many'"),
        ({"length": "40"}, "cannot be read"),
    ],
)
def test_damaged_external_weights_are_refused(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_network(external(tmp_path / "m", **fields))


# ---- bad files


def refused(path: Path) -> str:
    """The message on a file that cannot be read: one line that names the file."""
    with pytest.raises(ModelError) as caught:
        load_network(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"this is no model, but some text that is long enough", "no ONNX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "no ONNX file"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (bytes(200), "no ONNX file"),
        (b"PK\x03\x04" + bytes(100), "no ONNX file"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert expected in refused(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.onnx")
    assert "is a folder" in refused(tmp_path)


def test_files_that_never_end_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "no regular file" in refused(tmp_path / "pipe.onnx")
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.truncate(2**31 + 1)  # sparse: takes no space
    assert "2147483649 bytes" in refused(tmp_path / "huge.onnx")


def test_truncated_files(tmp_path: Path) -> None:
    content = dense(4, 5, 3).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        refused(path)


def test_random_damage_never_ends_in_another_error(tmp_path: Path) -> None:
    content = dense(4, 5, 3).SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), size=rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        message = ""
        try:
            load_network(path)
        except ModelError as error:
            message = str(error)
        assert "\n" not in message


def test_all_unsupported_nodes_are_named_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Elu", ["x"], ["a"], name="first"),
        helper.make_node("Gemm", ["a", "w1", "b1"], ["b"]),
        helper.make_node("Elu", ["b"], ["c"]),
        helper.make_node("Erf", ["c"], ["d"]),
        helper.make_node("FusedGemm", ["d"], ["y"], domain="com.microsoft"),
    ]
    proto = model(nodes, {"x": ["N", 3]}, ["y"], dense_weights(3, 4))
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    message = refused(tmp_path / "model.onnx")
    assert (
        "4 nodes that are not supported: 2 x Elu ('first', 'c'); Erf ('d'); com.microsoft.FusedGemm ('y')"
        in message
    )
    assert "LeakyRelu" in message


def test_all_nodes_with_unsupported_attributes_are_named_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Pad", ["x", "p"], ["a"], mode="edge"),
        helper.make_node("Neg", ["a"], ["a2"]),
        helper.make_node("Mul", ["x", "x"], ["b"]),
        helper.make_node("Add", ["a2", "b"], ["y"]),
    ]
    proto = model(nodes, {"x": ["N", 3]}, ["y"], {"p": np.zeros(4, np.int64)})
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    message = refused(tmp_path / "model.onnx")
    assert "2 nodes" in message
    assert "mode = edge" in message
    assert "both computed" in message


def subgraph() -> Any:
    return helper.make_graph(
        [helper.make_node("Relu", ["x"], ["o"])], "g", [], [helper.make_tensor_value_info("o", 1, None)]
    )


BAD_MODELS: dict[str, tuple[onnx.ModelProto, str]] = {
    "if": (
        model(
            [helper.make_node("If", ["c"], ["y"], then_branch=subgraph(), else_branch=subgraph())],
            {"x": ["N", 3]},
            ["y"],
            {"c": np.array(True)},
        ),
        "not supported: If",
    ),
    "two inputs": (
        model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["N", 3], "z": ["N", 3]}, ["y"], {}),
        "2 inputs: 'x', 'z'",
    ),
    "no input": (
        model([helper.make_node("Relu", ["w1"], ["y"])], {}, ["y"], {"w1": np.ones(3, np.float32)}),
        "0 inputs: none",
    ),
    "two outputs": (
        model(
            [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
            {"x": ["N", 3]},
            ["y", "z"],
            {},
        ),
        "2 outputs: 'y', 'z'",
    ),
    "integer input": (
        model(
            [helper.make_node("Identity", ["x"], ["y"])], {"x": ["N", 3]}, ["y"], {}, kind=TensorProto.INT64
        ),
        "element type INT64",
    ),
    "dynamic width": (dense(4, 5, 3, batch=1), ""),
    "no shape": (model([helper.make_node("Relu", ["x"], ["y"])], {"x": None}, ["y"], {}), "has no shape"),
    "one free axis": (
        model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N"]}, ["y"], {}),
        "shape ['N']",
    ),
    "zero size": (
        model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 0]}, ["y"], {}),
        "shape ['N', 0]",
    ),
    "free width": (
        model([helper.make_node("Relu", ["x"], ["y"])], {"x": [1, None]}, ["y"], {}),
        "shape [1, '?']",
    ),
    "old opset": (dense(4, 5, 3, opset=6), "opset 6"),
    "future opset": (dense(4, 5, 3, opset=NEWEST + 1), f"opset {NEWEST + 1}"),
    "wrong order": (
        model(dense_nodes(2)[::-1], {"x": ["N", 3]}, ["y"], dense_weights(3, 4, 2)),
        "valid ONNX",
    ),
    "unknown attribute": (
        model([helper.make_node("Relu", ["x"], ["y"], foo=1)], {"x": ["N", 3]}, ["y"], {}),
        "foo",
    ),
    "weights that do not fit": (
        model(dense_nodes(1), {"x": ["N", 4]}, ["y"], dense_weights(3, 4)),
        "4 columns with 3 rows",
    ),
    "missing weights": (model(dense_nodes(1), {"x": ["N", 4]}, ["y"], {}), "valid ONNX"),
}
del BAD_MODELS["dynamic width"]


@pytest.mark.parametrize("name", BAD_MODELS)
def test_models_that_cannot_be_verified(tmp_path: Path, name: str) -> None:
    proto, expected = BAD_MODELS[name]
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert expected in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["w1", "b2"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, place: str) -> None:
    weights = dense_weights(3, 4, 2)
    weights[place].reshape(-1)[1] = value
    proto = model(dense_nodes(2), {"x": ["N", 3]}, ["y"], weights)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    message = refused(tmp_path / "model.onnx")
    assert f"weights {place!r} holds {value}" in message
    assert "finite weights" in message


def test_weights_with_too_few_bytes_are_named(tmp_path: Path) -> None:
    proto = dense(4, 5, 3)
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert "'w1'" in refused(tmp_path / "model.onnx")


def test_a_model_without_the_standard_opset_is_refused(tmp_path: Path) -> None:
    proto = dense(4, 5, 3)
    proto.opset_import[0].domain = "ai.onnx.ml"
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert "no opset of the standard domain" in refused(tmp_path / "model.onnx")


def test_sparse_initializers_are_refused(tmp_path: Path) -> None:
    proto = model(dense_nodes(1), {"x": ["N", 4]}, ["y"], {"b1": np.ones(3, np.float32)})
    values = numpy_helper.from_array(np.ones(1, np.float32), "w1")
    places = numpy_helper.from_array(np.array([2]), "w1_places")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert "sparse" in refused(tmp_path / "model.onnx")
