"""The bound on float32 rounding: ONNX Runtime never leaves it, and it is small enough to be of use."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from milpver.graph import Affine, Gate, Max, Relu
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.replay import Replay
from milpver.rounding import float32_error


def write(path: Path, nodes: Sequence[Any], weights: dict[str, NDArray[Any]], inputs: int = 4) -> Network:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return load_network(path)


def residual(path: Path) -> Network:
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
        helper.make_node("Gemm", ["h2", "w3", "b3"], ["y"]),
    ]
    return write(path, nodes, weights)


def exact_outputs(network: Network, x: NDArray[Any], removed: dict[int, NDArray[np.bool_]]) -> list[Fraction]:
    """The network on one input in rational arithmetic."""
    values: list[list[Fraction]] = [[Fraction(float(entry)) for entry in x]]
    for index, node in enumerate(network.graph.nodes[1:], start=1):
        match node:
            case Affine():
                row = [Fraction(float(entry)) for entry in node.bias]
                for source, linear in node.terms:
                    matrix = linear.csr.tocoo()
                    for i, j, value in zip(matrix.row, matrix.col, matrix.data, strict=True):
                        row[i] += Fraction(float(value)) * values[source][j]
                values.append(row)
            case Relu():
                values.append([max(entry, Fraction(0)) for entry in values[node.source]])
            case Max():
                values.append([max(values[node.source][i] for i in group) for group in node.groups])
            case Gate():
                gone = removed.get(index, np.zeros(node.gates, dtype=bool))
                kept = [not gone[owner] for owner in node.owner]
                values.append([k * v for k, v in zip(kept, values[node.source], strict=True)])
            case _:
                raise AssertionError(node)
    return values[-1]


@given(st.integers(0, 10_000), st.floats(-8, 8), st.booleans())
@settings(max_examples=40)
def test_onnx_runtime_stays_within_the_bound(
    tmp_path_factory: pytest.TempPathFactory, seed: int, magnitude: float, batch_norm: bool
) -> None:
    """Against rational arithmetic, with weights of any size and sums that cancel."""
    rng = np.random.default_rng(seed)
    scale = 10.0**magnitude
    weights = {
        "w1": (scale * rng.normal(size=(4, 6))).astype(np.float32),
        "b1": (1e3 * scale * rng.normal(size=6)).astype(np.float32),
        "w2": rng.normal(size=(6, 3)).astype(np.float32),
    }
    weights["w2"][3:] = -weights["w2"][:3]
    nodes = [helper.make_node("Gemm", ["x", "w1", "b1"], ["z"]), helper.make_node("Relu", ["z"], ["h"])]
    if batch_norm:
        for name in "sbmv":
            weights[name] = (scale * rng.random(6) + 1e-4).astype(np.float32)
        nodes.insert(1, helper.make_node("BatchNormalization", ["z", "s", "b", "m", "v"], ["n"]))
        nodes[2] = helper.make_node("Relu", ["n"], ["h"])
    nodes.append(helper.make_node("MatMul", ["h", "w2"], ["y"]))
    network = write(tmp_path_factory.mktemp("bound") / "m.onnx", nodes, weights)
    x = rng.normal(size=(1, 4)).astype(np.float32)
    removed = {network.layers[0].node: rng.random(6) < 0.2}
    found = Replay(network).outputs(x, removed)[0]
    error = float32_error(network, x.astype(np.float64), removed)[0]
    for value, bound, exact in zip(found, error, exact_outputs(network, x[0], removed), strict=True):
        assert abs(Fraction(float(value)) - exact) <= Fraction(float(bound))


def test_the_bound_covers_what_the_input_lost(tmp_path: Path) -> None:
    network = residual(tmp_path / "m.onnx")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 4))
    shifted = (x + 1e-3 * rng.uniform(-1, 1, x.shape)).astype(np.float32)
    found = Replay(network).outputs(shifted)
    error = float32_error(network, x, input_error=np.abs(shifted - x))
    assert np.all(np.abs(found - network.graph.evaluate(x)) <= error)
    assert np.any(np.abs(found - network.graph.evaluate(x)) > float32_error(network, x))


def test_the_bound_is_useful(repo_root: Path) -> None:
    network = load_network(repo_root / "onnx_models" / "digits_fc.onnx")
    with np.load(repo_root / "onnx_models" / "digits_test.npz") as data:
        x = data["x"].reshape(len(data["x"]), -1)[:20].astype(np.float64)
    assert np.all(float32_error(network, x) <= 5e-3)
    removed = {layer.node: np.ones(layer.width, dtype=bool) for layer in network.layers}
    assert np.all(float32_error(network, x, removed) <= float32_error(network, x))


@pytest.mark.parametrize(("name", "most"), [("mnist_relu_9_200", 0.1), ("mnist_6_100_nat", 0.1)])
def test_the_bound_does_not_grow_with_the_product_of_the_layers_norms(
    shared_data: Path, name: str, most: float
) -> None:
    (file,) = shared_data.glob(f"**/{name}.onnx")
    network = load_network(file)
    x = np.random.default_rng(4).random((3, network.graph.inputs)).astype(np.float32)
    error = float32_error(network, x.astype(np.float64))
    found = Replay(network).outputs(x)
    assert np.all(np.abs(found - network.graph.evaluate(x.astype(np.float64))) <= error)
    assert error.max() <= most


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=30)
def test_deep_networks_stay_within_the_bound(
    tmp_path_factory: pytest.TempPathFactory, seed: int, depth: int
) -> None:
    """Where the second bound is the smaller one; inputs that bring neurons next to their kinks included."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {}
    nodes, current = [], "x"
    for i in range(depth):
        weights[f"w{i}"] = (2 * rng.normal(size=(6, 6))).astype(np.float32)
        weights[f"b{i}"] = rng.normal(size=6).astype(np.float32)
        nodes.append(helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i}"]))
        current = f"h{i}"
    nodes.append(helper.make_node("MatMul", [current, "w0"], ["y"]))
    network = write(tmp_path_factory.mktemp("deep") / "m.onnx", nodes, weights, inputs=6)
    x = rng.normal(size=(1, 6))
    # move x so that the first layer's first pre-activation is 0 up to rounding
    row, offset = weights["w0"][:, 0].astype(np.float64), float(weights["b0"][0])
    x -= row * (x @ row + offset) / (row @ row)
    x32 = x.astype(np.float32)
    found = Replay(network).outputs(x32)[0]
    error = float32_error(network, x, input_error=np.abs(x32 - x))[0]
    exact = exact_outputs(network, x[0], {})
    for value, bound, wanted in zip(found, error, exact, strict=True):
        assert abs(Fraction(float(value)) - wanted) <= Fraction(float(bound))


def test_there_is_no_bound_on_what_overflows(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    network = write(tmp_path / "big.onnx", nodes, {"w": np.full((4, 2), 3e38, np.float32)})
    assert np.all(np.isinf(float32_error(network, np.ones((1, 4)))))
    assert np.all(np.isfinite(float32_error(network, np.full((1, 4), 1e-3))))
