"""Exact distances to the decision boundary: ours against the papers' bisection and the plain MILP.

    python -m bench.distance --nets NET.onnx[,NET.onnx] --data DIR [--images 3] [--limit 60] [--solver highs]
    python -m bench.distance --nets NET.onnx --data DIR --keys x,y --among 60 --ways ours,bisect --patience 12

For each network the first images that it classifies correctly (with ``--among N``: of the first N those that
an attack finds the closest adversarial inputs for), three ways in turn, one thread each:

- ours: ``--solver auto``;
- bisect: the papers' bisection on the radius, reference encoding, interval bounds, the MILP solver named;
- plain: that program minimised directly.

Norm L-inf, gap 1e-4, seconds of processor time from the input to the verdict (so that other work on the
machine does not count); the limit is wall-clock. One that is not closed within it counts as what it took and
shows its bracket. With ``--patience K`` the others get K times the wall-clock time that ours took. Peers join
the table where they are installed: Marabou (maraboupy), by bisection to the same gap over all competing
classes. Brackets that do not overlap are reported as WRONG, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench._command import benchmark
from bench._mnist_nets import correct, flat
from milpver import __version__, registry
from milpver.attack.boundary import closest_adversarials
from milpver.data import DEFAULT_KEYS, Dataset, load_data, parse_keys
from milpver.distance import distances
from milpver.errors import QueryError
from milpver.machine import host
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import Options
from milpver.verdict import Status

GAP = 1e-4
#: Brackets of one distance may miss each other by a solver's tolerances.
AGREE = 1e-5


@dataclass(frozen=True, slots=True)
class Run:
    """What one method made of one image.

    Attributes:
        seconds: time taken.
        lower, upper: bracket of the distance.
        solved: whether it is closed.
    """

    seconds: float
    lower: float
    upper: float
    solved: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One image of one network."""

    net: Network
    image: NDArray[np.float32]
    label: int
    limit: float
    domain: tuple[float, float]


def milpver_run(case: Case, method: str, **options: str) -> Run:
    """One of our own ways."""
    begun = time.process_time()
    (verdict,) = distances(
        case.net,
        case.image[None],
        [case.label],
        domain=case.domain,
        method=method,
        options=Options(**options, timeout=case.limit, gap=GAP, threads=1, device="cpu"),  # type: ignore[arg-type]  # names only
    )
    lower = 0.0 if verdict.lower is None else verdict.lower
    upper = np.inf if verdict.upper is None else verdict.upper
    return Run(time.process_time() - begun, lower, upper, verdict.status is Status.OPTIMAL)


def marabou(case: Case) -> Run:
    """Marabou by bisection: is there a point within the radius at which another class is level or ahead?"""
    from maraboupy import Marabou  # noqa: PLC0415  a peer, seldom installed

    begun = time.perf_counter()
    lower, upper = 0.0, 1.0
    while upper - lower > GAP:
        radius, nearer = 0.5 * (lower + upper), False
        for other in range(case.net.graph.outputs):
            left = case.limit - (time.perf_counter() - begun)
            if other == case.label or nearer:
                continue
            if left <= 1:
                return Run(case.limit, lower, upper, False)
            net = Marabou.read_onnx(str(case.net.path))
            inputs, outputs = net.inputVars[0].flatten(), net.outputVars[0].flatten()
            for variable, value in zip(inputs, case.image.astype(float), strict=True):
                net.setLowerBound(variable, max(case.domain[0], value - radius))
                net.setUpperBound(variable, min(case.domain[1], value + radius))
            net.addInequality([outputs[case.label], outputs[other]], [1.0, -1.0], 0.0)
            settings = Marabou.createOptions(timeoutInSeconds=int(left), verbosity=0, numWorkers=1)
            code, _, _ = net.solve(verbose=False, options=settings)
            if code not in ("sat", "unsat"):
                return Run(case.limit, lower, upper, False)
            nearer = code == "sat"
        lower, upper = (lower, radius) if nearer else (radius, upper)
    return Run(time.perf_counter() - begun, lower, upper, True)


def methods(solver: str) -> dict[str, Callable[[Case], Run]]:
    """The ways that can be tried here, ours first; their names begin with what ``--ways`` calls them."""
    reference = {"solver": solver, "encoding": "reference", "bounds": "interval"}
    found: dict[str, Callable[[Case], Run]] = {
        "ours": lambda case: milpver_run(case, "direct", solver="auto"),
        f"bisect, {solver}": lambda case: milpver_run(case, "bisect", **reference),
        f"plain, {solver}": lambda case: milpver_run(case, "direct", **reference),
    }
    if importlib.util.find_spec("maraboupy") is not None:
        found["Marabou"] = marabou
    else:
        print("left out: Marabou, maraboupy is not installed", file=sys.stderr)
    return found


