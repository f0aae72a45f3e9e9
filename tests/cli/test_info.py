"""``milpver info`` and ``milpver solvers``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from milpver.errors import PluginError


def test_info_for_people(cli: Any, tiny: Any) -> None:
    result = cli("info", tiny.model)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == str(tiny.model)
    found = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:8]}
    assert found["sha256"] == hashlib.sha256(tiny.model.read_bytes()).hexdigest()
    assert found["opset"] == "ai.onnx 13"
    assert found["input"] == "input: 4, float32, batch free"
    assert found["output"] == "z3: 3 classes"
    assert found["operators"] == "3 Gemm, 2 Relu"
    assert found["parameters"] == str(4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3)
    assert found["ReLUs"] == "11"
    assert [line.split() for line in lines[-2:]] == [["1", "h1", "6", "neurons"], ["2", "h2", "5", "neurons"]]


def test_info_as_json(cli: Any, repo_root: Path) -> None:
    path = repo_root / "onnx_models" / "digits_conv.onnx"
    result = cli("info", path, "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["operators"] == {"Conv": 2, "Flatten": 1, "Gemm": 3, "Relu": 4}
    assert found["input"] == {"name": "input", "shape": [1, 8, 8], "dtype": "float32", "batch": "free"}
    assert found["output"]["classes"] == 10
    assert found["parameters"] == 2090
    assert found["relus"] == 4 * 4 * 4 + 8 * 2 * 2 + 32 + 16
    assert [(layer["number"], layer["width"]) for layer in found["layers"]] == [(1, 32), (2, 16)]
    assert found["softmax"] is False


def test_info_says_where_a_softmax_is_dropped(cli: Any, softmax_model: Path) -> None:
    assert "softmax" in cli("info", softmax_model).out.splitlines()[4]
    assert json.loads(cli("info", softmax_model, "--json").out)["softmax"] is True


def test_solvers(cli: Any) -> None:
    result = cli("solvers")
    assert result.code == 0
    assert any(line.split()[:2] == ["highs", "available"] for line in result.out.splitlines())
    found = {each["name"]: each for each in json.loads(cli("solvers", "--json").out)["solvers"]}
    assert found["highs"]["available"] is True
    assert found["highs"]["version"]
    fields = {"name", "kind", "available", "version", "reason", "limits"}
    assert all(set(each) == fields for each in found.values())
    assert {name for name, each in found.items() if each["kind"] == "native"} == {"bab", "auto"}
    native = [line for line in result.out.splitlines() if "native search" in line]
    assert [line.split()[0] for line in native] == ["bab", "auto"]
    assert all("goes to highs" in line for line in native)
    assert all(each["available"] or each["reason"] for each in found.values())


def test_solvers_that_are_broken_do_not_hide_the_others(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from milpver import registry  # noqa: PLC0415
    from milpver.solver import Availability  # noqa: PLC0415

    states = {
        "gone": Availability(False, reason="the package gone is not installed; fix: pip install gone"),
        "small": Availability(True, "1.0", limits="2000 columns"),
    }

    def load(_kind: str, name: str) -> Any:
        if name == "worse":
            raise PluginError("worse fails", needed="an import", fix="reinstall")
        return SimpleNamespace(availability=lambda: states[name])

    def variants(_kind: str, name: str) -> tuple[str, ...]:
        if name == "broken":
            raise ImportError("no libbroken.so")
        return (name,)

    monkeypatch.setattr(registry, "names", lambda _kind: ("broken", "gone", "small", "worse"))
    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setattr(registry, "variants", variants)
    result = cli("solvers")
    assert result.code == 0
    lines = [line.split(maxsplit=2) for line in result.out.splitlines()]
    shown = ["unavailable", "unavailable", "available", "unavailable", *["available"] * 2]
    assert [line[1] for line in lines] == shown
    assert "no libbroken.so" in lines[0][2]
    assert "pip install gone" in lines[1][2]
    assert lines[2][2].split() == ["1.0", "2000", "columns"]
    monkeypatch.setattr(registry, "names", lambda _kind: ())
    assert cli("solvers").out.splitlines()[0] == "no MILP solver is installed"
