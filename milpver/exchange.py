"""Programs as MPS and LP files, which every solver reads: the writer, and the names that stand in them.

Numbers are written so that they read back exactly (shortest decimals, up to 17 digits). What readers disagree
on is left out: no RANGES section (a row with two sides becomes two rows), no default bounds, no constant in
the objective (a column fixed at 1 carries it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import sparse

from milpver.errors import QueryError
from milpver.program import Program

__all__ = ["FORMATS", "OFFSET", "column_names", "exported", "lp_text", "mps_text", "write_program"]

#: The column fixed at 1 that carries the constant of the objective.
OFFSET = "objective_offset"
#: Terms in one line of an LP file; some readers end lines at 255 characters.
_TERMS = 8


def column_names(program: Program) -> list[str]:
    """A name for each column that all formats take: ``block.i``, or ``x.i`` without blocks, all different."""
    blocks = program.column_blocks or (("x", 0, program.columns),)
    seen: set[str] = set()
    names: list[str] = []
    for name, _, count in blocks:
        stem = re.sub(r"[^A-Za-z0-9_]", "_", name) or "x"
        # LP readers take e1 for a number, as they do inf and nan; names begin with a letter.
        if not stem[0].isalpha() or re.match(r"(?i)(e[0-9]*$|inf|nan)", stem) or stem == OFFSET:
            stem = f"v_{stem}"
        while stem in seen:
            stem += "_"
        seen.add(stem)
        names += [f"{stem}.{i}" for i in range(count)]
    return names


def exported(program: Program) -> tuple[Program, list[str]]:
    """The program as files have it, and its column names: the objective's constant is a column of its own."""
    if program.squares is not None:
        raise QueryError(
            "a program with squares in its objective",
            needed="a linear objective",
            fix="ask for --norm linf or l1",
        )
    names = column_names(program)
    if program.offset == 0.0:
        return program, names
    more = replace(
        program,
        objective=np.append(program.objective, program.offset),
        offset=0.0,
        lower=np.append(program.lower, 1.0),
        upper=np.append(program.upper, 1.0),
        integer=np.append(program.integer, False),
        matrix=sparse.csr_array(
            (program.matrix.data, program.matrix.indices, program.matrix.indptr),
            shape=(program.rows, program.columns + 1),
        ),
    )
    return more, [*names, OFFSET]


def write_program(program: Program, path: Path) -> None:
    """Write a program as ``.mps`` (free format) or ``.lp``.

    Raises:
        QueryError: another suffix, or the file cannot be written.
    """
    writer = FORMATS.get(path.suffix.casefold())
    if writer is None:
        raise QueryError(
            f"{path}: the suffix {path.suffix!r}",
            needed=f"{' or '.join(FORMATS)}",
            fix=f"write to {path.with_suffix('.mps').name}",
        )
    program, names = exported(program)
    try:
        path.write_text(writer(program, names), encoding="ascii")
    except OSError as error:
        raise QueryError(
            f"{path}: {error.strerror or error}",
            needed="a file that can be written",
            fix="check the folder and its permissions",
        ) from error


def _sides(program: Program) -> Iterator[tuple[str, str, int, float]]:
    """Rows one side at a time: (suffix of the row's name, sense, row, right-hand side)."""
    low, high = np.isfinite(program.row_lower), np.isfinite(program.row_upper)
    equal = low & high & (program.row_lower == program.row_upper)
    for row in np.flatnonzero(low | high).tolist():
        if equal[row]:
            yield "", "=", row, program.row_lower[row]
            continue
        if low[row]:
            yield "_lo" if high[row] else "", ">=", row, program.row_lower[row]
        if high[row]:
            yield "_hi" if low[row] else "", "<=", row, program.row_upper[row]


