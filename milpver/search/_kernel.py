"""The search over the masks of a dense chain, compiled: bounds, branching and the tree of one fixed input.

A chain is what ``search.chain`` makes of a network behind its first gated layer, whose values the input
fixes. With m the masks (0 for removed),

    p_0 = m_0,   z_t = W_t p_{t-1} + b_t,   p_t = m_t relu(z_t)   (m_t = 1 where layer t has no budget),

the values of the first gated layer being part of W_1, and rows C_r p_T + d_r are to be minimised. The rules
are those of ``bounds._crown``, row by row instead of batch by batch: a row over p_t is pulled back layer by
layer,

- C <= 0 on relu(z), l < 0 < u: the chord ``C u (z - l) / (u - l)``;
- C > 0, l < 0 < u: ``alpha C z``, and on a free gate ``alpha min(C, lambda / u) z``;
- C > 0, l >= 0, free gate: the chord of the concave ``min(C h, lambda)`` over [l, u];
- every group: ``- lambda s`` once, s the removals left;
- p_0, where it is its group's only layer: the exact sum of C less its s largest positive entries.

The gradient of such a bound by its multipliers comes from one forward pass: the derivative by the
coefficients on p_0 is the worst mask, and what the relaxations make of it layer by layer are the derivatives
by the coefficients above.

Rounding: with M_t = |W_t| max|p_{t-1}| + |b_t| (taken once, at the root, where bounds are widest; errors of
W_1 itself are in it) every operation on the coefficients C_t of a row, and on the constants they make, is
off by at most Gamma |C_t| M_t with Gamma = gamma_n for a generous n, since no relaxation makes coefficients
larger. That is subtracted from every bound.

Everything is deterministic, and holds no lock of the interpreter while it runs.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from milpver.search._compile import compiled

__all__ = [
    "DECIDED",
    "FINISHED",
    "FULL",
    "PAUSED",
    "Chain",
    "Tree",
    "Work",
    "scratch",
    "search",
    "settle",
]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Bytes = NDArray[np.int8]
#: Numbers that are no constants to the compiler, which would compile a function anew for each.
_Number = int | np.int64

#: Why ``search`` came back.
FINISHED, DECIDED, PAUSED, FULL = 0, 1, 2, 3
#: State of a gate.
_FREE, _KEPT, _GONE = 0, 1, 2
#: Ascent steps on a row at a node, which begins at its parent's multipliers.
_NODE_STEPS = 3
#: What of a gated value's width an intermediate bound is taken to pass on, in branching scores.
_PASSED_ON = 0.3
#: In branching scores: the part of the larger gain that counts, and what gates behind the first layer count.
_LARGER, _LATER = 0.1, 0.3
#: Rounds of fixing gates and bounding again at the root, and the share of free gates that makes it worth it.
_FIXING_ROUNDS, _WORTH_BOUNDING = 4, 0.1
#: Multiples of the largest lambda that a row may be away from closing for fixing to be tried.
_FAR = 1.5
#: Rounds of the gradient attack for each row.
_ATTACK_ROUNDS = 6


class Chain(NamedTuple):
    """A chain of T layers for one input; N neurons and G gates in all, R rows, S budget groups.

    Attributes:
        sizes: entries of p_0 .. p_T, int64 [T + 1].
        strides: length of a row of W_t at t, int64 [T + 1]: zeros fill it up, for whole vector registers.
        first: first neuron of each layer among all neurons, int64 [T + 1]; layer 0 has none.
        gates: first gate of each layer among all gates, int64 [T + 1]; -1 where a layer has no budget.
        group: budget group of each layer, int64 [T + 1]; -1 for none.
        alone: whether layer 0 is its group's only one.
        weights: W_1 .. W_T, row-major, one after the other, float64; ``offsets`` int64 [T + 1] says where.
        bias: b, float64 [N].
        size: M, float64 [N].
        down, up: gates of layer 0 in descending order of W_1's and of -W_1's entries, int32 [n_1, n_0].
        rows, constant, slack: C float64 [R, n_T], d float64 [R], and the rounding of both, float64 [R].
        direct: coefficients on p_{T-1} of what rows read past layer T, float64 [R, n_{T-1}]; [R, 0] for none.
        gamma: Gamma.
        removable: s of each group, int64 [S].
        scale: typical size of each group's lambda, float64 [S]; set at the root.
        reach: the largest lambda at the root, which is about what fixing a gate can add, float64 [1].
    """

    sizes: _Ints
    strides: _Ints
    first: _Ints
    gates: _Ints
    group: _Ints
    alone: bool
    weights: _Floats
    offsets: _Ints
    bias: _Floats
    size: _Floats
    down: NDArray[np.int32]
    up: NDArray[np.int32]
    rows: _Floats
    constant: _Floats
    slack: _Floats
    direct: _Floats
    gamma: float
    removable: _Ints
    scale: _Floats
    reach: _Floats


class Tree(NamedTuple):
    """Nodes in slots, and what is known of the rows.

    Attributes:
        state: of the gates, int8 [slots, G].
        left: removals left, int64 [slots, S].
        low, high: bounds of the pre-activations, float64 [slots, N].
        alpha: slopes, float32 [slots, R, N].
        lam: multipliers, float64 [slots, R, S].
        lower: bounds of the rows, float64 [slots, R].
        branch: the gate to branch on, int64 [slots]; -1 for none.
        heap: slots of the open nodes, a binary heap by smallest bound, int64 [slots].
        spare: unused slots, int64 [slots].
        counts: open nodes, unused slots, nodes bounded, slot to go on with (-1 for none), int64 [4].
        root: bounds of the rows at the root, float64 [R].
        closed: smallest bound of each row over the nodes that are closed, float64 [R].
        upper: smallest margin of each row found, float64 [R].
        masks: where it was found (True for removed), bool [R, G].
    """

    state: _Bytes
    left: _Ints
    low: _Floats
    high: _Floats
    alpha: NDArray[np.float32]
    lam: _Floats
    lower: _Floats
    branch: _Ints
    heap: _Ints
    spare: _Ints
    counts: _Ints
    root: _Floats
    closed: _Floats
    upper: _Floats
    masks: NDArray[np.bool_]


class Work(NamedTuple):
    """Scratch space of one search; vectors over neurons have some entries to spare, which count for nothing.

    Attributes:
        steep, missed: slope and constant of ReLU's chord at each neuron, float64 [N].
        plain: slopes where nothing better is known, float64 [N].
        active, unstable: 1 where a neuron is so (and not gone), float64 [N].
        bottom, top, inverse: range of a gated value, and 1 / its width (0: narrow), float64 [N].
        open: 1 where a neuron's gate is free, float64 [N].
        here, loose: 1 where a gate of layer 0 is not gone, and where it is free, float64 [n_0].
        down_last, down_next, up_last, up_next: of each z_1 the s-th largest free share and the next one, for
            the lower and for the upper bound; 0 for none, float64 [n_1].
        row: coefficients to begin with, float64 [largest layer].
        arrived: coefficients on p_1 .. p_T, float64 [N].
        sent: coefficients on z_1 .. z_T, float64 [N].
        shares: coefficients on p_0, float64 [n_0].
        relaxed, values, present: derivatives by ``arrived``, the z that belong to them, by ``shares``.
        pool: for selections, float64 [largest layer].
        slopes: alpha where unstable, 1 where active, else 0, float64 [N].
        alpha, lam: multipliers at work, float64 [N], [S].
        best_alpha, best_lam: the best so far.
        slope, slope_mean, slope_square: gradient by alpha and its moments, float64 [N].
        pull, pull_mean, pull_square: the same by lambda, float64 [S].
        level: the lambda that layer 0 took, float64 [1].
        score, other, moved: for branching, float64 [G], [G], [largest layer].
        mask, before: int8 [G].
        places: int64 [largest layer].
    """

    steep: _Floats
    missed: _Floats
    plain: _Floats
    active: _Floats
    unstable: _Floats
    bottom: _Floats
    top: _Floats
    inverse: _Floats
    open: _Floats
    here: _Floats
    loose: _Floats
    down_last: _Floats
    down_next: _Floats
    up_last: _Floats
    up_next: _Floats
    row: _Floats
    arrived: _Floats
    sent: _Floats
    shares: _Floats
    relaxed: _Floats
    values: _Floats
    present: _Floats
    pool: _Floats
    slopes: _Floats
    alpha: _Floats
    lam: _Floats
    best_alpha: _Floats
    best_lam: _Floats
    slope: _Floats
    slope_mean: _Floats
    slope_square: _Floats
    pull: _Floats
    pull_mean: _Floats
    pull_square: _Floats
    level: _Floats
    score: _Floats
    other: _Floats
    moved: _Floats
    mask: _Bytes
    before: _Bytes
    places: _Ints


def scratch(chain: Chain) -> Work:
    """Scratch space for a chain."""
    neurons, groups = len(chain.bias), len(chain.removable)
    gates = int(chain.sizes[chain.gates >= 0].sum())
    widest = int(max(chain.sizes.max(), chain.strides.max()))
    lengths = dict.fromkeys(("shares", "present", "here", "loose", "row", "moved"), widest)
    lengths |= dict.fromkeys(("lam", "best_lam", "pull", "pull_mean", "pull_square"), groups)
    lengths |= dict.fromkeys(("score", "other", "pool"), max(gates, widest) + widest) | {"level": 1}
    # A row of weights is filled up with zeros: what they multiply has to be there.
    ends = list(itertools.accumulate(lengths.get(name, neurons + widest) for name in Work._fields[:-3]))
    whole = np.zeros(ends[-1])
    floats = [whole[start:end] for start, end in itertools.pairwise([0, *ends])]
    masks = np.zeros((2, gates), dtype=np.int8)
    return Work._make([*floats, masks[0], masks[1], np.zeros(widest, dtype=np.int64)])


@compiled
def _copy(target: _Floats, source: _Floats) -> None:
    """Copy a vector (a slice assignment would compile numpy's broadcasting with it)."""
    for i in range(min(len(target), len(source))):
        target[i] = source[i]


@compiled
def _least(values: _Floats) -> float:
    """The smallest entry."""
    least = np.inf
    for value in values:
        least = min(least, value)
    return least


@compiled
def _widen(target: _Floats, source: NDArray[np.float32]) -> None:
    """Copy single into double precision."""
    for i in range(len(source)):
        target[i] = source[i]


@compiled
def _clear(target: _Floats, count: int) -> None:
    """Set the first ``count`` entries to zero."""
    for i in range(count):
        target[i] = 0.0


@compiled
def _largest(pool: _Floats, count: int, k: int) -> float:
    """The k-th largest (k >= 1) of the first ``count`` entries, which are reordered: quickselect."""
    low, high, k = 0, count - 1, k - 1
    while low < high:
        pivot = pool[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while pool[i] > pivot:
                i += 1
            while pool[j] < pivot:
                j -= 1
            if i <= j:
                pool[i], pool[j] = pool[j], pool[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return float(pool[k])


@compiled
def _threshold(values: _Floats, count: int, most: int) -> float:
    """A lambda >= 0 that exceeds all but ``most`` of some values >= 0, or nearly so: bisection.

    Any lambda gives a sound bound; between the most-th largest value and the next it gives the exact sum.
    """
    low, high = 0.0, 0.0
    for q in range(count):
        high = max(high, values[q])
    for _ in range(40):
        middle = 0.5 * (low + high)
        larger = 0
        for q in range(count):
            larger += values[q] > middle
        if larger == most:
            return middle
        if larger > most:
            low = middle
        else:
            high = middle
    return high


@compiled
def _gates(chain: Chain, work: Work, state: _Bytes, left: _Ints) -> None:
    """Note which gates of layer 0 are there, and which are free."""
    some = 1.0 if left[chain.group[0]] > 0 else 0.0
    for q in range(chain.sizes[0]):
        work.here[q] = 0.0 if state[q] == _GONE else 1.0
        work.loose[q] = some if state[q] == _FREE else 0.0


@compiled
def _first_layer(chain: Chain, work: Work, state: _Bytes, left: int, low: _Floats, high: _Floats) -> None:
    """Exact bounds of z_1 where layer 0 is its group's only one, met with those that are known."""
    width, stride = chain.sizes[0], chain.strides[1]
    for j in range(chain.sizes[1]):
        base = chain.offsets[1] + j * stride
        row = chain.weights[base : base + stride]
        total = 0.0
        for q in range(stride):
            total += row[q] * work.here[q]
        total += chain.bias[j]
        least, most = total, total
        last, following, taken = 0.0, 0.0, 0
        for place in range(width):
            q = chain.down[j, place]
            if row[q] <= 0.0:
                break
            if state[q] == _FREE:
                if taken == left:
                    following = row[q]
                    break
                least -= row[q]
                last = row[q]
                taken += 1
        work.down_last[j] = last if taken == left else 0.0
        work.down_next[j] = following
        last, following, taken = 0.0, 0.0, 0
        for place in range(width):
            q = chain.up[j, place]
            if row[q] >= 0.0:
                break
            if state[q] == _FREE:
                if taken == left:
                    following = -row[q]
                    break
                most -= row[q]
                last = -row[q]
                taken += 1
        work.up_last[j] = last if taken == left else 0.0
        work.up_next[j] = following
        slack = chain.gamma * chain.size[j]
        low[j] = max(low[j], least - slack)
        high[j] = min(high[j], most + slack)


@compiled
def _prepare(
    chain: Chain, work: Work, t: int, state: _Bytes, left: _Ints, low: _Floats, high: _Floats
) -> None:
    """What the relaxation of a layer depends on, from the bounds of its pre-activations."""
    gate = chain.gates[t]
    free = gate >= 0 and left[chain.group[t]] > 0
    for j in range(chain.sizes[t]):
        n = chain.first[t] + j
        l, u = low[n], high[n]
        gone = gate >= 0 and state[gate + j] == _GONE
        work.steep[n] = work.missed[n] = work.plain[n] = work.active[n] = work.unstable[n] = 0.0
        work.bottom[n] = work.top[n] = work.inverse[n] = work.open[n] = 0.0
        if gone or u <= 0.0:
            continue
        if l >= 0.0:
            work.steep[n] = work.active[n] = work.plain[n] = 1.0
            work.bottom[n] = l
        else:
            work.unstable[n] = 1.0
            work.plain[n] = 1.0 if u > -l else 0.0
            work.steep[n] = u / (u - l)
            work.missed[n] = max(-work.steep[n] * l, (1.0 - work.steep[n]) * u)
        work.top[n] = u
        if free and state[gate + j] == _FREE:
            work.open[n] = 1.0
            span = u - work.bottom[n]
            # One of less than 1e-150 is the rounding of 0, and its inverse infinite.
            work.inverse[n] = 1.0 / span if span > max(1e-9 * u, 1e-150) else 0.0


@compiled
def _multiply(d: _Floats, weights: _Floats, base: int, stride: int, target: _Floats, places: _Ints) -> None:
    """``target = d W``, W row-major from ``base`` on with rows of ``stride`` entries; four rows at a time."""
    for q in range(stride):
        target[q] = 0.0
    count = 0
    for j in range(len(d)):
        if d[j] != 0.0:
            places[count] = j
            count += 1
    whole = count - count % 4
    for k in range(0, whole, 4):
        a, b, c, e = d[places[k]], d[places[k + 1]], d[places[k + 2]], d[places[k + 3]]
        at_a, at_b = base + places[k] * stride, base + places[k + 1] * stride
        at_c, at_e = base + places[k + 2] * stride, base + places[k + 3] * stride
        row_a, row_b = weights[at_a : at_a + stride], weights[at_b : at_b + stride]
        row_c, row_e = weights[at_c : at_c + stride], weights[at_e : at_e + stride]
        for q in range(stride):
            target[q] += a * row_a[q] + b * row_b[q] + c * row_c[q] + e * row_e[q]
    for k in range(whole, count):
        a, at_a = d[places[k]], base + places[k] * stride
        row = weights[at_a : at_a + stride]
        for q in range(stride):
            target[q] += a * row[q]


@compiled
def _pull(
    chain: Chain,
    work: Work,
    layer: int,
    constant: float,
    left: _Ints,
    slopes: _Floats,
    lam: _Floats,
    fill: _Number,
    direct: _Floats,
) -> float:
    """Lower bound, rounded outward, of the row over p_layer that stands in ``work.row``.

    Args:
        layer: every layer up to it is prepared.
        constant: of the row.
        direct: what the row has on p_{layer - 1} beside, float64 [n_{layer - 1}], or empty.
        left: removals left.
        slopes: effective slopes, float64 [N]: alpha where unstable, 1 where active, else 0.
        lam: multipliers, float64 [S]; where ``fill`` is not 0 they are chosen here and written there.
    """
    value, loose = constant, abs(constant)
    row = work.row
    for t in range(layer, 0, -1):
        first, width, stride, group = chain.first[t], chain.sizes[t], chain.strides[t], chain.group[t]
        sent = work.sent[first : first + width]
        steep, missed = work.steep[first : first + width], work.missed[first : first + width]
        slope, size = slopes[first : first + width], chain.size[first : first + width]
        falling = 0.0
        for j in range(width):
            c = min(row[j], 0.0)
            sent[j] = c * steep[j]
            falling += c * missed[j]
        value += falling
        for j in range(width):
            loose += abs(row[j]) * size[j]
        if chain.gates[t] >= 0 and left[group] > 0:
            bottom, top = work.bottom[first : first + width], work.top[first : first + width]
            inverse, open_ = work.inverse[first : first + width], work.open[first : first + width]
            seen = _seen(chain, layer, t)
            if fill != 0 and not seen:
                for j in range(width):
                    work.pool[j] = max(row[j], 0.0) * top[j] * open_[j]
                lam[group] = _threshold(work.pool, width, left[group])
            threshold = lam[group]
            if not seen:
                value -= threshold * left[group]
            loose += threshold * (left[group] + width)
            for j in range(width):
                c = max(row[j], 0.0)
                at_bottom, at_top = min(c * bottom[j], threshold), min(c * top[j], threshold)
                chord = (at_top - at_bottom) * inverse[j]
                sent[j] += (open_[j] * chord + (1.0 - open_[j]) * c) * slope[j]
            for j in range(width):
                c = max(row[j], 0.0)
                at_bottom, at_top = min(c * bottom[j], threshold), min(c * top[j], threshold)
                chord = (at_top - at_bottom) * inverse[j]
                value += open_[j] * min(at_bottom - chord * bottom[j], at_top - chord * top[j])
        else:
            for j in range(width):
                sent[j] += max(row[j], 0.0) * slope[j]
        if fill == 0:
            _copy(work.arrived[first : first + width], row)
        for j in range(width):
            value += sent[j] * chain.bias[first + j]
        target = work.shares if t == 1 else row
        _multiply(sent, chain.weights, chain.offsets[t], stride, target, work.places)
        if t == layer:
            for q in range(len(direct)):
                target[q] += direct[q]
    if layer == 0:
        _copy(work.shares, work.row)
    return value + _at_start(chain, work, left, lam, loose, _seen(chain, layer, 0), fill)


@compiled
def _seen(chain: Chain, layer: int, t: int) -> bool:
    """Whether a pass that began at ``layer`` has charged the group of layer t before it reaches t."""
    for later in range(t + 1, layer + 1):
        if chain.group[later] == chain.group[t]:
            return True
    return False


@compiled
def _at_start(
    chain: Chain, work: Work, left: _Ints, lam: _Floats, loose: float, charged: bool, fill: _Number
) -> float:
    """What the coefficients on p_0 add to a bound, less all rounding.

    ``sum_{not gone} C - sum_free max(C - lambda, 0) - lambda s``, which is the exact worst sum where lambda
    lies between the s-th largest free C and the next. ``work.present`` gets the worst mask.
    """
    width, group = chain.strides[1], chain.group[0]
    value = 0.0
    for q in range(width):
        value += work.shares[q] * work.here[q]
    if fill == 0:
        _copy(work.present, work.here)
    if left[group] > 0:
        for q in range(width):
            work.pool[q] = max(work.shares[q], 0.0) * work.loose[q]
        if chain.alone:
            threshold = _threshold(work.pool, width, left[group])
        else:
            if fill != 0 and not charged:
                lam[group] = _threshold(work.pool, width, left[group])
            threshold = lam[group]
        over = 0.0
        for q in range(width):
            over += max(work.pool[q] - threshold, 0.0)
        value -= over
        if not charged:
            value -= threshold * left[group]
        loose += threshold * (left[group] + width)
        if fill == 0:
            for q in range(width):
                if work.pool[q] > threshold:
                    work.present[q] = 0.0
        work.level[0] = threshold
    return value - chain.gamma * loose - 1e-300


@compiled
def _push(chain: Chain, work: Work, layer: int, left: _Ints, alpha: _Floats, lam: _Floats) -> None:
    """After ``_pull``: its bound's gradient by alpha and lambda, into ``work.slope`` and ``work.pull``."""
    _clear(work.pull, len(work.pull))
    for g in range(len(work.pull)):
        if left[g] > 0:
            for t in range(layer + 1):
                if chain.group[t] == g and (t > 0 or not chain.alone):
                    work.pull[g] = -float(left[g])
    if not chain.alone and left[chain.group[0]] > 0:
        for q in range(chain.sizes[0]):
            work.pull[chain.group[0]] += work.here[q] - work.present[q]
    for t in range(1, layer + 1):
        first, stride, group = chain.first[t], chain.strides[t], chain.group[t]
        threshold = lam[group] if chain.gates[t] >= 0 and left[group] > 0 else 0.0
        source = work.present if t == 1 else work.relaxed[chain.first[t - 1] : chain.first[t - 1] + stride]
        for j in range(chain.sizes[t]):
            n = first + j
            c, u = work.arrived[n], work.top[n]
            work.slope[n] = 0.0
            work.relaxed[n] = 0.0
            work.values[n] = 0.0
            if u <= 0.0:
                continue
            base = chain.offsets[t] + j * stride
            part = chain.weights[base : base + stride]
            z = 0.0
            for q in range(stride):
                z += part[q] * source[q]
            z += chain.bias[n]
            work.values[n] = z
            if c <= 0.0:
                work.relaxed[n] = work.steep[n] * z + work.missed[n]
            elif work.open[n] == 0.0:
                work.relaxed[n] = z if work.active[n] > 0.0 else alpha[n] * z
                work.slope[n] = work.unstable[n] * c * z
            elif work.unstable[n] > 0.0:
                work.slope[n] = min(c, threshold / u) * z
                if c * u < threshold:
                    work.relaxed[n] = alpha[n] * z
                else:
                    work.pull[group] += alpha[n] * z / u
            else:
                share = (z - work.bottom[n]) * work.inverse[n]
                if c * u < threshold:
                    work.relaxed[n] = z
                elif c * work.bottom[n] < threshold:
                    work.relaxed[n] = work.bottom[n] * (1.0 - share)
                    work.pull[group] += share
                else:
                    work.pull[group] += 1.0


@compiled
def _load(work: Work, row: _Floats, sign: float) -> None:
    """Make a row the one to pull back."""
    for j in range(len(row)):
        work.row[j] = sign * row[j]


@compiled
def _slopes(work: Work, last: int) -> None:
    """The effective slopes for ``work.alpha``."""
    for n in range(last):
        work.slopes[n] = work.active[n] + work.unstable[n] * work.alpha[n]


@compiled
def _ascend(
    chain: Chain, work: Work, layer: int, row: _Floats, sign: float, constant: float, left: _Ints,
    steps: _Number, enough: float, direct: _Floats,
) -> float:  # fmt: skip
    """The best bound of ``sign row p_layer + constant`` after some steps of Adam on its multipliers.

    The first multipliers stand in ``work.alpha`` and ``work.lam``; no step is made once a bound reaches
    ``enough``. The bound is rounded outward; its multipliers are in ``work.best_alpha`` and
    ``work.best_lam``.
    """
    last = chain.first[layer] + chain.sizes[layer] if layer > 0 else 0
    _load(work, row, sign)
    _slopes(work, last)
    best = _pull(chain, work, layer, constant, left, work.slopes, work.lam, np.int64(0), direct)
    _copy(work.best_alpha, work.alpha)
    _copy(work.best_lam, work.lam)
    if steps == 0 or best >= enough:
        return best
    _clear(work.slope_mean, last)
    _clear(work.slope_square, last)
    _clear(work.pull_mean, len(work.pull))
    _clear(work.pull_square, len(work.pull))
    for step in range(1, steps + 1):
        _push(chain, work, layer, left, work.alpha, work.lam)
        fade = 0.9**step
        mean_share, square_share = 1.0 - fade, 1.0 - 0.999**step
        for n in range(last):
            gradient = work.slope[n]
            mean = work.slope_mean[n] = 0.9 * work.slope_mean[n] + 0.1 * gradient
            square = work.slope_square[n] = 0.999 * work.slope_square[n] + 0.001 * gradient * gradient
            if mean != 0.0:
                move = mean / mean_share / (np.sqrt(square / square_share) + 1e-12)
                work.alpha[n] = min(1.0, max(0.0, work.alpha[n] + 0.25 * fade * move))
        for g in range(len(work.lam)):
            scale = max(work.lam[g], chain.scale[g])
            gradient = work.pull[g] * scale
            mean = work.pull_mean[g] = 0.9 * work.pull_mean[g] + 0.1 * gradient
            square = work.pull_square[g] = 0.999 * work.pull_square[g] + 0.001 * gradient * gradient
            if mean != 0.0:
                move = mean / mean_share / (np.sqrt(square / square_share) + 1e-12)
                work.lam[g] = max(0.0, work.lam[g] + 0.15 * fade * scale * move)
        _load(work, row, sign)
        _slopes(work, last)
        value = _pull(chain, work, layer, constant, left, work.slopes, work.lam, np.int64(0), direct)
        if value > best:
            best = value
            _copy(work.best_alpha, work.alpha)
            _copy(work.best_lam, work.lam)
            if best >= enough:
                break
    return best


@compiled
def _neuron(
    chain: Chain, work: Work, t: int, n: int, row: _Floats, sign: float, left: _Ints, steps: _Number
) -> float:
    """Lower bound of ``sign z_n`` for a neuron n of layer t, rounded outward."""
    _load(work, row, sign)
    constant = sign * chain.bias[n]
    value = _pull(chain, work, t - 1, constant, left, work.plain, work.lam, np.int64(1), chain.constant[:0])
    if steps > 0:
        _copy(work.alpha, work.plain)
        value = max(
            value, _ascend(chain, work, t - 1, row, sign, constant, left, steps, np.inf, chain.constant[:0])
        )
    # The row's own rounding, as at every other layer, is Gamma M.
    return float(value - chain.gamma * chain.size[n])


@compiled
def _tighten(
    chain: Chain, work: Work, tree: Tree, slot: int, gap: float, decide: bool, steps: _Number
) -> None:
    """Bound a node's pre-activations layer by layer, where they matter, and meet them with what is known.

    In the last layer those do not whose coefficients are > 0 in all rows alive: ``alpha C z`` needs none. But
    where nothing is free any more all do: that leaf's bound has to be the network's value, whatever alpha is.
    """
    state, left, low, high = tree.state[slot], tree.left[slot], tree.low[slot], tree.high[slot]
    open_ = False
    for g in range(len(left)):
        open_ = open_ or left[g] > 0
    best = _least(tree.upper)
    for j in range(chain.rows.shape[1]):
        work.other[j] = 0.0
    for r in range(len(chain.constant)):
        if _alive(tree.lower[slot, r], best, gap, decide):
            for j in range(chain.rows.shape[1]):
                work.other[j] = min(work.other[j], chain.rows[r, j])
    begin = 1
    if chain.alone:
        begin = 2
    for t in range(begin, len(chain.sizes)):
        gate, stride = chain.gates[t], chain.strides[t]
        ends = gate >= 0 and left[chain.group[t]] > 0  # chords depend on both ends
        for j in range(chain.sizes[t]):
            n = chain.first[t] + j
            if high[n] <= 0.0 or (low[n] >= 0.0 and not (ends and state[gate + j] == _FREE)):
                continue
            if gate >= 0 and state[gate + j] == _GONE:
                continue
            idle = open_ and t == len(chain.sizes) - 1 and work.other[j] >= 0.0
            if idle and not (ends and state[gate + j] == _FREE):
                continue
            base = chain.offsets[t] + j * stride
            row = chain.weights[base : base + stride]
            high[n] = min(high[n], -_neuron(chain, work, t, n, row, -1.0, left, steps))
            if high[n] > 0.0:
                low[n] = max(low[n], _neuron(chain, work, t, n, row, 1.0, left, steps))
        _prepare(chain, work, t, state, left, low, high)


@compiled
def _evaluate(chain: Chain, work: Work, mask: _Bytes) -> None:
    """Values of the chain with the gates in ``mask`` removed: z in ``work.values``, p in ``work.relaxed``."""
    for q in range(chain.sizes[0]):
        work.present[q] = 0.0 if mask[q] else 1.0
    for t in range(1, len(chain.sizes)):
        before, first, gate = chain.sizes[t - 1], chain.first[t], chain.gates[t]
        source = work.present if t == 1 else work.relaxed[chain.first[t - 1] : chain.first[t - 1] + before]
        for j in range(chain.sizes[t]):
            base = chain.offsets[t] + j * chain.strides[t]
            z = chain.bias[first + j]
            for q in range(before):
                z += chain.weights[base + q] * source[q]
            work.values[first + j] = z
            work.relaxed[first + j] = 0.0 if z < 0.0 or (gate >= 0 and mask[gate + j]) else z


@compiled
def _offer(chain: Chain, work: Work, tree: Tree) -> None:
    """Evaluate ``work.mask`` and note it for every row whose smallest margin it lowers."""
    _evaluate(chain, work, work.mask)
    last = len(chain.sizes) - 1
    first = chain.first[last]
    past = work.present if last == 1 else work.relaxed[chain.first[last - 1] : chain.first[last]]
    for r in range(len(chain.constant)):
        margin = chain.constant[r]
        for q in range(chain.direct.shape[1]):
            margin += chain.direct[r, q] * past[q]
        for j in range(chain.rows.shape[1]):
            margin += chain.rows[r, j] * work.relaxed[first + j]
        if margin < tree.upper[r]:
            tree.upper[r] = margin
            for q in range(len(work.mask)):
                tree.masks[r, q] = work.mask[q] != 0


@compiled
def _choose_mask(chain: Chain, work: Work, state: _Bytes, left: _Ints) -> None:
    """Into ``work.mask``: what is gone, and of the free gates those of the largest positive score."""
    for q in range(len(work.mask)):
        work.mask[q] = state[q] == _GONE
    for g in range(len(left)):
        if left[g] <= 0:
            continue
        count = 0
        for t in range(len(chain.sizes)):
            if chain.gates[t] >= 0 and chain.group[t] == g:
                for j in range(chain.sizes[t]):
                    q = chain.gates[t] + j
                    if state[q] == _FREE and work.score[q] > 0.0:
                        work.pool[count] = work.score[q]
                        count += 1
        threshold = _largest(work.pool, count, left[g]) if count > left[g] else 0.0
        room = left[g]
        for ties in range(2):
            for t in range(len(chain.sizes)):
                if chain.gates[t] >= 0 and chain.group[t] == g:
                    for j in range(chain.sizes[t]):
                        q = chain.gates[t] + j
                        score = work.score[q]
                        fits = score == threshold if ties else score > threshold
                        if room > 0 and state[q] == _FREE and score > 0.0 and fits and not work.mask[q]:
                            work.mask[q] = 1
                            room -= 1


@compiled
def _attack(chain: Chain, work: Work, tree: Tree, decide: bool) -> None:
    """Gradient attack on the masks, one start a row: incumbents before anything is bounded.

    With every mask fixed the network has a gradient; each round removes what the gradient at the last
    round's mask says is best, until that is the same mask. Slot 0 holds the root's gates. Where only the sign
    matters, the first margin that is not positive ends it, and the row with the smallest margin comes first.
    """
    state, left = tree.state[0], tree.left[0]
    last = len(chain.sizes) - 1
    for q in range(len(work.mask)):
        work.mask[q] = state[q] == _GONE
    _offer(chain, work, tree)
    rows = len(chain.constant)
    nearest = 0
    for r in range(rows):
        if tree.upper[r] < tree.upper[nearest]:
            nearest = r
    for turn in range(rows):
        r = (nearest + turn) % rows
        for q in range(len(work.mask)):
            work.mask[q] = state[q] == _GONE
        _evaluate(chain, work, work.mask)
        for _ in range(_ATTACK_ROUNDS):
            if decide and _least(tree.upper) <= 0.0:
                return
            for q in range(len(work.mask)):
                work.before[q] = work.mask[q]
            _gradient(chain, work, chain.rows[r], last)
            _choose_mask(chain, work, state, left)
            same = True
            for q in range(len(work.mask)):
                same = same and work.mask[q] == work.before[q]
            if same:
                break
            _offer(chain, work, tree)


@compiled
def _gradient(chain: Chain, work: Work, row: _Floats, last: int) -> None:
    """What removing each gate takes away to first order, at the values of ``_evaluate``: ``work.score``."""
    for j in range(len(row)):
        work.row[j] = row[j]
    for t in range(last, 0, -1):
        first, before, gate = chain.first[t], chain.sizes[t - 1], chain.gates[t]
        for j in range(chain.sizes[t]):
            n = first + j
            if gate >= 0:
                work.score[gate + j] = work.row[j] * max(0.0, work.values[n])
            gone = gate >= 0 and work.mask[gate + j] != 0
            work.sent[n] = work.row[j] if work.values[n] > 0.0 and not gone else 0.0
        for q in range(before):
            work.row[q] = 0.0
        for j in range(chain.sizes[t]):
            d = work.sent[first + j]
            if d != 0.0:
                base = chain.offsets[t] + j * chain.strides[t]
                for q in range(before):
                    work.row[q] += d * chain.weights[base + q]
    for q in range(chain.sizes[0]):
        work.score[q] = work.row[q]


@compiled
def _rate(chain: Chain, work: Work, state: _Bytes, left: _Ints, row: _Floats, direct: _Floats) -> int:
    """The gate to branch on by a row at ``work.alpha`` and ``.lam``; ``work.mask`` gets the row's worst mask.

    Every gate is rated by what keeping it and what removing it would add to the row's bound at the relaxed
    values z: by itself, as its share min(C v, lambda) becomes C v or lambda, and through the bounds of the
    pre-activations behind it, each weighted by how fast the row's bound falls as that one widens. The smaller
    of the two counts, and a part of the larger; gates of later layers, where this says less, count less.
    """
    last = len(chain.sizes) - 1
    _load(work, row, 1.0)
    _slopes(work, len(chain.bias))
    _pull(chain, work, last, 0.0, left, work.slopes, work.lam, np.int64(0), direct)
    threshold = work.level[0]
    _push(chain, work, last, left, work.alpha, work.lam)
    for t in range(last, 0, -1):
        gate = chain.gates[t]
        if gate >= 0:
            for j in range(chain.sizes[t]):
                n = chain.first[t] + j
                work.score[gate + j] = max(0.0, work.arrived[n]) * work.top[n]
    for q in range(chain.sizes[0]):
        work.score[q] = work.shares[q]
    _choose_mask(chain, work, state, left)
    # From here on the scores are those for branching.
    _clear(work.row, len(work.row))
    exact = chain.alone and left[chain.group[0]] > 0
    for q in range(chain.sizes[0]):
        share = work.shares[q]
        work.score[q] = max(0.0, share - threshold)
        work.other[q] = max(0.0, threshold - share)
    for t in range(last, 0, -1):
        first, stride, gate, group = chain.first[t], chain.strides[t], chain.gates[t], chain.group[t]
        _clear(work.moved, stride)
        for j in range(chain.sizes[t]):
            n = first + j
            u, c, z = work.top[n], work.arrived[n], work.values[n]
            pushed = work.row[j]
            if gate >= 0:
                work.score[gate + j] = 0.0
                if work.open[n] > 0.0:
                    value, lam = min(u, max(0.0, z)), work.lam[group]
                    relaxed = min(max(c, 0.0), lam / u) * value
                    keep = max(c, 0.0) * value - relaxed + pushed * u
                    remove = lam - relaxed + pushed * u - min(c, 0.0) * value
                    work.score[gate + j] = _LATER * (min(keep, remove) + _LARGER * max(keep, remove)) + 1e-15
                pushed *= _PASSED_ON
            if u <= 0.0:
                continue
            # How fast the row's bound falls with the lower and the upper end of z.
            low_felt, high_felt = work.active[n] * pushed, pushed
            if work.unstable[n] > 0.0:
                width = work.missed[n] / work.steep[n] + u  # u - l, as missed = -steep l
                if c < 0.0:
                    high_felt += abs(c * (z + width - u) * (u - width)) / (width * width)
                    low_felt += abs(c * u * (u - z)) / (width * width)
                elif work.open[n] > 0.0 and c * u > work.lam[group]:
                    high_felt += abs(work.alpha[n] * work.lam[group] * z) / (u * u)
            elif work.open[n] > 0.0 and c > 0.0 and work.inverse[n] > 0.0:
                lam, l = work.lam[group], work.bottom[n]
                if c * l < lam < c * u:
                    steep = (lam - c * l) * work.inverse[n]
                    high_felt += abs(steep * (z - l)) * work.inverse[n]
                    low_felt += abs((c - steep) * (u - z)) * work.inverse[n]
            base = chain.offsets[t] + j * stride
            part = chain.weights[base : base + stride]
            if t == 1 and exact:
                last_down, last_up = work.down_last[j], work.up_last[j]
                if low_felt > 0.0:
                    _add_gains(work.score, work.other, part, 1.0, low_felt, last_down, work.down_next[j])
                if high_felt > 0.0:
                    _add_gains(work.score, work.other, part, -1.0, high_felt, last_up, work.up_next[j])
            elif low_felt + high_felt > 0.0:
                felt = low_felt + high_felt
                for q in range(stride):
                    work.moved[q] += felt * abs(part[q])
        for q in range(stride):
            work.row[q] = work.moved[q]
    for q in range(chain.sizes[0]):
        keep, remove = work.score[q], work.other[q]
        if not exact:
            keep, remove = keep + work.row[q], remove + work.row[q]
        work.score[q] = min(keep, remove) + _LARGER * max(keep, remove) + 1e-12
    return _branch(chain, work, state, left)


@compiled
def _add_gains(
    keep: _Floats, remove: _Floats, row: _Floats, sign: float, felt: float, last: float, following: float
) -> None:
    """What keeping and removing each gate of layer 0 does through one end of one z_1.

    With A = ``sign row`` its share and a_s, a_{s+1} the last share that counts and the next: keeping a gate
    that counts lifts the lower end by ``A - a_{s+1}``, removing one that does not by ``a_s - A``.
    """
    for q in range(len(row)):
        share = sign * row[q]
        keep[q] += felt * max(share - following, 0.0)
        remove[q] += felt * max(last - share, 0.0)


@compiled
def _branch(chain: Chain, work: Work, state: _Bytes, left: _Ints) -> int:
    """The free gate with the largest score, -1 for none."""
    best, at = -1.0, -1
    for t in range(len(chain.sizes)):
        gate = chain.gates[t]
        if gate < 0 or left[chain.group[t]] <= 0:
            continue
        for j in range(chain.sizes[t]):
            if state[gate + j] == _FREE and work.score[gate + j] > best:
                best, at = work.score[gate + j], gate + j
    return at


@compiled
def _alive(lower: float, best: float, gap: float, decide: bool) -> bool:
    """Whether a row with this bound may still matter."""
    return lower <= 0.0 if decide else lower < best - gap


@compiled
def _cap(chain: Chain, state: _Bytes, left: _Ints) -> None:
    """Lower the removals left to the gates that are free: else lambda s would be charged for nothing."""
    for g in range(len(left)):
        free = 0
        for t in range(len(chain.sizes)):
            if chain.gates[t] >= 0 and chain.group[t] == g:
                for j in range(chain.sizes[t]):
                    free += state[chain.gates[t] + j] == _FREE
        left[g] = min(left[g], free)


@compiled
def _bound_rows(
    chain: Chain, work: Work, tree: Tree, slot: int, gap: float, decide: bool, steps: _Number
) -> int:
    """Bound the rows of a node that may matter; the lowest one that still does, -1 for none."""
    last = len(chain.sizes) - 1
    lower = tree.lower[slot]
    best = _least(tree.upper)
    worst, weakest = -1, np.inf
    for r in range(len(lower)):
        if not _alive(lower[r], best, gap, decide):
            continue
        enough = (1e-300 if decide else best - gap) + chain.slack[r]
        _widen(work.alpha, tree.alpha[slot, r])
        _copy(work.lam, tree.lam[slot, r])
        found = _ascend(
            chain, work, last, chain.rows[r], 1.0, chain.constant[r], tree.left[slot], steps, enough,
            chain.direct[r],
        ) - chain.slack[r]  # fmt: skip
        lower[r] = max(lower[r], found)
        for n in range(len(chain.bias)):
            tree.alpha[slot, r, n] = work.best_alpha[n]
        _copy(tree.lam[slot, r], work.best_lam)
        if found < weakest and _alive(lower[r], best, gap, decide):
            worst, weakest = r, found
    return worst


@compiled
def _fix(chain: Chain, work: Work, tree: Tree, slot: int, gap: float, decide: bool) -> int:
    """Fix gates of a node that no better mask has otherwise; how many.

    With L the bound of a row at some multipliers, masks that remove a gate of layer 0 have at least
    ``L + max(lambda - C_q, 0)``, those that keep it ``L + max(C_q - lambda, 0)``; behind, removing adds
    ``max(lambda - max(c, 0) u, 0)`` and keeping ``max(c l - lambda, 0)``. Where that closes every row alive,
    the gate is fixed the other way; what is cut off counts as closed, at what closes it.
    """
    state, left, lower = tree.state[slot], tree.left[slot], tree.lower[slot]
    best, last = _least(tree.upper), len(chain.sizes) - 1
    for r in range(len(lower)):
        far = _enough(chain, r, best, gap, decide) - lower[r] > _FAR * chain.reach[0]
        if far and _alive(lower[r], best, gap, decide):
            return 0
    for q in range(len(state)):
        work.score[q] = work.other[q] = np.inf
    for r in range(len(lower)):
        if not _alive(lower[r], best, gap, decide):
            continue
        _widen(work.alpha, tree.alpha[slot, r])
        _copy(work.lam, tree.lam[slot, r])
        _load(work, chain.rows[r], 1.0)
        _slopes(work, len(chain.bias))
        constant, direct = chain.constant[r], chain.direct[r]
        value = _pull(chain, work, last, constant, left, work.slopes, work.lam, np.int64(0), direct)
        room = _enough(chain, r, best, gap, decide) + 2.0 * chain.slack[r] - value
        if left[chain.group[0]] > 0:
            for q in range(chain.sizes[0]):
                over = work.shares[q] - work.level[0]
                work.score[q] = min(work.score[q], max(over, 0.0) - room)
                work.other[q] = min(work.other[q], max(-over, 0.0) - room)
        for t in range(1, last + 1):
            gate, group = chain.gates[t], chain.group[t]
            if gate < 0 or left[group] <= 0:
                continue
            for j in range(chain.sizes[t]):
                n = chain.first[t] + j
                c, lam = max(work.arrived[n], 0.0), work.lam[group]
                work.score[gate + j] = min(work.score[gate + j], c * work.bottom[n] - lam - room)
                work.other[gate + j] = min(work.other[gate + j], lam - c * work.top[n] - room)
    fixed = 0
    for t in range(last + 1):
        gate, group = chain.gates[t], chain.group[t]
        if gate < 0:
            continue
        for q in range(gate, gate + chain.sizes[t]):
            if state[q] != _FREE or left[group] <= 0:
                continue
            if work.other[q] > 0.0:
                state[q] = _KEPT
                fixed += 1
            elif work.score[q] > 0.0:
                state[q] = _GONE
                left[group] -= 1
                fixed += 1
    if fixed > 0:
        for r in range(len(lower)):
            cut = _enough(chain, r, best, gap, decide) if _alive(lower[r], best, gap, decide) else lower[r]
            tree.closed[r] = min(tree.closed[r], cut)
        _cap(chain, state, left)
    return fixed


@compiled
def _enough(chain: Chain, r: int, best: float, gap: float, decide: bool) -> float:
    """A bound that closes a row, by a margin for rounding where there is a gap."""
    return float(chain.slack[r] if decide else best - 0.5 * gap - chain.slack[r])


@compiled
def _finish(chain: Chain, work: Work, tree: Tree, slot: int, worst: int) -> bool:
    """Find the gate to branch on by a node's worst row, and offer that row's mask; whether it stays open."""
    tree.branch[slot] = -1
    if worst < 0:
        return False
    state, left = tree.state[slot], tree.left[slot]
    _widen(work.alpha, tree.alpha[slot, worst])
    _copy(work.lam, tree.lam[slot, worst])
    tree.branch[slot] = _rate(chain, work, state, left, chain.rows[worst], chain.direct[worst])
    _offer(chain, work, tree)
    return bool(tree.branch[slot] >= 0)


@compiled
def _narrowed(chain: Chain, work: Work, tree: Tree, slot: int, gap: float, decide: bool, again: bool) -> bool:
    """Fix gates of a node and prepare it anew; whether its rows are to be bounded once more.

    They are where ``again`` allows it and many gates were fixed, and where none is free any more.
    """
    state, left = tree.state[slot], tree.left[slot]
    before = 0
    for q in range(len(state)):
        before += state[q] == _FREE
    fixed = _fix(chain, work, tree, slot, gap, decide)
    if fixed == 0:
        return False
    _gates(chain, work, state, left)
    free = 0
    for g in range(len(left)):
        free += left[g]
    worth = free == 0 or (again and fixed >= _WORTH_BOUNDING * before)
    if worth:
        if chain.alone:
            _first_layer(chain, work, state, left[chain.group[0]], tree.low[slot], tree.high[slot])
        for t in range(1, len(chain.sizes)):
            _prepare(chain, work, t, state, left, tree.low[slot], tree.high[slot])
    return worth


@compiled
def _bound(chain: Chain, work: Work, tree: Tree, slot: int, gap: float, decide: bool) -> bool:
    """Bound the node in a slot, which has its parent's bounds and multipliers; whether it stays open.

    The rows are tried at the parent's bounds of the deeper layers first: many nodes close there.
    """
    state, left = tree.state[slot], tree.left[slot]
    _cap(chain, state, left)
    tree.counts[2] += 1
    _gates(chain, work, state, left)
    if chain.alone:
        _first_layer(chain, work, state, left[chain.group[0]], tree.low[slot], tree.high[slot])
    for t in range(1, len(chain.sizes)):
        _prepare(chain, work, t, state, left, tree.low[slot], tree.high[slot])
    worst = _bound_rows(chain, work, tree, slot, gap, decide, np.int64(0))
    first = True
    while worst >= 0:
        _tighten(chain, work, tree, slot, gap, decide, np.int64(0))
        worst = _bound_rows(chain, work, tree, slot, gap, decide, np.int64(_NODE_STEPS))
        if worst < 0 or not _narrowed(chain, work, tree, slot, gap, decide, first):
            break
        first = False
    return _finish(chain, work, tree, slot, worst)


@compiled
def _smallest(tree: Tree, slot: int) -> float:
    """The smallest bound of a node."""
    return _least(tree.lower[slot])


@compiled
def _heap_push(tree: Tree, slot: int) -> None:
    """Put a node on the heap."""
    at, key = tree.counts[0], _smallest(tree, slot)
    tree.counts[0] += 1
    while at > 0:
        above = (at - 1) // 2
        if _smallest(tree, tree.heap[above]) <= key:
            break
        tree.heap[at] = tree.heap[above]
        at = above
    tree.heap[at] = slot


@compiled
def _heap_pop(tree: Tree) -> int:
    """Take the node of the smallest bound off the heap."""
    top = tree.heap[0]
    tree.counts[0] -= 1
    count = tree.counts[0]
    if count > 0:
        moved = tree.heap[count]
        key, at = _smallest(tree, moved), 0
        while 2 * at + 1 < count:
            child = 2 * at + 1
            if child + 1 < count:
                other = _smallest(tree, tree.heap[child + 1])
                child += other < _smallest(tree, tree.heap[child])
            if _smallest(tree, tree.heap[child]) >= key:
                break
            tree.heap[at] = tree.heap[child]
            at = child
        tree.heap[at] = moved
    return int(top)


@compiled
def _close(tree: Tree, slot: int) -> None:
    """Count a node as closed, and give its slot back."""
    for r in range(len(tree.closed)):
        tree.closed[r] = min(tree.closed[r], tree.lower[slot, r])
    tree.spare[tree.counts[1]] = slot
    tree.counts[1] += 1


@compiled
def _bound_root(
    chain: Chain, work: Work, tree: Tree, gap: float, decide: bool, neuron_steps: int, steps: int
) -> None:
    """Bound the root, in slot 0 with the interval bounds of its pre-activations, and open it.

    First without ascent on the bounds of the pre-activations, which settles many inputs; then with it. A
    typical lambda of each group is kept as the scale of later steps.
    """
    state, left, low, high = tree.state[0], tree.left[0], tree.low[0], tree.high[0]
    _cap(chain, state, left)
    tree.counts[2] += 1
    chain.scale[:] = 1e-9
    worst = -1
    _gates(chain, work, state, left)
    if chain.alone:
        _first_layer(chain, work, state, left[chain.group[0]], low, high)
        _prepare(chain, work, 1, state, left, low, high)
    for attempt in range(2):
        _tighten(chain, work, tree, 0, gap, decide, attempt * neuron_steps)
        if attempt == 0:
            for r in range(len(chain.constant)):
                _load(work, chain.rows[r], 1.0)
                last = len(chain.sizes) - 1
                _pull(chain, work, last, 0.0, left, work.plain, work.lam, np.int64(1), chain.direct[r])
                _copy(tree.lam[0, r], work.lam)
                chain.reach[0] = max(chain.reach[0], work.level[0])
                for g in range(len(left)):
                    chain.reach[0] = max(chain.reach[0], work.lam[g])
                for n in range(len(chain.bias)):
                    tree.alpha[0, r, n] = work.plain[n]
        worst = _bound_rows(chain, work, tree, 0, gap, decide, steps if attempt else steps // 4)
        if worst < 0:
            break
        for g in range(len(chain.scale)):
            total = 0.0
            for r in range(len(chain.constant)):
                total += tree.lam[0, r, g]
            chain.scale[g] = 0.1 * total / len(chain.constant) + 1e-9
    _copy(tree.root, tree.lower[0])
    rounds = 0
    while worst >= 0 and _narrowed(chain, work, tree, 0, gap, decide, rounds < _FIXING_ROUNDS):
        _tighten(chain, work, tree, 0, gap, decide, neuron_steps)
        worst = _bound_rows(chain, work, tree, 0, gap, decide, steps // 2)
        rounds += 1
    if _finish(chain, work, tree, 0, worst):
        _heap_push(tree, 0)
    else:
        _close(tree, 0)


@compiled
def _child(chain: Chain, tree: Tree, parent: int, slot: int, remove: bool) -> None:
    """Copy a node into a slot, with its branching gate removed or kept."""
    for q in range(tree.state.shape[1]):
        tree.state[slot, q] = tree.state[parent, q]
    for g in range(tree.left.shape[1]):
        tree.left[slot, g] = tree.left[parent, g]
    _copy(tree.low[slot], tree.low[parent])
    _copy(tree.high[slot], tree.high[parent])
    _copy(tree.lower[slot], tree.lower[parent])
    for r in range(tree.lower.shape[1]):
        _copy(tree.lam[slot, r], tree.lam[parent, r])
        for n in range(tree.alpha.shape[2]):
            tree.alpha[slot, r, n] = tree.alpha[parent, r, n]
    gate = tree.branch[parent]
    tree.state[slot, gate] = _GONE if remove else _KEPT
    if remove:
        for t in range(len(chain.sizes)):
            if 0 <= chain.gates[t] <= gate < chain.gates[t] + chain.sizes[t]:
                tree.left[slot, chain.group[t]] -= 1


@compiled
def settle(
    chain: Chain, work: Work, tree: Tree, gap: float, decide: bool, neuron_steps: int, steps: int, quota: int
) -> int:
    """Begin: attack the root in slot 0, bound it, and ``search`` for ``quota`` nodes.

    Args:
        chain, tree: the root has the interval bounds of its pre-activations.
        gap, decide, quota: as in ``search``.
        neuron_steps, steps: of ascent at the root, on the bounds of pre-activations and on the rows.

    Returns:
        What ``search`` does.
    """
    _attack(chain, work, tree, decide)
    if decide and _least(tree.upper) <= 0.0:
        return DECIDED
    _bound_root(chain, work, tree, gap, decide, neuron_steps, steps)
    return int(search(chain, work, tree, gap, decide, False, quota))


@compiled
def search(chain: Chain, work: Work, tree: Tree, gap: float, decide: bool, deep: bool, quota: int) -> int:
    """Branch until nothing is open, the sign is decided, ``quota`` nodes are bounded, or slots run out.

    Args:
        chain, tree: after ``settle``.
        gap: a row is closed where its bound is within this of the smallest margin found.
        decide: only the sign matters.
        deep: whether to follow the better child of a node first, which needs few slots.
        quota: nodes to bound at most, about.

    Returns:
        Why it came back.
    """
    end = tree.counts[2] + quota
    while True:
        best = _least(tree.upper)
        if decide and best <= 0.0:
            return DECIDED
        if tree.counts[0] == 0 and tree.counts[3] < 0:
            return FINISHED
        if tree.counts[2] >= end:
            return PAUSED
        if tree.counts[1] < 2:
            return FULL
        if tree.counts[3] >= 0:
            slot = tree.counts[3]
            tree.counts[3] = -1
        else:
            slot = _heap_pop(tree)
        matters = False
        for r in range(len(tree.closed)):
            matters |= _alive(tree.lower[slot, r], best, gap, decide)
        if not matters:
            _close(tree, slot)
            continue
        for remove in range(2):
            tree.counts[1] -= 1
            child = tree.spare[tree.counts[1]]
            _child(chain, tree, slot, child, remove == 0)
            if not _bound(chain, work, tree, child, gap, decide):
                _close(tree, child)
            elif deep and tree.counts[3] < 0:
                tree.counts[3] = child
            elif deep and _smallest(tree, child) < _smallest(tree, tree.counts[3]):
                _heap_push(tree, tree.counts[3])
                tree.counts[3] = child
            else:
                _heap_push(tree, child)
        tree.spare[tree.counts[1]] = slot
        tree.counts[1] += 1
