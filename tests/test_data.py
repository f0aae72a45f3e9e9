"""Data files: what is read agrees with the bytes on disk; whatever is wrong is named in one line."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import struct
import zipfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from milpver.data import (
    Dataset,
    check_domain,
    check_labels,
    fit_domain,
    fit_inputs,
    load_data,
    parse_domain,
    parse_floats,
    parse_keys,
    select,
)
from milpver.errors import DataError, MilpverError, QueryError

Array = NDArray[Any]

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
# Without the time of packing: the same bytes in every run and every process.
packed_bytes = partial(gzip.compress, mtime=0)


def refusal(kind: type[MilpverError], call: Callable[[], object], *fragments: str) -> str:
    """The one-line message of the error that ``call`` must raise, checked for these fragments."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "; needed: " in message
    assert "; fix: " in message
    for fragment in fragments:
        assert fragment in message
    return message


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def idx(array: Array) -> bytes:
    """The idx format, written from its description: magic, lengths in big-endian, then the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def images(count: int = 4, height: int = 3, width: int = 2, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def make_folder(path: Path, pictures: Array, labels: Iterable[int], *, prefix: str = "t10k") -> Path:
    path.mkdir(exist_ok=True)
    write(path / f"{prefix}-images-idx3-ubyte", idx(pictures))
    write(path / f"{prefix}-labels-idx1-ubyte", idx(np.array(list(labels))))
    return path


def dataset(count: int) -> Dataset:
    return Dataset(np.zeros((count, 1), np.float32), np.zeros(count, np.int64), None, Path("d.npz"))


# ------------------------------------------------------------------------------------------------ npz


def test_npz_is_read_as_stored_in_float32(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 2, 3))
    data = load_data(save(tmp_path / "d.npz", x=x, y=np.arange(5)))
    assert data.inputs.dtype == np.float32
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.inputs, x.astype(np.float32))
    np.testing.assert_array_equal(data.labels, np.arange(5))
    assert data.domain is None
    assert len(data) == 5


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8", "?"])
def test_npz_of_every_number_type_and_order(tmp_path: Path, dtype: str, writer: Callable[..., None]) -> None:
    x = np.asfortranarray(np.random.default_rng(1).integers(0, 100, (4, 3, 2)).astype(dtype))
    writer(tmp_path / "d.npz", x=x, y=np.array([0, 1, 2, 3], dtype="u1"))
    np.testing.assert_array_equal(load_data(tmp_path / "d.npz").inputs, x.astype(np.float32))


def test_npz_bytes_stay_0_to_255_and_scale_divides_with_one_rounding(tmp_path: Path) -> None:
    x = np.arange(256, dtype=np.uint8).reshape(256, 1)
    path = save(tmp_path / "d.npz", x=x, y=np.zeros(256, int))
    np.testing.assert_array_equal(load_data(path).inputs.ravel(), np.arange(256, dtype=np.float32))
    scaled = load_data(path, scale=255).inputs
    np.testing.assert_array_equal(scaled, x.astype(np.float32) / np.float32(255))


@given(
    value=st.floats(-1e6, 1e6, width=32),
    scale=st.floats(0.0009765625, 1024, width=32),
)
def test_scaling_float32_gives_the_nearest_float32(
    tmp_path_factory: pytest.TempPathFactory, value: float, scale: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "nearest.npz"
    save(path, x=np.array([[value]], np.float32), y=[0])
    got = np.float32(load_data(path, scale=scale).inputs[0, 0])
    exact = Fraction(value) / Fraction(scale)
    error = abs(Fraction(float(got)) - exact)
    for neighbour in (np.nextafter(got, np.float32(np.inf)), np.nextafter(got, np.float32(-np.inf))):
        assert error <= abs(Fraction(float(neighbour)) - exact)


def test_npz_keys_and_labels_in_a_column(tmp_path: Path) -> None:
    path = save(tmp_path / "d.NPZ.npz", x_test=np.ones((2, 3)), y_test=np.array([[3.0], [4.0]]))
    data = load_data(path, keys=("x_test", "y_test"))
    np.testing.assert_array_equal(data.labels, [3, 4])
    refusal(DataError, lambda: load_data(path), "no array 'x'", "'x_test', 'y_test'", "--keys")


def test_npz_domain_is_not_scaled_and_an_option_replaces_it(tmp_path: Path) -> None:
    x = np.array([[0, 255]], np.uint8)
    path = save(tmp_path / "d.npz", x=x, y=[0], domain=[0.0, 1.0])
    assert load_data(path, scale=255).domain == (0.0, 1.0)
    refusal(DataError, lambda: load_data(path), "input 0", "255.0 at element 1", "[0.0, 1.0]")
    assert load_data(path, domain=(0.0, 255.0)).domain == (0.0, 255.0)
    assert load_data(save(tmp_path / "e.npz", x=x, y=[0]), domain=(-1, 300)).domain == (-1, 300)


def test_npz_domain_of_arrays(tmp_path: Path) -> None:
    lower, upper = np.zeros((2, 3)), np.arange(6.0).reshape(2, 3)
    path = save(tmp_path / "d.npz", x=upper[None], y=[0], domain=np.stack([lower, upper]))
    domain = load_data(path).domain
    assert domain is not None
    np.testing.assert_array_equal(domain[0], lower)
    np.testing.assert_array_equal(domain[1], upper)
    bad = save(tmp_path / "e.npz", x=upper[None] + 1, y=[0], domain=np.stack([lower, upper]))
    refusal(DataError, lambda: load_data(bad), "input 0", "1.0 at element 0", "[0.0, 0.0]")


@pytest.mark.parametrize(
    ("domain", "fragment"),
    [
        (np.zeros(3), "has the shape (3,)"),
        (np.zeros((2, 4)), "has the shape (2, 4)"),
        ([1.0, 0.0], "empty or not finite"),
        ([0.0, np.inf], "empty or not finite"),
        ([np.nan, 1.0], "empty or not finite"),
        (np.array(["a", "b"]), "dtype"),
    ],
)
def test_npz_domain_that_makes_no_sense(tmp_path: Path, domain: Any, fragment: str) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((1, 3)), y=[0], domain=domain)
    refusal(DataError, lambda: load_data(path), str(path), fragment)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_npz_not_finite(tmp_path: Path, bad: float, dtype: type[np.floating[Any]]) -> None:
    x = np.zeros((3, 2, 2), dtype)
    x[1, 1, 0] = bad
    path = save(tmp_path / "d.npz", x=x, y=np.zeros(3, int))
    refusal(DataError, lambda: load_data(path), f"input 1 has the value {bad} at element 2", "finite")


def test_npz_values_beyond_float32(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x=np.array([[0.0, 1e39]]), y=[0])
    refusal(DataError, lambda: load_data(path), "input 0", "1e+39", "element 1", "float32")
    assert load_data(path, scale=10).inputs[0, 1] == np.float32(1e38)
    tiny = save(tmp_path / "t.npz", x=np.array([[1.0]]), y=[0])
    refusal(DataError, lambda: load_data(tiny, scale=1e-300), "divided by 1e-300")


@pytest.mark.parametrize(
    ("labels", "fragment"),
    [
        ([0, -1], "'y' at index 1: label -1"),
        ([0.0, 0.5], "label 0.5"),
        ([np.nan, 0.0], "label nan"),
        ([2**40, 1], "label 1099511627776"),
        ([0, 1, 2], "shape (3,)"),
        ([[1, 0], [0, 1]], "shape (2, 2)"),
        (["a", "b"], "dtype"),
        (3, "shape ()"),
    ],
)
def test_npz_labels_that_are_none(tmp_path: Path, labels: Any, fragment: str) -> None:
    path = save(tmp_path / "d.npz", x=np.zeros((2, 3)), y=labels)
    refusal(DataError, lambda: load_data(path), str(path), fragment)


def test_npz_empty_inputs(tmp_path: Path) -> None:
    for name, x, y in (("a", np.zeros((0, 3)), np.zeros(0)), ("b", np.zeros((2, 0)), [0, 1])):
        path = save(tmp_path / f"{name}.npz", x=x, y=y)
        refusal(DataError, partial(load_data, path), "holds no inputs")


def test_npz_with_pickles_is_not_unpickled(tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (witness.touch, ())

    x = np.empty(2, object)
    x[:] = [Trap(), Trap()]
    path = save(tmp_path / "d.npz", x=x, y=[0, 1])
    refusal(DataError, lambda: load_data(path), "'x'", "pickled Python objects")
    assert not witness.exists()


def test_npz_complex_numbers_and_records(tmp_path: Path) -> None:
    for name, x in (
        ("c", np.zeros(2, complex)),
        ("v", np.zeros(2, [("a", "f4")])),
        ("m", np.zeros(2, "M8[s]")),
    ):
        path = save(tmp_path / f"{name}.npz", x=x, y=[0, 1])
        refusal(DataError, partial(load_data, path), "'x' has the dtype")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "the file is empty"),
        (PNG, "a PNG image"),
        (b"hello, world", "b'hello, w'"),
        (b"PK\x03\x04garbage", "cannot be read"),
        (b"PK", "cannot be read"),
        (b"\x93NUMPY\x01\x00", "a single .npy array"),
        (packed_bytes(b"x"), "a gzip file"),
        (b"\x80\x04\x95", "a Python pickle"),
    ],
)
def test_npz_foreign_files(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = write(tmp_path / "d.npz", content)
    refusal(DataError, lambda: load_data(path), str(path), fragment)


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_npz_truncated_anywhere(tmp_path: Path, writer: Callable[..., None]) -> None:
    writer(tmp_path / "whole.npz", x=np.arange(50.0).reshape(5, 10), y=np.arange(5))
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(0, len(whole), 7):
        path = write(tmp_path / "cut.npz", whole[:length])
        refusal(DataError, partial(load_data, path), str(path))


@given(place=st.integers(0), change=st.integers(1, 255))
def test_npz_with_a_flipped_byte_is_the_same_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    x, y = np.arange(20.0).reshape(4, 5), np.arange(4)
    path = save(tmp_path_factory.getbasetemp() / "flip.npz", x=x, y=y)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    try:
        data = load_data(path)
    except DataError:
        return
    np.testing.assert_array_equal(data.inputs, x)
    np.testing.assert_array_equal(data.labels, y)


def npy(shape: tuple[int, ...], data: bytes, *, descr: str = "|u1", version: bytes = b"\x01\x00") -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("member", "fragment"),
    [
        (npy((1 << 60, 1 << 60), b""), "the header promises"),
        (npy((1 << 40,), bytes(10)), f"promises {1 << 40} bytes and the file holds 10"),
        (npy((5,), bytes(4)), "promises 5 bytes and the file holds 4"),
        (npy((5,), bytes(6)), "promises 5 bytes and the file holds 6"),
        (npy((-5,), bytes(5)), "shape (-5,)"),
        (npy((5,), bytes(5), descr="|O"), "pickled"),
        (npy((5,), bytes(5), version=b"\x09\x00"), "version"),
        (npy((5,), bytes(5), descr="nonsense"), "cannot be read"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read"),
        (b"no array", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_npz_headers_that_lie(tmp_path: Path, member: bytes, fragment: str, packing: int) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", npy((5,), bytes(5)))
    refusal(DataError, lambda: load_data(path), str(path), fragment)


def test_npz_directory_that_promises_more_than_deflate_can_hold(tmp_path: Path) -> None:
    """A header and a directory that agree on a terabyte, in a file of a few hundred bytes."""
    size = 1 << 31
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy((size,), bytes(5)))
        archive.writestr("y.npy", npy((5,), bytes(5)))
        real = archive.getinfo("x.npy").file_size
    lie = struct.pack("<I", real - 5 + size)
    content = buffer.getvalue()
    entry = content.index(b"PK\x01\x02")
    content = content[: entry + 24] + lie + content[entry + 28 :]
    path = write(tmp_path / "d.npz", content)
    refusal(DataError, lambda: load_data(path), f"promises {size} bytes", "holds")


def test_more_data_than_can_be_held_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milpver.data._MAX_ELEMENTS", 23)
    folder = make_folder(tmp_path / "idx", images(), range(4))
    refusal(DataError, lambda: load_data(folder), "has 24 elements", "at most 23")
    npz = save(tmp_path / "d.npz", x=np.zeros((4, 6)), y=np.zeros(4))
    refusal(DataError, lambda: load_data(npz), "array 'x' has 24 elements", "at most 23")


def test_npz_that_is_encrypted_or_packed_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", npy((5,), bytes(5)))
        archive.writestr("y.npy", npy((5,), bytes(5)))
    refusal(DataError, lambda: load_data(path), "packed in an unusual way")


def test_npz_without_arrays(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refusal(DataError, lambda: load_data(path), "arrays there: none")


# ------------------------------------------------------------------------------------------------ csv


def csv_file(tmp_path: Path, text: str) -> Path:
    return write(tmp_path / "d.csv", text.encode())


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, x: Array, end: str, header: bool) -> None:
    rows = [",".join([str(k), *map(repr, map(float, row))]) for k, row in enumerate(x)]
    top = [",".join(["label", *(f"pixel{k}" for k in range(x.shape[1]))])] if header else []
    path = write(tmp_path_factory.getbasetemp() / "r.csv", (end.join(top + rows) + end).encode())
    data = load_data(path)
    np.testing.assert_array_equal(data.inputs, x)
    np.testing.assert_array_equal(data.labels, np.arange(len(x)))


def test_csv_tolerates_a_mark_blank_lines_quotes_and_scales(tmp_path: Path) -> None:
    path = csv_file(tmp_path, '\ufeff7,"0", 255\n\n 3.0,51,102\n   \n')
    data = load_data(path, scale=255)
    np.testing.assert_array_equal(data.labels, [7, 3])
    np.testing.assert_array_equal(data.inputs, np.array([[0, 255], [51, 102]], np.float32) / np.float32(255))
    assert data.domain is None


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["holds no inputs"]),
        ("\n\n", ["holds no inputs"]),
        ("label,a,b\n", ["holds no inputs"]),
        ("1,2,3\n4,5\n", ["line 2 has 2 cells and the first line has 3"]),
        ("label,a,b\n1,2\n", ["line 2 has 2 cells and the first line has 3"]),
        ("1,2,3\n\n4,5,x\n", ["line 3, column 3 holds 'x'"]),
        ("1,2,3\n4,,6\n", ["line 2, column 2 holds ''"]),
        ("1,2,nan\n", ["line 1, column 3 holds 'nan'"]),
        ("1,2,3\n4,5,-inf\n", ["line 2, column 3 holds '-inf'"]),
        ("1,1_000\n", ["column 2 holds '1_000'"]),
        ("1,٣\n", ["column 2 holds '٣'"]),
        ("label,1,2\n3,4,5\n", ["line 1, column 1 holds 'label'"]),
        ("label,a\nother,b\n", ["line 2, column 1 holds 'other'"]),
        ("1;2;3\n4;5;6\n", ["line 2, column 1 holds '4;5;6'", "commas"]),
        ("1\n2\n", ["line 1 has one cell"]),
        ("1.5,2\n", ["line 1, column 1: label 1.5"]),
        ("0,2\n\n-1,2\n", ["line 3, column 1: label -1"]),
        ("0,1e39\n", ["input 0 has the value 1e+39"]),
        ('0,"1\n', ["cannot be read"]),
    ],
)
def test_csv_that_is_wrong(tmp_path: Path, text: str, fragments: list[str]) -> None:
    path = csv_file(tmp_path, text)
    refusal(DataError, lambda: load_data(path), str(path), *fragments)


@pytest.mark.parametrize("content", [PNG, b"\xff\xfe1\x00,\x002\x00", packed_bytes(b"1,2"), b"0,1\x002\n"])
def test_csv_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "d.csv", content)
    refusal(DataError, lambda: load_data(path), str(path))


# ------------------------------------------------------------------------------------------------ idx


@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("split", "prefix"), [("test", "t10k"), ("train", "train")])
def test_folder(tmp_path: Path, split: str, prefix: str, packed: bool, dot: str) -> None:
    pictures = images()
    for name, content in (
        (f"images{dot}idx3-ubyte", pictures),
        (f"labels{dot}idx1-ubyte", np.array([3, 1, 4, 1])),
    ):
        raw = idx(content)
        write(tmp_path / f"{prefix}-{name}{'.gz' * packed}", packed_bytes(raw) if packed else raw)
    data = load_data(tmp_path, split=split)
    np.testing.assert_array_equal(data.inputs, pictures.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.labels, [3, 1, 4, 1])
    assert data.domain == (0.0, 1.0)
    assert data.inputs.dtype == np.float32
    other = "test" if split == "train" else "train"
    refusal(
        DataError,
        lambda: load_data(tmp_path, split=other),
        f"no complete {other} images",
        f"'{prefix}-images",
    )


def test_folder_with_training_images_in_parts(tmp_path: Path) -> None:
    pictures = images(12)
    for k in range(12):  # more than ten: part10 comes after part2
        write(tmp_path / f"train-images-part{k}-idx3-ubyte.gz", packed_bytes(idx(pictures[k : k + 1])))
    write(tmp_path / "train-labels-idx1-ubyte.gz", packed_bytes(idx(np.arange(12) % 10)))
    data = load_data(tmp_path, split="train")
    np.testing.assert_array_equal(data.inputs * 255, pictures)
    (tmp_path / "train-images-part5-idx3-ubyte.gz").unlink()
    refusal(DataError, lambda: load_data(tmp_path, split="train"), "no complete train images", "parts")
    write(tmp_path / "train-images-part5-idx3-ubyte.gz", packed_bytes(idx(images(1, 9, 9))))
    refusal(DataError, lambda: load_data(tmp_path, split="train"), "images of (9, 9)")
    (tmp_path / "train-images-part5-idx3-ubyte.gz").write_bytes(packed_bytes(idx(images(2))))
    refusal(DataError, lambda: load_data(tmp_path, split="train"), "13 train images and 12 labels")


def test_folder_prefers_unpacked_files(tmp_path: Path) -> None:
    make_folder(tmp_path, images(), [0, 1, 2, 3])
    write(tmp_path / "t10k-images-idx3-ubyte.gz", b"broken")
    np.testing.assert_array_equal(load_data(tmp_path).inputs * 255, images())


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["the file is empty"]),
        (b"\x00\x00\x08", ["starts with"]),
        (PNG, ["a PNG image", "magic 0x803"]),
        (packed_bytes(idx(images())), ["a gzip file", ".gz"]),
        (idx(np.arange(4)), ["an idx file", "images (magic 0x803)"]),
        (idx(images())[:-1], ["promises 24 bytes and the file holds 23"]),
        (idx(images()) + b"\0", ["promises 24 bytes and the file holds 25"]),
        (idx(images())[:10], ["cannot be read"]),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, ["promises 79228162458924105385300197375 bytes"]),
        (idx(np.zeros((0, 3, 2))), ["0 test images and 4 labels"]),
        (idx(np.zeros((4, 0, 2))), ["holds no inputs"]),
    ],
)
def test_folder_with_bad_images(tmp_path: Path, content: bytes, fragments: list[str]) -> None:
    make_folder(tmp_path, images(), range(4))
    write(tmp_path / "t10k-images-idx3-ubyte", content)
    refusal(DataError, lambda: load_data(tmp_path), str(tmp_path), *fragments)


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["the file is empty"]),
        (b"plain text", ["starts with"]),
        (idx(images()), ["an idx file", "packed by gzip"]),
        (packed_bytes(b"plain text"), ["starts with b'plai'"]),
        (packed_bytes(b""), ["the file is empty"]),
        (packed_bytes(idx(images()))[:-9], ["cannot be read"]),
        (packed_bytes(idx(images()))[:-3], ["cannot be read"]),
        (packed_bytes(idx(images()))[:-8] + bytes(8), ["CRC"]),
        (packed_bytes(idx(images())[:-1]), ["ends after 23 of 24 bytes"]),
        (packed_bytes(idx(images()) + b"\0"), ["goes on after the 24 bytes"]),
        (packed_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12), ["promises 79228162458924105385300197375 bytes"]),
        (packed_bytes(b"\x00\x00\x08\x03" + struct.pack(">3I", 1000, 1000, 1000)), ["promises 1000000000"]),
    ],
)
def test_folder_with_bad_packed_images(tmp_path: Path, content: bytes, fragments: list[str]) -> None:
    make_folder(tmp_path, images(), range(4))
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    write(tmp_path / "t10k-images-idx3-ubyte.gz", content)
    refusal(DataError, lambda: load_data(tmp_path), str(tmp_path), *fragments)


def test_folder_with_packed_images_cut_anywhere(tmp_path: Path) -> None:
    make_folder(tmp_path, images(), range(4))
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    whole = packed_bytes(idx(images()))
    for length in range(len(whole)):
        write(tmp_path / "t10k-images-idx3-ubyte.gz", whole[:length])
        refusal(DataError, lambda: load_data(tmp_path))


def test_folder_without_files(tmp_path: Path) -> None:
    refusal(DataError, lambda: load_data(tmp_path), "it holds nothing", "t10k-images-idx3-ubyte.gz")
    write(tmp_path / "t10k-images-idx3-ubyte", idx(images()))
    refusal(DataError, lambda: load_data(tmp_path), "no complete test labels")
    write(tmp_path / "t10k-labels-idx1-ubyte", idx(np.arange(3)))
    refusal(DataError, lambda: load_data(tmp_path), "4 test images and 3 labels")


@pytest.mark.parametrize(("split", "count"), [("test", 10000), ("train", 60000)])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_folders(shared_data: Path, name: str, split: str, count: int) -> None:
    data = load_data(shared_data / name, split=split)
    assert data.inputs.shape == (count, 28, 28)
    counts = np.bincount(data.labels, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 0.08 * count
    prefix = {"test": "t10k", "train": "train"}[split]
    parts = sorted((shared_data / name).glob(f"{prefix}-images*"))
    raw = b"".join(gzip.decompress(part.read_bytes())[16:] for part in parts)
    expected = np.frombuffer(raw, np.uint8).reshape(count, 28, 28)
    for index in (0, 1, count // 2 - 1, count // 2, count - 1):
        np.testing.assert_array_equal(data.inputs[index], expected[index] / np.float32(255))


def test_real_npz(shared_data: Path) -> None:
    path = shared_data / "cifar10" / "cifar10_test.npz"
    data = load_data(path, keys=("x_test", "y_test"), scale=255)
    assert data.inputs.shape == (4984, 3, 32, 32)
    assert 0.9 < data.inputs.max() <= 1
    refusal(DataError, lambda: load_data(path), "x_test", "y_test", "index_test")
    nets_input = fit_inputs(data.inputs[:5], (3, 32, 32), layout=None, source=path)
    last = fit_inputs(data.inputs[:5], (32, 32, 3), layout="nchw", source=path).reshape(5, 32, 32, 3)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2).reshape(5, -1), nets_input)


@given(
    content=st.binary(max_size=80), name=st.sampled_from(["npz", "csv", "idx", "gz"]), packed=st.booleans()
)
def test_any_bytes_are_data_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, packed: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"any_{name}"
    make_folder(folder, images(), range(4))
    path = folder
    if name in ("npz", "csv"):
        path = folder / f"d.{name}"
        path.write_bytes(content)
    elif name == "idx":
        (folder / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" * packed + content)
    else:
        (folder / "t10k-images-idx3-ubyte").unlink()
        (folder / "t10k-images-idx3-ubyte.gz").write_bytes(packed_bytes(content) if packed else content)
    try:
        data = load_data(path)
    except DataError:
        return
    assert np.isfinite(data.inputs).all()
    assert len(data.inputs) == len(data.labels) > 0


# ------------------------------------------------------------------------------------------------ options


def test_paths_that_hold_no_data(tmp_path: Path) -> None:
    refusal(DataError, lambda: load_data(tmp_path / "none.npz"), "none.npz does not exist")
    refusal(DataError, lambda: load_data(write(tmp_path / "d.txt", b"1,2")), "suffix '.txt'")
    refusal(DataError, lambda: load_data(write(tmp_path / "data", b"1,2")), "suffix ''")
    refusal(DataError, lambda: load_data(Path(os.devnull)), "not a regular file")
    refusal(DataError, lambda: load_data(Path("n" * 5000 + ".npz")), "cannot be read: File name too long")
    odd = write(tmp_path / "a\nb.npz", PNG)
    refusal(DataError, lambda: load_data(odd), "PNG")


def test_options_that_would_have_no_effect_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "idx", images(), range(4))
    npz = save(tmp_path / "d.npz", x=np.zeros((1, 1)), y=[0])
    table = csv_file(tmp_path, "1,2\n")
    refusal(QueryError, lambda: load_data(folder, scale=255), "--scale 255", "divided by 255")
    refusal(QueryError, lambda: load_data(folder, keys=("a", "b")), "--keys a,b")
    refusal(QueryError, lambda: load_data(table, keys=("a", "b")), "--keys a,b")
    refusal(QueryError, lambda: load_data(npz, split="train"), "--split train")
    refusal(QueryError, lambda: load_data(table, split="train"), "--split train")
    refusal(QueryError, lambda: load_data(folder, split="validation"), "'validation'")
    for scale in (0.0, -1.0, np.nan, np.inf):
        refusal(QueryError, partial(load_data, npz, scale=scale), f"--scale {scale}")


def test_labels_are_checked_against_the_classes() -> None:
    labels = np.array([0, 9, 10, 11])
    check_labels(labels[:2], 10, "d.npz")
    refusal(DataError, lambda: check_labels(labels, 10, "d.npz"), "d.npz: label 10 at index 2", "0 to 9")
    refusal(DataError, lambda: check_labels(np.array([-1]), 10, "d.npz"), "label -1 at index 0")


def test_domain_is_compared_exactly() -> None:
    """float32(0.7) lies below 0.7: outside, by however little."""
    x = np.array([[0.8], [0.7]], np.float32)
    refusal(
        DataError,
        lambda: check_domain(x, (0.7, 1.0), "d"),
        "input 1",
        "0.699999988079071",
        "float32 rounding",
    )
    check_domain(x, (float(np.float32(0.7)), 1.0), "d")
    check_domain(np.array([0.5, 0.25], np.float32), (0.25, 0.5), "d")
    check_domain(np.array([[0.1]], np.float32), (-1e300, 1e300), "d")
    refusal(DataError, lambda: check_domain(x, (np.zeros(2), np.ones(2)), "d"), "domain of shape (2,)")


@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(-2, 2, width=32)), st.floats(-2, 2), st.floats(-2, 2)
)
@example(np.full((3, 4), 0.1, np.float32), 0.1, 0.1)
def test_domain_agrees_with_rational_arithmetic(x: Array, one: float, two: float) -> None:
    low, high = min(one, two), max(one, two)
    inside = all(Fraction(low) <= Fraction(float(value)) <= Fraction(high) for value in x.ravel())
    if inside:
        check_domain(x, (low, high), "d")
    else:
        refusal(DataError, lambda: check_domain(x, (low, high), "d"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", [5]),
        ("1,4,9", [1, 4, 9]),
        ("9,1", [9, 1]),
        ("-1", [9]),
        (" 0 , 2 ", [0, 2]),
        ("0:3,1,7", [0, 1, 2, 7]),
        ("3,-7", [3]),
    ],
)
def test_select(text: str, expected: list[int]) -> None:
    assert select(dataset(10), text) == tuple(expected)


def test_select_by_default_takes_20_or_all() -> None:
    assert select(dataset(30), None) == tuple(range(20))
    assert select(dataset(3), None) == (0, 1, 2)


@given(st.integers(1, 12), *[st.none() | st.integers(-14, 14)] * 3)
def test_select_slices_as_python_does(
    size: int, start: int | None, stop: int | None, step: int | None
) -> None:
    assume(step != 0)
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    in_range = (start is None or -size <= start < size) and (stop is None or -size <= stop <= size)
    assume(in_range)
    expected = tuple(range(size))[start:stop:step]
    if expected:
        assert select(dataset(size), text) == expected
    else:
        refusal(QueryError, lambda: select(dataset(size), text), "is empty", f"{size} inputs")


@pytest.mark.parametrize(
    "text",
    ["10", "-11", "0:11", "-11:3", "10:", "1,10", "0:20", "999999999999999999", "99999999999999999999999"],
)
def test_select_out_of_range_names_the_size(text: str) -> None:
    refusal(QueryError, lambda: select(dataset(10), text), "d.npz", "10 inputs, 0 to 9")


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "a", "1.0", "1_0", "٣", "0:5:0", "1:2:3:4", "3:3", "0x1", "1 2", "--1"]
)
def test_select_text_that_is_no_index(text: str) -> None:
    refusal(QueryError, lambda: select(dataset(10), text), "--index", "10 inputs")


# ------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("wanted", [(1, 28, 28), (784,), (784, 1), (28, 28, 1), (28, 28), (1, 1, 784)])
@pytest.mark.parametrize("shape", [(28, 28), (784,), (784, 1), (1, 28, 28), (28, 28, 1), (1, 1, 28, 28)])
def test_one_channel_fits_in_any_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    fitted = fit_inputs(x, wanted, layout=None, source="d")
    np.testing.assert_array_equal(fitted, x.reshape(3, 784))
    assert fitted.flags.c_contiguous
    assert fitted.dtype == np.float32


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1)])
@pytest.mark.parametrize("wanted", [(1, 28, 28), (28, 28, 1), (784,)])
def test_a_layout_does_no_harm_where_there_is_one_channel(
    shape: tuple[int, ...], wanted: tuple[int, ...], layout: str
) -> None:
    if len(wanted) == 1 and shape.index(28) == (1 if layout == "nhwc" else 0) and len(shape) == 3:
        return  # a layout that says 28 channels: not one channel any more
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    np.testing.assert_array_equal(fit_inputs(x, wanted, layout=layout, source="d"), x.reshape(3, 784))


def test_channels_elsewhere_need_a_layout() -> None:
    first = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    flat_first, flat_last = first.reshape(2, -1), last.reshape(2, -1)
    refusal(
        DataError,
        lambda: fit_inputs(last, (3, 6, 5), layout=None, source="d"),
        "6x5x3",
        "3x6x5",
        "--layout nhwc",
    )
    refusal(
        DataError, lambda: fit_inputs(first, (6, 5, 3), layout=None, source="d"), "3x6x5", "--layout nchw"
    )
    refusal(DataError, lambda: fit_inputs(last, (3, 6, 5), layout="nchw", source="d"), "6x5x3")
    refusal(DataError, lambda: fit_inputs(first, (6, 5, 3), layout="nhwc", source="d"), "3x6x5")
    for data, layout in ((last, "nhwc"), (flat_last, "nhwc"), (first, "nchw"), (flat_first, "nchw")):
        np.testing.assert_array_equal(fit_inputs(data, (3, 6, 5), layout=layout, source="d"), flat_first)
        np.testing.assert_array_equal(fit_inputs(data, (1, 3, 6, 5), layout=layout, source="d"), flat_first)
    for data, layout in ((last, "nhwc"), (flat_last, "nhwc"), (first, "nchw"), (flat_first, "nchw")):
        np.testing.assert_array_equal(fit_inputs(data, (6, 5, 3), layout=layout, source="d"), flat_last)
    np.testing.assert_array_equal(fit_inputs(first, (3, 6, 5), layout=None, source="d"), flat_first)
    np.testing.assert_array_equal(fit_inputs(last, (6, 5, 3), layout=None, source="d"), flat_last)


def reference_order(shape: tuple[int, ...], layout: str, wanted: tuple[int, ...]) -> list[list[float]]:
    """Orders that could be meant: those of the network's two layouts that the data's sizes fit."""
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    first = x if layout == "nchw" else x.transpose(2, 0, 1)
    orders = []
    for candidate in (first, first.transpose(1, 2, 0)):
        if candidate.shape == wanted and candidate.ravel().tolist() not in orders:
            orders.append(candidate.ravel().tolist())
    return orders


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_layouts_against_all_small_shapes(layout: str) -> None:
    """Never an order that was not meant; the one that was, wherever there is just one."""
    shapes = list(itertools.product((1, 2, 3), repeat=3))
    for shape, wanted in itertools.product(shapes, shapes):
        if np.prod(shape) != np.prod(wanted):
            continue
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
        orders = reference_order(shape, layout, wanted)
        try:
            fitted = fit_inputs(x, wanted, layout=layout, source="d")
        except MilpverError:
            assert len(orders) != 1 or sum(length > 1 for length in wanted) <= 1
        else:
            same_axes = [n for n in shape if n > 1] == [n for n in wanted if n > 1]
            assert fitted[0].tolist() in (orders or ([x.ravel().tolist()] if same_axes else []))
            assert len(orders) <= 1


def test_layouts_that_cannot_be_applied() -> None:
    x = np.zeros((2, 4, 4, 3), np.float32)
    refusal(QueryError, lambda: fit_inputs(x, (48,), layout="nhwc", source="d"), "--layout nhwc", "4x4x3")
    refusal(
        QueryError, lambda: fit_inputs(x.reshape(2, 48), (48,), layout="nhwc", source="d"), "--layout nhwc"
    )
    refusal(QueryError, lambda: fit_inputs(x, (3, 4, 4), layout="hwc", source="d"), "'hwc'", "nchw or nhwc")
    cube = np.zeros((2, 3, 3, 3), np.float32)
    refusal(QueryError, lambda: fit_inputs(cube, (3, 3, 3), layout="nhwc", source="d"), "3x3x3")
    wide = np.zeros((2, 512), np.float32)
    refusal(QueryError, lambda: fit_inputs(wide, (8, 8, 8), layout="nhwc", source="d"), "8x8x8")


def test_shapes_that_do_not_fit() -> None:
    x = np.zeros((2, 28, 28), np.float32)
    refusal(
        DataError,
        lambda: fit_inputs(x, (3, 32, 32), layout=None, source="d"),
        "d: inputs of shape 28x28 (784",
    )
    refusal(DataError, lambda: fit_inputs(x, (4, 14, 14), layout=None, source="d"), "28x28", "4x14x14")
    turned = np.zeros((2, 20, 30), np.float32)
    refusal(DataError, lambda: fit_inputs(turned, (1, 30, 20), layout=None, source="d"), "20x30", "1x30x20")
    for layout in ("nchw", "nhwc"):
        refusal(DataError, partial(fit_inputs, turned, (30, 20), layout=layout, source="d"), "20x30")
    refusal(DataError, lambda: fit_inputs(x[:0], (784,), layout=None, source="d"), "no inputs")
    x[1, 0, 3] = np.nan
    refusal(DataError, lambda: fit_inputs(x, (784,), layout=None, source="d"), "input 1", "nan at element 3")


def test_domain_arrays_follow_the_inputs() -> None:
    lower = np.random.default_rng(0).normal(size=(4, 5, 3))
    upper = lower + 1
    fitted = fit_domain((lower, upper), (3, 4, 5), layout="nhwc", source="d")
    for end, original in zip(fitted, (lower, upper), strict=True):
        np.testing.assert_array_equal(end, original.transpose(2, 0, 1).ravel())
    assert fit_domain((0.0, 1.0), (3, 4, 5), layout="nhwc", source="d") == (0.0, 1.0)
    refusal(
        DataError, lambda: fit_domain((lower, upper), (3, 4, 5), layout=None, source="d"), "--layout nhwc"
    )


# ------------------------------------------------------------------------------------------------ texts


@pytest.mark.parametrize(
    ("text", "expected"), [("0,1", (0, 1)), (" -1.5 , 2e3", (-1.5, 2000)), ("0.1,0.2", (0.1, 0.2))]
)
def test_parse_domain(text: str, expected: tuple[float, float]) -> None:
    assert parse_domain(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0,1,2", "a,b", "1,0", "1,1", "nan,1", "0,inf", "-inf,0", "0,1_0", "-1.7e308,1.7e308"]
)
def test_parse_domain_refuses(text: str) -> None:
    refusal(QueryError, lambda: parse_domain(text), f"--domain {text!r}", "LO,HI")


def test_parse_floats() -> None:
    assert parse_floats("0.13,-0.2") == (0.13, -0.2)
    assert parse_floats("0.3", option="--std", positive=True) == (0.3,)
    for text, part in (("", "''"), ("0.1,", "''"), ("0.1,x", "'x'"), ("nan", "'nan'"), ("1,inf", "'inf'")):
        refusal(QueryError, partial(parse_floats, text), "--mean", part)
    for text in ("0", "-1", "0.1,0", "-0.0"):
        refusal(
            QueryError,
            partial(parse_floats, text, option="--std", positive=True),
            "--std",
            "above 0",
        )


def test_parse_keys() -> None:
    assert parse_keys("x_test, y_test") == ("x_test", "y_test")
    for text in ("", "x", "x,", "x,y,z", "x,x"):
        refusal(QueryError, partial(parse_keys, text), f"--keys {text!r}")
