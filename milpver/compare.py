"""Several solvers, encodings and bounds on the same queries: the runs, and what follows from their records.

A *contender* is a solver with an encoding and bounds. Every contender gets every query, one after the other
in an order that rotates, so that a machine that drifts is unfair to all alike. What is counted afterwards
rests on the records alone; the rules stand with :func:`summarise` and :func:`contradictions`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver import __version__, registry
from milpver.bounding import margin_rows
from milpver.distance import distances
from milpver.errors import MilpverError, QueryError, SolverUnavailableError
from milpver.linear import Float
from milpver.machine import host
from milpver.margin import margins
from milpver.network import Network
from milpver.program import ProgramBuilder
from milpver.query import Budget, Domain, Options, forced_pairs
from milpver.run import solver_named
from milpver.solver import Limits
from milpver.verdict import RECORD_FIELDS, SCHEMA_VERSION, Answer, Status, Verdict

__all__ = [
    "OUTCOMES",
    "QUESTIONS",
    "TOLERANCE",
    "Contender",
    "Contradiction",
    "Job",
    "Plan",
    "Record",
    "Row",
    "Summary",
    "check_options",
    "contenders",
    "contradictions",
    "host",
    "ranges",
    "short_names",
    "summarise",
    "warm_up",
]

Record: TypeAlias = Mapping[str, Any]

QUESTIONS = ("margin", "distance")

#: How far two proven numbers may be apart, times max(1, |number|), before they contradict each other.
TOLERANCE = 1e-5

#: How a run ends, as ``Row`` counts it.
OUTCOMES = ("solved", "timeout", "memory", "wrong", "withdrawn", "unavailable", "misclassified")

#: Resamples of the bootstrap interval, and the share of them that lies inside.
RESAMPLES, COVERED = 2000, 0.95

_OUTCOME_OF = {
    Status.OPTIMAL: "solved",
    Status.DECIDED: "solved",
    Status.INFEASIBLE: "solved",
    Status.TIMEOUT: "timeout",
    Status.INTERRUPTED: "timeout",
    Status.MEMORY: "memory",
    Status.MISCLASSIFIED: "misclassified",
    Status.UNAVAILABLE: "unavailable",
    Status.ERROR: "withdrawn",
}


# ------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, slots=True, order=True)
class Contender:
    """What is compared: plug-in names of a solver, an encoding and a bounding."""

    solver: str
    encoding: str
    bounds: str

    @property
    def key(self) -> str:
        """Its name in records: ``highs/fused/crown``."""
        return f"{self.solver}/{self.encoding}/{self.bounds}"


def contenders(
    solvers: Sequence[str], encodings: Sequence[str], bounds: Sequence[str]
) -> tuple[Contender, ...]:
    """Every combination, in the order given: the first one is what the others are compared with.

    Raises:
        QueryError: a list is empty, or names something twice.
        PluginError: an unknown name.
    """
    for option, kind, found in (
        ("--solvers", "solvers", solvers),
        ("--encodings", "encodings", encodings),
        ("--bounds", "bounds", bounds),
    ):
        if not found or not all(found):
            raise QueryError(
                f"{option} {','.join(found)!r} names nothing",
                needed="names separated by commas",
                fix=f"write e.g. {option} {','.join(registry.names(kind)[:2])}",
            )
        twice = [name for name, count in Counter(found).items() if count > 1]
        if twice:
            raise QueryError(
                f"{option} names {twice[0]!r} twice", needed="each contender once", fix="leave one out"
            )
        for name in found:
            if kind == "solvers":
                solver_named(name)
            else:
                registry.load(kind, name)
    return tuple(Contender(*names) for names in itertools.product(solvers, encodings, bounds))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Contenders' keys without what all of them share: ``highs``, or ``highs fused``."""
    parts = [key.split("/") for key in keys]
    differing = [k for k in range(3) if len({each[k] for each in parts}) > 1] or [0]
    return {key: " ".join(each[k] for k in differing) for key, each in zip(keys, parts, strict=True)}


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    Attributes:
        number: its place in the comparison, from 0; what records are told apart by.
        contender: who runs.
        place: position among the plan's inputs.
        repeat: from 0.
    """

    number: int
    contender: Contender
    place: int
    repeat: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A comparison.

    Attributes:
        network: the classifier.
        inputs: float32 [n, inputs].
        labels, indices: of these; the positions in the data file.
        contenders: who is compared.
        options: what all have in common; its plug-in names do not count.
        question: ``margin`` or ``distance``.
        budget, radius: of margins.
        domain: limits of the inputs, or None.
        repeats: runs of each contender on each query.
        solver_options: the solvers' own parameters, by the solver's name; they overrule those of ``options``.
        extra: further fields for the records, which say what was asked.
    """

    network: Network
    inputs: NDArray[np.float32]
    labels: tuple[int, ...]
    indices: tuple[int, ...]
    contenders: tuple[Contender, ...]
    options: Options
    question: str = "margin"
    budget: Budget = field(default_factory=Budget)
    radius: float = 0.0
    domain: Domain | None = None
    repeats: int = 1
    solver_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def jobs(self) -> tuple[Job, ...]:
        """All runs in order: query by query with all contenders, then the next repeat.

        The contenders are shuffled once, by the seed, and take turns at being the first.
        """
        order = np.random.default_rng(self.options.seed).permutation(len(self.contenders))
        found: list[Job] = []
        rounds = itertools.product(range(self.repeats), range(len(self.inputs)))
        for turn, (repeat, place) in enumerate(rounds):
            for k in np.roll(order, -turn):
                found.append(Job(len(found), self.contenders[int(k)], place, repeat))
        return tuple(found)

    def identity(self) -> dict[str, Any]:
        """The fields that all records of this comparison share."""
        margin = self.question == "margin"
        options = self.options
        return {
            "schema_version": SCHEMA_VERSION,
            "model_sha256": self.network.sha256,
            "question": self.question,
            "budget": self.budget.shown if margin else None,
            "keep": forced_pairs(self.network, self.budget.kept),
            "remove": forced_pairs(self.network, self.budget.gone),
            "radius": self.radius if margin else None,
            "decide": options.decide if margin else None,
            "domain": self.domain,
            "gap": options.gap,
            "timeout": options.timeout,
            "threads": options.threads,
            "seed": options.seed,
            **self.shared(),
        }

    def shared(self) -> dict[str, Any]:
        """Those of them that a verdict's record does not have."""
        return {
            "compared": [contender.key for contender in self.contenders],
            "inputs": ranges(self.indices),
            "inputs_sha256": self.inputs_sha256,
            "repeats": self.repeats,
            "memory": self.options.memory,
            "device": self.options.device,
            "solver_options": {
                name: own
                for name in dict.fromkeys(each.solver for each in self.contenders)
                if (own := self.options_of(name))
            },
            **self.extra,
        }

    def options_of(self, solver: str) -> dict[str, str]:
        """The solver's own parameters."""
        return {**(self.options.solver_options or {}), **self.solver_options.get(solver, {})}

    @property
    def inputs_sha256(self) -> str:
        """Of the inputs as little-endian float32, one after the other, and of their labels as int64."""
        found = hashlib.sha256(np.ascontiguousarray(self.inputs, dtype="<f4").tobytes())
        found.update(np.asarray(self.labels, dtype="<i8").tobytes())
        return found.hexdigest()

    def run(
        self,
        jobs: Sequence[Job],
        unavailable: Mapping[str, str],
        should_stop: Callable[[], bool],
    ) -> Iterator[tuple[Job, dict[str, Any]]]:
        """Do jobs, giving each one's record as soon as it is done; ends early where the user wants to stop.

        The closed form is left aside: it would answer before any of the contenders is asked.

        Args:
            jobs: some of :meth:`jobs`.
            unavailable: solvers that cannot run, with the reason; see :func:`warm_up`.
            should_stop: asked now and then.

        Raises:
            MilpverError: the query itself makes no sense.
        """
        shared = self.shared() | {"host": host()}
        for job in jobs:
            if should_stop():
                return
            solver = job.contender.solver
            if solver in unavailable:
                record = self._without_answer(job, Status.UNAVAILABLE, unavailable[solver])
            else:
                record = self._answer(job, should_stop)
                if record["status"] == Status.INTERRUPTED:
                    return
            yield (
                job,
                record
                | shared
                | {
                    "job": job.number,
                    "contender": job.contender.key,
                    "repeat": job.repeat,
                    "requested_solver": solver,
                },
            )

    def _answer(self, job: Job, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """The record of a run; a backend that breaks has no answer, and the comparison goes on."""
        try:
            return self._verdict(job, should_stop).record()
        except SolverUnavailableError as error:
            return self._without_answer(job, Status.UNAVAILABLE, str(error))
        except (MilpverError, MemoryError):
            raise
        except Exception as error:  # a foreign solver's defect, which is its result
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return self._without_answer(job, Status.ERROR, said)

    def _verdict(self, job: Job, should_stop: Callable[[], bool]) -> Verdict:
        names = job.contender
        options = replace(
            self.options,
            solver=names.solver,
            encoding=names.encoding,
            bounds=names.bounds,
            solver_options=self.options_of(names.solver),
        )
        one = slice(job.place, job.place + 1)
        inputs, labels, indices = self.inputs[one], self.labels[one], self.indices[one]
        if self.question == "distance":
            found = distances(
                self.network,
                inputs,
                labels,
                domain=self.domain,
                options=options,
                indices=indices,
                should_stop=should_stop,
            )
        else:
            found = margins(
                self.network,
                inputs,
                labels,
                budget=self.budget,
                radius=self.radius,
                domain=self.domain,
                options=options,
                indices=indices,
                should_stop=should_stop,
                closed_form=False,
            )
        return next(iter(found))

    def _without_answer(self, job: Job, status: Status, message: str) -> dict[str, Any]:
        """The record of a run that gave no verdict."""
        x = np.ascontiguousarray(self.inputs[job.place], dtype="<f4")
        predicted = int(self.network.graph.evaluate(x[None].astype(np.float64))[0].argmax())
        known = {key: value for key, value in self.identity().items() if key in RECORD_FIELDS}
        return (
            dict.fromkeys(RECORD_FIELDS)
            | known
            | {
                "milpver": __version__,
                "solver_version": "",
                "index": self.indices[job.place],
                "label": self.labels[job.place],
                "predicted": predicted,
                "status": str(status),
                "verdict": str(Answer.UNKNOWN) if self.question == "margin" else None,
                "nodes": 0,
                "seconds": 0.0,
                "solver": job.contender.solver,
                "encoding": job.contender.encoding,
                "bounds": job.contender.bounds,
                "classes": [],
                "input_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
                "message": message,
            }
        )


def warm_up(plan: Plan) -> dict[str, str]:
    """Load all that contenders need, so that none of them pays for it; solvers that cannot run, and why.

    Each bounding bounds the first input, each solver gets a program of one row; nothing of it is recorded.

    Raises:
        QueryError: see :func:`check_options`.
    """
    x = plan.inputs[:1].astype(np.float64)
    rows = margin_rows(plan.labels[:1], plan.network.graph.outputs)
    for name in dict.fromkeys(each.bounds for each in plan.contenders):
        bounding = registry.load("bounds", name)
        bounding.bound(plan.network.graph, x, x, plan.budget, rows, plan.options.device)
    names = dict.fromkeys(each.solver for each in plan.contenders)
    return {name: reason for name in names if (reason := _why_not(name, plan))}


def check_options(plan: Plan) -> None:
    """See that every solver that can run here takes the options it is given.

    Raises:
        QueryError: one does not.
    """
    for name in dict.fromkeys(each.solver for each in plan.contenders):
        if plan.options_of(name):
            _why_not(name, plan)


def _why_not(name: str, plan: Plan) -> str:
    """Why a solver cannot run here; "" where it can."""
    solver = solver_named(name)
    builder = ProgramBuilder()
    columns = builder.add_columns("x", np.zeros(2), np.ones(2), integer=True)
    builder.add_matrix_rows([(columns, np.ones((1, 2)))], 0.5, np.inf, 1)
    program = builder.build().with_objective(columns, np.array([1.0, 2.0]), 0.0)
    try:
        availability = solver.availability()
        if not availability.available:
            return str(availability.reason) or "it says that it is not available"
        limits = Limits(seconds=10.0, threads=plan.options.threads, seed=plan.options.seed)
        solver.solve(program, limits, options=plan.options_of(name))
    except QueryError:  # the user's, who mends it before the comparison begins
        raise
    except Exception as error:  # whatever a foreign solver does, the others go on
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def ranges(indices: Sequence[int]) -> str:
    """Indices as ``--index`` takes them: ``0:20`` or ``3,5:8``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([index, index + 1])
    return ",".join(str(first) if end == first + 1 else f"{first}:{end}" for first, end in runs)


# ------------------------------------------------------------------------------------- the statistics


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A run whose answer another run's replayed witness refutes.

    Attributes:
        job: of the refuted run.
        index, contender, repeat: of it.
        claim: what it says.
        refuted_by: the contender with the witness.
        witness: the witness's value (margin or distance).
    """

    job: int
    index: int
    contender: str
    repeat: int
    claim: str
    refuted_by: str
    witness: float


def contradictions(records: Sequence[Record]) -> tuple[Contradiction, ...]:
    """Runs that are wrong.

    Every upper bound is a witness that was replayed through the network (and its mask and box checked), so it
    holds whoever found it. So no majority is needed: of two closed brackets apart, the higher one is wrong,
    as is any lower bound above a witness of the same query by more than ``TOLERANCE * max(1, |witness|)``, an
    ``infeasible`` where there is a witness, and a ``robust`` where there is one of margin <= 0.
    """
    found = []
    for group in _by_index(records).values():
        witnesses = [record for record in group if record["upper"] is not None]
        if not witnesses:
            continue
        best = min(witnesses, key=lambda record: float(record["upper"]))
        upper = float(best["upper"])
        for record in group:
            claim = _refuted(record, upper)
            if claim:
                found.append(
                    Contradiction(
                        record["job"],
                        record["index"],
                        record["contender"],
                        record["repeat"],
                        claim,
                        best["contender"],
                        upper,
                    )
                )
    return tuple(sorted(found, key=lambda each: each.job))


def _refuted(record: Record, witness: float) -> str:
    """What a record claims that cannot be, given a witness of its query; "" where nothing."""
    lower = record["lower"]
    if record["status"] == Status.INFEASIBLE:
        return "infeasible"
    if lower is not None and lower > witness + TOLERANCE * max(1.0, abs(witness)):
        return f"lower bound {lower:.9g}"
    if record["verdict"] == Answer.ROBUST and witness <= 0:
        return "robust"
    return ""


@dataclass(frozen=True, slots=True)
class Row:
    """What the records say of one contender.

    Attributes:
        contender: its key.
        runs: queries times repeats; misclassified inputs are no queries.
        solved: bracket closed, sign decided or infeasible, and not refuted.
        timeouts, memory: ended by that limit.
        wrong: refuted by another run's witness, see :func:`contradictions`.
        withdrawn: the solver's answer did not survive the replay, or the solver failed.
        unavailable: could not run.
        bounds_only: solved by bounds alone, without asking the solver.
        median, mean: seconds, an unsolved run counting as the limit; None where no run was possible.
        par2: mean seconds, an unsolved run counting as twice the limit.
        speedup: geometric mean over paired runs of the first contender's seconds over this one's.
        interval: 95 % bootstrap interval of it over queries; None with fewer than two queries.
        pairs: number of paired runs: same query, same repeat, solved by at least one of the two.
        nodes: median number of nodes of solved runs that asked the solver; None where there are none.
        version: of the solver, "" where it is not known.
        message: what the first unavailable or withdrawn run says, "" without one.
    """

    contender: str
    runs: int
    solved: int
    timeouts: int
    memory: int
    wrong: int
    withdrawn: int
    unavailable: int
    bounds_only: int
    median: float | None
    mean: float | None
    par2: float | None
    speedup: float | None
    interval: tuple[float, float] | None
    pairs: int
    nodes: float | None
    version: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What the records say.

    Attributes:
        rows: one a contender, in the order given.
        contradictions: the wrong runs.
        misclassified: number of inputs that the network does not give its label.
        queries: number of the others.
        outcome: of each job, one of ``OUTCOMES``.
        limit: seconds a query.
    """

    rows: tuple[Row, ...]
    contradictions: tuple[Contradiction, ...]
    misclassified: int
    queries: int
    outcome: Mapping[int, str]
    limit: float


def summarise(records: Sequence[Record], seed: int = 0) -> Summary:
    """Count and average.

    A run is a query (an input that the network gives its label) with a repeat. Unsolved are all runs that are
    not ``solved``; they count as the time limit in the median, the mean and the speed-up, and as twice the
    limit in PAR-2. A contender that could run on no query has no times.

    The speed-up of a contender is ``exp(mean(log(t_first / t)))`` over the runs that it or the first
    contender solved: where one of the two is unsolved, the true ratio is more extreme than the one counted.
    Its interval is the percentile bootstrap over queries, all repeats of a query together.

    Args:
        records: of one comparison, in any order; not all have to be there.
        seed: of the bootstrap.

    Raises:
        ValueError: no records.
    """
    if not records:
        raise ValueError("no records")
    found = contradictions(records)
    refuted = {each.job for each in found}
    outcome = {
        record["job"]: "wrong" if record["job"] in refuted else _OUTCOME_OF[Status(record["status"])]
        for record in records
    }
    # An unavailable solver never gets as far as noticing that an input is misclassified.
    missed = {record["index"] for record in records if record["predicted"] != record["label"]}
    limit = float(records[0]["timeout"])
    runs = {
        key: sorted(
            (each for each in records if each["contender"] == key and each["index"] not in missed),
            key=lambda each: (each["index"], each["repeat"]),
        )
        for key in records[0]["compared"]
    }
    first = runs[records[0]["compared"][0]]
    rows = tuple(_row(key, mine, first, outcome, limit, seed) for key, mine in runs.items())
    queries = len({record["index"] for record in records} - missed)
    return Summary(rows, found, len(missed), queries, outcome, limit)


def _row(
    key: str, mine: list[Record], first: list[Record], outcome: Mapping[int, str], limit: float, seed: int
) -> Row:
    """One contender's row."""
    ends = Counter(outcome[record["job"]] for record in mine)
    solved = np.array([outcome[record["job"]] == "solved" for record in mine], dtype=np.bool_)
    spent = np.array([float(record["seconds"]) for record in mine])
    times = np.where(solved, spent, limit)
    possible = len(mine) > ends["unavailable"]
    speedup, interval, pairs = (None, None, 0)
    if possible:
        speedup, interval, pairs = _speedup(mine, first, outcome, limit, seed)
    searched = [
        record
        for record, done in zip(mine, solved, strict=True)
        if done and record["solver"] not in ("bounds", "closed-form")
    ]
    return Row(
        contender=key,
        runs=len(mine),
        solved=ends["solved"],
        timeouts=ends["timeout"],
        memory=ends["memory"],
        wrong=ends["wrong"],
        withdrawn=ends["withdrawn"],
        unavailable=ends["unavailable"],
        bounds_only=ends["solved"] - len(searched),
        median=float(np.median(times)) if possible else None,
        mean=float(np.mean(times)) if possible else None,
        par2=float(np.mean(np.where(solved, spent, 2 * limit))) if possible else None,
        speedup=speedup,
        interval=interval,
        pairs=pairs,
        nodes=float(np.median([record["nodes"] for record in searched])) if searched else None,
        version=next((str(record["solver_version"]) for record in mine if record["solver_version"]), ""),
        message=next(
            (
                str(record["message"])
                for record in mine
                if outcome[record["job"]] in ("unavailable", "withdrawn") and record["message"]
            ),
            "",
        ),
    )


def _speedup(
    mine: list[Record], first: list[Record], outcome: Mapping[int, str], limit: float, seed: int
) -> tuple[float | None, tuple[float, float] | None, int]:
    """Geometric-mean speed-up over the first contender, its interval, and the number of pairs."""
    other = {(record["index"], record["repeat"]): record for record in first}
    logs: dict[int, list[float]] = {}
    for record in mine:
        partner = other.get((record["index"], record["repeat"]))
        if partner is None or outcome[partner["job"]] == "unavailable":
            continue
        done = [outcome[each["job"]] == "solved" for each in (partner, record)]
        if any(done):
            theirs, ours = (
                max(float(each["seconds"]), 1e-9) if ok else limit
                for each, ok in zip((partner, record), done, strict=True)
            )
            logs.setdefault(record["index"], []).append(math.log(theirs / ours))
    if not logs:
        return None, None, 0
    sums = np.array([sum(each) for each in logs.values()])
    counts = np.array([len(each) for each in logs.values()], dtype=np.float64)
    speedup = math.exp(sums.sum() / counts.sum())
    return speedup, _interval(sums, counts, seed), int(counts.sum())


def _interval(sums: Float, counts: Float, seed: int) -> tuple[float, float] | None:
    """Percentile bootstrap over queries; ``sums`` and ``counts`` are of each query's logarithms."""
    size = len(sums)
    if size < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.exp(np.quantile(means, [(1 - COVERED) / 2, (1 + COVERED) / 2]))
    return float(low), float(high)


def _by_index(records: Sequence[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(record["index"], []).append(record)
    return found
