"""VNN-LIB 2.0 through the ``vnnlib`` package: parsing and typing are the reference implementation's.

Taken over are queries about any number of networks, their inputs, hidden nodes and outputs, in linear
expressions; their tree becomes the same formula as that of version 1.0, with constants read from their text
as rationals. The variables are the inputs of all networks in the order of declarations, then what each
network computes: its hidden nodes and its outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

from milpver.errors import DataError
from milpver.properties._regions import Declared, property_of
from milpver.property import AnyOf, Comparison, Declaration, Every, Formula, Property, Tensor

__all__ = ["PROPERTY_FORMAT"]

#: Element types that are taken, and what answers call them; ``Unknown`` is ``real`` in older packages.
_KINDS = {"F32": "float32", "Real": "real", "Unknown": "real"}

_HEADER = re.compile(r"^\s*\(\s*vnnlib-version(?:\s*<([^>\n]*)>)?", re.MULTILINE)

#: Linear terms: variable to coefficient, and the constant.
_Linear = tuple[dict[int, Fraction], Fraction]


@dataclass(frozen=True, slots=True)
class VnnLib2:
    """The format.

    Attributes:
        name: as messages call it.
    """

    name: str = "VNN-LIB 2.0"

    @property
    def recognises(self) -> Callable[[str], bool]:
        """By the header, before which comments may stand."""
        return lambda text: _HEADER.search(text[:100_000]) is not None

    def read(self, text: str, source: Path) -> Property:
        """See ``milpver.property.PropertyFormat``."""
        try:
            import vnnlib  # noqa: PLC0415  an extra, only for this format
        except ImportError:
            raise DataError(
                f"{source} is VNN-LIB 2.0, which the package vnnlib reads, and that is not installed",
                needed="the package vnnlib",
                fix="pip install vnnlib, or milpver with its extra: 'milpver[vnnlib]'",
            ) from None
        # The package would go on with 2.1, after 16 lines of warnings.
        if (version := _version(text)) not in ("2.0", ""):
            raise DataError(
                f"{source}: VNN-LIB {version}",
                needed="VNN-LIB 1.0 (without a vnnlib-version) or 2.0",
                fix="rewrite the query in one of them",
            )
        try:
            query = vnnlib.parse_query_string(text)
        except Exception as error:
            raise DataError(
                f"{source}: {_said(error, text)}",
                needed="a well-typed VNN-LIB 2.0 query",
                fix="correct the file",
            ) from error
        try:
            return _Reader(query, source).property()
        except RecursionError:
            raise DataError(
                f"{source}: expressions nested too deeply", needed="a few hundred levels", fix="flatten them"
            ) from None


PROPERTY_FORMAT = VnnLib2()


def _version(text: str) -> str:
    """What the header says; "" where it is malformed."""
    found = _HEADER.search(text[:100_000])
    return found[1].strip() if found and found[1] else ""


def _said(error: Exception, query: str) -> str:
    """What the package's error says, in one line, with the line of the file."""
    text = str(error)
    if re.fullmatch("sto[a-z]+", text):  # of C++: a number that it cannot hold
        long = re.search(r"[0-9]{19,}", query)
        where = f"line {query.count(chr(10), 0, long.start()) + 1}: " if long else ""
        return f"{where}a number of too many digits"
    try:
        first = json.loads(text)["errors"][0]
        symbol, hint = first.get("offendingSymbol", ""), first.get("hint", "")
        return f"line {first.get('line', '?')}: {first.get('message', '')} ({symbol}): {hint}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return " ".join(text.split())[:300]


