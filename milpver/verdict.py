"""Verdicts: the bracket, why the run stopped, what the bounds rest on, and when a verdict may be given.

Fail closed: ``robust`` and ``vulnerable`` are given by ``judge`` alone, from proven bounds and replayed
witnesses; anything else is ``unknown``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.graph import Masks
from milpver.linear import Float

__all__ = [
    "RECORD_FIELDS",
    "SCHEMA_VERSION",
    "SOLVER_TOLERANCE",
    "Answer",
    "Assurance",
    "ClassBracket",
    "Float32Margin",
    "LayerBracket",
    "Status",
    "Verdict",
    "judge",
]

#: Version of the record layout below.
SCHEMA_VERSION = 1

#: A margin's lower bound from a solver proves robustness only above this, times the margin's scale.
SOLVER_TOLERANCE = 1e-6


class Status(StrEnum):
    """Why a run ended."""

    OPTIMAL = "optimal"
    """The bracket is closed within the gap."""
    DECIDED = "decided"
    """The sign of the margin is proven."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    INTERRUPTED = "interrupted"
    INFEASIBLE = "infeasible"
    """The query has no solution: no input of the domain reaches another class."""
    MISCLASSIFIED = "misclassified"
    UNAVAILABLE = "unavailable"
    ERROR = "error"


class Assurance(StrEnum):
    """What a lower bound rests on, the strongest first."""

    CLOSED_FORM = "closed-form"
    """One formula, rounded outward."""
    ROUNDED = "rounded"
    """Bound propagation or our own search, every step rounded outward."""
    SOLVER = "solver"
    """A MILP solver's dual bound, within its feasibility and integrality tolerances."""


class Answer(StrEnum):
    """The verdict on a margin query."""

    ROBUST = "robust"
    VULNERABLE = "vulnerable"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ClassBracket:
    """What is known of one competing class: ``lower <= worst f_label - f_target <= upper``.

    Attributes:
        target: the competing class.
        lower, upper: the bracket, None where nothing is known (distance: of the distance to that class).
        status: why work on this class ended.
    """

    target: int
    lower: float | None
    upper: float | None
    status: Status


