"""CROWN: linear bounds through ReLU, pooling and gates, with the first slopes and multipliers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from milpver.bounding import Bounds
from milpver.bounds._crown import crown_bounds
from milpver.bounds._interval import as_bounds
from milpver.bounds._tensors import TensorGraph, pick_device
from milpver.bounds._workspace import Workspace
from milpver.graph import Graph
from milpver.linear import Float
from milpver.query import Budget


@dataclass(frozen=True)
class Crown:
    """Backward linear bounds, optimised by ``steps`` of ascent on alpha and lambda a bound.

    Attributes:
        name: as asked for.
        steps: ascent steps for intermediate neurons.
        row_steps: ascent steps for the rows over the output.
    """

    name: str
    steps: int
    row_steps: int

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
        """See ``milpver.bounding.Bounding``; in a hurry, intervals for nodes and no ascent."""
        tensors = TensorGraph(graph, pick_device(device))
        workspace = Workspace(tensors, budget, point=bool(np.array_equal(lower, upper)), hurry=hurry)
        found, _ = crown_bounds(
            workspace,
            tensors.tensor(lower),
            tensors.tensor(upper),
            tensors.tensor(rows),
            steps=self.steps,
            row_steps=self.row_steps,
        )
        return as_bounds(workspace, found)


BOUNDING = Crown("crown", steps=0, row_steps=0)
