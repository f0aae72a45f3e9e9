"""Time to build the program of a point query on a 784-128-64-32-10 network, and to hand it to each solver.

    python bench/build.py [--repeat 20]

Random weights and input: sizes, not answers, are what counts here. "Handing over" is what a backend does
before its search begins: conditioning, arrays or objects, files for CBC and GLPK. For the solvers that
Pyomo drives the same with Pyomo in between: the difference is Pyomo's share.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from milpver import registry
from milpver.bounding import margin_rows
from milpver.encoder import encode
from milpver.exchange import lp_text
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.program import Program
from milpver.query import Budget, ball, parse_budget
from milpver.solver import Limits
from milpver.solvers import gurobi, highs, pyomo, scip
from milpver.solvers._common import Watch, conditioned, sound
from milpver.solvers._pyomo_models import highs_class, pyomo_model, timer
from milpver.solvers._pyomo_processes import with_a_row

WIDTHS = (784, 128, 64, 32, 10)
BUDGETS = {"one gated layer": (6, 0, 0), "three gated layers": (6, 3, 3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of medians, in milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=20, help="runs of each; the median is printed (20)")
    repeat = parser.parse_args(argv).repeat
    with TemporaryDirectory() as folder:
        network = random_network(Path(folder, "net.onnx"))
    for encoding in ("reference", "fused"):
        for name, counts in BUDGETS.items():
            report(network, encoding, name, parse_budget(list(counts), network), repeat)
    return 0


def random_network(path: Path) -> Network:
    """A dense ReLU network with random weights."""
    rng = np.random.default_rng(0)
    nodes, initializers, current = [], [], "x"
    for i, (a, b) in enumerate(pairwise(WIDTHS)):
        last = i == len(WIDTHS) - 2
        weight, bias = rng.normal(size=(b, a)) / np.sqrt(a), 0.1 * rng.normal(size=b)
        initializers += [
            numpy_helper.from_array(weight.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(bias.astype(np.float32), f"b{i}"),
        ]
        out = "y" if last else f"z{i}"
        nodes.append(helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], [out], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"h{i}"]))
            current = f"h{i}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in (("x", WIDTHS[0]), ("y", WIDTHS[-1]))
    ]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return load_network(path)


def report(network: Network, encoding: str, name: str, budget: Budget, repeat: int) -> None:
    """One block of the table."""
    graph = network.graph
    x = np.random.default_rng(1).random(WIDTHS[0])
    box = ball(x, 0.0, (0.0, 1.0))
    label = int(graph.evaluate(x[None])[0].argmax())
    rows = margin_rows((label,), graph.outputs)
    bounding = registry.load("bounds", "interval" if encoding == "reference" else "crown")
    bounds = bounding.bound(graph, box.lower[None], box.upper[None], budget, rows, "cpu")
    rules = registry.load("encodings", encoding)

    def build() -> Program:
        return encode(graph, box, budget, bounds, rules).program(rows[0][0])

    program = build()
    sys.stdout.write(
        f"{encoding}, {name}: {program.columns} columns ({int(program.integer.sum())} integer), "
        f"{program.rows} rows, {program.matrix.nnz} entries\n"
    )
    times = {"build": median(build, repeat)}
    for solver, work in handovers(program).items():
        if registry.load("solvers", solver).availability().available:
            times[f"hand over to {solver}"] = median(work, repeat)
    for what, seconds in times.items():
        sys.stdout.write(f"  {what:<28} {1e3 * seconds:8.2f} ms\n")


def median(work: Callable[[], object], repeat: int) -> float:
    """Median seconds of a call, after one that does not count."""
    work()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def handovers(program: Program) -> dict[str, Callable[[], object]]:
    """What each backend does with a program before it searches."""

    def easier(smallest: float) -> Program:
        return conditioned(sound(program), smallest).program

    def to_highs() -> Any:
        solver = highs._new(highs._highspy(), {"output_flag": False})
        return highs._pass(solver, easier(highs.SMALLEST_ENTRY))

    def to_gurobi() -> None:
        gurobipy = gurobi._gurobipy()
        gurobi._build(gurobipy, gurobipy.Model(env=environment()), easier(gurobi.SMALLEST_ENTRY))

    kept: list[Any] = []

    def environment() -> Any:
        if not kept:  # checking out the licence is not part of handing over
            kept.append(gurobi._gurobipy().Env(params={"OutputFlag": 0}))
        return kept[0]

    def to_scip() -> None:
        model = scip._model(scip._pyscipopt())
        scip._build(model, easier(scip.SMALLEST_ENTRY))
        model.free()

    def to_pyomo_highs() -> None:
        model, _ = pyomo_model(easier(pyomo.SMALLEST_ENTRY))
        highs_class(Watch(Limits())).fill(model)

    def to_pyomo_scip() -> None:
        from pyomo.contrib.solver.solvers.scip.scip_direct import ScipDirect  # noqa: PLC0415 - an extra

        model, _ = pyomo_model(easier(pyomo.SMALLEST_ENTRY))
        driver = ScipDirect()
        config = driver.config(value={}, preserve_implicit=True)
        config.timer = timer()
        driver._create_solver_model(model, config)[0].free()

    def to_file() -> str:
        return lp_text(*with_a_row(easier(pyomo.SMALLEST_ENTRY)))

    return {
        "highs": to_highs,
        "gurobi": to_gurobi,
        "scip": to_scip,
        "pyomo:highs": to_pyomo_highs,
        "pyomo:scip": to_pyomo_scip,
        "pyomo:cbc": to_file,
        "pyomo:glpk": to_file,
    }


if __name__ == "__main__":
    raise SystemExit(main())
