"""`milpver train` from the command line: the file, its log and checkpoint, and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from milpver.cli import main
from milpver.onnx_import import load_network


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes in eight dimensions."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (0.3 * y[:, None] + 0.2 * rng.random((200, 8))).astype(np.float32)
    path = tmp_path / "train.npz"
    np.savez(path, x=x, y=y.astype(np.int64))
    return path


def command(images: Path, *more: str) -> list[str]:
    words = ["train", "--arch", "8-10-6-2", "--data", str(images), "--epochs", "6", "--lr", "0.02", "--quiet"]
    return [*words, "--save", str(images.parent / "net.onnx"), *more]


def test_a_network_is_trained_written_and_described(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = images.parent / "net.csv"
    extra = ("--method", "exact-bound", "--budget", "20%,1", "--warmup", "1", "--ramp", "2")
    assert main(command(images, *extra, "--test-data", str(images), "--log", str(log))) == 0
    said = capsys.readouterr().out
    assert "budget 2,1" in said
    assert "on 200 training images" in said
    assert "on 200 test images" in said
    network = load_network(images.parent / "net.onnx")
    assert [layer.width for layer in network.layers] == [10, 6]
    assert network.sha256 in said
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert len(rows) == 6
    data = np.load(images)
    right = network.graph.evaluate(data["x"].astype(np.float64)).argmax(1) == data["y"]
    assert f"{100 * right.mean():.2f} %" in said


def test_a_finished_checkpoint_gives_the_same_file_again(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("--checkpoint", str(images.parent / "net.ckpt"))
    assert main(command(images, *kept)) == 0
    first = (images.parent / "net.onnx").read_bytes()
    assert main(command(images, *kept)) == 0
    assert (images.parent / "net.onnx").read_bytes() == first
    assert main(command(images, *kept, "--seed", "3")) == 2
    assert "another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--budget", "1"), "2 gateable layers"),
        (("--method", "robust"), "budget"),
        (("--method", "magic"), "exact-bound"),
        (("--method", "robst"), "did you mean robust"),
        (("--schedule", "cosin"), "did you mean cosine"),
        (("--arch", "9-4-2"), "takes 9 inputs"),
        (("--epochs", "none"), "--epochs"),
        (("--targeted", "1.5"), "from 0 to 1"),
        (("--save", "/nowhere/net.onnx"), "no folder"),
        (("--std", "0"), "--std"),
    ],
)
def test_mistakes_are_said_in_one_line(
    images: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(command(images, *more)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nothing_is_written_over_what_is_read(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = images.read_bytes()
    kept = str(images.parent / "kept")
    for more, said in (
        (("--save", str(images)), "is the data as well"),
        (("--save", kept, "--log", kept), "is the log as well"),
        (("--log", str(images)), "is the data as well"),
        (("--checkpoint", str(images)), "is the data as well"),
        (("--save", str(images), "--test-data", str(images)), "is the data as well"),
    ):
        assert main(command(images, *more)) == 2
        assert said in capsys.readouterr().err
    assert images.read_bytes() == content


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_is_noticed_before_the_training(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milpver.train.fit.Training", lambda *_, **__: pytest.fail("trained"))
    assert main(command(images, "--save", "/proc/net.onnx")) == 2
    assert "--save /proc/net.onnx" in capsys.readouterr().err
