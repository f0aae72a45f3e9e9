"""The store of a campaign: one SQLite file that survives whatever ends the program.

Write-ahead log and full synchronous writes: once ``commit`` returns, a result is on the disk, and a kill or a
power cut costs at most what was still running. Results are kept by the key of their query (see ``plan``); one
that is finished is an answer under any limits, one that is not answers as long as no more time, memory or
threads are asked for than it had. Several processes work on one store: each claims queries before it answers
them, and takes over what a process that is gone had claimed.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from milpver.campaign.owners import Owner, is_gone
from milpver.campaign.plan import Plan, network_id
from milpver.errors import RecordError
from milpver.verdict import Status

__all__ = ["FINISHED", "FORMAT", "CampaignRow", "Claimed", "Limited", "Result", "Store", "pack", "unpack"]

#: Version of the layout below, kept in the file.
FORMAT: Final = 1
#: Marks the file as ours ("MiLP").
APPLICATION: Final = 0x4D694C50

#: A result that ended so is an answer under any limits.
FINISHED: Final = frozenset({Status.OPTIMAL, Status.DECIDED, Status.INFEASIBLE, Status.MISCLASSIFIED})

#: Seconds to wait for another process that writes.
_PATIENCE = 60.0
#: Parameters of one statement.
_MANY = 500

_SCHEMA = """
CREATE TABLE campaign (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, path TEXT NOT NULL,
    settings TEXT NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL);
CREATE TABLE network (
    campaign INTEGER NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, sha256 TEXT NOT NULL, path TEXT NOT NULL,
    layers TEXT NOT NULL, shape TEXT NOT NULL, outputs INTEGER NOT NULL,
    PRIMARY KEY (campaign, name)) WITHOUT ROWID;
CREATE TABLE cell (
    campaign INTEGER NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, description TEXT NOT NULL,
    PRIMARY KEY (campaign, number)) WITHOUT ROWID;
CREATE TABLE plan (
    campaign INTEGER NOT NULL, position INTEGER NOT NULL, cell INTEGER NOT NULL, idx INTEGER NOT NULL,
    label INTEGER NOT NULL, key BLOB NOT NULL, input BLOB NOT NULL,
    PRIMARY KEY (campaign, position)) WITHOUT ROWID;
