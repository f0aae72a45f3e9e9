"""The contract of a property: regions of inputs, and the conditions on outputs that a counterexample meets.

A property file describes its counterexamples. It is held twice: as the formula that was written, in rational
numbers, against which a witness is checked, and in normal form, closed boxes with alternatives ``A y <= b``
in float64, rounded so that no counterexample is lost, over which bounds and searches range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver.linear import Float

__all__ = [
    "Alternative",
    "AnyOf",
    "Comparison",
    "Declaration",
    "Every",
    "Formula",
    "Property",
    "PropertyFormat",
    "Region",
    "Tensor",
    "holds",
]


@dataclass(frozen=True, slots=True)
class Comparison:
    """``sum_i c_i v_i + constant <= 0``, or ``< 0`` where ``strict``.

    Attributes:
        terms: pairs (variable, c), c != 0, by variable; inputs are 0, 1, ..., outputs follow them.
        constant: rational.
        strict: whether equality is excluded.
        place: where it stands in the file, for messages (the format's own count).
    """

    terms: tuple[tuple[int, Fraction], ...]
    constant: Fraction
    strict: bool = False
    place: int = 0


@dataclass(frozen=True, slots=True)
class Every:
    """All parts hold."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Formula, ...]


Formula: TypeAlias = Comparison | Every | AnyOf


def holds(formula: Formula, values: Sequence[Fraction]) -> bool:
    """Whether a formula holds at a point, in rational arithmetic; ``values`` of all variables, in order."""
    match formula:
        case Comparison(terms=terms, constant=constant, strict=strict):
            found = constant + sum(coefficient * values[variable] for variable, coefficient in terms)
            return found < 0 or (found == 0 and not strict)
        case Every(parts=parts):
            return all(holds(part, values) for part in parts)
        case AnyOf(parts=parts):
            return any(holds(part, values) for part in parts)


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """One way to be a counterexample: ``A y <= b``.

    Attributes:
        rows: A, float64 [k, outputs], exactly the written coefficients or a positive multiple of each row.
        limits: b, float64 [k], rounded up.
    """

    rows: Float
    limits: Float


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A closed box of inputs, and what makes an input of it a counterexample: any one of the alternatives.

    Attributes:
        lower, upper: the box rounded outward, float64 [inputs]; bounds and programs range over it.
        inner_lower, inner_upper: rounded inward to float32 values, float64 [inputs]; a witness lies in it.
            Where no float32 number lies between an entry's limits, the lower one is above the upper one.
        alternatives: at least one.
    """

    lower: Float
    upper: Float
    inner_lower: Float
    inner_upper: Float
    alternatives: tuple[Alternative, ...]

    @property
    def pairs(self) -> list[tuple[Float, Float]]:
        """The alternatives as (A, b), as attacks and searches take them."""
        return [(each.rows, each.limits) for each in self.alternatives]

    @property
    def has_float32(self) -> bool:
        """Whether any float32 input lies in the box."""
        return bool(np.all(self.inner_lower <= self.inner_upper))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A declared input, hidden node or output, as an answer prints it.

    Attributes:
        name: as declared.
        kind: its element type as declared, ``float32`` or ``real``.
        shape: as declared; () for a scalar.
        onnx: the ONNX tensor that it stands for, "" where the order of declarations says that.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    onnx: str = ""

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A network that a query declares.

    Attributes:
        name: as declared.
        inputs, hidden, outputs: its tensors, in order; hidden ones name their ONNX tensors.
        equal_to: the network that it is another copy of, or "".
        isomorphic_to: the network that has the same architecture and other weights, or "".
    """

    name: str
    inputs: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    equal_to: str = ""
    isomorphic_to: str = ""

    @property
    def results(self) -> tuple[Tensor, ...]:
        """What the network computes: the hidden tensors, then the outputs."""
        return (*self.hidden, *self.outputs)

    @property
    def plain(self) -> bool:
        """Whether it has one input, one output, and nothing else."""
        return len(self.inputs) == 1 and len(self.results) == 1


@dataclass(frozen=True, slots=True, eq=False)
class Property:
    """A property, as read from a file.

    Inputs that a query sets equal throughout are one entry of what regions range over: a box has no inside
    where two entries are equal, and no float32 search would meet it. Inputs that it sets equal to an output
    of a network declared before theirs are that output, and no entry at all.

    Attributes:
        source: the file.
        version: of VNN-LIB, "1.0" or "2.0".
        inputs, outputs: number of declared entries, of all networks together in the order of declarations;
            hidden nodes count as outputs in front of their network's.
        regions: together they hold every counterexample.
        joint: whether rows range over outputs and free inputs, float64 [k, outputs + free], outputs first.
        formula: what was written, over the declared entries.
        networks: what is declared (version 2.0), or ().
        free: number of inputs that are left: entries of a region's box.
        places: for each declared input what it is: an entry of the free inputs or, behind them, of the
            outputs, int64 [inputs].
    """

    source: Path
    version: str
    inputs: int
    outputs: int
    regions: tuple[Region, ...]
    joint: bool
    formula: Formula
    networks: tuple[Declaration, ...]
    free: int
    places: NDArray[np.int64]

    def declared(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inputs as declared, float32 [..., inputs], of free ones [..., free] and outputs [..., outputs]."""
        return np.concatenate([x, y], axis=-1)[..., self.places]

    def violated(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> bool:
        """Whether (x, y) is a counterexample: meets the formula exactly, without any tolerance.

        Args:
            x: float32 [inputs], as declared.
            y: float32 [outputs], what the networks give.
        """
        point = np.concatenate([x, y]).astype(np.float64)
        if len(x) != self.inputs or len(y) != self.outputs or not np.all(np.isfinite(point)):
            return False
        return holds(self.formula, [Fraction(float(value)) for value in point])


class PropertyFormat(Protocol):
    """A format of property files: one file in ``properties/`` with a ``PROPERTY_FORMAT`` object."""

    @property
    def name(self) -> str:
        """What the format is called, e.g. ``VNN-LIB 1.0``."""

    @property
    def recognises(self) -> Callable[[str], bool]:
        """Whether a text is of this format, told from its first lines; never raises."""

    def read(self, text: str, source: Path) -> Property:
        """Read a property.

        Args:
            text: the whole file.
            source: where it was, for messages.

        Raises:
            DataError: it is malformed, cut, empty, or says something that is not supported.
        """
