"""The graph's linear maps as torch operators in float64, split by sign for interval arithmetic.

No TF32 (float64 has none) and no FFT or Winograd convolution: cuDNN is switched off around convolutions,
so that every output is a plain sum of products and the rounding bound of ``_rounding`` holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.grad import conv2d_input

from milpver.errors import QueryError
from milpver.graph import Affine, Graph
from milpver.linear import Conv, Dense, LinearMap, Sparse

__all__ = ["Operator", "TensorGraph", "pick_device"]


def pick_device(name: str) -> torch.device:
    """The torch device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        QueryError: ``cuda`` where torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise QueryError(
            "--device cuda, but torch sees no CUDA GPU",
            needed="a CUDA build of torch and a GPU",
            fix="use --device cpu, or install a CUDA build of torch",
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class Operator:
    """One linear map on a device.

    ``forward(x, sign)`` applies M (sign 0), its positive part max(M, 0) (sign 1), its negative part
    min(M, 0) (sign -1) or |M| (sign 2).
    """

    linear: LinearMap
    device: torch.device

    @cached_property
    def weight(self) -> torch.Tensor:
        """The coefficients: dense matrix, convolution kernel, or the entries of a sparse matrix."""
        match self.linear:
            case Dense():
                return torch.as_tensor(np.ascontiguousarray(self.linear.weight), device=self.device)
            case Conv():
                return torch.as_tensor(np.ascontiguousarray(self.linear.kernel), device=self.device)
            case Sparse():
                return torch.as_tensor(np.ascontiguousarray(self.linear.matrix.data), device=self.device)

    @cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of every entry of a sparse matrix, int64 [entries]."""
        matrix = self.linear.csr
        rows = np.repeat(np.arange(self.linear.outputs), np.diff(matrix.indptr))
        columns = matrix.indices.astype(np.int64)
        return torch.as_tensor(rows, device=self.device), torch.as_tensor(columns, device=self.device)

    @cached_property
    def positive(self) -> torch.Tensor:
        """max(M, 0)."""
        return _part(self.weight, 1)

    @cached_property
    def negative(self) -> torch.Tensor:
        """min(M, 0)."""
        return _part(self.weight, -1)

    @cached_property
    def absolute(self) -> torch.Tensor:
        """|M|."""
        return _part(self.weight, 2)

    def forward(self, x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """``M x`` for a batch, float64 [batch, inputs] -> [batch, outputs]; ``weight`` one of the parts."""
        weight = self.weight if weight is None else weight
        match self.linear:
            case Dense():
                return x @ weight.T
            case Sparse():
                rows, columns = self._places
                return _gathered(x, weight, columns, rows, self.linear.outputs)
            case Conv():
                return self._convolve(x, weight, self.linear)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, conv: Conv) -> torch.Tensor:
        top, left, bottom, right = conv.pads
        images = torch.nn.functional.pad(x.reshape(-1, *conv.shape), (left, right, top, bottom))
        with torch.backends.cudnn.flags(enabled=False):
            y = torch.nn.functional.conv2d(
                images, weight, stride=conv.strides, dilation=conv.dilations, groups=conv.groups
            )
        return y.reshape(len(x), -1)

    def adjoint(self, g: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """``g M`` for rows, float64 [..., outputs] -> [..., inputs]; ``weight`` one of the parts."""
        weight = self.weight if weight is None else weight
        flat = g.reshape(-1, g.shape[-1])
        match self.linear:
            case Dense():
                x = flat @ weight
            case Sparse():
                rows, columns = self._places
                x = _gathered(flat, weight, rows, columns, self.linear.inputs)
            case Conv():
                x = self._correlate_back(flat, weight, self.linear)
        return x.reshape(*g.shape[:-1], self.linear.inputs)

    def _correlate_back(self, g: torch.Tensor, weight: torch.Tensor, conv: Conv) -> torch.Tensor:
        channels, height, width = conv.shape
        top, left, bottom, right = conv.pads
        padded = [len(g), channels, height + top + bottom, width + left + right]
        with torch.backends.cudnn.flags(enabled=False):
            x: torch.Tensor = conv2d_input(  # type: ignore[no-untyped-call]  # torch gives no types
                padded,
                weight,
                g.reshape(-1, *conv.out_shape),
                stride=conv.strides,
                dilation=conv.dilations,
                groups=conv.groups,
            )
        inside = x[:, :, top : top + height, left : left + width]
        return inside.reshape(len(g), -1)

    @cached_property
    def dense(self) -> torch.Tensor:
        """The whole matrix, float64 [outputs, inputs]."""
        if isinstance(self.linear, Dense):
            return self.weight
        return torch.as_tensor(self.linear.csr.toarray(), device=self.device)

    @property
    def row_terms(self) -> int:
        """Products in one output."""
        return self.linear.row_terms

    @cached_property
    def column_terms(self) -> int:
        """Products in one entry of ``g M``."""
        if isinstance(self.linear, Dense):
            return self.linear.outputs
        return int(np.bincount(self.linear.csr.indices, minlength=1).max(initial=0))

    def interval(
        self, lower: torch.Tensor, upper: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Interval product: lower, upper and sum of magnitudes of ``M x`` for x in [lower, upper].

        ``lower = M+ l + M- u``, ``upper = M+ u + M- l``, ``magnitude = |M| max(|l|, |u|)``; not rounded
        outward yet. Shapes float64 [batch, inputs] -> [batch, outputs].
        """
        magnitude = self.forward(torch.maximum(lower.abs(), upper.abs()), self.absolute)
        low = self.forward(lower, self.positive) + self.forward(upper, self.negative)
        high = self.forward(upper, self.positive) + self.forward(lower, self.negative)
        return low, high, magnitude


def _part(values: torch.Tensor, sign: int) -> torch.Tensor:
    """The positive (1), negative (-1) or absolute (2) part."""
    if sign == 1:
        return values.clamp(min=0.0)
    if sign == -1:
        return values.clamp(max=0.0)
    return values.abs()


def _gathered(
    x: torch.Tensor, weight: torch.Tensor, source: torch.Tensor, target: torch.Tensor, size: int
) -> torch.Tensor:
    """``y[:, target[e]] += weight[e] x[:, source[e]]``: torch's sparse matrices lack transposed products.

    Shapes float64 [batch, n] -> [batch, size]; one rounding a product and one a sum.
    """
    sums = torch.zeros(len(x), size, dtype=x.dtype, device=x.device)
    return sums.index_add(1, target, x[:, source] * weight)


@dataclass(frozen=True, eq=False)
class TensorGraph:
    """A graph with its operators and constants on a device; built once, used for every batch."""

    graph: Graph
    device: torch.device

    @cached_property
    def operators(self) -> dict[int, tuple[Operator, ...]]:
        """For each Affine node the operators of its terms, in order."""
        return {
            index: tuple(Operator(linear, self.device) for _, linear in node.terms)
            for index, node in enumerate(self.graph.nodes)
            if isinstance(node, Affine)
        }

    @cached_property
    def biases(self) -> dict[int, torch.Tensor]:
        """For each Affine node its bias, float64 [size]."""
        return {
            index: torch.as_tensor(np.ascontiguousarray(node.bias), device=self.device)
            for index, node in enumerate(self.graph.nodes)
            if isinstance(node, Affine)
        }

    def tensor(self, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> torch.Tensor:
        """An array on the device (a copy)."""
        return torch.tensor(values, device=self.device)
