"""``milpver compare``: what it refuses, what it writes, and that an interrupted run goes on."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from milpver import registry
from milpver.cli.compare import options_of
from milpver.cli.parser import parse
from milpver.errors import QueryError

# Fixtures and their types are those of tests/cli/conftest.py.
Cli = Callable[..., Any]
Refused = Callable[..., str]

SOLVERS = [
    name for name in ("highs", "scip", "gurobi") if registry.load("solvers", name).availability().available
]
QUICK = ("--timeout", "20", "--device", "cpu", "--bounds", "budget")


@pytest.fixture
def asked(tiny: Any, tmp_path: Path) -> list[str]:
    """Two solvers on four inputs of the tiny network, the last one misclassified."""
    return [
        "compare", *tiny.common, "--budget", "2,1", "--index", "0,1,2,6", "--solvers", "highs,scip",
        "--report", str(tmp_path / "out"), *QUICK,
    ]  # fmt: skip


def _replaced(words: list[str], flag: str, value: str | None) -> list[str]:
    """The command line with another value of a flag, or without it."""
    kept = list(words)
    if flag in kept:
        at = kept.index(flag)
        del kept[at : at + 2]
    return kept if value is None else [*kept, flag, value]


def _records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


class _Table(HTMLParser):
    """The numbers behind the cells of the results, by row; ``data-value`` holds them in full."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str | None]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self._inside = given.get("id") == "results"
        elif self._inside and tag == "tr":
            self.rows.append([])
        elif self._inside and tag == "td":
            self.rows[-1].append(given.get("data-value"))


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--solvers", "hihgs,scip", "did you mean highs"),
        ("--solvers", "", "--solvers"),
        ("--solvers", "highs,", "--solvers"),
        ("--solvers", "highs,highs", "'highs' twice"),
        ("--encodings", "fusde", "did you mean fused"),
        ("--encodings", "fused,fused", "'fused' twice"),
        ("--bounds", ",", "--bounds"),
        ("--bounds", "alpha", "alpha-crown"),
        ("--question", "margins", "did you mean margin"),
        ("--budget", None, "--budget"),
        ("--budget", "9,9", "budget"),
        ("--question", "distance", "--budget with --question distance"),
        ("--radius", "-1", "--radius"),
        ("--timeout", "0", "--timeout"),
        ("--timeout", "soon", "--timeout"),
        ("--repeat", "0", "--repeat"),
        ("--repeat", "1.5", "--repeat"),
        ("--threads", "0", "--threads"),
        ("--gap", "nan", "--gap"),
        ("--seed", "-1", "--seed"),
        ("--index", "99", "--index"),
        ("--report", "/proc/nowhere/out", "--report"),
        ("--solver-option", "presolve", "is no KEY=VALUE"),
        ("--solver-option", "highs:presolv=off", "did you mean presolve"),
        ("--solver-option", "hihgs:presolve=off", "did you mean highs"),
        ("--solver-option", "highs:presolve=never", "a value that HiGHS takes"),
        ("--solvers", None, "--solvers"),
        ("--report", None, "--report"),
    ],
)
def test_mistakes_are_one_line(
    asked: list[str], refused: Refused, flag: str, value: str | None, said: str, tmp_path: Path
) -> None:
    assert said in refused(*_replaced(asked, flag, value))
    assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.parametrize("more", [("--radius", "0.1"), ("--decide",)])
def test_a_distance_has_no_ball_and_no_sign(
    asked: list[str], refused: Refused, more: tuple[str, ...]
) -> None:
    words = _replaced(_replaced(asked, "--budget", None), "--question", "distance")
    assert f"{more[0]} with --question distance" in refused(*words, *more)


