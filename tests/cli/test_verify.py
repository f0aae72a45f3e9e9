"""``milpver verify`` and ``supports``: the first line, result files, interrupted batches, and errors."""

from __future__ import annotations

import csv
import gzip
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from milpver.cli import instances as batches
from milpver.cli import verify

HEAD = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)\n"
BOX = "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 -1) (<= X_1 1)))\n"
HOLDS, FAILS = "(assert (>= Y_0 5))", "(assert (>= Y_0 0.5))"


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., None]) -> Path:
    """y0 = max(x0, 0) + max(-x1, 0), y1 = max(x0, 0)."""
    path = tmp_path / "net.onnx"
    weights = ([[1.0, 0.0], [0.0, -1.0]], [[1.0, 1.0], [1.0, 0.0]])
    layers = tuple((np.array(each, dtype=np.float32), np.zeros(2, dtype=np.float32)) for each in weights)
    write_model(path, layers)
    return path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(HEAD + BOX + text)
    return path


def test_unsat_and_sat_with_their_result_files(cli: Any, model: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.txt"
    holds = cli("verify", model, write(tmp_path, "holds.vnnlib", HOLDS), "--result", result)
    assert (holds.code, holds.out, holds.err) == (0, "unsat\n", "")
    assert result.read_text() == "unsat\n"
    fails = cli("verify", model, write(tmp_path, "fails.vnnlib", FAILS), "--result", result)
    assert fails.code == 0
    assert result.read_text() == fails.out
    first, *lines = fails.out.splitlines()
    assert first == "sat"
    text = " ".join(lines)
    assert re.fullmatch(r"\(\(X_0 \S+\) \(X_1 \S+\) \(Y_0 \S+\) \(Y_1 \S+\)\)", text)
    x0, x1, y0, y1 = (float(value) for value in re.findall(r"[XY]_\d (\S+?)\)", text))
    x = np.array([[x0, x1]], dtype=np.float32)
    assert x.tolist() == [[x0, x1]]
    session = onnxruntime.InferenceSession(str(model))
    assert session.run(None, {"input": x})[0].tolist() == [[y0, y1]]
    assert y0 >= 0.5


def test_a_packed_property(cli: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress((HEAD + BOX + HOLDS).encode()))
    assert cli("verify", model, path).out == "unsat\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(assert (>= Y_0 5)", "line 3: an unbalanced parenthesis"),
        ("(assert (>= Y_2 5))", "line 3: the undeclared variable Y_2"),
        ("(assert (>= Y_0 nan))", "line 3: 'nan'"),
        ("(assert (>= X_0 2)) (assert (>= Y_0 5))", "line 3: an empty box: 2 <= X_0 <= 1"),
    ],
)
def test_malformed_properties_are_errors_and_no_verdicts(
    cli: Any, model: Path, tmp_path: Path, text: str, said: str
) -> None:
    result = tmp_path / "result.txt"
    found = cli("verify", model, write(tmp_path, "bad.vnnlib", text), "--result", result)
    assert (found.code, found.out) == (2, "error\n")
    assert result.read_text() == "error\n"
    assert len(found.err.splitlines()) == 1
    assert "bad.vnnlib" in found.err
    assert said in found.err


def test_other_mistakes_are_errors_too(cli: Any, model: Path, tmp_path: Path) -> None:
    holds = write(tmp_path, "holds.vnnlib", HOLDS)
    for words, said in (
        ((model,), "1 file;"),
        ((model, tmp_path / "none.vnnlib"), "No such file"),
        ((tmp_path / "none.onnx", holds), "No such file"),
        ((holds, holds), "no ONNX file"),
        ((model, holds, "--budget", "7,7,7"), "budget"),
        ((model, holds, "--solver", "nothing"), "nothing"),
        ((holds, "--network", "f"), "NAME=FILE"),
        ((model, holds, "--timeout", "-1"), "--timeout -1"),
        ((model, holds, "--solver", "autoo"), "did you mean auto?"),
        ((model, holds, "--bounds", "crwn"), "did you mean crown"),
        ((model, holds, "--counterexamples", tmp_path), "--counterexamples"),
    ):
        found = cli("verify", *words)
        assert (found.code, found.out) == (2, "error\n"), words
        assert said in found.err


