"""What the tests of the command line share: a way to run it, and a network small enough to enumerate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from milpver.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended: exit code, what it wrote to stdout and to stderr."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Result]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Run a command line that has to end with 2 and one line on stderr; the line."""

    def run(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.code == 2, result
        assert result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@dataclass(frozen=True)
class Tiny:
    """A network 4-6-5-3 and its data: the last of the 7 inputs has a label that the network does not give.

    Attributes:
        model, data: files; the data's domain is [0, 1].
        weights: (weight, bias) of each layer.
        x: float32 [7, 4].
        y: int64 [7].
    """

    model: Path
    data: Path
    weights: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def outputs(self, x: NDArray[Any], removed: dict[int, set[int]] | None = None) -> NDArray[np.float64]:
        """Float64 outputs with neurons of hidden layers (from 1) removed."""
        h = np.asarray(x, dtype=np.float64)
        for layer, (weight, bias) in enumerate(self.weights, start=1):
            h = weight.astype(np.float64) @ h + bias
            if layer < len(self.weights):
                h = np.maximum(h, 0.0)
                h[list((removed or {}).get(layer, ()))] = 0.0
        return h

    @property
    def common(self) -> tuple[str, ...]:
        """The arguments that name model and data."""
        return (str(self.model), "--data", str(self.data))


def save_model(
    path: Path, weights: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...], *, softmax: bool = False
) -> None:
    """Write a fully connected ReLU network."""
    nodes, tensors, name = [], [], "input"
    for layer, (weight, bias) in enumerate(weights, start=1):
        tensors += [numpy_helper.from_array(weight, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
        nodes.append(helper.make_node("Gemm", [name, f"w{layer}", f"b{layer}"], [f"z{layer}"], transB=1))
        name = f"z{layer}"
        if layer < len(weights):
            nodes.append(helper.make_node("Relu", [name], [f"h{layer}"]))
            name = f"h{layer}"
    if softmax:
        nodes.append(helper.make_node("Softmax", [name], ["p"], axis=1))
        name = "p"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", weights[0][0].shape[1]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", len(weights[-1][1])])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def random_weights(
    widths: tuple[int, ...], seed: int
) -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    """Weights and biases of a random network."""
    rng = np.random.default_rng(seed)
    return tuple(
        (
            rng.normal(size=(after, before)).astype(np.float32),
            (0.3 * rng.normal(size=after)).astype(np.float32),
        )
        for before, after in itertools.pairwise(widths)
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    weights = random_weights((4, 6, 5, 3), seed=53)
    model, data = folder / "tiny.onnx", folder / "data.npz"
    save_model(model, weights)
    rng = np.random.default_rng(8)
    x = rng.uniform(size=(7, 4)).astype(np.float32)
    found = Tiny(model, data, weights, x, np.zeros(7, dtype=np.int64))
    y = np.array([found.outputs(each).argmax() for each in x], dtype=np.int64)
    y[6] = (y[6] + 1) % 3
    np.savez(data, x=x, y=y, domain=np.array([0.0, 1.0]))
    return Tiny(model, data, weights, x, y)


@pytest.fixture(scope="session")
def softmax_model(tiny: Tiny) -> Path:
    """The same network with a softmax at its end."""
    path = tiny.model.with_name("softmax.onnx")
    save_model(path, tiny.weights, softmax=True)
    return path


@pytest.fixture(scope="session")
def write_model() -> Callable[..., None]:
    """See save_model."""
    return save_model


@pytest.fixture(scope="session")
def digits(repo_root: Path) -> tuple[str, ...]:
    """The arguments that name the shipped network and its data."""
    folder = repo_root / "onnx_models"
    return (str(folder / "digits_fc.onnx"), "--data", str(folder / "digits_test.npz"))
