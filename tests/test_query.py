"""Budgets, boxes and options: what is admitted, and one line for whatever is not."""

from __future__ import annotations

import math
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milpver.errors import QueryError
from milpver.network import Network
from milpver.query import (
    Box,
    Budget,
    BudgetGroup,
    Options,
    ball,
    check_inputs,
    chosen_layers,
    parse_budget,
    removed_pairs,
)
from tests.nets import random_network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return random_network(tmp_path_factory.mktemp("net") / "n.onnx", [3, 5, 4, 8, 3], seed=1)


@pytest.mark.parametrize(
    ("entries", "counts"),
    [
        (None, (0, 0, 0)),
        ("2,1,0", (2, 1, 0)),
        (" 2 , - ,0", (2, 0, 0)),
        ("-,-,7", (0, 0, 7)),
        ("10%,0,0", (1, 0, 0)),  # 0.5 of 5: halves up
        ("9.9%,12.5%,6.25%", (0, 1, 1)),
        ("29%,30%,1e1%", (1, 1, 1)),
        ("1/2%,0%,0", (0, 0, 0)),
        ([1, 2, 3], (1, 2, 3)),
        (["10%", "-", 3], (1, 0, 3)),
        ((np.int64(1), 0, 0), (1, 0, 0)),
        ("2=1", (0, 1, 0)),
        ("3=25%,1=2", (2, 0, 2)),
        ("h1=3", (0, 3, 0)),
    ],
)
def test_budgets_are_read(network: Network, entries: Any, counts: tuple[int, ...]) -> None:
    budget = parse_budget(entries, network)
    assert budget.per_layer == counts
    expected = tuple(
        BudgetGroup((layer.node,), s) for layer, s in zip(network.layers, counts, strict=True) if s
    )
    assert budget.groups == expected


@given(st.integers(0, 1000), st.integers(1, 3))
def test_percentages_round_to_the_nearest_neuron_halves_up(tenths: int, place: int) -> None:
    network = _widths(5, 4, 8)
    percent = Fraction(tenths, 10)
    exact = percent * network.layers[place - 1].width / 100
    wanted = math.floor(exact) + (exact - math.floor(exact) >= Fraction(1, 2))
    entry = f"{place}={tenths / 10}%"
    if wanted >= network.layers[place - 1].width:
        with pytest.raises(QueryError, match="cannot be removed whole"):
            parse_budget(entry, network)
    else:
        assert parse_budget(entry, network).per_layer[place - 1] == wanted


_KEPT: dict[tuple[int, ...], Network] = {}


def _widths(*widths: int) -> Network:
    if widths not in _KEPT:
        with tempfile.TemporaryDirectory() as folder:
            _KEPT[widths] = random_network(Path(folder) / "n.onnx", [3, *widths, 3], seed=1)
    return _KEPT[widths]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("1,1", "has 2 entries.*3 gateable layers"),
        ("1,1,1,1", "has 4 entries"),
        ([], "has 0 entries"),
        ("", "an empty budget, and 3 gateable layers.*--budget 0,0,0"),
        (" ", "an empty budget"),
        ("1e999999999%,0,0", "'1e999999999%' for layer 1"),
        ("total:99", "total:99 over all fully connected layers is 99 of its [0-9]+ neurons.*one has to stay"),
        ("total:-1", "total:-1 over all fully connected layers is negative"),
        ("total:x", "budget entry 'x' for the total; needed"),
        ("1e99%,0,0", "1e99% of layer 1 .* is 5 of its 5"),
        ("5,0,0", "5 of its 5 neurons.*0 to 4"),
        ("100%,0,0", "5 of its 5"),
        ("90%,0,0", "5 of its 5"),
        ("0,-1,0", "-1"),
        ("0,-10%,0", "-10% of layer 2.*negative"),
        ("0,-1%,0", "-1% of layer 2.*negative"),
        ("a,0,0", "'a' for layer 1.*whole number"),
        ("1.5,0,0", "'1.5' for layer 1"),
        ("%,0,0", "'%' for layer 1"),
        ("nan%,0,0", "'nan%'"),
        ("inf%,0,0", "'inf%'"),
        ("1/0%,0,0", "'1/0%'"),
        ("4=1", "'4=1' names no gateable layer.*1 or "),
        ("0=1", "'0=1' names no gateable layer"),
        ("nothing=1", "'nothing=1' names"),
        ("1=1,2", "'2' names no gateable layer"),
        ("1=", "|"),
        ("1=9", "9 of its 5"),
        ("1=1,1=2", "twice"),
        ("1=1,h0=2", "twice"),
    ],
)
def test_what_is_no_budget_is_refused_in_one_line(network: Network, entries: Any, said: str) -> None:
    if said.endswith("|"):
        assert parse_budget(entries, network).per_layer == (0, 0, 0)
        return
    with pytest.raises(QueryError, match=said) as caught:
        parse_budget(entries, network)
    assert "\n" not in str(caught.value)


