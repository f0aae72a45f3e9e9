"""The training loop: curriculum, seeds, a checkpoint after every epoch, a CSV log.

A run depends on its recipe, its data and the number of threads alone: one generator draws everything, and a
checkpoint holds it, so that a run that was interrupted ends with the weights that it would have had.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milpver.errors import QueryError, RecordError
from milpver.registry import near
from milpver.train.architecture import Classifier, build, parse_architecture
from milpver.train.export import write_whole
from milpver.train.methods import METHODS, Settings, make_method

__all__ = ["Epoch", "Recipe", "Training", "accuracy", "log_text", "untrained"]

#: Methods whose own terms follow the curriculum.
RAMPED = ("robust", "exact-bound")

_FORMAT = 1
_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes:
        arch: see ``milpver.train.architecture``.
        method: one of ``METHODS``.
        settings: of the method.
        bias: whether layers have biases.
        warmup, ramp: epochs without, then epochs of linear growth of, the method's own terms.
        epochs, batch, learning_rate, weight_decay: of Adam (weight decay as a gradient term, as the paper's).
        schedule: ``cosine`` to 0 over all epochs, or ``constant``.
        seed: of the weights, the order of images and the method's random numbers.
        mean, std: normalisation, part of the network.
    """

    arch: str
    method: str
    settings: Settings
    bias: bool = True
    warmup: float = 5
    ramp: float = 10
    epochs: int = 120
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    schedule: str = "cosine"
    seed: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Refuse values that no run could honour."""
        for option, word, known in (
            ("--method", self.method, METHODS),
            ("--schedule", self.schedule, ("cosine", "constant")),
        ):
            if word not in known:
                raise QueryError(
                    f"{option} {word}", needed=f"one of {', '.join(known)}", fix=near(word, known)
                )
        checks = {
            "--epochs": (self.epochs, self.epochs >= 1, "a whole number >= 1"),
            "--batch": (self.batch, self.batch >= 2, "a whole number >= 2"),
            "--lr": (self.learning_rate, 0 < self.learning_rate < math.inf, "a finite number > 0"),
            "--weight-decay": (self.weight_decay, 0 <= self.weight_decay < math.inf, "a finite number >= 0"),
            "--warmup": (self.warmup, 0 <= self.warmup < math.inf, "a finite number >= 0"),
            "--ramp": (self.ramp, 0 <= self.ramp < math.inf, "a finite number >= 0"),
        }
        for option, (value, holds, needed) in checks.items():
            if not holds:
                raise QueryError(f"{option} {value}", needed=needed, fix=f"correct {option}")
        if self.method in RAMPED and not any(self.settings.budget):
            raise QueryError(
                f"--method {self.method} with a budget of 0",
                needed="a budget that allows a removal",
                fix="pass e.g. --budget 10%,0,0, or --method standard",
            )
        if self.method in RAMPED and self.warmup >= self.epochs:
            raise QueryError(
                f"--warmup {self.warmup:g} of --epochs {self.epochs}",
                needed=f"fewer epochs of warm-up than of training, or {self.method} never begins",
                fix="shorten --warmup and --ramp, or train longer",
            )

    def strength(self, done: float) -> float:
        """The curriculum: what lambda1 and lambda2 are multiplied by after ``done`` epochs (a fraction)."""
        if self.ramp == 0:
            return 1.0 if done >= self.warmup else 0.0
        return min(1.0, max(0.0, (done - self.warmup) / self.ramp))


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, as a line of the log has it.

    Attributes:
        epoch: from 1.
        seconds: processor time of its steps.
        loss, entropy, penalty: means over the images; entropy is that without pruning.
        train_accuracy: over the batches as they were seen.
        test_accuracy: after it; NaN without test data.
        strength: of the curriculum at its end.
        learning_rate: at its end.
    """

    epoch: int
    seconds: float
    loss: float
    entropy: float
    penalty: float
    train_accuracy: float
    test_accuracy: float
    strength: float
    learning_rate: float


def untrained(recipe: Recipe, input_shape: tuple[int, ...]) -> Classifier:
    """The network before its first step.

    Raises:
        QueryError: the architecture does not fit the data, or the budget the architecture.
    """
    architecture = parse_architecture(recipe.arch)
    if len(recipe.settings.budget) != len(architecture.hidden):
        raise QueryError(
            f"a budget of {len(recipe.settings.budget)} entries",
            needed=f"one for each of the {len(architecture.hidden)} hidden fully connected layers",
            fix="give 0 for a layer that keeps all its neurons",
        )
    return build(
        architecture, input_shape, seed=recipe.seed, bias=recipe.bias, mean=recipe.mean, std=recipe.std
    )


