"""``milpver train``: a network that survives pruning, as an ONNX file."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from milpver.cli.interrupts import Interrupts
from milpver.cli.question import MOST_SEED, MOST_THREADS
from milpver.cli.values import apart, number, whole
from milpver.data import DEFAULT_KEYS, Dataset, check_labels, load_data, parse_floats, parse_keys
from milpver.errors import QueryError
from milpver.onnx_import import load_network
from milpver.query import parse_budget

if TYPE_CHECKING:
    from milpver.train.fit import Epoch, Recipe

__all__ = ["run"]

#: lambda1 and lambda2 where none are given, by method.
_LAMBDAS = {"exact-bound": ("0.1", "2")}

#: Images on which the exported file is compared with torch.
_COMPARED = 1000

#: Seconds between lines where stderr is no terminal.
_EVERY = 15.0

Images = tuple[NDArray[np.float32], NDArray[np.int64]]


def run(arguments: Namespace) -> int:
    """Train, export, and check the export."""
    from milpver.machine import keep_to_threads  # noqa: PLC0415  seconds, which `--help` must not cost
    from milpver.train.architecture import parse_architecture  # noqa: PLC0415  as above
    from milpver.train.export import export_error, onnx_model, write_whole  # noqa: PLC0415  as above
    from milpver.train.fit import Training, accuracy, log_text  # noqa: PLC0415  as above

    keep_to_threads(whole("--threads", arguments.threads, least=1, most=MOST_THREADS, example="2"))
    classes = parse_architecture(arguments.arch).classes
    data, test = _data(arguments, classes)
    save = _target(arguments)
    recipe = _recipe(arguments, data)
    log = None if arguments.log is None else Path(arguments.log)
    training = Training(
        recipe,
        data.inputs,
        data.labels,
        test=None if test is None else (test.inputs, test.labels),
        checkpoint=None if arguments.checkpoint is None else Path(arguments.checkpoint),
    )
    resumed = len(training.epochs)
    if resumed and not arguments.quiet:
        sys.stderr.write(f"note: going on after epoch {resumed} of {arguments.checkpoint}\n")
    with Interrupts() as interrupts, _shown(recipe, resumed, quiet=arguments.quiet) as shown:
        if not interrupts.asked:
            for epoch in training.run():
                shown.advance(epoch)
                if log is not None:
                    write_whole(log, log_text(training.epochs).encode("ascii"), option="--log")
                if interrupts.asked:
                    break
    done = len(training.epochs)
    if done < recipe.epochs:
        again = (
            "the same command goes on" if arguments.checkpoint else "there is no --checkpoint to go on from"
        )
        sys.stdout.write(
            f"interrupted after {done} of {recipe.epochs} epochs: {again}; no network is written\n"
        )
        return 130
    content = onnx_model(training.net, save.stem)
    difference = export_error(training.net, content, data.inputs[:_COMPARED])
    write_whole(save, content, option="--save")
    lines = [
        f"{save}: {recipe.arch}, {sum(p.numel() for p in training.net.parameters())} parameters, "
        f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}",
        f"method {recipe.method}, budget {','.join(map(str, recipe.settings.budget))}, seed {recipe.seed}, "
        f"{recipe.epochs} epoch{'s' * (recipe.epochs > 1)} of "
        f"{median(e.seconds for e in training.epochs):.2f} s processor time",
        "accuracy: "
        + ", ".join(
            f"{_percent(accuracy(training.net, part.inputs, part.labels))} on {len(part)} {name} images"
            for name, part in (("training", data), ("test", test))
            if part is not None
        ),
        f"ONNX Runtime and torch differ by {difference:.1e} of the largest logit",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _data(arguments: Namespace, classes: int) -> tuple[Dataset, Dataset | None]:
    """Training images; test images where there are any."""
    keys = DEFAULT_KEYS if arguments.keys is None else parse_keys(arguments.keys)
    test_keys = keys if arguments.test_keys is None else parse_keys(arguments.test_keys)
    scale = None if arguments.scale is None else number("--scale", arguments.scale, above=0.0, example="255")
    path = Path(arguments.data)
    data = load_data(path, keys=keys, split="train" if path.is_dir() else "test", scale=scale)
    check_labels(data.labels, classes, data.source)
    if len(data) < 2:
        raise QueryError(
            f"--data {path} holds {len(data)} image",
            needed="at least two to train on",
            fix="pass the training images",
        )
    where = path if arguments.test_data is None and path.is_dir() else arguments.test_data
    if where is None:
        return data, None
    test = load_data(Path(where), keys=test_keys, scale=scale)
    check_labels(test.labels, classes, test.source)
    if test.inputs.shape[1:] != data.inputs.shape[1:]:
        raise QueryError(
            f"--test-data {where} holds inputs of shape {test.inputs.shape[1:]}",
            needed=f"the shape of the training images, {data.inputs.shape[1:]}",
            fix="pass test images of the same kind",
        )
    return data, test


def _target(arguments: Namespace) -> Path:
    """Where the network goes, refused before the training rather than after it."""
    save = Path(arguments.save)
    read = {"the data": arguments.data, "the test data": arguments.test_data}
    apart("--save", save, {**read, "the checkpoint": arguments.checkpoint, "the log": arguments.log})
    apart("--checkpoint", arguments.checkpoint, {**read, "the log": arguments.log})
    apart("--log", arguments.log, read)
    if save.is_dir() or not save.parent.is_dir():
        why = "is a folder" if save.is_dir() else f"lies in {save.parent}, which is no folder"
        raise QueryError(
            f"--save {save} {why}", needed="a file in an existing folder", fix="name such a file"
        )
    try:
        with tempfile.TemporaryFile(dir=save.parent):
            pass
    except OSError as error:
        raise QueryError(
            f"--save {save}: {error.strerror or error}",
            needed="a folder that can be written",
            fix="name another",
        ) from error
    return save


def _recipe(arguments: Namespace, data: Dataset) -> Recipe:
    """The recipe; the budget is read by the network's own gateable layers."""
    from milpver.train.architecture import build, parse_architecture  # noqa: PLC0415  needs torch
    from milpver.train.export import onnx_model  # noqa: PLC0415  as above
    from milpver.train.fit import Recipe  # noqa: PLC0415  as above
    from milpver.train.methods import Settings  # noqa: PLC0415  as above

    mean = (0.0,) if arguments.mean is None else parse_floats(arguments.mean, option="--mean")
    std = (1.0,) if arguments.std is None else parse_floats(arguments.std, option="--std", positive=True)
    architecture = parse_architecture(arguments.arch)
    bias = not arguments.no_bias
    seed = whole("--seed", arguments.seed, least=0, most=MOST_SEED, example="0")
    net = build(architecture, data.inputs.shape[1:], seed=seed, bias=bias, mean=mean, std=std)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "untrained.onnx"
        path.write_bytes(onnx_model(net, "untrained"))
        budget = parse_budget(arguments.budget, load_network(path))
    usual = _LAMBDAS.get(arguments.method, ("0.3", "0.1"))
    return Recipe(
        arch=architecture.text,
        method=arguments.method,
        settings=Settings(
            budget=budget.per_layer,
            lambda1=number("--lambda1", arguments.lambda1 or usual[0], example="0.3"),
            lambda2=number("--lambda2", arguments.lambda2 or usual[1], example="0.1"),
            epsilon=number("--epsilon", arguments.epsilon, above=0.0, example="0.1"),
            rho=number("--rho", arguments.rho, above=0.0, example="0.05"),
            dropout=(_share("--targeted", arguments.targeted), _share("--drop", arguments.drop)),
        ),
        bias=bias,
        warmup=number("--warmup", arguments.warmup, example="5"),
        ramp=number("--ramp", arguments.ramp, example="10"),
        epochs=whole("--epochs", arguments.epochs, least=1, most=100_000, example="120"),
        batch=whole("--batch", arguments.batch, least=2, most=1 << 20, example="128"),
        learning_rate=number("--lr", arguments.lr, above=0.0, example="1e-3"),
        weight_decay=number("--weight-decay", arguments.weight_decay, example="1e-3"),
        schedule=arguments.schedule,
        seed=seed,
        mean=mean,
        std=std,
    )


