"""Margin queries that the closed form answers, whole batches at a time.

The values come from ``closed_form.ClosedForm``; the worst mask of every input is replayed in float32 by one
run of ONNX Runtime, the mask being an input of its session. An input whose answer is not plain (the bracket
wider than the gap, float32 on the other side of 0 by more than its rounding, numbers that are not finite) is
left to whoever looks at inputs one by one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milpver.closed_form import ClosedForm, Worst
from milpver.linear import Float
from milpver.query import Domain, forced_pairs
from milpver.rounding import float32_error
from milpver.run import RunContext
from milpver.verdict import Answer, Assurance, ClassBracket, Float32Margin, Status, Verdict, judge

__all__ = ["closed_answers"]

#: Shares of neurons in one batch at most: 8 bytes each, several times.
_MOST_SHARES = 1 << 22
#: What a class's bracket is called: closed by itself, or known to lie above the smallest margin.
_STATES = (Status.OPTIMAL, Status.DECIDED)


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The worst mask of each input of a batch, replayed.

    Attributes:
        x: the inputs, float64 [n, inputs].
        labels, classes: the class of each, and the one that comes closest, int64 [n].
        masks: what is removed, bool [n, gates].
        best: ``f_label - f_class`` in float64, float64 [n].
        float32: the same by ONNX Runtime in float32.
    """

    x: Float
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]
    best: Float
    float32: Float


