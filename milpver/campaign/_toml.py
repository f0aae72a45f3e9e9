"""TOML with line numbers: what ``tomllib`` reads, and on which line each key and list entry stands.

``tomllib`` does not tell. So each statement is read a second time by itself: it begins on a line, and ends on
the first line with which it can be read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Located", "Place", "read"]

Place: TypeAlias = "tuple[str | int, ...]"
"""Where a value stands: keys, and positions in lists; ``("question", 0, "budgets", 2)``."""


@dataclass(frozen=True, slots=True)
class Located:
    """A TOML document.

    Attributes:
        values: as ``tomllib`` has them.
        lines: from 1, of tables, keys and entries of lists.
    """

    values: Mapping[str, Any]
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int:
        """The line of a value, or of the nearest thing around it that has one."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read(text: str) -> Located:
    """Read a document.

    Raises:
        tomllib.TOMLDecodeError: it is none; the message names line and column.
    """
    values = tomllib.loads(text)
    lines: dict[Place, int] = {}
    table: Place = ()
    arrays: dict[Place, int] = {}
    rows = text.splitlines()
    number = 0
    while number < len(rows):
        row = rows[number].strip()
        number += 1
        if not row or row.startswith("#"):
            continue
        if row.startswith("["):
            table = _header(row)
            if row.startswith("[["):
                arrays[table] = arrays.get(table, -1) + 1
                table = (*table, arrays[table])
            lines[table] = number
        else:
            first = number
            for place, line, end in _statement(rows, first):
                lines.setdefault((*table, *place), line)
                number = max(number, end)
    return Located(values, lines)


def _header(row: str) -> Place:
    """The keys of ``[a.b]`` or ``[[a.b]]``."""
    found: list[str | int] = []
    inner: Any = tomllib.loads(row)
    while inner:
        if isinstance(inner, list):
            inner = inner[0]
            continue
        key = next(iter(inner))
        found.append(key)
        inner = inner[key]
    return tuple(found)


def _statement(rows: list[str], first: int) -> Iterator[tuple[Place, int, int]]:
    """(place within the table, line, last line) for all that a statement beginning on a line sets."""
    counts: list[int] = []
    for end in range(first, len(rows) + 1):
        text = "\n".join(rows[first - 1 : end])
        whole = _loads(text)
        part = whole if whole is not None else _loads(text + "\n]")
        counts.append(_length(part))
        if whole is None:
            continue
        for place, value in _walk(whole):
            yield place, first, end
            if isinstance(value, list):
                for k in range(len(value)):
                    offset = next((i for i, count in enumerate(counts) if count > k), 0)
                    yield (*place, k), first + offset, end
        return


def _loads(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _length(part: dict[str, Any] | None) -> int:
    """Entries of the list that a part of a statement begins; 0 where it is none."""
    lists = [value for _, value in _walk(part or {}) if isinstance(value, list)]
    return len(lists[0]) if len(lists) == 1 else 0


def _walk(values: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """All keys of nested tables with their values."""
    for key, value in values.items():
        yield (key,), value
        if isinstance(value, dict):
            yield from (((key, *place), inner) for place, inner in _walk(value))
