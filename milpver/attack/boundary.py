"""The closest adversarial input an attack can find in a norm: DeepFool's linearisation, one batch of targets.

In the linear region of a point x the margin to class j is m_j(x) + g_j . (x' - x); the closest point to x0 at
which it vanishes, within the domain, is that of ``norm.closest_steps`` (without a domain, in L-inf,
x' = x0 - r sign(g_j) with r = (m_j(x) + g_j . (x0 - x)) / ||g_j||_1: Moosavi-Dezfooli et al. 2016, DeepFool).
Repeated from x' this walks along the boundary towards x0; every adversarial point met is pulled back along
the segment to x0. In L1 and L2, where such steps are long in few entries, parts of them are tried as well.
"""

from __future__ import annotations

import numpy as np

from milpver.graph import Graph
from milpver.linear import Float
from milpver.norm import closest_steps, lengths

__all__ = ["closest_adversarials"]

#: Halvings of a segment when a point is pulled back towards x0.
_HALVINGS = 30
#: Linearisations without a gain worth it (relative), after which a walk ends; targets that this is asked of
#: are those not this many times as far as the closest.
_IDLE, _WORTH, _NEAR = 4, 1e-3, 2.0
#: Parts of a step that are tried in L1 and L2, and how often.
_PARTS = np.array([1.0, 0.7, 0.4, 0.2, 0.1, 0.04, 0.01])
_DESCENTS = 60


def closest_adversarials(
    graph: Graph,
    x0: Float,
    label: int,
    targets: list[int],
    low: Float,
    high: Float,
    *,
    steps: int,
    seed: int,
    norm: str = "linf",
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
        norm: what distances are measured in.

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
            way = rng.uniform(-1.0, 1.0, x.shape)
            if norm != "linf":
                way /= np.maximum(lengths(norm, way), 1e-300)[:, None]
            x = np.clip(x + reach * way, low, high)
        overshoot = 1.0 + 1e-6
        idle = 0
        for _ in range(steps):
            values = graph.trace(x)
            margin = np.einsum("bi,bi->b", rows, values[-1])
            before = best.copy()
            _keep_closest(graph, x0, x, margin, rows, (best, points), norm)
            near = before <= _NEAR * best.min()
            idle = 0 if np.any(near & (best < (1 - _WORTH) * before)) else idle + 1
            if idle > _IDLE and np.isfinite(best.min()):
                break
            slope = graph.pullback(values, rows)
            needed = margin + np.einsum("bi,bi->b", slope, x0 - x)
            x = closest_steps(norm, x0, slope, needed * overshoot, low, high)
            overshoot = min(overshoot * 1.2, 1.3)
    if norm != "linf":
        for k in np.flatnonzero(best <= _NEAR * best.min()):
            if np.isfinite(best[k]):
                best[k], points[k] = _descended(graph, x0, points[k], rows[k], low, high, norm)
    return best, points


def _descended(
    graph: Graph, x0: Float, x: Float, row: Float, low: Float, high: Float, norm: str
) -> tuple[float, Float]:
    """Walk on from an adversarial point, where whole steps of linearisations go to and fro between kinks.

    Parts of the step to the closest point of the linearised boundary are tried, each put right along its own
    slope and pulled back; the closest adversarial one is the next point.
    """
    rows = np.tile(row, (len(_PARTS), 1))
    kept = np.full(len(_PARTS), np.inf), np.tile(x, (len(_PARTS), 1))
    distance = float(lengths(norm, x - x0))
    for _ in range(_DESCENTS):
        values = graph.trace(x[None])
        slope = graph.pullback(values, row[None])
        needed = row @ values[-1][0] + slope @ (x0 - x)
        end = closest_steps(norm, x0, slope, needed, low, high)
        tried = x + _PARTS[:, None] * (end - x)
        for _ in range(2):
            values = graph.trace(tried)
            margin = values[-1] @ row
            _keep_closest(graph, x0, tried, margin, rows, kept, norm)
            slopes = graph.pullback(values, rows)
            scale = np.abs(values[-1]).max(axis=1)
            tried = closest_steps(norm, tried, slopes, margin + 1e-9 * scale, low, high)
        k = int(kept[0].argmin())
        if not kept[0][k] < distance * (1 - _WORTH / 10):
            break
        distance, x = float(kept[0][k]), kept[1][k].copy()
        kept = np.full(len(_PARTS), np.inf), np.tile(x, (len(_PARTS), 1))
    return distance, x


def _keep_closest(
    graph: Graph, x0: Float, x: Float, margin: Float, rows: Float, kept: tuple[Float, Float], norm: str
) -> None:
    """Pull the adversarial points among x back along their segments to x0; keep what is closer."""
    best, points = kept
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
    distance = lengths(norm, candidate - x0)
    closer = distance < best[hit]
    best[hit[closer]] = distance[closer]
    points[hit[closer]] = candidate[closer]
