"""The smaller file computes what the masked network does, for every way in which layers are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from milpver.errors import ModelError
from milpver.network import Network
from milpver.prune.shrink import shrink
from milpver.replay import Replay
from tests.nets import random_network, saved


def run(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def check(network: Network, removed: dict[int, np.ndarray], x: np.ndarray) -> bytes:
    small = shrink(network, removed)
    wanted = Replay(network).outputs(x.reshape(len(x), -1), removed)
    np.testing.assert_allclose(run(small.content, x), wanted, rtol=1e-4, atol=1e-5)
    assert small.widths == tuple(int((~removed[layer.node]).sum()) for layer in network.layers)
    assert small.parameters[1] < small.parameters[0]
    assert small.parameters[1] == sum(
        int(np.prod(entry.dims)) for entry in onnx.load_from_string(small.content).graph.initializer
    )
    return small.content


def masks(network: Network, seed: int) -> dict[int, np.ndarray]:
    """Random masks that leave a neuron in every layer and remove one somewhere."""
    rng = np.random.default_rng(seed)
    found = {layer.node: rng.random(layer.width) < 0.4 for layer in network.layers}
    for layer in network.layers:
        found[layer.node][rng.integers(layer.width)] = False
    found[network.layers[0].node][:2] = [True, False]
    return found


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=10)
def test_dense_networks(tmp_path_factory: pytest.TempPathFactory, seed: int, bias: bool) -> None:
    network = random_network(tmp_path_factory.mktemp("net") / "net.onnx", (4, 6, 5, 3), seed, bias=bias)
    x = np.random.default_rng(seed).random((9, 4), dtype=np.float32)
    content = check(network, masks(network, seed), x)
    assert len(content) < len(network.model)


def test_convolutions_matmul_batchnorm_and_shared_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    square = rng.normal(size=(6, 6))
    nodes = [
        helper.make_node("Conv", ["input", "k"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["cr"]),
        helper.make_node("Flatten", ["cr"], ["f"], axis=1),
        helper.make_node("MatMul", ["f", "w1"], ["m1"]),
        helper.make_node("Add", ["b1", "m1"], ["a1"]),
        helper.make_node("BatchNormalization", ["a1", "scale", "shift", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "square"], ["m2"]),
        helper.make_node("Add", ["m2", "one"], ["a2"]),
        helper.make_node("Relu", ["a2"], ["h2"]),
        helper.make_node("MatMul", ["h2", "square"], ["m3"]),
        helper.make_node("Relu", ["m3"], ["h3"]),
        helper.make_node("Gemm", ["h3", "w4", "b4"], ["output"]),
    ]
    tensors = {
        "k": rng.normal(size=(2, 1, 3, 3)), "w1": rng.normal(size=(32, 6)), "b1": rng.normal(size=6),
        "scale": rng.normal(size=6), "shift": rng.normal(size=6), "mean": rng.normal(size=6),
        "var": rng.random(6) + 0.5, "square": square, "one": np.array([0.1]),
        "w4": rng.normal(size=(6, 3)), "b4": rng.normal(size=3),
    }  # fmt: skip
    network = saved(tmp_path / "net.onnx", nodes, tensors, (1, 4, 4), 3)
    assert len(network.layers) == 3
    for seed in range(5):
        check(network, masks(network, seed), rng.random((7, 1, 4, 4)).astype(np.float32))


def test_a_normalisation_outside_of_the_file_stays_outside(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 1).normalised((0.3,), (0.5,))
    removed = masks(network, 0)
    small = shrink(network, removed)
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    wanted = Replay(network).outputs(x, removed)
    np.testing.assert_allclose(run(small.content, (x - 0.3) / np.float32(0.5)), wanted, rtol=1e-4, atol=1e-5)


def test_branches_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["input", "w1"], ["z1"], transB=1),
        helper.make_node("Relu", ["z1"], ["h1"]),
        helper.make_node("Gemm", ["h1", "w2"], ["z2"], transB=1),
        helper.make_node("Add", ["z2", "h1"], ["s"]),
        helper.make_node("Relu", ["s"], ["h2"]),
        helper.make_node("Gemm", ["h2", "w3"], ["output"], transB=1),
    ]
    shapes = {"w1": (5, 4), "w2": (5, 5), "w3": (3, 5)}
    tensors = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    network = saved(tmp_path / "net.onnx", nodes, tensors, (4,), 3)
    layer = next(layer for layer in network.layers if layer.name == "h1")
    with pytest.raises(ModelError, match="is read by Add"):
        shrink(network, {layer.node: np.array([True, False, False, False, False])})


def test_whole_layers_are_refused(tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 1)
    with pytest.raises(ModelError, match="lose all its 6 neurons"):
        shrink(network, {network.layers[0].node: np.ones(6, dtype=np.bool_)})


def test_masks_elsewhere_are_refused(tmp_path: Path) -> None:
    """Channels, for instance: only fully connected layers are cut."""
    network = random_network(tmp_path / "net.onnx", (4, 6, 5, 3), 1)
    with pytest.raises(ModelError, match="a mask for 0"):
        shrink(network, {0: np.array([True, False])})
