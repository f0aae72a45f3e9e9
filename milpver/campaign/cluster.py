"""Workers of a running Dask cluster, which get the same batches as processes of this machine do.

The cluster's workers need milpver, of the same version, and no access to the store: the campaign's process
alone writes to it. Networks are handed to every worker once, those that join later included. Where a worker
is lost, Dask has another one answer its batches; a batch that loses several is treated like one that crashed
a process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from milpver import __version__
from milpver.campaign.answering import Batch, Desk, Parcel
from milpver.campaign.store import Result
from milpver.campaign.workers import Answered, Died, Ended
from milpver.errors import QueryError, SolverUnavailableError

__all__ = ["DaskPool"]

#: Seconds to wait for the scheduler, and for its first worker.
_PATIENCE = 30.0
#: Batches of each thread of the cluster: one that is answered, and one that waits on the worker.
_AHEAD = 2

#: Name of the shelf among a cluster's worker's attributes.
_SHELF = "milpver_shelf"


class Shelf:
    """What a worker of the cluster keeps between batches."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.parcels: dict[str, Parcel] = {}
        self.lock = threading.Lock()


def hand_over(parcels: Mapping[str, Parcel], dask_worker: Any) -> str:
    """Give networks to the worker that runs this (Dask fills in which); its version of milpver."""
    shelf = getattr(dask_worker, _SHELF, None) or Shelf()
    shelf.parcels.update(parcels)
    setattr(dask_worker, _SHELF, shelf)
    return __version__


def answer(batch: Batch) -> tuple[list[Result], float] | None:
    """Answer a batch on a worker of the cluster, and say how many seconds that took.

    None where the worker has not been given the network yet.
    """
    worker: Any = import_module("distributed").get_worker()
    shelf = getattr(worker, _SHELF, None)
    if shelf is None or batch.network not in shelf.parcels:
        return None
    with shelf.lock:
        if not shelf.desk.has(batch.network):
            shelf.desk.take(shelf.parcels[batch.network])
    began = time.monotonic()
    return list(shelf.desk.answer(batch, lambda: False)), time.monotonic() - began


class DaskPool:
    """A Dask cluster.

    Args:
        address: of its scheduler, such as ``tcp://host:8786``.
        parcels: the networks by id.

    Raises:
        SolverUnavailableError: Dask is not installed here.
        QueryError: no scheduler answers there, no worker joins it, or a worker has another milpver.
    """

    def __init__(self, address: str, parcels: Mapping[str, Parcel]) -> None:
        try:
            distributed: Any = import_module("distributed")  # an extra, and seconds to load
        except ImportError as error:
            raise SolverUnavailableError(
                f"--scheduler {address}: Dask is not installed ({error})",
                needed="the package distributed",
                fix="pip install 'milpver[distributed]'",
            ) from error
        self._address = address
        self._parcels = dict(parcels)
        self._given: set[str] = set()
        try:
            self._client: Any = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise QueryError(
                f"--scheduler {address}: {' '.join(str(error).split()) or type(error).__name__}",
                needed="the address of a running Dask scheduler",
                fix="write e.g. --scheduler tcp://127.0.0.1:8786, or leave it out to use this machine",
            ) from error
        self._futures: dict[Any, Batch] = {}
        self._ended: list[Answered | Ended | Died] = []
        try:
            self._client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError as error:
            self.close()
            raise QueryError(
                f"--scheduler {address}: no worker has joined it for {_PATIENCE:g} s",
                needed="a cluster with workers",
                fix=f"start some: dask worker {address} --nthreads 1",
            ) from error
        try:
            self._give()
        except BaseException:
            self.close()
            raise

    def _give(self) -> None:
        """Hand the networks to all workers that do not have them yet.

        Raises:
            QueryError: one has another milpver, or none.
        """
        known = self._threads()
        new = [worker for worker in known if worker not in self._given]
        if not new:
            return
        try:
            versions = self._client.run(hand_over, self._parcels, workers=new)
        except (ImportError, AttributeError, OSError) as error:
            raise QueryError(
                f"a worker of {self._address} cannot load milpver: {' '.join(str(error).split())}",
                needed=f"milpver {__version__} on every worker",
                fix="install it there",
            ) from error
        for worker, version in versions.items():
            if version != __version__:
                raise QueryError(
                    f"worker {worker} has milpver {version}",
                    needed=f"milpver {__version__} on every worker",
                    fix="install the same version there",
                )
        self._given.update(versions)

    def _threads(self) -> dict[str, int]:
        """Threads of each worker that is there.

        Raises:
            QueryError: the scheduler is gone.
        """
        try:
            found: dict[str, int] = self._client.nthreads()
        except (OSError, RuntimeError) as error:
            raise QueryError(
                f"the scheduler {self._address} does not answer any more: {' '.join(str(error).split())}",
                needed="a running Dask scheduler; what was answered until now is kept",
                fix="start it again, then the same command goes on",
            ) from error
        return found

    @property
    def size(self) -> int:
        """See Pool."""
        return max(1, sum(self._threads().values()))

    def free(self) -> int:
        """See Pool."""
        return max(0, _AHEAD * sum(self._threads().values()) - len(self._futures))

    def submit(self, batch: Batch) -> None:
        """See Pool."""
        future = self._client.submit(
            answer, batch, pure=False, key=f"milpver-{batch.number}-{time.time_ns()}"
        )
        self._futures[future] = batch

    def events(self, timeout: float) -> Sequence[Answered | Ended | Died]:
        """See Pool."""
        until = time.monotonic() + timeout
        while True:
            found = [event for future in list(self._futures) if future.done() for event in self._take(future)]
            if found or time.monotonic() >= until:
                return found
            time.sleep(0.01)

    def _take(self, future: Any) -> list[Answered | Ended | Died]:
        """What came of a batch."""
        batch = self._futures.pop(future)
        try:
            answered = future.result()
        except Exception as error:  # KilledWorker, CancelledError, or what the worker could not foresee
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return [Died(batch, f"the cluster gave up: {cause}", outside=False)]
        finally:
            with suppress(Exception):
                future.release()
        if answered is None:  # a worker that has joined since, or has begun again under its old address
            self._given.clear()
            self._give()
            self.submit(batch)
            return []
        results, seconds = answered
        return [*(Answered(batch, result) for result in results), Ended(batch, seconds)]

    def stop(self) -> None:
        """See Pool: what the cluster is computing cannot be told to stop, only be forgotten."""
        with suppress(Exception):
            self._client.cancel(list(self._futures), force=True)

    def close(self) -> None:
        """See Pool."""
        with suppress(Exception):
            self.stop()
            self._client.close(timeout=5)