class _Reader:
    """Turns one query's tree into a property."""

    def __init__(self, query: Any, source: Path) -> None:
        self._source = source
        self._query = query
        self._tensors: dict[str, Tensor] = {}
        self._first: dict[str, int] = {}
        self._line = 0

    def property(self) -> Property:
        """The property of the query."""
        networks = tuple(self._declaration(each) for each in self._query.networks)
        names = [each.name for each in networks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise self._unsupported(f"the network {twice[0]} is declared twice", "a name for each network")
        inputs = [tensor for each in networks for tensor in each.inputs]
        results = [tensor for each in networks for tensor in each.results]
        self._tensors = {tensor.name: tensor for tensor in (*inputs, *results)}
        ends = tuple(accumulate(tensor.size for tensor in self._tensors.values()))
        self._first = dict(zip(self._tensors, (0, *ends[:-1]), strict=True))
        formulas = tuple(self._formula(each.expr) for each in self._query.assertions)
        if not formulas:
            raise DataError(
                f"{self._source}: no assert", needed="a complete property", fix="the file may have been cut"
            )
        return property_of(
            Every(formulas),
            Declared(
                source=self._source,
                version="2.0",
                inputs=sum(tensor.size for tensor in inputs),
                outputs=sum(tensor.size for tensor in results),
                name=self._name,
                line=lambda place: place,
                networks=networks,
            ),
        )

    def _declaration(self, network: Any) -> Declaration:
        """A declared network."""
        inputs, hidden, outputs = (
            tuple(self._tensor(each) for each in part)
            for part in (network.inputs, network.hidden, network.outputs)
        )
        for part in (inputs, outputs):
            if any(each.onnx for each in part) and not all(each.onnx for each in part):
                missing = next(each.name for each in part if not each.onnx)
                raise self._unsupported(
                    f"{missing} of the network {network.name} has no ONNX name, others have one",
                    "names for all of a network's inputs, or outputs, or for none",
                )
        return Declaration(
            network.name, inputs, hidden, outputs, network.equal_to or "", network.isometric_to or ""
        )

    def _tensor(self, declared: Any) -> Tensor:
        """A declared tensor."""
        kind = declared.dtype.name
        if kind not in _KINDS:
            raise self._unsupported(f"{declared.name} of type {kind}", "float32 or real")
        onnx_name = (declared.onnx_name or "").strip('"')
        found = Tensor(declared.name, _KINDS[kind], tuple(declared.shape), onnx_name)
        if not found.size:
            raise self._unsupported(f"{found.name} has no entries", "at least one entry")
        return found

    def _name(self, variable: int) -> str:
        """An entry of a tensor, as the file writes it."""
        tensor = next(
            each for each in self._tensors.values() if 0 <= variable - self._first[each.name] < each.size
        )
        rest, places = variable - self._first[tensor.name], []
        for size in reversed(tensor.shape):
            rest, place = divmod(rest, size)
            places.append(str(place))
        return f"{tensor.name}[{','.join(reversed(places))}]" if places else tensor.name

    def _formula(self, node: Any) -> Formula:
        """A condition; each comparison keeps the line of its first variable."""
        kind = type(node).__name__
        match kind:
            case "And":
                return Every(tuple(self._formula(part) for part in node.args))
            case "Or":
                return AnyOf(tuple(self._formula(part) for part in node.args))
        self._line = 0
        left, right = self._linear(node.lhs), self._linear(node.rhs)
        match kind:
            case "LessEqual" | "LessThan":
                return self._below(left, right, kind == "LessThan")
            case "GreaterEqual" | "GreaterThan":
                return self._below(right, left, kind == "GreaterThan")
            case "Equal":
                return Every((self._below(left, right, False), self._below(right, left, False)))
            case "NotEqual":
                return AnyOf((self._below(left, right, True), self._below(right, left, True)))
        raise self._unsupported(f"the condition {kind}", "and, or and comparisons")

    def _below(self, left: _Linear, right: _Linear, strict: bool) -> Comparison:
        """``left <= right``."""
        terms = dict(left[0])
        for variable, coefficient in right[0].items():
            terms[variable] = terms.get(variable, Fraction(0)) - coefficient
        kept = tuple(sorted((variable, value) for variable, value in terms.items() if value))
        return Comparison(kept, left[1] - right[1], strict, self._line)

    def _linear(self, node: Any) -> _Linear:
        """A linear expression."""
        kind = type(node).__name__
        match kind:
            case "Var":
                self._line = self._line or int(node.line)
                return {self._variable(node): Fraction(1)}, Fraction(0)
            case "Negate":
                return _times(self._linear(node.expr), Fraction(-1))
            case "Plus":
                return _sum([self._linear(part) for part in node.args])
            case "Minus":
                rest = _sum([self._linear(part) for part in node.rest])
                return _sum([self._linear(node.head), _times(rest, Fraction(-1))])
            case "Multiply":
                return self._product([self._linear(part) for part in node.args])
        lexeme = getattr(node, "lexeme", None)
        if not isinstance(lexeme, str):
            raise self._unsupported(f"the expression {kind}", "linear expressions")
        return {}, self._number(lexeme)

    def _number(self, lexeme: str) -> Fraction:
        exponent = re.search(r"[eE]([+-]?[0-9]+)$", lexeme)
        try:
            if len(lexeme) > 400 or (exponent is not None and abs(int(exponent[1])) > 300):
                raise ValueError(lexeme)
            return Fraction(lexeme)
        except (ValueError, ZeroDivisionError):
            raise DataError(
                f"{self._source}: the number {lexeme[:40]!r}",
                needed="a finite decimal number",
                fix="correct it",
            ) from None

    def _product(self, factors: list[_Linear]) -> _Linear:
        found: _Linear = ({}, Fraction(1))
        for factor in factors:
            if found[0] and factor[0]:
                raise self._unsupported("a product of variables", "linear expressions")
            found = _times(factor, found[1]) if not found[0] else _times(found, factor[1])
        return found

    def _variable(self, node: Any) -> int:
        """The number of a tensor's entry, row-major."""
        tensor = self._tensors.get(node.name)
        if tensor is None or len(node.indices) != len(tensor.shape):
            raise self._unsupported(
                f"the variable {node.name}{list(node.indices)}", "entries of declared tensors"
            )
        place = 0
        for index, size in zip(node.indices, tensor.shape, strict=True):
            if not 0 <= int(index) < size:  # the package lets negative ones pass
                raise DataError(
                    f"{self._source}, line {self._line}: the index {index} in "
                    f"{node.name}[{','.join(map(str, node.indices))}]",
                    needed=f"indices from 0 to {size - 1} there",
                    fix="correct the file",
                )
            place = place * size + int(index)
        return self._first[tensor.name] + place

    def _unsupported(self, found: str, needed: str) -> DataError:
        where = f", line {self._line}" if self._line else ""
        return DataError(
            f"{self._source}{where}: {found}", needed=needed, fix="ask about each part by itself"
        )


def _sum(operands: list[_Linear]) -> _Linear:
    terms: dict[int, Fraction] = {}
    constant = Fraction(0)
    for more, other in operands:
        constant += other
        for variable, coefficient in more.items():
            terms[variable] = terms.get(variable, Fraction(0)) + coefficient
    return terms, constant


def _times(operand: _Linear, factor: Fraction) -> _Linear:
    return {variable: coefficient * factor for variable, coefficient in operand[0].items()}, operand[
        1
    ] * factor
