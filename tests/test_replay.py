"""Replaying networks in ONNX Runtime: masks, batches, pruned files; all of it within the rounding bound."""

from __future__ import annotations

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
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.replay import Replay, pruned_model
from milpver.rounding import float32_error

NEWEST = int(onnx.defs.onnx_opset_version())


def write(
    path: Path,
    nodes: Sequence[Any],
    weights: dict[str, NDArray[Any]],
    shape: Sequence[int | str | None],
    *,
    kind: int = TensorProto.FLOAT,
    opset: int = 13,
    ir_version: int = 8,
    old_style: bool = False,
    output_shape: Sequence[int | str | None] | None = None,
) -> Network:
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    if old_style:
        inputs += [helper.make_tensor_value_info(name, kind, value.shape) for name, value in weights.items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        inputs,
        [helper.make_tensor_value_info("y", kind, output_shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    path.write_bytes(proto.SerializeToString())
    return load_network(path)


def dense(
    tmp_path: Path,
    batch: int | str | None = "N",
    *,
    softmax: bool = False,
    **options: Any,
) -> Network:
    """``4 -> 5 -> (residual) 5 -> 3`` with a fan-out behind the first gate."""
    rng = np.random.default_rng(11)
    sizes = {"w1": (4, 5), "b1": (5,), "w2": (5, 5), "b2": (5,), "w3": (5, 3), "b3": (3,)}
    weights = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["z1"]),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("Gemm", ["h1", "w2", "b2"], ["z2"]),
        helper.make_node("Add", ["z2", "h1"], ["s2"]),
        helper.make_node("LeakyRelu", ["s2"], ["h2"], alpha=0.125),
        helper.make_node("Gemm", ["h2", "w3", "b3"], ["z3" if softmax else "y"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z3"], ["y"]))
    return write(tmp_path / "dense.onnx", nodes, weights, [batch, 4], output_shape=[batch, 3], **options)


def random_masks(network: Network, rows: int, seed: int = 0) -> dict[int, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return {layer.node: rng.random((rows, layer.width)) < 0.3 for layer in network.layers}


def assert_replays(network: Network, x: NDArray[np.float32], tolerance: float = 1e-5) -> None:
    """Masks for each input, for all, and none: ONNX Runtime agrees with the IR and the bound holds."""
    replay = Replay(network)
    each = random_masks(network, len(x))
    for removed in (None, {}, {node: gone[0] for node, gone in each.items()}, each):
        found = replay.outputs(x, removed)
        exact = network.graph.evaluate(x.astype(np.float64), removed)
        assert found.dtype == np.float32
        assert found.shape == exact.shape
        assert np.abs(found - exact).max() <= tolerance * max(np.abs(exact).max(), 1e-3)
        error = float32_error(network, x.astype(np.float64), removed)
        assert error.shape == exact.shape
        assert np.all(np.abs(found - exact) <= error)


@pytest.mark.parametrize("batch", ["N", None, 1, 3, 64])
@pytest.mark.parametrize("softmax", [False, True])
def test_masks_in_onnx_runtime_are_those_of_the_graph(
    tmp_path: Path, batch: int | str, softmax: bool
) -> None:
    network = dense(tmp_path, batch, softmax=softmax)
    assert len(network.layers) == 2
    assert_replays(network, np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32))


@pytest.mark.parametrize("name", ["digits_fc", "digits_conv"])
def test_the_shipped_networks_replay(repo_root: Path, name: str) -> None:
    network = load_network(repo_root / "onnx_models" / f"{name}.onnx")
    with np.load(repo_root / "onnx_models" / "digits_test.npz") as data:
        x = data["x"].reshape(len(data["x"]), -1)[:50].astype(np.float32)
    assert_replays(network, x)


def test_the_shared_networks_replay(shared_data: Path) -> None:
    files = [file for file in sorted(shared_data.glob("**/*.onnx")) if "ACASXU" not in file.name]
    files += sorted(shared_data.glob("**/ACASXU_run2a_2_[35]_*.onnx"))
    assert len(files) > 20
    for file in files:
        network = load_network(file)
        x = np.random.default_rng(1).uniform(-0.2, 1, (3, network.graph.inputs)).astype(np.float32)
        assert_replays(network, x)


def test_networks_without_batch_replay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["w1", "x"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("MatMul", ["w2", "h"], ["y"]),
    ]
    rng = np.random.default_rng(3)
    weights = {
        name: rng.normal(size=size).astype(np.float32) for name, size in (("w1", (4, 3)), ("w2", (2, 4)))
    }
    x = rng.normal(size=(5, 3)).astype(np.float32)
    for shape in ([3], [3, 1]):
        network = write(tmp_path / "m.onnx", nodes, weights, shape)
        assert network.batch == 0
        assert len(network.layers) == 1
        assert_replays(network, x)


def test_gated_tensors_of_other_shapes_replay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["r"]),
        helper.make_node("Clip", ["r"], ["h"], min=-0.5, max=1.0),
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Flatten", ["t"], ["g"]),
        helper.make_node("MatMul", ["g", "w2"], ["y"]),
    ]
    rng = np.random.default_rng(3)
    weights: dict[str, NDArray[Any]] = {
        "w1": rng.normal(size=(4, 6)).astype(np.float32),
        "w2": rng.normal(size=(6, 3)).astype(np.float32),
    }
    x = rng.normal(size=(5, 4)).astype(np.float32)
    for batch, target in (("N", [-1, 2, 3]), (1, [1, 2, 3]), (2, [2, 2, 3])):
        weights["shape"] = np.array(target)
        network = write(tmp_path / "m.onnx", nodes, weights, [batch, 2, 2], opset=10)
        assert network.layers[0].shape == (2, 3)
        assert_replays(network, x)


@pytest.mark.parametrize("opset", [7, 13, 17, 22, NEWEST - 1, NEWEST])
def test_all_opsets_replay(tmp_path: Path, opset: int) -> None:
    network = dense(tmp_path, opset=opset, ir_version=8 if opset < NEWEST else onnx.IR_VERSION)
    assert_replays(network, np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))


def test_old_files_replay(tmp_path: Path) -> None:
    network = dense(tmp_path, 1, opset=7, ir_version=3, old_style=True)
    assert_replays(network, np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))


