"""``milpver substitute``: distances to the boundary of local substitutes, beside those of the network."""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.cli.interrupts import Interrupts
from milpver.cli.progress import progress
from milpver.cli.question import Query, Record, already_there, input_sha256, read_query
from milpver.cli.table import Column, print_table, rounded
from milpver.cli.values import made_folder, names
from milpver.distance import distances
from milpver.errors import MilpverError, QueryError
from milpver.registry import near
from milpver.run import load_solver
from milpver.store import STDOUT, RecordFile
from milpver.substitute import KINDS, Substitute, agreement, closest_adversarial, substitute
from milpver.verdict import Status, Verdict

__all__ = ["run", "summary"]

_DONE, _INTERRUPTED = 0, 130

#: What a record has to have to be continued from.
_FIELDS = ("input_sha256", "label", "status", "substitutes")

COLUMNS = (
    Column("kind", right=False, least=4),
    Column("ratio"),
    Column("inputs"),
    Column("rel. diff."),
    Column("open"),
    Column("no boundary"),
    Column("s pruning"),
    Column("cpu s with"),
    Column("cpu s without"),
    Column("nodes with"),
    Column("nodes without"),
    Column("delta/d_bnd"),
    Column("certified/d_bnd"),
)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is compared."""

    query: Query
    kinds: tuple[str, ...]
    ratios: tuple[float, ...]
    exact_delta: bool
    models: Path | None


def run(arguments: Namespace) -> int:
    """Compare distances before and after, for all inputs chosen."""
    kinds = names("--kind", arguments.kind)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise QueryError(
            f"--kind {unknown[0]}", needed=f"some of {', '.join(KINDS)}", fix=near(unknown[0], KINDS)
        )
    ratios = tuple(_ratio(text) for text in arguments.ratio.split(","))
    query = read_query(arguments)
    models = None if arguments.save_models is None else made_folder("--save-models", arguments.save_models)
    asked = _Asked(query, kinds, ratios, arguments.exact_delta, models)
    identity = query.identity(
        "substitute", {"kinds": list(kinds), "ratios": list(ratios), "exact_delta": asked.exact_delta}
    )
    with nullcontext() if query.records is None else RecordFile.open(query.records, identity) as file:
        done: dict[int, Record] = {} if file is None else already_there(query, file, _FIELDS)
        with (
            Interrupts() as interrupts,
            progress("substitute", len(query.indices) - len(done), quiet=query.quiet) as shown,
        ):

            def stop() -> bool:
                shown.tick()
                return interrupts.asked

            for k, index in enumerate(query.indices):
                if index in done:
                    continue
                record = _compared(asked, query.inputs[k], query.labels[k], index, stop)
                if interrupts.asked:
                    break
                done[index] = {**identity, **record}
                if file is not None:
                    file.append(done[index])
                shown.advance(str(record["status"]))
            asked_to_stop = interrupts.asked
    stream = sys.stderr if query.records == STDOUT else sys.stdout
    print_table(COLUMNS, list(summary(list(done.values()), kinds, ratios)), stream)
    return _INTERRUPTED if asked_to_stop else _DONE


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= 1:
        raise QueryError(
            f"--ratio {text}", needed="shares above 0 and up to 1", fix="write e.g. --ratio 0.9,0.99"
        )
    return ratio


def _compared(
    asked: _Asked, x: NDArray[np.float32], label: int, index: int, stop: Callable[[], bool]
) -> dict[str, Any]:
    """One input: its distance in the network and in each substitute."""
    query = asked.query
    whole = _distance(query, query.network, x, label, index, stop)
    found: list[dict[str, Any]] = []
    record = {
        **whole, "index": index, "label": label, "input_sha256": input_sha256(x), "substitutes": found
    }  # fmt: skip
    if whole["status"] in (Status.MISCLASSIFIED, Status.INTERRUPTED):
        return record
    x0 = x.astype(np.float64)
    adversarial = closest_adversarial(query.network, x0, label, query.domain, query.options.seed)
    if adversarial is None:
        return {**record, "message": "the attack found no adversarial input"}
    for kind in asked.kinds:
        for ratio in asked.ratios:
            if stop():
                return record
            made = substitute(
                query.network,
                x0,
                adversarial,
                kind=kind,
                ratio=ratio,
                domain=query.domain,
                device=query.options.device,
            )
            own = _distance(query, made.network, x, label, index, stop)
            entry = {
                "kind": kind,
                "ratio": ratio,
                "replaced": made.replaced,
                "pruning_seconds": made.seconds,
                **own,
            }
            if kind == "act":
                entry.update(_agreed(asked, made, x0, own, whole))
            if asked.models is not None:
                (asked.models / f"{index}-{kind}-{ratio:g}.onnx").write_bytes(made.network.model)
            found.append(entry)
    return record


def _distance(
    query: Query, network: Any, x: NDArray[np.float32], label: int, index: int, stop: Callable[[], bool]
) -> dict[str, Any]:
    """A distance with what the comparison needs of it."""
    began, used = time.perf_counter(), time.process_time()
    (verdict,) = distances(
        network,
        x[None],
        [label],
        domain=query.domain,
        options=query.options,
        indices=[index],
        should_stop=stop,
    )
    return {
        "status": str(verdict.status),
        "lower": verdict.lower,
        "upper": verdict.upper,
        "closed": _closed(verdict),
        "nodes": verdict.nodes,
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - used,
        "message": verdict.message,
    }


def _closed(verdict: Verdict) -> bool:
    return verdict.status is Status.OPTIMAL and verdict.upper is not None


def _agreed(
    asked: _Asked, made: Substitute, x: NDArray[np.float64], own: Mapping[str, Any], whole: Mapping[str, Any]
) -> dict[str, Any]:
    """Where substitute and network agree, and what that certifies of the network's distance."""
    options = asked.query.options
    known = [float(each["upper"]) for each in (own, whole) if each["upper"] is not None]
    try:
        delta = agreement(
            made,
            x,
            reach=max(known, default=1.0),
            domain=asked.query.domain,
            device=options.device,
            solver=load_solver(options) if asked.exact_delta else None,
            seconds=options.timeout,
            gap=options.gap,
        )
    except MilpverError as error:
        return {"message": str(error)}
    lower = 0.0 if own["lower"] is None else float(own["lower"])
    return {
        "delta_lower": delta.lower,
        "delta_upper": delta.upper if math.isfinite(delta.upper) else None,
        "delta_exact": delta.exact,
        "delta_assurance": "rounded" if delta.rounded else "solver",
        "certified": min(delta.lower, lower),
    }


