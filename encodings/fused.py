"""ReLU and mask in one: no product column, no binary for a neuron whose phase is known.

For y = m relu(z), z in [l, u], with p = 1 where the neuron is active and kept and q = 1 - m:

    unstable (l < 0 < u):  y >= 0,  y >= z - u q,  y <= u p,  y <= z - l (1 - p),  p + q <= 1
    active   (l >= 0):     y >= z - u q,  y <= u (1 - q),  y >= l (1 - q),  y <= z - l q
    dead     (u <= 0):     y = 0, no mask
    z = c fixed:           y = relu(c) (1 - q), no column for y

and sum q <= s for each budget group, added by the encoder. Without a budget: Tjeng's rows for the unstable
neurons only. Gates on values of other kinds take McCormick's envelopes.
"""

from __future__ import annotations

import numpy as np

from milpver.encoding import Emission, Encoding, GateColumns, Values
from milpver.encodings.mask_mccormick import mask_mccormick
from milpver.encodings.max_bigm import max_bigm
from milpver.graph import Gate, Max, Relu
from milpver.linear import Float, Int


def relu_unstable(emission: Emission, index: int) -> Values:
    """Encode a ReLU without a mask: a binary for unstable neurons, z itself for active ones."""
    (source,) = emission.graph.nodes[index].sources
    z = emission.materialise(source)
    if not np.any(z.column >= 0):
        return Values.constants(np.maximum(z.constant, 0.0))
    lower, upper = emission.lower(source), emission.upper(source)
    known = z.column < 0
    values = Values(
        np.where(known | (upper <= 0), -1, z.column),
        np.where(known | (upper <= 0), 0.0, z.coefficient),
        np.where(upper <= 0, 0.0, np.where(known, np.maximum(z.constant, 0.0), z.constant)),
    )
    open_ = np.flatnonzero(~known & (lower < 0) & (upper > 0))
    if len(open_) == 0:
        return values
    low, high = lower[open_], upper[open_]
    builder = emission.builder
    y = builder.add_columns(f"y{index}", np.zeros(len(open_)), high)
    p = builder.add_binaries(f"p{index}", len(open_))
    _between(emission, y, _pick(z, open_), p, low, high)
    return values.replaced(open_, y)


def gated_relu(emission: Emission, index: int) -> Values:
    """Encode a Gate with a budget together with the Relu in front of it."""
    gate = emission.graph.gate(index)
    (source,) = emission.graph.nodes[gate.source].sources
    z = emission.materialise(source)
    known = z.column < 0
    lower = np.where(known, z.constant, emission.lower(source))
    upper = np.where(known, z.constant, emission.upper(source))
    matters = np.bincount(gate.owner, weights=upper > 0, minlength=gate.gates) > 0
    q = np.full(gate.gates, -1, dtype=np.int64)
    q[matters] = emission.builder.add_binaries(f"q{index}", int(matters.sum()))
    emission.gates[index] = GateColumns(q, removed_is_one=True)
    removed = q[gate.owner]
    size = gate.size
    values = Values(np.full(size, -1, dtype=np.int64), np.zeros(size), np.zeros(size))
    builder = emission.builder

    fixed = np.flatnonzero(known & (upper > 0))
    values.column[fixed], values.coefficient[fixed] = removed[fixed], -upper[fixed]
    values.constant[fixed] = upper[fixed]

    active = np.flatnonzero(~known & (lower >= 0) & (upper > 0))
    if len(active):
        low, high, gone, at = lower[active], upper[active], removed[active], _pick(z, active)
        y = builder.add_columns(f"y{index}", np.zeros(len(active)), high)
        terms = [(at.column, -at.coefficient), (y, np.ones(len(y)))]
        builder.add_rows([*terms, (gone, high)], at.constant, np.inf)
        builder.add_rows([(y, 1.0), (gone, high)], -np.inf, high)
        builder.add_rows([(y, 1.0), (gone, low)], low, np.inf)
        builder.add_rows([*terms, (gone, low)], -np.inf, at.constant)
        values = values.replaced(active, y)

    open_ = np.flatnonzero(~known & (lower < 0) & (upper > 0))
    if len(open_):
        low, high, gone, at = lower[open_], upper[open_], removed[open_], _pick(z, open_)
        y = builder.add_columns(f"y{index}u", np.zeros(len(open_)), high)
        p = builder.add_binaries(f"p{index}", len(open_))
        _between(emission, y, at, p, low, high, gone)
        builder.add_rows([(p, 1.0), (gone, 1.0)], -np.inf, 1.0)
        values = values.replaced(open_, y)
    return values


def max_or_constant(emission: Emission, index: int) -> Values:
    """Encode a Max by big-M, unless the input fixes all that it reads."""
    node = emission.graph.nodes[index]
    if not isinstance(node, Max):
        raise TypeError(f"node {index} is not a Max")
    v = emission.materialise(node.source)
    if np.any(v.column >= 0):
        return max_bigm(emission, index)
    return Values.constants(v.constant[node.groups].max(axis=1))


def _pick(values: Values, at: Int) -> Values:
    """The entries ``at``."""
    return Values(values.column[at], values.coefficient[at], values.constant[at])


def _between(
    emission: Emission, y: Int, z: Values, p: Int, low: Float, high: Float, removed: Int | None = None
) -> None:
    """Rows of an unstable neuron: ``y >= z - u q``, ``y <= u p``, ``y <= z - l (1 - p)``."""
    builder = emission.builder
    terms = [(y, np.ones(len(y))), (z.column, -z.coefficient)]
    gone = [] if removed is None else [(removed, high)]
    builder.add_rows([*terms, *gone], z.constant, np.inf)
    builder.add_rows([(y, 1.0), (p, -high)], -np.inf, 0.0)
    builder.add_rows([*terms, (p, -low)], -np.inf, z.constant - low)


ENCODING = Encoding(
    "fused",
    {Relu: relu_unstable, Gate: mask_mccormick, Max: max_or_constant},
    gated_relu=gated_relu,
)
