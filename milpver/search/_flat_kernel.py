"""The passes over coefficients in ``_flat``, each compiled to one loop.

torch goes through memory a dozen times for them. Rows are float64 [rows, size], each of one box of a batch.
What comes out is what ``_flat.Passes`` gives, sums in another order: the rounding bounds hold for any.
"""

from __future__ import annotations

import torch

from milpver.linear import Float, Int
from milpver.search._compile import compiled
from milpver.search._flat import Passes

__all__ = ["CompiledPasses"]


class CompiledPasses(Passes):
    """See ``Passes``."""

    #: A call costs more than leaving the cache.
    chunk = 1 << 19

    def weighed(
        self, c: torch.Tensor, charge: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See ``Passes``."""
        error, added = c.new_empty(len(c)), c.new_empty(len(c))
        _weighed(
            _array(c), _array(charge), _array(charge if bias is None else bias), _array(error), _array(added)
        )
        return error, None if bias is None else added

    def least(
        self, c: torch.Tensor, owner: torch.Tensor, box: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """See ``Passes``."""
        added = c.new_empty(len(c))
        at = owner if len(box[0]) > 1 else torch.zeros_like(owner)
        _least(_array(c), at.numpy(), _array(box[0]), _array(box[1]), _array(added))
        return added

    def through_relu(
        self, c: torch.Tensor, owner: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Passes``."""
        out, added = torch.empty(c.shape, dtype=c.dtype), c.new_empty(len(c))
        _through_relu(_array(c), owner.numpy(), _array(table), _array(out), _array(added))
        return out, added


def _array(values: torch.Tensor) -> Float:
    """The array a tensor stands for, in rows one after the other."""
    found: Float = values.contiguous().numpy()
    return found


@compiled
def _through_relu(c: Float, owner: Int, table: Float, out: Float, added: Float) -> None:
    """Coefficients before a ReLU from those behind it, and what goes to the constant; both filled in."""
    size = c.shape[1]
    for r in range(c.shape[0]):
        lines = table[owner[r]]
        total = 0.0
        for i in range(size):
            value = c[r, i]
            down = min(value, 0.0)
            out[r, i] = (value - down) * lines[i] + down * lines[size + i]
            total += down * lines[2 * size + i]
        added[r] = total


@compiled
def _weighed(c: Float, charge: Float, bias: Float, error: Float, added: Float) -> None:
    """``|c| @ charge`` and ``c @ bias``, both filled in."""
    for r in range(c.shape[0]):
        sizes = 0.0
        total = 0.0
        for i in range(c.shape[1]):
            sizes += abs(c[r, i]) * charge[i]
            total += c[r, i] * bias[i]
        error[r] = sizes
        added[r] = total


@compiled
def _least(c: Float, owner: Int, lower: Float, upper: Float, added: Float) -> None:
    """The minimum of ``c x`` over each row's box, filled in."""
    for r in range(c.shape[0]):
        low, high = lower[owner[r]], upper[owner[r]]
        total = 0.0
        for i in range(c.shape[1]):
            value = c[r, i]
            total += max(value, 0.0) * low[i] + min(value, 0.0) * high[i]
        added[r] = total
