"""Exact distances to the decision boundary: ours against the papers' bisection and the plain MILP.

    python -m bench.distance --nets NET.onnx[,NET.onnx] --data DIR [--images 3] [--limit 60] [--solver highs]
    python -m bench.distance --nets NET.onnx --data DIR --keys x,y --among 60 --ways ours,bisect --patience 12

For each network the first images that it classifies correctly (with ``--among N``: of the first N those that
an attack finds the closest adversarial inputs for), every way in turn, one thread each:

- ours: ``--solver auto``;
- bisect: the papers' bisection on the radius, reference encoding, interval bounds, the MILP solver named;
- plain: that program minimised directly;
- Marabou, by bisection to the same gap over all competing classes, and OMLT, whose big-M program of a class
  HiGHS minimises, each class in turn; where they are installed, as processes of their own, killed after the
  limit (``bench/_peers.py``). The start of Python is left out, and both begin at the distance of the input
  that our attack finds, as our bisection does, but for nothing.

Norm L-inf, gap 1e-4, seconds of processor time from the input to the verdict (so that other work on the
machine does not count); the limit is wall-clock. One that is not closed within it counts as what it took and
shows its bracket; the last columns say how many times as long as ours the others took. With ``--patience K``
the others get K times the wall-clock time that ours took. Brackets that do not overlap ours are marked and
reported as WRONG, and the exit status is 1; what goes wrong with a peer is an ``error``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import _peers
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
#: The peers' names in the table, and in ``bench/_peers.py``.
PEERS = {"Marabou": "marabou", "OMLT": "omlt"}
#: Brackets of one distance may miss each other by a solver's tolerances.
AGREE = 1e-5


@dataclass(frozen=True, slots=True)
class Run:
    """What one method made of one image.

    Attributes:
        seconds: time taken.
        lower, upper: bracket of the distance.
        solved: whether it is closed.
        error: what went wrong, "" if nothing did.
    """

    seconds: float
    lower: float
    upper: float
    solved: bool
    error: str = ""


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


def peer_run(case: Case, name: str) -> Run:
    """Another verifier, in a process of its own."""
    image = case.image.astype(np.float64)
    logits = case.net.graph.evaluate(image[None])[0]
    low, high = case.domain
    targets = [j for j in range(len(logits)) if j != case.label]
    ends = np.full(len(image), low), np.full(len(image), high)
    found, _ = closest_adversarials(case.net.graph, image, case.label, targets, *ends, steps=6, seed=0)
    query = _peers.Query(
        str(case.net.path.resolve()),
        tuple(image.tolist()),
        case.label,
        tuple(logits.tolist()),
        low,
        high,
        min(high - low, float(np.min(found))),
        GAP,
    )
    return Run(*_peers.distance(name, query, case.limit))


def methods(solver: str) -> dict[str, Callable[[Case], Run]]:
    """The ways that can be tried here, ours first; their names begin with what ``--ways`` calls them."""
    reference = {"solver": solver, "encoding": "reference", "bounds": "interval"}
    found: dict[str, Callable[[Case], Run]] = {
        "ours": lambda case: milpver_run(case, "direct", solver="auto"),
        f"bisect, {solver}": lambda case: milpver_run(case, "bisect", **reference),
        f"plain, {solver}": lambda case: milpver_run(case, "direct", **reference),
    }
    return found | {title: partial(peer_run, name=name) for title, name in PEERS.items()}


def closest(net: Network, data: Dataset, domain: tuple[float, float], among: int) -> list[int]:
    """The first images that are classified correctly, those first whose attack comes closest.

    Distances below ten gaps are left out: any bracket closes them.
    """
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
    return sorted((index for index in found if found[index] > 10 * GAP), key=found.__getitem__)


def contradicts(run: Run, ours: Run) -> bool:
    """Whether two brackets of one distance do not overlap, beyond a solver's tolerances."""
    return run.lower > ours.upper + AGREE or ours.lower > run.upper + AGREE


def shown(run: Run, ours: Run) -> str:
    """A cell: seconds, and what is known where it is not closed; or what is wrong."""
    bracket = f"[{run.lower:.4g}, {run.upper:.4g}]"
    if contradicts(run, ours):
        return f"WRONG {run.seconds:.3g} {bracket}"
    if run.error:
        return f"error {bracket}"
    return f"{run.seconds:.3g}" if run.solved else f"≥ {run.seconds:.3g} {bracket}"


def times(run: Run, ours: Run) -> str:
    """How many times as long as ours another took; at least, where it did not finish."""
    if run.error or contradicts(run, ours):
        return "–"
    return f"{'' if run.solved else '≥ '}{run.seconds / max(ours.seconds, 1e-9):.3g}"


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
    add("--ways", default=f"ours,bisect,plain,{','.join(PEERS)}", metavar="LIST", help="what is run (all)")
    add("--patience", type=float, metavar="K", help="limit of the others, in times of ours (the limit)")
    return parser.parse_args(argv)


def table(given: argparse.Namespace, wrong: list[str]) -> None:
    """Print the table; answers that are wrong go to ``wrong``."""
    version = registry.load("solvers", given.solver).availability().version
    wanted = tuple(given.ways.split(","))
    ways = {name: way for name, way in methods(given.solver).items() if name.startswith(wanted)}
    said = []
    for title, name in PEERS.items():
        if title in ways and _peers.missing(name):
            print(f"left out: {title}, {_peers.missing(name)}", file=sys.stderr)
            del ways[title]
        elif title in ways:
            said.append(_peers.versions(name))
    if "ours" not in ways:
        raise QueryError(f"--ways {given.ways}", needed="ours among them", fix="add ours")
    others = [name for name in ways if name != "ours"]
    keys = DEFAULT_KEYS if given.keys is None else parse_keys(given.keys)
    data = load_data(given.data, keys=keys, scale=given.scale)
    low, high = data.domain if data.domain is not None else (0.0, 1.0)
    facts = host()
    tools = ", ".join([f"milpver {__version__}", f"{given.solver} {version}", *said])
    print(f"{facts['cpu']}, {facts['cores']} cores; {tools}")
    heads = ["net", "image", "d_bnd", *(f"{way}, s" for way in ("ours", *others))]
    heads += [f"{way} over ours" for way in others]
    print(f"\n| {' | '.join(heads)} |")
    print("|---" + "|---:" * (len(heads) - 1) + "|", flush=True)
    for name in given.nets.split(","):
        net = load_network(Path(name))
        ratios: dict[str, list[float]] = {way: [] for way in others}
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
            for way in others:
                run = runs[way]
                if contradicts(run, ours):
                    wrong.append(f"{name} image {index}: ours [{ours.lower}, {ours.upper}], {way} {run}")
                elif run.error:
                    print(f"{way}, image {index}: {run.error}", file=sys.stderr)
                else:
                    ratios[way].append(run.seconds / max(ours.seconds, 1e-9))
            cells = [Path(name).stem, str(index), f"{ours.upper:.5g}"]
            cells += [shown(runs[way], ours) for way in ("ours", *others)]
            cells += [times(runs[way], ours) for way in others]
            print(f"| {' | '.join(cells)} |", flush=True)
        middles = [f"{statistics.median(ratios[way]):.3g}" if ratios[way] else "" for way in others]
        print(f"| {' | '.join([Path(name).stem, 'median', '', '', *('' for _ in others), *middles])} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    return benchmark(partial(table, arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
