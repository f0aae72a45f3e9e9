"""Arithmetic with broadcasting against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from milpver.errors import ModelError
from milpver.graph import Affine, Input
from milpver.network import Network
from milpver.onnx_import import load_network

Check = Callable[..., Network]
Build = Callable[..., Path]

RNG = np.random.default_rng(6)


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


@st.composite
def broadcast_pairs(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """A tensor's shape without batch and a constant's that broadcasts with it."""
    joint = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    tensor = [draw(st.sampled_from([1, size])) for size in joint]
    constant = [draw(st.sampled_from([1, size])) for size in joint]
    if draw(st.booleans()):
        return tensor, [1, *constant]
    return tensor, constant[draw(st.integers(0, len(constant))) :]


@given(
    broadcast_pairs(),
    st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    st.booleans(),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([7, 13, 17]),
)
@settings(max_examples=150)
def test_arithmetic_with_a_constant_agrees_with_onnx_runtime(
    check: Check,
    shapes: tuple[list[int], list[int]],
    operator: str,
    swapped: bool,
    batch: int | None,
    opset: int,
) -> None:
    tensor, constant = shapes
    values = normal(*constant)
    values = np.where(np.abs(values) < 0.1, np.float32(1), values).astype(np.float32)
    inputs = ["c", "x"] if swapped and operator != "Div" else ["x", "c"]
    check([helper.make_node(operator, inputs, ["y"])], [batch, *tensor], {"c": values}, opset=opset)


@given(broadcast_pairs(), st.sampled_from(["Add", "Sub"]), st.booleans(), st.sampled_from([None, 1, 4]))
@settings(max_examples=50)
def test_sums_of_computed_tensors_agree_with_onnx_runtime(
    check: Check, shapes: tuple[list[int], list[int]], operator: str, swapped: bool, batch: int | None
) -> None:
    small = shapes[0]
    large = [3 if size == 1 else size for size in small]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["x", "zeros"], ["b"]),
        helper.make_node(operator, ["b", "a"] if swapped else ["a", "b"], ["y"]),
    ]
    check(nodes, [batch, *small], {"zeros": np.ones(large, dtype=np.float32)})


@pytest.mark.parametrize(("operator", "value"), [("Sub", 0.0), ("Add", 0.0), ("Div", 1.0), ("Mul", 1.0)])
def test_arithmetic_that_does_nothing_leaves_no_node(check: Check, operator: str, value: float) -> None:
    nodes = [
        helper.make_node(operator, ["x", "c"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    network = check(nodes, [None, 3], {"c": np.full((1, 3), value, dtype=np.float32)})
    assert len(network.graph.nodes) == 2


def test_neg_and_one_minus_agree_with_onnx_runtime(check: Check) -> None:
    check([helper.make_node("Neg", ["x"], ["y"])], [None, 3])
    network = check([helper.make_node("Sub", ["c", "x"], ["y"])], [None, 3], {"c": normal(3)})
    assert isinstance(network.graph.nodes[0], Input)
    assert isinstance(network.graph.nodes[1], Affine)


@pytest.mark.parametrize(
    ("operator", "inputs", "batch", "shape", "message"),
    [
        ("Mul", ["x", "x"], None, (), "both computed"),
        ("Div", ["c", "x"], None, (3,), "divides by a tensor"),
        ("Add", ["x", "c"], None, (2, 3), "along the batch axis"),
        ("Add", ["x", "c"], 2, (2, 3), "differs between the inputs"),
        ("Add", ["x", "c"], None, (1, 1, 3), "past the batch axis"),
        ("Add", ["x", "c"], None, (4,), "do not broadcast"),
    ],
)
def test_what_cannot_be_lowered_is_refused(
    build: Build, operator: str, inputs: list[str], batch: int | None, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_network(build([helper.make_node(operator, inputs, ["y"])], [batch, 3], {"c": normal(*shape)}))


@pytest.mark.parametrize(("divisor", "message"), [(0.0, "holds 0"), (1e-310, "too near to 0")])
def test_division_by_nearly_zero_is_refused(build: Build, divisor: float, message: str) -> None:
    node = helper.make_node("Div", ["x", "c"], ["y"])
    with pytest.raises(ModelError, match=message):
        load_network(build([node], [1, 2], {"c": np.array([1.0, divisor])}, kind=11))
