"""Whole batches by the closed form say what inputs say one by one, and what enumeration says."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver import margin
from milpver.closed_form import ClosedForm
from milpver.network import Network
from milpver.query import Options, parse_budget
from milpver.replay import Replay
from milpver.verdict import Answer, Status, Verdict
from tests.nets import brute_force_margins, exact_trace, random_network

#: Fields in which two ways to the same answer may differ.
APART = {"seconds", "lower", "upper", "classes", "mask", "witness", "witness_float32", "removed", "target"}
APART |= {"witness_margin_float64", "witness_margin_float32"}


def asked(path: Path, seed: int, count: int = 6) -> tuple[Network, NDArray[np.float32], list[int]]:
    network = random_network(path / "n.onnx", [3, 6, 5, 4], seed, scale=1.5)
    inputs = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return network, inputs, [int(k) for k in network.graph.evaluate(inputs.astype(float)).argmax(axis=1)]


def found(
    network: Network, inputs: NDArray[np.float32], labels: list[int], **options: object
) -> list[Verdict]:
    return list(
        margin.margins(
            network,
            inputs,
            labels,
            budget=parse_budget("0,2", network),
            options=Options(**options),  # type: ignore[arg-type]  # of tests alone
        )
    )


def assert_same(one: Verdict, other: Verdict) -> None:
    for field in fields(Verdict):
        if field.name not in APART:
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    for name in ("lower", "upper", "witness_margin_float64", "witness_margin_float32"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-6), name
    for mine, theirs in zip(one.classes, other.classes, strict=True):
        assert (mine.target, mine.status) == (theirs.target, theirs.status)
        assert mine.lower == pytest.approx(theirs.lower, abs=1e-9)
        assert mine.upper == pytest.approx(theirs.upper, abs=1e-12)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_batches_and_single_inputs_agree(tmp_path: Path, seed: int) -> None:
    network, inputs, labels = asked(tmp_path, seed)
    batch = found(network, inputs, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(margin, "closed_answers", lambda *_: {})
        one_by_one = found(network, inputs, labels)
    alone = [found(network, inputs[i : i + 1], labels[i : i + 1])[0] for i in range(len(inputs))]
    for i, verdict in enumerate(batch):
        assert verdict.solver == "closed-form"
        assert verdict.seconds > 0
        assert_same(verdict, one_by_one[i])
        truth = brute_force_margins(network, inputs[i].astype(float), labels[i], [0, 2])
        assert verdict.lower is not None
        assert verdict.lower <= truth.min() + 1e-12
        assert verdict.upper == pytest.approx(truth.min(), abs=1e-12)
        assert alone[i].index == 0
        assert alone[i].upper == pytest.approx(verdict.upper, abs=1e-12)
        assert alone[i].verdict == verdict.verdict


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_lower_bounds_hold_in_rational_arithmetic(tmp_path: Path, seed: int) -> None:
    network, inputs, labels = asked(tmp_path, seed, count=2)
    graph, budget = network.graph, parse_budget("0,2", network)
    form = ClosedForm(graph, budget, network.layers[1].node)
    x = inputs.astype(float)
    worst = form.worst(graph.trace(x), np.array(labels))
    for i, label in enumerate(labels):
        others = [k for k in range(graph.outputs) if k != label]
        for k, other in enumerate(others):
            mask = {network.layers[1].node: worst.masks[i, k]}
            logits = exact_trace(graph, [Fraction(float(v)) for v in x[i]], mask)[-1]
            exact = logits[label] - logits[other]
            assert Fraction(float(worst.lower[i, k])) <= exact
            assert float(exact) - worst.lower[i, k] < 1e-11
            assert worst.margins[i, k + 1, k] == pytest.approx(float(exact), abs=1e-12)


def test_a_float32_run_on_the_other_side_of_zero_is_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, inputs, labels = asked(tmp_path, 1)
    sure = [verdict.verdict for verdict in found(network, inputs, labels)]
    assert {Answer.ROBUST, Answer.VULNERABLE} <= set(sure)
    outputs = Replay.outputs
    monkeypatch.setattr(Replay, "outputs", lambda *given: -outputs(*given))
    assert {verdict.verdict for verdict in found(network, inputs, labels)} == {Answer.UNKNOWN}


def test_a_gap_that_rounding_does_not_allow_is_answered_one_by_one(tmp_path: Path) -> None:
    network, inputs, labels = asked(tmp_path, 1)
    verdicts = found(network, inputs, labels, gap=0.0)
    assert [verdict.index for verdict in verdicts] == list(range(len(inputs)))
    for verdict, usual in zip(verdicts, found(network, inputs, labels), strict=True):
        assert verdict.status in (Status.OPTIMAL, Status.DECIDED)
        assert verdict.upper == pytest.approx(usual.upper, abs=1e-12)


def test_misclassified_inputs_keep_their_place(tmp_path: Path) -> None:
    network, inputs, labels = asked(tmp_path, 3)
    labels[2] = (labels[2] + 1) % 4
    verdicts = found(network, inputs, labels)
    assert [verdict.index for verdict in verdicts] == list(range(len(inputs)))
    assert [verdict.status is Status.MISCLASSIFIED for verdict in verdicts] == [i == 2 for i in range(6)]


def test_outputs_that_float32_cannot_hold_prove_nothing_and_warn_of_nothing(tmp_path: Path) -> None:
    """ONNX Runtime's outputs are infinite there, their differences NaN."""
    network = random_network(tmp_path / "n.onnx", [3, 6, 5, 4], seed=3, scale=1e15)
    inputs = np.full((4, 3), 1e5, dtype=np.float32)
    labels = [int(k) for k in network.graph.evaluate(inputs.astype(float)).argmax(axis=1)]
    assert {verdict.verdict for verdict in found(network, inputs, labels)} == {Answer.UNKNOWN}
