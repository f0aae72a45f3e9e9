"""``milpver substitute``: the table, records that are continued, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def test_table_records_and_models(cli: Any, tiny: Any, tmp_path: Path) -> None:
    records, models = tmp_path / "r.jsonl", tmp_path / "models"
    words = ("substitute", *tiny.common, "--kind", "con,lin,act", "--ratio", "0.5", "--index", "0:2")
    words += ("--records", records, "--save-models", models, "--exact-delta", "--quiet")
    done = cli(*words)
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["kind", "con", "lin", "act"]
    found = [json.loads(line) for line in records.read_text().splitlines()]
    assert [record["index"] for record in found] == [0, 1]
    for record in found:
        assert [entry["kind"] for entry in record["substitutes"]] == ["con", "lin", "act"]
        assert all(entry["replaced"] == 6 for entry in record["substitutes"])
        act = record["substitutes"][2]
        assert act["certified"] <= record["upper"] + 1e-9
    assert len(list(models.iterdir())) == 6
    for path in models.iterdir():
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert cli(*words).code == 0
    assert len(records.read_text().splitlines()) == 2


def test_records_of_other_data_are_not_continued(cli: Any, refused: Any, tiny: Any, tmp_path: Path) -> None:
    records, other = tmp_path / "r.jsonl", tmp_path / "other.npz"
    words = ("--kind", "lin", "--ratio", "0.5", "--index", "0:2", "--records", records, "--quiet")
    assert cli("substitute", *tiny.common, *words).code == 0
    np.savez(other, x=tiny.x[::-1], y=tiny.y[::-1], domain=np.array([0.0, 1.0]))
    line = refused("substitute", tiny.model, "--data", other, *words)
    assert "index 0 is about another input" in line


def test_mistakes(refused: Any, tiny: Any) -> None:
    assert "--kind other" in refused("substitute", *tiny.common, "--kind", "other")
    assert "--ratio 2" in refused("substitute", *tiny.common, "--ratio", "2")
    assert "--save-models" in refused("substitute", *tiny.common, "--save-models", tiny.data)
