"""A worker's process, ``python -m milpver.campaign._worker MEMORY``.

Batches come by stdin, results go by stdout. It ends when its stdin does, so that no worker outlives the
campaign that started it. Ctrl-C is the campaign's affair: it says when to stop.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from milpver.campaign.frames import receive, send

__all__ = ["main"]


def main(memory: int) -> None:
    """Answer until stdin ends.

    Args:
        memory: bytes that may be taken beyond what starting takes; 0 for no limit.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = _own_streams()
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(incoming, messages, stop), daemon=True).start()

    from milpver.campaign.answering import Desk  # noqa: PLC0415  what follows takes seconds to load

    _load()
    _limit_memory(memory)
    desk = Desk()
    send(outgoing, ("ready", os.getpid()))
    while True:
        word, content = messages.get()
        if word == "network":
            desk.take(content)
        elif word == "batch":
            for result in desk.answer(content, stop.is_set):
                send(outgoing, ("result", (content.number, result)))
            send(outgoing, ("end", content.number))


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes, kept from solvers that print or read: their stdout is stderr, their stdin is empty."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    return incoming, outgoing


def _listen(incoming: BinaryIO, messages: queue.SimpleQueue[Any], stop: threading.Event) -> None:
    """Pass messages on; the end of them is the end of the process, whatever it is doing."""
    while (message := receive(incoming)) is not None:
        if message[0] == "stop":
            stop.set()
        else:
            messages.put(message)
    os._exit(0)


def _load() -> None:
    """Load what every question needs, so that the memory limit counts what queries take."""
    import onnxruntime  # noqa: F401, PLC0415  as said
    import torch  # noqa: F401, PLC0415  as said

    import milpver.distance  # noqa: PLC0415  as said
    import milpver.margin  # noqa: F401, PLC0415  as said


def _limit_memory(memory: int) -> None:
    """Refuse memory beyond a limit, and be the first to go where the machine itself runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    if not memory or sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  not on Windows

    with suppress(OSError, ValueError):
        taken = _data_size()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = taken + memory
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_size() -> int:
    """Bytes that RLIMIT_DATA counts at present."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "VmData":
            return int(value.split()[0]) * 1024
    raise ValueError("the system does not tell")


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main(int(sys.argv[1]))
