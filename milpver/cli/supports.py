"""``milpver supports``: what queries and networks are taken, as VNN-LIB 2.0 asks every solver to say."""

from __future__ import annotations

import sys
from argparse import Namespace

__all__ = ["run"]

#: Answers that do not depend on what is installed, line by line.
_FIXED = {
    "onnx_element_types": (
        "real",
        "float32 * unsat is proven in exact arithmetic, sat by a float32 run",
    ),
    "vnnlib_versions": ("1.0", "2.0"),
    "hidden_node_theories": ("NH", "H"),
    "multiple_input_output_theories": ("SIO", "MIO"),
    "multiple_network_theories": ("SNET", "MENET", "MINET", "MNET"),
    "multiple_node_comparison_theories": ("SNC", "MNC"),
    "arithmetic_complexity_theories": (
        "BND * every input needs a lower and an upper bound, or to be set equal to an input that has them, "
        "or to an output of a network declared before",
        "OUTC",
        "LIN",
    ),
    "optimised_disjunctive_reasoning": ("true",),
    "serialise_assignments": ("false",),
    "unsat_proofs": ("false",),
}


def run(arguments: Namespace) -> int:
    """Print the answers to the capabilities asked for; all of them, under their names, where none is."""
    asked = [
        name for name, value in vars(arguments).items() if value is True and (name in _FIXED or name in _OWN)
    ]
    for name in asked or (*_OWN, *_FIXED):
        lines = _OWN[name]() if name in _OWN else _FIXED[name]
        if not asked:
            sys.stdout.write(f"{name.replace('_', '-')}:\n")
        sys.stdout.write("".join(f"{line}\n" if asked else f"  {line}\n" for line in lines))
    return 0


def _opsets() -> tuple[str, ...]:
    """The oldest and the newest operator set."""
    import onnx  # noqa: PLC0415  only for this answer

    from milpver.onnx_file import OLDEST_OPSET  # noqa: PLC0415  as above

    return str(OLDEST_OPSET), str(onnx.defs.onnx_opset_version())


def _operators() -> tuple[str, ...]:
    """The operators that are lowered."""
    from milpver.onnx_import import lowerings  # noqa: PLC0415  only for this answer

    return tuple(sorted(lowerings()))


_OWN = {"onnx_opset_versions": _opsets, "onnx_operators": _operators}
