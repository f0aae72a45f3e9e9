"""Exact margins on a 4096-wide layer, a VGG11's head 512-4096-4096-10, with 10, 20 and 40 removable neurons.

    python -m bench.wide --mnist DIR [--out DIR] [--budgets 10,20,40] [--images 2] [--limit 300] [--decide]

The neuron-pruning paper's MILP answers such a layer up to 10 removable neurons in 300 s and none beyond. Its
features are not at hand: here 512 fixed random ReLU features of MNIST images take their place, on which the
head is trained (a minute or a few, once; it is kept in the output folder). The budget is on the first hidden
layer, all nine competing classes of an image are answered together, on one thread. For every image a line:
status, bracket, nodes and seconds; a bracket that is not closed is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench._command import benchmark
from milpver import __version__
from milpver.data import load_data
from milpver.machine import host
from milpver.margin import margins
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import Options, parse_budget
from milpver.train.export import export_error, onnx_model, write_whole
from milpver.train.fit import Recipe, Training
from milpver.train.methods import Settings

ARCHITECTURE = "512-4096-4096-10"
FEATURES, IMAGES = 512, 30_000
Float32 = NDArray[np.float32]


def features(images: Float32) -> Float32:
    """``relu(P x)`` with a fixed random P, float32 [n, 512], scaled to about 1."""
    random = np.random.default_rng(0)
    projection = random.normal(size=(images.shape[1], FEATURES)).astype(np.float32)
    found: Float32 = np.maximum(images @ projection / np.float32(10), 0)
    return found


def head(mnist: Path, out: Path) -> Network:
    """The trained head, from the output folder where it is there."""
    path = out / f"head-{ARCHITECTURE}.onnx"
    if not path.exists():
        data = load_data(mnist, split="train")
        x = features(data.inputs.reshape(len(data.inputs), -1)[:IMAGES])
        labels = np.asarray(data.labels, dtype=np.int64)[:IMAGES]
        recipe = Recipe(
            ARCHITECTURE,
            "standard",
            Settings((0, 0)),
            epochs=1,
            batch=256,
            learning_rate=3e-4,
            weight_decay=0.0,
        )
        training = Training(recipe, x, labels)
        print(f"training {ARCHITECTURE} on {len(x)} images", file=sys.stderr)
        for epoch in training.run():
            print(f"loss {epoch.loss:.3f}, accuracy {epoch.train_accuracy:.3f}", file=sys.stderr)
        content = onnx_model(training.net, "head")
        export_error(training.net, content, x[:100])
        write_whole(path, content, option="--out")
    return load_network(path)


def read(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.wide", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--mnist", required=True, type=Path, metavar="DIR", help="folder of MNIST's idx files")
    add("--out", default=Path("bench-wide"), type=Path, metavar="DIR", help="(bench-wide)")
    add("--budgets", default="10,20,40", metavar="LIST", help="removable neurons (10,20,40)")
    add("--images", default=2, type=int, metavar="N", help="images (2)")
    add("--limit", default=300.0, type=float, metavar="S", help="seconds an image (300)")
    add("--decide", action="store_true", help="only the sign of the margin")
    return parser.parse_args(argv)


def table(given: argparse.Namespace) -> None:
    """Print the table."""
    given.out.mkdir(parents=True, exist_ok=True)
    network = head(given.mnist, given.out)
    data = load_data(given.mnist)
    x = features(data.inputs.reshape(len(data.inputs), -1)[: 20 * given.images])
    labels = np.asarray(data.labels)[: len(x)]
    right = np.flatnonzero(network.graph.evaluate(x.astype(np.float64)).argmax(axis=1) == labels)
    facts = host()
    print(f"{facts['cpu']}, {facts['cores']} cores, milpver {__version__}, 1 thread, {given.limit:g} s")
    print("\n| removable | image | status | lower | upper | nodes | s |\n|---|---|---|---:|---:|---:|---:|")
    for count in given.budgets.split(","):
        for i in right[: given.images]:
            (verdict,) = margins(
                network, x[i][None], [int(labels[i])], budget=parse_budget([count, "0"], network),
                options=Options(timeout=given.limit, decide=given.decide, device="cpu"),
            )  # fmt: skip
            lower = "–" if verdict.lower is None else f"{verdict.lower:.6g}"
            print(
                f"| {count} | {i} | {verdict.status.value} | {lower} | {verdict.upper:.6g} "
                f"| {verdict.nodes} | {verdict.seconds:.3g} |",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print the table."""
    given = read(argv)
    return benchmark(lambda _wrong: table(given))


if __name__ == "__main__":
    sys.exit(main())
