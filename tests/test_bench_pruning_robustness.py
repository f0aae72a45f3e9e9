"""The benchmark of pruning-robust training: a small run, its table, and that it goes on where it was."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bench import pruning_robustness


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder of idx files with a few images, bright at places that depend on the class."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 200), ("t10k", 12)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 40, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), labels * 2] = 250
        for name, magic, values in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
            head = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


def test_a_small_run_and_its_continuation(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning_robustness, "SWEEP", {"last": ("0,0,{}", (1, 4))})
    words = [
        "--mnist",
        str(mnist),
        "--out",
        str(tmp_path / "out"),
        "--rows",
        "0-0-10,5-0-10",
        "--images",
        "6",
    ]
    words += ["--epochs", "8", "--limit", "5", "--figures", "--weights", "robust:0.2,0.05", "--costs"]
    monkeypatch.setattr(
        pruning_robustness, "FIGURES", (("1: last layer", "0-0-10", ("0-0-5", "0-0-10", "0-0-90")),)
    )
    assert pruning_robustness.main(words) == 0
    first = capsys.readouterr()
    lines = [line.split("|")[1:-1] for line in first.out.splitlines()]
    rows = [line for line in lines if len(line) == 11 and line[0].strip() in ("0, 0, 10", "5, 0, 10")]
    assert [row[1].strip() for row in rows] == ["standard", "robust", "exact-bound"] * 2
    assert [row[2].strip() for row in rows[:3]] == ["–", "0.2, 0.05", "0.1, 2"]
    for row in rows:
        verified, attacked = (float(row[place].split()[0]) for place in (5, 6))
        assert verified <= attacked
    assert rows[0][5].split()[1] == "(70.8)"
    assert "(96.2)" in rows[1][5]
    (pair,) = [line for line in lines if len(line) == 4 and line[0].strip() == "0, 0, 10"]
    old, new = ([float(value) for value in cell.split(",")] for cell in pair[1:3])
    gained = [float(value) for value in pair[3].split(",")]
    assert gained == pytest.approx([new[0] - old[0], new[1] - old[1]], abs=0.051)
    drawn = [line for line in lines if line and line[0].strip() == "1: last layer"]
    for line in drawn:
        shown = [float(cell.split(":")[1]) for cell in line[3:]]
        assert shown == sorted(shown, reverse=True)
    assert [line[2].strip() for line in drawn] == ["standard", "robust", "exact-bound"]
    assert sum(line.startswith("| last") for line in first.out.splitlines()) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "nets", "results.jsonl", "table.md", "verified.png", "tightness.png", "figures.png",
    }  # fmt: skip
    assert (tmp_path / "out" / "table.md").read_text() == first.out
    assert pruning_robustness.main(words) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err == ""


def test_cifar_tables_at_a_tiny_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, key, count in (("train_part0", "train", 40), ("train_part1", "train", 30), ("test", "test", 8)):
        images = rng.integers(0, 255, (count, 3, 32, 32)).astype(np.uint8)
        arrays = {f"x_{key}": images, f"y_{key}": rng.integers(0, 10, count).astype(np.uint8)}
        np.savez(folder / f"cifar10_{name}.npz", allow_pickle=False, **arrays)
    monkeypatch.setattr(pruning_robustness, "TABLE_1", {"0-30": pruning_robustness.TABLE_1["0-30"]})
    monkeypatch.setattr(pruning_robustness, "TABLE_5", {"5-10": pruning_robustness.TABLE_5["5-10"]})
    words = ["--cifar", str(folder), "--out", str(tmp_path / "out"), "--images", "4", "--cifar-epochs", "1"]
    assert pruning_robustness.main(words) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line and line[0].strip() == "0-30"]
    assert [row[1].strip() for row in rows] == ["standard", "sam", "targeted-dropout", "robust"]
    assert all(len(row) == 12 for row in rows)
    assert "(46.24)" in rows[0][4]
    verified = [line for line in lines if line and line[0].strip() == "5-10"]
    assert [row[1].strip() for row in verified] == ["standard", "robust", "exact-bound"]
    for row in verified:
        assert float(row[3].split()[0]) <= float(row[4])
    assert len(np.load(tmp_path / "out" / "cifar10_train.npz")["y_train"]) == 70


def test_a_verdict_that_an_attack_refutes_is_reported(
    mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from milpver.attack.masks import MaskAttack  # noqa: PLC0415  what is changed below

    whole = MaskAttack.swap

    def lying(attack: MaskAttack) -> object:
        found = whole(attack)
        found.margins[:] = -1.0
        return found

    monkeypatch.setattr(MaskAttack, "swap", lying)
    words = ["--mnist", str(mnist), "--out", str(tmp_path / "out"), "--rows", "0-0-10", "--images", "12"]
    assert pruning_robustness.main([*words, "--epochs", "8", "--no-tightness"]) == 1
    assert "WRONG: " in capsys.readouterr().err


def test_mistakes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pruning_robustness.main(["--quick"])
    assert pruning_robustness.main(["--mnist", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    assert "error: " in capsys.readouterr().err
