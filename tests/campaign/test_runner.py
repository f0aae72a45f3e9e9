"""Running campaigns: kills, sharing, crashes, stops, retries; with stub workers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from milpver.campaign import owners
from milpver.campaign.runner import parse_retry, run_plan
from milpver.campaign.store import Store
from milpver.campaign.workers import LocalPool
from milpver.errors import QueryError
from milpver.verdict import Status

if TYPE_CHECKING:
    from tests.campaign.conftest import Field

posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds children in /proc")

THREE_HUNDRED = '[data]\npath = "data.npz"\nindex = "0:100"\n[[question]]\nkind = "margin"\n'
THREE_HUNDRED += 'budgets = ["1,0", "0,1", "2,1"]\n'


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if parent == str(pid) and state != "Z":
                    found.append(int(entry.name))
    return found


def outcome(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a campaign process printed at its end."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@linux
def test_kills_at_random_instants_lose_and_repeat_nothing(field: Field, until: Callable[..., None]) -> None:
    """300 queries; the campaign and workers are killed; each query has one result, as without kills."""
    columns = ("p.key", "r.status", "r.lower", "r.upper", "r.removed", "r.nodes")
    calm = field.plan(THREE_HUNDRED, name="calm", store="calm.sqlite", workers=2)
    field.run(calm)
    undisturbed = field.rows(calm.spec.store, columns)
    field.log.unlink()
    spec = field.spec(THREE_HUNDRED, name="killed", store="killed.sqlite", workers=2)
    draw = random.Random(11)
    kills = {"campaign": 0, "worker": 0}

    def some_more_answers() -> None:
        """Until a random number of queries more is answered, and a random fraction of the next one done."""
        wanted = len(field.answered()) + draw.randrange(1, 35)
        until(lambda: len(field.answered()) >= wanted or process.poll() is not None)
        time.sleep(draw.uniform(0, 0.02))

    for _ in range(3):
        process = field.start(spec, seconds=0.008)
        for _ in range(draw.randrange(1, 3)):
            some_more_answers()
            for worker in draw.sample(children(process.pid), 1):
                os.kill(worker, signal.SIGKILL)
                kills["worker"] += 1
        some_more_answers()
        process.kill()
        kills["campaign"] += 1
        process.communicate()
    assert outcome(field.start(spec, seconds=0.0))["left"] == 0
    assert min(kills.values()) >= 3, kills
    assert field.rows(field.folder / "killed.sqlite", columns) == undisturbed
    with Store.open(field.folder / "killed.sqlite") as store:
        counts = store._db.execute("SELECT count(*), count(DISTINCT key) FROM result").fetchone()
        left = store._db.execute(
            "SELECT (SELECT count(*) FROM claim), (SELECT count(*) FROM owner)"
        ).fetchone()
    assert counts == (300, 300)
    assert left == (0, 0)
    # What was answered twice is what a kill caught between the answer and its commit.
    repeated = sum(count - 1 for count in Counter(field.answered()).values())
    assert repeated <= 4 * sum(kills.values())


def span(field: Field) -> tuple[float, float]:
    """Seconds from the first answer to the last, and between the first answers of the processes."""
    answers = [(int(pid), float(at)) for _, pid, at in map(str.split, field.lines())]
    firsts = [min(at for each, at in answers if each == pid) for pid in {pid for pid, _ in answers}]
    return max(at for _, at in answers) - min(firsts), max(firsts) - min(firsts)


@posix
def test_two_processes_share_a_store(field: Field) -> None:
    """No query is answered twice, and two processes of one worker take at most 60 % of one's time."""
    text = '[data]\npath = "data.npz"\nindex = "0:60"\n[[question]]\nkind = "margin"\nbudgets = ["2,1"]\n'
    one = outcome(field.start(field.spec(text, name="one", store="one.sqlite"), seconds=0.1))
    assert one["answered"] == 60
    alone, _ = span(field)
    field.log.unlink()
    spec = field.spec(text, name="two", store="two.sqlite")
    both = [field.start(spec, seconds=0.1) for _ in range(2)]
    found = [outcome(process) for process in both]
    assert [each["left"] for each in found] == [0, 0]
    answered = field.answered()
    assert len(answered) == len(set(answered)) == 60
    assert sum(each["answered"] for each in found) == 60
    assert all(each["answered"] + each["elsewhere"] + each["kept"] == 60 for each in found)
    together, apart = span(field)
    # While only one of them has begun, it works alone.
    assert together - apart / 2 <= 0.6 * alone


@pytest.mark.parametrize(
    ("crash", "cause", "deaths"),
    [
        ("7:SIGSEGV", "SIGSEGV", 2),
        ("7:SIGKILL", "SIGKILL (out of memory, or ended by hand)", 3),
        ("7:exit", "exit code 3: something broke", 2),
    ],
)
@posix
def test_a_query_that_crashes_workers_is_an_error_and_the_others_go_on(
    field: Field, crash: str, cause: str, deaths: int
) -> None:
    text = '[data]\npath = "data.npz"\nindex = "0:12"\n[[question]]\nkind = "margin"\nbudgets = ["2,1"]\n'
    plan = field.plan(text)
    warnings: list[str] = []
    found = field.run(plan, crash=crash, observer=Listener(warnings))
    assert (found.answered, found.left) == (12, 0)
    assert found.crashes >= deaths
    rows = field.rows(plan.spec.store, ("p.idx", "r.status", "r.message"))
    failed = [row for row in rows.values() if row[1] == "error"]
    assert len(failed) == 1
    assert failed[0][0] == 7
    assert failed[0][2].startswith("crashed: the worker")
    assert cause in failed[0][2]
    assert sum(row[1] == "optimal" for row in rows.values()) == 11
    assert len(warnings) == 1
    assert "data 7: crashed" in warnings[0]


