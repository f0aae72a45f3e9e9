"""The program as a whole: how fast it answers, its exit codes, and what it does where streams break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import milpver
from milpver import cli as program
from milpver.query import Options

COMMANDS = ("info", "margin", "distance", "verify", "substitute", "supports", "demo", "solvers")
PYTHON = (sys.executable, "-m", "milpver")


def start(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, *words], check=False, capture_output=True, text=True, timeout=60, **settings
    )


def test_help_answers_within_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = start("--help")
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)
        assert done.stderr == ""
    assert min(seconds) < 0.5


def test_info_answers_within_one_and_a_half_seconds(digits: tuple[str, ...]) -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        assert start("info", digits[0]).returncode == 0
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 1.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_and_explains_each_flag(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  milpver {command}" in text
    from milpver.cli.parser import _actions, _parsers  # noqa: PLC0415 - the parser itself, to ask it

    for action in _actions(_parsers()[1][command]):
        assert action.help
    assert max(map(len, text.splitlines())) <= 100


def test_defaults_are_those_of_the_library() -> None:
    """All but the bounds, whose default here is the one that scripts were promised."""
    from milpver.cli.parser import parse  # noqa: PLC0415
    from milpver.cli.values import memory_size  # noqa: PLC0415

    for words in (["margin", "m", "--data", "d", "--budget", "1"], ["distance", "m", "--data", "d"]):
        found = parse(words)
        options = Options()
        for name in ("solver", "encoding", "device"):
            assert getattr(found, name) == getattr(options, name)
        for name in ("timeout", "gap", "threads", "seed"):
            assert float(getattr(found, name)) == getattr(options, name)
        assert memory_size(found.memory) == 4 << 30
        assert found.bounds == "alpha-crown"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--version"]) == 0
    assert capsys.readouterr().out == f"milpver {milpver.__version__}\n"
    assert program.main(["--version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["milpver"] == milpver.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"numpy", "torch", "onnx", "highspy"} <= set(found)


def test_values_may_start_with_a_minus_sign(cli: Any, tiny: Any) -> None:
    result = cli(
        "margin", *tiny.common, "--budget", "-,1", "--domain", "-1,1", "--index", "-1", "--records", "-"
    )
    assert result.code == 0
    (record,) = result.records
    assert (record["budget"], record["domain"], record["index"]) == ([0, 1], [-1.0, 1.0], 6)


def test_a_defect_is_one_line_and_code_1(cli: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_path: Path) -> None:
        raise KeyError("of all things")

    monkeypatch.setattr("milpver.cli.info.describe", broken)
    result = cli("info", tiny.model)
    assert result.code == 1
    assert result.err.startswith("error: internal: KeyError: 'of all things'")
    assert len(result.err.splitlines()) == 1
    monkeypatch.setenv("MILPVER_TRACEBACK", "1")
    assert "Traceback" in cli("info", tiny.model).err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")],
)
def test_running_out_of_memory_is_one_line(
    refused: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(_path: Path) -> None:
        raise error

    monkeypatch.setattr("milpver.cli.info.describe", full)
    assert "out of memory" in refused("info", tiny.model)


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m milpver margin --help | true; echo ${{PIPESTATUS[0]}}'],
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny: Any) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PYTHON, "info", str(tiny.model)], check=False, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_stdout_at_all(tiny: Any) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m milpver info "{tiny.model}" >&-; echo $? >&2'],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "2"
    assert done.stderr.startswith("error: stdout is closed")


def test_ascii_terminals_are_enough(tiny: Any) -> None:
    done = start(
        "margin", str(tiny.model), "--data", str(tiny.data), "--budget", "1,1", "--index", "0:2",
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert done.stderr == ""
