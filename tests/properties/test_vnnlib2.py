"""VNN-LIB 2.0: the reference parser's tree as a property, compared with the same property in 1.0."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from milpver.errors import DataError
from milpver.properties import vnnlib1, vnnlib2
from milpver.property import Declaration, Property, Tensor

pytest.importorskip("vnnlib", reason="the package vnnlib is not installed")

HEAD = """(vnnlib-version <2.0>)
(declare-network f
  (declare-input X float32 [1,2])
  (declare-output Y float32 [2]))
"""
BOX = "(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0) (>= X[0,1] 0.1) (<= X[0,1] 0.25)))\n"


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def read(text: str) -> Property:
    assert vnnlib2.PROPERTY_FORMAT.recognises(text)
    return vnnlib2.PROPERTY_FORMAT.read(text, Path("query.vnnlib"))


def test_the_same_property_in_both_versions() -> None:
    second = read(HEAD + BOX + "(assert (or (<= Y[0] Y[1]) (>= (+ Y[0] (* 2.5 Y[1]) (- Y[0])) -3.0)))")
    first = vnnlib1.PROPERTY_FORMAT.read(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
        "(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_1 0.1))(assert (<= X_1 0.25))"
        "(assert (or (<= Y_0 Y_1) (>= (* 2.5 Y_1) -3)))",
        Path("p.vnnlib"),
    )
    (own,), (other,) = second.regions, first.regions
    for name in ("lower", "upper", "inner_lower", "inner_upper"):
        assert np.array_equal(getattr(own, name), getattr(other, name))
    for mine, theirs in zip(own.alternatives, other.alternatives, strict=True):
        assert np.array_equal(mine.rows, theirs.rows)
        assert np.array_equal(mine.limits, theirs.limits)
    x, y = Tensor("X", "float32", (1, 2)), Tensor("Y", "float32", (2,))
    assert second.networks == (Declaration("f", (x,), (), (y,)),)


def test_equal_and_not_equal() -> None:
    found = read(HEAD + BOX + "(assert (and (== Y[0] 0.5) (!= Y[1] 0.5)))")
    x = f32(0.0, 0.125)
    assert found.violated(x, f32(0.5, 0.25))
    assert not found.violated(x, f32(0.5, 0.5))
    assert not found.violated(x, f32(0.25, 0.25))
    assert len(found.regions[0].alternatives) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "(assert (<= X[0,5] 1.0))", "line 5"),
        (HEAD + "(assert (<= Z[0] 1.0))", "line 5"),
        (HEAD + BOX + "(assert (<= Y[0] 1.0)", "line 6"),
        (HEAD + "(assert (<= Y[0] 1.0))", "X[0,0] has no lower bound"),
        (HEAD + "(assert (and (>= X[0,0] 1.0) (<= X[0,0] 0.5)))", "line 5: an empty box: 1 <= X[0,0]"),
        (HEAD + BOX + "(assert (<= (* Y[0] Y[1]) 1.0))", "a product of variables"),
        (HEAD + BOX, "without any condition on the outputs"),
        (HEAD.replace("float32", "float16") + BOX, "type F16"),
        (
            HEAD + BOX + "(assert (<= Y[-1] 0.0))",
            "line 6: the index -1 in Y[-1]; needed: indices from 0 to 1",
        ),
        (HEAD + BOX + f"(assert (<= Y[{'9' * 20}] 0.0))", "line 6: a number of too many digits"),
        (HEAD + BOX + "(assert (and (<= Y[0] 0.0) (<= X[0,-1] 0.0)))", "line 6: the index -1 in X[0,-1]"),
        (
            HEAD.replace("2.0", "2.1") + BOX,
            "VNN-LIB 2.1; needed: VNN-LIB 1.0 (without a vnnlib-version) or 2.0",
        ),
        (HEAD.replace("2.0", "1.0") + BOX, "VNN-LIB 1.0; needed"),
    ],
)
def test_what_is_refused_names_line_or_variable(text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    assert str(caught.value).startswith("query.vnnlib")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vnnlib", None)
    with pytest.raises(DataError, match="pip install vnnlib"):
        read(HEAD + BOX)
