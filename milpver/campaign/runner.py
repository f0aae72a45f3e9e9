"""Running a campaign: from what is not answered yet to what is, with whoever answers.

Queries are claimed in the store in small batches just before they are handed out, so that several processes
share the work, and each result is committed as it comes. Batches are as large as some seconds of work: many
queries where each is quick, since bounds of many inputs are computed together, and one where each is slow.

Which query made a worker crash is found by asking those that it left again: the first alone, the others in
halves. A query that ends its worker when it is alone with it, again and again, is answered by ``error`` with
the cause; a kill from outside hits nobody so often.
"""

from __future__ import annotations

import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from milpver import __version__
from milpver.campaign.answering import Batch, failure, parcel
from milpver.campaign.owners import Owner, this_process
from milpver.campaign.plan import Cell, Plan, network_id
from milpver.campaign.results import word_of
from milpver.campaign.store import CampaignRow, Limited, Result, Store
from milpver.campaign.workers import Answered, Died, Ended, LocalPool, Pool
from milpver.errors import QueryError
from milpver.machine import host
from milpver.query import NATIVE, Options
from milpver.registry import near
from milpver.verdict import Status

__all__ = ["RETRIED", "Observer", "Outcome", "parse_retry", "run_plan"]

#: What can be asked to run again.
RETRIED = (Status.TIMEOUT, Status.MEMORY, Status.ERROR, Status.UNAVAILABLE)

#: Seconds of work in a batch at most and, since to begin costs milliseconds, at least; queries in the first
#: one of a cell, and queries in any.
_WORK, _LEAST, _FIRST, _MOST = 8.0, 1.0, 8, 512
#: Queries whose bounds are computed together: larger batches ask for a multiple of it.
_TOGETHER = 32
#: Deaths of workers alone with a query until the query is at fault: by themselves, and by what may be a kill.
_CRASHES, _KILLS = 2, 3
#: Seconds between reports to the store, and between looks at what other processes do.
_BEAT, _LOOK = 5.0, 0.5
#: Seconds that workers have to give up when they are told to.
_GRACE = 10.0

_PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "scipy")


class Observer(Protocol):
    """Who is told how far a campaign is."""

    def begin(self, total: int, words: Mapping[str, int]) -> None:
        """It begins: so many queries, so many of them answered already, by how they ended."""

    def advance(self, word: str, seconds: float) -> None:
        """One more query is answered: how it ended, after how much work (0: another process's)."""

    def tick(self) -> None:
        """Called often."""

    def warn(self, text: str) -> None:
        """Something went wrong, in a line."""


class Silent:
    """An observer that says nothing."""

    def begin(self, total: int, words: Mapping[str, int]) -> None:
        """See Observer."""

    def advance(self, word: str, seconds: float) -> None:
        """See Observer."""

    def tick(self) -> None:
        """See Observer."""

    def warn(self, text: str) -> None:
        """See Observer."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run.

    Attributes:
        planned: number of queries.
        kept: answered before.
        answered: by this process.
        elsewhere: by other processes meanwhile.
        crashes: workers that died.
        seconds: it took.
    """

    planned: int
    kept: int
    answered: int
    elsewhere: int
    crashes: int
    seconds: float

    @property
    def left(self) -> int:
        """Queries without an answer."""
        return self.planned - self.kept - self.answered - self.elsewhere


def parse_retry(words: str) -> frozenset[Status]:
    """Read ``timeout,error``: the results that are to be found again.

    Raises:
        QueryError: something else is named.
    """
    found = set()
    for word in words.split(","):
        try:
            status = Status(word.strip())
        except ValueError:
            status = None
        if status not in RETRIED:
            known = [str(each) for each in RETRIED]
            raise QueryError(
                f"--retry {words}", needed=f"some of {', '.join(known)}", fix=near(word.strip(), known)
            )
        found.add(status)
    return frozenset(found)


