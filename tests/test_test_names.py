"""The names of tests: the same in every process that collects them, which then share the tests out."""

from __future__ import annotations

import pytest


def test_names_hold_no_bytes(request: pytest.FixtureRequest) -> None:
    """The bytes of a packed file change with the clock: the time of packing stands in its head."""
    names = [item.nodeid for item in request.session.items]
    assert names
    assert [name for name in names if "\\x" in name] == []
