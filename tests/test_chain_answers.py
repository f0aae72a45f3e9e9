"""What the first nodes of searches settle is answered in batches, as one by one; trees go with answers."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from milpver import margin
from milpver.network import Network
from milpver.query import Options, parse_budget
from milpver.search.chain import ChainSearch
from milpver.search.limits import SearchLimits, SearchResult
from milpver.verdict import Status, Verdict
from tests.nets import brute_force_margins, random_network

settle = ChainSearch.settle


def asked(path: Path, seed: int, *, decide: bool = False) -> tuple[Network, np.ndarray, list[Verdict]]:
    network = random_network(path / "n.onnx", [4, 9, 8, 7, 4], seed, scale=1.5)
    inputs = np.random.default_rng(seed).normal(size=(12, 4)).astype(np.float32)
    labels = [int(k) for k in network.graph.evaluate(inputs.astype(float)).argmax(axis=1)]
    budget, options = parse_budget("3,2,1", network), Options(decide=decide)
    return network, inputs, list(margin.margins(network, inputs, labels, budget=budget, options=options))


@pytest.mark.parametrize("seed", range(4))
def test_batches_say_what_enumeration_says(tmp_path: Path, seed: int) -> None:
    network, inputs, verdicts = asked(tmp_path, seed)
    for x, verdict in zip(inputs.astype(float), verdicts, strict=True):
        truth = brute_force_margins(network, x, verdict.label, [3, 2, 1])
        assert verdict.status is Status.OPTIMAL
        assert verdict.upper == pytest.approx(truth.min(), abs=1e-9)
        assert verdict.lower == pytest.approx(truth.min(), abs=2e-6)
        for bracket, value in zip(verdict.classes, truth, strict=True):
            assert bracket.lower is not None
            assert bracket.upper is not None
            assert bracket.lower <= value + 1e-9 <= bracket.upper + 2e-9


@pytest.mark.parametrize("decide", [False, True])
def test_inputs_one_by_one_get_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decide: bool
) -> None:
    _, _, together = asked(tmp_path, 7, decide=decide)
    monkeypatch.setattr(margin, "chain_answers", lambda *_: {})
    _, _, alone = asked(tmp_path, 7, decide=decide)
    for one, other in zip(together, alone, strict=True):
        assert (one.verdict, one.status, one.target, one.solver) == (
            other.verdict,
            other.status,
            other.target,
            other.solver,
        )
        assert one.upper == pytest.approx(other.upper, abs=1e-9)
        assert one.removed == other.removed or decide
        assert one.assurance is other.assurance


def test_the_tree_of_a_search_goes_with_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trees of a batch were kept to its end: each may take as much as the memory limit."""
    run = ChainSearch.run
    seen: list[weakref.ref[ChainSearch]] = []
    most = 0

    def watched(self: ChainSearch, limits: SearchLimits, offer: object) -> SearchResult:
        nonlocal most
        gc.collect()
        most = max(most, sum(each() is not None for each in seen))
        seen.append(weakref.ref(self))
        return run(self, limits, offer)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(ChainSearch, "settle", lambda self, gap, decide, _=0: settle(self, gap, decide, 0))
    monkeypatch.setattr(ChainSearch, "run", watched)
    asked(tmp_path, 3)
    assert len(seen) > 3
    assert most <= 1
