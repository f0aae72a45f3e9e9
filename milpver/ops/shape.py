"""Operators that move entries and compute nothing: reshaping, transposing, slicing, joining, padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.linear import Int, selection
from milpver.op import (
    FREE,
    BatchError,
    Call,
    Constant,
    Lowering,
    Tensor,
    UnsupportedError,
    Value,
    check_size,
    finite,
    indices,
)

__all__ = ["LOWERINGS"]

_LAST = np.iinfo(np.int64).max


def identity(call: Call) -> Value:
    """The same value."""
    return call.value(0)


def dropout(call: Call) -> Value:
    """The same value, as in inference."""
    if call.has(2) and np.any(call.constant(2).array):
        raise UnsupportedError("is in training mode")
    if any(call.outputs[1:]):
        raise UnsupportedError("has its second output, mask, in use")
    return call.value(0)


def cast(call: Call) -> Value:
    """Another element type; of a computed tensor only to float32 or float64."""
    from onnx.helper import tensor_dtype_to_np_dtype  # noqa: PLC0415  onnx is loaded where a file is read

    kind = np.dtype(tensor_dtype_to_np_dtype(call.number("to", 0)))
    value = call.value(0)
    if isinstance(value, Constant):
        with np.errstate(over="ignore", invalid="ignore"):
            return replace(value, array=value.array.astype(kind))
    if kind not in (np.dtype(np.float32), np.dtype(np.float64), value.dtype):
        raise UnsupportedError(f"rounds a computed tensor to {kind}")
    return replace(value, dtype=kind)


def reshape(call: Call) -> Value:
    """Another shape with the same entries in the same order; 0 copies a dimension, -1 is what is left."""
    value = call.value(0)
    wanted = call.integers(1, "shape")
    if wanted is None:
        raise UnsupportedError("has no shape")
    full = call.full_shape(value)
    target = list(wanted)
    if not call.number("allowzero", 0):
        if any(entry == 0 and i >= len(full) for i, entry in enumerate(target)):
            raise UnsupportedError(f"copies a dimension that shape {full} does not have")
        target = [full[i] if entry == 0 else entry for i, entry in enumerate(target)]
    total = int(np.prod(full, dtype=np.int64))
    if target.count(-1) > 1 or min(target, default=0) < -1:
        raise UnsupportedError(f"reshapes to {target}")
    if -1 in target:
        known = int(np.prod([entry for entry in target if entry != -1], dtype=np.int64))
        target[target.index(-1)] = total // known if known and total % known == 0 else -1
    batched = call.batch is not None and isinstance(value, Tensor)
    if batched and (not target or target[0] != full[0]):
        one = call.batch == FREE and target[:1] == [1]
        raise BatchError(f"reshapes {_shown(full)} to {_shown(wanted)}", "single" if one else "")
    if int(np.prod(target, dtype=np.int64)) != total or -1 in target:
        raise UnsupportedError(f"reshapes {_shown(full)} to {_shown(wanted)}")
    if batched:
        target[0] = 1
    return call.rearranged(value, lambda array: array.reshape(target))


def _shown(shape: Sequence[int]) -> list[int | str]:
    """A shape for messages."""
    return ["N" if entry == FREE else entry for entry in shape]


def flatten(call: Call) -> Value:
    """A matrix: the axes before ``axis`` as rows, the others as columns."""
    value = call.value(0)
    full = call.full_shape(value)
    axis = call.number("axis", 1)
    axis = axis if axis == len(full) else call.axis(axis, len(full)) if full else 0
    rows = int(np.prod(full[:axis], dtype=np.int64))
    columns = int(np.prod(full[axis:], dtype=np.int64))
    if call.batch is not None and isinstance(value, Tensor):
        if rows != full[0]:
            raise BatchError(f"flattens {_shown(full)} at axis {axis}", "none" if axis == 0 else "")
        rows = 1
    return call.rearranged(value, lambda array: array.reshape(rows, columns))


def transpose(call: Call) -> Value:
    """Axes in another order."""
    value = call.value(0)
    rank = len(call.full_shape(value))
    order = [int(entry) for entry in call.attributes.get("perm", range(rank)[::-1])]
    if sorted(order) != list(range(rank)):
        raise UnsupportedError(f"has perm = {order} for {rank} axes")
    if order and order[0] != 0:
        call.guard_axis(value, 0)
    return call.rearranged(value, lambda array: array.transpose(order))


def squeeze(call: Call) -> Value:
    """Without axes of size 1."""
    value = call.value(0)
    full = call.full_shape(value)
    given = call.integers(1, "axes")
    if given is None:
        if call.batch is not None and isinstance(value, Tensor):
            raise BatchError(
                "squeezes every axis of size 1, the batch's too where that is 1",
                "single" if call.batch == FREE else "",
            )
        axes = [i for i, size in enumerate(full) if size == 1]
    else:
        axes = [call.axis(entry, len(full)) for entry in given]
    for axis in axes:
        call.guard_axis(value, axis)
        if full[axis] != 1:
            raise UnsupportedError(f"squeezes axis {axis} of shape {_shown(full)}")
    return call.rearranged(value, lambda array: np.squeeze(array, tuple(axes)))


def unsqueeze(call: Call) -> Value:
    """With new axes of size 1."""
    value = call.value(0)
    given = call.integers(1, "axes")
    if given is None:
        raise UnsupportedError("has no axes")
    rank = len(call.full_shape(value)) + len(given)
    axes = [call.axis(entry, rank) for entry in given]
    if len(set(axes)) != len(axes):
        raise UnsupportedError(f"has axes = {list(given)}")
    for axis in axes:
        call.guard_axis(value, axis)
    return call.rearranged(value, lambda array: np.expand_dims(array, tuple(axes)))


def slice_(call: Call) -> Value:
    """A range with a step along each of some axes."""
    value = call.value(0)
    full = call.full_shape(value)
    starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
    if starts is None or ends is None:
        raise UnsupportedError("has no starts or ends")
    axes = call.integers(3, "axes") or tuple(range(len(starts)))
    steps = call.integers(4) or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise UnsupportedError(f"has starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    places: dict[int, Int] = {}
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = call.axis(given, len(full))
        picked = _range(full[axis], start, end, step)
        if call.batch is not None and isinstance(value, Tensor) and axis == 0:
            if len(picked) != full[0] or step != 1:
                raise BatchError("slices the batch axis")
            continue
        places[axis] = picked

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        for axis, picked in places.items():
            array = np.take(array, picked, axis=axis)
        return array

    return call.rearranged(value, cut)


def _range(size: int, start: int, end: int, step: int) -> Int:
    """The positions that Slice takes along one axis: negative ones count from the end, all are clamped."""
    start, end = (place + size if place < 0 else place for place in (start, end))
    if step > 0:
        start, end = (min(max(place, 0), size) for place in (start, end))
    else:
        start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return np.arange(start, end, step, dtype=np.int64)


def gather(call: Call) -> Value:
    """The entries at constant positions along an axis."""
    value = call.value(0)
    full = call.full_shape(value)
    axis = call.axis(call.number("axis", 0), len(full))
    picked = call.constant(1)
    if not np.issubdtype(picked.array.dtype, np.integer) or picked.batch:
        raise UnsupportedError(f"{picked.name} are no constant integers")
    size = full[axis]
    if np.any((picked.array < -size) | (picked.array >= size)):
        raise UnsupportedError(f"{picked.name} holds positions outside of {size} entries")
    call.guard_axis(value, axis)
    return call.rearranged(value, lambda array: np.take(array, picked.array % size, axis=axis))


def split(call: Call) -> Sequence[Value]:
    """Consecutive parts along an axis."""
    value = call.value(0)
    full = call.full_shape(value)
    axis = call.axis(call.number("axis", 0), len(full))
    call.guard_axis(value, axis)
    size, parts = full[axis], len(call.outputs)
    sizes = call.integers(1, "split")
    if sizes is None:
        width = -(-size // parts)
        sizes = (*(width,) * (parts - 1), size - width * (parts - 1))
        if sizes[-1] != width and (call.opset < 18 or sizes[-1] < 1):
            raise UnsupportedError(f"splits {size} entries into {parts} equal parts")
    if len(sizes) != parts or sum(sizes) != size or min(sizes) < 1:
        raise UnsupportedError(f"splits {size} entries into parts of {list(sizes)}")
    ends = np.cumsum(sizes)

    def part(i: int) -> Value:
        places = np.arange(ends[i] - sizes[i], ends[i])
        return call.rearranged(value, lambda array: np.take(array, places, axis=axis))

    return [part(i) if call.outputs[i] else value for i in range(parts)]


def concat(call: Call) -> Value:
    """Values joined along an axis; constants among them become a bias."""
    values = [call.value(position) for position in range(len(call.inputs))]
    shapes = [call.full_shape(value) for value in values]
    axis = call.axis(call.number("axis", 1), len(shapes[0]))
    if any(
        len(shape) != len(shapes[0]) or _without(shape, axis) != _without(shapes[0], axis) for shape in shapes
    ):
        raise UnsupportedError(f"joins shapes {[_shown(shape) for shape in shapes]} along axis {axis}")
    if call.folds:
        return call.folded(np.concatenate([call.constant(i).array for i in range(len(values))], axis=axis))
    tensors = [value for value in values if isinstance(value, Tensor)]
    for tensor in tensors:
        call.guard_axis(tensor, axis)
    if len(values) == 1:
        return values[0]
    parts = [
        np.zeros(value.shape) if isinstance(value, Tensor) else _per_input(call, value) for value in values
    ]
    bias = np.concatenate(parts, axis=axis)
    terms: dict[int, Int] = {}
    for position, value in enumerate(values):
        if not isinstance(value, Tensor):
            continue
        marks = [indices(value) if i == position else np.full(part.shape, -1) for i, part in enumerate(parts)]
        picked = np.concatenate(marks, axis=axis).reshape(-1)
        terms[value.node] = np.maximum(terms.get(value.node, picked), picked)
    maps = tuple((node, selection(picked, call.builder.size(node))) for node, picked in terms.items())
    node = call.builder.affine(maps, bias.reshape(-1), call.name)
    return Tensor(node, bias.shape, tensors[0].dtype)


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def _per_input(call: Call, constant: Constant) -> NDArray[np.float64]:
    """A constant that stands beside tensors, for one input of the batch."""
    values = finite(constant)
    if call.batch is None:
        return values
    if np.any(values != values[:1]):
        raise BatchError(f"{constant.name} differs between the inputs of a batch")
    return values[:1]


def pad(call: Call) -> Value:
    """A constant around the entries; negative padding cuts."""
    mode = call.text("mode", "constant")
    if mode != "constant":
        raise UnsupportedError(f"has mode = {mode} (only constant is)")
    value = call.value(0)
    rank = len(call.full_shape(value))
    pads = call.integers(1, "pads")
    if pads is None:
        raise UnsupportedError("has no pads")
    axes = [call.axis(entry, rank) for entry in call.integers(3) or range(rank)]
    if len(pads) != 2 * len(axes):
        raise UnsupportedError(f"has {len(pads)} pads for {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
        if pads[i] or pads[len(axes) + i]:
            call.guard_axis(value, axis)
    filling = float(call.attributes.get("value", 0.0))
    if call.has(2):
        filling = float(call.constant(2).array.reshape(-1)[0])
    if not np.isfinite(filling):
        raise UnsupportedError(f"pads with {filling}")

    full = value.array.shape if isinstance(value, Constant) else value.shape
    check_size(math.prod(size + abs(b) + abs(a) for size, b, a in zip(full, before, after, strict=True)))

    def padded(array: NDArray[Any], fill: float) -> NDArray[Any]:
        cut = tuple(
            slice(max(-b, 0), size - max(-a, 0))
            for b, a, size in zip(before, after, array.shape, strict=True)
        )
        grown = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
        return np.pad(array[cut], grown, constant_values=fill)

    if isinstance(value, Constant):
        return replace(value, array=padded(value.array, filling))
    picked = padded(indices(value), -1)
    tensor = call.selected(value, picked)
    if filling == 0 or np.all(picked >= 0):
        return tensor
    return call.scaled(tensor, np.ones(tensor.shape), np.where(picked < 0, filling, 0.0))


LOWERINGS: Mapping[str, Lowering] = {
    "Cast": cast,
    "Concat": concat,
    "Dropout": dropout,
    "Flatten": flatten,
    "Gather": gather,
    "Identity": identity,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