def run_plan(
    plan: Plan,
    store: Store,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    retry: frozenset[Status] = frozenset(),
    timeout: float | None = None,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    command: Sequence[str] | None = None,
) -> Outcome:
    """Answer what is not answered yet.

    Args:
        plan: the campaign.
        store: where results go; other processes may work on it at the same time.
        workers: processes on this machine; what the spec says where None.
        scheduler: address of a Dask scheduler whose workers answer instead.
        retry: results to find again.
        timeout: seconds for each of these, in place of the spec's.
        observer: told how far it is.
        should_stop: asked now and then; True ends the run, keeping what is done.
        command: what to start as a worker in place of the real one, for tests.

    Raises:
        QueryError: the scheduler does not answer, or no worker can be started.
        SolverUnavailableError: Dask is not installed.
        RecordError: the store cannot be written.
    """
    campaign = store.register(plan, settings_of(plan))
    owner = this_process()
    run = _Run(plan, store, campaign, owner, retry, timeout, observer or Silent())
    if not run.lines:
        run.begin()
        return run.outcome()
    parcels = {each.id: each for each in map(parcel, plan.networks.values())}
    pool: Pool
    if scheduler is not None:
        from milpver.campaign.cluster import DaskPool  # noqa: PLC0415  an extra

        pool = DaskPool(scheduler, parcels)
    else:
        count = workers or plan.spec.workers
        pool = LocalPool(
            count,
            parcels,
            plan.spec.memory,
            plan.spec.threads,
            {network_id(each): each for each in plan.networks.values()},
            native=any(cell.options.solver in NATIVE for cell in plan.cells),
            command=command,
        )
    try:
        store.enlist(owner)
        run.begin()  # only now: who shows it may have a thread of its own, and workers are forked
        run.go(pool, should_stop)
    finally:
        pool.close()
        store.leave(owner)
    return run.outcome()


