"""What a worker does: a batch of queries of one cell in, results out, one by one.

A batch carries everything but the network, which a worker is given once. Whoever gives it batches may be a
process on this machine or a cluster's scheduler; nothing here knows.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.campaign.plan import network_id, solver_version
from milpver.campaign.questions import KINDS, Asked
from milpver.campaign.store import Result, pack
from milpver.errors import MilpverError
from milpver.linear import Float
from milpver.machine import keep_to_threads
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import Domain, Options
from milpver.verdict import RECORD_FIELDS, ClassBracket, LayerBracket, Status, Verdict

__all__ = ["Batch", "Desk", "Parcel", "failure", "parcel"]

#: Fields of a record that are kept in it: not the witness's input, which is packed.
_KEPT = tuple(name for name in RECORD_FIELDS if name != "adversarial")


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A network on its way to a worker.

    Attributes:
        id: what batches name it by.
        model: the ONNX file.
        name: of the file.
        mean, std: normalisation in front, float64 [inputs], or None.
        channels: whether channels of convolutions can be removed.
    """

    id: str
    model: bytes
    name: str
    mean: Float | None
    std: Float | None
    channels: bool


def parcel(network: Network) -> Parcel:
    """Pack a network."""
    return Parcel(
        id=network_id(network),
        model=network.model,
        name=network.path.name,
        mean=network.mean,
        std=network.std,
        channels=bool(network.conv_layers),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Queries of one cell.

    Attributes:
        number: unique within a run.
        cell: its number.
        network: of the parcel.
        kind, parameters: what is asked.
        domain: limits of the inputs, or None.
        options: how to answer, limits included.
        solver_version: that the keys are made of; another one's answers would stand under a wrong key.
        keys, labels, indices: of the queries.
        inputs: float32 [n, inputs].
        extra: fields that are added to each record.
    """

    number: int
    cell: int
    network: str
    kind: str
    parameters: Mapping[str, Any]
    domain: Domain | None
    options: Options
    solver_version: str
    keys: tuple[bytes, ...]
    labels: tuple[int, ...]
    indices: tuple[int, ...]
    inputs: NDArray[np.float32]
    extra: Mapping[str, Any]

    def part(self, number: int, which: slice) -> Batch:
        """Some of the queries as a batch of their own."""
        return replace(
            self,
            number=number,
            keys=self.keys[which],
            labels=self.labels[which],
            indices=self.indices[which],
            inputs=self.inputs[which],
        )


class Desk:
    """Where a worker answers; it keeps the networks that it has been given.

    Args:
        networks: that it has from the start, by id.
    """

    def __init__(self, networks: Mapping[str, Network] = MappingProxyType({})) -> None:
        self._networks = dict(networks)
        self._versions: dict[str, str] = {}

    def has(self, network: str) -> bool:
        """Whether a network is there."""
        return network in self._networks

    def take(self, sent: Parcel) -> None:
        """Load a network.

        Raises:
            MilpverError: what arrived is not what was sent, or cannot be read here.
        """
        with tempfile.TemporaryDirectory(prefix="milpver-") as folder:
            file = Path(folder) / sent.name
            file.write_bytes(sent.model)
            network = load_network(file, channels=sent.channels)
        if sent.mean is not None and sent.std is not None:
            graph = network.graph.prefixed(1.0 / sent.std, -sent.mean / sent.std, "normalisation")
            layers = tuple(replace(layer, node=layer.node + 1) for layer in network.layers)
            convs = tuple(replace(layer, node=layer.node + 1) for layer in network.conv_layers)
            network = replace(
                network, graph=graph, layers=layers, conv_layers=convs, mean=sent.mean, std=sent.std
            )
        if network_id(network) != sent.id:
            raise ValueError(f"the network {sent.name} is not the one that was sent")
        self._networks[sent.id] = network

    def answer(self, batch: Batch, should_stop: Callable[[], bool]) -> Iterator[Result]:
        """Answer the queries in order; ends early where it is to stop.

        A query that fails where that is no reason for the others to fail has a result that says so.
        """
        solver = batch.options.solver
        version = self._versions.setdefault(solver, "") or solver_version(solver)
        self._versions[solver] = version
        if version != batch.solver_version:
            said = f"here is version {version!r} of {batch.options.solver}, needed: {batch.solver_version!r}"
            yield from (failure(batch, k, said) for k in range(len(batch.keys)))
            return
        _keep_to_threads(batch.options.threads)
        rest = batch
        while rest.keys and not should_stop():
            done, cause = yield from self._answer(rest, should_stop)
            if cause:
                yield failure(rest, done, cause)
            elif done < len(rest.keys):
                return
            rest = rest.part(rest.number, slice(done + 1, None))

    def _answer(
        self, batch: Batch, should_stop: Callable[[], bool]
    ) -> Generator[Result, None, tuple[int, str]]:
        """Answer until one fails: how many are done, and why the next one failed."""
        host = socket.gethostname()
        done = 0
        try:
            for verdict in KINDS[batch.kind].ask(
                Asked(
                    network=self._networks[batch.network],
                    inputs=batch.inputs,
                    labels=batch.labels,
                    indices=batch.indices,
                    parameters=batch.parameters,
                    domain=batch.domain,
                    options=batch.options,
                    should_stop=should_stop,
                )
            ):
                if verdict.status is Status.INTERRUPTED:
                    break
                yield _result(batch, done, verdict, host)
                done += 1
                if should_stop():
                    break
        except MemoryError as error:
            return done, _cause("out of memory", error)
        except RuntimeError as error:
            # torch says so in a RuntimeError.
            lacking = any(word in str(error).lower() for word in ("out of memory", "can't allocate memory"))
            return done, _cause("out of memory" if lacking else "failed", error)
        except MilpverError as error:
            return done, str(error)
        except Exception as error:  # one query's defect must not cost the others
            return done, _cause("failed", error)
        return done, ""


def _keep_to_threads(threads: int) -> None:
    """Take so many, unless that is so already."""
    import torch  # noqa: PLC0415  seconds, and only those who answer need it

    if torch.get_num_threads() != threads:
        keep_to_threads(threads)


def _cause(what: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:500]
    return f"{what}: {type(error).__name__}" + (f": {said}" if said else "")


def _result(batch: Batch, place: int, verdict: Verdict, host: str) -> Result:
    """A verdict as the store takes it."""
    x = batch.inputs[place].astype(np.float64)
    own = verdict.witness is None or np.array_equal(verdict.witness, x)
    kept = {name: getattr(verdict, name) for name in _KEPT} | dict(batch.extra)
    try:
        record = _ENCODER.encode(kept)
    except ValueError:  # an infinity, which a record has no number for
        plain = verdict.record()
        kept = {name: plain[name] for name in _KEPT} | dict(batch.extra)
        record = _ENCODER.encode(kept)
    return Result(
        key=batch.keys[place],
        record=record,
        columns=_columns(kept),
        host=host,
        witness=None if own or verdict.witness is None else pack(verdict.witness),
    )


def _encoded(value: Any) -> Any:
    """What JSON has in place of a value of a record that it does not know, as ``Verdict.record`` does."""
    if isinstance(value, ClassBracket | LayerBracket):
        return {name: getattr(value, name) for name in value.__slots__}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} in a record")


#: Made once: a campaign of quick queries writes hundreds of records a second.
_ENCODER = json.JSONEncoder(allow_nan=False, default=_encoded)
_BRIEFLY = json.JSONEncoder(allow_nan=False, default=_encoded, separators=(",", ":"))


def _columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that are columns, as SQLite has them."""
    removed = record["removed"]
    values = {name: record[name] for name in _COLUMNS}
    words = {name: None if record[name] is None else str(record[name]) for name in _WORDS}
    return {
        **{name: each.item() if isinstance(each, np.generic) else each for name, each in values.items()},
        **words,
        "removed": None if removed is None else _BRIEFLY.encode(removed),
        "engine": record["solver"],
    }


#: Columns that a record has under the same name; those of them that are words.
_COLUMNS = ("lower", "upper", "target", "nodes", "seconds", "message")
_WORDS = ("status", "verdict", "assurance")


def failure(batch: Batch, place: int, message: str, seconds: float = 0.0) -> Result:
    """The result of a query that could not be answered: status ``error`` with the cause."""
    decided = KINDS[batch.kind].name in ("margin", "decide")
    record: dict[str, Any] = dict.fromkeys(RECORD_FIELDS) | {
        "index": batch.indices[place],
        "label": batch.labels[place],
        "question": "margin" if decided else batch.kind,
        "budget": batch.parameters.get("budget"),
        "radius": batch.parameters.get("radius"),
        "keep": batch.parameters.get("keep", []),
        "remove": batch.parameters.get("remove", []),
        "status": str(Status.ERROR),
        "verdict": "unknown" if decided else None,
        "nodes": 0,
        "seconds": seconds,
        "solver": batch.options.solver,
        "solver_version": batch.solver_version,
        "encoding": batch.options.encoding,
        "bounds": batch.options.bounds,
        "gap": batch.options.gap,
        "timeout": batch.options.timeout,
        "threads": batch.options.threads,
        "seed": batch.options.seed,
        "decide": batch.options.decide if decided else None,
        "classes": [],
        "message": " ".join(message.split()),
    }
    kept = {name: record[name] for name in _KEPT}
    return Result(
        key=batch.keys[place],
        record=_ENCODER.encode(kept | dict(batch.extra)),
        columns=_columns(kept),
        host=socket.gethostname(),
        witness=None,
    )
