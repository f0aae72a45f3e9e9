"""The VNN-COMP runner: what counts as right, counterexamples checked once more, the scripts' conventions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import _peers, vnncomp
from tests.nets import network_of


def row(
    answer: str, expected: str, *, tool: str = "milpver", note: str = "", seconds: float = 1.0
) -> dict[str, str]:
    times = str(seconds), str(seconds / 4)
    values = ("b", "n.onnx", "p.vnnlib", "60.0", "1", tool, expected, answer, *times, note)
    return dict(zip(vnncomp.COLUMNS, values, strict=True))


@pytest.mark.parametrize(
    ("answer", "expected", "note", "found"),
    [
        ("unsat", "unsat", "", "right"),
        ("sat", "sat", "", "right"),
        ("unsat", "sat", "", "wrong"),
        ("sat", "unsat", "", "wrong"),
        ("sat", "sat", "the counterexample does not meet the property", "wrong"),
        ("unknown", "unsat", "", "unknown"),
        ("unknown", "unknown", "", "unknown"),
        ("timeout", "unknown", "", "timeout"),
        ("error", "sat", "", "error"),
        ("unsat", "unknown", "", "new"),
        ("sat", "unknown", "", "new"),
    ],
)
def test_what_counts_as_right(answer: str, expected: str, note: str, found: str) -> None:
    assert vnncomp.mark(row(answer, expected, note=note)) == found


def test_the_table_counts_and_names_wrong_answers_first() -> None:
    rows = [row("unsat", "unsat", seconds=2.0), row("unknown", "unsat"), row("unsat", "sat", tool="other")]
    lines = list(vnncomp.table(rows))
    assert lines[0] == "**1 wrong answers**"
    assert lines[1].startswith("- other: unsat for n.onnx p.vnnlib (expected sat)")
    assert "| b | milpver | 2 | 1 | 0 | 0 | 1 | 0 | 0 | ≥ 31.00 | 61.00 | ≥ 30.25 |" in lines


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """y = x over [0, 1]: one property that holds, one that does not."""
    folder = tmp_path / "made"
    folder.mkdir()
    network_of(folder / "n.onnx", [np.array([[1.0]]), np.array([[1.0]])], [np.zeros(1), np.zeros(1)])
    head = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
    (folder / "holds.vnnlib").write_text(f"{head}(assert (>= Y_0 2))")
    (folder / "fails.vnnlib").write_text(f"{head}(assert (>= Y_0 0.5))")
    (folder / "expected.csv").write_text(
        "line,net,property,timeout_s,expected\n0,n.onnx,holds.vnnlib,30,unsat\n1,n.onnx,fails.vnnlib,30,sat\n"
    )
    return folder


def test_counterexamples_are_checked_once_more(benchmark: Path) -> None:
    instance = vnncomp.instances(benchmark)[1]
    assert vnncomp.refuted(instance, "sat\n((X_0 0.75)\n(Y_0 0.75))\n") == ""
    assert "does not meet" in vnncomp.refuted(instance, "sat\n((X_0 0.25)\n(Y_0 0.75))\n")
    assert "does not meet" in vnncomp.refuted(instance, "sat\n((X_0 1.5)\n(Y_0 1.5))\n")
    assert "not in float32" in vnncomp.refuted(instance, "sat\n((X_0 0.7)\n(Y_0 0.7))\n")
    assert "has no 'X_0'" in vnncomp.refuted(instance, "sat\n")


def test_a_benchmark_is_run_and_continued(
    benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(benchmark), "--out", str(tmp_path / "out"), "--every", "1"]
    assert vnncomp.main(words) == 0
    first = capsys.readouterr()
    assert "| made | milpver | 2 | 2 | 0 | 0 | 0 | 0 | 0 |" in first.out
    assert (tmp_path / "out" / "cactus.png").read_bytes().startswith(b"\x89PNG")
    assert vnncomp.main(words) == 0
    assert capsys.readouterr().err == ""


def test_peers_that_are_missing_say_so() -> None:
    for name in _peers.NAMES:
        reason = _peers.missing(name)
        assert reason == "" or reason.startswith("not installed")


def test_the_competitions_scripts(benchmark: Path, repo_root: Path, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("the competition runs on Linux")
    scripts = repo_root / "bench" / "vnncomp"
    result = tmp_path / "result.txt"
    files = [str(benchmark / "n.onnx"), str(benchmark / "fails.vnnlib")]
    environment = {"MILPVER_PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(repo_root)}

    def call(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(scripts / name), *words]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, env=environment, cwd=repo_root
        )

    assert call("prepare_instance.sh", "v1", "made", *files).returncode == 0
    done = call("run_instance.sh", "v1", "made", *files, str(result), "30")
    assert done.returncode == 0, done.stderr
    assert result.read_text().splitlines()[0] == "sat"
    bad = call("run_instance.sh", "v1", "made", str(benchmark / "none.onnx"), files[1], str(result), "30")
    assert (bad.returncode, result.read_text()) == (0, "error\n")
    for name in ("install_tool.sh", "prepare_instance.sh", "run_instance.sh"):
        assert call(name, "v2").returncode == 1
