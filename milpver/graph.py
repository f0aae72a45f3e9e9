"""The IR: a network as a list of five kinds of nodes over flat float64 vectors.

Everything downstream (bounds, encodings, search) has one rule a kind, so an ONNX operator only has to be
lowered to these. ``Graph.evaluate`` is the oracle that every witness is replayed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver.linear import Float, Int, LinearMap, diagonal

__all__ = ["Affine", "Gate", "Graph", "Input", "Masks", "Max", "Node", "Relu"]

#: Which gates are removed (m = 0): gate node index -> bool [gates] or [batch, gates]. Absent: none is.
Masks: TypeAlias = Mapping[int, NDArray[np.bool_]]


@dataclass(frozen=True, eq=False, slots=True)
class Input:
    """The network's input, a flat vector of ``size`` entries."""

    size: int
    name: str = "input"

    @property
    def sources(self) -> tuple[int, ...]:
        """No node feeds it."""
        return ()


@dataclass(frozen=True, eq=False, slots=True)
class Affine:
    """``y = sum_t M_t x_{s_t} + b``: layers, residual sums, concatenation, scaling, selection.

    Attributes:
        terms: pairs (index of the source node s_t, its linear map M_t), at least one.
        bias: b, float64 [size].
        name: the ONNX name, for messages.
    """

    terms: tuple[tuple[int, LinearMap], ...]
    bias: Float
    name: str = ""

    @property
    def size(self) -> int:
        """Length of y."""
        return int(self.bias.shape[0])

    @property
    def sources(self) -> tuple[int, ...]:
        """The nodes that feed it, in the order of the terms."""
        return tuple(source for source, _ in self.terms)


@dataclass(frozen=True, eq=False, slots=True)
class Relu:
    """``y = max(x, 0)``, elementwise."""

    source: int
    size: int
    name: str = ""

    @property
    def sources(self) -> tuple[int, ...]:
        """The one node that feeds it."""
        return (self.source,)


@dataclass(frozen=True, eq=False, slots=True)
class Max:
    """``y[i] = max_k x[groups[i, k]]``: max pooling.

    Attributes:
        source: index of the source node.
        groups: int64 [size, window]; a shorter window repeats one of its own entries.
        name: the ONNX name, for messages.
    """

    source: int
    groups: Int
    name: str = ""

    @property
    def size(self) -> int:
        """Length of y."""
        return int(self.groups.shape[0])

    @property
    def sources(self) -> tuple[int, ...]:
        """The one node that feeds it."""
        return (self.source,)


@dataclass(frozen=True, eq=False, slots=True)
class Gate:
    """``y[i] = m[owner[i]] x[i]`` with m in {0, 1}: what pruning removes (m = 0 means removed).

    Attributes:
        source: index of the source node.
        owner: int64 [size], the gate that multiplies each entry (a channel's entries share one).
        gates: number of gates.
        name: the ONNX name, for messages.
    """

    source: int
    owner: Int
    gates: int
    name: str = ""

    @property
    def size(self) -> int:
        """Length of y."""
        return int(self.owner.shape[0])

    @property
    def sources(self) -> tuple[int, ...]:
        """The one node that feeds it."""
        return (self.source,)

    @property
    def private(self) -> bool:
        """Whether every entry has a gate of its own, in order."""
        return self.gates == self.size and bool(np.array_equal(self.owner, np.arange(self.size)))


