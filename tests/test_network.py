"""Normalisation as a prefix of a loaded network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from milpver.errors import QueryError
from milpver.network import Network
from milpver.onnx_import import load_network


@pytest.fixture(scope="module")
def image_network(repo_root: Path) -> Network:
    return load_network(repo_root / "onnx_models" / "digits_conv.onnx")


def test_normalisation_becomes_a_prefix(image_network: Network) -> None:
    network = image_network.normalised((0.5,), (0.25,))
    x = np.random.default_rng(0).random((3, network.graph.inputs))
    np.testing.assert_allclose(
        network.graph.evaluate(x), image_network.graph.evaluate((x - 0.5) / 0.25), atol=1e-10
    )
    assert [layer.node for layer in network.layers] == list(network.graph.gate_nodes)
    gone = np.arange(network.layers[0].width) < 5
    np.testing.assert_allclose(
        network.graph.evaluate(x, {network.layers[0].node: gone}),
        image_network.graph.evaluate((x - 0.5) / 0.25, {image_network.layers[0].node: gone}),
        atol=1e-10,
    )


def test_normalisation_goes_by_channel(shared_data: Path) -> None:
    (file,) = shared_data.glob("**/cifar_deep_kw.onnx")
    plain = load_network(file)
    mean, std = (0.485, 0.456, 0.406), (0.225, 0.3, 0.2)
    network = plain.normalised(mean, std)
    x = np.random.default_rng(0).random((2, 3, 32, 32))
    scaled = (x - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(
        network.graph.evaluate(x.reshape(2, -1)), plain.graph.evaluate(scaled.reshape(2, -1)), atol=1e-10
    )


def test_normalisation_finds_channels_that_stand_last(shared_data: Path) -> None:
    (file,) = shared_data.glob("**/cifar10_small.onnx")
    plain = load_network(file)
    mean, std = (0.485, 0.456, 0.406), (0.225, 0.3, 0.2)
    x = np.random.default_rng(0).random((2, 32, 32, 3))
    scaled = ((x - mean) / std).reshape(2, -1)
    found = plain.normalised(mean, std).graph.evaluate(x.reshape(2, -1))
    np.testing.assert_allclose(found, plain.graph.evaluate(scaled), atol=1e-10)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (0.25,), "--mean has 2 entries"),
        ((0.5,), (0.25, 0.25, 0.25), "--std has 3 entries"),
        ((0.5,), (0.0,), "std > 0"),
        ((0.5,), (-1.0,), "std > 0"),
        ((np.nan,), (1.0,), "finite"),
        ((0.5,), (np.inf,), "finite"),
        ((0.5,), (1e-320,), "--std 1e-320.*from 1e-30 to 1e.30"),  # 1 / std would be infinite
        ((1e39,), (1.0,), "--mean 1e.39.*up to 1e.30 in size"),  # float32 would be
    ],
)
def test_normalisation_that_makes_no_sense_is_refused(
    image_network: Network, mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        image_network.normalised(mean, std)
