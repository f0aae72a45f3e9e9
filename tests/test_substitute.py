"""Local substitutes: what each kind preserves, the file against the graph, and where both networks agree."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from milpver import registry
from milpver.distance import distances
from milpver.errors import QueryError
from milpver.graph import Relu
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import Options
from milpver.substitute import KINDS, Substitute, agreement, closest_adversarial, substitute
from tests.nets import network_of, random_layers, random_network

Float = NDArray[np.float64]


def made(network: Network, x: Float, kind: str, ratio: float) -> tuple[Substitute, Float, int]:
    """A substitute, its adversarial input, and the label."""
    label = int(network.graph.evaluate(x[None])[0].argmax())
    adversarial = closest_adversarial(network, x, label, None)
    assert adversarial is not None
    return substitute(network, x, adversarial, kind=kind, ratio=ratio, rounds=3), adversarial, label


def relus(network: Network) -> int:
    return sum(node.size for node in network.graph.nodes if isinstance(node, Relu))


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return random_network(tmp_path / "net.onnx", (4, 12, 10, 3), seed=7)


@pytest.fixture
def x() -> Float:
    values = np.random.default_rng(1).uniform(-1, 1, 4)
    return values.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("ratio", [0.3, 0.77, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_relus_go_as_were_asked_for_and_the_anchor_stays(
    kind: str, ratio: float, network: Network, x: Float
) -> None:
    found, adversarial, _ = made(network, x, kind, ratio)
    assert found.replaced == math.ceil(ratio * 22)
    assert relus(found.network) == 22 - found.replaced
    kept = [x, adversarial] if kind == "lin" else [x]
    points = np.stack(kept)
    assert np.allclose(found.network.graph.evaluate(points), network.graph.evaluate(points), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_graph(kind: str, network: Network, x: Float, tmp_path: Path) -> None:
    found, _, _ = made(network, x, kind, 0.6)
    points = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(found.network.model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": points})
    assert np.allclose(found.network.graph.evaluate(points.astype(np.float64)), outputs, atol=1e-4)
    path = tmp_path / "substitute.onnx"
    path.write_bytes(found.network.model)
    again = load_network(path).graph.evaluate(points.astype(np.float64))
    assert np.allclose(again, found.network.graph.evaluate(points.astype(np.float64)), atol=1e-12)


def test_act_and_network_agree_within_delta_and_no_further(network: Network, x: Float) -> None:
    found, _, _ = made(network, x, "act", 0.5)
    bounds_alone = agreement(found, x, reach=2.0)
    exact = agreement(found, x, reach=2.0, solver=registry.load("solvers", "highs"))
    assert bounds_alone.rounded
    assert 0 < bounds_alone.lower <= exact.lower + 1e-9
    assert exact.exact
    assert exact.lower <= exact.upper <= exact.lower + 1e-4
    rng = np.random.default_rng(3)
    inside = x + exact.lower * rng.uniform(-1, 1, (2000, 4))
    assert np.allclose(found.network.graph.evaluate(inside), network.graph.evaluate(inside), atol=1e-12)
    wider = x + 3 * exact.upper * rng.uniform(-1, 1, (4000, 4))
    values = network.graph.trace(wider)
    changed = [
        np.unique(values[index - 1][:, ~layer.kept] > 0, axis=0) for index, layer in found.layers.items()
    ]
    assert any(len(patterns) > 1 for patterns in changed)


def test_delta_of_one_layer_is_the_closest_hyperplane(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weights = [rng.normal(size=(9, 5)), rng.normal(size=(3, 9))]
    network = network_of(tmp_path / "net.onnx", weights, [rng.normal(size=9), np.zeros(3)])
    x = rng.normal(size=5).astype(np.float32).astype(np.float64)
    found, _, _ = made(network, x, "act", 0.6)
    (layer,) = found.layers.values()
    z = network.graph.trace(x[None])[1][0]
    size = np.abs(weights[0].astype(np.float32)).sum(axis=1)
    wanted = float((np.abs(z) / size)[~layer.kept].min())
    got = agreement(found, x, reach=10.0)
    assert got.lower == pytest.approx(wanted, rel=1e-2)
    assert got.lower <= wanted
    assert got.upper >= wanted * (1 - 1e-9)


@pytest.mark.parametrize("edge", [False, True])
def test_neurons_at_0_that_never_change_their_sign_do_not_end_the_ball(edge: bool, tmp_path: Path) -> None:
    """One without weights, as pruning leaves them, or one that the domain's edge keeps from rising."""
    weights, biases = random_layers([3, 6, 5, 3], 1)
    weights[0][2] = [-1.0, 0.0, 0.0] if edge else 0.0
    x = np.array([0.0, 0.7, -0.4], dtype=np.float32).astype(np.float64)
    domain = np.array([0.0, -3.0, -3.0]), np.full(3, 3.0)
    found = []
    for at_x in (0.0, -1.0):
        biases[0][2] = at_x
        network = network_of(tmp_path / "net.onnx", weights, biases)
        label = int(network.graph.evaluate(x[None])[0].argmax())
        adversarial = closest_adversarial(network, x, label, domain)
        assert adversarial is not None
        made = substitute(network, x, adversarial, kind="act", ratio=0.8, domain=domain)
        assert not made.layers[2].kept[2]
        highs = registry.load("solvers", "highs")
        found.append(agreement(made, x, reach=2.0, domain=domain, solver=highs))
    tied, away = found
    assert away.exact
    if edge:  # bounds cannot tell whether it rises
        assert tied.upper >= away.upper - 1e-6
        assert tied.lower > 0 or not tied.exact
    else:
        assert tied.exact
        assert tied.lower == pytest.approx(away.lower, rel=1e-6)
        assert tied.upper == pytest.approx(away.upper, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 3])
def test_what_lemma_1_certifies_is_below_the_distance(seed: int, tmp_path: Path) -> None:
    network = random_network(tmp_path / "net.onnx", (3, 8, 6, 3), seed=seed)
    x = np.random.default_rng(seed).uniform(-1, 1, 3).astype(np.float32)
    found, _, label = made(network, x.astype(np.float64), "act", 0.4)
    options = Options(timeout=20)
    (own,) = distances(found.network, x[None], [label], options=options)
    (whole,) = distances(network, x[None], [label], options=options)
    delta = agreement(found, x.astype(np.float64), reach=3.0)
    assert own.lower is not None
    assert whole.upper is not None
    assert 0 < min(delta.lower, own.lower) <= whole.upper


def test_what_makes_no_sense_is_refused(network: Network, x: Float) -> None:
    with pytest.raises(QueryError, match="--kind other"):
        substitute(network, x, x + 1, kind="other", ratio=0.5)
    with pytest.raises(QueryError, match=r"--ratio 1\.5"):
        substitute(network, x, x + 1, kind="con", ratio=1.5)
    found, _, _ = made(network, x, "con", 0.5)
    with pytest.raises(QueryError, match="con substitute"):
        agreement(found, x, reach=1.0)