class Listener:
    """An observer that keeps what it is told."""

    def __init__(self, warnings: list[str]) -> None:
        self.warnings = warnings
        self.words: Counter[str] = Counter()
        self.total = 0

    def begin(self, total: int, words: dict[str, int]) -> None:
        """See Observer."""
        self.total = total
        self.words.update(words)

    def advance(self, word: str, seconds: float) -> None:
        """See Observer."""
        assert seconds >= 0
        self.words[word] += 1

    def tick(self) -> None:
        """See Observer."""

    def warn(self, text: str) -> None:
        """See Observer."""
        self.warnings.append(text)


def test_a_worker_that_hangs_is_ended(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milpver.campaign.workers._AND", 0.5)
    plan = field.plan(
        '[data]\npath = "data.npz"\nindex = "0:3"\n[[question]]\nkind="margin"\nbudgets=["2,1"]\n',
        timeout=0.1,
    )
    found = field.run(plan, crash="1:hang")
    assert found.left == 0
    messages = {row[0]: row[1] for row in field.rows(plan.spec.store, ("p.idx", "r.message")).values()}
    assert messages[0] == messages[2] == ""
    assert "hung" in messages[1]


def test_workers_that_cannot_start_are_said_to(field: Field) -> None:
    plan = field.plan()
    with (
        Store.open(plan.spec.store, create=True) as store,
        pytest.raises(QueryError, match="before they could begin"),
    ):
        run_plan(plan, store, command=["false"])


def test_what_is_done_is_not_done_again(field: Field) -> None:
    plan = field.plan()
    assert field.run(plan).answered == 80
    listener = Listener([])
    again = field.run(plan, observer=listener)
    assert (again.kept, again.answered) == (80, 0)
    assert len(field.answered()) == 80
    assert listener.total == 80 == listener.words.total()


@posix
def test_a_stop_keeps_what_is_done_and_resuming_goes_on(field: Field, until: Callable[..., None]) -> None:
    spec = field.spec()
    process = field.start(spec, seconds=0.05)
    until(lambda: len(field.answered()) > 5)
    process.send_signal(signal.SIGINT)
    stopped = outcome(process)
    assert 5 < stopped["answered"] < 80
    assert stopped["left"] == 80 - stopped["answered"]
    rest = outcome(field.start(spec, seconds=0.0))
    assert (rest["kept"], rest["left"]) == (stopped["answered"], 0)
    answered = field.answered()
    assert len(set(answered)) == 80


@linux
def test_workers_do_not_outlive_a_campaign_that_is_killed(field: Field, until: Callable[..., None]) -> None:
    process = field.start(field.spec(workers=2), seconds=30)
    until(lambda: len(children(process.pid)) == 2)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not any(owners._started(pid) for pid in workers))


@posix
def test_claims_of_a_killed_process_are_taken_over(field: Field, until: Callable[..., None]) -> None:
    """While a process is at work its queries are left alone; once it is killed they are not."""
    text = '[data]\npath = "data.npz"\nindex = "0:6"\n[[question]]\nkind = "margin"\nbudgets = ["2,1"]\n'
    spec = field.spec(text)
    stuck = field.start(spec, seconds=1000)
    store = field.folder / "c.sqlite"

    def claimed() -> int:
        if not store.exists():
            return 0
        with Store.open(store, create=True) as opened:
            return sum(opened.claims().values())

    until(lambda: claimed() > 0)
    other = field.start(spec, seconds=0.0)
    time.sleep(1.5)
    assert other.poll() is None, "it must wait for what the other process has in hand"
    stuck.kill()
    stuck.communicate()
    assert outcome(other)["left"] == 0
    assert len(set(field.answered())) == 6


def test_the_same_query_twice_in_a_campaign_is_answered_once(field: Field) -> None:
    plan = field.plan('[[question]]\nkind = "margin"\nbudgets = ["1,0", "1,-"]\n')
    found = field.run(plan)
    assert (found.planned, found.answered, found.left) == (80, 80, 0)
    assert len(field.answered()) == 40
    assert {row[0] for row in field.rows(plan.spec.store).values()} == {"optimal"}


def test_retry_asks_again_and_with_more_time(field: Field) -> None:
    plan = field.plan('[[question]]\nkind = "margin"\nbudgets = ["2,1"]\n')
    field.run(plan, crash="3:SIGSEGV")
    assert field.rows(plan.spec.store)[3][0] == "error"
    assert field.run(plan).answered == 0
    found = field.run(plan, retry=parse_retry("error"), timeout=120.0)
    assert (found.kept, found.answered) == (39, 1)
    assert field.rows(plan.spec.store)[3][0] == "optimal"
    assert field.run(plan, retry=parse_retry("timeout,error")).answered == 0


def test_retry_names_results_that_can_be_better() -> None:
    assert parse_retry("timeout, error") == {Status.TIMEOUT, Status.ERROR}
    for words in ("timeouts", "optimal", ""):
        with pytest.raises(QueryError, match="needed: some of timeout, memory, error, unavailable"):
            parse_retry(words)


@linux
def test_workers_leave_nothing_behind(field: Field) -> None:
    files = Path("/proc/self/fd")
    before = len(list(files.iterdir()))
    field.run(field.plan(workers=2))
    assert len(list(files.iterdir())) <= before
    assert children(os.getpid()) == []


def test_workers_keep_to_their_threads() -> None:
    """Linear algebra would take all cores in every worker, and most of the time wait for itself."""
    pool = LocalPool(2, {}, None, threads=3, command=["false"])
    environment = pool._environment
    pool.close()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        assert environment[name] == "3"
