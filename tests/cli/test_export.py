from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import highspy
import pytest

from tests.cli.conftest import Cli, Tiny


def solved(path: Path, out: Path) -> None:
    """What HiGHS says about a program."""
    solver = highspy._core._Highs()
    solver.setOptionValue("output_flag", False)
    solver.readModel(str(path))
    solver.run()
    solver.writeSolution(str(out), 0)


@pytest.mark.parametrize("suffix", [".mps", ".lp"])
@pytest.mark.parametrize("extra", [(), ("--radius", "0.1", "--encoding", "reference", "--mean", "0.5")])
def test_export_and_import(cli: Cli, tiny: Tiny, tmp_path: Path, suffix: str, extra: tuple[str, ...]) -> None:
    path, out = tmp_path / f"q{suffix}", tmp_path / "q.sol"
    result = cli("export", *tiny.common, path, "--index", 2, "--budget", "2,1", *extra)
    assert (result.code, result.err) == (0, "")
    label = int(tiny.y[2])
    assert f"{path}: minimise f_{label} - f_" in result.out
    meaning = json.loads(path.with_suffix(".json").read_text())
    assert (meaning["index"], meaning["label"], meaning["budget"]) == (2, label, [2, 1])
    solved(path, out)
    checked = cli("import-solution", path, out)
    assert (checked.code, checked.err) == (0, "")
    assert "HiGHS" in checked.out
    margin = cli("margin", *tiny.common, "--index", 2, "--budget", "2,1", *extra, "--records", "-", "--quiet")
    (bracket,) = [each for each in margin.records[0]["classes"] if each["target"] == meaning["target"]]
    said = next(line for line in checked.out.splitlines() if "replayed in float64" in line)
    assert float(said.split()[-1]) >= bracket["lower"] - 1e-5
    if bracket["status"] == "optimal":
        assert float(said.split()[-1]) == pytest.approx(bracket["upper"], abs=1e-5)
    last = checked.out.splitlines()[-1]
    assert last.startswith(
        "checks: vulnerable" if float(said.split()[-1]) <= 0 else "checks: the worst margin"
    )


def test_the_network_is_found_from_another_folder(
    cli: Cli, refused: Callable[..., str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(tiny.model, "net.onnx")
    assert cli("export", "net.onnx", "--data", tiny.data, "q.mps", "--index", 0, "--budget", "2,1").code == 0
    solved(Path("q.mps"), Path("q.sol"))
    monkeypatch.chdir(tmp_path)
    files = ("here/q.mps", "here/q.sol")
    assert cli("import-solution", *files).code == 0
    Path("here/net.onnx").rename("moved.onnx")
    assert "name it with --model" in refused("import-solution", *files)
    assert cli("import-solution", *files, "--model", "moved.onnx").code == 0


def test_what_does_not_check_ends_with_2(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    path, out = tmp_path / "q.mps", tmp_path / "q.sol"
    assert cli("export", *tiny.common, path, "--index", 0, "--budget", "2,1").code == 0
    solved(path, out)
    out.write_text(re.sub(r"Objective \S+", "Objective 912.5", out.read_text()))
    result = cli("import-solution", path, out)
    assert result.code == 2
    assert "objective, as stated" in result.out
    assert result.err.startswith(f"error: {out} does not check: the file states the objective 912.5")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q.txt", "--index", "0"), "needed: .mps or .lp"),
        (("q.mps", "--index", "0:2"), "one input a program"),
        (("q.mps",), "no --index, and 7 inputs"),
        (("q.mps", "--index", "0", "--target", "9"), "--target 9"),
        (("q.mps", "--index", "0", "--radius", "-1"), "--radius -1"),
        (("missing/q.mps", "--index", "0"), "No such file"),
        (("q.mps", "--index", "0", "--encoding", "fusd"), "did you mean fused"),
    ],
)
def test_mistakes(
    refused: Callable[..., str],
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("export", *tiny.common, *arguments, "--budget", "2,1")
    assert not list(tmp_path.glob("*.json"))
    assert "is not there" in refused("import-solution", "q.mps", "q.sol")


def test_logs_and_cross_checks(
    cli: Cli, refused: Callable[..., str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logs = tmp_path / "a" / "logs"
    query = (*tiny.common, "--index", "1", "--budget", "2,2", "--bounds", "interval", "--quiet")
    assert cli("margin", *query, "--solver-log", logs).code == 0
    names = sorted(path.name for path in logs.iterdir())
    assert names
    assert all(name.startswith("1-") and name.endswith("-highs.log") for name in names)
    assert cli("margin", *query, "--solver-log", logs).code == 0
    assert sorted(path.name for path in logs.iterdir()) == sorted(
        [*names, *(name.replace(".log", "-2.log") for name in names)]
    )
    (tmp_path / "file").write_text("")
    assert "--solver-log file" in refused("margin", *query, "--solver-log", "file")
    assert "two or more" in refused("margin", *query, "--cross-check", "highs")
    assert "--cross-check highs,,scip" in refused("margin", *query, "--cross-check", "highs,,scip")
    assert "did you mean" in refused("distance", *tiny.common, "--cross-check", "highs,scpi")
    pytest.importorskip("pyscipopt", reason="PySCIPOpt is not installed")
    result = cli("margin", *query, "--cross-check", "highs,scip", "--records", "-")
    assert result.code == 0
    assert result.records[0]["solver"] == result.records[0]["requested_solver"] == "cross-check:highs,scip"
    assert result.records[0]["status"] == "optimal"
    assert not (tmp_path / "milpver-cross-check").exists()
