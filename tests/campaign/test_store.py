"""The store: what it refuses, what answers what, and that it holds through kills."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milpver.campaign.owners import LEASE, Owner, is_gone, this_process
from milpver.campaign.store import FORMAT, Limited, Result, Store, pack, unpack
from milpver.errors import RecordError

if TYPE_CHECKING:
    from tests.campaign.conftest import Field

SHORT, LONG = Limited.of(10.0, 1 << 30, 1), Limited.of(100.0, 1 << 30, 1)
KEY, OTHER = b"k" * 32, b"o" * 32


def result(status: str, key: bytes = KEY, lower: float | None = None, message: str = "") -> Result:
    columns = {
        "status": status, "verdict": None, "assurance": None, "lower": lower, "upper": None, "target": None,
        "removed": None, "nodes": 0, "seconds": 1.0, "engine": "x", "message": message,
    }  # fmt: skip
    return Result(key, json.dumps(columns), columns, "here", pack(np.arange(3.0)))


def statuses(store: Store) -> list[str]:
    return [row[0] for row in store._db.execute("SELECT status FROM result ORDER BY id")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "s.sqlite", create=True)


# ------------------------------------------------------------------------------------------ the file


def test_writes_are_ahead_and_full(store: Store) -> None:
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no store"):
        Store.open(tmp_path / "none.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, foreign, empty = (tmp_path / name for name in ("t.sqlite", "f.sqlite", "e.sqlite"))
    text.write_text("some text that is long enough to be taken for a header of a file" * 20, encoding="ascii")
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE x (y)")
    db.close()
    empty.touch()
    before = {path: path.read_bytes() for path in (text, foreign, empty)}
    for path, why in ((text, "no SQLite file"), (foreign, "another program")):
        for create in (True, False):
            with pytest.raises(RecordError, match=f"no store of milpver: it is .*{why}"):
                Store.open(path, create=create)
    with pytest.raises(RecordError, match="it is empty"):
        Store.open(empty)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(RecordError, match="cannot be opened"):
        Store.open(tmp_path / "no folder" / "s.sqlite", create=True)


def test_a_newer_format_is_refused(store: Store) -> None:
    store._db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    store.close()
    with pytest.raises(RecordError, match=f"has format {FORMAT + 1}; needed: format {FORMAT}.*newer milpver"):
        Store.open(store.path, create=True)


def test_damage_is_found(store: Store) -> None:
    store.commit([(result("optimal", bytes([k]) * 32), SHORT) for k in range(200)])
    store.close()
    data = bytearray(store.path.read_bytes())
    half = len(data) // 2
    data[half : half + 5000] = os.urandom(5000)
    store.path.write_bytes(data)
    with pytest.raises(RecordError, match="is damaged"):
        Store.open(store.path, check=True)


def test_a_file_that_was_cut_off_is_damaged(store: Store) -> None:
    store.commit([(result("optimal", bytes([k]) * 32), SHORT) for k in range(200)])
    store.close()
    store.path.write_bytes(store.path.read_bytes()[:9000])
    with pytest.raises(RecordError, match="is damaged"):
        Store.open(store.path, check=True)


def test_two_processes_may_make_it_at_once(tmp_path: Path) -> None:
    code = "from pathlib import Path; from milpver.campaign.store import Store; import sys;"
    code += "Store.open(Path(sys.argv[1]), create=True).close()"
    path = tmp_path / "s.sqlite"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE) for _ in range(3)
    ]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3
    Store.open(path, check=True).close()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, '.');"
        "from pathlib import Path; from milpver.campaign.store import Store, Limited;"
        "from tests.campaign.test_store import result, SHORT;"
        "s = Store.open(Path(sys.argv[1]), create=True);"
        "put = lambda k: s.commit([(result('optimal', k.to_bytes(32, 'big')), SHORT)]);"
        "[(put(k), print(k, flush=True)) for k in range(10**6)]"
    )
    root = Path(__file__).resolve().parent.parent.parent
    path = tmp_path / "s.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.communicate()
    whole = [int(line) for line in said if line.endswith("\n")]
    with Store.open(path, check=True) as opened:
        keys = {int.from_bytes(row[0], "big") for row in opened._db.execute("SELECT key FROM result")}
    assert keys >= set(whole)
    assert len(keys) <= len(whole) + 2


# ------------------------------------------------------------------------------- what answers what


def test_a_finished_result_answers_under_any_limits(store: Store) -> None:
    store.commit([(result("optimal"), LONG)])
    for limits in (SHORT, LONG, Limited.of(1000.0, None, 8)):
        assert store.answered([KEY, OTHER], limits) == [KEY]


def test_an_unfinished_result_answers_what_asks_for_no_more(store: Store) -> None:
    store.commit([(result("timeout"), LONG)])
    assert store.answered([KEY], SHORT) == [KEY] == store.answered([KEY], LONG)
    for more in (Limited.of(101.0, 1 << 30, 1), Limited.of(100.0, None, 1), Limited.of(100.0, 1 << 30, 2)):
        assert store.answered([KEY], more) == []


def test_results_replace_those_that_are_less(store: Store) -> None:
    store.commit([(result("timeout", lower=1.0), SHORT)])
    store.commit([(result("error", message="crashed"), SHORT)])
    assert statuses(store) == ["timeout"], "an error takes no bracket's place"
    store.commit([(result("timeout", lower=2.0), LONG)])
    assert statuses(store) == ["timeout"]
    store.commit([(result("timeout", lower=1.0), SHORT)])
    store.commit([(result("optimal", lower=3.0), SHORT)])
    store.commit([(result("optimal", lower=4.0), LONG), (result("error"), LONG)])
    assert [tuple(row) for row in store._db.execute("SELECT status, lower, attempt FROM result")] == [
        ("optimal", 3.0, 4)
    ]


def test_claims_are_one_process_s_alone(store: Store) -> None:
    here = this_process()
    other = replace(here, id="other", pid=os.getppid(), started="")
    for owner in (here, other):
        store.enlist(owner)
    assert store.claim(here, [KEY], SHORT).mine == (KEY,)
    assert store.claim(other, [KEY, OTHER], SHORT).others == (KEY,)
    assert store.unclaimed([KEY, OTHER, b"x" * 32]) == [b"x" * 32]
    assert store.claims() == {here.id: 1, "other": 1}
    store.commit([(result("optimal"), SHORT)])
    assert store.claim(other, [KEY], SHORT).done == (KEY,)
    assert store.claim(other, [KEY], SHORT, again={KEY: 10**9}).mine == (KEY,), "it is to be found again"
    store.leave(other)
    assert store.claims() == {}
    store.release([KEY])
    store.leave(here)
    assert store.owners() == []


def test_claims_of_processes_that_are_gone_are_taken_over(store: Store) -> None:
    here = this_process()
    gone = replace(here, id="gone", pid=2**22 + 7)
    silent = replace(here, id="silent", place="elsewhere", host="elsewhere")
    with store._transaction():
        for owner in (gone, silent):
            store._db.execute(
                "INSERT INTO owner VALUES (?, ?, ?, ?, ?, ?)",
                (owner.id, owner.host, owner.place, owner.pid, owner.started, time.time() - LEASE - 1),
            )
        store._db.execute("INSERT INTO claim VALUES (?, 'gone'), (?, 'silent')", (KEY, OTHER))
    store.enlist(here)
    assert set(store.claim(here, [KEY, OTHER], SHORT).mine) == {KEY, OTHER}
    assert [owner.id for owner in store.owners()] == [here.id]


def test_who_is_gone() -> None:
    here = this_process()
    assert not is_gone(here)
    assert not is_gone(replace(here, heartbeat=0.0)), "a closed laptop reports nothing, and goes on"
    process = subprocess.Popen([sys.executable, "-c", ""])
    ended = replace(here, pid=process.pid, started="1")
    process.wait()
    assert is_gone(ended)
    if here.started:
        assert is_gone(replace(here, started="12")), "another process of the same number"
    elsewhere = Owner("x", "far", "far/boot/", 1, "", 1000.0)
    assert not is_gone(elsewhere, now=1000.0 + LEASE - 1)
    assert is_gone(elsewhere, now=1000.0 + LEASE + 1)


# ------------------------------------------------------------------------------------- campaigns


def test_a_plan_is_written_once_and_replaced_when_it_changes(field: Field) -> None:
    plan = field.plan()
    with Store.open(plan.spec.store, create=True) as store:
        first = store.register(plan, {"a": 1})
        again = store.register(plan, {"a": 2})
        assert (again.id, again.created, again.settings) == (first.id, first.created, {"a": 2})
        assert len(store.cells(again)) == 2
        assert len(list(store.rows(again, ("p.key",)))) == 80
        smaller = field.plan('[[question]]\nkind = "margin"\nbudgets = ["1,0"]\n')
        changed = store.register(smaller, {})
        assert len(list(store.rows(changed, ("p.key",)))) == 40
        other = store.register(field.plan(name="other"), {})
        assert [row.name for row in store.campaigns()] == ["other", "c"]
        assert store.campaign().id == other.id
        assert store.campaign("c").spec == smaller.spec.text
        with pytest.raises(RecordError, match="no campaign 'd'; needed: one that has been run: 'other', 'c'"):
            store.campaign("d")
        network = store.networks(changed)["net"]
        assert [layer["width"] for layer in network["layers"]] == [8, 5]
        assert network["shape"] == (6,)


def test_inputs_are_kept(field: Field) -> None:
    plan = field.plan()
    with Store.open(plan.spec.store, create=True) as store:
        store.register(plan, {})
        source = plan.source(plan.cells[0])
        found = store.inputs(source.hashes[:3])
    for hash_, x in zip(source.hashes[:3], source.inputs, strict=False):
        np.testing.assert_array_equal(found[hash_], x)


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_arrays_are_packed_exactly(kind: str) -> None:
    values = np.array([0.1, -0.0, np.inf, 1e-320, 3], dtype=kind)
    np.testing.assert_array_equal(unpack(pack(values), np.dtype(kind)), values)
