"""Texts of the command line as numbers, sizes and paths, each refused in one line where it makes no sense."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from milpver.errors import QueryError, RecordError

__all__ = ["apart", "made_folder", "memory_size", "names", "number", "solver_options", "whole"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)


def number(option: str, text: str, *, above: float | None = None, example: str) -> float:
    """A finite number.

    Args:
        option: the flag, for messages.
        text: its value.
        above: what it has to exceed; None: it has to be 0 or more.
        example: a value that makes sense.

    Raises:
        QueryError: it is no number, not finite, or too small.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (value < 0 if above is None else value <= above):
        least = "0 or more" if above is None else f"above {above:g}"
        raise QueryError(
            f"{option} {text}", needed=f"a finite number {least}", fix=f"write e.g. {option} {example}"
        )
    return value


def whole(option: str, text: str, *, least: int, most: int, example: str) -> int:
    """A whole number from ``least`` to ``most``.

    Raises:
        QueryError: it is none, or lies outside.
    """
    value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII) else None
    if value is None or not least <= value <= most:
        raise QueryError(
            f"{option} {text}",
            needed=f"a whole number from {least} to {most}",
            fix=f"write e.g. {option} {example}",
        )
    return value


def apart(option: str, target: str | Path | None, others: Mapping[str, str | Path | None]) -> None:
    """Refuse to write over what is read, or what another option writes.

    Args:
        option: the flag, for messages.
        target: the file that it names, or None.
        others: what the other files are, in words, and the files.

    Raises:
        QueryError: the target is one of the others.
    """
    if target is None:
        return
    for what, other in others.items():
        if other is not None and Path(target).resolve() == Path(other).resolve():
            raise QueryError(
                f"{option} {target} is {what} as well",
                needed="a file of its own: that one would be overwritten",
                fix=f"name another file with {option}",
            )


def made_folder(option: str, text: str) -> Path:
    """The folder that a flag names, made where there is none.

    Raises:
        RecordError: it cannot be made.
    """
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{option} {folder}: {error.strerror or error}",
            needed="a folder that can be written, or a name for one",
            fix=f"name another folder with {option}",
        ) from error
    return folder


def memory_size(text: str) -> int:
    """Bytes: a number with K, M, G or T (powers of 1024), or without.

    Raises:
        QueryError: it is none, or no more than 0.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found and len(found[1]) <= 18 else 0
    if size <= 0:
        raise QueryError(
            f"--memory {text}", needed="a size above 0 such as 4G, 512M or 1.5G", fix="write e.g. --memory 4G"
        )
    return size


def names(option: str, text: str | None) -> tuple[str, ...]:
    """Names separated by commas; () where the flag is not given.

    Raises:
        QueryError: there is an empty one.
    """
    if text is None:
        return ()
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise QueryError(
            f"{option} {text}", needed="names separated by commas", fix=f"write e.g. {option} highs,scip"
        )
    return found


def solver_options(entries: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping.

    Raises:
        QueryError: one is no such text, or a key comes twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        key, sign, value = (part.strip() for part in entry.partition("="))
        if not key or not sign or key in found:
            why = "names an option a second time" if key in found else "is no KEY=VALUE"
            raise QueryError(
                f"--solver-option {entry!r} {why}",
                needed="KEY=VALUE, each key once",
                fix="write e.g. --solver-option presolve=off",
            )
        found[key] = value
    return found
