"""Train two of the shipped networks on the UCI handwritten digits, and write them with the images.

`python onnx_models/train_digits.py` makes digits_fc.onnx, digits_conv.onnx and the images again, beside
this file or in `--out`, and prints what README.md states about them. It needs the extra `train`
(scikit-learn, which carries the data). It is deterministic: fixed seeds, one thread, deterministic
algorithms only. Two runs on one machine give the same weights to the last bit; another machine or another
torch may round differently and end at slightly different ones.

The networks are trained to survive pruning, so that their worst margins are worth computing: in every step
and for every image the neurons whose removal hurts most, to first order, are removed from the hidden fully
connected layers, and the loss is the mean of the cross-entropies with and without them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

FloatArray = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

OPSET = 13
IR_VERSION = 8
"""What ONNX Runtime 1.18 and everything later reads."""

PIXEL_MAX = 16.0
"""The data's grey values are 0..16; the networks take them divided by this."""

EXPORT_TOLERANCE = 1e-5
"""Difference allowed between torch and ONNX Runtime, relative to the largest logit."""

TEST_IMAGES = 360
SPLIT_SEED = 1998
EPOCHS = 200
BUDGET = (2, 1)
"""Neurons removed from each hidden fully connected layer, in training and in the accuracy under pruning."""


@dataclass(frozen=True, slots=True)
class Digits:
    """The data, split once and for all: inputs of shape [n, 64] in [0, 1], labels of shape [n]."""

    x_train: FloatArray
    y_train: Labels
    x_test: FloatArray
    y_test: Labels


@dataclass(frozen=True, slots=True)
class Recipe:
    """One network and how it is trained."""

    name: str
    input_shape: tuple[int, ...]
    channels: tuple[int, ...]
    widths: tuple[int, ...]
    seed: int
    learning_rate: float = 4e-3
    weight_decay: float = 1e-3
    noise: float = 0.05
    """Standard deviation of the Gaussian noise on the inputs, in the data's units."""
    batch: int = 64


RECIPES = (
    Recipe("digits_fc", (64,), (), (48, 24), seed=7),
    Recipe("digits_conv", (1, 8, 8), (4, 8), (32, 16), seed=11),
)


class DigitsNet(nn.Module):
    """Strided convolutions (none for a fully connected net), then fully connected layers; ReLU in between."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.input_shape = recipe.input_shape
        self.convs: list[nn.Conv2d] = []
        size = int(np.prod(recipe.input_shape))
        if recipe.channels:
            channels, side = recipe.input_shape[0], recipe.input_shape[1]
            for out in recipe.channels:
                self.convs.append(nn.Conv2d(channels, out, kernel_size=3, stride=2, padding=1))
                channels, side = out, (side + 1) // 2
            size = channels * side * side
        self.fcs: list[nn.Linear] = []
        for width in (*recipe.widths, 10):
            self.fcs.append(nn.Linear(size, width))
            size = width
        self.layers = nn.ModuleList([*self.convs, *self.fcs])  # a plain list registers no parameters

    def forward(self, x: Tensor, masks: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits [n, 10] and each hidden fully connected layer's activations, before the masks."""
        h = x.reshape(-1, *self.input_shape)
        for conv in self.convs:
            h = torch.relu(conv(h))
        h = h.flatten(1)
        hidden: list[Tensor] = []
        for k, fc in enumerate(self.fcs[:-1]):
            h = torch.relu(fc(h))
            hidden.append(h)
            if masks is not None:
                h = h * masks[k]
        return self.fcs[-1](h), hidden


def load_digits() -> Digits:
    """scikit-learn's copy of the UCI digits, with a stratified test split; no image stands on both sides."""
    from sklearn.datasets import load_digits as sklearn_digits  # noqa: PLC0415  (the extra `train` only)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    raw: Any = sklearn_digits()
    x = (raw.data / PIXEL_MAX).astype(np.float32)
    y = raw.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(y)), test_size=TEST_IMAGES, random_state=SPLIT_SEED, stratify=y
    )
    seen = {row.tobytes() for row in x[test]}
    train = np.array([i for i in train if x[i].tobytes() not in seen])
    return Digits(x[train], y[train], x[test], y[test])


def worst_masks(
    logits: Tensor, hidden: list[Tensor], labels: Tensor, budget: tuple[int, ...]
) -> list[Tensor]:
    """For each image, drop the neurons whose removal raises the loss most to first order (-h dL/dh)."""
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    masks = []
    gradients = torch.autograd.grad(loss, hidden, retain_graph=True)
    for h, gradient, count in zip(hidden, gradients, budget, strict=True):
        harm = -(h * gradient).detach()
        mask = torch.ones_like(harm)
        mask.scatter_(1, harm.topk(count, dim=1).indices, 0.0)
        masks.append(mask)
    return masks


