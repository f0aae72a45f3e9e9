"""Operators that move entries, against ONNX Runtime; batch axes that must stay where they are."""

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
from milpver.graph import Affine
from milpver.network import Network
from milpver.onnx_import import load_network

Check = Callable[..., Network]
Build = Callable[..., Path]

BATCHES = st.sampled_from([None, 1, 4])
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def ints(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


@given(st.data(), SHAPES, BATCHES)
def test_transpose_agrees_with_onnx_runtime(
    check: Check, data: st.DataObject, shape: list[int], batch: int | None
) -> None:
    order = [0, *data.draw(st.permutations(range(1, len(shape) + 1)))]
    check([helper.make_node("Transpose", ["x"], ["y"], perm=order)], [batch, *shape])


@pytest.mark.parametrize("perm", [None, [1, 0, 2], [2, 1, 0]])
def test_transpose_moves_a_batch_of_one_only(check: Check, build: Build, perm: list[int] | None) -> None:
    attributes: dict[str, Any] = {} if perm is None else {"perm": perm}
    node = helper.make_node("Transpose", ["x"], ["y"], **attributes)
    check([node], [1, 2, 3])
    for batch in (None, 4):
        with pytest.raises(ModelError, match="batch axis"):
            load_network(build([node], [batch, 2, 3]))


@pytest.mark.parametrize("opset", [7, 13, 14, 21])
@pytest.mark.parametrize(
    ("batch", "target"),
    [
        (None, [-1, 6]),
        (None, [0, -1]),
        (None, [0, 3, 2]),
        (None, [0, 0, -1, 1]),
        (4, [4, 6]),
        (4, [-1, 6]),
        (4, [0, -1]),
        (1, [1, 6]),
        (1, [-1]),
        (1, [6, 1]),
        (1, [1, 1, 2, 3]),
    ],
)
def test_reshape_agrees_with_onnx_runtime(
    check: Check, opset: int, batch: int | None, target: list[int]
) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    network = check([node], [batch, 2, 3], {"shape": ints(*target)}, opset=opset)
    assert len(network.graph.nodes) == 2
    assert network.batch == batch


@pytest.mark.parametrize("target", [[1, 6], [1, -1], [1, 2, 3]])
def test_a_reshape_to_one_input_fixes_the_batch(check: Check, target: list[int]) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    network = check(nodes, ["N", 2, 3], {"shape": ints(*target)})
    assert network.batch == 1
    assert network.input_shape == (2, 3)


@pytest.mark.parametrize(
    ("batch", "target"),
    [(None, [-1]), (None, [-1, 3]), (4, [6, 4]), (4, [2, -1]), (4, [1, -1]), (None, [6, -1])],
)
def test_a_reshape_across_the_batch_is_refused(build: Build, batch: int | None, target: list[int]) -> None:
    with pytest.raises(ModelError, match="reshapes"):
        load_network(
            build([helper.make_node("Reshape", ["x", "s"], ["y"])], [batch, 2, 3], {"s": ints(*target)})
        )


@pytest.mark.parametrize("axis", [None, 1, -2, 2, 0, 3])
@pytest.mark.parametrize("batch", [None, 1])
def test_flatten_agrees_with_onnx_runtime(
    check: Check, build: Build, axis: int | None, batch: int | None
) -> None:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    node = helper.make_node("Flatten", ["x"], ["y"], **attributes)
    if batch is None and axis in (0, 2, 3):
        with pytest.raises(ModelError, match="flattens"):
            load_network(build([node], [batch, 2, 3]))
    else:
        check([node], [batch, 2, 3])


def test_a_flatten_of_everything_means_that_there_is_no_batch(check: Check) -> None:
    network = check([helper.make_node("Flatten", ["x"], ["y"], axis=0)], [4, 4])
    assert network.batch == 0
    assert network.input_shape == (4, 4)


@pytest.mark.parametrize("opset", [7, 11, 13, 21])
@pytest.mark.parametrize("batch", [None, 1, 4])
def test_squeeze_and_unsqueeze_agree_with_onnx_runtime(check: Check, opset: int, batch: int | None) -> None:
    def node(operator: str, source: str, target: str, axes: list[int]) -> Any:
        if opset < 13:
            return helper.make_node(operator, [source], [target], axes=axes)
        return helper.make_node(operator, [source, f"{target}_axes"], [target])

    nodes = [node("Unsqueeze", "x", "u", [1, 4]), node("Squeeze", "u", "s", [1])]
    nodes.append(helper.make_node("Relu", ["s"], ["y"]))
    constants = {"u_axes": ints(1, 4), "s_axes": ints(1)} if opset >= 13 else {}
    network = check(nodes, [batch, 2, 3], constants, opset=opset)
    assert len(network.graph.nodes) == 2


def test_squeeze_of_every_axis_fixes_a_free_batch(check: Check, build: Build) -> None:
    node = helper.make_node("Squeeze", ["x"], ["y"])
    assert check([node], [None, 1, 3]).batch == 1
    with pytest.raises(ModelError, match="squeezes every axis"):
        load_network(build([node], [4, 1, 3]))


@pytest.mark.parametrize(("operator", "axes"), [("Squeeze", [0]), ("Unsqueeze", [0]), ("Squeeze", [2])])
def test_squeezing_what_cannot_be_is_refused(build: Build, operator: str, axes: list[int]) -> None:
    with pytest.raises(ModelError, match="axis"):
        load_network(
            build([helper.make_node(operator, ["x", "a"], ["y"])], [None, 1, 3], {"a": ints(*axes)}, opset=13)
        )


@given(st.data(), SHAPES, BATCHES, st.sampled_from([7, 10, 11, 13]))
@settings(max_examples=150)
def test_slice_agrees_with_onnx_runtime(
    check: Check, data: st.DataObject, shape: list[int], batch: int | None, opset: int
) -> None:
    axes = data.draw(st.lists(st.integers(1, len(shape)), min_size=1, max_size=len(shape), unique=True))
    starts, ends, steps = [], [], []
    for axis in axes:
        size = shape[axis - 1]
        step = data.draw(st.sampled_from([1, 2, -1, -2])) if opset >= 10 else 1
        start, end = data.draw(st.integers(-size - 2, size + 2)), data.draw(st.integers(-size - 2, size + 2))
        if data.draw(st.booleans()):
            end = 2**31 if step > 0 else -(2**31)
        # what numpy takes: ONNX clamps as it does, except for ends before the first entry of a reversed slice
        taken = range(size)[slice(start, end if end >= -size or step > 0 else None, step)]
        assume(len(taken) > 0)
        starts.append(start)
        ends.append(end)
        steps.append(step)
    negative = data.draw(st.booleans())
    named = [axis - len(shape) - 1 if negative else axis for axis in axes]
    if opset < 10:
        node = helper.make_node("Slice", ["x"], ["y"], starts=starts, ends=ends, axes=axes)
        check([node], [batch, *shape], opset=opset)
        return
    constants = {"s": ints(*starts), "e": ints(*ends), "a": ints(*named), "t": ints(*steps)}
    check([helper.make_node("Slice", ["x", *constants], ["y"])], [batch, *shape], constants, opset=opset)


def test_a_slice_of_the_whole_batch_is_none(check: Check, build: Build) -> None:
    node = helper.make_node("Slice", ["x", "s", "e"], ["y"])
    check([node], [None, 3], {"s": ints(0, 1), "e": ints(2**62, 3)})
    with pytest.raises(ModelError, match="slices the batch axis"):
        load_network(build([node], [None, 3], {"s": ints(1, 1), "e": ints(2**62, 3)}))


@given(st.data(), SHAPES, BATCHES)
def test_gather_agrees_with_onnx_runtime(
    check: Check, data: st.DataObject, shape: list[int], batch: int | None
) -> None:
    axis = data.draw(st.integers(1, len(shape)))
    size = shape[axis - 1]
    picked = data.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
    form = data.draw(st.sampled_from(["vector", "scalar", "matrix"]))
    positions = ints(*picked)
    positions = {"vector": positions, "scalar": positions[0], "matrix": positions[None]}[form]
    negative = axis - len(shape) - 1 if data.draw(st.booleans()) else axis
    check(
        [helper.make_node("Gather", ["x", "i"], ["y"], axis=negative)],
        [batch, *shape],
        {"i": np.asarray(positions)},
    )


def test_gather_out_of_range_or_along_the_batch_is_refused(build: Build) -> None:
    for axis, position, message in ((1, 3, "outside of 3"), (0, 0, "batch axis")):
        node = helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)
        with pytest.raises(ModelError, match=message):
            load_network(build([node], [None, 3], {"i": ints(position)}))