def closed_answers(
    form: ClosedForm,
    context: RunContext,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    indices: Sequence[int],
    values: Sequence[Float],
    domain: Domain | None,
) -> dict[int, Verdict]:
    """Verdicts of point inputs that are classified as labelled.

    Args:
        form: the query.
        context: how to answer; the replay session.
        inputs: float32 [n, inputs], inside of the domain.
        labels: the class of each, which is also the one predicted.
        indices: positions in the data file.
        values: of every node at these inputs, as ``Graph.trace`` gives them.
        domain: limits of the inputs, for the records.

    Returns:
        Position among the inputs -> verdict, for those that are answered.
    """
    width = form.graph.outputs * max(form.graph.nodes[form.node].size, form.graph.outputs**2)
    step = max(1, _MOST_SHARES // width)
    found: dict[int, Verdict] = {}
    for start in range(0, len(inputs), step):
        part = slice(start, start + step)
        answers = _answers(
            form, context, inputs[part], labels[part], indices[part], [each[part] for each in values], domain
        )
        found |= {start + i: verdict for i, verdict in answers.items()}
    return found


def _answers(
    form: ClosedForm,
    context: RunContext,
    inputs: NDArray[np.float32],
    labels: NDArray[np.int64],
    indices: Sequence[int],
    values: Sequence[Float],
    domain: Domain | None,
) -> dict[int, Verdict]:
    """One batch of ``closed_answers``."""
    started = time.perf_counter()
    network, budget, gap = context.network, form.budget, context.options.gap
    worst = form.worst(values, labels)
    everyone = np.arange(len(labels))
    upper = worst.margins.min(axis=1)
    # The mask with the smallest margin, what is removed for certain alone where nothing is below that.
    chosen = worst.margins.min(axis=2).argmin(axis=1)
    attained = worst.margins[everyone, chosen]
    target, best = attained.argmin(axis=1), attained.min(axis=1)
    forced = budget.forced(form.node, worst.masks.shape[2])[1]
    masks = np.where((chosen == 0)[:, None], forced, worst.masks[everyone, np.maximum(chosen - 1, 0)])
    classes = target + (target >= labels)
    logits = context.replay.outputs(inputs, {form.node: masks}).astype(np.float64)
    float32 = logits[everyone, labels] - logits[everyone, classes]
    replayed = _Found(values[0], labels, classes, masks, best, float32)
    plain = _plain(form, worst, replayed, gap)
    verdicts = _judged(form, context, worst, replayed, plain)
    (number, _), *_ = forced_pairs(network, [(form.node, 0)])
    below = np.minimum(worst.lower, upper)
    lists = [each.tolist() for each in (below, upper, best, classes, float32, below.min(axis=1))]
    states = np.where(upper - worst.lower <= gap, 0, 1).tolist()
    others = [[k for k in range(form.graph.outputs) if k != label] for label in range(form.graph.outputs)]
    constant = context.constant_fields() | {
        "question": "margin",
        "budget": budget.shown,
        "keep": forced_pairs(network, budget.kept),
        "remove": forced_pairs(network, budget.gone),
        "radius": 0.0,
        "domain": domain,
        "status": Status.OPTIMAL,
        "assurance": Assurance.CLOSED_FORM,
        "nodes": 0,
        "solver": "closed-form",
        "decide": context.options.decide,
    }
    removed: list[list[tuple[int | str, int]]] = [[] for _ in everyone]
    for i, gate in zip(*(each.tolist() for each in np.nonzero(masks)), strict=True):
        removed[i].append((number, gate))
    seconds = (time.perf_counter() - started) / len(labels)
    found = {}
    for i in np.flatnonzero(plain).tolist():
        label = int(labels[i])
        lows, highs, least, other, margin32, low = (each[i] for each in lists)
        brackets = tuple(map(ClassBracket, others[label], lows, highs, map(_STATES.__getitem__, states[i])))
        found[i] = Verdict(
            **constant,
            index=int(indices[i]),
            label=label,
            predicted=label,
            input_sha256=context.hashed(inputs[i]),
            verdict=verdicts[i],
            lower=low,
            upper=least,
            target=other,
            removed=tuple(removed[i]),
            seconds=seconds,
            witness_margin_float64=least,
            witness_margin_float32=margin32,
            classes=brackets,
            witness=values[0][i],
            witness_float32=inputs[i],
            mask={form.node: masks[i]},
        )
    return found


def _plain(form: ClosedForm, worst: Worst, found: _Found, gap: float) -> NDArray[np.bool_]:
    """Inputs with nothing to look into: finite, admissible, no class open, no bound refuted; bool [n]."""
    finite = np.isfinite(worst.lower).all(axis=1) & np.isfinite(worst.margins).all(axis=(1, 2))
    finite &= np.isfinite(worst.scale) & np.isfinite(found.float32)
    kept, gone = form.budget.forced(form.node, found.masks.shape[1])
    admitted = found.masks.sum(axis=1) <= form.budget.groups[0].removable
    admitted &= ~(found.masks & kept).any(axis=1) & (found.masks | ~gone).all(axis=1)
    closed = (found.best[:, None] - worst.lower <= gap).all(axis=1)
    sound = (worst.lower <= worst.margins.min(axis=1)).all(axis=1)
    result: NDArray[np.bool_] = finite & admitted & closed & sound
    return result


def _judged(
    form: ClosedForm, context: RunContext, worst: Worst, found: _Found, plain: NDArray[np.bool_]
) -> list[Answer]:
    """The verdict of each input.

    Where a bracket is closed and float32 is on the same side of 0, its rounding need not be known.
    """
    robust: NDArray[np.bool_] = np.all(worst.lower > 0, axis=1)
    side: NDArray[np.bool_] = np.where(robust, found.float32 >= 0, found.float32 <= 0)
    agrees: NDArray[np.bool_] = side & (robust != (found.best <= 0))
    names = [Answer.ROBUST if each else Answer.VULNERABLE for each in robust.tolist()]
    verdicts = [name if good else Answer.UNKNOWN for name, good in zip(names, agrees, strict=True)]
    for i in np.flatnonzero(~agrees & plain).tolist():
        error = float32_error(context.network, found.x[i][None], {form.node: found.masks[i]})[0]
        verdicts[i] = judge(
            rounded=worst.lower[i],
            solved=np.full_like(worst.lower[i], -np.inf),
            scale=float(max(1.0, worst.scale[i])),
            witness_margin=float(found.best[i]),
            float32=Float32Margin(
                float(found.float32[i]), float(error[found.labels[i]] + error[found.classes[i]])
            ),
        )
    return verdicts
