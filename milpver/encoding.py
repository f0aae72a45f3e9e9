"""The contract of an encoding: rules that turn nodes of the graph into columns and rows of a program.

An encoding is one file in ``encodings/`` with an ``ENCODING`` object: one rule for each kind of node it
knows. The encoder walks the graph and calls the rules; a rule gets the ``Emission`` under way, adds its
rows, and says which column stands for each of the node's values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from scipy import sparse

from milpver.bounding import Bounds
from milpver.errors import PluginError
from milpver.graph import Affine, Gate, Graph, Max, Relu
from milpver.linear import Float, Int
from milpver.program import ProgramBuilder
from milpver.query import Budget

__all__ = ["Emission", "Encoding", "Form", "GateColumns", "Rule", "Values"]


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """A node's values in the program: ``constant[i] + coefficient[i] * x[column[i]]``.

    Attributes:
        column: int64 [size]; -1 where the value is its constant alone.
        coefficient, constant: float64 [size].
    """

    column: Int
    coefficient: Float
    constant: Float

    @classmethod
    def columns(cls, column: Int) -> Values:
        """Values that are columns themselves."""
        return cls(column, np.ones(len(column)), np.zeros(len(column)))

    @classmethod
    def constants(cls, constant: Float) -> Values:
        """Values known beforehand."""
        return cls(np.full(len(constant), -1, dtype=np.int64), np.zeros(len(constant)), constant)

    @property
    def all_columns(self) -> bool:
        """Whether every value is a column itself."""
        return bool(np.all((self.column >= 0) & (self.coefficient == 1.0) & (self.constant == 0.0)))

    def replaced(self, at: Int, column: Int, coefficient: Float | float = 1.0) -> Values:
        """The same with the entries ``at`` standing for ``coefficient * x[column]``."""
        new = Values(self.column.copy(), self.coefficient.copy(), self.constant.copy())
        new.column[at], new.coefficient[at], new.constant[at] = column, coefficient, 0.0
        return new


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """Linear forms over columns: ``constant + matrix x[columns]``.

    Attributes:
        columns: int64 [c], distinct.
        matrix: float64 CSR [size, c].
        constant: float64 [size].
    """

    columns: Int
    matrix: sparse.csr_array
    constant: Float

    @property
    def fixed(self) -> bool:
        """Whether no column takes part."""
        return len(self.columns) == 0


@dataclass(frozen=True, slots=True, eq=False)
class GateColumns:
    """The mask columns of a Gate node.

    Attributes:
        column: int64 [gates]; -1 for a gate that has none (it stays: removing it would change nothing).
        removed_is_one: the column is q = 1 - m (1 means removed) rather than m (1 means kept).
    """

    column: Int
    removed_is_one: bool


@dataclass(slots=True, eq=False)
class Emission:
    """A program under construction; what the rules read and add to.

    Attributes:
        graph, budget: the query.
        bounds: of one box (a batch of one).
        builder: the program so far.
        values: of the nodes done so far; Affine nodes stay forms until a rule asks for columns.
        gates: mask columns of the Gate nodes done so far.
    """

    graph: Graph
    budget: Budget
    bounds: Bounds
    builder: ProgramBuilder = field(default_factory=ProgramBuilder)
    values: dict[int, Values] = field(default_factory=dict)
    gates: dict[int, GateColumns] = field(default_factory=dict)

    def lower(self, node: int) -> Float:
        """Lower bounds of a node's values, float64 [size]."""
        bound: Float = self.bounds.lower[node][0]
        return bound

    def upper(self, node: int) -> Float:
        """Upper bounds of a node's values, float64 [size]."""
        bound: Float = self.bounds.upper[node][0]
        return bound

    def resolve(self, node: int) -> int:
        """The node whose values these are: a Gate without a budget passes its source through."""
        while isinstance(gate := self.graph.nodes[node], Gate) and self.budget.group_of(node) is None:
            node = gate.source
        return node

    def form(self, node: int) -> Form:
        """A node's values as linear forms; Affine nodes are composed, ``M (A x + a) + b``."""
        node = self.resolve(node)
        if node in self.values:
            return _form_of_values(self.values[node])
        affine = self.graph.nodes[node]
        if not isinstance(affine, Affine):
            raise ValueError(f"node {node} ({affine.name}) has not been encoded")
        parts = [(linear.csr, self.form(source)) for source, linear in affine.terms]
        constant = affine.bias + sum(matrix @ part.constant for matrix, part in parts)
        columns = np.unique(np.concatenate([part.columns for _, part in parts]))
        matrix = sparse.csr_array((affine.size, len(columns)), dtype=np.float64)
        for term, part in parts:
            if not part.fixed:
                place = np.searchsorted(columns, part.columns)
                shape = (len(place), len(columns))
                spread = sparse.csr_array((np.ones(len(place)), (np.arange(len(place)), place)), shape=shape)
                matrix = matrix + term @ part.matrix @ spread
        return Form(columns, sparse.csr_array(matrix), constant)

    def materialise(self, node: int) -> Values:
        """A node's values, as constants where the input fixes them all, as columns otherwise.

        New columns z get the node's bounds and the rows ``z - matrix x = constant`` of its linear form.
        """
        node = self.resolve(node)
        if node not in self.values:
            form = self.form(node)
            if form.fixed:
                self.values[node] = Values.constants(form.constant)
            else:
                self.values[node] = Values.columns(self._new_columns(node, form))
        return self.values[node]

    def columns_of(self, node: int) -> Int:
        """One column for each of a node's values, int64 [size]; constants become fixed columns."""
        node = self.resolve(node)
        values = self.values.get(node)
        if values is None or not values.all_columns:
            values = Values.columns(self._new_columns(node, self.form(node)))
            self.values[node] = values
        return values.column

    def _new_columns(self, node: int, form: Form) -> Int:
        """Columns z for linear forms, with their rows; fixed columns for constants."""
        lower, upper = self.lower(node), self.upper(node)
        if form.fixed:
            return self.builder.add_columns(f"z{node}", form.constant, form.constant)
        columns = self.builder.add_columns(f"z{node}", lower, upper)
        self.equate(columns, form)
        return columns

    def equate(self, columns: Int, form: Form) -> None:
        """Add the rows ``x[columns] - matrix x[form.columns] = constant``."""
        identity = sparse.csr_array(sparse.eye_array(len(columns)))
        blocks = [(columns, identity), (form.columns, sparse.csr_array(-form.matrix))]
        self.builder.add_matrix_rows(blocks, form.constant, form.constant, len(columns))


