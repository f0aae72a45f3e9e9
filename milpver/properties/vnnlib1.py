"""VNN-LIB 1.0: declarations of inputs X_i and outputs Y_j, and assertions that a counterexample meets.

The language is that of SMT-LIB's s-expressions: ``and``, ``or``, comparisons ``<=``, ``>=``, ``<``, ``>``,
``=``, and linear terms by ``+``, ``-``, ``*`` (constants as factors) and ``/`` (by constants). Numbers are
read as rationals. Files of image benchmarks have thousands of lines: one regular expression finds the
tokens, and line numbers are counted only for messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

from milpver.errors import DataError
from milpver.properties._regions import Declared, property_of
from milpver.property import AnyOf, Comparison, Every, Formula, Property

__all__ = ["PROPERTY_FORMAT"]

_TOKEN = re.compile(r';[^\n]*|"[^"]*"|\|[^|]*\||[()]|[^\s();"|]+|["|]')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]*)", re.ASCII)

#: Digits and exponents beyond these are no measured numbers, and exact arithmetic would choke on them.
_LONGEST, _LARGEST_EXPONENT = 400, 300

#: Commands of SMT-LIB that say nothing about the property.
_SILENT = frozenset({"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"})

#: A list: the place of its parenthesis, then its words and lists; a word: its text with its place.
Node: TypeAlias = "tuple[int, list[Node]] | tuple[int, str]"

_ONE = Fraction(1)

#: Linear terms: variable to coefficient, and the constant.
Linear: TypeAlias = tuple[dict[int, Fraction], Fraction]


@dataclass(frozen=True, slots=True)
class VnnLib1:
    """The format.

    Attributes:
        name: as messages call it.
    """

    name: str = "VNN-LIB 1.0"

    @property
    def recognises(self) -> Callable[[str], bool]:
        """Whatever no other format claims: 1.0 has no header."""
        return lambda text: "(vnnlib-version" not in text[:10_000]

    def read(self, text: str, source: Path) -> Property:
        """See ``milpver.property.PropertyFormat``."""
        try:
            return _Reader(text, source).property()
        except RecursionError:
            raise DataError(
                f"{source}: expressions nested too deeply", needed="a few hundred levels", fix="flatten them"
            ) from None


PROPERTY_FORMAT = VnnLib1()


class _Reader:
    """Reads one file."""

    def __init__(self, text: str, source: Path) -> None:
        self._text = text
        self._source = source
        self._variables: dict[str, int] = {}
        self._numbers: dict[str, Fraction] = {}

    def property(self) -> Property:
        """The property of the file."""
        commands = self._commands()
        for place, parts in commands:
            if parts[0][1] == "declare-network":
                raise self._error(
                    place, "declare-network without a version", "(vnnlib-version <2.0>) in the first line"
                )
        declarations = [each for each in commands if self._command(each) in ("declare-const", "declare-fun")]
        inputs, outputs = self._declare(declarations)
        assertions = []
        for place, parts in commands:
            match parts[0][1]:
                case "assert":
                    if len(parts) != 2:
                        raise self._error(
                            place, "an assert without exactly one condition", "(assert CONDITION)"
                        )
                    assertions.append(self._formula(parts[1]))
                case "declare-const" | "declare-fun":
                    pass
                case word if word in _SILENT:
                    pass
                case word:
                    known = "declare-const and assert"
                    raise self._error(
                        place, f"the command {_short(word)!r}", f"commands of VNN-LIB 1.0: {known}"
                    )
        if not assertions:
            raise DataError(
                f"{self._source}: no assert", needed="a complete property", fix="the file may have been cut"
            )
        names = {index: name for name, index in self._variables.items()}
        declared = Declared(
            source=self._source,
            version="1.0",
            inputs=inputs,
            outputs=outputs,
            name=lambda index: names[index],
            line=self._line,
        )
        return property_of(Every(tuple(assertions)), declared)

    # ------------------------------------------------------------------------------- syntax

    def _commands(self) -> list[tuple[int, list[Node]]]:
        """The top-level lists; places are token numbers."""
        top: list[Node] = []
        open_: list[tuple[int, list[Node]]] = [(0, top)]
        for place, token in enumerate(_TOKEN.findall(self._text)):
            if token == "(":
                entry: tuple[int, list[Node]] = (place, [])
                open_[-1][1].append(entry)
                open_.append(entry)
            elif token == ")":
                if len(open_) == 1:
                    raise self._error(place, "an unbalanced parenthesis ')'", "one '(' for every ')'")
                open_.pop()
            elif token[0] != ";":
                open_[-1][1].append((place, token))
        if len(open_) > 1:
            raise self._error(
                open_[-1][0],
                "an unbalanced parenthesis '(' that is never closed",
                "a complete file, not a cut one",
            )
        found = []
        for place, content in top:
            if isinstance(content, str):
                raise self._error(
                    place, f"{_short(content)!r} outside of parentheses", "commands in parentheses"
                )
            if not content or not isinstance(content[0][1], str):
                raise self._error(place, "a list that is no command", "a command such as (assert CONDITION)")
            found.append((place, content))
        if not found:
            raise DataError(
                f"{self._source} holds no VNN-LIB", needed="declarations and assertions", fix="check the file"
            )
        return found

    @staticmethod
    def _command(command: tuple[int, list[Node]]) -> object:
        return command[1][0][1]

    def _declare(self, declarations: list[tuple[int, list[Node]]]) -> tuple[int, int]:
        """Number the variables; how many inputs and outputs there are."""
        places: dict[tuple[str, int], int] = {}
        for place, parts in declarations:
            words = [part[1] for part in parts]
            if words[0] == "declare-fun" and len(words) == 4 and words[2] == []:
                words = [words[0], words[1], words[3]]
            name = words[1] if len(words) == 3 else None
            found = _VARIABLE.fullmatch(name) if isinstance(name, str) else None
            if found is None or words[2] != "Real":
                raise self._error(
                    place,
                    f"a declaration of {_short(name)}",
                    "(declare-const X_0 Real), inputs X_i, outputs Y_j",
                )
            key = (found[1], int(found[2]))
            if key in places:
                raise self._error(place, f"{name} declared twice", "one declaration a variable")
            places[key] = place
        counts: list[int] = []
        for letter, noun in (("X", "input"), ("Y", "output")):
            numbers = sorted(number for kind, number in places if kind == letter)
            if not numbers or numbers[-1] != len(numbers) - 1:
                missing = next((k for k, number in enumerate(numbers) if k != number), 0)
                raise DataError(
                    f"{self._source}: {noun} {letter}_{missing} is not declared",
                    needed=f"{noun}s {letter}_0, {letter}_1, ... without gaps",
                    fix="declare it; the file may have been cut",
                )
            self._variables.update({f"{letter}_{k}": sum(counts) + k for k in range(len(numbers))})
            counts.append(len(numbers))
        return counts[0], counts[1]

    # ------------------------------------------------------------------------------- meaning

    def _formula(self, node: Node) -> Formula:
        """A condition."""
        place, content = node
        if isinstance(content, str) or not content or not isinstance(content[0][1], str):
            shown = content if isinstance(content, str) else "a list"
            raise self._error(place, f"{_short(shown)} in place of a condition", "and, or, or a comparison")
        operator, parts = content[0][1], content[1:]
        match operator:
            case "and" | "or":
                if not parts:
                    raise self._error(place, f"an empty {operator}", "at least one condition in it")
                made = tuple(self._formula(part) for part in parts)
                return Every(made) if operator == "and" else AnyOf(made)
            case "<=" | "<" | ">=" | ">" | "=":
                if len(parts) != 2:
                    raise self._error(place, f"{operator} with {len(parts)} sides", "two sides")
                return self._comparison(operator, parts[0], parts[1], place)
        raise self._error(
            place, f"{_short(operator)!r} in place of a condition", "and, or, <=, >=, <, > or ="
        )

    def _comparison(self, operator: str, left: Node, right: Node, place: int) -> Formula:
        """A comparison as ``... <= 0``."""
        if operator in (">=", ">"):
            left, right = right, left
        simple = self._simple(operator, left, right, place)
        if simple is not None:
            return simple
        terms, constant = self._linear(left)
        more, other = self._linear(right)
        if more:
            terms = dict(terms)
            for variable, coefficient in more.items():
                terms[variable] = terms.get(variable, Fraction(0)) - coefficient
        constant -= other
        kept = tuple(sorted((v, c) for v, c in terms.items() if c))
        if operator == "=":
            mirrored = tuple((variable, -coefficient) for variable, coefficient in kept)
            return Every(
                (Comparison(kept, constant, False, place), Comparison(mirrored, -constant, False, place))
            )
        return Comparison(kept, constant, operator in ("<", ">"), place)

    def _simple(self, operator: str, left: Node, right: Node, place: int) -> Comparison | None:
        """``left <= right`` of a variable and a number, as most lines of a file are; None for others."""
        first, second = left[1], right[1]
        if not (isinstance(first, str) and isinstance(second, str)) or operator == "=":
            return None
        below, above = self._variables.get(first), self._variables.get(second)
        strict = operator in ("<", ">")
        if below is not None and above is None:
            return Comparison(((below, _ONE),), -self._number(second, right[0]), strict, place)
        if above is not None and below is None:
            return Comparison(((above, -_ONE),), self._number(first, left[0]), strict, place)
        return None

    def _linear(self, node: Node) -> Linear:
        """A linear term."""
        place, content = node
        if isinstance(content, str):
            if content in self._variables:
                return {self._variables[content]: Fraction(1)}, Fraction(0)
            return {}, self._number(content, place)
        if len(content) < 2 or not isinstance(content[0][1], str):
            raise self._error(place, "an incomplete expression", "an operator and its operands")
        operator = content[0][1]
        operands = [self._linear(part) for part in content[1:]]
        match operator:
            case "+":
                return _sum(operands)
            case "-":
                signs = [Fraction(1 if k == 0 and len(operands) > 1 else -1) for k in range(len(operands))]
                return _sum([_times(each, sign) for each, sign in zip(operands, signs, strict=True)])
            case "*":
                return self._product(operands, place)
            case "/":
                if len(operands) != 2 or operands[1][0] or not operands[1][1]:
                    raise self._error(place, "a division by 0 or by a variable", "a division by a number")
                return _times(operands[0], 1 / operands[1][1])
        raise self._error(place, f"the operator {_short(operator)!r}", "+, -, * or / in an expression")

    def _product(self, operands: list[Linear], place: int) -> Linear:
        """A product with at most one factor that is not a number."""
        found: Linear = ({}, Fraction(1))
        for operand in operands:
            if found[0] and operand[0]:
                raise self._error(place, "a product of two variables", "linear expressions")
            found = _times(operand, found[1]) if not found[0] else _times(found, operand[1])
        return found

    def _number(self, word: str, place: int) -> Fraction:
        """A decimal number, exactly."""
        known = self._numbers.get(word)
        if known is not None:
            return known
        if _NUMBER.fullmatch(word) is None:
            if _VARIABLE.fullmatch(word):
                raise self._error(place, f"the undeclared variable {word}", "a declaration of every variable")
            raise self._error(place, f"{_short(word)!r}", "a declared variable or a finite decimal number")
        exponent = (
            int(([*re.split("[eE]", word), "0"])[1]) if len(word) <= _LONGEST else _LARGEST_EXPONENT + 1
        )
        if abs(exponent) > _LARGEST_EXPONENT:
            raise self._error(
                place,
                f"the number {_short(word)}",
                f"at most {_LONGEST} characters, exponents up to {_LARGEST_EXPONENT}",
            )
        self._numbers[word] = value = Fraction(word)
        return value

    # ------------------------------------------------------------------------------- messages

    def _line(self, place: int) -> int:
        """The line of a token."""
        for number, found in enumerate(_TOKEN.finditer(self._text)):
            if number == place:
                return 1 + self._text.count("\n", 0, found.start())
        return 1 + self._text.count("\n")

    def _error(self, place: int, found: str, needed: str) -> DataError:
        return DataError(
            f"{self._source}, line {self._line(place)}: {found}",
            needed=needed,
            fix="correct the property file",
        )


def _sum(operands: list[Linear]) -> Linear:
    terms: dict[int, Fraction] = {}
    constant = Fraction(0)
    for more, other in operands:
        constant += other
        for variable, coefficient in more.items():
            terms[variable] = terms.get(variable, Fraction(0)) + coefficient
    return terms, constant


def _times(operand: Linear, factor: Fraction) -> Linear:
    return {variable: coefficient * factor for variable, coefficient in operand[0].items()}, operand[
        1
    ] * factor


def _short(found: object) -> str:
    text = str(found)
    return text if len(text) <= 40 else f"{text[:37]}..."
