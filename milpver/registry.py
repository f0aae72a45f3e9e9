"""Names to plug-ins: found by scanning a package's folder, imported only when asked for.

A plug-in is one file (``solvers/highs.py`` is the solver ``highs``, ``bounds/alpha_crown.py`` the bounding
``alpha-crown``) with one conventional object in it (``KINDS``). Nothing is imported by name from the core,
and listing names imports nothing, so a missing or slow dependency costs only those who ask for it.
Packages outside the tree join through an entry-point group. A name may carry an argument after a colon
(``pyomo:cbc``), which the plug-in's ``with_argument`` turns into the object to use.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from milpver.errors import PluginError

__all__ = ["KINDS", "Factory", "Kind", "check", "load", "names", "near", "variants"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of plug-in.

    Attributes:
        package: dotted name of the package whose files are the plug-ins.
        attribute: what the object is called in each file.
        noun: what one of them is called in messages.
    """

    package: str
    attribute: str
    noun: str

    @property
    def group(self) -> str:
        """The entry-point group through which third-party plug-ins of this kind are found."""
        return self.package


#: The convention: a new kind of plug-in is one more line here.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "bounds": Kind("milpver.bounds", "BOUNDING", "bounding"),
        "encodings": Kind("milpver.encodings", "ENCODING", "encoding"),
        "properties": Kind("milpver.properties", "PROPERTY_FORMAT", "property format"),
        "solvers": Kind("milpver.solvers", "SOLVER", "solver"),
    }
)


class Factory(ABC):
    """A plug-in that is nothing without an argument: ``pyomo`` needs to know which solver to drive.

    A plug-in that works without one, too, just has a method ``with_argument``.
    """

    @abstractmethod
    def known_arguments(self) -> tuple[str, ...]:
        """Arguments that are known to work, for lists and messages; others may work as well."""

    @abstractmethod
    def with_argument(self, argument: str) -> object:
        """The object for ``name:argument``.

        Raises:
            PluginError: the argument means nothing to this plug-in.
        """


def names(kind: str) -> tuple[str, ...]:
    """Names of all plug-ins of a kind (a key of ``KINDS``), sorted; imports none of them."""
    return tuple(sorted({*_in_tree(KINDS[kind]), *(point.name for point in _third_party(KINDS[kind]))}))


def check(kind: str, name: str, *, also: Iterable[str] = ()) -> None:
    """Refuse a name that no plug-in answers to, without importing any; see ``load``.

    Args:
        kind: a key of ``KINDS``.
        name: as ``load`` takes it.
        also: names that the caller answers to by itself, for the message.

    Raises:
        PluginError: no such name.
    """
    known = names(kind)
    wanted = name.partition(":")[0].replace("_", "-")
    if wanted not in {each.replace("_", "-") for each in known}:
        known = (*sorted(also), *known)
        raise PluginError(
            f"{KINDS[kind].noun} {name!r}",
            needed=f"one of {', '.join(known) or '(none installed)'}",
            fix=near(wanted, known),
        )


def load(kind: str, name: str) -> Any:
    """The plug-in object with a name, importing its module now.

    Args:
        kind: a key of ``KINDS``.
        name: one of ``names(kind)``, with ``:argument`` where the plug-in takes one.

    Raises:
        PluginError: no such name, two plug-ins of that name, an argument too many or missing, an in-tree
            plug-in imported under another name, or a plug-in that does not keep to the convention.
    """
    base, colon, argument = name.partition(":")
    plugin = _plugin(kind, base)
    if colon:
        if not hasattr(plugin, "with_argument"):
            raise PluginError(
                f"{KINDS[kind].noun} {name!r}",
                needed=f"{base!r} alone, since it takes no argument",
                fix=f"ask for {base!r}",
            )
        return plugin.with_argument(argument)
    if isinstance(plugin, Factory):
        known = [f"{base}:{each}" for each in plugin.known_arguments()]
        raise PluginError(
            f"{KINDS[kind].noun} {name!r} without an argument",
            needed=f"{base}:NAME",
            fix=f"ask for one of {', '.join(known)}",
        )
    return plugin


