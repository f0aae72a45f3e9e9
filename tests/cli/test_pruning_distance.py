"""``milpver pruning-distance``: the table, records that scripts read, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_the_table_and_the_records(cli: Any, tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = cli("pruning-distance", *tiny.common, "--index", "0:3", "--records", str(out))
    assert result.code == 0, result.err
    assert "by layer" in result.out
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2]
    for record in records:
        assert record["question"] == "pruning-distance"
        assert record["requested_layers"] == [1, 2]
        assert record["total"] is False
        if record["status"] == "optimal":
            assert record["lower"] == record["upper"] == len(record["removed"])
            assert record["upper"] == min(each["upper"] for each in record["layers"] if each["upper"])


def test_the_same_command_goes_on_and_another_does_not(cli: Any, tiny: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = ("pruning-distance", *tiny.common, "--total", "--records", str(out))
    assert cli(*first, "--index", "0:2").code == 0
    before = out.read_text()
    result = cli(*first, "--index", "0:3")
    assert result.code == 0, result.err
    assert out.read_text().startswith(before)
    assert len(out.read_text().splitlines()) == 3
    assert "already there" in result.out
    other = cli("pruning-distance", *tiny.common, "--records", str(out), "--index", "0:3")
    assert other.code == 2
    assert "total" in other.err
    kept = cli(*first, "--index", "0:3", "--keep", "1:0")
    assert kept.code == 2


def test_mistakes_are_one_line(cli: Any, tiny: Any) -> None:
    result = cli("pruning-distance", *tiny.common, "--layers", "7")
    assert result.code == 2
    assert "--layers names '7'" in result.err
