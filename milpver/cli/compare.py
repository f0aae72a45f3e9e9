"""``milpver compare``: several solvers, encodings and bounds on the same queries, and a report of it."""

from __future__ import annotations

import contextlib
import platform
import shlex
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from milpver import __version__
from milpver.cli.interrupts import Interrupts
from milpver.cli.parser import parse
from milpver.cli.progress import EVERY, FIRST_LINE
from milpver.cli.question import prepare, read_query
from milpver.cli.table import Column, print_table
from milpver.cli.values import number, solver_options, whole
from milpver.cli.version import PACKAGES
from milpver.compare import (
    QUESTIONS,
    Contender,
    Plan,
    Record,
    check_options,
    contenders,
    short_names,
    warm_up,
)
from milpver.errors import DataError, MilpverError, QueryError, RecordError
from milpver.query import Budget, Options, parse_budget
from milpver.registry import near
from milpver.report import COLUMNS, cells, note_lines, write
from milpver.store import RecordFile
from milpver.verdict import RECORD_FIELDS, Status

__all__ = ["facts_of", "options_of", "run"]

#: Repeats that make sense.
MOST_REPEATS = 1000
_ELSEWHERE = "name another folder with --report"


def run(arguments: Namespace) -> int:
    """Run the comparison, or what is left of it, and write the report."""
    plan = _plan(arguments)
    folder = _folder(arguments.report)
    for each in plan.contenders:
        prepare(_with(plan, each))
    check_options(plan)
    try:
        with RecordFile.open(folder / "results.jsonl", plan.identity(), "job") as file:
            code = _compare(plan, file, folder, arguments)
    except RecordError as error:
        fix = error.fix.replace("name another file with --records", _ELSEWHERE)
        raise RecordError(error.found, needed=error.needed, fix=fix) from error
    return code


def _compare(plan: Plan, file: RecordFile, folder: Path, arguments: Namespace) -> int:
    """Do the jobs that have no record yet, then show and write what is known."""
    quiet: bool = arguments.quiet
    jobs = plan.jobs()
    kept = _already_there(plan, file)
    todo = [job for job in jobs if job.number not in file.done]
    names = short_names([each.key for each in plan.contenders])
    if plan.network.softmax and not quiet:
        _say("note: the softmax at the end of the network is dropped")
    unavailable = warm_up(plan) if todo else {}
    for name, reason in unavailable.items():
        _say(f"unavailable: {name}: {reason}")
    said: set[tuple[str, str]] = set()
    failure: Exception | None = None
    each_has = len(jobs) // len(plan.contenders)
    with Interrupts() as interrupts, _progress(names, each_has, file.done, quiet=quiet or not todo) as shown:

        def should_stop() -> bool:
            shown.tick()
            return interrupts.asked

        try:
            for job, record in plan.run(todo, unavailable, should_stop):
                file.append(record)
                shown.advance(job.contender.key, str(record["status"]))
                _warn(record, names, unavailable, said, shown)
        except Exception as error:  # what is done is shown and written first
            failure = error
        records: list[Record] = [file.done[k] for k in sorted(file.done)]
        if records:
            # What stopped the run is what has to be said, even if it stops the report as well.
            with contextlib.suppress(MilpverError) if failure is not None else contextlib.nullcontext():
                summary = write(
                    folder,
                    records,
                    facts_of(plan, records, arguments),
                    _command(arguments),
                    planned=len(jobs),
                    seed=plan.options.seed,
                )
    if failure is not None:
        raise failure
    missing = len(jobs) - len(records)
    if records:
        rows = [(names[row.contender], *cells(row)) for row in summary.rows]
        print_table((Column("contender", right=False, least=9), *map(Column, COLUMNS)), rows, sys.stdout)
        sys.stdout.write("\n")
        for line in note_lines(summary, names):
            sys.stdout.write(f"{line}\n")
    if kept:
        sys.stdout.write(f"{kept} of {len(jobs)} runs were already there\n")
    sys.stdout.write(f"report: {folder / 'report.html'}\n" if records else "nothing done\n")
    if missing:
        sys.stdout.write(f"{missing} of {len(jobs)} runs left; the same command goes on with them\n")
        return 130
    return 0


# -------------------------------------------------------------------------------------------- reading


