"""Pooling: averages are sparse affine maps, maxima are Max nodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from milpver.linear import Int, Sparse
from milpver.op import Call, Lowering, Tensor, UnsupportedError, Value, check_size
from milpver.ops.window import Axis, geometry, windows

__all__ = ["LOWERINGS"]


def average_pool(call: Call) -> Value:
    """Means over windows; padding counts where count_include_pad says so."""
    tensor, axes = _grid(call)
    found, count = windows(axes, padded=bool(call.number("count_include_pad", 0)))
    if np.any(count == 0):
        raise UnsupportedError("has windows that lie in the padding")
    return _averaged(call, tensor, found, count, tuple(axis.count for axis in axes))


def global_average_pool(call: Call) -> Value:
    """Means over all spatial axes."""
    tensor = call.tensor(0)
    if len(tensor.shape) < 3:
        raise UnsupportedError(f"gets shape {call.full_shape(tensor)}, which has no spatial axes")
    spatial = tensor.shape[2:]
    pixels = int(np.prod(spatial))
    return _averaged(call, tensor, np.arange(pixels)[None, :], np.array([pixels]), (1,) * len(spatial))


def _averaged(call: Call, tensor: Tensor, found: Int, count: Int, grid: tuple[int, ...]) -> Tensor:
    """Means over windows of every channel's image."""
    pixels = int(np.prod(tensor.shape[2:]))
    outer, entry = np.nonzero(found >= 0)
    check_size(tensor.shape[0] * tensor.shape[1] * len(outer))
    image = sparse.csr_array((1.0 / count[outer], (outer, found[outer, entry])), shape=(len(found), pixels))
    channels = tensor.shape[0] * tensor.shape[1]
    linear = Sparse(sparse.csr_array(sparse.block_diag([image] * channels, format="csr")))
    node = call.builder.affine(((tensor.node, linear),), np.zeros(linear.outputs), call.name)
    return Tensor(node, (*tensor.shape[:2], *grid), tensor.dtype)


def max_pool(call: Call) -> Value:
    """Maxima over windows; padding never wins, so a padded window repeats one of its own entries."""
    if any(call.outputs[1:]):
        raise UnsupportedError("has its second output, Indices, in use")
    tensor, axes = _grid(call)
    found, count = windows(axes)
    if np.any(count == 0):
        raise UnsupportedError("has windows that lie in the padding")
    groups = np.where(found >= 0, found, found.max(axis=1, keepdims=True))
    pixels = int(np.prod(tensor.shape[2:]))
    channels = tensor.shape[0] * tensor.shape[1]
    check_size(channels * groups.size)
    groups = (np.arange(channels)[:, None, None] * pixels + groups[None]).reshape(-1, groups.shape[1])
    node = call.builder.max(tensor.node, groups, call.name)
    return Tensor(node, (*tensor.shape[:2], *(axis.count for axis in axes)), tensor.dtype)


def _grid(call: Call) -> tuple[Tensor, tuple[Axis, ...]]:
    """The pooled tensor and its spatial axes."""
    tensor = call.tensor(0)
    window = [int(entry) for entry in call.attributes.get("kernel_shape", ())]
    if len(window) != len(tensor.shape) - 2 or len(window) < 1:
        raise UnsupportedError(f"pools shape {call.full_shape(tensor)} with kernel_shape {window}")
    return tensor, geometry(call, tensor.shape[2:], window)


LOWERINGS: Mapping[str, Lowering] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "MaxPool": max_pool,
}
