"""Workers that are forked: whole, watched, killable, and nothing of them left open or running."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from milpver.campaign import _worker, workers
from milpver.campaign.nursery import Nursery, can_fork_here, is_possible
from milpver.campaign.runner import run_plan
from milpver.campaign.store import Store
from tests.campaign.conftest import Field
from tests.campaign.stub_worker import main as stub_main

pytestmark = pytest.mark.skipif(
    not is_possible(), reason="processes cannot be watched here without being their parent"
)


def shout() -> None:
    """Answer every line in capitals; some words do something else."""
    for line in sys.stdin.buffer:
        word = line.strip().decode("ascii")
        if word == "break":
            raise ValueError("something broke")
        if word.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, word))
        os.write(1, line.upper())


@contextmanager
def nursery(main: Callable[[], None] = shout) -> Iterator[tuple[Nursery, IO[bytes]]]:
    """A nursery with what its workers write to stderr."""
    with tempfile.TemporaryFile() as errors:
        found = Nursery.forked(lambda: None, main, errors)
        try:
            yield found, errors
        finally:
            found.close()


def said(errors: IO[bytes]) -> str:
    """What was written."""
    errors.seek(0)
    return errors.read().decode("utf-8")


def test_workers_answer_and_end_well() -> None:
    with nursery() as (mother, errors):
        both = [mother.start(errors) for _ in range(2)]
        for k, child in enumerate(both):
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"word %d\n" % k)
            child.stdin.flush()
            assert child.stdout.readline() == b"WORD %d\n" % k
        mother.listen(0.1)
        assert mother.loaded
        for child in both:
            assert child.stdin is not None
            assert child.stdout is not None
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.05)
            child.stdin.close()
            assert child.stdout.read() == b""
            assert child.wait(10) == 0
            child.stdout.close()
        assert len({child.pid for child in both} - {0, os.getpid()}) == 2
        assert said(errors) == ""


@pytest.mark.parametrize(
    ("word", "code", "trace"), [("SIGSEGV", -signal.SIGSEGV, ""), ("break", 1, "something broke")]
)
def test_it_tells_how_a_worker_ended(word: str, code: int, trace: str) -> None:
    with nursery() as (mother, errors):
        child = mother.start(errors)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{word}\n".encode("ascii"))
        child.stdin.flush()
        assert child.wait(10) == code
        assert trace in said(errors)
        child.stdin.close()
        child.stdout.close()


def test_workers_can_be_killed_even_without_their_nursery() -> None:
    with nursery() as (mother, errors):
        child, orphan = mother.start(errors), mother.start(errors)
        for each in (child, orphan):
            assert each.stdin is not None
            assert each.stdout is not None
            each.stdin.write(b"a\n")
            each.stdin.flush()
            assert each.stdout.readline() == b"A\n"
        child.kill()
        assert child.wait(10) == -signal.SIGKILL
        mother.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            orphan.wait(0.2)
        assert mother.lost
        with pytest.raises(BrokenPipeError):
            mother.start(errors)
        orphan.kill()
        assert orphan.wait(10) is None, "nobody can tell how it ended"
        for each in (child, orphan):
            assert each.stdin is not None
            assert each.stdout is not None
            each.stdin.close()
            assert each.stdout.read() == b""
            each.stdout.close()


def test_it_keeps_nothing_open_of_what_it_was_forked_from() -> None:
    """Else whoever waits for the end of a pipe of ours would wait for all workers as well."""
    reads, writes = os.pipe()
    with nursery() as (mother, errors):
        child = mother.start(errors)
        os.close(writes)
        assert select.select([reads], [], [], 5)[0] == [reads]
        assert os.read(reads, 1) == b""
        os.close(reads)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        assert child.wait(10) == 0
        child.stdout.close()


def test_forks_are_of_single_threads_without_torch() -> None:
    code = (
        "import sys, threading\n"
        "from milpver.campaign.nursery import can_fork_here\n"
        "found = [can_fork_here()]\n"
        "wait = threading.Event()\n"
        "other = threading.Thread(target=wait.wait)\n"
        "other.start()\n"
        "found.append(can_fork_here())\n"
        "wait.set()\n"
        "other.join()\n"
        "import torch\n"
        "found.append(can_fork_here())\n"
        "assert found == [True, False, False], found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not ("torch" in sys.modules and can_fork_here())


@pytest.mark.parametrize("crash", ["", "7:SIGSEGV"])
def test_a_pool_of_forked_workers(field: Field, monkeypatch: pytest.MonkeyPatch, crash: str) -> None:
    """The pool's own rules hold for them: a query that crashes its worker is an error, the others go on."""
    monkeypatch.setattr(workers, "can_fork_here", lambda: True)
    monkeypatch.setattr(_worker, "load_for_all", lambda *_args, **_options: None)
    monkeypatch.setattr(_worker, "main", lambda *_: stub_main(0.0, field.log, crash))
    plan = field.plan('[data]\npath = "data.npz"\nindex = "0:12"\n', workers=2)
    with Store.open(plan.spec.store, create=True) as store:
        found = run_plan(plan, store)
    assert (found.answered, found.left) == (24, 0)
    rows = field.rows(plan.spec.store, ("p.idx", "r.status", "r.message")).values()
    failed = [(index, message) for index, status, message in rows if status == "error"]
    assert [index for index, _ in failed] == ([7, 7] if crash else [])
    assert all("SIGSEGV" in message for _, message in failed)


def test_a_pool_outlives_its_nursery(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, workers are started one by one: real ones here, after the stubs."""

    def deadly() -> None:
        """Kill the nursery, then this worker: whatever it was asked has no answer yet."""
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(workers, "can_fork_here", lambda: True)
    monkeypatch.setattr(_worker, "load_for_all", lambda *_args, **_options: None)
    monkeypatch.setattr(_worker, "main", lambda *_: deadly())
    plan = field.plan('[data]\npath = "data.npz"\nindex = "0:6"\n')
    with Store.open(plan.spec.store, create=True) as store:
        found = run_plan(plan, store)
    assert (found.answered, found.left) == (12, 0)
    assert found.crashes >= 1
    assert "error" not in {row[0] for row in field.rows(plan.spec.store).values()}