def _plan(arguments: Namespace) -> Plan:
    """Read and check everything, the cheap things first."""
    question: str = arguments.question
    if question not in QUESTIONS:
        raise QueryError(
            f"--question {question}", needed=" or ".join(QUESTIONS), fix=near(question, QUESTIONS)
        )
    if question == "margin" and arguments.budget is None:
        raise QueryError(
            "--question margin without --budget",
            needed="neurons that may be removed, an entry a gateable layer",
            fix="write e.g. --budget 2,1 (see milpver info MODEL)",
        )
    if question == "distance":
        for option, given in (
            ("--budget", arguments.budget is not None),
            ("--keep", arguments.keep is not None),
            ("--remove", arguments.remove is not None),
            ("--radius", arguments.radius is not None),
            ("--decide", arguments.decide),
        ):
            if given:
                raise QueryError(
                    f"{option} with --question distance",
                    needed="nothing of that kind: a distance has no mask, no ball and no sign",
                    fix=f"leave {option} out",
                )
    repeats = whole("--repeat", arguments.repeat, least=1, most=MOST_REPEATS, example="3")
    radius = number("--radius", arguments.radius or "0", example="0.01")
    found = contenders(_names(arguments.solvers), _names(arguments.encodings), _names(arguments.bounds))
    first = found[0]
    # Read as `milpver margin` reads it; flags that are not of this command keep their defaults.
    like = vars(parse(["margin", str(arguments.model), "--data", str(arguments.data), "--budget", "0"]))
    mine = {name: value for name, value in vars(arguments).items() if name in like and name != "bounds"}
    named = {"solver": first.solver, "encoding": first.encoding, "bounds": first.bounds}
    query = read_query(Namespace(**like | mine | named | {"solver_option": []}), decide=arguments.decide)
    budget = Budget()
    if question == "margin":
        budget = parse_budget(arguments.budget, query.network, keep=arguments.keep, remove=arguments.remove)
    return Plan(
        network=query.network,
        inputs=query.inputs,
        labels=query.labels,
        indices=query.indices,
        contenders=found,
        options=query.options,
        question=question,
        budget=budget,
        radius=radius,
        domain=query.domain,
        repeats=repeats,
        solver_options=options_of(arguments.solver_option, [each.solver for each in found]),
        extra={name: query.extra[name] for name in ("mean", "std")},
    )


def options_of(entries: Sequence[str], solvers: Sequence[str]) -> dict[str, dict[str, str]]:
    """``SOLVER:KEY=VALUE`` for one solver, ``KEY=VALUE`` for all of them, as options by solver.

    What a solver is given by its name stands over what all are given.

    Raises:
        QueryError: one is neither, or names a solver that is not compared, or a key twice.
    """
    solvers = list(dict.fromkeys(solvers))
    own: dict[str, list[str]] = {name: [] for name in solvers}
    common: list[str] = []
    for entry in entries:
        key = entry.partition("=")[0].strip()
        owner = max((name for name in solvers if key.startswith(f"{name}:")), key=len, default=None)
        if owner is not None:
            own[owner].append(entry.strip()[len(owner) + 1 :])
        elif ":" in key:
            raise QueryError(
                f"--solver-option {entry!r} is for none of the solvers compared",
                needed=f"SOLVER:KEY=VALUE with SOLVER one of {', '.join(solvers)}, or KEY=VALUE for all",
                fix=near(key.rpartition(":")[0], solvers),
            )
        else:
            common.append(entry)
    shared = solver_options(common)
    return {name: shared | solver_options(each) for name, each in own.items() if shared or each}


def _with(plan: Plan, contender: Contender) -> Options:
    """The options of one contender, to load what they name."""
    return replace(plan.options, bounds=contender.bounds)


def _names(words: str) -> list[str]:
    """``a, b`` as a list; an empty text is an empty list."""
    return [word.strip() for word in words.split(",")] if words.strip() else []


def _folder(name: str) -> Path:
    """The report's folder, made where it is missing and checked to be writable."""
    folder = Path(name)
    try:
        folder.mkdir(exist_ok=True)
        probe = folder / ".milpver.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"--report {name}: {error.strerror or type(error).__name__}",
            needed="a folder that can be written, or a name for one in a folder that exists",
            fix=_ELSEWHERE,
        ) from error
    return folder


