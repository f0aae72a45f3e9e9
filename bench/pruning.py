"""Time the native search against the papers' MILP on the neuron-pruning paper's Table 3 settings.

    python -m bench.pruning --mnist DIR [--out DIR] [--quick]

DIR holds MNIST's idx files. Without --nets, a standard and a pruning-robust network are trained from it first
and kept in the output folder (see ``_mnist_nets``).

The yardstick is the reference encoding with interval bounds: for each image the programs of all competing
classes are solved one after the other by each backend, one thread, MIPGap 0, MIPGapAbs 1e-6, and the time
inside of the solver is summed; in decision mode with its own early stops at 0 (``objective_stop``,
``bound_stop``), and no further class once one has a margin <= 0. Ours (``--solver auto``) is timed from the
input to the verdict, bounds and replay included, all classes together, as one of --batch images, since that
is how test sets are run; an image that takes it longer than two seconds there is timed again by itself. The
limit is for an image; an image that is not solved within it counts as the limit, and its ratio as a bound
(>=, <=). Nodes are summed over classes; the root gap is how far our bound before branching is below the
smallest margin that anyone found.

Answers are compared wherever both are known: brackets that do not overlap are reported as WRONG, and the exit
status is 1. Order of work: row by row, ours first and then the yardsticks image by image.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench._command import benchmark, machine
from bench._mnist_nets import correct, flat, networks
from milpver import __version__, registry
from milpver.bounding import margin_rows
from milpver.data import load_data
from milpver.encoder import encode
from milpver.margin import margins
from milpver.network import Network
from milpver.query import Budget, Options, ball, parse_budget
from milpver.solver import Limits, Stop
from milpver.verdict import Status, Verdict

#: Percent of the first, second and last hidden layer that may go.
ROWS = (
    "0-0-10", "0-0-20", "0-10-0", "0-20-0", "10-0-0", "20-0-0",
    "6-0-10", "6-10-0", "0-10-10", "5-5-10",
)  # fmt: skip
QUICK_ROWS = ("0-0-10", "10-0-0", "6-0-10", "5-5-10")
GAP = 1e-6
#: Seconds that an image may take while it is one of a batch.
BRIEF = 2.0
#: Brackets of one margin may miss each other by this much: a backend's feasibility tolerance goes through it.
AGREE = 1e-4


@dataclass(frozen=True, slots=True)
class Run:
    """What one method made of one image.

    Attributes:
        seconds: time taken, the limit where it is not solved.
        solved: within the limit.
        lower, upper: bracket of the worst margin over all classes.
        nodes: of all classes together.
        root: bound before branching; -inf where it is not known.
    """

    seconds: float
    solved: bool
    lower: float
    upper: float
    nodes: int
    root: float = -np.inf


@dataclass(frozen=True, slots=True)
class Case:
    """One image of one row."""

    net: Network
    budget: Budget
    image: NDArray[np.float32]
    label: int
    decide: bool
    limit: float
    domain: tuple[float, float]


def yardstick(case: Case, backend: str) -> Run:
    """The papers' programs, class by class."""
    graph, solver = case.net.graph, registry.load("solvers", backend)
    x = case.image.astype(np.float64)
    rows = margin_rows((case.label,), graph.outputs)
    bounds = registry.load("bounds", "interval").bound(graph, x[None], x[None], case.budget, rows, "cpu")
    encoding = registry.load("encodings", "reference")
    encoded = encode(graph, ball(x, 0.0, case.domain), case.budget, bounds, encoding)
    spent, nodes, lower, upper, solved = 0.0, 0, np.inf, np.inf, True
    for row in rows[0]:
        left = case.limit - spent
        if left <= 0:
            return Run(case.limit, False, -np.inf, upper, nodes)
        limits = Limits(
            seconds=left,
            gap=GAP,
            objective_stop=0.0 if case.decide else None,
            bound_stop=0.0 if case.decide else None,
        )
        solution = solver.solve(encoded.program(row), limits)
        spent, nodes = spent + solution.seconds, nodes + solution.nodes
        lower, upper = min(lower, solution.lower), min(upper, solution.upper)
        solved &= solution.stop in (Stop.OPTIMAL, Stop.TARGET)
        if case.decide and upper <= 0:
            solved, lower = True, -np.inf  # the classes that were not asked may be lower
            break
    seconds = min(spent, case.limit) if solved else case.limit
    return Run(seconds, solved, float(lower), float(upper), nodes)


