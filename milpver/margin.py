"""Worst-case margins over all admissible masks and all inputs of a box: the main question.

For each input: bounds of all competing classes at once; the closed form where there is one; otherwise the
classes' programs, the most endangered first, until the brackets meet, the sign is proven (``decide``), or
the time is up. Every upper bound is a replayed witness; every lower bound says what it rests on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from milpver import registry
from milpver.batch_answers import Batch
from milpver.bounding import Bounds, margin_rows
from milpver.chain_answers import chain_answers
from milpver.closed_answers import closed_answers
from milpver.closed_form import ClosedForm, closed_form_gate, worst_masks
from milpver.deviation import deviation_screen
from milpver.encoder import Encoded, encode
from milpver.errors import QueryError, SolverUnavailableError
from milpver.linear import Float
from milpver.network import Network
from milpver.program import Program
from milpver.query import Box, Budget, Domain, Options, ball, check_inputs, forced_pairs, removed_pairs
from milpver.run import Clock, RunContext, status_of
from milpver.search._tensors import torch_threads
from milpver.search.bab import MaskSearch
from milpver.search.box import BoxSearch
from milpver.search.chain import Chains, ChainSearch, chain_of, prefix_values, warm_up
from milpver.search.limits import SearchLimits, SearchResult
from milpver.solver import Stop
from milpver.verdict import (
    SOLVER_TOLERANCE,
    Answer,
    Assurance,
    ClassBracket,
    Float32Margin,
    Status,
    Verdict,
    judge,
)
from milpver.witness import RejectedWitnessError, Witness, check_float32, evaluate

__all__ = ["margins"]

#: Inputs whose bounds are computed together.
BATCH = 32
#: The same where the closed form answers, which needs no more than intervals, or brief compiled searches do.
CLOSED_FORM_BATCH, CHAIN_BATCH = 512, 64
#: Bytes that open nodes of a native search may take where the user sets no limit.
DEFAULT_MEMORY = 1 << 30
_Item = TypeVar("_Item")
_UNMET = "the solver finished, but its bound and the replayed witness do not meet"
_COARSE = "the search finished, but rounding in double precision is wider than what is left to prove"


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """What is the same for all inputs of a run.

    Attributes:
        context, budget, radius, domain: the question, and how it is answered.
        form: the closed form, or None where there is none.
        chains: the compiled native search, where the network is a chain; None where that does not answer.
    """

    context: RunContext
    budget: Budget
    radius: float
    domain: Domain | None
    form: ClosedForm | None
    chains: Chains | None


def margins(
    network: Network,
    inputs: NDArray[np.float32],
    labels: Sequence[int],
    *,
    budget: Budget,
    radius: float = 0.0,
    domain: Domain | None = None,
    options: Options | None = None,
    indices: Sequence[int] | None = None,
    should_stop: Callable[[], bool] | None = None,
    closed_form: bool = True,
) -> Iterator[Verdict]:
    """Worst margins of many inputs, each as soon as it is done.

    Args:
        network: the classifier.
        inputs: float32 [n, inputs], in the data's units.
        labels: the class of each input; margins are ``f_label - f_j``.
        budget: the admissible masks.
        radius: of the L-inf ball around each input, clipped to the domain; 0: the input itself.
        domain: limits of the inputs.
        options: how to answer.
        indices: positions in the data file, for the records.
        should_stop: asked now and then; True ends the run with the status ``interrupted``.
        closed_form: answer by the closed form where there is one; False where the solver itself is the point.

    Raises:
        QueryError: a radius < 0 or not finite, a label out of range, an input outside of the domain or
            not finite; a pre-screen of balls.
        PluginError: an unknown solver, encoding or bounding.
    """
    if not (math.isfinite(radius) and radius >= 0):
        raise QueryError(f"--radius {radius}", needed="a finite number >= 0", fix="correct --radius")
    check_inputs(network, inputs, labels, domain)
    context = RunContext.create(network, options or Options(), should_stop)
    gate = closed_form_gate(network.graph, budget) if radius == 0 and closed_form else None
    chains = None
    if radius == 0 and gate is None and context.native and context.tensors.device.type == "cpu":
        chain = chain_of(network.graph, budget)
        if chain is not None:
            warm_up()  # compiling is no input's time
            chains = Chains(chain, network.graph, budget)
    form = None if gate is None else ClosedForm(network.graph, budget, gate)
    query = _Query(context, budget, radius, domain, form, chains)
    proven = _screened(query, inputs, labels)
    places = indices if indices is not None else range(len(inputs))
    size = BATCH if form is None else CLOSED_FORM_BATCH
    if chains is not None and chains.brief:
        size = CHAIN_BATCH
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        yield from _batch(query, inputs[part], labels[part], places[part], proven[part])


def _screened(query: _Query, inputs: NDArray[np.float32], labels: Sequence[int]) -> list[Float | None]:
    """For each input the bounds that a pre-screen proves it robust by, float64 [classes - 1]; or None."""
    if query.context.options.pre_screen == "none" or not query.budget.groups:
        return [None] * len(inputs)
    if query.radius != 0:
        raise QueryError(
            f"--pre-screen {query.context.options.pre_screen} with --radius {query.radius:g}",
            needed="point inputs, which deviation bounds are about",
            fix="leave out --pre-screen or --radius",
        )
    screen = deviation_screen(query.context.network, inputs, labels, query.budget)
    return [lower if proven else None for lower, proven in zip(screen.lower, screen.proven, strict=True)]


def _batch(
    query: _Query,
    inputs: NDArray[np.float32],
    labels: Sequence[int],
    indices: Sequence[int],
    proven: Sequence[Float | None],
) -> Iterator[Verdict]:
    """One batch: bounds together, then each input by itself; ``proven`` are those of a pre-screen."""
    started = time.perf_counter()
    context = query.context
    graph = context.network.graph
    x = inputs.astype(np.float64)
    trace = graph.trace(x)
    predicted = trace[-1].argmax(axis=1)
    # There is nothing to compute for an input that is misclassified already.
    asked = [i for i, label in enumerate(labels) if label == predicted[i] and proven[i] is None]
    answered: dict[int, Verdict] = {}
    search_of: Callable[[int], ChainSearch] | None = None
    if asked and (query.form is not None or query.chains is not None):
        batch = Batch(
            context,
            query.budget,
            query.domain,
            inputs[asked],
            np.array([int(labels[i]) for i in asked]),
            [int(indices[i]) for i in asked],
            [each[asked] for each in trace],
        )
        found, search_of = _together(query, batch, started)
        answered = {asked[k]: verdict for k, verdict in found.items()}
    searchable = {i: k for k, i in enumerate(asked)}
    asked = [i for i in asked if i not in answered]
    boxes = {i: ball(x[i], query.radius, query.domain) for i in range(len(x)) if i not in answered}
    bounds: Bounds | None = None
    masks: NDArray[np.bool_] | None = None
    if asked and query.chains is None:
        patience = len(asked) * context.options.timeout / 2
        rows = margin_rows(tuple(labels[i] for i in asked), graph.outputs)
        bounding = context.bounding if query.form is None else registry.load("bounds", "budget")
        bounds = bounding.bound(
            graph,
            np.stack([boxes[i].lower for i in asked]),
            np.stack([boxes[i].upper for i in asked]),
            query.budget,
            rows,
            context.options.device,
            hurry=lambda: context.interrupted() or time.perf_counter() - started > patience,
        )
        if query.form is not None:
            gated = trace[graph.nodes[query.form.node].sources[0]][asked]
            masks = worst_masks(graph, query.budget, gated, rows)
    share = (time.perf_counter() - started) / len(inputs)
    place = {i: position for position, i in enumerate(asked)}

    def worked(i: int) -> _Search:
        search = _Search(query, boxes[i], int(labels[i]), share, int(indices[i]))
        screened = proven[i]
        if screened is not None:
            search.screened(screened)
        elif search_of is not None and i in place:
            search.run_chain(search_of(searchable[i]))
        elif bounds is not None and i in place:
            search.run(bounds.of(place[i]), None if masks is None else masks[place[i]])
        else:
            search.status = Status.MISCLASSIFIED
        if workers > 1:
            search.clock.stop()  # what it waits for its turn is not its time
        return search

    # The compiled search runs on one thread: several inputs are searched side by side.
    workers = context.options.threads if query.chains is not None else 1
    others = _in_order(worked, [i for i in range(len(x)) if i not in answered], workers)
    for i in range(len(x)):
        if i in answered:
            yield answered[i]
        else:
            yield next(others).verdict(inputs[i], int(indices[i]), int(predicted[i]))


def _together(
    query: _Query, batch: Batch, started: float
) -> tuple[dict[int, Verdict], Callable[[int], ChainSearch] | None]:
    """What the closed form or the first nodes of a compiled search settle; and each input's search."""
    if query.form is not None:
        return closed_answers(query.form, batch), None
    chains, context, options = query.chains, query.context, query.context.options
    if chains is None:
        return {}, None
    low, high = prefix_values(context.tensors, query.budget, chains.start, batch.values[0])
    rows = margin_rows(tuple(batch.labels.tolist()), context.network.graph.outputs)

    def made(i: int) -> ChainSearch:
        return chains.search((low[i], high[i]), rows[i])

    if not chains.brief:
        return {}, made

    def begun(i: int) -> ChainSearch:
        search = made(i)
        if not context.interrupted():
            search.settle(options.gap, options.decide)
        return search

    searches = list(_in_order(begun, range(len(batch.labels)), options.threads))
    found = chain_answers(searches, batch, started)
    pending = {i: search for i, search in enumerate(searches) if i not in found}
    return found, pending.pop  # a search's tree goes as soon as its input is done


