"""The questions as plain functions: one input or a batch in, verdicts out.

No printing, no global state, no signal handlers; the command line stands on the generators behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milpver.distance import distances, pruned_network
from milpver.errors import QueryError
from milpver.fewest_removals import pruning_distances
from milpver.margin import margins
from milpver.network import Network
from milpver.query import Domain, Options, parse_budget
from milpver.verdict import Verdict

__all__ = ["OptionArguments", "boundary_distance", "pruning_distance", "worst_margin"]

#: Labels of a batch; a single label is an int.
Labels: TypeAlias = "Sequence[int] | NDArray[np.int64]"

#: Neurons by layer: "1:3,7", or (layer, neuron) pairs.
Forced: TypeAlias = "str | Sequence[tuple[int | str, int]] | None"


class OptionArguments(TypedDict, total=False):
    """Keyword arguments of both questions: how to answer, as ``milpver.query.Options`` says."""

    solver: str
    encoding: str
    bounds: str
    timeout: float
    gap: float
    threads: int
    memory: int | None
    seed: int
    device: str
    solver_options: Mapping[str, str] | None
    solver_log: Path | None
    cross_check: tuple[str, ...]


@overload
def worst_margin(
    network: Network,
    x: ArrayLike,
    label: int,
    *,
    budget: str | Sequence[int | str] | None = None,
    keep: Forced = None,
    remove: Forced = None,
    radius: float = 0.0,
    domain: Domain | None = None,
    decide: bool = False,
    **options: Unpack[OptionArguments],
) -> Verdict: ...


@overload
def worst_margin(
    network: Network,
    x: ArrayLike,
    label: Labels,
    *,
    budget: str | Sequence[int | str] | None = None,
    keep: Forced = None,
    remove: Forced = None,
    radius: float = 0.0,
    domain: Domain | None = None,
    decide: bool = False,
    **options: Unpack[OptionArguments],
) -> tuple[Verdict, ...]: ...


def worst_margin(
    network: Network,
    x: ArrayLike,
    label: int | Labels,
    *,
    budget: str | Sequence[int | str] | None = None,
    keep: Forced = None,
    remove: Forced = None,
    radius: float = 0.0,
    domain: Domain | None = None,
    decide: bool = False,
    **options: Unpack[OptionArguments],
) -> Verdict | tuple[Verdict, ...]:
    """Find the smallest margin over every admissible mask and every input of the ball.

    Args:
        network: the classifier, from ``milpver.load``.
        x: one input (any shape with the network's number of entries, in its order) or, with a sequence of
            labels, a batch of them along the first axis. Taken as float32.
        label: the class asked about, one for each input.
        budget: neurons removable a gateable layer, as ``--budget`` takes it ("2,1", [2, 1], "10%,0",
            "total:3"). None: nothing is removed.
        keep: neurons that have to stay, as ``--keep`` takes them ("1:3,7") or (layer, neuron) pairs.
        remove: neurons that are removed in every mask; they count against the budget of their layer, and
            where that is 0 exactly they are removed.
        radius: of the L-inf ball, in the data's units.
        domain: (lower, upper) limits of the inputs, numbers or float64 arrays [inputs].
        decide: stop as soon as the sign of the margin is proven.
        options: solver, encoding, bounds, timeout, gap, threads, memory, seed, device, solver_options,
            solver_log, cross_check, as in ``milpver.query.Options``.

    Returns:
        A verdict, or a tuple of them for a batch.

    Raises:
        QueryError: a budget, radius, label, domain or option that makes no sense for this network.
        PluginError: an unknown solver, encoding or bounding.
    """
    inputs, labels = _batch(network, x, label)
    found = margins(
        network,
        inputs,
        labels,
        budget=parse_budget(budget, network, keep=keep, remove=remove),
        radius=float(radius),
        domain=domain,
        options=Options(decide=decide, **options),
    )
    return tuple(found) if np.ndim(label) else next(found)


@overload
def boundary_distance(
    network: Network,
    x: ArrayLike,
    label: int,
    *,
    domain: Domain | None = None,
    method: str = "direct",
    norm: str = "linf",
    target: int | None = None,
    remove: Forced = None,
    **options: Unpack[OptionArguments],
) -> Verdict: ...


@overload
def boundary_distance(
    network: Network,
    x: ArrayLike,
    label: Labels,
    *,
    domain: Domain | None = None,
    method: str = "direct",
    norm: str = "linf",
    target: int | None = None,
    remove: Forced = None,
    **options: Unpack[OptionArguments],
) -> tuple[Verdict, ...]: ...


def boundary_distance(
    network: Network,
    x: ArrayLike,
    label: int | Labels,
    *,
    domain: Domain | None = None,
    method: str = "direct",
    norm: str = "linf",
    target: int | None = None,
    remove: Forced = None,
    **options: Unpack[OptionArguments],
) -> Verdict | tuple[Verdict, ...]:
    """Find the distance from an input to the closest one of another class (or tied with one).

    Args:
        network: the classifier, from ``milpver.load``.
        x: one input or, with a sequence of labels, a batch along the first axis. Taken as float32.
        label: the class of each input.
        domain: (lower, upper) limits of the inputs, numbers or float64 arrays [inputs].
        method: ``direct`` minimisation, or ``bisect`` on the radius (the papers' reference).
        norm: ``linf``, ``l1``, or ``l2`` (of backends by those that take squares alone: scip, gurobi).
        target: only this competing class.
        remove: neurons that the network goes without, as for ``worst_margin``.
        options: as for ``worst_margin``.

    Returns:
        A verdict, or a tuple of them for a batch; distances are in the data's units.

    Raises:
        QueryError: a label, target, domain or option that makes no sense for this network.
        PluginError: an unknown solver, encoding or bounding.
    """
    inputs, labels = _batch(network, x, label)
    pruned, pairs = pruned_network(network, remove)
    answers = distances(
        pruned,
        inputs,
        labels,
        domain=domain,
        options=Options(**options),
        method=method,
        norm=norm,
        target=target,
    )
    found = (replace(verdict, remove=pairs) for verdict in answers)
    return tuple(found) if np.ndim(label) else next(found)


@overload
def pruning_distance(
    network: Network,
    x: ArrayLike,
    label: int,
    *,
    layers: str | Sequence[int | str] | None = None,
    total: bool = False,
    keep: Forced = None,
    remove: Forced = None,
    domain: Domain | None = None,
    **options: Unpack[OptionArguments],
) -> Verdict: ...


@overload
def pruning_distance(
    network: Network,
    x: ArrayLike,
    label: Labels,
    *,
    layers: str | Sequence[int | str] | None = None,
    total: bool = False,
    keep: Forced = None,
    remove: Forced = None,
    domain: Domain | None = None,
    **options: Unpack[OptionArguments],
) -> tuple[Verdict, ...]: ...


def pruning_distance(
    network: Network,
    x: ArrayLike,
    label: int | Labels,
    *,
    layers: str | Sequence[int | str] | None = None,
    total: bool = False,
    keep: Forced = None,
    remove: Forced = None,
    domain: Domain | None = None,
    **options: Unpack[OptionArguments],
) -> Verdict | tuple[Verdict, ...]:
    """Find the fewest neurons whose removal changes the prediction (a tie counts as changed).

    Args:
        network: the classifier, from ``milpver.load``.
        x: one input or, with a sequence of labels, a batch along the first axis. Taken as float32.
        label: the class of each input.
        layers: the layers to remove from, "1,2" or a sequence of numbers or names; None: all gateable fully
            connected ones.
        total: count removals over these layers together; else each layer is asked about by itself, and the
            distance is the smallest of theirs.
        keep: neurons that have to stay, as for ``worst_margin``.
        remove: neurons that are removed in every mask; they count.
        domain: (lower, upper) limits of the inputs.
        options: as for ``worst_margin``.

    Returns:
        A verdict, or a tuple of them for a batch: ``lower`` and ``upper`` are integers, ``removed`` is the
        mask, ``layers`` has the bracket of each layer.

    Raises:
        QueryError: layers, neurons, a label or an option that make no sense for this network.
        PluginError: an unknown solver, encoding or bounding.
    """
    inputs, labels = _batch(network, x, label)
    found = pruning_distances(
        network,
        inputs,
        labels,
        layers=layers,
        total=total,
        keep=keep,
        remove=remove,
        domain=domain,
        options=Options(**options),
    )
    return tuple(found) if np.ndim(label) else next(found)


def _batch(network: Network, x: ArrayLike, label: int | Labels) -> tuple[NDArray[np.float32], list[int]]:
    """Inputs as float32 [n, inputs] and labels as a list."""
    given = np.atleast_1d(np.asarray(label))
    labels = [int(each) for each in given]
    if wrong := [each for each, whole in zip(given, labels, strict=True) if each != whole]:
        raise QueryError(f"the label {wrong[0]!r}", needed="a class, a whole number", fix="pass the class")
    values = np.asarray(x, dtype=np.float32)
    if len(labels) > 1 and values.shape[:1] != (len(labels),):  # transposed, for one
        raise QueryError(
            f"{len(labels)} labels and an array of shape {values.shape}",
            needed="the inputs along the first axis, one label each",
            fix="transpose or stack the inputs",
        )
    if values.size != len(labels) * network.graph.inputs:
        raise QueryError(
            f"{len(labels)} labels and an array of shape {values.shape}",
            needed=f"{network.graph.inputs} entries an input",
            fix="pass one label an input, and inputs of the network's size",
        )
    return values.reshape(len(labels), network.graph.inputs), labels
