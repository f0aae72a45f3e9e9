"""What ``margin``, ``distance`` and ``demo`` share: reading a query, asking, recording and showing answers.

The order is that of what can go wrong and costs least: values, names, model, data, records, and only then
the search.
"""

from __future__ import annotations

import hashlib
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver import registry
from milpver.cli.interrupts import Interrupts
from milpver.cli.progress import Progress, count_words, progress
from milpver.cli.table import Column, print_table
from milpver.cli.values import memory_size, names, number, solver_options, whole
from milpver.cli.witnesses import WitnessFolder
from milpver.data import (
    DEFAULT_KEYS,
    Dataset,
    check_labels,
    fit_domain,
    fit_inputs,
    load_data,
    parse_domain,
    parse_floats,
    parse_keys,
    select,
)
from milpver.errors import RecordError
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import Domain, Options, names_layers
from milpver.run import load_solver
from milpver.store import STDOUT, RecordFile
from milpver.verdict import RECORD_FIELDS, SCHEMA_VERSION, Status, Verdict

__all__ = [
    "Ask",
    "Finding",
    "Outcome",
    "Query",
    "Record",
    "already_there",
    "answer",
    "input_sha256",
    "prepare",
    "read_network",
    "read_query",
]

Record: TypeAlias = Mapping[str, Any]

Ask: TypeAlias = Callable[
    [NDArray[np.float32], Sequence[int], Sequence[int], Callable[[], bool]], Iterator[Verdict]
]
"""Inputs, labels, positions and ``should_stop`` to verdicts: ``margins`` or ``distances`` with options."""

#: The largest numbers that make sense; seeds are those that every solver takes.
MOST_THREADS, MOST_SEED = 4096, 2**31 - 1

