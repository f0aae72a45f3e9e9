"""``milpver verify --instances``: a list of instances, each within its own time.

They are answered one after the other by a process of its own, which is ended where it does not come back in
time (a kernel that does not look at the clock) or crashes: that costs one instance, and the next one goes to
a fresh process.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TextIO

from milpver.campaign.frames import ended_how, own_streams, receive, send
from milpver.cli.interrupts import Interrupts
from milpver.cli.values import apart, made_folder, number
from milpver.cli.verify import GRACE, Files, Masks, answered, counterexample, masks_of, named
from milpver.errors import MilpverError, QueryError, RecordError
from milpver.query import Options
from milpver.store import lock, unlock

__all__ = ["COLUMNS", "run_batch", "serve"]

#: Columns of the results; ``sha256`` is of the networks and the property, "" where one could not be read.
COLUMNS = ("onnx", "vnnlib", "timeout", "result", "seconds", "message", "sha256")

#: Starts the process that answers.
COMMAND = (sys.executable, "-m", "milpver.cli.instances")

#: Seconds that it has to begin: on a machine with other work, loading takes its time.
_TO_LOAD = 300.0

_INTERRUPTED, _DONE = 130, 0


@dataclass(frozen=True, slots=True)
class _Instance:
    """A line of an instances file: texts as they stand there."""

    onnx: str
    vnnlib: str
    timeout: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What says that two lines are the same instance."""
        return self.onnx, self.vnnlib, self.timeout

    def files(self, folder: Path, budget: Masks) -> Files:
        """Its files; version 2.0 lists pairs of a network's name and file."""
        return Files(named(self.onnx, folder), folder / self.vnnlib, budget)


def run_batch(arguments: Namespace, options: Options) -> int:
    """Answer a list of instances; those that the results hold already are left out."""
    if arguments.instances is None or arguments.results is None or arguments.files or arguments.network:
        raise QueryError(
            "--instances and --results, which go together and without other files",
            needed="both",
            fix="milpver verify --instances instances.csv --results results.csv",
        )
    if arguments.result is not None:
        raise QueryError(
            f"--result {arguments.result} with --instances",
            needed="--results, which a batch has",
            fix="leave --result out",
        )
    source, results = Path(arguments.instances), Path(arguments.results)
    apart("--results", results, {"the list of instances": source})
    masks = _masks(arguments)
    instances = _instances(source)
    folder = (
        None
        if arguments.counterexamples is None
        else made_folder("--counterexamples", arguments.counterexamples)
    )
    with _opened(results) as stream:
        return _batch(arguments, options, instances, stream, masks, folder)


