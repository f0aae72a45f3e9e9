"""``milpver verify``: does a property hold; one instance, or a list of them.

The first line of stdout is the answer in one word, whatever happens; a counterexample follows in the
competition's format. Errors go to stderr in one line and leave ``error`` in the result's place.
"""

from __future__ import annotations

import ast
import csv
import os
import sys
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from milpver.cli.interrupts import Interrupts
from milpver.cli.values import memory_size, number, whole
from milpver.errors import MilpverError, QueryError, RecordError
from milpver.property_file import load_property
from milpver.query import Options, names_layers, parse_budget

if TYPE_CHECKING:
    from milpver.counterexample import PropertyAnswer
    from milpver.property import Property

__all__ = ["counterexample", "run"]

#: Seconds after the time limit at which a run that does not come back is given up.
_GRACE = 2.0

#: Columns of a batch's results.
COLUMNS = ("onnx", "vnnlib", "timeout", "result", "seconds", "message")

_INTERRUPTED, _DONE = 130, 0


def run(arguments: Namespace) -> int:
    """Answer one instance, or all of a list."""
    spent = time.process_time()  # what loading took before this line, near enough
    options = Options(
        solver=arguments.solver,
        bounds=arguments.bounds,
        timeout=number("--timeout", arguments.timeout, above=0.0, example="60"),
        threads=whole("--threads", arguments.threads, least=1, most=4096, example="2"),
        memory=memory_size(arguments.memory),
        seed=whole("--seed", arguments.seed, least=0, most=2**31 - 1, example="0"),
        device=arguments.device,
    )
    if arguments.instances is not None or arguments.results is not None:
        return _batch(arguments, options)
    result = None if arguments.result is None else Path(arguments.result)
    watch: threading.Timer | None = None
    try:
        files = _files(arguments)
        watch = threading.Timer(max(0.0, options.timeout - spent) + _GRACE, _give_up, (result,))
        watch.daemon = True
        watch.start()
        with Interrupts() as interrupts:
            text = _instance(files, options, spent, interrupts)
            stopped = interrupts.asked
    except BaseException as error:
        if watch is not None:
            watch.cancel()
        _write("unknown\n" if isinstance(error, KeyboardInterrupt) else "error\n", result)
        raise
    watch.cancel()
    _write(text, result)
    return _INTERRUPTED if stopped else _DONE


#: What ``--budget``, ``--keep`` and ``--remove`` say; None where they are not given.
Masks: TypeAlias = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class _Files:
    """What an instance is made of.

    Attributes:
        model, query: the files.
        name: of the network in the query, "" where none is given.
        budget: masks, as the command line has them.
    """

    model: Path
    query: Path
    name: str
    budget: Masks


def _files(arguments: Namespace) -> _Files:
    """The network's file and the property's, from ``MODEL PROPERTY`` or ``QUERY --network NAME=MODEL``."""
    files, networks = arguments.files, arguments.network
    if not networks:
        if len(files) != 2:
            raise QueryError(
                f"{len(files)} files",
                needed="a network and a property",
                fix="milpver verify MODEL.onnx PROPERTY.vnnlib, or verify QUERY --network NAME=MODEL.onnx",
            )
        name, model = _named(files[0])
        return _Files(Path(model), Path(files[1]), name, _masks(arguments))
    if len(files) != 1 or len(networks) != 1:
        raise QueryError(
            f"{len(files)} files and {len(networks)} --network",
            needed="one query and one network",
            fix="milpver verify QUERY.vnnlib --network NAME=MODEL.onnx",
        )
    name, sign, path = networks[0].partition("=")
    if not (name and sign and path):
        raise QueryError(
            f"--network {networks[0]}",
            needed="NAME=FILE",
            fix="give the network's name in the query, then its file",
        )
    return _Files(Path(path), Path(files[0]), name, _masks(arguments))


def _named(text: str) -> tuple[str, str]:
    """A network's name and file, where a list of such pairs is written in place of a file (version 2.0)."""
    if not text.startswith("["):
        return "", text
    try:
        ((name, path),) = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError) as error:
        raise QueryError(
            f"the networks {text[:80]}", needed="one (name, file) pair", fix="ask about one network"
        ) from error
    return str(name), str(path)