def test_where_nothing_can_be_removed_a_budget_of_0_says_so(tmp_path: Path) -> None:
    linear = random_network(tmp_path / "linear.onnx", [3, 2], seed=1)
    assert linear.layers == ()
    for entries in ("0", "-", "", None, [0]):
        assert parse_budget(entries, linear) == Budget(())
    with pytest.raises(QueryError, match=r"there are none.*fix: write --budget 0$"):
        parse_budget("1", linear)
    with pytest.raises(QueryError, match=r"no layer to prune: linear.onnx has none"):
        chosen_layers(linear, None)


def test_a_budget_admits_what_its_groups_allow(network: Network) -> None:
    first, second, third = (layer.node for layer in network.layers)
    budget = Budget((BudgetGroup((first, second), 2), BudgetGroup((third,), 1)))
    graph = network.graph

    def mask(size: int, *gone: int) -> np.ndarray:
        found = np.zeros(size, dtype=bool)
        found[list(gone)] = True
        return found

    assert budget.admits(graph, {})
    assert budget.admits(graph, {first: mask(5, 0), second: mask(4, 3), third: mask(8, 7)})
    assert budget.admits(graph, {first: mask(5, 0, 1)})
    assert not budget.admits(graph, {first: mask(5, 0, 1), second: mask(4, 0)})
    assert not budget.admits(graph, {third: mask(8, 0, 1)})
    assert not budget.admits(graph, {third: mask(7, 0)}), "a mask of the wrong length"
    assert not budget.admits(graph, {third: mask(8, 0)[None]}), "a batch of masks"
    assert not budget.admits(graph, {1: mask(5, 0)}), "a node that is no Gate"
    alone = Budget((BudgetGroup((third,), 1),))
    assert alone.admits(graph, {first: mask(5)})
    assert not alone.admits(graph, {first: mask(5, 0)}), "a layer without a budget"
    assert not Budget().admits(graph, {first: mask(5, 0)})


def test_masks_are_reported_as_layers_from_one_and_neurons_from_zero(network: Network) -> None:
    first, _, third = (layer.node for layer in network.layers)
    gone = np.zeros(8, dtype=bool)
    gone[[0, 7]] = True
    assert removed_pairs(network, {third: gone, first: np.arange(5) == 2}) == ((1, 2), (3, 0), (3, 7))
    assert removed_pairs(network, {}) == ()


floats32 = st.floats(-1e6, 1e6, width=32)
radii = st.one_of(st.floats(0, 10), st.floats(0, 1e-12), st.sampled_from([0.1, 1 / 255, 5e-324, 1e300]))


@given(st.lists(floats32, min_size=1, max_size=4), radii, st.floats(0, 2), st.floats(0, 2), st.booleans())
def test_balls_are_rounded_outward_and_inward(
    centre: list[float], radius: float, below: float, above: float, limited: bool
) -> None:
    x = np.array(centre)
    domain = (x - below, x + above) if limited else None
    box = ball(x, radius, domain)
    for i, c in enumerate(centre):
        low, high = Fraction(c) - Fraction(radius), Fraction(c) + Fraction(radius)
        if domain is not None:
            low, high = max(low, Fraction(domain[0][i])), min(high, Fraction(domain[1][i]))
        for exact, outer, inner, away in (
            (low, box.lower[i], box.inner_lower[i], -math.inf),
            (high, box.upper[i], box.inner_upper[i], math.inf),
        ):
            sign = 1 if away > 0 else -1
            assert sign * Fraction(float(outer)) >= sign * exact
            assert sign * Fraction(float(inner)) <= sign * exact
            if Fraction(float(inner)) == exact:
                assert outer == inner
            else:  # the two floats next to the exact corner
                assert math.nextafter(float(inner), away) == outer
        assert box.inner_lower[i] <= c <= box.inner_upper[i]
    assert box.is_point == bool(np.all(box.lower == box.upper))


@given(st.lists(floats32, min_size=2, max_size=4), radii, st.integers(0, 10**6))
def test_float32_points_lie_in_the_exact_box(centre: list[float], radius: float, seed: int) -> None:
    x = np.array(centre)
    box = ball(x, radius, None)
    rng = np.random.default_rng(seed)
    reach = min(radius, 1e30)
    for point in (x, x + reach, x - reach, x + rng.uniform(-1.5, 1.5, len(x)) * reach):
        near = box.clip_float32(point)
        assert near.dtype == np.float32
        for value, c in zip(near, centre, strict=True):
            assert abs(Fraction(float(value)) - Fraction(c)) <= Fraction(radius)
        assert box.contains(near.astype(np.float64))
        assert box.contains(box.clip(point))


