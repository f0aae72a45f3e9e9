"""Networks to be trained: fully connected ReLU networks, and small convolutional ones in front of them.

``784-128-64-32-10`` names the widths from the input to the classes. ``conv8-conv16-conv32-200-100-10`` puts
convolutions before the fully connected layers (3x3, padding 1, ReLU, then 2x2 max pooling; ``conv8s`` has
stride 2 instead of the pooling); their input is the data's image. ``smallconv`` is the neuron-pruning paper's
SmallConv: that network, of which the paper says filters and widths alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from milpver.errors import QueryError

__all__ = ["Architecture", "Classifier", "Convolution", "build", "parse_architecture"]

NAMED = {"smallconv": "conv8-conv16-conv32-200-100-10"}

_EXAMPLES = "784-128-64-32-10, conv8-conv16-conv32-200-100-10, or smallconv"
_WIDEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Convolution:
    """A 3x3 convolution with padding 1, and ReLU.

    Attributes:
        channels: that it makes.
        pooled: followed by 2x2 max pooling; otherwise its stride is 2.
    """

    channels: int
    pooled: bool


@dataclass(frozen=True, slots=True)
class Architecture:
    """The layers of a network.

    Attributes:
        text: as it was written, names resolved.
        inputs: length of the input where the text gives it, None before convolutions.
        convolutions: in front of the fully connected layers.
        hidden: widths of the hidden fully connected layers, at least one.
        classes: number of outputs.
    """

    text: str
    inputs: int | None
    convolutions: tuple[Convolution, ...]
    hidden: tuple[int, ...]
    classes: int


def parse_architecture(text: str) -> Architecture:
    """Read an architecture.

    Raises:
        QueryError: it is none, or has no hidden fully connected layer.
    """
    resolved = NAMED.get(text.strip().lower(), text.strip().lower())
    parts = resolved.split("-")
    convolutions: list[Convolution] = []
    while parts and (found := re.fullmatch(r"conv([0-9]{1,5})(s?)", parts[0], re.ASCII)):
        convolutions.append(Convolution(int(found[1]), not found[2]))
        parts.pop(0)
    if not all(re.fullmatch(r"[0-9]{1,5}", part, re.ASCII) for part in parts):
        raise _unreadable(text, "has a part that is no width")
    widths = [int(part) for part in parts]
    inputs = None if convolutions else (widths.pop(0) if widths else None)
    if len(widths) < 2:
        raise _unreadable(text, "has no hidden fully connected layer")
    sizes = [*widths, *(layer.channels for layer in convolutions), *([] if inputs is None else [inputs])]
    if not all(1 <= size <= _WIDEST for size in sizes) or widths[-1] < 2:
        raise _unreadable(text, "has a width of 0, one too large, or less than two classes")
    return Architecture(resolved, inputs, tuple(convolutions), tuple(widths[:-1]), widths[-1])


def _unreadable(text: str, why: str) -> QueryError:
    return QueryError(
        f"--arch {text} {why}", needed="widths from the input to the classes", fix=f"write e.g. {_EXAMPLES}"
    )


class Classifier(nn.Module):
    """A network under training.

    Attributes:
        input_shape: of one input.
        convs: convolutions, one for each of the architecture's.
        dense: fully connected layers, the last gives the logits.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: Architecture,
        input_shape: tuple[int, ...],
        *,
        bias: bool = True,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.input_shape = input_shape if architecture.convolutions else (math.prod(input_shape),)
        convs, size = [], math.prod(input_shape)
        if architecture.convolutions:
            channels, height, width = input_shape
            for layer in architecture.convolutions:
                stride = 1 if layer.pooled else 2
                convs.append(nn.Conv2d(channels, layer.channels, 3, stride=stride, padding=1, bias=bias))
                channels = layer.channels
                height, width = ((n // 2 if layer.pooled else (n + 1) // 2) for n in (height, width))
            size = channels * height * width
        dense = []
        for after in (*architecture.hidden, architecture.classes):
            dense.append(nn.Linear(size, after, bias=bias))
            size = after
        self.convs = nn.ModuleList(convs)
        self.dense = nn.ModuleList(dense)
        shape = (-1, *(1,) * (len(self.input_shape) - 1))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(shape))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(shape))

    @property
    def normalised(self) -> bool:
        """Whether the network shifts or scales its input."""
        return bool((self.mean != 0).any() or (self.std != 1).any())

    def forward(self, x: Tensor, kept: Sequence[Tensor | None] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run a batch.

        Args:
            x: float32 [batch, *input_shape], not normalised.
            kept: for each hidden fully connected layer what its activations are multiplied by, [width] or
                [batch, width] (0 removes a neuron), or None for nothing.

        Returns:
            Logits [batch, classes], and each hidden fully connected layer's activations before the mask,
            [batch, width].
        """
        if self.normalised:
            x = (x - self.mean) / self.std
        for conv, layer in zip(self.convs, self.architecture.convolutions, strict=True):
            x = torch.relu(conv(x))
            if layer.pooled:
                x = nn.functional.max_pool2d(x, 2)
        return self.head(x.flatten(1), kept)

    def head(
        self, features: Tensor, kept: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The fully connected layers alone, on [batch, size]; see ``forward``."""
        hidden: list[Tensor] = []
        h = features
        for k, layer in enumerate(list(self.dense)[:-1]):
            h = torch.relu(layer(h))
            hidden.append(h)
            mask = None if kept is None else kept[k]
            if mask is not None:
                h = h * mask
        logits: Tensor = self.dense[-1](h)
        return logits, hidden


def build(
    architecture: Architecture,
    input_shape: tuple[int, ...],
    *,
    seed: int,
    bias: bool = True,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Classifier:
    """A network with torch's default random weights, which depend on the seed alone.

    Args:
        architecture: its layers.
        input_shape: of one input, as the data has it: [channels, height, width] or [height, width] for
            convolutions, any shape of the right length otherwise.
        seed: of the weights.
        bias: whether layers have biases (the neuron-pruning paper's have none).
        mean, std: what the input is normalised by, one number or one a channel.

    Raises:
        QueryError: the data do not fit the architecture.
    """
    size = math.prod(input_shape)
    if architecture.inputs is not None and architecture.inputs != size:
        raise QueryError(
            f"--arch {architecture.text} takes {architecture.inputs} inputs, the data have {size}",
            needed="an architecture whose first number is the length of an input",
            fix=f"write {size} in front, or pass the data it is meant for",
        )
    if architecture.convolutions:
        if len(input_shape) == 2:
            input_shape = (1, *input_shape)
        halvings = 2 ** len(architecture.convolutions)
        if len(input_shape) != 3 or min(input_shape[1:]) < halvings:
            raise QueryError(
                f"--arch {architecture.text} has convolutions, the data's inputs have shape {input_shape}",
                needed=f"images [channels, height, width] of at least {halvings} x {halvings}",
                fix="pass images, channels first, or an architecture of widths alone",
            )
    channels = input_shape[0] if len(input_shape) == 3 and architecture.convolutions else 1
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise QueryError(
                f"{name} has {len(values)} entries for inputs of shape {input_shape}",
                needed="one number" + (f" or {channels}" if channels > 1 else ""),
                fix="give one number, or one a channel of an image",
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(architecture, input_shape, bias=bias, mean=mean, std=std)
