"""What ``milpver demo`` asks: the shipped digit network, some of its test digits, and their picture.

Everything comes from package data, so it works from an installed wheel, away from any checkout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver.data import Dataset, fit_inputs, load_data
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.picture import Panel, draw

__all__ = ["BUDGET", "DATA", "MODEL", "choose", "picture", "shipped"]

#: Neurons that may be removed from the two hidden layers.
BUDGET = "2,1"
MODEL, DATA = "digits_fc.onnx", "digits_test.npz"

#: How sure the network is of the digits that are shown, among all that it gets right.
CERTAINTY = 0.08

_SIDE = 8

Record: TypeAlias = Mapping[str, Any]


def shipped() -> tuple[Network, Dataset]:
    """The shipped network and its test digits."""
    folder = files("milpver.onnx_models")
    with as_file(folder / MODEL) as model, as_file(folder / DATA) as data:
        return load_network(model), load_data(data)


def choose(network: Network, dataset: Dataset, count: int) -> tuple[int, ...]:
    """Positions of digits that the network gets right but is not too sure of, the classes in turn.

    In each class those come first whose margin is nearest to ``CERTAINTY``, a quantile over all digits: some
    of them survive the budget and some do not, and their small balls are searched in seconds.

    Args:
        network: a classifier of these digits.
        dataset: what to choose from.
        count: how many; there may be fewer.
    """
    inputs = fit_inputs(dataset.inputs, network.input_shape, layout=None, source=dataset.source)
    outputs = network.graph.evaluate(inputs.astype(np.float64))
    second, first = np.sort(outputs, axis=1)[:, -2:].T
    right = np.flatnonzero(outputs.argmax(axis=1) == dataset.labels)
    margins = (first - second)[right]
    order = np.argsort(np.abs(margins - np.quantile(margins, CERTAINTY)), kind="stable")
    turns: dict[int, int] = {}
    found = []
    for index in right[order]:
        label = int(dataset.labels[index])
        turns[label] = turns.get(label, 0) + 1
        found.append((turns[label], label, int(index)))
    return tuple(index for _, _, index in sorted(found)[:count])


def picture(
    network: Network,
    inputs: Mapping[int, NDArray[np.float32]],
    margins: Mapping[int, Record],
    distances: Mapping[int, Record],
) -> bytes:
    """Draw the digits that have both answers.

    Args:
        network: that was asked about.
        inputs: flattened digits by index, float32 [64].
        margins, distances: records by index.

    Returns:
        A PNG file.
    """
    widths = tuple(layer.width for layer in network.layers)
    panels = [
        _panel(inputs[index], margins[index], distances[index], widths)
        for index in margins
        if index in distances
    ]
    layers = " and ".join(f"{allowed} of layer {k}" for k, allowed in enumerate(BUDGET.split(","), start=1))
    return draw(
        panels,
        f"Worst removal of {layers} (crossed out), and the closest adversarial digit: {len(panels)} digits",
    )


def _panel(x: NDArray[np.float32], margin: Record, distance: Record, widths: tuple[int, ...]) -> Panel:
    adversarial = distance["adversarial"]
    removed: Sequence[Sequence[int]] | None = margin["removed"]
    return Panel(
        title=f"digit {margin['label']}\nindex {margin['index']}",
        image=x.reshape(_SIDE, _SIDE),
        widths=widths,
        removed=None if removed is None else tuple((layer, neuron) for layer, neuron in removed),
        mask_title=(
            f"worst removal: {margin['verdict']}\nmargin {_bracket(margin, 3)}, against {margin['target']}"
        ),
        adversarial=None if adversarial is None else np.array(adversarial).reshape(_SIDE, _SIDE),
        adversarial_title=(
            f"no adversarial digit\n({distance['status']})"
            if adversarial is None
            else f"taken for {distance['adversarial_label']}\nd_bnd {_bracket(distance, 4)}"
        ),
    )


def _bracket(record: Record, decimals: int) -> str:
    """A closed bracket as a number, an open one as two."""
    lower, upper = record["lower"], record["upper"]
    if lower is None or upper is None:
        return "?"
    if record["status"] == "optimal":
        return f"{upper:.{decimals}f}"
    return f"{lower:.{decimals}f} to {upper:.{decimals}f}"
