"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere, nothing with ``--quiet``.

Warnings are shown in any case.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

__all__ = ["Progress", "count_words", "progress"]

#: Seconds until the first line, and between lines, where stderr is no terminal.
FIRST_LINE, EVERY = 5.0, 30.0


class Progress(Protocol):
    """What a run tells."""

    def advance(self, word: str) -> None:
        """One more input is done; ``word`` says how it ended."""

    def tick(self) -> None:
        """Called often while an input is under way."""

    def warn(self, text: str) -> None:
        """Say something in a line, whatever else is shown."""


def count_words(words: Mapping[str, int]) -> str:
    """``8 robust, 2 vulnerable``, the most frequent first."""
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items(), key=lambda each: -each[1]))


@contextmanager
def progress(title: str, total: int, *, quiet: bool) -> Iterator[Progress]:
    """Show how far a run is while the context lasts.

    Args:
        title: what runs.
        total: number of inputs.
        quiet: show warnings only.
    """
    stream = sys.stderr
    if quiet or stream is None or total == 0:
        yield _Silent()
    elif stream.isatty():
        with _bar(title, total) as bar:
            yield bar
    else:
        yield _Lines(title, total)


def _say(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class _Silent:
    """Warnings only."""

    def advance(self, word: str) -> None:
        """Nothing to tell."""

    def tick(self) -> None:
        """Nothing to tell."""

    def warn(self, text: str) -> None:
        """See Progress."""
        _say(text)


class _Lines(_Silent):
    """A plain line now and then."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._words: Counter[str] = Counter()
        self._start = monotonic()
        self._next = self._start + FIRST_LINE

    def advance(self, word: str) -> None:
        """See Progress."""
        self._words[word] += 1
        self.tick()

    def tick(self) -> None:
        """See Progress."""
        now = monotonic()
        if now >= self._next:
            self._next = now + EVERY
            counts = f" ({count_words(self._words)})" if self._words else ""
            done = f"{self._words.total()} of {self._total} inputs{counts}"
            _say(f"{self._title}: {done}, {now - self._start:.0f} s")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Progress]:
    from rich.console import Console  # noqa: PLC0415  only where there is a terminal
    from rich.progress import (  # noqa: PLC0415  as above
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress  # noqa: PLC0415  as above

    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    words: Counter[str] = Counter()
    with RichProgress(*columns, console=console, transient=True, expand=True) as shown:
        task = shown.add_task(title, total=total, words="")

        class Bar:
            """A bar that rich draws in a thread of its own."""

            def advance(self, word: str) -> None:
                """See Progress."""
                words[word] += 1
                shown.update(task, advance=1, words=count_words(words))

            def tick(self) -> None:
                """Rich redraws by itself."""

            def warn(self, text: str) -> None:
                """See Progress."""
                console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield Bar()
