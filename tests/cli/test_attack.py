"""`milpver attack` from the command line: accuracies, records, and that they stay above exact margins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Tiny


def test_attacks_stay_above_the_exact_margins(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "attack.jsonl"
    result = cli("attack", *tiny.common, "--budget", "2,1", "--samples", 30, "--steps", 30, "--records", file)
    assert result.code == 0, result.err
    exact = cli("margin", *tiny.common, "--budget", "2,1", "--records", "-", "--quiet").records
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["index"] for row in found] == [row["index"] for row in exact]
    for row, truth in zip(found, exact, strict=True):
        assert row["input_sha256"] == truth["input_sha256"]
        assert row["replayed"]
        assert set(row["margins"]) == {"clean", "random", "l2", "pgd", "shared", "greedy", "swap"}
        assert row["margin"] == min(row["margins"].values())
        if truth["status"] == "misclassified":
            assert row["margin"] <= 0
            continue
        assert row["margin"] >= truth["lower"] - 1e-9
        assert row["margins"]["swap"] <= row["margins"]["greedy"] + 1e-12
        assert len(row["removed"]) <= 3
        if row["broken"]:
            assert truth["verdict"] == "vulnerable"
    lines = {line.split()[0]: line.split() for line in result.out.splitlines() if line and line[0].isalpha()}
    assert float(lines["swap"][1]) == pytest.approx(
        100 * sum(row["margins"]["swap"] > 0 for row in found) / len(found), abs=0.01
    )


def test_records_go_to_stdout_and_the_table_to_stderr(cli: Cli, tiny: Tiny) -> None:
    result = cli(
        "attack", *tiny.common, "--budget", "1,0", "--method", "l2,greedy", "--records", "-", "--quiet"
    )
    assert result.code == 0
    assert set(result.records[0]["margins"]) == {"clean", "l2", "greedy"}
    assert "own mask" in result.err


def test_mistakes_are_said(refused: Callable[..., str], tiny: Tiny, tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("{}\n")
    assert "random, l2, pgd" in refused("attack", *tiny.common, "--budget", "1,0", "--method", "magic")
    assert "allows a removal" in refused("attack", *tiny.common, "--budget", "0,0")
    assert "there already" in refused("attack", *tiny.common, "--budget", "1,0", "--records", there)
    assert "--steps" in refused("attack", *tiny.common, "--budget", "1,0", "--steps", "0")
