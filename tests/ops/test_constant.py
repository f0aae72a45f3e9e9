"""Constants in all their forms, and shape computations, which fold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from milpver.errors import ModelError
from milpver.network import Network
from milpver.onnx_import import load_network

Check = Callable[..., Network]
Build = Callable[..., Path]


@pytest.mark.parametrize(
    ("attributes", "opset"),
    [
        ({"value": numpy_helper.from_array(np.array([1.5, 2.5], dtype=np.float32))}, 7),
        ({"value_float": 1.5}, 12),
        ({"value_floats": [1.5, -1.0]}, 13),
    ],
)
def test_constants_agree_with_onnx_runtime(check: Check, attributes: dict[str, Any], opset: int) -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], **attributes),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    check(nodes, [None, 2], opset=opset)


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_the_flatten_of_pytorch_folds(check: Check, batch: int | None) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Constant", [], ["front"], value_ints=[0]),
        helper.make_node("Unsqueeze", ["n", "front"], ["lead"]),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["lead", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    network = check(nodes, [batch, 2, 3], opset=13)
    assert network.batch == batch
    assert len(network.graph.nodes) == 2


def test_shape_arithmetic_folds(check: Check) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["inner"], start=1),
        helper.make_node("ReduceProd", ["inner"], ["count"], keepdims=1),
        helper.make_node("Cast", ["count"], ["real"], to=1),
        helper.make_node("Div", ["real", "two"], ["half"]),
        helper.make_node("Floor", ["half"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["cut"], to=7),
        helper.make_node("Concat", ["minus", "cut", "two_i"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"]),
        helper.make_node(
            "ConstantOfShape",
            ["cut"],
            ["ones"],
            value=numpy_helper.from_array(np.array([2.0], dtype=np.float32)),
        ),
        helper.make_node("Unsqueeze", ["ones", "one"], ["column"]),
        helper.make_node("Mul", ["r", "column"], ["y"]),
    ]
    constants = {
        "two": np.float32(2),
        "minus": np.array([-1]),
        "two_i": np.array([2]),
        "one": np.array([1]),
    }
    network = check(nodes, [None, 2, 3], constants, opset=15)
    assert network.graph.outputs == 6


def test_integer_division_rounds_towards_zero(check: Check) -> None:
    nodes = [
        helper.make_node("Div", ["a", "b"], ["q"]),
        helper.make_node("Reshape", ["x", "q"], ["y"]),
    ]
    check(nodes, [1, 6], {"a": np.array([6, -7]), "b": np.array([2, 4])})
    # -7 / 4 is -1, which stands for what is left


def test_constants_that_depend_on_a_free_batch_are_refused(build: Build) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=1),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]
    with pytest.raises(ModelError, match="size of the batch"):
        load_network(build(nodes, [None, 2]))
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    with pytest.raises(ModelError, match="size of the batch"):
        load_network(build(nodes, [None, 2]))


@pytest.mark.parametrize("operator", ["Abs", "Sqrt", "Floor"])
def test_arithmetic_that_only_folds_is_refused_on_tensors(build: Build, operator: str) -> None:
    with pytest.raises(ModelError, match="computed from the network's input"):
        load_network(build([helper.make_node(operator, ["x"], ["y"])], [None, 2]))


def test_an_output_that_does_not_depend_on_the_input_is_refused(build: Build) -> None:
    nodes = [helper.make_node("Relu", ["c"], ["y"])]
    with pytest.raises(ModelError, match="does not depend on input 'x'"):
        load_network(build(nodes, [None, 2], {"c": np.ones((1, 2), dtype=np.float32)}))
