"""Tables for people: complete in a pipe, fitted to a terminal, numbers never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

__all__ = ["Column", "print_table", "rounded", "seconds"]

#: Columns of a pipe: as many as the table takes, which no reader folds.
_PIPE = 100_000

_STYLES = {"robust": "green", "vulnerable": "red", "unknown": "yellow", "error": "bold red"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        right: numbers stand at the right and stay on one line; texts may fold on a narrow terminal.
        least: characters that it keeps on a narrow terminal.
    """

    title: str
    right: bool = True
    least: int = 0


def rounded(value: float | None, decimals: int) -> str:
    """A number for people: fixed decimals, or three digits where these would show none of it; "" for None."""
    if value is None:
        return ""
    if value != 0 and abs(value) < 10.0**-decimals:
        return f"{value:.2e}"
    return f"{value:.{decimals}f}" if abs(value) < 1e5 else f"{value:.{decimals + 2}g}"


def seconds(value: float) -> str:
    """A duration in seconds, about three digits."""
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """Print a table.

    Args:
        columns: what they are called.
        rows: the cells, as many in each as there are columns.
        stream: a terminal, whose width is kept where numbers leave room for it; or something else, where
            nothing is folded.
    """
    from rich.console import Console  # noqa: PLC0415  0.1 s, which `--help` must not cost
    from rich.table import Table  # noqa: PLC0415  as above
    from rich.text import Text  # noqa: PLC0415  as above

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        settings: dict[str, Any] = (
            {"justify": "right", "no_wrap": True}
            if column.right
            else {"overflow": "fold", "min_width": column.least or None}
        )
        table.add_column(column.title, **settings)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    console = Console(file=stream, width=None if stream.isatty() else _PIPE, highlight=False, emoji=False)
    console.width = max(console.width, _least_width(columns, rows))
    console.print(table)


def _least_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """Characters that the table takes at least: numbers whole, texts folded, a space behind each column."""
    cells = [[column.title, *(row[k] for row in rows)] for k, column in enumerate(columns)]
    return sum(
        1 + (max(map(len, texts)) if column.right else column.least)
        for column, texts in zip(columns, cells, strict=True)
    )
