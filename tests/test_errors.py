"""Every error says in one line what was found, what is needed and how to mend it, and survives pickling."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import milpver.errors
from milpver.errors import MilpverError

KINDS = [
    kind
    for _, kind in inspect.getmembers(milpver.errors, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == milpver.errors.__name__
]


def test_all_kinds_are_exported_and_of_one_tree() -> None:
    assert sorted(kind.__name__ for kind in KINDS) == milpver.errors.__all__
    assert len(KINDS) == 7
    for kind in KINDS:
        assert issubclass(kind, MilpverError)
        assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS)
def test_message_has_three_parts_in_one_line(kind: type[MilpverError]) -> None:
    error = kind("budget 9 for layer 1,\nwhich has 8 neurons", needed="at most 7", fix="lower\r\n it")
    assert str(error) == "budget 9 for layer 1, which has 8 neurons; needed: at most 7; fix: lower it"
    assert (error.found, error.needed, error.fix) == (
        "budget 9 for layer 1,\nwhich has 8 neurons",
        "at most 7",
        "lower\r\n it",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_can_be_left_out(kind: type[MilpverError]) -> None:
    for arguments in ({}, {"needed": "a"}, {"fix": "a"}):
        with pytest.raises(TypeError, match="missing"):
            kind("found", **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_as_worker_processes_need_it(kind: type[MilpverError], protocol: int) -> None:
    error = kind("found", needed="needed", fix="fix")
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert (twin.found, twin.needed, twin.fix) == ("found", "needed", "fix")


@given(st.text(), st.text(), st.text())
def test_any_text_stays_in_one_line(found: str, needed: str, fix: str) -> None:
    assert len(str(MilpverError(found, needed=needed, fix=fix)).splitlines()) == 1
