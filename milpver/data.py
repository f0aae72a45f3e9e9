"""Labelled inputs from files (npz, csv, folders of idx files), and their fit to a network's input.

A verdict is only as good as the input it speaks of, so nothing is guessed here: whatever is truncated,
foreign, ragged, not finite, outside of its domain or laid out in an order that the network does not
share is an error that names the place. No file is trusted with memory either: the sizes that a header
promises are compared with what the file can hold before anything is allocated, and nothing is unpickled.

Inputs become float32, the values that the network gets. Units: idx folders are divided by 255; everything
else stays as stored, or is divided by ``scale``. A domain is never divided: it is in the units that the
inputs have after scaling.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from milpver.errors import DataError, QueryError

__all__ = [
    "Dataset",
    "Domain",
    "check_domain",
    "check_labels",
    "fit_domain",
    "fit_inputs",
    "load_data",
    "parse_domain",
    "parse_floats",
    "parse_keys",
    "select",
]

Array: TypeAlias = NDArray[Any]
Domain: TypeAlias = tuple[float, float] | tuple[NDArray[np.float64], NDArray[np.float64]]
"""Closed range of the inputs: two numbers for every element, or two arrays of the input's shape."""

DEFAULT_COUNT: Final = 20  # inputs that are taken when no index is named
DEFAULT_KEYS: Final = ("x", "y")

_MAX_ELEMENTS: Final = 1 << 31  # 8 GiB of float32: far beyond what can be verified, within a large machine
_DEFLATE_RATIO: Final = 1032  # no deflate stream unpacks to more bytes than this times its own size
_IMAGES, _LABELS = 0x803, 0x801  # idx magic numbers: unsigned bytes in three dimensions, and in one
_PREFIX: Final[Mapping[str, str]] = {"test": "t10k", "train": "train"}
_IMAGE_CHANNELS: Final = (1, 2, 3, 4)

# What the readers below raise on files that are damaged or something else altogether.
_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, NotImplementedError,
    MemoryError, OverflowError, csv.Error, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip

_KINDS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x93NUMPY", "a single .npy array"),
    (b"PK", "a zip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80", "a Python pickle"),
    (b"\x00\x00\x08", "an idx file"),
)


