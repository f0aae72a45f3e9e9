"""``milpver pruning-distance``: the fewest neurons whose removal changes each input's prediction."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from milpver.cli.margin import removed_neurons
from milpver.cli.question import Finding, Outcome, Query, Record, answer, read_query
from milpver.cli.table import Column, seconds
from milpver.fewest_removals import pruning_distances
from milpver.query import chosen_layers, forced_pairs, parse_budget
from milpver.verdict import Status, Verdict

__all__ = ["FINDING", "ask_pruning_distances", "run"]


def run(arguments: Namespace) -> int:
    """Answer the question for all inputs chosen."""
    query = read_query(arguments)
    return ask_pruning_distances(
        query, layers=arguments.layers, total=arguments.total, keep=arguments.keep, remove=arguments.remove
    ).code


def ask_pruning_distances(
    query: Query,
    *,
    layers: str | None = None,
    total: bool = False,
    keep: str | None = None,
    remove: str | None = None,
) -> Outcome:
    """Pruning distances of a query's inputs, recorded and shown."""
    network = query.network

    def ask(
        inputs: NDArray[np.float32],
        labels: Sequence[int],
        indices: Sequence[int],
        should_stop: Callable[[], bool],
    ) -> Iterator[Verdict]:
        return pruning_distances(
            network,
            inputs,
            labels,
            layers=layers,
            total=total,
            keep=keep,
            remove=remove,
            domain=query.domain,
            options=query.options,
            indices=indices,
            should_stop=should_stop,
        )

    forced = parse_budget(None, network, keep=keep, remove=remove)
    own = {
        "requested_layers": [
            layer.label if layer.channels else layer.number for layer in chosen_layers(network, layers)
        ],
        "total": total,
        "keep": forced_pairs(network, forced.kept),
        "remove": forced_pairs(network, forced.gone),
    }
    return answer(query, FINDING, own, ask)


def _word(record: Record) -> str:
    return str(record["status"])


def _span(lower: int | None, upper: int | None) -> str:
    """``3`` where it is known, ``2..4``, ``>=5``, or nothing."""
    if lower is None:
        return ""
    if upper is None:
        return f">={lower}"
    return str(lower) if lower == upper else f"{lower}..{upper}"


def _layers(record: Record) -> str:
    """``1:4 2:>=7 3:none``: the brackets by layer."""
    return " ".join(
        f"{each['layer']}:"
        + ("none" if each["status"] == Status.INFEASIBLE else _span(each["lower"], each["upper"]))
        for each in record["layers"]
    )


def _row(record: Record) -> Sequence[str]:
    return (
        str(record["label"]),
        str(record["predicted"]),
        _word(record),
        _span(record["lower"], record["upper"]),
        "" if record["target"] is None else str(record["target"]),
        removed_neurons(record),
        _layers(record),
        str(record["nodes"]),
        seconds(record["seconds"]),
        str(record["solver"]),
    )


def _summary(records: Sequence[Record]) -> Iterator[str]:
    closed = Counter(record["upper"] for record in records if record["status"] == Status.OPTIMAL)
    if closed:
        parts = (f"{count} at {distance}" for distance, count in sorted(closed.items()))
        yield f"neurons whose removal changes the prediction: {', '.join(parts)} (inputs at a distance)"


FINDING = Finding(
    question="pruning-distance",
    columns=(
        Column("label"),
        Column("pred"),
        Column("status", right=False, least=7),
        Column("neurons"),
        Column("target"),
        Column("removed", right=False, least=7),
        Column("by layer", right=False, least=8),
        Column("nodes"),
        Column("sec"),
        Column("solver", right=False, least=6),
    ),
    row=_row,
    word=_word,
    summary=_summary,
)