def closest(net: Network, data: Dataset, domain: tuple[float, float], among: int) -> list[int]:
    """The first images that are classified correctly, those first whose attack comes closest."""
    found: dict[int, float] = {}
    for index, label in enumerate(data.labels.tolist()):
        x = flat(data)[index].astype(np.float64)
        if len(found) == among:
            break
        if int(net.graph.evaluate(x[None])[0].argmax()) != label:
            continue
        targets = [j for j in range(net.graph.outputs) if j != label]
        low, high = (np.full(len(x), end) for end in domain)
        reached, _ = closest_adversarials(net.graph, x, label, targets, low, high, steps=6, seed=0)
        found[index] = float(reached.min())
    return sorted(found, key=found.__getitem__)


def shown(run: Run) -> str:
    """A cell: seconds, and what is known where it is not closed."""
    return f"{run.seconds:.3g}" if run.solved else f"≥ {run.seconds:.3g} [{run.lower:.4g}, {run.upper:.4g}]"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.distance",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--nets", required=True, metavar="LIST", help="ONNX files, joined by commas")
    add("--data", required=True, type=Path, metavar="DIR", help="data, as milpver distance takes it")
    add("--images", default=3, type=int, metavar="N", help="images a network (3)")
    add("--limit", default=60.0, type=float, metavar="S", help="seconds an image and method (60)")
    add("--solver", default="highs", metavar="NAME", help="backend of the papers' programs (highs)")
    add("--keys", metavar="X,Y", help="names of the arrays of an npz file")
    add("--scale", type=float, metavar="S", help="what inputs are divided by (1)")
    add("--among", type=int, metavar="N", help="of the first N images the closest ones by an attack")
    add("--ways", default="ours,bisect,plain,Marabou", metavar="LIST", help="what is run (all)")
    add("--patience", type=float, metavar="K", help="limit of the others, in times of ours (the limit)")
    return parser.parse_args(argv)


def table(given: argparse.Namespace, wrong: list[str]) -> None:
    """Print the table; answers that are wrong go to ``wrong``."""
    version = registry.load("solvers", given.solver).availability().version
    wanted = tuple(given.ways.split(","))
    ways = {name: way for name, way in methods(given.solver).items() if name.startswith(wanted)}
    if "ours" not in ways:
        raise QueryError(f"--ways {given.ways}", needed="ours among them", fix="add ours")
    measured = next((name for name in ways if name.startswith("bisect")), "ours")
    keys = DEFAULT_KEYS if given.keys is None else parse_keys(given.keys)
    data = load_data(given.data, keys=keys, scale=given.scale)
    low, high = data.domain if data.domain is not None else (0.0, 1.0)
    facts = host()
    print(f"{facts['cpu']}, {facts['cores']} cores; milpver {__version__}, {given.solver} {version}")
    print(f"\n| net | image | d_bnd | {', s | '.join(ways)}, s | bisect over ours |")
    print("|---|---:|---:|" + "---:|" * (len(ways) + 1), flush=True)
    for name in given.nets.split(","):
        net = load_network(Path(name))
        ratios = []
        domain = (float(np.min(low)), float(np.max(high)))
        chosen = (
            correct([net], data, given.images).tolist()
            if given.among is None
            else closest(net, data, domain, given.among)[: given.images]
        )
        for index in chosen:
            case = Case(net, flat(data)[index], int(data.labels[index]), given.limit, domain)
            begun = time.perf_counter()
            runs = {"ours": ways["ours"](case)}
            if given.patience is not None:
                case = replace(case, limit=given.patience * max(1.0, time.perf_counter() - begun))
            runs |= {way: run(case) for way, run in ways.items() if way != "ours"}
            ours = runs["ours"]
            for way, run in runs.items():
                if run.lower > ours.upper + AGREE or ours.lower > run.upper + AGREE:
                    wrong.append(f"{name} image {index}: ours [{ours.lower}, {ours.upper}], {way} {run}")
            ratios.append(runs[measured].seconds / max(ours.seconds, 1e-9))
            cells = " | ".join(shown(run) for run in runs.values())
            print(
                f"| {Path(name).stem} | {index} | {ours.upper:.5g} | {cells} | {ratios[-1]:.3g} |",
                flush=True,
            )
        middle = f"{statistics.median(ratios):.3g}"
        print(f"| {Path(name).stem} | median | | {' | ' * (len(ways) - 1)} | {middle} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    return benchmark(partial(table, arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
