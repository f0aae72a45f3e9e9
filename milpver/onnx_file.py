"""Reading an ONNX file without trusting it: bytes -> a checked model with all weights inside.

External data outside of the model's folder is refused unread; damaged, foreign and incomplete files become a
ModelError. What the nodes mean is milpver.onnx_import's business.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from milpver.errors import ModelError

__all__ = ["DEFAULT_DOMAINS", "OLDEST_OPSET", "OnnxFile", "check_model", "first_line", "read_model"]

#: Names of the standard operator set.
DEFAULT_DOMAINS = ("", "ai.onnx")

#: The oldest operator set that is read.
OLDEST_OPSET = 7

#: An ONNX file is one protocol buffer message, which cannot be larger.
_LARGEST = 2**31


@dataclass(frozen=True, eq=False, slots=True)
class OnnxFile:
    """An ONNX file that was read.

    Attributes:
        path: where it was.
        model: the onnx.ModelProto, all weights inside.
        content: the model as bytes: the file's own, unless weights had to be moved into it.
        sha256: of ``content``, hexadecimal.
        opset: version of the standard operator set.
    """

    path: Path
    model: Any
    content: bytes
    sha256: str
    opset: int


def read_model(path: Path) -> OnnxFile:
    """Read a file.

    Raises:
        ModelError: it is missing, empty, damaged, no ONNX, of an operator set that is not read, or keeps
            weights where they may not be.
    """
    content = _bytes(path)
    model = _parsed(path, content)
    opset = _opset(path, model)
    if _inline_external(path, model):
        try:
            content = model.SerializeToString(deterministic=True)
        except Exception as error:
            raise ModelError(
                f"{path}: the model does not fit with its external weights inside ({first_line(error)})",
                needed="less than 2 GB",
                fix="verify a smaller network",
            ) from error
    return OnnxFile(path, model, content, hashlib.sha256(content).hexdigest(), opset)


def first_line(error: BaseException) -> str:
    """The first line that says something, of another library's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _bytes(path: Path) -> bytes:
    """The file's bytes."""
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder", needed="an ONNX file", fix="name the file in it")
        if path.exists() and not path.is_file():
            raise ModelError(
                f"{path} is no regular file", needed="an ONNX file", fix="save it to a file first"
            )
        if (size := path.stat().st_size) > _LARGEST:
            raise ModelError(
                f"{path} has {size} bytes", needed=f"at most {_LARGEST}", fix="verify a smaller network"
            )
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelError(
            f"{path}: {reason}", needed="an ONNX file that can be read", fix="check the path"
        ) from error
    if not content:
        raise ModelError(f"{path} is empty", needed="an ONNX file", fix="export or download it again")
    if content.startswith(b"\x1f\x8b"):
        raise ModelError(f"{path} is compressed (gzip)", needed="an ONNX file", fix="unpack it with gunzip")
    return content


def _parsed(path: Path, content: bytes) -> Any:
    """The model in the bytes."""
    import onnx  # noqa: PLC0415  only where a file is read

    needed, fix = "a complete ONNX model", "export or download it again"
    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:
        raise ModelError(
            f"{path} is no ONNX file, or is truncated ({first_line(error)})", needed=needed, fix=fix
        ) from error
    if not model.opset_import or not model.HasField("graph") or not model.graph.output:
        missing = "opset" if not model.opset_import else "graph" if not model.HasField("graph") else "output"
        raise ModelError(
            f"{path} is no ONNX file, or is truncated (it has no {missing})", needed=needed, fix=fix
        )
    return model


def _opset(path: Path, model: Any) -> int:
    """Version of the standard operator set."""
    import onnx  # noqa: PLC0415  only where a file is read

    versions = [int(entry.version) for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS]
    newest = int(onnx.defs.onnx_opset_version())
    if not versions or not OLDEST_OPSET <= max(versions) <= newest:
        found = f"opset {max(versions)}" if versions else "no opset of the standard domain"
        raise ModelError(
            f"{path} uses {found}",
            needed=f"opset {OLDEST_OPSET} to {newest} of the standard domain",
            fix="convert it with onnx.version_converter, or export it again with such an opset",
        )
    return max(versions)


def check_model(path: Path, model: Any) -> None:
    """Have onnx check the model's structure.

    Raises:
        ModelError: it found something.
    """
    import onnx  # noqa: PLC0415  only where a file is read

    # the checker wants the output's shape, which nobody needs
    shapeless = [entry.type.tensor_type for entry in model.graph.output if entry.type.HasField("tensor_type")]
    shapeless = [kind for kind in shapeless if not kind.HasField("shape")]
    for kind in shapeless:
        kind.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise ModelError(
            f"{path} is no valid ONNX model ({first_line(error)})",
            needed="a model that onnx.checker accepts",
            fix="export it again",
        ) from error
    finally:
        for kind in shapeless:
            kind.ClearField("shape")


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor stored in a graph, in its nodes' attributes and in subgraphs too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)


def _inline_external(path: Path, model: Any) -> bool:
    """Move external data into the model; whether there was any."""
    import onnx  # noqa: PLC0415  only where a file is read

    external = [t for t in _tensors(model.graph) if t.data_location == onnx.TensorProto.EXTERNAL]
    # all places are checked before the first is read
    places = [_external_place(path, tensor) for tensor in external]
    for tensor, (file, offset, length) in zip(external, places, strict=True):
        tensor.raw_data = _external_bytes(path, tensor.name, file, offset, length)
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.DEFAULT
    return bool(external)


def _external_place(path: Path, tensor: Any) -> tuple[Path, int, int | None]:
    """Where a tensor's external data are: file, offset, length."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    found = f"{path}: weights {tensor.name!r} lie in the external file {location!r}"
    needed, fix = "a file inside of the model's folder", "move the file there, or save the model as one file"
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    absolute = posix.is_absolute() or windows.is_absolute() or bool(windows.drive or windows.root)
    if not location or absolute or ".." in posix.parts or ".." in windows.parts or "\0" in location:
        raise ModelError(found, needed=needed, fix=fix)
    folder = Path(os.path.realpath(path.parent))
    file = Path(os.path.realpath(folder / location))
    if not file.is_relative_to(folder):
        raise ModelError(f"{found}, which links out of the model's folder", needed=needed, fix=fix)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else None
    except ValueError:
        offset, length = -1, None
    if offset < 0 or (length is not None and length < 0):
        raise ModelError(
            f"{found} at offset {entries.get('offset')!r}, length {entries.get('length')!r}",
            needed="numbers >= 0",
            fix="export the model again",
        )
    return file, offset, length


def _external_bytes(path: Path, name: str, file: Path, offset: int, length: int | None) -> bytes:
    """One tensor's external data."""
    found = f"{path}: weights {name!r} lie in the external file {file.name!r}"
    fix = "put the complete file beside the model"
    if not file.is_file():
        raise ModelError(f"{found}, which is not there", needed="that file", fix=fix)
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            content = stream.read() if length is None else stream.read(length)
    except OSError as error:
        raise ModelError(f"{found}: {error.strerror}", needed="a file that can be read", fix=fix) from error
    if length is not None and len(content) != length:
        raise ModelError(
            f"{found}, which ends after {len(content)} of {length} bytes at offset {offset}",
            needed="the complete file",
            fix=fix,
        )
    return content
