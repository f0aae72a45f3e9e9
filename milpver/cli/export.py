"""``milpver export``: the program of one input and one competing class, for any solver."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from milpver.cli.question import read_query
from milpver.cli.values import number, whole
from milpver.errors import QueryError
from milpver.query import parse_budget
from milpver.transfer import export_query

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Write the program and its meaning."""
    radius = number("--radius", arguments.radius, example="0.01")
    target = (
        None
        if arguments.target is None
        else whole("--target", arguments.target, least=0, most=10**9, example="3")
    )
    query = read_query(arguments)
    if len(query.indices) != 1:
        raise QueryError(
            f"no --index, and {len(query.indices)} inputs"
            if arguments.index is None
            else f"--index {arguments.index} names {len(query.indices)} inputs",
            needed="one input a program",
            fix="write e.g. --index 0",
        )
    found = export_query(
        query.network,
        query.inputs[0],
        query.labels[0],
        Path(arguments.out),
        index=query.indices[0],
        budget=parse_budget(arguments.budget, query.network, keep=arguments.keep, remove=arguments.remove),
        radius=radius,
        domain=query.domain,
        target=target,
        options=query.options,
        mean=query.extra["mean"],
        std=query.extra["std"],
    )
    sys.stdout.write(
        f"{found.program}: minimise f_{found.label} - f_{found.target} of input {query.indices[0]}, "
        f"{found.columns} columns ({found.integers} integer), {found.rows} rows; at least {found.lower:.6g}\n"
        f"{found.meaning}: what it means; `milpver import-solution {found.program} FILE` checks a solution\n"
    )
    return 0
