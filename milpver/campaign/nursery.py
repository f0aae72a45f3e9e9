"""Workers without the seconds that each of them would load libraries: forked from one process that has them.

That process, the nursery, stays a single thread, so that a fork of it is whole. It is forked from the
campaign's own process where that is a single thread itself (as `milpver campaign run` is) and so shares what
is loaded there already, networks included; elsewhere it is started afresh. Where processes cannot be watched
without being their parent (systems other than Linux, old kernels) there is none, and workers are started one
by one.

Between the two goes a socket: a request for a worker carries the worker's stdin, stdout and stderr; back
come the statuses of those that have ended. Both ends see by its end that the other is gone.
"""

from __future__ import annotations

import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any, Final, NoReturn

__all__ = ["Child", "Nursery", "can_fork_here", "is_possible", "serve"]

#: Bytes of a message at most.
_MESSAGE: Final = 4096
#: Seconds that a nursery has to end.
_TO_END: Final = 10.0


class Child:
    """A worker from a nursery, with the part of ``subprocess.Popen`` that whoever keeps it needs.

    Attributes:
        stdin, stdout: its pipes.
        pid: 0 until the nursery has told.
        returncode: as ``subprocess.Popen`` has it; None while it runs, or where nobody can tell.
    """

    def __init__(self, nursery: Nursery, number: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self.pid = 0
        self.returncode: int | None = None
        self._nursery = nursery
        self._number = number
        self._handle: int | None = None

    def born(self, pid: int) -> None:
        """Take note of its number; a handle keeps that from meaning another process later."""
        self.pid = pid
        with suppress(OSError):  # it has ended
            self._handle = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        until = time.monotonic() + (_TO_END if timeout is None else timeout)
        while self.returncode is None and not self._nursery.lost:
            if (left := until - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired("worker", timeout or _TO_END)
            self._nursery.listen(left)
        if self._handle is not None:
            if self.returncode is None and not _ends(self._handle, until - time.monotonic()):
                raise subprocess.TimeoutExpired("worker", timeout or _TO_END)
            os.close(self._handle)
            self._handle = None
        return self.returncode

    def kill(self) -> None:
        """End it, now."""
        self._nursery.listen(0.0)
        if self._handle is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        elif self.pid == 0 and self.returncode is None:
            self._nursery.kill()  # it does not even begin


def _ends(handle: int, timeout: float) -> bool:
    """Whether a process ends within some seconds, by its handle."""
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    return bool(waiting.poll(1000 * max(timeout, 0.0)))


class Nursery:
    """A process that workers are forked from.

    Attributes:
        lost: whether it is gone.
        loaded: whether it has said that it has loaded everything.
    """

    def __init__(self, pid: int, line: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self.lost = False
        self.loaded = False
        self._pid = pid
        self._line = line
        self._process = process
        self._children: dict[int, Child] = {}
        self._count = 0

    @staticmethod
    def forked(load: Callable[[], None], main: Callable[[], None], errors: IO[bytes]) -> Nursery:
        """Fork a nursery from this process; see ``can_fork_here``.

        Args:
            load: what it loads first.
            main: what workers do.
            errors: its stderr.

        Raises:
            OSError: the system has no process left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = _fork()
        if pid == 0:
            _in_child(lambda: _apart(theirs, load, main, errors))
        theirs.close()
        return Nursery(pid, ours)

    @staticmethod
    def started(command: Sequence[str], environment: Mapping[str, str], errors: IO[bytes]) -> Nursery:
        """Start a nursery afresh, by a command that takes the number of a socket and calls ``serve``.

        Args:
            command: to which the number is added.
            environment: of the process.
            errors: its stderr.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env=dict(environment),
            )
        return Nursery(process.pid, ours, process)

    def start(self, errors: IO[bytes]) -> Child:
        """Have a worker forked, as soon as all is loaded.

        Args:
            errors: its stderr.

        Raises:
            OSError: the nursery is gone, or there are no pipes left.
        """
        ends: list[int] = []
        try:
            ends += os.pipe()
            ends += os.pipe()
            number = self._count
            request = json.dumps({"start": number}).encode("ascii")
            socket.send_fds(self._line, [request], [ends[0], ends[3], errors.fileno()])
        except OSError:
            for end in ends:
                os.close(end)
            raise
        os.close(ends[0])
        os.close(ends[3])
        self._count += 1
        child = Child(self, number, os.fdopen(ends[1], "wb"), os.fdopen(ends[2], "rb"))
        self._children[number] = child
        return child

    def listen(self, timeout: float) -> None:
        """Hear what has become of workers, waiting for at most some seconds for the first word."""
        self._line.settimeout(max(timeout, 1e-3))
        while not self.lost:
            try:
                data = self._line.recv(_MESSAGE)
            except TimeoutError:
                return
            except OSError:
                data = b""
            if not data:
                self.lost = True
                return
            self._hear(json.loads(data))
            self._line.settimeout(1e-3)

    def _hear(self, word: Mapping[str, int]) -> None:
        if "loaded" in word:
            self.loaded = True
            return
        child = self._children[word["worker"]]
        if "pid" in word:
            child.born(word["pid"])
        else:
            child.returncode = word["ended"]
            self._children.pop(word["worker"])

    def kill(self) -> None:
        """End it, now; workers go on until their stdin ends."""
        with suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Be done with it; workers have been ended before."""
        self._line.close()
        self.lost = True
        until = time.monotonic() + _TO_END
        while not self._over():
            if time.monotonic() > until:
                self.kill()
                until += _TO_END
            time.sleep(0.002)

    def _over(self) -> bool:
        if self._process is not None:
            return self._process.poll() is not None
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True


def can_fork_here() -> bool:
    """Whether a fork of this process is as good as the process: nothing else runs in it, nor has.

    Libraries for linear algebra look after their threads. PyTorch's do not, so it must not be loaded yet.
    """
    return is_possible() and threading.active_count() == 1 and "torch" not in sys.modules


def is_possible() -> bool:
    """Whether there are nurseries on this system."""
    if not sys.platform.startswith("linux") or not hasattr(signal, "pidfd_send_signal"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def serve(line: socket.socket, load: Callable[[], None], main: Callable[[], None]) -> None:
    """Be a nursery until the other end of the socket is gone.

    Args:
        line: the socket.
        load: what is loaded first.
        main: what workers do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Garbage collections would look through all that is being loaded, again and again: a fifth of the time.
    gc.disable()
    load()
    gc.freeze()  # so that no collection writes to pages that workers share
    gc.enable()
    line.send(json.dumps({"loaded": 1}).encode("ascii"))
    with selectors.DefaultSelector() as watched:
        watched.register(line, selectors.EVENT_READ)
        while True:
            for key, _ in watched.select():
                if key.data is not None:
                    watched.unregister(key.fd)
                    os.close(key.fd)
                    _bury(line, *key.data)
                    continue
                request, ends, _, _ = socket.recv_fds(line, _MESSAGE, 3)
                if not request:
                    return
                number = json.loads(request)["start"]
                pid = _fork()
                if pid == 0:
                    _in_child(partial(_be_born, line, watched, ends, main))
                for end in ends:
                    os.close(end)
                watched.register(os.pidfd_open(pid), selectors.EVENT_READ, (number, pid))
                line.send(json.dumps({"worker": number, "pid": pid}).encode("ascii"))


def _bury(line: socket.socket, number: int, pid: int) -> None:
    """Tell how a worker has ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    line.send(json.dumps({"worker": number, "ended": code}).encode("ascii"))


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads, those of linear algebra included, which end and begin again by themselves.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _in_child(work: Callable[[], Any]) -> NoReturn:
    """Do something in a forked process, and end it without a trace of what it was forked from."""
    code = 1
    try:
        work()
        code = 0
    except BrokenPipeError:
        code = 0
    except BaseException:
        import traceback  # noqa: PLC0415  only where something broke

        os.write(2, traceback.format_exc().encode("utf-8", errors="replace"))
    finally:
        os._exit(code)


def _apart(
    line: socket.socket, load: Callable[[], None], main: Callable[[], None], errors: IO[bytes]
) -> None:
    """Be a nursery that keeps nothing open of what it was forked from."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nowhere, 0), (nowhere, 1), (errors.fileno(), 2)):
        os.dup2(source, target)
    kept = line.fileno()
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    _streams()
    serve(line, load, main)


def _streams() -> None:
    """Python's own streams over descriptors 0, 1 and 2: locks and texts of the old ones may be anybody's."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  for the process's life
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False
    )


def _be_born(
    line: socket.socket, watched: selectors.BaseSelector, ends: Sequence[int], main: Callable[[], None]
) -> None:
    """Be a worker."""
    for key in list(watched.get_map().values()):
        if key.data is not None:
            os.close(key.fd)
    watched.close()
    line.close()
    for place, end in enumerate(ends):
        os.dup2(end, place)
        os.close(end)
    _streams()
    main()