def variants(kind: str, name: str) -> tuple[str, ...]:
    """What can be asked for under a name: itself, or ``name:argument`` for each argument a factory knows.

    Imports the plug-in.
    """
    plugin = _plugin(kind, name)
    if isinstance(plugin, Factory):
        return tuple(f"{name}:{argument}" for argument in plugin.known_arguments())
    return (name,)


def near(word: str, known: Iterable[str], count: int = 3) -> str:
    """``did you mean a, b?`` for a misspelt word, or all that is known where nothing comes near."""
    known = sorted(known)
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=count, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(folded[each] for each in close)}?"
    return f"choose one of {', '.join(known)}" if known else "there is none to choose from"


def _in_tree(kind: Kind) -> dict[str, str]:
    """Name to module for the files in the kind's package; the package itself is not imported."""
    spec = importlib.util.find_spec(kind.package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    stems = [module.name for module in pkgutil.iter_modules(folders)]
    return {stem.replace("_", "-"): f"{kind.package}.{stem}" for stem in stems if not stem.startswith("_")}


def _third_party(kind: Kind) -> tuple[EntryPoint, ...]:
    return _installed(entry_points, kind.group)


@cache
def _installed(scan: Callable[..., Iterable[EntryPoint]], group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group: looking through all that is installed takes milliseconds."""
    return tuple(scan(group=group))


def _plugin(kind: str, name: str) -> Any:
    """The object in the plug-in's module, without looking at an argument."""
    check(kind, name)
    convention = KINDS[kind]
    in_tree = _in_tree(convention)
    wanted = name.replace("_", "-")
    outside = [point for point in _third_party(convention) if point.name.replace("_", "-") == wanted]
    sources = [in_tree[wanted]] if wanted in in_tree else []
    sources += [f"{point.value} of {point.dist.name if point.dist else '?'}" for point in outside]
    if len(sources) > 1:
        raise PluginError(
            f"{convention.noun} {name!r} is there {len(sources)} times: {'; '.join(sources)}",
            needed="one plug-in a name",
            fix="uninstall the package that takes the name, or have it choose another",
        )
    if outside:
        return _load_outside(convention, outside[0])
    module = _import_in_tree(in_tree[wanted])
    return _attribute(module, convention.attribute, convention.noun, name)


def _import_in_tree(dotted: str) -> ModuleType:
    """Import an in-tree module, refusing it where the same file was imported as ``solvers.x`` as well.

    The folders stand at the root of the repository, so ``import solvers.x`` works there by accident; it
    would make a second copy of every class, with isinstance and enum comparisons failing silently.
    """
    short = dotted.partition(".")[2]
    spec = importlib.util.find_spec(dotted)
    twin = sys.modules.get(short)
    twin_file = getattr(twin, "__file__", None)
    if spec is not None and spec.origin is not None and twin_file is not None:
        same = Path(twin_file).resolve() == Path(spec.origin).resolve()
        if same:
            raise PluginError(
                f"{spec.origin} was imported as {short}",
                needed=f"the name {dotted}",
                fix=f"write `import {dotted}` in place of `import {short}`",
            )
    return importlib.import_module(dotted)


def _attribute(module: ModuleType, attribute: str, noun: str, name: str) -> Any:
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PluginError(
            f"{noun} {name!r}: {module.__file__} has no {attribute}",
            needed=f"an object named {attribute}",
            fix="define it at the end of the file, or start the file's name with _ if it is no plug-in",
        ) from None


def _load_outside(kind: Kind, point: EntryPoint) -> Any:
    """The object of a third-party plug-in; what goes wrong in its import is its own, but named here."""
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(
            f"{kind.noun} {point.name!r} ({point.value}) fails on import: {type(error).__name__}: {error}",
            needed="a package that can be imported",
            fix="reinstall or uninstall that package",
        ) from error
    if isinstance(loaded, ModuleType):
        return _attribute(loaded, kind.attribute, kind.noun, point.name)
    return loaded
