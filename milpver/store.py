"""Record of results, one JSON object a line, that survives whatever ends the program.

A campaign runs for days; a crash may cost the result that was being written, and nothing else. So a record
is one line, appended and flushed to the disk before :meth:`RecordFile.append` returns. A file is continued
only where each of its records answers the same query (its *identity*), so that two queries never mix.
What a kill in the middle of a write leaves, a last line without an end, is cut off; any other damage is
somebody else's doing and is reported, not mended.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self, TextIO, TypeAlias

import numpy as np

from milpver.errors import RecordError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["JSON", "RecordFile", "RecordStream", "lock", "unlock"]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

STDOUT: Final = Path("-")

_NEEDED: Final = "a file of records of the same query, or a new one"
_FIX: Final = "name another file with --records"


class RecordFile:
    """A file of records, locked against other processes while it is open.

    Use :meth:`open`, as a context manager. One thread at a time.

    Attributes:
        path: the file.
        done: the records that stand in the file, by their ``index`` (or what else numbers them); those
            appended since included.
        repaired: whether a line that a crash had cut short was mended when the file was opened.
    """

    def __init__(self, path: Path, identity: Mapping[str, object], number: str = "index") -> None:
        self.path = path
        self._number: Final = number
        self.done: dict[int, dict[str, JSON]] = {}
        self.repaired = False
        self._identity: Final = _parse(_dump(identity))
        self._fd = -1
        self._size = 0

    @staticmethod
    def open(path: Path, identity: Mapping[str, object], number: str = "index") -> RecordFile:
        """Open a new file or continue an existing one.

        Args:
            path: the file; its folder must exist. ``-`` stands for stdout, see :class:`RecordStream`.
            identity: the fields that say which query a record answers; each record has them, so valued.
            number: the field that tells the records apart, an integer from 0 on.

        Raises:
            RecordError: the file cannot be opened or locked, is damaged, or answers another query. It is
                left as it was.
        """
        if path == STDOUT:
            return RecordStream(sys.stdout, identity)
        records = RecordFile(path, identity, number)
        records._open()
        try:
            records._load()
        except BaseException:
            records.close()
            raise
        return records

    def append(self, record: Mapping[str, object]) -> None:
        """Write one record; when this returns, the record is on the disk.

        Args:
            record: field names and values: what JSON has, and NumPy scalars and arrays. It holds the fields
                of the identity, and ``index`` (see :meth:`open`), an integer from 0 on that is not done yet.

        Raises:
            RecordError: the disk is full or fails, or the file was changed meanwhile; nothing is written.
            ValueError: NaN or infinity, another query, or an index that is done (a defect of the caller).
            TypeError: a value that JSON does not have (a defect of the caller).
        """
        line = _dump(record)
        plain = _parse(line)
        difference = _difference(self._identity, plain)
        if difference is not None:
            raise ValueError(f"the record answers another query: {difference}")
        index = plain.get(self._number)
        if type(index) is not int or index < 0 or index in self.done:
            raise ValueError(f"{self._number} {index!r}: not an integer from 0 on, or done already")
        self._write(line.encode("ascii") + b"\n", index, plain)

    def close(self) -> None:
        """Release the lock and close the file. Further calls do nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            # Closing alone would leave the lock with child processes that were forked meanwhile.
            with suppress(OSError):
                unlock(fd)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ opening

    def _open(self) -> None:
        path = self.path
        with self._disk("opened"):
            is_new = not path.exists()
            if not is_new and not path.is_file():
                kind = "a folder" if path.is_dir() else "not a regular file"
                raise RecordError(f"{path} is {kind}", needed="a file of records", fix=_FIX)
            if not path.parent.is_dir():
                raise RecordError(
                    f"{path}: there is no folder {path.parent}",
                    needed="an existing folder",
                    fix="create it first",
                )
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(path, flags, 0o666)
            try:
                if not lock(self._fd):
                    raise RecordError(
                        f"{path} is in use by another process",
                        needed="one process a file",
                        fix="wait until it ends, or name another file with --records",
                    )
                if is_new:
                    _sync_folder(path.parent)
            except BaseException:
                os.close(self._fd)
                self._fd = -1
                raise

    def _load(self) -> None:
        """Read and check all records; then, and only then, mend the last line."""
        tail = b""
        number = 0
        places: dict[int, int] = {}
        with self._disk("read"), os.fdopen(os.dup(self._fd), "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n"):
                    self._take(line, number, places)
                    self._size += len(line)
                else:
                    tail = line
        if not tail:
            return
        try:
            _parse_line(tail)
        except ValueError:
            # A write that was cut short: the start of an object, or zeros where the machine lost power.
            if not b'{"'.startswith(tail.rstrip(b"\0")[:2]):
                self._damaged(number, tail, "no record")
            with self._disk("mended"):
                os.ftruncate(self._fd, self._size)
                os.fsync(self._fd)
        else:
            # An object is whole only once its last brace is there, so all but the line's end was written.
            self._take(tail, number, places)
            with self._disk("mended"):
                self._put(b"\n", self._size + len(tail))
                os.fsync(self._fd)
            self._size += len(tail) + 1
        self.repaired = True

    def _take(self, line: bytes, number: int, places: dict[int, int]) -> None:
        """Check the record of one line and keep it; ``places`` are the lines of the indices before it."""
        try:
            record = _parse_line(line)
        except ValueError as error:
            self._damaged(number, line, str(error))
        difference = _difference(self._identity, record)
        if difference is not None:
            raise RecordError(f"{self.path}, line {number}: {difference}", needed=_NEEDED, fix=_FIX)
        index = record.get(self._number)
        if type(index) is not int or index < 0:
            self._damaged(number, line, f"{self._number} {index!r}, not an integer from 0 on")
        if index in places:
            self._damaged(number, line, f"{self._number} {index} stands on line {places[index]} already")
        places[index] = number
        self.done[index] = record

    def _damaged(self, number: int, line: bytes, why: str) -> NoReturn:
        shown = line[:40] + (b"..." if len(line) > 40 else b"")
        raise RecordError(
            f"{self.path}, line {number} is damaged ({why}): {shown!r}",
            needed="one record a line, a JSON object",
            fix="take that line out, or name another file with --records",
        )

    # ------------------------------------------------------------------------------------------ writing

    def _write(self, line: bytes, index: int, record: dict[str, JSON]) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.path} is closed")
        with self._disk("written"):
            self._check_unchanged()
            start = self._size
            try:
                self._put(line, start)
                os.fsync(self._fd)
                self._size = start + len(line)
                self.done[index] = record
            except BaseException:
                # Ctrl-C too: either the record stands whole in the file and in `done`, or in neither.
                self.done.pop(index, None)
                self._size = start
                os.ftruncate(self._fd, start)
                raise

    def _check_unchanged(self) -> None:
        """Refuse to go on where the results would be lost, or another program's lines overwritten."""
        status = os.fstat(self._fd)
        try:
            is_there = os.path.samestat(status, self.path.stat())
        except FileNotFoundError:
            is_there = False
        if not is_there or status.st_size != self._size:
            change = "was changed" if is_there else "was removed or replaced"
            raise RecordError(
                f"{self.path} {change} by another program while it was written",
                needed="a file that nothing else writes",
                fix=_FIX,
            )

    def _put(self, data: bytes, position: int) -> None:
        """Write all of ``data`` at ``position``; a single call may write a part only."""
        os.lseek(self._fd, position, os.SEEK_SET)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    @contextmanager
    def _disk(self, deed: str) -> Iterator[None]:
        """Turn what the operating system reports into a RecordError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RecordError(
                f"{self.path} cannot be {deed}: {reason}",
                needed="a file that can be written, with room for the records",
                fix="free the disk or the permission, or name another file with --records",
            ) from error


class RecordStream(RecordFile):
    """Records written to a stream of text such as stdout; nothing is continued or locked."""

    def __init__(self, stream: TextIO, identity: Mapping[str, object]) -> None:
        super().__init__(STDOUT, identity)
        self._stream = stream

    def close(self) -> None:
        """Leave the stream open, it belongs to the caller."""

    def _write(self, line: bytes, index: int, record: dict[str, JSON]) -> None:
        try:
            self._stream.write(line.decode("ascii"))
            self._stream.flush()
        except (
            OSError,
            AttributeError,
        ) as error:  # AttributeError: a program without a stdout has None there
            reason = getattr(error, "strerror", None) or "there is none"
            raise RecordError(
                f"stdout cannot be written: {reason}",
                needed="a reader that stays until the end",
                fix="write the records to a file with --records FILE.jsonl",
            ) from error
        self.done[index] = record


# ---------------------------------------------------------------------------------------------- JSON


def _dump(record: Mapping[str, object]) -> str:
    """One line of ASCII; ValueError on NaN and infinity."""
    return json.dumps(dict(record), allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    """NumPy values and mappings as JSON has them; float32 values keep their exact value as a double."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}")


