"""Convolution and pooling with every attribute, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from milpver.errors import ModelError
from milpver.graph import Max
from milpver.network import Network
from milpver.onnx_import import load_network

Check = Callable[..., Network]
Build = Callable[..., Path]


@st.composite
def geometries(draw: st.DrawFn, *, dilated: bool = True) -> dict[str, Any]:
    """A spatial shape, a window and the attributes that place it, as far as ONNX Runtime takes them."""
    rank = draw(st.integers(1, 2))
    auto = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    same = auto.startswith("SAME")
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    strides = [draw(st.integers(1, k if same else 3)) for k in kernel]
    widest = 2 if dilated and not same else 1
    dilations = draw(st.lists(st.integers(1, widest), min_size=rank, max_size=rank))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    sizes = [draw(st.integers(r, r + 5)) for r in reach]
    attributes: dict[str, Any] = {"strides": strides}
    if dilated:
        attributes["dilations"] = dilations
    if auto == "NOTSET":
        pads = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        if any(pads) or draw(st.booleans()):
            attributes["pads"] = pads
    else:
        attributes["auto_pad"] = auto
    return {"sizes": sizes, "kernel": kernel, "attributes": attributes}


@given(geometries(), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_conv_agrees_with_onnx_runtime(
    check: Check, case: dict[str, Any], groups: int, channels: int, outputs: int, bias: bool, free: bool
) -> None:
    rng = np.random.default_rng(1)
    kernel = rng.standard_normal((outputs * groups, channels, *case["kernel"])).astype(np.float32)
    constants = {"w": kernel}
    if bias:
        constants["b"] = rng.standard_normal(outputs * groups).astype(np.float32)
    node = helper.make_node("Conv", ["x", *constants], ["y"], group=groups, **case["attributes"])
    network = check([node], [None if free else 1, channels * groups, *case["sizes"]], constants)
    (_, affine) = network.graph.nodes
    ((_, linear),) = affine.terms  # type: ignore[union-attr]  # a convolution is one affine node
    x = rng.standard_normal((2, linear.inputs))
    np.testing.assert_allclose(linear.apply(x), x @ linear.csr.toarray().T, atol=1e-12)
    assert np.diff(linear.csr.indptr).max() <= linear.row_terms


@pytest.mark.parametrize("opset", [7, 10, 11, 19, 22, 26])
@given(case=geometries(dilated=False), include=st.booleans(), ceil=st.booleans(), dilation=st.integers(1, 2))
@settings(max_examples=25)
def test_average_pool_agrees_with_onnx_runtime(
    check: Check, opset: int, case: dict[str, Any], include: bool, ceil: bool, dilation: int
) -> None:
    attributes = dict(case["attributes"], count_include_pad=int(include))
    if opset >= 10 and "auto_pad" not in attributes:
        attributes["ceil_mode"] = int(ceil)
    sizes = case["sizes"]
    if opset >= 19 and "auto_pad" not in attributes:
        attributes["dilations"] = [dilation] * len(sizes)
        sizes = [size + dilation * kernel for size, kernel in zip(sizes, case["kernel"], strict=True)]
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=case["kernel"], **attributes)
    check([node], [None, 2, *sizes], opset=opset)


@pytest.mark.parametrize("opset", [7, 8, 10, 11, 12, 22])
@given(case=geometries(), ceil=st.booleans())
@settings(max_examples=25)
def test_max_pool_agrees_with_onnx_runtime(
    check: Check, opset: int, case: dict[str, Any], ceil: bool
) -> None:
    attributes = dict(case["attributes"])
    if opset >= 10:
        attributes["ceil_mode"] = int(ceil and "auto_pad" not in attributes)
    else:
        assume(set(attributes.pop("dilations")) == {1})
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=case["kernel"], **attributes)
    network = check([node], [None, 2, *case["sizes"]], opset=opset)
    assert isinstance(network.graph.nodes[-1], Max)


@pytest.mark.parametrize("sizes", [(4,), (3, 5), (2, 2, 2)])
def test_global_average_pool_agrees_with_onnx_runtime(check: Check, sizes: tuple[int, ...]) -> None:
    check([helper.make_node("GlobalAveragePool", ["x"], ["y"])], [None, 3, *sizes])


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "constants", "message"),
    [
        ("Conv", [1, 2, 4, 4], {"group": 2}, {"w": np.ones((2, 2, 2, 2))}, "2 groups for 2 channels"),
        ("Conv", [1, 2, 4, 4], {}, {"w": np.ones((1, 2, 5, 1))}, "window of 5 on 4"),
        ("Conv", [1, 1, 2, 2, 2], {}, {"w": np.ones((1, 1, 1, 1, 1))}, "1 and 2 dimensions"),
        ("Conv", [1, 1, 4, 4], {"kernel_shape": [1, 1]}, {"w": np.ones((1, 1, 2, 2))}, "kernel_shape"),
        ("Conv", [1, 1, 4, 4], {"strides": [1]}, {"w": np.ones((1, 1, 2, 2))}, "strides"),
        ("MaxPool", [1, 1, 4, 4], {"kernel_shape": [2, 2], "pads": [3, 3, 3, 3]}, {}, "lie in the padding"),
        ("AveragePool", [1, 1, 4, 4], {"kernel_shape": [2, 2], "pads": [3, 3, 3, 3]}, {}, "in the padding"),
        (
            "AveragePool",
            [1, 1, 4],
            {"kernel_shape": [3], "strides": [2], "auto_pad": "VALID", "ceil_mode": 1},
            {},
            "ceil_mode",
        ),
        (
            "MaxPool",
            [1, 1, 4],
            {"kernel_shape": [2], "auto_pad": "SAME_UPPER", "dilations": [2]},
            {},
            "dilations",
        ),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    build: Build,
    operator: str,
    shape: list[int],
    attributes: dict[str, Any],
    constants: dict[str, Any],
    message: str,
) -> None:
    weights = {name: np.asarray(value, dtype=np.float32) for name, value in constants.items()}
    node = helper.make_node(operator, ["x", *weights], ["y"], **attributes)
    with pytest.raises(ModelError, match=message):
        load_network(build([node], shape, weights, opset=19))


def test_indices_of_max_pool_are_refused(build: Build) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y", "where"], kernel_shape=[2, 2])
    with pytest.raises(ModelError, match="Indices"):
        load_network(build([node], [1, 1, 4, 4]))
