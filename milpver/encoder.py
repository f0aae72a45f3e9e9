"""From a query and its bounds to a program: walks the graph, calls the encoding's rules, adds the budget.

What comes back is the program's constraints with the way back to the network: which columns are the
input and the masks, and the output as linear forms, so that any row over it can be the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milpver.bounding import Bounds
from milpver.encoding import Emission, Encoding, Form, GateColumns, Values
from milpver.graph import Gate, Graph, Input, Max, Relu
from milpver.linear import Float, Int
from milpver.program import Program, ProgramBuilder
from milpver.query import Box, Budget

__all__ = ["Encoded", "encode"]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """An encoded query.

    Attributes:
        graph, budget, box: the query.
        builder: columns and rows; further rows may be added before ``program`` is built.
        input: columns of the input, int64 [inputs]; None where it is a point.
        gates: mask columns of every Gate node with a budget.
        output: the network's output as linear forms.
    """

    graph: Graph
    budget: Budget
    box: Box
    builder: ProgramBuilder
    input: Int | None
    gates: dict[int, GateColumns]
    output: Form

    def row(self, coefficients: Float) -> tuple[Int, Float, float]:
        """A row ``coefficients @ output``, as (columns, their coefficients, constant)."""
        return (
            self.output.columns,
            np.asarray(coefficients @ self.output.matrix, dtype=np.float64),
            float(coefficients @ self.output.constant),
        )

    def program(self, coefficients: Float) -> Program:
        """Minimise ``coefficients @ output``, float64 [outputs]."""
        return self.builder.build().with_objective(*self.row(coefficients))

    def point(self, x: Float) -> Float:
        """The network's input at a solution, float64 [columns] -> [inputs], inside the box."""
        return self.box.centre if self.input is None else self.box.clip(x[self.input])

    def removed(self, x: Float) -> dict[int, NDArray[np.bool_]]:
        """The mask at a solution: Gate node -> bool [gates], True for removed; fractions are rounded."""
        masks = {}
        for node, gate in self.gates.items():
            used = np.flatnonzero(gate.column >= 0)
            gone = self.budget.forced(node, len(gate.column))[1]
            gone[used] = (x[gate.column[used]] > 0.5) == gate.removed_is_one
            masks[node] = gone
        return masks


def encode(graph: Graph, box: Box, budget: Budget, bounds: Bounds, encoding: Encoding) -> Encoded:
    """Encode the network over a box and all admissible masks.

    Args:
        graph: the network.
        box: the inputs; a point becomes constants.
        budget: the admissible masks.
        bounds: of this box and budget, a batch of one.
        encoding: the rules.

    Raises:
        PluginError: the encoding has no rule for a node.
    """
    emission = Emission(graph, budget, bounds)
    columns: Int | None = None
    for index, node in enumerate(graph.nodes):
        match node:
            case Input():
                if box.is_point:
                    emission.values[index] = Values.constants(box.centre)
                else:
                    columns = emission.builder.add_columns("input", box.lower, box.upper)
                    emission.values[index] = Values.columns(columns)
            case Relu():
                if not _fused_later(emission, encoding, index):
                    emission.values[index] = encoding.rule(Relu)(emission, index)
            case Max():
                emission.values[index] = encoding.rule(Max)(emission, index)
            case Gate():
                if budget.group_of(index) is not None:
                    pair = encoding.gated_relu
                    fused = pair is not None and _fused_later(emission, encoding, node.source)
                    rule = pair if fused and pair is not None else encoding.rule(Gate)
                    emission.values[index] = rule(emission, index)
    _force(emission)
    _limit_removals(emission)
    output = emission.form(len(graph.nodes) - 1)
    return Encoded(graph, budget, box, emission.builder, columns, emission.gates, output)


def _fused_later(emission: Emission, encoding: Encoding, index: int) -> bool:
    """Whether a node is a Relu that its only consumer, a Gate with a budget, encodes with itself."""
    consumers = emission.graph.consumers[index]
    return (
        encoding.gated_relu is not None
        and isinstance(emission.graph.nodes[index], Relu)
        and len(consumers) == 1
        and isinstance(emission.graph.nodes[consumers[0]], Gate)
        and emission.budget.group_of(consumers[0]) is not None
    )


def _force(emission: Emission) -> None:
    """Fix the mask columns of gates that have to stay, and of those that are removed in every mask."""
    for node, gate in emission.gates.items():
        kept, gone = emission.budget.forced(node, len(gate.column))
        for forced, removed in ((kept, False), (gone, True)):
            columns = gate.column[forced & (gate.column >= 0)]
            value = 1.0 if removed == gate.removed_is_one else 0.0
            emission.builder.fix(columns, value)


def _limit_removals(emission: Emission) -> None:
    """One row a budget group, ``sum (1 - m) + sum q <= s`` over its mask columns."""
    for group in emission.budget.groups:
        columns, signs, kept = [], [], 0
        for node in group.nodes:
            gate = emission.gates[node]
            # a gate without a column that is removed all the same takes its place in the budget
            kept += int(
                np.count_nonzero(emission.budget.forced(node, len(gate.column))[1] & (gate.column < 0))
            )
            used = gate.column[gate.column >= 0]
            columns.append(used)
            signs.append(np.full(len(used), 1.0 if gate.removed_is_one else -1.0))
            kept += 0 if gate.removed_is_one else len(used)
        row = np.concatenate(signs).reshape(1, -1)
        emission.builder.add_matrix_rows([(np.concatenate(columns), row)], -np.inf, group.removable - kept, 1)