def test_a_result_is_never_an_older_one_nor_written_over_what_is_read(
    cli: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed leaves an empty file, not the answer of the run before."""
    holds, result = write(tmp_path, "holds.vnnlib", HOLDS), tmp_path / "result.txt"
    result.write_text("sat\n")

    def killed(*_: object) -> str:
        assert result.read_text() == ""
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(verify, "_instance", killed)
        with pytest.raises(SystemExit):
            cli("verify", model, holds, "--result", result)
    before = holds.read_bytes(), model.read_bytes()
    for words in ((model, holds, "--result", holds), (model, holds, "--result", model)):
        found = cli("verify", *words)
        assert (found.code, found.out) == (2, "error\n")
        assert "is a file that is read" in found.err
    assert (holds.read_bytes(), model.read_bytes()) == before
    monkeypatch.setattr(verify, "_instance", lambda *_: pytest.fail("asked, with nowhere to write to"))
    found = cli("verify", model, holds, "--result", tmp_path / "no" / "result.txt")
    assert (found.code, found.out) == (2, "error\n")
    assert "--result" in found.err


def test_a_budget_is_part_of_the_question(cli: Any, model: Path, tmp_path: Path) -> None:
    text = "(assert (<= Y_0 0.5)) (assert (>= X_0 0.75))"
    path = write(tmp_path, "p.vnnlib", text)
    assert cli("verify", model, path).out == "unsat\n"
    removed = cli("verify", model, path, "--budget", "1")
    assert removed.out.startswith("sat\n")
    assert "1:0" in removed.err


def test_queries_in_version_2(cli: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("vnnlib", reason="the package vnnlib is not installed")
    path = tmp_path / "q.vnnlib"
    path.write_text(
        "(vnnlib-version <2.0>)\n(declare-network f\n (declare-input X float32 [1,2])\n"
        " (declare-output Y float32 [1,2]))\n(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0)))\n"
        "(assert (and (>= X[0,1] -1.0) (<= X[0,1] 1.0)))\n(assert (>= Y[0,0] 0.5))\n"
    )
    found = cli("verify", path, "--network", f"f={model}")
    lines = found.out.splitlines()
    assert (lines[0], lines[1], lines[4]) == ("sat", "X float32 [1,2]", "Y float32 [1,2]")
    x = np.array([[float(value) for value in lines[2:4]]], dtype=np.float32)
    session = onnxruntime.InferenceSession(str(model))
    assert session.run(None, {"input": x})[0].tolist() == [[float(value) for value in lines[5:7]]]
    wrong = cli("verify", path, "--network", f"g={model}")
    assert (wrong.code, wrong.out) == (2, "error\n")
    assert "declares the network f" in wrong.err


TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [1,2]))
(declare-network g RELATION (declare-input U float32 [1,2]) (declare-output V float32 [1,2]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] -1.0) (<= X[0,1] 1.0)))
(assert (and (== X[0,0] U[0,0]) (== X[0,1] U[0,1])))
(assert (or (> V[0,0] (+ Y[0,0] EPS)) (> Y[0,0] (+ V[0,0] EPS))))
"""


@pytest.fixture
def other(tmp_path: Path, write_model: Callable[..., None]) -> Path:
    """y0 = max(x0, 0) + 1.25 max(-x1, 0), y1 = max(x0, 0): at most 0.25 from ``model`` on [-1, 1]^2."""
    path = tmp_path / "other.onnx"
    weights = ([[1.0, 0.0], [0.0, -1.0]], [[1.0, 1.25], [1.0, 0.0]])
    layers = tuple((np.array(each, dtype=np.float32), np.zeros(2, dtype=np.float32)) for each in weights)
    write_model(path, layers)
    return path


def test_queries_about_two_networks(cli: Any, model: Path, other: Path, tmp_path: Path) -> None:
    pytest.importorskip("vnnlib", reason="the package vnnlib is not installed")
    path, result = tmp_path / "q.vnnlib", tmp_path / "result.txt"

    def ask(relation: str, eps: str, *words: object) -> Any:
        path.write_text(TWO.replace("RELATION", relation).replace("EPS", eps))
        return cli("verify", path, "--result", result, *words)

    both = ("--network", f"f={model}", "--network", f"g={other}")
    assert ask("", "0.26", *both).out == "unsat\n"
    assert ask("(equal-to f)", "0.01", "--network", f"f={model}").out == "unsat\n"
    found = ask("(isomorphic-to f)", "0.24", *both)
    assert (found.code, found.err) == (0, "")
    assert result.read_text() == found.out
    lines = found.out.splitlines()
    heads = [f"{name} float32 [1,2]" for name in "XYUV"]
    assert [lines[0], *lines[1::3]] == ["sat", *heads]
    x, y, u, v = (np.array([[float(value) for value in lines[k : k + 2]]]) for k in (2, 5, 8, 11))
    assert np.array_equal(x, u)
    for file, given, computed in ((model, x, y), (other, u, v)):
        session = onnxruntime.InferenceSession(str(file))
        (outputs,) = session.run(None, {"input": given.astype(np.float32)})
        assert outputs.tolist() == computed.tolist()
    assert abs(y[0, 0] - v[0, 0]) > 0.24
    for relation, words, said in (
        ("", both[:2], "no file for the network g"),
        ("", (*both, "--network", f"g={model}"), "the network g is given twice"),
        ("", (*both, "--network", f"h={model}"), "the name h"),
        ("(equal-to f)", both, "declares equal to f"),
        ("", (*both, "--budget", "1"), "2 networks"),
    ):
        wrong = ask(relation, "0.1", *words)
        assert (wrong.code, wrong.out, result.read_text()) == (2, "error\n", "error\n")
        assert said in wrong.err
        assert len(wrong.err.splitlines()) == 1


def test_a_list_of_networks_in_a_batch(cli: Any, model: Path, other: Path, tmp_path: Path) -> None:
    pytest.importorskip("vnnlib", reason="the package vnnlib is not installed")
    (tmp_path / "q.vnnlib").write_text(TWO.replace("RELATION", "").replace("EPS", "0.24"))
    listed, results, folder = tmp_path / "i.csv", tmp_path / "r.csv", tmp_path / "found"
    names = (f"[('f', '{model.name}'), ('g', '{other.name}')]", f"[('f', '{model.name}')]", "[('f',", "[]")
    with listed.open("w", newline="") as stream:
        csv.writer(stream).writerows([name, "q.vnnlib", "20"] for name in names)
    assert cli("verify", "--instances", listed, "--results", results, "--counterexamples", folder).code == 0
    assert [row["result"] for row in rows(results)] == ["sat", "error", "error", "error"]
    assert "no file for the network g" in rows(results)[1]["message"]
    assert (folder / "0.counterexample").read_text().count("float32 [1,2]") == 4


def test_the_time_limit_ends_a_run_that_does_not_come_back(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from milpver.cli import verify, main\n"
        "verify.answered = lambda *_: time.sleep(60)\nverify.GRACE = 0.1\n"
        f"main(['verify', 'a', 'b', '--timeout', '0.5', '--result', {str(tmp_path / 'r')!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (0, "timeout\n")
    assert (tmp_path / "r").read_text() == "timeout\n"


# ------------------------------------------------------------------------------------------- batches


@pytest.fixture
def instances(model: Path, tmp_path: Path) -> Path:
    """Four instances, one of them malformed."""
    write(tmp_path, "holds.vnnlib", HOLDS)
    write(tmp_path, "fails.vnnlib", FAILS)
    write(tmp_path, "bad.vnnlib", "(assert (>= Y_0")
    path = tmp_path / "instances.csv"
    names = ("holds", "bad", "fails", "missing")
    path.write_text("".join(f"{model.name},{name}.vnnlib,20\n" for name in names))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_one_bad_instance_does_not_end_a_batch(cli: Any, instances: Path, tmp_path: Path) -> None:
    results, folder = tmp_path / "results.csv", tmp_path / "found"
    done = cli("verify", "--instances", instances, "--results", results, "--counterexamples", folder)
    assert done.code == 0
    assert [row["result"] for row in rows(results)] == ["unsat", "error", "sat", "error"]
    assert "unbalanced" in rows(results)[1]["message"]
    assert done.out.splitlines()[-1] == "4 of 4 instances: 2 error, 1 sat, 1 unsat"
    assert [path.name for path in folder.iterdir()] == ["2.counterexample"]


def test_a_batch_goes_on_where_it_ended(cli: Any, instances: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    assert cli("verify", "--instances", instances, "--results", results).code == 0
    whole = results.read_bytes()
    lines = whole.splitlines(keepends=True)
    results.write_bytes(b"".join(lines[:3]) + lines[3][:7])  # cut within a line
    again = cli("verify", "--instances", instances, "--results", results)
    assert again.code == 0
    assert [re.sub(r" [0-9.]+ net.onnx ", " ", line) for line in again.out.splitlines()] == [
        "sat fails.vnnlib",
        "error missing.vnnlib",
        "4 of 4 instances: 2 error, 1 sat, 1 unsat",
    ]
    assert [row["result"] for row in rows(results)] == ["unsat", "error", "sat", "error"]


STUB = (sys.executable, str(Path(__file__).with_name("stub_instances.py")))


def test_an_instance_that_hangs_or_crashes_costs_no_other_one(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is ended near its limit, whatever it is doing; the next ones go to a fresh process."""
    monkeypatch.setattr(batches, "COMMAND", STUB)
    monkeypatch.setattr(batches, "GRACE", 1.0)
    listed, results = tmp_path / "i.csv", tmp_path / "r.csv"
    listed.write_text(
        "".join(f"net.onnx,{name}.vnnlib,1\n" for name in ("a", "hang", "b", "crash", "c", "d"))
    )
    assert cli("verify", "--instances", listed, "--results", results).code == 0
    found = rows(results)
    assert [row["result"] for row in found] == ["unsat", "timeout", "unsat", "error", "unsat", "unsat"]
    assert 2.0 <= float(found[1]["seconds"]) < 10
    assert "ended from outside" in found[1]["message"]
    assert "crashed (SIGSEGV)" in found[3]["message"]
    processes = [row["message"] for row in found if row["result"] == "unsat"]
    assert processes[2] == processes[3], "one process answers as long as it can"
    assert len(set(processes)) == 3


def test_a_process_that_cannot_begin_is_an_error_of_every_instance(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    listed, results = tmp_path / "i.csv", tmp_path / "r.csv"
    listed.write_text("a.onnx,a.vnnlib,1\na.onnx,b.vnnlib,nothing\n")
    assert cli("verify", "--instances", listed, "--results", results).code == 0
    assert [row["result"] for row in rows(results)] == ["error", "error"]
    assert "could not begin (exit code 3)" in rows(results)[0]["message"]
    assert "nothing" in rows(results)[1]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupt_keeps_what_is_done(tmp_path: Path) -> None:
    listed, results = tmp_path / "i.csv", tmp_path / "r.csv"
    listed.write_text("".join(f"net.onnx,{name}.vnnlib,60\n" for name in ("a", "hang", "b")))
    code = (
        "import sys; from milpver.cli import instances, main\n"
        f"instances.COMMAND = {STUB!r}\n"
        f"sys.exit(main(['verify', '--instances', {str(listed)!r}, '--results', {str(results)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("unsat ")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == "1 of 3 instances: 1 unsat\n"
    assert [row["result"] for row in rows(results)] == ["unsat"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no instance"), ("a,b\n", "line 1: 2 columns"), ("a,b,1\na,b,1\n", "twice")],
)
def test_instances_files_that_are_none(refused: Any, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "instances.csv"
    path.write_text(text)
    assert said in refused("verify", "--instances", path, "--results", tmp_path / "r.csv")


def test_results_of_other_instances_are_not_continued(refused: Any, instances: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    results.write_text("onnx,vnnlib,timeout,result,seconds,message,sha256\nother.onnx,p.vnnlib,1,sat,1,,\n")
    assert "other.onnx" in refused("verify", "--instances", instances, "--results", results)
    results.write_text("something else\n")
    assert "no file of results" in refused("verify", "--instances", instances, "--results", results)


def test_other_files_stay_as_they_are(refused: Any, instances: Path, tmp_path: Path) -> None:
    """Their last line looks cut short, or they have one alone."""
    path = tmp_path / "notes.txt"
    for text in ("notes without a newline", "first\nsecond", "onnx,vnnlib\nx"):
        path.write_text(text)
        assert "no file of results" in refused("verify", "--instances", instances, "--results", path)
        assert path.read_text() == text
    listed = instances.read_text()
    assert "as well" in refused("verify", "--instances", instances, "--results", instances)
    assert instances.read_text() == listed
    words = ("verify", "--instances", instances, "--results", tmp_path / "r.csv")
    assert "--result " in refused(*words, "--result", tmp_path / "r.txt")
    assert "--counterexamples" in refused(*words, "--counterexamples", path)


def test_results_under_other_masks_are_not_continued(
    cli: Any, refused: Any, model: Path, tmp_path: Path
) -> None:
    """Without masks the property holds, with one neuron removed it does not (the test of a budget above)."""
    listed, results = tmp_path / "i.csv", tmp_path / "r.csv"
    write(tmp_path, "p.vnnlib", "(assert (<= Y_0 0.5)) (assert (>= X_0 0.75))")
    listed.write_text(f"{model.name},p.vnnlib,20\n")
    words = ("verify", "--instances", listed, "--results", results)
    assert cli(*words).code == 0
    assert [row["result"] for row in rows(results)] == ["unsat"]
    assert "without masks" in refused(*words, "--budget", "1")
    results.unlink()
    assert cli(*words, "--budget", "1").code == 0
    assert [(row["result"], row["masks"]) for row in rows(results)] == [("sat", "--budget 1")]
    assert cli(*words, "--budget", "1").out == "1 of 1 instances: 1 sat\n"
    assert "--budget 1" in refused(*words)
    assert "--budget 1" in refused(*words, "--budget", "0")


def test_results_of_files_that_changed_are_not_continued(cli: Any, refused: Any, instances: Path) -> None:
    results = instances.with_name("r.csv")
    words = ("verify", "--instances", instances, "--results", results)
    assert cli(*words).code == 0
    assert [bool(row["sha256"]) for row in rows(results)] == [True, True, True, False]
    assert cli(*words).code == 0
    path = instances.with_name("holds.vnnlib")
    path.write_text(path.read_text() + "; a comment\n")
    assert "holds.vnnlib is another file" in refused(*words)


def test_one_process_at_a_time_writes_results(refused: Any, instances: Path, tmp_path: Path) -> None:
    results = tmp_path / "r.csv"
    with batches._opened(results):
        assert "in use by another" in refused("verify", "--instances", instances, "--results", results)


# ------------------------------------------------------------------------------------------- supports


def test_supports_answers_line_by_line(cli: Any) -> None:
    assert cli("supports", "--vnnlib-versions").out == "1.0\n2.0\n"
    found = cli("supports", "--arithmetic-complexity-theories").out.splitlines()
    assert [line.split(" * ")[0] for line in found] == ["BND", "OUTC", "LIN"]
    assert cli("supports", "--hidden-node-theories").out == "NH\nH\n"
    assert cli("supports", "--multiple-input-output-theories").out == "SIO\nMIO\n"
    assert cli("supports", "--multiple-network-theories").out == "SNET\nMENET\nMINET\nMNET\n"
    assert cli("supports", "--multiple-node-comparison-theories").out == "SNC\nMNC\n"
    assert {"Gemm", "Conv", "Relu"} <= set(cli("supports", "--onnx-operators").out.splitlines())
    oldest, newest = (int(line) for line in cli("supports", "--onnx-opset-versions").out.splitlines())
    assert oldest < newest
    everything = cli("supports").out.splitlines()
    assert everything[everything.index("vnnlib-versions:") + 1 :][:2] == ["  1.0", "  2.0"]
    assert sum(line.endswith(":") for line in everything) == 12
