"""Workers as processes of this machine: each answers one batch at a time, and may crash without harm.

What becomes of the queries that a dead worker leaves is the affair of ``runner``.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import IO, Any, Protocol

from milpver.campaign import _worker
from milpver.campaign.answering import Batch, Parcel
from milpver.campaign.frames import ended_how, receive, send
from milpver.campaign.nursery import Child, Nursery, can_fork_here, is_possible
from milpver.campaign.store import Result
from milpver.errors import QueryError
from milpver.network import Network

__all__ = ["Answered", "Died", "Ended", "LocalPool", "Pool"]

#: A worker hangs that says nothing for so many time limits of each query left to it, and so many seconds.
_HANGS_AFTER, _AND = 3.0, 60.0
#: Seconds more until it has said that it is ready: on a machine with other work, loading takes its time. And
#: those until a nursery is: the first one after an installation compiles the searches.
_TO_BEGIN, _TO_LOAD = 300.0, 3600.0
#: Workers in a row that may die before they say anything: by themselves, and by what may be a kill.
_FALSE_STARTS, _KILLED_STARTS = 3, 10


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """One query of a batch is answered."""

    batch: Batch
    result: Result


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """A batch has come to its end: all is answered, or it was told to stop.

    Attributes:
        batch: which.
        seconds: it took.
    """

    batch: Batch
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Died:
    """Whoever worked on a batch is gone.

    Attributes:
        batch: what it worked on.
        cause: in words.
        outside: whether it looks like a kill from outside.
    """

    batch: Batch
    cause: str
    outside: bool


class Pool(Protocol):
    """Whoever answers batches."""

    def free(self) -> int:
        """How many batches can be submitted now."""

    @property
    def size(self) -> int:
        """How many batches are worked on at a time."""

    def submit(self, batch: Batch) -> None:
        """Have a batch answered."""

    def events(self, timeout: float) -> Sequence[Answered | Ended | Died]:
        """What happened, waiting for at most some seconds until something does."""

    def stop(self) -> None:
        """Have whoever works give up; ``Ended`` follows for each batch, unless it takes too long."""

    def close(self) -> None:
        """Be done with it, whatever it is doing."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A process with its pipes.

    Attributes:
        batch: what it works on, or None.
        left: queries of it without an answer.
        heard: when it last said something.
        sent: ids of the networks it has.
        ready: whether it has said anything.
        hung: whether it was ended because it said nothing.
        lock: of its stdin.
    """

    process: subprocess.Popen[bytes] | Child
    errors: IO[bytes]
    batch: Batch | None = None
    left: int = 0
    heard: float = field(default_factory=time.monotonic)
    sent: set[str] = field(default_factory=set)
    ready: bool = False
    hung: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class LocalPool:
    """Processes of this machine.

    Args:
        count: how many at most.
        parcels: the networks by id.
        memory: bytes that each may take beyond what it needs to start, or None.
        threads: of each.
        networks: the same as ``parcels``, for workers that are forked from this process.
        native: whether queries are answered by compiled searches.
        command: what to start in place of the real worker, for tests.
    """

    def __init__(
        self,
        count: int,
        parcels: Mapping[str, Parcel],
        memory: int | None,
        threads: int = 1,
        networks: Mapping[str, Network] = MappingProxyType({}),
        *,
        native: bool = True,
        command: Sequence[str] | None = None,
    ) -> None:
        self._count = count
        self._parcels = parcels
        own = (sys.executable, "-m", "milpver.campaign._worker", str(memory or 0))
        self._command = list(command or own)
        self._environment = os.environ | dict.fromkeys(_worker.THREADS, str(threads))
        #: Ids of the networks that workers have from the beginning.
        self._born_with: frozenset[str] = frozenset()
        self._nursery: Nursery | None = None
        self._nursery_errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        if command is None and can_fork_here():
            self._born_with = frozenset(networks)
            self._nursery = Nursery.forked(
                lambda: _worker.load_for_all(threads, native=native),
                lambda: _worker.main(memory or 0, networks),
                self._nursery_errors,
            )
        elif command is None and is_possible():
            self._nursery = Nursery.started((*own, str(threads)), self._environment, self._nursery_errors)
        self._workers: list[_Worker] = []
        self._messages: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
        self._false_starts = 0
        self._stopping = False

    @property
    def size(self) -> int:
        """See Pool."""
        return self._count

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes."""
        return [worker.process.pid for worker in self._workers]

    def free(self) -> int:
        """See Pool."""
        return self._count - sum(worker.batch is not None for worker in self._workers)

    def submit(self, batch: Batch) -> None:
        """See Pool."""
        idle = [worker for worker in self._workers if worker.batch is None]
        worker = idle[0] if idle else self._start()
        worker.batch, worker.left, worker.heard = batch, len(batch.keys), time.monotonic()
        # Sent from a thread: a pipe takes some kilobytes only until the worker reads, which it does late.
        threading.Thread(target=self._send, args=(worker, batch), daemon=True).start()

    def _start(self) -> _Worker:
        errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the worker
        worker = _Worker(self._process(errors), errors)
        if isinstance(worker.process, Child):
            worker.sent.update(self._born_with)
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _process(self, errors: IO[bytes]) -> subprocess.Popen[bytes] | Child:
        """A worker from the nursery; by itself where there is none, or none any more."""
        if self._nursery is not None:
            with suppress(OSError):
                return self._nursery.start(errors)
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=-1,
            env=self._environment,
        )

    def _send(self, worker: _Worker, batch: Batch) -> None:
        stream = worker.process.stdin
        with suppress(OSError, ValueError):  # it is gone, as the other thread will notice
            if stream is None:
                return
            with worker.lock:
                if batch.network not in worker.sent:
                    worker.sent.add(batch.network)
                    send(stream, ("network", self._parcels[batch.network]))
                send(stream, ("batch", batch))

    def _listen(self, worker: _Worker) -> None:
        stream = worker.process.stdout
        while stream is not None and (message := receive(stream)) is not None:
            self._messages.put((worker, message))
        self._messages.put((worker, None))

    def events(self, timeout: float) -> Sequence[Answered | Ended | Died]:
        """See Pool."""
        found: list[Answered | Ended | Died] = []
        with suppress(queue.Empty):
            found += self._event(*self._messages.get(timeout=timeout))
            until = time.monotonic() + _worker.GATHER  # to be committed together
            while (left := until - time.monotonic()) > 0 and not (found and isinstance(found[-1], Ended)):
                found += self._event(*self._messages.get(timeout=left))
        self._end_those_that_hang()
        return found

    def _event(self, worker: _Worker, message: Any) -> list[Answered | Ended | Died]:
        worker.heard = time.monotonic()
        batch = worker.batch
        if message is None:
            return self._buried(worker)
        word, content = message
        if word == "ready":
            worker.ready, self._false_starts = True, 0
        elif word == "results" and batch is not None and content[0] == batch.number:
            worker.left -= len(content[1])
            return [Answered(batch, result) for result in content[1]]
        elif word == "end" and batch is not None and content[0] == batch.number:
            worker.batch = None
            return [Ended(batch, content[1])]
        return []

    def _buried(self, worker: _Worker) -> list[Answered | Ended | Died]:
        """A worker's pipe has ended."""
        if worker not in self._workers:
            return []
        self._workers.remove(worker)
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=10)
        cause, outside = self._cause(worker)
        _let_go(worker)
        if not worker.ready and not self._stopping:
            self._false_starts += 1
            if self._false_starts >= (_KILLED_STARTS if outside else _FALSE_STARTS):
                raise QueryError(
                    f"{self._false_starts} workers ended before they could begin: {cause}",
                    needed="processes that can be started, with memory enough for PyTorch and ONNX Runtime",
                    fix="free memory, lower workers, or see what `python -m milpver.campaign._worker 0` says",
                )
        if worker.batch is None:
            return []
        # One that never began is no query's fault.
        return [Died(worker.batch, cause, outside or not worker.ready)]

    def _cause(self, worker: _Worker) -> tuple[str, bool]:
        """Why a worker ended, and whether it looks like a kill from outside."""
        code = worker.process.returncode
        if worker.hung:
            return "the worker hung: it said nothing for far longer than the time limit, and was ended", False
        said = _last_line(worker.errors)
        if code is None and isinstance(worker.process, Child):
            said = said or _last_line(self._nursery_errors)
            return "the worker, and what it was forked from, ended" + (f": {said}" if said else ""), True
        if code is None:
            return "the worker closed its pipe", False
        if code >= 0:
            return f"the worker ended with {ended_how(code)}" + (f": {said}" if said else ""), False
        name = ended_how(code)
        outside = -code in {
            getattr(signal, each, None) for each in ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
        }
        hint = " (out of memory, or ended by hand)" if name == "SIGKILL" else ""
        return f"the worker was ended by {name}{hint}" + (f": {said}" if said else ""), outside

    def _end_those_that_hang(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.batch is not None:
                limit = _HANGS_AFTER * worker.batch.options.timeout * max(1, worker.left) + _AND
                limit += 0.0 if worker.ready else _TO_BEGIN
                if not worker.ready and isinstance(worker.process, Child) and not self._has_loaded():
                    limit += _TO_LOAD
                if now - worker.heard > limit:
                    worker.hung = True
                    worker.process.kill()

    def _has_loaded(self) -> bool:
        """Whether the nursery, if any, is ready."""
        if self._nursery is None:
            return True
        self._nursery.listen(0.0)
        return self._nursery.loaded or self._nursery.lost

    def stop(self) -> None:
        """See Pool."""
        self._stopping = True
        for worker in self._workers:
            threading.Thread(target=_tell_to_stop, args=(worker,), daemon=True).start()

    def close(self) -> None:
        """See Pool."""
        self._stopping = True
        for worker in self._workers:
            with suppress(OSError):
                worker.process.kill()
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=10)
            _let_go(worker)
        self._workers.clear()
        if self._nursery is not None:
            self._nursery.close()
        self._nursery_errors.close()


def _tell_to_stop(worker: _Worker) -> None:
    with suppress(OSError, ValueError), worker.lock:
        if worker.process.stdin is not None:
            send(worker.process.stdin, ("stop", None))


def _let_go(worker: _Worker) -> None:
    """Close a worker's pipes and files."""
    for stream in (worker.process.stdin, worker.process.stdout, worker.errors):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()


def _last_line(errors: IO[bytes]) -> str:
    """The last line that a worker wrote to stderr."""
    with suppress(OSError, ValueError):
        errors.seek(0, 2)
        errors.seek(max(0, errors.tell() - 2000))
        lines = errors.read().decode("utf-8", errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
    return ""