def ours(cases: Sequence[Case], company: Sequence[Case]) -> list[Run]:
    """The native search, or what ``margin`` takes in its place (the closed form).

    An image's seconds are its own work and its share of what the batch has in common.

    Args:
        cases: what is timed.
        company: what else is in the batch.
    """
    first = cases[0]
    graph = first.net.graph

    def asked(images: Sequence[Case], limit: float) -> list[Verdict]:
        options = Options(solver="auto", timeout=limit, decide=first.decide, threads=1, device="cpu", gap=GAP)
        inputs, labels = np.stack([case.image for case in images]), [case.label for case in images]
        return list(
            margins(first.net, inputs, labels, budget=first.budget, domain=first.domain, options=options)
        )

    x = np.stack([case.image for case in cases]).astype(np.float64)
    rows = margin_rows(tuple(case.label for case in cases), graph.outputs)
    bounding = registry.load("bounds", "alpha-crown")
    roots = bounding.bound(graph, x, x, first.budget, rows, "cpu").rows_lower.min(axis=1)
    verdicts = asked([*cases, *company], min(BRIEF, first.limit))[: len(cases)]
    runs = []
    for case, early, root in zip(cases, verdicts, roots, strict=True):
        late = early.status is Status.TIMEOUT and first.limit > BRIEF
        verdict = asked([case], first.limit)[0] if late else early
        solved = verdict.status in (Status.OPTIMAL, Status.DECIDED)
        runs.append(
            Run(
                verdict.seconds if solved else first.limit,
                solved,
                -np.inf if verdict.lower is None else verdict.lower,
                np.inf if verdict.upper is None else verdict.upper,
                verdict.nodes,
                float(root),
            )
        )
    return runs


def disagreement(case: Case, one: Run, other: Run) -> str:
    """Why two answers cannot both be right; "" where they can."""
    if one.lower > other.upper + AGREE or other.lower > one.upper + AGREE:
        brackets = ", ".join(f"[{run.lower:.9g}, {run.upper:.9g}]" for run in (one, other))
        return f"budget {case.budget.per_layer}, label {case.label}: brackets {brackets}"
    return ""


def spread(values: Sequence[float], digits: str = ".3g") -> str:
    """``median (smallest to largest)``."""
    low, high = min(values), max(values)
    middle = f"{statistics.median(values):{digits}}"
    return middle if low == high else f"{middle} ({low:{digits}} to {high:{digits}})"


def line(label: str, theirs: Sequence[Run], native: Sequence[Run]) -> str:
    """One line of the table."""
    ratios = [a.seconds / max(b.seconds, 1e-9) for a, b in zip(theirs, native, strict=True)]
    capped = any(not run.solved for run in theirs), any(not run.solved for run in native)
    sign = ("≥ " if capped[0] else "") + ("≤ " if capped[1] else "")
    best = [min(a.upper, b.upper) for a, b in zip(theirs, native, strict=True)]
    gaps = [max(0.0, least - run.root) for least, run in zip(best, native, strict=True)]
    cells = [
        ", ".join(f"{sum(run.solved for run in runs)}/{len(runs)}" for runs in (theirs, native)),
        ("≥ " if capped[0] else "") + spread([run.seconds for run in theirs]),
        ("≥ " if capped[1] else "") + spread([run.seconds for run in native]),
        "–" if all(capped) else sign + spread(ratios, ".3g"),
        f"{statistics.median(run.nodes for run in theirs):.0f}, "
        f"{statistics.median(run.nodes for run in native):.0f}",
        spread(gaps),
    ]
    return f"{label} | " + " | ".join(cells) + " |"


