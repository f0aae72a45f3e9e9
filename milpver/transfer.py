"""Queries for other solvers: a program and its meaning go out as files, a solution comes back and is checked.

``export_query`` writes the program of one input and one competing class (MPS or LP) and, beside it, a JSON
file with the query and the meaning of columns. ``import_solution`` reads both with a solution file, and
believes nothing of the latter: feasibility, objective and the witness in the real network are computed anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver import __version__, registry
from milpver.bounding import margin_rows
from milpver.encoder import encode
from milpver.errors import DataError, QueryError
from milpver.exchange import FORMATS, column_names, write_program
from milpver.graph import Gate
from milpver.linear import Float
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.program import Program
from milpver.query import (
    Budget,
    Domain,
    Options,
    ball,
    check_inputs,
    forced_pairs,
    parse_budget,
    removed_pairs,
)
from milpver.replay import Replay
from milpver.solution_file import read_solution
from milpver.witness import RejectedWitnessError, check_float32, evaluate

__all__ = ["ACCURACY", "Checked", "Export", "export_query", "import_solution"]

#: How far a solution may be off, over the size of what is added up: files hold 6 to 17 digits.
ACCURACY = 1e-5
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    Attributes:
        program, meaning: the two files.
        columns, integers, rows: size of the program.
        label, target: its objective is ``f_label - f_target``.
        lower: the lower bound of that margin that propagation gives.
    """

    program: Path
    meaning: Path
    columns: int
    integers: int
    rows: int
    label: int
    target: int
    lower: float


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """What a solution file amounts to.

    Attributes:
        source: whose format it has.
        stated: the objective that the file states, or None.
        objective: the objective of its point.
        violation: largest violation of the program, over the size of what is added up.
        label, target: the classes.
        margin: ``f_label - f_target`` of the replayed witness, float64 by the IR.
        margin_float32: the same in float32 by ONNX Runtime.
        removed: its mask as (layer from 1, neuron from 0) pairs.
        problems: what does not hold, one line each; () where all checks.
    """

    source: str
    stated: float | None
    objective: float
    violation: float
    label: int
    target: int
    margin: float
    margin_float32: float
    removed: tuple[tuple[int | str, int], ...]
    problems: tuple[str, ...]