class _Readable(Protocol):
    """What is read from: an open file, packed or not."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Inputs with their labels, in file order.

    Attributes:
        inputs: float32 [n, *shape], finite, n >= 1; the values that the network gets.
        labels: int64 [n], none negative.
        domain: closed range that all inputs lie in, in the inputs' units; None where nothing is known.
        source: the file or folder, for messages.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    domain: Domain | None
    source: Path

    def __len__(self) -> int:
        return len(self.labels)


def load_data(
    path: Path,
    *,
    keys: tuple[str, str] = DEFAULT_KEYS,
    split: str = "test",
    scale: float | None = None,
    domain: Domain | None = None,
) -> Dataset:
    """Read a data set.

    Args:
        path: an ``.npz`` file; a ``.csv`` file, each line the label and then the flattened input; or a folder
            of idx or idx.gz files as MNIST ships them, its training images whole or in parts.
        keys: names of the inputs and of the labels in an ``.npz`` file. An optional array ``domain`` beside
            them, [2] or [2, *shape], holds the lower and the upper end of the inputs after scaling.
        split: which files of a folder, ``test`` or ``train``.
        scale: divide the inputs by it (one rounding, to float32). Not for folders, whose bytes are divided
            by 255.
        domain: takes the place of the file's own; in the inputs' units after scaling.

    Returns:
        The inputs, checked to be finite and in the domain. Folders have the domain [0, 1].

    Raises:
        DataError: the file is missing, empty, damaged, something else, or its values make no sense.
        QueryError: an option value that makes no sense for this kind of file.
    """
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise QueryError(
            f"--scale {scale}",
            needed="a finite number above 0",
            fix="pass what to divide the inputs by, e.g. 255",
        )
    if split not in _PREFIX:
        raise QueryError(f"--split {_show(split)}", needed="test or train", fix="name one of these two")
    try:
        is_folder = path.is_dir()
        is_file = path.is_file()
        there = path.exists()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, "a readable file or folder") from error
    if is_folder:
        _refuse_options(path, keys=keys, scale=scale)
        inputs, labels = _load_folder(path, split)
        found: Domain | None = (0.0, 1.0)
    elif not is_file:
        state = "is not a regular file" if there else "does not exist"
        raise DataError(
            f"data {path} {state}",
            needed="an .npz file, a .csv file or a folder of idx files",
            fix="check --data",
        )
    elif path.suffix.lower() == ".npz":
        _refuse_options(path, split=split)
        inputs, labels, found = _load_npz(path, keys, scale, read_domain=domain is None)
    elif path.suffix.lower() == ".csv":
        _refuse_options(path, split=split, keys=keys)
        inputs, labels = _load_csv(path, scale)
        found = None
    else:
        raise DataError(
            f"data {path} has the suffix {_show(path.suffix)}",
            needed="an .npz file, a .csv file, or a folder of idx files as MNIST ships them",
            fix="rename or convert the file, or name the folder instead of a file in it",
        )
    used = found if domain is None else domain
    if used is not None:
        check_domain(inputs, used, path)
    return Dataset(inputs=inputs, labels=labels, domain=used, source=path)


def select(dataset: Dataset, index: str | None) -> tuple[int, ...]:
    """Positions that an ``--index`` text names, in its order, each once.

    Args:
        dataset: what to choose from.
        index: positions and slices as Python writes them, separated by commas: ``5``, ``1,4,9``, ``0:20``,
            ``10:20:2``, ``-3:``. None: the first 20, or all where there are fewer.

    Raises:
        QueryError: the text is no index, names nothing, or reaches past the ends (slices included: unlike in
            Python they are not cut, since fewer answers than asked for must not go unnoticed).
    """
    size = len(dataset)
    if index is None:
        return tuple(range(min(DEFAULT_COUNT, size)))
    chosen: dict[int, None] = {}
    for item in index.split(","):
        parts = [part.strip() for part in item.split(":")]
        if not all(
            re.fullmatch(r"[+-]?[0-9]{1,18}", part) or (not part and len(parts) > 1) for part in parts
        ):
            raise _bad_index(index, f"{_show(item)} is no position and no slice", dataset)
        numbers = [int(part) if part else None for part in parts]
        if len(numbers) > 3 or (len(numbers) == 3 and numbers[2] == 0):
            raise _bad_index(index, f"{_show(item)} is no slice", dataset)
        if len(numbers) == 1:
            position = numbers[0]
            if position is None or not -size <= position < size:
                raise _bad_index(index, f"{item.strip()} is out of range", dataset)
            chosen[position % size] = None
            continue
        start, stop = numbers[:2]
        step = numbers[2] if len(numbers) == 3 else None
        lowest_stop = -size - 1 if step is not None and step < 0 else -size
        if (start is not None and not -size <= start < size) or (
            stop is not None and not lowest_stop <= stop <= size
        ):
            raise _bad_index(index, f"{item.strip()} is out of range", dataset)
        picked = range(size)[slice(start, stop, step)]
        if not picked:
            raise _bad_index(index, f"{item.strip()} is empty", dataset)
        chosen.update(dict.fromkeys(picked))
    return tuple(chosen)


def fit_inputs(
    inputs: NDArray[np.floating[Any]],
    input_shape: tuple[int, ...],
    *,
    layout: str | None,
    source: Path | str,
) -> NDArray[np.float32]:
    """Bring inputs into the order in which the network reads them, flattened.

    Shapes that differ only in axes of length 1, or of which one is flat, hold the same order. Images whose
    channels stand elsewhere than in the network's input are transposed if ``layout`` says so, and are an
    error otherwise.

    Args:
        inputs: floats [n, *shape].
        input_shape: the network's input without its batch axis.
        layout: where the *data* has its channels: ``nchw``, ``nhwc``, or None where nothing is to be moved.
        source: file of the inputs, for messages.

    Returns:
        float32 [n, prod(input_shape)], row-major over ``input_shape``.

    Raises:
        DataError: the inputs do not fit, are empty or not finite.
        QueryError: a layout that is unknown or cannot be applied.
    """
    if inputs.ndim == 0 or inputs.size == 0:
        raise _empty(source)
    arranged = _arrange(inputs, input_shape, layout, source)
    _check_finite(arranged, source)
    return _to_float32(arranged, None, source)


def fit_domain(
    domain: Domain, input_shape: tuple[int, ...], *, layout: str | None, source: Path | str
) -> Domain:
    """Bring a domain into the order of :func:`fit_inputs`: arrays become float64 [prod(input_shape)]."""
    lower, upper = domain
    if not isinstance(lower, np.ndarray):
        return domain
    ends = _arrange(np.stack([lower, upper]), input_shape, layout, source)
    return ends[0], ends[1]


def check_labels(labels: NDArray[np.int64], classes: int, source: Path | str) -> None:
    """Refuse labels that the network has no output for.

    Args:
        labels: int64 [n].
        classes: number of the network's outputs.
        source: file of the labels, for messages.

    Raises:
        DataError: names the first label below 0 or from ``classes`` on.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"{source}: label {int(labels[first])} at index {first}",
            needed=f"0 to {classes - 1}, the network has {classes} outputs",
            fix="use the data that the network was made for, with labels that start at 0",
        )


