"""Totals over layers, and neurons that have to stay or go: every way to an answer equals enumeration."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import milpver
from milpver import margin, registry
from milpver.bounding import margin_rows
from milpver.counterexample import verify_property
from milpver.errors import QueryError
from milpver.network import Network
from milpver.property_file import load_property
from milpver.query import Options, parse_budget
from milpver.replay import Replay, without
from milpver.transfer import export_query
from milpver.verdict import Answer, Status
from tests.nets import random_network

Float = NDArray[np.float64]
Pairs = list[tuple[int, int]]
WIDTHS = (5, 4)
CLOSE = 2e-6


@dataclass(frozen=True)
class Case:
    """A budget: s of each layer, or a total; neurons to keep and to remove."""

    seed: int
    counts: tuple[int, int]
    total: int | None
    keep: Pairs
    remove: Pairs

    @property
    def budget(self) -> str:
        return ",".join(map(str, self.counts)) if self.total is None else f"total:{self.total}"

    def admissible(self) -> Iterator[tuple[NDArray[np.bool_], ...]]:
        """Every admissible mask, by what the budget means and nothing else."""
        slots = [(layer, k) for layer, width in enumerate(WIDTHS, start=1) for k in range(width)]
        for size in range(len(slots) + 1):
            for picked in map(set, itertools.combinations(slots, size)):
                if not set(self.remove) <= picked or picked & set(self.keep):
                    continue
                if self.total is not None:
                    fits = size <= self.total or (self.total == 0 and picked == set(self.remove))
                else:
                    fits = all(
                        sum(layer == place for layer, _ in picked)
                        <= (count or sum(layer == place for layer, _ in self.remove))
                        for place, count in enumerate(self.counts, start=1)
                    )
                if fits:
                    masks = tuple(np.zeros(width, dtype=np.bool_) for width in WIDTHS)
                    for layer, k in picked:
                        masks[layer - 1][k] = True
                    yield masks


@st.composite
def cases(draw: st.DrawFn, *, last: bool = False) -> Case:
    total = None if last else draw(st.none() | st.integers(1, 4))
    counts = (0 if last else draw(st.integers(0, 2)), draw(st.integers(1 if last else 0, 2)))
    places = [(2, k) for k in range(4)] if last else [(1, k) for k in range(5)] + [(2, k) for k in range(4)]
    forced = draw(st.lists(st.sampled_from(places), max_size=4, unique=True))
    cut = draw(st.integers(0, min(2, len(forced))))
    remove, keep = forced[:cut], forced[cut:]
    for place, count in enumerate(counts, start=1):  # within the budget
        own = [pair for pair in remove if pair[0] == place]
        if total is None and count:
            remove = [pair for pair in remove if pair[0] != place] + own[:count]
    return Case(draw(st.integers(0, 10**6)), counts, total, keep, remove[:total] if total else remove)


def setting(folder: Path, case: Case) -> tuple[Network, Float, int, Float]:
    """The network, an input with its class, and each class's smallest margin by enumeration."""
    network = random_network(folder / "n.onnx", [3, *WIDTHS, 3], case.seed, scale=1.5)
    x = np.random.default_rng(case.seed).normal(size=3).astype(np.float32).astype(float)
    label = int(network.graph.evaluate(x[None])[0].argmax())
    stacked = [np.stack(column) for column in zip(*case.admissible(), strict=True)]
    masks = {layer.node: column for layer, column in zip(network.layers, stacked, strict=True)}
    outputs = network.graph.evaluate(np.repeat(x[None], len(stacked[0]), axis=0), masks)
    return network, x, label, (outputs[:, [label]] - np.delete(outputs, label, axis=1)).min(axis=0)


def ask(network: Network, x: Float, label: int, case: Case, **options: object) -> milpver.Verdict:
    found: milpver.Verdict = milpver.worst_margin(  # type: ignore[call-overload]  # options of tests
        network,
        x,
        label,
        budget=case.budget,
        keep=case.keep,
        remove=case.remove,
        **options,
    )
    return found


