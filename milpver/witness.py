"""Replays candidate witnesses: nothing becomes an upper bound that was not run through the real network.

A candidate (input, mask) comes from a solver, a search or an attack. It is checked against the box exactly
and against the budget in integers, evaluated in float64 by the IR, and, when it is to be reported, in
float32 by ONNX Runtime on the original file. One that fails is refused, loudly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from milpver.graph import Graph
from milpver.linear import Float
from milpver.network import Network
from milpver.query import Box, Budget
from milpver.replay import Replay, float32_error

__all__ = ["Float32Check", "RejectedWitnessError", "Witness", "check_float32", "evaluate"]


class RejectedWitnessError(Exception):
    """A candidate that lies outside of the box or the budget: its source cannot be trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class Witness:
    """A replayed point.

    Attributes:
        x: float64 [inputs], inside the exact box.
        removed: Gate node -> bool [gates], within the budget.
        logits: float64 [outputs], by the IR.
    """

    x: Float
    removed: Mapping[int, NDArray[np.bool_]]
    logits: Float

    def margins(self, label: int) -> Float:
        """``f_label - f_j`` for every j != label in order, float64 [outputs - 1]."""
        margins: Float = self.logits[label] - np.delete(self.logits, label)
        return margins


def evaluate(
    graph: Graph, box: Box, budget: Budget, x: Float, removed: Mapping[int, NDArray[np.bool_]]
) -> Witness:
    """Check a candidate against the box and the budget, and run it in float64.

    Raises:
        RejectedWitnessError: it lies outside, or its outputs are not finite.
    """
    if not box.contains(x):
        distance = float(np.maximum(box.inner_lower - x, x - box.inner_upper).max())
        raise RejectedWitnessError(f"a witness lies outside of the input box by {distance:.3g}")
    if not budget.admits(graph, removed):
        counts = {node: int(gone.sum()) for node, gone in removed.items()}
        raise RejectedWitnessError(f"a witness removes {counts} neurons (by node), which the budget forbids")
    logits = graph.evaluate(x[None], removed)[0]
    if not np.all(np.isfinite(logits)):
        raise RejectedWitnessError("a witness gives outputs that are not finite")
    return Witness(x, removed, logits)


@dataclass(frozen=True, eq=False)
class Float32Check:
    """A witness in float32.

    Attributes:
        network: the network.
        witness: the point in float64.
        x: the float32 input, inside the exact box, float32 [inputs].
        logits: by ONNX Runtime on the original file with the mask applied, float32 [outputs].
    """

    network: Network
    witness: Witness
    x: NDArray[np.float32]
    logits: NDArray[np.float32]

    @cached_property
    def error(self) -> Float:
        """Bound on how far ``logits`` may lie from those of the float64 witness, float64 [outputs].

        It takes longer than the run itself, and is seldom asked for.
        """
        exact = self.witness.x
        shift = np.abs(self.x.astype(np.float64) - exact)
        found = float32_error(self.network, exact[None], self.witness.removed, input_error=shift[None])
        error: Float = found[0]
        return error

    def margin(self, label: int, target: int) -> float:
        """``f_label - f_target`` in float32."""
        return float(self.logits[label]) - float(self.logits[target])

    def margin_error(self, label: int, target: int) -> float:
        """Bound on how far ``margin`` may lie from the float64 one."""
        return float(self.error[label] + self.error[target])


def check_float32(network: Network, replay: Replay, box: Box, witness: Witness) -> Float32Check:
    """Run a witness in float32 on the original file."""
    x32 = box.clip_float32(witness.x)
    return Float32Check(network, witness, x32, replay.outputs(x32[None], witness.removed)[0])
