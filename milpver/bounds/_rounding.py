"""Outward rounding of sums of products in float64.

Standard model (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1): a sum of n
products, in any order, with or without fused multiply-add, satisfies

    |fl(sum a_i b_i) - sum a_i b_i| <= gamma_n sum |a_i b_i|,   gamma_n = n u / (1 - n u),  u = 2^-53,

barring underflow, which adds at most 2^-1074 a product. The sum of absolute values is itself computed, so
its own error is covered by doubling n.
"""

from __future__ import annotations

import torch

from milpver.rounding import gamma

__all__ = ["gamma", "outward", "sum_error"]

_TINY = 2.0**-1022


def sum_error(magnitude: torch.Tensor, terms: int) -> torch.Tensor:
    """Bound of the error of a sum of ``terms`` products whose computed sum of magnitudes is given.

    Args:
        magnitude: fl(sum |a_i b_i|), float64, >= 0.
        terms: number of products, one more for every further rounding on the way.
    """
    return magnitude * gamma(2 * terms + 6) + (terms + 1) * _TINY


def outward(
    lower: torch.Tensor, upper: torch.Tensor, error: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[lower - error, upper + error]``, each rounded outward; NaN (inf - inf) becomes no bound."""
    infinity = torch.full((), float("inf"), dtype=lower.dtype, device=lower.device)
    low = torch.nextafter(lower - error, -infinity)
    high = torch.nextafter(upper + error, infinity)
    return torch.nan_to_num(low, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), torch.nan_to_num(
        high, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf
    )
