"""Verdicts of whole batches of margin queries whose answers are plain.

Whoever finds brackets and worst masks of many inputs at once (the closed form, the compiled search) hands
them over here: the masks are replayed in float32 by one run of ONNX Runtime, the mask being an input of its
session. An input whose answer is not plain (nothing proven yet, float32 on the other side of 0 by more than
its rounding, numbers that are not finite) is left to whoever looks at inputs one by one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milpver.bounding import other_classes
from milpver.linear import Float
from milpver.query import Budget, Domain, forced_pairs
from milpver.rounding import float32_error
from milpver.run import RunContext
from milpver.verdict import Answer, Assurance, ClassBracket, Float32Margin, Status, Verdict, judge

__all__ = ["Batch", "Brackets", "verdicts"]

#: What a class's bracket is called: closed by itself, or known not to change the answer.
_STATES = (Status.OPTIMAL, Status.DECIDED)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Point inputs that are classified as labelled, and the question about them.

    Attributes:
        context: how to answer; the replay session.
        budget, domain: the question.
        inputs: float32 [n, inputs], inside of the domain.
        labels: the class of each, which is also the one predicted, int64 [n].
        indices: positions in the data file.
        values: of every node at these inputs, as ``Graph.trace`` gives them.
    """

    context: RunContext
    budget: Budget
    domain: Domain | None
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: Sequence[int]
    values: Sequence[Float]

    def part(self, chosen: slice | NDArray[np.intp]) -> Batch:
        """Some of the inputs."""
        rows = np.arange(len(self.labels))[chosen]
        return Batch(
            self.context,
            self.budget,
            self.domain,
            self.inputs[rows],
            self.labels[rows],
            [self.indices[i] for i in rows.tolist()],
            [each[rows] for each in self.values],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Brackets:
    """What is known of each input; k competing classes, in ascending order.

    Attributes:
        solver: who found it.
        assurance: what the lower bounds rest on.
        lower: of each class's margin, float64 [n, k]; -inf where nothing is proven.
        upper: smallest replayed margin of each class, float64 [n, k].
        margins: of each class under the mask with the smallest one, float64 [n, k].
        scale: the largest |logit| met, float64 [n].
        masks: that mask, Gate node -> bool [n, gates].
        nodes: of the search, int64 [n].
        seconds: spent on each input alone, float64 [n].
    """

    solver: str
    assurance: Assurance
    lower: Float
    upper: Float
    margins: Float
    scale: Float
    masks: Mapping[int, NDArray[np.bool_]]
    nodes: NDArray[np.int64]
    seconds: Float


def verdicts(batch: Batch, found: Brackets, started: float) -> dict[int, Verdict]:
    """Verdicts of the inputs that are done, by position.

    Args:
        batch: the inputs.
        found: what is known of them.
        started: when work on the batch began, ``time.perf_counter``; what of it is no input's own is shared.
    """
    context, options, budget = batch.context, batch.context.options, batch.budget
    network = context.network
    everyone = np.arange(len(batch.labels))
    competing = other_classes(batch.labels, network.graph.outputs)
    best = found.margins.min(axis=1)
    classes = competing[everyone, found.margins.argmin(axis=1)]
    logits = context.replay.outputs(batch.inputs, found.masks).astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity: NaN, which is not known
        float32 = logits[everyone, batch.labels] - logits[everyone, classes]
    lower = np.minimum(found.lower, found.upper)
    closed = best[:, None] - found.lower <= options.gap
    done = closed.all(axis=1)
    if options.decide:
        done = done | (best <= 0) | np.all(lower > 0, axis=1)
    sound = (found.lower <= found.upper).all(axis=1) & np.isfinite(found.upper).all(axis=1)
    known = np.isfinite(best) & np.isfinite(float32) & ~np.isnan(found.lower).any(axis=1)
    plain = np.flatnonzero(done & sound & known & budget.admitted(found.masks))
    answers = _judged(batch, found, plain, classes, best, float32)
    lists = [each.tolist() for each in (lower, found.upper, best, classes, float32, lower.min(axis=1))]
    states = np.where(found.upper - lower <= options.gap, 0, 1).tolist()
    constant = context.constant_fields() | {
        "question": "margin",
        "budget": budget.shown,
        "keep": forced_pairs(network, budget.kept),
        "remove": forced_pairs(network, budget.gone),
        "radius": 0.0,
        "domain": batch.domain,
        "solver": found.solver,
        "decide": options.decide,
    }
    removed = _removed(batch, found.masks)
    shared = (time.perf_counter() - started - float(found.seconds.sum())) / len(everyone)
    made = {}
    for i in plain.tolist():
        label = int(batch.labels[i])
        lows, highs, least, other, margin32, low = (each[i] for each in lists)
        proven = low > -np.inf
        made[i] = Verdict(
            **constant,
            index=int(batch.indices[i]),
            label=label,
            predicted=label,
            input_sha256=context.hashed(batch.inputs[i]),
            status=_STATES[0] if closed[i].all() else _STATES[1],
            verdict=answers[i],
            assurance=found.assurance if proven else None,
            lower=low if proven else None,
            upper=least,
            target=other,
            removed=tuple(removed[i]),
            nodes=int(found.nodes[i]),
            seconds=float(found.seconds[i]) + shared,
            witness_margin_float64=least,
            witness_margin_float32=margin32,
            classes=tuple(
                ClassBracket(each, bound if bound > -np.inf else None, met, _STATES[state])
                for each, bound, met, state in zip(competing[i].tolist(), lows, highs, states[i], strict=True)
            ),
            witness=batch.values[0][i],
            witness_float32=batch.inputs[i],
            mask={node: mask[i] for node, mask in found.masks.items()},
        )
    return made


def _removed(batch: Batch, masks: Mapping[int, NDArray[np.bool_]]) -> list[list[tuple[int | str, int]]]:
    """Each input's mask as records have it, layer by layer."""
    network = batch.context.network
    removed: list[list[tuple[int | str, int]]] = [[] for _ in batch.labels]
    for layer in network.gateable:
        if layer.node in masks:
            ((name, _),) = forced_pairs(network, [(layer.node, 0)])
            for i, gate in zip(*(each.tolist() for each in np.nonzero(masks[layer.node])), strict=True):
                removed[i].append((name, gate))
    return removed


def _judged(
    batch: Batch,
    found: Brackets,
    plain: NDArray[np.intp],
    classes: NDArray[np.int64],
    best: Float,
    float32: Float,
) -> dict[int, Answer]:
    """The verdicts of the inputs that are plain.

    Where float32 is on the same side of 0, its rounding need not be known.
    """
    robust: NDArray[np.bool_] = np.all(found.lower > 0, axis=1)
    side = np.where(robust, float32 >= 0, float32 <= 0)
    agrees = side & (robust != (best <= 0))
    answers = {}
    for i in plain.tolist():
        if agrees[i]:
            answers[i] = Answer.ROBUST if robust[i] else Answer.VULNERABLE
            continue
        masks = {node: mask[i] for node, mask in found.masks.items()}
        error = float32_error(batch.context.network, batch.values[0][i][None], masks)[0]
        off = float(error[batch.labels[i]] + error[classes[i]])
        answers[i] = judge(
            rounded=found.lower[i],
            solved=np.full_like(found.lower[i], -np.inf),
            scale=float(max(1.0, found.scale[i])),
            witness_margin=float(best[i]),
            float32=Float32Margin(float(float32[i]), off),
        )
    return answers
