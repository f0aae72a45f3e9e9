"""Architectures are read or refused; the ONNX file computes what torch does, as milpver reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from milpver.errors import ModelError, QueryError
from milpver.onnx_import import load_network
from milpver.train.architecture import build, parse_architecture
from milpver.train.export import export_error, onnx_model


def test_widths_and_convolutions_are_read() -> None:
    dense = parse_architecture("784-128-64-32-10")
    assert (dense.inputs, dense.hidden, dense.classes) == (784, (128, 64, 32), 10)
    small = parse_architecture("SmallConv")
    assert small.inputs is None
    assert [layer.channels for layer in small.convolutions] == [8, 16, 32]
    assert small.hidden == (200, 100)
    assert [layer.pooled for layer in parse_architecture("conv4s-conv8-16-3").convolutions] == [False, True]


@pytest.mark.parametrize(
    "text", ["", "784", "784-10", "784--10", "784-x-10", "4-0-2", "conv8-10", "4-3-1", "-4-3-2"]
)
def test_what_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(QueryError, match="--arch"):
        parse_architecture(text)


def test_data_of_another_size_are_refused() -> None:
    with pytest.raises(QueryError, match="takes 64 inputs, the data have 16"):
        build(parse_architecture("64-8-2"), (4, 4), seed=0)
    with pytest.raises(QueryError, match="convolutions"):
        build(parse_architecture("conv4-8-2"), (16,), seed=0)
    with pytest.raises(QueryError, match="--mean"):
        build(parse_architecture("16-8-2"), (16,), seed=0, mean=(0.1, 0.2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("text", "shape", "channels"), [("12-7-5-3", (3, 4), 1), ("conv3-conv4s-6-5-3", (2, 9, 8), 2)]
)
def test_the_file_computes_what_torch_does(
    tmp_path: Path, text: str, shape: tuple[int, ...], channels: int, bias: bool
) -> None:
    net = build(
        parse_architecture(text), shape, seed=3, bias=bias, mean=(0.2,) * channels, std=(0.5,) * channels
    )
    x = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    content = onnx_model(net, "net")
    assert export_error(net, content, x) < 1e-5
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    network = load_network(path)
    assert [layer.width for layer in network.layers] == list(net.architecture.hidden)
    removed = {network.layers[0].node: np.arange(network.layers[0].width) == 2}
    kept = [torch.from_numpy(~removed[network.layers[0].node]).float(), None]
    with torch.no_grad():
        wanted = net(torch.from_numpy(x).reshape(-1, *net.input_shape), kept)[0].numpy()
    found = network.graph.evaluate(x.reshape(20, -1).astype(np.float64), removed)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_file_of_other_weights_is_refused() -> None:
    one, other = (build(parse_architecture("6-5-3"), (6,), seed=seed) for seed in (0, 1))
    with pytest.raises(ModelError, match="differs from torch"):
        export_error(one, onnx_model(other, "net"), np.ones((4, 6), dtype=np.float32))


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = onnx_model(build(parse_architecture("6-5-3"), (6,), seed=1), "net")
    torch.manual_seed(6)
    assert onnx_model(build(parse_architecture("6-5-3"), (6,), seed=1), "net") == first
    assert onnx_model(build(parse_architecture("6-5-3"), (6,), seed=2), "net") != first
