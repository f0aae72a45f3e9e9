"""The contract of a bounding method: sound bounds on every node, and on rows over the output.

A method is one file in ``bounds/`` with a ``BOUNDING`` object. Every number it returns is rounded outward:
the exact value, in rational arithmetic over the graph's float64 coefficients, lies within.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from milpver.graph import Graph
from milpver.linear import Float
from milpver.query import Budget

__all__ = ["Bounding", "Bounds", "margin_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """Bounds of a batch of boxes.

    Attributes:
        lower, upper: one a node of the graph, float64 [batch, size]; a Gate's are those of its output.
        rows_lower: lower bounds of the rows over the output, float64 [batch, rows].
    """

    lower: tuple[Float, ...]
    upper: tuple[Float, ...]
    rows_lower: Float

    def of(self, index: int) -> Bounds:
        """The bounds of one box of the batch, as a batch of one."""
        pick = slice(index, index + 1)
        return Bounds(
            tuple(part[pick] for part in self.lower),
            tuple(part[pick] for part in self.upper),
            self.rows_lower[pick],
        )


class Bounding(Protocol):
    """A bounding method."""

    @property
    def name(self) -> str:
        """The name it is asked for by, e.g. ``budget``."""

    def bound(
        self,
        graph: Graph,
        lower: Float,
        upper: Float,
        budget: Budget,
        rows: Float,
        device: str,
        *,
        hurry: Callable[[], bool] | None = None,
    ) -> Bounds:
        """Bound every node and the rows over the output.

        Args:
            graph: the network.
            lower, upper: the boxes, float64 [batch, inputs]; infinities allowed.
            budget: the admissible masks, the same for the whole batch.
            rows: C, float64 [batch, rows, outputs]: bounds of ``C y`` are asked for, y the output.
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            hurry: asked now and then; once True, what is left is bounded as cheaply as can be.

        Raises:
            QueryError: "cuda" where there is none.
        """


def margin_rows(labels: tuple[int, ...], outputs: int) -> Float:
    """The rows ``f_label - f_j`` for every j != label in order, float64 [batch, outputs - 1, outputs]."""
    eye = np.eye(outputs)
    return np.stack([eye[label] - np.delete(eye, label, axis=0) for label in labels])


def other_classes(labels: NDArray[np.int64], outputs: int) -> NDArray[np.int64]:
    """Every j != label in order, int64 [batch, outputs - 1]."""
    classes = np.arange(outputs - 1)
    others: NDArray[np.int64] = classes + (classes >= labels[:, None])
    return others


def label_margins(logits: Float, labels: NDArray[np.int64]) -> Float:
    """``f_label - f_j`` for every j != label in order, under several masks.

    Args:
        logits: float64 [batch, masks, outputs].
        labels: int64 [batch].

    Returns:
        float64 [batch, masks, outputs - 1].
    """
    others = other_classes(labels, logits.shape[2])[:, None, :]
    found: Float = np.take_along_axis(logits, labels[:, None, None], axis=2)
    return found - np.take_along_axis(logits, others, axis=2)
