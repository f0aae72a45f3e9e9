"""A campaign's results for other programs: csv, jsonl or parquet, streamed from the store.

csv and parquet have a column for each field below; what is no number or text stands there as JSON. jsonl has
all of a record, the witness's input included.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from milpver.errors import DataError, QueryError, SolverUnavailableError
from milpver.registry import near

__all__ = ["COLUMNS", "FORMATS", "write"]

FORMATS = ("csv", "jsonl", "parquet")

#: Fields of csv and parquet, and their types.
COLUMNS: Mapping[str, type] = {
    "campaign": str,
    "network": str,
    "data": str,
    "name": str,
    "kind": str,
    "parameters": str,
    "requested_solver": str,
    "encoding": str,
    "bounds": str,
    "index": int,
    "label": int,
    "answered": bool,
    "predicted": int,
    "status": str,
    "verdict": str,
    "assurance": str,
    "lower": float,
    "upper": float,
    "target": int,
    "removed": str,
    "nodes": int,
    "seconds": float,
    "solver": str,
    "solver_version": str,
    "budget": str,
    "radius": float,
    "keep": str,
    "remove": str,
    "layers": str,
    "gap": float,
    "timeout": float,
    "threads": int,
    "seed": int,
    "witness_margin_float64": float,
    "witness_margin_float32": float,
    "classes": str,
    "adversarial_label": int,
    "input_sha256": str,
    "model_sha256": str,
    "milpver": str,
    "host": str,
    "at": float,
    "attempt": int,
    "message": str,
}

#: Rows that are held at a time.
_ROWS = 5000


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a file whole or not at all; its suffix says what kind.

    Args:
        path: ``.csv``, ``.jsonl`` or ``.parquet``; a file that is there is replaced.
        rows: see ``results.exported``.

    Returns:
        Number of rows.

    Raises:
        QueryError: another suffix.
        SolverUnavailableError: parquet without pyarrow.
        DataError: the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise QueryError(
            f"{path} has the suffix {path.suffix!r}",
            needed=f"one of {', '.join('.' + each for each in FORMATS)}",
            fix=near(kind, FORMATS),
        )
    part = path.with_name(f".{path.name}.part")
    try:
        count = _parquet(part, rows) if kind == "parquet" else _text(part, rows, kind)
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            needed="a folder that can be written, with room for the results",
            fix="free the disk or the permission, or name another file",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return count


def _text(path: Path, rows: Iterable[Mapping[str, Any]], kind: str) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(COLUMNS))
        if kind == "csv":
            writer.writeheader()
        for row in rows:
            if kind == "csv":
                writer.writerow(_flat(row))
            else:
                stream.write(json.dumps(row, allow_nan=False) + "\n")
            count += 1
    return count


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row; lists as JSON."""
    return {
        name: json.dumps(value) if isinstance(value := row.get(name), list | dict) else value
        for name in COLUMNS
    }


def _parquet(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise SolverUnavailableError(
            f"parquet files need pyarrow, which is not installed ({error})",
            needed="the package pyarrow",
            fix="pip install 'milpver[parquet]', or export csv or jsonl",
        ) from error
    types = {str: arrow.string(), int: arrow.int64(), float: arrow.float64(), bool: arrow.bool_()}
    schema = arrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(rows):
            columns = {name: [row[name] for row in part] for name in COLUMNS}
            writer.write_table(arrow.table(columns, schema=schema))
            count += len(part)
    return count


def _parts(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    stream = iter(rows)
    while part := [_flat(row) for row in islice(stream, _ROWS)]:
        yield part
