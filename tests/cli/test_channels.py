"""Channels of convolutions on the command line: budgets name them, records and tables too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.test_channels import conv_network


def test_the_command_line_takes_channels(cli: Any, tmp_path: Path) -> None:
    network = conv_network(tmp_path / "n.onnx", 5)
    x = np.random.default_rng(5).normal(size=(3, 1, 4, 4)).astype(np.float32)
    y = network.graph.evaluate(x.reshape(3, 16).astype(float)).argmax(axis=1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    common = (str(tmp_path / "n.onnx"), "--data", str(tmp_path / "data.npz"))
    folder = tmp_path / "witnesses"
    result = cli(
        "margin", *common, "--budget", "conv1:1,1:1", "--save-witness", str(folder), "--records", "-"
    )
    assert result.code == 0, result.err
    assert all(record["budget"] == "1:1,conv1:1" for record in result.records)
    layers = {place for record in result.records for place, _ in record["removed"]}
    assert "conv1" in layers
    assert layers <= {1, "conv1"}
    shown = cli("info", common[0])
    assert "conv1" in shown.out
    assert "3 channels" in shown.out
    removed = cli("distance", *common, "--domain", "-3,3", "--remove", "conv1:0", "--records", "-")
    assert removed.code == 0, removed.err
    assert all(record["remove"] == [["conv1", 0]] for record in removed.records)
