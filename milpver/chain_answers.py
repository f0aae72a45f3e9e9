"""Margin queries that the compiled search answers within its first nodes, whole batches at a time.

What a search does for one input takes a fraction of a millisecond where its attack or its first bounds settle
it, less than replaying and writing down one answer by itself; so both are done for many inputs together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from milpver.batch_answers import Batch, Brackets, verdicts
from milpver.bounding import label_margins
from milpver.search.chain import ChainSearch
from milpver.solver import Stop
from milpver.verdict import Assurance, Verdict

__all__ = ["chain_answers"]


def chain_answers(searches: Sequence[ChainSearch], batch: Batch, started: float) -> dict[int, Verdict]:
    """Verdicts of point inputs whose searches have finished, by position among all.

    Args:
        searches: one an input, settled.
        batch: the inputs.
        started: when work on the batch began, ``time.perf_counter``.
    """
    done = np.array([i for i, search in enumerate(searches) if search.finished is not None], dtype=np.intp)
    if not len(done):
        return {}
    part = batch.part(done)
    found = verdicts(part, _brackets([searches[i] for i in done], part), started)
    return {int(done[i]): verdict for i, verdict in found.items()}


def _brackets(searches: Sequence[ChainSearch], batch: Batch) -> Brackets:
    """What finished searches have proven, their masks replayed: each class's best, or the best of all alone.

    The first mask of each input removes nothing but what is removed for certain.
    """
    graph, decide = batch.context.network.graph, batch.context.options.decide
    least = batch.budget.least(graph)
    met = [search.candidates(nearest=decide) for search in searches]
    repeat = 1 + len(next(iter(met[0].values())))
    masks: dict[int, NDArray[np.bool_]] = {
        node: np.stack([np.concatenate([gone[None], each[node]]) for each in met])
        for node, gone in least.items()
    }
    flat = {node: each.reshape(-1, each.shape[2]) for node, each in masks.items()}
    behind = range(min(masks) + 1, len(graph.nodes))
    logits = graph.resumed(batch.values, flat, behind, repeat).reshape(len(searches), repeat, -1)
    margins = label_margins(logits, batch.labels)
    everyone = np.arange(len(searches))
    chosen = margins.min(axis=2).argmin(axis=1)
    results = [search.result(search.finished or Stop.OPTIMAL) for search in searches]
    return Brackets(
        solver="bab",
        assurance=Assurance.ROUNDED,
        lower=np.stack([result.lower for result in results]),
        upper=margins.min(axis=1),
        margins=margins[everyone, chosen],
        scale=np.abs(logits).reshape(len(searches), -1).max(axis=1),
        masks={node: each[everyone, chosen] for node, each in masks.items()},
        nodes=np.array([result.nodes for result in results]),
        seconds=np.array([search.seconds for search in searches]),
    )