def _batch(
    arguments: Namespace,
    options: Options,
    instances: Sequence[_Instance],
    stream: TextIO,
    masks: str,
    folder: Path | None,
) -> int:
    """Answer what the results do not hold yet."""
    source, results = Path(arguments.instances), Path(arguments.results)
    done = _done(stream, results, masks)
    known = {each.key for each in instances}
    if strange := [key for key in done if key not in known]:
        raise RecordError(
            f"{results} holds the instance {strange[0][0]},{strange[0][1]}, which {source} does not have",
            needed="results of these instances",
            fix="name another file with --results",
        )
    for each in instances:
        found_then = done.get(each.key, ("", ""))[1]
        if found_then and found_then != _sha256(each, source.parent, arguments):
            raise RecordError(
                f"{each.onnx} or {each.vnnlib} is another file than when {results} was written",
                needed="results of these files",
                fix="name another file with --results",
            )
    counts = Counter(outcome for outcome, _ in done.values())
    answerer = _Answerer()
    with Interrupts() as interrupts, closing(answerer):
        writer = csv.writer(stream, lineterminator="\n")
        if stream.tell() == 0:
            writer.writerow(_columns(masks))
        for place, each in enumerate(instances):
            if each.key in done:
                continue
            sha256 = _sha256(each, source.parent, arguments)
            found = _answer(each, source.parent, arguments, options, answerer, lambda: interrupts.asked)
            if found is None or interrupts.asked:
                break
            outcome, seconds, message, text = found.outcome, found.seconds, found.message, found.text
            done[each.key] = outcome, sha256
            counts[outcome] += 1
            row = (*each.key, outcome, f"{seconds:.3f}", message, sha256)
            writer.writerow((*row, masks) if masks else row)
            stream.flush()
            os.fsync(stream.fileno())
            if folder is not None and text:
                (folder / f"{place}.counterexample").write_text(text, encoding="ascii")
            sys.stdout.write(f"{outcome} {seconds:.2f} {each.onnx} {each.vnnlib}\n")
            sys.stdout.flush()
    said = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
    sys.stdout.write(f"{len(done)} of {len(instances)} instances: {said or 'none done'}\n")
    return _INTERRUPTED if interrupts.asked else _DONE


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of an instance: its result in a word, seconds, a message or "", a counterexample or ""."""

    outcome: str
    seconds: float
    message: str
    text: str


def _answer(
    instance: _Instance,
    folder: Path,
    arguments: Namespace,
    options: Options,
    answerer: _Answerer,
    should_stop: Callable[[], bool],
) -> _Answer | None:
    """Answer one instance; None where the user wants to stop."""
    try:
        limit = number("timeout", instance.timeout, above=0.0, example="60")
        files = instance.files(folder, masks_of(arguments))
    except MilpverError as error:
        return _Answer("error", 0.0, str(error), "")
    return answerer.ask(files, replace(options, timeout=limit), should_stop)


class _Answerer:
    """The process that answers, started again after each time that it had to be ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loaded = False

    def ask(self, files: Files, options: Options, should_stop: Callable[[], bool]) -> _Answer | None:
        """Have an instance answered; None where the user wants to stop before it is."""
        process = self._process or self._started()
        began = time.perf_counter()
        if not self._loaded:  # what loading takes is no instance's time
            until = began + _TO_LOAD
            if (word := self._next(lambda: should_stop() or time.perf_counter() > until)) is None:
                return None if should_stop() else self._lost(process, began, "it does not begin")
            if word is _GONE:
                return self._lost(process, began, "it could not begin")
            self._loaded, began = True, time.perf_counter()
        with suppress(OSError):  # gone already, which is noticed at once
            send(_pipe(process.stdin), (files, options))
        until = began + options.timeout + GRACE
        word = self._next(lambda: should_stop() or time.perf_counter() > until)
        seconds = time.perf_counter() - began
        if word is _GONE:
            return self._lost(process, began, "it crashed")
        if word is not None:
            outcome, message, text = word
            return _Answer(outcome, seconds, message, text)
        self.close()
        if should_stop():
            return None
        return _Answer(
            "timeout", seconds, f"ended from outside: it took no notice of {options.timeout:g} s", ""
        )

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._process, self._loaded, self._messages = process, False, queue.SimpleQueue()
        pipe = _pipe(process.stdout)
        threading.Thread(target=_listen, args=(pipe, self._messages), daemon=True).start()
        return process

    def _next(self, over: Callable[[], bool]) -> Any:
        """What the process says next; ``_GONE`` where it ends before, None where it is over before."""
        while not over():
            with suppress(queue.Empty):
                return self._messages.get(timeout=0.05)
        return None

    def _lost(self, process: subprocess.Popen[bytes], began: float, what: str) -> _Answer:
        """The process is of no use any more."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)
        how = ended_how(process.returncode) if process.returncode is not None else "it hangs"
        self.close()
        return _Answer("error", time.perf_counter() - began, f"the process that answers: {what} ({how})", "")

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process = None


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise TypeError("a process without pipes")
    return stream


#: In place of a message: the process has ended.
_GONE = object()


def _listen(stream: IO[bytes], messages: queue.SimpleQueue[Any]) -> None:
    while (message := receive(stream)) is not None:
        messages.put(message)
    messages.put(_GONE)


def serve() -> None:
    """Be the process that answers, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is told by the end of stdin
    incoming, outgoing = own_streams()
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_until_the_end, args=(incoming, asked), daemon=True).start()

    import milpver.counterexample  # noqa: F401, PLC0415  seconds, which no instance is to pay

    send(outgoing, "ready")
    while True:
        send(outgoing, _safely(*asked.get()))


def _until_the_end(incoming: IO[bytes], asked: queue.SimpleQueue[Any]) -> None:
    while (message := receive(incoming)) is not None:
        asked.put(message)
    os._exit(0)


