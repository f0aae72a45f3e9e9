"""The shipped networks: what their README states is what the files hold, and the script makes such files."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from milpver.data import load_data
from milpver.margin import margins
from milpver.onnx_import import load_network
from milpver.onnx_models import train_digits
from milpver.onnx_models.train_digits import BUDGET, RECIPES, Digits, DigitsNet, Recipe
from milpver.query import Options, parse_budget
from milpver.verdict import Answer

FOLDER = Path(train_digits.__file__).resolve().parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
NETWORKS = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


@pytest.fixture(scope="module")
def digits() -> Digits:
    """The data, split as the script splits them."""
    return train_digits.load_digits()


def stated(name: str) -> dict[str, str]:
    """A file's row of the table in the README."""
    lines = [line.strip("|").split("|") for line in README.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return next(dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == f"`{name}`")


def logits(name: str, x: train_digits.FloatArray) -> train_digits.FloatArray:
    """What ONNX Runtime computes on a shipped file."""
    session = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    found: train_digits.FloatArray = session.run(None, {"input": x.reshape(-1, *shape[1:])})[0]
    return found


def shipped_net(recipe: Recipe) -> DigitsNet:
    """A torch network with the weights of a shipped file."""
    net = DigitsNet(recipe)
    model = onnx.load(FOLDER / f"{recipe.name}.onnx")
    arrays = [torch.tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer]
    with torch.no_grad():
        for parameter, array in zip(net.parameters(), arrays, strict=True):
            parameter.copy_(array)
    return net


def test_checksums_cover_all_files() -> None:
    lines = re.findall(r"^([0-9a-f]{64})  (\S+)$", README, re.MULTILINE)
    files = [file for file in FOLDER.iterdir() if file.suffix in (".onnx", ".npz")]
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert {name: digest for digest, name in lines} == found


@NETWORKS
def test_size_and_parameters_are_as_stated(recipe: Recipe) -> None:
    row = stated(f"{recipe.name}.onnx")
    assert int(row["bytes"]) == (FOLDER / f"{recipe.name}.onnx").stat().st_size
    assert int(row["parameters"]) == sum(p.numel() for p in DigitsNet(recipe).parameters())


@pytest.mark.parametrize("name", ["digits_test.npz", "digits_train.npz"])
def test_size_of_the_images_is_as_stated(name: str) -> None:
    assert f"`{name}` ({(FOLDER / name).stat().st_size} bytes)" in README


#: Name, right training and test images, budget, robust images, of how many, bytes.
TRAINED: list[tuple[str, ...]] = re.findall(
    r"^\| `(\w+)\.onnx` \| [^|]* \| [^|]* \| \d+ \| (\d+)/\d+ \| (\d+)/\d+ \|"
    r" ([\d,]+): (\d+)/(\d+) \| (\d+) \|$",
    README,
    re.MULTILINE,
)


@pytest.mark.parametrize("row", TRAINED, ids=lambda row: row[0])
def test_networks_of_the_train_command_are_as_stated(
    row: tuple[str, ...], digits: Digits, request: pytest.FixtureRequest
) -> None:
    """Accuracies by ONNX Runtime; the exact count of robust images by the search, on the digits."""
    name, training, test, budget, robust, asked, size = row
    assert (FOLDER / f"{name}.onnx").stat().st_size == int(size)
    small = name.startswith("digits")
    images = [(digits.x_test, digits.y_test), (digits.x_train, digits.y_train)]
    if not small:  # the 60,000 training images would take a while
        data = load_data(request.getfixturevalue("shared_data") / "mnist")
        images = [(data.inputs, data.labels)]
    found = [int((logits(name, x).argmax(axis=1) == y).sum()) for x, y in images]
    wanted = [int(test), int(training)][: len(found)]
    # another processor may decide images that are almost tied differently
    assert found == pytest.approx(wanted, abs=1 if small else 5)
    count = int(asked) if small else 10
    x, y = images[0][0][:count].reshape(count, -1), images[0][1][:count]
    network = load_network(FOLDER / f"{name}.onnx")
    options, allowed = Options("bab", decide=True), parse_budget(budget, network)
    verdicts = list(margins(network, x, y.tolist(), budget=allowed, options=options))
    proven = sum(verdict.verdict is Answer.ROBUST for verdict in verdicts)
    assert proven == int(robust) if small else proven <= int(robust)


def test_five_networks_of_the_train_command_are_shipped() -> None:
    assert len(TRAINED) == 5


@NETWORKS
def test_form(recipe: Recipe) -> None:
    model = onnx.load(FOLDER / f"{recipe.name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    assert int(stated(f"{recipe.name}.onnx")["opset"]) == 13
    (source,), (target,) = model.graph.input, model.graph.output
    for value, shape in ((source, recipe.input_shape), (target, (10,))):
        tensor = value.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        assert tensor.shape.dim[0].dim_param == "N"
        assert tuple(dim.dim_value for dim in tensor.shape.dim[1:]) == shape
    assert {node.op_type for node in model.graph.node} <= {"Gemm", "Conv", "Relu", "Flatten"}
    assert all(tensor.data_type == onnx.TensorProto.FLOAT for tensor in model.graph.initializer)


def test_images(digits: Digits) -> None:
    with np.load(FOLDER / "digits_test.npz", allow_pickle=False) as images:
        assert sorted(images) == ["domain", "x", "y"]
        x, y, domain = images["x"], images["y"], images["domain"]
    assert x.dtype == np.float32
    assert y.dtype == np.int64
    assert x.shape == (360, 64)
    assert domain.tolist() == [0.0, 1.0]
    assert x.min() >= 0.0
    assert x.max() <= 1.0
    assert np.array_equal(x * 16, np.round(x * 16))
    assert np.bincount(y, minlength=10).min() >= 34  # stratified
    assert np.array_equal(x, digits.x_test)
    assert np.array_equal(y, digits.y_test)


def test_no_test_image_was_trained_on(digits: Digits) -> None:
    trained_on = {row.tobytes() for row in digits.x_train}
    assert len(digits.x_train) == 1437
    assert not [row for row in digits.x_test if row.tobytes() in trained_on]


@NETWORKS
def test_accuracy_is_as_stated(recipe: Recipe, digits: Digits) -> None:
    row = stated(f"{recipe.name}.onnx")
    parts = {"training": (digits.x_train, digits.y_train), "test": (digits.x_test, digits.y_test)}
    for part, (x, y) in parts.items():
        right = int((logits(recipe.name, x).argmax(axis=1) == y).sum())
        assert row[f"accuracy, {part} images"] == f"{right}/{len(y)}"
    assert right / len(y) >= 0.96


@NETWORKS
def test_accuracy_under_pruning_is_as_stated(recipe: Recipe, digits: Digits) -> None:
    margins = train_digits.pruned_margins(shipped_net(recipe), digits.x_test, digits.y_test, BUDGET)
    assert stated(f"{recipe.name}.onnx")["robust to every removal of 2,1"] == f"{(margins > 0).sum()}/360"


@NETWORKS
def test_pruned_margins_agree_with_enumeration(recipe: Recipe, digits: Digits) -> None:
    """Both layers' masks one by one through ONNX Runtime, on the pruned file: its rows are set to zero."""
    net = shipped_net(recipe)
    x, y = digits.x_test[:2], digits.y_test[:2]
    found = train_digits.pruned_margins(net, x, y, (1, 1))
    model = onnx.load(FOLDER / f"{recipe.name}.onnx")
    names = [name for k in (1, 2) for name in (f"fc{k}.weight", f"fc{k}.bias")]
    original = {t.name: t for t in model.graph.initializer if t.name in names}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in original.items()}
    worst = np.full(len(x), np.inf)
    widths = [range(-1, len(arrays[f"fc{k}.bias"])) for k in (1, 2)]
    for removed in itertools.product(*widths):
        for k, neuron in enumerate(removed, start=1):
            for name in (f"fc{k}.weight", f"fc{k}.bias"):
                array = arrays[name].copy()
                if neuron >= 0:
                    array[neuron] = 0.0
                original[name].CopyFrom(numpy_helper.from_array(array, name))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        out = session.run(None, {"input": x.reshape(-1, *recipe.input_shape)})[0].astype(np.float64)
        own = out[np.arange(len(y)), y]
        out[np.arange(len(y)), y] = -np.inf
        worst = np.minimum(worst, own - out.max(axis=1))
    assert worst == pytest.approx(found, abs=1e-4)


@NETWORKS
def test_the_file_is_what_the_script_exports(recipe: Recipe) -> None:
    made = train_digits.to_onnx(shipped_net(recipe), recipe.name)
    assert made.graph == onnx.load(FOLDER / f"{recipe.name}.onnx").graph


@NETWORKS
def test_training_is_deterministic(recipe: Recipe, digits: Digits) -> None:
    first, second = (train_digits.train(recipe, digits, epochs=1) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_worst_masks_take_the_most_harmful_neurons(digits: Digits) -> None:
    net = shipped_net(RECIPES[0])
    x, y = torch.from_numpy(digits.x_test[:50]), torch.from_numpy(digits.y_test[:50])
    out, hidden = net(x)
    masks = train_digits.worst_masks(out, hidden, y, BUDGET)
    assert [int(m) for mask in masks for m in torch.unique((mask == 0).sum(1))] == list(BUDGET)
    pruned, _ = net(x, masks)
    before, after = (torch.nn.functional.cross_entropy(o, y) for o in (out, pruned))
    assert after > 2 * before


def test_the_script_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "train_digits.py"), "--epochs", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = [f"{recipe.name}.onnx" for recipe in RECIPES]
    images = ("digits_test.npz", "digits_train.npz")
    assert {path.name for path in tmp_path.iterdir()} == {*names, *images}
    assert "1437 training images, 360 test images" in done.stdout
    for file in images:
        with np.load(tmp_path / file) as made, np.load(FOLDER / file) as shipped:
            assert all(np.array_equal(made[name], shipped[name]) for name in shipped)
