"""Ctrl-C: what is done is kept, the input under way is given up, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from milpver.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

#: The network misclassifies digit 19, which is said at once; digit 0 takes minutes in this ball.
DONE, LONG = 19, 0
PATIENCE = 60


def query(digits: tuple[str, ...], file: Path, timeout: str) -> list[str]:
    return [
        "margin", *digits, "--budget", "6,3", "--radius", "0.1", "--index", f"{DONE},{LONG}",
        "--timeout", timeout, "--gap", "0", "--records", str(file),
    ]  # fmt: skip


def started(words: list[str], file: Path) -> subprocess.Popen[str]:
    """The program, once it has written its first record and is at work on the next."""
    process = subprocess.Popen(
        [sys.executable, "-m", "milpver", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_bytes().endswith(b"\n")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(
    digits: tuple[str, ...], tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.jsonl"
    words = query(digits, file, "4")
    process = started(words, file)
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert time.monotonic() - began < 3
    assert "stopping" in err
    assert "Traceback" not in err
    assert "1 input: 1 misclassified; 1 left" in out
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [DONE]
    if number is signal.SIGINT:
        before = file.read_text()
        assert main(words) == 0
        text = file.read_text()
        assert text.startswith(before)
        assert [json.loads(line)["index"] for line in text.splitlines()] == [DONE, LONG]
        assert json.loads(text.splitlines()[1])["status"] == "timeout"
        assert "19*" in capsys.readouterr().out


def test_a_second_one_stops_at_once(digits: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    process = started(query(digits, file, "600"), file)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [DONE]


def test_handlers_are_given_back_and_the_flag_is_set() -> None:
    from milpver.cli.interrupts import Interrupts  # noqa: PLC0415

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        assert not interrupts.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_before_the_run_starts_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("milpver.cli.info.describe", interrupted)
    assert main(["info", str(tiny.model)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