def measured(settings: argparse.Namespace, nets: dict[str, Network], wrong: list[str]) -> Iterator[str]:
    """The table's lines; answers that contradict each other go to ``wrong``."""
    data = load_data(settings.mnist)
    x = flat(data)
    together = correct(list(nets.values()), data, max(settings.batch, settings.images))
    picked = together[: settings.images]
    low, high = data.domain if data.domain is not None else (0.0, 1.0)
    for name, net in nets.items():
        for row in settings.rows:
            budget = parse_budget([f"{share}%" for share in row.split("-")], net)
            for mode in settings.modes:
                theirs: dict[str, list[Run]] = {backend: [] for backend in settings.solvers}
                domain = (float(np.min(low)), float(np.max(high)))
                decide, limit = mode == "decide", settings.limit
                batch = [
                    Case(net, budget, x[index], int(data.labels[index]), decide, limit, domain)
                    for index in together
                ]
                cases = batch[: len(picked)]
                native = ours(cases, batch[len(picked) :])
                for index, case, mine in zip(picked, cases, native, strict=True):
                    for backend in settings.solvers:
                        run = yardstick(case, backend)
                        theirs[backend].append(run)
                        said = disagreement(case, run, mine)
                        wrong += [f"{name} {row} image {index} {backend}: {said}"] if said else []
                for backend in settings.solvers:
                    removed = ", ".join(f"{share} %" for share in row.split("-"))
                    yield line(f"| {name} | {removed} | {mode} | {backend}", theirs[backend], native)


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pruning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--mnist", required=True, type=Path, metavar="DIR", help="folder of MNIST's idx files")
    add("--out", default=Path("bench-pruning"), type=Path, metavar="DIR", help="(bench-pruning)")
    add("--quick", action="store_true", help="four rows, the robust network, two images, 4 s: minutes")
    add(
        "--nets", metavar="LIST", help="standard, robust or ONNX files (standard,robust; robust with --quick)"
    )
    add("--solvers", metavar="LIST", help="backends of the yardstick (gurobi,highs, those installed)")
    add("--rows", metavar="LIST", help=f"percentages ({','.join(ROWS)})")
    add("--modes", default="exact,decide", metavar="LIST", help="exact, decide (both)")
    add("--images", type=int, metavar="N", help="images a row (5; 2 with --quick)")
    add("--batch", type=int, default=64, metavar="N", help="images that ours answers together (64)")
    add("--limit", type=float, metavar="S", help="seconds an image, all classes (100; 4 with --quick)")
    given = parser.parse_args(argv)
    quick = bool(given.quick)
    given.rows = given.rows.split(",") if given.rows else list(QUICK_ROWS if quick else ROWS)
    given.nets = given.nets.split(",") if given.nets else ["standard", "robust"][quick:]
    given.modes = given.modes.split(",")
    given.images = given.images or (2 if quick else 5)
    given.limit = given.limit or (4.0 if quick else 100.0)
    wanted = given.solvers.split(",") if given.solvers else ["gurobi", "highs"]
    given.solvers = [name for name in wanted if registry.load("solvers", name).availability().available]
    for name in set(wanted) - set(given.solvers):
        print(f"left out: {name}, {registry.load('solvers', name).availability().reason}", file=sys.stderr)
    if given.images < 1 or not given.limit > 0 or not set(given.modes) <= {"exact", "decide"}:
        parser.error("--images and --limit have to be above 0, --modes takes exact and decide")
    if any(len(row.split("-")) != 3 for row in given.rows):
        parser.error("--rows takes three percentages joined by -, such as 10-0-0")
    return given


def table(settings: argparse.Namespace, wrong: list[str]) -> None:
    """Print the table; answers that are wrong go to ``wrong``."""
    settings.out.mkdir(parents=True, exist_ok=True)
    nets = networks(settings.mnist, settings.out, settings.nets)
    versions = [
        f"{each} {registry.load('solvers', each).availability().version}" for each in settings.solvers
    ]
    print(machine())
    print(f"Python {platform.python_version()}, milpver {__version__}, {', '.join(versions)}")
    print(
        f"{settings.images} MNIST test images a row, 1 thread, limit {settings.limit:g} s an image (all "
        "competing classes); times are median (smallest to largest)\n"
    )
    print(
        "| net | removed | mode | yardstick | solved: reference, ours | reference, s | ours, s "
        "| ratio | nodes | our root gap |"
    )
    print("|---|---|---|---|---|---:|---:|---:|---:|---:|", flush=True)
    for each in measured(settings, nets, wrong):
        print(each, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    return benchmark(partial(table, read(argv)))


if __name__ == "__main__":
    sys.exit(main())