def check_domain(inputs: NDArray[np.floating[Any]], domain: Domain, source: Path | str) -> None:
    """Refuse inputs outside of the domain, by any amount: the comparison is exact.

    Args:
        inputs: floats [n, *shape].
        domain: two numbers, or two arrays of shape [*shape].
        source: file of the inputs, for messages.

    Raises:
        DataError: names the index and the value of the first input that lies outside, or a domain that is
            empty, not finite or of another shape.
    """
    lower, upper = (np.asarray(end, dtype=np.float64) for end in domain)
    if not all(end.shape in ((), inputs.shape[1:]) for end in (lower, upper)):
        raise DataError(
            f"{source}: domain of shape {lower.shape} and {upper.shape}",
            needed=f"two numbers, or two arrays of the input's shape {inputs.shape[1:]}",
            fix="give the domain the shape of one input",
        )
    if not (np.isfinite(lower).all() and np.isfinite(upper).all() and bool((lower <= upper).all())):
        raise DataError(
            f"{source}: domain that is empty or not finite",
            needed="finite numbers, the lower end at most the upper end",
            fix="mend the domain or pass --domain LO,HI",
        )
    # Broadcast first: NumPy would round a scalar to float32 before it compares it with float32 inputs.
    lows, highs = (np.broadcast_to(end, inputs.shape) for end in (lower, upper))
    outside = np.less(inputs, lows)
    np.logical_or(outside, np.greater(inputs, highs), out=outside)
    if outside.any():
        index, element = _first(outside)
        value, low, high = (
            float(array.reshape(len(inputs), -1)[index, element]) for array in (inputs, lows, highs)
        )
        with np.errstate(over="ignore"):
            is_rounding = bool(np.float32(low) <= np.float32(value) <= np.float32(high))
        raise DataError(
            f"{source}: input {index} has the value {value!r} at element {element}",
            needed=f"the domain [{low!r}, {high!r}]" + (" (exceeded by float32 rounding)" * is_rounding),
            fix="widen the domain by that rounding" if is_rounding else "pass --scale or another --domain",
        )


def parse_domain(text: str) -> tuple[float, float]:
    """Read ``LO,HI``, the closed range of every input element.

    Raises:
        QueryError: not two finite numbers, or LO is not below HI.
    """
    values = [_number(part) for part in text.split(",")]
    if len(values) == 2:
        lower, upper = values
        if lower is not None and upper is not None and lower < upper and math.isfinite(upper - lower):
            return lower, upper
    raise QueryError(
        f"--domain {_show(text)}",
        needed="LO,HI: two finite numbers, LO below HI",
        fix="write e.g. --domain 0,1",
    )


def parse_floats(text: str, *, option: str = "--mean", positive: bool = False) -> tuple[float, ...]:
    """Read numbers separated by commas, such as one for each channel.

    Args:
        text: e.g. ``0.4914,0.4822,0.4465``.
        option: where the text comes from, for messages.
        positive: refuse 0 and below, as a standard deviation must be.

    Raises:
        QueryError: names the first part that is no finite number, or is not positive.
    """
    values = []
    for part in text.split(","):
        value = _number(part)
        if value is None or not math.isfinite(value) or (positive and value <= 0):
            raise QueryError(
                f"{option} {_show(text)} with {_show(part.strip())}",
                needed=f"finite numbers{' above 0' if positive else ''}, separated by commas",
                fix=f"write e.g. {option} {'0.5' if positive else '0.1'} or one number a channel",
            )
        values.append(value)
    return tuple(values)


