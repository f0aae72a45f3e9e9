"""The record of results: what was acknowledged survives any kill, and two queries never mix."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milpver.errors import RecordError
from milpver.store import RecordFile, RecordStream

IDENTITY: Mapping[str, Any] = MappingProxyType(
    {
        "schema_version": 1,
        "question": "worst_margin",
        "budget": [2, 1],
        "radius": 0.0,
        "domain": None,
        "decide": False,
    }
)


def record(index: int, **fields: Any) -> dict[str, Any]:
    return {**IDENTITY, "index": index, **fields}


def line(index: int, **fields: Any) -> bytes:
    return json.dumps(record(index, **fields)).encode() + b"\n"


def refusal(call: Callable[[], object], *fragments: str) -> None:
    """``call`` must raise a RecordError of one line, with these fragments in it."""
    with pytest.raises(RecordError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "; needed: " in message
    assert "; fix: " in message
    for fragment in fragments:
        assert fragment in message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def program(source: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program that can import what these tests import."""
    root = Path(sys.modules["milpver"].__file__ or "").resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


# ------------------------------------------------------------------------------------------------ use


def test_new_then_continued(path: Path) -> None:
    with RecordFile.open(path, IDENTITY) as records:
        assert records.done == {}
        assert not records.repaired
        for index in (3, 0, 7):
            records.append(record(index, lower=0.25))
            assert path.read_bytes().endswith(line(index, lower=0.25))
        assert sorted(records.done) == [0, 3, 7]
    with RecordFile.open(path, IDENTITY) as records:
        assert records.done == {index: record(index, lower=0.25) for index in (3, 0, 7)}
        assert not records.repaired
        records.append(record(1))
    assert [json.loads(text)["index"] for text in path.read_text().splitlines()] == [3, 0, 7, 1]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), json_values, max_size=4),
    st.dictionaries(st.integers(0, 99), st.dictionaries(st.text(), json_values, max_size=4), max_size=4),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, identity: dict[str, Any], results: dict[int, dict[str, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    path.unlink(missing_ok=True)
    identity.pop("index", None)
    expected = {index: {**fields, **identity, "index": index} for index, fields in results.items()}
    with RecordFile.open(path, identity) as records:
        for fields in expected.values():
            records.append(fields)
        assert records.done == expected
    with RecordFile.open(path, identity) as records:
        assert records.done == expected
        assert not records.repaired
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == len(expected)


def test_numpy_values_are_converted_exactly(path: Path) -> None:
    x = np.array([[0.1, np.pi]], dtype=np.float32)
    fields = record(
        np.int64(4),  # type: ignore[arg-type]  # what a loop over an array gives
        adversarial=x,
        lower=np.float32(0.1),
        upper=np.float64(0.1),
        nodes=np.uint8(3),
        proven=np.bool_(True),
        removed=((1, 2), (np.int32(3), 4)),
        options=MappingProxyType({"a": np.int8(1)}),
    )
    with RecordFile.open(path, {**IDENTITY, "budget": np.array([2, 1])}) as records:
        records.append(fields)
    back = json.loads(path.read_text())
    np.testing.assert_array_equal(np.array(back["adversarial"], dtype=np.float32), x)
    assert back["lower"] == float(np.float32(0.1))
    assert back["upper"] == 0.1
    assert (back["index"], back["nodes"], back["proven"]) == (4, 3, True)
    assert back["removed"] == [[1, 2], [3, 4]]
    assert back["options"] == {"a": 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.array([1.0, np.inf])])
def test_not_finite_is_a_defect_of_the_caller(path: Path, bad: Any) -> None:
    with RecordFile.open(path, IDENTITY) as records:
        with pytest.raises(ValueError, match="JSON compliant"):
            records.append(record(0, lower=bad))
        with pytest.raises(ValueError, match="JSON compliant"):
            records.append(record(0, classes=[{"upper": bad}]))
        assert records.done == {}
    assert path.read_bytes() == b""


def test_other_defects_of_the_caller(path: Path) -> None:
    with RecordFile.open(path, IDENTITY) as records:
        records.append(record(0))
        for index in (0, -1, 1.0, True, None, "1"):
            with pytest.raises(ValueError, match="index"):
                records.append(record(0) | {"index": index})
        with pytest.raises(ValueError, match=r"radius is 0.5 there and 0.0 here"):
            records.append(record(1, radius=0.5))
        with pytest.raises(ValueError, match="no field 'schema_version'"):
            records.append({"index": 1})
        with pytest.raises(TypeError, match="set"):
            records.append(record(1, removed={1}))
    assert path.read_bytes() == line(0)
    with pytest.raises(ValueError, match="closed"):
        records.append(record(1))
    records.close()
    with pytest.raises(ValueError, match="JSON compliant"):
        RecordFile.open(path, {"gap": math.nan})


# ------------------------------------------------------------------------------------------------ identity


@pytest.mark.parametrize(
    ("field", "value", "there", "here"),
    [
        ("budget", [2, 2], "[2, 1]", "[2, 2]"),
        ("radius", 0.1, "0.0", "0.1"),
        ("domain", [0, 1], "null", "[0, 1]"),
        ("decide", True, "false", "true"),
        ("decide", 0, "false", "0"),
        ("schema_version", True, "1", "true"),
        ("question", "boundary_distance", '"worst_margin"', '"boundary_distance"'),
    ],
)
def test_a_file_of_another_query_is_refused(
    path: Path, field: str, value: Any, there: str, here: str
) -> None:
    path.write_bytes(line(0) + line(1))
    refusal(
        partial(RecordFile.open, path, {**IDENTITY, field: value}),
        f"{path}, line 1: {field} is {there} there and {here} here",
        "another file",
    )
    assert path.read_bytes() == line(0) + line(1)


def test_every_record_is_compared_and_nothing_is_mended_in_a_file_that_is_refused(path: Path) -> None:
    content = line(0) + line(1) + line(2, radius=0.25) + b'{"torn'
    path.write_bytes(content)
    refusal(partial(RecordFile.open, path, IDENTITY), "line 3: radius is 0.25 there and 0.0 here")
    path.write_bytes(line(0))
    refusal(
        partial(RecordFile.open, path, {**IDENTITY, "gap": 1e-6}),
        "line 1: there is no field 'gap', which is 1e-06",
    )


def test_numbers_are_compared_as_numbers_and_lists_as_lists(path: Path) -> None:
    path.write_bytes(line(0))
    with RecordFile.open(path, {**IDENTITY, "radius": 0, "budget": (2.0, 1)}) as records:
        assert list(records.done) == [0]
    path.write_bytes(line(0, solver={"name": "highs", "gap": [1]}))
    with RecordFile.open(path, {"solver": {"gap": [1.0], "name": "highs"}}) as records:
        assert list(records.done) == [0]
    for other in ({"name": "highs", "gap": [2]}, {"name": "highs"}, [1], {"name": "highs", "gap": [True]}):
        refusal(partial(RecordFile.open, path, {"solver": other}), "line 1: solver is")


# ------------------------------------------------------------------------------------------------ damage


def test_a_file_cut_anywhere_keeps_its_whole_records(path: Path) -> None:
    lines = [line(index, removed=[[1, index]], note='a "quoted" {brace}') for index in range(3)]
    content = b"".join(lines)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = sum(len(b"".join(lines[: k + 1])) - 1 <= length for k in range(3))
        with RecordFile.open(path, IDENTITY) as records:
            assert sorted(records.done) == list(range(whole))
            assert records.repaired == (length not in (0, *(len(b"".join(lines[: k + 1])) for k in range(3))))
            records.append(record(9))
        assert path.read_bytes() == b"".join(lines[:whole]) + line(9)
        with RecordFile.open(path, IDENTITY) as records:
            assert not records.repaired


@pytest.mark.parametrize("tail", [b"\0" * 50, b"{" + b"\0" * 9, b'{"index": 1' + b"\0" * 9])
def test_zeros_that_a_power_cut_leaves_are_cut_off(path: Path, tail: bytes) -> None:
    path.write_bytes(line(0) + tail)
    with RecordFile.open(path, IDENTITY) as records:
        assert list(records.done) == [0]
        assert records.repaired
    assert path.read_bytes() == line(0)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"hello", "line 1 is damaged"),
        (b"hello\n", "line 1 is damaged"),
        (line(0) + b"hello", "line 2 is damaged"),
        (b'{"torn\n' + line(0), "line 1 is damaged"),
        (line(0) + b'{"torn\n', "line 2 is damaged"),
        (line(0) + b"\n" + line(1), "line 2 is damaged"),
        (line(0) + line(1)[:-1] + line(2), "line 2 is damaged"),
        (line(0) + b"[1, 2]\n", "line 2 is damaged (not an object)"),
        (line(0) + b"3", "line 2 is damaged"),
        (line(0) + line(1, lower=math.nan), "line 2 is damaged (NaN is not JSON)"),
        (line(0, upper=math.inf), "line 1 is damaged (Infinity is not JSON)"),
        (line(0) + b"\xff\xfe\n", "line 2 is damaged"),
        (b"\x80\x04\x95\0\0", "line 1 is damaged"),
        (line(0) + b"[" * 100_000 + b"\n", "line 2 is damaged (nested too deeply)"),
        (line(0) + b'{"a": ' + b"9" * 5000 + b"}\n", "line 2 is damaged"),
        (line(0) + line(-1), "line 2 is damaged (index -1"),
        (line(0) + line(1.5), "line 2 is damaged (index 1.5"),  # type: ignore[arg-type]  # on purpose
        (line(0) + line(True), "line 2 is damaged (index True"),
        (json.dumps(dict(IDENTITY)).encode() + b"\n", "line 1 is damaged (index None"),
        (line(5) + line(0) + line(5), "line 3 is damaged (index 5 stands on line 1 already)"),
    ],
)
def test_other_damage_is_reported_and_left_alone(path: Path, content: bytes, fragment: str) -> None:
    path.write_bytes(content)
    refusal(partial(RecordFile.open, path, IDENTITY), str(path), fragment)
    assert path.read_bytes() == content
    path.unlink()  # nothing holds it: the lock is released after a refusal
    RecordFile.open(path, IDENTITY).close()


