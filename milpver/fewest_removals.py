"""The fewest neurons whose removal changes the prediction, exactly: a bracket of integers, and the mask.

For a set of layers let F(k) be the worst margin over all removals of at most k of their neurons. F falls with
k, so the distance is the first k with F(k) <= 0 (a tie counts as changed), and each k is a margin query in
decision mode: robust raises the lower end to k + 1, a replayed witness lowers the upper end to the number of
neurons that it removes. An attack on masks comes first; then k doubles while it is proven, then the bracket
is halved. A query that is not decided in time leaves an honest bracket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from milpver.attack.masks import MaskAttack
from milpver.bounds._tensors import TensorGraph, pick_device
from milpver.margin import margins
from milpver.network import GateableLayer, Network
from milpver.query import (
    Budget,
    BudgetGroup,
    Domain,
    Options,
    check_inputs,
    chosen_layers,
    forced_pairs,
    parse_budget,
)
from milpver.run import Clock
from milpver.verdict import Answer, Assurance, LayerBracket, Status, Verdict

__all__ = ["pruning_distances"]

#: Inputs that are attacked together.
_BATCH = 64
#: What a lower end rests on, the weakest last.
_STRENGTH = (Assurance.CLOSED_FORM, Assurance.ROUNDED, Assurance.SOLVER)


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """One set of layers.

    Attributes:
        network: whose layers.
        layers: those that neurons are removed from.
        forced: what has to stay, and what goes in every mask.
        label: of this question in records.
    """

    network: Network
    layers: tuple[GateableLayer, ...]
    forced: Budget
    label: int | str

    @property
    def least(self) -> int:
        """Neurons that go in every mask."""
        return len(self.forced.gone)

    @property
    def most(self) -> int:
        """Neurons that may be removed at most: no layer goes whole where it is asked about alone."""
        nodes = [layer.node for layer in self.layers]
        elsewhere = sum(node not in nodes for node, _ in self.forced.gone)
        kept = sum(node in nodes for node, _ in self.forced.kept)
        width = sum(layer.width for layer in self.layers)
        return elsewhere + min(width - 1, width - kept)

    def budget(self, count: int) -> Budget:
        """At most ``count`` neurons, what is forced among them."""
        nodes = tuple(layer.node for layer in self.layers)
        elsewhere = [node for node, _ in self.forced.gone if node not in nodes]
        groups = [BudgetGroup((node,), elsewhere.count(node)) for node in dict.fromkeys(elsewhere)]
        if count > len(elsewhere):
            groups.append(BudgetGroup(nodes, count - len(elsewhere)))
        groups.sort(key=lambda group: group.nodes)
        labels = ",".join(layer.label for layer in self.layers)
        return replace(self.forced, groups=tuple(groups), per_layer=(), text=f"{count} of layers {labels}")

    def exactly(self, removed: dict[int, NDArray[np.bool_]]) -> Budget:
        """One mask, and no other."""
        nodes = [node for node in removed if removed[node].any()]
        gone = [(node, int(gate)) for node in nodes for gate in np.flatnonzero(removed[node])]
        kept = [(node, int(gate)) for node in nodes for gate in np.flatnonzero(~removed[node])]
        groups = tuple(BudgetGroup((node,), int(removed[node].sum())) for node in sorted(nodes))
        return Budget(groups, (), tuple(sorted(kept)), tuple(sorted(gone)), "one mask")


def pruning_distances(
    network: Network,
    inputs: NDArray[np.float32],
    labels: Sequence[int],
    *,
    layers: str | Sequence[int | str] | None = None,
    total: bool = False,
    keep: str | Sequence[tuple[int | str, int]] | None = None,
    remove: str | Sequence[tuple[int | str, int]] | None = None,
    domain: Domain | None = None,
    options: Options | None = None,
    indices: Sequence[int] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Verdict]:
    """Pruning distances of many inputs, each as soon as it is done.

    Args:
        network: the classifier.
        inputs: float32 [n, inputs], in the data's units.
        labels: the class of each input.
        layers: numbers or names of the layers; None: all gateable fully connected layers.
        total: count removals over all these layers together; else each layer is asked about by itself, and
            the distance is the smallest of theirs.
        keep: neurons that have to stay, as ``--keep`` takes them.
        remove: neurons that are removed in every mask; they count.
        domain: limits of the inputs.
        options: how to answer; ``timeout`` is for one input with all its layers.
        indices: positions in the data file, for the records.
        should_stop: asked now and then; True ends the run with the status ``interrupted``.

    Returns:
        Verdicts with integers for ``lower`` and ``upper``, and the mask in ``removed``; ``layers`` has the
        bracket of each layer. ``infeasible`` where no removal changes the prediction; ``upper`` is None then.

    Raises:
        QueryError: layers, neurons, labels or inputs that make no sense for this network.
        PluginError: an unknown solver, encoding or bounding.
    """
    options = replace(options or Options(), decide=True, pre_screen="none")
    chosen = chosen_layers(network, layers)
    forced = replace(parse_budget(None, network, keep=keep, remove=remove), groups=())
    check_inputs(network, inputs, labels, domain)
    parts = [chosen] if total else [(layer,) for layer in chosen]
    questions = [_Question(network, part, forced, "total" if total else _label(part[0])) for part in parts]
    for question in questions:
        question.budget(question.least)  # what cannot be is refused before anything runs
    requested = tuple(_label(layer) for layer in chosen)
    places = indices if indices is not None else range(len(inputs))
    # One that no input could mend is an error of the run, not of its first input.
    for _ in margins(network, inputs[:0], (), budget=forced, domain=domain, options=options):
        pass
    for start in range(0, len(inputs), _BATCH):
        part = slice(start, start + _BATCH)
        clocks = [Clock(options.timeout) for _ in inputs[part]]
        hints = [_attacked(question, inputs[part], labels[part], options) for question in questions]
        share = clocks[0].seconds / len(clocks)
        for i, x in enumerate(inputs[part]):
            search = _Search(network, x, int(labels[start + i]), domain, options, should_stop, share)
            yield search.verdict(
                questions, [hint[i] for hint in hints], requested, index=int(places[start + i]), total=total
            )


def _label(layer: GateableLayer) -> int | str:
    return layer.label if layer.channels else layer.number


def _attacked(
    question: _Question, inputs: NDArray[np.float32], labels: Sequence[int], options: Options
) -> list[dict[int, NDArray[np.bool_]] | None]:
    """For each input the smallest mask found that changes its prediction, or None.

    Greedy removal under budgets of 1, 2, 4, ... neurons, of all inputs that have no mask yet.
    """
    found: list[dict[int, NDArray[np.bool_]] | None] = [None] * len(inputs)
    forced = question.forced
    if forced.kept or forced.gone:
        return found
    tensors = TensorGraph(question.network.graph, pick_device(options.device))
    todo = np.arange(len(inputs))
    count = 1
    clock = Clock(options.timeout * len(inputs) / 4)
    while len(todo) and count <= question.most and clock.remaining > 0:
        attack = MaskAttack(
            tensors,
            inputs[todo].astype(np.float64),
            np.array(labels, dtype=np.int64)[todo],
            question.budget(count),
        )
        outcome = attack.greedy()
        hit = outcome.margins <= 0
        for k in np.flatnonzero(hit):
            found[todo[k]] = {node: gone[k] for node, gone in outcome.removed.items()}
        todo = todo[~hit]
        count *= 2
    return found


@dataclass(slots=True, eq=False)
class _Bracket:
    """What is known of one question: ``lower <= distance <= upper``, and the witness that gives ``upper``."""

    lower: int
    upper: int | None
    witness: Verdict | None
    status: Status
    message: str = ""


class _Search:
    """The work on one input."""

    def __init__(
        self,
        network: Network,
        x: NDArray[np.float32],
        label: int,
        domain: Domain | None,
        options: Options,
        should_stop: Callable[[], bool] | None,
        spent: float,
    ) -> None:
        self.network = network
        self.x = x
        self.label = label
        self.domain = domain
        self.options = options
        self.should_stop = should_stop
        self.clock = Clock(options.timeout, spent)
        self.nodes = 0
        self.engines: list[str] = []
        self.assurance = Assurance.CLOSED_FORM

    def verdict(
        self,
        questions: Sequence[_Question],
        hints: Sequence[dict[int, NDArray[np.bool_]] | None],
        requested: tuple[int | str, ...],
        *,
        index: int,
        total: bool,
    ) -> Verdict:
        """Answer all questions; the smallest of the distances is the input's."""
        clean = self.ask(Budget(), self.clock.remaining, index)
        brackets: list[_Bracket] = []
        if clean.status is not Status.MISCLASSIFIED:
            for k, (question, hint) in enumerate(zip(questions, hints, strict=True)):
                seconds = self.clock.remaining / (len(questions) - k)
                brackets.append(self.bracket(question, hint, clean, seconds, index))
        finite = [each for each in brackets if each.status is not Status.INFEASIBLE]
        best = min(
            (each for each in finite if each.upper is not None),
            key=lambda each: each.upper or 0,
            default=None,
        )
        lower = min((each.lower for each in finite), default=None)
        upper = None if best is None else best.upper
        if clean.status is Status.MISCLASSIFIED:
            status = Status.MISCLASSIFIED
        elif not finite:
            status = Status.INFEASIBLE
        elif lower == upper:
            status = Status.OPTIMAL
        else:
            open_ = [each.status for each in finite if each.status is not Status.OPTIMAL]
            status = Status.INTERRUPTED if Status.INTERRUPTED in open_ else open_[0]
        base = clean if best is None or best.witness is None else best.witness
        known = best is not None
        return replace(
            base,
            index=index,
            question="pruning-distance",
            budget=None,
            radius=None,
            decide=None,
            verdict=None,
            status=status,
            assurance=self.assurance if lower is not None else None,
            lower=lower,
            upper=upper,
            target=base.target if known else None,
            removed=base.removed if known else None,
            mask=base.mask if known else None,
            witness=base.witness if known else None,
            witness_float32=base.witness_float32 if known else None,
            witness_margin_float64=base.witness_margin_float64 if known else None,
            witness_margin_float32=base.witness_margin_float32 if known else None,
            keep=() if not questions else forced_pairs(self.network, questions[0].forced.kept),
            remove=() if not questions else forced_pairs(self.network, questions[0].forced.gone),
            timeout=self.options.timeout,
            nodes=self.nodes,
            seconds=self.clock.seconds,
            solver=self.engines[-1] if self.engines else clean.solver,
            classes=(),
            requested_layers=requested,
            total=total,
            layers=tuple(
                LayerBracket(
                    question.label,
                    each.lower,
                    each.upper,
                    each.status,
                    None if each.witness is None else each.witness.removed,
                )
                for question, each in zip(questions, brackets, strict=False)
            ),
            message=next((each.message for each in brackets if each.message), ""),
        )

    def ask(self, budget: Budget, seconds: float, index: int) -> Verdict:
        """One margin query in decision mode."""
        options = replace(self.options, timeout=max(seconds, 1e-3))
        found = next(
            margins(
                self.network,
                self.x[None],
                [self.label],
                budget=budget,
                domain=self.domain,
                options=options,
                indices=[index],
                should_stop=self.should_stop,
            )
        )
        self.nodes += found.nodes
        if found.solver not in ("bounds", *self.engines):
            self.engines.append(found.solver)
        return found

    def bracket(
        self,
        question: _Question,
        hint: dict[int, NDArray[np.bool_]] | None,
        clean: Verdict,
        seconds: float,
        index: int,
    ) -> _Bracket:
        """Close one question's bracket, as far as the time allows; ``clean``: the answer without removals."""
        clock = Clock(seconds)
        found = _Bracket(question.least, None, None, Status.TIMEOUT)
        if question.least == 0:
            self.take(found, clean, 0)
        if hint is not None and found.upper is None:
            self.note(found, self.ask(question.exactly(hint), clock.remaining, index))
        end = question.most + 1  # budgets from here on are not asked about: too many, or not decided in time
        reach = 0
        while found.lower < (top := end if found.upper is None else min(end, found.upper)):
            if clock.remaining <= 0:
                break
            count = min(found.lower + reach, top - 1)
            if found.upper is not None:
                count = min(count, (found.lower + top - 1) // 2)
            answer = self.ask(question.budget(count), clock.remaining, index)
            reach = 2 * reach + 1
            if not self.take(found, answer, count):
                end = count
                if answer.status in (Status.INTERRUPTED, Status.UNAVAILABLE, Status.ERROR):
                    break
        # beyond a budget that was not decided a smaller witness, or a proof, may still be found
        while found.upper is not None and end < found.upper - 1 and clock.remaining > 0:
            answer = self.ask(question.budget(found.upper - 1), clock.remaining, index)
            if not self.take(found, answer, found.upper - 1) or found.lower >= found.upper:
                break
        if found.upper is not None and found.lower >= found.upper:
            found.status, found.message = Status.OPTIMAL, ""
        elif found.lower > question.most:
            found.status, found.message = Status.INFEASIBLE, ""
        return found

    def take(self, found: _Bracket, answer: Verdict, count: int) -> bool:
        """Take over what is known of budgets of ``count``; whether anything is."""
        if answer.verdict is Answer.ROBUST:
            found.lower = max(found.lower, count + 1)
            if answer.assurance is not None:
                self.assurance = max(self.assurance, answer.assurance, key=_STRENGTH.index)
            return True
        if self.note(found, answer):
            return True
        found.status, found.message = answer.status, answer.message
        return False

    @staticmethod
    def note(found: _Bracket, answer: Verdict) -> bool:
        """Take over a witness; whether there is one that changes the prediction."""
        if answer.verdict is not Answer.VULNERABLE or answer.removed is None:
            return False
        if found.upper is None or len(answer.removed) < found.upper:
            found.upper, found.witness = len(answer.removed), answer
        return True