def test_sets_are_closed_and_nothing_outside_counts() -> None:
    box = ball(np.array([0.5]), 0.25, (0.0, 0.7))
    assert box.contains(np.array([0.25]))
    assert box.contains(np.array([0.7]))
    assert not box.contains(np.array([math.nextafter(0.25, 0)]))
    assert not box.contains(np.array([math.nextafter(0.7, 1)]))
    assert not box.contains(np.array([math.nan]))
    assert not box.contains(np.array([math.inf]))


def test_an_infinite_radius_is_the_domain() -> None:
    x = np.array([0.5, -3.0])
    everything = ball(x, math.inf, None)
    assert np.all(everything.lower == -math.inf)
    assert np.all(everything.upper == math.inf)
    assert everything.contains(np.array([1e300, -1e300]))
    domain = ball(x, math.inf, (np.array([0.0, -3.0]), np.array([1.0, 5.0])))
    np.testing.assert_array_equal(domain.lower, [0.0, -3.0])
    np.testing.assert_array_equal(domain.upper, [1.0, 5.0])
    np.testing.assert_array_equal(domain.inner_upper, [1.0, 5.0])


def test_a_box_is_a_point_where_nothing_is_left() -> None:
    assert ball(np.array([0.5]), 0.0, None).is_point
    assert ball(np.array([0.5]), 1.0, (0.5, 0.5)).is_point
    assert not ball(np.array([0.5]), 1e-300, None).is_point
    assert isinstance(ball(np.array([0.5]), 0.0, (0, 1)), Box)


GOOD = np.zeros((2, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("inputs", "labels", "domain", "said"),
    [
        (GOOD[:, :2], [0, 0], None, r"shape \(2, 2\)"),
        (GOOD, [0], None, "1 labels"),
        (GOOD[0], [0], None, "shape"),
        (GOOD, [0, 3], None, "label 3 of input 1.*0 to 2"),
        (GOOD, [-1, 0], None, "label -1 of input 0"),
        (np.array([[0, 0, 0], [0, np.nan, 0]], dtype=np.float32), [0, 0], None, "input 1 holds NaN"),
        (np.array([[0, np.inf, 0], [0, 0, 0]], dtype=np.float32), [0, 0], None, "input 0 holds NaN or inf"),
        (GOOD, [0, 0], (1.0, 0.0), "empty domain"),
        (GOOD, [0, 0], (np.zeros(3), np.array([1.0, -1.0, 1.0])), "empty domain.*0.*-1"),
        (GOOD, [0, 0], (math.nan, 1.0), "empty domain"),
        (GOOD, [0, 0], (0.1, 1.0), r"input 0 spans.*\[0.1, 1\]"),
        (GOOD, [0, 0], (np.zeros(2), np.ones(2)), "domain"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(
    network: Network, inputs: Any, labels: list[int], domain: Any, said: str
) -> None:
    with pytest.raises(QueryError, match=said) as caught:
        check_inputs(network, inputs, labels, domain)
    assert "\n" not in str(caught.value)


def test_inputs_that_make_sense_pass(network: Network) -> None:
    check_inputs(network, GOOD, [0, 2], None)
    check_inputs(network, GOOD, [0, 2], (0.0, 1.0))
    check_inputs(network, GOOD, [0, 2], (-math.inf, math.inf))
    check_inputs(network, GOOD[:0], [], None)


def test_one_output_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="1 output"):
        check_inputs(random_network(tmp_path / "n.onnx", [3, 2, 1], seed=0), GOOD, [0, 0], None)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"timeout": 0}, "--timeout 0"),
        ({"timeout": -1}, "--timeout -1"),
        ({"timeout": math.nan}, "--timeout nan"),
        ({"gap": -1e-9}, "--gap -1e-09"),
        ({"gap": math.nan}, "--gap nan"),
        ({"gap": math.inf}, "--gap inf"),
        ({"threads": 0}, "--threads 0"),
        ({"seed": -1}, "--seed -1"),
        ({"memory": 0}, "--memory 0"),
        ({"device": "tpu"}, "--device tpu"),
    ],
)
def test_options_that_no_run_can_honour_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        Options(**values)


def test_options_have_the_defaults_of_the_command_line() -> None:
    options = Options()
    assert (options.solver, options.encoding, options.timeout, options.gap) == ("auto", "fused", 60.0, 1e-6)
    assert (options.threads, options.seed, options.device, options.decide) == (1, 0, "auto", False)
    assert Options(timeout=math.inf, gap=0.0).gap == 0.0
