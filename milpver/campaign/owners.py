"""Who works on a store: processes, and whether one that promised to answer queries is still there.

On one machine that is asked of the system: a process is known by its number and the moment it was started,
so that neither a number used again nor a machine started again is taken for it. Of another machine nothing is
known but when it last reported.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LEASE", "Owner", "is_gone", "this_process"]

#: Seconds without a report after which a process on another machine counts as gone.
LEASE = 120.0


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that answers queries.

    Attributes:
        id: unique.
        host: name of the machine, for people.
        place: what the process's number is unique in: machine, start of the machine, process namespace.
        pid: its number.
        started: when it was started, as the system tells; "" where it does not.
        heartbeat: when it last reported, seconds since the epoch.
    """

    id: str
    host: str
    place: str
    pid: int
    started: str
    heartbeat: float


def this_process() -> Owner:
    """The process that runs this."""
    pid = os.getpid()
    return Owner(uuid.uuid4().hex, socket.gethostname(), _place(), pid, _started(pid), time.time())


def is_gone(owner: Owner, now: float | None = None) -> bool:
    """Whether a process is certainly gone (here), or silent for longer than ``LEASE`` (elsewhere)."""
    if owner.place == _place():
        if not _exists(owner.pid):
            return True
        started = _started(owner.pid)
        return bool(started and owner.started and started != owner.started)
    if owner.host == socket.gethostname() and _boot() and _boot() not in owner.place:
        return True
    return (time.time() if now is None else now) - owner.heartbeat > LEASE


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _boot() -> str:
    """Identifies the time since the machine was started; "" where the system does not tell."""
    return _read("/proc/sys/kernel/random/boot_id")


def _place() -> str:
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{_boot()}/{namespace}"


def _started(pid: int) -> str:
    """Start of a process in the machine's ticks; "" where the system does not tell, or it has ended."""
    # The second field, the name, may hold anything but ends with the last bracket; zombies have ended.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] != "Z" else ""


def _exists(pid: int) -> bool:
    """Whether a process of this number runs."""
    if sys.platform == "win32":
        # os.kill would end the process there.
        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not (Path("/proc/self/stat").exists() and not _started(pid))