def parse_keys(text: str) -> tuple[str, str]:
    """Read ``INPUTS,LABELS``, the names of two arrays in an npz file.

    Raises:
        QueryError: not two different names.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise QueryError(
            f"--keys {_show(text)}",
            needed="two names, of the inputs and of the labels",
            fix="write e.g. --keys x,y",
        )
    return parts[0], parts[1]


# ---------------------------------------------------------------------------------------------- npz


def _load_npz(
    path: Path, keys: tuple[str, str], scale: float | None, *, read_domain: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64], Domain | None]:
    with _reading(path, "an .npz archive of arrays, as numpy.savez writes it"):
        _refuse_kind(path, expected=b"PK", needed="an .npz archive")
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            missing = [key for key in keys if key not in members]
            if missing:
                there = ", ".join(_show(name) for name in itertools.islice(members, 20)) or "none"
                raise DataError(
                    f"{path} has no array {_show(missing[0])}; arrays there: {there}",
                    needed="an array of inputs and one of labels",
                    fix="name them with --keys INPUTS,LABELS",
                )
            raw, raw_labels = (_read_member(archive, members[key], path) for key in keys)
            raw_domain = (
                _read_member(archive, members["domain"], path)
                if read_domain and "domain" in members
                else None
            )
    if raw.ndim == 0 or raw.size == 0 or raw_labels.size == 0:
        raise _empty(path)
    if raw_labels.ndim == 2 and raw_labels.shape[1] == 1:
        raw_labels = raw_labels[:, 0]
    if raw_labels.ndim != 1 or len(raw_labels) != len(raw):
        raise DataError(
            f"{path}: inputs of shape {raw.shape} and labels of shape {raw_labels.shape}",
            needed="inputs [n, *shape] and one label for each, [n]",
            fix="store one class number (no one-hot row) an input, a single input with a leading axis of 1",
        )
    labels = _to_labels(raw_labels, lambda index: f"{path}: {_show(keys[1])} at index {index}")
    _check_finite(raw, path)
    inputs = _to_float32(raw, scale, path)
    return inputs, labels, None if raw_domain is None else _to_domain(raw_domain, inputs.shape[1:], path)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    """Read one array of an archive, after comparing what its headers promise with what it can hold."""
    name = f"{path}: array {_show(info.filename.removesuffix('.npy'))}"
    needed = "an array of numbers as numpy.savez or numpy.savez_compressed writes it"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{name} is encrypted or packed in an unusual way", needed=needed, fix="save it again"
        )
    ratio = _DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"{name} is an .npy of version {version}", needed=needed, fix="save it again")
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read_header(stream)
        if dtype.hasobject:
            raise DataError(
                f"{name} holds pickled Python objects, which could run code when they are read",
                needed=needed,
                fix="save it again as an array of numbers, with a numeric dtype",
            )
        if dtype.kind not in "biuf":
            raise DataError(f"{name} has the dtype {dtype}", needed=needed, fix="save it again with numbers")
        if any(length < 0 for length in shape):
            raise DataError(f"{name} has the shape {shape}", needed=needed, fix="save it again")
        count = math.prod(shape)
        size = count * dtype.itemsize
        held = info.file_size - stream.tell()
        most = ratio * min(info.compress_size, path.stat().st_size)
        _check_size(name, promised=size, held=held, most=most, count=count)
        flat = np.empty(count, dtype=dtype)
        _read_into(stream, flat)  # to the member's end, where its checksum is compared
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)


def _to_domain(raw: Array, shape: tuple[int, ...], path: Path) -> Domain:
    if raw.shape == (2,):
        return float(raw[0]), float(raw[1])
    if raw.shape == (2, *shape):
        ends = raw.astype(np.float64)
        return ends[0], ends[1]
    raise DataError(
        f"{path}: 'domain' has the shape {raw.shape}",
        needed=f"[2], or [2, *shape] = {(2, *shape)}: the lower ends, then the upper ends",
        fix="store it so, or pass --domain LO,HI",
    )


# ---------------------------------------------------------------------------------------------- csv


def _load_csv(path: Path, scale: float | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with (
        _reading(path, "UTF-8 text, each line a label and then the flattened input, separated by commas"),
        path.open(encoding="utf-8-sig", newline="") as stream,
    ):
        rows, lines = _parse_rows(csv.reader(stream, strict=True), path)
    if not rows:
        raise _empty(path)
    if len(rows[0]) < 2:
        raise DataError(
            f"{path}: line {lines[0]} has one cell",
            needed="a label and then the flattened input, separated by commas",
            fix="separate the cells by commas",
        )
    table = np.stack(rows)
    labels = _to_labels(table[:, 0], lambda index: f"{path}: line {lines[index]}, column 1")
    return _to_float32(table[:, 1:], scale, path), labels


def _parse_rows(reader: Any, path: Path) -> tuple[list[NDArray[np.float64]], list[int]]:
    """Rows of numbers and the lines they stand on.

    ``reader`` is what ``csv.reader`` returns, whose class has no public name. Blank lines are passed over,
    and so is a first line of which no cell is a number.
    """
    rows: list[NDArray[np.float64]] = []
    lines: list[int] = []
    width: int | None = None
    for row in reader:
        if not any(cell.strip() for cell in row) and len(row) <= 1:
            continue
        line = int(reader.line_num)
        if width is None:
            width = len(row)
            if all(_number(cell) is None and cell.strip() for cell in row):
                continue
        elif len(row) != width:
            raise DataError(
                f"{path}: line {line} has {len(row)} cells and the first line has {width}",
                needed="the same number of cells on every line",
                fix="mend or cut off that line (is the file truncated?)",
            )
        values = _parse_cells(row)
        if values is None or not np.isfinite(values).all():
            column = next(k for k, cell in enumerate(row) if not _is_finite_number(cell))
            raise DataError(
                f"{path}: line {line}, column {column + 1} holds {_show(row[column])}",
                needed="finite decimal numbers, separated by commas",
                fix="mend that cell",
            )
        rows.append(values)
        lines.append(line)
    return rows, lines


def _parse_cells(row: list[str]) -> NDArray[np.float64] | None:
    """Numbers of one row, or None where :func:`_number` would refuse one of its cells."""
    text = "".join(row)
    if "_" in text or not text.isascii():
        return None
    try:
        return np.fromiter(map(float, row), dtype=np.float64, count=len(row))
    except ValueError:
        return None


# ---------------------------------------------------------------------------------------------- idx


def _load_folder(path: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with _reading(path, "a readable folder"):
        names = sorted(entry.name for entry in path.iterdir())
    image_files, label_files = (_find_files(path, names, split, content) for content in ("images", "labels"))
    images = [_read_idx(file, _IMAGES) for file in image_files]
    labels = np.concatenate([_read_idx(file, _LABELS) for file in label_files])
    for file, part in zip(image_files, images, strict=True):
        if part.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"{file} has images of {part.shape[1:]} and {image_files[0].name} of {images[0].shape[1:]}",
                needed="images of one size",
                fix="keep one data set a folder",
            )
    count = sum(map(len, images))
    if count != len(labels):
        raise DataError(
            f"{path} has {count} {split} images and {len(labels)} labels",
            needed="one label for each image",
            fix="complete the folder (is a part missing?)",
        )
    if count == 0 or images[0][0].size == 0:
        raise _empty(path)
    inputs = np.empty((count, *images[0].shape[1:]), dtype=np.float32)
    np.concatenate(images, out=inputs)
    inputs /= np.float32(255)
    return inputs, labels.astype(np.int64)


def _find_files(path: Path, names: Iterable[str], split: str, content: str) -> list[Path]:
    """Files of one split: a whole one, or parts numbered from 0; unpacked ones before packed ones."""
    pattern = re.compile(rf"{_PREFIX[split]}-{content}(?:-part([0-9]{{1,6}}))?[-.]idx[13]-ubyte(\.gz)?")
    parts: dict[int | None, str] = {}
    for name in sorted(names, key=lambda name: (name.endswith(".gz"), name)):
        match = pattern.fullmatch(name)
        if match:
            parts.setdefault(None if match[1] is None else int(match[1]), name)
    if None in parts:
        return [path / parts[None]]
    numbers = [number for number in parts if number is not None]
    if not numbers or sorted(numbers) != list(range(len(numbers))):
        dimension = 3 if content == "images" else 1
        whole = f"{_PREFIX[split]}-{content}-idx{dimension}-ubyte"
        there = ", ".join(_show(name) for name in itertools.islice(names, 8)) or "nothing"
        raise DataError(
            f"{path} has no complete {split} {content}; it holds {there}",
            needed=f"{whole} or {whole}.gz, or parts of it numbered from 0 (…-{content}-part0-…)",
            fix="name the folder with the idx files, or another --split",
        )
    return [path / parts[number] for number in sorted(numbers)]


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Bytes of one idx file (big-endian header: magic, lengths; then the data), packed or not."""
    what = "images (magic 0x803)" if magic == _IMAGES else "labels (magic 0x801)"
    needed = f"an idx file of {what}"
    packed = path.suffix == ".gz"
    with _reading(path, needed + (", packed by gzip" if packed else "")):
        if packed:
            _refuse_kind(path, expected=b"\x1f\x8b", needed=needed + ", packed by gzip")
        held = path.stat().st_size
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            head = stream.read(4)
            if int.from_bytes(head, "big") != magic or len(head) < 4:
                raise DataError(
                    f"{path} starts with {_describe(head)}",
                    needed=needed,
                    fix="fetch the file again, or name packed files .gz",
                )
            axes = magic & 0xFF
            shape = struct.unpack(f">{axes}I", stream.read(4 * axes))
            count = math.prod(shape)
            size = 4 + 4 * axes
            if packed:
                _check_size(str(path), promised=count, held=count, most=_DEFLATE_RATIO * held, count=count)
            else:
                _check_size(str(path), promised=count, held=held - size, most=held, count=count)
            flat = np.empty(count, dtype=np.uint8)
            _read_into(stream, flat)
            if stream.read(1):
                raise DataError(
                    f"{path} goes on after the {count} bytes that its header promises",
                    needed=needed,
                    fix="fetch the file again",
                )
    return flat.reshape(shape)


