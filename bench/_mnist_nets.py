"""MNIST networks for benchmarks: the two that ``bench/solvers.py`` trains, cached in a folder, or the user's.

784-128-64-32-10 without biases, by ``milpver.train``: a standard one, and one trained against the pruning
masks that an attack finds. Training is deterministic on one machine; the file's name carries the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.solvers import Settings, flat, network
from milpver.data import Dataset
from milpver.network import Network
from milpver.onnx_import import load_network

__all__ = ["correct", "flat", "networks"]


def networks(mnist: Path, out: Path, names: Sequence[str]) -> dict[str, Network]:
    """Networks by name: ``standard`` and ``robust`` are trained where ``out`` lacks them, others are files.

    Raises:
        MilpverError: no MNIST in the folder, or a file that is no network.
    """
    settings = Settings(mnist, out, (), (), (), 1, 1.0, False)
    found = {}
    for name in names:
        given = Path(name)
        trained = name in ("standard", "robust")
        found[name if trained else given.stem] = network(name, settings) if trained else load_network(given)
    return found


def correct(nets: Sequence[Network], data: Dataset, count: int) -> NDArray[np.int64]:
    """The first test images that all networks classify correctly, int64 [at most count]."""
    x = flat(data).astype(np.float64)
    right = np.ones(len(x), dtype=np.bool_)
    for net in nets:
        right &= net.graph.evaluate(x).argmax(axis=1) == data.labels
    found: NDArray[np.int64] = np.flatnonzero(right)[:count].astype(np.int64)
    return found
