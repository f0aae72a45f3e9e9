"""``milpver attack``: margins and accuracies under pruning masks that attacks find."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
from numpy.typing import NDArray

from milpver.cli.interrupts import Interrupts
from milpver.cli.question import MOST_SEED, MOST_THREADS, input_sha256, read_network
from milpver.cli.table import Column, print_table, rounded, seconds
from milpver.cli.values import names, number, whole
from milpver.data import (
    DEFAULT_KEYS,
    check_labels,
    fit_inputs,
    load_data,
    parse_domain,
    parse_floats,
    parse_keys,
    select,
)
from milpver.errors import QueryError, RecordError
from milpver.linear import Float
from milpver.network import Network
from milpver.query import Budget, names_layers, parse_budget, removed_pairs
from milpver.registry import near
from milpver.store import RecordFile
from milpver.verdict import SCHEMA_VERSION

if TYPE_CHECKING:
    from milpver.attack.masks import Found, MaskAttack

__all__ = ["run"]

#: What ``--method`` takes; ``shared`` is PGD on one mask for all images.
METHODS = ("random", "l2", "pgd", "shared", "greedy", "swap")


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    """The images that are attacked."""

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """One method's outcome: margins, masks, accuracies of masks for all images, and processor seconds."""

    name: str
    found: Found
    seconds: float


def run(arguments: Namespace) -> int:
    """Attack the images, show accuracies, and record each image's worst mask."""
    chosen = names("--method", arguments.method)
    if unknown := [name for name in chosen if name not in METHODS]:
        raise QueryError(
            f"--method {unknown[0]}",
            needed=f"some of {', '.join(METHODS)}",
            fix=near(unknown[0], METHODS),
        )
    samples = whole("--samples", arguments.samples, least=1, most=10**7, example="1000")
    steps = whole("--steps", arguments.steps, least=1, most=10**6, example="400")
    seed = whole("--seed", arguments.seed, least=0, most=MOST_SEED, example="0")
    threads = whole("--threads", arguments.threads, least=1, most=MOST_THREADS, example="2")
    network, images = _read(arguments)
    budget = parse_budget(arguments.budget, network)
    attack = _attack(network, images, budget, arguments.device, threads)
    runs: dict[str, Callable[[], Found]] = {
        "random": lambda: attack.random(samples, seed),
        "l2": attack.l2,
        "pgd": lambda: attack.pgd(steps, seed),
        "shared": lambda: attack.pgd(steps, seed, shared=True),
        "greedy": attack.greedy,
        "swap": attack.swap,
    }
    own = {"method": list(chosen), "samples": samples, "steps": steps, "seed": seed}
    records = None if arguments.records is None else Path(arguments.records)
    with nullcontext() if records is None else _open(records, _identity(network, budget, own)) as file:
        lines = [_Line("clean", attack.clean(), 0.0)]
        with Interrupts() as interrupts:
            for name in dict.fromkeys(chosen):
                if interrupts.asked:
                    break
                began = time.process_time()
                lines.append(_Line(name, runs[name](), time.process_time() - began))
                if not arguments.quiet and sys.stderr is not None:
                    sys.stderr.write(f"attack: {name} took {lines[-1].seconds:.1f} s\n")
        if len(lines) <= len(dict.fromkeys(chosen)):
            sys.stdout.write("interrupted: nothing is recorded\n")
            return 130
        rows = list(_worst(network, images, lines, _identity(network, budget, own)))
        if file is not None:
            for row in rows:
                file.append(row)
    stream = sys.stderr if arguments.records == "-" else sys.stdout
    _show(images, budget, lines, rows, stream)
    return 0


def _read(arguments: Namespace) -> tuple[Network, _Images]:
    """The network and the images, in its order."""
    mean = None if arguments.mean is None else parse_floats(arguments.mean, option="--mean")
    std = None if arguments.std is None else parse_floats(arguments.std, option="--std", positive=True)
    domain = None if arguments.domain is None else parse_domain(arguments.domain)
    keys = DEFAULT_KEYS if arguments.keys is None else parse_keys(arguments.keys)
    scale = None if arguments.scale is None else number("--scale", arguments.scale, above=0.0, example="255")
    network = read_network(Path(arguments.model), mean, std, channels=names_layers(arguments.budget))
    dataset = load_data(Path(arguments.data), keys=keys, split=arguments.split, scale=scale, domain=domain)
    check_labels(dataset.labels, network.graph.outputs, dataset.source)
    indices = select(dataset, arguments.index)
    chosen = dataset.inputs[list(indices)]
    x = fit_inputs(chosen, network.input_shape, layout=arguments.layout, source=dataset.source)
    return network, _Images(x, dataset.labels[list(indices)], indices)