def accuracy(net: Classifier, x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of images classified correctly, from 0 to 1; NaN where there are none."""
    if len(x) == 0:
        return math.nan
    right = 0
    with torch.no_grad():
        for start in range(0, len(x), _CHUNK):
            part = torch.from_numpy(x[start : start + _CHUNK]).reshape(-1, *net.input_shape)
            found = net(part)[0].argmax(dim=1).numpy()
            right += int((found == labels[start : start + _CHUNK]).sum())
    return right / len(x)


class Training:
    """A run over some data.

    Args:
        recipe: how.
        x, labels: training images, float32 [n, *shape], and their classes, int64 [n].
        test: images and classes that accuracies are reported on, or None.
        checkpoint: file that every epoch is kept in; one of the same recipe and data is continued.

    Attributes:
        net: the network.
        epochs: done so far.

    Raises:
        QueryError: the data do not fit.
        RecordError: the checkpoint cannot be read, or is of another run.
    """

    def __init__(
        self,
        recipe: Recipe,
        x: NDArray[np.float32],
        labels: NDArray[np.int64],
        *,
        test: tuple[NDArray[np.float32], NDArray[np.int64]] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.recipe = recipe
        self.net = untrained(recipe, x.shape[1:])
        self.epochs: list[Epoch] = []
        self._x = torch.from_numpy(np.ascontiguousarray(x)).reshape(len(x), *self.net.input_shape)
        self._labels = torch.from_numpy(np.ascontiguousarray(labels))
        self._test = test
        self._checkpoint = checkpoint
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._method = make_method(recipe.method, recipe.settings, self.net, self._generator)
        self._adam = torch.optim.Adam(
            self.net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self._identity = {
            "format": _FORMAT,
            "recipe": repr(recipe),
            "data": hashlib.sha256(self._x.numpy().tobytes() + self._labels.numpy().tobytes()).hexdigest(),
        }
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    def run(self) -> Iterator[Epoch]:
        """Train the epochs that are left; each is in the checkpoint before it is given."""
        while len(self.epochs) < self.recipe.epochs:
            epoch = self._epoch(len(self.epochs))
            if not math.isfinite(epoch.loss):
                raise QueryError(
                    f"the loss of epoch {epoch.epoch} is {epoch.loss}",
                    needed="a finite loss",
                    fix="train with a smaller --lr, --lambda1 or --lambda2",
                )
            self.epochs.append(epoch)
            if self._checkpoint is not None:
                self._keep(self._checkpoint)
            yield epoch

    def _epoch(self, done: int) -> Epoch:
        """One pass over the images; a last batch of a single image is left out."""
        recipe = self.recipe
        began = time.process_time()
        order = torch.randperm(len(self._x), generator=self._generator)
        batches = [part for part in torch.split(order, recipe.batch) if len(part) > 1]
        loss = entropy = penalty = 0.0
        right = count = 0
        strength = 0.0
        rate = recipe.learning_rate
        for i, rows in enumerate(batches):
            passed = done + i / len(batches)
            strength = recipe.strength(passed)
            if recipe.schedule == "cosine":
                rate = recipe.learning_rate * (1 + math.cos(math.pi * passed / recipe.epochs)) / 2
                for group in self._adam.param_groups:
                    group["lr"] = rate
            step = self._method.gradients(self.net, self._x[rows], self._labels[rows], strength)
            self._adam.step()
            size = len(rows)
            loss, entropy, penalty = (
                total + size * value
                for total, value in (
                    (loss, step.loss), (entropy, step.entropy), (penalty, step.penalty)
                )
            )  # fmt: skip
            right, count = right + step.right, count + size
        seconds = time.process_time() - began
        tested = math.nan if self._test is None else accuracy(self.net, *self._test)
        return Epoch(
            epoch=done + 1,
            seconds=seconds,
            loss=loss / count,
            entropy=entropy / count,
            penalty=penalty / count,
            train_accuracy=right / count,
            test_accuracy=tested,
            strength=strength,
            learning_rate=rate,
        )

    def _keep(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        stream = io.BytesIO()
        state = {
            **self._identity,
            "net": self.net.state_dict(),
            "adam": self._adam.state_dict(),
            "generator": self._generator.get_state(),
            "method": self._method.state(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }
        torch.save(state, stream)
        write_whole(path, stream.getvalue(), option="--checkpoint")

    def _resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        needed, fix = (
            "a checkpoint of the same run",
            "name another file with --checkpoint, or delete this one",
        )
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            different = [name for name, value in self._identity.items() if state[name] != value]
        except Exception as error:
            # torch's own words recommend to load the file without its safeguard.
            said = (
                error.strerror
                if isinstance(error, OSError) and error.strerror
                else "no checkpoint, or damaged"
            )
            raise RecordError(
                f"--checkpoint {path} cannot be read ({said})", needed=needed, fix=fix
            ) from error
        if different:
            raise RecordError(
                f"--checkpoint {path} is of a run with another {' and another '.join(different)}",
                needed=needed,
                fix=fix,
            )
        self.net.load_state_dict(state["net"])
        self._adam.load_state_dict(state["adam"])
        self._generator.set_state(state["generator"])
        self._method.restore(state["method"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]


def log_text(epochs: Sequence[Epoch]) -> str:
    """The log as CSV: a line an epoch, the columns ``Epoch``'s attributes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(Epoch)])
    for epoch in epochs:
        writer.writerow([f"{value:.7g}" for value in astuple(epoch)])
    return stream.getvalue()
