"""Round trips: export, solve elsewhere, import; and everything that has to be refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from milpver.errors import DataError, QueryError
from milpver.margin import margins
from milpver.network import Network
from milpver.query import Options, parse_budget
from milpver.transfer import export_query, import_solution
from tests.nets import random_network


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


def with_highs(path: Path, out: Path) -> None:
    highspy = pytest.importorskip("highspy")
    solver = highspy._core._Highs()
    solver.setOptionValue("output_flag", False)
    solver.readModel(str(path))
    solver.run()
    solver.writeSolution(str(out), 0)


def with_gurobi(path: Path, out: Path) -> None:
    gurobipy = pytest.importorskip("gurobipy", reason="gurobipy is not installed")
    with gurobipy.Env(empty=True) as environment:
        environment.setParam("OutputFlag", 0)
        environment.start()
        with gurobipy.read(str(path), environment) as model:
            model.optimize()
            model.write(str(out))


def with_scip(path: Path, out: Path) -> None:
    pyscipopt = pytest.importorskip("pyscipopt", reason="PySCIPOpt is not installed")
    model = pyscipopt.Model()
    model.hideOutput()
    model.readProblem(str(path))
    model.optimize()
    model.writeBestSol(str(out))


def program_of(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"the program {name} is not on the PATH")
    return name


def with_cbc(path: Path, out: Path) -> None:
    run(program_of("cbc"), path, "preprocess", "off", "solve", "solution", out)


def with_glpk(path: Path, out: Path) -> None:
    run(program_of("glpsol"), "--freemps" if path.suffix == ".mps" else "--lp", path, "--write", out)


def with_glpk_printed(path: Path, out: Path) -> None:
    run(program_of("glpsol"), "--freemps" if path.suffix == ".mps" else "--lp", path, "--output", out)


SOLVERS: dict[str, Callable[[Path, Path], None]] = {
    "highs": with_highs,
    "gurobi": with_gurobi,
    "scip": with_scip,
    "cbc": with_cbc,
    "glpk": with_glpk,
    "glpk printed": with_glpk_printed,
}


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return random_network(tmp_path / "net.onnx", [3, 6, 5, 3], seed=4)


X = np.array([0.3, -0.4, 0.8], dtype=np.float32)
OPTIONS = Options(bounds="interval", solver="highs")


def exported(network: Network, path: Path, radius: float, target: int | None = None) -> int:
    label = int(network.graph.evaluate(X[None].astype(np.float64))[0].argmax())
    budget = parse_budget([2, 1], network)
    found = export_query(
        network, X, label, path, budget=budget, radius=radius, target=target, options=OPTIONS, index=7
    )
    assert (found.program, found.meaning) == (path, path.with_suffix(".json"))
    assert found.integers > 0
    return found.target


@pytest.mark.parametrize("radius", [0.0, 0.2])
@pytest.mark.parametrize("suffix", [".mps", ".lp"])
@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_round_trip(network: Network, tmp_path: Path, solver: str, suffix: str, radius: float) -> None:
    path, out = tmp_path / f"q{suffix}", tmp_path / "q.sol"
    target = exported(network, path, radius)
    SOLVERS[solver](path, out)
    if solver == "glpk" and suffix == ".lp":
        with pytest.raises(DataError, match="numbers in place of names"):
            import_solution(path, out)
        return
    checked = import_solution(path, out)
    assert checked.problems == ()
    assert checked.target == target
    (verdict,) = margins(
        network,
        X[None],
        [checked.label],
        budget=parse_budget([2, 1], network),
        radius=radius,
        options=OPTIONS,
    )
    (bracket,) = [each for each in verdict.classes if each.target == target]
    assert bracket.upper is not None
    if bracket.status == "optimal":
        assert checked.margin == pytest.approx(bracket.upper, abs=1e-4)
    assert checked.margin == pytest.approx(checked.objective, abs=1e-4)
    assert checked.margin_float32 == pytest.approx(checked.margin, abs=1e-4)
    assert sum(layer == 1 for layer, _ in checked.removed) <= 2
    assert sum(layer == 2 for layer, _ in checked.removed) <= 1


def test_a_target_can_be_chosen(network: Network, tmp_path: Path) -> None:
    label = int(network.graph.evaluate(X[None].astype(np.float64))[0].argmax())
    for target in {0, 1, 2} - {label}:
        assert exported(network, tmp_path / "q.mps", 0.0, target) == target
    for wrong in (label, 3, -1):
        with pytest.raises(QueryError, match=f"--target {wrong}"):
            exported(network, tmp_path / "q.mps", 0.0, wrong)


def test_a_dead_neuron_that_is_removed_in_every_mask_is_in_the_mask(network: Network, tmp_path: Path) -> None:
    """It has no column in the program."""
    layer = network.layers[0]
    values = network.graph.trace(X[None].astype(np.float64))
    dead = int(np.flatnonzero(values[network.graph.nodes[layer.node].sources[0]][0] <= 0)[0])
    budget = parse_budget([2, 1], network, remove=[(1, dead)])
    label = int(values[-1][0].argmax())
    path, out = tmp_path / "q.mps", tmp_path / "q.sol"
    export_query(network, X, label, path, budget=budget, options=OPTIONS)
    with_highs(path, out)
    checked = import_solution(path, out)
    assert checked.problems == ()
    assert (1, dead) in checked.removed
    (verdict,) = margins(network, X[None], [label], budget=budget, options=OPTIONS)
    (bracket,) = [each for each in verdict.classes if each.target == checked.target]
    assert checked.margin == pytest.approx(bracket.upper, abs=1e-4)


def test_bad_points_do_not_check(network: Network, tmp_path: Path) -> None:
    path, out = tmp_path / "q.mps", tmp_path / "q.sol"
    exported(network, path, 0.2)
    with_highs(path, out)
    lines = out.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("# Columns")) + 1

    def changed(edit: Callable[[list[str]], None]) -> tuple[str, ...]:
        copy = list(lines)
        edit(copy)
        out.write_text("\n".join(copy) + "\n")
        return import_solution(path, out).problems

    def objective(copy: list[str]) -> None:
        i = next(i for i, line in enumerate(copy) if line.startswith("Objective"))
        copy[i] = "Objective -1234.5"

    def point(copy: list[str]) -> None:
        count = int(copy[start - 1].split()[2])
        for i in range(start, start + count):
            name, value = copy[i].split()
            if name.startswith("y"):
                copy[i] = f"{name} {float(value) + 0.5!r}"

    assert changed(lambda _: None) == ()
    assert any("states the objective" in each for each in changed(objective))
    assert any("violates the program" in each for each in changed(point))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with 'nothing'"),
        ("<?xml version='1.0'?>\n<solution/>", "needed: a solution as HiGHS"),
        ("x 1\ny 2\n", "begins with 'x 1'"),
        ("# Objective value = 1\nnot.0 1\n", "has a column 'not.0'"),
        ("# Objective value = 1\n", "lacks column"),
        ("# Objective value = 1\nx one two\n", "of Gurobi"),
        ("Infeasible - objective value 0.0\n", "it says 'Infeasible"),
        ("solution status: infeasible\nno solution available\n", "it holds no point"),
        ("Model status\nInfeasible\n\n# Primal solution values\nNone\n", "the point is 'none'"),
        ("c Status: INTEGER EMPTY\ns mip 3 4 n 0\ne o f\n", "no integer point"),
    ],
)
def test_unknown_and_empty_files_are_refused(
    network: Network, tmp_path: Path, text: str, message: str
) -> None:
    path, out = tmp_path / "q.mps", tmp_path / "q.sol"
    exported(network, path, 0.0)
    out.write_text(text)
    with pytest.raises(DataError) as caught:
        import_solution(path, out)
    assert message in str(caught.value)
    with pytest.raises(DataError, match="No such file"):
        import_solution(path, tmp_path / "missing.sol")


def test_the_files_have_to_belong_together(network: Network, tmp_path: Path) -> None:
    path, out = tmp_path / "q.mps", tmp_path / "q.sol"
    with pytest.raises(DataError, match="is not there"):
        import_solution(path, out)
    exported(network, path, 0.0)
    with_highs(path, out)
    other = random_network(tmp_path / "other.onnx", [3, 6, 5, 3], seed=5)
    with pytest.raises(DataError, match="has sha256"):
        import_solution(path, out, other.path)
    meaning = json.loads(path.with_suffix(".json").read_text())
    assert meaning["index"] == 7
    path.write_text(path.read_text().replace("RHS\n", "RHS\n\n", 1))
    with pytest.raises(DataError, match="is not the program"):
        import_solution(path, out)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(DataError, match="is not what milpver"):
        import_solution(path, out)
