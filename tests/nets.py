"""Networks made for tests (ONNX files, graphs by hand), and answers by brute force and exact arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse
from scipy.optimize import linprog, nnls

from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Conv, Dense, LinearMap, Sparse, identity
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import Budget, BudgetGroup

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


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
    weights, biases = random_layers(widths, seed, scale=scale)
    return network_of(path, weights, biases if bias else None)


def random_layers(
    widths: Sequence[int], seed: int, *, scale: float = 1.0
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Weights and biases of a random dense network, float32 values."""
    rng = np.random.default_rng(seed)
    weights = [scale * rng.normal(size=(n, m)) / np.sqrt(m) for m, n in itertools.pairwise(widths)]
    biases = [0.3 * rng.normal(size=n) for n in widths[1:]]
    return [_float32(w) for w in weights], [_float32(b) for b in biases]


def _float32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)


def network_of(
    path: Path, weights: Sequence[NDArray[np.float64]], biases: Sequence[NDArray[np.float64]] | None
) -> Network:
    """A dense ReLU network with these weights, written to ``path`` and loaded."""
    onnx.save(dense_model(weights, biases), path)
    return load_network(path)


def saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    tensors: Mapping[str, Float | NDArray[np.int64]],
    shape: Sequence[int],
    outputs: int,
) -> Network:
    """A network of ONNX nodes from "input" [N, *shape] to "output" [N, outputs], saved and loaded."""
    initializers = [
        numpy_helper.from_array(value.astype(np.float32) if value.dtype == np.float64 else value, name)
        for name, value in tensors.items()
    ]
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", outputs])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return load_network(path)


