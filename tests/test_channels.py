"""Channels of convolutions as gates: margins equal enumeration, masks reach ONNX Runtime and files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import milpver
from milpver import margin
from milpver.errors import QueryError
from milpver.graph import Gate
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.query import names_layers, parse_budget, removed_pairs
from milpver.replay import Replay, pruned_model
from milpver.verdict import Answer, Status
from tests.nets import random_network

Float = NDArray[np.float64]
#: Gates by label: two convolutions and a fully connected layer.
WIDTHS = {"conv1": 3, "conv2": 2, "1": 4}


def conv_network(path: Path, seed: int, *, batch: str | int = "N", normalised: bool = False) -> Network:
    """``Conv, BatchNormalization, Relu, Conv, Relu, MaxPool, Flatten, Gemm, Relu, Gemm``."""
    rng = np.random.default_rng(seed)
    stored = {
        "w1": rng.normal(size=(3, 1, 2, 2)),
        "b1": rng.normal(size=3) * 0.3,
        "scale": rng.uniform(0.5, 1.5, size=3),
        "shift": rng.normal(size=3) * 0.2,
        "mean": rng.normal(size=3) * 0.1,
        "var": rng.uniform(0.5, 2.0, size=3),
        "w2": rng.normal(size=(2, 3, 2, 2)) * 0.7,
        "w3": rng.normal(size=(4, 2)),
        "b3": rng.normal(size=4) * 0.3,
        "w4": rng.normal(size=(3, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("Gemm", ["h", "w4"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    network = load_network(path, channels=True)
    return network.normalised((0.2,), (0.7,)) if normalised else network


def masks_of(network: Network, limits: dict[str, int], total: int | None = None) -> list[dict[int, Any]]:
    """Every mask with at most so many gates gone of each layer (and of all fully connected ones)."""
    limits = {**dict.fromkeys(WIDTHS, 0), **limits, **({"1": total} if total is not None else {})}
    choices = [
        [picked for size in range(limits[label] + 1) for picked in itertools.combinations(range(width), size)]
        for label, width in WIDTHS.items()
    ]
    found = []
    for chosen in itertools.product(*choices):
        masks = {}
        for (label, width), gone in zip(WIDTHS.items(), chosen, strict=True):
            layer = next(each for each in network.gateable if each.label == label)
            masks[layer.node] = np.isin(np.arange(width), gone)
        found.append(masks)
    return found


def test_channels_are_gateable_only_where_asked(tmp_path: Path) -> None:
    network = conv_network(tmp_path / "n.onnx", 0)
    assert [(each.label, each.width, each.gates, each.name) for each in network.gateable] == [
        ("1", 4, "neurons", "h"),
        ("conv1", 3, "channels", "r1"),
        ("conv2", 2, "channels", "r2"),
    ]
    gate = network.graph.nodes[network.conv_layers[0].node]
    assert isinstance(gate, Gate)
    assert gate.owner.tolist() == [0] * 9 + [1] * 9 + [2] * 9
    plain = load_network(tmp_path / "n.onnx")
    assert plain.conv_layers == ()
    assert len(plain.graph.gate_nodes) == 1
    x = np.random.default_rng(0).normal(size=(4, 16))
    assert np.array_equal(plain.graph.evaluate(x), network.graph.evaluate(x))
    with pytest.raises(QueryError, match=r"'conv1:1' names no gateable layer.*channels=True"):
        parse_budget("conv1:1", plain)
    with pytest.raises(QueryError, match="3 of its 3 channels"):
        parse_budget("conv1:3", network)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_masks_reach_onnx_runtime_and_files(tmp_path: Path, batch: str | int, normalised: bool) -> None:
    network = conv_network(tmp_path / "n.onnx", 1, batch=batch, normalised=normalised)
    x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    replay = Replay(network)
    for masks in masks_of(network, {"conv1": 1, "conv2": 1, "1": 1})[::3]:
        expected = network.graph.evaluate(x.astype(float), masks)
        assert replay.outputs(x, masks) == pytest.approx(expected, abs=1e-4)
        path = tmp_path / "pruned.onnx"
        path.write_bytes(pruned_model(network, masks))
        onnx.checker.check_model(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        size = 5 if batch == "N" else int(batch)
        (y,) = session.run(None, {"x": x[:size].reshape(size, 1, 4, 4)})
        assert y == pytest.approx(expected[:size], abs=1e-4)


WAYS: list[dict[str, Any]] = [
    {"solver": "bab"},
    {"solver": "bab", "tensors": True},
    {"solver": "highs", "encoding": "fused", "bounds": "alpha-crown"},
    {"solver": "highs", "encoding": "reference", "bounds": "interval"},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        ("conv1:1", {"conv1": 1}),
        ("conv2:1,1:1", {"conv2": 1, "1": 1}),
        ("conv1:2,conv2:1,1:2", {"conv1": 2, "conv2": 1, "1": 2}),
        ("r1:1,total:1", {"conv1": 1, "1": 1}),
    ],
)
def test_margins_equal_enumeration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], budget: str, limits: dict[str, int]
) -> None:
    options = dict(way)
    if options.pop("tensors", False):
        monkeypatch.setattr(margin, "chain_of", lambda *_: None)
    for seed in (2, 3):
        network = conv_network(tmp_path / "n.onnx", seed)
        x = np.random.default_rng(seed).normal(size=16).astype(np.float32)
        label = int(network.graph.evaluate(x[None].astype(float))[0].argmax())
        truth = min(
            float(logits[label] - np.delete(logits, label).max())
            for masks in masks_of(network, limits)
            for logits in network.graph.evaluate(x[None].astype(float), masks)
        )
        verdict = milpver.worst_margin(network, x, label, budget=budget, timeout=30, **options)
        assert verdict.status is Status.OPTIMAL, verdict.message
        assert verdict.upper == pytest.approx(truth, abs=2e-6)
        assert verdict.lower == pytest.approx(truth, abs=2e-6)
        assert verdict.verdict is (Answer.ROBUST if truth > 0 else Answer.VULNERABLE)
        assert verdict.removed is not None
        for layer, count in limits.items():
            assert sum(str(place) == layer for place, _ in verdict.removed) <= count
        assert isinstance(verdict.budget, str)
        assert parse_budget(verdict.budget, network) == parse_budget(budget, network)
        json.dumps(verdict.record())


def test_channels_that_have_to_stay_or_go(tmp_path: Path) -> None:
    network = conv_network(tmp_path / "n.onnx", 4)
    x = np.random.default_rng(4).normal(size=16).astype(np.float32)
    label = int(network.graph.evaluate(x[None].astype(float))[0].argmax())
    conv = network.conv_layers[0].node
    truth = min(
        float(logits[label] - np.delete(logits, label).max())
        for masks in masks_of(network, {"conv1": 2})
        if masks[conv][1] and not masks[conv][0]
        for logits in network.graph.evaluate(x[None].astype(float), masks)
    )
    for solver in ("bab", "highs"):
        verdict = milpver.worst_margin(
            network, x, label, budget="conv1:2", keep="conv1:0", remove=[("conv1", 1)], solver=solver
        )
        assert verdict.upper == pytest.approx(truth, abs=2e-6)
        assert verdict.keep == (("conv1", 0),)
        assert verdict.remove == (("conv1", 1),)
        assert verdict.removed is not None
        assert ("conv1", 1) in verdict.removed
    distance = milpver.pruning_distance(network, x, label, layers=["conv1"])
    fewest = [
        int(masks[conv].sum())
        for masks in masks_of(network, {"conv1": 2})
        for logits in network.graph.evaluate(x[None].astype(float), masks)
        if logits[label] <= np.delete(logits, label).max()
    ]
    assert distance.upper == min(fewest, default=None)
    assert distance.layers[0].layer == "conv1"


def test_which_texts_may_name_a_convolution(tmp_path: Path) -> None:
    assert not names_layers("2,1", None, "total:3", "1:3,7")
    assert names_layers("conv1:2")
    assert names_layers("1", None, "relu_1:2")
    network = random_network(tmp_path / "n.onnx", [3, 4, 3], 1)
    assert removed_pairs(network, {network.layers[0].node: np.array([True, False, True, False])}) == (
        (1, 0),
        (1, 2),
    )
