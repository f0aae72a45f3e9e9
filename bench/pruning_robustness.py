"""The neuron-pruning paper's tables and figures by our training, attacks and search, beside its numbers.

    python -m bench.pruning_robustness --mnist DIR [--cifar DIR] [--out DIR] [--quick | --full]

MNIST (Table 3, Figures 1 to 3): 784-128-64-32-10 without biases, trained by ``milpver train`` as standard,
robust (the paper's loss) and exact-bound for each row; accuracy without pruning (all test images), exact
verified accuracy (``bab``, deciding the sign), and accuracy under the mask attack ``swap``, both over all
images and over those classified correctly without pruning. Figure 4's question, how tight the deviation
bounds are, is asked of the last and the first layer of these networks, with alpha-CROWN beside. CIFAR-10
(Tables 1, 2, 5, 6), where --cifar names a folder with cifar10_train*.npz and cifar10_test.npz: SmallConv,
attacked and pruned by heuristics.

Networks and results are kept in the output folder; the same command goes on where it was interrupted. An
image that an attack breaks and the search calls robust is reported as WRONG, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milpver import __version__, registry
from milpver.attack.masks import MaskAttack
from milpver.bounding import margin_rows
from milpver.bounds._tensors import TensorGraph
from milpver.cli import main as milpver
from milpver.compare import host
from milpver.data import Dataset, load_data
from milpver.deviation import deviation_screen
from milpver.errors import MilpverError
from milpver.margin import margins
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.prune.heuristics import least_important, scores
from milpver.query import Options, parse_budget
from milpver.verdict import Answer, Status

Cell = dict[str, Any]

#: Table 3: percent of the first, second and last hidden layer -> the paper's robust and standard network:
#: (clean, clean, verified, verified, seconds, seconds).
TABLE_3 = {
    "0-0-10": (98.19, 98.08, 96.2, 70.8, 0.14, 0.16),
    "0-0-20": (98.13, 98.08, 96.2, 0.8, 0.56, 0.16),
    "0-10-0": (97.43, 98.08, 96.8, 30.3, 0.55, 0.24),
    "0-20-0": (97.64, 98.08, 83.6, 0.0, 0.7, 0.46),
    "10-0-0": (94.79, 98.08, 47.9, 0.0, 4.85, 17.89),
    "13-0-0": (94.99, 98.08, 31.3, 0.0, 4.22, 24.41),
    "0-10-10": (97.38, 98.08, 93.9, 0.0, 0.99, 0.50),
    "6-0-10": (95.22, 98.08, 56.0, 0.0, 18.74, 30.29),
    "6-10-0": (95.14, 98.08, 43.9, 0.0, 38.66, 18.18),
    "5-5-10": (94.89, 98.08, 44.0, 0.0, 70.44, 22.34),
}
QUICK_ROWS = ("0-0-10", "0-10-0", "10-0-0", "5-5-10")

#: Tables 1 and 6: (fc1, fc2) removed -> network (dropout: targeted dropout) -> unpruned, L2 adversary, PGD,
#: random mean, random deviation.
TABLE_1 = {
    "0-30": {"standard": (76.7, 71.35, 46.24, 70.93, 1.42), "sam": (74.33, 70.51, 54.32, 70.06, 0.92),
             "robust": (75.43, 73.57, 61.12, 74.84, 0.88), "dropout": (75.79, None, 40.79, 67.09, 3.09)},
    "0-40": {"standard": (76.7, 67.36, 29.58, 67.98, 2.1), "sam": (74.33, 67.21, 42.63, 68.52, 1.36),
             "robust": (75.33, 73.8, 61.21, 74.56, 1.2), "dropout": (76.87, None, 38.36, 61.25, 4.96)},
    "60-0": {"standard": (76.7, 60.07, 33.71, 66.74, 1.5), "sam": (74.33, 56.03, 37.72, 65.95, 1.27),
             "robust": (73.18, 69.10, 53.42, 71.12, 0.81), "dropout": (76.81, None, 31.73, 66.52, 1.74)},
    "80-0": {"standard": (76.7, 52.8, 26.18, 62.28, 1.93), "sam": (74.33, 47.96, 22.7, 62.15, 1.69),
             "robust": (73.48, 65.29, 45.1, 69.9, 1.2), "dropout": (76.36, None, 31.62, 61.79, 2.25)},
    "60-30": {"standard": (76.7, 54.85, 12.21, 61.16, 2.44), "sam": (74.33, 51.61, 16.53, 62.09, 1.84),
              "robust": (72.88, 60.81, 54.96, 69.57, 1.23), "dropout": (76.45, None, 13.97, 60.36, 2.78)},
}  # fmt: skip
#: Tables 2 and 6: the same -> network -> L2, L1, Taylor, ActMean.
TABLE_2 = {
    "0-40": {"standard": (68.7, 69.01, 74.46, 74.60), "sam": (66.95, 66.90, 72.08, 70.29),
             "robust": (75.30, 75.25, 75.36, 75.39), "dropout": (76.23, 76.15, 76.63, 76.18)},
    "80-0": {"standard": (66.20, 62.78, 69.62, 69.41), "sam": (67.54, 66.70, 70.36, 69.92),
             "robust": (73.20, 73.20, 73.50, 73.43), "dropout": (75.69, 75.90, 76.0, 75.99)},
    "60-30": {"standard": (65.53, 66.36, 72.73, 72.62), "sam": (65.54, 65.15, 72.89, 72.23),
              "robust": (71.59, 71.60, 72.75, 72.57), "dropout": (75.71, 75.85, 76.04, 75.76)},
}  # fmt: skip
#: Table 5: neurons of fc1, fc2 -> clean robust, clean standard, verified robust, verified standard.
TABLE_5 = {
    "0-5": (74.99, 76.70, 69.0, 19.9), "0-10": (74.80, 76.70, 63.5, 0.7), "0-15": (75.84, 76.70, 18.0, 0.0),
    "5-0": (70.66, 76.70, 65.6, 2.5), "10-0": (69.79, 76.70, 45.0, 0.1), "15-0": (68.25, 76.70, 33.4, 0.0),
    "5-10": (70.32, 76.70, 32.5, 0.0),
}  # fmt: skip

METHODS = ("standard", "robust", "exact-bound")
#: Weights of the loss where several layers are pruned; those of the paper are 0.3 and 0.1.
DEEP_WEIGHTS = {
    "robust": ("--lambda1", "0.12", "--lambda2", "0.04"),
    "exact-bound": ("--lambda1", "0.3"),
}
CIFAR_METHODS = ("standard", "sam", "targeted-dropout", "robust", "exact-bound")
#: Neurons removed in the plots of tightness, by layer.
SWEEP = {"last": ("0,0,{}", (1, 2, 3, 4, 6, 8)), "first": ("{},0,0", (1, 2, 4, 8, 13, 20))}


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asks for."""

    mnist: Path | None
    cifar: Path | None
    out: Path
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    images: int
    limit: float
    epochs: int
    cifar_epochs: int
    samples: int
    tightness: bool