def _in_order(work: Callable[[int], _Item], items: Sequence[int], workers: int) -> Iterator[_Item]:
    """The results of some work, in order, several items at a time on threads of their own."""
    if workers == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)


class _Search:
    """The work on one input: a bracket for each competing class, and the best witness so far.

    Attributes:
        rounded: lower bounds of every class's margin, rounded outward, float64 [classes - 1].
        solved: the same on the solver's word.
        upper: the smallest margin of a replayed witness for each class.
        reason: why work on each class ended.
    """

    def __init__(self, query: _Query, box: Box, label: int, spent: float, index: int) -> None:
        self.query = query
        self.box = box
        self.label = label
        self.index = index
        self.graph = query.context.network.graph
        self.options = query.context.options
        self.clock = Clock(self.options.timeout, spent)
        self.targets = [j for j in range(self.graph.outputs) if j != label]
        count = len(self.targets)
        self.rounded: Float = np.full(count, -np.inf)
        self.solved: Float = np.full(count, -np.inf)
        self.upper: Float = np.full(count, np.inf)
        self.reason = [Status.TIMEOUT] * count
        self.witness: Witness | None = None
        self.scale = 1.0
        self.nodes = 0
        self.status = Status.TIMEOUT
        self.message = ""
        self.disputed = False
        self.engine = "bounds"

    @property
    def lower(self) -> Float:
        """The lower bound of each class, whatever it rests on."""
        return np.maximum(self.rounded, self.solved)

    @property
    def best(self) -> float:
        """The smallest margin of a replayed witness."""
        return float(self.upper.min())

    def run(self, bounds: Bounds, masks: NDArray[np.bool_] | None) -> None:
        """Close the bracket as far as the limits allow."""
        self.rounded = bounds.rows_lower[0].copy()
        try:
            self.offer(self.box.centre, self.nothing_removed())
            if masks is not None and self.query.form is not None:
                self.engine = "closed-form"
                for mask in np.unique(masks, axis=0):
                    self.offer(self.box.centre, {self.query.form.node: mask})
            elif self.done():
                pass
            elif self.query.context.native and self.box.is_point and self.query.budget.groups:
                self.engine = "bab"
                self.search_masks()
            elif self.native_box() and self.search_box():
                self.engine = "bab"
            else:
                self.engine = self.query.context.solver.name
                encoding = self.query.context.encoding
                self.search(encode(self.graph, self.box, self.query.budget, bounds, encoding))
        except RejectedWitnessError as error:
            self.status, self.message = Status.ERROR, str(error)
            self.solved[:] = -np.inf
            return
        except SolverUnavailableError as error:
            self.status, self.message = Status.UNAVAILABLE, str(error)
            return
        self.conclude()

    def screened(self, lower: Float) -> None:
        """Take the bounds of a pre-screen, which prove every margin."""
        self.engine, self.rounded = "deviation", lower.copy()
        self.offer(self.box.centre, self.nothing_removed())
        self.conclude()

    def run_chain(self, search: ChainSearch) -> None:
        """Close the bracket by the compiled search."""
        self.engine = "bab"
        try:
            self.offer(self.box.centre, self.nothing_removed())
            if not (self.options.decide and self.best <= 0):
                self.take(search.run(self.limits(), self.offer_masks))
        except RejectedWitnessError as error:
            self.status, self.message = Status.ERROR, str(error)
            return
        self.conclude()

    def nothing_removed(self) -> dict[int, NDArray[np.bool_]]:
        """The mask that removes nothing beside what is removed in every mask."""
        return self.query.budget.least(self.graph)

    def offer(self, x: Float, removed: Mapping[int, NDArray[np.bool_]]) -> None:
        """Replay a candidate; its margins bound every class from above."""
        witness = evaluate(self.graph, self.box, self.query.budget, x, removed)
        found = witness.margins(self.label)
        if self.witness is None or found.min() < self.best:
            self.witness = witness
        self.upper = np.minimum(self.upper, found)
        self.scale = max(self.scale, float(np.abs(witness.logits).max()))

    def proven(self) -> NDArray[np.bool_]:
        """Classes whose margin is proven > 0."""
        return (self.rounded > 0) | (self.solved > SOLVER_TOLERANCE * self.scale)

    def closed(self) -> NDArray[np.bool_]:
        """Classes that cannot change the answer: not below the best witness by more than the gap."""
        return self.best - self.lower <= self.options.gap

    def done(self) -> bool:
        """Whether nothing is left to prove."""
        if self.options.decide and (self.best <= 0 or bool(self.proven().all())):
            return True
        return bool(self.closed().all())

    def open_classes(self) -> list[int]:
        """Classes that need work, the most endangered first."""
        settled = self.proven() | self.closed() if self.options.decide else self.closed()
        return [int(k) for k in np.argsort(self.lower) if not settled[k]]

    def search(self, encoded: Encoded) -> None:
        """Solve the classes' programs, first with a fair share of the time each, then with all of it."""
        program = encoded.builder.build()
        rows = margin_rows((self.label,), self.graph.outputs)[0]
        for share_time in (True, False):
            tried: set[int] = set()
            while not self.done():
                left = [k for k in self.open_classes() if k not in tried]
                if not left or self.status is Status.ERROR:
                    break
                if self.query.context.interrupted():
                    self.status = Status.INTERRUPTED
                    return
                seconds = self.clock.remaining / (len(left) if share_time else 1)
                if seconds <= 0:
                    return
                tried.add(left[0])
                self.solve_class(
                    left[0], program.with_objective(*encoded.row(rows[left[0]])), encoded, seconds
                )
                if self.status in (Status.INTERRUPTED, Status.MEMORY):
                    return

    def search_masks(self) -> None:
        """Branch and bound over the masks of a point, all classes at once."""
        rows = margin_rows((self.label,), self.graph.outputs)[0]
        search = MaskSearch(
            self.query.context.tensors, self.query.budget, self.box.centre, rows, self.offer_masks
        )
        with torch_threads(self.options.threads):
            self.take(search.run(self.limits()))

    def native_box(self) -> bool:
        """Whether to search the ball natively; ``auto`` leaves exact answers over masks to its backend."""
        alone = self.options.solver == "bab" or self.options.decide or not self.query.budget.groups
        return self.query.context.native and not self.box.is_point and alone

    def search_box(self) -> bool:
        """Search the ball, all classes at once; False where ``auto`` shall go on with its backend.

        ``auto`` keeps half of the time for it.
        """
        rows = margin_rows((self.label,), self.graph.outputs)[0]
        search = BoxSearch(
            self.query.context.tensors,
            self.query.budget,
            self.box.lower,
            self.box.upper,
            [(row[None], np.zeros(1)) for row in rows],
            self.offer_inputs,
        )
        spare = self.clock.remaining / 2 if self.options.solver == "auto" else 0.0

        def expired() -> Stop | None:
            return self.expired() or (Stop.TIMEOUT if self.clock.remaining <= spare else None)

        with torch_threads(self.options.threads):
            result = search.run(replace(self.limits(), expired=expired))
        self.take(result)
        return self.done() or spare == 0.0 or result.stop in (Stop.INTERRUPTED, Stop.MEMORY)

    def offer_inputs(self, x: Float, masks: Mapping[int, NDArray[np.bool_]]) -> Float:
        """Run candidate inputs, each with its mask, in one batch; as ``offer_masks``."""
        x = self.box.clip(x)
        if not masks:
            masks = {node: np.tile(gone, (len(x), 1)) for node, gone in self.nothing_removed().items()}
        outputs = self.graph.evaluate(x, masks)
        found = outputs[:, self.label : self.label + 1] - np.delete(outputs, self.label, axis=1)
        for i in np.unique(found.argmin(axis=0)[found.min(axis=0) < self.upper]):
            self.offer(x[i], {node: mask[i] for node, mask in masks.items()})
        return self.upper

    def limits(self) -> SearchLimits:
        """When a native search has to stop."""
        return SearchLimits(
            gap=self.options.gap,
            decide=self.options.decide,
            memory=self.options.memory or DEFAULT_MEMORY,
            expired=self.expired,
        )

    def take(self, result: SearchResult) -> None:
        """Take over what a native search proved."""
        self.nodes += result.nodes
        self.rounded = np.maximum(self.rounded, result.lower)
        self.reason = [status_of(result.stop)] * len(self.reason)
        if result.stop in (Stop.INTERRUPTED, Stop.MEMORY):
            self.status = status_of(result.stop)

    def offer_masks(self, masks: Mapping[int, NDArray[np.bool_]]) -> Float:
        """Run candidate masks in one batch; replay each class's best where it improves its bracket."""
        count = len(next(iter(masks.values())))
        outputs = self.graph.evaluate(np.repeat(self.box.centre[None], count, axis=0), masks)
        found = outputs[:, self.label : self.label + 1] - np.delete(outputs, self.label, axis=1)
        for i in np.unique(found.argmin(axis=0)[found.min(axis=0) < self.upper]):
            self.offer(self.box.centre, {node: mask[i] for node, mask in masks.items()})
        return self.upper

    def expired(self) -> Stop | None:
        """Why a search has to stop now, or None."""
        if self.query.context.interrupted():
            return Stop.INTERRUPTED
        return Stop.TIMEOUT if self.clock.remaining <= 0 else None

    def solve_class(self, k: int, program: Program, encoded: Encoded, seconds: float) -> None:
        """Minimise one class's margin, and take from the solver what can be checked."""
        decide = self.options.decide
        solution = self.query.context.solve(
            program,
            seconds,
            # A mask under which the margin is 0 but for rounding proves nothing.
            objective_stop=-SOLVER_TOLERANCE * self.scale if decide else None,
            bound_stop=2 * SOLVER_TOLERANCE * self.scale if decide else self.best,
            name=f"{self.index}-{self.targets[k]}",
        )
        self.nodes += solution.nodes
        self.reason[k] = status_of(solution.stop)
        self.disputed |= solution.disputed
        if solution.stop in (Stop.ERROR, Stop.INFEASIBLE, Stop.UNBOUNDED):
            said = f"the solver says {solution.stop.value}, which a margin query cannot be"
            self.fail(k, solution.message or said)
            return
        if solution.x is not None:
            self.offer(encoded.point(solution.x), encoded.removed(solution.x))
        if solution.lower > self.upper[k] + SOLVER_TOLERANCE * self.scale:
            bound = f"the solver's bound {solution.lower:.9g} for class {self.targets[k]}"
            self.fail(k, f"{bound} is refuted by a replayed witness of margin {self.upper[k]:.9g}")
            return
        apart = self.options.gap + SOLVER_TOLERANCE * self.scale
        if solution.stop is Stop.OPTIMAL and not (
            solution.x is not None and self.upper[k] - solution.lower <= apart
        ):
            self.fail(k, _UNMET)
            return
        self.solved[k] = max(float(self.solved[k]), min(solution.lower, float(self.upper[k])))
        if solution.stop in (Stop.INTERRUPTED, Stop.MEMORY):
            self.status = status_of(solution.stop)

    def fail(self, k: int, message: str) -> None:
        """Note that the solver's answer for a class is wrong: none of its bounds is used any more."""
        self.reason[k] = self.status = Status.ERROR
        self.message = message
        self.solved[:] = -np.inf

    def conclude(self) -> None:
        """Final status from the brackets; an answer that was refused once stays an error."""
        refuted = np.flatnonzero(self.lower > self.upper + SOLVER_TOLERANCE * self.scale)
        if len(refuted):
            k = int(refuted[0])
            proven, met = float(self.lower[k]), float(self.upper[k])
            self.fail(
                k,
                f"the lower bound {proven:.9g} for class {self.targets[k]} is refuted by a replayed "
                f"witness of margin {met:.9g}",
            )
            self.rounded[refuted] = -np.inf
        if self.status is Status.ERROR:
            return
        if self.closed().all():
            self.status = Status.OPTIMAL
        elif self.done():
            self.status = Status.DECIDED
        elif self.status is Status.TIMEOUT and self.clock.remaining > 0:
            if self.best <= 0 or self.proven().all():  # rounding alone is wider than the gap
                self.status = Status.DECIDED
            else:
                native = bool(np.all(self.solved == -np.inf))
                self.status, self.message = Status.ERROR, _COARSE if native else _UNMET

    def verdict(self, x: NDArray[np.float32], index: int, predicted: int) -> Verdict:
        """Assemble the verdict; the best witness is replayed in float32 here."""
        network, budget = self.query.context.network, self.query.budget
        target: int | None = None
        upper = float32 = check = None
        answer = Answer.UNKNOWN
        if self.witness is not None:
            worst = int(self.witness.margins(self.label).argmin())
            target, upper = self.targets[worst], self.best
            check = check_float32(network, self.query.context.replay, self.box, self.witness)
            margin = check.margin(self.label, target)
            # On the same side of 0 as in float64, float32's rounding need not be known.
            same = (margin <= 0) == (upper <= 0)
            float32 = Float32Margin(margin, 0.0 if same else check.margin_error(self.label, target))
            trusted = self.status is not Status.ERROR
            answer = judge(
                rounded=self.rounded,
                solved=self.solved if trusted else np.full_like(self.solved, -np.inf),
                scale=self.scale,
                witness_margin=upper,
                float32=float32,
            )
        if self.disputed:
            answer = Answer.UNKNOWN
        lower = float(self.lower.min())
        known = math.isfinite(lower)
        return Verdict(
            **self.query.context.constant_fields(x),
            index=index,
            label=self.label,
            predicted=predicted,
            question="margin",
            budget=budget.shown,
            keep=forced_pairs(network, budget.kept),
            remove=forced_pairs(network, budget.gone),
            radius=self.query.radius,
            domain=self.query.domain,
            status=self.status,
            verdict=answer,
            assurance=self.assurance(lower) if known else None,
            lower=min(lower, upper) if known and upper is not None else None,
            upper=upper,
            target=target,
            removed=None if self.witness is None else removed_pairs(network, self.witness.removed),
            nodes=self.nodes,
            seconds=self.clock.seconds,
            solver=self.engine,
            witness_margin_float64=upper,
            witness_margin_float32=None if float32 is None else float32.margin,
            classes=() if self.witness is None else self.brackets(),
            decide=self.options.decide,
            message=self.message,
            witness=None if self.witness is None else self.witness.x,
            witness_float32=None if check is None else check.x,
            mask=None if self.witness is None else self.witness.removed,
        )

    def assurance(self, lower: float) -> Assurance:
        """What the overall lower bound rests on: the solver where any class needs its word for it."""
        if self.engine == "closed-form":
            return Assurance.CLOSED_FORM
        return Assurance.ROUNDED if self.rounded.min() >= lower else Assurance.SOLVER

    def brackets(self) -> tuple[ClassBracket, ...]:
        """The bracket of each class, and whether it is closed, decided, or why it is open."""
        brackets = []
        for k, target in enumerate(self.targets):
            lower, upper = float(self.lower[k]), float(self.upper[k])
            status = self.reason[k]
            if status is not Status.ERROR:
                if upper - lower <= self.options.gap:
                    status = Status.OPTIMAL
                elif self.closed()[k] or self.proven()[k] or upper <= 0:
                    status = Status.DECIDED
                elif status is Status.OPTIMAL and self.solved[k] == -np.inf:
                    status = self.status  # the native search has finished; rounding is wider than the gap
            finite = min(lower, upper) if math.isfinite(lower) else None
            brackets.append(ClassBracket(target, finite, upper, status))
        return tuple(brackets)
