"""The command line: ``milpver info | margin | distance | compare | export | import-solution | ...``.

Here are the things that all commands share: the exit codes, and that whatever goes wrong is said in one
line. Each command is a module of its own and imports what it needs when it runs, so that ``--help`` answers
at once.

Exit codes: 0 completed (whatever the verdicts), 2 what the user can mend, 130 interrupted, 1 a defect.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from milpver.cli.parser import UsageError, parse
from milpver.errors import MilpverError

__all__ = ["main"]

DONE, DEFECT, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

#: Objects between two collections of garbage in a process of our own: loading torch makes many, none of them
#: garbage, so that the usual 700 cost a fifth of a second.
_UNCOLLECTED = 50_000

#: Set to 1, a defect shows where it happened.
TRACEBACK = "MILPVER_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments without the program's name; those of the process where None.

    Returns:
        The exit code.
    """
    if sys.stdout is None:
        return _fail("stdout is closed; needed: a place for the answers; fix: send them to /dev/null")
    if argv is None:
        gc.set_threshold(_UNCOLLECTED, 50, 50)
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        code = DONE
    except (UsageError, MilpverError) as error:
        code = _fail(str(error))
    except KeyboardInterrupt:
        _say("interrupted")
        code = INTERRUPTED
    except Exception as error:
        code = _unforeseen(error)
    _let_go_of_stdout()
    return code


def _run(argv: Sequence[str]) -> int:
    """Read the command line and run its command."""
    try:
        arguments = parse(argv)
    except SystemExit:  # argparse has printed a help text
        return DONE
    code: int = import_module(arguments.module).run(arguments)
    return code


def _unforeseen(error: Exception) -> int:
    """What no command foresaw: the machine's limits are the user's to mend, the rest is a defect."""
    if _is_out_of_memory(error):
        return _fail(
            "out of memory; needed: more than this machine has left; "
            "fix: ask about fewer inputs at once (--index), or use a smaller model"
        )
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return _fail(
            f"{name}{error.strerror or error}; needed: files and streams that can be read and written; "
            "fix: check the disk's space and the permissions"
        )
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exc()
    said = " ".join(f"{type(error).__name__}: {error}".split())
    _say(
        f"error: internal: {said}; this is a defect of milpver: "
        f"please report it with what the same command prints under {TRACEBACK}=1"
    )
    return DEFECT


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch says so in a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        said in str(error).lower() for said in ("out of memory", "can't allocate memory")
    )


def _fail(message: str) -> int:
    """Say in one line what the user can mend."""
    _say(f"error: {' '.join(message.split())}")
    return USER_ERROR


def _say(line: str) -> None:
    """Write a line to stderr, if there is one."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _let_go_of_stdout() -> None:
    """Where its reader has gone, send what is still buffered nowhere: Python would complain at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError), Path(os.devnull).open("w", encoding="ascii") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