def train(recipe: Recipe, data: Digits, epochs: int = EPOCHS) -> DigitsNet:
    """Train one network; the result depends on the arguments alone (on one machine)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = DigitsNet(recipe)
        fit(net, recipe, data, epochs)
    return net


def fit(net: DigitsNet, recipe: Recipe, data: Digits, epochs: int) -> None:
    """Minimise the loss with and without the worst neurons; draws from torch's random numbers."""
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, epochs=epochs, steps_per_epoch=-(-len(x) // recipe.batch)
    )
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x)), recipe.batch):
            images = (x[rows] + recipe.noise * torch.randn(len(rows), x.shape[1])).clamp(0.0, 1.0)
            logits, hidden = net(images)
            pruned, _ = net(images, worst_masks(logits, hidden, y[rows], BUDGET))
            loss = functional.cross_entropy(logits, y[rows]) + functional.cross_entropy(pruned, y[rows])
            optimizer.zero_grad()
            (0.5 * loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            optimizer.step()
            schedule.step()


def to_onnx(net: DigitsNet, name: str) -> onnx.ModelProto:
    """Build the ONNX model node by node: float32, opset 13, the free batch dimension "N"."""
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def weighted(op: str, layer: str, module: nn.Conv2d | nn.Linear, source: str, **attributes: Any) -> str:
        for role, parameter in module.named_parameters():
            initializers.append(numpy_helper.from_array(parameter.detach().numpy(), f"{layer}.{role}"))
        inputs = [source, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node(op, inputs, [f"{layer}_out"], name=layer, **attributes))
        return f"{layer}_out"

    def plain(op: str, layer: str, source: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, [source], [f"{layer}_out"], name=layer, **attributes))
        return f"{layer}_out"

    last = "input"
    for k, conv in enumerate(net.convs, start=1):
        last = weighted(
            "Conv", f"conv{k}", conv, last, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        )
        last = plain("Relu", f"conv{k}_relu", last)
    if net.convs:
        last = plain("Flatten", "flatten", last, axis=1)
    for k, fc in enumerate(net.fcs, start=1):
        last = weighted("Gemm", f"fc{k}", fc, last, transB=1)
        if k < len(net.fcs):
            last = plain("Relu", f"fc{k}_relu", last)
    nodes[-1].output[0] = "logits"

    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *net.input_shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="milpver"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def export_error(net: DigitsNet, path: Path, x: FloatArray) -> float:
    """Largest difference between torch and ONNX Runtime on `x`, relative to the largest logit."""
    import onnxruntime  # noqa: PLC0415  (slow to load, needed here only)

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.reshape(-1, *net.input_shape)})
    with torch.no_grad():
        wanted = net(torch.from_numpy(x))[0].numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def pruned_margins(
    net: DigitsNet, x: FloatArray, labels: Labels, budget: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Find the worst margin [n], in float64, over all removals of at most budget[k] neurons of layer k.

    Enumerates the first layer's masks; in the second, which only the output layer follows, the worst removal
    for one competing class takes the largest positive contributions c_r h_r away.
    """
    (w2, b2), (w3, b3) = ((fc.weight.detach().double(), fc.bias.detach().double()) for fc in net.fcs[1:])
    with torch.no_grad():
        first = net(torch.from_numpy(x))[1][0].double()
    width = first.shape[1]
    choices = [c for size in range(budget[0] + 1) for c in itertools.combinations(range(width), size)]
    masks = torch.ones(len(choices), width, dtype=torch.float64)
    for row, choice in enumerate(choices):
        masks[row, list(choice)] = 0.0
    worst = np.empty(len(x))
    for i, label in enumerate(labels):
        others = [j for j in range(10) if j != label]
        h = torch.relu((masks * first[i]) @ w2.T + b2)
        c = (w3[label] - w3[others])[None] * h[:, None, :]
        lost = c.clamp(min=0.0).topk(budget[1], dim=2).values.sum(2)
        worst[i] = float((c.sum(2) - lost + (b3[label] - b3[others])).min())
    return worst


def save_images(data: Digits, folder: Path) -> None:
    """Write the images, those to test on and those to train on; the same data give the same bytes."""
    domain = np.array([0.0, 1.0], dtype=np.float32)
    np.savez_compressed(folder / "digits_test.npz", x=data.x_test, y=data.y_test, domain=domain)
    np.savez_compressed(folder / "digits_train.npz", x=data.x_train, y=data.y_train, domain=domain)


def right(net: DigitsNet, x: FloatArray, labels: Labels) -> int:
    """Count the images that the network classifies as labelled."""
    with torch.no_grad():
        logits, _ = net(torch.from_numpy(x))
    return int((logits.argmax(1).numpy() == labels).sum())


def make(recipe: Recipe, data: Digits, out: Path, epochs: int) -> str:
    """Train one network, write it to `out`, check the file against torch; returns what to say of it."""
    net = train(recipe, data, epochs)
    path = out / f"{recipe.name}.onnx"
    path.write_bytes(to_onnx(net, recipe.name).SerializeToString(deterministic=True))
    error = export_error(net, path, data.x_test)
    if error > EXPORT_TOLERANCE:
        raise SystemExit(f"{path}: off by {error:.1e} of the largest logit; {EXPORT_TOLERANCE} is allowed")
    robust = int((pruned_margins(net, data.x_test, data.y_test, BUDGET) > 0).sum())
    return (
        f"{path.name}: {sum(p.numel() for p in net.parameters())} parameters, "
        f"train accuracy {right(net, data.x_train, data.y_train)}/{len(data.y_train)}, "
        f"test accuracy {right(net, data.x_test, data.y_test)}/{len(data.y_test)}, "
        f"robust to every removal of {BUDGET} {robust}/{len(data.y_test)}, export error {error:.1e}"
    )


def main() -> None:
    """Train, write and report."""
    parser = argparse.ArgumentParser(description="Train the networks that milpver ships.")
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here, help="folder to write to (default: this one)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes over the data (default {EPOCHS})")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_digits()
    args.out.mkdir(parents=True, exist_ok=True)
    save_images(data, args.out)
    print(f"{len(data.y_train)} training images, {len(data.y_test)} test images")
    for recipe in RECIPES:
        print(make(recipe, data, args.out, args.epochs))
    for name in (*(f"{recipe.name}.onnx" for recipe in RECIPES), "digits_test.npz", "digits_train.npz"):
        content = (args.out / name).read_bytes()
        print(f"{hashlib.sha256(content).hexdigest()}  {name}  {len(content)} bytes")


if __name__ == "__main__":
    main()
