"""Time each backend, reference encoding against fused, on the neuron-pruning paper's Table 3 settings.

    python bench/solvers.py --mnist DIR [--out DIR] [--quick]

DIR holds MNIST's idx files (packed or not). Two 784-128-64-32-10 ReLU networks without biases are trained
from it by milpver's training, once, and kept as ONNX in the output folder: a standard one, and one that is
trained against the masks that an attack finds in each step (``exact-bound`` without its bounds, for one
budget on all layers; the paper's own loss is another one, so its verified accuracies are not to be expected
here, only programs of the same shape). Training is deterministic on one machine.

For every network and row the worst margin over all competing classes is solved to optimality by every backend
with the paper's program (encoding ``reference``, bounds ``interval``) and ours (``fused``, ``alpha-crown``),
interleaved as `milpver compare` does it, the closed form left aside. An unsolved query counts as the limit.
The time to build a program and to pass it to the backend is measured apart. Prints a Markdown table; the
records go to one JSON-lines file a network and row in the output folder, from which an interrupted run goes
on.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milpver import __version__, registry
from milpver.bounding import Bounds, margin_rows
from milpver.compare import Contender, Plan, Record, host, summarise, warm_up
from milpver.data import Dataset, load_data
from milpver.encoder import encode
from milpver.encoding import Encoding
from milpver.errors import MilpverError
from milpver.graph import Graph
from milpver.linear import Float
from milpver.machine import keep_to_threads
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.program import Program
from milpver.query import Box, Budget, Options, ball, parse_budget
from milpver.report import at_least, text
from milpver.solver import Limits
from milpver.store import RecordFile
from milpver.train import methods
from milpver.train.export import onnx_model
from milpver.train.fit import Recipe, Training

WIDTHS = (784, 128, 64, 32, 10)

#: Percent of the neurons of the first, second and last hidden layer: the paper's Table 3, and (20, 0, 0).
ROWS = (
    (0, 0, 10), (0, 0, 20), (0, 10, 0), (0, 20, 0), (10, 0, 0), (13, 0, 0), (20, 0, 0),
    (0, 10, 10), (6, 0, 10), (6, 10, 0), (5, 5, 10),
)  # fmt: skip
QUICK_ROWS = ((0, 0, 10), (0, 0, 20), (0, 10, 0), (10, 0, 0))

#: The paper's program and ours: encoding and bounds.
PAPER, OURS = ("reference", "interval"), ("fused", "alpha-crown")
BACKENDS = ("highs", "gurobi", "scip", "pyomo:cbc")

EPOCHS, BATCH, RATE, SEED = 8, 256, 2e-3, 20
#: The budget of the robust network, percent.
TRAINED_FOR = (10, 5, 10)
#: Programs that are built and passed for the times of both: median of that many.
SAMPLES = 7


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for."""

    mnist: Path
    out: Path
    rows: tuple[tuple[int, ...], ...]
    nets: tuple[str, ...]
    solvers: tuple[str, ...]
    images: int
    timeout: float
    decide: bool


# -------------------------------------------------------------------------------------------- networks


def train(x: NDArray[np.float32], y: NDArray[np.int64], *, robust: bool) -> bytes:
    """One network, as an ONNX file's bytes."""
    recipe = Recipe(
        "-".join(map(str, WIDTHS)),
        "exact-bound" if robust else "standard",
        methods.Settings(neurons(TRAINED_FOR), lambda1=0.0, lambda2=2.0),
        bias=False,
        warmup=0,
        ramp=1,
        epochs=EPOCHS,
        batch=BATCH,
        learning_rate=RATE,
        weight_decay=0.0,
        seed=SEED,
    )
    training = Training(recipe, x, y)
    for _ in training.run():
        pass
    return onnx_model(training.net, "robust" if robust else "standard")


def neurons(percent: Sequence[int]) -> tuple[int, ...]:
    """Neurons of each hidden layer, nearest integer, halves up."""
    return tuple((share * width + 50) // 100 for share, width in zip(percent, WIDTHS[1:-1], strict=True))


def network(name: str, settings: Settings) -> Network:
    """The network of that name, trained where the output folder does not have it yet.

    Its file's name carries what it depends on, so that another recipe never finds an old network.
    """
    recipe = repr((WIDTHS, EPOCHS, BATCH, RATE, SEED, TRAINED_FOR))
    path = settings.out / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}.onnx"
    if not path.exists():
        began = time.perf_counter()
        data = load_data(settings.mnist, split="train")
        path.write_bytes(train(flat(data), data.labels, robust=name == "robust"))
        say(f"trained {path.name} in {time.perf_counter() - began:.0f} s")
    return load_network(path)


