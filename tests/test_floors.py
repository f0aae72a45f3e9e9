"""The floors: a module imports from lower floors only, and the low ones load nothing heavy.

A new module gets a line in FLOORS. An import within one floor, but not within one sub-package, is an
exception that stands in SAME_FLOOR.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Module, or sub-package with everything in it -> floor. `milpver` itself is the public face.
FLOORS = {
    "milpver.errors": 0,
    "milpver.registry": 0,
    "milpver.graph": 1,
    "milpver.linear": 1,
    "milpver.machine": 1,
    "milpver.network": 1,
    "milpver.program": 1,
    "milpver.store": 1,
    "milpver.bounding": 2,
    "milpver.encoding": 2,
    "milpver.exchange": 2,
    "milpver.norm": 2,
    "milpver.op": 2,
    "milpver.property": 2,
    "milpver.query": 2,
    "milpver.rounding": 2,
    "milpver.solution_file": 2,
    "milpver.solver": 2,
    "milpver.verdict": 2,
    "milpver.bounds": 3,
    "milpver.cross_check": 3,
    "milpver.data": 3,
    "milpver.encodings": 3,
    "milpver.onnx_file": 3,
    "milpver.onnx_import": 3,
    "milpver.ops": 3,
    "milpver.perturbations": 3,
    "milpver.properties": 3,
    "milpver.property_file": 3,
    "milpver.solvers": 3,
    "milpver.attack": 4,
    "milpver.closed_form": 4,
    "milpver.deviation": 4,
    "milpver.encoder": 4,
    "milpver.joint": 4,
    "milpver.nearest": 4,
    "milpver.prune": 4,
    "milpver.replay": 4,
    "milpver.search": 4,
    "milpver.train": 4,
    "milpver.witness": 4,
    "milpver.batch_answers": 5,
    "milpver.chain_answers": 5,
    "milpver.closed_answers": 5,
    "milpver.distance": 5,
    "milpver.margin": 5,
    "milpver.fewest_removals": 5,
    "milpver.run": 5,
    "milpver.substitute": 5,
    "milpver.transfer": 5,
    "milpver.verify": 5,
    "milpver.counterexample": 5,
    "milpver": 6,
    "milpver.campaign": 6,
    "milpver.compare": 6,
    "milpver.demo": 6,
    "milpver.drawing": 6,
    "milpver.picture": 6,
    "milpver.report": 6,
    "milpver.__main__": 7,
    "milpver.cli": 7,
    "milpver.onnx_models": 7,  # the training script stands alone
}

#: (importer, imported) within one floor: what is built on what, and nothing the other way round.
SAME_FLOOR = {
    ("milpver.registry", "milpver.errors"),
    ("milpver.graph", "milpver.linear"),
    ("milpver.network", "milpver.graph"),
    ("milpver.network", "milpver.linear"),
    ("milpver.program", "milpver.linear"),
    ("milpver.bounding", "milpver.query"),
    ("milpver.encoding", "milpver.bounding"),
    ("milpver.encoding", "milpver.query"),
    ("milpver.onnx_import", "milpver.onnx_file"),
    ("milpver.onnx_import", "milpver.ops"),
    ("milpver.joint", "milpver.replay"),
    ("milpver.nearest", "milpver.encoder"),
    ("milpver.prune", "milpver.attack"),
    ("milpver.prune", "milpver.replay"),
    ("milpver.search", "milpver.attack"),
    ("milpver.witness", "milpver.replay"),
    ("milpver.batch_answers", "milpver.run"),
    ("milpver.chain_answers", "milpver.batch_answers"),
    ("milpver.closed_answers", "milpver.batch_answers"),
    ("milpver.distance", "milpver.run"),
    ("milpver.margin", "milpver.batch_answers"),
    ("milpver.margin", "milpver.chain_answers"),
    ("milpver.margin", "milpver.closed_answers"),
    ("milpver.margin", "milpver.run"),
    ("milpver.verify", "milpver.distance"),
    ("milpver.fewest_removals", "milpver.margin"),
    ("milpver.fewest_removals", "milpver.run"),
    ("milpver.verify", "milpver.margin"),
    ("milpver.verify", "milpver.fewest_removals"),
    ("milpver.campaign", "milpver.compare"),
    ("milpver.campaign", "milpver.drawing"),
    ("milpver.campaign", "milpver.picture"),
    ("milpver.campaign", "milpver.report"),
    ("milpver.demo", "milpver"),
    ("milpver.demo", "milpver.picture"),
    ("milpver.report", "milpver.compare"),
    ("milpver.report", "milpver.drawing"),
    ("milpver.__main__", "milpver.cli"),
}

#: Names that every floor may import from the public face.
FACTS = {"__version__"}

HEAVY = ("highspy", "matplotlib", "onnx", "onnxruntime", "rich", "torch")


def modules() -> dict[str, Path]:
    """Every module of the package under its import name."""
    trees = {"milpver": ROOT / "milpver"}
    trees |= {f"milpver.{name}": ROOT / name for name in ("encodings", "solvers", "onnx_models")}
    found = {}
    for package, tree in trees.items():
        for file in tree.rglob("*.py"):
            parts = list(file.relative_to(tree).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            found[".".join((package, *parts))] = file
    return found


MODULES = modules()


def place(module: str) -> str | None:
    """The entry of FLOORS that a module falls under: itself or its sub-package."""
    top = ".".join(module.split(".")[:2])
    return next((name for name in (module, top) if name in FLOORS), None)


def imports(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of all imports, those inside functions included; name "" for `import m`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, module, alias.name) for alias in node.names)


def complaint(module: str, imported: str) -> str | None:
    """Why one module may not import another; None where it may."""
    here, there = place(module), place(imported)
    if here is None or there is None:
        return "stands on no floor: give it a line in FLOORS"
    if FLOORS[here] > FLOORS[there]:
        return None
    if FLOORS[here] < FLOORS[there]:
        return f"floor {FLOORS[here]} imports from floor {FLOORS[there]}"
    if here == there or (here, there) in SAME_FLOOR:
        return None
    return f"both on floor {FLOORS[here]}, and not in SAME_FLOOR"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_come_from_lower_floors(module: str) -> None:
    assert place(module), f"{module} stands on no floor: give it a line in FLOORS"
    wrong = []
    for line, source, name in imports(MODULES[module]):
        if source.startswith("."):
            wrong.append(f"line {line}: relative import, which works under one of two names only")
        elif source.split(".")[0] == "milpver" and not (source == "milpver" and name in FACTS):
            imported = f"{source}.{name}" if f"{source}.{name}" in MODULES else source
            reason = complaint(module, imported)
            if reason:
                wrong.append(f"line {line}: imports {imported}: {reason}")
    assert wrong == []


def test_no_import_goes_by_the_folder_name() -> None:
    """`import solvers.x` would make a second copy of a module that runs as `milpver.solvers.x`."""
    wrong = [
        f"{module}: {source}"
        for module, file in MODULES.items()
        for _, source, _ in imports(file)
        if source.split(".")[0] in ("encodings", "solvers", "onnx_models")
    ]
    assert wrong == []


def test_exceptions_are_within_one_floor_and_go_one_way() -> None:
    assert all(FLOORS[here] == FLOORS[there] for here, there in SAME_FLOOR)
    order: list[str] = []
    waiting = {here for pair in SAME_FLOOR for here in pair}
    while waiting:
        free = {m for m in waiting if not any(a == m and b in waiting for a, b in SAME_FLOOR)}
        assert free, f"a cycle among {sorted(waiting)}"
        order += sorted(free)
        waiting -= free
    assert len(order) == len(set(order))


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("milpver.solvers.highs", "milpver.solver", True),
        ("milpver.solver", "milpver.solvers.highs", False),
        ("milpver.solvers.highs", "milpver.solvers.other", True),
        ("milpver.solvers.highs", "milpver.encodings.fused", False),
        ("milpver.linear", "milpver.graph", False),
        ("milpver.verify", "milpver.nowhere", False),
    ],
)
def test_the_rule_itself(module: str, imported: str, allowed: bool) -> None:
    assert (complaint(module, imported) is None) == allowed


def loaded(code: str, watched: tuple[str, ...]) -> list[str]:
    """Which of the watched packages a fresh interpreter has loaded after running some code."""
    report = f"import sys; print(*sorted({set(watched)!r} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.split()


def test_low_floors_load_nothing_heavy() -> None:
    low = sorted(m for m in MODULES if m != "milpver" and FLOORS[place(m) or m] <= 2)
    assert len(low) >= 10
    assert loaded("\n".join(f"import {module}" for module in low), HEAVY) == []


@pytest.mark.parametrize(
    ("arguments", "watched"),
    [
        (("--help",), (*HEAVY, "scipy")),
        (("--version",), (*HEAVY, "scipy")),
        (("margin", "--help"), (*HEAVY, "scipy")),
        (("info", "onnx_models/digits_fc.onnx"), ("highspy", "matplotlib", "onnxruntime", "torch")),
    ],
)
def test_quick_commands_load_nothing_heavy(arguments: tuple[str, ...], watched: tuple[str, ...]) -> None:
    """`--help` has half a second, `info` one and a half; torch alone takes longer than that."""
    run = (
        "import runpy, sys\n"
        f"sys.argv = ['milpver', *{arguments!r}]\n"
        "try:\n    runpy.run_module('milpver', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded(run, watched) == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import milpver", (*HEAVY, "scipy", "numpy")) == []
