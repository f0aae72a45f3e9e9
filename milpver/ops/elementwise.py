"""Arithmetic, entry by entry: with constants on either side, and sums of computed tensors (residual Add)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.linear import Float, LinearMap, Sparse, diagonal, selection
from milpver.op import (
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


def add(call: Call) -> Value:
    """``a + b``; one may be constant."""
    left, right = call.value(0), call.value(1)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _sum(call, left, right, 1.0)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return call.folded(left.array + right.array)
    tensor, constant = (left, right) if isinstance(left, Tensor) else (right, left)
    return _shifted(call, tensor, constant, 1.0, 1.0)


def sub(call: Call) -> Value:
    """``a - b``; one may be constant."""
    left, right = call.value(0), call.value(1)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return _sum(call, left, right, -1.0)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return call.folded(left.array - right.array)
    if isinstance(left, Tensor):
        return _shifted(call, left, right, 1.0, -1.0)
    return _shifted(call, right, left, -1.0, 1.0)


def mul(call: Call) -> Value:
    """``a * b``, at least one of them constant."""
    left, right = call.value(0), call.value(1)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return call.folded(left.array * right.array)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        raise UnsupportedError("multiplies two tensors that are both computed from the network's input")
    if isinstance(left, Tensor):
        tensor, factor = _aligned(call, left, right)
    else:
        tensor, factor = _aligned(call, call.tensor(1), left)
    return call.scaled(tensor, factor, np.zeros(tensor.shape))


def div(call: Call) -> Value:
    """``a / b``, b constant; its reciprocal is rounded to float64."""
    left, right = call.value(0), call.value(1)
    if isinstance(left, Constant) and isinstance(right, Constant):
        return call.folded(_divided(left.array, right.array))
    if isinstance(right, Tensor):
        raise UnsupportedError("divides by a tensor that is computed from the network's input")
    tensor, divisor = _aligned(call, call.tensor(0), right)
    if np.any(divisor == 0):
        raise UnsupportedError(f"divides by {right.name}, which holds 0")
    with np.errstate(over="ignore"):
        factor = 1.0 / divisor
    if not np.all(np.isfinite(factor)):
        raise UnsupportedError(f"divides by {right.name}, which holds numbers too near to 0")
    return call.scaled(tensor, factor, np.zeros(tensor.shape))


def _divided(left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    """Division as ONNX has it: of integers, towards zero."""
    if np.any(right == 0):
        raise UnsupportedError("divides by a constant 0")
    if np.issubdtype(left.dtype, np.integer):
        quotient: NDArray[Any] = np.sign(left) * np.sign(right) * (np.abs(left) // np.abs(right))
        return quotient.astype(left.dtype)
    result: NDArray[Any] = left / right
    return result


def neg(call: Call) -> Value:
    """``-x``."""
    value = call.value(0)
    if isinstance(value, Constant):
        return call.folded(-value.array)
    return call.scaled(value, np.full(value.shape, -1.0), np.zeros(value.shape))


def _shifted(call: Call, tensor: Value, constant: Value, sign: float, side: float) -> Tensor:
    """``sign * tensor + side * constant``."""
    if not isinstance(tensor, Tensor) or not isinstance(constant, Constant):
        raise UnsupportedError("has inputs of an unexpected kind")
    tensor, shift = _aligned(call, tensor, constant)
    return call.scaled(tensor, np.full(tensor.shape, sign), side * shift)


def _aligned(call: Call, tensor: Tensor, constant: Value) -> tuple[Tensor, Float]:
    """A tensor and a constant, float64, broadcast to one shape.

    Raises:
        BatchError: the constant's shape moves the batch axis, or its values differ between inputs.
    """
    if not isinstance(constant, Constant):
        raise UnsupportedError("has inputs of an unexpected kind")
    values = finite(constant)
    if call.batch is not None:
        if values.ndim > len(tensor.shape):
            raise BatchError(f"broadcasts {constant.name} of shape {values.shape} past the batch axis")
        if values.ndim == len(tensor.shape):
            if len(values) not in (1, call.batch):
                raise BatchError(f"broadcasts {constant.name} of shape {values.shape} along the batch axis")
            if np.any(values != values[:1]):
                raise BatchError(f"{constant.name} differs between the inputs of a batch")
            values = values[:1]
    shape = _joint(tensor.shape, values.shape)
    if shape != tensor.shape:
        dense = tensor.dense and np.prod(shape) == tensor.size
        tensor = call.selected(tensor, np.broadcast_to(indices(tensor), shape))
        tensor = replace(tensor, dense=dense)
    return tensor, np.broadcast_to(values, shape)


def _joint(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    try:
        joint = np.broadcast_shapes(left, right)
    except ValueError:
        raise UnsupportedError(f"shapes {left} and {right} do not broadcast") from None
    check_size(math.prod(joint))
    return joint


def _sum(call: Call, left: Tensor, right: Tensor, sign: float) -> Tensor:
    """``left + sign * right``."""
    if call.batch is not None and len(left.shape) != len(right.shape):
        raise BatchError(f"broadcasts shapes {left.shape} and {right.shape} along the batch axis")
    shape = _joint(left.shape, right.shape)
    size = math.prod(shape)
    check_size(size)

    def spread(tensor: Tensor, factor: float) -> LinearMap:
        if tensor.shape == shape:
            return diagonal(np.full(size, factor))
        picked = selection(np.broadcast_to(indices(tensor), shape).reshape(-1), tensor.size)
        return Sparse(factor * picked.matrix)

    terms = ((left.node, spread(left, 1.0)), (right.node, spread(right, sign)))
    node = call.builder.affine(terms, np.zeros(size), call.name)
    return Tensor(node, shape, left.dtype, dense=left.dense or right.dense)


def _folding(function: Callable[..., NDArray[Any]]) -> Lowering:
    """The lowering of an operator that only works on constants (shape computations)."""

    def lower(call: Call) -> Value:
        arrays = [call.constant(position).array for position in range(len(call.inputs))]
        return call.folded(np.asarray(function(*arrays)))

    return lower


LOWERINGS: Mapping[str, Lowering] = {
    "Abs": _folding(np.abs),
    "Add": add,
    "Ceil": _folding(np.ceil),
    "Div": div,
    "Equal": _folding(np.equal),
    "Floor": _folding(np.floor),
    "Greater": _folding(np.greater),
    "Less": _folding(np.less),
    "Mul": mul,
    "Neg": neg,
    "Not": _folding(np.logical_not),
    "Pow": _folding(lambda base, power: np.power(base, power).astype(base.dtype)),
    "Sqrt": _folding(np.sqrt),
    "Sub": sub,
    "Where": _folding(np.where),
}
