"""Compiling for the search: where there is no place for a cache, it compiles without one."""

from __future__ import annotations

from typing import Any

import numba
import pytest

from milpver.search._compile import compiled


def test_without_a_folder_for_the_cache_it_still_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = numba.njit, []

    def nowhere(*functions: Any, **options: Any) -> Any:
        if not functions:  # numba calls it, too, with a function
            asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return real(*functions, **options)

    monkeypatch.setattr(numba, "njit", nowhere)

    def twice(x: float) -> float:
        return 2.0 * x

    assert compiled(twice)(1.5) == 3.0
    assert asked == [True, False]