def test_a_last_line_that_lacks_only_its_end_is_completed(path: Path) -> None:
    path.write_bytes(line(0) + line(1)[:-1])
    with RecordFile.open(path, IDENTITY) as records:
        assert sorted(records.done) == [0, 1]
        assert records.repaired
        records.append(record(2))
    assert path.read_bytes() == line(0) + line(1) + line(2)
    path.write_bytes(b'{"some": "other file"}')
    refusal(partial(RecordFile.open, path, IDENTITY), "line 1: there is no field 'schema_version'")
    assert path.read_bytes() == b'{"some": "other file"}'


WRITER = """
    import sys
    from pathlib import Path
    from milpver.store import RecordFile

    with RecordFile.open(Path(sys.argv[1]), {"seed": 0}) as records:
        print("start", records.repaired, flush=True)
        index = len(records.done)
        while True:
            records.append({"seed": 0, "index": index, "adversarial": [index / 7] * 5000})
            print(index, flush=True)
            index += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this platform has no SIGKILL")
def test_what_was_acknowledged_survives_kills_at_random_instants(path: Path) -> None:
    generator = random.Random(0)
    acknowledged = -1
    for _ in range(6):
        process = program(WRITER, path)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("start")
            time.sleep(generator.uniform(0.0, 0.15))
        finally:
            process.kill()
            out, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL
        whole = out[: out.rfind("\n") + 1].split()
        acknowledged = max([acknowledged, *map(int, whole)])
        with RecordFile.open(path, {"seed": 0}) as records:
            # The one that was being written may have made it to the file without being acknowledged.
            assert sorted(records.done) == list(range(len(records.done)))
            assert len(records.done) >= acknowledged + 1
            for index, fields in records.done.items():
                assert fields["adversarial"] == [index / 7] * 5000
    assert acknowledged >= 0


@pytest.mark.parametrize("instant", ["write", "fsync", "half"])
def test_ctrl_c_leaves_a_record_whole_or_not_at_all(
    path: Path, instant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    def half(fd: int, data: Any) -> int:
        real_write(fd, bytes(data)[: len(data) // 2])
        raise KeyboardInterrupt

    with RecordFile.open(path, IDENTITY) as records:
        records.append(record(0))
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "write" if instant == "half" else instant, half if instant == "half" else interrupt
            )
            with pytest.raises(KeyboardInterrupt):
                records.append(record(1))
        assert path.read_bytes() == line(0)
        assert list(records.done) == [0]
        records.append(record(1))
    assert path.read_bytes() == line(0) + line(1)


# ------------------------------------------------------------------------------------------------ the disk


def test_writes_in_parts_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, bytes(data)[:7]))
    with RecordFile.open(path, IDENTITY) as records:
        records.append(record(0))
        records.append(record(1))
    assert path.read_bytes() == line(0) + line(1)


LIMITED = """
    import resource, sys
    from pathlib import Path
    from milpver.errors import RecordError
    from milpver.store import RecordFile

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    with RecordFile.open(Path(sys.argv[1]), {}) as records:
        records.append({"index": 0, "text": "a" * 600})
        try:
            records.append({"index": 1, "text": "b" * 600})
        except RecordError as error:
            print(error)
        records.append({"index": 2, "text": "c"})
        print(sorted(records.done))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the file size")