def _safely(files: Files, options: Options) -> tuple[str, str, str]:
    """Answer one instance; whatever goes wrong is its own: outcome, message, counterexample."""
    try:
        prop, answer, notes = answered(files, options, 0.0, lambda: False)
    except MilpverError as error:
        return "error", str(error), ""
    except Exception as error:  # a defect that one instance brings to light must not cost the others
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return "error", said[:300], ""
    text = "" if answer.x is None else counterexample(prop, answer)
    return answer.outcome.value, "; ".join(notes), text


def _instances(path: Path) -> list[_Instance]:
    """The lines onnx,vnnlib,timeout of an instances file; blank ones are left out.

    Raises:
        QueryError: it cannot be read, or a line has other columns.
    """
    needed, fix = "lines onnx,vnnlib,timeout", "correct the file"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise QueryError(f"--instances {path}: {said}", needed=needed, fix="check the path") from error
    found = []
    for place, row in enumerate(rows, start=1):
        if not row or row == [""]:
            continue
        if len(row) != 3:
            raise QueryError(f"{path}, line {place}: {len(row)} columns", needed=needed, fix=fix)
        found.append(_Instance(*(text.strip() for text in row)))
    if not found:
        raise QueryError(f"{path} holds no instance", needed=needed, fix=fix)
    keys = [each.key for each in found]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise QueryError(f"{path} holds {','.join(twice)} twice", needed="each instance once", fix=fix)
    return found


def _masks(arguments: Namespace) -> str:
    """What is said about masks, as results have it; "" where nothing is."""
    options = zip(("--budget", "--keep", "--remove"), masks_of(arguments), strict=True)
    return " ".join(f"{option} {text}" for option, text in options if text is not None)


def _columns(masks: str) -> tuple[str, ...]:
    """Columns of results: those under masks say under which."""
    return (*COLUMNS, "masks") if masks else COLUMNS


def _sha256(instance: _Instance, folder: Path, arguments: Namespace) -> str:
    """Of the networks and the property; "" where one cannot be read."""
    try:
        files = instance.files(folder, masks_of(arguments))
        found = hashlib.sha256()
        for path in (*(path for _, path in files.models), files.query):
            found.update(hashlib.sha256(path.read_bytes()).digest())
    except (MilpverError, OSError):
        return ""
    return found.hexdigest()


def _done(stream: TextIO, path: Path, masks: str) -> dict[tuple[str, str, str], tuple[str, str]]:
    """What the results hold: instance to result and ``sha256``; a last line that was cut short is taken out.

    The stream is at the end of the last whole line then. A file that is no file of results stays as it was.

    Raises:
        RecordError: it cannot be read, or is none, or its answers are under other masks.
    """
    columns = _columns(masks)
    needed, fix = f"lines {','.join(columns)}", "name another file with --results"
    try:
        content = path.read_bytes()
        whole_lines = content[: content.rfind(b"\n") + 1]
        rows = list(csv.reader(io.StringIO(whole_lines.decode("utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise RecordError(f"--results {path}: {said}", needed=needed, fix=fix) from error
    head = tuple(rows[0]) if rows else ()
    begun = not rows and ",".join(columns).encode().startswith(content)
    if not begun and head not in (COLUMNS, _columns("other")):
        raise RecordError(f"{path} is no file of results", needed=needed, fix=fix)
    found = {}
    for place, row in enumerate(rows[1:], start=2):
        if len(row) != len(head):
            raise RecordError(f"{path}, line {place} is damaged", needed=needed, fix="take that line out")
        own = row[len(COLUMNS)] if len(row) > len(COLUMNS) else ""
        if own != masks:
            raise RecordError(
                f"{path}, line {place} answers {own or 'without masks'}",
                needed=f"answers {masks or 'without masks'}",
                fix=fix,
            )
        found[row[0], row[1], row[2]] = row[3], row[6]
    if rows and head != columns:
        raise RecordError(f"{path} has the columns {','.join(head)}", needed=needed, fix=fix)
    stream.seek(len(whole_lines))
    stream.truncate()
    return found


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The results file, made where there is none; no other process has it open for as long."""
    try:
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8", newline="")
    except OSError as error:
        raise RecordError(
            f"--results {path}: {error.strerror or error}",
            needed="a file that can be written",
            fix="name another file",
        ) from error
    with stream:
        if not lock(stream.fileno()):
            raise RecordError(
                f"--results {path} is in use by another process",
                needed="one process a file",
                fix="wait until it ends, or name another file with --results",
            )
        try:
            yield stream
        finally:
            stream.flush()
            unlock(stream.fileno())


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        serve()