def export_query(
    network: Network,
    x: NDArray[np.float32],
    label: int,
    path: Path,
    *,
    index: int = 0,
    budget: Budget,
    radius: float = 0.0,
    domain: Domain | None = None,
    target: int | None = None,
    options: Options | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Export:
    """Write the program ``min f_label - f_target`` over a ball and all admissible masks.

    Args:
        network: the classifier.
        x: float32 [inputs].
        label: its class.
        path: ``.mps`` or ``.lp``; the JSON file has the same name.
        index: the input's position in its data file.
        budget: the admissible masks.
        radius: of the L-inf ball, clipped to the domain.
        domain: limits of the inputs.
        target: the competing class; None for the one with the smallest lower bound.
        options: encoding, bounds and device.
        mean, std: the network's normalisation as it was given.

    Raises:
        QueryError: a class, a radius or a file name that makes no sense, or a file that cannot be written.
    """
    options = options or Options()
    if path.suffix.casefold() not in FORMATS:
        raise QueryError(
            f"{path}: the suffix {path.suffix!r}",
            needed=" or ".join(FORMATS),
            fix=f"write to {path.with_suffix('.mps').name}",
        )
    if not (math.isfinite(radius) and radius >= 0):
        raise QueryError(f"--radius {radius}", needed="a finite number >= 0", fix="correct --radius")
    check_inputs(network, x[None], (label,), domain)
    graph = network.graph
    targets = [j for j in range(graph.outputs) if j != label]
    if target is not None and target not in targets:
        raise QueryError(
            f"--target {target} for an input of class {label}",
            needed=f"another class from 0 to {graph.outputs - 1}",
            fix="correct --target",
        )
    box = ball(x.astype(np.float64), radius, domain)
    rows = margin_rows((label,), graph.outputs)
    bounds = registry.load("bounds", options.bounds).bound(
        graph, box.lower[None], box.upper[None], budget, rows, options.device
    )
    k = int(bounds.rows_lower[0].argmin()) if target is None else targets.index(target)
    encoded = encode(graph, box, budget, bounds, registry.load("encodings", options.encoding))
    program = encoded.program(rows[0][k])
    write_program(program, path)
    names = column_names(program)
    meaning = {
        "schema_version": _SCHEMA,
        "milpver": __version__,
        "program_sha256": _sha256(path),
        "model": str(network.path.resolve()),
        "model_sha256": network.sha256,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "index": index,
        "label": label,
        "target": targets[k],
        "budget": budget.shown,
        "channels": bool(network.conv_layers),
        "keep": forced_pairs(network, budget.kept),
        "remove": forced_pairs(network, budget.gone),
        "radius": radius,
        "domain": None if domain is None else [np.asarray(limit).tolist() for limit in domain],
        "encoding": options.encoding,
        "bounds": options.bounds,
        "lower": float(bounds.rows_lower[0, k]),
        "x": [float(value) for value in x],
        "columns": len(names),
        "input_columns": None if encoded.input is None else [names[j] for j in encoded.input],
        "gates": [
            {
                "node": node,
                "removed_is_one": gate.removed_is_one,
                "columns": [None if j < 0 else names[j] for j in gate.column.tolist()],
            }
            for node, gate in encoded.gates.items()
        ],
    }
    beside = path.with_suffix(".json")
    try:
        beside.write_text(json.dumps(meaning) + "\n", encoding="utf-8")
    except OSError as error:
        raise QueryError(
            f"{beside}: {error.strerror or error}",
            needed="a file that can be written",
            fix="check the folder and its permissions",
        ) from error
    integers = int(program.integer.sum())
    return Export(
        path,
        beside,
        program.columns,
        integers,
        program.rows,
        label,
        targets[k],
        float(meaning["lower"]),  # type: ignore[arg-type]  # a float above
    )


def import_solution(path: Path, solution: Path, model: Path | None = None) -> Checked:
    """Check a solution of an exported program.

    Args:
        path: the program as it was exported, its JSON file beside it.
        solution: what a solver wrote; see ``milpver.solution_file`` for the formats.
        model: the network, where it is no longer where it was.

    Raises:
        DataError: a file that is missing, unreadable, of an unknown format, or of another program.
        ModelError: the network cannot be read.
    """
    meaning = _meaning(path)
    program, names = _read_program(path)
    found = read_solution(solution, names, in_order=path.suffix.casefold() == ".mps")
    values = found.values
    point = np.array([values[name] for name in names])
    network = _network(meaning, model)
    x = np.array(meaning["x"], dtype=np.float32).astype(np.float64)
    domain = None if meaning["domain"] is None else _domain(meaning["domain"])
    box = ball(x, float(meaning["radius"]), domain)
    budget = parse_budget(meaning["budget"], network, keep=meaning.get("keep"), remove=meaning.get("remove"))
    label, target = int(meaning["label"]), int(meaning["target"])
    if meaning["input_columns"] is not None:
        x = box.clip(np.array([values[name] for name in meaning["input_columns"]]))
    removed = _removed(meaning, network, budget, values)
    objective = program.value(point)
    size = max(1.0, float(np.abs(program.objective) @ np.abs(point)))
    problems = []
    violation = _violation(program, point)
    if not violation <= ACCURACY:
        problems.append(f"the point violates the program by {violation:.3g}")
    if found.objective is not None and not abs(found.objective - objective) <= ACCURACY * size:
        problems.append(f"the file states the objective {found.objective:.9g}, its point has {objective:.9g}")
    try:
        witness = evaluate(network.graph, box, budget, x, removed)
    except RejectedWitnessError as error:
        raise DataError(
            f"{solution}: {error}", needed="a point of the exported query", fix="solve the program again"
        ) from error
    margin = float(witness.logits[label] - witness.logits[target])
    scale = max(1.0, float(np.abs(witness.logits).max()))
    if not abs(margin - objective) <= ACCURACY * max(scale, size):
        problems.append(f"the network's margin there is {margin:.9g}, the point's objective {objective:.9g}")
    check = check_float32(network, Replay(network), box, witness)
    return Checked(
        source=found.source,
        stated=found.objective,
        objective=objective,
        violation=violation,
        label=label,
        target=target,
        margin=margin,
        margin_float32=check.margin(label, target),
        removed=removed_pairs(network, removed),
        problems=tuple(problems),
    )


def _violation(program: Program, x: Float) -> float:
    """Largest violation at a point, rows over the size of what they add up."""
    if not np.isfinite(x).all():
        return math.inf
    activity = program.matrix @ x
    size = np.maximum(1.0, abs(program.matrix) @ np.abs(x))
    rows = np.maximum(program.row_lower - activity, activity - program.row_upper) / size
    columns = np.maximum(program.lower - x, x - program.upper) / np.maximum(1.0, np.abs(x))
    fractional = np.abs(x - np.round(x))[program.integer]
    return max(float(part.max(initial=0.0)) for part in (rows, columns, fractional))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _meaning(path: Path) -> dict[str, Any]:
    """The JSON file beside a program, checked to be about it."""
    beside = path.with_suffix(".json")
    for each in (path, beside):
        if not each.is_file():
            raise DataError(
                f"{each} is not there",
                needed="a program that milpver exported, with its .json beside it",
                fix="write both with `milpver export`",
            )
    try:
        meaning: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        known = isinstance(meaning, dict) and meaning["schema_version"] == _SCHEMA
    except (OSError, ValueError, KeyError):
        known = False
    if not known or _KEYS - meaning.keys():
        raise DataError(
            f"{beside} is not what milpver {__version__} writes",
            needed="the .json file of an export",
            fix="write it again with `milpver export`",
        )
    if meaning["program_sha256"] != _sha256(path):
        raise DataError(
            f"{path} is not the program that {beside.name} is about",
            needed="the two files of one export, unchanged",
            fix="export the query again",
        )
    return meaning


_KEYS = {
    *("program_sha256", "model", "model_sha256", "mean", "std", "label", "target", "budget", "radius"),
    *("domain", "x", "columns", "input_columns", "gates"),
}


def _domain(limits: Sequence[Any]) -> Domain:
    """Limits as JSON has them: numbers or lists."""
    low, high = (np.array(limit) if isinstance(limit, list) else float(limit) for limit in limits)
    return low, high


def _network(meaning: dict[str, Any], model: Path | None) -> Network:
    """The network of an export, checked to be the same file."""
    path = Path(meaning["model"]) if model is None else model
    if model is None and not path.is_file():
        raise DataError(
            f"the network {path}, of which this program was exported, is not there",
            needed="the same file",
            fix="name it with --model",
        )
    network = load_network(path, channels=bool(meaning.get("channels")))
    if network.sha256 != meaning["model_sha256"]:
        raise DataError(
            f"{network.path} has sha256 {network.sha256[:12]}...",
            needed=f"the exported network, sha256 {meaning['model_sha256'][:12]}...",
            fix="name it with --model",
        )
    mean, std = meaning["mean"], meaning["std"]
    if mean is None and std is None:
        return network
    return network.normalised(tuple(mean or (0.0,)), tuple(std or (1.0,)))


def _removed(
    meaning: dict[str, Any], network: Network, budget: Budget, values: dict[str, float]
) -> dict[int, NDArray[np.bool_]]:
    """The mask at a point: Gate node -> bool [gates]; a gate without a column goes where it is forced to."""
    masks: dict[int, NDArray[np.bool_]] = {}
    for gate in meaning["gates"]:
        node = network.graph.nodes[int(gate["node"])]
        if not isinstance(node, Gate) or node.gates != len(gate["columns"]):
            raise DataError(
                f"node {gate['node']} of {network.path} has no {len(gate['columns'])} gates",
                needed="the network as this version of milpver read it",
                fix="export the query again",
            )
        ones = np.array([name is not None and values[name] > 0.5 for name in gate["columns"]])
        used = np.array([name is not None for name in gate["columns"]])
        gone = budget.forced(int(gate["node"]), node.gates)[1]
        masks[int(gate["node"])] = np.where(used, ones == bool(gate["removed_is_one"]), gone)
    return masks


def _read_program(path: Path) -> tuple[Program, list[str]]:
    """A program from its file, by HiGHS, and its column names."""
    import highspy  # noqa: PLC0415 - 0.1 s, only here

    solver = highspy._core._Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("small_matrix_value", 1e-12)
    read = solver.readModel(str(path))
    if read == highspy.HighsStatus.kError or (solver.getNumCol() and not solver.getLp().col_names_):
        raise DataError(f"{path} cannot be read", needed="a program as exported", fix="export it again")
    lp = solver.getLp()
    columns, rows = lp.num_col_, lp.num_row_
    parts = lp.a_matrix_
    entries = (np.array(parts.value_), np.array(parts.index_), np.array(parts.start_))
    column_wise = parts.format_ == highspy.MatrixFormat.kColwise
    shaped = sparse.csc_array if column_wise else sparse.csr_array
    integer = np.array(
        [kind == highspy.HighsVarType.kInteger for kind in lp.integrality_] or [False] * columns
    )
    program = Program(
        objective=np.array(lp.col_cost_),
        offset=float(lp.offset_),
        lower=np.array(lp.col_lower_),
        upper=np.array(lp.col_upper_),
        integer=integer,
        matrix=sparse.csr_array(shaped(entries, shape=(rows, columns))),
        row_lower=np.array(lp.row_lower_),
        row_upper=np.array(lp.row_upper_),
    )
    return program, list(lp.col_names_)
