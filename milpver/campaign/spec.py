"""Campaign files: networks, data, questions and limits in TOML, read and checked as a whole.

Nothing starts before everything is checked, and all mistakes are named at once, each with its line.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milpver import registry
from milpver.campaign._toml import Located, Place, read
from milpver.campaign.questions import KINDS, Kind, Variant
from milpver.data import DEFAULT_KEYS
from milpver.errors import MilpverError, QueryError
from milpver.query import NATIVE

__all__ = [
    "TEMPLATE",
    "Complaint",
    "DataSpec",
    "NetworkSpec",
    "QuestionSpec",
    "Spec",
    "SpecError",
    "read_spec",
]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: What `milpver campaign init` writes.
TEMPLATE = """\
# A milpver campaign: networks x data x questions, answered by `milpver campaign run`.
# Paths are relative to this file. `milpver campaign status|resume|report|export` take this file, too.

[campaign]
name = "quickstart"
# store = "results.sqlite"      # where results go; beside this file, named as it is, unless said otherwise
workers = 2                     # processes on this machine
threads = 1                     # solver threads of each worker
memory = "4G"                   # bytes each worker may take beyond what it needs to start, or "none"
timeout = 60.0                  # seconds a query, all competing classes together
# gap = 1e-6                    # absolute gap that closes a bracket
# seed = 0
# device = "auto"               # where bounds are computed: auto, cpu or cuda

[[network]]                     # one table for each network
path = "$model"
# name = "fc"                   # in reports; the file's name unless said otherwise
# mean = [0.1307]               # normalisation outside of the file: the network gets (x - mean) / std
# std = [0.3081]

[[data]]
path = "$data"     # .npz, .csv (label first), or a folder of idx files as MNIST ships them
index = "0:20"                  # which inputs: "5", "1,4,9", "0:100"; all of them unless said otherwise
# domain = [0.0, 1.0]           # range of every input element
# keys = ["x", "y"]             # arrays of an .npz file
# split = "test"                # of an idx folder: test or train
# scale = 255                   # divide the inputs by it
# layout = "nhwc"               # where the data has its channels, if elsewhere: nchw or nhwc

[[question]]                    # worst margins over all removals of neurons
kind = "margin"                 # margin, decide (its sign only), distance, or pruning-distance
budgets = ["1,0", "2,1", "4,2"] # neurons that may be removed, an entry a gateable layer: see `milpver info`
                                # also "total:3", of all these layers together, and "conv1:2", channels
# radii = [0.0, 0.01]           # L-inf balls around each input
# keep = "1:3,7"                # neurons that have to stay: layer 1's 3 and 7
# remove = "1:0"                # neurons that are removed in every mask; they count
solvers = ["auto"]              # every combination of solvers, encodings and bounds answers
# encodings = ["fused"]
# bounds = ["alpha-crown"]
# timeout = 10.0                # for this question
# networks = ["digits_fc"]      # names of those asked about; all of them unless said otherwise
# data = ["digits_test"]

[[question]]                    # distances to the decision boundary
kind = "distance"
timeout = 5.0
# norm = "linf"                 # linf, l1 or l2
# method = "direct"             # direct, or bisect on the radius