class Results:
    """Cells that are done, one JSON object a line: each is computed once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._cells: list[Cell] = [json.loads(line) for line in lines if line.endswith("}")]

    def get(self, key: Cell, work: Callable[[], Cell]) -> Cell:
        """The cell of that key; computed and kept where it is not there."""
        for cell in self._cells:
            if all(cell.get(name) == value for name, value in key.items()):
                return cell
        cell = key | work()
        self._cells.append(cell)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
        say(f"  {json.dumps(cell)}")
        return cell

    def wrong(self) -> list[str]:
        """Images that were called robust and that an attack breaks, in all cells of the file."""
        return [
            f"{cell['net']} {cell['row']} image {i}" for cell in self._cells for i in cell.get("wrong", ())
        ]


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------- networks


def trained(plan: Plan, method: str, row: str, seed: int, *, cifar: bool = False) -> Network:
    """A network by ``milpver train``; for ``standard`` and the baselines one does for all rows."""
    none = "0-0" if cifar else "0-0-0"
    row = row if method in ("robust", "exact-bound") else none
    epochs = plan.cifar_epochs if cifar else plan.epochs
    name = f"{'smallconv-' if cifar else ''}{method}-{row}-e{epochs}-s{seed}.onnx"
    path = plan.out / "nets" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sign = "" if cifar else "%"
        words = ["train", "--method", method, "--budget", ",".join(part + sign for part in row.split("-"))]
        words += ["--epochs", str(epochs), "--warmup", f"{epochs / 6:g}", "--ramp", f"{epochs / 4:g}"]
        words += ["--seed", str(seed), "--save", str(path), "--quiet"]
        if cifar:
            data = (
                "--data",
                str(joined(plan)),
                "--test-data",
                f"{plan.cifar}/cifar10_test.npz",
            )
            words += [
                "--arch",
                "smallconv",
                *data,
                "--keys",
                "x_train,y_train",
                "--test-keys",
                "x_test,y_test",
            ]
            words += ["--scale", "255", "--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616"]
            # the paper's weights for this network
            words += ["--lambda1", "0.01", "--lambda2", "0.05"] if method == "robust" else []
        else:
            words += ["--arch", "784-128-64-32-10", "--no-bias", "--data", str(plan.mnist)]
            # With gates behind gates, full weights cost too much: the paper's loss gives up classes for them.
            if sum(part != "0" for part in row.split("-")) > 1:
                words += DEEP_WEIGHTS.get(method, ())
        say(f"milpver {' '.join(words)}")
        with redirect_stdout(sys.stderr):  # stdout is the report's
            code = milpver(words)
        if code != 0:
            raise SystemExit(code)
    return load_network(path)


def joined(plan: Plan) -> Path:
    """The CIFAR-10 training images in one file, their parts put together in the output folder."""
    parts = sorted(plan.cifar.glob("cifar10_train*.npz")) if plan.cifar is not None else []
    if len(parts) == 1:
        return parts[0]
    path = plan.out / "cifar10_train.npz"
    if parts and not path.exists():
        loaded = [np.load(part) for part in parts]
        arrays = {name: np.concatenate([part[name] for part in loaded]) for name in ("x_train", "y_train")}
        np.savez(path, allow_pickle=False, **arrays)
    return path


# ------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Test images in the network's order: all of them, and how many are verified."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, data: Dataset, count: int) -> Images:
        """The images of a data set."""
        return cls(data.inputs.reshape(len(data), -1), data.labels, min(count, len(data)))


def percent(hits: NDArray[np.bool_]) -> float:
    """Of a mask, to two digits."""
    return round(100 * float(hits.mean()), 2) if len(hits) else 0.0


def verified(net: Network, images: Images, budget: str, plan: Plan) -> Cell:
    """Exact verified accuracy and accuracy under attack, on the first images; clean accuracy on all."""
    x, y = images.x[: images.count], images.y[: images.count]
    allowed = parse_budget(budget, net)
    clean = net.graph.evaluate(images.x.astype(np.float64)).argmax(1) == images.y
    began = time.process_time()
    options = Options(solver="bab", decide=True, timeout=plan.limit, pre_screen="deviation", device="cpu")
    verdicts = list(margins(net, x, y.tolist(), budget=allowed, options=options))
    seconds = time.process_time() - began
    robust = np.array([verdict.verdict is Answer.ROBUST for verdict in verdicts])
    asked = np.array([verdict.status is not Status.MISCLASSIFIED for verdict in verdicts])
    open_ = np.array([v.verdict is Answer.UNKNOWN and v.status is not Status.MISCLASSIFIED for v in verdicts])
    attack = MaskAttack(TensorGraph(net.graph, torch.device("cpu")), x.astype(np.float64), y, allowed)
    stands = attack.swap().margins > 0
    return {
        "neurons": list(allowed.per_layer),
        "clean": percent(clean),
        "verified": percent(robust),
        "undecided": percent(open_),
        "verified_of_correct": percent(robust[asked]),
        "attacked": percent(stands),
        "attacked_of_correct": percent(stands[asked]),
        "seconds": round(seconds / len(x), 4),
        "nodes": int(sum(verdict.nodes for verdict in verdicts)),
        "wrong": np.flatnonzero(robust & ~stands).tolist(),
        "by_deviation": percent(np.array([verdict.solver == "deviation" for verdict in verdicts])),
    }


def tightness(net: Network, images: Images, budget: str, plan: Plan) -> Cell:
    """Verified accuracy by deviation bounds, by alpha-CROWN and exactly; how far below an attack's margin."""
    x, y = images.x[: images.count], images.y[: images.count]
    allowed = parse_budget(budget, net)
    points = x.astype(np.float64)
    correct = net.graph.evaluate(points).argmax(1) == y
    screen = deviation_screen(net, x, y.tolist(), allowed)
    rows = margin_rows(tuple(y.tolist()), net.graph.outputs)
    bounding = registry.load("bounds", "alpha-crown")
    crown = np.concatenate(
        [
            bounding.bound(net.graph, points[part], points[part], allowed, rows[part], "cpu").rows_lower
            for part in (slice(i, i + 32) for i in range(0, len(x), 32))
        ]
    ).min(1)
    options = Options(solver="bab", decide=True, timeout=plan.limit, device="cpu")
    verdicts = list(margins(net, x, y.tolist(), budget=allowed, options=options))
    robust = np.array([verdict.verdict is Answer.ROBUST for verdict in verdicts])
    open_ = np.array([v.verdict is Answer.UNKNOWN and v.status is not Status.MISCLASSIFIED for v in verdicts])
    upper = MaskAttack(TensorGraph(net.graph, torch.device("cpu")), points, y, allowed).swap().margins

    def gap(lower: NDArray[np.float64]) -> float:
        """Median over images classified correctly, in shares of the margin without pruning."""
        return round(float(np.median(((upper - lower) / np.maximum(screen.margin, 1e-9))[correct])), 4)

    return {
        "neurons": list(allowed.per_layer),
        "deviation": percent(screen.proven),
        "alpha-crown": percent((crown > 0) & correct),
        "exact": percent(robust),
        "undecided": percent(open_),
        "deviation_gap": gap(screen.lower.min(1)),
        "alpha_crown_gap": gap(crown),
    }


