"""Batch normalisation with the statistics in the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from milpver.linear import Float
from milpver.op import Call, Lowering, UnsupportedError, Value

__all__ = ["LOWERINGS"]


def batch_normalization(call: Call) -> Value:
    """``(x - mean) * (scale / sqrt(var + epsilon)) + shift`` with the statistics in the file.

    Two affine nodes, unless the mean is 0: in one, ``shift - mean * scale`` would be rounded, and a bound
    on float32 rounding could no longer see the numbers that cancel in it.
    """
    if call.number("training_mode", 0) or any(call.outputs[1:]):
        raise UnsupportedError("is in training mode")
    if call.number("spatial", 1) != 1:
        raise UnsupportedError("has spatial = 0")
    tensor = call.tensor(0)
    scale, shift, mean, variance = (call.weights(position) for position in range(1, 5))
    channels = tensor.shape[1] if len(tensor.shape) > 1 else 1
    if any(entry.shape != (channels,) for entry in (scale, shift, mean, variance)):
        raise UnsupportedError(f"has statistics of shape {scale.shape} for {channels} channels")
    under_root = variance + float(call.attributes.get("epsilon", 1e-5))
    if np.any(under_root <= 0):
        raise UnsupportedError("has a variance + epsilon that is not positive")
    factor = scale / np.sqrt(under_root)
    trailing = (1,) * max(len(tensor.shape) - 2, 0)

    def spread(entry: Float) -> Float:
        return np.broadcast_to(entry.reshape(-1, *trailing), tensor.shape)

    if mean.any():
        tensor = call.scaled(tensor, np.ones(tensor.shape), -spread(mean))
    if np.all(factor == 1.0) and not shift.any():
        return tensor
    return call.scaled(tensor, spread(factor), spread(shift))


LOWERINGS: Mapping[str, Lowering] = {"BatchNormalization": batch_normalization}
