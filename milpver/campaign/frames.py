"""Messages between a campaign and its workers: pickled objects over a pipe, each with its length before it.

Both ends are the same program on the same machine, parent and child; nothing else reads or writes the pipe.
"""

from __future__ import annotations

import pickle
import struct
from typing import IO, Any

__all__ = ["receive", "send"]

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
