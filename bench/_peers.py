"""One instance by another verifier, if it is installed: run as a process of its own by ``bench/vnncomp.py``.

    python -m bench._peers NAME MODEL.onnx PROPERTY.vnnlib TIMEOUT

The first line of stdout is the answer: sat, unsat, unknown, timeout or error. nnenum and alpha-beta-CROWN
read the property themselves; Marabou and OMLT get each region and alternative of it from our reader.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from milpver.graph import Affine, Gate, Graph, Relu
from milpver.onnx_import import load_network
from milpver.property import Alternative, Property, Region
from milpver.property_file import load_property, read_text

__all__ = ["NAMES", "missing"]

NAMES = ("nnenum", "marabou", "abcrown", "omlt")

#: Environment variable with alpha-beta-CROWN's script, which is no package.
ABCROWN = "ABCROWN"

_PACKAGES = {"nnenum": ("nnenum",), "marabou": ("maraboupy",), "omlt": ("omlt", "pyomo")}
_WORDS = {
    "holds": "unsat",
    "unsat": "unsat",
    "verified": "unsat",
    "violated": "sat",
    "sat": "sat",
    "falsified": "sat",
    "timeout": "timeout",
}


def missing(name: str) -> str:
    """Why a verifier cannot be run, in a few words; "" where it can."""
    if name == "abcrown":
        script = os.environ.get(ABCROWN, "")
        return "" if Path(script).is_file() else f"not installed ({ABCROWN} names no abcrown.py)"
    absent = [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]
    return f"not installed ({', '.join(absent)})" if absent else ""


def _by_command(command: list[str], result: Path, timeout: float) -> str:
    """Run a verifier that leaves its answer in a file."""
    try:
        subprocess.run(command, check=False, stdout=sys.stderr, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "timeout"
    words = result.read_text(encoding="utf-8").split() if result.exists() else []
    return _WORDS.get(words[0].lower().rstrip(",:"), "unknown") if words else "error"


def _nnenum(model: Path, prop: Path, timeout: float, folder: Path) -> str:
    result = folder / "result.txt"
    words = [sys.executable, "-m", "nnenum.nnenum", str(model), str(prop), str(timeout), str(result)]
    return _by_command(words, result, timeout)


def _abcrown(model: Path, prop: Path, timeout: float, folder: Path) -> str:
    script, result = Path(os.environ[ABCROWN]), folder / "result.txt"
    words = [sys.executable, str(script), "--onnx_path", str(model), "--vnnlib_path", str(prop)]
    words += ["--results_file", str(result), "--timeout", str(timeout), "--device", "cpu"]
    return _by_command(words, result, timeout)


def _each(prop: Property, ask: Callable[[Region, Alternative], str]) -> str:
    """The answer to a property from those to its alternatives."""
    found = []
    for region in prop.regions:
        for alternative in region.alternatives:
            found.append(ask(region, alternative))
            if found[-1] == "sat":
                return "sat"
    return next((word for word in ("error", "timeout", "unknown") if word in found), "unsat")


def _marabou(model: Path, prop: Path, timeout: float, folder: Path) -> str:
    from maraboupy import Marabou  # noqa: PLC0415  only where it is installed

    del folder
    options = Marabou.createOptions(timeoutInSeconds=int(timeout), verbosity=0)

    def ask(region: Region, alternative: Alternative) -> str:
        network = Marabou.read_onnx(str(model))
        inputs = np.concatenate([np.asarray(part).reshape(-1) for part in network.inputVars])
        outputs = np.concatenate([np.asarray(part).reshape(-1) for part in network.outputVars])
        for variable, low, high in zip(inputs.tolist(), region.lower, region.upper, strict=True):
            network.setLowerBound(variable, float(low))
            network.setUpperBound(variable, float(high))
        for row, limit in zip(alternative.rows, alternative.limits, strict=True):
            used = np.flatnonzero(row)
            network.addInequality(outputs[used].tolist(), row[used].tolist(), float(limit))
        answer = network.solve(verbose=False, options=options)[0]
        return _WORDS.get(str(answer).lower(), "unknown")

    return _each(load_property(prop), ask)


def _omlt(model: Path, prop: Path, timeout: float, folder: Path) -> str:
    import pyomo.environ as pyo  # noqa: PLC0415  only where it is asked for
    from omlt import OmltBlock  # noqa: PLC0415  only where it is installed
    from omlt.neuralnet import FullSpaceNNFormulation  # noqa: PLC0415  as above

    del folder
    graph = load_network(model).graph

    def ask(region: Region, alternative: Alternative) -> str:
        program: Any = pyo.ConcreteModel()
        program.net = OmltBlock()
        program.net.build_formulation(FullSpaceNNFormulation(_omlt_network(graph, region)))
        outputs = [program.net.outputs[key] for key in program.net.outputs]
        program.rows = pyo.ConstraintList()
        for row, limit in zip(alternative.rows, alternative.limits, strict=True):
            program.rows.add(sum(float(a) * outputs[k] for k, a in enumerate(row) if a) <= float(limit))
        program.goal = pyo.Objective(expr=0)
        solver = pyo.SolverFactory("appsi_highs")
        solver.options["time_limit"] = timeout
        word = str(solver.solve(program, load_solutions=False).solver.termination_condition)
        return {"infeasible": "unsat", "optimal": "sat", "maxTimeLimit": "timeout"}.get(word, "unknown")

    return _each(load_property(prop), ask)


def _omlt_network(graph: Graph, region: Region) -> Any:
    """A chain of dense layers as OMLT has them: its own importer knows few operators."""
    from omlt.neuralnet import NetworkDefinition  # noqa: PLC0415  only where it is installed
    from omlt.neuralnet.layer import DenseLayer, InputLayer  # noqa: PLC0415  as above

    bounds = {
        k: (float(a), float(b)) for k, (a, b) in enumerate(zip(region.lower, region.upper, strict=True))
    }
    made = NetworkDefinition(scaling_object=None, scaled_input_bounds=bounds)
    before = InputLayer([graph.inputs])
    made.add_layer(before)
    for index, node in enumerate(graph.nodes[1:], start=1):
        match node:
            case Affine(terms=((source, linear),), bias=bias) if source == index - 1:
                rectified = index + 1 < len(graph.nodes) and isinstance(graph.nodes[index + 1], Relu)
                layer = DenseLayer(
                    [linear.inputs],
                    [linear.outputs],
                    activation="relu" if rectified else "linear",
                    weights=linear.csr.toarray().T,
                    biases=np.asarray(bias),
                )
                made.add_layer(layer)
                made.add_edge(before, layer)
                before = layer
            case Relu(source=source) if source == index - 1 and isinstance(graph.nodes[source], Affine):
                pass
            case Gate(source=source) if source == index - 1:
                pass
            case _:
                raise ValueError(f"node {node.name} is no layer of a chain")
    return made


_ASK: dict[str, Callable[[Path, Path, float, Path], str]] = {
    "nnenum": _nnenum,
    "marabou": _marabou,
    "abcrown": _abcrown,
    "omlt": _omlt,
}


def main(words: list[str]) -> int:
    """Answer one instance."""
    name, model, prop, timeout = words
    answers = os.dup(1)  # solvers print where they like: everything but the answer goes to stderr
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "property.vnnlib"  # not everyone reads packed files
        plain.write_text(read_text(Path(prop)), encoding="utf-8")
        try:
            answer = _ASK[name](Path(model), plain, float(timeout), Path(folder))
        except Exception as error:
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
            answer = "error"
    sys.stdout.flush()
    os.write(answers, f"{answer}\n".encode("ascii"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