CREATE TABLE input (hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE result (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, limits TEXT NOT NULL, finished INTEGER NOT NULL,
    timeout REAL NOT NULL, memory REAL NOT NULL, threads INTEGER NOT NULL,
    status TEXT NOT NULL, verdict TEXT, assurance TEXT, lower REAL, upper REAL, target INTEGER, removed TEXT,
    nodes INTEGER NOT NULL, seconds REAL NOT NULL, engine TEXT NOT NULL, message TEXT NOT NULL,
    host TEXT NOT NULL, at REAL NOT NULL, attempt INTEGER NOT NULL, record TEXT NOT NULL, witness BLOB,
    UNIQUE (key, limits));
CREATE TABLE owner (
    id TEXT PRIMARY KEY, host TEXT NOT NULL, place TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL,
    heartbeat REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE claim (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
"""

#: The result that answers a query under limits: a finished one before others, then the one with most time.
_ANSWER = """(
    SELECT r.id FROM result r WHERE r.key = {key}
    AND (r.finished OR (r.timeout >= :timeout AND r.memory >= :memory AND r.threads >= :threads))
    ORDER BY r.finished DESC, r.status IN ('error', 'unavailable'), r.timeout DESC, r.id DESC LIMIT 1)"""


@dataclass(frozen=True, slots=True)
class Limited:
    """How long a query may be worked on: seconds, bytes (infinity for no limit), threads."""

    timeout: float
    memory: float
    threads: int

    @classmethod
    def of(cls, timeout: float, memory: int | None, threads: int) -> Limited:
        """From options."""
        return cls(float(timeout), float("inf") if memory is None else float(memory), int(threads))

    @property
    def text(self) -> str:
        """As part of an unfinished result's key."""
        return f"{self.timeout!r}/{self.memory!r}/{self.threads}"

    def values(self) -> dict[str, float]:
        """As a statement's parameters."""
        return {"timeout": self.timeout, "memory": self.memory, "threads": self.threads}


@dataclass(frozen=True, slots=True)
class Result:
    """An answer on its way into the store.

    Attributes:
        key: of the query.
        record: JSON of the verdict's record, without the adversarial input.
        columns: the fields of it that are columns: status, verdict, assurance, lower, upper, target, removed
            (JSON), nodes, seconds, engine, message.
        host: where it was found.
        witness: float64 input, packed, or None where it is the query's own input or there is none.
    """

    key: bytes
    record: str
    columns: Mapping[str, Any]
    host: str
    witness: bytes | None


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign in a store: its number, name, spec and settings."""

    id: int
    name: str
    spec: str
    path: str
    settings: Mapping[str, Any]
    digest: str
    created: float
    updated: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """What came of claiming queries: those to answer, those answered meanwhile, those that others work on."""

    mine: tuple[bytes, ...]
    done: tuple[bytes, ...]
    others: tuple[bytes, ...]


class Store:
    """A store that is open. One thread at a time.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection

    @staticmethod
    def open(path: Path, *, create: bool = False, check: bool = False) -> Store:
        """Open a store.

        Args:
            path: the file.
            create: make a new one where there is none.
            check: read all of the file and compare its structure, which takes a second a gigabyte.

        Raises:
            RecordError: there is none, or it is something else, damaged, or of a newer milpver.
        """
        if not path.exists() and not create:
            raise RecordError(
                f"there is no store {path}",
                needed="the SQLite file of a campaign that has been run",
                fix="run it first: milpver campaign run SPEC.toml",
            )
        try:
            connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        except sqlite3.Error as error:
            raise RecordError(
                f"store {path} cannot be opened: {error}",
                needed="a file that can be read and written, in a folder that is there",
                fix="check the folder, the permissions and the disk's space, or name another store",
            ) from error
        store = Store(path, connection)
        try:
            with store._guarded("opened"):
                store._prepare(create=create, check=check)
        except BaseException:
            connection.close()
            raise
        return store

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -------------------------------------------------------------------------------------- the file

    def _prepare(self, *, create: bool, check: bool) -> None:
        """Check whose file it is, make the tables where it is new."""
        db = self._db
        version, application = self._pragma("user_version"), self._pragma("application_id")
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not (version or application or tables):
            if not create:
                self._foreign("it is empty")
            self._write_ahead()
            with self._transaction():
                if not self._pragma("application_id"):  # another process may have been faster
                    for statement in _SCHEMA.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {FORMAT}")
                    db.execute(f"PRAGMA application_id = {APPLICATION}")
        elif application != APPLICATION:
            self._foreign("it is an SQLite file of another program")
        elif version > FORMAT:
            raise RecordError(
                f"store {self.path} has format {version}",
                needed=f"format {FORMAT}: it was written by a newer milpver",
                fix="update milpver, or name another store",
            )
        elif version < FORMAT:
            self._foreign(f"it has format {version}, which no milpver has written")
        self._write_ahead()
        db.execute("PRAGMA synchronous = FULL")
        if check:
            (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                self._damaged(said)

    def _write_ahead(self) -> None:
        """Turn the write-ahead log on; SQLite does not wait by itself while another process does the same."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
                continue
            if mode != "wal":
                raise RecordError(
                    f"store {self.path}: this file system has no write-ahead log (journal mode {mode})",
                    needed="a local disk: SQLite cannot share a file over a network",
                    fix="name a store on another disk; a cluster's workers need no access to it",
                )
            return

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def _foreign(self, why: str) -> NoReturn:
        raise RecordError(
            f"{self.path} is no store of milpver: {why}",
            needed="the SQLite file of a campaign",
            fix="name another file (store = in the spec, or --store)",
        )

    def _damaged(self, said: str) -> NoReturn:
        raise RecordError(
            f"store {self.path} is damaged: {said}",
            needed="an intact SQLite file",
            fix="restore a copy, save what is left with `sqlite3 FILE .recover`, or name another store",
        )

    @contextmanager
    def _guarded(self, deed: str) -> Iterator[None]:
        """Turn what SQLite reports into a RecordError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RecordError(
                f"store {self.path} cannot be {deed}: {error}",
                needed="a file that can be read and written, with room for the results",
                fix="free the disk or the permission; what was committed until now is kept",
            ) from error
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                self._foreign("it is no SQLite file")
            self._damaged(str(error))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, with the right to write from the start."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ------------------------------------------------------------------------------------ campaigns

    def register(self, plan: Plan, settings: Mapping[str, Any]) -> CampaignRow:
        """Write down what a campaign plans, in place of what it planned before; results stay.

        Args:
            plan: the campaign.
            settings: what else is to be kept: versions, machine.
        """
        spec = plan.spec
        with self._guarded("written"), self._transaction():
            db, now = self._db, time.time()
            found = db.execute("SELECT id, digest FROM campaign WHERE name = ?", (spec.name,)).fetchone()
            values = (spec.text, str(spec.path), json.dumps(settings), plan.digest, now)
            if found is not None:
                db.execute(
                    "UPDATE campaign SET spec = ?, path = ?, settings = ?, digest = ?, updated = ?"
                    " WHERE id = ?",
                    (*values, found[0]),
                )
                number = int(found[0])
            else:
                number = int(
                    db.execute(
                        "INSERT INTO campaign (name, spec, path, settings, digest, updated, created)"
                        " VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (spec.name, *values, now),
                    ).lastrowid
                    or 0
                )
            if found is None or found[1] != plan.digest:
                self._write_plan(number, plan)
        return self.campaign(spec.name)

    def _write_plan(self, number: int, plan: Plan) -> None:
        db = self._db
        for table in ("plan", "cell", "network"):
            db.execute(f"DELETE FROM {table} WHERE campaign = ?", (number,))
        for name, network in plan.networks.items():
            layers = [
                {
                    "number": each.label if each.channels else each.number,
                    "name": each.name,
                    "width": each.width,
                }
                for each in network.gateable
            ]
            db.execute(
                "INSERT INTO network VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    name,
                    network_id(network),
                    network.sha256,
                    str(network.path),
                    json.dumps(layers),
                    json.dumps(network.input_shape),
                    network.graph.outputs,
                ),
            )
        db.executemany(
            "INSERT INTO cell VALUES (?, ?, ?, ?)",
            ((number, cell.number, cell.id, json.dumps(cell.description())) for cell in plan.cells),
        )
        db.executemany(
            "INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?)", ((number, *row) for row in plan.rows())
        )
        for source in plan.sources.values():
            db.executemany(
                "INSERT OR IGNORE INTO input VALUES (?, ?)",
                ((hash_, pack(x)) for hash_, x in zip(source.hashes, source.inputs, strict=True)),
            )

    def campaigns(self) -> list[CampaignRow]:
        """All campaigns, the one that ran last first."""
        with self._guarded("read"):
            rows = self._db.execute(
                "SELECT id, name, spec, path, settings, digest, created, updated FROM campaign"
                " ORDER BY updated DESC"
            ).fetchall()
        return [
            CampaignRow(number, name, spec, path, json.loads(settings), digest, created, updated)
            for number, name, spec, path, settings, digest, created, updated in rows
        ]

    def campaign(self, name: str | None = None) -> CampaignRow:
        """A campaign by its name; the one that ran last where None.

        Raises:
            RecordError: there is none of this name.
        """
        found = self.campaigns()
        for row in found:
            if name is None or row.name == name:
                return row
        known = ", ".join(repr(row.name) for row in found) or "there is none yet"
        raise RecordError(
            f"store {self.path} has no campaign {name or ''!r}".replace(" ''", ""),
            needed=f"one that has been run: {known}",
            fix="run it first: milpver campaign run SPEC.toml",
        )

    def cells(self, campaign: CampaignRow) -> list[dict[str, Any]]:
        """Descriptions of a campaign's cells, in order."""
        with self._guarded("read"):
            rows = self._db.execute(
                "SELECT description FROM cell WHERE campaign = ? ORDER BY number", (campaign.id,)
            ).fetchall()
        return [json.loads(row[0]) for row in rows]

    def networks(self, campaign: CampaignRow) -> dict[str, dict[str, Any]]:
        """A campaign's networks by name: sha256, path, layers, shape, outputs."""
        with self._guarded("read"):
            rows = self._db.execute(
                "SELECT name, sha256, path, layers, shape, outputs FROM network WHERE campaign = ?"
                " ORDER BY name",
                (campaign.id,),
            ).fetchall()
        return {
            name: {
                "sha256": sha256,
                "path": path,
                "layers": json.loads(layers),
                "shape": tuple(json.loads(shape)),
                "outputs": outputs,
            }
            for name, sha256, path, layers, shape, outputs in rows
        }

    def rows(
        self, campaign: CampaignRow, columns: Sequence[str], *, limits: Mapping[int, Limited] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Every planned query with the result that answers it, streamed in order.

        Args:
            campaign: whose plan.
            columns: of ``plan`` (as p.NAME) and ``result`` (as r.NAME, None where there is no answer yet).
            limits: of each cell; those of the spec where None.
        """
        if limits is None:
            limits = {k: limits_of(cell) for k, cell in enumerate(self.cells(campaign))}
        for number, limit in sorted(limits.items()):
            with self._guarded("read"):
                yield from self._db.execute(
                    f"SELECT {', '.join(columns)} FROM plan p LEFT JOIN result r ON r.id ="
                    f" {_ANSWER.format(key='p.key')} WHERE p.campaign = :campaign AND p.cell = :cell"
                    " AND p.position BETWEEN :first AND :last ORDER BY p.position",
                    limit.values() | {"campaign": campaign.id, "cell": number} | self._span(campaign, number),
                )

    def _span(self, campaign: CampaignRow, cell: int) -> dict[str, int]:
        """First and last position of a cell: its queries stand together."""
        first = self._db.execute(
            "SELECT min(position), max(position) FROM plan WHERE campaign = ? AND cell = ?",
            (campaign.id, cell),
        ).fetchone()
        return {"first": first[0] or 0, "last": -1 if first[1] is None else first[1]}

    def inputs(self, hashes: Iterable[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Inputs by their hashes, float32 [inputs]."""
        found = {}
        with self._guarded("read"):
            for each in hashes:
                row = self._db.execute("SELECT data FROM input WHERE hash = ?", (each,)).fetchone()
                if row is not None:
                    found[each] = unpack(row[0], np.dtype("<f4")).astype(np.float32)
        return found

    def record(self, result: int) -> tuple[dict[str, Any], NDArray[np.float64] | None]:
        """The record and the witness's input of a result by its number."""
        with self._guarded("read"):
            record, witness = self._db.execute(
                "SELECT record, witness FROM result WHERE id = ?", (result,)
            ).fetchone()
        return json.loads(record), None if witness is None else unpack(witness, np.dtype("<f8"))

    # ------------------------------------------------------------------------------------- sharing

    def enlist(self, owner: Owner) -> None:
        """Say that a process begins to work; forget those that are gone."""
        with self._guarded("written"), self._transaction():
            self._forget_gone()
            self._db.execute(
                "INSERT INTO owner VALUES (?, ?, ?, ?, ?, ?)",
                (owner.id, owner.host, owner.place, owner.pid, owner.started, time.time()),
            )

    def beat(self, owner: Owner) -> None:
        """Say that a process is still there."""
        with self._guarded("written"):
            self._db.execute("UPDATE owner SET heartbeat = ? WHERE id = ?", (time.time(), owner.id))

    def leave(self, owner: Owner) -> None:
        """Say that a process ends; what it had claimed is free."""
        with self._guarded("written"), self._transaction():
            self._db.execute("DELETE FROM claim WHERE owner = ?", (owner.id,))
            self._db.execute("DELETE FROM owner WHERE id = ?", (owner.id,))

    def owners(self) -> list[Owner]:
        """The processes that say they work, those that are gone included."""
        with self._guarded("read"):
            rows = self._db.execute("SELECT id, host, place, pid, started, heartbeat FROM owner").fetchall()
        return [Owner(*row) for row in rows]

    def alive(self) -> int:
        """How many processes are at work."""
        return sum(not is_gone(owner) for owner in self.owners())

    def claims(self) -> dict[str, int]:
        """How many queries each owner has claimed."""
        with self._guarded("read"):
            return dict(self._db.execute("SELECT owner, count(*) FROM claim GROUP BY owner").fetchall())

    def _forget_gone(self) -> None:
        """Free the claims of processes that are gone, and those of nobody; within a transaction."""
        for owner in self.owners():
            if is_gone(owner):
                self._db.execute("DELETE FROM owner WHERE id = ?", (owner.id,))
        self._db.execute("DELETE FROM claim WHERE owner NOT IN (SELECT id FROM owner)")

    def claim(
        self,
        owner: Owner,
        keys: Sequence[bytes],
        limits: Limited,
        again: Mapping[bytes, int] | None = None,
    ) -> Claimed:
        """Claim queries that are neither answered nor claimed by a process that is there.

        Args:
            owner: who will answer them.
            keys: of the queries, each once.
            limits: of the answers.
            again: results that are to be replaced, by key: they are no answers.
        """
        again = again or {}
        mine, done, others = [], [], []
        with self._guarded("written"), self._transaction():
            taken = dict(self._in("SELECT key, owner FROM claim WHERE key IN ({})", keys))
            if any(each != owner.id for each in taken.values()):
                self._forget_gone()
                taken = dict(self._in("SELECT key, owner FROM claim WHERE key IN ({})", keys))
            known = {key for (key,) in self._in("SELECT key FROM result WHERE key IN ({})", keys)}
            for key in keys:
                answer = self._answer(key, limits) if key in known else None
                if answer is not None and answer > again.get(key, -1):
                    done.append(key)
                elif taken.get(key, owner.id) != owner.id:
                    others.append(key)
                else:
                    mine.append(key)
            self._db.executemany(
                "INSERT OR REPLACE INTO claim VALUES (?, ?)", ((key, owner.id) for key in mine)
            )
        return Claimed(tuple(mine), tuple(done), tuple(others))

    def answered(
        self, keys: Sequence[bytes], limits: Limited, again: Mapping[bytes, int] | None = None
    ) -> list[bytes]:
        """Those of the queries that have an answer; see ``claim``."""
        again = again or {}
        with self._guarded("read"):
            return [
                key
                for key in keys
                if (found := self._answer(key, limits)) is not None and found > again.get(key, -1)
            ]

    def unclaimed(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the queries that no process that is there has claimed."""
        gone = {owner.id for owner in self.owners() if is_gone(owner)}
        there = {owner.id for owner in self.owners()} - gone
        with self._guarded("read"):
            taken = dict(self._in("SELECT key, owner FROM claim WHERE key IN ({})", keys))
        return [key for key in keys if taken.get(key) not in there]

    def _answer(self, key: bytes, limits: Limited) -> int | None:
        """Number of the result that answers a query, or None."""
        found = self._db.execute(
            f"SELECT {_ANSWER.format(key=':key')}", limits.values() | {"key": key}
        ).fetchone()
        return None if found[0] is None else int(found[0])

    def _in(self, statement: str, keys: Sequence[bytes]) -> Iterator[tuple[Any, ...]]:
        """Rows for many keys."""
        for start in range(0, len(keys), _MANY):
            part = keys[start : start + _MANY]
            yield from self._db.execute(statement.format(", ".join("?" * len(part))), part).fetchall()

    def release(self, keys: Sequence[bytes]) -> None:
        """Give claims back without an answer."""
        with self._guarded("written"), self._transaction():
            self._db.executemany("DELETE FROM claim WHERE key = ?", ((key,) for key in keys))

    def commit(self, results: Sequence[tuple[Result, Limited]]) -> None:
        """Write results; when this returns, they are on the disk.

        A result that is finished replaces those that are not; no result replaces a finished one, and no error
        takes the place of a bracket.
        """
        with self._guarded("written"), self._transaction():
            for result, limits in results:
                self._put(result, limits)
            self._db.executemany("DELETE FROM claim WHERE key = ?", ((each.key,) for each, _ in results))

    def _put(self, result: Result, limits: Limited) -> None:
        columns = result.columns
        finished = columns["status"] in FINISHED
        failed = columns["status"] in (Status.ERROR, Status.UNAVAILABLE)
        earlier = self._db.execute(
            "SELECT id, finished, timeout, memory, threads, status, attempt FROM result WHERE key = ?",
            (result.key,),
        ).fetchall()
        attempt = 1 + max((row[6] for row in earlier), default=0)
        for number, was_finished, timeout, memory, threads, status, _ in earlier:
            if was_finished:
                return
            covered = timeout <= limits.timeout and memory <= limits.memory and threads <= limits.threads
            had_bracket = status not in (Status.ERROR, Status.UNAVAILABLE)
            if finished or (covered and not (failed and had_bracket)):
                self._db.execute("DELETE FROM result WHERE id = ?", (number,))
        self._db.execute(
            "INSERT OR IGNORE INTO result (key, limits, finished, timeout, memory, threads, status, verdict,"
            " assurance, lower, upper, target, removed, nodes, seconds, engine, message, host, at, attempt,"
            " record, witness) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                result.key,
                "" if finished else limits.text,
                finished,
                limits.timeout,
                limits.memory,
                limits.threads,
                *(columns[name] for name in COLUMNS),
                result.host,
                time.time(),
                attempt,
                result.record,
                result.witness,
            ),
        )


#: Columns of a result that come from its record.
COLUMNS = (
    "status", "verdict", "assurance", "lower", "upper", "target", "removed", "nodes", "seconds", "engine",
    "message",
)  # fmt: skip


def limits_of(cell: Mapping[str, Any]) -> Limited:
    """The limits in a cell's description."""
    return Limited.of(cell["timeout"], cell["memory"], cell["threads"])


def pack(values: NDArray[Any]) -> bytes:
    """An array of floats as bytes: little-endian, compressed."""
    kind = "<f4" if values.dtype == np.float32 else "<f8"
    return zlib.compress(np.ascontiguousarray(values, dtype=kind).tobytes(), level=1)


def unpack(data: bytes, kind: np.dtype[Any]) -> NDArray[Any]:
    """The array that ``pack`` made bytes of."""
    return np.frombuffer(zlib.decompress(data), dtype=kind).astype(kind.newbyteorder("="))
