"""``--save-witness``: its files are replayed with ONNX Runtime alone, as the README beside them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest


def margin_of(model: Path, folder: Path, index: int, array: str = "x") -> tuple[float, Any]:
    """The margin by ONNX Runtime, and the archive."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with np.load(folder / f"{index}_input.npz") as witness:
        found = dict(witness)
    scores = session.run(None, {"input": found[array]})[0]
    margins = scores[..., found["label"]] - scores[..., found["target"]]
    return float(margins.reshape(-1)[0]), found


@pytest.mark.parametrize("radius", ["0", "0.02"])
def test_margins_are_replayed(cli: Any, tiny: Any, tmp_path: Path, radius: str) -> None:
    folder = tmp_path / "deep" / "witnesses"
    result = cli(
        "margin",
        *tiny.common,
        "--budget",
        "2,1",
        "--radius",
        radius,
        "--save-witness",
        folder,
        "--records",
        "-",
    )
    assert result.code == 0
    assert f"witnesses: 6 in {folder}" in result.err
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.txt", *(f"{k}_{kind}" for k in range(6) for kind in ("pruned.onnx", "input.npz"))]
    )
    for record in result.records[:6]:
        k = record["index"]
        margin, found = margin_of(folder / f"{k}_pruned.onnx", folder, k)
        assert margin == pytest.approx(record["upper"], abs=1e-5)
        assert float(found["margin"]) == record["upper"]
        assert found["removed"].tolist() == record["removed"]
        assert found["x"].dtype == np.float32
        assert found["x"].shape == (1, 4)
        assert np.abs(found["x"] - tiny.x[k]).max() <= float(radius)


def test_distances_are_replayed_on_the_file_itself(cli: Any, tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "witnesses"
    result = cli("distance", *tiny.common, "--index", "0:3", "--save-witness", folder, "--records", "-")
    for record in result.records:
        margin, found = margin_of(tiny.model, folder, record["index"])
        assert margin == pytest.approx(0.0, abs=1e-5)
        assert np.abs(found["x"][0] - tiny.x[record["index"]]).max() == pytest.approx(
            record["upper"], abs=1e-6
        )
    assert tiny.model.name in (folder / "README.txt").read_text()


def test_normalised_inputs_are_saved_both_ways(cli: Any, tiny: Any, tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw.npz", tmp_path / "witnesses"
    np.savez(raw, x=tiny.x * 4 + 2, y=tiny.y)
    options = ("--data", raw, "--mean", "2", "--std", "4", "--domain", "2,6", "--index", "0")
    record = cli(
        "margin", tiny.model, *options, "--budget", "1,1", "--save-witness", folder, "--records", "-"
    ).records[0]
    assert margin_of(folder / "0_pruned.onnx", folder, 0)[0] == pytest.approx(record["upper"], abs=1e-4)
    assert cli("distance", tiny.model, *options, "--save-witness", folder).code == 0
    margin, found = margin_of(folder / "network.onnx", folder, 0)
    assert margin == pytest.approx(0.0, abs=1e-4)
    assert margin_of(tiny.model, folder, 0, "x_normalised")[0] == pytest.approx(0.0, abs=1e-4)
    assert found["x"] == pytest.approx(found["x_normalised"] * 4 + 2, abs=1e-5)
    assert "x_normalised" in (folder / "README.txt").read_text()


def test_a_folder_that_cannot_be_made_is_one_line(refused: Any, tiny: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    query = ("margin", *tiny.common, "--budget", "1,1", "--save-witness")
    assert str(file) in refused(*query, file)
    assert str(file / "deeper") in refused(*query, file / "deeper")
