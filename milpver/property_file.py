"""Reading a property file without trusting it: bytes, unpacked, to the format that claims the text.

Damaged, cut and empty files become a DataError; what the text means is the formats' business
(``milpver.properties``).
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from milpver import registry
from milpver.errors import DataError
from milpver.property import Property, PropertyFormat

__all__ = ["load_property", "read_text"]

_GZIP = b"\x1f\x8b"

#: Characters of a property file: more than any benchmark's, so that a damaged archive cannot fill memory.
_LARGEST = 1 << 30


def load_property(path: str | Path) -> Property:
    """Read a property.

    Args:
        path: a file in VNN-LIB, which gzip may have packed.

    Raises:
        DataError: the file is missing, empty, damaged or cut, or its property is malformed.
    """
    path = Path(path)
    text = read_text(path)
    for name in registry.names("properties"):
        known: PropertyFormat = registry.load("properties", name)
        if known.recognises(text):
            return known.read(text, path)
    raise DataError(
        f"{path}: no known format",
        needed="a property in VNN-LIB 1.0 or 2.0",
        fix="check the file's first line",
    )


def read_text(path: Path) -> str:
    """The text of a file, unpacked where it is compressed by gzip.

    Raises:
        DataError: it is missing, empty, damaged or cut.
    """
    needed, fix = "a complete property file", "check the path, or download the file again"
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder", needed=needed, fix="name the file in it")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path}: {reason}", needed=needed, fix=fix) from error
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is cut or damaged (gzip: {error})", needed=needed, fix=fix) from error
    elif path.suffix == ".gz":
        raise DataError(
            f"{path} is not compressed by gzip", needed=needed, fix="rename it, or download it again"
        )
    if len(content) > _LARGEST:
        raise DataError(
            f"{path} has {len(content)} bytes", needed=f"at most {_LARGEST}", fix="split the property"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text (byte {error.start})", needed=needed, fix=fix) from error
    if not text.strip():
        raise DataError(f"{path} is empty", needed=needed, fix=fix)
    return text
