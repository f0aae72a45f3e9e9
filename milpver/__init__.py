"""Exact verification of neural networks against pruning and perturbation.

``load`` a network, then ask for its ``worst_margin`` or ``boundary_distance``; each answer is a ``Verdict``.
Names are imported when first used, so that ``import milpver`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milpver.counterexample import verify_property as verify_property
    from milpver.errors import MilpverError as MilpverError
    from milpver.joint import load_networks as load_networks
    from milpver.network import Network as Network
    from milpver.onnx_import import load_network as load
    from milpver.property_file import load_property as load_property
    from milpver.verdict import Verdict as Verdict
    from milpver.verify import boundary_distance as boundary_distance
    from milpver.verify import pruning_distance as pruning_distance
    from milpver.verify import worst_margin as worst_margin

__version__ = "0.1.0"

__all__ = [
    "MilpverError",
    "Network",
    "Verdict",
    "__version__",
    "boundary_distance",
    "load",
    "load_networks",
    "load_property",
    "pruning_distance",
    "verify_property",
    "worst_margin",
]

_HOMES = {
    "MilpverError": ("milpver.errors", "MilpverError"),
    "Network": ("milpver.network", "Network"),
    "Verdict": ("milpver.verdict", "Verdict"),
    "boundary_distance": ("milpver.verify", "boundary_distance"),
    "load": ("milpver.onnx_import", "load_network"),
    "load_networks": ("milpver.joint", "load_networks"),
    "load_property": ("milpver.property_file", "load_property"),
    "pruning_distance": ("milpver.verify", "pruning_distance"),
    "verify_property": ("milpver.counterexample", "verify_property"),
    "worst_margin": ("milpver.verify", "worst_margin"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
