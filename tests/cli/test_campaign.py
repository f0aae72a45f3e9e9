"""``milpver campaign``: from `init` to `report` as a user types it, its progress, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from milpver import cli as program
from milpver.cli import campaign
from milpver.errors import RecordError
from tests.cli.conftest import Cli, Tiny

ACTIONS = ("init", "run", "status", "resume", "report", "export")


@pytest.fixture
def spec(tiny: Tiny, tmp_path: Path) -> Path:
    """Seven inputs, two budgets."""
    path = tmp_path / "c.toml"
    path.write_text(
        f'[campaign]\nname = "seven"\n[[network]]\npath = "{tiny.model}"\n[data]\npath = "{tiny.data}"\n'
        '[[question]]\nkind = "margin"\nbudgets = ["1,0", "2,1"]\nsolvers = ["bab"]\n',
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize("action", ACTIONS)
def test_every_command_has_an_example_and_explains_each_flag(
    action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["campaign", action, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  milpver campaign {action}" in text
    from milpver.cli.parser import _actions, _parsers  # noqa: PLC0415  the parser itself, to ask it

    assert all(each.help for each in _actions(_parsers()[1][f"campaign {action}"]))


def test_from_the_first_run_to_the_report(cli: Cli, spec: Path, tmp_path: Path) -> None:
    done = cli("campaign", "run", spec, "--quiet")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "14 queries: 14 answered" in done.out
    assert f"next: milpver campaign report {spec}" in done.out
    again = cli("campaign", "run", spec, "--quiet")
    assert "14 queries: 0 answered, 14 there before" in again.out
    assert cli("campaign", "resume", spec, "--quiet").code == 0
    status = cli("campaign", "status", spec)
    assert re.search(r"margin 1 +tiny +data +budget 2,1 +bab +7 +7 ", status.out)
    assert "seven: 14 of 14 queries done (100.0 %)" in status.out
    found = json.loads(cli("campaign", "status", tmp_path / "c.sqlite", "--json").out)
    assert (found["campaign"], found["planned"], found["done"], found["processes"]) == ("seven", 14, 14, [])
    assert found["cells"][0]["ended"]["misclassified"] == 1
    report = cli("campaign", "report", spec, "--out", tmp_path / "out")
    assert report.out == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert "14 queries answered" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    export = cli("campaign", "export", spec, tmp_path / "x.csv")
    assert export.out == f"14 queries: {tmp_path / 'x.csv'}\n"
    assert len((tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()) == 15


def test_init_writes_a_campaign_that_is_right(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("campaign", "init", "mine.toml").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "digits_fc.onnx",
        "digits_test.npz",
        "mine.toml",
    ]
    from milpver.campaign.plan import make_plan  # noqa: PLC0415  only here
    from milpver.campaign.spec import read_spec  # noqa: PLC0415  as above

    spec = read_spec(Path("mine.toml"))
    assert make_plan(spec).queries == 80
    # What stands there as a comment is right as well.
    text = re.sub(r"^# (\w+ = |\[\[)", r"\1", spec.text, flags=re.MULTILINE)
    text = re.sub(r"^(mean|std|layout|split|scale|keys).*\n", "", text, flags=re.MULTILINE)
    text = text.replace('"digits_fc"', '"fc"')
    assert text.count("\n# ") == 1
    Path("all.toml").write_text(text, encoding="utf-8")
    assert make_plan(read_spec(Path("all.toml"))).queries == 160


def test_init_overwrites_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("mine", encoding="utf-8")
    assert "is there already" in refused("campaign", "init", path, "--model", "a.onnx", "--data", "b.npz")
    assert path.read_text(encoding="utf-8") == "mine"
    assert "no name of a campaign file" in refused("campaign", "init", tmp_path / "c.txt")


def test_mistakes_are_one_line_each(cli: Cli, spec: Path) -> None:
    spec.write_text(spec.read_text(encoding="utf-8") + 'sovlers = ["x"]\nradii = [-1]\n', encoding="utf-8")
    found = cli("campaign", "run", spec)
    assert (found.code, found.out) == (2, "")
    lines = found.err.splitlines()
    assert (
        lines[0] == f"{spec}:11: unknown key 'sovlers' in [question]; did you mean solvers or solver_options?"
    )
    assert lines[1] == f"{spec}:12: radii = -1 is no finite number >= 0"
    assert lines[2].startswith(f"error: {spec} has 2 mistakes: line 11: ")
    assert len(lines) == 3
    assert not spec.with_suffix(".sqlite").exists()


def test_what_makes_no_sense_is_refused(refused: Callable[..., str], spec: Path, tmp_path: Path) -> None:
    assert "needs to know what to do: init, run, status" in refused("campaign")
    assert "unknown command 'runs'; did you mean run" in refused("campaign", "runs")
    assert "did you mean --workers" in refused("campaign", "run", spec, "--worker", "2")
    assert "--workers 0" in refused("campaign", "run", spec, "--workers", "0")
    assert "--retry, whose queries it is for" in refused("campaign", "run", spec, "--timeout", "5")
    assert "--retry solved" in refused("campaign", "run", spec, "--retry", "solved")
    assert "there is no store" in refused("campaign", "status", spec)
    assert f"begin it: milpver campaign run {spec}" in refused("campaign", "resume", spec)
    assert "No such file" in refused("campaign", "status", tmp_path / "none.toml")
    (tmp_path / "c.sqlite").write_text("not a store " * 100, encoding="ascii")
    assert "no store of milpver: it is no SQLite file" in refused("campaign", "run", spec)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_keeps_what_is_done(digits: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        f'[campaign]\n[[network]]\npath = "{digits[0]}"\n[data]\npath = "{digits[2]}"\nindex = "0:200"\n'
        '[[question]]\nkind = "margin"\nbudgets = ["3,2"]\nsolvers = ["highs"]\n',
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "milpver", "campaign", "run", str(path)]
    from milpver import campaign as library  # noqa: PLC0415  only here

    def done() -> int:
        """How many are answered; there may be no store yet, or nothing in it."""
        try:
            return library.status(path).done
        except RecordError:
            return 0

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 240
            while not done():
                assert time.monotonic() < end
                time.sleep(0.1)
            running = library.status(path)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert [owner.pid for owner, _ in running.owners] == [process.pid]
    assert process.returncode == 130, err
    assert "stopping; once more to stop at once" in err
    assert f"the same command goes on: milpver campaign run {path}" in out
    stopped = library.status(path)
    assert 0 < stopped.done < 200
    assert stopped.owners == ()


def test_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(campaign, "FIRST_LINE", 0.0)
    lines = campaign._Lines(quiet=False)
    lines.begin(10, {"robust": 2})
    lines.advance("vulnerable", 1.0)
    lines.tick()
    lines.tick()
    lines.warn("error: something")
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"campaign: 3 of 10 \(2 robust, 1 vulnerable\), \S+ a second, 0\.0 s, about \S+ s left", said[0]
    )
    assert said[1:] == ["error: something"]
    silent = campaign._Lines(quiet=True)
    silent.begin(10, {})
    silent.tick()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name != "posix", reason="a terminal as POSIX has it")
def test_bars_on_a_terminal() -> None:
    code = (
        "from milpver.cli.campaign import _shown\n"
        "with _shown(quiet=False) as shown:\n"
        "    shown.begin(4, {'robust': 1})\n    shown.advance('vulnerable', 1.0)\n    shown.tick()\n"
        "    shown.warn('error: [x] y')\n"
    )
    above, below = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=below, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(below)
    text = b""
    while True:
        try:
            part = os.read(above, 4096)
        except OSError:
            break
        if not part:
            break
        text += part
    os.close(above)
    assert process.wait() == 0
    assert b"error: [x] y" in text
    assert b"2/4" in text
    assert b"1 vulnerable" in text