def flat(data: Dataset) -> NDArray[np.float32]:
    """Inputs [n, 784]."""
    return data.inputs.reshape(len(data.inputs), -1)


# ------------------------------------------------------------------------------------------------ runs


def measure(
    net: Network,
    name: str,
    percent: tuple[int, ...],
    data: Dataset,
    indices: tuple[int, ...],
    settings: Settings,
) -> Iterator[str]:
    """The table's lines of one network and row."""
    contenders = tuple(Contender(solver, *way) for solver in settings.solvers for way in (PAPER, OURS))
    plan = Plan(
        network=net,
        inputs=flat(data)[list(indices)],
        labels=tuple(int(data.labels[index]) for index in indices),
        indices=indices,
        contenders=contenders,
        options=Options(timeout=settings.timeout, device="cpu", memory=4 << 30, decide=settings.decide),
        budget=parse_budget(neurons(percent), net),
        domain=data.domain,
    )
    file = settings.out / f"{name}-{'-'.join(map(str, percent))}.jsonl"
    with RecordFile.open(file, plan.identity(), "job") as kept:
        todo = [job for job in plan.jobs() if job.number not in kept.done]
        unavailable = warm_up(plan)
        for _, record in plan.run(todo, unavailable, lambda: False):
            kept.append(record)
        records: list[Record] = [kept.done[number] for number in sorted(kept.done)]
    summary = summarise(records)
    for each in summary.contradictions:
        say(f"WRONG: {each}")
    rows = {row.contender: row for row in summary.rows}
    for solver in settings.solvers:
        label = f"| {name} | {', '.join(f'{share} %' for share in percent)} | {solver} "
        if solver in unavailable:
            yield label + "| " + " | ".join(["unavailable"] + ["–"] * 7) + " |"
            continue
        paper, ours = (rows[Contender(solver, *way).key] for way in (PAPER, OURS))
        capped = [row.solved <= row.runs // 2 for row in (paper, ours)]
        times = [at_least(row.median, cap) for row, cap in zip((paper, ours), capped, strict=True)]
        ratio = "–" if all(capped) else "≥ " * capped[0] + "≤ " * capped[1]
        if not all(capped):
            ratio += text((paper.median or 0.0) / (ours.median or 1.0))
        costs = [cost(plan, solver, *way) for way in (PAPER, OURS)]
        cells = [
            f"{paper.solved}/{paper.runs}, {ours.solved}/{ours.runs}",
            *times,
            ratio,
            f"{text(paper.nodes)}, {text(ours.nodes)}",
            ", ".join(text(each[0]) for each in costs),
            ", ".join(text(each[1]) for each in costs),
            ", ".join(f"{each[2]}x{each[3]}" for each in costs),
        ]
        yield label + "| " + " | ".join(cells) + " |"


def cost(plan: Plan, solver: str, encoding: str, bounds: str) -> tuple[float, float, int, int]:
    """Median milliseconds to build a program and to pass it, its rows and columns; over the plan's inputs.

    Passing is a call of the backend that has a millisecond: it takes the program, starts and stops (one that
    runs as a process may stop before it starts). Bounds are given, the objective is one class's margin.
    """
    graph, backend = plan.network.graph, registry.load("solvers", solver)
    rules, bounding = registry.load("encodings", encoding), registry.load("bounds", bounds)
    built, passed, shape = [], [], (0, 0)
    for k in range(SAMPLES):
        place = k % len(plan.inputs)
        x = plan.inputs[place].astype(np.float64)
        rows = margin_rows((plan.labels[place],), graph.outputs)
        found = bounding.bound(graph, x[None], x[None], plan.budget, rows, "cpu").of(0)
        make = partial(build, graph, ball(x, 0.0, plan.domain), plan.budget, found, rules, rows[0, 0])
        program, seconds = timed(make)
        built.append(seconds)
        limits = Limits(seconds=1e-3, gap=plan.options.gap, threads=1)
        passed.append(timed(partial(backend.solve, program, limits))[1])
        shape = program.rows, program.columns
    return 1e3 * statistics.median(built), 1e3 * statistics.median(passed), *shape


def build(graph: Graph, box: Box, budget: Budget, bounds: Bounds, rules: Encoding, row: Float) -> Program:
    """The program of one competing class."""
    return encode(graph, box, budget, bounds, rules).program(row)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds it takes."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


# ---------------------------------------------------------------------------------------- command line


def read(argv: Sequence[str] | None = None) -> Settings:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--mnist", required=True, type=Path, metavar="DIR", help="folder of MNIST's idx files")
    add("--out", default=Path("bench-solvers"), type=Path, metavar="DIR", help="(bench-solvers)")
    add("--quick", action="store_true", help="four rows, the robust network, two images, 3 s: minutes")
    add("--solvers", metavar="LIST", help=f"({','.join(BACKENDS)}, those installed)")
    add("--rows", metavar="LIST", help="percentages: 10-0-0,0-10-10 (those of Table 3, and 20-0-0)")
    add("--nets", metavar="LIST", help="(standard,robust; robust with --quick)")
    add("--images", type=int, metavar="N", help="images a row (5; 2 with --quick)")
    add("--timeout", type=float, metavar="S", help="seconds a query, all classes (60; 3 with --quick)")
    add("--decide", action="store_true", help="only the sign of the margin, as verified accuracy needs it")
    given = parser.parse_args(argv)
    quick = given.quick
    rows: tuple[tuple[int, ...], ...] = QUICK_ROWS if quick else ROWS
    if given.rows:
        rows = tuple(_percentages(part, parser) for part in given.rows.split(","))
    settings = Settings(
        mnist=given.mnist,
        out=given.out / "quick" if quick else given.out,
        rows=rows,
        nets=tuple(given.nets.split(",")) if given.nets else ("standard", "robust")[quick:],
        solvers=tuple(given.solvers.split(",")) if given.solvers else installed(),
        images=given.images or (2 if quick else 5),
        timeout=given.timeout or (3.0 if quick else 60.0),
        decide=given.decide,
    )
    if settings.images < 1 or not settings.timeout > 0:
        parser.error("--images and --timeout have to be above 0")
    if not set(settings.nets) <= {"standard", "robust"}:
        parser.error("--nets takes standard and robust")
    return settings


def _percentages(part: str, parser: argparse.ArgumentParser) -> tuple[int, ...]:
    """``10-0-0`` as numbers."""
    shares = part.split("-")
    if len(shares) != 3 or not all(share.isdecimal() and int(share) < 100 for share in shares):
        parser.error(f"--rows {part}: three whole percentages below 100 are needed, such as 10-0-0")
    return tuple(map(int, shares))


def installed() -> tuple[str, ...]:
    """Those of ``BACKENDS`` that can run here."""
    known = {name for base in registry.names("solvers") for name in registry.variants("solvers", base)}
    return tuple(
        name for name in BACKENDS if name in known and registry.load("solvers", name).availability().available
    )


def say(line: str) -> None:
    """Tell how it goes, apart from the table."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    settings = read(argv)
    keep_to_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        data = load_data(settings.mnist)
        nets = {name: network(name, settings) for name in settings.nets}
    except (MilpverError, OSError) as error:
        say(f"error: {error}")
        return 2
    x = flat(data)
    right = np.ones(len(x), dtype=np.bool_)
    accuracy = {}
    for name, net in nets.items():
        hits = net.graph.evaluate(x.astype(np.float64)).argmax(axis=1) == data.labels
        accuracy[name], right = 100 * float(hits.mean()), right & hits
    indices = tuple(int(index) for index in np.flatnonzero(right)[: settings.images])
    facts = host()
    versions = [
        f"{name} {registry.load('solvers', name).availability().version}" for name in settings.solvers
    ]
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}")
    print(
        f"Python {facts['python']}, milpver {__version__}, torch {torch.__version__}, {', '.join(versions)}"
    )
    print(
        f"{len(indices)} MNIST test images (index {', '.join(map(str, indices))}), gap 1e-6, 1 thread, limit "
        f"{settings.timeout:g} s a query; clean accuracy: "
        + ", ".join(f"{name} {value:.2f} %" for name, value in accuracy.items())
        + "; asked: "
        + ("the sign only" if settings.decide else "the worst margin to optimality")
    )
    print(
        "\nPairs: reference with interval bounds (the paper's program), then fused with alpha-crown bounds.\n"
    )
    print(
        "| net | removed | solver | solved | reference, median s | fused, median s | ratio | nodes "
        "| build ms | pass ms | rows x columns |"
    )
    print("|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    try:
        for name, net in nets.items():
            for percent in settings.rows:
                for line in measure(net, name, percent, data, indices, settings):
                    print(line, flush=True)
    except MilpverError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
