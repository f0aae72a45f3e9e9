"""Constants, and the shape computations that exporters leave in a file; all of them fold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from milpver.op import FREE, Call, Constant, Lowering, UnsupportedError, Value, check_size

__all__ = ["LOWERINGS"]


def constant(call: Call) -> Value:
    """A constant in the file, in any of its forms."""
    for form, kind in (
        ("value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if form in call.attributes:
            return Constant(np.asarray(call.attributes[form], dtype=kind), call.name)
    raise UnsupportedError(f"has its value as {', '.join(call.attributes) or 'nothing'}")


def shape(call: Call) -> Value:
    """The shape of a value, or a range of it."""
    value = call.value(0)
    full = call.full_shape(value)
    ends = slice(call.number("start", 0), call.attributes.get("end"))
    batch = call.batch == FREE and not isinstance(value, Constant) and 0 in range(len(full))[ends]
    return Constant(np.asarray(full[ends], dtype=np.int64), call.name, batch or call.tainted)


def size(call: Call) -> Value:
    """The number of entries."""
    value = call.value(0)
    batch = call.batch == FREE and not isinstance(value, Constant)
    total = np.prod(call.full_shape(value), dtype=np.int64)
    return Constant(np.asarray(total), call.name, batch or call.tainted)


def constant_of_shape(call: Call) -> Value:
    """One value in a given shape."""
    _refuse_free(call)
    dimensions = call.integers(0) or ()
    value = np.asarray(call.attributes.get("value", np.zeros(1, dtype=np.float32))).reshape(-1)
    if min(dimensions, default=0) < 0:
        raise UnsupportedError(f"has shape {list(dimensions)}")
    return call.folded(np.broadcast_to(value[0], dimensions))


def expand(call: Call) -> Value:
    """A constant, broadcast to a given shape."""
    _refuse_free(call)
    array = call.constant(0).array
    wanted = np.broadcast_shapes(array.shape, call.integers(1) or ())
    return call.folded(np.broadcast_to(array, wanted))


def range_(call: Call) -> Value:
    """The numbers from a start up to a limit."""
    _refuse_free(call)
    start, limit, step = (call.constant(position).array.reshape(-1)[0] for position in range(3))
    if step == 0:
        raise UnsupportedError("has a step of 0")
    check_size(max(math.ceil((float(limit) - float(start)) / float(step)), 0))
    return call.folded(np.arange(start, limit, step, dtype=start.dtype))


def reduce_prod(call: Call) -> Value:
    """The product of a constant's entries, along some axes or all."""
    array = call.constant(0).array
    axes = call.integers(1, "axes")
    if axes is None and call.number("noop_with_empty_axes", 0):
        return call.value(0)
    over = None if axes is None else tuple(call.axis(axis, array.ndim) for axis in axes)
    kept = bool(call.number("keepdims", 1))
    return call.folded(np.asarray(np.prod(array, axis=over, keepdims=kept, dtype=array.dtype)))


def _refuse_free(call: Call) -> None:
    """Refuse a constant with one entry for each input of a free batch."""
    if call.tainted:
        raise UnsupportedError("makes a constant whose shape depends on the size of the batch")


LOWERINGS: Mapping[str, Lowering] = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Range": range_,
    "ReduceProd": reduce_prod,
    "Shape": shape,
    "Size": size,
}