def _share(option: str, text: str) -> float:
    """A number from 0 to 1."""
    value = number(option, text, example="0.5")
    if value > 1:
        raise QueryError(f"{option} {text}", needed="a number from 0 to 1", fix=f"write e.g. {option} 0.5")
    return value


class _Shown(Protocol):
    """What a run tells."""

    def advance(self, epoch: Epoch) -> None:
        """One more epoch is done."""


def _line(epoch: Epoch) -> str:
    tested = "" if np.isnan(epoch.test_accuracy) else f", test {_percent(epoch.test_accuracy)}"
    return f"loss {epoch.loss:.4f}, train {_percent(epoch.train_accuracy)}{tested}"


class _Lines:
    """A line now and then; none with --quiet."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total = total
        self._quiet = quiet
        self._last = time.monotonic()

    def advance(self, epoch: Epoch) -> None:
        """See _Shown."""
        if not self._quiet and sys.stderr is not None and time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            sys.stderr.write(f"train: epoch {epoch.epoch} of {self._total}, {_line(epoch)}\n")
            sys.stderr.flush()


@contextmanager
def _shown(recipe: Recipe, done: int, *, quiet: bool) -> Iterator[_Shown]:
    """A bar on a terminal, lines elsewhere."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield _Lines(recipe.epochs, quiet=quiet)
        return
    from rich.console import Console  # noqa: PLC0415  0.1 s, which `--help` must not cost
    from rich.progress import (  # noqa: PLC0415  as above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, expand=True) as bar:
        task = bar.add_task("train", total=recipe.epochs, completed=done, said="")

        class Bar:
            """A bar that rich draws in a thread of its own."""

            def advance(self, epoch: Epoch) -> None:
                """See _Shown."""
                bar.update(task, advance=1, said=_line(epoch))

        yield Bar()
