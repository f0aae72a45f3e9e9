"""Campaign files: what they say, and that all mistakes are named at once with their lines."""

from __future__ import annotations

import pickle
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milpver.campaign import _toml
from milpver.campaign.plan import make_plan
from milpver.campaign.spec import SpecError, read_spec
from milpver.errors import QueryError
from milpver.onnx_import import load_network

if TYPE_CHECKING:
    from tests.campaign.conftest import Field

TEXT = """\
title = "x"   # [not a table]

[campaign]
name = "a"
[[network]]
path = "n1"
[[network]]
  mean = [ 0.1,
           0.2, # comment ]
  0.3 ]
  "path" = '''
[data]
'''
[a.b]
c.d = { e = 1, f = [1, 2] }
"""


def test_lines_of_keys_tables_and_entries() -> None:
    found = _toml.read(TEXT)
    assert found.values == tomllib.loads(TEXT)
    expected = {
        ("title",): 1,
        ("campaign",): 3,
        ("campaign", "name"): 4,
        ("network", 0): 5,
        ("network", 0, "path"): 6,
        ("network", 1): 7,
        ("network", 1, "mean"): 8,
        ("network", 1, "mean", 0): 8,
        ("network", 1, "mean", 1): 9,
        ("network", 1, "mean", 2): 10,
        ("network", 1, "path"): 11,
        ("a", "b"): 14,
        ("a", "b", "c", "d", "e"): 15,
    }
    assert {place: found.lines[place] for place in expected} == expected
    assert found.line(("network", 1, "nothing", 3)) == 7
    assert found.line(("elsewhere",)) == 1


def complaints(path: Path) -> dict[int, list[str]]:
    """What is wrong with a spec, by line."""
    with pytest.raises(SpecError) as caught:
        make_plan(read_spec(path))
    assert "\n" not in str(caught.value)
    found: dict[int, list[str]] = {}
    for each in caught.value.complaints:
        found.setdefault(each.line, []).append(each.text)
        assert f"line {each.line}: " in str(caught.value)
    return found


def test_all_mistakes_of_the_text_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "[campaign]\n"
        "timeuot = 5\n"
        "workers = 0\n"
        'memory = "lots"\n'
        "[[network]]\n"
        'path = "missing.onnx"\n'
        "std = [0]\n"
        "[data]\n"
        'path = "missing.npz"\n'
        "[[question]]\n"
        'kind = "margins"\n'
        "[[question]]\n"
        'kind = "margin"\n'
        'solvers = ["highs", "hihgs"]\n'
        'networks = ["other"]\n'
        "budgets = [\n"
        '  "1,1",\n'
        "  true,\n"
        "]\n"
        "radii = [0.1, -1]\n"
        "[nonsense]\n",
        encoding="utf-8",
    )
    found = complaints(path)
    assert sorted(found) == [2, 3, 4, 6, 7, 9, 11, 14, 15, 18, 20, 21]
    assert "did you mean timeout" in found[2][0]
    assert "missing.onnx" in found[6][0]
    assert "did you mean margin" in found[11][0]
    assert "did you mean highs" in found[14][0]
    assert "'other'" in found[15][0]
    assert "unknown table or key 'nonsense'" in found[21][0]


def test_all_mistakes_of_networks_and_data_are_named_at_once(field: Field) -> None:
    (field.folder / "broken.onnx").write_bytes(b"no model")
    np.savez(field.folder / "wide.npz", x=np.zeros((3, 7)), y=np.zeros(3, dtype=np.int64))
    path = field.folder / "c.toml"
    path.write_text(
        "[campaign]\n"
        "[[network]]\n"
        'path = "net.onnx"\n'
        "[[network]]\n"
        'path = "broken.onnx"\n'
        "[[data]]\n"
        'path = "data.npz"\n'
        'index = "0:500"\n'
        "[[data]]\n"
        'path = "wide.npz"\n'
        "[[question]]\n"
        'kind = "margin"\n'
        'budgets = ["2,1",\n'
        '  "8,1",  # all eight neurons\n'
        '  "1",\n'
        "]\n",
        encoding="utf-8",
    )
    found = complaints(path)
    assert sorted(found) == [4, 8, 9, 14, 15]
    assert "broken.onnx" in found[4][0]
    assert "out of range" in found[8][0]
    assert "wide.npz" in found[9][0]
    assert "a layer cannot be removed whole" in found[14][0]
    assert "2 gateable layers" in found[15][0]


