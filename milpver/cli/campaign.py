"""``milpver campaign init | run | status | resume | report | export``."""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from shlex import quote
from string import Template
from typing import Any

from milpver import campaign
from milpver.campaign.results import Overview, parameters_text
from milpver.campaign.runner import Outcome
from milpver.campaign.spec import MOST_WORKERS, TEMPLATE, SpecError, read_spec
from milpver.cli.interrupts import Interrupts
from milpver.cli.progress import count_words
from milpver.cli.table import Column, print_table, seconds
from milpver.cli.values import number, whole
from milpver.errors import DataError, QueryError, RecordError

__all__ = ["run"]

#: Seconds until the first line, and between lines, where stderr is no terminal.
FIRST_LINE, EVERY = 10.0, 60.0


def run(arguments: Namespace) -> int:
    """Run the command that the command line names."""
    actions: Mapping[str, Callable[[Namespace], int]] = {
        "init": _init,
        "run": _run,
        "resume": _run,
        "status": _status,
        "report": _report,
        "export": _export,
    }
    try:
        return actions[arguments.action](arguments)
    except SpecError as error:
        if len(error.complaints) > 1:
            for each in error.complaints:
                _say(f"{error.path}:{each.line}: {each.text}")
        raise


# ----------------------------------------------------------------------------------------------- init


def _init(arguments: Namespace) -> int:
    """Write a commented campaign file."""
    path = Path(arguments.file)
    if path.suffix != ".toml":
        raise QueryError(
            f"{path} is no name of a campaign file", needed="a name that ends in .toml", fix="add it"
        )
    model, data = arguments.model, arguments.data
    wanted: list[tuple[Path, str | None]] = [(path, None)]
    if model is None:
        wanted.append((path.with_name("digits_fc.onnx"), "digits_fc.onnx"))
    if data is None:
        wanted.append((path.with_name("digits_test.npz"), "digits_test.npz"))
    there = [str(each) for each, _ in wanted if each.exists()]
    if there:
        raise DataError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there already",
            needed="a place for new files",
            fix="name another file, or move these",
        )
    text = Template(TEMPLATE).substitute(model=model or "digits_fc.onnx", data=data or "digits_test.npz")
    try:
        for target, name in wanted:
            if name is None:
                target.write_text(text, encoding="utf-8")
            else:
                with as_file(files("milpver.onnx_models") / name) as source:
                    shutil.copyfile(source, target)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            needed="a folder that can be written",
            fix="name another file",
        ) from error
    sys.stdout.write(
        f"{', '.join(str(each) for each, _ in wanted)} written; "
        f"run it: milpver campaign run {quote(str(path))}\n"
    )
    return 0


# ------------------------------------------------------------------------------------------------ run


def _run(arguments: Namespace) -> int:
    """Answer what is left, and say what came of it."""
    workers = None
    if arguments.workers is not None:
        workers = whole("--workers", arguments.workers, least=1, most=MOST_WORKERS, example="4")
    timeout = None
    if arguments.timeout is not None:
        timeout = number("--timeout", arguments.timeout, above=0.0, example="600")
        if arguments.retry is None:
            raise QueryError(
                "--timeout without --retry",
                needed="--retry, whose queries it is for",
                fix="write --retry timeout, or change timeout in the campaign file",
            )
    if arguments.action == "resume":
        _been_run(arguments)
    with Interrupts() as interrupts, _shown(quiet=arguments.quiet) as shown:
        outcome = campaign.run(
            arguments.spec,
            store=arguments.store,
            workers=workers,
            scheduler=arguments.scheduler,
            retry=arguments.retry or "",
            timeout=timeout,
            observer=shown,
            should_stop=lambda: interrupts.asked,
        )
    overview = campaign.status(arguments.spec, store=arguments.store)
    _print_cells(overview)
    for line in _closing(outcome, arguments.spec):
        sys.stdout.write(f"{line}\n")
    return 130 if outcome.left else 0


def _been_run(arguments: Namespace) -> None:
    """Refuse to resume what never began."""
    spec = read_spec(Path(arguments.spec))
    store = spec.store if arguments.store is None else Path(arguments.store)
    try:
        campaign.status(spec.path, store=store)
    except RecordError as error:
        raise RecordError(
            error.found, needed=error.needed, fix=f"begin it: milpver campaign run {arguments.spec}"
        ) from error


def _closing(outcome: Outcome, spec: str) -> Iterator[str]:
    """What came of a run, in lines."""
    parts = [f"{outcome.answered} answered"]
    if outcome.kept:
        parts.append(f"{outcome.kept} there before")
    if outcome.elsewhere:
        parts.append(f"{outcome.elsewhere} by other processes meanwhile")
    if outcome.left:
        parts.append(f"{outcome.left} left")
    yield f"{outcome.planned} queries: {', '.join(parts)}; {_duration(outcome.seconds)}"
    if outcome.crashes:
        yield f"workers that died: {outcome.crashes}; what they worked on was asked again"
    if outcome.left:
        yield f"the same command goes on: milpver campaign run {quote(str(spec))}"
    else:
        yield f"next: milpver campaign report {quote(str(spec))}"


# --------------------------------------------------------------------------------------------- status


def _status(arguments: Namespace) -> int:
    """Say how far a campaign is."""
    overview = campaign.status(arguments.spec, store=arguments.store, name=arguments.name)
    if arguments.json:
        sys.stdout.write(json.dumps(_plain(overview)) + "\n")
        return 0
    _print_cells(overview)
    for line in _state(overview, arguments.spec):
        sys.stdout.write(f"{line}\n")
    return 0


