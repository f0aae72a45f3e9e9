"""``milpver --version``: of milpver, and with ``--json`` of what it stands on, importing none of it."""

from __future__ import annotations

import json
import platform
import sys
from argparse import Namespace
from importlib import metadata

from milpver import __version__

__all__ = ["run"]

#: What results can depend on.
PACKAGES = ("highspy", "matplotlib", "numpy", "onnx", "onnxruntime", "rich", "scipy", "torch")


def run(arguments: Namespace) -> int:
    """Print the version."""
    if arguments.version_json:
        found: dict[str, str | None] = {"milpver": __version__, "python": platform.python_version()}
        found |= {name: _version(name) for name in PACKAGES}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(f"milpver {__version__}\n")
    return 0


def _version(package: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
