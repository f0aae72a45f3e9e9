"""Networks made for tests: random fully connected ONNX files, and answers by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from milpver.graph import Gate
from milpver.network import Network
from milpver.onnx_import import load_network


def dense_model(
    weights: Sequence[NDArray[np.float64]], biases: Sequence[NDArray[np.float64]] | None
) -> onnx.ModelProto:
    """``Gemm, Relu, ..., Gemm`` as ONNX, float32, free batch dimension."""
    nodes, initializers = [], []
    current = "input"
    for i, weight in enumerate(weights):
        initializers.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        names = [current, f"w{i}"]
        if biases is not None:
            initializers.append(numpy_helper.from_array(biases[i].astype(np.float32), f"b{i}"))
            names.append(f"b{i}")
        last = i == len(weights) - 1
        nodes.append(helper.make_node("Gemm", names, ["output" if last else f"z{i}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i}"]))
            current = f"h{i}"
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", weights[0].shape[1]])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", weights[-1].shape[0]])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def random_network(
    path: Path, widths: Sequence[int], seed: int, *, bias: bool = True, scale: float = 1.0
) -> Network:
    """A random dense ReLU network, written to ``path`` and loaded."""
    rng = np.random.default_rng(seed)
    weights = [scale * rng.normal(size=(n, m)) / np.sqrt(m) for m, n in itertools.pairwise(widths)]
    biases = [0.3 * rng.normal(size=n) for n in widths[1:]] if bias else None
    onnx.save(dense_model(weights, biases), path)
    return load_network(path)


def masks_within(widths: Sequence[int], budget: Sequence[int]) -> Iterator[tuple[NDArray[np.bool_], ...]]:
    """Every admissible mask (True for removed), one array a layer."""
    for removed in itertools.product(
        *(
            [c for k in range(s + 1) for c in itertools.combinations(range(n), k)]
            for n, s in zip(widths, budget, strict=True)
        )
    ):
        masks = []
        for n, gone in zip(widths, removed, strict=True):
            mask = np.zeros(n, dtype=np.bool_)
            mask[list(gone)] = True
            masks.append(mask)
        yield tuple(masks)


def brute_force_margins(
    network: Network, x: NDArray[np.float64], label: int, budget: Sequence[int]
) -> NDArray[np.float64]:
    """The smallest ``f_label - f_j`` over all admissible masks, for every j != label, by enumeration."""
    widths = [layer.width for layer in network.layers]
    stacked = [np.stack(column) for column in zip(*masks_within(widths, budget), strict=True)]
    removed = {layer.node: masks for layer, masks in zip(network.layers, stacked, strict=True)}
    assert all(isinstance(network.graph.nodes[node], Gate) for node in removed)
    count = len(stacked[0]) if stacked else 1
    outputs = network.graph.evaluate(np.repeat(x[None], count, axis=0), removed)
    margins = outputs[:, label : label + 1] - np.delete(outputs, label, axis=1)
    smallest: NDArray[np.float64] = margins.min(axis=0)
    return smallest