WAYS = ["chain", "tensors", "fused", "reference", "ball"]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=cases())
def test_margins_equal_enumeration(tmp_path: Path, way: str, case: Case) -> None:
    network, x, label, truth = setting(tmp_path, case)
    options: dict[str, object] = {"solver": "bab"}
    if way in ("fused", "reference"):
        options = {"solver": "highs", "encoding": way, "bounds": "budget" if way == "fused" else "interval"}
    if way == "ball":  # the point, as far as anyone can tell, but no closed form and no fixed input
        options = {"solver": "highs", "radius": 1e-12}
    with pytest.MonkeyPatch.context() as patch:
        if way == "tensors":
            patch.setattr(margin, "chain_of", lambda *_: None)
        verdict = ask(network, x, label, case, **options)
        decided = ask(network, x, label, case, decide=True, **options)
    assert verdict.status is Status.OPTIMAL, verdict.message
    assert verdict.upper == pytest.approx(truth.min(), abs=CLOSE)
    assert verdict.lower == pytest.approx(truth.min(), abs=CLOSE)
    assert verdict.lower is not None
    assert verdict.removed is not None
    removed = set(verdict.removed)
    assert set(case.remove) <= removed
    assert not removed & set(case.keep)
    if case.total is not None:
        assert len(removed) <= case.total
    assert verdict.keep == tuple(sorted(case.keep))
    assert verdict.remove == tuple(sorted(case.remove))
    assert verdict.budget == (case.counts if case.total is None else f"total:{case.total}")
    if abs(truth.min()) > 1e-4:
        assert decided.verdict is (Answer.ROBUST if truth.min() > 0 else Answer.VULNERABLE)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(last=True))
def test_the_closed_form_equals_enumeration(tmp_path: Path, case: Case) -> None:
    network, x, label, truth = setting(tmp_path, case)
    with pytest.MonkeyPatch.context() as patch:
        found = [ask(network, x, label, case)]
        patch.setattr(margin, "closed_answers", lambda *_: {})
        found.append(ask(network, x, label, case))
    for verdict in found:
        assert verdict.solver == "closed-form"
        assert verdict.lower is not None
        assert verdict.lower <= truth.min() + 1e-12
        assert verdict.lower == pytest.approx(truth.min(), abs=1e-9)
        assert verdict.upper == pytest.approx(truth.min(), abs=1e-9)
        assert verdict.removed is not None
        assert set(case.remove) <= set(verdict.removed)
        assert not set(verdict.removed) & set(case.keep)


@pytest.mark.parametrize("bounds", ["interval", "budget", "crown", "alpha-crown", "lp"])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_bounds_hold_for_all_masks(tmp_path: Path, bounds: str, case: Case) -> None:
    network, x, label, truth = setting(tmp_path, case)
    budget = parse_budget(case.budget, network, keep=case.keep, remove=case.remove)
    found = registry.load("bounds", bounds).bound(
        network.graph, x[None], x[None], budget, margin_rows((label,), 3), "cpu"
    )
    assert np.all(found.rows_lower[0] <= truth + 1e-12)
    for masks in itertools.islice(case.admissible(), 40):
        removed = {layer.node: mask for layer, mask in zip(network.layers, masks, strict=True)}
        for low, high, value in zip(
            found.lower, found.upper, network.graph.trace(x[None], removed), strict=True
        ):
            assert np.all(low <= value + 1e-12)
            assert np.all(high >= value - 1e-12)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_budgets_admit_what_they_mean(tmp_path: Path, case: Case) -> None:
    network = random_network(tmp_path / "n.onnx", [3, *WIDTHS, 3], 1)
    budget = parse_budget(case.budget, network, keep=case.keep, remove=case.remove)
    wanted = {tuple(map(bytes, masks)) for masks in case.admissible()}
    rng = np.random.default_rng(case.seed)
    for _ in range(100):
        masks = tuple(rng.random(width) < 0.25 for width in WIDTHS)
        for layer, k in case.remove:
            masks[layer - 1][k] |= rng.random() < 0.8
        removed = {layer.node: mask for layer, mask in zip(network.layers, masks, strict=True)}
        gated = {node for group in budget.groups for node in group.nodes}
        removed = {node: mask for node, mask in removed.items() if node in gated or mask.any()}
        assert budget.admits(network.graph, removed) == (tuple(map(bytes, masks)) in wanted)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return random_network(tmp_path_factory.mktemp("net") / "n.onnx", [3, *WIDTHS, 3], seed=4, scale=1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": "3:0"}, "--keep names layer '3'.*1 .5 neurons., 2 .4 neurons."),
        ({"keep": "1:5"}, "--keep names '5' in layer 1.*0 to 4"),
        ({"remove": "1:x"}, "--remove names 'x' in layer 1"),
        ({"remove": "1:-1"}, "--remove names '-1' in layer 1"),
        ({"remove": "3"}, "does not say which layer '3' is in"),
        ({"keep": "1:2", "remove": "1:2"}, "--keep and --remove both name 1:2"),
        ({"remove": "1:0,1"}, "--remove takes 2 from layer 1, whose budget is 1"),
        ({"remove": "2:0,1,2,3"}, "--remove takes all 4 neurons of layer 2"),
        ({"entries": "total:1", "remove": "1:0,2:1"}, "takes 2 from layer 1, 2, whose budget is 1"),
        ({"entries": "total:9"}, "9 of its 9 neurons"),
        ({"entries": "total:2,1:1"}, "has a total and fully connected layers"),
        ({"entries": "total:2,total:1"}, "names a layer twice"),
        ({"entries": "total:x"}, "'x'"),
    ],
)
def test_what_makes_no_sense_is_refused(network: Network, arguments: dict[str, str], said: str) -> None:
    entries = arguments.get("entries", "1,0")
    forced = {key: value for key, value in arguments.items() if key != "entries"}
    with pytest.raises(QueryError, match=said):
        parse_budget(entries, network, **forced)