def _form_of_values(values: Values) -> Form:
    """Values as linear forms over their distinct columns."""
    used = np.flatnonzero(values.column >= 0)
    columns, place = np.unique(values.column[used], return_inverse=True)
    matrix = sparse.csr_array(
        (values.coefficient[used], (used, place)), shape=(len(values.column), len(columns))
    )
    return Form(columns, matrix, values.constant)


#: Encodes one node: adds columns and rows, returns the node's values.
Rule: TypeAlias = Callable[[Emission, int], Values]


@dataclass(frozen=True, slots=True)
class Encoding:
    """A set of rules.

    Attributes:
        name: as asked for on the command line.
        rules: one for each kind of non-linear node.
        gated_relu: rule for a Gate with a budget whose source is a Relu that feeds nothing else; it
            encodes both at once. None: each by its own rule.
    """

    name: str
    rules: Mapping[type[Relu | Max | Gate], Rule]
    gated_relu: Rule | None = None

    def rule(self, kind: type[Relu | Max | Gate]) -> Rule:
        """The rule for a kind of node.

        Raises:
            PluginError: this encoding has none.
        """
        if kind not in self.rules:
            known = ", ".join(known.__name__ for known in self.rules)
            raise PluginError(
                f"encoding {self.name} has no rule for {kind.__name__} nodes (it knows {known})",
                needed="an encoding that knows every node of the network",
                fix="use --encoding fused or --encoding reference",
            )
        return self.rules[kind]
