"""``milpver solvers``: what ``--solver`` takes: backends, whether they can run here, and the native search.

It never fails.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Print the backends."""
    found = list(backends())
    if arguments.json:
        text = json.dumps({"solvers": found})
    else:
        none = [] if any(each["kind"] == "milp" for each in found) else ["no MILP solver is installed"]
        text = "\n".join([*none, *_lines(found)])
    sys.stdout.write(f"{text}\n")
    return 0


def backends() -> Iterator[dict[str, Any]]:
    """Every name that ``--solver`` takes: name, kind, available, version, reason, limits."""
    from milpver import __version__, registry  # noqa: PLC0415  what only this command needs
    from milpver.query import NATIVE  # noqa: PLC0415  as above

    for name in registry.names("solvers"):
        try:
            variants = registry.variants("solvers", name)
        except Exception as error:  # a broken plug-in must not hide the others
            yield _broken(name, error)
            continue
        for variant in variants:
            try:
                availability = registry.load("solvers", variant).availability()
                yield {"name": variant, "kind": "milp"} | asdict(availability)
            except Exception as error:  # as above
                yield _broken(variant, error)
    for name, fallback in NATIVE.items():
        limits = f"no solver needed; what it does not cover goes to {fallback}"
        state = {"available": True, "version": __version__, "reason": "", "limits": limits}
        yield {"name": name, "kind": "native"} | state


def _broken(name: str, error: Exception) -> dict[str, Any]:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return {"name": name, "kind": "milp", "available": False, "version": "", "reason": reason, "limits": ""}


def _lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line each: name, whether available, version, what limits it or why it is missing."""
    wide = max((len(each["name"]) for each in found), default=0)
    for each in found:
        state = f"available    {each['version']}" if each["available"] else "unavailable"
        remark = each["limits"] if each["available"] else each["reason"]
        kind = "native search: " if each["kind"] == "native" else ""
        yield f"{each['name']:<{wide}}  {state}" + (f"  {kind}{remark}" if remark else "")