def _already_there(plan: Plan, file: RecordFile) -> int:
    """How many records are there, each checked to be of the job whose number it has.

    Raises:
        RecordError: one is of another run, or lacks what records have.
    """
    jobs = plan.jobs()
    for place, record in file.done.items():
        lacking = [name for name in (*RECORD_FIELDS, "contender", "repeat", "host") if name not in record]
        job = jobs[place] if place < len(jobs) else None
        if (
            lacking
            or job is None
            or record["contender"] != job.contender.key
            or record["repeat"] != job.repeat
            or record["index"] != plan.indices[job.place]
        ):
            why = f"has no field {lacking[0]!r}" if lacking else "is not of the run with this number"
            raise RecordError(
                f"{file.path}: the record of job {place} {why}",
                needed="records that milpver wrote",
                fix=_ELSEWHERE,
            )
    return len(file.done)


# -------------------------------------------------------------------------------------------- showing


def facts_of(plan: Plan, records: Sequence[Record], arguments: Namespace) -> dict[str, str]:
    """Everything that a reader needs to run it again, as the report shows it."""
    options = plan.options
    versions: dict[str, str] = {}
    for record in records:
        if record["solver_version"]:
            versions[str(record["requested_solver"])] = str(record["solver_version"])
    solvers = [
        f"{name} {versions.get(name, '(not run)')}"
        for name in dict.fromkeys(c.solver for c in plan.contenders)
    ]
    hosts = [
        dict(each) for each in dict.fromkeys(tuple(sorted(record["host"].items())) for record in records)
    ]
    found = {
        "model": Path(arguments.model).name,
        "model file": str(arguments.model),
        "model SHA-256": plan.network.sha256,
        "data": str(arguments.data),
        "inputs": f"index {_indices(plan)}; SHA-256 of inputs and labels {plan.inputs_sha256}",
        "question": plan.question,
    }
    if plan.question == "margin":
        found |= {
            "budget": f"{arguments.budget} (neurons a layer: {', '.join(map(str, plan.budget.per_layer))})"
            + f"; kept: {arguments.keep}" * (arguments.keep is not None)
            + f"; removed: {arguments.remove}" * (arguments.remove is not None),
            "radius": f"{plan.radius:g}, L-inf, in the data's units",
            "decide": "yes: stopped as soon as the sign was proven" if options.decide else "no",
        }
    found |= {
        "domain": _domain(plan),
        "data options": _data_options(arguments),
        "contenders": ", ".join(each.key for each in plan.contenders) + " (solver/encoding/bounds)",
        "solvers": ", ".join(solvers),
        "solver options": "; ".join(
            f"{name}: {', '.join(f'{key}={value}' for key, value in each.items())}"
            for name, each in plan.solver_options.items()
        )
        or "none",
        "time limit": f"{options.timeout:g} s a query, all competing classes",
        "gap": f"{options.gap:g} absolute",
        "threads": str(options.threads),
        "memory limit": "none" if options.memory is None else f"{options.memory / 2**30:.3g} GiB a solver",
        "repeats": str(plan.repeats),
        "seed": f"{options.seed} (solvers, order of contenders, bootstrap)",
        "device of the bounds": options.device,
        "milpver": __version__,
        "Python and packages": ", ".join(
            [f"Python {platform.python_version()}"]
            + [f"{name} {version}" for name in PACKAGES if (version := _installed(name))]
        ),
    }
    for k, host in enumerate(hosts, start=1):
        memory = "memory unknown" if host["memory_gib"] is None else f"{host['memory_gib']} GiB memory"
        found["machine" + f" {k}" * (len(hosts) > 1)] = (
            f"{host['cpu']}, {host['cores']} cores, {memory}, {host['system']}, Python {host['python']}"
        )
    return found