Node: TypeAlias = Input | Affine | Relu | Max | Gate


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: nodes in topological order, the first the input, the last the output."""

    nodes: tuple[Node, ...]

    @property
    def inputs(self) -> int:
        """Length of the input vector."""
        return self.nodes[0].size

    @property
    def outputs(self) -> int:
        """Length of the output vector."""
        return self.nodes[-1].size

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the nodes it feeds, each once, in order."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in dict.fromkeys(node.sources):
                found[source].append(index)
        return tuple(tuple(entry) for entry in found)

    @cached_property
    def gate_nodes(self) -> tuple[int, ...]:
        """Indices of the Gate nodes, in order."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node, Gate))

    def gate(self, index: int) -> Gate:
        """The Gate node at an index.

        Raises:
            TypeError: another kind of node is there.
        """
        node = self.nodes[index]
        if not isinstance(node, Gate):
            raise TypeError(f"node {index} is not a Gate")
        return node

    def evaluate(self, x: Float, removed: Masks | None = None) -> Float:
        """Outputs of a batch in float64.

        Args:
            x: float64 [batch, inputs].
            removed: the removed gates; one mask for all inputs, or one an input.

        Returns:
            float64 [batch, outputs].
        """
        return self.trace(x, removed)[-1]

    def trace(self, x: Float, removed: Masks | None = None) -> list[Float]:
        """Values of every node for a batch, float64 [batch, size] each (arguments as in evaluate)."""
        removed = removed or {}
        values: list[Float] = []
        for index, node in enumerate(self.nodes):
            values.append(_value(index, node, values, x, removed))
        return values

    def resumed(
        self,
        values: Sequence[Float],
        removed: Masks,
        behind: Sequence[int],
        repeat: int,
    ) -> Float:
        """Outputs under several masks, from a trace: only what depends on the first gate is computed.

        Args:
            values: of every node without removals, float64 [batch, size] each.
            removed: masks, ``repeat`` in a row for each input, Gate node -> bool [batch * repeat, gates];
                gates but the first depend on the first.
            behind: all nodes that depend on the first gate, ascending.
            repeat: masks an input.

        Returns:
            float64 [batch * repeat, outputs].
        """
        again: list[Float] = [np.zeros(0)] * len(self.nodes)
        gate = min(removed)
        nothing = np.zeros((len(removed[gate]), 0))  # no node behind a gate reads the input itself
        read = {source for index in (gate, *behind) for source in self.nodes[index].sources}
        for source in read - {gate, *behind}:
            again[source] = np.repeat(values[source], repeat, axis=0)
        for index in (gate, *behind):
            again[index] = _value(index, self.nodes[index], again, nothing, removed)
        return again[-1]

    def pullback(self, values: list[Float], rows: Float, removed: Masks | None = None) -> Float:
        """Gradients of rows over the output with respect to the input, at the points of a trace.

        Args:
            values: of every node, as ``trace`` gives them, float64 [batch, size] each.
            rows: float64 [batch, outputs], one functional a point.
            removed: the removed gates, as for the trace.

        Returns:
            float64 [batch, inputs]; at a kink of ReLU the derivative is 0, of Max the first maximum's.
        """
        removed = removed or {}
        slopes: list[Float | None] = [None] * len(self.nodes)
        slopes[-1] = np.asarray(rows, dtype=np.float64)
        for index in range(len(self.nodes) - 1, 0, -1):
            slope, node = slopes[index], self.nodes[index]
            if slope is None:
                continue
            for source, part in _slopes_of_sources(index, node, values, slope, removed):
                before = slopes[source]
                slopes[source] = part if before is None else before + part
        first = slopes[0]
        return np.zeros((len(rows), self.inputs)) if first is None else first

    def prefixed(self, scale: Float, shift: Float, name: str) -> Graph:
        """The same network on ``scale * x + shift`` (normalisation), scale and shift float64 [inputs]."""
        head: tuple[Node, ...] = (self.nodes[0], Affine(((0, diagonal(scale)),), shift, name))
        return Graph(head + tuple(_shifted(node) for node in self.nodes[1:]))


def _value(index: int, node: Node, values: list[Float], x: Float, removed: Masks) -> Float:
    """One node's values, from those before it."""
    match node:
        case Input():
            return np.asarray(x, dtype=np.float64)
        case Affine():
            total = np.broadcast_to(node.bias, (len(x), node.size))
            for source, linear in node.terms:
                total = total + linear.apply(values[source])
            return total
        case Relu():
            return np.maximum(values[node.source], 0.0)
        case Max():
            pooled: Float = values[node.source][:, node.groups].max(axis=2)
            return pooled
        case Gate():
            gone = removed.get(index)
            if gone is None:
                return values[node.source]
            return np.where(np.atleast_2d(gone)[:, node.owner], 0.0, values[node.source])


def _slopes_of_sources(
    index: int, node: Node, values: list[Float], slope: Float, removed: Masks
) -> list[tuple[int, Float]]:
    """What a node passes back to each of its sources, by the chain rule."""
    match node:
        case Input():
            return []
        case Affine():
            return [(source, linear.adjoint(slope)) for source, linear in node.terms]
        case Relu():
            return [(node.source, np.where(values[node.source] > 0, slope, 0.0))]
        case Max():
            windows = values[node.source][:, node.groups]
            winner = node.groups[np.arange(node.size), windows.argmax(axis=2)]
            back = np.zeros_like(values[node.source])
            np.add.at(back, (np.arange(len(slope))[:, None], winner), slope)
            return [(node.source, back)]
        case Gate():
            gone = removed.get(index)
            kept = slope if gone is None else np.where(np.atleast_2d(gone)[:, node.owner], 0.0, slope)
            return [(node.source, kept)]


def _shifted(node: Node) -> Node:
    """A node of a graph that gets one more node right after its input."""
    match node:
        case Affine():
            return Affine(tuple((source + 1, linear) for source, linear in node.terms), node.bias, node.name)
        case Relu():
            return Relu(node.source + 1, node.size, node.name)
        case Max():
            return Max(node.source + 1, node.groups, node.name)
        case Gate():
            return Gate(node.source + 1, node.owner, node.gates, node.name)
        case Input():
            raise ValueError("a graph has one input")
