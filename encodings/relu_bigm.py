"""ReLU by big-M with one binary a neuron (Tjeng, Xiao, Tedrake 2019; neuron-pruning paper eq. 7).

For x = relu(z), z in [l, u], a in {0, 1}:

    x >= z,   x >= 0,   x <= u a,   x <= z - l (1 - a).
"""

from __future__ import annotations

import numpy as np

from milpver.encoding import Emission, Encoding, Values
from milpver.graph import Relu


def relu_bigm(emission: Emission, index: int) -> Values:
    """Add z, x and a for every neuron, stable or not; z is fixed where the input fixes it."""
    node = emission.graph.nodes[index]
    (source,) = node.sources
    lower, upper = emission.lower(source), emission.upper(source)
    z = emission.columns_of(source)
    x = emission.builder.add_columns(f"x{index}", np.zeros(node.size), np.maximum(upper, 0.0))
    a = emission.builder.add_binaries(f"a{index}", node.size)
    emission.builder.add_rows([(x, 1.0), (z, -1.0)], 0.0, np.inf)
    emission.builder.add_rows([(x, 1.0), (a, -upper)], -np.inf, 0.0)
    emission.builder.add_rows([(x, 1.0), (z, -1.0), (a, -lower)], -np.inf, -lower)
    return Values.columns(x)


ENCODING = Encoding("relu-bigm", {Relu: relu_bigm})
