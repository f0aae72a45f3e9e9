"""The demo: which digits it takes, what it leaves in its folder, and that it spoils nobody's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from milpver import demo
from milpver.cli import demo as command
from milpver.cli import main


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets may stay open: the test is about what is done with them."""
    monkeypatch.setattr(command, "TIMEOUT", 1.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_classes_take_turns_and_all_digits_are_classified() -> None:
    network, dataset = demo.shipped()
    chosen = demo.choose(network, dataset, 20)
    labels = dataset.labels[list(chosen)].tolist()
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10))
    outputs = network.graph.evaluate(dataset.inputs.reshape(-1, 64).astype(np.float64))
    assert outputs[list(chosen)].argmax(axis=1).tolist() == labels
    sure = np.diff(np.sort(outputs, axis=1)[:, -2:], axis=1)[:, 0]
    wanted = np.quantile(sure[outputs.argmax(axis=1) == dataset.labels], demo.CERTAINTY)
    away = np.abs(sure - wanted)[list(chosen)]
    assert (away[:10] <= away[10:]).all()
    assert demo.choose(network, dataset, 12) == chosen[:12]
    assert len(demo.choose(network, dataset, 10**6)) == 351


@pytest.mark.usefixtures("short")
def test_the_demo_away_from_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--count", "2"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "milpver-demo"
    assert names(folder) == ["demo.png", "distances.jsonl", "margins.jsonl"]
    margins, distances = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("margins.jsonl", "distances.jsonl")
    )
    assert [record["index"] for record in margins] == [record["index"] for record in distances]
    assert all(record["budget"] == [2, 1] for record in margins)
    assert all(record["domain"] == [0.0, 1.0] for record in margins + distances)
    assert all(record["upper"] > 0 for record in distances)
    assert "verified accuracy" in out
    assert f"picture: {Path('milpver-demo') / 'demo.png'}" in out
    picture = (folder / "demo.png").read_bytes()
    assert len(picture) > 10_000
    before = (folder / "margins.jsonl").read_bytes()
    assert main(["demo", "--count", "2", "--quiet"]) == 0
    assert "already there" in capsys.readouterr().out
    assert (folder / "margins.jsonl").read_bytes() == before
    assert (folder / "demo.png").read_bytes() == picture


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.usefixtures("short")
def test_other_files_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    picture = tmp_path / "demo.png"
    picture.write_bytes(b"mine as well")
    assert "--out" in refused(["demo", "--out", str(tmp_path), "--count", "1"], capsys)
    assert picture.read_bytes() == b"mine as well"
    records = tmp_path / "margins.jsonl"
    records.write_text('{"index": 0, "mine": true}\n')
    line = refused(["demo", "--out", str(tmp_path), "--count", "1"], capsys)
    assert "name another folder with --out" in line
    assert records.read_text() == '{"index": 0, "mine": true}\n'
    assert picture.read_bytes() == b"mine as well"
    assert names(tmp_path) == ["demo.png", "margins.jsonl", "notes.txt"]
    assert "--out" in refused(["demo", "--out", str(picture), "--count", "1"], capsys)


def test_digits_without_an_answer_are_drawn_as_well() -> None:
    network, dataset = demo.shipped()
    x = dataset.inputs[0].reshape(-1)
    margin = {
        "index": 0, "label": 0, "status": "timeout", "verdict": "unknown", "lower": None, "upper": 0.5,
        "target": 3, "removed": None,
    }  # fmt: skip
    distance = {"status": "infeasible", "lower": 1.0, "upper": None, "adversarial": None}
    content = demo.picture(network, {0: x}, {0: margin}, {0: distance})
    assert content.startswith(b"\x89PNG")
    assert content == demo.picture(network, {0: x}, {0: margin, 1: margin}, {0: distance})
