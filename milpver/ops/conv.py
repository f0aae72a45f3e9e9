"""Convolution in one and two dimensions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from milpver.linear import Conv
from milpver.op import Call, Lowering, Tensor, UnsupportedError, Value, check_size
from milpver.ops.window import geometry

__all__ = ["LOWERINGS"]


def conv(call: Call) -> Value:
    """Cross-correlation with a constant kernel; one dimension becomes an image of height 1."""
    tensor, kernel = call.tensor(0), call.weights(1)
    spatial = len(tensor.shape) - 2
    if spatial not in (1, 2) or kernel.ndim != spatial + 2:
        raise UnsupportedError(
            f"convolves shape {call.full_shape(tensor)} with kernel {kernel.shape}; 1 and 2 dimensions are"
        )
    groups = call.number("group", 1)
    channels = tensor.shape[1]
    if groups < 1 or channels != kernel.shape[1] * groups or kernel.shape[0] % groups:
        raise UnsupportedError(f"has kernel {kernel.shape} and {groups} groups for {channels} channels")
    if tensor.shape[0] != 1:
        raise UnsupportedError(f"convolves {tensor.shape[0]} images made from one input")
    declared = tuple(call.attributes.get("kernel_shape", kernel.shape[2:]))
    if declared != kernel.shape[2:]:
        raise UnsupportedError(f"declares kernel_shape {list(declared)} for a kernel of shape {kernel.shape}")
    axes = geometry(call, tensor.shape[2:], kernel.shape[2:])
    if spatial == 1:
        axes = (axes[0].unit(), axes[0])
        kernel = kernel[:, :, None, :]
    rows, columns = axes
    linear = Conv(
        kernel,
        (channels, rows.size, columns.size),
        strides=(rows.stride, columns.stride),
        pads=(rows.before, columns.before, rows.after, columns.after),
        dilations=(rows.dilation, columns.dilation),
        groups=groups,
    )
    out_shape = linear.out_shape if spatial == 2 else (linear.out_shape[0], linear.out_shape[2])
    bias = call.weights(2) if call.has(2) else np.zeros(kernel.shape[0])
    if bias.shape != (kernel.shape[0],):
        raise UnsupportedError(f"has a bias of shape {bias.shape} for {kernel.shape[0]} channels")
    check_size(linear.outputs)
    shift = np.repeat(bias, linear.outputs // kernel.shape[0])
    node = call.builder.affine(((tensor.node, linear),), shift, call.name)
    return Tensor(node, (1, *out_shape), tensor.dtype, conv=(1, *out_shape))


LOWERINGS: Mapping[str, Lowering] = {"Conv": conv}
