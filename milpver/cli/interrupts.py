"""Ctrl-C as a wish: the input under way is given up, what is done is kept.

The library itself has no signal handlers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupts"]

_FIRST = "stopping; once more to stop at once"
_SHOW_CURSOR = "\x1b[?25h"


class Interrupts:
    """While it is entered, the first SIGINT or SIGTERM sets ``asked``, and the second ends the process.

    Outside of the main thread, where Python takes no handlers, it does nothing.

    Attributes:
        asked: whether the user wants to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        # Straight to the descriptor: a handler may have come in the middle of a print.
        if self.asked:
            shown = _SHOW_CURSOR if sys.stderr is not None and sys.stderr.isatty() else ""
            _write(f"{shown}\nstopped at once\n")
            os._exit(130)
        self.asked = True
        _write(f"\n{_FIRST}\n")


def _write(text: str) -> None:
    try:
        os.write(2, text.encode("ascii"))
    except OSError:
        return
