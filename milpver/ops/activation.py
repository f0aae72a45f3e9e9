"""Activations, each with the gate of the fully connected layer in front of it; softmax at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from milpver.linear import Float, diagonal, identity
from milpver.op import BatchError, Call, InvalidWeightsError, Lowering, UnsupportedError, Value

__all__ = ["LOWERINGS"]


def relu(call: Call) -> Value:
    """``max(x, 0)``."""
    if call.folds:
        return call.folded(np.maximum(call.constant(0).array, 0))
    tensor = call.tensor(0)
    return call.activated(tensor, call.builder.relu(tensor.node, call.name))


def leaky_relu(call: Call) -> Value:
    """``a x + (1 - a) max(x, 0)``."""
    tensor = call.tensor(0)
    alpha = float(call.attributes.get("alpha", 0.01))
    if not np.isfinite(alpha):
        raise InvalidWeightsError(f"alpha is {alpha}")
    if alpha == 1.0:
        return call.activated(tensor, tensor.node)
    positive = call.builder.relu(tensor.node, f"{call.name}/relu")
    if alpha == 0.0:
        return call.activated(tensor, positive)
    size = tensor.size
    terms = (
        (tensor.node, diagonal(np.full(size, alpha))),
        (positive, diagonal(np.full(size, 1.0 - alpha))),
    )
    return call.activated(tensor, call.builder.affine(terms, np.zeros(size), call.name))


def clip(call: Call) -> Value:
    """``min(max(x, lo), hi)`` as ``y = lo + max(x - lo, 0)``, then ``hi - max(hi - y, 0)``."""
    lowest, highest = _bound(call, 1, "min", -np.inf), _bound(call, 2, "max", np.inf)
    if call.folds:
        array = call.constant(0).array
        return call.folded(np.minimum(np.maximum(array, lowest), highest).astype(array.dtype))
    tensor = call.tensor(0)
    if lowest == np.inf or highest == -np.inf:
        raise InvalidWeightsError(f"its bounds are {lowest} and {highest}")
    if lowest == -np.inf and highest == np.inf:
        return tensor
    node, size = tensor.node, tensor.size
    if lowest > -np.inf:
        node = _from(call, node, size, sign=1.0, edge=lowest)
    if highest < np.inf:
        node = _from(call, node, size, sign=-1.0, edge=highest)
    return call.activated(tensor, node)


def _from(call: Call, node: int, size: int, sign: float, edge: float) -> int:
    """``edge + sign * max(sign * (x - edge), 0)``."""
    unit = identity(size) if sign > 0 else diagonal(np.full(size, -1.0))
    shift: Float = np.full(size, edge)
    distance = call.builder.affine(((node, unit),), -sign * shift, f"{call.name}/distance")
    positive = call.builder.relu(distance, f"{call.name}/relu")
    return call.builder.affine(((positive, unit),), shift, call.name)


def _bound(call: Call, position: int, attribute: str, default: float) -> float:
    """One bound of Clip, from an attribute (opsets before 11) or an input.

    What lies beyond the largest number of the tensor's type bounds nothing.
    """
    if attribute in call.attributes:
        value, kind = float(call.attributes[attribute]), np.dtype(np.float32)
    elif call.has(position):
        constant = call.constant(position)
        if constant.array.size != 1 or constant.batch:
            raise UnsupportedError(f"its {attribute} is no single number")
        value, kind = float(constant.array.reshape(-1)[0]), constant.array.dtype
    else:
        return default
    if np.isnan(value):
        raise InvalidWeightsError(f"its {attribute} is nan")
    bounds_nothing = np.issubdtype(kind, np.floating) and abs(value) >= float(np.finfo(kind).max)
    return default if bounds_nothing and np.sign(value) == np.sign(default) else value


def softmax(call: Call) -> Value:
    """Nothing: argmax is that of the logits, so it is dropped, where it normalises a whole output at once."""
    tensor = call.tensor(0)
    rank = len(tensor.shape)
    if call.opset >= 13:
        axis = call.axis(call.number("axis", -1), rank)
        normalised = tensor.shape[axis]
        along_batch = axis == 0
    else:
        axis = call.axis(call.number("axis", 1), rank) if rank > 1 else 0
        normalised = int(np.prod(tensor.shape[axis:]))
        along_batch = axis == 0
    if call.batch is not None and along_batch:
        raise BatchError("normalises along the batch axis")
    if normalised != tensor.size:
        raise UnsupportedError(
            f"normalises {normalised} of {tensor.size} outputs at a time (only one over all outputs is)"
        )
    if tensor.logits:
        raise UnsupportedError("follows another softmax")
    return replace(tensor, dense=False, logits=call.input_names[0])


LOWERINGS: Mapping[str, Lowering] = {
    "Clip": clip,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": softmax,
    "Relu": relu,
    "Softmax": softmax,
}
