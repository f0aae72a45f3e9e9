"""The names of tests: the same in every process that collects them, or the processes cannot share them out."""

from __future__ import annotations

import pytest


def test_names_hold_no_bytes(request: pytest.FixtureRequest) -> None:
    """A name with the bytes of a packed file in it changes with the clock, which stands in the file's head."""
    names = [item.nodeid for item in request.session.items]
    assert names
    assert [name for name in names if "\\x" in name] == []