def test_networks_in_double_replay(tmp_path: Path) -> None:
    network = _typed(tmp_path, np.float64, TensorProto.DOUBLE)
    assert_replays(network, np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32), tolerance=1e-6)


def test_networks_in_half_precision_replay_within_their_own_rounding(tmp_path: Path) -> None:
    network = _typed(tmp_path, np.float16, TensorProto.FLOAT16)
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    assert_replays(network, x, tolerance=1e-2)


def _typed(tmp_path: Path, kind: Any, onnx_kind: int) -> Network:
    rng = np.random.default_rng(11)
    weights = {
        "w1": rng.normal(size=(4, 5)).astype(kind),
        "b1": rng.normal(size=5).astype(kind),
        "w2": rng.normal(size=(5, 3)).astype(kind),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["z1"]),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["y"]),
    ]
    return write(tmp_path / "typed.onnx", nodes, weights, ["N", 4], kind=onnx_kind)


def test_gated_tensors_behind_a_cast_replay(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    weights: dict[str, NDArray[Any]] = {
        "w1": rng.normal(size=(4, 5)),
        "w2": rng.normal(size=(5, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["d", "w1"], ["z1"]),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("Cast", ["h1"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w2"], ["y"]),
    ]
    network = write(tmp_path / "cast.onnx", nodes, weights, ["N", 4])
    x = rng.normal(size=(3, 4)).astype(np.float32)
    assert_replays(network, x)
    removed = {network.layers[0].node: np.array([True, False, True, False, False])}
    np.testing.assert_array_equal(run(pruned_model(network, removed), x), Replay(network).outputs(x, removed))


@pytest.mark.parametrize("batch", ["N", 1])
def test_normalisation_is_replayed_and_written(tmp_path: Path, batch: int | str) -> None:
    network = dense(tmp_path, batch).normalised((0.5,), (0.25,))
    x = np.random.default_rng(1).random((6, 4)).astype(np.float32)
    assert_replays(network, x)
    removed = {network.layers[0].node: np.array([True, False, False, False, True])}
    content = pruned_model(network, removed)
    onnx.checker.check_model(onnx.ModelProto.FromString(content))
    np.testing.assert_array_equal(run(content, x[:1]), Replay(network).outputs(x[:1], removed))


# ---- pruned files


def run(content: bytes, x: NDArray[Any], shape: Sequence[int] | None = None) -> NDArray[Any]:
    """A file in ONNX Runtime, as anyone would run it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    feed = x if shape is None else x.reshape(shape)
    (found,) = session.run(None, {entry.name: feed})
    return np.asarray(found).reshape(len(x), -1)


@pytest.mark.parametrize("softmax", [False, True])
def test_a_pruned_file_is_the_network_with_the_mask(tmp_path: Path, softmax: bool) -> None:
    network = dense(tmp_path, softmax=softmax)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    for seed in range(5):
        removed = {node: gone[0] for node, gone in random_masks(network, 1, seed).items()}
        content = pruned_model(network, removed)
        proto = onnx.ModelProto.FromString(content)
        onnx.checker.check_model(proto, full_check=True)
        original = onnx.ModelProto.FromString(network.model)
        assert list(proto.graph.input) == list(original.graph.input)
        assert list(proto.graph.output) == list(original.graph.output)
        assert list(proto.graph.initializer) == list(original.graph.initializer)
        expected = Replay(network).outputs(x, removed)
        if softmax:
            expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(run(content, x), expected, atol=1e-6)


def test_pruned_files_of_the_shared_networks_pass_the_checker(shared_data: Path) -> None:
    for name in (
        "mnist_relu_9_200",
        "ACASXU_run2a_1_1_batch_2000",
        "cifar10_small",
        "resnet_2b",
        "test_small",
    ):
        (file,) = shared_data.glob(f"**/{name}.onnx")
        network = load_network(file)
        x = np.random.default_rng(1).random((1, network.graph.inputs)).astype(np.float32)
        removed = {node: gone[0] for node, gone in random_masks(network, 1).items()}
        content = pruned_model(network, removed)
        onnx.checker.check_model(onnx.ModelProto.FromString(content))
        lead = () if network.batch == 0 else (1,)
        found = run(content, x, (*lead, *network.input_shape))
        np.testing.assert_array_equal(found.reshape(1, -1), Replay(network).outputs(x, removed))


def test_a_pruned_file_can_be_loaded_and_keeps_its_zeros(tmp_path: Path) -> None:
    network = dense(tmp_path)
    first, second = network.layers
    removed = {first.node: np.array([True, False, False, True, False]), second.node: np.zeros(5, dtype=bool)}
    path = tmp_path / "pruned.onnx"
    path.write_bytes(pruned_model(network, removed))
    again = load_network(path)
    x = np.random.default_rng(1).normal(size=(6, 4))
    np.testing.assert_allclose(again.graph.evaluate(x), network.graph.evaluate(x, removed), atol=1e-12)


def test_without_removals_a_pruned_file_is_the_file(tmp_path: Path) -> None:
    network = dense(tmp_path)
    assert onnx.ModelProto.FromString(pruned_model(network, {})) == onnx.ModelProto.FromString(network.model)


def test_taken_names_are_avoided(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weights = {"h_before_mask": rng.normal(size=(4, 4)).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "h_before_mask"], ["milpver_shifted"]),
        helper.make_node("Relu", ["milpver_shifted"], ["h"]),
        helper.make_node("MatMul", ["h", "h_before_mask"], ["y"]),
    ]
    network = write(tmp_path / "names.onnx", nodes, weights, ["N", 4]).normalised((0.1,), (2.0,))
    assert_replays(network, rng.normal(size=(3, 4)).astype(np.float32))


def test_a_pruned_file_can_be_pruned_again(tmp_path: Path) -> None:
    network = dense(tmp_path)
    gone = np.array([True, False, False, False, False])
    path = tmp_path / "pruned.onnx"
    path.write_bytes(pruned_model(network, {network.layers[0].node: gone}))
    again = load_network(path)
    assert_replays(again, np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))


# ---- misuse


def test_inputs_and_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    network = dense(tmp_path)
    replay = Replay(network)
    x = np.zeros((2, 4), dtype=np.float32)
    node = network.layers[0].node
    with pytest.raises(ValueError, match="inputs of shape"):
        replay.outputs(x[:, :3])
    with pytest.raises(ValueError, match="no gateable layers"):
        replay.outputs(x, {0: np.zeros(4, dtype=bool)})
    with pytest.raises(ValueError, match="mask of shape"):
        replay.outputs(x, {node: np.zeros(4, dtype=bool)})
    with pytest.raises(ValueError, match="mask of shape"):
        replay.outputs(x, {node: np.zeros((3, 5), dtype=bool)})
    with pytest.raises(ValueError, match="mask of shape"):
        pruned_model(network, {node: np.zeros((2, 5), dtype=bool)})
    assert replay.outputs(x[:0]).shape == (0, 3)


def test_a_model_that_onnx_runtime_refuses_is_an_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"])]
    network = write(tmp_path / "types.onnx", nodes, {"c": np.ones(4)}, ["N", 4])  # float64 added to float32
    with pytest.raises(ModelError, match="ONNX Runtime does not run it"):
        Replay(network)