def _installed(package: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _indices(plan: Plan) -> str:
    shown = str(plan.identity()["inputs"])
    return shown if len(shown) <= 200 else f"{shown[:200]}... ({len(plan.indices)} inputs)"


def _domain(plan: Plan) -> str:
    """The domain in words."""
    if plan.domain is None:
        return "none"
    low, high = plan.domain
    if isinstance(low, float | int) and isinstance(high, float | int):
        return f"[{low:g}, {high:g}] for every entry of the input"
    return "limits for each entry of the input, from the data"


def _data_options(arguments: Namespace) -> str:
    """The flags that say how the data was read, where they were given."""
    given = [
        f"--{name} {value}"
        for name in ("keys", "split", "scale", "mean", "std", "layout")
        if (value := getattr(arguments, name)) is not None and (name, value) != ("split", "test")
    ]
    return " ".join(given) or "none"


#: Flags of the command in the order that the report shows them.
_FLAGS = (
    "data", "index", "domain", "keys", "split", "scale", "mean", "std", "layout", "question", "budget",
    "radius", "solvers", "encodings", "bounds", "timeout", "gap", "threads", "memory", "seed", "device",
    "repeat", "report",
)  # fmt: skip


def _command(arguments: Namespace) -> str:
    """The command line in full, defaults spelt out, so that it means the same later."""
    words = ["milpver", "compare", str(arguments.model)]
    for name in _FLAGS:
        value = getattr(arguments, name)
        if value is not None:
            # A value such as -1,1 would pass for a flag if it stood alone.
            words += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    words += [f"--solver-option={entry}" for entry in arguments.solver_option]
    return shlex.join(words + ["--decide"] * bool(arguments.decide))


def _warn(
    record: Record,
    names: Mapping[str, str],
    unavailable: Mapping[str, str],
    said: set[tuple[str, str]],
    shown: _Shown,
) -> None:
    """Say what went wrong, once where it is the same for all queries."""
    status, message = record["status"], str(record["message"])
    name = names[record["contender"]]
    if status == Status.UNAVAILABLE:
        if record["requested_solver"] not in unavailable and (name, message) not in said:
            said.add((name, message))
            shown.warn(f"unavailable: {name}, index {record['index']}: {message}")
    elif status == Status.ERROR:
        shown.warn(f"withdrawn: {name}, index {record['index']}: {message}")


def _say(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


# ------------------------------------------------------------------------------------------- progress


class _Shown(Protocol):
    """What a comparison tells while it runs."""

    def advance(self, key: str, status: str) -> None:
        """One more run of a contender is done."""

    def tick(self) -> None:
        """Called often while a run is under way."""

    def warn(self, line: str) -> None:
        """Say something in a line, whatever else is shown."""


class _Lines:
    """A plain line now and then; none at all where it is to be quiet."""

    def __init__(self, names: Mapping[str, str], total: int, done: Counter[str], *, quiet: bool) -> None:
        self._names = names
        self._total = total
        self._done = done
        self._quiet = quiet
        self._start = monotonic()
        self._next = self._start + FIRST_LINE

    def advance(self, key: str, status: str) -> None:
        """See _Shown."""
        del status
        self._done[key] += 1
        self.tick()

    def tick(self) -> None:
        """See _Shown."""
        now = monotonic()
        if not self._quiet and now >= self._next:
            self._next = now + EVERY
            counts = ", ".join(f"{name} {self._done[key]}" for key, name in self._names.items())
            _say(f"compare: {counts} of {self._total} runs each, {now - self._start:.0f} s")

    def warn(self, line: str) -> None:
        """See _Shown."""
        _say(line)


@dataclass(frozen=True, slots=True, eq=False)
class _Bars:
    """A bar for each contender, drawn by rich in a thread of its own."""

    shown: Any
    tasks: Mapping[str, Any]
    ends: Mapping[str, Counter[str]]

    def advance(self, key: str, status: str) -> None:
        """See _Shown."""
        self.ends[key][status] += 1
        words = ", ".join(f"{count} {word}" for word, count in self.ends[key].most_common())
        self.shown.update(self.tasks[key], advance=1, words=words)

    def tick(self) -> None:
        """Rich redraws by itself."""

    def warn(self, line: str) -> None:
        """See _Shown."""
        self.shown.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(
    names: Mapping[str, str], total: int, done: Mapping[int, Mapping[str, Any]], *, quiet: bool
) -> Iterator[_Shown]:
    """Show how far each contender is while the context lasts."""
    ends = {key: Counter[str]() for key in names}
    for record in done.values():
        ends[str(record["contender"])][str(record["status"])] += 1
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        counts = Counter({key: each.total() for key, each in ends.items()})
        yield _Lines(names, total, counts, quiet=quiet)
        return
    from rich.console import Console  # noqa: PLC0415  only where there is a terminal
    from rich.progress import (  # noqa: PLC0415  as above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, expand=True) as bars:
        tasks = {
            key: bars.add_task(name, total=total, completed=ends[key].total(), words="")
            for key, name in names.items()
        }
        yield _Bars(bars, tasks, ends)
