"""All backends on the same 200 random queries: one optimum to 1e-5, or the word that they did not finish.

HiGHS answers all of them; the others, which cost more a solve, a share each. Points and balls, margins and
distances, networks of a few neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from milpver import registry
from milpver.distance import distances
from milpver.margin import margins
from milpver.query import Options, parse_budget
from milpver.solver import Solver
from milpver.verdict import Answer, Status, Verdict
from tests.nets import random_network

#: Networks, inputs of each, and how many of a network's inputs the other backends get.
NETWORKS, INPUTS, SHARE = 20, 10, 2
NAMES = [variant for name in registry.names("solvers") for variant in registry.variants("solvers", name)]
UNFINISHED = {Status.TIMEOUT, Status.ERROR, Status.UNAVAILABLE, Status.MEMORY}


def ask(folder: Path, k: int, solver: str, count: int) -> Sequence[Verdict]:
    """The k-th network's queries; its question, budget and radius follow from k."""
    rng = np.random.default_rng(k)
    widths = [2 + k % 2, 3 + k % 3, 4, 3]
    network = random_network(folder / f"{k}.onnx", widths, seed=k)
    inputs = rng.uniform(-1, 1, (INPUTS, widths[0])).astype(np.float32)
    labels = [int(label) for label in network.graph.evaluate(inputs.astype(np.float64)).argmax(axis=1)]
    options = Options(solver=solver, timeout=20.0, bounds="interval", encoding=("fused", "reference")[k % 2])
    part = slice(count)
    if k % 4 == 3:
        found = distances(network, inputs[part], labels[part], domain=(-2.0, 2.0), options=options)
    else:
        budget = parse_budget([1 + k % 2, k % 3 % 2], network)
        radius = 0.1 if k % 2 else 0.0
        found = margins(network, inputs[part], labels[part], budget=budget, radius=radius, options=options)
    return list(found)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Sequence[Verdict]]:
    """HiGHS on all queries."""
    folder = tmp_path_factory.mktemp("networks")
    return {k: ask(folder, k, "highs", INPUTS) for k in range(NETWORKS)}


def test_the_reference_finishes_all_queries(reference: dict[int, Sequence[Verdict]]) -> None:
    verdicts = [verdict for found in reference.values() for verdict in found]
    assert len(verdicts) == 200
    assert {verdict.status for verdict in verdicts} <= {Status.OPTIMAL, Status.INFEASIBLE}
    assert sum(verdict.solver == "highs" for verdict in verdicts) > 100
    assert {verdict.verdict for verdict in verdicts} >= {Answer.ROBUST, Answer.VULNERABLE}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "highs"])
def test_backends_agree(reference: dict[int, Sequence[Verdict]], name: str, tmp_path: Path) -> None:
    solver: Solver = registry.load("solvers", name)
    state = solver.availability()
    if not state.available:
        pytest.skip(f"{name}: {state.reason}")
    unfinished = compared = 0
    for k in range(NETWORKS):
        for one, other in zip(ask(tmp_path, k, name, SHARE), reference[k], strict=False):
            compared += 1
            if one.status in UNFINISHED:
                unfinished += 1
                assert one.message or one.status is Status.TIMEOUT
                continue
            assert one.status is other.status, (k, one.index)
            for ours, theirs in ((one.lower, other.lower), (one.upper, other.upper)):
                assert (ours is None) == (theirs is None)
                if ours is not None and theirs is not None:
                    assert ours == pytest.approx(theirs, abs=1e-5), (k, one.index)
            assert one.verdict is other.verdict
    assert compared == NETWORKS * SHARE
    assert unfinished <= compared // 10
