"""VNN-LIB 1.0: meaning against an evaluator of its own, rounding against rationals, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milpver.errors import DataError
from milpver.properties.vnnlib1 import PROPERTY_FORMAT
from milpver.property import Property

SOURCE = Path("made.vnnlib")
Tree: TypeAlias = Any


def read(text: str) -> Property:
    return PROPERTY_FORMAT.read(text, SOURCE)


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def declared(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{j}" for j in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


BOX = "(assert (>= X_0 -1)) (assert (<= X_0 1))\n"


# ------------------------------------------------------------------------------- against another evaluator


def tree(text: str) -> Tree:
    """S-expressions as nested lists; knows nothing of the reader under test."""
    words = text.replace("(", " ( ").replace(")", " ) ").split()

    def parse(place: int) -> tuple[Tree, int]:
        if words[place] != "(":
            return words[place], place + 1
        found, place = [], place + 1
        while words[place] != ")":
            part, place = parse(place)
            found.append(part)
        return found, place + 1

    return parse(0)[0]


def number(node: Tree, point: dict[str, Fraction]) -> Fraction:
    if isinstance(node, str):
        return point[node] if node in point else Fraction(node)
    values = [number(part, point) for part in node[1:]]
    match node[0]:
        case "+":
            return sum(values, Fraction(0))
        case "*":
            return values[0] * values[1]
        case "-":
            return -values[0] if len(values) == 1 else values[0] - values[1]
    raise AssertionError(node)


def truth(node: Tree, point: dict[str, Fraction]) -> bool:
    match node[0]:
        case "and":
            return all(truth(part, point) for part in node[1:])
        case "or":
            return any(truth(part, point) for part in node[1:])
        case "<=":
            return number(node[1], point) <= number(node[2], point)
        case ">=":
            return number(node[1], point) >= number(node[2], point)
    raise AssertionError(node)


NUMBERS = st.sampled_from(["0", "1", "-1", "0.5", "-0.25", "2.5e-1", "0.1", "1E0", "-3e-1"])
VARIABLES = st.sampled_from(["X_0", "X_1", "Y_0", "Y_1"])
TERMS = st.one_of(
    NUMBERS,
    VARIABLES,
    st.builds("(+ {} {})".format, VARIABLES, NUMBERS),
    st.builds("(- {} {})".format, VARIABLES, VARIABLES),
    st.builds("(* {} {})".format, NUMBERS, VARIABLES),
    st.builds("(- {})".format, VARIABLES),
)
COMPARISONS = st.builds("({} {} {})".format, st.sampled_from(["<=", ">="]), TERMS, TERMS)
FORMULAS = st.recursive(
    COMPARISONS,
    lambda parts: st.builds(
        lambda word, found: f"({word} {' '.join(found)})",
        st.sampled_from(["and", "or"]),
        st.lists(parts, min_size=1, max_size=3),
    ),
    max_leaves=6,
)
#: A condition on an output in every alternative, and bounds: without them a property is refused.
FRAME = "(and (>= X_0 -1) (<= X_0 1) (>= X_1 -2) (<= X_1 0.1) (<= Y_0 Y_1) {})"
POINTS = st.lists(
    st.tuples(*[st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.09999999403953552, 0.25, 1.0]) for _ in range(4)]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=50)
@given(FORMULAS, POINTS)
def test_formula_and_normal_form_say_what_was_written(formula: str, points: list[tuple[float, ...]]) -> None:
    text = FRAME.format(formula)
    try:
        found = read(declared(2, 2) + f"(assert {text})")
    except DataError as error:  # bounds that are written side by side and contradict each other
        refused = str(error)
        found = None
    for point in points:
        named = dict(zip(("X_0", "X_1", "Y_0", "Y_1"), map(Fraction, point), strict=True))
        expected = truth(tree(text), named)
        if found is None:
            assert "an empty box" in refused
            continue
        x, y = np.array(point[:2], dtype=np.float32), np.array(point[2:], dtype=np.float32)
        assert np.array_equal(x, point[:2])
        assert found.violated(x, y) == expected
        assert in_normal_form(found, x, y) == expected


def in_normal_form(prop: Property, x: Any, y: Any) -> bool:
    values = np.concatenate([y, x]) if prop.joint else y
    for region in prop.regions:
        if np.all((x >= region.inner_lower) & (x <= region.inner_upper)):
            assert np.all((x >= region.lower) & (x <= region.upper))
            for each in region.alternatives:
                rows = [[Fraction(a) for a in row] for row in each.rows.tolist()]
                sums = [sum(a * Fraction(float(v)) for a, v in zip(row, values, strict=True)) for row in rows]
                if all(s <= Fraction(b) for s, b in zip(sums, each.limits.tolist(), strict=True)):
                    return True
    return False


# ------------------------------------------------------------------------------- numbers


@given(st.decimals(min_value=-4, max_value=4, places=12), st.decimals(min_value=0, max_value=1, places=12))
def test_boxes_are_rounded_outward_for_proofs_and_inward_for_witnesses(low: Any, width: Any) -> None:
    high = low + width
    found = read(declared(1, 1) + f"(assert (>= X_0 {low:f})) (assert (<= X_0 {high:f})) (assert (<= Y_0 0))")
    (region,) = found.regions
    assert Fraction(region.lower[0]) <= Fraction(low) <= Fraction(high) <= Fraction(region.upper[0])
    assert np.nextafter(region.lower[0], np.inf) > low
    assert np.nextafter(region.upper[0], -np.inf) < high
    inner = f32(region.inner_lower[0], region.inner_upper[0])
    assert np.array_equal(inner, [region.inner_lower[0], region.inner_upper[0]])
    assert Fraction(float(inner[0])) >= Fraction(low)
    assert Fraction(float(inner[1])) <= Fraction(high)
    assert Fraction(float(np.nextafter(inner[0], np.float32(-np.inf)))) < Fraction(low)
    assert Fraction(float(np.nextafter(inner[1], np.float32(np.inf)))) > Fraction(high)


def test_a_box_without_a_float32_number() -> None:
    (region,) = read(declared(1, 1) + "(assert (= X_0 0.1)) (assert (<= Y_0 0))").regions
    assert not region.has_float32
    assert region.lower[0] < 0.1 or region.upper[0] > 0.1


def test_a_box_empty_by_one_unit_in_the_last_place() -> None:
    up = np.nextafter(0.3, 1.0)
    with pytest.raises(DataError, match=r"line 4: an empty box: 0\.300000.* <= X_0 <= 0\.299999"):
        read(declared(1, 1) + f"(assert (>= X_0 {up:.60f}))\n(assert (<= X_0 0.3)) (assert (<= Y_0 0))")


def test_coefficients_are_exact_and_limits_rounded_up() -> None:
    text = "(assert (<= (+ (* 0.1 Y_0) (* 0.3 Y_1)) 0.7))"
    (region,) = read(declared(1, 2) + BOX + text).regions
    (each,) = region.alternatives
    assert each.rows.tolist() == [[1.0, 3.0]]
    assert Fraction(each.limits[0]) >= 7
    text = "(assert (<= Y_0 0.7))"
    (each,) = read(declared(1, 1) + BOX + text).regions[0].alternatives
    assert Fraction(each.limits[0]) >= Fraction("0.7") > Fraction(float(np.nextafter(each.limits[0], 0.0)))


def test_strict_comparisons_are_kept_for_witnesses() -> None:
    found = read(declared(1, 1) + BOX + "(assert (< Y_0 0))")
    x = np.zeros(1, dtype=np.float32)
    assert not found.violated(x, np.zeros(1, dtype=np.float32))
    assert found.violated(x, f32(-1e-45))


def test_regions_are_grouped_by_box() -> None:
    text = (
        "(assert (or (and (>= X_0 0) (<= X_0 1) (<= Y_0 0)) (and (>= X_0 2) (<= X_0 3) (<= Y_0 0))"
        " (and (>= X_0 0) (<= X_0 1) (>= Y_0 5))))"
    )
    found = read(declared(1, 1) + text)
    assert [(r.lower[0], r.upper[0], len(r.alternatives)) for r in found.regions] == [(0, 1, 2), (2, 3, 1)]


def test_disjunctions_that_have_no_input_in_common_are_left_out() -> None:
    text = (
        "(assert (or (<= X_0 -0.5) (>= X_0 0.5))) (assert (or (<= X_0 -0.7) (>= X_0 0.9)))(assert (<= Y_0 0))"
    )
    found = read(declared(1, 1) + BOX + text)
    assert sorted((r.lower[0], r.upper[0]) for r in found.regions) == [
        (-1.0, pytest.approx(-0.7)),
        (pytest.approx(0.9), 1.0),
    ]


def test_rows_over_inputs_make_a_joint_property() -> None:
    found = read(declared(2, 1) + BOX + BOX.replace("X_0", "X_1") + "(assert (<= (+ X_0 X_1) Y_0))")
    assert found.joint
    assert found.regions[0].alternatives[0].rows.tolist() == [[-1.0, 1.0, 1.0]]


def test_thousands_of_boxes_are_read() -> None:
    parts = " ".join(f"(and (>= X_0 {k}) (<= X_0 {k}.5) (>= Y_0 {k}))" for k in range(3000))
    found = read(declared(1, 1) + f"(assert (or {parts}))")
    assert len(found.regions) == 3000


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(assert (<= X_0 1)", "line 3: an unbalanced parenthesis '('"),
        ("(assert (<= X_0 1)))", "line 3: an unbalanced parenthesis ')'"),
        (BOX + "(assert (<= Y_1 0))", "line 4: the undeclared variable Y_1"),
        (BOX + "(assert (<= Z_1 0))", "line 4: 'Z_1'"),
        ("(assert (<= X_0 nan))", "line 3: 'nan'"),
        ("(assert (<= X_0 inf))", "line 3: 'inf'"),
        ("(assert (<= X_0 1e999))", "line 3: the number 1e999"),
        ("(assert (<= X_0 1))\n(assert (<= Y_0 1))", "X_0 has no lower bound"),
        ("(assert (>= X_0 1))\n(assert (<= Y_0 1))", "X_0 has no upper bound"),
        (
            "(assert (>= X_0 1))\n(assert (<= X_0 0.5)) (assert (<= Y_0 1))",
            "line 4: an empty box: 1 <= X_0 <= 0.5",
        ),
        (
            BOX + "(assert (or (and (<= Y_0 1) (>= X_0 0.5) (<= X_0 0.4)) (<= Y_0 0)))",
            "line 4: an empty box: 0.5",
        ),
        (
            BOX + "(assert (or (and (<= Y_0 1) (>= X_0 2)) (and (<= Y_0 0) (<= X_0 -3))))",
            "an empty box: no input",
        ),
        (BOX, "without any condition on the outputs"),
        (BOX + "(assert (or (<= Y_0 1) (<= X_0 0)))", "without any condition on the outputs"),
        ("", "no assert"),
        (BOX + "(assert (<= (* Y_0 X_0) 1))", "line 4: a product of two variables"),
        (BOX + "(assert (<= (/ Y_0 0) 1))", "line 4: a division by 0"),
        (BOX + f"(assert (<= Y_0 0.{'1' * 500}))", "at most 400 characters"),
        ("(declare-network f)", "line 3: declare-network without a version; needed: (vnnlib-version <2.0>)"),
        (BOX + "(assert (not (<= Y_0 1)))", "line 4: 'not'"),
        (BOX + "(assert (<= Y_0 1 2))", "line 4: <= with 3 sides"),
        (BOX + "(assert Y_0)", "line 4: Y_0 in place of a condition"),
        (BOX + "(assert (and))", "line 4: an empty and"),
        (BOX + "(assert (<= 2 1))", "no input meets"),
        (BOX + "(assert (<= (sin Y_0) 1))", "line 4: the operator 'sin'"),
        (BOX + "(foo)", "line 4: the command 'foo'"),
        (BOX + "Y_0", "line 4: 'Y_0' outside of parentheses"),
        ("(declare-const X_0 Real)", "line 3: X_0 declared twice"),
        ("(declare-const X_2 Real)", "input X_1 is not declared"),
        ("(declare-const e Real)", "line 3: a declaration of e"),
        ("(declare-const X_1 Int)", "line 3: a declaration of X_1"),
    ],
)
def test_malformed_properties_name_the_line_or_the_variable(text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(declared(1, 1) + text)
    assert str(caught.value).startswith("made.vnnlib")
    assert said in str(caught.value)


def test_outputs_have_to_be_declared() -> None:
    with pytest.raises(DataError, match="output Y_0 is not declared"):
        read("(declare-const X_0 Real)" + BOX)


def test_comments_and_silent_commands() -> None:
    text = "; (assert (<= Y_0 nan))\n(set-info :source |(a ) b|)\n(set-logic QF_LRA)\n"
    found = read(text + declared(1, 1) + BOX + "(assert (<= Y_0 0)) ; end")
    assert len(found.regions) == 1


def test_nesting_beyond_reason_is_refused() -> None:
    depth = 20_000
    nested = "(or " * depth + "(<= Y_0 0)" + ")" * depth
    with pytest.raises(DataError, match="nested too deeply"):
        read(declared(1, 1) + BOX + f"(assert {nested})")


def test_too_many_alternatives_are_refused() -> None:
    either = "(assert (or (<= Y_0 0) (>= Y_0 1) (<= Y_0 -1)))"
    with pytest.raises(DataError, match="alternatives or more"):
        read(declared(1, 1) + BOX + either * 12)


def test_benchmark_properties_are_read(shared_data: Path) -> None:
    from milpver.property_file import load_property  # noqa: PLC0415  only where there is data

    files = sorted((shared_data / "vnncomp").glob("*/vnnlib/*"))
    assert len(files) > 50
    for file in files[::19]:
        found = load_property(file)
        assert all(region.has_float32 for region in found.regions)
        assert np.all(found.regions[0].lower <= found.regions[0].upper)
