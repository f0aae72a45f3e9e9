"""``milpver substitute``: the table, records that are continued, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def test_mistakes(refused: Any, tiny: Any) -> None:
    assert "--kind other" in refused("substitute", *tiny.common, "--kind", "other")
    assert "--ratio 2" in refused("substitute", *tiny.common, "--ratio", "2")
    assert "--save-models" in refused("substitute", *tiny.common, "--save-models", tiny.data)