#: Fields that a record has beside those of ``Verdict``: what else was asked for.
EXTRA_FIELDS = ("requested_solver", "solver_options", "mean", "std")


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What a command line asks about, read and checked.

    Attributes:
        network: with its normalisation.
        inputs: float32 [n, inputs], those chosen.
        labels: of these.
        indices: their positions in the data file.
        domain: limits of the inputs, or None.
        options: how to answer.
        extra: values of ``EXTRA_FIELDS``.
        records: where records go, ``-`` for stdout, None for nowhere.
        witnesses: the folder for witnesses, or None.
        quiet: no progress and no notes.
    """

    network: Network
    inputs: NDArray[np.float32]
    labels: tuple[int, ...]
    indices: tuple[int, ...]
    domain: Domain | None
    options: Options
    extra: Mapping[str, Any] = field(default_factory=lambda: dict.fromkeys(EXTRA_FIELDS))
    records: Path | None = None
    witnesses: Path | None = None
    quiet: bool = False

    def identity(self, question: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that say which query a record answers; ``own`` are those of the question alone.

        ``solver`` is none of them: it says ``closed-form`` or ``bounds`` where no search ran.
        """
        options = self.options
        return {
            "schema_version": SCHEMA_VERSION,
            "model_sha256": self.network.sha256,
            "question": question,
            "domain": self.domain,
            "encoding": options.encoding,
            "bounds": options.bounds,
            "gap": options.gap,
            "timeout": options.timeout,
            "threads": options.threads,
            "seed": options.seed,
            **self.extra,
            **own,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """How a question's answers are shown.

    Attributes:
        question: its name in records.
        columns: of the table.
        row: the cells of a record.
        word: how a record's input ended, in one word, for counts.
        summary: closing lines about all records.
    """

    question: str
    columns: tuple[Column, ...]
    row: Callable[[Record], Sequence[str]]
    word: Callable[[Record], str]
    summary: Callable[[Sequence[Record]], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        records: by index, those that were there before included.
        interrupted: whether something was left because the user wanted to stop.
    """

    records: Mapping[int, Record]
    interrupted: bool

    @property
    def code(self) -> int:
        """The exit code."""
        return 130 if self.interrupted else 0


# ------------------------------------------------------------------------------------------- reading


def read_query(arguments: Namespace, *, decide: bool = False) -> Query:
    """Read everything that both questions have in common.

    Raises:
        MilpverError: something makes no sense, or cannot be read.
    """
    options = _options(arguments, decide=decide)
    mean = None if arguments.mean is None else parse_floats(arguments.mean, option="--mean")
    std = None if arguments.std is None else parse_floats(arguments.std, option="--std", positive=True)
    domain = None if arguments.domain is None else parse_domain(arguments.domain)
    keys = DEFAULT_KEYS if arguments.keys is None else parse_keys(arguments.keys)
    scale = None if arguments.scale is None else number("--scale", arguments.scale, above=0.0, example="255")
    registry.load("encodings", options.encoding)
    solver = load_solver(options)
    asked = (getattr(arguments, name, None) for name in ("budget", "keep", "remove", "layers"))
    network = read_network(Path(arguments.model), mean, std, channels=names_layers(*asked))
    dataset = load_data(Path(arguments.data), keys=keys, split=arguments.split, scale=scale, domain=domain)
    check_labels(dataset.labels, network.graph.outputs, dataset.source)
    indices = select(dataset, arguments.index)
    inputs, limits = _fitted(dataset, indices, network, arguments.layout)
    prepare(options)
    return Query(
        network=network,
        inputs=inputs,
        labels=tuple(int(dataset.labels[index]) for index in indices),
        indices=indices,
        domain=limits,
        options=options,
        extra={
            "requested_solver": solver.name if options.cross_check else options.solver,
            "solver_options": dict(options.solver_options or {}),
            "mean": mean,
            "std": std,
        },
        records=None if arguments.records is None else Path(arguments.records),
        witnesses=None if arguments.save_witness is None else Path(arguments.save_witness),
        quiet=arguments.quiet,
    )


def _options(arguments: Namespace, *, decide: bool) -> Options:
    """The options of a run."""
    return Options(
        solver=arguments.solver,
        encoding=arguments.encoding,
        bounds=arguments.bounds,
        timeout=number("--timeout", arguments.timeout, above=0.0, example="60"),
        gap=number("--gap", arguments.gap, example="1e-6"),
        threads=whole("--threads", arguments.threads, least=1, most=MOST_THREADS, example="2"),
        memory=memory_size(arguments.memory),
        seed=whole("--seed", arguments.seed, least=0, most=MOST_SEED, example="0"),
        device=arguments.device,
        decide=decide,
        solver_options=solver_options(arguments.solver_option),
        solver_log=None if arguments.solver_log is None else Path(arguments.solver_log),
        cross_check=names("--cross-check", arguments.cross_check),
    )


def read_network(
    path: Path,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    channels: bool = False,
) -> Network:
    """Load a network, with a normalisation in front where one is given; with gates for channels if asked.

    Raises:
        ModelError: the file cannot be read, or cannot be verified.
        QueryError: the normalisation does not fit.
    """
    network = load_network(path, channels=channels)
    if mean is None and std is None:
        return network
    return network.normalised(mean or (0.0,), std or (1.0,))


def _fitted(
    dataset: Dataset, indices: Sequence[int], network: Network, layout: str | None
) -> tuple[NDArray[np.float32], Domain | None]:
    """The chosen inputs and their domain in the network's order."""
    shape, source = network.input_shape, dataset.source
    inputs = fit_inputs(dataset.inputs[list(indices)], shape, layout=layout, source=source)
    if dataset.domain is None:
        return inputs, None
    return inputs, fit_domain(dataset.domain, shape, layout=layout, source=source)


def prepare(options: Options) -> None:
    """Load what needs torch, refuse a GPU that is not there, and keep to the threads asked for."""
    from milpver.bounds._tensors import pick_device  # noqa: PLC0415  seconds, which mistakes should not cost
    from milpver.machine import keep_to_threads  # noqa: PLC0415  as above

    registry.load("bounds", options.bounds)
    pick_device(options.device)
    keep_to_threads(options.threads)


# ------------------------------------------------------------------------------------------- asking


def answer(query: Query, finding: Finding, own: Mapping[str, Any], ask: Ask) -> Outcome:
    """Ask a question about all inputs that have no record yet, and show what came out.

    Args:
        query: the inputs, and how to answer.
        finding: how to show it.
        own: the identity's fields of this question alone.
        ask: gives the verdicts.

    Raises:
        MilpverError: the query makes no sense, or records or witnesses cannot be written; what was done
            until then is recorded and shown.
    """
    began = time.perf_counter()
    # A run over no inputs refuses what no input could mend, before a file of records is made.
    for _ in ask(query.inputs[:0], (), (), lambda: False):
        pass
    if query.network.softmax and not query.quiet:
        _note("the softmax at the end of the network is dropped: margins and distances are about the logits")
    identity = query.identity(finding.question, own)
    folder = None if query.witnesses is None else WitnessFolder(query.witnesses, query.network)
    with nullcontext() if query.records is None else RecordFile.open(query.records, identity) as file:
        done = {} if file is None else already_there(query, file)
        todo = [k for k, index in enumerate(query.indices) if index not in done]
        run = _Run(query, finding, ask, file, folder, dict(done))
        failure: Exception | None = None
        try:
            run.go(todo)
        except Exception as error:
            failure = error
        stream = sys.stderr if query.records == STDOUT else sys.stdout
        if stream is not None and (failure is None or run.records):
            for line in _shown(query, finding, run, set(done), time.perf_counter() - began, stream):
                stream.write(f"{line}\n")
            stream.flush()
    if failure is not None:
        raise failure
    return Outcome(run.records, interrupted=len(run.records) < len(query.indices))


class _Run:
    """The run over the inputs that are left.

    Attributes:
        records: what is done, by index.
        saved: how many witnesses were written.
    """

    def __init__(
        self,
        query: Query,
        finding: Finding,
        ask: Ask,
        file: RecordFile | None,
        folder: WitnessFolder | None,
        records: dict[int, Record],
    ) -> None:
        self.records = records
        self.saved = 0
        self._query = query
        self._finding = finding
        self._ask = ask
        self._file = file
        self._folder = folder

    def go(self, todo: Sequence[int]) -> None:
        """Answer these positions of the query's inputs, until done or interrupted."""
        query = self._query
        inputs = query.inputs[list(todo)]
        labels = [query.labels[k] for k in todo]
        indices = [query.indices[k] for k in todo]
        warned: set[str] = set()
        with (
            Interrupts() as interrupts,
            progress(self._finding.question, len(todo), quiet=query.quiet) as shown,
        ):

            def should_stop() -> bool:
                shown.tick()
                return interrupts.asked

            for verdict in self._ask(inputs, labels, indices, should_stop):
                if verdict.status is Status.INTERRUPTED:
                    return
                self._warn(verdict, shown, warned)
                self._take(verdict)
                shown.advance(self._finding.word(self.records[verdict.index]))
                if interrupts.asked:
                    return

    def _warn(self, verdict: Verdict, shown: Progress, warned: set[str]) -> None:
        """Say what went wrong; once where it is the same for all inputs."""
        if verdict.status is Status.UNAVAILABLE and verdict.message not in warned:
            warned.add(verdict.message)
            shown.warn(f"unavailable: {verdict.message}")
        elif verdict.status is Status.ERROR:
            shown.warn(f"input {verdict.index}: no answer: {verdict.message}")

    def _take(self, verdict: Verdict) -> None:
        """Keep a verdict: the witness first, so that a record means that all of it is there."""
        if self._folder is not None:
            self.saved += self._folder.save(verdict)
        record = verdict.record() | dict(self._query.extra)
        if self._file is not None:
            self._file.append(record)
        self.records[verdict.index] = record


def already_there(query: Query, file: RecordFile, fields: Iterable[str] = RECORD_FIELDS) -> dict[int, Record]:
    """The records of this query's inputs that stand in the file, checked to be of these inputs.

    Args:
        query: what is asked.
        file: the file.
        fields: that each record has.

    Raises:
        RecordError: one is of another input, or lacks what records have.
    """
    found: dict[int, Record] = {}
    for x, label, index in zip(query.inputs, query.labels, query.indices, strict=True):
        record = file.done.get(index)
        if record is None:
            continue
        if lacking := [name for name in fields if name not in record]:
            raise RecordError(
                f"{file.path}: the record of index {index} has no field {lacking[0]!r}",
                needed="records that milpver wrote",
                fix="take that line out, or name another file with --records",
            )
        if record["input_sha256"] != input_sha256(x) or record["label"] != label:
            raise RecordError(
                f"{file.path}: the record of index {index} is about another input or label",
                needed="the data that the records were made with",
                fix="pass that data, or name another file with --records",
            )
        found[index] = record
    return found


def input_sha256(x: NDArray[np.float32]) -> str:
    """What records call ``input_sha256``: of the input as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(x, dtype="<f4").tobytes()).hexdigest()


# ------------------------------------------------------------------------------------------- showing


def _shown(
    query: Query, finding: Finding, run: _Run, kept: set[int], wall: float, stream: Any
) -> Iterator[str]:
    """Print the table, and give the closing lines."""
    done = [index for index in query.indices if index in run.records]
    records = [run.records[index] for index in done]
    if done:
        rows = [(f"{index}{'*' * (index in kept)}", *finding.row(run.records[index])) for index in done]
        print_table((Column("index"), *finding.columns), rows, stream)
        yield ""
    words = Counter(finding.word(record) for record in records)
    missing = len(query.indices) - len(done)
    yield f"{_inputs(len(done))}: {count_words(words) or 'none done'}" + f"; {missing} left" * (missing > 0)
    if records:
        yield from finding.summary(records)
    fresh = [run.records[index]["seconds"] for index in done if index not in kept]
    times = f"; {sum(fresh) / len(fresh):.3g} s an input, {max(fresh):.3g} s at most" if fresh else ""
    yield f"time: {wall:.1f} s{times}"
    if kept and query.records is not None:
        yield f"* already there, in {query.records}: {_inputs(len(kept))}"
    if query.witnesses is not None:
        again = "; not written again for inputs already there" * bool(kept)
        yield f"witnesses: {run.saved} in {query.witnesses}, to be replayed as its README.txt says{again}"
    if missing and query.records not in (None, STDOUT):
        yield f"the same command goes on with the {_inputs(missing)} left"


def _inputs(count: int) -> str:
    return f"{count} input{'s' * (count != 1)}"


def _note(text: str) -> None:
    """Say something that is not part of the results."""
    if sys.stderr is not None:
        sys.stderr.write(f"note: {text}\n")