@pytest.mark.parametrize(
    ("opset", "split", "axis"),
    [
        (7, [1, 2, 3], 1),
        (7, None, 1),
        (13, [1, 2, 3], 1),
        (13, None, 1),
        (13, None, -1),
        (18, [3, 2, 1], 1),
        (18, None, 1),
    ],
)
def test_split_agrees_with_onnx_runtime(check: Check, opset: int, split: list[int] | None, axis: int) -> None:
    attributes: dict[str, Any] = {"axis": axis}
    inputs, constants = ["x"], {}
    if split is not None and opset < 13:
        attributes["split"] = split
    elif split is not None:
        inputs, constants = ["x", "s"], {"s": ints(*split)}
    elif opset >= 18:
        attributes["num_outputs"] = 3
    nodes = [
        helper.make_node("Split", inputs, ["a", "b", "c"], **attributes),
        helper.make_node("Concat", ["c", "a", "b", "a"], ["y"], axis=1),
    ]
    network = check(nodes, [None, 6], constants, opset=opset)
    assert len(network.graph.nodes[-1].sources) in (1, 3)


def test_split_into_uneven_parts_follows_the_opset(check: Check, build: Build) -> None:
    parts = [f"p{i}" for i in range(3)]
    join = helper.make_node("Concat", parts[::-1], ["y"], axis=1)
    check([helper.make_node("Split", ["x"], parts, axis=1, num_outputs=3), join], [None, 7], opset=18)
    with pytest.raises(ModelError, match="equal parts"):
        load_network(build([helper.make_node("Split", ["x"], parts, axis=1), join], [None, 7], opset=13))


