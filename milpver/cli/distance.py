"""``milpver distance``: how far each input is from the decision boundary."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from milpver.cli.question import Finding, Outcome, Query, Record, answer, read_query
from milpver.cli.table import Column, rounded, seconds
from milpver.cli.values import whole
from milpver.distance import distances, pruned_network
from milpver.verdict import Status, Verdict

__all__ = ["FINDING", "ask_distances", "run"]

_MOST_CLASSES = 10**9


def run(arguments: Namespace) -> int:
    """Answer the question for all inputs chosen."""
    target = (
        None
        if arguments.target is None
        else whole("--target", arguments.target, least=0, most=_MOST_CLASSES, example="3")
    )
    query = read_query(arguments)
    return ask_distances(
        query, method=arguments.method, norm=arguments.norm, target=target, remove=arguments.remove
    ).code


def ask_distances(
    query: Query,
    *,
    method: str = "direct",
    norm: str = "linf",
    target: int | None = None,
    remove: str | None = None,
) -> Outcome:
    """Distances of a query's inputs, recorded and shown; of the network without some neurons, if so asked."""
    pruned, pairs = pruned_network(query.network, remove)
    query = replace(query, network=pruned)

    def ask(
        inputs: NDArray[np.float32],
        labels: Sequence[int],
        indices: Sequence[int],
        should_stop: Callable[[], bool],
    ) -> Iterator[Verdict]:
        found = distances(
            query.network,
            inputs,
            labels,
            domain=query.domain,
            options=query.options,
            method=method,
            norm=norm,
            target=target,
            indices=indices,
            should_stop=should_stop,
        )
        return (replace(verdict, remove=pairs) for verdict in found)

    own = {"norm": norm, "method": method, "requested_target": target, "remove": pairs}
    return answer(query, FINDING, own, ask)


def _word(record: Record) -> str:
    return str(record["status"])


def _row(record: Record) -> Sequence[str]:
    adversarial = record["adversarial_label"]
    return (
        str(record["label"]),
        str(record["predicted"]),
        _word(record),
        rounded(record["lower"], 6),
        rounded(record["upper"], 6),
        "" if adversarial is None else str(adversarial),
        str(record["nodes"]),
        seconds(record["seconds"]),
        str(record["solver"]),
    )


def _summary(records: Sequence[Record]) -> Iterator[str]:
    closed = {
        record["index"]: record["upper"]
        for record in records
        if record["status"] == Status.OPTIMAL and record["upper"] is not None
    }
    if closed:
        nearest, farthest = min(closed, key=closed.__getitem__), max(closed, key=closed.__getitem__)
        yield (
            f"distance: {closed[nearest]:.6f} at least (index {nearest}), median "
            f"{median(closed.values()):.6f}, {closed[farthest]:.6f} at most (index {farthest}); "
            f"{len(closed)} closed brackets"
        )


FINDING = Finding(
    question="distance",
    columns=(
        Column("label"),
        Column("pred"),
        Column("status", right=False, least=7),
        Column("lower"),
        Column("upper"),
        Column("adv."),
        Column("nodes"),
        Column("sec"),
        Column("solver", right=False, least=6),
    ),
    row=_row,
    word=_word,
    summary=_summary,
)
