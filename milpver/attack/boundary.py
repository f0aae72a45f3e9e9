"""The closest adversarial input an attack can find in L-inf: DeepFool's linearisation, one batch of targets.

In the linear region of a point x the margin to class j is m_j(x) + g_j . (x' - x), and the closest point to
x0 at which it vanishes lies at x' = x0 - r sign(g_j) with r = (m_j(x) + g_j . (x0 - x)) / ||g_j||_1
(Moosavi-Dezfooli et al. 2016, DeepFool, L-inf form), r being found within the domain. Repeated from x' this
walks along the boundary towards x0; every adversarial point met is pulled back along the segment to x0.
"""

from __future__ import annotations

import numpy as np

from milpver.graph import Graph
from milpver.linear import Float

__all__ = ["closest_adversarials", "onto_boundary"]

#: Halvings of a segment when a point is pulled back towards x0.
_HALVINGS = 30


def closest_adversarials(
    graph: Graph, x0: Float, label: int, targets: list[int], low: Float, high: Float, *, steps: int, seed: int
) -> tuple[Float, Float]:
    """Adversarial inputs near x0, one for each target class.

    Args:
        graph: the network.
        x0: float64 [inputs].
        label: its class.
        targets: competing classes; adversarial for j means ``f_label <= f_j``.
        low, high: limits of every entry, float64 [inputs], infinities allowed.
        steps: linearisations from each start; half of the starts are x0 itself, half random points near it.
        seed: of the random starts.

    Returns:
        Distances, float64 [targets], infinity where none was found, and the points, float64
        [targets, inputs], every one with a float64 margin <= 0 as evaluated here.
    """
    rng = np.random.default_rng(seed)
    rows = np.zeros((len(targets), graph.outputs))
    rows[:, label] = 1.0
    rows[np.arange(len(targets)), targets] -= 1.0
    best = np.full(len(targets), np.inf)
    points = np.tile(x0, (len(targets), 1))
    for attempt in range(2):
        x = np.tile(x0, (len(targets), 1))
        if attempt:
            reach = np.where(np.isfinite(best), best, 1.0)[:, None]
            x = np.clip(x + reach * rng.uniform(-1.0, 1.0, x.shape), low, high)
        overshoot = 1.0 + 1e-6
        for _ in range(steps):
            values = graph.trace(x)
            margin = np.einsum("bi,bi->b", rows, values[-1])
            _keep_closest(graph, x0, x, margin, rows, best, points)
            slope = graph.pullback(values, rows)
            needed = margin + np.einsum("bi,bi->b", slope, x0 - x)
            x = onto_boundary(x0, slope, needed * overshoot, low, high)
            overshoot = min(overshoot * 1.2, 1.3)
    return best, points


def onto_boundary(x0: Float, slope: Float, needed: Float, low: Float, high: Float) -> Float:
    """The closest points to x0 at which linear margins have dropped by ``needed``, inside the domain.

    The entries move by r against the sign of their slope, those at the domain's edge stay there; r solves
    ``sum_i |g_i| min(r, room_i) = needed``, room_i being the way to the edge. Where the whole domain is not
    enough, every entry goes to its edge (or, without an edge, as far as the free entries must).

    Args:
        x0: float64 [inputs].
        slope: g, float64 [batch, inputs].
        needed: float64 [batch]; points with ``needed <= 0`` stay at x0.
        low, high: limits of every entry, float64 [inputs].

    Returns:
        float64 [batch, inputs].
    """
    weight = np.abs(slope)
    room = np.where(slope > 0, x0 - low, high - x0)
    room = np.where(weight > 0, room, 0.0)
    order = np.argsort(room, axis=1)
    sorted_room = np.take_along_axis(room, order, axis=1)
    sorted_weight = np.take_along_axis(weight, order, axis=1)
    finite_room = np.where(np.isfinite(sorted_room), sorted_room, 0.0)
    # Up to the k-th edge the entries before it have given all they can, the others move on together.
    given = np.cumsum(sorted_weight * finite_room, axis=1) - sorted_weight * finite_room
    rest = np.cumsum(sorted_weight[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = (needed[:, None] - given) / rest
    fits = (rest > 0) & (radius <= sorted_room)
    first = fits.argmax(axis=1)
    found = np.take_along_axis(radius, first[:, None], axis=1)[:, 0]
    found = np.where(fits.any(axis=1), found, np.where(np.isfinite(room), room, 0.0).max(axis=1, initial=0.0))
    moved = x0 - np.sign(slope) * np.maximum(found, 0.0)[:, None]
    inside: Float = np.clip(moved, low, high)
    return inside


def _keep_closest(
    graph: Graph, x0: Float, x: Float, margin: Float, rows: Float, best: Float, points: Float
) -> None:
    """Pull the adversarial points among x back along their segments to x0; keep what is closer than best."""
    hit = np.flatnonzero(margin <= 0)
    if len(hit) == 0:
        return
    near, far = np.zeros(len(hit)), np.ones(len(hit))
    way = x[hit] - x0
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        outputs = graph.evaluate(x0 + middle[:, None] * way)
        adversarial = np.einsum("bi,bi->b", rows[hit], outputs) <= 0
        near, far = np.where(adversarial, near, middle), np.where(adversarial, middle, far)
    candidate = np.where(far[:, None] == 1.0, x[hit], x0 + far[:, None] * way)
    distance = np.abs(candidate - x0).max(axis=1)
    closer = distance < best[hit]
    best[hit[closer]] = distance[closer]
    points[hit[closer]] = candidate[closer]
