"""How much of the gap at the root each bounding method closes, on the neuron-pruning paper's settings.

    python -m bench.root_bound --mnist DIR [--out DIR] [--quick]

DIR holds MNIST's idx files; networks and images are those of ``bench.pruning``. For each image and budget
the margins of all competing classes are bounded by each method: ``budget`` (intervals), ``crown`` (the plain
linear bound), ``alpha-crown``, and ``lp`` (every neuron whose ends matter by two linear programs, beginning
with alpha-crown's bounds). The true worst margin is the native search's (``--solver bab``, to 1e-6); where it
does not end within the limit, the best witness stands for it, marked by "≤".

Columns: the smallest bound over the classes and the true margin, medians over the images. "closed": the share
of the distance between the plain bound (crown) and the true margin that a method closes for the worst class,
median. "share": what alpha-crown closes of what lp closes, (alpha-crown - crown) / (lp - crown), median over
images and classes (and smallest); classes where lp closes less than 1e-6 are left out. "ms": processor time
an image, all classes, median, one image by itself; "batched": alpha-crown's on 32 images at once, as searches
call it, an image; "ratios": lp's, which has alpha-crown's within it, over these two.

A bound above the true margin is reported as WRONG, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench._command import benchmark, machine
from bench._mnist_nets import correct, flat, networks
from bench.pruning import GAP, ROWS
from milpver import __version__, registry
from milpver.bounding import margin_rows
from milpver.data import load_data
from milpver.margin import margins
from milpver.network import Network
from milpver.query import Budget, Options, parse_budget
from milpver.verdict import Status

METHODS = ("budget", "crown", "alpha-crown", "lp")
QUICK_ROWS = ("10-0-0", "6-0-10", "0-10-10")
#: What LP closes less than this of counts as nothing.
NOTHING = 1e-6
#: Images that alpha-crown is also given together.
BATCH = 32
TITLES = (
    "network", "removable", *METHODS, "true", "alpha-crown closed, %", "lp closed, %", "share, %",
    "alpha-crown ms", "batched", "lp ms", "ratios",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """One image of one row.

    Attributes:
        bounds: method -> lower bounds of the margins, float64 [classes - 1].
        seconds: method -> processor time.
        lower, upper: bracket of the worst margin.
        solved: whether the search ended.
    """

    bounds: dict[str, NDArray[np.float64]]
    seconds: dict[str, float]
    lower: float
    upper: float
    solved: bool

    def closed(self, method: str) -> float:
        """Share of the distance between the plain bound and the true margin, of the worst class."""
        plain, found = float(self.bounds["crown"].min()), float(self.bounds[method].min())
        return (found - plain) / (self.upper - plain) if self.upper - plain > NOTHING else 1.0

    def shares(self) -> list[float]:
        """What alpha-crown closes of what lp closes, class by class."""
        plain = self.bounds["crown"]
        most, part = self.bounds["lp"] - plain, self.bounds["alpha-crown"] - plain
        return [float(a / b) for a, b in zip(part, most, strict=True) if b > NOTHING]


def bounded(net: Network, budget: Budget, image: NDArray[np.float32], label: int, limit: float) -> Root:
    """All methods on one image, and the search."""
    x = image.astype(np.float64)[None]
    rows = margin_rows((label,), net.graph.outputs)
    bounds, seconds = {}, {}
    for method in METHODS:
        bounding = registry.load("bounds", method)
        start = time.process_time()
        bounds[method] = bounding.bound(net.graph, x, x, budget, rows, "cpu").rows_lower[0]
        seconds[method] = time.process_time() - start
    options = Options(solver="bab", timeout=limit, threads=1, device="cpu", gap=GAP)
    (verdict,) = margins(net, image[None], [label], budget=budget, options=options)
    return Root(
        bounds,
        seconds,
        -np.inf if verdict.lower is None else verdict.lower,
        np.inf if verdict.upper is None else verdict.upper,
        verdict.status is Status.OPTIMAL,
    )


def batched(net: Network, budget: Budget, images: NDArray[np.float32], labels: Sequence[int]) -> float:
    """Processor time an image that alpha-crown takes on many at once."""
    x = images.astype(np.float64)
    rows = margin_rows(tuple(labels), net.graph.outputs)
    bounding = registry.load("bounds", "alpha-crown")
    start = time.process_time()
    bounding.bound(net.graph, x, x, budget, rows, "cpu")
    return (time.process_time() - start) / len(x)


def line(name: str, row: str, roots: Sequence[Root], together: float) -> str:
    """One line of the table."""
    median = statistics.median
    shares = [share for root in roots for share in root.shares()]
    spent = [1e3 * median(root.seconds[method] for root in roots) for method in ("alpha-crown", "lp")]
    cells = [
        name,
        ", ".join(f"{share} %" for share in row.split("-")),
        *(f"{median(float(root.bounds[method].min()) for root in roots):.3f}" for method in METHODS),
        ("" if all(root.solved for root in roots) else "≤ ") + f"{median(root.upper for root in roots):.3f}",
        *(f"{100 * median(root.closed(method) for root in roots):.1f}" for method in ("alpha-crown", "lp")),
        f"{100 * median(shares):.1f} ({100 * min(shares):.1f})" if shares else "–",
        *(f"{each:.1f}" for each in (spent[0], 1e3 * together, spent[1])),
        ", ".join(f"{spent[1] / max(each, 1e-9):.1f}" for each in (spent[0], 1e3 * together)),
    ]
    return "| " + " | ".join(cells) + " |"


def measured(settings: argparse.Namespace, nets: dict[str, Network], wrong: list[str]) -> Iterator[str]:
    """The table's lines; bounds above a true margin go to ``wrong``."""
    data = load_data(settings.mnist)
    x = flat(data)
    picked = correct(list(nets.values()), data, settings.images)
    first = True
    for name, net in nets.items():
        for row in settings.rows:
            budget = parse_budget([f"{share}%" for share in row.split("-")], net)
            if first:  # what the first call loads and compiles is no method's
                bounded(net, budget, x[picked[0]], int(data.labels[picked[0]]), 1.0)
                first = False
            roots = []
            for index in picked:
                root = bounded(net, budget, x[index], int(data.labels[index]), settings.limit)
                roots.append(root)
                wrong += [
                    f"{name} {row} image {index}: {method} proves {found.min():.9g}, found {root.upper:.9g}"
                    for method, found in root.bounds.items()
                    if found.min() > root.upper + GAP
                ]
            many = correct([net], data, BATCH)
            together = batched(net, budget, x[many], [int(label) for label in data.labels[many]])
            yield line(name, row, roots, together)


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.root_bound",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--mnist", required=True, type=Path, metavar="DIR", help="folder of MNIST's idx files")
    add("--out", default=Path("bench-pruning"), type=Path, metavar="DIR", help="(bench-pruning)")
    add("--quick", action="store_true", help="three rows, the robust network, two images, 5 s: a minute")
    add(
        "--nets", metavar="LIST", help="standard, robust or ONNX files (standard,robust; robust with --quick)"
    )
    add("--rows", metavar="LIST", help=f"percentages ({','.join(ROWS)})")
    add("--images", type=int, metavar="N", help="images a row (5; 2 with --quick)")
    add("--limit", type=float, metavar="S", help="seconds an image for the search (100; 5 with --quick)")
    given = parser.parse_args(argv)
    quick = bool(given.quick)
    given.rows = given.rows.split(",") if given.rows else list(QUICK_ROWS if quick else ROWS)
    given.nets = given.nets.split(",") if given.nets else ["standard", "robust"][quick:]
    given.images = given.images or (2 if quick else 5)
    given.limit = given.limit or (5.0 if quick else 100.0)
    if given.images < 1 or not given.limit > 0:
        parser.error("--images and --limit have to be above 0")
    if any(len(row.split("-")) != 3 for row in given.rows):
        parser.error("--rows takes three percentages joined by -, such as 10-0-0")
    return given


def table(settings: argparse.Namespace, wrong: list[str]) -> None:
    """Print the table; answers that are wrong go to ``wrong``."""
    settings.out.mkdir(parents=True, exist_ok=True)
    nets = networks(settings.mnist, settings.out, settings.nets)
    print(machine())
    print(f"Python {platform.python_version()}, milpver {__version__}")
    print("| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|", flush=True)
    for text in measured(settings, nets, wrong):
        print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    return benchmark(partial(table, read(argv)))


if __name__ == "__main__":
    sys.exit(main())