@dataclass(frozen=True, slots=True)
class LayerBracket:
    """How many neurons of a layer have to go before the prediction changes.

    Attributes:
        layer: its number, ``conv1``, or ``total``.
        lower, upper: the bracket; upper None where no removal is known.
        status: why work on it ended; ``infeasible`` where no removal changes the prediction.
        removed: the mask that gives ``upper``, as in ``Verdict.removed``.
    """

    layer: int | str
    lower: int
    upper: int | None
    status: Status
    removed: tuple[tuple[int | str, int], ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """The answer to one question on one input; the fields of a record, and the witness itself.

    Attributes:
        schema_version, milpver, solver_version: of this layout, of milpver, of the solver.
        model_sha256: of the network's file.
        index: position of the input in its data file (0 for a single input).
        label, predicted: the class asked about, and the class predicted in float64 without removals.
        question: ``margin``, ``distance`` or ``pruning-distance`` (whose bracket is one of integers).
        budget: neurons removable a gateable layer, or what says more (``total:3``); None for a distance.
        radius: of the L-inf ball, in the data's units; None for a distance.
        domain: [lo, hi] limits of the inputs, or None.
        status, verdict, assurance: see the enumerations; a distance has no verdict.
        lower, upper: the bracket of the margin (or distance); None where nothing is known.
        target: competing class of the witness that gives ``upper``.
        removed: the witness's mask as (layer from 1 or ``conv1``, neuron or channel from 0) pairs; None
            without a witness.
        nodes: branch-and-bound nodes, all classes.
        seconds: wall-clock time, all classes.
        solver: the backend, or ``closed-form``, ``bounds`` or ``deviation`` where no search ran.
        encoding, bounds, gap, timeout, threads, seed: as asked.
        witness_margin_float64: margin of the witness, evaluated in float64 by the IR.
        witness_margin_float32: the same by ONNX Runtime in float32 on the original file.
        classes: a bracket for each competing class.
        norm, method, requested_target: distance only: ``linf``, ``l1`` or ``l2``; ``direct`` or ``bisect``;
            ``--target``.
        keep, remove: what had to stay and what was removed in every mask, as ``removed`` has it.
        requested_layers, total, layers: pruning distance only: ``--layers``, ``--total``, the bracket of each
            layer (or of all together).
        adversarial: distance only: the closest adversarial input found, flattened.
        adversarial_label: distance only: its class.
        message: one line on what went wrong, or "".
        witness: the witness's input, float64 [inputs], or None.
        witness_float32: the float32 input that ONNX Runtime was run on, or None.
        mask: the witness's mask, Gate node -> bool [gates].
    """

    schema_version: int
    milpver: str
    solver_version: str
    model_sha256: str
    index: int
    label: int
    predicted: int
    question: str
    budget: tuple[int, ...] | str | None
    radius: float | None
    domain: tuple[Any, Any] | None
    status: Status
    verdict: Answer | None
    assurance: Assurance | None
    lower: float | None
    upper: float | None
    target: int | None
    removed: tuple[tuple[int | str, int], ...] | None
    nodes: int
    seconds: float
    solver: str
    encoding: str
    bounds: str
    gap: float
    timeout: float
    threads: int
    seed: int
    witness_margin_float64: float | None
    witness_margin_float32: float | None
    classes: tuple[ClassBracket, ...]
    decide: bool | None = None
    norm: str | None = None
    method: str | None = None
    requested_target: int | None = None
    adversarial: tuple[float, ...] | None = None
    adversarial_label: int | None = None
    input_sha256: str = ""
    keep: tuple[tuple[int | str, int], ...] = ()
    remove: tuple[tuple[int | str, int], ...] = ()
    requested_layers: tuple[int | str, ...] | None = None
    total: bool | None = None
    layers: tuple[LayerBracket, ...] = ()
    message: str = ""
    witness: Float | None = None
    witness_float32: NDArray[np.float32] | None = None
    mask: Masks | None = None

    def record(self) -> dict[str, Any]:
        """The verdict as a JSON object: ``RECORD_FIELDS``, nulls for what is not known, no NaN."""
        return {name: _plain(getattr(self, name)) for name in RECORD_FIELDS}


#: Fields of a record, in order: all but the arrays of the witness.
RECORD_FIELDS: tuple[str, ...] = tuple(
    field.name for field in fields(Verdict) if field.name not in ("witness", "witness_float32", "mask")
)


def _plain(value: Any) -> Any:
    """A value as JSON has it; infinities and NaN become null."""
    if isinstance(value, (ClassBracket, LayerBracket)):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Float32Margin:
    """A witness's margin in float32, and how far rounding can have moved it.

    Attributes:
        margin: by ONNX Runtime on the original file.
        error: bound of its distance from the float64 margin of the same witness.
    """

    margin: float
    error: float


def judge(
    *,
    rounded: Float,
    solved: Float,
    scale: float,
    witness_margin: float | None,
    float32: Float32Margin | None,
) -> Answer:
    """The verdict that proven numbers allow.

    Args:
        rounded: lower bounds of every class's worst margin, rounded outward, float64 [classes].
        solved: the same on a solver's word, float64 [classes].
        scale: the margin's scale (largest |logit| met, at least 1), for the solver's tolerance.
        witness_margin: smallest margin of a replayed witness in float64, or None.
        float32: the same witness in float32, or None where it could not be replayed.

    Returns:
        ROBUST where every class's margin is proven > 0 (``rounded > 0``, or
        ``solved > SOLVER_TOLERANCE * scale``); VULNERABLE where a witness has a float64 margin <= 0.
        UNKNOWN otherwise: where both would hold, where a witness lies below what is proven, where the
        float32 margin lies on the other side of 0 by more than its rounding, and where any of them is NaN.
    """
    robust = bool(np.all((rounded > 0) | (solved > SOLVER_TOLERANCE * scale)))
    vulnerable = witness_margin is not None and witness_margin <= 0
    if robust == vulnerable or float32 is None or math.isnan(float32.margin) or math.isnan(float32.error):
        return Answer.UNKNOWN
    if vulnerable:
        return Answer.UNKNOWN if float32.margin > float32.error else Answer.VULNERABLE
    proven = float(np.fmax(rounded, solved).min())
    refuted = witness_margin is not None and not witness_margin >= proven - SOLVER_TOLERANCE * scale
    return Answer.UNKNOWN if refuted or float32.margin < -float32.error else Answer.ROBUST
