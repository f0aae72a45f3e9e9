"""A network within one box, without the neurons that are dead there; and networks in float32.

Over a box many ReLUs surely put out 0. Leaving them out changes nothing, to the last digit, and makes what a
search does thousands of times smaller: dense layers lose rows and columns; of a convolution's outputs those
that live are selected, or it becomes a dense matrix where little of it is left.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from scipy import sparse

from milpver.bounds._crown import Multipliers
from milpver.bounds._tensors import Operator, TensorGraph
from milpver.bounds._workspace import Workspace
from milpver.graph import Affine, Gate, Graph, Input, Max, Node, Relu
from milpver.linear import Conv, Dense, Int, LinearMap, Sparse, identity, selection
from milpver.query import Budget

__all__ = ["SingleTensors", "compressed", "without_max"]

#: Products of a convolution up to which it may become a dense matrix, and by how many times as many.
_LARGE, _DENSER = 1 << 24, 2


class _SingleOperator(Operator):
    """An operator in float32."""

    @cached_property
    def weight(self) -> torch.Tensor:
        """The coefficients, rounded."""
        return Operator(self.linear, self.device).weight.float()


class SingleTensors(TensorGraph):
    """A graph in float32: for what is only tried, and evaluated in float64 once it is chosen."""

    @cached_property
    def operators(self) -> dict[int, tuple[Operator, ...]]:
        """For each Affine node the operators of its terms, in order."""
        found = TensorGraph(self.graph, self.device).operators
        return {
            index: tuple(_SingleOperator(one.linear, one.device) for one in operators)
            for index, operators in found.items()
        }

    @cached_property
    def biases(self) -> dict[int, torch.Tensor]:
        """For each Affine node its bias, float32 [size]."""
        found = TensorGraph(self.graph, self.device).biases
        return {index: bias.float() for index, bias in found.items()}


def without_max(graph: Graph) -> Graph:
    """The same network with each Max as ReLUs, ``max(a, b) = a + relu(b - a)``, one entry after the other."""
    nodes: list[Node] = []
    place: list[int] = []
    for node in graph.nodes:
        match node:
            case Input():
                nodes.append(node)
            case Affine():
                terms = tuple((place[source], linear) for source, linear in node.terms)
                nodes.append(Affine(terms, node.bias, node.name))
            case Relu():
                nodes.append(Relu(place[node.source], node.size, node.name))
            case Gate():
                nodes.append(Gate(place[node.source], node.owner, node.gates, node.name))
            case Max():
                source, size = place[node.source], node.size
                inputs, zero, same = nodes[source].size, np.zeros(node.size), identity(node.size)
                nodes.append(Affine(((source, selection(node.groups[:, 0], inputs)),), zero, node.name))
                for column in node.groups.T[1:]:
                    largest = len(nodes) - 1
                    entry = selection(column, inputs)
                    minus = Sparse(sparse.csr_array(-same.matrix))
                    nodes.append(Affine(((source, entry), (largest, minus)), zero, node.name))
                    nodes.append(Relu(largest + 1, size, node.name))
                    nodes.append(Affine(((largest, same), (largest + 2, same)), zero, node.name))
        place.append(len(nodes) - 1)
    return Graph(tuple(nodes))


def compressed(
    tensors: TensorGraph, root: Workspace, best: Multipliers
) -> tuple[TensorGraph, Workspace, Multipliers]:
    """Leave out what is dead over a box.

    Args:
        tensors: the graph, of Input, Affine, Relu and unbudgeted Gate nodes.
        root: the box's bounds of every node, a batch of one.
        best: multipliers of the rows over the output, [1, rows, size].

    Returns:
        The smaller network, its bounds, and its multipliers.
    """
    work = _Compression(tensors, root)
    for index in range(len(tensors.graph.nodes)):
        work.add(index)
    small = TensorGraph(Graph(tuple(work.nodes)), tensors.device)
    space = Workspace(small, Budget())
    for index in range(len(work.nodes)):
        if index in work.origin:
            old, kept = work.origin[index]
            space.known = {index: (work.part(root.lows[old], kept), work.part(root.highs[old], kept))}
        space.add(root.lows[0], root.highs[0])
    alpha = {work.place[relu]: work.part(value, work.kept[relu]) for relu, value in best.alpha.items()}
    return small, space, Multipliers(alpha)


class _Compression:
    """The smaller network while it is built.

    Attributes:
        nodes: its nodes.
        place: node of the large network -> node of the small one.
        kept: node of the large network -> entries kept, or None for all.
        origin: node of the small network -> node of the large one, and its entries.
    """

    def __init__(self, tensors: TensorGraph, root: Workspace) -> None:
        self.graph = tensors.graph
        self.root = root
        self.nodes: list[Node] = []
        self.place: dict[int, int] = {}
        self.kept: dict[int, Int | None] = {}
        self.origin: dict[int, tuple[int, Int | None]] = {}
        #: Nodes whose entries are the outputs', one by one.
        self.exposed = {len(self.graph.nodes) - 1}
        while isinstance(self.graph.nodes[min(self.exposed)], Relu | Gate):
            self.exposed.add(self.graph.nodes[min(self.exposed)].sources[0])

    @staticmethod
    def part(values: torch.Tensor, kept: Int | None) -> torch.Tensor:
        """Some entries of the last axis."""
        return values if kept is None else values[..., torch.as_tensor(kept, device=values.device)]

    def add(self, index: int) -> None:
        """Append what a node becomes."""
        node = self.graph.nodes[index]
        match node:
            case Input():
                self.kept[index] = None
                self.nodes.append(node)
            case Affine():
                self.kept[index] = self.live(index)
                self.affine(index, node)
            case Relu():
                kept = self.kept[index] = self.kept[node.source]
                size = node.size if kept is None else len(kept)
                self.nodes.append(Relu(self.place[node.source], size, node.name))
            case Gate():
                self.kept[index], self.place[index] = self.kept[node.source], self.place[node.source]
                return
            case Max():
                raise TypeError(f"node {index} is a Max")
        self.place[index] = len(self.nodes) - 1
        self.origin[len(self.nodes) - 1] = index, self.kept[index]

    def live(self, index: int) -> Int | None:
        """The entries of an Affine node that may be active, if nothing but ReLUs reads it."""
        readers = self.graph.consumers[index]
        if index in self.exposed or not all(isinstance(self.graph.nodes[reader], Relu) for reader in readers):
            return None
        live = (self.root.highs[index][0] > 0).cpu().numpy()
        if live.all():
            return None
        return np.flatnonzero(live) if live.any() else np.zeros(1, dtype=np.int64)

    def affine(self, index: int, node: Affine) -> None:
        """Append an Affine node of the entries kept, and what its convolutions need."""
        kept = self.kept[index]
        terms = [self.term(source, linear, kept) for source, linear in node.terms]
        self.nodes.append(Affine(tuple(terms), node.bias if kept is None else node.bias[kept], node.name))

    def term(self, source: int, linear: LinearMap, kept: Int | None) -> tuple[int, LinearMap]:
        """A linear map between the entries kept."""
        at, columns = self.place[source], self.kept[source]
        if kept is None and columns is None:
            return at, linear
        rows = np.arange(linear.outputs) if kept is None else kept
        inside = np.arange(linear.inputs) if columns is None else columns
        match linear:
            case Dense():
                return at, Dense(np.ascontiguousarray(linear.weight[rows][:, inside]))
            case Sparse():
                return at, Sparse(sparse.csr_array(linear.matrix[rows][:, inside]))
            case Conv():
                products = linear.outputs * linear.row_terms
                if products <= _LARGE and len(rows) * len(inside) <= _DENSER * products:
                    return at, Dense(linear.csr[rows][:, inside].toarray())
        if columns is not None:
            spread = np.full(linear.inputs, -1, dtype=np.int64)
            spread[columns] = np.arange(len(columns))
            self.nodes.append(
                Affine(((at, selection(spread, len(columns))),), np.zeros(linear.inputs), "spread")
            )
            at = len(self.nodes) - 1
        if kept is None:
            return at, linear
        self.nodes.append(Affine(((at, linear),), np.zeros(linear.outputs), "all outputs"))
        return len(self.nodes) - 1, selection(kept, linear.outputs)