def test_budgets_are_read_back_from_records(network: Network) -> None:
    for entries in ("2,1", "total:3", "total:25%", "1:2", "2=3,1=1"):
        budget = parse_budget(entries, network)
        assert parse_budget(budget.shown, network) == budget
    assert parse_budget("total:25%", network).shown == "total:2"
    assert parse_budget("1:2,2:1", network) == parse_budget("2,1", network)
    first, second = (layer.node for layer in network.layers)
    assert parse_budget("1,0", network, keep="1:3,2 2:0").kept == ((first, 2), (first, 3), (second, 0))


@pytest.mark.parametrize("remove", [[(1, 2)], [(1, 0), (2, 3)], []])
def test_distances_of_the_network_without_some_neurons(network: Network, remove: Pairs) -> None:
    masks = {layer.node: np.zeros(layer.width, dtype=np.bool_) for layer in network.layers}
    for layer, k in remove:
        masks[network.layers[layer - 1].node][k] = True
    pruned = without(network, masks)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    expected = network.graph.evaluate(x.astype(float), masks)
    assert np.array_equal(pruned.graph.evaluate(x.astype(float)), expected)
    assert Replay(pruned).outputs(x) == pytest.approx(Replay(network).outputs(x, masks), abs=1e-5)
    label = int(expected[0].argmax())
    verdict = milpver.boundary_distance(network, x[0], label, domain=(-5.0, 5.0), remove=remove)
    assert verdict.remove == tuple(remove)
    assert verdict.status is Status.OPTIMAL, verdict.message
    assert verdict.adversarial is not None
    found = network.graph.evaluate(np.array(verdict.adversarial)[None], masks)[0]
    assert found[label] <= found[verdict.adversarial_label] + 1e-9
    assert verdict.upper is not None
    ball = np.random.default_rng(1).uniform(-1, 1, size=(2000, 3)) * verdict.upper * 0.999
    inside = network.graph.evaluate(np.clip(x[0] + ball, -5, 5), masks)
    assert np.all(inside.argmax(axis=1) == label)


def test_properties_and_exports_know_what_is_forced(network: Network, tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=3).astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(float))[0].argmax())
    other = (label + 1) % 3
    budget = parse_budget("2,0", network, keep="1:0,1,2", remove="1:3")
    allowed = [{3}, {3, 4}]
    values = []
    for gone in allowed:
        mask = np.isin(np.arange(5), list(gone))
        logits = network.graph.evaluate(x[None].astype(float), {network.layers[0].node: mask})[0]
        values.append(logits[label] - logits[other])
    least = min(values)
    exact = [format(Decimal(float(v)), "f") for v in x]
    for limit, holds in ((least - 0.01, True), (least + 0.01, False)):
        text = [f"(declare-const X_{i} Real)" for i in range(3)] + [
            f"(declare-const Y_{j} Real)" for j in range(3)
        ]
        text += [f"(assert (<= X_{i} {v}))(assert (>= X_{i} {v}))" for i, v in enumerate(exact)]
        text += [f"(assert (<= (- Y_{label} Y_{other}) {limit}))"]
        path = tmp_path / f"{holds}.vnnlib"
        path.write_text("\n".join(text))
        answer = verify_property(network, load_property(path), budget=budget, options=Options(timeout=20))
        assert str(answer.outcome) == ("unsat" if holds else "sat"), answer.message
    exported = export_query(network, x, label, tmp_path / "q.mps", budget=budget, target=other)
    meaning = json.loads(exported.meaning.read_text())
    assert meaning["keep"] == [[1, 0], [1, 1], [1, 2]]
    assert meaning["remove"] == [[1, 3]]
    again = parse_budget(meaning["budget"], network, keep=meaning["keep"], remove=meaning["remove"])
    assert again == budget
