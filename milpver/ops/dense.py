"""Fully connected layers: Gemm and MatMul by a constant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from milpver.linear import Dense, Float, Int, LinearMap, Sparse
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


def gemm(call: Call) -> Value:
    """``alpha A B + beta C`` with optional transposes of the matrices A and B."""
    left, right = call.value(0), call.value(1)
    alpha, beta = (float(call.attributes.get(key, 1.0)) for key in ("alpha", "beta"))
    bias = call.weights(2) if call.has(2) else np.zeros(())
    for value in (left, right):
        if len(call.full_shape(value)) != 2:
            raise UnsupportedError(f"has to get matrices, not an input of shape {call.full_shape(value)}")
    if call.number("transA", 0):
        call.guard_axis(left, 0)
        left = call.rearranged(left, np.transpose)
    if call.number("transB", 0):
        call.guard_axis(right, 0)
        right = call.rearranged(right, np.transpose)
    product = _product(call, left, right)
    if isinstance(product, Constant):
        folded = alpha * product.array
        if call.has(2):
            folded = folded + beta * call.constant(2).array
        return replace(product, array=folded.astype(product.array.dtype))
    shift = _broadcast_bias(call, bias, product)
    product = _times(call, product, alpha)
    return call.scaled(product, np.ones(product.shape), beta * shift)


def _times(call: Call, tensor: Tensor, factor: float) -> Tensor:
    """A constant multiple."""
    if factor == 1.0:
        return tensor
    return call.scaled(tensor, np.full(tensor.shape, factor), np.zeros(tensor.shape))


def _broadcast_bias(call: Call, bias: Float, product: Tensor) -> Float:
    """Gemm's C for one input, float64 in the product's shape."""
    full = call.full_shape(product)
    if bias.ndim > len(full) or any(
        have not in (1, want) for have, want in zip(bias.shape[::-1], full[::-1], strict=False)
    ):
        raise UnsupportedError(f"C of shape {bias.shape} does not broadcast to {full}")
    if call.batch is not None and bias.ndim == len(full):
        if np.any(bias != bias[:1]):
            raise BatchError("C differs between the inputs of a batch")
        bias = bias[:1]
    return np.broadcast_to(bias, product.shape)


def matmul(call: Call) -> Value:
    """Matrix product with a constant on either side, broadcasting as numpy does."""
    return _product(call, call.value(0), call.value(1))


def _product(call: Call, left: Value, right: Value) -> Value:
    """``left @ right``, one of them a constant."""
    if isinstance(left, Constant) and isinstance(right, Constant):
        return call.folded(np.matmul(left.array, right.array))
    if isinstance(left, Tensor) and isinstance(right, Constant):
        return _right(call, left, finite(right))
    if isinstance(left, Constant) and isinstance(right, Tensor):
        return _left(call, finite(left), right)
    raise UnsupportedError("multiplies two tensors that are both computed from the network's input")


def _right(call: Call, tensor: Tensor, weight: Float) -> Tensor:
    """``x W``: x [..., t, k], W [..., k, n]."""
    rank = len(tensor.shape)
    _check_inner(tensor.shape[-1:] if rank > 1 or call.batch is None else (), weight.shape[-2:][:1])
    if call.batch is not None and (rank < 2 or weight.ndim > rank):
        raise BatchError("multiplies along the batch axis", "none")
    if call.batch is not None and weight.ndim == rank and rank > 2 and weight.shape[0] != 1:
        raise BatchError("has weights that differ between the inputs of a batch")
    source = indices(tensor)
    shape = np.matmul(np.empty(tensor.shape, dtype=bool), np.empty(weight.shape, dtype=bool)).shape
    if source.ndim == 1:
        source = source[None, :]
    if weight.ndim == 1:
        weight = weight[:, None]
    return _emit(call, tensor, source, weight, shape, transposed=False)


def _left(call: Call, weight: Float, tensor: Tensor) -> Tensor:
    """``W x``: W [..., m, k], x [..., k, t]; computed as the transpose of ``x^T W^T``."""
    rank = len(tensor.shape)
    if call.batch is not None and (rank < 3 or weight.ndim > rank):
        raise BatchError("multiplies along the batch axis", "none")
    if call.batch is not None and weight.ndim == rank and weight.shape[0] != 1:
        raise BatchError("has weights that differ between the inputs of a batch")
    _check_inner(weight.shape[-1:], tensor.shape[-2:][:1])
    source = indices(tensor)
    shape = np.matmul(np.empty(weight.shape, dtype=bool), np.empty(tensor.shape, dtype=bool)).shape
    if source.ndim == 1:
        source = source[:, None]
    if weight.ndim == 1:
        weight = weight[None, :]
    return _emit(call, tensor, source.swapaxes(-1, -2), weight.swapaxes(-1, -2), shape, transposed=True)


def _check_inner(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Refuse matrices that do not fit."""
    if left != right:
        raise UnsupportedError(
            f"multiplies {left[0] if left else 0} columns with {right[0] if right else 0} rows"
        )


def _emit(
    call: Call, tensor: Tensor, source: Int, weight: Float, shape: tuple[int, ...], *, transposed: bool
) -> Tensor:
    """Add ``y[..., t, n] = sum_k x[source[..., t, k]] W[..., k, n]``, stored transposed if asked to."""
    linear: LinearMap
    whole = source.size == tensor.size == source.shape[-1] and weight.size == np.prod(weight.shape[-2:])
    if whole:
        matrix = weight.reshape(weight.shape[-2:])
        linear = Dense(np.ascontiguousarray(matrix.T[:, np.argsort(source.reshape(-1))]))
    else:
        linear = _blocks(source, weight, tensor.size, transposed=transposed)
    node = call.builder.affine(((tensor.node, linear),), np.zeros(linear.outputs), call.name)
    return Tensor(node, shape, tensor.dtype, dense=whole)


def _blocks(source: Int, weight: Float, size: int, *, transposed: bool) -> Sparse:
    """The same weights at several positions, as a sparse map."""
    lead = np.broadcast_shapes(source.shape[:-2], weight.shape[:-2])
    (t, k), n = source.shape[-2:], weight.shape[-1]
    full = (*lead, t, k, n)
    check_size(math.prod(full))
    target = np.arange(math.prod(lead) * t * n)
    target = target.reshape((*lead, n, t)).swapaxes(-1, -2) if transposed else target.reshape((*lead, t, n))
    rows = np.broadcast_to(target[..., :, None, :], full).reshape(-1)
    columns = np.broadcast_to(source[..., :, :, None], full).reshape(-1)
    values = np.broadcast_to(weight[..., None, :, :], full).reshape(-1)
    matrix = sparse.csr_array((values, (rows, columns)), shape=(target.size, size))
    matrix.eliminate_zeros()
    return Sparse(matrix)


LOWERINGS: Mapping[str, Lowering] = {
    "Gemm": gemm,
    "MatMul": matmul,
}