def summary(records: Sequence[Record], kinds: Sequence[str], ratios: Sequence[float]) -> Iterator[list[str]]:
    """The rows of the table, as the paper's Table 1, over inputs whose distances are known in both."""
    for kind in kinds:
        for ratio in ratios:
            pairs = [
                (record, entry)
                for record in records
                for entry in record["substitutes"]
                if entry["kind"] == kind and entry["ratio"] == ratio
            ]
            both = [(record, entry) for record, entry in pairs if record["closed"] and entry["closed"]]
            gone = sum(1 for _, entry in pairs if entry["status"] == Status.INFEASIBLE)
            apart = [abs(e["upper"] - r["upper"]) / r["upper"] for r, e in both if r["upper"] > 0]
            shares = [
                (e["delta_lower"] / r["upper"], e["certified"] / r["upper"])
                for r, e in both
                if "certified" in e
            ]
            yield [
                kind,
                f"{ratio:g}",
                str(len(both)),
                _spread(apart, 4),
                str(len(pairs) - len(both) - gone),
                str(gone),
                _spread([entry["pruning_seconds"] for _, entry in pairs], 2),
                _spread([_processor(entry) for _, entry in both], 2),
                _spread([_processor(record) for record, _ in both], 2),
                _spread([entry["nodes"] for _, entry in both], 0),
                _spread([record["nodes"] for record, _ in both], 0),
                _spread([delta for delta, _ in shares], 3),
                _spread([certified for _, certified in shares], 3),
            ]


def _spread(values: Sequence[float], decimals: int) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    mean = rounded(fmean(values), decimals)
    return mean if len(values) < 2 else f"{mean} ± {rounded(stdev(values), decimals)}"


def _processor(record: Mapping[str, Any]) -> float:
    """Processor time; records of earlier versions have wall-clock time alone."""
    return float(record.get("processor_seconds", record["seconds"]))
