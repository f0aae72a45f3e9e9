from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from milpver.linear import Float
from milpver.program import Program, ProgramBuilder

INF = float("inf")


def array(*values: float) -> Float:
    return np.array(values, dtype=np.float64)


def small_program() -> Program:
    """min 2a - b + 3 subject to 1 <= a + 2b <= 4, 0 <= a <= 2, b in {-1, .., 3}."""
    builder = ProgramBuilder()
    a = builder.add_columns("a", array(0), array(2))
    b = builder.add_columns("b", array(-1), array(3), integer=True)
    builder.add_rows([(a, 1.0), (b, 2.0)], 1.0, 4.0)
    return builder.build().with_objective(np.array([0, 1]), array(2, -1), 3.0)


def test_value_is_the_objective_with_its_offset() -> None:
    assert small_program().value(array(1, 1)) == 4.0
    assert small_program().value(array(0, 3)) == 0.0


@pytest.mark.parametrize(
    ("point", "violation"),
    [
        ((0.0, 1.0), 0.0),
        ((2.0, 1.0), 0.0),
        ((2.5, 0.0), 0.5),
        ((-0.25, 1.0), 0.25),
        ((0.0, 0.0), 1.0),
        ((0.0, 3.0), 2.0),
        ((1.0, 0.75), 0.25),
        ((1.0, 1.0 + 1e-9), 1e-9),
        ((2.0, -2.0), 3.0),
    ],
)
def test_violation_is_the_largest_of_bounds_rows_and_integrality(
    point: tuple[float, float], violation: float
) -> None:
    assert small_program().violation(array(*point)) == pytest.approx(violation, rel=1e-6, abs=1e-15)


def test_with_objective_replaces_the_objective_and_leaves_the_rest() -> None:
    program = small_program()
    other = program.with_objective(np.array([1]), array(5), -1.0)
    assert other.objective.tolist() == [0.0, 5.0]
    assert other.offset == -1.0
    assert program.objective.tolist() == [2.0, -1.0]
    assert other.matrix is program.matrix
    assert other.lower is program.lower


def test_with_objective_adds_up_a_column_named_twice() -> None:
    other = small_program().with_objective(np.array([1, 0, 1]), array(5, 1, 2), 0.0)
    assert other.objective.tolist() == [1.0, 7.0]


def test_names_follow_the_blocks() -> None:
    builder = ProgramBuilder()
    assert builder.add_columns("z1", array(0, 0), array(1, 1)).tolist() == [0, 1]
    assert builder.add_binaries("m1", 1).tolist() == [2]
    assert builder.add_columns("none", array(), array()).tolist() == []
    assert builder.columns == 3
    program = builder.build()
    assert program.column_names() == ["z1[0]", "z1[1]", "m1[0]"]
    assert program.integer.tolist() == [False, False, True]
    assert (program.lower[2], program.upper[2]) == (0.0, 1.0)


def test_the_empty_program_is_one() -> None:
    program = ProgramBuilder().build()
    assert (program.columns, program.rows) == (0, 0)
    assert program.matrix.shape == (0, 0)
    assert program.value(array()) == 0.0
    assert program.violation(array()) == 0.0
    assert program.column_names() == []


def test_rows_without_entries_keep_their_bounds() -> None:
    builder = ProgramBuilder()
    columns = builder.add_columns("a", array(0), array(1))
    builder.add_matrix_rows([(columns, np.zeros((2, 1)))], array(1, -INF), array(INF, 2), 2)
    program = builder.build()
    assert program.matrix.nnz == 0
    assert program.violation(array(0)) == 1.0


finite = st.integers(-4, 4).map(float)


@st.composite
def blocks(
    draw: st.DrawFn,
) -> tuple[list[int], list[tuple[str, list[tuple[NDArray[np.int64], Float]], Float, Float]]]:
    """Column block sizes, and row blocks (kind, terms, lower, upper); columns may come twice."""
    sizes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    total = sum(sizes)
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.integers(1, 3))
        kind = draw(st.sampled_from(["rows", "dense", "sparse"]))
        terms = []
        for _ in range(draw(st.integers(1, 3))):
            if not total:
                break
            width = count if kind == "rows" else draw(st.integers(1, 3))
            columns = draw(st.lists(st.integers(0, total - 1), min_size=width, max_size=width))
            shape = count if kind == "rows" else count * width
            values = np.array(draw(st.lists(finite, min_size=shape, max_size=shape)))
            terms.append(
                (
                    np.array(columns, dtype=np.int64),
                    values if kind == "rows" else values.reshape(count, width),
                )
            )
        if terms:
            lower = np.array(draw(st.lists(finite, min_size=count, max_size=count)))
            rows.append((kind, terms, lower, lower + 1.0))
    return sizes, rows


@given(blocks())
def test_the_builder_agrees_with_a_dense_construction(
    case: tuple[list[int], list[tuple[str, list[tuple[NDArray[np.int64], Float]], Float, Float]]],
) -> None:
    sizes, row_blocks = case
    builder = ProgramBuilder()
    for k, size in enumerate(sizes):
        builder.add_columns(
            f"block{k}", np.arange(-1.0, size - 1), np.arange(1.0, size + 1), integer=bool(k % 2)
        )
    total = sum(sizes)
    dense: list[Float] = []
    lowers: list[Float] = []
    for kind, terms, lower, upper in row_blocks:
        count = len(lower)
        expected = np.zeros((count, total))
        for columns, values in terms:
            for i in range(count):
                for j, column in enumerate(columns):
                    if kind != "rows":
                        expected[i, column] += values[i, j]
                    elif i == j:
                        expected[i, column] += values[i]
        if kind == "rows":
            builder.add_rows(terms, lower, upper)
        else:
            as_given = [(c, v if kind == "dense" else sparse.csr_array(v)) for c, v in terms]
            builder.add_matrix_rows(as_given, lower, upper, count)
        dense.append(expected)
        lowers.append(lower)
    program = builder.build()
    wanted = np.concatenate(dense) if dense else np.zeros((0, total))
    assert program.matrix.shape == wanted.shape
    assert np.array_equal(program.matrix.toarray(), wanted)
    assert program.matrix.has_canonical_format
    assert program.matrix.nnz == np.count_nonzero(wanted)
    assert np.array_equal(program.row_lower, np.concatenate(lowers) if lowers else np.zeros(0))
    assert np.array_equal(program.row_upper, program.row_lower + 1.0)
    assert np.array_equal(program.lower, np.concatenate([np.arange(size) - 1.0 for size in sizes]))
    assert len(program.column_names()) == program.columns == total
    assert program.integer.tolist() == [bool(k % 2) for k, size in enumerate(sizes) for _ in range(size)]


def test_scalar_bounds_and_coefficients_are_spread_over_the_block() -> None:
    builder = ProgramBuilder()
    a = builder.add_columns("a", np.zeros(3), np.ones(3))
    b = builder.add_columns("b", np.zeros(3), np.ones(3))
    builder.add_rows([(a, 2.0), (b, array(1, 2, 3)), (a, -2.0)], -INF, 0.5)
    program = builder.build()
    assert program.matrix.toarray()[:, :3].any() == np.False_
    assert np.array_equal(program.matrix.toarray()[:, 3:], np.diag([1.0, 2.0, 3.0]))
    assert program.row_lower.tolist() == [-INF] * 3
    assert program.row_upper.tolist() == [0.5] * 3
