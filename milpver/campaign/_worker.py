"""A worker's process: forked from a nursery, or ``python -m milpver.campaign._worker MEMORY``.

Batches come by stdin, results go by stdout. It ends when its stdin does, so that no worker outlives the
campaign that started it. Ctrl-C is the campaign's affair: it says when to stop.

``python -m milpver.campaign._worker MEMORY THREADS SOCKET`` is a nursery, which such workers are forked from.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from milpver.campaign.frames import own_streams, receive, send
from milpver.campaign.nursery import serve

if TYPE_CHECKING:
    from milpver.campaign.store import Result
    from milpver.network import Network

__all__ = ["GATHER", "THREADS", "load_for_all", "main"]


def main(memory: int, networks: Mapping[str, Network] = MappingProxyType({})) -> None:
    """Answer until stdin ends.

    Args:
        memory: bytes that may be taken beyond what starting takes; 0 for no limit.
        networks: that are here already, by id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = own_streams()
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(incoming, messages, stop), daemon=True).start()

    from milpver.campaign.answering import Desk  # noqa: PLC0415  what follows takes seconds to load

    load()
    _limit_memory(memory)
    desk, outbox = Desk(networks), _Outbox(outgoing)
    outbox.say(("ready", os.getpid()))
    while True:
        word, content = messages.get()
        if word == "network":
            desk.take(content)
        elif word == "batch":
            began = time.monotonic()
            for result in desk.answer(content, stop.is_set):
                outbox.put(content.number, result)
            outbox.say(("end", (content.number, time.monotonic() - began)))


class _Outbox:
    """What a worker says: a result at once, but those that follow in no time together.

    Each message wakes up the campaign's process, which would cost more than the quickest queries.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._batch = 0
        self._results: list[Result] = []
        self._said = 0.0
        self._waits = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def say(self, message: object) -> None:
        """Say something after all results until now."""
        with self._lock:
            self._flush()
            send(self._stream, message)

    def put(self, batch: int, result: Result) -> None:
        """Say a result of a batch."""
        with self._lock:
            self._batch = batch
            self._results.append(result)
            if time.monotonic() - self._said >= GATHER:
                self._flush()
            else:
                self._waits.set()

    def _flush(self) -> None:
        if self._results:
            send(self._stream, ("results", (self._batch, self._results)))
            self._results = []
            self._said = time.monotonic()

    def _follow(self) -> None:
        """Say what nothing has followed for long enough."""
        while True:
            self._waits.wait()
            self._waits.clear()
            time.sleep(GATHER)
            with self._lock, suppress(OSError):
                self._flush()


def load() -> None:
    """Load what every question needs, so that the memory limit counts what queries take."""
    import onnxruntime  # noqa: F401, PLC0415  as said
    import torch  # noqa: F401, PLC0415  as said

    import milpver.distance  # noqa: PLC0415  as said
    import milpver.margin  # noqa: F401, PLC0415  as said


def load_for_all(threads: int, *, native: bool) -> None:
    """Load it once for all workers that are forked from this process.

    Args:
        threads: of each worker.
        native: whether any is to search by itself, in compiled code.
    """
    from milpver.machine import keep_to_threads  # noqa: PLC0415  loads what follows, too

    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    load()
    keep_to_threads(threads)
    if native:
        from milpver.search.chain import warm_up  # noqa: PLC0415  a second, where it is needed

        warm_up()


#: Seconds in which results that come close to each other are gathered.
GATHER = 0.05

#: Read by libraries for linear algebra when they are loaded: they take all cores otherwise, and workers side
#: by side would mostly wait for each other.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def _listen(incoming: BinaryIO, messages: queue.SimpleQueue[Any], stop: threading.Event) -> None:
    """Pass messages on; the end of them is the end of the process, whatever it is doing."""
    while (message := receive(incoming)) is not None:
        if message[0] == "stop":
            stop.set()
        else:
            messages.put(message)
    os._exit(0)


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
    if len(sys.argv) > 2:
        bytes_, count, number = map(int, sys.argv[1:])
        serve(
            socket.socket(fileno=number),
            lambda: load_for_all(count, native=True),
            lambda: main(bytes_),
        )
    else:
        with suppress(BrokenPipeError):
            main(int(sys.argv[1]))