# ---------------------------------------------------------------------------------------------- shapes


def _arrange(array: Array, wanted: tuple[int, ...], layout: str | None, source: Path | str) -> Array:
    """Bring [n, *shape] into the order of ``wanted``, as [n, prod(wanted)]."""
    shape = array.shape[1:]
    if layout not in (None, "nchw", "nhwc"):
        raise QueryError(
            f"--layout {_show(layout)}",
            needed="nchw or nhwc, the layout of the data",
            fix="name one of these two",
        )
    if math.prod(shape) != math.prod(wanted):
        raise DataError(
            f"{source}: inputs of shape {_times(shape)} ({math.prod(shape)} numbers)",
            needed=f"{_times(wanted)} ({math.prod(wanted)} numbers), the network's input",
            fix="use data that was made for this network",
        )
    axes, target = _image_axes(shape), _image_axes(wanted)
    is_flat = len(_long_axes(shape)) <= 1
    if layout is None:
        if not _same_order(shape, wanted) or (not is_flat and _layout_for(axes, target)):
            raise _misfit(shape, wanted, source)
        return np.ascontiguousarray(array).reshape(len(array), -1)
    if is_flat and len(target) == 3:
        axes = _unflatten(target, layout)
    channels = 1 if len(axes) == 2 else axes[0 if layout == "nchw" else -1] if len(axes) == 3 else 0
    moves = len(axes) == 3 and _moved(axes, layout) == target
    if channels != 1 and (len(_long_axes(target)) <= 1 or (moves and axes == target)):
        raise _unclear(shape, wanted, layout)
    if moves:
        array = array.reshape(len(array), *axes).transpose(0, *_permutation(layout))
    elif not _same_order(axes, target):
        raise _misfit(shape, wanted, source)
    return np.ascontiguousarray(array).reshape(len(array), -1)


