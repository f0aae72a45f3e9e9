"""The kinds of questions that a campaign asks: what each takes in a spec, and the function that answers it.

A new kind is one entry of ``KINDS``: which keys it has, how they are read, how they fit a network, and how
it is asked. Whatever asks (spec, workers, report) goes through the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from milpver.errors import MilpverError, QueryError
from milpver.network import Network
from milpver.query import (
    Budget,
    Domain,
    Options,
    chosen_layers,
    forced_pairs,
    names_layers,
    parse_budget,
)
from milpver.verdict import Verdict

__all__ = ["KINDS", "Asked", "Fields", "Kind", "Variant"]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One variant of a question, about a batch of inputs.

    Attributes:
        network: the classifier.
        inputs: float32 [n, inputs].
        labels, indices: of these; the positions in the data file.
        parameters: what ``Kind.fit`` gave.
        domain: limits of the inputs, or None.
        options: how to answer.
        should_stop: asked now and then; True ends the batch.
    """

    network: Network
    inputs: NDArray[np.float32]
    labels: Sequence[int]
    indices: Sequence[int]
    parameters: Mapping[str, Any]
    domain: Domain | None
    options: Options
    should_stop: Callable[[], bool]


class Fields(Protocol):
    """The keys of one ``[[question]]``, read and checked as they are asked for."""

    def numbers(self, key: str, default: Sequence[float], *, least: float) -> Sequence[tuple[float, int]]:
        """Numbers >= least with their lines, from a number or a list of them."""

    def entries(self, key: str) -> Sequence[tuple[Any, int]]:
        """The entries of a list that has to be there, with their lines; a text is a list of one."""

    def choice(self, key: str, default: str, known: Sequence[str]) -> str:
        """One of some words."""

    def text(self, key: str, default: str) -> str:
        """A text."""

    def flag(self, key: str) -> bool:
        """true, or false where the key is not there."""

    def has(self, key: str) -> bool:
        """Whether a key is there."""

    def line_of(self, key: str) -> int:
        """The line of a key; the question's where it is not there."""

    def complain(self, key: str, text: str) -> None:
        """Note what is wrong with a key."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the queries that a question asks about every input.

    Attributes:
        raw: parameters as the spec has them.
        line: of the parameter that is the most likely to be wrong.
        lines: of others, by the option that a complaint about them begins with (``--keep``).
    """

    raw: Mapping[str, Any]
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)

    def line_for(self, error: MilpverError) -> int:
        """The line that an error is about."""
        return next(
            (line for option, line in self.lines.items() if error.found.startswith(option)), self.line
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of question.

    Attributes:
        name: in specs.
        title: what it asks, for people.
        keys: those of its own in a spec.
        read: the variants that a question's keys ask for.
        fit: parameters for one network, as JSON has them; they are part of a query's key. Raises QueryError.
        ask: answers.
        decide: whether only the sign of the margin is asked for.
        channels: whether parameters name layers, so that convolutions' channels can be meant.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    read: Callable[[Fields], Sequence[Variant]]
    fit: Callable[[Mapping[str, Any], Network], dict[str, Any]]
    ask: Callable[[Asked], Iterator[Verdict]]
    decide: bool = False
    channels: Callable[[Mapping[str, Any]], bool] = lambda _: False


# -------------------------------------------------------------------------------- neurons that are forced


def _read_forced(fields: Fields) -> tuple[dict[str, str], dict[str, int]]:
    """``keep`` and ``remove`` where they are there, and their lines by option."""
    texts = {name: fields.text(name, "") for name in _FORCED}
    return (
        {name: each for name, each in texts.items() if each},
        {f"--{name}": fields.line_of(name) for name in _FORCED},
    )


def _fit_forced(raw: Mapping[str, Any], budget: Budget, network: Network) -> dict[str, Any]:
    """The same as (layer, neuron) pairs; nothing where nothing is forced, as in keys of earlier versions."""
    pairs = {"keep": budget.kept, "remove": budget.gone}
    return {
        name: [list(pair) for pair in forced_pairs(network, pairs[name])] for name in _FORCED if raw.get(name)
    }


def _forced(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for whoever answers."""
    return {name: [tuple(pair) for pair in parameters[name]] for name in _FORCED if name in parameters}


#: Neurons that have to stay, and that are removed in every mask.
_FORCED = ("keep", "remove")


# --------------------------------------------------------------------------------------------- margins


def _read_margin(fields: Fields) -> Sequence[Variant]:
    radii = fields.numbers("radii", (0.0,), least=0.0)
    forced, lines = _read_forced(fields)
    found = []
    for entry, line in fields.entries("budgets"):
        text = ",".join(map(str, entry)) if isinstance(entry, list) else str(entry)
        found += [Variant({"budget": text, "radius": radius} | forced, line, lines) for radius, _ in radii]
    return found


def _fit_margin(raw: Mapping[str, Any], network: Network) -> dict[str, Any]:
    budget = parse_budget(raw["budget"], network, keep=raw.get("keep"), remove=raw.get("remove"))
    shown = budget.shown
    return {
        "budget": shown if isinstance(shown, str) else list(shown),
        "radius": float(raw["radius"]),
    } | _fit_forced(raw, budget, network)


def _margin_channels(raw: Mapping[str, Any]) -> bool:
    return names_layers(raw["budget"], raw.get("keep"), raw.get("remove"))


def _ask_margin(asked: Asked) -> Iterator[Verdict]:
    from milpver.margin import margins  # noqa: PLC0415  torch, which only those who answer need

    return margins(
        asked.network,
        asked.inputs,
        asked.labels,
        budget=parse_budget(asked.parameters["budget"], asked.network, **_forced(asked.parameters)),
        radius=asked.parameters["radius"],
        domain=asked.domain,
        options=asked.options,
        indices=asked.indices,
        should_stop=asked.should_stop,
    )


# ------------------------------------------------------------------------------------------- distances


def _read_distance(fields: Fields) -> Sequence[Variant]:
    method = fields.choice("method", "direct", ("direct", "bisect"))
    norm = fields.choice("norm", "linf", ("linf", "l1", "l2"))
    if (method, norm) == ("bisect", "l2"):
        fields.complain("method", "distances in l2 take method = 'direct'")
    return [Variant({"method": method, "norm": norm}, 0)]


def _fit_distance(raw: Mapping[str, Any], network: Network) -> dict[str, Any]:
    if network.graph.outputs < 2:
        raise QueryError(
            f"{network.path.name} has {network.graph.outputs} output",
            needed="a classifier with at least two outputs",
            fix="leave this network out of the question",
        )
    return dict(raw)


def _ask_distance(asked: Asked) -> Iterator[Verdict]:
    from milpver.distance import distances  # noqa: PLC0415  torch, which only those who answer need

    return distances(
        asked.network,
        asked.inputs,
        asked.labels,
        domain=asked.domain,
        options=asked.options,
        method=asked.parameters["method"],
        norm=asked.parameters["norm"],
        indices=asked.indices,
        should_stop=asked.should_stop,
    )


# ---------------------------------------------------------------------------------- pruning distances


def _read_pruning(fields: Fields) -> Sequence[Variant]:
    found = fields.entries("layers") if fields.has("layers") else ()
    layers = ",".join(str(entry) for entry, _ in found)
    forced, lines = _read_forced(fields)
    raw: dict[str, Any] = {"layers": layers or None, "total": fields.flag("total")}
    return [Variant(raw | forced, fields.line_of("layers"), lines)]


def _fit_pruning(raw: Mapping[str, Any], network: Network) -> dict[str, Any]:
    budget = parse_budget(None, network, keep=raw.get("keep"), remove=raw.get("remove"))
    layers = [each.label for each in chosen_layers(network, raw["layers"])]
    return {"layers": layers, "total": bool(raw["total"])} | _fit_forced(raw, budget, network)


def _pruning_channels(raw: Mapping[str, Any]) -> bool:
    return names_layers(raw["layers"], raw.get("keep"), raw.get("remove"))


def _ask_pruning(asked: Asked) -> Iterator[Verdict]:
    from milpver.fewest_removals import pruning_distances  # noqa: PLC0415  torch, which only those who answer need

    return pruning_distances(
        asked.network,
        asked.inputs,
        asked.labels,
        layers=asked.parameters["layers"],
        total=asked.parameters["total"],
        **_forced(asked.parameters),
        domain=asked.domain,
        options=asked.options,
        indices=asked.indices,
        should_stop=asked.should_stop,
    )


#: A new kind of question is one more entry here.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                "margin",
                "worst class margin over all removals of neurons within a budget, and all inputs of a ball",
                ("budgets", "radii", *_FORCED),
                _read_margin,
                _fit_margin,
                _ask_margin,
                channels=_margin_channels,
            ),
            Kind(
                "decide",
                "the sign of that margin",
                ("budgets", "radii", *_FORCED),
                _read_margin,
                _fit_margin,
                _ask_margin,
                decide=True,
                channels=_margin_channels,
            ),
            Kind(
                "distance",
                "distance to the decision boundary",
                ("method", "norm"),
                _read_distance,
                _fit_distance,
                _ask_distance,
            ),
            Kind(
                "pruning-distance",
                "the fewest neurons whose removal changes the prediction",
                ("layers", "total", *_FORCED),
                _read_pruning,
                _fit_pruning,
                _ask_pruning,
                channels=_pruning_channels,
            ),
        )
    }
)