def attacked(net: Network, images: Images, budget: str, plan: Plan) -> Cell:
    """Accuracies under attacks and heuristics on the first images."""
    x, y = images.x[: images.count].astype(np.float64), images.y[: images.count]
    allowed = parse_budget(budget, net)
    attack = MaskAttack(TensorGraph(net.graph, torch.device("cpu")), x, y, allowed)
    random, shared = attack.random(plan.samples), attack.pgd(shared=True)
    cell: Cell = {
        "clean": percent(attack.clean().margins > 0),
        "l2_adversary": round(100 * float(attack.l2().accuracies.min()), 2),
        "pgd_one_mask": round(100 * float(shared.accuracies.min()), 2),
        "pgd_own_mask": percent(attack.pgd().margins > 0),
        "swap_own_mask": percent(attack.swap().margins > 0),
        "random_mean": round(100 * float(random.accuracies.mean()), 2),
        "random_std": round(100 * float(random.accuracies.std()), 2),
    }
    for method in ("l2", "l1", "taylor", "actmean"):
        importance = scores(net.graph, allowed, method, inputs=x, labels=y)
        mask = least_important(allowed, importance)
        cell[method] = percent(net.graph.evaluate(x, mask).argmax(1) == y)
    return cell


# ------------------------------------------------------------------------------------------- reporting