def _attack(network: Network, images: _Images, budget: Budget, device: str, threads: int) -> MaskAttack:
    """The attack, on its device."""
    from milpver.attack.masks import MaskAttack  # noqa: PLC0415  seconds, which mistakes should not cost
    from milpver.bounds._tensors import TensorGraph, pick_device  # noqa: PLC0415  as above
    from milpver.machine import keep_to_threads  # noqa: PLC0415  as above

    keep_to_threads(threads)
    tensors = TensorGraph(network.graph, pick_device(device))
    return MaskAttack(tensors, images.x.astype(np.float64), images.labels, budget)


def _identity(network: Network, budget: Budget, own: dict[str, object]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model_sha256": network.sha256,
        "question": "attack",
        "budget": budget.shown,
        **own,
    }


def _open(path: Path, identity: dict[str, object]) -> RecordFile:
    """A new file of records: attacks are not continued, they are run again."""
    if str(path) != "-" and path.exists() and path.stat().st_size:
        raise RecordError(
            f"{path} is there already", needed="a new file", fix="name another file with --records"
        )
    return RecordFile.open(path, identity)


def _worst(
    network: Network, images: _Images, lines: Sequence[_Line], identity: dict[str, object]
) -> Iterator[dict[str, object]]:
    """A record an image: its best mask over all methods, replayed by ONNX Runtime on the original file."""
    from milpver.replay import Replay, float32_error  # noqa: PLC0415  seconds

    margins = np.stack([line.found.margins for line in lines])
    best = margins.argmin(axis=0)
    x = images.x.astype(np.float64)
    removed = {
        node: np.stack([lines[k].found.removed[node][i] for i, k in enumerate(best)])
        for node in lines[0].found.removed
    }
    exact = network.graph.evaluate(x, removed)
    replayed = Replay(network).outputs(images.x, removed).astype(np.float64)
    error = float32_error(network, x, removed)
    agrees = np.all(np.abs(replayed - exact) <= error, axis=1)
    clean = network.graph.evaluate(x).argmax(axis=1)
    for i, index in enumerate(images.indices):
        label = int(images.labels[i])
        float32 = _margin(replayed[i], label)
        yield {
            **identity,
            "index": index,
            "input_sha256": input_sha256(images.x[i]),
            "label": label,
            "predicted": int(clean[i]),
            "margins": {line.name: float(line.found.margins[i]) for line in lines},
            "best": lines[best[i]].name,
            "margin": float(margins[best[i], i]),
            "removed": removed_pairs(network, {node: gone[i] for node, gone in removed.items()}),
            "margin_float32": float32,
            "replayed": bool(agrees[i]),
            "broken": bool(margins[best[i], i] <= 0 and float32 <= 0 and agrees[i]),
        }


def _margin(outputs: Float, label: int) -> float:
    return float(outputs[label] - np.delete(outputs, label).max())


def _show(
    images: _Images, budget: Budget, lines: Sequence[_Line], rows: Sequence[dict[str, object]], out: TextIO
) -> None:
    """Accuracies: each image under its own worst mask, and under masks that are the same for all."""
    count = len(images.indices)
    right = lines[0].found.margins > 0
    table = []
    for line in lines:
        kept, common = line.found.margins > 0, line.found.accuracies
        table.append(
            (
                line.name,
                _percent(float(kept.mean())),
                _percent(float(kept[right].mean())) if right.any() else "",
                _percent(float(common.mean())) if len(common) else "",
                _percent(float(common.std())) if len(common) > 1 else "",
                _percent(float(common.min())) if len(common) else "",
                rounded(float(line.found.margins.mean()), 4),
                rounded(float(line.found.margins.min()), 4),
                seconds(line.seconds),
            )
        )
    columns = (
        Column("method", right=False, least=6), Column("own mask"), Column("of correct"), Column("one mask"),
        Column("std"), Column("least"), Column("mean margin"), Column("least margin"), Column("sec"),
    )  # fmt: skip
    print_table(columns, table, out)
    broken = sum(bool(row["broken"]) for row in rows)
    refuted = sum(not row["replayed"] for row in rows)
    out.write(
        f"\n{count} inputs, {int(right.sum())} classified correctly without pruning; budget "
        f"{budget.text or ','.join(map(str, budget.per_layer))}\n"
        "accuracies in %: own mask, each input under the worst mask found for it, of all inputs and of "
        "those\ncorrect without pruning; one mask, the same for all inputs: mean, standard deviation and "
        "least over the\nmasks tried\n"
        f"replayed in float64 and by ONNX Runtime in float32: {count - refuted} of {count}; "
        f"margin <= 0 in both: {broken}\n"
    )
    if refuted:
        out.write(f"warning: float32 is further off than its error bound on {refuted} inputs\n")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
