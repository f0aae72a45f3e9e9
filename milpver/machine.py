"""What times depend on: the machine that a run was made on, and how much of it a process takes."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["host", "keep_to_threads", "numpy_threads"]


def host() -> dict[str, Any]:
    """What times depend on: processor, cores, memory (GiB), operating system, Python."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": _memory(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def keep_to_threads(count: int) -> None:
    """Keep torch, and the linear algebra that numpy and scipy call, to some threads in this process.

    They take all cores otherwise, and processes side by side would mostly wait for each other.

    Args:
        count: threads, >= 1.
    """
    import torch  # noqa: PLC0415  seconds, and only those who answer need it
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  it looks through all loaded libraries

    torch.set_num_threads(count)
    threadpool_limits(limits=count, user_api="blas")


@contextmanager
def numpy_threads(count: int) -> Iterator[None]:
    """Keep the linear algebra that numpy and scipy call to some threads inside, without loading torch.

    Threads that wait for small products take a core each, and make them slower.

    Args:
        count: threads, >= 1.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  it looks through all loaded libraries

    with threadpool_limits(limits=count, user_api="blas"):
        yield


def _cpu() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _memory() -> float | None:
    """Physical memory in GiB, None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
