"""The distance to the decision boundary, d_bnd: the smallest step that changes (or ties) the class.

    d_bnd = min_j min_x |x - x0|   subject to  f_label(x) <= f_j(x),  x in the domain
    (local-substitute paper, eq. 1; there L-inf, here L1 and L2 as well)

An attack gives the first upper bound and so the ball in which bounds are computed; classes whose certified
radius exceeds it are dropped; the others are minimised directly, one program a class, in balls that shrink
with the incumbent (``direct``), or the radius is bisected with one decision a class (``bisect``, the papers'
reference). ``auto`` and ``bab`` first search balls that grow to the incumbent's natively
(``search.distance``). Every upper bound is a replayed adversarial input. In L1 and L2 the bounds hold in the
ball (its dual norm closes them), and a backend's program ranges over the box around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from milpver import registry
from milpver.attack.boundary import closest_adversarials
from milpver.attack.pgd import Goal, TensorOracle, attack
from milpver.bounding import Bounds
from milpver.bounds._norm_ball import ball_bounds
from milpver.bounds.crown import Crown
from milpver.encoder import Encoded, encode
from milpver.errors import QueryError, SolverUnavailableError
from milpver.graph import Graph, Relu
from milpver.linear import Float, Int
from milpver.nearest import Nearest, limit_distance, nearest
from milpver.network import Network
from milpver.norm import NORMS, check_norm, closest_steps, length
from milpver.query import NATIVE, Budget, Domain, Options, ball, check_inputs, forced_pairs, parse_budget
from milpver.replay import without
from milpver.run import Clock, RunContext, status_of
from milpver.search._region import fast_multiplier
from milpver.search._tensors import torch_threads
from milpver.search.distance import SLACK, search_distance
from milpver.search.limits import SearchLimits
from milpver.solver import Solution, Stop
from milpver.verdict import SOLVER_TOLERANCE, Assurance, ClassBracket, Status, Verdict
from milpver.witness import RejectedWitnessError, Witness, check_float32, evaluate

__all__ = ["METHODS", "NORMS", "distances", "pruned_network"]

METHODS = ("direct", "bisect")

#: Radii that are certified together by bounds alone.
_RADII = 16
#: Radii times values of the network that are certified together at most.
_RADII_WORK = 20_000
#: Share of the time in which radii are certified by bounds, and halvings for large networks.
_CERTIFY_SHARE = 0.25
_HALVINGS = 5
#: Share of the time in which large networks are attacked again, targets that are, the radii of its balls as
#: shares of the incumbent's, by the failures so far, and what share is worth another try.
_ATTACK_SHARE = 0.1
_DESCENDED = 3
_SHARES = (0.8, 0.9, 0.95, 0.975)
_WORTH = 0.005
#: A native search starts anew where the incumbent's radius has fallen to this share of its ball's.
_SHRUNK = 0.97
#: The first step of the radii, as a share of what is open; how many times as many nodes the next
#: search may take, and how many in any case; the share of the incumbent's distance from which it is searched.
_FIRST, _MORE, _FEW, _DIRECT = 6, 8.0, 3000, 0.95
#: The widest ball that is searched where there is no domain.
_WIDEST = 2.0**20
#: Linearisations from a point that a native search offers.
_WALK = 3
#: Bytes that open nodes of a native search may take where the user sets no limit.
DEFAULT_MEMORY = 1 << 30
#: ReLUs that count as 0, relative to the largest input of their layer.
_NEAR = 1e-5
#: What a margin is to be below 0 by, relative to the outputs, where the closest input of all does not replay.
_INSIDE = 1e-7
#: Absolute gap of margins of which the sign alone counts, as fine as solvers are; ``Options.gap`` is one of
#: distances.
_SIGN_GAP = 1e-7
_SHORT = "finished, but the bound and the replayed adversarial input do not meet within the gap"
_UNMET = "the solver finished, but its bound and the replayed adversarial input do not meet"


@dataclass(frozen=True, slots=True, eq=False)
class _Query:
    """What is the same for all inputs of a run."""

    context: RunContext
    domain: Domain | None
    method: str
    norm: str
    target: int | None


def distances(
    network: Network,
    inputs: NDArray[np.float32],
    labels: Sequence[int],
    *,
    domain: Domain | None = None,
    options: Options | None = None,
    method: str = "direct",
    norm: str = "linf",
    target: int | None = None,
    indices: Sequence[int] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Verdict]:
    """Distances of many inputs to the decision boundary, each as soon as it is done.

    Args:
        network: the classifier.
        inputs: float32 [n, inputs], in the data's units.
        labels: the class of each input.
        domain: limits of the inputs; adversarial inputs lie in it.
        options: how to answer; ``decide`` means nothing here.
        method: ``direct`` or ``bisect``.
        norm: ``linf``, ``l1`` or ``l2``; l2 takes ``direct``, and the native search (``auto``, ``bab``) or
            a backend that solves mixed-integer quadratic programs.
        target: only this competing class, or None for the closest of all.
        indices: positions in the data file, for the records.
        should_stop: asked now and then; True ends the run with the status ``interrupted``.

    Raises:
        QueryError: an unknown method or norm, a target out of range or equal to a label, a label out of
            range, an input outside of the domain or not finite; a norm that the backend cannot minimise.
        PluginError: an unknown solver, encoding or bounding.
    """
    if method not in METHODS:
        raise QueryError(
            f"--method {method}", needed=" or ".join(METHODS), fix=registry.near(method, METHODS)
        )
    check_norm(norm)
    check_inputs(network, inputs, labels, domain)
    outputs = network.graph.outputs
    if target is not None and not (0 <= target < outputs):
        raise QueryError(
            f"--target {target}", needed=f"a class from 0 to {outputs - 1}", fix="correct --target"
        )
    if target is not None and target in labels:
        raise QueryError(
            f"--target {target} is the label of input {list(labels).index(target)}",
            needed="a competing class",
            fix="ask for another class, or leave out the inputs of this one",
        )
    options = _fit_for(norm, method, options or Options())
    context = RunContext.create(network, options, should_stop)
    query = _Query(context, domain, method, norm, target)
    places = indices if indices is not None else range(len(inputs))
    for x, label, index in zip(inputs, labels, places, strict=True):
        yield _Search(query, x, int(label), int(index)).verdict(int(index))


def pruned_network(
    network: Network, remove: str | Sequence[tuple[int | str, int]] | None
) -> tuple[Network, tuple[tuple[int | str, int], ...]]:
    """A network without the neurons that ``--remove`` names, and these as records show them.

    Raises:
        QueryError: neurons that the network does not have, or a whole layer.
    """
    budget = parse_budget(None, network, remove=remove)
    nodes = {node for node, _ in budget.gone}
    removed = {node: budget.forced(node, network.graph.gate(node).gates)[1] for node in nodes}
    return without(network, removed), forced_pairs(network, budget.gone)


def _fit_for(norm: str, method: str, options: Options) -> Options:
    """The options with a backend that can minimise a norm.

    Raises:
        QueryError: it cannot, or none can.
    """
    if norm != "l2":
        return options
    backend = bool(options.solver_options) or options.solver_log is not None
    if method != "direct":
        raise QueryError(
            f"--method {method} with --norm l2, whose balls no rows of a program make",
            needed="--method direct",
            fix="leave out --method",
        )
    if not options.cross_check and (options.solver == "bab" or (options.solver == "auto" and not backend)):
        return options
    plain = [name for name in registry.names("solvers") if registry.variants("solvers", name) == (name,)]
    able = [name for name in plain if _takes_squares(name)]
    asked = options.cross_check or (options.solver,)
    if asked == ("auto",):
        here = [name for name in able if registry.load("solvers", name).availability().available]
        if here:
            # Without a limit on the size of programs first.
            here.sort(key=lambda name: bool(registry.load("solvers", name).availability().limits))
            return replace(options, solver=here[0])
    if unfit := [name for name in asked if not _takes_squares(name)]:
        raise QueryError(
            f"--norm l2 with solver {unfit[0]}",
            needed=f"an installed backend that solves mixed-integer quadratic programs: {', '.join(able)}",
            fix="use --solver auto, or e.g. --solver scip (pip install milpver[scip])",
        )
    return options


def _takes_squares(name: str) -> bool:
    return bool(getattr(registry.load("solvers", NATIVE.get(name, name)), "squares", False))


class _Shells:
    """Radii of the balls that a native search takes one after the other, up to what is to be proven.

    Bounds of pre-activations hold in the whole ball, and what a search costs grows exponentially with it: in
    small balls lower bounds rise fast, and what is to be proven comes last. A step is as long as the rate at
    which nodes grew in the last one lets a few times as many be expected.
    """

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.step = self.best = math.inf
        self.low = 0.0
        self.last = 1

    def radius(self, low: float, best: float, nodes: int) -> float:
        """The next ball's, with what is certified, the incumbent's distance, and the last search's nodes."""
        # More than this need not be proven, and bounds of a smaller ball are tighter.
        last = best - (1 - SLACK) * min(self.gap, best)
        risen, self.low = low - self.low, low
        closer, self.best = best < _SHRUNK * self.best, best
        if closer:
            self.step = (best - low) / _FIRST
        elif risen < self.step / 2:
            return last  # what holds the bound is not the ball's size
        else:
            rate = math.log(max(nodes, 2) / self.last) / risen
            wanted = math.log(max(_MORE, _FEW / max(nodes, 2)))
            self.step = min(2 * self.step, wanted / rate) if rate > 0 else 2 * self.step
            self.last = max(nodes, 2)
        wide = low >= _DIRECT * best or low + 1.5 * self.step >= best - 2 * self.gap
        return last if wide else low + self.step