def beside(value: float | None, paper: float | None) -> str:
    """``ours (paper's)``."""
    return f"{'–' if value is None else f'{value:g}'} ({'–' if paper is None else f'{paper:g}'})"


def cells(*parts: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(str(part) for part in parts)} |"


def header(left: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """The head of a table: columns of texts, then of numbers."""
    yield cells(*left, *right)
    yield f"|{'---|' * len(left)}{'---:|' * len(right)}"


def table_3(plan: Plan, results: Results, images: Images) -> Iterator[str]:
    """Lines of Table 3."""
    first = ("clean % (paper's)", "verified % (paper's)", "attacked %", "verified % of correct")
    rest = ("attacked % of correct", "undecided %", "s an image (paper's)")
    yield from header(("removable, %", "network", "seed"), (*first, *rest))
    for row in plan.rows:
        paper = TABLE_3.get(row)
        for method in METHODS:
            for seed in plan.seeds if method != "standard" else plan.seeds[:1]:
                net = trained(plan, method, row, seed)
                budget = ",".join(f"{part}%" for part in row.split("-"))
                key: Cell = {
                    "table": 3, "net": net.path.name, "sha256": net.sha256, "row": row,
                    "images": images.count, "limit": plan.limit,
                }  # fmt: skip
                cell = results.get(key, partial(verified, net, images, budget, plan))
                place = {"robust": 0, "standard": 1}.get(method)
                said = [None] * 3 if paper is None or place is None else [paper[place + k] for k in (0, 2, 4)]
                what = row.replace("-", ", "), method, seed
                ours = cell["attacked"], cell["verified_of_correct"], cell["attacked_of_correct"]
                clean, proven = beside(cell["clean"], said[0]), beside(cell["verified"], said[1])
                last = cell["undecided"], beside(cell["seconds"], said[2])
                yield cells(*what, clean, proven, *ours, *last)


def tightness_table(plan: Plan, results: Results, images: Images) -> tuple[list[str], dict[str, list[Cell]]]:
    """How tight each bound is against the budget, and the cells for the plot."""
    numbers = ("neurons", "deviation %", "alpha-CROWN %", "exact %", "undecided %")
    lines = list(header(("layer", "network"), (*numbers, "gap: deviation", "gap: alpha-CROWN")))
    found: dict[str, list[Cell]] = {}
    for layer, (shape, counts) in SWEEP.items():
        for method in ("standard", "robust"):
            net = trained(plan, method, "0-0-10" if layer == "last" else "10-0-0", plan.seeds[0])
            for count in counts:
                budget = shape.format(count)
                key: Cell = {
                    "table": "tightness", "net": net.path.name, "sha256": net.sha256, "budget": budget,
                    "images": images.count, "limit": plan.limit,
                }  # fmt: skip
                cell = results.get(key, partial(tightness, net, images, budget, plan))
                found.setdefault(f"{layer} layer, {method}", []).append(cell | {"count": count})
                names = ("deviation", "alpha-crown", "exact", "undecided", "deviation_gap", "alpha_crown_gap")
                lines.append(cells(layer, method, count, *(cell[name] for name in names)))
    return lines, found


def cifar_tables(plan: Plan, results: Results, images: Images) -> Iterator[str]:
    """Lines of Tables 1, 2, 5 and 6."""
    numbers = (
        "unpruned (paper's)",
        "L2 adversary",
        "PGD, one mask",
        "random",
        "L2",
        "L1",
        "Taylor",
        "ActMean",
    )
    yield from header(("fc1-fc2 removed", "network"), (*numbers, "PGD, own masks", "swap, own masks"))
    for row, nets in TABLE_1.items():
        for method in CIFAR_METHODS:
            net = trained(plan, method, row, plan.seeds[0], cifar=True)
            key: Cell = {
                "table": 1, "net": net.path.name, "sha256": net.sha256, "row": row,
                "images": images.count, "samples": plan.samples,
            }  # fmt: skip
            budget = row.replace("-", ",")
            cell = results.get(key, partial(attacked, net, images, budget, plan))
            name = "dropout" if method == "targeted-dropout" else method
            one = nets.get(name, (None,) * 5)
            two = TABLE_2.get(row, {}).get(name, (None,) * 4)
            random = f"{cell['random_mean']:g} ± {cell['random_std']:g}"
            paper = "–" if one[3] is None else f"{one[3]:g} ± {one[4]:g}"
            names = ("l2", "l1", "taylor", "actmean")
            yield cells(
                row,
                method,
                beside(cell["clean"], one[0]),
                beside(cell["l2_adversary"], one[1]),
                beside(cell["pgd_one_mask"], one[2]),
                f"{random} ({paper})",
                *(beside(cell[name], value) for name, value in zip(names, two, strict=True)),
                cell["pgd_own_mask"],
                cell["swap_own_mask"],
            )
    yield ""
    columns = ("clean % (paper's)", "verified % (paper's)", "attacked %", "undecided %")
    yield from header(("fc1-fc2 removable", "network"), columns)
    for row, theirs in TABLE_5.items():
        for method in METHODS:
            net = trained(plan, method, row, plan.seeds[0], cifar=True)
            key = {
                "table": 5, "net": net.path.name, "sha256": net.sha256, "row": row,
                "images": images.count, "limit": plan.limit,
            }  # fmt: skip
            budget = row.replace("-", ",")
            cell = results.get(key, partial(verified, net, images, budget, plan))
            place = {"robust": 0, "standard": 1}.get(method)
            said = [None, None] if place is None else [theirs[place], theirs[place + 2]]
            clean, proven = beside(cell["clean"], said[0]), beside(cell["verified"], said[1])
            yield cells(row, method, clean, proven, cell["attacked"], cell["undecided"])


def figures(plan: Plan, results: Results, images: Images, swept: dict[str, list[Cell]]) -> None:
    """Figures 1 to 3 as bars beside the paper's numbers, and the tightness of bounds."""
    from matplotlib.figure import Figure  # noqa: PLC0415  only here

    colours = {"standard": "#999999", "robust": "#0072b2", "exact-bound": "#d55e00"}
    figure = Figure(figsize=(4.5 + 1.2 * len(plan.rows), 3.6), layout="constrained")
    axes = figure.add_subplot()
    for k, row in enumerate(plan.rows):
        for j, method in enumerate(METHODS):
            net = trained(plan, method, row, plan.seeds[0])
            key: Cell = {
                "table": 3,
                "net": net.path.name,
                "row": row,
                "images": images.count,
                "limit": plan.limit,
            }
            budget = ",".join(f"{part}%" for part in row.split("-"))
            cell = results.get(key, partial(verified, net, images, budget, plan))
            label = method if k == 0 else None
            axes.bar(k + 0.26 * (j - 1), cell["verified"], 0.24, color=colours[method], label=label)
            if row in TABLE_3 and method != "exact-bound":
                paper = TABLE_3[row][2 if method == "robust" else 3]
                axes.plot(
                    k + 0.26 * (j - 1),
                    paper,
                    "k_",
                    markersize=14,
                    label="the paper's" if k + j == 0 else None,
                )
    axes.set_xticks(range(len(plan.rows)), [row.replace("-", ", ") for row in plan.rows])
    axes.set_xlabel("removable neurons of the first, second, last hidden layer, %")
    axes.set_ylabel("verified accuracy, %")
    axes.legend(ncols=4, fontsize=8, loc="upper right")
    axes.set_ylim(0, 118)
    figure.savefig(plan.out / "verified.png", dpi=110)
    if not swept:
        return
    figure = Figure(figsize=(3.4 * len(swept), 3.2), layout="constrained")
    for k, (title, cells) in enumerate(swept.items()):
        axes = figure.add_subplot(1, len(swept), k + 1)
        counts = [cell["count"] for cell in cells]
        for name, colour, marker in (
            ("exact", "#222222", "o"), ("alpha-crown", "#d55e00", "s"), ("deviation", "#0072b2", "^"),
        ):  # fmt: skip
            label = {"alpha-crown": "alpha-CROWN", "deviation": "deviation bounds"}.get(name, name)
            axes.plot(counts, [cell[name] for cell in cells], color=colour, marker=marker, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("removable neurons")
        axes.set_ylim(-3, 103)
        if k == 0:
            axes.set_ylabel("verified accuracy, %")
            axes.legend(fontsize=8)
    figure.savefig(plan.out / "tightness.png", dpi=110)


# ------------------------------------------------------------------------------------------- command line


def read(argv: Sequence[str] | None) -> Plan:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pruning_robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--mnist", type=Path, metavar="DIR", help="folder of MNIST's idx files")
    add("--cifar", type=Path, metavar="DIR", help="folder of cifar10_train*.npz and cifar10_test.npz")
    add("--out", default=Path("bench-robustness"), type=Path, metavar="DIR", help="(bench-robustness)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="four rows, 12 epochs, 200 images, 5 s an image")
    size.add_argument("--full", action="store_true", help="all rows, 120 epochs, 1000 images, 300 s an image")
    add("--rows", metavar="LIST", help=f"percentages ({','.join(TABLE_3)})")
    add("--seeds", default="0", metavar="LIST", help="seeds of the trained networks (0)")
    add("--images", type=int, metavar="N", help="test images that are verified and attacked")
    add("--limit", type=float, metavar="S", help="seconds an image")
    add("--epochs", type=int, metavar="N", help="epochs on MNIST")
    add("--cifar-epochs", type=int, metavar="N", help="epochs on CIFAR-10")
    add("--no-tightness", action="store_true", help="leave out the comparison of bounds")
    given = parser.parse_args(argv)
    if given.mnist is None and given.cifar is None:
        parser.error("--mnist or --cifar is needed")
    full = bool(given.full)
    rows = tuple(given.rows.split(",")) if given.rows else tuple(TABLE_3) if full else QUICK_ROWS
    if any(len(row.split("-")) != 3 for row in rows):
        parser.error("--rows takes three percentages joined by -, such as 10-0-0")
    return Plan(
        mnist=given.mnist,
        cifar=given.cifar,
        out=given.out,
        rows=rows,
        seeds=tuple(int(seed) for seed in given.seeds.split(",")),
        images=given.images or (1000 if full else 200),
        limit=given.limit or (300.0 if full else 5.0),
        epochs=given.epochs or (120 if full else 12),
        cifar_epochs=given.cifar_epochs or (120 if full else 4),
        samples=1000 if full else 200,
        tightness=not given.no_tightness,
    )


def report(plan: Plan, results: Results) -> Iterator[str]:
    """The report, line by line."""
    facts = host()
    yield f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['system']}; Python"
    yield f"{facts['python']}, torch {torch.__version__}, milpver {__version__}, one thread; seconds"
    yield f"are the processor's. {plan.images} test images, {plan.limit:g} s each; clean accuracy on all.\n"
    if plan.mnist is not None:
        images = Images.of(load_data(plan.mnist), plan.images)
        yield f"MNIST, 784-128-64-32-10 without biases, {plan.epochs} epochs (the paper: 120), Table 3:\n"
        yield from table_3(plan, results, images)
        swept: dict[str, list[Cell]] = {}
        if plan.tightness:
            lines, swept = tightness_table(plan, results, Images(images.x, images.y, min(images.count, 100)))
            yield "\nTightness, at most 100 images; gap: how far a bound is below what the attack swap"
            yield "finds, median over images classified correctly, in shares of the margin without pruning:\n"
            yield from lines
        figures(plan, results, images, swept)
    if plan.cifar is not None:
        data = load_data(plan.cifar / "cifar10_test.npz", keys=("x_test", "y_test"), scale=255.0)
        yield f"\nCIFAR-10, SmallConv, {plan.cifar_epochs} epochs, Tables 1, 2, 6 and 5:\n"
        yield from cifar_tables(plan, results, Images.of(data, plan.images))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; print the report and write it to table.md."""
    plan = read(argv)
    torch.set_num_threads(1)
    try:
        plan.out.mkdir(parents=True, exist_ok=True)
        results = Results(plan.out / "results.jsonl")
        lines = []
        for line in report(plan, results):
            print(line, flush=True)
            lines.append(line)
        (plan.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    except (MilpverError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    wrong = results.wrong()
    for each in wrong:
        print(f"WRONG: {each} is called robust, and an attack breaks it", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