# [[question]]                  # the fewest neurons whose removal changes the prediction
# kind = "pruning-distance"
# layers = ["1", "2"]           # of these layers, each by itself; all of them unless said otherwise
# total = false                 # true: of all of them together
"""

#: The largest numbers that make sense; seeds are those that every solver takes.
MOST_THREADS, MOST_WORKERS, MOST_SEED = 4096, 1024, 2**31 - 1


@dataclass(frozen=True, slots=True, order=True)
class Complaint:
    """What is wrong on a line of a spec."""

    line: int
    text: str


class SpecError(QueryError):
    """A spec with mistakes.

    Attributes:
        complaints: all of them, by line.
    """

    def __init__(self, path: Path, complaints: Sequence[Complaint]) -> None:
        self.complaints = tuple(sorted(set(complaints)))
        count = len(self.complaints)
        found = "; ".join(f"line {each.line}: {each.text}" for each in self.complaints)
        super().__init__(
            f"{path} has {'a mistake' if count == 1 else f'{count} mistakes'}: {found}",
            needed="a campaign that can run as a whole",
            fix="correct these lines; `milpver campaign init` writes a commented spec",
        )
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (SpecError, (self.path, self.complaints))


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A ``[[network]]``; ``mean`` and ``std`` are a normalisation in front of the file, or None."""

    name: str
    path: Path
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    line: int


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A ``[[data]]``: the arguments of ``milpver.data.load_data``, and which inputs."""

    name: str
    path: Path
    index: str
    keys: tuple[str, str]
    split: str
    scale: float | None
    domain: tuple[float, float] | None
    layout: str | None
    line: int
    index_line: int


@dataclass(frozen=True, slots=True)
class QuestionSpec:
    """A ``[[question]]``.

    Attributes:
        name: for people.
        kind: what is asked.
        variants: for every input.
        networks, data: names of those asked about.
        solvers, encodings, bounds: every combination answers.
        solver_options: the solver's own parameters.
        timeout, gap: seconds a query; absolute.
    """

    name: str
    kind: Kind
    variants: tuple[Variant, ...]
    networks: tuple[str, ...]
    data: tuple[str, ...]
    solvers: tuple[str, ...]
    encodings: tuple[str, ...]
    bounds: tuple[str, ...]
    solver_options: Mapping[str, str]
    timeout: float
    gap: float
    line: int


@dataclass(frozen=True, slots=True)
class Spec:
    """A campaign file.

    Attributes:
        path, text: the file.
        name: of the campaign.
        store: the SQLite file.
        seed, threads, device: for all queries.
        memory: bytes that a worker may take beyond what it needs to start, or None.
        workers: processes on this machine.
        networks, data, questions: in order.
        lines: where things stand, for what is found out later.
    """

    path: Path
    text: str
    name: str
    store: Path
    seed: int
    threads: int
    device: str
    memory: int | None
    workers: int
    networks: tuple[NetworkSpec, ...]
    data: tuple[DataSpec, ...]
    questions: tuple[QuestionSpec, ...]
    lines: Located = field(repr=False)


def read_spec(path: Path) -> Spec:
    """Read a campaign file, and check all that can be checked without loading networks and data.

    Args:
        path: the file; paths in it are relative to its folder.

    Raises:
        SpecError: it has mistakes; all of them are named.
        QueryError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise QueryError(
            f"campaign {path}: {reason}",
            needed="a campaign file (TOML)",
            fix="check the name; `milpver campaign init` writes one",
        ) from error
    try:
        located = read(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(path, [_syntax(error, text)]) from error
    complaints: list[Complaint] = []
    spec = _spec(path, text, located, complaints)
    if complaints:
        raise SpecError(path, complaints)
    return spec


def _syntax(error: tomllib.TOMLDecodeError, text: str) -> Complaint:
    """What tomllib says, with its line."""
    said = str(error)
    found = re.search(r"\(at line (\d+), column (\d+)\)", said)
    line = int(found[1]) if found else max(1, len(text.splitlines()))
    return Complaint(line, said.replace(found[0], f"at column {found[2]}") if found else said)


def _spec(path: Path, text: str, located: Located, complaints: list[Complaint]) -> Spec:
    """Read all tables, noting what is wrong."""
    known = ("campaign", "network", "data", "question")
    for key in located.values:
        if key not in known:
            line = located.line((key,) if (key,) in located.lines else (key, 0))
            complaints.append(Complaint(line, f"unknown table or key {key!r}; {registry.near(key, known)}"))
    tables = _Tables(path, located, complaints)
    general = tables.one("campaign")
    folder = path.parent
    name = general.text("name", path.stem)
    store = folder / general.text("store", f"{path.stem}.sqlite")
    seed = general.whole("seed", 0, least=0, most=MOST_SEED)
    timeout = general.number("timeout", 60.0, above=0.0)
    gap = general.number("gap", 1e-6, least=0.0)
    threads = general.whole("threads", 1, least=1, most=MOST_THREADS)
    workers = general.whole("workers", 1, least=1, most=MOST_WORKERS)
    device = general.choice("device", "auto", ("auto", "cpu", "cuda"))
    memory = general.size("memory", 4 << 30)
    general.finish()
    networks = tuple(_network(table, folder) for table in tables.several("network"))
    data = tuple(_data(table, folder) for table in tables.several("data"))
    tables.unique("network", [(each.name, each.line) for each in networks])
    tables.unique("data", [(each.name, each.line) for each in data])
    questions = tuple(
        _question(table, [each.name for each in networks], [each.name for each in data], timeout, gap, k)
        for k, table in enumerate(tables.several("question"))
    )
    tables.unique("question", [(each.name, each.line) for each in questions if each is not None])
    return Spec(
        path=path,
        text=text,
        name=name,
        store=store,
        seed=seed,
        threads=threads,
        device=device,
        memory=memory,
        workers=workers,
        networks=networks,
        data=data,
        questions=tuple(each for each in questions if each is not None),
        lines=located,
    )


def _network(table: _Table, folder: Path) -> NetworkSpec:
    path = table.path("path", folder)
    if path is not None and not path.is_file():
        table.complain("path", f"there is no file {path}")
    found = NetworkSpec(
        name=table.text("name", path.stem if path is not None else "?"),
        path=path or folder,
        mean=table.floats("mean"),
        std=table.floats("std"),
        line=table.line,
    )
    if found.std is not None and not all(value > 0 for value in found.std):
        table.complain("std", "std needs numbers above 0")
    table.finish()
    return found


def _data(table: _Table, folder: Path) -> DataSpec:
    path = table.path("path", folder)
    if path is not None and not path.exists():
        table.complain("path", f"there is no file or folder {path}")
    keys = table.texts("keys", DEFAULT_KEYS)
    if len(keys) != 2:
        table.complain("keys", "keys needs two names, of the inputs and of the labels")
        keys = DEFAULT_KEYS
    domain = table.floats("domain")
    if domain is not None and not (len(domain) == 2 and domain[0] < domain[1]):
        table.complain("domain", "domain needs two numbers, the lower one first")
        domain = None
    scale = table.number("scale", 0.0, above=0.0) if "scale" in table.values else None
    found = DataSpec(
        name=table.text("name", path.stem if path is not None else "?"),
        path=path or folder,
        index=table.text("index", ":", also=int),
        keys=(keys[0], keys[1]),
        split=table.choice("split", "test", ("test", "train")),
        scale=scale,
        domain=None if domain is None else (domain[0], domain[1]),
        layout=table.choice("layout", "", ("nchw", "nhwc")) or None if "layout" in table.values else None,
        line=table.line,
        index_line=table.line_of("index"),
    )
    table.finish()
    return found


def _question(
    table: _Table, networks: list[str], data: list[str], timeout: float, gap: float, number: int
) -> QuestionSpec | None:
    word = table.text("kind", None)
    kind = KINDS.get(word)
    if kind is None:
        if word:
            table.complain("kind", f"unknown kind {word!r}; {registry.near(word, KINDS)}")
        return None
    found = QuestionSpec(
        name=table.text("name", f"{kind.name} {number + 1}"),
        kind=kind,
        variants=tuple(kind.read(table)),
        networks=table.names("networks", networks, "network"),
        data=table.names("data", data, "data set"),
        solvers=table.plugins("solvers", ("auto",), "solvers"),
        encodings=table.plugins("encodings", ("fused",), "encodings"),
        bounds=table.plugins("bounds", ("alpha-crown",), "bounds"),
        solver_options=table.options("solver_options"),
        timeout=table.number("timeout", timeout, above=0.0),
        gap=table.number("gap", gap, least=0.0),
        line=table.line,
    )
    table.finish(kind.keys)
    return found


class _Tables:
    """The tables of a document, and the place for complaints."""

    def __init__(self, path: Path, located: Located, complaints: list[Complaint]) -> None:
        self.path = path
        self.located = located
        self.complaints = complaints

    def one(self, name: str) -> _Table:
        """A table that is there at most once."""
        values = self.located.values.get(name, {})
        if not isinstance(values, dict):
            line = self.located.line((name, 0))
            self.complaints.append(Complaint(line, f"{name} has to be one table: [{name}]"))
            values = {}
        return _Table(self, name, values, (name,))

    def several(self, name: str) -> list[_Table]:
        """Tables that are there once, as ``[name]``, or several times, as ``[[name]]``."""
        values = self.located.values.get(name, [])
        if isinstance(values, dict):
            return [_Table(self, name, values, (name,))]
        if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
            line = self.located.line((name,))
            self.complaints.append(Complaint(line, f"{name} has to be a table: [[{name}]]"))
            return []
        if not values:
            last = max(1, len(self.located.lines) and max(self.located.lines.values()))
            self.complaints.append(Complaint(last, f"there is no [[{name}]]"))
        return [_Table(self, name, each, (name, k)) for k, each in enumerate(values)]

    def unique(self, noun: str, names: Sequence[tuple[str, int]]) -> None:
        """Refuse names that come twice."""
        seen: set[str] = set()
        for name, line in names:
            if name in seen and name != "?":
                self.complaints.append(
                    Complaint(line, f"a second {noun} of the name {name!r}: give it a name")
                )
            seen.add(name)


class _Table:
    """One table; every reader notes what is wrong and goes on with a value that serves."""

    def __init__(self, tables: _Tables, name: str, values: Mapping[str, Any], place: Place) -> None:
        self.values = values
        self._tables = tables
        self._name = name
        self._place = place
        self._known: list[str] = []

    @property
    def line(self) -> int:
        """Where the table begins."""
        return self._tables.located.line(self._place)

    def line_of(self, key: str, *inner: int) -> int:
        """Where a key, or an entry of its list, stands; the table's line where it is not there."""
        return self._tables.located.line((*self._place, key, *inner))

    def complain(self, key: str, text: str, *inner: int) -> None:
        """See Fields."""
        self._tables.complaints.append(Complaint(self.line_of(key, *inner), text))

    def finish(self, more: Sequence[str] = ()) -> None:
        """Refuse keys that nothing has asked for."""
        known = [*dict.fromkeys([*self._known, *more])]
        for key in self.values:
            if key not in known:
                text = f"unknown key {key!r} in [{self._name}]; {registry.near(key, known)}"
                self.complain(key, text)

    def _get(self, key: str) -> Any:
        self._known.append(key)
        return self.values.get(key)

    def text(self, key: str, default: str | None, *, also: type | None = None) -> str:
        """A text that is not empty; it has to be there where the default is None."""
        value = self._get(key)
        if value is None and default is None:
            self.complain(key, f"[{self._name}] has no {key}")
            return ""
        if value is None:
            return default or ""
        if also is not None and isinstance(value, also) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value.strip():
            self.complain(key, f"{key} = {value!r} is no text")
            return default or ""
        return value

    def path(self, key: str, folder: Path) -> Path | None:
        """A path, relative to the spec's folder."""
        text = self.text(key, None)
        return folder / text if text else None

    def has(self, key: str) -> bool:
        """See Fields."""
        return key in self.values

    def flag(self, key: str) -> bool:
        """See Fields."""
        value = self._get(key)
        if not isinstance(value, bool | None):
            self.complain(key, f"{key} = {value!r} is neither true nor false")
            return False
        return bool(value)

    def number(
        self, key: str, default: float, *, least: float | None = None, above: float | None = None
    ) -> float:
        """A finite number >= least, or > above."""
        value = self._get(key)
        return default if value is None else self._number(key, value, default, least, above)

    def _number(
        self, key: str, value: Any, default: float, least: float | None, above: float | None, *inner: int
    ) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if good and (least is None or value >= least) and (above is None or value > above):
            return float(value)
        wanted = f">= {least:g}" if least is not None else f"> {above:g}" if above is not None else ""
        self.complain(key, f"{key} = {value!r} is no finite number {wanted}".rstrip(), *inner)
        return default

    def whole(self, key: str, default: int, *, least: int, most: int) -> int:
        """A whole number from least to most."""
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.complain(key, f"{key} = {value!r} is no whole number from {least} to {most}")
            return default
        return value

    def size(self, key: str, default: int) -> int | None:
        """Bytes: a whole number, a text such as "4G", or "none"."""
        value = self._get(key)
        if value is None:
            return default
        if value == "none":
            return None
        match = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str | int) else None
        bytes_ = int(float(match[1]) * _UNITS[match[2].upper()]) if match and value is not True else 0
        if bytes_ <= 0:
            self.complain(key, f'{key} = {value!r} is no size above 0 such as "4G", nor "none"')
            return default
        return bytes_

    def choice(self, key: str, default: str, known: Sequence[str]) -> str:
        """See Fields."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, str) or value not in known:
            self.complain(key, f"{key} = {value!r}; {registry.near(str(value), known)}")
            return default
        return value

    def _list(self, key: str) -> list[tuple[Any, int]]:
        """Entries with their lines; a single value is a list of one."""
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            return [(value, self.line_of(key))]
        if not value:
            self.complain(key, f"{key} is an empty list")
        return [(entry, self.line_of(key, k)) for k, entry in enumerate(value)]

    def entries(self, key: str) -> Sequence[tuple[Any, int]]:
        """See Fields."""
        found = self._list(key)
        if key not in self.values:
            self.complain(key, f"[{self._name}] has no {key}")
        good = []
        for entry, line in found:
            parts = entry if isinstance(entry, list) else [entry]
            if all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts) and parts:
                good.append((entry, line))
            else:
                self._tables.complaints.append(
                    Complaint(line, f"{key}: {entry!r} is no text and no list of numbers")
                )
        return good

    def numbers(self, key: str, default: Sequence[float], *, least: float) -> Sequence[tuple[float, int]]:
        """See Fields."""
        found = self._list(key)
        if key not in self.values:
            return [(value, self.line) for value in default]
        return [
            (self._number(key, value, least, least, None, k), line) for k, (value, line) in enumerate(found)
        ]

    def floats(self, key: str) -> tuple[float, ...] | None:
        """Finite numbers, or None where the key is not there."""
        found = self._list(key)
        if key not in self.values:
            return None
        return tuple(self._number(key, value, 1.0, None, None, k) for k, (value, _) in enumerate(found))

    def texts(self, key: str, default: Sequence[str]) -> tuple[str, ...]:
        """Texts, each once."""
        found = self._list(key)
        if key not in self.values:
            return tuple(default)
        good: dict[str, None] = {}
        for k, (value, _) in enumerate(found):
            if not isinstance(value, str) or not value:
                self.complain(key, f"{key}: {value!r} is no name", k)
            elif value in good:
                self.complain(key, f"{key} names {value!r} twice", k)
            else:
                good[value] = None
        return tuple(good) or tuple(default)

    def names(self, key: str, known: Sequence[str], noun: str) -> tuple[str, ...]:
        """Names of networks or data sets; all of them where the key is not there."""
        found = self.texts(key, known)
        for name in found:
            if name not in known:
                self.complain(key, f"{key}: there is no {noun} {name!r}; {registry.near(name, known)}")
        return tuple(name for name in found if name in known)

    def plugins(self, key: str, default: Sequence[str], kind: str) -> tuple[str, ...]:
        """Names of plug-ins; only their names are checked here, nothing heavy is imported."""
        found = self.texts(key, default)
        own = (*registry.names(kind), *(NATIVE if kind == "solvers" else ()))
        for k, name in enumerate(found):
            if name.partition(":")[0].replace("_", "-") not in own:
                self.complain(key, f"{key}: there is no {name!r}; {registry.near(name, own)}", k)
            elif ":" in name:
                try:
                    registry.load(kind, name)
                except MilpverError as error:
                    self.complain(key, f"{key}: {error.found}; {error.fix}", k)
        return found

    def options(self, key: str) -> dict[str, str]:
        """A table of texts and numbers, as texts."""
        value = self._get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.complain(key, f'{key} is no table such as {{ presolve = "off" }}')
            return {}
        return {
            name: str(each).lower() if isinstance(each, bool) else str(each) for name, each in value.items()
        }