def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _image_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop leading axes of length 1 down to three axes."""
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _same_order(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a reshape keeps the meaning: same axes but for those of length 1, or one side is flat."""
    left, right = _long_axes(shape), _long_axes(wanted)
    return left == right or len(left) <= 1 or len(right) <= 1


def _permutation(layout: str) -> tuple[int, int, int]:
    """Axes that bring data of this layout into the other one."""
    return (3, 1, 2) if layout == "nhwc" else (2, 3, 1)


def _moved(axes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape that three axes have after :func:`_permutation`."""
    return tuple(axes[axis - 1] for axis in _permutation(layout))


def _layout_for(axes: tuple[int, ...], target: tuple[int, ...]) -> str | None:
    """Layout of data with several channels that another network layout would explain, if there is one."""
    if len(axes) == 3 and axes != target:
        for layout, channels in (("nhwc", axes[2]), ("nchw", axes[0])):
            if channels > 1 and _moved(axes, layout) == target:
                return layout
    return None


def _unflatten(target: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape in ``layout`` of flat data, for a network whose image channels can be told by their number."""
    first, middle, last = target
    is_first, is_last = first in _IMAGE_CHANNELS, last in _IMAGE_CHANNELS
    if is_first == is_last:
        raise _unclear((math.prod(target),), target, layout)
    channels, height, width = (first, middle, last) if is_first else (last, first, middle)
    return (channels, height, width) if layout == "nchw" else (height, width, channels)


def _unclear(shape: tuple[int, ...], wanted: tuple[int, ...], layout: str) -> QueryError:
    return QueryError(
        f"--layout {layout} for inputs of shape {_times(shape)} and a network input of {_times(wanted)}",
        needed="shapes that show where the channels stand on both sides",
        fix="leave --layout out if the data is in the network's order, or store it in that order",
    )


def _misfit(shape: tuple[int, ...], wanted: tuple[int, ...], source: Path | str) -> DataError:
    layout = _layout_for(_image_axes(shape), _image_axes(wanted))
    if layout is not None:
        return DataError(
            f"{source}: inputs of shape {_times(shape)}, with the channels elsewhere than in the network's",
            needed=f"{_times(wanted)}, the network's input",
            fix=f"pass --layout {layout} if that is the layout of the data",
        )
    return DataError(
        f"{source}: inputs of shape {_times(shape)}",
        needed=f"{_times(wanted)}, the network's input",
        fix="store the inputs in that shape, or flat if their order is the network's",
    )


# ---------------------------------------------------------------------------------------------- values


def _to_float32(raw: Array, scale: float | None, source: Path | str) -> NDArray[np.float32]:
    """Finite numbers as float32, divided by ``scale`` in float64 first, so that float32 rounds once."""
    inputs = np.empty(raw.shape, dtype=np.float32)
    with np.errstate(over="ignore"):
        if scale is None:
            np.copyto(inputs, raw, casting="unsafe")
        else:
            np.divide(raw, scale, out=inputs, dtype=np.float64, casting="unsafe")
    large = ~np.isfinite(inputs)
    if large.any():
        index, element = _first(large)
        raise DataError(
            f"{source}: input {index} has the value {float(raw.reshape(len(raw), -1)[index, element])!r} "
            f"at element {element}" + ("" if scale is None else f", divided by {scale}"),
            needed="values that float32 can hold, the type that networks get",
            fix="pass a larger --scale or mend the data",
        )
    return inputs


def _to_labels(raw: Array, where: Callable[[int], str]) -> NDArray[np.int64]:
    """Class numbers as int64; ``where`` says where the label of an index stands."""
    if raw.dtype.kind == "f":
        raw = raw.astype(np.float64)
        wrong = ~((raw >= 0) & (raw < 2**31) & (raw == np.floor(raw)))
    else:
        wrong = (raw < 0) | (raw > 2**31 - 1)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where(first)}: label {raw[first].item()!r}",
            needed="a class number: an integer from 0 on",
            fix="mend the label, or name the array of labels with --keys INPUTS,LABELS",
        )
    return raw.astype(np.int64)