def test_a_disk_that_is_full_costs_only_the_record_that_did_not_fit(path: Path) -> None:
    """A real write that ends in the middle of a record, by a limit of the file's size."""
    out, _ = program(LIMITED, path).communicate(timeout=60)
    message, done = out.splitlines()
    assert f"{path} cannot be written: {os.strerror(errno.EFBIG)}; needed: " in message
    assert done == "[0, 2]"
    with RecordFile.open(path, {}) as records:
        assert sorted(records.done) == [0, 2]
        assert not records.repaired


def test_an_error_of_the_disk_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with RecordFile.open(path, IDENTITY) as records:
        records.append(record(0))
        for call in ("write", "fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                refusal(
                    partial(records.append, record(1)), str(path), os.strerror(errno.ENOSPC), "free the disk"
                )
            assert path.read_bytes() == line(0)
        records.append(record(1))
    assert path.read_bytes() == line(0) + line(1)


def test_paths_that_cannot_hold_records(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal(
        partial(RecordFile.open, tmp_path / "none" / "r.jsonl", IDENTITY), "there is no folder", "create it"
    )
    refusal(partial(RecordFile.open, tmp_path, IDENTITY), f"{tmp_path} is a folder")
    path.write_bytes(b"")
    refusal(partial(RecordFile.open, path / "r.jsonl", IDENTITY), "there is no folder")
    refusal(partial(RecordFile.open, Path(os.devnull).resolve(), IDENTITY), "not a regular file")
    refusal(partial(RecordFile.open, tmp_path / ("n" * 5000), IDENTITY), "cannot be opened")

    def deny(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", deny)
    refusal(partial(RecordFile.open, path, IDENTITY), f"{path} cannot be opened", os.strerror(errno.EACCES))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_files_without_permission(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o444)
    refusal(partial(RecordFile.open, path, IDENTITY), os.strerror(errno.EACCES))


# ------------------------------------------------------------------------------------------------ others

HOLDER = """
    import sys
    from pathlib import Path
    from milpver.store import RecordFile

    with RecordFile.open(Path(sys.argv[1]), {}) as records:
        print("open", flush=True)
        sys.stdin.read()
"""


def test_a_second_process_is_refused(path: Path) -> None:
    process = program(HOLDER, path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        refusal(partial(RecordFile.open, path, {}), f"{path} is in use by another process")
    finally:
        process.communicate(timeout=60)
    assert process.returncode == 0
    RecordFile.open(path, {}).close()


def test_a_second_record_file_of_the_same_process_is_refused(path: Path) -> None:
    with RecordFile.open(path, IDENTITY) as records:
        refusal(partial(RecordFile.open, path, IDENTITY), "is in use")
        records.append(record(0))
    with RecordFile.open(path, IDENTITY) as records:
        assert list(records.done) == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child does nothing but wait
def test_closing_frees_the_file_although_a_forked_child_lives_on(path: Path) -> None:
    """Worker processes that were forked inherit the descriptor; they must not keep the lock."""
    reader, writer = os.pipe()
    records = RecordFile.open(path, IDENTITY)
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    os.close(reader)
    try:
        records.close()
        RecordFile.open(path, IDENTITY).close()
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_a_file_that_vanishes_or_changes_meanwhile_is_noticed(tmp_path: Path, path: Path) -> None:
    with RecordFile.open(path, IDENTITY) as records:
        records.append(record(0))
        with path.open("ab") as stream:
            stream.write(b"note\n")
        refusal(partial(records.append, record(1)), "was changed by another program")
        assert path.read_bytes() == line(0) + b"note\n"
    path.write_bytes(line(0))
    with RecordFile.open(path, IDENTITY) as records:
        path.rename(tmp_path / "old.jsonl")
        refusal(partial(records.append, record(1)), "was removed or replaced")
        path.write_bytes(b"new")
        refusal(partial(records.append, record(1)), "was removed or replaced")
    assert (tmp_path / "old.jsonl").read_bytes() == line(0)
    assert path.read_bytes() == b"new"


def test_the_identity_is_taken_when_the_file_is_opened(path: Path) -> None:
    identity = dict(IDENTITY)
    with RecordFile.open(path, identity) as records:
        identity["radius"] = 0.5
        records.append(record(0))
    assert path.read_bytes() == line(0)


# ------------------------------------------------------------------------------------------------ stdout


def test_dash_streams_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with RecordFile.open(Path("-"), IDENTITY) as records:
        assert isinstance(records, RecordStream)
        assert (records.done, records.repaired) == ({}, False)
        records.append(record(0))
        assert capsys.readouterr().out.encode() == line(0)
        with pytest.raises(ValueError, match="JSON compliant"):
            records.append(record(1, lower=math.nan))
        with pytest.raises(ValueError, match="done already"):
            records.append(record(0))
        records.append(record(1))
        assert capsys.readouterr().out.encode() == line(1)
        assert sorted(records.done) == [0, 1]
    assert not sys.stdout.closed


def test_stdout_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    records = RecordStream(Broken(), IDENTITY)
    refusal(partial(records.append, record(0)), "stdout cannot be written", os.strerror(errno.EPIPE))
    assert records.done == {}
    monkeypatch.setattr(sys, "stdout", None)
    refusal(partial(RecordFile.open(Path("-"), IDENTITY).append, record(0)), "there is none")
