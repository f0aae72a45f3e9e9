"""``milpver prune``: remove the neurons that a heuristic thinks least of, and write the smaller network."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from milpver.cli.question import MOST_SEED, read_network
from milpver.cli.values import apart, number, whole
from milpver.data import (
    DEFAULT_KEYS,
    check_labels,
    fit_inputs,
    load_data,
    parse_floats,
    parse_keys,
    select,
)
from milpver.errors import QueryError
from milpver.linear import Float
from milpver.network import Network
from milpver.query import Budget, parse_budget, removed_pairs

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Choose, shrink, check, write, and say what it costs."""
    from milpver.prune.heuristics import NEED_DATA, least_important, scores  # noqa: PLC0415  needs torch
    from milpver.prune.shrink import shrink  # noqa: PLC0415  as above
    from milpver.train.export import write_whole  # noqa: PLC0415  as above

    mean = None if arguments.mean is None else parse_floats(arguments.mean, option="--mean")
    std = None if arguments.std is None else parse_floats(arguments.std, option="--std", positive=True)
    seed = whole("--seed", arguments.seed, least=0, most=MOST_SEED, example="0")
    network = read_network(Path(arguments.model), mean, std)
    budget = _budget(arguments.budget, network)
    save = Path(arguments.save)
    apart("--save", save, {"the network": arguments.model, "the data": arguments.data})
    data = None if arguments.data is None else _data(arguments, network)
    if arguments.method in NEED_DATA and data is None:
        raise QueryError(
            f"--method {arguments.method} without --data",
            needed="data on which activations are measured",
            fix="pass --data D, or --method l1, l2 or random",
        )
    x = None if data is None else data[0].astype(np.float64)
    importance = scores(
        network.graph,
        budget,
        arguments.method,
        inputs=x,
        labels=None if data is None else data[1],
        seed=seed,
    )
    removed = least_important(budget, importance)
    small = shrink(network, removed, None if data is None else data[0])
    write_whole(save, small.content, option="--save")
    out = sys.stdout.write
    pairs = removed_pairs(network, removed)
    for layer, width in zip(network.layers, small.widths, strict=True):
        gone = [str(neuron) for number_, neuron in pairs if number_ == layer.number]
        out(f"layer {layer.number} ({layer.name}): {layer.width} -> {width}")
        out(f", removed {','.join(gone)}\n" if gone else "\n")
    before, after = small.parameters
    out(
        f"{save}: {before} -> {after} parameters, {len(network.model)} -> {len(small.content)} bytes, "
        f"sha256 {hashlib.sha256(small.content).hexdigest()}\n"
        "ONNX Runtime: the small network differs from the masked one by "
        f"{small.difference:.1e} of the largest output\n"
    )
    if data is not None and x is not None:
        whole_, pruned = (_right(network.graph.evaluate(x, mask), data[1]) for mask in ({}, removed))
        out(f"accuracy on {len(x)} inputs: {whole_:.2f} % -> {pruned:.2f} %\n")
    return 0


def _budget(text: str, network: Network) -> Budget:
    """The budget, which has to allow something."""
    budget = parse_budget(text, network)
    if not budget.groups:
        raise QueryError(
            f"--budget {text} removes nothing",
            needed="a budget that removes a neuron",
            fix="pass e.g. --budget 10%,0,0",
        )
    return budget


def _data(arguments: Namespace, network: Network) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs in the network's order, and their labels."""
    keys = DEFAULT_KEYS if arguments.keys is None else parse_keys(arguments.keys)
    scale = None if arguments.scale is None else number("--scale", arguments.scale, above=0.0, example="255")
    dataset = load_data(Path(arguments.data), keys=keys, split=arguments.split, scale=scale)
    check_labels(dataset.labels, network.graph.outputs, dataset.source)
    indices = list(range(len(dataset)) if arguments.index is None else select(dataset, arguments.index))
    x = fit_inputs(
        dataset.inputs[indices], network.input_shape, layout=arguments.layout, source=dataset.source
    )
    return x, dataset.labels[indices]


def _right(outputs: Float, labels: NDArray[np.int64]) -> float:
    return 100 * float((outputs.argmax(axis=1) == labels).mean())
