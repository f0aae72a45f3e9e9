"""``milpver margin``: worst class margins over all prunings within a budget, and all inputs of a ball."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from milpver.cli.question import Finding, Outcome, Query, Record, answer, read_query
from milpver.cli.table import Column, rounded, seconds
from milpver.cli.values import number
from milpver.margin import margins
from milpver.query import Budget, forced_pairs, parse_budget
from milpver.verdict import Answer, Status, Verdict

__all__ = ["FINDING", "ask_margins", "removed_neurons", "run"]


def run(arguments: Namespace) -> int:
    """Answer the question for all inputs chosen."""
    radius = number("--radius", arguments.radius, example="0.01")
    query = read_query(arguments, decide=arguments.decide)
    query = replace(query, options=replace(query.options, pre_screen=arguments.pre_screen))
    budget = parse_budget(arguments.budget, query.network, keep=arguments.keep, remove=arguments.remove)
    return ask_margins(query, budget, radius).code


def ask_margins(query: Query, budget: Budget, radius: float = 0.0) -> Outcome:
    """Worst margins of a query's inputs, recorded and shown."""

    def ask(
        inputs: NDArray[np.float32],
        labels: Sequence[int],
        indices: Sequence[int],
        should_stop: Callable[[], bool],
    ) -> Iterator[Verdict]:
        return margins(
            query.network,
            inputs,
            labels,
            budget=budget,
            radius=radius,
            domain=query.domain,
            options=query.options,
            indices=indices,
            should_stop=should_stop,
        )

    own = {
        "budget": budget.shown,
        "keep": forced_pairs(query.network, budget.kept),
        "remove": forced_pairs(query.network, budget.gone),
        "radius": radius,
        "decide": query.options.decide,
    }
    return answer(query, FINDING, own, ask)


def _word(record: Record) -> str:
    """The verdict; or why there is none, where the input is not the network's own class."""
    if record["status"] == Status.MISCLASSIFIED:
        return "misclassified"
    return str(record["verdict"])


def _verdict(record: Record) -> str:
    """The verdict, and why the run ended where that was a limit or a mishap."""
    word, status = _word(record), record["status"]
    expected = (Status.OPTIMAL, Status.DECIDED, Status.MISCLASSIFIED)
    return word if status in expected else f"{word} ({status})"


def removed_neurons(record: Record) -> str:
    """``1:3,17 2:5``: layers from 1, neurons from 0."""
    pairs = record["removed"]
    if pairs is None:
        return ""
    layers = groupby(pairs, key=lambda pair: pair[0])
    return (
        " ".join(f"{layer}:{','.join(str(neuron) for _, neuron in found)}" for layer, found in layers) or "-"
    )


def _row(record: Record) -> Sequence[str]:
    return (
        str(record["label"]),
        str(record["predicted"]),
        _verdict(record),
        rounded(record["lower"], 4),
        rounded(record["upper"], 4),
        "" if record["target"] is None else str(record["target"]),
        removed_neurons(record),
        str(record["nodes"]),
        seconds(record["seconds"]),
        str(record["solver"]),
    )


def _summary(records: Sequence[Record]) -> Iterator[str]:
    robust = sum(record["verdict"] == Answer.ROBUST for record in records)
    wrong = sum(record["status"] == Status.MISCLASSIFIED for record in records)
    yield (
        f"verified accuracy: {100 * robust / len(records):.2f} % "
        f"({robust} robust of {len(records)}, {wrong} of them misclassified)"
    )


FINDING = Finding(
    question="margin",
    columns=(
        Column("label"),
        Column("pred"),
        Column("verdict", right=False, least=10),
        Column("lower"),
        Column("upper"),
        Column("target"),
        Column("removed", right=False, least=7),
        Column("nodes"),
        Column("sec"),
        Column("solver", right=False, least=6),
    ),
    row=_row,
    word=_word,
    summary=_summary,
)
