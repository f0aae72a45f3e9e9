from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from milpver import registry
from milpver.errors import QueryError
from milpver.exchange import FORMATS, OFFSET, column_names, exported, write_program
from milpver.program import Program, ProgramBuilder
from milpver.solver import Limits, Stop
from milpver.transfer import _read_program

INF = float("inf")


def random_program(seed: int) -> Program:
    """All kinds of bounds, rows and entries, coefficients with 17 digits; feasible at a point."""
    rng = np.random.default_rng(seed)
    columns, rows = int(rng.integers(1, 8)), int(rng.integers(0, 6))
    matrix = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < 0.6)
    integer = rng.random(columns) < 0.5
    point = np.where(integer, rng.integers(-3, 4, columns), rng.normal(size=columns))
    room = rng.choice([0.0, 1.0, INF], (2, columns))
    activity = matrix @ point
    slack = rng.choice([0.0, 0.3, INF], (2, rows))
    whole = np.ceil if columns else np.asarray
    return Program(
        objective=rng.normal(size=columns) * (rng.random(columns) < 0.7),
        offset=float(rng.choice([0.0, 0.1 + 0.2, -1e-17])),
        lower=np.where(integer, whole(point - room[0]), point - room[0]),
        upper=np.where(integer, np.floor(point + room[1]), point + room[1]),
        integer=integer,
        matrix=sparse.csr_array(matrix),
        row_lower=activity - slack[0],
        row_upper=activity + slack[1],
    )


def rows_of(program: Program) -> set[tuple[tuple[float, ...], float, float]]:
    """Rows as half-spaces or equalities, without those that say nothing."""
    found = set()
    for row, low, high in zip(
        program.matrix.toarray().tolist(), program.row_lower, program.row_upper, strict=True
    ):
        sides = [(low, high)] if low == high else [(low, INF), (-INF, high)]
        found |= {(tuple(row), float(a), float(b)) for a, b in sides if np.isfinite(a) or np.isfinite(b)}
    return found


@pytest.mark.parametrize("suffix", sorted(FORMATS))
@given(seed=st.integers(0, 10_000))
def test_files_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, suffix: str, seed: int) -> None:
    program = random_program(seed)
    path = tmp_path_factory.mktemp("files") / f"p{suffix}"
    write_program(program, path)
    wanted, names = exported(program)
    read, read_names = _read_program(path)
    order = [read_names.index(name) for name in names]
    assert sorted(read_names) == sorted(names)
    assert np.array_equal(read.objective[order], wanted.objective)
    assert np.array_equal(read.lower[order], wanted.lower)
    assert np.array_equal(read.upper[order], wanted.upper)
    assert np.array_equal(read.integer[order], wanted.integer)
    assert read.offset == 0.0
    back = replace(read, matrix=sparse.csr_array(read.matrix.toarray()[:, order]))
    bounded = {row for row in rows_of(wanted) if any(row[0]) or suffix == ".mps"}
    assert {row for row in rows_of(back) if any(row[0]) or suffix == ".mps"} == bounded


def test_the_constant_is_a_column(tmp_path: Path) -> None:
    builder = ProgramBuilder()
    x = builder.add_columns("x", np.zeros(1), np.ones(1))
    program = builder.build().with_objective(x, np.ones(1), 0.1)
    more, names = exported(program)
    assert names == ["x.0", OFFSET]
    assert more.value(np.array([0.5, 1.0])) == program.value(np.array([0.5])) == 0.6
    write_program(program, tmp_path / "p.mps")
    solver = highspy._core._Highs()
    solver.setOptionValue("output_flag", False)
    solver.readModel(str(tmp_path / "p.mps"))
    solver.run()
    assert solver.getInfo().objective_function_value == pytest.approx(0.1)


def test_names_are_different_and_readable() -> None:
    builder = ProgramBuilder()
    for name in ("relu 3: z", "relu 3: z", "e1", "inf", "7", "", OFFSET, "x"):
        builder.add_columns(name, np.zeros(2), np.ones(2))
    names = column_names(builder.build())
    assert len(set(names)) == 16
    assert names[0] == "relu_3__z.0"
    assert all(name[0].isalpha() and name.split(".")[0] not in {"e1", "inf", "7"} for name in names)


def test_another_suffix_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    program = random_program(0)
    with pytest.raises(QueryError, match=r"the suffix '\.txt'; needed: \.mps or \.lp"):
        write_program(program, tmp_path / "p.txt")
    with pytest.raises(QueryError, match="No such file"):
        write_program(program, tmp_path / "missing" / "p.mps")


def test_highs_finds_the_same_optimum_in_both_formats(tmp_path: Path) -> None:
    solver = registry.load("solvers", "highs")
    for seed in range(20):
        program = random_program(seed)
        program = replace(program, lower=np.maximum(program.lower, -9), upper=np.minimum(program.upper, 9))
        direct = solver.solve(program, Limits(seconds=20.0))
        for suffix in FORMATS:
            write_program(program, tmp_path / f"p{suffix}")
            found = solver.solve(_read_program(tmp_path / f"p{suffix}")[0], Limits(seconds=20.0))
            assert found.stop is direct.stop is Stop.OPTIMAL
            assert found.upper == pytest.approx(direct.upper, abs=1e-6)