def settings_of(plan: Plan) -> dict[str, Any]:
    """What results can depend on beside the spec: versions and machine."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "milpver": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "machine": host(),
        "workers": plan.spec.workers,
    }


@dataclass(slots=True, eq=False)
class _Line:
    """Queries of a cell that wait, all under the same limits.

    Attributes:
        cell: whose queries.
        options: with the limits.
        queue: places in the cell's inputs that nobody is known to work on.
        elsewhere: key -> place of those that other processes have claimed.
        seconds, count: batches took so far, all queries of them together.
    """

    cell: Cell
    options: Options
    queue: deque[int]
    elsewhere: dict[bytes, int] = field(default_factory=dict)
    seconds: float = 0.0
    count: int = 0

    @property
    def limits(self) -> Limited:
        """Limits of the results."""
        return Limited.of(self.options.timeout, self.options.memory, self.options.threads)


class _Run:
    """The state of a run.

    Attributes:
        lines: what waits, in order.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        campaign: CampaignRow,
        owner: Owner,
        retry: frozenset[Status],
        timeout: float | None,
        observer: Observer,
    ) -> None:
        self._plan = plan
        self._store = store
        self._owner = owner
        self._observer = observer
        self._began = time.monotonic()
        self._again: dict[bytes, int] = {}
        self._copies: Counter[bytes] = Counter()
        self._strikes: Counter[bytes] = Counter()
        self._left: deque[tuple[_Line, Batch]] = deque()
        self._running: dict[int, tuple[_Line, float, set[bytes]]] = {}
        self._stopping = False
        self._processes = 1
        self._numbers = iter(range(1 << 62))
        self._answered = self._elsewhere = self._crashes = self._kept = 0
        self._words: Counter[str] = Counter()
        self.lines = self._read(campaign, retry, timeout)

    def begin(self) -> None:
        """Say how far it is."""
        self._observer.begin(self._plan.queries, self._words)

    def outcome(self) -> Outcome:
        """What came of it so far."""
        return Outcome(
            planned=self._plan.queries,
            kept=self._kept,
            answered=self._answered,
            elsewhere=self._elsewhere,
            crashes=self._crashes,
            seconds=time.monotonic() - self._began,
        )

    # ------------------------------------------------------------------------------------ beginning

    def _read(self, campaign: CampaignRow, retry: frozenset[Status], timeout: float | None) -> list[_Line]:
        """What is not answered yet."""
        words: Counter[str] = Counter()
        todo: dict[tuple[int, bool], deque[int]] = {}
        columns = ("p.cell", "p.position", "p.key", "r.id", "r.status", "r.verdict")
        first: dict[int, int] = {}
        for cell, position, key, number, status, verdict in self._store.rows(campaign, columns):
            place = position - first.setdefault(cell, position)
            again = number is not None and status in retry
            if number is not None and not again:
                words[word_of(status, verdict)] += 1
                self._kept += 1
                continue
            if again:
                self._again[key] = number
            self._copies[key] += 1
            if self._copies[key] == 1:  # the same query may stand in a campaign several times
                todo.setdefault((cell, again), deque()).append(place)
        self._words = words
        lines = []
        for (number, again), queue in sorted(todo.items()):
            cell = self._plan.cells[number]
            longer = replace(cell.options, timeout=timeout) if again and timeout is not None else cell.options
            lines.append(_Line(cell, longer, queue))
        return lines

    # -------------------------------------------------------------------------------------- working

    def go(self, pool: Pool, should_stop: Callable[[], bool]) -> None:
        """Answer everything, or as much as there is time for."""
        next_beat = next_look = time.monotonic()
        while self._waiting() or self._running:
            if should_stop():
                self._give_up(pool)
                return
            now = time.monotonic()
            if now >= next_beat:
                self._store.beat(self._owner)
                self._processes = max(1, self._store.alive())
                next_beat = now + (_BEAT if next_beat > self._began + _BEAT else 1.0)
            if now >= next_look and any(line.elsewhere for line in self.lines):
                self._look(grab=pool.free() > 0 and not any(line.queue for line in self.lines))
                next_look = time.monotonic() + _LOOK
            self._feed(pool)
            self._take(pool.events(0.1))
            self._observer.tick()

    def _waiting(self) -> bool:
        return bool(self._left) or any(line.queue or line.elsewhere for line in self.lines)

    def _feed(self, pool: Pool) -> None:
        """Keep everybody busy."""
        while pool.free() > 0 and (found := self._next(pool.size)) is not None:
            line, batch = found
            self._running[batch.number] = (line, time.monotonic(), set(batch.keys))
            pool.submit(batch)

    def _next(self, workers: int) -> tuple[_Line, Batch] | None:
        """Queries that are claimed for this process, or None where there are none."""
        if self._left:
            return self._left.popleft()
        for line in self.lines:
            while line.queue:
                count = self._count(line, workers)
                places = [line.queue.popleft() for _ in range(min(count, len(line.queue)))]
                mine = self._claim(line, places)
                if mine:
                    return line, self._batch(line, mine)
        return None

    def _count(self, line: _Line, workers: int) -> int:
        """How many queries make a batch: no more than what leaves others something to do at the end."""
        fair = -(-sum(len(each.queue) for each in self.lines) // (2 * workers * self._processes))
        if not line.count:
            count = min(_FIRST, fair)
        else:
            pace = max(line.seconds / line.count, 1e-6)
            count = min(int(_WORK / pace), max(fair, int(_LEAST / pace)))
        count = max(1, min(count, _MOST))
        return count + -count % _TOGETHER if count > _TOGETHER else count

    def _claim(self, line: _Line, places: Sequence[int]) -> list[int]:
        """Claim queries; those that are another process's wait until it has answered them, or is gone."""
        keys = {self._key(line, place): place for place in places}
        claimed = self._store.claim(self._owner, list(keys), line.limits, self._again)
        for key in claimed.done:
            self._done_elsewhere(key)
        line.elsewhere.update((key, keys[key]) for key in claimed.others)
        return [keys[key] for key in claimed.mine]

    def _look(self, *, grab: bool) -> None:
        """See what other processes have answered, and take over what is nobody's any more."""
        for line in self.lines:
            places = list(line.elsewhere.values())
            for start in range(0, len(places), _MOST):
                part = places[start : start + _MOST]
                keys = [self._key(line, place) for place in part]
                for key in self._store.answered(keys, line.limits, self._again):
                    line.elsewhere.pop(key)
                    self._done_elsewhere(key)
                if grab:
                    free = set(self._store.unclaimed([key for key in keys if key in line.elsewhere]))
                    for key in free:
                        line.queue.append(line.elsewhere.pop(key))

    def _key(self, line: _Line, place: int) -> bytes:
        source = self._plan.source(line.cell)
        return line.cell.key(source.hashes[place], source.labels[place])

    def _batch(self, line: _Line, places: Sequence[int]) -> Batch:
        source, cell = self._plan.source(line.cell), line.cell
        return Batch(
            number=next(self._numbers),
            cell=cell.number,
            network=network_id(self._plan.networks[cell.network]),
            kind=cell.kind,
            parameters=cell.parameters,
            domain=source.domain,
            options=line.options,
            solver_version=cell.solver_version,
            keys=tuple(self._key(line, place) for place in places),
            labels=tuple(source.labels[place] for place in places),
            indices=tuple(source.indices[place] for place in places),
            inputs=source.inputs[np.asarray(places, dtype=np.intp)],
            extra={
                "requested_solver": cell.options.solver,
                "solver_options": dict(cell.options.solver_options or {}),
                "memory": line.options.memory,
            },
        )

    # -------------------------------------------------------------------------------------- results

    def _take(self, events: Sequence[Answered | Ended | Died]) -> None:
        """Commit what came, all of it together, and see what is left."""
        ready: list[tuple[_Line, Batch, Result]] = []
        for event in events:
            line, _, open_keys = self._running[event.batch.number]
            if isinstance(event, Died):
                ready += self._after_death(event)
            elif isinstance(event, Ended):
                ready += self._after_end(event.batch, event.seconds)
            elif event.result.key in open_keys:
                open_keys.discard(event.result.key)
                ready.append((line, event.batch, event.result))
        if ready:
            self._store.commit([(result, line.limits) for line, _, result in ready])
        for _, batch, result in ready:
            self._tell(batch, result)

    def _tell(self, batch: Batch, result: Result) -> None:
        columns = result.columns
        copies = self._copies[result.key]
        self._answered += copies
        for k in range(copies):
            self._observer.advance(
                columns["verdict"] or columns["status"], columns["seconds"] if k == 0 else 0.0
            )
        if columns["status"] in (Status.ERROR, Status.UNAVAILABLE):
            index = batch.indices[batch.keys.index(result.key)]
            cell = self._plan.cells[batch.cell]
            about = f"{cell.question}, {cell.network}, {cell.data} {index}"
            self._observer.warn(f"{columns['status']}: {about}: {columns['message']}")

    def _done_elsewhere(self, key: bytes) -> None:
        self._elsewhere += self._copies[key]
        for _ in range(self._copies[key]):
            self._observer.advance("elsewhere", 0.0)

    def _after_end(self, batch: Batch, seconds: float) -> Iterator[tuple[_Line, Batch, Result]]:
        """A batch has ended: note how fast it was; what it left unanswered comes again, but not for ever."""
        line, _, open_keys = self._running.pop(batch.number)
        line.seconds += seconds
        line.count += len(batch.keys)
        for place, key in enumerate(batch.keys):
            if key in open_keys and not self._stopping:
                self._strikes[key] += 1
                if self._strikes[key] >= _KILLS:
                    open_keys.discard(key)
                    yield line, batch, failure(batch, place, "the worker gives no answer")
        self._again_in_parts(line, batch, open_keys, split=False)

    def _after_death(self, event: Died) -> Iterator[tuple[_Line, Batch, Result]]:
        """Whoever answered a batch is gone: find the query at fault, or try again."""
        self._crashes += 1
        batch = event.batch
        line, began, open_keys = self._running.pop(batch.number)
        if len(batch.keys) == 1 and open_keys:
            key = batch.keys[0]
            self._strikes[key] += 1
            if self._strikes[key] >= (_KILLS if event.outside else _CRASHES):
                yield line, batch, failure(batch, 0, f"crashed: {event.cause}", time.monotonic() - began)
                return
        self._again_in_parts(line, batch, open_keys, split=True)

    def _again_in_parts(self, line: _Line, batch: Batch, open_keys: set[bytes], *, split: bool) -> None:
        """Have the unanswered queries of a batch, which stay claimed, answered again."""
        places = [k for k, key in enumerate(batch.keys) if key in open_keys]
        if not places:
            return
        middle = 1 + len(places) // 2
        for part in (places[:1], places[1:middle], places[middle:]) if split else (places,):
            if part:
                again = replace(
                    batch,
                    number=next(self._numbers),
                    keys=tuple(batch.keys[k] for k in part),
                    labels=tuple(batch.labels[k] for k in part),
                    indices=tuple(batch.indices[k] for k in part),
                    inputs=batch.inputs[np.asarray(part, dtype=np.intp)],
                )
                self._left.append((line, again))

    def _give_up(self, pool: Pool) -> None:
        """Stop, keeping what comes until everybody has stopped."""
        self._stopping = True
        pool.stop()
        until = time.monotonic() + _GRACE
        while self._running and time.monotonic() < until:
            self._take(pool.events(0.1))
            self._observer.tick()
