"""``milpver import-solution``: checks what another solver says about an exported program."""

from __future__ import annotations

import sys
from argparse import Namespace
from itertools import groupby
from pathlib import Path

from milpver.cli.table import Column, print_table
from milpver.errors import DataError
from milpver.transfer import Checked, import_solution

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Check a solution: feasibility, objective, and its witness in the real network."""
    model = None if arguments.model is None else Path(arguments.model)
    checked = import_solution(Path(arguments.program), Path(arguments.solution), model)
    print_table((Column("what", right=False), Column("value", right=False)), _rows(checked), sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()
    if checked.problems:
        raise DataError(
            f"{arguments.solution} does not check: {'; '.join(checked.problems)}",
            needed="a feasible point whose objective and witness hold",
            fix="solve the program with tighter tolerances, or with another solver",
        )
    sys.stdout.write(f"{_verdict(checked)}\n")
    return 0


def _rows(checked: Checked) -> list[tuple[str, str]]:
    layers = groupby(checked.removed, key=lambda pair: pair[0])
    removed = " ".join(f"{layer}:{','.join(str(neuron) for _, neuron in found)}" for layer, found in layers)
    return [
        ("format", checked.source),
        ("objective, as stated", "not stated" if checked.stated is None else f"{checked.stated:.9g}"),
        ("objective of the point", f"{checked.objective:.9g}"),
        ("violation", f"{checked.violation:.3g}"),
        (f"f_{checked.label} - f_{checked.target}, replayed in float64", f"{checked.margin:.9g}"),
        (f"f_{checked.label} - f_{checked.target}, ONNX Runtime", f"{checked.margin_float32:.9g}"),
        ("neurons removed", removed or "-"),
    ]


def _verdict(checked: Checked) -> str:
    """What the witness shows; a solution file says nothing of bounds, so never robust."""
    if checked.margin <= 0 and checked.margin_float32 <= 0:
        return f"checks: vulnerable, class {checked.target} reaches class {checked.label}"
    most = f"checks: the worst margin is at most {checked.margin:.9g}"
    return f"{most}; a point does not prove that it is the worst"