def mps_text(program: Program, names: Sequence[str]) -> str:
    """A program without a constant in its objective, in free MPS format."""
    letters = {"=": "E", ">=": "G", "<=": "L"}
    sides = list(_sides(program))
    rows = [f"r{row}{suffix}" for suffix, _, row, _ in sides]
    picked = program.matrix[[row for _, _, row, _ in sides]] if sides else program.matrix[:0]
    columns = sparse.csc_array(picked)
    lines = ["NAME milpver FREE", "ROWS", " N obj"]
    lines += [f" {letters[sense]} {name}" for name, (_, sense, _, _) in zip(rows, sides, strict=True)]
    lines.append("COLUMNS")
    data, indices, first = columns.data.tolist(), columns.indices.tolist(), columns.indptr.tolist()
    marked = False
    for j, (name, cost, whole) in enumerate(
        zip(names, program.objective.tolist(), program.integer.tolist(), strict=True)
    ):
        if whole != marked:
            lines.append(f" MARKER 'MARKER' '{'INTORG' if whole else 'INTEND'}'")
            marked = whole
        span = range(first[j], first[j + 1])
        if cost or not span:
            lines.append(f" {name} obj {cost!r}")
        lines += [f" {name} {rows[indices[k]]} {data[k]!r}" for k in span]
    if marked:
        lines.append(" MARKER 'MARKER' 'INTEND'")
    lines.append("RHS")
    lines += [
        f" RHS {name} {float(right)!r}" for name, (*_, right) in zip(rows, sides, strict=True) if right != 0
    ]
    lines.append("BOUNDS")
    for name, low, high in zip(names, program.lower.tolist(), program.upper.tolist(), strict=True):
        if low == high:
            lines.append(f" FX BND {name} {low!r}")
        elif low == -np.inf and high == np.inf:
            lines.append(f" FR BND {name}")
        else:
            lines.append(f" MI BND {name}" if low == -np.inf else f" LO BND {name} {low!r}")
            lines.append(f" PL BND {name}" if high == np.inf else f" UP BND {name} {high!r}")
    lines += ["ENDATA", ""]
    return "\n".join(lines)


def lp_text(program: Program, names: Sequence[str]) -> str:
    """A program without a constant in its objective, in the LP format of CPLEX."""
    chosen = np.flatnonzero(program.objective)
    lines = ["\\ milpver", "Minimize"]
    lines += _sum("obj", program.objective[chosen].tolist(), chosen.tolist(), names)
    lines.append("Subject To")
    matrix = program.matrix
    data, indices, first = matrix.data.tolist(), matrix.indices.tolist(), matrix.indptr.tolist()
    for suffix, sense, row, right in _sides(program):
        span = slice(first[row], first[row + 1])
        terms = _sum(f"r{row}{suffix}", data[span], indices[span], names)
        terms[-1] += f" {sense} {float(right)!r}"
        lines += terms
    lines.append("Bounds")
    for name, low, high in zip(names, program.lower.tolist(), program.upper.tolist(), strict=True):
        if low == -np.inf and high == np.inf:
            lines.append(f" {name} free")
        elif low == high:
            lines.append(f" {low!r} <= {name} <= {low!r}")
        elif low == -np.inf:
            lines.append(f" -inf <= {name} <= {high!r}")
        elif high == np.inf:
            lines.append(f" {name} >= {low!r}")
        else:
            lines.append(f" {low!r} <= {name} <= {high!r}")
    whole = [names[j] for j in np.flatnonzero(program.integer).tolist()]
    if whole:
        lines.append("Generals")
        lines += [" " + " ".join(whole[i : i + _TERMS]) for i in range(0, len(whole), _TERMS)]
    lines += ["End", ""]
    return "\n".join(lines)


def _sum(name: str, coefficients: Sequence[float], columns: Sequence[int], names: Sequence[str]) -> list[str]:
    """``name: + a x - b y ...`` over several lines; a sum of nothing is 0 times the first column."""
    terms = [
        f"{'-' if value < 0 else '+'} {abs(value)!r} {names[j]}"
        for value, j in zip(coefficients, columns, strict=True)
    ]
    if not terms:
        terms = [f"+ 0.0 {names[0]}"] if names else ["0"]
    lines = [" ".join(terms[i : i + _TERMS]) for i in range(0, len(terms), _TERMS)]
    return [f" {name}: {lines[0]}", *(f"  {line}" for line in lines[1:])]


#: Suffix of a file -> what writes it.
FORMATS = {".mps": mps_text, ".lp": lp_text}
