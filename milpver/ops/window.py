"""Where the windows of a convolution or a pooling stand: one axis at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from milpver.linear import Int
from milpver.op import Call, UnsupportedError, check_size

__all__ = ["Axis", "geometry", "windows"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis.

    Attributes:
        size: entries of the input along it.
        window: entries of the kernel.
        stride, dilation: steps of the window, and between its entries.
        before, after: padding.
        count: number of windows.
    """

    size: int
    window: int
    stride: int
    dilation: int
    before: int
    after: int
    count: int

    def unit(self) -> Axis:
        """An axis of one entry and one window, for an image of height 1."""
        return Axis(1, 1, 1, 1, 0, 0, 1)

    @property
    def places(self) -> Int:
        """Where each window's entries lie, int64 [count, window]; before 0 or past the end: padding."""
        starts = np.arange(self.count) * self.stride - self.before
        return np.asarray(starts[:, None] + np.arange(self.window) * self.dilation, dtype=np.int64)


def geometry(call: Call, sizes: Sequence[int], window: Sequence[int]) -> tuple[Axis, ...]:
    """The spatial axes from strides, pads, auto_pad, dilations and ceil_mode.

    Args:
        call: the node.
        sizes: the input's spatial shape.
        window: the kernel's.

    Raises:
        UnsupportedError: attributes of the wrong length or sign, or windows larger than the padded input.
    """
    rank = len(sizes)
    strides = _per_axis(call, "strides", rank, [1] * rank, lowest=1)
    dilations = _per_axis(call, "dilations", rank, [1] * rank, lowest=1)
    pads = _per_axis(call, "pads", 2 * rank, [0] * (2 * rank), lowest=0)
    auto = call.text("auto_pad", "NOTSET") or "NOTSET"
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedError(f"has auto_pad = {auto}")
    if auto != "NOTSET" and any(pads):
        raise UnsupportedError(f"has both auto_pad = {auto} and pads = {pads}")
    if auto.startswith("SAME") and max(dilations) > 1:
        raise UnsupportedError(f"has auto_pad = {auto} with dilations, which runtimes read in different ways")
    ceil = bool(call.number("ceil_mode", 0))
    axes = []
    for i, (size, width) in enumerate(zip(sizes, window, strict=True)):
        stride, dilation = strides[i], dilations[i]
        reach = dilation * (width - 1) + 1
        before, after = pads[i], pads[rank + i]
        if auto.startswith("SAME"):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            small, large = total // 2, total - total // 2
            before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
        room = size + before + after - reach
        if room < 0 or width < 1:
            raise UnsupportedError(f"has a window of {reach} on {size + before + after} padded entries")
        count = room // stride + 1
        # a window that rounding up adds counts only where it starts inside the input or the padding before it
        if ceil and room % stride and auto == "VALID":
            raise UnsupportedError("has auto_pad = VALID with ceil_mode, which runtimes read differently")
        if ceil and room % stride and count * stride < size + before:
            count += 1
        axes.append(Axis(size, width, stride, dilation, before, after, count))
    check_size(math.prod(axis.count * axis.window for axis in axes))
    check_size(math.prod(axis.before + axis.size + axis.after for axis in axes))
    return tuple(axes)


def _per_axis(call: Call, name: str, length: int, default: list[int], lowest: int) -> list[int]:
    """An attribute with one integer an axis."""
    values = [int(entry) for entry in call.attributes.get(name, default)]
    if len(values) != length or min(values, default=lowest) < lowest:
        raise UnsupportedError(f"has {name} = {values}, which should be {length} numbers >= {lowest}")
    return values


def windows(axes: Sequence[Axis], padded: bool = False) -> tuple[Int, Int]:
    """The windows over a grid.

    Args:
        axes: its axes.
        padded: count what lies in the padding as part of a window too.

    Returns:
        int64 [windows, entries]: the flat index of every entry of every window, -1 outside of the input;
        int64 [windows]: how many entries count (inside of the input, or of the padded input).
    """
    rank = len(axes)
    flat = np.zeros((1,) * (2 * rank), dtype=np.int64)
    inside = np.ones((1,) * (2 * rank), dtype=bool)
    counted = np.ones((1,) * (2 * rank), dtype=bool)
    for i, axis in enumerate(axes):
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = axis.count, axis.window
        places = axis.places.reshape(shape)
        flat = flat * axis.size + places
        inside = inside & (places >= 0) & (places < axis.size)
        counted = counted & (places >= -axis.before) & (places < axis.size + axis.after)
    outer = int(np.prod([axis.count for axis in axes]))
    found = np.where(inside, flat, -1).reshape(outer, -1)
    weight = np.broadcast_to(counted if padded else inside, flat.shape).reshape(outer, -1)
    return found, weight.sum(axis=1)