class _Search:
    """The work on one input.

    Attributes:
        rounded: certified radius of each target by bounds alone, float64 [targets].
        solved: the same on the solver's word.
        distrusted: the solver has been wrong.
        upper: distance of the closest replayed adversarial input of each target.
        settled: the solver has finished, and its tolerances alone are wider than the gap.
    """

    def __init__(self, query: _Query, x: NDArray[np.float32], label: int, index: int) -> None:
        self.query = query
        self.norm = query.norm
        self.x = x
        self.label = label
        self.index = index
        self.x0: Float = x.astype(np.float64)
        self.graph = query.context.network.graph
        self.options = query.context.options
        self.clock = Clock(self.options.timeout)
        self.predicted = int(self.graph.evaluate(self.x0[None])[0].argmax())
        competitors = [j for j in range(self.graph.outputs) if j != label]
        self.targets = competitors if query.target is None else [j for j in competitors if j == query.target]
        count = len(self.targets)
        self.rows = np.zeros((count, self.graph.outputs))
        self.rows[:, label] = 1.0
        self.rows[np.arange(count), self.targets] -= 1.0
        self.space = ball(self.x0, math.inf, query.domain)
        self.rounded: Float = np.zeros(count)
        self.solved: Float = np.zeros(count)
        self.upper: Float = np.full(count, np.inf)
        self.impossible = np.zeros(count, dtype=np.bool_)
        self.settled = np.zeros(count, dtype=np.bool_)
        self.reason = [Status.TIMEOUT] * count
        self.witness: Witness | None = None
        self.nodes = 0
        self.status = Status.TIMEOUT
        self.message = ""
        self.distrusted = False
        self.engine = "bounds"
        if self.predicted != label:
            self.status = Status.MISCLASSIFIED
        elif count:
            self.run()

    @property
    def lower(self) -> Float:
        """The lower bound for each target, whatever it rests on."""
        return np.maximum(self.rounded, self.solved)

    @property
    def best(self) -> float:
        """The distance of the closest replayed adversarial input."""
        return float(self.upper.min())

    @property
    def reach(self) -> float:
        """The radius of the smallest ball that holds the whole domain, rounded upward."""
        away = np.maximum(self.x0 - self.space.lower, self.space.upper - self.x0)
        return length(self.norm, away, np.zeros_like(away))

    def run(self) -> None:
        """Close the bracket as far as the limits allow."""
        try:
            self.attack()
            self.certify()
            if self.open_targets() and not self.search_ball():
                self.engine = self.query.context.solver.name
                (self.minimise if self.query.method == "direct" else self.bisect)()
        except RejectedWitnessError as error:
            self.status, self.message = Status.ERROR, str(error)
        except SolverUnavailableError as error:
            self.status, self.message = Status.UNAVAILABLE, str(error)
        self.conclude()

    def offer(self, x: Float) -> bool:
        """Replay a candidate; True where it is adversarial for some target. Ties count."""
        x = self.space.clip(x)
        witness = evaluate(self.graph, self.space, Budget(), x, {})
        margins = self.rows @ witness.logits
        distance = length(self.norm, x, self.x0)
        hit = margins <= 0
        if hit.any() and distance < self.best:
            self.witness = witness
        self.upper = np.where(hit, np.minimum(self.upper, distance), self.upper)
        return bool(hit.any())

    def offer_near(self, x: Float, target: int) -> bool:
        """Replay a candidate that lies on the boundary up to rounding: step over it, as little as it takes.

        In the linear region of x, moving every entry by ``overshoot / ||g||_1`` against the sign of its
        slope takes the margin below 0 by the overshoot, which grows from the rounding of the outputs.
        """
        row = self.rows[target][None]
        x = self.space.clip(x)
        for exponent in range(-15, -6):
            values = self.graph.trace(x[None])
            margin = float((row @ values[-1][0])[0])
            if margin <= 0:
                break
            slope = self.graph.pullback(values, row)
            overshoot = 10.0**exponent * max(1.0, float(np.abs(values[-1]).max()))
            needed = np.array([margin + overshoot])
            x = closest_steps(self.norm, x, slope, needed, self.space.inner_lower, self.space.inner_upper)[0]
        return self.offer(x)

    def attack(self) -> None:
        """First upper bounds."""
        if np.any(self.rows @ self.graph.evaluate(self.x0[None])[0] <= 0):
            self.offer(self.x0)
            return
        space = self.space
        found, points = closest_adversarials(
            self.graph,
            self.x0,
            self.label,
            self.targets,
            space.inner_lower,
            space.inner_upper,
            steps=20,
            seed=self.options.seed,
            norm=self.norm,
        )
        for k in np.flatnonzero(np.isfinite(found)):
            self.offer_near(points[k], int(k))
        if self.large:
            if not math.isfinite(self.best):
                self.seek()
            if self.norm == "linf" and math.isfinite(self.best):
                self.descend()

    @property
    def large(self) -> bool:
        """Whether bounds of one ball cost so much that a better attack pays."""
        return 2 * sum(node.size for node in self.graph.nodes) > _RADII_WORK

    def seek(self) -> None:
        """Attack balls that grow from a small one, until something is found."""
        every = np.arange(len(self.targets))
        scale = max(1.0, float(np.abs(self.x0).max(initial=0.0)))
        last = float(np.maximum(self.x0 - self.space.lower, self.space.upper - self.x0).max(initial=0.0))
        radius = scale / 64
        while not (math.isfinite(self.best) or self.attacked_enough()):
            self.attack_ball(min(radius, last), every, 0)
            if radius >= last or radius > _WIDEST:
                return
            radius *= 2

    def descend(self) -> None:
        """Attack balls smaller than the incumbent's, while that succeeds; after a failure a larger one."""
        failures = 0
        while failures < len(_SHARES) and self.best > self.options.gap and not self.attacked_enough():
            picked = np.flatnonzero(self.upper <= 1.5 * self.best)
            picked = picked[np.argsort(self.upper[picked], kind="stable")][:_DESCENDED]
            before = self.best
            self.attack_ball(_SHARES[failures] * before, picked, failures)
            if self.best > (1 - _WORTH) * before:
                failures += 1

    def attacked_enough(self) -> bool:
        late = self.clock.seconds > _ATTACK_SHARE * self.options.timeout
        return late or self.query.context.interrupted()

    def attack_ball(self, radius: float, picked: Int, seed: int) -> None:
        """Projected gradient descent in an L-inf ball for some targets, int64 [picked].

        What comes closest to the boundary is walked on from.
        """
        box = ball(self.x0, radius, self.query.domain)
        before = self.best

        def offer(points: Float, _: object) -> bool:
            for x in points:
                margins = self.rows[picked] @ self.graph.evaluate(x[None])[0]
                self.walk(x, int(picked[margins.argmin()]))
            return self.best < before

        rows = [(row[None], np.zeros(1)) for row in self.rows[picked]]
        starts = None if self.witness is None else self.witness.x[None]
        _, points = attack(
            TensorOracle(self.query.context.tensors),
            Goal.of(box.inner_lower, box.inner_upper, rows),
            offer,
            restarts=4,
            steps=25,
            seed=self.options.seed + seed,
            starts=starts,
        )
        for k, x in zip(picked, points, strict=True):
            self.walk(x, int(k))

    def bounds_in(self, radii: Sequence[float], *, quick: bool = False) -> Bounds:
        """Bounds in balls around x0, one a radius; without ascent where they are to be quick."""
        context = self.query.context
        bounding = context.bounding
        if quick and isinstance(bounding, Crown):
            bounding = Crown("crown", steps=0, row_steps=0)
        boxes = [ball(self.x0, radius, self.query.domain) for radius in radii]
        lower, upper = np.stack([box.lower for box in boxes]), np.stack([box.upper for box in boxes])
        rows = np.broadcast_to(self.rows, (len(radii), *self.rows.shape))

        def hurry() -> bool:
            return self.clock.remaining <= 0 or context.interrupted()

        if self.norm != "linf" and isinstance(bounding, Crown):
            return ball_bounds(
                context.tensors,
                self.norm,
                self.x0,
                np.asarray(radii, dtype=np.float64),
                (lower, upper),
                rows,
                steps=bounding.steps,
                row_steps=bounding.row_steps,
                hurry=hurry,
                multiplier=fast_multiplier(context.tensors.device) if context.native else None,
            )
        # The box holds the ball.
        return bounding.bound(self.graph, lower, upper, Budget(), rows, self.options.device, hurry=hurry)

    def certify(self) -> None:
        """Certified radii by bounds alone: rounds of radii for all targets, or halvings for large networks.

        Each round spreads its radii over what is left between the certified and the smallest refused one. For
        large networks the bounds go without ascent: that takes several times as long for a few per cent.
        """
        low, high = 0.0, min(self.best, self.reach, _WIDEST)
        if not (math.isfinite(high) and high > 0):
            return
        count = max(1, min(_RADII, _RADII_WORK // sum(node.size for node in self.graph.nodes)))
        for _ in range(2 if count > 1 else _HALVINGS):
            late = self.clock.seconds > _CERTIFY_SHARE * self.options.timeout
            if late or self.query.context.interrupted():
                return
            radii = np.linspace(low, high, count + 1)[1:] if count > 1 else np.array([(low + high) / 2])
            held = self.bounds_in(list(radii), quick=count == 1).rows_lower > 0
            self.rounded = np.maximum(self.rounded, np.where(held, radii[:, None], 0.0).max(axis=0))
            if radii[-1] >= self.reach:
                self.impossible |= held[-1]
            low = float(self.rounded.min())
            refused = radii[radii > low]
            high = float(refused[0]) if len(refused) else high

    def open_targets(self) -> list[int]:
        """Targets that may hold a closer adversarial input, the closest known first."""
        order = np.lexsort((self.rounded, self.upper))
        return [
            int(k)
            for k in order
            if not (self.impossible[k] or self.settled[k])
            and self.reason[k] is not Status.ERROR
            and self.best - self.lower[k] > self.options.gap
        ]

    def ball_radius(self, k: int) -> float:
        """The ball to search for a target: up to the incumbent, or, without one, twice what is certified."""
        if math.isfinite(self.best):
            return self.best
        scale = max(1.0, float(np.abs(self.x0).max(initial=0.0)))
        return min(max(2 * float(self.lower[k]), scale / 8), self.reach)

    def search_ball(self) -> bool:
        """Search the ball of the incumbent natively; False where the backend has to (go on to) answer.

        The backend of ``auto`` closes what the search leaves open before its time is up, but for l2, which
        would need squares. Balls grow where no attack has found an incumbent.
        """
        context = self.query.context
        if not (context.native and self.query.method == "direct"):
            return False
        self.engine = "bab"
        handed = self.options.solver == "auto" and self.norm != "l2"
        shells, nodes = _Shells(self.options.gap), self.nodes
        while True:
            if not math.isfinite(self.best):
                radius = self.growing_radius()
            else:
                radius = shells.radius(self.least, self.best, self.nodes - nodes)
            if not math.isfinite(self.best) and radius > _WIDEST:
                self.fail_endless(radius)
                return True
            nodes, before = self.nodes, self.least
            stop = self.search_once(radius)
            if stop in (Stop.INTERRUPTED, Stop.MEMORY):
                self.status = status_of(stop)
                return True
            # A search that ends with an incumbent this close has proven less than one of a smaller ball.
            other = self.best < _SHRUNK * radius or radius < self.best - self.options.gap
            more = stop is Stop.TARGET or (stop is Stop.OPTIMAL and other)
            if more and self.open_targets() and not math.isfinite(self.best):
                more = self.least > before  # where a larger ball would be the same
            if not more or not self.open_targets():
                late = stop is Stop.TIMEOUT
                ended = late or not handed or not self.open_targets()
                if ended and not late and self.open_targets() and math.isfinite(self.best):
                    self.message = _SHORT  # or else it would be a timeout before its time, without a word
                return ended

    @property
    def least(self) -> float:
        """The smallest lower bound of the targets that are open."""
        return float(self.lower[self.open_targets()].min())

    def growing_radius(self) -> float:
        """Of a ball without an incumbent: a little beyond the domain where that is what is left."""
        k = min(self.open_targets(), key=lambda k: float(self.lower[k]))
        radius = self.ball_radius(k)
        return radius if radius < self.reach else self.reach * (1 + 1e-6) + max(4 * self.options.gap, 1e-12)

    def fail_endless(self, radius: float) -> None:
        """Note that nothing ends the search, unless it is about what a wrong answer has left."""
        self.status = Status.ERROR
        endless = f"no adversarial input within {radius:g}, and no domain that ends the search"
        self.message = self.message or endless

    def search_once(self, radius: float) -> Stop:
        """One search of a ball, that of the incumbent or one without.

        Returns why it stopped: ``TARGET`` where the incumbent has come so close that a smaller ball is worth
        a new start.
        """
        context = self.query.context
        left = np.array([k for k in self.open_targets() if self.lower[k] < radius])

        def expired() -> Stop | None:
            if context.interrupted():
                return Stop.INTERRUPTED
            if self.best < _SHRUNK * radius:
                return Stop.TARGET
            return Stop.TIMEOUT if self.clock.remaining <= 0 else None

        def offer(points: Float, which: Int) -> float:
            for point, k in zip(points, left[which], strict=True):
                self.walk(point, int(k))
            return self.best

        limits = SearchLimits(
            gap=self.options.gap,
            decide=False,
            memory=self.options.memory or DEFAULT_MEMORY,
            expired=expired,
        )
        with torch_threads(self.options.threads):
            result = search_distance(
                context.tensors,
                ball(self.x0, radius, self.query.domain),
                radius,
                self.rows[left],
                offer,
                limits,
                self.rounded[left],
                norm=self.norm,
                upper=self.best,
            )
        self.nodes += result.nodes
        self.impossible[left] |= result.lower > self.reach
        self.rounded[left] = np.maximum(self.rounded[left], np.minimum(result.lower, self.reach))
        for k in left:
            ended = result.stop in (Stop.TARGET, Stop.OPTIMAL)
            self.reason[k] = status_of(Stop.TIMEOUT if ended else result.stop)
        return result.stop

    def walk(self, x: Float, target: int) -> None:
        """Replay a point near the boundary, and where linearising from it leads."""
        self.offer_near(x, target)
        row = self.rows[target][None]
        low, high = self.space.inner_lower, self.space.inner_upper
        for _ in range(_WALK):
            values = self.graph.trace(x[None])
            slope = self.graph.pullback(values, row)
            needed = row @ values[-1][0] + slope @ (self.x0 - x)
            x = closest_steps(self.norm, self.x0, slope, needed, low, high)[0]
            if length(self.norm, x, self.x0) >= self.best:
                return
        self.offer_near(x, target)

    def minimise(self) -> None:
        """Solve ``min eps`` for one target after the other, in the ball of the incumbent.

        A target gets half of the time that is left, and all of it where that was not enough: what is begun
        is lost when it is cut off, so smaller shares would spend most of the time on beginnings.
        """
        while left := self.open_targets():
            if self.stopped():
                return
            k = min(left, key=lambda k: float(self.lower[k])) if not math.isfinite(self.best) else left[0]
            radius = self.ball_radius(k)
            if not math.isfinite(self.best) and radius > _WIDEST:
                self.fail_endless(radius)
                return
            share = self.clock.remaining / min(2, len(left))
            if not self.minimise_in(k, radius, share) and not self.minimise_in(
                k, self.ball_radius(k), self.clock.remaining
            ):
                return

    def minimise_in(self, k: int, radius: float, seconds: float) -> bool:
        """The smallest distance for one target in one ball; False where it could not be finished."""
        if seconds <= 0:
            return False
        box = ball(self.x0, radius, self.query.domain)
        bounds = self.bounds_in([radius])
        if bounds.rows_lower[0, k] > 0:
            self.rounded[k] = max(self.rounded[k], radius)
            self.impossible[k] = radius >= self.reach
            return True
        encoded = encode(self.graph, box, Budget(), bounds, self.query.context.encoding)
        if encoded.input is None:
            self.fail(k, "the margin at the only input there is lies within rounding of a tie")
            return True
        lower = float(self.lower[k])
        asked = nearest(encoded, self.norm, self.x0, radius, lower, self.rows[k])
        solution = self.query.context.solve(
            asked.program,
            seconds,
            gap=asked.gap(self.options.gap / 2, lower),
            bound_stop=asked.value(self.best),
            name=self.name_of(k),
        )
        point = None if solution.x is None else encoded.point(solution.x)
        return self.take(k, solution, asked, point)

    def take(self, k: int, solution: Solution, asked: Nearest, point: Float | None) -> bool:
        """Take from a solver's answer what can be checked; False where it did not finish."""
        radius = asked.radius
        self.nodes += solution.nodes
        self.reason[k] = status_of(solution.stop)
        if point is not None:
            self.walk(point, k)
            if self.norm == "l2" and self.upper[k] > asked.distance(solution.upper) + self.options.gap / 4:
                self.onto_kink(point, k)
        if solution.stop in (Stop.ERROR, Stop.UNBOUNDED):
            self.fail(k, solution.message or f"the solver says {solution.stop.value}, which cannot be")
            return True
        if solution.stop is Stop.OPTIMAL and point is None:
            self.fail(k, "the solver says optimal, but without a point")
            return True
        bound = radius if solution.stop is Stop.INFEASIBLE else min(asked.distance(solution.lower), radius)
        if bound > self.upper[k] + self.options.gap + SOLVER_TOLERANCE * max(1.0, float(self.upper[k])):
            self.fail(
                k,
                f"the solver's bound {bound:.9g} for class {self.targets[k]} is refuted by a replayed "
                f"adversarial input at distance {self.upper[k]:.9g}",
            )
            return True
        self.solved[k] = max(float(self.solved[k]), min(bound, float(self.upper[k])))
        if solution.stop is Stop.INFEASIBLE and radius >= self.reach:
            self.impossible[k] = True
        if solution.stop in (Stop.MEMORY, Stop.INTERRUPTED):
            self.status = status_of(solution.stop)
            return False
        if self.norm != "linf" and self.lower[k] < radius and self.best < 0.9 * radius:
            # What rounding leaves of the square of a short distance is little in a smaller ball.
            return solution.stop is not Stop.TIMEOUT
        outside = self.norm != "linf" and self.lower[k] >= radius
        if solution.stop is Stop.OPTIMAL and not outside and self.best - self.lower[k] > self.options.gap:
            self.step_inside(k, float(self.lower[k]))
            if self.best - self.lower[k] > self.options.gap:
                self.leave_open(k)
        return solution.stop is not Stop.TIMEOUT

    def onto_kink(self, x: Float, k: int) -> None:
        """Replay the closest point to x0 on the boundary among those where the ReLUs that are nearly 0 are 0.

        A point of a quadratic program is as exact as its solver's tolerances. Near it the network is linear
        but for these ReLUs: a projection (minimum-norm least squares over the free entries) is exact.
        """
        values = self.graph.trace(x[None])
        slopes, offsets = [self.graph.pullback(values, self.rows[k][None])], [self.rows[k] @ values[-1][0]]
        for node in self.graph.nodes:
            if not isinstance(node, Relu):
                continue
            z = values[node.source][0]
            near = np.flatnonzero(np.abs(z) <= _NEAR * max(1.0, float(np.abs(z).max())))[: len(x)]
            if len(near):
                part = values[: node.source + 1]
                rows = np.eye(node.size)[near]
                head = Graph(self.graph.nodes[: node.source + 1])
                slopes.append(head.pullback([np.repeat(value, len(near), axis=0) for value in part], rows))
                offsets.extend(z[near].tolist())
        matrix, at = np.vstack(slopes), np.array(offsets)
        free = (x > self.space.lower) & (x < self.space.upper)
        start = np.where(free, self.x0, x)
        needed = matrix @ (start - x) + at
        scale = max(1.0, float(np.abs(values[-1]).max()))
        for exponent in (-15, -13, -11, -9):
            needed[0] += 10.0**exponent * scale
            step = np.linalg.lstsq(matrix[:, free], -needed, rcond=None)[0]
            moved = start.copy()
            moved[free] += step
            if self.offer(moved):
                return

    def step_inside(self, k: int, distance: float, part: float = 0.75) -> float:
        """Look for an adversarial input within part of the gap of a distance, if the closest does not replay.

        At a kink that is the tip of the adversarial region no slope leads into it; the smallest margin in a
        ball that is larger by less than the gap lies inside of it. For l2, whose ball no rows make: the
        closest input whose margin is below 0 by a little.

        Returns:
            The radius of that ball where the solver's bound of the margin in it is above 0, or else 0.
        """
        radius = min(distance + part * self.options.gap, self.reach)
        box = ball(self.x0, radius, self.query.domain)
        encoded = encode(self.graph, box, Budget(), self.bounds_in([radius]), self.query.context.encoding)
        if self.stopped() or encoded.input is None:
            return 0.0
        if self.norm == "l2":
            below = _INSIDE * max(1.0, float(np.abs(self.graph.evaluate(self.x0[None])).max()))
            asked = nearest(encoded, self.norm, self.x0, radius, distance, self.rows[k], below)
            program, gap = asked.program, asked.gap(self.options.gap / 8, distance)
        else:
            limit_distance(encoded, self.norm, self.x0, radius)
            program, gap = encoded.program(self.rows[k]), min(_SIGN_GAP, self.options.gap / 2)
        solution = self.query.context.solve(program, self.clock.remaining, gap=gap, name=self.name_of(k))
        self.nodes += solution.nodes
        if solution.x is not None:
            self.offer_near(encoded.point(solution.x), k)
        return radius if self.norm != "l2" and solution.lower > 0 else 0.0

    def name_of(self, k: int) -> str:
        """What the log of a solve for a target is called by."""
        return f"{self.index}-{self.targets[k]}"

    def fail(self, k: int, message: str) -> None:
        """Note that the solver's answer for a target is not to be used."""
        self.reason[k] = self.status = Status.ERROR
        self.message = message
        self.distrusted = True

    def leave_open(self, k: int) -> None:
        """Note that a solver has finished and left a bracket open: by its tolerances, or it is wrong."""
        within = self.options.gap + SOLVER_TOLERANCE * max(1.0, self.best)
        if math.isfinite(self.best) and self.best - self.lower[k] <= within:
            self.settled[k] = True
            self.reason[k], self.message = Status.TIMEOUT, _SHORT
        else:
            self.fail(k, _UNMET)

    def stopped(self) -> bool:
        """Whether time is up or the user wants to stop."""
        if self.query.context.interrupted():
            self.status = Status.INTERRUPTED
            return True
        return self.clock.remaining <= 0

    def bisect(self) -> None:
        """Bisect the radius; at each one a decision for every target: is there an adversarial input?

        Where there is none yet, the radius doubles. One that is met is replayed and becomes the upper end.
        """
        if self.reach == 0:  # a domain of one input has no radius to halve
            self.minimise()
        while (left := self.open_targets()) and not self.stopped():
            low = min(float(self.lower[k]) for k in left)
            middle = (low + self.best) / 2 if math.isfinite(self.best) else self.ball_radius(left[0])
            if middle > _WIDEST and not math.isfinite(self.best):
                self.fail_endless(middle)
                return
            if not low < middle < self.best:  # no number is left between them
                for k in left:
                    self.leave_open(k)
                return
            bounds = self.bounds_in([middle])
            encoded = encode(
                self.graph,
                ball(self.x0, middle, self.query.domain),
                Budget(),
                bounds,
                self.query.context.encoding,
            )
            if encoded.input is not None:
                limit_distance(encoded, self.norm, self.x0, middle)
            for k in left:
                if self.lower[k] >= middle:
                    continue
                if self.stopped():
                    return
                if bounds.rows_lower[0, k] > 0:
                    self.rounded[k] = max(self.rounded[k], middle)
                    self.impossible[k] = middle >= self.reach
                    continue
                before = self.best
                if not self.decide(k, middle, encoded):
                    return
                if self.best < before:
                    break

    def decide(self, k: int, radius: float, encoded: Encoded) -> bool:
        """Whether a ball holds an adversarial input for a target; False where the time did not suffice."""
        solution = self.query.context.solve(
            encoded.program(self.rows[k]),
            self.clock.remaining,
            objective_stop=0.0,
            bound_stop=0.0,
            gap=min(_SIGN_GAP, self.options.gap / 2),
            name=self.name_of(k),
        )
        self.nodes += solution.nodes
        self.reason[k] = status_of(solution.stop)
        if solution.stop in (Stop.ERROR, Stop.INFEASIBLE, Stop.UNBOUNDED):
            self.fail(k, solution.message or f"the solver says {solution.stop.value}, which cannot be")
        elif solution.stop is Stop.OPTIMAL and solution.x is None:
            self.fail(k, "the solver says optimal, but without a point")
        elif solution.lower > 0:
            self.solved[k] = max(float(self.solved[k]), radius)
            self.impossible[k] = radius >= self.reach
        elif solution.stop in (Stop.OPTIMAL, Stop.TARGET):
            # A margin <= 0, or one that the solver's gap leaves open: only a replayed input decides.
            before = self.best
            if solution.x is not None:
                self.offer_near(encoded.point(solution.x), k)
            # The solver cannot tell the smallest margin from 0. A slightly larger ball shows which side
            # it is; by less than half the gap, so that the bracket can still close.
            if self.best >= before and (proven := self.step_inside(k, radius, 0.4)) > 0:
                self.solved[k] = max(float(self.solved[k]), proven)
                self.impossible[k] = proven >= self.reach
            if self.best >= before and self.lower[k] < radius:
                self.leave_open(k)
        else:
            if solution.stop in (Stop.MEMORY, Stop.INTERRUPTED):
                self.status = status_of(solution.stop)
            return False
        return True

    def conclude(self) -> None:
        """Final status from the brackets; where the solver was wrong once, none of its bounds is used."""
        slack = self.options.gap + SOLVER_TOLERANCE * np.maximum(1.0, self.upper)
        if np.any(self.lower > self.upper + slack):
            self.fail(int(np.argmax(self.lower - self.upper)), "a lower bound is refuted by a replayed input")
            self.rounded[self.rounded > self.upper + slack] = 0.0
        if self.distrusted:
            self.solved[:] = 0.0
        if self.status in (Status.ERROR, Status.UNAVAILABLE):
            return
        if self.impossible.all():
            self.status = Status.INFEASIBLE
        elif not (self.open_targets() or np.any(self.settled & (self.best - self.lower > self.options.gap))):
            self.status, self.message = Status.OPTIMAL, ""

    def verdict(self, index: int) -> Verdict:
        """Assemble the verdict; the closest adversarial input is replayed in float32 here."""
        context, witness = self.query.context, self.witness
        known = self.status is not Status.MISCLASSIFIED and len(self.targets) > 0
        lower: float | None = None
        assurance: Assurance | None = None
        if known:
            reachable = ~self.impossible if not self.impossible.all() else self.impossible
            lower = min(float(self.lower[reachable].min()), self.best)
            certain = min(float(self.rounded[reachable].min()), self.best) >= lower
            assurance = Assurance.ROUNDED if certain else Assurance.SOLVER
        check = target = margin = None
        if witness is not None:
            k = int((self.rows @ witness.logits).argmin())
            target, margin = self.targets[k], float(self.rows[k] @ witness.logits)
            check = check_float32(context.network, context.replay, self.space, witness)
        return Verdict(
            **context.constant_fields(self.x),
            index=index,
            label=self.label,
            predicted=self.predicted,
            question="distance",
            budget=None,
            radius=None,
            domain=self.query.domain,
            status=self.status,
            verdict=None,
            assurance=assurance,
            lower=lower,
            upper=self.best if witness is not None else None,
            target=target,
            removed=None,
            nodes=self.nodes,
            seconds=self.clock.seconds,
            solver=self.engine,
            witness_margin_float64=margin,
            witness_margin_float32=None
            if check is None or target is None
            else check.margin(self.label, target),
            classes=self.brackets() if known else (),
            norm=self.norm,
            method=self.query.method,
            requested_target=self.query.target,
            adversarial=None if witness is None else tuple(witness.x.tolist()),
            adversarial_label=target,
            message=self.message,
            witness=None if witness is None else witness.x,
            witness_float32=None if check is None else check.x,
        )

    def brackets(self) -> tuple[ClassBracket, ...]:
        """The bracket of each target."""
        brackets = []
        for k, target in enumerate(self.targets):
            lower, upper = float(self.lower[k]), float(self.upper[k])
            status = self.reason[k]
            if self.impossible[k]:
                status = Status.INFEASIBLE
            elif status is not Status.ERROR:
                if upper - lower <= self.options.gap:
                    status = Status.OPTIMAL
                elif self.best - lower <= self.options.gap:
                    status = Status.DECIDED
            brackets.append(
                ClassBracket(target, min(lower, upper), upper if math.isfinite(upper) else None, status)
            )
        return tuple(brackets)
