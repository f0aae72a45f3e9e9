"""``milpver demo``: both questions on shipped digits, the records of the answers, and a picture of them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from milpver import demo
from milpver.cli.distance import ask_distances
from milpver.cli.margin import ask_margins
from milpver.cli.question import Query, prepare
from milpver.cli.values import whole
from milpver.data import fit_inputs
from milpver.errors import QueryError, RecordError
from milpver.query import Options, parse_budget

__all__ = ["run"]

MARGINS, DISTANCES, PICTURE = "margins.jsonl", "distances.jsonl", "demo.png"

MOST_DIGITS = 60

#: Seconds for one digit and question, so that the whole stays short on a slow machine as well.
TIMEOUT = 30.0


def run(arguments: Namespace) -> int:
    """Answer both questions for some digits, and draw the answers."""
    count = whole("--count", arguments.count, least=1, most=MOST_DIGITS, example="12")
    out = _folder(Path(arguments.out))
    query = _query(count, quiet=arguments.quiet)
    budget = parse_budget(demo.BUDGET, query.network)
    say = sys.stdout.write
    try:
        say(
            f"Worst class margins of {demo.MODEL} over all removals of {demo.BUDGET} neurons (two layers),\n"
            "for digits that it gets right but is not too sure of\n\n"
        )
        margins = ask_margins(replace(query, records=out / MARGINS), budget)
        if margins.interrupted:
            return margins.code
        say("\nDistances of the same digits to the decision boundary (L-inf, grey values in [0, 1])\n\n")
        distances = ask_distances(replace(query, records=out / DISTANCES))
        if distances.interrupted:
            return distances.code
    except RecordError as error:
        # --records, which the message speaks of, is no flag of this command
        raise RecordError(error.found, needed=error.needed, fix="name another folder with --out") from error
    inputs = dict(zip(query.indices, query.inputs, strict=True))
    _write(out / PICTURE, demo.picture(query.network, inputs, margins.records, distances.records))
    say(f"\npicture: {out / PICTURE}\nrecords: {out / MARGINS}, {out / DISTANCES}\n")
    return distances.code


def _query(count: int, *, quiet: bool) -> Query:
    """The digits, as a query."""
    network, dataset = demo.shipped()
    indices = demo.choose(network, dataset, count)
    options = Options(timeout=TIMEOUT)
    prepare(options)
    chosen = dataset.inputs[np.array(indices)]
    return Query(
        network=network,
        inputs=fit_inputs(chosen, network.input_shape, layout=None, source=dataset.source),
        labels=tuple(int(dataset.labels[index]) for index in indices),
        indices=indices,
        domain=dataset.domain,
        options=options,
        quiet=quiet,
    )


def _folder(out: Path) -> Path:
    """The folder for what the demo writes; one that holds other files of these names is refused.

    Raises:
        QueryError: it cannot be made, or holds a picture that the demo did not draw.
    """
    fix = "name another folder with --out"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QueryError(
            f"--out {out}: {error.strerror or error}", needed="a folder, or a name for a new one", fix=fix
        ) from error
    if (out / PICTURE).exists() and not (out / MARGINS).exists():
        raise QueryError(
            f"--out {out} holds a {PICTURE} and no {MARGINS}",
            needed="a new folder, or one of an earlier demo",
            fix=fix,
        )
    return out


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise QueryError(
            f"{path} cannot be written ({error.strerror or error})",
            needed="a folder that can be written, with room",
            fix="name another folder with --out, or free the disk",
        ) from error
