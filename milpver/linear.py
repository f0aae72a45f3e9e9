"""Linear maps between flat vectors: dense, sparse and convolution.

They are the only linear things in the IR; a layer's tensor is a flat vector in row-major order without its
batch dimension. Each map applies itself in float64 and gives its matrix as CSR; the exact meaning of a
network is the rational arithmetic of these float64 coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

__all__ = [
    "Conv",
    "Dense",
    "Float",
    "Int",
    "LinearMap",
    "Sparse",
    "diagonal",
    "identity",
    "magnitude",
    "selection",
]

Float: TypeAlias = NDArray[np.float64]
Int: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Dense:
    """``y = W x`` with a dense ``weight`` W, float64 [outputs, inputs]."""

    weight: Float

    @property
    def outputs(self) -> int:
        """Length of y."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Length of x."""
        return int(self.weight.shape[1])

    @property
    def row_terms(self) -> int:
        """The largest number of products summed for one output (the n of gamma_n)."""
        return self.inputs

    def apply(self, x: Float) -> Float:
        """Map a batch, float64 [batch, inputs] -> [batch, outputs]."""
        y: Float = x @ self.weight.T
        return y

    def adjoint(self, g: Float) -> Float:
        """Map rows back, ``g W``, float64 [batch, outputs] -> [batch, inputs]."""
        x: Float = g @ self.weight
        return x

    @cached_property
    def csr(self) -> sparse.csr_array:
        """The matrix, float64 [outputs, inputs]."""
        return sparse.csr_array(self.weight)


@dataclass(frozen=True, eq=False)
class Sparse:
    """``y = A x`` with a sparse ``matrix`` A, float64 [outputs, inputs] (pooling, selection, scaling)."""

    matrix: sparse.csr_array

    @property
    def outputs(self) -> int:
        """Length of y."""
        return int(self.matrix.shape[0])

    @property
    def inputs(self) -> int:
        """Length of x."""
        return int(self.matrix.shape[1])

    @cached_property
    def row_terms(self) -> int:
        """The largest number of products summed for one output (the n of gamma_n)."""
        return int(np.diff(self.matrix.indptr).max(initial=0))

    def apply(self, x: Float) -> Float:
        """Map a batch, float64 [batch, inputs] -> [batch, outputs]."""
        return np.ascontiguousarray((self.matrix @ x.T).T)

    def adjoint(self, g: Float) -> Float:
        """Map rows back, ``g A``, float64 [batch, outputs] -> [batch, inputs]."""
        return np.ascontiguousarray((self.matrix.T @ g.T).T)

    @property
    def csr(self) -> sparse.csr_array:
        """The matrix, float64 [outputs, inputs]."""
        return self.matrix


