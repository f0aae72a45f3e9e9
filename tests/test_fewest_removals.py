"""Pruning distances equal what enumeration of all masks finds; what is not proven stays open."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import milpver
from milpver import fewest_removals
from milpver.errors import QueryError
from milpver.margin import margins
from milpver.network import Network
from milpver.query import Options
from milpver.verdict import Answer, Status, Verdict
from tests.nets import random_network

Float = NDArray[np.float64]
WIDTHS = (5, 4)
Slot = tuple[int, int]


def setting(folder: Path, seed: int) -> tuple[Network, Float, int]:
    network = random_network(folder / "n.onnx", [3, *WIDTHS, 3], seed, scale=1.5)
    x = np.random.default_rng(seed).normal(size=3).astype(np.float32).astype(float)
    return network, x, int(network.graph.evaluate(x[None])[0].argmax())


def enumerated(
    network: Network, x: Float, label: int, layers: list[int], keep: list[Slot], remove: list[Slot]
) -> tuple[int | None, float]:
    """The smallest number of removals from these layers, and how close any margin comes to 0."""
    slots = [(place, k) for place in layers for k in range(WIDTHS[place - 1])]
    free = [slot for slot in slots if slot not in keep and slot not in remove]
    nearest = np.inf
    for size in range(len(free) + 1):
        smallest = np.inf
        for picked in itertools.combinations(free, size):
            gone = [*picked, *remove]
            if all(slot in gone for slot in slots):  # a layer cannot be removed whole
                continue
            masks = {layer.node: np.zeros(layer.width, dtype=np.bool_) for layer in network.layers}
            for place, k in gone:
                masks[network.layers[place - 1].node][k] = True
            logits = network.graph.evaluate(x[None], masks)[0]
            margin = float((logits[label] - np.delete(logits, label)).min())
            smallest, nearest = min(smallest, margin), min(nearest, abs(margin))
        if smallest <= 0:
            return size + len(remove), nearest
    return None, nearest


def assert_attained(network: Network, x: Float, verdict: Verdict) -> None:
    assert verdict.removed is not None
    assert verdict.upper == len(verdict.removed)
    masks = {layer.node: np.zeros(layer.width, dtype=np.bool_) for layer in network.layers}
    for place, k in verdict.removed:
        masks[network.layers[int(place) - 1].node][k] = True
    logits = network.graph.evaluate(x[None], masks)[0]
    assert logits[verdict.label] <= np.delete(logits, verdict.label).max()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), total=st.booleans(), data=st.data())
def test_distances_are_those_of_enumeration(
    tmp_path: Path, seed: int, total: bool, data: st.DataObject
) -> None:
    network, x, label = setting(tmp_path, seed)
    layers = data.draw(st.sampled_from([[1], [2], [1, 2]]))
    slots = [(place, k) for place in (1, 2) for k in range(WIDTHS[place - 1])]
    forced = data.draw(st.lists(st.sampled_from(slots), max_size=3, unique=True))
    cut = data.draw(st.integers(0, min(1, len(forced))))
    remove, keep = forced[:cut], forced[cut:]
    verdict = milpver.pruning_distance(
        network, x, label, layers=layers, total=total, keep=keep, remove=remove, timeout=30
    )
    parts = [layers] if total else [[layer] for layer in layers]
    found = [enumerated(network, x, label, part, keep, remove) for part in parts]
    if min(nearest for _, nearest in found) < 1e-6:
        return  # rounding decides
    truth = [distance for distance, _ in found]
    assert [each.layer for each in verdict.layers] == (["total"] if total else layers)
    for each, distance in zip(verdict.layers, truth, strict=True):
        if distance is None:
            assert (each.status, each.upper) == (Status.INFEASIBLE, None)
        else:
            assert (each.status, each.lower, each.upper) == (Status.OPTIMAL, distance, distance)
    least = min((distance for distance in truth if distance is not None), default=None)
    assert verdict.upper == verdict.lower == least
    assert verdict.status is (Status.INFEASIBLE if least is None else Status.OPTIMAL)
    assert verdict.question == "pruning-distance"
    if least is None:
        assert verdict.removed is None
        assert verdict.mask is None
        assert verdict.witness is None
        return
    assert_attained(network, x, verdict)
    assert set(remove) <= set(verdict.removed or ())
    assert not set(keep) & set(verdict.removed or ())


def test_batches_are_those_of_single_inputs(tmp_path: Path) -> None:
    network, _, _ = setting(tmp_path, 5)
    inputs = np.random.default_rng(5).normal(size=(6, 3)).astype(np.float32)
    labels = [int(k) for k in network.graph.evaluate(inputs.astype(float)).argmax(axis=1)]
    labels[3] = (labels[3] + 1) % 3
    batch = milpver.pruning_distance(network, inputs, labels, total=True)
    for i, verdict in enumerate(batch):
        alone = milpver.pruning_distance(network, inputs[i], labels[i], total=True)
        assert verdict.index == i
        assert (verdict.lower, verdict.upper, verdict.status) == (alone.lower, alone.upper, alone.status)
    assert batch[3].status is Status.MISCLASSIFIED
    assert batch[3].layers == ()
    assert batch[3].lower is batch[3].upper is None


def test_an_attack_that_lies_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, label = setting(tmp_path, 11)
    honest = milpver.pruning_distance(network, x, label, layers=[1])
    harmless = {network.layers[0].node: np.eye(5, dtype=np.bool_)[0]}
    monkeypatch.setattr(fewest_removals, "_attacked", lambda *_: [harmless])
    found = milpver.pruning_distance(network, x, label, layers=[1])
    assert (found.lower, found.upper, found.status) == (honest.lower, honest.upper, honest.status)


def test_what_is_not_decided_leaves_an_honest_bracket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = (seed for seed in itertools.count() if _distance(tmp_path, seed) == 3)
    network, x, label = setting(tmp_path, next(seeds))
    real = margins

    def undecided_at_two(*given: Any, **named: Any) -> Any:
        for verdict in real(*given, **named):
            size = sum(group.removable for group in named["budget"].groups)
            if size == 2 and not named["budget"].gone:
                object.__setattr__(verdict, "verdict", Answer.UNKNOWN)
                object.__setattr__(verdict, "status", Status.TIMEOUT)
            yield verdict

    monkeypatch.setattr(fewest_removals, "margins", undecided_at_two)
    verdict = milpver.pruning_distance(network, x, label, layers=[1])
    assert (verdict.lower, verdict.upper) == (2, 3)
    assert verdict.status is Status.TIMEOUT


def _distance(folder: Path, seed: int) -> int | None:
    network, x, label = setting(folder, seed)
    return enumerated(network, x, label, [1], [], [])[0]


def test_no_time_leaves_everything_open(tmp_path: Path) -> None:
    network, x, label = setting(tmp_path, 2)
    verdict = milpver.pruning_distance(network, x, label, timeout=1e-9)
    assert verdict.lower is not None
    assert verdict.lower <= min(
        distance for layer in (1, 2) if (distance := enumerated(network, x, label, [layer], [], [])[0])
    )
    assert verdict.status in (Status.TIMEOUT, Status.OPTIMAL)


def test_an_interruption_ends_the_run(tmp_path: Path) -> None:
    network, x, label = setting(tmp_path, 2)
    found = list(
        fewest_removals.pruning_distances(
            network, x[None].astype(np.float32), [label], options=Options(), should_stop=lambda: True
        )
    )
    assert len(found) == 1
    assert found[0].status in (Status.INTERRUPTED, Status.OPTIMAL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": "3"}, "--layers names '3'"),
        ({"layers": [1, 1]}, "names a layer twice"),
        ({"layers": []}, "no layer to prune"),
        ({"keep": "1:9"}, "--keep names '9'"),
        ({"keep": "1:1", "remove": "1:1"}, "both name 1:1"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    network, x, label = setting(tmp_path, 2)
    with pytest.raises(QueryError, match=said):
        milpver.pruning_distance(network, x, label, **arguments)
