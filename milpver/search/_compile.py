"""The one place that names the compiler of the search's inner loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """Compile a function to machine code at its first call, and keep the code on disk for the next process.

    Sums may be reordered and products fused with sums, which the rounding bound allows for; NaN and infinity
    keep their meaning. Where nothing can be written to disk, every process compiles anew.
    """
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz"},
        "_nrt": False,  # nothing is allocated inside, so that no reference has to be counted
    }
    try:
        return cast(_Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba has found no folder for its cache
        return cast(_Function, numba.njit(**options)(function))