def _masks(arguments: Namespace) -> Masks:
    return arguments.budget, arguments.keep, arguments.remove


def _instance(files: _Files, options: Options, spent: float, interrupts: Interrupts) -> str:
    """Answer one instance; the text of its result."""
    prop, answer, notes = _answered(files, options, spent, interrupts)
    for note in notes:
        _note(note)
    text = f"{answer.outcome}\n"
    if answer.x is not None and answer.y is not None:
        text += counterexample(prop, answer)
    return text


def _answered(
    files: _Files, options: Options, spent: float, interrupts: Interrupts
) -> tuple[Property, PropertyAnswer, list[str]]:
    """Read an instance and answer it."""
    began = time.perf_counter()
    prop = load_property(files.query)
    if files.name and prop.network and files.name != prop.network:
        raise QueryError(
            f"--network {files.name}=..., and {files.query} declares the network {prop.network}",
            needed="the name that the query declares",
            fix=f"--network {prop.network}={files.model}",
        )
    from milpver.onnx_import import load_network  # noqa: PLC0415  only once the property has been read

    network = load_network(files.model, channels=names_layers(*files.budget))
    from milpver.counterexample import verify_property  # noqa: PLC0415  as above

    entries, keep, remove = files.budget
    masks = parse_budget(entries, network, keep=keep, remove=remove)
    answer = verify_property(
        network,
        prop,
        budget=masks,
        options=options,
        should_stop=lambda: interrupts.asked,
        spent=spent + time.perf_counter() - began,
    )
    notes = [answer.message] if answer.message else []
    if answer.removed:
        pairs = " ".join(f"{layer}:{neuron}" for layer, neuron in answer.removed)
        notes.append(f"removed neurons (layer:neuron) of the counterexample: {pairs}")
    return prop, answer, notes


def counterexample(prop: Property, answer: PropertyAnswer) -> str:
    """A counterexample as the competition writes it, in the format of the property's version.

    Numbers are the exact decimal values that a reader in double precision gets back.
    """
    if answer.x is None or answer.y is None:
        raise ValueError("there is no counterexample")
    x, y = ([repr(float(value)) for value in part] for part in (answer.x, answer.y))
    if prop.version == "2.0":
        lines = []
        for tensor, values in zip(prop.tensors, (x, y), strict=True):
            lines.append(f"{tensor.name} {tensor.kind} [{','.join(str(size) for size in tensor.shape)}]")
            lines.extend(values)
    else:
        lines = [f"(X_{k} {value})" for k, value in enumerate(x)]
        lines += [f"(Y_{k} {value})" for k, value in enumerate(y)]
        lines[0], lines[-1] = f"({lines[0]}", f"{lines[-1]})"
    return "\n".join(lines) + "\n"


def _write(text: str, result: Path | None) -> None:
    """Print an answer, and write it to the result's file where one is named."""
    if sys.stdout is not None:
        sys.stdout.write(text)
        sys.stdout.flush()
    if result is not None:
        try:
            result.write_text(text, encoding="ascii")
        except OSError as error:
            raise RecordError(
                f"--result {result}: {error.strerror or error}",
                needed="a file that can be written",
                fix="name another file",
            ) from error


def _give_up(result: Path | None) -> None:
    """End a run that has not come back in time; nothing of it is needed any more."""
    try:
        _write("timeout\n", result)
    finally:
        os._exit(_DONE)


def _note(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"note: {line}\n")
        sys.stderr.flush()


# ------------------------------------------------------------------------------------------- batches


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

    def files(self, folder: Path, budget: Masks) -> _Files:
        """Its files; version 2.0 lists pairs of a network's name and file."""
        name, text = _named(self.onnx)
        return _Files(folder / text, folder / self.vnnlib, name, budget)


