"""Other verifiers beside ours: what they are asked, what is made of their answers, and that they are killed.

The pure parts need no peer: a script stands for one. Where Marabou or OMLT is installed (see
``bench/README.md``), it answers small properties and distances for real.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench import _peers, distance, vnncomp
from milpver.distance import distances
from milpver.graph import Affine, Gate, Graph, Input, Relu
from milpver.linear import Conv, Dense, diagonal
from milpver.property_file import load_property
from milpver.query import Options
from tests.nets import network_of, random_network

HEAD = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
#: Properties of y = x over [0, 1], and whether they have a counterexample.
PROPERTIES = {
    "holds": ("(assert (>= Y_0 2))", "unsat"),
    "fails": ("(assert (>= Y_0 0.5))", "sat"),
    "edge": ("(assert (>= Y_0 1))", "sat"),
    "either": ("(assert (or (and (>= Y_0 2)) (and (<= Y_0 0.25) (>= Y_0 0.125))))", "sat"),
    "neither": ("(assert (or (and (>= Y_0 2)) (and (<= Y_0 0.25) (>= Y_0 0.5))))", "unsat"),
}


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """y = x over [0, 1] with the properties above."""
    folder = tmp_path / "made"
    folder.mkdir()
    network_of(folder / "n.onnx", [np.array([[1.0]]), np.array([[1.0]])], [np.zeros(1), np.zeros(1)])
    lines = ["net,property,timeout_s,expected"]
    for name, (text, expected) in PROPERTIES.items():
        (folder / f"{name}.vnnlib").write_text(f"{HEAD}{text}")
        lines.append(f"n.onnx,{name}.vnnlib,30,{expected}")
    (folder / "expected.csv").write_text("\n".join(lines) + "\n")
    return folder


def instance(benchmark: Path, name: str) -> vnncomp.Instance:
    return next(found for found in vnncomp.instances(benchmark) if found.prop == f"{name}.vnnlib")


# ------------------------------------------------------------------------------- what peers say


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("holds\n", "unsat"),
        ("violated\n((X_0 1.0))", "sat"),
        ("safe-incomplete", "unsat"),
        ("unsafe-pgd", "sat"),
        ("timeout", "timeout"),
        ("TIMEOUT,12.5", "timeout"),
        ("unknown", "unknown"),
        ("error: no memory", "error"),
        ("Traceback (most recent call last)", "error"),
        ("", "error"),
    ],
)
def test_answers_in_result_files(text: str, found: str) -> None:
    assert _peers.answer_of(text) == found


def test_counterexamples_in_result_files() -> None:
    found = _peers.witness_of("sat\n((X_1 -2e-3)\n(X_0 0.5)\n(Y_0 7))\n")
    assert found is not None
    assert found.tolist() == [0.5, -2e-3]
    assert _peers.witness_of("sat\n((X_1 1.0))") is None
    assert _peers.witness_of("unsat\n") is None


def test_a_counterexample_is_not_lost_behind_an_alternative_that_takes_all_the_time() -> None:
    asked: list[tuple[int, float]] = []

    def ask(number: int, rows: _peers.Rows, left: float) -> _peers.Answer:
        asked.append((number, left))
        assert rows == []
        return ("timeout", None) if number == 0 else ("sat", np.array([0.5]))

    word, witness = _peers.combined([[], []], ask, time.monotonic() + 100)
    assert (word, [number for number, _ in asked]) == ("sat", [0, 1])
    assert witness is not None
    assert asked[0][1] == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (["unsat", "unsat"], [], "unsat"),
        (["timeout", "unsat"], ["unsat"], "unsat"),
        (["timeout", "unsat"], ["timeout"], "timeout"),
        (["unknown", "unsat"], ["sat"], "sat"),
        (["unknown", "error"], ["unknown", "error"], "error"),
        (["unknown", "timeout"], ["unknown", "timeout"], "timeout"),
    ],
)
def test_answers_to_alternatives_make_one(first: list[str], second: list[str], found: str) -> None:
    words = iter([*first, *second])
    word, _ = _peers.combined([[], []], lambda *_: (next(words), None), time.monotonic() + 100)
    assert word == found
    assert list(words) == []


def test_no_time_is_a_timeout() -> None:
    def ask(number: int, rows: _peers.Rows, left: float) -> _peers.Answer:
        raise AssertionError(f"asked about {number}, {rows}, {left}")

    assert _peers.combined([[]], ask, time.monotonic() - 1) == ("timeout", None)


# ------------------------------------------------------------------------------- what peers are asked


def test_a_chain_of_layers_is_the_network() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    scale, shifts = rng.normal(size=3), [rng.normal(size=n) for n in (3, 4, 2)]
    graph = Graph(
        (
            Input(3),
            Affine(((0, diagonal(scale)),), shifts[0]),
            Affine(((1, Dense(first)),), shifts[1]),
            Relu(2, 4),
            Gate(3, np.arange(4), 4),
            Affine(((4, Dense(second)),), shifts[2]),
        )
    )
    layers = _peers.chain(graph)
    assert [(weights.shape, rectified) for weights, _, rectified in layers] == [
        ((4, 3), True),
        ((2, 4), False),
    ]
    x = rng.normal(size=(5, 3))
    value = x
    for weights, bias, rectified in layers:
        value = value @ weights.T + bias
        value = np.maximum(value, 0) if rectified else value
    np.testing.assert_allclose(value, graph.evaluate(x), rtol=1e-12, atol=1e-12)


def test_what_is_no_chain_is_refused() -> None:
    kernel = np.ones((1, 1, 2, 2))
    conv = Conv(kernel, (1, 2, 2), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    with pytest.raises(ValueError, match="convolution"):
        _peers.chain(Graph((Input(4), Affine(((0, conv),), np.zeros(1)))))
    eye = Dense(np.eye(2))
    residual = Graph(
        (
            Input(2),
            Affine(((0, eye),), np.zeros(2)),
            Relu(1, 2),
            Affine(((2, eye), (0, eye)), np.zeros(2)),
        )
    )
    with pytest.raises(ValueError, match="no layer of a chain"):
        _peers.chain(residual)


def test_rows_over_inputs_and_outputs(tmp_path: Path) -> None:
    path = tmp_path / "joint.vnnlib"
    path.write_text(f"{HEAD}(assert (or (and (>= Y_0 0.5) (<= X_0 0.25))))")
    prop = load_property(path)
    rows = [
        row
        for number, region in enumerate(prop.regions)
        for k in range(len(region.alternatives))
        for row in _peers.rows_of(prop, number, k)
    ]
    assert rows
    assert all(of_outputs.shape == (1,) and of_inputs.shape == (1,) for of_outputs, of_inputs, _ in rows)
    assert any(of_outputs[0] < 0 and limit < 0 for of_outputs, _, limit in rows)


# ------------------------------------------------------------------------------- processes


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in place of nnenum's and OMLT's Python; ``$MODE`` says what it does."""
    if sys.platform == "win32":
        pytest.skip("the script that stands in for a peer is one of a Unix shell")
    script = tmp_path / "python"
    script.write_text(
        """#!/bin/sh
[ "$1" = -c ] && exit 0  # all packages are there
case "$MODE" in
    sat) printf 'violated\\n((X_0 %s))' "$VALUE" > "$6" ;;
    hangs) sleep 60 & echo $! > "$PIDS"; wait ;;
    crashes) echo 'no memory left' >&2; exit 3 ;;
    bracket) echo "bracket $VALUE closed 1.5" ;;
esac
"""
    )
    script.chmod(0o755)
    for name in ("NNENUM_PYTHON", "OMLT_PYTHON"):
        monkeypatch.setenv(name, str(script))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    return script


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if not state.exists():
        return False
    return state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.usefixtures("stand_in")
