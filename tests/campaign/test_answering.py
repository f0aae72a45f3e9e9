"""What a real worker does with a batch: the questions' answers, and failures that stay one query's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milpver
from milpver.campaign import answering, questions
from milpver.campaign.answering import Batch, Desk, failure, parcel
from milpver.campaign.plan import Plan, make_plan
from milpver.campaign.runner import run_plan
from milpver.campaign.spec import read_spec
from milpver.campaign.store import Store, unpack

if TYPE_CHECKING:
    from milpver.verdict import Verdict
    from tests.campaign.conftest import Field


def batch(plan: Plan, number: int, count: int) -> Batch:
    """The first queries of a cell."""
    cell = plan.cells[number]
    source = plan.source(cell)
    return Batch(
        number=0,
        cell=number,
        network=parcel(plan.networks[cell.network]).id,
        kind=cell.kind,
        parameters=cell.parameters,
        domain=source.domain,
        options=cell.options,
        solver_version=cell.solver_version,
        keys=tuple(cell.key(h, y) for h, y in zip(source.hashes, source.labels, strict=True))[:count],
        labels=source.labels[:count],
        indices=source.indices[:count],
        inputs=source.inputs[:count],
        extra={"requested_solver": cell.options.solver},
    )


def desk(plan: Plan) -> Desk:
    """A desk with all networks, as they arrive after a journey."""
    found = Desk()
    for network in plan.networks.values():
        found.take(parcel(network))
    return found


@pytest.fixture
def digits_conv(tmp_path: Path) -> tuple[Path, Path]:
    """The shipped network with convolutions, and images that it gets as it has them."""
    folder = Path(__file__).resolve().parents[2] / "onnx_models"
    found = np.load(folder / "digits_test.npz")
    path = tmp_path / "digits.npz"
    np.savez(path, x=found["x"][:4], y=found["y"][:4])
    return folder / "digits_conv.onnx", path


def test_answers_are_those_of_the_questions(field: Field) -> None:
    """Margins of points and balls, their sign, and distances; with a normalisation in front."""
    plan = field.plan(
        '[[network]]\npath = "net.onnx"\nmean = [0.4]\nstd = [0.7]\n'
        '[[question]]\nkind = "margin"\nbudgets = ["2,1"]\nsolvers = ["bab"]\nradii = [0, 0.05]\n'
        '[[question]]\nkind = "decide"\nbudgets = ["2,1"]\nsolvers = ["bab"]\n'
        '[[question]]\nkind = "distance"\n'
    )
    network, at = plan.networks["net"], desk(plan)
    for number, cell in enumerate(plan.cells):
        asked = batch(plan, number, 2)
        results = list(at.answer(asked, lambda: False))
        assert [result.key for result in results] == list(asked.keys)
        for result, x, label in zip(results, asked.inputs, asked.labels, strict=True):
            shared: dict[str, Any] = {"domain": (0.0, 1.0), "solver": cell.options.solver}
            if cell.kind == "distance":
                expected = milpver.boundary_distance(network, x, label, **shared)
            else:
                radius = cell.parameters["radius"]
                decide = cell.kind == "decide"
                expected = milpver.worst_margin(
                    network, x, label, budget="2,1", radius=radius, decide=decide, **shared
                )
            record = json.loads(result.record)
            assert result.columns["status"] == record["status"] == expected.status
            assert result.columns["verdict"] == expected.verdict
            for side in ("lower", "upper"):
                assert record[side] == pytest.approx(getattr(expected, side), abs=1e-6)
            assert "adversarial" not in record
            if result.witness is not None:
                witness = unpack(result.witness, np.dtype("<f8"))
                margins = network.graph.evaluate(witness[None], expected.mask or {})[0]
                worst = margins[label] - np.delete(margins, label).max()
                assert worst == pytest.approx(record["witness_margin_float64"], abs=1e-9)
            else:
                assert cell.parameters.get("radius") == 0.0 or expected.witness is None


def test_forced_neurons_totals_and_fewest_removals(field: Field) -> None:
    """They mean what they mean in Python, and stand in the records."""
    forced = 'keep = "1:3"\nremove = "2:0"\n'
    plan = field.plan(
        f'[[question]]\nkind = "margin"\nbudgets = ["2,1", "total:3"]\nsolvers = ["bab"]\n{forced}'
        '[[question]]\nkind = "pruning-distance"\n'
        f'[[question]]\nkind = "pruning-distance"\nlayers = [1, 2]\ntotal = true\n{forced}'
        '[[question]]\nkind = "distance"\nnorm = "l1"\n'
    )
    network, at = plan.networks["net"], desk(plan)
    both: dict[str, Any] = {"keep": "1:3", "remove": "2:0"}
    expected: list[Callable[..., Verdict]] = [
        partial(milpver.worst_margin, budget="2,1", solver="bab", **both),
        partial(milpver.worst_margin, budget="total:3", solver="bab", **both),
        milpver.pruning_distance,
        partial(milpver.pruning_distance, layers=[1, 2], total=True, **both),
        partial(milpver.boundary_distance, norm="l1"),
    ]
    for number, ask in enumerate(expected):
        asked = batch(plan, number, 3)
        for result, x, label in zip(at.answer(asked, lambda: False), asked.inputs, asked.labels, strict=True):
            record = json.loads(result.record)
            found = ask(network, x, label, domain=(0.0, 1.0))
            if number == 2:
                # A misclassified input has no distance; there are others.
                assert record["requested_layers"] == [1, 2]
            assert (record["status"], record["norm"]) == (found.status, found.norm)
            assert record["removed"] == (None if found.removed is None else [list(p) for p in found.removed])
            for side in ("lower", "upper"):
                assert record[side] == pytest.approx(getattr(found, side), abs=1e-6)
            assert record["keep"] == ([[1, 3]] if number in (0, 1, 3) else [])
            assert record["remove"] == ([[2, 0]] if number in (0, 1, 3) else [])
            if record["status"] in ("optimal", "decided") and record["keep"] and record["removed"]:
                assert [2, 0] in record["removed"]
                assert [1, 3] not in record["removed"]
    assert [cell.parameters.get("budget") for cell in plan.cells[:2]] == [[2, 1], "total:3"]
    failed = json.loads(failure(batch(plan, 3, 1), 0, "why").record)
    assert (failed["question"], failed["verdict"], failed["keep"]) == ("pruning-distance", None, [[1, 3]])


def test_channels_of_convolutions(digits_conv: tuple[Path, Path]) -> None:
    """A network is loaded with them where a question names them; the normalisation goes in front of both."""
    model, data = digits_conv
    path = data.parent / "c.toml"
    path.write_text(
        f'[campaign]\n[[network]]\npath = "{model}"\nmean = [0.1]\nstd = [0.5]\n[data]\npath = "{data}"\n'
        'index = "0:2"\n[[question]]\nkind = "decide"\nbudgets = ["conv1:1", "conv2:1"]\n'
        'keep = "conv1:0"\n',
        encoding="utf-8",
    )
    plan = make_plan(read_spec(path))
    (network,) = plan.networks.values()
    assert [layer.label for layer in network.conv_layers] == ["conv1", "conv2"]
    at = desk(plan)
    for number in range(2):
        asked = batch(plan, number, 2)
        for result, x, label in zip(at.answer(asked, lambda: False), asked.inputs, asked.labels, strict=True):
            record = json.loads(result.record)
            found = milpver.worst_margin(
                network, x, label, budget=f"conv{number + 1}:1", keep="conv1:0", decide=True
            )
            assert (record["status"], record["verdict"]) == (found.status, found.verdict)
            assert record["keep"] == [["conv1", 0]]


def test_records_are_those_of_verdicts(field: Field) -> None:
    """They are written in a faster way, which must not differ: infinities, arrays and brackets included."""
    plan = field.plan()
    asked = batch(plan, 0, 1)
    (verdict,) = questions.KINDS["margin"].ask(
        questions.Asked(
            network=plan.networks["net"],
            inputs=asked.inputs,
            labels=asked.labels,
            indices=asked.indices,
            parameters=asked.parameters,
            domain=(np.zeros(6), np.ones(6)),
            options=asked.options,
            should_stop=lambda: False,
        )
    )
    for each in (
        verdict,
        replace(verdict, lower=-np.inf, witness_margin_float32=np.nan),
        replace(verdict, nodes=np.int64(3), removed=((np.int64(1), np.int64(2)),), adversarial=(1.0,)),  # type: ignore[arg-type]
    ):
        found = answering._result(asked, 0, each, "here")
        expected = {name: value for name, value in each.record().items() if name != "adversarial"}
        assert json.loads(found.record) == expected | dict(asked.extra)
        columns = ("status", "verdict", "lower", "nodes", "message")
        assert {name: found.columns[name] for name in columns} == {name: expected[name] for name in columns}
        assert {type(value) for value in found.columns.values()} <= {str, int, float, type(None)}


def test_a_failing_query_does_not_take_the_others_along(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = field.plan()
    kind = questions.KINDS["margin"]

    def ask(asked: questions.Asked) -> Iterator[milpver.Verdict]:
        for k, index in enumerate(asked.indices):
            if index == 2:
                raise MemoryError("no room")
            if index == 4:
                raise ZeroDivisionError("a defect")
            one = slice(k, k + 1)
            yield from kind.ask(
                replace(asked, inputs=asked.inputs[one], labels=asked.labels[one], indices=[index])
            )

    monkeypatch.setattr(answering, "KINDS", {"margin": replace(kind, ask=ask)})
    results = list(desk(plan).answer(batch(plan, 0, 6), lambda: False))
    assert [json.loads(result.record)["index"] for result in results] == list(range(6))
    said = [(result.columns["status"], result.columns["message"]) for result in results]
    assert said[2] == ("error", "out of memory: MemoryError: no room")
    assert said[4] == ("error", "failed: ZeroDivisionError: a defect")
    assert {said[k][0] for k in (0, 1, 3)} == {"optimal"}


def test_a_worker_with_another_solver_answers_nothing(field: Field) -> None:
    """Its answers would stand under keys of this version."""
    plan = field.plan()
    asked = replace(batch(plan, 0, 2), solver_version="7.7")
    results = list(desk(plan).answer(asked, lambda: False))
    assert [result.columns["status"] for result in results] == ["error", "error"]
    assert "needed: '7.7'" in results[0].columns["message"]


def test_a_network_that_changed_on_its_way_is_refused(field: Field) -> None:
    plan = field.plan()
    sent = replace(parcel(plan.networks["net"]), id="0" * 64)
    with pytest.raises(ValueError, match="not the one that was sent"):
        Desk().take(sent)


def test_a_stop_ends_a_batch_between_queries(field: Field) -> None:
    plan = field.plan()
    answered: list[bytes] = []
    for result in desk(plan).answer(batch(plan, 0, 6), lambda: len(answered) == 2):
        answered.append(result.key)
    assert len(answered) == 2


def test_real_workers_answer_a_campaign(field: Field) -> None:
    """From end to end, in processes of their own; the sums of worst margins are those of a plain call."""
    plan = field.plan('[data]\npath = "data.npz"\nindex = "0:12"\n', workers=1)
    with Store.open(plan.spec.store, create=True) as store:
        outcome = run_plan(plan, store)
    assert (outcome.answered, outcome.left, outcome.crashes) == (24, 0, 0)
    source = plan.source(plan.cells[1])
    expected = milpver.worst_margin(
        plan.networks["net"],
        source.inputs,
        list(source.labels),
        budget="2,1",
        domain=(0.0, 1.0),
        solver="bab",
    )
    rows = field.rows(plan.spec.store, ("r.status", "r.upper", "r.host", "r.seconds", "r.removed"))
    for verdict, (status, upper, host, seconds, removed) in zip(
        expected, [rows[k] for k in range(12, 24)], strict=True
    ):
        assert status == verdict.status
        assert upper == pytest.approx(verdict.upper, abs=1e-6)
        assert host
        assert seconds >= 0
        assert removed is None or len(json.loads(removed)) <= 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is of Linux")
def test_the_memory_limit_holds_in_the_worker_s_process() -> None:
    code = (
        "from milpver.campaign._worker import _limit_memory\n"
        "_limit_memory(300 << 20)\n"
        "small = bytearray(100 << 20)\n"
        "try:\n    large = bytearray(400 << 20)\n"
        "except MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "refused\n"
