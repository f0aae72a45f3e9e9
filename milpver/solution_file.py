"""Solution files of MILP solvers: name and value of each column, and the objective that is stated.

Known are the formats of HiGHS, Gurobi, SCIP, CBC and GLPK (``--write`` and ``--output``). A file of no format
listed here is refused: a guess at what a number means would make the check that follows worthless.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from milpver.errors import DataError

__all__ = ["FORMATS", "SolutionFile", "read_solution"]


@dataclass(frozen=True, slots=True, eq=False)
class SolutionFile:
    """A solution as a file has it.

    Attributes:
        source: whose format it is.
        values: column name -> value, every column.
        objective: as stated, or None.
    """

    source: str
    values: dict[str, float]
    objective: float | None


@dataclass(frozen=True, slots=True, eq=False)
class _Raw:
    """What a format's reader finds; ``sparse``: zeros are left out."""

    values: dict[str, float]
    objective: float | None
    sparse: bool = False


class _UnreadableError(Exception):
    """A file that begins like a format and does not go on like it."""


def read_solution(path: Path, names: Sequence[str], *, in_order: bool) -> SolutionFile:
    """Read a solution.

    Args:
        path: the file.
        names: the columns of the program, in the order of its file.
        in_order: whether solvers keep that order (MPS); GLPK's ``--write`` has numbers in place of names.

    Raises:
        DataError: it cannot be read, is of no known format, holds no point, or is of other columns.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror or error}", needed="a solution file", fix="check the name"
        ) from error
    lines = text.splitlines()
    source = next((name for name, (begins, _) in FORMATS.items() if begins(text)), None)
    if source is None:
        first = next((line.strip() for line in lines if line.strip()), "nothing")
        raise DataError(
            f"{path} begins with {first[:60]!r}",
            needed=f"a solution as {', '.join(FORMATS)} writes it",
            fix="have the solver write names and values in one of these formats",
        )
    try:
        if source == "GLPK" and not in_order:
            raise _UnreadableError("it has numbers in place of names, which an LP file does not fix")
        raw = FORMATS[source][1](lines, names)
    except (_UnreadableError, ValueError, IndexError, KeyError) as error:
        raise DataError(
            f"{path}, of {source}: {error}",
            needed="a feasible point with a value of every column",
            fix="solve the program again, or export it as .mps",
        ) from error
    known = set(names)
    strange = [name for name in raw.values if name not in known]
    missing = [] if raw.sparse else [name for name in names if name not in raw.values]
    if strange or missing:
        what = f"has a column {strange[0]!r}" if strange else f"lacks column {missing[0]!r}"
        raise DataError(
            f"{path}, of {source}, {what}",
            needed="the columns of the exported program",
            fix="solve the program that was exported",
        )
    values = {name: raw.values.get(name, 0.0) for name in names}
    wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if wrong is not None:
        raise DataError(
            f"{path}: column {wrong} is {values[wrong]}", needed="finite numbers", fix="solve it again"
        )
    return SolutionFile(source, values, raw.objective)


def _pair(values: dict[str, float], name: str, value: str) -> None:
    """Note a value; a name that comes twice is an error."""
    if name in values:
        raise _UnreadableError(f"column {name!r} comes twice")
    values[name] = float(value)


def _highs(lines: Sequence[str], _names: Sequence[str]) -> _Raw:
    """``# Primal solution values``, ``Feasible``, ``Objective v``, ``# Columns n``, then ``name value``."""
    start = lines.index("# Primal solution values")
    if lines[start + 1].strip() != "Feasible":
        raise _UnreadableError(f"the point is {lines[start + 1].strip().lower()!r}")
    objective = float(lines[start + 2].split()[1])
    heading = next(i for i in range(start, len(lines)) if lines[i].startswith("# Columns"))
    values: dict[str, float] = {}
    for line in lines[heading + 1 : heading + 1 + int(lines[heading].split()[2])]:
        name, value = line.split()
        _pair(values, name, value)
    return _Raw(values, objective)


def _gurobi(lines: Sequence[str], _names: Sequence[str]) -> _Raw:
    """``# Objective value = v``, then ``name value``."""
    objective: float | None = None
    values: dict[str, float] = {}
    for line in lines:
        if line.startswith("#"):
            found = re.match(r"# Objective value = (\S+)", line)
            objective = float(found[1]) if found else objective
        elif line.strip():
            name, value = line.split()
            _pair(values, name, value)
    return _Raw(values, objective)


