"""``milpver distance``: against a search of its own, both methods, its records and table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

HEADINGS = ["label", "pred", "status", "lower", "upper", "adv.", "nodes", "sec", "solver"]


def test_distances_hold_against_sampling(cli: Any, tiny: Any) -> None:
    result = cli("distance", *tiny.common, "--records", "-", "--quiet")
    assert result.code == 0
    rng = np.random.default_rng(1)
    for record in result.records[:6]:
        k = record["index"]
        x0, label = tiny.x[k].astype(np.float64), tiny.y[k]
        assert record["status"] == "optimal", record
        twin = np.array(record["adversarial"])
        assert np.abs(twin - x0).max() == pytest.approx(record["upper"], abs=1e-12)
        assert ((twin >= 0) & (twin <= 1)).all()
        outputs = tiny.outputs(twin)
        assert outputs[label] <= outputs[record["adversarial_label"]]
        assert record["upper"] - record["lower"] <= 1.1e-6
        # no input of the ball just inside of the lower bound is adversarial
        radius = record["lower"] * 0.999
        for each in np.clip(x0 + rng.uniform(-radius, radius, size=(500, 4)), 0, 1):
            assert tiny.outputs(each).argmax() == label
    assert result.records[6]["status"] == "misclassified"
    assert result.records[6]["upper"] is None


def test_methods_agree(cli: Any, tiny: Any) -> None:
    direct = cli("distance", *tiny.common, "--index", "0:3", "--records", "-").records
    bisect = cli(
        "distance", *tiny.common, "--index", "0:3", "--method", "bisect", "--gap", "1e-4", "--records", "-"
    ).records
    for one, other in zip(direct, bisect, strict=True):
        assert other["upper"] == pytest.approx(one["upper"], abs=2e-4)
        assert (one["method"], other["method"]) == ("direct", "bisect")


def test_a_target_is_asked_for_alone(cli: Any, tiny: Any) -> None:
    everything = cli("distance", *tiny.common, "--index", "0", "--records", "-").records[0]
    target = next(k for k in range(3) if k != everything["label"])
    found = cli("distance", *tiny.common, "--index", "0", "--target", target, "--records", "-").records[0]
    assert found["requested_target"] == target
    assert [each["target"] for each in found["classes"]] == [target]
    assert found["lower"] >= everything["lower"] - 1e-6


def test_records_have_the_fields_of_distance(cli: Any, tiny: Any) -> None:
    record = cli("distance", *tiny.common, "--index", "0", "--records", "-").records[0]
    assert record["question"] == "distance"
    assert record["norm"] == "linf"
    assert record["verdict"] is record["budget"] is record["radius"] is record["removed"] is None
    assert len(record["adversarial"]) == 4
    assert record["decide"] is None


def test_the_table(cli: Any, tiny: Any) -> None:
    result = cli("distance", *tiny.common)
    lines = result.out.splitlines()
    assert lines[0].split() == ["index", *HEADINGS]
    assert lines[7].split()[3] == "misclassified"
    assert "distance: " in result.out
    assert "median" in result.out
    assert result.err == ""


def test_distances_are_in_the_datas_units(cli: Any, tiny: Any, tmp_path: Path) -> None:
    raw = tmp_path / "raw.npz"
    np.savez(raw, x=tiny.x * 4 + 2, y=tiny.y)
    plain = cli("distance", *tiny.common, "--index", "0:2", "--records", "-").records
    found = cli(
        "distance", tiny.model, "--data", raw, "--index", "0:2", "--mean", "2", "--std", "4",
        "--domain", "2,6", "--records", "-",
    ).records  # fmt: skip
    for one, other in zip(plain, found, strict=True):
        assert other["upper"] == pytest.approx(4 * one["upper"], abs=1e-4)


def test_an_existing_file_is_continued_for_the_same_method_only(
    cli: Any, refused: Any, tiny: Any, tmp_path: Path
) -> None:
    file = tmp_path / "r.jsonl"
    query = ("distance", *tiny.common, "--index", "0:2", "--records", file)
    assert cli(*query).code == 0
    before = file.read_bytes()
    assert "already there" in cli(*query).out
    assert "method" in refused(*query, "--method", "bisect")
    assert "requested_target" in refused(*query, "--target", "2")
    assert file.read_bytes() == before
