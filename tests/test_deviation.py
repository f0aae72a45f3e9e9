"""Deviation bounds hold for every mask, enumerated; spectral norms are bounded from above, and tightly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from milpver import deviation
from milpver.deviation import deviation_screen, spectral_norm_bound
from milpver.errors import QueryError
from milpver.linear import Conv, Dense, Sparse
from milpver.network import Network
from milpver.query import parse_budget
from tests.nets import group_masks, handmade, network_of, random_layers, random_network


def margins(network: Network, x: np.ndarray, labels: np.ndarray, masks: dict[int, np.ndarray]) -> np.ndarray:
    out = network.graph.evaluate(x.astype(np.float64), masks)
    rest = np.stack([np.delete(row, t) for row, t in zip(out, labels, strict=True)])
    found: np.ndarray = out[np.arange(len(x)), labels][:, None] - rest
    return found


@given(st.integers(0, 10**6), st.sampled_from([(1, 0, 0), (0, 2, 0), (0, 0, 1), (2, 1, 0), (1, 1, 1)]))
@settings(max_examples=25)
def test_no_mask_goes_below_the_bounds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, budget: tuple[int, ...]
) -> None:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    network = random_network(path, (4, 5, 4, 3, 3), seed, bias=bool(seed % 2), scale=2.0)
    rng = np.random.default_rng(seed)
    x = rng.random((6, 4)).astype(np.float32)
    labels = network.graph.evaluate(x.astype(np.float64)).argmax(1)
    allowed = parse_budget([str(s) for s in budget], network)
    screen = deviation_screen(network, x, labels.tolist(), allowed)
    least = np.min([margins(network, x, labels, m) for m in group_masks(network.graph, allowed)], axis=0)
    clean = margins(network, x, labels, {})
    assert np.all(screen.lower <= least)
    assert np.all(screen.margin <= clean.min(1))
    assert np.all(clean - least <= screen.deviation[:, None])
    assert np.array_equal(screen.proven, np.all(screen.lower > 0, axis=1))
    np.testing.assert_allclose(screen.margin, clean.min(1), atol=1e-10)


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_bounds_hold_on_any_graph(seed: int) -> None:
    """Shared gates, pooling, residual sums, budgets over several gates, a ReLU at the end."""
    made = handmade(seed)
    network = Network(made.graph, Path("made.onnx"), "", b"", "x", "y", (made.graph.inputs,), None, (), {}, 0)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, made.graph.inputs)).astype(np.float32)
    labels = rng.integers(0, made.graph.outputs, 3)
    screen = deviation_screen(network, x, labels.tolist(), made.budget)
    masks = group_masks(made.graph, made.budget)[:400]
    least = np.min([margins(network, x, labels, m) for m in masks], axis=0)
    assert np.all(screen.lower <= least + 1e-12 * np.abs(least))


def test_propositions_2_and_4_to_the_letter(tmp_path: Path) -> None:
    weights, _ = random_layers((6, 8, 7, 5, 3), 4)
    network = network_of(tmp_path / "net.onnx", weights, None)
    x = np.random.default_rng(0).random((9, 6)).astype(np.float32)
    hidden = [x.astype(np.float64)]
    for weight in weights[:-1]:
        hidden.append(np.maximum(hidden[-1] @ weight.T, 0))
    labels = (hidden[-1] @ weights[-1].T).argmax(1)
    norms = [np.linalg.norm(weight, 2) for weight in weights]
    top = [np.sqrt(np.sort(h**2, axis=1)[:, ::-1][:, :2].sum(1)) for h in hidden[1:]]
    apart = np.linalg.norm(weights[-1][labels][:, None] - weights[-1][None], axis=2).max(1)
    for budget, wanted in (
        ("2,0,0", norms[2] * norms[1] * top[0]),
        ("0,2,0", norms[2] * top[1]),
        ("2,0,2", norms[2] * norms[1] * top[0] + top[2]),
        ("2,2,2", norms[2] * (norms[1] * top[0] + top[1]) + top[2]),
    ):
        found = deviation_screen(network, x, labels.tolist(), parse_budget(budget, network)).deviation
        np.testing.assert_allclose(found, apart * wanted, rtol=1e-9, atol=1e-12)
        assert np.all(found >= apart * wanted * (1 - 1e-14))


@pytest.mark.parametrize("order", [1, 2, 4, 16, 64])
def test_spectral_norms_are_not_below_the_exact_ones(order: int) -> None:
    """A Hadamard matrix of order n has the norm sqrt(n), which rational arithmetic can compare."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    bound = spectral_norm_bound(Dense(matrix))
    assert Fraction(bound) ** 2 >= order
    assert bound == pytest.approx(np.sqrt(order), rel=1e-11)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30)
def test_spectral_norms_are_tight(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 6)
    exact = np.linalg.norm(matrix, 2)
    assert exact * (1 - 1e-15) <= spectral_norm_bound(Dense(matrix)) <= exact * (1 + 1e-10)
    assert spectral_norm_bound(Sparse(sparse.csr_array(matrix))) == pytest.approx(exact, rel=1e-10)


def test_large_maps_get_the_cheaper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = Conv(np.random.default_rng(0).normal(size=(3, 2, 3, 3)), (2, 6, 5), pads=(1, 1, 1, 1))
    exact = np.linalg.norm(conv.csr.toarray(), 2)
    assert spectral_norm_bound(conv) == pytest.approx(exact, rel=1e-10)
    monkeypatch.setattr(deviation, "_DENSE", 10)
    assert exact <= spectral_norm_bound(conv) < 5 * exact
    assert spectral_norm_bound(Dense(np.zeros((4, 4)))) <= 1e-100


def test_a_tie_and_a_wrong_label_are_not_proven(tmp_path: Path) -> None:
    weights = [np.eye(3), np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])]
    network = network_of(tmp_path / "net.onnx", weights, None)
    x = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]], dtype=np.float32)
    none = parse_budget("0", network)
    assert deviation_screen(network, x, [0, 2, 0], none).proven.tolist() == [False, True, False]
    # removing the only neuron that speaks for class 2 gives a tie, which is not robust
    assert deviation_screen(network, x, [0, 2, 0], parse_budget("1", network)).proven.tolist() == [False] * 3
    with pytest.raises(QueryError, match="label 7"):
        deviation_screen(network, x, [0, 2, 7], none)
    assert deviation_screen(network, x[:0], [], none).proven.shape == (0,)
