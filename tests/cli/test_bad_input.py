"""Bad input of every kind: one line that names it, exit code 2, and nothing on stdout."""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def margin(model: object, data: object, *more: object) -> tuple[object, ...]:
    return ("margin", model, "--data", data, "--budget", "1,1", *more)


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(
    refused: Any, tiny: Any, write_model: Callable[..., None], tmp_path: Path, value: float
) -> None:
    weight = tiny.weights[1][0].copy()
    weight[2, 3] = value
    path = tmp_path / "bad.onnx"
    write_model(path, (tiny.weights[0], (weight, tiny.weights[1][1]), tiny.weights[2]))
    for line in (refused("info", path), refused(*margin(path, tiny.data))):
        assert str(path) in line
        assert "w2" in line


def unknown_operators(path: Path) -> None:
    nodes = [
        helper.make_node("Erf", ["x"], ["a"], name="first"),
        helper.make_node("Sin", ["a"], ["b"], name="second"),
        helper.make_node("Erf", ["b"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_all_unknown_operators_are_named(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "unknown.onnx"
    unknown_operators(path)
    line = refused("info", path)
    for word in ("Erf", "Sin", "first", "second", "third"):
        assert word in line


def test_model_files_that_are_none(refused: Any, tiny: Any, tmp_path: Path) -> None:
    content = tiny.model.read_bytes()
    kinds = {
        "empty.onnx": b"",
        "truncated.onnx": content[: len(content) // 2],
        "foreign.onnx": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text.onnx": b"this is no network\n" * 5,
        "packed.onnx": gzip.compress(content),
    }
    for name, wrong in kinds.items():
        path = tmp_path / name
        path.write_bytes(wrong)
        assert str(path) in refused("info", path)
        assert str(path) in refused(*margin(path, tiny.data))
    assert "no.onnx" in refused("info", tmp_path / "no.onnx")
    assert "folder" in refused("info", tmp_path)


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/hostname"])
def test_external_weights_outside_of_the_models_folder(refused: Any, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    values = np.ones((3, 4), dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(values.tobytes())
    tensor = numpy_helper.from_array(values, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", place
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    line = refused("info", path)
    assert place in line
    assert "folder" in line


# ------------------------------------------------------------------------------------------ data


def test_inputs_that_are_not_finite(refused: Any, tiny: Any, tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        x = tiny.x.copy()
        x[3, 1] = value
        path = tmp_path / "bad.npz"
        np.savez(path, x=x, y=tiny.y)
        assert str(path) in refused(*margin(tiny.model, path))


def test_shapes_and_labels_that_do_not_fit(refused: Any, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, x=np.zeros((2, 5), dtype=np.float32), y=np.zeros(2, dtype=np.int64))
    assert "5" in refused(*margin(tiny.model, path))
    np.savez(path, x=tiny.x, y=tiny.y[:-1])
    assert str(path) in refused(*margin(tiny.model, path))
    np.savez(path, x=tiny.x, y=np.full(7, 3))
    assert "label 3 at index 0" in refused(*margin(tiny.model, path))
    np.savez(path, x=tiny.x, y=np.full(7, -1))
    assert "label -1" in refused(*margin(tiny.model, path))


def test_data_files_that_are_none(refused: Any, tiny: Any, tmp_path: Path) -> None:
    content = tiny.data.read_bytes()
    kinds = {
        "empty.npz": b"",
        "truncated.npz": content[: len(content) // 2],
        "foreign.npz": tiny.model.read_bytes(),
        "empty.csv": b"",
        "text.csv": b"label,pixel\nseven,dark\n",
        "data.bin": content,
    }
    for name, wrong in kinds.items():
        path = tmp_path / name
        path.write_bytes(wrong)
        assert str(path) in refused(*margin(tiny.model, path))
    (tmp_path / "folder").mkdir()
    assert "folder" in refused(*margin(tiny.model, tmp_path / "folder"))
    assert "does not exist" in refused(*margin(tiny.model, tmp_path / "none.npz"))
    assert "'z'" in refused(*margin(tiny.model, tiny.data, "--keys", "z,y"))


def test_pickles_in_npz_files_are_never_loaded(refused: Any, tiny: Any, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "pickle.npz"
    np.savez(path, x=np.array([Bomb()] * 2, dtype=object), y=np.zeros(2, dtype=np.int64))
    assert str(path) in refused(*margin(tiny.model, path))
    path.write_bytes(pickle.dumps(Bomb()))
    assert str(path) in refused(*margin(tiny.model, path))
    assert not (tmp_path / "exploded").exists()


# ------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--budget", "6,0"), "0 to 5"),
        (("--budget", "7,0"), "0 to 5"),
        (("--budget", "100%,0"), "6 of its 6 neurons"),
        (("--budget", "1"), "2 gateable layers"),
        (("--budget", "1,1,1"), "2 gateable layers"),
        (("--budget", "-1,1"), "budget -1"),
        (("--budget", "many,1"), "'many'"),
        (("--budget", "3=1"), "3=1"),
        (("--radius", "-0.1"), "--radius -0.1"),
        (("--radius", "nan"), "--radius nan"),
        (("--radius", "inf"), "--radius inf"),
        (("--radius", "wide"), "--radius wide"),
        (("--index", "7"), "7 is out of range"),
        (("--index", "0:8"), "0:8 is out of range"),
        (("--index", "x"), "'x'"),
        (("--index", "3:3"), "empty"),
        (("--domain", "1,0"), "--domain '1,0'"),
        (("--domain", "0"), "--domain '0'"),
        (("--domain", "nan,1"), "--domain 'nan,1'"),
        (("--domain", "0.5,0.6"), "the domain [0.5, 0.6]"),
        (("--timeout", "0"), "--timeout 0"),
        (("--timeout", "-1"), "--timeout -1"),
        (("--timeout", "soon"), "--timeout soon"),
        (("--timeout", "inf"), "--timeout inf"),
        (("--gap", "-1e-6"), "--gap -1e-6"),
        (("--gap", "nan"), "--gap nan"),
        (("--threads", "0"), "--threads 0"),
        (("--threads", "1.5"), "--threads 1.5"),
        (("--memory", "0"), "--memory 0"),
        (("--memory", "4X"), "--memory 4X"),
        (("--memory", "-4G"), "--memory -4G"),
        (("--seed", "-1"), "--seed -1"),
        (("--device", "tpu"), "--device tpu"),
        (("--scale", "0"), "--scale 0"),
        (("--mean", "a"), "--mean 'a'"),
        (("--mean", "1,2"), "--mean has 2 entries"),
        (("--std", "0"), "--std '0'"),
        (("--keys", "x"), "--keys 'x'"),
        (("--split", "train"), "--split train"),
        (("--layout", "chw"), "layout"),
        (("--solver-option", "presolve"), "'presolve'"),
        (("--solver-option", "nonsense=1"), "nonsense"),
        (("--solver-option", "time_limit=1"), "--timeout"),
    ],
)
def test_values_that_make_no_sense(refused: Any, tiny: Any, change: tuple[str, str], said: str) -> None:
    assert said in refused(*margin(tiny.model, tiny.data), *change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--method", "guess"), "--method guess"),
        (("--norm", "l3"), "--norm l3; needed: one of linf, l1, l2"),
        (("--method", "bisekt"), "did you mean bisect"),
        (("--target", "3"), "--target 3"),
        (("--target", "-1"), "--target -1"),
        (("--target", "x"), "--target x"),
    ],
)
def test_values_of_distance_that_make_no_sense(
    refused: Any, tiny: Any, change: tuple[str, str], said: str
) -> None:
    assert said in refused("distance", *tiny.common, *change)


def test_a_gpu_that_is_not_there(refused: Any, tiny: Any) -> None:
    import torch  # noqa: PLC0415 - only this test needs it

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "--device cuda" in refused(*margin(tiny.model, tiny.data, "--device", "cuda"))


def test_nothing_is_made_before_a_query_is_known_to_make_sense(
    refused: Any, tiny: Any, tmp_path: Path
) -> None:
    file, folder = tmp_path / "r.jsonl", tmp_path / "witnesses"
    senseless = ("--norm", "l2", "--method", "bisect")
    refused("distance", *tiny.common, *senseless, "--records", file, "--save-witness", folder)
    assert not file.exists()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no command"),
        (("margn",), "unknown command 'margn'; did you mean margin"),
        (("info",), "MODEL"),
        (("info", "a", "b"), "unrecognized arguments: b"),
        (("info", "a", "--jsn"), "did you mean --json"),
        (("margin", "m", "--data", "d"), "--budget"),
        (("margin", "m", "--data", "d", "--budgets", "1"), "did you mean --budget"),
        (("margin", "m", "--data", "d", "--budget"), "expected one argument"),
        (("margin", "m", "--data", "d", "--budget", "1", "--tim", "3"), "unknown option '--tim'"),
        (("distance", "m", "--data", "d", "--budget", "1"), "unknown option '--budget'"),
        (("solvers", "highs"), "unrecognized arguments: highs"),
        (("--json",), "no command"),
        (("--json", "solvers"), "after the command"),
        (("demo", "--count", "0"), "--count 0"),
        (("demo", "--count", "x"), "--count x"),
    ],
)
def test_command_lines_that_cannot_be_read(refused: Any, words: tuple[str, ...], said: str) -> None:
    assert said in refused(*words)
