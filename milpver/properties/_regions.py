"""From the formula that was written to regions: disjunctive normal form, grouped by box.

Comparisons of one input with a number make the box, everything else makes rows ``A y <= b``. Limits are
rounded so that no counterexample is lost: boxes outward, b upward; rows with coefficients that float64 does
not have are multiplied by their common denominator. Strict comparisons are taken as closed ones here; the
formula itself, against which witnesses are checked, keeps them. Inputs that are equal throughout become one:
the first of them stands for all, and has the limits of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from milpver.errors import DataError
from milpver.property import Alternative, AnyOf, Comparison, Declaration, Every, Formula, Property, Region

__all__ = ["Declared", "property_of"]

#: Conjunctions in normal form beyond which a property is refused.
MOST = 100_000

#: The largest float32 number.
_LARGEST = float(np.finfo(np.float32).max)

#: Limits of one input: lower and upper, None where there is none.
Limits = tuple["Fraction | None", "Fraction | None"]


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file declares.

    Attributes:
        source: the file.
        version: of VNN-LIB.
        inputs, outputs: number of entries.
        name: of a variable, for messages.
        line: of a comparison's place, for messages.
        networks: see ``Property``.
    """

    source: Path
    version: str
    inputs: int
    outputs: int
    name: Callable[[int], str]
    line: Callable[[int], int]
    networks: tuple[Declaration, ...] = ()


@dataclass(frozen=True, slots=True)
class _Conjunction:
    """Limits of inputs, and rows over outputs (and inputs)."""

    box: Mapping[int, Limits]
    rows: tuple[Comparison, ...]


def property_of(formula: Formula, declared: Declared) -> Property:
    """The property that a formula describes.

    Raises:
        DataError: the box of an alternative is empty or has no bound, an alternative says nothing about the
            outputs, the normal form is too large, or a coefficient cannot be represented.
    """
    first = _firsts(_conjuncts(formula)[0], declared)
    kept = sorted({each for each in first if each < declared.inputs})
    free = len(kept)
    place = {each: number for number, each in enumerate(kept)}
    places = [place[each] if each < declared.inputs else each - declared.inputs + free for each in first]

    def moved(variable: int) -> int:
        return places[variable] if variable < declared.inputs else variable - declared.inputs + free

    def name(variable: int) -> str:
        return declared.name(kept[variable] if variable < free else variable - free + declared.inputs)

    own = declared if free == declared.inputs else replace(declared, inputs=free, name=name)
    try:
        regions, joint = _Normaliser(own).regions(formula if own is declared else _renamed(formula, moved))
    except OverflowError:
        raise DataError(
            f"{declared.source}: numbers beyond what float64 can hold",
            needed="smaller ones",
            fix="correct them",
        ) from None
    return Property(
        source=declared.source,
        version=declared.version,
        inputs=declared.inputs,
        outputs=declared.outputs,
        regions=regions,
        joint=joint,
        formula=formula,
        networks=declared.networks,
        free=free,
        places=np.array(places, dtype=np.int64),
    )


def _conjuncts(formula: Formula) -> tuple[list[Comparison], list[Formula]]:
    """The comparisons that hold throughout, and the disjunctions."""
    comparisons: list[Comparison] = []
    disjunctions: list[Formula] = []
    waiting = [formula]
    while waiting:
        part = waiting.pop()
        match part:
            case Comparison():
                comparisons.append(part)
            case Every(parts=parts):
                waiting.extend(reversed(parts))
            case AnyOf(parts=(only,)):
                waiting.append(only)
            case AnyOf():
                disjunctions.append(part)
    return comparisons, disjunctions


def _firsts(comparisons: Sequence[Comparison], declared: Declared) -> list[int]:
    """For each input the variable that stands for it, by what comparisons set equal.

    That is an output of a network declared before those of all inputs that are equal to it, or else the first
    of these inputs.
    """
    below = set()
    for each in comparisons:
        if each.constant == 0 and not each.strict and len(each.terms) == 2:
            (left, factor), (right, other) = each.terms
            if factor == -other:
                below.add((left, right) if factor > 0 else (right, left))
    pairs = sorted((low, high) for low, high in below if low < high and (high, low) in below)
    inputs = declared.inputs
    first = list(range(inputs))

    def root(variable: int) -> int:
        while first[variable] != variable:
            first[variable] = first[first[variable]]
            variable = first[variable]
        return variable

    for low, high in pairs:
        if high < inputs:
            one, same = root(low), root(high)
            first[max(one, same)] = min(one, same)
    roots = [root(variable) for variable in range(inputs)]
    reads = [
        k for k, each in enumerate(declared.networks) for tensor in each.inputs for _ in range(tensor.size)
    ]
    makes = [
        k for k, each in enumerate(declared.networks) for tensor in each.results for _ in range(tensor.size)
    ]
    output: dict[int, int] = {}
    for low, high in pairs if declared.networks else ():
        # The first of equal inputs belongs to the network that is declared first.
        if low < inputs <= high and makes[high - inputs] < reads[roots[low]]:
            output.setdefault(roots[low], high)
    return [output.get(each, each) for each in roots]


