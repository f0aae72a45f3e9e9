"""How the benchmarks' commands end: one thread, errors in one line, and 1 where an answer is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from milpver.errors import MilpverError
from milpver.machine import host, keep_to_threads

__all__ = ["benchmark", "machine"]


def benchmark(work: Callable[[list[str]], None], *, interrupted: str = "interrupted") -> int:
    """Run a benchmark on one thread.

    Args:
        work: the benchmark; it appends every answer that is wrong, in a line, to the list it gets.
        interrupted: what Ctrl-C is answered with.

    Returns:
        The exit status: 0, 1 where answers are wrong, 2 for what the user can mend, 130 after Ctrl-C.
    """
    wrong: list[str] = []
    keep_to_threads(1)
    try:
        work(wrong)
    except (MilpverError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    for each in wrong:
        print(f"WRONG: {each}", file=sys.stderr)
    return 1 if wrong else 0


def machine() -> str:
    """The machine in a line."""
    facts = host()
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}"
