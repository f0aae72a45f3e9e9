"""Activations against ONNX Runtime, and softmax, which is dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from milpver.errors import ModelError
from milpver.network import Network
from milpver.onnx_import import load_network

Check = Callable[..., Network]
Build = Callable[..., Path]


@pytest.mark.parametrize("opset", [7, 13, 14])
def test_relu_agrees_with_onnx_runtime(check: Check, opset: int) -> None:
    check([helper.make_node("Relu", ["x"], ["y"])], [None, 2, 3], opset=opset)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.2, 1.0, 1.5, -0.3])
def test_leaky_relu_agrees_with_onnx_runtime(check: Check, alpha: float | None) -> None:
    attributes: dict[str, Any] = {} if alpha is None else {"alpha": alpha}
    check([helper.make_node("LeakyRelu", ["x"], ["y"], **attributes)], [None, 5])


@pytest.mark.parametrize("low", [None, 0.0, -0.5, -np.inf])
@pytest.mark.parametrize("high", [None, 1.0, 6.0, -1.0, np.inf])
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_clip_agrees_with_onnx_runtime(
    check: Check, low: float | None, high: float | None, opset: int
) -> None:
    given = [("min", low), ("max", high)]
    bounds: dict[str, Any] = {name: np.float32(value) for name, value in given if value is not None}
    if opset < 11:
        if (low, high) in ((0.0, -1.0), (-0.5, -1.0)):
            pytest.skip("ONNX Runtime refuses an empty range here")
        check([helper.make_node("Clip", ["x"], ["y"], **bounds)], [None, 6], opset=opset)
        return
    inputs = ["x", *("" if value is None else name for name, value in given)]
    check([helper.make_node("Clip", inputs, ["y"])], [None, 6], bounds, opset=opset)


def test_relu6_takes_two_relus(check: Check) -> None:
    network = check([helper.make_node("Clip", ["x"], ["y"], min=0.0, max=6.0)], [None, 6], opset=10)
    assert [type(node).__name__ for node in network.graph.nodes] == [
        "Input",
        "Relu",
        "Affine",
        "Relu",
        "Affine",
    ]


@pytest.mark.parametrize(("low", "message"), [(np.nan, "nan"), (np.inf, "bounds are inf")])
def test_bounds_that_are_no_numbers_are_refused(build: Build, low: float, message: str) -> None:
    node = helper.make_node("Clip", ["x", "min"], ["y"])
    with pytest.raises(ModelError, match=message):
        load_network(build([node], [None, 3], {"min": np.float32(low)}))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("opset", "shape", "axis"),
    [
        (7, [5], None),
        (11, [5], 1),
        (13, [5], None),
        (13, [5], -1),
        (13, [5], 1),
        (11, [5, 1, 1], 1),
        (13, [5, 1], 1),
    ],
)
def test_softmax_at_the_end_is_dropped(
    build: Build, operator: str, opset: int, shape: list[int], axis: int | None
) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("Neg", ["x"], ["logits"]),
        helper.make_node(operator, ["logits"], ["p"], **attributes),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    network = load_network(build(nodes, [None, *shape], opset=opset))
    assert network.softmax
    assert network.output_name == "logits"
    np.testing.assert_array_equal(network.graph.evaluate(np.eye(5)), -np.eye(5))


@pytest.mark.parametrize(
    ("opset", "shape", "attributes", "after", "message"),
    [
        (13, [5], {}, "Relu", "may only stand at the end"),
        (13, [5], {}, "Softmax", "follows another softmax"),
        (13, [5], {"axis": 0}, "Identity", "batch axis"),
        (13, [2, 5], {}, "Identity", "5 of 10 outputs"),
        (11, [2, 5], {"axis": 2}, "Identity", "5 of 10 outputs"),
    ],
)
def test_other_softmaxes_are_refused(
    build: Build, opset: int, shape: list[int], attributes: dict[str, Any], after: str, message: str
) -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], **attributes),
        helper.make_node(after, ["p"], ["y"]),
    ]
    with pytest.raises(ModelError, match=message):
        load_network(build(nodes, [None, *shape], opset=opset))
