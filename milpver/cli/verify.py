"""``milpver verify``: does a property hold; one instance here, a list of them in ``cli.instances``.

The first line of stdout is the answer in one word, whatever happens; a counterexample follows in the
competition's format. Errors go to stderr in one line and leave ``error`` in the result's place.
"""

from __future__ import annotations

import ast
import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from milpver import registry
from milpver.cli.interrupts import Interrupts
from milpver.cli.values import apart, memory_size, number, whole
from milpver.errors import QueryError, RecordError
from milpver.property_file import load_property
from milpver.query import NATIVE, Options, names_layers, parse_budget

if TYPE_CHECKING:
    from milpver.counterexample import PropertyAnswer
    from milpver.property import Property

__all__ = ["GRACE", "Files", "Masks", "answered", "counterexample", "masks_of", "named", "run"]

#: Seconds after the time limit at which a run that does not come back is given up.
GRACE = 2.0

_INTERRUPTED, _DONE = 130, 0


def run(arguments: Namespace) -> int:
    """Answer one instance, or all of a list."""
    spent = time.process_time()  # what loading took before this line, near enough
    if arguments.instances is not None or arguments.results is not None:
        from milpver.cli.instances import run_batch  # noqa: PLC0415  built on what is here

        return run_batch(arguments, _options(arguments))
    result: Path | None = None
    watch: threading.Timer | None = None
    try:
        if arguments.counterexamples is not None:
            raise QueryError(
                f"--counterexamples {arguments.counterexamples} without --instances",
                needed="a batch",
                fix="use --result FILE for one instance",
            )
        result = _emptied(arguments)
        files = _files(arguments)
        options = _options(arguments)
        watch = threading.Timer(max(0.0, options.timeout - spent) + GRACE, _give_up, (result,))
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


def _options(arguments: Namespace) -> Options:
    """How to answer."""
    registry.check("solvers", NATIVE.get(arguments.solver, arguments.solver), also=NATIVE)
    registry.check("bounds", arguments.bounds)
    return Options(
        solver=arguments.solver,
        bounds=arguments.bounds,
        timeout=number("--timeout", arguments.timeout, above=0.0, example="60"),
        threads=whole("--threads", arguments.threads, least=1, most=4096, example="2"),
        memory=memory_size(arguments.memory),
        seed=whole("--seed", arguments.seed, least=0, most=2**31 - 1, example="0"),
        device=arguments.device,
    )


def _emptied(arguments: Namespace) -> Path | None:
    """The result's file, empty from now on: an older answer must not be taken for this one's.

    Raises:
        QueryError: it is one of the files that are read.
        RecordError: it cannot be written.
    """
    if arguments.result is None:
        return None
    result = Path(arguments.result)
    for each in (*arguments.files, *(text.partition("=")[2] for text in arguments.network or ())):
        apart("--result", result, {"a file that is read": each or None})
    _save("", result)
    return result


#: What ``--budget``, ``--keep`` and ``--remove`` say; None where they are not given.
Masks: TypeAlias = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class Files:
    """What an instance is made of.

    Attributes:
        models: the networks' files, each with its name in the query, "" where none is given.
        query: the property's file.
        budget: masks, as the command line has them.
    """

    models: tuple[tuple[str, Path], ...]
    query: Path
    budget: Masks


def _files(arguments: Namespace) -> Files:
    """The files of networks and property, from ``MODEL PROPERTY`` or ``QUERY --network NAME=MODEL ...``."""
    files, networks = arguments.files, arguments.network
    if not networks:
        if len(files) != 2:
            raise QueryError(
                "1 file" if len(files) == 1 else f"{len(files)} files",
                needed="a network and a property",
                fix="milpver verify MODEL.onnx PROPERTY.vnnlib, or verify QUERY --network NAME=MODEL.onnx",
            )
        return Files(named(files[0]), Path(files[1]), masks_of(arguments))
    if len(files) != 1:
        raise QueryError(
            f"{len(files)} files and {len(networks)} --network",
            needed="one query, and a --network for each network that it declares",
            fix="milpver verify QUERY.vnnlib --network NAME=MODEL.onnx",
        )
    pairs = []
    for text in networks:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise QueryError(
                f"--network {text}",
                needed="NAME=FILE",
                fix="give the network's name in the query, then its file",
            )
        pairs.append((name, Path(path)))
    return Files(_once(pairs), Path(files[0]), masks_of(arguments))


def named(text: str, folder: Path = Path()) -> tuple[tuple[str, Path], ...]:
    """The networks' names and files, where a list of such pairs is written in place of a file (version 2.0).

    Args:
        text: a file, or the list.
        folder: what the files are relative to.

    Raises:
        QueryError: the list cannot be read, is empty, or has a name twice.
    """
    if not text.startswith("["):
        return (("", folder / text),)
    try:
        pairs = [(str(name), folder / str(path)) for name, path in ast.literal_eval(text)]
        if not pairs:
            raise ValueError(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise QueryError(
            f"the networks {text[:80]}", needed="(name, file) pairs", fix="write [('f', 'model.onnx')]"
        ) from error
    return _once(pairs)


def _once(pairs: Sequence[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    """Networks' names and files, each name once."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        files = " and ".join(str(path) for name, path in pairs if name == twice[0])
        raise QueryError(
            f"the network {twice[0]} is given twice: {files}",
            needed="one file for each network",
            fix="leave one out",
        )
    return tuple(pairs)


def masks_of(arguments: Namespace) -> Masks:
    """What the command line says about masks."""
    return arguments.budget, arguments.keep, arguments.remove


def _instance(files: Files, options: Options, spent: float, interrupts: Interrupts) -> str:
    """Answer one instance; the text of its result."""
    prop, answer, notes = answered(files, options, spent, lambda: interrupts.asked)
    for note in notes:
        _note(note)
    text = f"{answer.outcome}\n"
    if answer.x is not None and answer.y is not None:
        text += counterexample(prop, answer)
    return text


def answered(
    files: Files, options: Options, spent: float, should_stop: Callable[[], bool]
) -> tuple[Property, PropertyAnswer, list[str]]:
    """Read an instance and answer it.

    Args:
        files: what it is made of.
        options: how to answer.
        spent: seconds of the time limit that are gone already.
        should_stop: asked now and then; True ends it.

    Returns:
        The property, its answer, and notes for the user.

    Raises:
        MilpverError: the files cannot be read, or make no sense together.
    """
    began = time.perf_counter()
    prop = load_property(files.query)
    from milpver.joint import load_networks  # noqa: PLC0415  only once the property has been read

    networks = load_networks(prop, dict(files.models), channels=names_layers(*files.budget))
    from milpver.counterexample import verify_property  # noqa: PLC0415  as above

    entries, keep, remove = files.budget
    masks = parse_budget(entries, next(iter(networks.values())), keep=keep, remove=remove)
    answer = verify_property(
        networks,
        prop,
        budget=masks,
        options=options,
        should_stop=should_stop,
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
        inputs, results = iter(x), iter(y)
        for network in prop.networks:
            for tensors, values in ((network.inputs, inputs), (network.results, results)):
                for tensor in tensors:
                    lines.append(f"{tensor.name} {tensor.kind} [{','.join(map(str, tensor.shape))}]")
                    lines.extend(islice(values, tensor.size))
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
        _save(text, result)


def _save(text: str, result: Path) -> None:
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