def small_conv(path: Path, rng: np.random.Generator, channels: int, side: int, hidden: int) -> Network:
    """A 3x3 convolution of a square image, a hidden layer and 3 classes, their weights drawn from ``rng``."""
    flat = channels * (side - 2) ** 2
    tensors = {
        "k": 0.6 * rng.normal(size=(channels, 1, 3, 3)), "b": 0.3 * rng.normal(size=channels),
        "w1": 0.4 * rng.normal(size=(hidden, flat)), "b1": 0.2 * rng.normal(size=hidden),
        "w2": rng.normal(size=(3, hidden)), "b2": 0.2 * rng.normal(size=3),
        "image": np.array([-1, 1, side, side]), "flat": np.array([-1, flat]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["input", "image"], ["i"]),
        helper.make_node("Conv", ["i", "k", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Reshape", ["r", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["output"], transB=1),
    ]
    return saved(path, nodes, tensors, [side * side], 3)


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


def exact_trace(graph: Graph, x: Sequence[Fraction], removed: Mapping[int, Mask]) -> list[list[Fraction]]:
    """Values of every node in rational arithmetic over the graph's float64 coefficients."""
    values: list[list[Fraction]] = []
    for index, node in enumerate(graph.nodes):
        match node:
            case Input():
                values.append(list(x))
            case Affine():
                total = [Fraction(float(b)) for b in node.bias]
                for source, linear in node.terms:
                    matrix = linear.csr.tocoo()
                    for i, j, w in zip(matrix.row, matrix.col, matrix.data, strict=True):
                        total[i] += Fraction(float(w)) * values[source][j]
                values.append(total)
            case Relu():
                values.append([max(v, Fraction(0)) for v in values[node.source]])
            case Max():
                values.append([max(values[node.source][k] for k in group) for group in node.groups])
            case Gate():
                gone = removed.get(index)
                values.append(
                    [
                        Fraction(0) if gone is not None and gone[owner] else value
                        for owner, value in zip(node.owner, values[node.source], strict=True)
                    ]
                )
    return values


def group_masks(graph: Graph, budget: Budget) -> list[dict[int, Mask]]:
    """Every admissible mask of a graph built by hand, groups over several nodes included."""
    choices: list[list[dict[int, Mask]]] = []
    for group in budget.groups:
        slots = []
        for index in group.nodes:
            gate = graph.nodes[index]
            assert isinstance(gate, Gate)
            slots += [(index, k, gate.gates) for k in range(gate.gates)]
        found = []
        for count in range(group.removable + 1):
            for picked in itertools.combinations(slots, count):
                masks = {index: np.zeros(gates, dtype=np.bool_) for index, _, gates in slots}
                for index, k, _ in picked:
                    masks[index][k] = True
                found.append(masks)
        choices.append(found)
    return [
        {index: mask for part in parts for index, mask in part.items()}
        for parts in itertools.product(*choices)
    ]


@dataclass(frozen=True)
class HandMade:
    """A graph built by hand with a budget, and the inputs' sizes it is meant for."""

    graph: Graph
    budget: Budget


def handmade(seed: int, *, integer: bool = False, bias: bool = True) -> HandMade:
    """A random small graph: gates on values of either sign, shared masks, fan-outs, pooling, convolutions.

    Integer weights make exact ties and zeros likely.
    """
    return _HandMade(np.random.default_rng(seed), integer, bias).build()


class _HandMade:
    """A graph under construction."""

    def __init__(self, rng: np.random.Generator, integer: bool, bias: bool) -> None:
        self.rng = rng
        self.integer = integer
        self.bias = bias
        self.nodes: list[Node] = []
        self.gates: list[int] = []

    @property
    def last(self) -> int:
        return len(self.nodes) - 1

    @property
    def size(self) -> int:
        return self.nodes[-1].size

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def numbers(self, *shape: int) -> Float:
        if self.integer:
            return self.rng.integers(-3, 4, size=shape).astype(np.float64)
        return np.asarray(self.rng.normal(size=shape))

    def affine(self, *terms: tuple[int, LinearMap]) -> None:
        size = terms[0][1].outputs
        bias = self.numbers(size) if self.bias else np.zeros(size)
        self.nodes.append(Affine(terms, bias, "affine"))

    def first(self) -> None:
        if self.chance(0.3):
            self.nodes.append(Input(6))
            self.affine((0, Conv(self.numbers(2, 1, 2, 2), (1, 3, 2), pads=(1, 0, 0, 0))))
            return
        self.nodes.append(Input(int(self.rng.integers(1, 5))))
        linear: LinearMap = Dense(self.numbers(int(self.rng.integers(2, 5)), self.size))
        if self.chance(0.3):
            dense = linear.csr.toarray()
            linear = Sparse(sparse.csr_array(dense * (self.rng.random(dense.shape) < 0.7)))
        self.affine((0, linear))

    def gate(self) -> None:
        size = count = self.size
        owner = np.arange(size)
        if self.chance(0.4):
            count = int(self.rng.integers(1, size + 1))
            owner = np.concatenate([np.arange(count), self.rng.integers(0, count, size - count)])
            owner = self.rng.permutation(owner)
        self.nodes.append(Gate(self.last, owner, count, "gate"))
        self.gates.append(self.last)

    def layer(self) -> None:
        """Activation, pooling and gate, each perhaps, and what reads them."""
        if self.chance(0.8):
            self.nodes.append(Relu(self.last, self.size))
        if self.chance(0.25):
            windows = self.rng.integers(0, self.size, size=(int(self.rng.integers(1, self.size + 1)), 2))
            self.nodes.append(Max(self.last, windows))
        if self.chance(0.85) or not self.gates:
            self.gate()
        source, size, shape = self.last, self.size, self.rng.random()
        if shape < 0.25:  # two branches that read the same node, then a sum
            self.affine((source, Dense(self.numbers(size, size))))
            if self.chance(0.5):
                self.nodes.append(Relu(self.last, size))
            self.affine((self.last, identity(size)), (source, Dense(self.numbers(size, size))))
        elif shape < 0.4:  # one node that reads another twice
            self.affine((source, Dense(self.numbers(size, size))), (source, identity(size)))
        else:
            self.affine((source, Dense(self.numbers(int(self.rng.integers(2, 5)), size))))

    def budget(self) -> Budget:
        sizes = {index: node.gates for index, node in enumerate(self.nodes) if isinstance(node, Gate)}
        if len(self.gates) > 1 and self.chance(0.35):
            total = sum(sizes.values())
            return Budget((BudgetGroup(tuple(self.gates), int(self.rng.integers(1, min(4, total + 1)))),))
        chosen = [index for index in self.gates if self.chance(0.8)] or self.gates[:1]
        return Budget(
            tuple(BudgetGroup((i,), int(self.rng.integers(1, min(3, sizes[i]) + 1))) for i in chosen)
        )

    def build(self) -> HandMade:
        self.first()
        for _ in range(int(self.rng.integers(1, 4))):
            self.layer()
        terms: list[tuple[int, LinearMap]] = [(self.last, Dense(self.numbers(3, self.size)))]
        if self.chance(0.3):
            terms.append((self.gates[0], Dense(self.numbers(3, self.nodes[self.gates[0]].size))))
        self.affine(*terms)
        if self.chance(0.1):
            self.nodes.append(Relu(self.last, 3))
        return HandMade(Graph(tuple(self.nodes)), self.budget())


def _regions(
    weights: Sequence[Float], biases: Sequence[Float], masks: Sequence[Mask]
) -> Iterator[tuple[Float, Float, Float, Float]]:
    """Every activation pattern: the outputs ``A x + a`` and where it holds, ``G x <= h``."""
    hidden = [weight.shape[0] for weight in weights[:-1]]
    kept = [np.flatnonzero(~mask) for mask in masks]
    inputs = weights[0].shape[1]
    for signs in itertools.product(*(itertools.product([False, True], repeat=len(k)) for k in kept)):
        slope, constant = np.eye(inputs), np.zeros(inputs)
        rows, limits = [np.zeros((0, inputs))], [np.zeros(0)]
        for layer, width in enumerate(hidden):
            slope, constant = weights[layer] @ slope, weights[layer] @ constant + biases[layer]
            active = np.zeros(width, dtype=np.bool_)
            active[kept[layer]] = signs[layer]
            sign = np.where(active, -1.0, 1.0)[kept[layer]]
            rows.append(sign[:, None] * slope[kept[layer]])
            limits.append(-sign * constant[kept[layer]])
            slope, constant = np.where(active[:, None], slope, 0.0), np.where(active, constant, 0.0)
        slope, constant = weights[-1] @ slope, weights[-1] @ constant + biases[-1]
        yield slope, constant, np.vstack(rows), np.concatenate(limits)


def pattern_minimum(
    weights: Sequence[Float],
    biases: Sequence[Float],
    masks: Sequence[Mask],
    lower: Float,
    upper: Float,
    row: Float,
) -> float:
    """Minimum of a row over the outputs of a dense ReLU network over a box: a linear program a pattern."""
    best = np.inf
    for slope, constant, rows, limits in _regions(weights, biases, masks):
        found = linprog(
            row @ slope, A_ub=rows, b_ub=limits, bounds=np.stack([lower, upper], axis=1), method="highs"
        )
        if found.status == 0:
            best = min(best, float(found.fun + row @ constant))
    return best


def _least_distance(matrix: Float, limit: Float) -> float:
    """``min |d|_2`` subject to ``matrix d <= limit``, or infinity (Lawson and Hanson 1974, problem LDP)."""
    size = np.maximum(np.linalg.norm(np.hstack([matrix, limit[:, None]]), axis=1), 1e-300)
    both = -np.hstack([matrix, limit[:, None]]) / size[:, None]
    dual, missed = nnls(both.T, np.append(np.zeros(matrix.shape[1]), 1.0))
    if missed < 1e-9:
        return float(np.inf)
    rest = both.T @ dual - np.append(np.zeros(matrix.shape[1]), 1.0)
    return float(np.linalg.norm(rest[:-1] / rest[-1]))


def pattern_distance(
    weights: Sequence[Float],
    biases: Sequence[Float],
    x0: Float,
    row: Float,
    lower: Float,
    upper: Float,
    norm: str = "linf",
) -> float:
    """Smallest step from x0, inside a box, to where a row over the outputs is <= 0, or infinity."""
    size, best = len(x0), np.inf
    none = [np.zeros(len(weight), dtype=np.bool_) for weight in weights[:-1]]
    for slope, constant, rows, limits in _regions(weights, biases, none):
        matrix = np.vstack([rows, row @ slope])
        limit = np.append(limits, -row @ constant)
        if norm == "l1":
            ways = np.hstack([matrix, -matrix])
            room = [
                *zip(np.zeros(size), upper - x0, strict=True),
                *zip(np.zeros(size), x0 - lower, strict=True),
            ]
            split = linprog(np.ones(2 * size), ways, limit - matrix @ x0, bounds=room, method="highs")
            best = min(best, float(split.fun)) if split.status == 0 else best
            continue
        if norm == "l2":
            edges = [(np.eye(size), upper), (-np.eye(size), -lower)]
            held = [(part[np.isfinite(end)], end[np.isfinite(end)]) for part, end in edges]
            matrix = np.vstack([matrix, *(part for part, _ in held)])
            limit = np.concatenate([limit, *(end for _, end in held)])
            best = min(best, _least_distance(matrix, limit - matrix @ x0))
            continue
        step = np.ones((size, 1))
        away = [np.hstack([np.eye(size), -step]), np.hstack([-np.eye(size), -step])]
        region = np.hstack([np.vstack([rows, row @ slope]), np.zeros((len(rows) + 1, 1))])
        found = linprog(
            np.append(np.zeros(size), 1.0),
            A_ub=np.vstack([*away, region]),
            b_ub=np.concatenate([x0, -x0, limits, [-row @ constant]]),
            bounds=[*zip(lower, upper, strict=True), (0, None)],
            method="highs",
        )
        if found.status == 0:
            best = min(best, float(found.fun))
    return best