def _check_finite(raw: Array, source: Path | str) -> None:
    wrong = ~np.isfinite(raw)
    if wrong.any():
        index, element = _first(wrong)
        raise DataError(
            f"{source}: input {index} has the value {float(raw.reshape(len(raw), -1)[index, element])} "
            f"at element {element}",
            needed="finite numbers",
            fix="mend or leave out that input",
        )


def _first(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Position of the first True: index of the input, and of the element in the flattened input."""
    index, element = divmod(int(np.argmax(mask)), math.prod(mask.shape[1:]))
    return index, element


def _number(text: str) -> float | None:
    """A decimal number in ASCII (inf and nan included), or None; unlike float() without underscores."""
    if "_" in text or not text.isascii():
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _is_finite_number(text: str) -> bool:
    value = _number(text)
    return value is not None and math.isfinite(value)


# ---------------------------------------------------------------------------------------------- reading


@contextmanager
def _reading(path: Path, needed: str) -> Iterator[None]:
    """Turn whatever a reader raises on a damaged or foreign file into a DataError."""
    try:
        yield
    except _UNREADABLE as error:
        raise _unreadable(path, error, needed) from error


def _unreadable(path: Path, error: BaseException, needed: str) -> DataError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = reason or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
    return DataError(
        f"{path} cannot be read: {_shorten(reason)}",
        needed=needed,
        fix="check that the file is complete, of that kind and readable",
    )


def _refuse_kind(path: Path, *, expected: bytes, needed: str) -> None:
    """Say what a file is when it does not start as its name says."""
    with path.open("rb") as stream:
        head = stream.read(8)
    if not head.startswith(expected):
        raise DataError(f"{path} starts with {_describe(head)}", needed=needed, fix="name the right file")


def _refuse_options(
    path: Path, *, keys: tuple[str, str] = DEFAULT_KEYS, split: str = "test", scale: float | None = None
) -> None:
    """Refuse options that would have no effect on this kind of data: the answer would be another one."""
    kind = "a folder of idx files" if path.is_dir() else f"a {path.suffix} file"
    if keys != DEFAULT_KEYS:
        raise QueryError(
            f"--keys {','.join(keys)} for {path}", needed="an .npz file", fix=f"leave it out for {kind}"
        )
    if split != "test":
        raise QueryError(
            f"--split {split} for {path}", needed="a folder of idx files", fix=f"leave it out for {kind}"
        )
    if scale is not None:
        raise QueryError(
            f"--scale {scale} for {path}",
            needed="an .npz or .csv file (bytes of idx files are divided by 255)",
            fix=f"leave it out for {kind}",
        )


def _check_size(name: str, *, promised: int, held: int, most: int, count: int) -> None:
    """Compare the size that a header promises with what follows it, before memory is asked for.

    Args:
        name: the file or array.
        promised: bytes that the header asks for.
        held: bytes that stand behind it, as far as the file tells.
        most: bytes that the file can hold at all when it is unpacked.
        count: number of elements.
    """
    if promised != held or promised > most:
        raise DataError(
            f"{name}: the header promises {promised} bytes and the file holds {min(held, most)}",
            needed="as much data as the header says",
            fix="fetch or save the file again (is it truncated?)",
        )
    if count > _MAX_ELEMENTS:
        raise DataError(
            f"{name} has {count} elements",
            needed=f"at most {_MAX_ELEMENTS}",
            fix="store fewer inputs in a file",
        )


def _read_into(stream: _Readable, flat: Array) -> None:
    """Fill a flat array from a stream, or raise EOFError."""
    view = flat.view(np.uint8).data
    done = 0
    while done < len(view):
        chunk = stream.read(min(len(view) - done, 1 << 20))
        if not chunk:
            raise EOFError(f"it ends after {done} of {len(view)} bytes")
        view[done : done + len(chunk)] = chunk
        done += len(chunk)


def _empty(source: Path | str) -> DataError:
    return DataError(
        f"{source} holds no inputs", needed="at least one input with its label", fix="check the file"
    )


def _bad_index(index: str, why: str, dataset: Dataset) -> QueryError:
    size = len(dataset)
    return QueryError(
        f"--index {_show(index)}: {why} in {dataset.source}",
        needed=f"positions among its {size} inputs, 0 to {size - 1}",
        fix="write e.g. 5 or 0:20 or 1,4,9, within that size",
    )


def _describe(head: bytes) -> str:
    """The first bytes of a file, and what they look like."""
    if not head:
        return "nothing (the file is empty)"
    kind = next((kind for start, kind in _KINDS if head.startswith(start)), "")
    return f"{head!r}" + (f", {kind}" if kind else "")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _show(value: object) -> str:
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."