@given(st.integers(1, 3), st.booleans(), st.sampled_from([1, 4]), st.integers(-2, -1))
def test_concat_agrees_with_onnx_runtime(
    check: Check, width: int, constant: bool, batch: int, axis: int
) -> None:
    row = np.random.default_rng(width).standard_normal((1, 2, width)).astype(np.float32)
    shape = [2, width]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Concat", ["x", *(["c"] if constant else []), "r", "x"], ["y"], axis=axis),
    ]
    network = check(nodes, [batch, *shape], {"c": np.repeat(row, batch, axis=0)})
    last = network.graph.nodes[-1]
    assert isinstance(last, Affine)
    assert last.sources == (0, 1)


def test_concat_along_the_batch_or_of_odd_shapes_is_refused(build: Build) -> None:
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    with pytest.raises(ModelError, match="batch axis"):
        load_network(build([node], [None, 3]))
    differing = {"c": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with pytest.raises(ModelError, match="differs between the inputs"):
        load_network(build([helper.make_node("Concat", ["x", "c"], ["y"], axis=1)], [2, 3], differing))
    with pytest.raises(ModelError, match="joins shapes"):
        load_network(build([helper.make_node("Concat", ["x", "c"], ["y"], axis=1)], [3, 3], differing))


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21])
@given(data=st.data(), shape=SHAPES, batch=BATCHES, value=st.sampled_from([None, 0.0, 1.5]))
@settings(max_examples=30)
def test_pad_agrees_with_onnx_runtime(
    check: Check, opset: int, data: st.DataObject, shape: list[int], batch: int | None, value: float | None
) -> None:
    before = [0, *(data.draw(st.integers(-1, 2)) for _ in shape)]
    after = [0, *(data.draw(st.integers(-1, 2)) for _ in shape)]
    for i, size in enumerate(shape, start=1):
        assume(size + min(before[i], 0) + min(after[i], 0) > 0)
    if opset < 11:
        attributes: dict[str, Any] = {"pads": before + after}
        if value is not None:
            attributes["value"] = value
        check([helper.make_node("Pad", ["x"], ["y"], **attributes)], [batch, *shape], opset=opset)
        return
    constants: dict[str, Any] = {"p": ints(*before, *after)}
    inputs = ["x", "p"]
    if value is not None:
        constants["v"] = np.float32(value)
        inputs.append("v")
    if opset >= 18 and data.draw(st.booleans()):
        inputs = [*inputs, *[""] * (3 - len(inputs)), "a"]
        constants["p"], constants["a"] = ints(*before[1:], *after[1:]), ints(*range(1, len(shape) + 1))
    check([helper.make_node("Pad", inputs, ["y"])], [batch, *shape], constants, opset=opset)


@pytest.mark.parametrize(
    ("mode", "pads", "message"),
    [("reflect", [0, 1, 0, 1], "mode = reflect"), ("constant", [1, 0, 0, 0], "batch axis")],
)
def test_other_padding_is_refused(build: Build, mode: str, pads: list[int], message: str) -> None:
    node = helper.make_node("Pad", ["x", "p"], ["y"], mode=mode)
    with pytest.raises(ModelError, match=message):
        load_network(build([node], [None, 3], {"p": ints(*pads)}))


@pytest.mark.parametrize("opset", [7, 12, 13, 22])
def test_dropout_and_identity_do_nothing(check: Check, opset: int) -> None:
    attributes: dict[str, Any] = {"ratio": 0.5} if opset < 12 else {}
    nodes = [
        helper.make_node("Dropout", ["x"], ["d"], **attributes),
        helper.make_node("Identity", ["d"], ["i"]),
        helper.make_node("Relu", ["i"], ["y"]),
    ]
    assert len(check(nodes, [None, 3], opset=opset).graph.nodes) == 2


def test_dropout_in_training_is_refused(build: Build) -> None:
    constants = {"r": np.float32(0.5), "t": np.array(True)}
    with pytest.raises(ModelError, match="training mode"):
        load_network(build([helper.make_node("Dropout", ["x", "r", "t"], ["y"])], [None, 3], constants))
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", "m"]),
        helper.make_node("Where", ["m", "d", "d"], ["y"]),
    ]
    with pytest.raises(ModelError, match="mask"):
        load_network(build(nodes, [None, 3]))


def test_cast_passes_where_it_does_not_round(check: Check, build: Build) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["d"], to=11),
        helper.make_node("Mul", ["d", "c"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=1),
    ]
    check(nodes, [None, 3], {"c": np.array([0.1, 0.2, 0.3])})
    for kind in (10, 7):
        with pytest.raises(ModelError, match="rounds a computed tensor"):
            load_network(build([helper.make_node("Cast", ["x"], ["y"], to=kind)], [None, 3]))