def _scip(lines: Sequence[str], _names: Sequence[str]) -> _Raw:
    """``solution status: s``, ``objective value: v``, then ``name value (obj:c)``, zeros left out."""
    objective: float | None = None
    values: dict[str, float] = {}
    for line in lines:
        if line.startswith("objective value:"):
            objective = float(line.partition(":")[2])
        elif line.startswith("solution status:") or not line.strip():
            continue
        elif line.startswith("no solution"):
            raise _UnreadableError("it holds no point")
        else:
            name, value, *_ = line.split()
            _pair(values, name, value)
    if objective is None:
        raise _UnreadableError("it holds no point")
    return _Raw(values, objective, sparse=True)


def _cbc(lines: Sequence[str], names: Sequence[str]) -> _Raw:
    """``status - objective value v``, then ``number name value reduced-cost``; ``**`` marks violations.

    Rows stand before the columns where all is printed; their numbers start again at 0 with the columns.
    """
    head = lines[0]
    if "infeasible" in head.lower() or "no integer solution" in head or head.startswith("Unbounded"):
        raise _UnreadableError(f"it says {head.strip()!r}")
    objective = float(head.split()[-1])
    known = set(names)
    values: dict[str, float] = {}
    for line in lines[1:]:
        words = line.replace("**", " ").split()
        if not words:
            continue
        if len(words) != 4:
            raise _UnreadableError(f"line {line!r}")
        if words[1] in known:
            _pair(values, words[1], words[2])
        elif not re.fullmatch(r"r[0-9]+(_lo|_hi)?", words[1]):
            _pair(values, words[1], words[2])  # refused by name later
    return _Raw(values, objective, sparse=True)


def _glpk(lines: Sequence[str], names: Sequence[str]) -> _Raw:
    """``s mip rows columns status objective``, then ``j number value`` (``--write``)."""
    head = next(line.split() for line in lines if line.startswith("s "))
    if head[1] != "mip" or head[4] not in {"o", "f"}:
        raise _UnreadableError(f"it says {' '.join(head)!r}, which is no integer point")
    if int(head[3]) != len(names):
        raise _UnreadableError(f"it has {head[3]} columns, the program {len(names)}")
    values: dict[str, float] = {}
    for line in lines:
        if line.startswith("j "):
            _, number, value = line.split()[:3]
            if not 1 <= int(number) <= len(names):
                raise _UnreadableError(f"column {number}")
            _pair(values, names[int(number) - 1], value)
    return _Raw(values, float(head[5]))


def _glpk_printed(lines: Sequence[str], _names: Sequence[str]) -> _Raw:
    """``Objective: name = v``, and a table of columns with activities of six digits (``--output``)."""
    status = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("Status:"))
    if status not in {"INTEGER OPTIMAL", "INTEGER NON-OPTIMAL", "OPTIMAL"}:
        raise _UnreadableError(f"it says {status!r}")
    said = next(line for line in lines if line.startswith("Objective:"))
    objective = float(said.partition("=")[2].split()[0])
    start = next(i for i, line in enumerate(lines) if "Column name" in line) + 2
    values: dict[str, float] = {}
    pending: str | None = None
    for line in lines[start:]:
        words = line.split()
        if not words:
            break
        if pending is None:
            if len(words) == 2:  # a long name stands on a line of its own
                pending = words[1]
                continue
            pending, words = words[1], words[2:]
        marks = [word for word in words if word not in {"*", "B", "NL", "NU", "NF", "NS"}]
        _pair(values, pending, marks[0])
        pending = None
    return _Raw(values, objective)


#: Solver -> (whether a text is of its format, what reads it).
FORMATS: dict[str, tuple[Callable[[str], bool], Callable[[Sequence[str], Sequence[str]], _Raw]]] = {
    "HiGHS": (
        lambda text: text.startswith("Model status") and "\n# Primal solution values\n" in text,
        _highs,
    ),
    "Gurobi": (
        lambda text: re.match(r"# Solution for model|# Objective value = ", text) is not None,
        _gurobi,
    ),
    "SCIP": (lambda text: text.startswith(("solution status:", "objective value:")), _scip),
    "CBC": (
        lambda text: (
            re.match(
                r"(Optimal|Stopped on|Infeasible|Integer infeasible|Unbounded|Primal|Dual).* objective value",
                text,
            )
            is not None
        ),
        _cbc,
    ),
    "GLPK": (
        lambda text: text.startswith("c ") and re.search(r"^s \w+ \d", text, re.MULTILINE) is not None,
        _glpk,
    ),
    "GLPK (printed)": (
        lambda text: text.startswith("Problem:") and "Column name" in text,
        _glpk_printed,
    ),
}