def _renamed(formula: Formula, moved: Callable[[int], int]) -> Formula:
    """The formula over fewer variables, some of which become one."""
    if isinstance(formula, Every | AnyOf):
        return replace(formula, parts=tuple(_renamed(part, moved) for part in formula.parts))
    terms: dict[int, Fraction] = {}
    for variable, coefficient in formula.terms:
        place = moved(variable)
        terms[place] = terms.get(place, Fraction(0)) + coefficient
    return replace(formula, terms=tuple(sorted((place, value) for place, value in terms.items() if value)))


class _Normaliser:
    """Builds the normal form of one file."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared

    def regions(self, formula: Formula) -> tuple[tuple[Region, ...], bool]:
        """The regions, and whether rows range over inputs as well."""
        declared = self._declared
        common, disjunctions = self._split(formula)
        conjunctions = self._product(common, disjunctions)
        if common is None or not conjunctions:
            raise DataError(
                f"{declared.source}: an empty box: no input meets the bounds of any alternative",
                needed="an input that a counterexample may be",
                fix="correct the bounds and numbers",
            )
        joint = any(
            variable < declared.inputs
            for each in conjunctions
            for row in each.rows
            for variable, _ in row.terms
        )
        grouped: dict[tuple[tuple[int, Limits], ...], list[Alternative]] = {}
        kept: dict[tuple[Comparison, ...], Alternative] = {}
        for each in conjunctions:
            if not any(variable >= declared.inputs for row in each.rows for variable, _ in row.terms):
                raise DataError(
                    f"{declared.source}: a counterexample without any condition on the outputs",
                    needed="at least one comparison with an output in every alternative",
                    fix="complete the file; it may have been cut",
                )
            if each.rows not in kept:
                kept[each.rows] = self._alternative(each.rows, joint)
            # Most alternatives share the common box: hashing thousands of limits for each would take longest.
            shared = each.box is common.box
            box = () if shared else tuple(sorted(each.box.items(), key=lambda entry: entry[0]))
            grouped.setdefault(box, []).append(kept[each.rows])
        return self._regions(common.box, grouped), joint

    # ------------------------------------------------------------------------------- normal form

    def _split(self, formula: Formula) -> tuple[_Conjunction | None, list[Formula]]:
        """What holds throughout, and the disjunctions; contradictions in what is written are refused."""
        comparisons, disjunctions = _conjuncts(formula)
        return self._conjunction(comparisons), disjunctions

    def _conjunction(self, comparisons: Sequence[Comparison]) -> _Conjunction | None:
        """Comparisons that are written as one conjunction; None where one of numbers alone never holds."""
        box: dict[int, Limits] = {}
        rows: list[Comparison] = []
        for comparison in comparisons:
            terms = comparison.terms
            if not terms:
                if comparison.constant > 0 or (comparison.strict and comparison.constant == 0):
                    return None
            elif len(terms) == 1 and terms[0][0] < self._declared.inputs:
                variable, coefficient = terms[0]
                unit = abs(coefficient.numerator) == coefficient.denominator
                limit = comparison.constant if unit else comparison.constant / abs(coefficient)
                limit = -limit if coefficient > 0 else limit
                side = (None, limit) if coefficient > 0 else (limit, None)
                met = _met(box.get(variable, (None, None)), side)
                if _empty(met):
                    low, high = met
                    raise self._error(
                        comparison,
                        f"an empty box: {_shown(low)} <= {self._declared.name(variable)} <= {_shown(high)}",
                        "correct the bounds",
                    )
                box[variable] = met
            else:
                rows.append(comparison)
        return _Conjunction(box, tuple(rows))

    def _normal(self, formula: Formula) -> list[_Conjunction]:
        """Disjunctive normal form; conjunctions whose box is empty are left out."""
        if isinstance(formula, AnyOf):
            found: list[_Conjunction] = []
            for part in formula.parts:
                found.extend(self._normal(part))
                self._limit(len(found))
            return found
        return self._product(*self._split(formula))

    def _product(self, common: _Conjunction | None, disjunctions: Sequence[Formula]) -> list[_Conjunction]:
        """``common`` and one part of each disjunction, in all ways that have an input in common."""
        if common is None:
            return []
        if not disjunctions:
            return [common]
        found: list[_Conjunction] = [_Conjunction({}, common.rows)]
        for disjunction in disjunctions:
            parts = self._normal(disjunction)
            self._limit(len(found) * len(parts))
            joined = (_joined(each, part) for each in found for part in parts)
            found = [each for each in joined if each is not None]
        # The common box last: it is the largest, and most parts do not touch it.
        boxed = [_within(each, common.box) for each in found]
        return [each for each in boxed if each is not None]

    def _limit(self, count: int) -> None:
        if count > MOST:
            raise DataError(
                f"{self._declared.source}: {count} alternatives or more in disjunctive normal form",
                needed=f"at most {MOST}",
                fix="split the property into several files",
            )

    # ------------------------------------------------------------------------------- numbers

    def _regions(
        self,
        common: Mapping[int, Limits],
        grouped: Mapping[tuple[tuple[int, Limits], ...], Sequence[Alternative]],
    ) -> tuple[Region, ...]:
        count = self._declared.inputs
        base = np.full((4, count), np.nan)
        for variable, limits in common.items():
            base[:, variable] = _rounded(limits)
        regions = []
        for box, alternatives in grouped.items():
            own = base.copy()
            for variable, limits in box:
                if limits != common.get(variable):
                    own[:, variable] = _rounded(limits)
            missing = np.flatnonzero(np.isnan(own).any(axis=0))
            if len(missing):
                side = "lower" if np.isnan(own[0, missing[0]]) else "upper"
                raise DataError(
                    f"{self._declared.source}: {self._declared.name(int(missing[0]))} has no {side} bound",
                    needed="a lower and an upper bound of every input, in every alternative",
                    fix="add the bound; the file may have been cut",
                )
            regions.append(Region(own[0], own[1], own[2], own[3], tuple(alternatives)))
        return tuple(regions)

    def _alternative(self, rows: Sequence[Comparison], joint: bool) -> Alternative:
        """``A y <= b`` in float64; A exact, b rounded up."""
        inputs, outputs = self._declared.inputs, self._declared.outputs
        matrix = np.zeros((len(rows), outputs + (inputs if joint else 0)))
        limits = np.zeros(len(rows))
        for k, row in enumerate(rows):
            scale = _scale([coefficient for _, coefficient in row.terms])
            if scale is None:
                raise self._error(row, "coefficients that float64 cannot hold", "round the coefficients")
            for variable, coefficient in row.terms:
                place = variable - inputs if variable >= inputs else outputs + variable
                matrix[k, place] = float(coefficient * scale)
            limits[k] = _outward(-row.constant * scale, 1)
        return Alternative(matrix, limits)

    def _error(self, comparison: Comparison, found: str, fix: str) -> DataError:
        line = self._declared.line(comparison.place)
        return DataError(
            f"{self._declared.source}, line {line}: {found}", needed="a property that can be met", fix=fix
        )


def _met(left: Limits, right: Limits) -> Limits:
    """The intersection of two intervals."""
    lows = [low for low in (left[0], right[0]) if low is not None]
    highs = [high for high in (left[1], right[1]) if high is not None]
    return max(lows, default=None), min(highs, default=None)


def _empty(limits: Limits) -> bool:
    return limits[0] is not None and limits[1] is not None and limits[0] > limits[1]


def _joined(left: _Conjunction, right: _Conjunction) -> _Conjunction | None:
    """Both; None where their boxes have nothing in common."""
    box = _within(right, left.box)
    return None if box is None else _Conjunction(box.box, left.rows + right.rows)


def _within(inner: _Conjunction, box: Mapping[int, Limits]) -> _Conjunction | None:
    """A conjunction with a box met; None where nothing is left."""
    if not inner.box:
        return _Conjunction(box, inner.rows)
    met = dict(box)
    for variable, limits in inner.box.items():
        met[variable] = _met(met.get(variable, (None, None)), limits)
        if _empty(met[variable]):
            return None
    return _Conjunction(met, inner.rows)


def _rounded(limits: Limits) -> tuple[float, float, float, float]:
    """Lower and upper limit, rounded outward in float64 and inward to float32; NaN where there is none."""
    low, high = limits
    nan = math.nan
    return (
        nan if low is None else _outward(low, -1),
        nan if high is None else _outward(high, 1),
        nan if low is None else _float32(low, 1),
        nan if high is None else _float32(high, -1),
    )


def _outward(value: Fraction, direction: int) -> float:
    """The nearest float64 that is not below (direction 1), or not above (-1)."""
    near = float(value)
    if _above(near, value) * direction < 0:
        near = math.nextafter(near, math.inf * direction)
    return near


def _float32(value: Fraction, direction: int) -> float:
    """The nearest float32 that is not below (direction 1), or not above (-1)."""
    if abs(value) > _LARGEST:
        # Beyond float32: its largest number on one side, none on the other (infinity keeps the box empty).
        inside = (value > 0) == (direction < 0)
        return math.copysign(_LARGEST if inside else math.inf, value)
    near = np.float32(float(value))
    if _above(float(near), value) * direction < 0:
        near = np.nextafter(near, np.float32(math.inf * direction))
    return float(near)


def _above(near: float, value: Fraction) -> int:
    """Positive where a float lies above a rational, negative below, 0 where they are equal."""
    top, bottom = near.as_integer_ratio()
    return top * value.denominator - value.numerator * bottom


def _scale(coefficients: Sequence[Fraction]) -> Fraction | None:
    """A factor that makes all coefficients float64 numbers, or None."""
    if all(_exact(each) for each in coefficients):
        return Fraction(1)
    scale = Fraction(math.lcm(*(each.denominator for each in coefficients)))
    return scale if all(_exact(each * scale) for each in coefficients) else None


def _exact(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


def _shown(value: Fraction | None) -> str:
    return "?" if value is None else f"{float(value):.17g}"
