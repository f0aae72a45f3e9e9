"""Pruning masks by McCormick's envelopes (McCormick 1976; neuron-pruning paper eq. 8).

For p = m v, m in {0, 1}, v in [L, U]:

    p <= U m,   p >= L m,   p <= v - L (1 - m),   p >= v - U (1 - m),

and sum m >= gates - s for each budget group, which the encoder adds. Exact, m being binary.
"""

from __future__ import annotations

import numpy as np

from milpver.encoding import Emission, Encoding, GateColumns, Values
from milpver.graph import Gate


def mask_mccormick(emission: Emission, index: int) -> Values:
    """Add m for every gate and p for every entry of a Gate node with a budget."""
    node = emission.graph.gate(index)
    lower, upper = emission.lower(node.source), emission.upper(node.source)
    v = emission.columns_of(node.source)
    m = emission.builder.add_binaries(f"m{index}", node.gates)
    p = emission.builder.add_columns(f"p{index}", np.minimum(lower, 0.0), np.maximum(upper, 0.0))
    owner = m[node.owner]
    emission.builder.add_rows([(p, 1.0), (owner, -upper)], -np.inf, 0.0)
    emission.builder.add_rows([(p, 1.0), (owner, -lower)], 0.0, np.inf)
    emission.builder.add_rows([(p, 1.0), (v, -1.0), (owner, -lower)], -np.inf, -lower)
    emission.builder.add_rows([(p, 1.0), (v, -1.0), (owner, -upper)], -upper, np.inf)
    emission.gates[index] = GateColumns(m, removed_is_one=False)
    return Values.columns(p)


ENCODING = Encoding("mask-mccormick", {Gate: mask_mccormick})