@dataclass(frozen=True, eq=False)
class Conv:
    """Two-dimensional cross-correlation, as ONNX Conv has it (a 1-d convolution has height 1).

    ``y[o, i, j] = sum_{c, p, q} K[o, c, p, q] x[g(o) + c, s_h i + d_h p - top, s_w j + d_w q - left]``,
    x being zero outside of its image and g(o) the first channel of o's group.

    Attributes:
        kernel: K, float64 [channels out, channels in / groups, height, width].
        shape: (channels in, height, width) of x.
        strides: (s_h, s_w).
        pads: (top, left, bottom, right), all >= 0.
        dilations: (d_h, d_w).
        groups: number of channel groups.
    """

    kernel: Float
    shape: tuple[int, int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @cached_property
    def out_shape(self) -> tuple[int, int, int]:
        """(channels out, height, width) of y."""
        _, height, width = self.shape
        top, left, bottom, right = self.pads
        reach_h = self.dilations[0] * (self.kernel.shape[2] - 1) + 1
        reach_w = self.dilations[1] * (self.kernel.shape[3] - 1) + 1
        rows = (height + top + bottom - reach_h) // self.strides[0] + 1
        columns = (width + left + right - reach_w) // self.strides[1] + 1
        return int(self.kernel.shape[0]), rows, columns

    @property
    def outputs(self) -> int:
        """Length of the flattened y."""
        return int(np.prod(self.out_shape))

    @property
    def inputs(self) -> int:
        """Length of the flattened x."""
        return int(np.prod(self.shape))

    @property
    def row_terms(self) -> int:
        """The largest number of products summed for one output (the n of gamma_n)."""
        return int(np.prod(self.kernel.shape[1:]))

    def apply(self, x: Float) -> Float:
        """Map a batch, float64 [batch, inputs] -> [batch, outputs]."""
        top, left, bottom, right = self.pads
        images = np.pad(x.reshape(len(x), *self.shape), ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel.shape[2:], strict=True))
        windows = np.lib.stride_tricks.sliding_window_view(images, reach, axis=(2, 3))
        windows = windows[
            :, :, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]
        ]
        per_group = np.split(windows, self.groups, axis=1)
        kernels = np.split(self.kernel, self.groups, axis=0)
        parts = [
            np.tensordot(window, kernel, axes=([1, 4, 5], [1, 2, 3]))
            for window, kernel in zip(per_group, kernels, strict=True)
        ]
        return np.ascontiguousarray(np.concatenate(parts, axis=3).transpose(0, 3, 1, 2)).reshape(
            len(x), self.outputs
        )

    def adjoint(self, g: Float) -> Float:
        """Map rows back, ``g K``, float64 [batch, outputs] -> [batch, inputs]."""
        return np.ascontiguousarray((self.csr.T @ g.T).T)

    @cached_property
    def csr(self) -> sparse.csr_array:
        """The matrix, float64 [outputs, inputs]."""
        channels, rows, columns = self.out_shape
        _, height, width = self.shape
        per_group = channels // self.groups
        o, c, p, q, i, j = np.meshgrid(
            np.arange(channels),
            *(np.arange(n) for n in self.kernel.shape[1:]),
            np.arange(rows),
            np.arange(columns),
            indexing="ij",
            sparse=True,
        )
        row_in = self.strides[0] * i + self.dilations[0] * p - self.pads[0]
        column_in = self.strides[1] * j + self.dilations[1] * q - self.pads[1]
        inside = (row_in >= 0) & (row_in < height) & (column_in >= 0) & (column_in < width)
        channel_in = (o // per_group) * self.kernel.shape[1] + c
        full = np.broadcast_shapes(o.shape, c.shape, inside.shape)
        inside = np.broadcast_to(inside, full)
        target = np.broadcast_to((o * rows + i) * columns + j, full)[inside]
        source = np.broadcast_to((channel_in * height + row_in) * width + column_in, full)[inside]
        values = np.broadcast_to(self.kernel[:, :, :, :, None, None], full)[inside]
        matrix = sparse.csr_array((values, (target, source)), shape=(self.outputs, self.inputs))
        matrix.eliminate_zeros()
        return matrix


LinearMap: TypeAlias = Dense | Sparse | Conv


def identity(size: int) -> Sparse:
    """``y = x``."""
    return diagonal(np.ones(size))


def diagonal(scale: Float) -> Sparse:
    """``y = scale * x``, scale float64 [size]."""
    return Sparse(sparse.csr_array(sparse.diags_array(np.asarray(scale, dtype=np.float64))))


def magnitude(linear: LinearMap) -> LinearMap:
    """``|M|``: the map of the coefficients' absolute values, for bounds on rounding errors."""
    match linear:
        case Dense():
            return Dense(np.abs(linear.weight))
        case Sparse():
            return Sparse(abs(linear.matrix))
        case Conv():
            return replace(linear, kernel=np.abs(linear.kernel))


def selection(indices: Int, inputs: int) -> Sparse:
    """``y[i] = x[indices[i]]``, and 0 where an index is -1 (padding).

    Args:
        indices: int64 [outputs], each in -1..inputs-1.
        inputs: length of x.
    """
    picked = np.flatnonzero(indices >= 0)
    matrix = sparse.csr_array(
        (np.ones(len(picked)), (picked, indices[picked])), shape=(len(indices), inputs), dtype=np.float64
    )
    return Sparse(matrix)