def test_a_report_that_is_a_file_and_a_misspelt_flag_are_refused(
    asked: list[str], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    assert "--report" in refused(*asked)
    assert (tmp_path / "out").read_text() == "mine"
    assert "did you mean --solvers" in refused(*asked, "--solver", "highs")


def test_defaults_are_those_of_margin() -> None:
    ours = vars(parse(["compare", "m", "--data", "d", "--solvers", "highs", "--report", "r"]))
    theirs = vars(parse(["margin", "m", "--data", "d", "--budget", "1"]))
    for name in ("index", "domain", "keys", "split", "scale", "mean", "std", "layout", "bounds"):
        assert ours[name] == theirs[name]
    for name in ("timeout", "gap", "threads", "memory", "seed", "device", "decide", "quiet"):
        assert ours[name] == theirs[name]
    assert ours["encodings"] == theirs["encoding"]


# ------------------------------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, digits: tuple[str, ...]) -> tuple[Path, str]:
    """A real comparison on the shipped network, all solvers here, two repeats; and stdout."""
    import contextlib  # noqa: PLC0415  for this fixture, which capfd cannot serve
    import io  # noqa: PLC0415  as above

    from milpver.cli import main  # noqa: PLC0415  as above

    folder = tmp_path_factory.mktemp("compare") / "out"
    words = [
        "compare", *digits, "--budget", "2,1", "--index", "0:3,19", "--solvers", ",".join(SOLVERS),
        "--repeat", "2", "--report", str(folder), *QUICK,
    ]  # fmt: skip
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(words) == 0
    return folder, shown.getvalue()


def test_numbers_are_those_recomputed_from_the_records(compared: tuple[Path, str]) -> None:
    """Counted again in plain Python, from the file alone."""
    folder, shown = compared
    found = _records(folder)
    table = _Table()
    table.feed((folder / "report.html").read_text(encoding="utf-8"))
    rows = [row for row in table.rows if row]
    keys = found[0]["compared"]
    assert len(rows) == len(keys) == len(SOLVERS)
    limit = found[0]["timeout"]
    first: dict[tuple[int, int], float] = {}
    for key, row in zip(keys, rows, strict=True):
        mine = [each for each in found if each["contender"] == key and each["label"] == each["predicted"]]
        assert len(mine) == 6
        solved = [each["status"] in ("optimal", "decided") for each in mine]
        times = [each["seconds"] if ok else limit for each, ok in zip(mine, solved, strict=True)]
        spent = {(each["index"], each["repeat"]): time for each, time in zip(mine, times, strict=True)}
        first = first or spent
        runs, right, timeouts, memory, wrong, withdrawn, missing, middle, mean, par2, speedup, _, nodes = row
        assert (runs, right) == ("6", str(sum(solved)))
        assert timeouts == str(sum(each["status"] == "timeout" for each in mine))
        assert (memory, wrong, withdrawn, missing) == ("0", "0", "0", "0")
        assert float(str(middle)) == pytest.approx(statistics.median(times))
        assert float(str(mean)) == pytest.approx(statistics.fmean(times))
        doubled = [time if ok else 2 * limit for time, ok in zip(times, solved, strict=True)]
        assert float(str(par2)) == pytest.approx(statistics.fmean(doubled))
        logs = [math.log(first[run] / spent[run]) for run in spent]
        assert float(str(speedup)) == pytest.approx(math.exp(statistics.fmean(logs)))
        counted = [
            each["nodes"] for each, ok in zip(mine, solved, strict=True) if ok and each["solver"] != "bounds"
        ]
        assert nodes is None if not counted else float(str(nodes)) == statistics.median(counted)
        assert f"{statistics.median(times):.3g}" in shown


def test_all_contenders_agree_and_the_closed_form_answers_nothing(compared: tuple[Path, str]) -> None:
    found = _records(compared[0])
    for index in (0, 1, 2):
        mine = [each for each in found if each["index"] == index]
        assert {each["status"] for each in mine} == {"optimal"}
        assert max(each["upper"] for each in mine) - min(each["lower"] for each in mine) < 1e-5
    assert {each["status"] for each in found if each["index"] == 19} == {"misclassified"}
    assert {each["solver"] for each in found} <= {*SOLVERS, "bounds"}


def test_the_report_says_all_that_it_takes_to_repeat_it(compared: tuple[Path, str]) -> None:
    folder, shown = compared
    source = (folder / "report.html").read_text(encoding="utf-8")
    record = _records(folder)[0]
    for value in (
        record["model_sha256"], "digits_fc.onnx", "0:3,19", "highs/fused/budget", "20 s a query",
        "milpver compare", "--solvers highs", "--repeat 2", f"milpver</th><td>{record['milpver']}",
        record["host"]["cpu"], f"{record['host']['cores']} cores", record["host"]["system"],
        f"Python {record['host']['python']}", "numpy", record["inputs_sha256"], "1e-06 absolute",
        "domain</th><td>[0, 1] for every entry",
    ):  # fmt: skip
        assert value in source, value
    for each in _records(folder):
        assert f"{each['requested_solver']} {each['solver_version']}" in source
    assert "1 input left out: the network does not give the label" in shown
    assert {path.name for path in folder.iterdir()} >= {
        "results.jsonl", "table.md", "report.html", "cactus.svg", "cactus.png", "profile.svg",
        "profile.png", "scatter-highs-scip.svg",
    }  # fmt: skip
    assert not list(folder.glob(".*"))


def test_the_command_in_the_report_is_the_same_comparison(compared: tuple[Path, str], cli: Cli) -> None:
    import html  # noqa: PLC0415  here only
    import re  # noqa: PLC0415  as above
    import shlex  # noqa: PLC0415  as above

    folder, _ = compared
    before = (folder / "results.jsonl").read_bytes()
    found = re.search(r"<pre>(.*?)</pre>", (folder / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    words = shlex.split(html.unescape(found[1]))
    assert words[0] == "milpver"
    page = (folder / "report.html").read_bytes()
    result = cli(*words[1:])
    assert result.code == 0, result.err
    assert "runs were already there" in result.out
    assert (folder / "results.jsonl").read_bytes() == before
    assert (folder / "report.html").read_bytes() == page


def test_options_of_one_solver_and_of_all() -> None:
    given = ["pyomo:cbc:ratio=0", "scip:limits/nodes=9", "seed=1", " scip: seed = 2"]
    assert options_of(given, ["scip", "pyomo:cbc", "highs", "scip"]) == {
        "scip": {"limits/nodes": "9", "seed": "2"},
        "pyomo:cbc": {"ratio": "0", "seed": "1"},
        "highs": {"seed": "1"},
    }
    assert options_of([], ["highs"]) == {}
    with pytest.raises(QueryError, match="a second time"):
        options_of(["highs:a=1", "highs:a=2"], ["highs"])


def test_options_are_in_the_records_and_in_the_report(asked: list[str], cli: Cli, tmp_path: Path) -> None:
    words = [*_replaced(asked, "--index", "6"), "--solver-option", "highs:presolve=off"]
    assert cli(*words).code == 0
    folder = tmp_path / "out"
    assert {str(each["solver_options"]) for each in _records(folder)} == {"{'highs': {'presolve': 'off'}}"}
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert "solver options</th><td>highs: presolve=off</td>" in source
    assert "--solver-option=highs:presolve=off" in source
    assert "were already there" in cli(*words).out


# ------------------------------------------------------------------------------- interrupts, resumption


class _After:
    """Ctrl-C once a number of records is written."""

    def __init__(self, file: Path, count: int) -> None:
        self._file = file
        self._count = count

    def __enter__(self) -> _After:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to give back."""

    @property
    def asked(self) -> bool:
        return self._file.exists() and self._file.read_bytes().count(b"\n") >= self._count


def test_an_interrupted_comparison_keeps_what_is_done_and_goes_on(
    asked: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("milpver.cli.compare.Interrupts", lambda: _After(folder / "results.jsonl", 3))
        result = cli(*asked)
    assert result.code == 130
    assert "5 of 8 runs left; the same command goes on with them" in result.out
    assert "3 runs of 8 planned" in (folder / "report.html").read_text()
    kept = (folder / "results.jsonl").read_text()
    assert len(kept.splitlines()) == 3
    # A write that a kill cut short is mended.
    (folder / "results.jsonl").write_text(kept + '{"schema_ver')
    result = cli(*asked)
    assert result.code == 0
    assert "3 of 8 runs were already there" in result.out
    text = (folder / "results.jsonl").read_text()
    assert text.startswith(kept)
    found = _records(folder)
    assert [each["job"] for each in found] == list(range(8))
    assert {(each["contender"], each["index"]) for each in found} == {
        (f"{name}/fused/budget", index) for name in ("highs", "scip") for index in (0, 1, 2, 6)
    }
    assert "all done" in (folder / "report.html").read_text()


def test_interrupted_before_anything_is_done(
    asked: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("milpver.cli.compare.Interrupts", lambda: _After(tmp_path, 0))
        patched.setattr(_After, "asked", True)
        result = cli(*asked)
    assert result.code == 130
    assert "nothing done" in result.out
    assert not (tmp_path / "out" / "report.html").exists()
    assert cli(*asked).code == 0


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--timeout", "21", "timeout is 20.0 there and 21.0 here"),
        ("--solvers", "highs", "compared is"),
        ("--budget", "1,1", "budget is"),
        ("--index", "0,1,2", "inputs is"),
        ("--repeat", "2", "repeats is"),
        ("--seed", "3", "seed is"),
        ("--memory", "3G", "memory is"),
        ("--solver-option", "highs:presolve=off", "solver_options is"),
    ],
)
def test_a_folder_with_another_comparison_is_refused_and_left(
    asked: list[str], cli: Cli, refused: Refused, tmp_path: Path, flag: str, value: str, said: str
) -> None:
    first = _replaced(asked, "--solvers", "highs,scip") if flag != "--index" else asked
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "results.jsonl").write_text("")
    assert cli(*_replaced(_replaced(first, "--index", "6"), "--report", str(folder))).code == 0
    before = (folder / "results.jsonl").read_bytes()
    second = _replaced(_replaced(first, "--index", "6"), flag, value)
    line = refused(*second)
    assert said in line
    assert "--report" in line
    assert "--records" not in line
    assert (folder / "results.jsonl").read_bytes() == before


def test_a_record_of_another_job_is_refused(
    asked: list[str], cli: Cli, refused: Refused, tmp_path: Path
) -> None:
    words = _replaced(asked, "--index", "6")
    assert cli(*words).code == 0
    file = tmp_path / "out" / "results.jsonl"
    found = _records(tmp_path / "out")
    found[0]["contender"], found[1]["contender"] = found[1]["contender"], found[0]["contender"]
    file.write_text("".join(json.dumps(each) + "\n" for each in found))
    assert "job 0 is not of the run with this number" in refused(*words)


# ------------------------------------------------------------------------------------- what is missing


class _Missing:
    """A solver that is not installed."""

    name = "ghost"
    tolerance = 0.0

    def availability(self) -> Any:
        from milpver.solver import Availability  # noqa: PLC0415  here only

        return Availability(False, reason="ghost is not installed; needed: ghost; fix: pip install ghost")


@pytest.fixture
def ghost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that cannot run here."""
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: _Missing() if name == "ghost" else real(kind, name)
    )


@pytest.mark.usefixtures("ghost")
@pytest.mark.parametrize("order", ["highs,ghost", "ghost,highs"])
def test_a_missing_solver_is_named_once_and_the_others_run(
    asked: list[str], cli: Cli, tmp_path: Path, order: str
) -> None:
    result = cli(*_replaced(asked, "--solvers", order), "--quiet")
    assert result.code == 0
    assert result.err.splitlines() == [
        "unavailable: ghost: ghost is not installed; needed: ghost; fix: pip install ghost"
    ]
    found = _records(tmp_path / "out")
    assert {each["status"] for each in found if each["requested_solver"] == "ghost"} == {"unavailable"}
    solved = [each for each in found if each["requested_solver"] == "highs" and each["index"] != 6]
    assert {each["status"] for each in solved} == {"optimal"}
    source = (tmp_path / "out" / "report.html").read_text()
    assert "ghost (not run)" in source
    assert "ghost: 3 unavailable, 0 withdrawn of 3; the first says: ghost is not installed" in source


def test_a_distance_is_compared(asked: list[str], cli: Cli, tmp_path: Path) -> None:
    words = _replaced(_replaced(asked, "--budget", None), "--question", "distance")
    result = cli(*words)
    assert result.code == 0, result.err
    found = _records(tmp_path / "out")
    for index in (0, 1, 2):
        values = [each["upper"] for each in found if each["index"] == index]
        assert len(values) == 2
        assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert "distance" in (tmp_path / "out" / "report.html").read_text()


def test_a_timeout_is_shown_as_one(digits: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    result = cli(
        "compare", *digits, "--budget", "6,3", "--radius", "0.1", "--domain", "0,1", "--index", "0",
        "--solvers", "highs", "--timeout", "0.5", "--gap", "0", "--bounds", "budget",
        "--report", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0
    (found,) = _records(tmp_path / "out")
    assert found["status"] == "timeout"
    assert "≥ 0.5" in result.out
    assert "timeout" in (tmp_path / "out" / "report.html").read_text()


def test_progress_is_told_for_each_solver_and_hidden_by_quiet(
    asked: list[str], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("milpver.cli.compare.FIRST_LINE", 0.0)
    monkeypatch.setattr("milpver.cli.compare.EVERY", 0.0)
    result = cli(*asked)
    assert "compare: highs " in result.err
    assert ", scip " in result.err
    assert "of 4 runs each" in result.err
    quiet = cli(*_replaced(asked, "--report", str(tmp_path / "two")), "--quiet")
    assert quiet.err == ""
    assert "PAR-2" in quiet.out


def test_a_terminal_gets_a_bar_for_each_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    import io  # noqa: PLC0415  here only

    from milpver.cli.compare import _progress  # noqa: PLC0415  as above

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with _progress({"a/f/c": "solver-a", "b/f/c": "solver-b"}, 2, {}, quiet=False) as shown:
        shown.tick()
        shown.advance("a/f/c", "optimal")
        shown.warn("something")
    assert "solver-a" in terminal.getvalue()
    assert "solver-b" in terminal.getvalue()
    assert "1 optimal" in terminal.getvalue()
    assert "something" in terminal.getvalue()
