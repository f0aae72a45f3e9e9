"""Messages between a process and its workers: pickled objects over a pipe, each with its length before it.

Both ends are the same program on the same machine, parent and child; nothing else reads or writes the pipe.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
from typing import IO, Any, BinaryIO

__all__ = ["ended_how", "own_streams", "receive", "send"]

_LENGTH = struct.Struct(">Q")


def send(stream: IO[bytes], message: object) -> None:
    """Write a message.

    Raises:
        OSError: the other end is gone.
    """
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read a message; None where the other end is gone, in the middle of one or not."""
    head = _exactly(stream, _LENGTH.size)
    data = None if head is None else _exactly(stream, _LENGTH.unpack(head)[0])
    return None if data is None else pickle.loads(data)


def _exactly(stream: IO[bytes], size: int) -> bytes | None:
    parts = []
    while size:
        try:
            part = stream.read(size)
        except (OSError, ValueError):  # ValueError: closed by this end
            return None
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def own_streams() -> tuple[BinaryIO, BinaryIO]:
    """A worker's pipes, kept from solvers: what these print goes to stderr, what they read is empty."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    return incoming, outgoing


def ended_how(code: int) -> str:
    """What a process's return code says: ``exit code 3``, ``SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