def _print_cells(overview: Overview) -> None:
    """A row a cell."""
    columns = (
        Column("question", right=False, least=8),
        Column("network", right=False, least=8),
        Column("data", right=False, least=6),
        Column("asked", right=False, least=8),
        Column("solver", right=False, least=6),
        Column("done"),
        Column("of"),
        Column("ended", right=False, least=12),
        Column("sec"),
    )
    rows = [
        (
            each.cell["question"],
            each.cell["network"],
            each.cell["data"],
            parameters_text(each.cell),
            each.cell["solver"],
            str(each.done),
            str(each.planned),
            count_words(each.words),
            seconds(each.seconds),
        )
        for each in overview.cells
    ]
    print_table(columns, rows, sys.stdout)
    sys.stdout.write("\n")


def _state(overview: Overview, spec: str) -> Iterator[str]:
    done, planned = overview.done, overview.planned
    share = 100 * done / planned if planned else 100.0
    words: Counter[str] = Counter()
    for each in overview.cells:
        words.update(each.words)
    yield (
        f"{overview.campaign.name}: {done} of {planned} queries done ({share:.1f} %)"
        + (f": {count_words(words)}" if words else "")
    )
    unfinished = sum(each.open for each in overview.cells)
    if unfinished:
        again = f"milpver campaign run {quote(str(spec))} --retry timeout,error --timeout S"
        yield f"{unfinished} of them ended by a limit or an error; with S seconds each: {again}"
    if overview.last is not None:
        yield f"last answer: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(overview.last))}"
    for owner, claimed in overview.owners:
        yield f"at work: process {owner.pid} on {owner.host}, {claimed} queries in hand"
    if overview.owners and overview.left_seconds is not None:
        yield f"{overview.rate:.3g} answers a second; about {_duration(overview.left_seconds)} left"
    if not overview.owners and done < planned:
        yield f"nothing runs; go on: milpver campaign resume {quote(str(spec))}"


def _plain(overview: Overview) -> dict[str, Any]:
    """An overview as JSON."""
    return {
        "campaign": overview.campaign.name,
        "planned": overview.planned,
        "done": overview.done,
        "last": overview.last,
        "rate": overview.rate,
        "left_seconds": overview.left_seconds,
        "processes": [
            {"host": owner.host, "pid": owner.pid, "queries": claimed} for owner, claimed in overview.owners
        ],
        "cells": [
            {**each.cell, "planned": each.planned, "done": each.done, "ended": dict(each.words)}
            | {"open": each.open, "seconds": each.seconds}
            for each in overview.cells
        ],
    }


def _duration(value: float) -> str:
    """Seconds as people say them."""
    if value < 120:
        return f"{value:.1f} s"
    minutes = value / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


# ------------------------------------------------------------------------------------ report, export


def _report(arguments: Namespace) -> int:
    """Write the report."""
    out = arguments.out or f"{Path(arguments.spec).stem}-report"
    path = campaign.write_report(arguments.spec, out, store=arguments.store, name=arguments.name)
    sys.stdout.write(f"report: {path}\n")
    return 0


def _export(arguments: Namespace) -> int:
    """Write the results as a file."""
    count = campaign.write_export(arguments.spec, arguments.out, store=arguments.store, name=arguments.name)
    sys.stdout.write(f"{count} queries: {arguments.out}\n")
    return 0


# ------------------------------------------------------------------------------------------- progress


class _Lines:
    """A plain line a minute; only warnings where it is to be quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._total = self._done = self._fresh = 0
        self._words: Counter[str] = Counter()
        self._start = time.monotonic()
        self._next = self._start + FIRST_LINE

    def begin(self, total: int, words: Mapping[str, int]) -> None:
        """See Observer."""
        self._total, self._words = total, Counter(words)
        self._done = self._words.total()

    def advance(self, word: str, seconds: float) -> None:
        """See Observer."""
        del seconds
        self._words[word] += 1
        self._done += 1
        self._fresh += 1

    def tick(self) -> None:
        """See Observer."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + EVERY
        spent = now - self._start
        rate = self._fresh / spent if spent > 0 else 0.0
        left = f", about {_duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        words = f" ({count_words(self._words)})" if self._words else ""
        _say(f"campaign: {self._done} of {self._total}{words}, {rate:.3g} a second, {_duration(spent)}{left}")

    def warn(self, text: str) -> None:
        """See Observer."""
        _say(text)


class _Bar:
    """A bar that rich draws in a thread of its own; throughput and time left are rich's."""

    def __init__(self, shown: Any) -> None:
        self._shown = shown
        self._task: Any = None
        self._words: Counter[str] = Counter()

    def begin(self, total: int, words: Mapping[str, int]) -> None:
        """See Observer."""
        self._words = Counter(words)
        self._task = self._shown.add_task(
            "campaign", total=total, completed=self._words.total(), words=count_words(self._words)
        )

    def advance(self, word: str, seconds: float) -> None:
        """See Observer."""
        del seconds
        self._words[word] += 1
        self._shown.update(self._task, advance=1, words=count_words(self._words))

    def tick(self) -> None:
        """Rich redraws by itself."""

    def warn(self, text: str) -> None:
        """See Observer."""
        self._shown.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[_Lines | _Bar]:
    """Show how far a campaign is while the context lasts."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield _Lines(quiet=quiet)
        return
    from rich.console import Console  # noqa: PLC0415  only where there is a terminal
    from rich.progress import (  # noqa: PLC0415  as above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text  # noqa: PLC0415  as above

    class Rate(ProgressColumn):
        """Queries a second."""

        def render(self, task: Task) -> Text:
            """See ProgressColumn."""
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, expand=True) as shown:
        yield _Bar(shown)


def _say(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
