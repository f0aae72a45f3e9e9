"""When a verdict may be given, and what a record holds."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import fields

import numpy as np
import pytest

from milpver.verdict import (
    RECORD_FIELDS,
    SOLVER_TOLERANCE,
    Answer,
    Assurance,
    ClassBracket,
    Float32Margin,
    Status,
    Verdict,
    judge,
)

NONE = np.array([-np.inf, -np.inf])
FINE = Float32Margin(0.5, 1e-6)
LOW = Float32Margin(-0.5, 1e-6)


def verdict_of(
    rounded: object = NONE,
    solved: object = NONE,
    witness: float | None = 0.5,
    float32: Float32Margin | None = FINE,
    scale: float = 1.0,
) -> Answer:
    return judge(
        rounded=np.asarray(rounded, dtype=float),
        solved=np.asarray(solved, dtype=float),
        scale=scale,
        witness_margin=witness,
        float32=float32,
    )


def test_robust_needs_every_class() -> None:
    assert verdict_of(rounded=[0.1, 0.2]) is Answer.ROBUST
    assert verdict_of(solved=[0.1, 0.2]) is Answer.ROBUST
    assert verdict_of(rounded=[0.1, -1.0], solved=[-1.0, 0.2]) is Answer.ROBUST
    assert verdict_of(rounded=[0.1, -0.1]) is Answer.UNKNOWN
    assert verdict_of(rounded=[0.1, 0.0]) is Answer.UNKNOWN, "a tie is not robust"
    assert verdict_of(rounded=[5e-324, 0.1], witness=0.1) is Answer.ROBUST


def test_a_solver_has_to_be_above_its_tolerance() -> None:
    for scale in (1.0, 100.0):
        edge = SOLVER_TOLERANCE * scale
        assert verdict_of(solved=[edge, 0.2], scale=scale) is Answer.UNKNOWN
        assert verdict_of(solved=[edge / 2, 0.2], scale=scale) is Answer.UNKNOWN
        assert verdict_of(solved=[edge * 1.01, 0.2], scale=scale) is Answer.ROBUST


def test_vulnerable_is_a_replayed_witness_alone() -> None:
    assert verdict_of(witness=-0.5, float32=LOW) is Answer.VULNERABLE
    assert verdict_of(witness=0.0, float32=Float32Margin(0.0, 0.0)) is Answer.VULNERABLE, "a tie"
    assert verdict_of(witness=None) is Answer.UNKNOWN
    assert verdict_of(witness=0.5) is Answer.UNKNOWN


def test_float32_on_the_other_side_makes_it_unknown() -> None:
    proven = [0.1, 0.1]
    assert verdict_of(rounded=proven, float32=Float32Margin(-2e-6, 1e-6)) is Answer.UNKNOWN
    assert verdict_of(rounded=proven, float32=Float32Margin(-0.5e-6, 1e-6)) is Answer.ROBUST
    assert verdict_of(witness=-1e-7, float32=Float32Margin(2e-6, 1e-6)) is Answer.UNKNOWN
    assert verdict_of(witness=-1e-7, float32=Float32Margin(0.5e-6, 1e-6)) is Answer.VULNERABLE
    assert verdict_of(rounded=proven, float32=None) is Answer.UNKNOWN
    assert verdict_of(witness=-1.0, float32=None) is Answer.UNKNOWN


def test_what_contradicts_itself_is_unknown() -> None:
    assert verdict_of(rounded=[0.1, 0.1], witness=-0.1, float32=LOW) is Answer.UNKNOWN
    assert verdict_of(solved=[0.1, 0.1], witness=0.0, float32=Float32Margin(0.0, 1e-6)) is Answer.UNKNOWN
    assert verdict_of(rounded=[0.3, 0.4], witness=0.1, float32=Float32Margin(0.1, 1e-6)) is Answer.UNKNOWN
    assert verdict_of(solved=[0.3, 0.4], witness=0.1, float32=Float32Margin(0.1, 1e-6)) is Answer.UNKNOWN


@pytest.mark.parametrize("part", ["rounded", "witness", "float32", "error", "scale"])
def test_nan_proves_nothing(part: str) -> None:
    nan = math.nan
    for robust in (True, False):
        answer = verdict_of(
            rounded=[nan if part == "rounded" else 0.1, 0.1] if robust else [-1.0, -1.0],
            solved=[-np.inf, -np.inf] if part != "scale" else [0.1, 0.1],
            witness=nan if part == "witness" else 0.5 if robust else -0.5,
            float32=Float32Margin(
                nan if part == "float32" else 0.5 if robust else -0.5, nan if part == "error" else 1e-6
            ),
            scale=nan if part == "scale" else 1.0,
        )
        sound = part in ("scale", "rounded") and not robust
        assert answer is (Answer.VULNERABLE if sound and part != "scale" else answer)
        if part in ("witness", "float32", "error") or (part == "rounded" and robust):
            assert answer is Answer.UNKNOWN


def test_the_whole_truth_table() -> None:
    """Every combination of signs: robust and vulnerable only as the issue states them."""
    values = (-1.0, 0.0, SOLVER_TOLERANCE / 2, 1.0, math.nan, -math.inf)
    margins = (None, -1.0, 0.0, 1.0, math.nan)
    for rounded, solved, witness, single in itertools.product(values, values, margins, margins):
        float32 = None if single is None else Float32Margin(single, 1e-6)
        answer = verdict_of([rounded, 2.0], [solved, 2.0], witness, float32)
        proven = rounded > 0 or solved > SOLVER_TOLERANCE
        if answer is Answer.ROBUST:
            assert proven
            assert witness is None or witness > 0
            assert single is not None
            assert single > -1e-5
        if answer is Answer.VULNERABLE:
            assert not proven
            assert witness is not None
            assert witness <= 0
            assert single is not None
            assert single < 1e-5
        if witness == -1.0 and single == -1.0 and not proven:
            assert answer is Answer.VULNERABLE
        if witness == 1.0 and single == 1.0 and proven:
            assert answer is Answer.ROBUST


def a_verdict(**changes: object) -> Verdict:
    values: dict[str, object] = {
        "schema_version": 1, "milpver": "0", "solver_version": "1", "model_sha256": "ab", "index": 0,
        "label": 1, "predicted": 1, "question": "margin", "budget": (1, 0), "radius": 0.0, "domain": None,
        "status": Status.OPTIMAL, "verdict": Answer.ROBUST, "assurance": Assurance.SOLVER, "lower": 0.5,
        "upper": 0.5, "target": 2, "removed": ((1, 3),), "nodes": 4, "seconds": 0.1, "solver": "highs",
        "encoding": "fused", "bounds": "budget", "gap": 1e-6, "timeout": 60.0, "threads": 1, "seed": 0,
        "witness_margin_float64": 0.5, "witness_margin_float32": 0.5,
        "classes": (ClassBracket(2, 0.5, 0.5, Status.OPTIMAL),),
    }  # fmt: skip
    return Verdict(**{**values, **changes})  # type: ignore[arg-type]  # fields by name


def test_a_record_is_plain_json() -> None:
    verdict = a_verdict(
        domain=(np.zeros(2), np.array([1.0, math.inf])),
        lower=-math.inf,
        upper=math.nan,
        nodes=np.int64(3),
        timeout=math.inf,
        witness=np.zeros(3),
        classes=(ClassBracket(2, None, np.float64(0.5), Status.TIMEOUT),),
    )
    record = json.loads(json.dumps(verdict.record(), allow_nan=False))
    assert tuple(record) == RECORD_FIELDS
    assert record["domain"] == [[0.0, 0.0], [1.0, None]]
    assert (record["lower"], record["upper"], record["nodes"]) == (None, None, 3)
    assert record["removed"] == [[1, 3]]
    assert record["classes"] == [{"target": 2, "lower": None, "upper": 0.5, "status": "timeout"}]
    assert (record["status"], record["verdict"], record["assurance"]) == ("optimal", "robust", "solver")


def test_records_have_the_fields_that_scripts_depend_on() -> None:
    public = [
        "schema_version",
        "milpver",
        "solver_version",
        "model_sha256",
        "index",
        "label",
        "predicted",
        "question",
        "budget",
        "radius",
        "domain",
        "status",
        "verdict",
        "assurance",
        "lower",
        "upper",
        "target",
        "removed",
        "nodes",
        "seconds",
        "solver",
        "encoding",
        "bounds",
        "gap",
        "timeout",
        "threads",
        "seed",
        "witness_margin_float64",
        "witness_margin_float32",
        "classes",
    ]
    assert list(RECORD_FIELDS[: len(public)]) == public
    arrays = {field.name for field in fields(Verdict)} - set(RECORD_FIELDS)
    assert arrays == {"witness", "witness_float32", "mask"}
    assert {each.value for each in Assurance} == {"closed-form", "rounded", "solver"}
    statuses = "optimal decided timeout memory interrupted infeasible misclassified unavailable error"
    assert " ".join(Status) == statuses
