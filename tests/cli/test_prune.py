"""`milpver prune` from the command line: a smaller file with the accuracy that is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from milpver.onnx_import import load_network
from tests.cli.conftest import Cli, Tiny


@pytest.mark.parametrize("method", ["l1", "l2", "taylor", "actmean", "random"])
def test_a_smaller_network_is_written(cli: Cli, tiny: Tiny, tmp_path: Path, method: str) -> None:
    small = tmp_path / "small.onnx"
    result = cli("prune", *tiny.common, "--budget", "2,1", "--method", method, "--save", small)
    assert (result.code, result.err) == (0, "")
    network = load_network(small)
    assert [layer.width for layer in network.layers] == [4, 4]
    right = 100 * (network.graph.evaluate(tiny.x.astype(np.float64)).argmax(1) == tiny.y).mean()
    assert result.out.splitlines()[-1].endswith(f"-> {right:.2f} %")
    assert network.sha256 in result.out


def test_weights_alone_need_no_data(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    result = cli("prune", tiny.model, "--budget", "0,3", "--save", tmp_path / "small.onnx")
    assert result.code == 0
    assert "layer 1 (h1): 6 -> 6\n" in result.out
    assert "layer 2 (h2): 5 -> 2, removed " in result.out


def test_mistakes_are_said(refused: Callable[..., str], tiny: Tiny, tmp_path: Path) -> None:
    save = ("--save", tmp_path / "small.onnx")
    assert "removes nothing" in refused("prune", tiny.model, "--budget", "0,0", *save)
    assert "without --data" in refused("prune", tiny.model, "--budget", "1,0", "--method", "taylor", *save)
    over = refused("prune", tiny.model, "--budget", "1,0", "--save", tiny.model)
    assert "is the network as well" in over
    assert "one of l1, l2" in refused("prune", tiny.model, "--budget", "1,0", "--method", "magic", *save)
    nowhere = ("--save", tmp_path / "no" / "small.onnx")
    assert "cannot be written" in refused("prune", tiny.model, "--budget", "1,0", *nowhere)
