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
    words += ["--epochs", "8", "--limit", "5"]
    assert pruning_robustness.main(words) == 0
    first = capsys.readouterr()
    rows = [line.split("|")[1:-1] for line in first.out.splitlines() if line.startswith(("| 0, 0", "| 5, 0"))]
    assert [row[1].strip() for row in rows] == ["standard", "robust", "exact-bound"] * 2
    for row in rows:
        verified, attacked = (float(row[place].split()[0]) for place in (4, 5))
        assert verified <= attacked
    assert rows[0][4].split()[1] == "(70.8)"
    assert "(96.2)" in rows[1][4]
    assert sum(line.startswith("| last") for line in first.out.splitlines()) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "nets", "results.jsonl", "table.md", "verified.png", "tightness.png",
    }  # fmt: skip
    assert (tmp_path / "out" / "table.md").read_text() == first.out
    assert pruning_robustness.main(words) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err == ""


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