def test_mistakes_of_forced_neurons_and_layers_have_their_lines(field: Field) -> None:
    path = field.folder / "c.toml"
    path.write_text(
        "[campaign]\n"
        "[[network]]\n"
        'path = "net.onnx"\n'
        "[data]\n"
        'path = "data.npz"\n'
        "[[question]]\n"
        'kind = "margin"\n'
        'budgets = ["1,1", "total:99"]\n'
        'keep = "1:8"\n'
        "[[question]]\n"
        'kind = "decide"\n'
        'budgets = ["1,1"]\n'
        'remove = "1:0,1"\n'
        "[[question]]\n"
        'kind = "pruning-distance"\n'
        'layers = ["1", "fc9"]\n'
        "[[question]]\n"
        'kind = "pruning-distance"\n'
        'name = "third"\n'
        'remove = "conv1:0"\n'
        "[[question]]\n"
        'kind = "distance"\n'
        'norm = "l2"\n'
        'method = "direct"\n',
        encoding="utf-8",
    )
    found = complaints(path)
    assert sorted(found) == [8, 9, 13, 16, 20]
    assert "99 of its 13 neurons" in found[8][0]
    assert "--keep names '8' in layer 1" in found[9][0]
    assert "--remove takes 2 from layer 1" in found[13][0]
    assert "'fc9'" in found[16][0]
    assert "conv1" in found[20][0]
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace('"direct"', '"bisect"')
        .replace('name = "third"', "total = 1")
        .replace("keep =", "kepe ="),
        encoding="utf-8",
    )
    found = complaints(path)
    assert sorted(found) == [9, 19, 24]
    assert "did you mean keep" in found[9][0]
    assert "neither true nor false" in found[19][0]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[campaign]\nname = \n", 2, "Invalid value"),
        ("[campaign]\nname = 5\n", 2, "is no text"),
        ('[campaign]\nname = "x"\nname = "y"\n', 3, "overwrite"),
        ("[[campaign]]\n[[campaign]]\n", 1, "one table"),
        ("network = 5\n", 1, "has to be a table"),
        ("[campaign]\nseed = 1.5\n", 2, "no whole number"),
        ("[campaign]\ntimeout = inf\n", 2, "no finite number"),
        ('[campaign]\ndevice = "tpu"\n', 2, "did you mean cpu"),
    ],
)
def test_mistakes_of_single_values(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    found = complaints(path)
    assert any(words in each for each in found[line]), found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_missing_tables_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[campaign]\n", encoding=encoding)
    assert sorted(each for found in complaints(path).values() for each in found) == [
        "there is no [[data]]",
        "there is no [[network]]",
        "there is no [[question]]",
    ]


def test_files_that_are_no_specs(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="No such file"):
        read_spec(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(QueryError, match="no UTF-8 text"):
        read_spec(tmp_path / "x.toml")


def test_an_error_of_a_spec_survives_pickling(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[campaign]\nx = 1\n", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        read_spec(tmp_path / "c.toml")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.complaints) == (str(caught.value), caught.value.complaints)


def test_every_combination_is_a_cell(field: Field) -> None:
    plan = field.plan(
        '[[question]]\nkind = "margin"\nbudgets = [[1, 0], "25%,-"]\nradii = [0, 0.1]\n'
        'solvers = ["highs", "bab"]\nbounds = ["crown", "interval"]\ntimeout = 5\n'
        '[[question]]\nkind = "decide"\nbudgets = "1,1"\n'
        '[[question]]\nkind = "distance"\n',
        timeout=7,
        threads=2,
        memory="1.5G",
        seed=3,
    )
    assert len(plan.cells) == 2 * 2 * 2 * 2 + 1 + 1
    assert plan.queries == 18 * 40
    assert [tuple(cell.parameters.get("budget", ())) for cell in plan.cells[::4]] == [
        (1, 0), (1, 0), (2, 0), (2, 0), (1, 1),
    ]  # fmt: skip
    assert [cell.options.decide for cell in plan.cells[-2:]] == [True, False]
    assert {cell.options.timeout for cell in plan.cells[:16]} == {5.0}
    assert {(c.options.timeout, c.options.solver) for c in plan.cells[16:]} == {(7.0, "auto")}
    assert {(c.options.threads, c.options.memory, c.options.seed) for c in plan.cells} == {(2, 3 << 29, 3)}
    assert len({cell.id for cell in plan.cells}) == 18


def test_keys_depend_on_content_and_options_but_not_on_limits_and_names(field: Field) -> None:
    def keys(text: str = "", **campaign: object) -> set[bytes]:
        return {row[4] for row in field.plan(text, **campaign).rows()}

    question = '[[question]]\nkind = "margin"\nbudgets = ["2,1"]\n'
    base = keys(question)
    assert len(base) == 40
    assert keys(question, name="other", timeout=1, threads=4, memory="none", workers=7) == base
    moved = '[data]\npath = "data.npz"\nname = "z"\nindex = "10:50"\n'
    assert len(keys(question + moved) & base) == 30
    for other in (
        question.replace("2,1", "1,1"),
        question + "radii = [0.1]\n",
        question + 'solvers = ["highs"]\n',
        question + 'bounds = ["crown"]\n',
        question + 'encodings = ["reference"]\n',
        question + "gap = 1e-3\n",
        question + 'solver_options = { presolve = "off" }\n',
        question.replace("margin", "decide"),
        question + '[data]\npath = "data.npz"\nindex = "0:40"\ndomain = [-1, 2]\n',
        question + '[[network]]\npath = "net.onnx"\nmean = [0.5]\n',
    ):
        assert keys(other).isdisjoint(base), other
    assert keys(question, seed=1).isdisjoint(base)
    model = load_network(field.folder / "net.onnx").model
    (field.folder / "net.onnx").write_bytes(model + b"\x72\x00")  # an empty field: same function, other file
    assert keys(question).isdisjoint(base)
