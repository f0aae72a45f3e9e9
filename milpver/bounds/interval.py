"""Interval bounds that ignore the budget: what the papers' programs are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from milpver.bounding import Bounds
from milpver.bounds._interval import interval_bounds
from milpver.bounds._tensors import TensorGraph, pick_device
from milpver.bounds._workspace import Workspace
from milpver.graph import Graph
from milpver.linear import Float
from milpver.query import Budget


@dataclass(frozen=True)
class Interval:
    """Interval arithmetic; with ``aware`` rows count at most s removals a budget group."""

    name: str
    aware: bool

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
        """See ``milpver.bounding.Bounding``; there is nothing to leave out in a hurry."""
        del hurry
        tensors = TensorGraph(graph, pick_device(device))
        workspace = Workspace(tensors, budget, aware=self.aware)
        return interval_bounds(workspace, tensors.tensor(lower), tensors.tensor(upper), tensors.tensor(rows))


BOUNDING = Interval("interval", aware=False)