def _batch(arguments: Namespace, options: Options) -> int:
    """Answer a list of instances; those that the results hold already are left out."""
    if arguments.instances is None or arguments.results is None or arguments.files or arguments.network:
        raise QueryError(
            "--instances and --results, which go together and without other files",
            needed="both",
            fix="milpver verify --instances instances.csv --results results.csv",
        )
    source, results = Path(arguments.instances), Path(arguments.results)
    instances = _instances(source)
    done = _done(results)
    known = {each.key for each in instances}
    if strange := [key for key in done if key not in known]:
        raise RecordError(
            f"{results} holds the instance {strange[0][0]},{strange[0][1]}, which {source} does not have",
            needed="results of these instances",
            fix="name another file with --results",
        )
    counts = Counter(done[key] for key in done)
    folder = None if arguments.counterexamples is None else Path(arguments.counterexamples)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with Interrupts() as interrupts, _opened(results) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if stream.tell() == 0:
            writer.writerow(COLUMNS)
        for place, each in enumerate(instances):
            if each.key in done:
                continue
            outcome, seconds, message, text = _safely(each, source.parent, arguments, options, interrupts)
            if interrupts.asked:
                break
            done[each.key] = outcome
            counts[outcome] += 1
            writer.writerow((*each.key, outcome, f"{seconds:.3f}", message))
            stream.flush()
            os.fsync(stream.fileno())
            if folder is not None and text:
                (folder / f"{place}.counterexample").write_text(text, encoding="ascii")
            sys.stdout.write(f"{outcome} {seconds:.2f} {each.onnx} {each.vnnlib}\n")
            sys.stdout.flush()
    said = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
    sys.stdout.write(f"{len(done)} of {len(instances)} instances: {said or 'none done'}\n")
    return _INTERRUPTED if interrupts.asked else _DONE


def _safely(
    instance: _Instance, folder: Path, arguments: Namespace, options: Options, interrupts: Interrupts
) -> tuple[str, float, str, str]:
    """Answer one instance; whatever goes wrong is its own: outcome, seconds, message, counterexample."""
    began = time.perf_counter()
    try:
        limit = number("timeout", instance.timeout, above=0.0, example="60")
        prop, answer, notes = _answered(
            instance.files(folder, _masks(arguments)), replace(options, timeout=limit), 0.0, interrupts
        )
    except MilpverError as error:
        return "error", time.perf_counter() - began, str(error), ""
    except (MemoryError, OSError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return "error", time.perf_counter() - began, said[:300], ""
    text = "" if answer.x is None else counterexample(prop, answer)
    return answer.outcome.value, time.perf_counter() - began, "; ".join(notes), text


def _instances(path: Path) -> list[_Instance]:
    """The lines onnx,vnnlib,timeout of an instances file; blank ones are left out.

    Raises:
        QueryError: it cannot be read, or a line has other columns.
    """
    needed, fix = "lines onnx,vnnlib,timeout", "correct the file"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
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


def _done(path: Path) -> dict[tuple[str, str, str], str]:
    """What a results file holds: instance to result; a last line that was cut short is taken out.

    Raises:
        RecordError: it cannot be read, or is none.
    """
    if not path.exists():
        return {}
    needed, fix = f"lines {','.join(COLUMNS)}", "name another file with --results"
    try:
        content = path.read_bytes()
        whole_lines = content[: content.rfind(b"\n") + 1]
        rows: Sequence[Sequence[str]] = list(csv.reader(whole_lines.decode("utf-8").splitlines()))
        if len(whole_lines) < len(content):
            with path.open("r+b") as stream:
                stream.truncate(len(whole_lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise RecordError(f"--results {path}: {said}", needed=needed, fix=fix) from error
    if rows and tuple(rows[0]) != COLUMNS:
        raise RecordError(f"{path} is no file of results", needed=needed, fix=fix)
    found = {}
    for place, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS):
            raise RecordError(f"{path}, line {place} is damaged", needed=needed, fix="take that line out")
        found[row[0], row[1], row[2]] = row[3]
    return found


def _opened(path: Path) -> TextIO:
    """The results file, to be continued."""
    try:
        return path.open("a", encoding="utf-8", newline="")
    except OSError as error:
        raise RecordError(
            f"--results {path}: {error.strerror or error}",
            needed="a file that can be written",
            fix="name another file",
        ) from error
