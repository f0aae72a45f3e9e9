"""Tables, progress and values: what people read, and how they say numbers."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import pytest

from milpver.cli import progress as progress_module
from milpver.cli.margin import FINDING
from milpver.cli.progress import progress
from milpver.cli.table import Column, print_table, rounded, seconds
from milpver.cli.values import memory_size, number, solver_options, whole
from milpver.errors import QueryError


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def record(index: int, **changes: Any) -> dict[str, Any]:
    """What a margin record holds, as far as the table needs it."""
    found = {
        "index": index, "label": 7, "predicted": 7, "status": "optimal", "verdict": "vulnerable",
        "lower": -12.345678, "upper": -12.345678, "target": 3, "nodes": 5318, "seconds": 60.02,
        "removed": [[1, neuron] for neuron in range(10, 23)] + [[2, 5]], "solver": "closed-form",
    }  # fmt: skip
    return found | changes


ROWS = [
    record(118),
    record(119, verdict="unknown", status="timeout", solver="highs"),
    record(120, status="misclassified", verdict="unknown", lower=None, upper=None, target=None, removed=None),
    record(121, removed=[], verdict="robust", lower=1.5e-5, upper=1e7),
]
COLUMNS = (Column("index"), *FINDING.columns)


def shown(stream: io.StringIO) -> list[str]:
    print_table(COLUMNS, [(str(each["index"]), *FINDING.row(each)) for each in ROWS], stream)
    return stream.getvalue().splitlines()


def test_at_80_columns_numbers_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown(Terminal())]
    assert max(map(len, lines)) <= 90  # what these numbers need, since none of them is cut
    text = "\n".join(lines)
    for word in ("118", "-12.3457", "5318", "60.02", "1.50e-05", "1e+07", "index", "verdict", "target"):
        assert word in text.split()
    assert "…" not in text


def test_a_pipe_folds_nothing() -> None:
    lines = shown(io.StringIO())
    assert len(lines) == 5
    assert "1:10,11,12,13,14,15,16,17,18,19,20,21,22 2:5" in lines[1]
    assert "unknown (timeout)" in lines[2]
    assert lines[3].split() == ["120", "7", "7", "misclassified", "5318", "60.02", "closed-form"]
    assert lines[4].split()[3:8] == ["robust", "1.50e-05", "1e+07", "3", "-"]
    assert "\x1b" not in "".join(lines)


def test_markup_in_cells_is_text() -> None:
    stream = io.StringIO()
    print_table((Column("name", right=False),), [("[red]a[/red] :smile:",)], stream)
    assert "[red]a[/red] :smile:" in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (None, 4, ""), (0.0, 4, "0.0000"), (1.23456, 4, "1.2346"), (-0.00001, 4, "-1.00e-05"),
        (123456789.0, 4, "1.23457e+08"), (0.1282606, 6, "0.128261"),
    ],
)  # fmt: skip
def test_rounded(value: float | None, decimals: int, text: str) -> None:
    assert rounded(value, decimals) == text


def test_seconds() -> None:
    assert (seconds(0.004), seconds(59.996), seconds(3600.4)) == ("0.00", "60.00", "3600")


# ------------------------------------------------------------------------------------------ progress


def test_lines_now_and_then_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    stream = io.StringIO()
    monkeypatch.setattr(progress_module, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("margin", 3, quiet=False) as bar:
        bar.tick()
        assert stream.getvalue() == ""
        clock[0] += 6
        bar.tick()
        clock[0] += 6
        bar.advance("robust")
        clock[0] += 30
        bar.advance("robust")
    assert stream.getvalue().splitlines() == [
        "margin: 0 of 3 inputs, 6 s",
        "margin: 2 of 3 inputs (2 robust), 42 s",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("margin", 2, quiet=False) as bar:
        bar.tick()
        bar.advance("robust")
        bar.warn("input 0: [no] answer")
        bar.advance("vulnerable")
    text = stream.getvalue()
    assert "2/2" in text
    assert "1 robust, 1 vulnerable" in text
    assert "input 0: [no] answer" in text


def test_quiet_shows_warnings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("margin", 2, quiet=True) as bar:
        bar.advance("robust")
        bar.tick()
        bar.warn("input 0: no answer")
    assert stream.getvalue() == "input 0: no answer\n"


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("text", "size"),
    [("4G", 4 << 30), ("512M", 512 << 20), ("1.5g", 3 << 29), ("2T", 2 << 40), ("1024", 1024), ("8KiB", 8192),
     ("1GB", 1 << 30)],
)  # fmt: skip
def test_memory_sizes(text: str, size: int) -> None:
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "1e3", "4 G B", "inf", "0.1", "٤G", "9" * 30])
def test_memory_sizes_that_are_none(text: str) -> None:
    with pytest.raises(QueryError, match="--memory"):
        memory_size(text)


def test_numbers() -> None:
    assert number("--gap", "0", example="1") == 0.0
    assert number("--timeout", "1e-3", above=0.0, example="1") == 0.001
    assert whole("--threads", "+2", least=1, most=4, example="1") == 2
    for text in ("0", "5", "1e1", "٣", "", "1" * 40):
        with pytest.raises(QueryError, match="--threads"):
            whole("--threads", text, least=1, most=4, example="1")


def test_solver_options_come_once() -> None:
    assert solver_options(["a=1", "b = x=y"]) == {"a": "1", "b": "x=y"}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(QueryError, match="--solver-option"):
            solver_options(wrong)
