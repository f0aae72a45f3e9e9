"""Files of properties that are missing, damaged, cut, or of no format."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from milpver.errors import DataError
from milpver.property_file import load_property

TEXT = (
    "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n"
    "(assert (>= X_0 0)) (assert (<= X_0 1)) (assert (<= Y_0 0))\n"
)


def test_plain_and_packed_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.vnnlib").write_text(TEXT)
    (tmp_path / "a.vnnlib.gz").write_bytes(gzip.compress(TEXT.encode()))
    plain, packed = (load_property(path) for path in (str(tmp_path / "a.vnnlib"), tmp_path / "a.vnnlib.gz"))
    assert plain.formula == packed.formula
    assert (plain.inputs, plain.outputs, plain.version) == (1, 1, "1.0")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.vnnlib").write_text(TEXT, encoding="utf-8-sig")
    assert load_property(tmp_path / "a.vnnlib").inputs == 1


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_cut_archives_are_refused(tmp_path: Path, keep: float) -> None:
    content = gzip.compress(TEXT.encode())
    path = tmp_path / "cut.vnnlib.gz"
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"cut.vnnlib.gz is cut or damaged"):
        load_property(path)


def test_cut_texts_are_never_read_as_other_properties(tmp_path: Path) -> None:
    path = tmp_path / "cut.vnnlib"
    for keep in range(1, len(TEXT) - 2, 3):
        path.write_text(TEXT[:keep])
        with pytest.raises(DataError, match=r"cut.vnnlib"):
            load_property(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.vnnlib", b"", "is empty"),
        ("a.vnnlib", b" \n ", "is empty"),
        ("a.vnnlib", b"\xff\xfe\x00", "is no text"),
        ("a.vnnlib.gz", TEXT.encode(), "is not compressed"),
        ("a.vnnlib", b"hello", "outside of parentheses"),
        ("a.vnnlib", b"; only a comment", "holds no VNN-LIB"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_property(tmp_path / name)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        load_property(tmp_path / "none.vnnlib")
    with pytest.raises(DataError, match="is a folder"):
        load_property(tmp_path)
