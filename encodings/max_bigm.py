"""Max pooling by big-M (Tjeng, Xiao, Tedrake 2019, section 4.2).

For y = max_k v_k, v_k in [l_k, u_k], b_k in {0, 1}, over the candidates k with u_k > max_j l_j (the others
cannot be the only maximum), u = max_k u_k:

    y >= v_k,   y <= v_k + (u - l_k) (1 - b_k),   sum_k b_k = 1,

and y = v_k without binaries where one candidate is left.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from milpver.encoding import Emission, Encoding, Values
from milpver.graph import Max


def max_bigm(emission: Emission, index: int) -> Values:
    """Add y, and b for every window in which more than one entry can be the maximum."""
    node = emission.graph.nodes[index]
    if not isinstance(node, Max):
        raise TypeError(f"node {index} is not a Max")
    v = emission.columns_of(node.source)
    lower = emission.lower(node.source)[node.groups]
    upper = emission.upper(node.source)[node.groups]
    same = node.groups[:, :, None] == node.groups[:, None, :]
    repeated = np.tril(same, -1).any(axis=2)
    surest = np.where(repeated, -np.inf, lower).argmax(axis=1)
    candidate = ~repeated & (upper > lower.max(axis=1, keepdims=True))
    candidate[np.arange(node.size), surest] = True
    single = candidate.sum(axis=1) == 1
    column = np.full(node.size, -1, dtype=np.int64)
    column[single] = v[node.groups[single, candidate[single].argmax(axis=1)]]
    open_ = np.flatnonzero(~single)
    top = upper.max(axis=1)
    y = emission.builder.add_columns(f"y{index}", lower.max(axis=1)[open_], top[open_])
    column[open_] = y
    window, slot = np.nonzero(candidate[open_])
    members, bottom = v[node.groups[open_][window, slot]], lower[open_][window, slot]
    b = emission.builder.add_binaries(f"b{index}", len(members))
    slack = top[open_][window] - bottom
    emission.builder.add_rows([(y[window], 1.0), (members, -1.0)], 0.0, np.inf)
    emission.builder.add_rows([(y[window], 1.0), (members, -1.0), (b, slack)], -np.inf, slack)
    choice = sparse.csr_array((np.ones(len(b)), (window, np.arange(len(b)))), shape=(len(y), len(b)))
    emission.builder.add_matrix_rows([(b, choice)], 1.0, 1.0, len(y))
    return Values.columns(column)


ENCODING = Encoding("max-bigm", {Max: max_bigm})