def test_a_peer_that_hangs_is_killed_with_all_that_it_started(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "hangs")
    monkeypatch.setattr(_peers, "GRACE", 0.5)
    began = time.monotonic()
    answer, seconds, _, note = vnncomp.run("nnenum", instance(benchmark, "holds"), 3.0, 1)
    assert (answer, note) == ("timeout", "killed")
    assert time.monotonic() - began < 15
    assert seconds >= 3.4
    pid = int((tmp_path / "pids").read_text())
    if Path("/proc").is_dir():
        end = time.monotonic() + 5
        while alive(pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not alive(pid)


@pytest.mark.usefixtures("stand_in")
def test_a_peer_that_crashes_is_an_error_with_its_words(
    benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODE", "crashes")
    answer, _, _, note = vnncomp.run("nnenum", instance(benchmark, "holds"), 20.0, 1)
    assert answer == "error"
    assert "no memory left" in note
    assert "exit status 3" in note


@pytest.mark.parametrize(
    ("name", "value", "begins", "mark"),
    [
        ("fails", "0.75", "", "right"),
        ("fails", "0.49999", "within 0.0001 only", "right"),
        ("fails", "0.25", "the counterexample misses the property by 0.25", "wrong"),
        ("fails", "1.25", "the counterexample misses the property by 0.25", "wrong"),
        ("edge", "1.0000001", "", "right"),
        ("holds", "1.0", "the counterexample misses the property by 1", "wrong"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_a_peers_counterexample_is_checked(
    benchmark: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, begins: str, mark: str
) -> None:
    monkeypatch.setenv("MODE", "sat")
    monkeypatch.setenv("VALUE", value)
    asked = instance(benchmark, name)
    answer, seconds, used, note = vnncomp.run("nnenum", asked, 20.0, 1)
    assert answer == "sat"
    assert note.startswith(begins)
    assert bool(note) == bool(begins)
    values = (*asked.key, "20.0", "1", "nnenum", asked.expected, answer, str(seconds), str(used), note)
    row = dict(zip(vnncomp.COLUMNS, values, strict=True))
    assert vnncomp.mark(row) == mark
    if mark == "wrong":
        # A counterexample that is none is wrong, whatever is known of the instance.
        assert vnncomp.mark({**row, "expected": "unknown"}) == "wrong"
        assert next(vnncomp.table([row])) == "**1 wrong answers**"


def test_a_counterexample_may_be_missing(benchmark: Path) -> None:
    assert vnncomp.missed(instance(benchmark, "fails"), "sat\n") == "no counterexample given"
    assert "2 values" in vnncomp.missed(instance(benchmark, "fails"), "sat\n((X_0 1)(X_1 1))")
    assert "infinite" in vnncomp.missed(instance(benchmark, "fails"), "sat\n((X_0 nan))")


def test_a_package_that_is_missing_is_an_error_and_no_verdict(benchmark: Path) -> None:
    if not _peers.missing("marabou"):
        pytest.skip("maraboupy is installed")
    files = [str(benchmark / "n.onnx"), str(benchmark / "holds.vnnlib")]
    done = subprocess.run(
        [sys.executable, "-m", "bench._peers", "marabou", *files, "10"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=_peers.ROOT,
    )
    assert (done.returncode, done.stdout) == (1, "error\n")
    assert "maraboupy" in done.stderr


def test_an_interpreter_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MARABOU_PYTHON", str(tmp_path / "none"))
    assert "MARABOU_PYTHON names no interpreter" in _peers.missing("marabou")
    monkeypatch.setenv("ABCROWN", str(tmp_path / "none.py"))
    assert "ABCROWN names no abcrown.py" in _peers.missing("abcrown")


def test_lines_of_a_table_by_network_and_verdict() -> None:
    values = ("b", "n.onnx", "p", "60.0", "1", "omlt", "sat", "sat", "2.0", "1.0", "")
    row = dict(zip(vnncomp.COLUMNS, values, strict=True))
    lines = list(
        vnncomp.table([row, {**row, "tool": "milpver"}, {**row, "expected": "unsat"}], ("net", "expected"))
    )
    assert [line.split(" | ")[:5] for line in lines if line.startswith("| b |")] == [
        ["| b", "n.onnx", "sat", "milpver", "1"],
        ["| b", "n.onnx", "sat", "omlt", "1"],
        ["| b", "n.onnx", "unsat", "omlt", "1"],
    ]
    assert lines[1].startswith("- omlt: sat for n.onnx p (expected unsat)")


# ------------------------------------------------------------------------------- distances


def query(path: Path, image: list[float], logits: list[float]) -> _peers.Query:
    return _peers.Query(str(path), tuple(image), int(np.argmax(logits)), tuple(logits), 0.0, 1.0, 1.0, 1e-3)


@pytest.mark.usefixtures("stand_in")
def test_brackets_of_a_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = query(tmp_path / "n.onnx", [0.5], [1.0, 0.0])
    monkeypatch.setenv("MODE", "bracket")
    monkeypatch.setenv("VALUE", "0.25 0.2505")
    assert _peers.distance("omlt", asked, 5.0) == (1.5, 0.25, 0.2505, True, "")
    monkeypatch.setenv("MODE", "crashes")
    _, lower, upper, closed, wrong = _peers.distance("omlt", asked, 5.0)
    assert (lower, upper, closed, wrong) == (0.0, 1.0, False, "no memory left")


def test_a_bracket_beside_ours_is_marked_as_wrong() -> None:
    ours = distance.Run(2.0, 0.1, 0.1001, True)
    assert distance.shown(distance.Run(4.0, 0.1, 0.1001, True), ours) == "4"
    assert distance.times(distance.Run(4.0, 0.1, 0.1001, True), ours) == "2"
    assert distance.shown(distance.Run(9.0, 0.0, 0.2, False), ours) == "≥ 9 [0, 0.2]"
    assert distance.times(distance.Run(9.0, 0.0, 0.2, False), ours) == "≥ 4.5"
    for low, high in ((0.2, 0.3), (0.0, 0.05)):
        beside = distance.Run(1.0, low, high, True)
        assert distance.contradicts(beside, ours)
        assert distance.shown(beside, ours).startswith("WRONG")
        assert distance.times(beside, ours) == "–"
    assert distance.shown(distance.Run(1.0, 0.0, 1.0, False, "crashed"), ours) == "error [0, 1]"


# ------------------------------------------------------------------------------- the peers themselves


@pytest.fixture(params=["marabou", "omlt"])
def peer(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    reason = _peers.missing(name)
    if reason:
        pytest.skip(f"{name}: {reason}; see bench/README.md")
    return name


def test_a_peer_answers_properties(peer: str, benchmark: Path) -> None:
    for asked in vnncomp.instances(benchmark):
        answer, _, _, note = vnncomp.run(peer, asked, 30.0, 1)
        assert (asked.prop, answer) == (asked.prop, asked.expected), note
        assert note in ("", "within 0.0001 only")


def test_a_peer_answers_the_competitions_test_set(peer: str, shared_data: Path) -> None:
    folder = shared_data / "vnncomp" / "test"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    decided = 0
    for asked in vnncomp.instances(folder):
        answer, _, _, note = vnncomp.run(peer, asked, 4.0, 1)
        assert answer in (asked.expected, "timeout"), (asked.prop, note)
        decided += answer == asked.expected
    assert decided >= 2


def test_a_peer_says_what_it_cannot_do(peer: str, tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(b"no network")
    (tmp_path / "p.vnnlib").write_text(f"{HEAD}(assert (>= Y_0 2))")
    asked = vnncomp.Instance(tmp_path, "n.onnx", "p.vnnlib", 30.0, "unknown")
    answer, _, _, note = vnncomp.run(peer, asked, 30.0, 1)
    assert answer == "error"
    assert "DecodeError" in note


def test_a_peers_distance_is_ours(peer: str, tmp_path: Path) -> None:
    net = random_network(tmp_path / "n.onnx", [3, 6, 3], seed=4)
    image = np.array([0.25, 0.5, 0.75], dtype=np.float32)
    logits = net.graph.evaluate(image[None].astype(np.float64))[0]
    label = int(np.argmax(logits))
    (ours,) = distances(net, image[None], [label], domain=(0.0, 1.0), options=Options(gap=1e-4, threads=1))
    assert ours.lower is not None
    assert ours.upper is not None
    asked = query(tmp_path / "n.onnx", image.astype(np.float64).tolist(), logits.tolist())
    seconds, lower, upper, closed, wrong = _peers.distance(peer, asked, 60.0)
    assert (closed, wrong) == (True, "")
    assert upper - lower <= asked.gap
    assert lower <= ours.upper + 1e-5
    assert upper >= ours.lower - 1e-5
    assert seconds > 0
