"""Margin queries that the closed form answers, whole batches at a time.

The values come from ``closed_form.ClosedForm``, the verdicts from ``batch_answers``.
"""

from __future__ import annotations

import time

import numpy as np

from milpver.batch_answers import Batch, Brackets, verdicts
from milpver.closed_form import ClosedForm
from milpver.verdict import Assurance, Verdict

__all__ = ["closed_answers"]

#: Shares of neurons in one batch at most: 8 bytes each, several times.
_MOST_SHARES = 1 << 22


def closed_answers(form: ClosedForm, batch: Batch) -> dict[int, Verdict]:
    """Verdicts of point inputs, position among them -> verdict, for those that are answered."""
    width = form.graph.outputs * max(form.graph.nodes[form.node].size, form.graph.outputs**2)
    step = max(1, _MOST_SHARES // width)
    found: dict[int, Verdict] = {}
    for start in range(0, len(batch.labels), step):
        answers = _answers(form, batch.part(slice(start, start + step)))
        found |= {start + i: verdict for i, verdict in answers.items()}
    return found


def _answers(form: ClosedForm, batch: Batch) -> dict[int, Verdict]:
    """One batch of ``closed_answers``."""
    started = time.perf_counter()
    worst = form.worst(batch.values, batch.labels)
    everyone = np.arange(len(batch.labels))
    # The mask with the smallest margin, what is removed for certain alone where nothing is below that.
    chosen = worst.margins.min(axis=2).argmin(axis=1)
    forced = form.budget.forced(form.node, worst.masks.shape[2])[1]
    masks = np.where((chosen == 0)[:, None], forced, worst.masks[everyone, np.maximum(chosen - 1, 0)])
    found = Brackets(
        solver="closed-form",
        assurance=Assurance.CLOSED_FORM,
        lower=worst.lower,
        upper=worst.margins.min(axis=1),
        margins=worst.margins[everyone, chosen],
        scale=worst.scale,
        masks={form.node: masks},
        nodes=np.zeros(len(everyone), dtype=np.int64),
        seconds=np.zeros(len(everyone)),
    )
    return verdicts(batch, found, started)
