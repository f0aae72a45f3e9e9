"""``milpver margin``: against enumeration, its records and table, and that runs go on where they stopped."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROMISED_FIELDS = [
    "schema_version", "milpver", "solver_version", "model_sha256", "index", "label", "predicted", "question",
    "budget", "radius", "domain", "status", "verdict", "assurance", "lower", "upper", "target", "removed",
    "nodes", "seconds", "solver", "encoding", "bounds", "gap", "timeout", "threads", "seed",
    "witness_margin_float64", "witness_margin_float32", "classes",
]  # fmt: skip
MORE_FIELDS = [
    "decide", "norm", "method", "requested_target", "adversarial", "adversarial_label", "input_sha256",
    "keep", "remove", "requested_layers", "total", "layers", "message", "requested_solver", "solver_options",
    "mean", "std",
]  # fmt: skip
HEADINGS = ["label", "pred", "verdict", "lower", "upper", "target", "removed", "nodes", "sec", "solver"]


def worst(tiny: Any, k: int, budget: tuple[int, int]) -> float:
    """The worst margin of an input by enumeration of all masks."""
    layers = [
        [set(chosen) for size in range(s + 1) for chosen in itertools.combinations(range(width), size)]
        for s, width in zip(budget, (6, 5), strict=True)
    ]
    margins = []
    for first, second in itertools.product(*layers):
        found = tiny.outputs(tiny.x[k], {1: first, 2: second})
        margins.append(found[tiny.y[k]] - np.delete(found, tiny.y[k]).max())
    return float(min(margins))


@pytest.mark.parametrize("budget", [(2, 1), (0, 2), (1, 0)])
def test_margins_are_those_of_enumeration(cli: Any, tiny: Any, budget: tuple[int, int]) -> None:
    result = cli("margin", *tiny.common, "--budget", f"{budget[0]},{budget[1]}", "--records", "-", "--quiet")
    assert result.code == 0
    assert [record["index"] for record in result.records] == list(range(7))
    for record in result.records[:6]:
        expected = worst(tiny, record["index"], budget)
        assert record["upper"] == pytest.approx(expected, abs=2e-6)
        assert record["lower"] == pytest.approx(expected, abs=2e-6)
        assert record["status"] == "optimal"
        assert record["verdict"] == ("robust" if expected > 0 else "vulnerable")
    assert any(record["verdict"] == "vulnerable" for record in result.records)
    last = result.records[6]
    assert (last["status"], last["lower"], last["upper"]) == ("misclassified", None, None)
    assert last["predicted"] != last["label"]


def test_a_record_has_exactly_the_fields_that_scripts_depend_on(cli: Any, tiny: Any) -> None:
    result = cli("margin", *tiny.common, "--budget", "2,1", "--records", "-")
    for record in result.records:
        assert list(record) == PROMISED_FIELDS + MORE_FIELDS
        assert record["question"] == "margin"
        assert record["budget"] == [2, 1]
        assert record["domain"] == [0.0, 1.0]
        assert record["radius"] == 0.0
        assert record["requested_solver"] == "auto"
        assert record["norm"] is record["adversarial"] is record["mean"] is None
    first = result.records[0]
    assert len(first["classes"]) == 2
    assert {"target", "lower", "upper", "status"} == set(first["classes"][0])
    assert all(layer in (1, 2) and neuron >= 0 for layer, neuron in first["removed"])


def test_records_on_stdout_are_alone_there(cli: Any, tiny: Any) -> None:
    result = cli("margin", *tiny.common, "--budget", "1,0", "--index", "0:2", "--records", "-")
    assert len(result.records) == 2
    assert "verdict" in result.err
    assert "verified accuracy" in result.err


def test_the_table_is_whole_in_a_pipe(cli: Any, tiny: Any) -> None:
    result = cli("margin", *tiny.common, "--budget", "2,1")
    lines = result.out.splitlines()
    assert lines[0].split() == ["index", *HEADINGS]
    assert len(lines) > 8
    assert [line.split()[0] for line in lines[1:8]] == list("0123456")
    assert "misclassified" in lines[7]
    assert "…" not in result.out
    robust = sum(" robust " in line for line in lines[1:8])
    assert (
        f"verified accuracy: {100 * robust / 7:.2f} % ({robust} robust of 7, 1 of them misclassified)"
        in lines
    )
    assert any(re.fullmatch(r"time: \d+\.\d s; \S+ s an input, \S+ s at most", line) for line in lines)
    assert result.err == ""


def test_a_ball_is_no_better_than_its_centre(cli: Any, tiny: Any) -> None:
    point = cli("margin", *tiny.common, "--budget", "1,1", "--index", "0", "--records", "-").records[0]
    found = cli(
        "margin", *tiny.common, "--budget", "1,1", "--index", "0", "--radius", "0.3", "--records", "-"
    ).records[0]
    assert found["radius"] == 0.3
    assert found["upper"] < point["upper"]
    assert found["witness_margin_float64"] == found["upper"]


def test_decide_proves_the_sign_alone(cli: Any, tiny: Any) -> None:
    exact = cli("margin", *tiny.common, "--budget", "2,1", "--records", "-").records
    signs = cli("margin", *tiny.common, "--budget", "2,1", "--decide", "--records", "-").records
    assert [record["verdict"] for record in signs] == [record["verdict"] for record in exact]
    assert all(record["decide"] is True for record in signs)
    assert {record["status"] for record in signs} <= {"optimal", "decided", "misclassified"}


@pytest.mark.parametrize("encoding", ["fused", "reference"])
@pytest.mark.parametrize("bounds", ["budget", "interval"])
def test_encodings_and_bounds_agree(cli: Any, tiny: Any, encoding: str, bounds: str) -> None:
    result = cli(
        "margin", *tiny.common, "--budget", "2,1", "--index", "0:2", "--encoding", encoding,
        "--bounds", bounds, "--gap", "1e-5", "--seed", "3", "--threads", "2", "--memory", "8G",
        "--device", "cpu", "--timeout", "30", "--records", "-", "--solver-option", "presolve=off",
    )  # fmt: skip
    for record in result.records:
        assert record["upper"] == pytest.approx(worst(tiny, record["index"], (2, 1)), abs=2e-5)
        assert (record["encoding"], record["bounds"]) == (encoding, bounds)
        assert (record["gap"], record["seed"], record["threads"], record["timeout"]) == (1e-5, 3, 2, 30.0)
        assert record["solver_options"] == {"presolve": "off"}


def test_layers_go_by_name_and_percent(cli: Any, tiny: Any) -> None:
    for budget, expected in (("2=1", [0, 1]), ("h1=2", [2, 0]), ("-,1", [0, 1]), ("40%,0", [2, 0])):
        result = cli("margin", *tiny.common, "--budget", budget, "--index", "0", "--records", "-")
        assert result.records[0]["budget"] == expected


def test_normalisation_keeps_the_datas_units(cli: Any, tiny: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw.npz"
    np.savez(raw, x=tiny.x * 4 + 2, y=tiny.y)
    plain = cli("margin", *tiny.common, "--budget", "2,1", "--index", "0:3", "--records", "-").records
    found = cli(
        "margin", tiny.model, "--data", raw, "--budget", "2,1", "--index", "0:3",
        "--mean", "2", "--std", "4", "--domain", "-10,10", "--records", "-",
    ).records  # fmt: skip
    for one, other in zip(plain, found, strict=True):
        assert other["upper"] == pytest.approx(one["upper"], abs=1e-4)
        assert (other["mean"], other["std"]) == ([2.0], [4.0])
        assert other["domain"] == [-10.0, 10.0]


def test_data_flags(cli: Any, tiny: Any, tmp_path: Path) -> None:
    named = tmp_path / "named.npz"
    np.savez(named, images=tiny.x * 2, classes=tiny.y)
    expected = cli("margin", *tiny.common, "--budget", "1,1", "--index", "4,-6", "--records", "-").records
    found = cli(
        "margin", tiny.model, "--data", named, "--keys", "images,classes", "--scale", "2", "--domain", "0,1",
        "--budget", "1,1", "--index", "4,-6", "--records", "-",
    ).records  # fmt: skip
    assert [record["index"] for record in found] == [4, 1]
    assert [record["upper"] for record in found] == [record["upper"] for record in expected]
    table = tmp_path / "rows.csv"
    rows = [",".join(map(repr, [int(y), *x.tolist()])) for x, y in zip(tiny.x, tiny.y, strict=True)]
    table.write_text("\n".join(rows) + "\n", encoding="ascii")
    found = cli("margin", tiny.model, "--data", table, "--budget", "1,1", "--index", "4,-6", "--records", "-")
    assert [record["upper"] for record in found.records] == [record["upper"] for record in expected]
    assert found.records[0]["domain"] is None


def test_a_softmax_is_dropped_and_said_once(cli: Any, tiny: Any, softmax_model: Path) -> None:
    plain = cli("margin", *tiny.common, "--budget", "2,1", "--records", "-").records
    result = cli("margin", softmax_model, "--data", tiny.data, "--budget", "2,1", "--records", "-")
    assert [record["upper"] for record in result.records] == [record["upper"] for record in plain]
    assert result.err.count("softmax") == 1


# ------------------------------------------------------------------------------------------ records


def test_an_existing_file_is_continued(cli: Any, tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    query = ("margin", *tiny.common, "--budget", "2,1", "--records", file)
    assert cli(*query, "--index", "1:3").code == 0
    before = file.read_text()
    result = cli(*query, "--index", "0:4")
    assert result.code == 0
    assert file.read_text().startswith(before)
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [1, 2, 0, 3]
    marks = [line.split()[0] for line in result.out.splitlines()[1:5]]
    assert marks == ["0", "1*", "2*", "3"]
    assert f"* already there, in {file}: 2 inputs" in result.out
    again = cli(*query, "--index", "0:4")
    assert again.code == 0
    assert "already there" in again.out
    assert len(file.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "change",
    [
        ("--budget", "1,1"),
        ("--radius", "0.1"),
        ("--decide",),
        ("--domain", "-1,1"),
        ("--encoding", "reference"),
        ("--bounds", "interval"),
        ("--gap", "1e-5"),
        ("--timeout", "59"),
        ("--threads", "2"),
        ("--seed", "1"),
        ("--mean", "0.1"),
        ("--solver-option", "presolve=off"),
    ],
)
def test_records_of_another_query_are_refused(
    cli: Any, refused: Any, tiny: Any, tmp_path: Path, change: tuple[str, ...]
) -> None:
    file = tmp_path / "r.jsonl"
    query = ["margin", *tiny.common, "--budget", "2,1", "--index", "0", "--records", file]
    assert cli(*query).code == 0
    before = file.read_bytes()
    line = refused(*query, *change)
    assert str(file) in line
    assert "line 1" in line
    assert file.read_bytes() == before


def test_records_of_another_model_question_or_input_are_refused(
    cli: Any, refused: Any, tiny: Any, softmax_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.jsonl"
    assert cli("margin", *tiny.common, "--budget", "2,1", "--index", "0", "--records", file).code == 0
    assert "model_sha256" in refused(
        "margin", softmax_model, "--data", tiny.data, "--budget", "2,1", "--index", "0", "--records", file,
        "--quiet",
    )  # fmt: skip
    assert "question" in refused("distance", *tiny.common, "--index", "0", "--records", file)
    other = tmp_path / "other.npz"
    np.savez(other, x=tiny.x[::-1], y=tiny.y[::-1], domain=np.array([0.0, 1.0]))
    line = refused(
        "margin", tiny.model, "--data", other, "--budget", "2,1", "--index", "0", "--records", file
    )
    assert "index 0 is about another input" in line


def test_a_torn_record_is_mended_and_a_damaged_one_refused(
    cli: Any, refused: Any, tiny: Any, tmp_path: Path
) -> None:
    file = tmp_path / "r.jsonl"
    query = ("margin", *tiny.common, "--budget", "2,1", "--index", "0:2", "--records", file)
    assert cli(*query).code == 0
    whole = file.read_text()
    file.write_text(whole[:-40])
    assert cli(*query).code == 0
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [0, 1]
    file.write_text(whole + "rubbish\n")
    assert "line 3 is damaged" in refused(*query)
    record = json.loads(whole.splitlines()[0])
    del record["upper"]
    file.write_text(json.dumps(record) + "\n")
    assert "no field 'upper'" in refused(*query)


def test_a_file_that_is_in_use_is_refused(refused: Any, tiny: Any, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    file = tmp_path / "r.jsonl"
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "in use by another process" in refused(
            "margin", *tiny.common, "--budget", "2,1", "--records", file
        )


def test_records_go_where_a_folder_is(refused: Any, tiny: Any, tmp_path: Path) -> None:
    query = ("margin", *tiny.common, "--budget", "2,1", "--records")
    assert "is a folder" in refused(*query, tmp_path)
    assert "there is no folder" in refused(*query, tmp_path / "none" / "r.jsonl")


# ------------------------------------------------------------------------------------------ solvers


def test_a_solver_that_is_missing_is_said_once_and_the_run_goes_on(
    cli: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milpver.errors import SolverUnavailableError  # noqa: PLC0415
    from milpver.solvers import highs  # noqa: PLC0415 - a plug-in, loaded as the registry does

    def missing() -> None:
        raise SolverUnavailableError("highspy is gone", needed="highspy", fix="pip install highspy")

    monkeypatch.setattr(highs, "_highspy", missing)
    asked = ("--budget", "2,1", "--index", "0:6", "--solver", "highs", "--records", "-")
    result = cli("margin", *tiny.common, *asked)
    assert result.code == 0
    statuses = [record["status"] for record in result.records]
    assert statuses.count("unavailable") > 1
    assert result.err.count("unavailable: highspy is gone") == 1
    assert all(
        r["verdict"] != "robust" for r in result.records if r["status"] == "unavailable" and r["lower"] <= 0
    )


@pytest.mark.parametrize(
    ("flag", "name", "hint"),
    [("--solver", "higs", "highs"), ("--encoding", "fussed", "fused"), ("--bounds", "bugdet", "budget")],
)
def test_names_are_looked_up_with_near_ones(refused: Any, tiny: Any, flag: str, name: str, hint: str) -> None:
    line = refused("margin", *tiny.common, "--budget", "1,1", flag, name)
    assert repr(name) in line
    assert f"did you mean {hint}" in line
