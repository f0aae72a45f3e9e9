"""Images a second where the closed form answers: budgets on the last hidden layer, whole batches at a time.

    python bench/last_layer.py NET.onnx --data DIR --budget 0,0,3 [--index 0:10000] [--repeat 5]

Each run makes every verdict of the images, with the float32 replay of its witness. Processor time is that of
this process, all threads together: set OMP_NUM_THREADS=1 for one core. The first run is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from milpver.data import fit_inputs, load_data, select
from milpver.machine import keep_to_threads
from milpver.margin import margins
from milpver.onnx_import import load_network
from milpver.query import Options, parse_budget


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts' counts, and images a second."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--index", default="0:10000")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args(argv)
    keep_to_threads(1)
    network = load_network(given.model)
    dataset = load_data(given.data)
    indices = select(dataset, given.index)
    chosen = dataset.inputs[list(indices)]
    inputs = fit_inputs(chosen, network.input_shape, layout=None, source=dataset.source)
    labels = [int(dataset.labels[index]) for index in indices]
    budget = parse_budget(given.budget, network)
    wall, processor = [], []
    for _ in range(given.repeat + 1):
        began, spent = time.perf_counter(), time.process_time()
        verdicts = list(margins(network, inputs, labels, budget=budget, options=Options(), indices=indices))
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
    answered = Counter(str(verdict.verdict) for verdict in verdicts)
    engines = Counter(verdict.solver for verdict in verdicts)
    sys.stdout.write(f"{dict(answered)}, answered by {dict(engines)}\n")
    for name, times in (("processor", processor[1:]), ("wall clock", wall[1:])):
        rates = len(inputs) / np.array(times)
        sys.stdout.write(
            f"{median(rates):.0f} images a second of {name} time ({rates.min():.0f} to {rates.max():.0f})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