def _parse(text: str) -> dict[str, JSON]:
    """Read one record; ValueError where it is no JSON object, or holds NaN or Infinity."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _parse_line(line: bytes) -> dict[str, JSON]:
    try:
        return _parse(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _difference(identity: Mapping[str, JSON], record: Mapping[str, JSON]) -> str | None:
    """The first field in which a record disagrees with the identity, with both values."""
    for field, wanted in identity.items():
        if field not in record:
            return f"there is no field {field!r}, which is {_show(wanted)} here"
        if not _same(record[field], wanted):
            return f"{field} is {_show(record[field])} there and {_show(wanted)} here"
    return None


def _same(left: JSON, right: JSON) -> bool:
    """Equality of JSON values: 1 equals 1.0, as numbers do there, and not true."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return left == right


def _show(value: JSON) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


# ---------------------------------------------------------------------------------------------- locks

_IN_USE: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK})
_LOCK_POSITION: Final = (
    0x7FFF0000  # Windows locks bytes, and keeps others from reading them: far past the end
)

if sys.platform == "win32":

    def lock(fd: int) -> bool:
        """Whether the file is ours now; False where another process has it."""
        os.lseek(fd, _LOCK_POSITION, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(fd, 0, os.SEEK_SET)
        return True

    def unlock(fd: int) -> None:
        """Give it back."""
        os.lseek(fd, _LOCK_POSITION, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

    def _sync_folder(folder: Path) -> None:
        """Windows has no such call."""

else:

    def lock(fd: int) -> bool:
        """Whether the file is ours now (or cannot be locked); False where another process has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _IN_USE
        return True

    def unlock(fd: int) -> None:
        """Give it back."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    def _sync_folder(folder: Path) -> None:
        """Make the name of a new file last, too, as far as the file system lets us."""
        with suppress(OSError):
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
