"""What a search is given, when it has to stop, and what it proved by then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from milpver.linear import Float
from milpver.solver import Stop

__all__ = ["OfferInputs", "SearchLimits", "SearchResult"]

#: Offers candidate inputs, float64 [n, inputs], with masks (Gate node -> bool [n, gates]; {}: none removed);
#: returns the smallest value known of each alternative, float64 [alternatives], from replayed points.
OfferInputs = Callable[[Float, Mapping[int, NDArray[np.bool_]]], Float]


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """When to stop.

    Attributes:
        gap: a class is closed where its lower bound is within this of the smallest margin found.
        decide: only the sign of the smallest margin matters.
        memory: bytes that open nodes may take before the search goes depth first.
        expired: asked once a batch; the reason to stop now, or None.
    """

    gap: float
    decide: bool
    memory: int
    expired: Callable[[], Stop | None]


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What the search proved.

    Attributes:
        lower: proven lower bound of each row's minimum, float64 [rows].
        root: the same before branching; -inf where a first attack has decided the sign.
        nodes: nodes bounded.
        stop: OPTIMAL, TARGET (the sign is decided), or why the search ended before.
    """

    lower: Float
    root: Float
    nodes: int
    stop: Stop
