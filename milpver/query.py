"""What a question ranges over: pruning budgets, input boxes, and the options of a run.

Budgets are sets of masks, boxes are closed sets of inputs; both are checked against the network here, once,
so that nothing below has to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from milpver.errors import QueryError
from milpver.graph import Gate, Graph, Masks
from milpver.linear import Float
from milpver.network import GateableLayer, Network

__all__ = [
    "NATIVE",
    "Box",
    "Budget",
    "BudgetGroup",
    "Domain",
    "Options",
    "ball",
    "check_inputs",
    "chosen_layers",
    "forced_pairs",
    "names_layers",
    "parse_budget",
    "removed_pairs",
]

#: Solver names that mean the native search where it applies, and the MILP backend they fall back on.
NATIVE: Mapping[str, str] = MappingProxyType({"bab": "highs", "auto": "highs"})

#: Exponents on which exact arithmetic would choke.
_ENDLESS = re.compile("e[+-]?[0-9]{4,}", re.IGNORECASE)

#: What budgets on channels need in Python; the command line sees to it.
_CHANNELS = "; in Python, channels of convolutions need milpver.load(path, channels=True)"

#: Lower and upper limit of every input entry: two numbers, or two float64 arrays [inputs].
Domain = tuple["float | Float", "float | Float"]


@dataclass(frozen=True, slots=True)
class BudgetGroup:
    """At most ``removable`` of the gates of these Gate nodes together may be removed.

    Attributes:
        nodes: indices of Gate nodes, ascending.
        removable: s >= 1.
    """

    nodes: tuple[int, ...]
    removable: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The admissible masks: every group's limit holds; gates outside of all groups stay.

    Attributes:
        groups: disjoint groups, each with s >= 1.
        per_layer: s_k of each gateable fully connected layer in order, the most that a mask may remove there.
        kept: gates that have to stay, as (Gate node, gate).
        gone: gates that are removed in every mask; each lies in a group and counts against its limit.
        text: what records show in place of ``per_layer`` where that does not say it all, or "".
    """

    groups: tuple[BudgetGroup, ...] = ()
    per_layer: tuple[int, ...] = ()
    kept: tuple[tuple[int, int], ...] = ()
    gone: tuple[tuple[int, int], ...] = ()
    text: str = ""

    @property
    def shown(self) -> tuple[int, ...] | str:
        """What records and messages call it, as ``parse_budget`` takes it."""
        return self.text or self.per_layer

    def forced(self, node: int, gates: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which gates of a Gate node have to stay, and which are removed for certain, bool [gates] each."""
        kept, gone = np.zeros(gates, dtype=np.bool_), np.zeros(gates, dtype=np.bool_)
        for pairs, state in ((self.kept, kept), (self.gone, gone)):
            state[[gate for place, gate in pairs if place == node]] = True
        return kept, gone

    def least(self, graph: Graph) -> dict[int, NDArray[np.bool_]]:
        """The smallest admissible mask: what is removed for certain, Gate node of a group -> bool [gates]."""
        nodes = [node for group in self.groups for node in group.nodes]
        return {node: self.forced(node, graph.gate(node).gates)[1] for node in nodes}

    def left(self, group: BudgetGroup) -> int:
        """Removals that a group allows beside those that are forced, at least 0."""
        return group.removable - sum(node in group.nodes for node, _ in self.gone)

    def group_of(self, node: int) -> BudgetGroup | None:
        """The group a Gate node belongs to, or None where nothing of it may be removed."""
        return next((group for group in self.groups if node in group.nodes), None)

    def admits(self, graph: Graph, removed: Masks) -> bool:
        """Whether a mask respects every limit, counted in integers.

        Args:
            graph: the network's graph.
            removed: Gate node -> bool [gates].
        """
        for node, gone in removed.items():
            gate = graph.nodes[node]
            if not isinstance(gate, Gate) or gone.shape != (gate.gates,):
                return False
        if not all(node in removed for node, _ in self.gone):
            return False
        return not removed or bool(self.admitted({node: gone[None] for node, gone in removed.items()})[0])

    def admitted(self, removed: Masks) -> NDArray[np.bool_]:
        """Which of many masks respect every limit, counted in integers.

        Args:
            removed: Gate node -> bool [masks, gates]; every node that ``gone`` names, and one at least.

        Returns:
            bool [masks].
        """
        fine = np.ones(len(next(iter(removed.values()))), dtype=np.bool_)
        for node, each in self.kept:
            if node in removed:
                fine &= ~removed[node][:, each]
        for node, each in self.gone:
            fine &= removed[node][:, each]
        counts = {node: np.count_nonzero(gone, axis=1) for node, gone in removed.items()}
        for node, count in counts.items():
            if self.group_of(node) is None:
                fine &= count == 0
        for group in self.groups:
            fine &= sum(counts[node] for node in group.nodes if node in counts) <= group.removable
        return fine


def parse_budget(
    entries: str | Sequence[int | str] | None,
    network: Network,
    *,
    keep: str | Sequence[tuple[int | str, int]] | None = None,
    remove: str | Sequence[tuple[int | str, int]] | None = None,
) -> Budget:
    """Read a budget.

    A forced removal counts against the budget of its layer (or the total). In a layer without a budget
    exactly what is forced is removed. What has to stay stays, with or without a budget.

    Args:
        entries: one entry a gateable layer, ``"2,0,10%"`` or a sequence: a number of neurons, ``0`` or ``-``
            for none, a percentage of the layer's width (nearest integer, halves up); or ``layer:number``
            (``layer=number``) entries, layer being the number or name of a gateable layer, or ``conv1`` for
            channels of a convolution; ``total:number`` for all gateable fully connected layers together.
            None: nothing is removed; so does ``0`` where no layer is gateable.
        network: whose layers are meant.
        keep: neurons that have to stay, ``"1:3,7,2:0"`` (layer 1's 3 and 7, layer 2's 0) or pairs.
        remove: neurons that are removed in every mask, likewise.

    Raises:
        QueryError: wrong number of entries, not a number, unknown layer or one named twice, a whole layer or
            more; a neuron that a layer does not have, or that is to stay and to go; more forced removals than
            the budget allows.
    """
    layers = network.layers
    parts = entries.split(",") if isinstance(entries, str) else [str(part) for part in entries or ()]
    parts = [part.strip() for part in parts]
    if parts == [""] and layers:
        raise QueryError(
            f"an empty budget, and {len(layers)} gateable layers",
            needed="an entry for each",
            fix=f"write --budget {','.join('0' for _ in layers)} where nothing may be removed",
        )
    if entries is None or (not layers and parts in ([""], ["0"], ["-"])):
        parts = ["0"] * len(layers)
    named: dict[str, str] = {}
    if any("=" in part or ":" in part for part in parts):
        entries_of = [_named_entry(part, network) for part in parts]
        named = dict(entries_of)
        if len(named) < len(entries_of):
            raise QueryError(
                f"budget {','.join(parts)} names a layer twice",
                needed="one entry a layer",
                fix="give each layer once, by number or by name",
            )
        if "total" in named and any(layer.label in named for layer in layers):
            raise QueryError(
                f"budget {','.join(parts)} has a total and fully connected layers",
                needed="a total over all fully connected layers, or an entry for each of them",
                fix="leave out one of them",
            )
        parts = [named.get(layer.label, "0") for layer in layers]
    if len(parts) != len(layers):
        widths = ", ".join(f"{layer.number}: {layer.name} ({layer.width} neurons)" for layer in layers)
        raise QueryError(
            f"budget {','.join(parts)} has {len(parts)} entries",
            needed=f"one entry for each of the {len(layers)} gateable layers ({widths or 'there are none'})",
            fix="give 0 for a layer that keeps all its neurons, or name layers: --budget 1=2"
            if layers
            else "write --budget 0",
        )
    counts = tuple(_count(part, layer) for part, layer in zip(parts, layers, strict=True))
    limits = {layer.node: count for layer, count in zip(layers, counts, strict=True)}
    shown = [f"{layer.label}:{count}" for layer, count in zip(layers, counts, strict=True) if count]
    total = _total(named["total"], layers) if "total" in named else 0
    if total:
        counts = tuple(min(total, layer.width) for layer in layers)
        shown = [f"total:{total}"]
    channels = {layer: _count(named.get(layer.label, "0"), layer) for layer in network.conv_layers}
    limits |= {layer.node: count for layer, count in channels.items()}
    removed = [f"{layer.label}:{count}" for layer, count in channels.items() if count]
    text = ",".join([*shown, *removed]) if total or removed else ""
    kept, gone = _forced_gates("keep", keep, network), _forced_gates("remove", remove, network)
    groups: list[BudgetGroup] = []
    if total:
        groups.append(BudgetGroup(tuple(layer.node for layer in layers), total))
    for layer in (*layers, *network.conv_layers):
        count, forced = limits[layer.node], sum(node == layer.node for node, _ in gone)
        if forced >= layer.width:
            raise QueryError(
                f"--remove takes all {layer.width} {layer.gates} of layer {layer.label}",
                needed=f"at most {layer.width - 1}: a layer cannot be removed whole",
                fix="remove fewer",
            )
        if count or (forced and not (total and layer in layers)):
            groups.append(BudgetGroup((layer.node,), count or forced))
    budget = Budget(tuple(groups), counts, tuple(sorted(kept)), tuple(sorted(gone)), text)
    _refuse_contradictions(budget, network)
    return budget


def _refuse_contradictions(budget: Budget, network: Network) -> None:
    """Refuse neurons that are to stay and to go, and more forced removals than a budget allows."""
    if both := sorted(set(budget.kept) & set(budget.gone)):
        layer = next(layer for layer in network.gateable if layer.node == both[0][0])
        raise QueryError(
            f"--keep and --remove both name {layer.label}:{both[0][1]}",
            needed="a neuron that stays, or one that goes",
            fix="leave it out of one of them",
        )
    for group in budget.groups:
        forced = sum(node in group.nodes for node, _ in budget.gone)
        if forced > group.removable:
            labels = ", ".join(layer.label for layer in network.gateable if layer.node in group.nodes)
            raise QueryError(
                f"--remove takes {forced} from layer {labels}, whose budget is {group.removable}",
                needed="forced removals within the budget, against which they count",
                fix="raise the budget, or remove fewer",
            )


def _forced_gates(
    option: str, entries: str | Sequence[tuple[int | str, int]] | None, network: Network
) -> set[tuple[int, int]]:
    """What ``--keep`` or ``--remove`` names, as (Gate node, gate) pairs."""
    found: set[tuple[int, int]] = set()
    for label, text in _pairs(option, entries):
        layer = next((each for each in network.gateable if label in (each.label, each.name)), None)
        known = ", ".join(f"{each.label} ({each.width} {each.gates})" for each in network.gateable)
        if layer is None:
            raise QueryError(
                f"--{option} names layer {label!r}",
                needed=f"one of: {known or 'this network has no gateable layer'}",
                fix=f"see `milpver info MODEL`; write e.g. --{option} 1:3,7"
                + _CHANNELS * (not network.conv_layers),
            )
        if not (text.isdecimal() and text.isascii() and int(text) < layer.width):
            raise QueryError(
                f"--{option} names {text!r} in layer {layer.label}",
                needed=f"a number from 0 to {layer.width - 1}",
                fix=f"write e.g. --{option} {layer.label}:0",
            )
        found.add((layer.node, int(text)))
    return found


def _pairs(option: str, entries: str | Sequence[tuple[int | str, int]] | None) -> list[tuple[str, str]]:
    """``1:3,7,2:0`` as (layer, neuron) texts."""
    if not isinstance(entries, str):
        return [(str(layer), str(neuron)) for layer, neuron in entries or ()]
    found: list[tuple[str, str]] = []
    layer = ""
    for part in entries.replace(" ", ",").split(","):
        if not part:
            continue
        before, sign, neuron = part.rpartition(":")
        layer = before if sign else layer
        if not layer:
            raise QueryError(
                f"--{option} {entries} does not say which layer {neuron!r} is in",
                needed="LAYER:NEURON,NEURON",
                fix=f"write e.g. --{option} 1:3,7 (several layers: 1:3,7,2:0)",
            )
        found.append((layer, neuron))
    return found


def _total(part: str, layers: Sequence[GateableLayer]) -> int:
    """Neurons that a total allows to remove."""
    width = sum(layer.width for layer in layers)
    everything = GateableLayer(0, "all fully connected layers", width, -1, (width,))
    return _count(part, everything, f"total:{part}")


def _named_entry(part: str, network: Network) -> tuple[str, str]:
    """One ``layer:number`` entry: the layer's label, or ``total``, and the text after the sign."""
    name, sign, value = part.rpartition("=" if "=" in part else ":")
    for layer in network.gateable:
        if sign and name in (layer.label, layer.name):
            return layer.label, value
    if sign and name == "total" and network.layers:
        return name, value
    known = ", ".join(f"{layer.label} or {layer.name}" for layer in network.gateable)
    raise QueryError(
        f"budget entry {part!r} names no gateable layer",
        needed=f"one of: {known or 'this network has no gateable layer'}; or total",
        fix="see `milpver info MODEL` for numbers and names; give all entries as layer:number or none"
        + _CHANNELS * (not network.conv_layers),
    )


def _count(part: str, layer: GateableLayer, total: str = "") -> int:
    """Neurons that an entry allows to remove from a layer, or from all; ``total`` is the entry then."""
    try:
        if part in ("", "-"):
            count = 0
        elif part.endswith("%"):
            if _ENDLESS.search(part):
                raise ValueError(part)
            share = min(Fraction(part[:-1]) / 100, Fraction(1)) * layer.width
            count = math.floor(share + Fraction(1, 2)) if share >= 0 else -1
        else:
            count = int(part)
    except (ValueError, ZeroDivisionError):
        raise QueryError(
            f"budget entry {part!r} for " + ("the total" if total else f"layer {layer.label}"),
            needed="a whole number, a percentage such as 10%, or - for none",
            fix="correct the entry",
        ) from None
    if not 0 <= count < layer.width:
        whose = f"{total} over {layer.name}" if total else f"{part} of layer {layer.label} ({layer.name})"
        raise QueryError(
            f"budget {whose} is "
            + (f"{count} of its {layer.width} {layer.gates}" if count >= 0 else "negative"),
            needed=f"0 to {layer.width - 1}: "
            + ("one has to stay" if total else "a layer cannot be removed whole"),
            fix="give a smaller budget",
        )
    return count


def removed_pairs(network: Network, removed: Masks) -> tuple[tuple[int | str, int], ...]:
    """A mask as (layer, neuron from 0) pairs, in order; a layer is its number from 1, or ``conv1``."""
    return tuple(
        (layer.number if not layer.channels else layer.label, int(neuron))
        for layer in network.gateable
        if layer.node in removed
        for neuron in np.flatnonzero(removed[layer.node])
    )


def forced_pairs(network: Network, gates: Sequence[tuple[int, int]]) -> tuple[tuple[int | str, int], ...]:
    """``Budget.kept`` or ``Budget.gone`` as ``removed_pairs`` has masks."""
    labels = {layer.node: layer.number if not layer.channels else layer.label for layer in network.gateable}
    return tuple((labels[node], gate) for node, gate in gates)


def chosen_layers(network: Network, layers: str | Sequence[int | str] | None) -> tuple[GateableLayer, ...]:
    """The layers that ``--layers`` names, in the network's order; all fully connected ones for None.

    Raises:
        QueryError: one is unknown or named twice, or there is none.
    """
    names = layers.split(",") if isinstance(layers, str) else layers
    if names is None:
        names = [layer.label for layer in network.layers]
    wanted = [str(name).strip() for name in names]
    known = {name: layer for layer in network.gateable for name in (layer.name, layer.label)}
    shown = ", ".join(layer.label for layer in network.gateable) or "this network has none"
    if unknown := [name for name in wanted if name not in known]:
        raise QueryError(
            f"--layers names {unknown[0]!r}",
            needed=f"gateable layers: {shown}",
            fix="see `milpver info MODEL`; write e.g. --layers 1,2",
        )
    nodes = [known[name].node for name in wanted]
    if not nodes:
        raise QueryError(
            "no layer to prune" + f": {network.path.name} has none" * (not network.layers),
            needed=f"some of the gateable layers: {shown}",
            fix="name layers with --layers; see `milpver info MODEL`",
        )
    if len(set(nodes)) < len(nodes):
        raise QueryError(
            f"--layers {','.join(wanted)} names a layer twice",
            needed=f"some of the gateable layers, each once: {shown}",
            fix="write e.g. --layers 1,2",
        )
    return tuple(layer for layer in network.gateable if layer.node in nodes)


def names_layers(*texts: str | None) -> bool:
    """Whether texts of ``--budget`` and the like name a layer, so that it may be a convolution."""
    return any(letter.isalpha() for text in texts for letter in (text or "").replace("total", ""))


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A closed box of inputs around a centre.

    The exact box has corners that floats need not have, so it is held twice: rounded outward (bounds and
    programs range over it) and rounded inward (a witness has to lie in it, exactly).

    Attributes:
        centre: x0, float64 [inputs], float32 values.
        lower, upper: rounded outward, float64 [inputs].
        inner_lower, inner_upper: rounded inward, float64 [inputs].
    """

    centre: Float
    lower: Float
    upper: Float
    inner_lower: Float
    inner_upper: Float

    @property
    def is_point(self) -> bool:
        """Whether the box is its centre alone."""
        return bool(np.array_equal(self.lower, self.upper))

    def contains(self, x: Float) -> bool:
        """Whether a point, float64 [inputs], lies in the exact closed box."""
        return bool(np.all(x >= self.inner_lower) and np.all(x <= self.inner_upper))

    def clip(self, x: Float) -> Float:
        """The nearest point of the exact box, float64 [inputs]."""
        return np.clip(x, self.inner_lower, self.inner_upper)

    def clip_float32(self, x: Float) -> NDArray[np.float32]:
        """The nearest float32 point of the exact box (the centre is one, so there always is)."""
        near = self.clip(x).astype(np.float32)
        below = near.astype(np.float64) < self.inner_lower
        above = near.astype(np.float64) > self.inner_upper
        near = np.where(below, np.nextafter(near, np.float32(np.inf)), near)
        return np.where(above, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


def ball(centre: Float, radius: float, domain: Domain | None) -> Box:
    """The L-inf ball ``|x - centre| <= radius``, clipped to the domain.

    Args:
        centre: float64 [inputs], inside the domain.
        radius: >= 0; infinity gives the domain itself.
        domain: limits of every entry, or None.
    """
    low, high = domain if domain is not None else (-np.inf, np.inf)
    down, down_error = _two_sum(centre, -radius)
    up, up_error = _two_sum(centre, radius)
    out_down = np.where(down_error < 0, np.nextafter(down, -np.inf), down)
    in_down = np.where(down_error > 0, np.nextafter(down, np.inf), down)
    out_up = np.where(up_error > 0, np.nextafter(up, np.inf), up)
    in_up = np.where(up_error < 0, np.nextafter(up, -np.inf), up)
    return Box(
        centre=centre,
        lower=np.maximum(out_down, low),
        upper=np.minimum(out_up, high),
        inner_lower=np.maximum(in_down, low),
        inner_upper=np.minimum(in_up, high),
    )


def _two_sum(a: Float, b: float) -> tuple[Float, Float]:
    """``a + b`` rounded, and the exact error ``(a + b) - rounded`` (Knuth's TwoSum); 0 for infinities."""
    total = a + b
    if not math.isfinite(b):
        return total, np.zeros_like(total)
    part = total - a
    return total, (a - (total - part)) + (b - part)


def check_inputs(
    network: Network, inputs: NDArray[np.float32], labels: Sequence[int], domain: Domain | None
) -> None:
    """Refuse inputs that the question makes no sense for.

    Args:
        network: the classifier.
        inputs: float32 [n, inputs].
        labels: a class for each input.
        domain: limits of the inputs, or None.

    Raises:
        QueryError: wrong shapes, NaN or infinity, a label out of range, an input outside of the domain,
            an empty domain, a network with one output.
    """
    graph = network.graph
    if inputs.ndim != 2 or inputs.shape[1] != graph.inputs or len(labels) != len(inputs):
        raise QueryError(
            f"inputs of shape {inputs.shape} with {len(labels)} labels",
            needed=f"inputs of shape [n, {graph.inputs}] and n labels",
            fix="flatten each input to the network's input size",
        )
    if graph.outputs < 2:
        raise QueryError(
            f"{network.path.name} has {graph.outputs} output",
            needed="a classifier with at least two outputs",
            fix="ask this question about a classifier",
        )
    finite = np.isfinite(inputs).all(axis=1)
    if not finite.all():
        raise QueryError(
            f"input {int(np.argmin(finite))} holds NaN or infinity",
            needed="finite numbers",
            fix="clean the data",
        )
    wrong = [(i, label) for i, label in enumerate(labels) if not 0 <= label < graph.outputs]
    if wrong:
        raise QueryError(
            f"label {wrong[0][1]} of input {wrong[0][0]}",
            needed=f"a class from 0 to {graph.outputs - 1}",
            fix="check the labels and the network's outputs",
        )
    if domain is None:
        return
    limits = [np.asarray(limit, dtype=np.float64) for limit in domain]
    if any(limit.shape not in ((), (graph.inputs,)) for limit in limits):
        raise QueryError(
            f"a domain of shapes {' and '.join(str(limit.shape) for limit in limits)}",
            needed=f"a number or {graph.inputs} of them for either limit",
            fix="give one limit for all entries, or one for each",
        )
    low, high = (np.broadcast_to(limit, (graph.inputs,)) for limit in limits)
    if not np.all(low <= high):
        raise QueryError(
            f"an empty domain: lower limit {low[~(low <= high)][0]} above upper {high[~(low <= high)][0]}",
            needed="lower <= upper for every entry",
            fix="correct --domain LO,HI",
        )
    inside = ((inputs >= low) & (inputs <= high)).all(axis=1)
    if not inside.all():
        first = int(np.argmin(inside))
        span = f"[{float(inputs[first].min()):g}, {float(inputs[first].max()):g}]"
        allowed = f"[{float(low.min()):g}, {float(high.max()):g}]"
        raise QueryError(
            f"input {first} spans {span}, outside of the domain {allowed}",
            needed="inputs inside the domain",
            fix="correct --domain, or scale the data with --scale",
        )


@dataclass(frozen=True, slots=True)
class Options:
    """How a question is to be answered; the same for all inputs of a run.

    Attributes:
        solver, encoding, bounds: plug-in names; the solvers "bab" (the native search where it applies, else
            highs) and "auto" (whichever is faster); encoding and bounds are those of the MILP.
        timeout: wall-clock seconds for one input with all its classes.
        gap: absolute gap at which a bracket counts as closed.
        threads: of the solver.
        memory: bytes, or None.
        seed: random seed.
        device: "auto", "cpu" or "cuda", where bounds are computed.
        decide: margin only: stop as soon as the sign is proven.
        pre_screen: margin only, with ``decide``, for points: "deviation" has inputs answered by deviation
            bounds where these suffice, before anything else is tried; "none".
        solver_options: the solver's own parameters.
        solver_log: folder for the solver's logs, one file a solve; None for none.
        cross_check: solvers that solve every program in place of ``solver`` and have to agree; () for none.
    """

    solver: str = "auto"
    encoding: str = "fused"
    bounds: str = "alpha-crown"
    timeout: float = 60.0
    gap: float = 1e-6
    threads: int = 1
    memory: int | None = None
    seed: int = 0
    device: str = "auto"
    decide: bool = False
    solver_options: Mapping[str, str] | None = None
    solver_log: Path | None = None
    cross_check: tuple[str, ...] = ()
    pre_screen: str = "none"

    def __post_init__(self) -> None:
        """Refuse values that no run could honour."""
        _require(self.timeout > 0, "timeout", self.timeout, "a number of seconds > 0")
        _require(
            self.gap >= 0 and math.isfinite(self.gap), "gap", self.gap, "a finite number >= 0, such as 1e-6"
        )
        _require(self.threads >= 1, "threads", self.threads, "a whole number >= 1")
        _require(self.seed >= 0, "seed", self.seed, "a whole number >= 0")
        _require(self.memory is None or self.memory > 0, "memory", self.memory, "bytes > 0, such as 4G")
        _require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu or cuda")
        _require(self.pre_screen in ("none", "deviation"), "pre-screen", self.pre_screen, "none or deviation")
        _require(
            self.pre_screen == "none" or self.decide, "pre-screen", self.pre_screen, "--decide beside it"
        )


def _require(holds: bool, name: str, value: object, needed: str) -> None:
    if not holds:
        raise QueryError(f"--{name} {value}", needed=needed, fix=f"correct --{name}")
