"""Does a property hold: attack first, then bounds, then search, over every box and alternative of it.

``sat`` is a counterexample: a float32 input inside the exact box whose outputs, by ONNX Runtime on the
original file, meet the formula as written without any tolerance, and which the float64 evaluation confirms.
``unsat`` is a proof for every alternative of every region: a lower bound > 0 of its value, which is
``max_r (A_r y - b_r)``, rounded outward at every step, or a MILP solver's above its tolerance. Where the two
disagree within rounding (a float32 run that violates what holds in exact arithmetic) it is ``unknown``.

torch takes longer to load than most properties of small networks take: a first attack, linear bounds of the
whole box and the halving of boxes with few inputs go without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, partial
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from milpver import registry
from milpver.attack.pgd import Goal, GraphOracle, RemovedGates, TensorOracle, attack, evaluate
from milpver.errors import MilpverError, QueryError, SolverUnavailableError
from milpver.graph import Affine, Graph, Max, Relu
from milpver.joint import Joint, JointReplay, join
from milpver.linear import Conv, Float, Sparse
from milpver.machine import numpy_threads
from milpver.network import Network
from milpver.property import Property, Region
from milpver.query import NATIVE, Box, Budget, Options, parse_budget, removed_pairs
from milpver.search._inputs import FEW_INPUTS, halve
from milpver.search._plain import PlainCrown, supported
from milpver.search.limits import SearchLimits
from milpver.solver import Limits, Stop
from milpver.verdict import SOLVER_TOLERANCE

if TYPE_CHECKING:
    from milpver.bounding import Bounds
    from milpver.bounds._tensors import TensorGraph
    from milpver.encoder import Encoded
    from milpver.solver import Solver

__all__ = ["Outcome", "PropertyAnswer", "verify_property"]

Float32 = NDArray[np.float32]

#: Products in one run of a network up to which it is attacked in numpy first.
_SMALL = 2_000_000
#: Restarts for each alternative and steps of the first attack, and of the one in torch, over masks or not.
_FIRST, _SECOND, _UNMASKED = (8, 30), (6, 30), (2, 15)
#: The first attack on convolutions, which numpy is slow at.
_BRIEF = (2, 10)
#: Regions beyond which they are bounded in batches first, and how many at a time.
_MANY, _TOGETHER = 8, 256
#: ReLUs up to which a MILP solver gets a share of the time.
_FEW_RELUS = 300
#: Products that the attack in torch may cost: a few seconds on one core.
_MOST_PRODUCTS = 1e10
#: Products that bounds of the whole box in numpy may cost: a fraction of a second.
_QUICK = 5e9
#: Candidates that float32 refuses and whose neighbours are tried, in all.
_RETRIES = 20
#: Bytes that open nodes of a search may take where the user sets no limit.
_MEMORY = 1 << 30
#: An unconfirmed point's value for the search: not a counterexample, however low it is in float64.
_UNCONFIRMED = float(np.finfo(np.float64).tiny)


class Outcome(StrEnum):
    """The answer in one word, as the competition's result files have it."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, slots=True, eq=False)
class PropertyAnswer:
    """What was found.

    Attributes:
        outcome: the answer.
        seconds: wall-clock time.
        x: the counterexample, float32 [inputs] as declared, or None.
        y: its outputs by ONNX Runtime, float32 [outputs] as declared, or None.
        removed: (layer, neuron) pairs of the counterexample's mask.
        engine: what settled it: attack, bounds, search, or a solver's name; "" where nothing did.
        nodes: of searches.
        message: one line, where there is something to say.
    """

    outcome: Outcome
    seconds: float
    x: Float32 | None = None
    y: Float32 | None = None
    removed: tuple[tuple[int | str, int], ...] = ()
    engine: str = ""
    nodes: int = 0
    message: str = ""


def verify_property(
    network: Network | Mapping[str, Network],
    prop: Property,
    *,
    budget: Budget | str | None = None,
    options: Options | None = None,
    should_stop: Callable[[], bool] | None = None,
    spent: float = 0.0,
) -> PropertyAnswer:
    """Prove a property, or find a counterexample.

    Args:
        network: the network; of a query in VNN-LIB 2.0 also the networks by their declared names, those apart
            that are declared equal to another one (``milpver.joint.load_networks`` reads them).
        prop: the property.
        budget: masks under all of which the property of one network has to hold, as ``--budget`` takes them
            or parsed.
        options: how to answer; ``solver`` auto or bab: the native search.
        should_stop: asked now and then; True ends the run with ``unknown``.
        spent: seconds of the time limit that are gone already.

    Raises:
        QueryError: the property does not fit the networks, or asks about probabilities, or a budget goes with
            several networks.
        PluginError: an unknown solver, encoding or bounding.
        SolverUnavailableError: the solver asked for is missing.
    """
    joint = join(prop, {"": network} if isinstance(network, Network) else network)
    for each in joint.networks:
        _check(each, prop)
    masks = budget if isinstance(budget, Budget) else parse_budget(budget, joint.networks[0])
    chosen = options or Options(solver="auto")
    question = _Question(joint, prop, joint.budget(masks), chosen, should_stop, spent)
    with numpy_threads(1):  # its products are too small for more, which would wait for each other
        question.run()
        return question.answer()


def _check(network: Network, prop: Property) -> None:
    """Refuse a network that no property can be decided for."""
    if network.softmax:
        raise QueryError(
            f"{network.path} ends in a softmax, so that {prop.source} is about probabilities",
            needed="a network whose outputs are piecewise linear",
            fix="remove the softmax from the file, and state the property on what it gets",
        )
    if network.dtype != "float32":
        raise QueryError(
            f"{network.path} computes in {network.dtype}",
            needed="a float32 network",
            fix="export it as float32",
        )


@dataclass(slots=True, eq=False)
class _Case:
    """A region with what is known of it.

    Attributes:
        region: the region.
        goal: its box and alternatives for attacks, the box rounded inward.
        lower: proven lower bounds of the alternatives' values, rounded outward, float64 [alternatives].
        solved: the same on a solver's word.
        best: the smallest float64 value met of each alternative, float64 [alternatives].
        points: inputs that have them, float64 [alternatives, inputs].
        hopeless: a counterexample in float64 lies in a box that holds no float32 input: nothing can be shown.
    """

    region: Region
    goal: Goal
    lower: Float
    solved: Float
    best: Float
    points: Float
    hopeless: bool = False


class _Question:
    """One property, under way; its points are those of the joint graph's input."""

    def __init__(
        self,
        joint: Joint,
        prop: Property,
        budget: Budget,
        options: Options,
        should_stop: Callable[[], bool] | None,
        spent: float,
    ) -> None:
        self.joint = joint
        self.prop = prop
        self.budget = budget
        self.options = options
        self._should_stop = should_stop
        self._start = time.perf_counter() - spent
        self._graph = _joined(joint.graph) if prop.joint else joint.graph
        self._cases = [_case(region) for region in prop.regions]
        self._witness: tuple[Float32, Float32, RemovedGates] | None = None
        self._float32_only = False
        self._float64_only = False
        self._retries = _RETRIES
        self._scale = 1.0
        self._nodes = 0
        self._engine = ""
        self._message = ""
        self._gave_up = False

    # ------------------------------------------------------------------------------- course

    @property
    def seconds(self) -> float:
        """Seconds spent."""
        return time.perf_counter() - self._start

    @property
    def remaining(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self.options.timeout - self.seconds)

    def stopped(self) -> bool:
        """Whether to end: time is up, or the user wants to stop."""
        return self.remaining <= 0 or (self._should_stop is not None and self._should_stop())

    def _over(self, end: float) -> bool:
        """Whether a part of the work has used up its time, or everything has to end."""
        return time.perf_counter() > end or self.stopped()

    def run(self) -> None:
        """Settle the question as far as the limits allow."""
        native = self.options.solver in NATIVE
        solver: Solver | None = None
        if not native:
            solver = registry.load("solvers", self.options.solver)
            found = solver.availability()
            if not found.available:
                raise SolverUnavailableError(
                    found.reason, needed="an available solver", fix="see milpver solvers"
                )
        if len(self._cases) > _MANY:
            self._bounds_together()
        if self._attack_first() or self.stopped():
            return
        self._bound_first()
        if all(self._proven(case).all() for case in self._cases):
            return
        if self._attack_again() or self.stopped():
            return
        for worker, share in self._stages(solver):
            waiting = [case for case in self._cases if not (case.hopeless or self._proven(case).all())]
            for place, case in enumerate(waiting):
                if self._witness is not None or self.stopped():
                    return
                self._prove(case, self.remaining * share / (len(waiting) - place), worker)

    def _stages(self, solver: Solver | None) -> tuple[tuple[Solver | None, float], ...]:
        """Who works on the regions in turn, None being the native search, and its share of the time left.

        A small network's conditions of several rows may be closed by a MILP solver in a moment where linear
        bounds, which see one row at a time, split for long; most of all where rows are over inputs alone.
        """
        if solver is None and _relus(self._graph) <= _FEW_RELUS:
            outputs = self.joint.graph.outputs
            alone = self.prop.joint and any(
                (~case.goal.rows[:, :outputs].any(axis=1)).any() for case in self._cases
            )
            return (
                (None, 0.05 if alone else 0.3),
                (registry.load("solvers", NATIVE[self.options.solver]), 0.5),
                (None, 1.0),
            )
        return (solver, 1.0), (solver, 1.0)

    def answer(self) -> PropertyAnswer:
        """What came of it."""
        x = y = None
        removed: tuple[tuple[int | str, int], ...] = ()
        message = self._message
        if self._witness is not None:
            outcome = Outcome.SAT
            point, y, masks = self._witness
            x = self.prop.declared(point, y)
            removed = removed_pairs(self.joint.networks[0], self.joint.own_masks(masks))
        elif all(self._proven(case).all() for case in self._cases):
            outcome = Outcome.UNSAT
            self._engine = self._engine or "bounds"
            if self._violated_in_float32():
                outcome = Outcome.UNKNOWN
                message = "it holds in exact arithmetic, and a float32 run violates it within rounding"
        elif self.remaining <= 0:
            outcome = Outcome.TIMEOUT
        else:
            outcome = Outcome.UNKNOWN
        if outcome not in (Outcome.SAT, Outcome.UNSAT) and not message:
            if any(case.hopeless for case in self._cases):
                message = "a counterexample lies in a box that holds no float32 input"
            elif self._float64_only:
                message = "a counterexample in float64 has no float32 neighbour that ONNX Runtime confirms"
        return PropertyAnswer(outcome, self.seconds, x, y, removed, self._engine, self._nodes, message)

    def _proven(self, case: _Case) -> NDArray[np.bool_]:
        """Alternatives that no input of the region meets, bool [alternatives]."""
        return (case.lower > 0) | (case.solved > SOLVER_TOLERANCE * self._scale)

    # ------------------------------------------------------------------------------- attacks

    def _attack_first(self) -> bool:
        """A first attack without torch, where the network is small; True once the question is settled."""
        masked = bool(self.budget.groups)
        if masked or _products(self._graph) > _SMALL:
            return False
        restarts, steps = _BRIEF if _convolutional(self._graph) else _FIRST
        return self._attack(GraphOracle(self._graph), restarts, steps, seed=self.options.seed)

    def _attack_again(self) -> bool:
        """The attack in torch, over masks as well; True once the question is settled."""
        gates = [node for group in self.budget.groups for node in group.nodes]
        if not gates and _products(self._graph) <= _SMALL and not _convolutional(self._graph):
            return False
        alternatives = max(case.goal.alternatives for case in self._cases)
        passes = max(20, int(_MOST_PRODUCTS / (3 * alternatives * max(1, _products(self._graph)))))
        # Where nothing can be removed the search attacks on once bounds have settled what is easy.
        most = _SECOND if gates else _UNMASKED
        steps = min(most[1], max(10, passes // 4))
        restarts = min(most[0], max(1, passes // steps))
        oracle = TensorOracle(self._tensors, gates)
        return self._attack(oracle, restarts, steps, seed=self.options.seed + 1)

    def _attack(self, oracle: GraphOracle | TensorOracle, restarts: int, steps: int, seed: int) -> bool:
        for case in self._cases:
            if self.stopped():
                return False
            if case.hopeless or self._proven(case).all():
                continue
            end = time.perf_counter() + self.remaining / 4 / len(self._cases)
            best, points = attack(
                oracle,
                case.goal,
                partial(self._offer, case),
                restarts=restarts,
                steps=steps,
                seed=seed,
                budget=self.budget,
                graph=self._graph,
                expired=partial(self._over, end),
            )
            better = best < case.best
            case.best = np.where(better, best, case.best)
            case.points[better] = points[better]
            if self._witness is not None:
                self._engine = "attack"
                return True
        return False

    # ------------------------------------------------------------------------------- witnesses

    def _offer(self, case: _Case, x: Float, removed: RemovedGates) -> bool:
        """Check candidates; whether one of them settles the question, or the region."""
        return self._witness is not None or bool((self._replayed(case, x, removed) <= 0).any())

    def _replayed(self, case: _Case, x: Float, removed: RemovedGates) -> Float:
        """The best value of each alternative over candidates, > 0 where no counterexample was confirmed.

        Args:
            case: the region.
            x: float64 [n, inputs].
            removed: Gate node -> bool [n, gates].
        """
        region = case.region
        if not region.has_float32:
            found: Float = case.goal.values(self._outputs(np.clip(x, region.lower, region.upper), removed))
            case.hopeless |= bool((found <= 0).any())
            return np.asarray(found.min(axis=0))
        near = np.clip(x, region.inner_lower, region.inner_upper).astype(np.float32)
        values = case.goal.values(self._outputs(near, removed))
        self._scale = max(self._scale, float(np.abs(values[np.isfinite(values)]).max(initial=0.0)))
        lowest: Float = values.min(axis=0)
        better = lowest < case.best
        case.best = np.where(better, lowest, case.best)
        case.points[better] = near[values.argmin(axis=0)[better]]
        order = np.argsort(values.min(axis=1), kind="stable")
        for i in order[values[order].min(axis=1) <= 0][:4]:
            if self._confirm(case, near[i], {node: gone[i] for node, gone in removed.items()}):
                return np.asarray(values[i])
        return np.asarray(np.maximum(lowest, _UNCONFIRMED))

    def _outputs(self, x: Float32 | Float, removed: RemovedGates) -> Float:
        """Outputs in float64, of the joined graph where rows range over inputs as well."""
        if "_tensors" not in self.__dict__:
            return self._graph.evaluate(x.astype(np.float64), removed)
        import torch  # noqa: PLC0415  loaded already

        tensors = self._tensors
        masks = {node: tensors.tensor((~gone).astype(np.float64)) for node, gone in removed.items()}
        with torch.no_grad():
            found: Float = evaluate(tensors, tensors.tensor(x.astype(np.float64)), masks).cpu().numpy()
        return found

    def _confirm(self, case: _Case, x: Float32, removed: Mapping[int, NDArray[np.bool_]]) -> bool:
        """Whether a point, or a float32 neighbour of it, is a counterexample in float32 and float64 both."""
        if not self.budget.admits(self._graph, removed):
            raise ValueError("a candidate removes neurons that the budget forbids")
        if self._check(case, x[None], removed):
            return True
        self._float64_only = True
        if self._retries > 0:
            self._retries -= 1
            return self._check(case, self._neighbours(case.region, x), removed)
        return False

    def _check(self, case: _Case, x: Float32, removed: Mapping[int, NDArray[np.bool_]]) -> bool:
        """Whether any of some float32 points is a counterexample; keeps the first."""
        region = case.region
        inside = np.all((x >= region.inner_lower) & (x <= region.inner_upper), axis=1)
        x = x[inside]
        if len(x) == 0:
            return False
        masks = {node: np.repeat(gone[None], len(x), axis=0) for node, gone in removed.items()}
        y = self._replay.outputs(x, masks)
        excess = case.goal.values(_with_inputs(y, x, self.prop.joint))
        exact = case.goal.values(self._graph.evaluate(x.astype(np.float64), masks))
        for i in np.argsort(excess.min(axis=1), kind="stable"):
            if not (excess[i].min() <= 0 and self.prop.violated(self.prop.declared(x[i], y[i]), y[i])):
                continue
            if exact[i].min() > 0:
                self._float32_only = True
                continue
            apart = np.abs(y[i] - self.joint.graph.evaluate(x[i : i + 1].astype(np.float64), removed)[0])
            error = self.joint.float32_error(x[i : i + 1].astype(np.float64), removed)[0]
            if np.any(apart > error):
                raise MilpverError(
                    f"{self.joint.paths}: ONNX Runtime and the graph differ by {float(apart.max()):.3g}",
                    needed="no more than rounding explains",
                    fix="please report it with the model",
                )
            self._witness = (x[i], y[i], dict(removed))
            return True
        return False

    def _neighbours(self, region: Region, x: Float32) -> Float32:
        """Float32 points a few units in the last place around one, float32 [n, inputs]."""
        rng = np.random.default_rng(self.options.seed)
        count = 64
        reach = 1 + np.arange(count)[:, None] // 8
        steps = rng.integers(-reach, reach + 1, (count, len(x))) * (
            rng.random((count, len(x))) < rng.random((count, 1))
        )
        around = (x + steps * np.spacing(np.abs(x)).astype(np.float64)).astype(np.float32)
        low, high = region.inner_lower.astype(np.float32), region.inner_upper.astype(np.float32)
        return np.clip(around, low, high)

    def _violated_in_float32(self) -> bool:
        """Whether float32 runs at or around the best points violate what was proven in exact arithmetic."""
        if self._float32_only:
            return True
        for case in self._cases:
            close = np.flatnonzero(case.best < 1e-5 * self._scale)
            for k in close[:4]:
                x = case.points[k].astype(np.float32)
                around = np.concatenate([x[None], self._neighbours(case.region, x)])
                y = self._replay.outputs(around)
                declared = self.prop.declared(around, y)
                if any(self.prop.violated(*each) for each in zip(declared, y, strict=True)):
                    return True
        return False

    # ------------------------------------------------------------------------------- proofs

    @cached_property
    def _tensors(self) -> TensorGraph:
        """The graph on the device of the run."""
        import torch  # noqa: PLC0415  only where a first attack has not settled the question

        from milpver.bounds._tensors import TensorGraph, pick_device  # noqa: PLC0415  as above

        torch.set_num_threads(self.options.threads)
        return TensorGraph(self._graph, pick_device(self.options.device))

    @cached_property
    def _replay(self) -> JointReplay:
        """The original files in ONNX Runtime."""
        return JointReplay(self.joint, threads=self.options.threads, masked=bool(self.budget.groups))

    def _bound_first(self) -> None:
        """Linear bounds without torch, where the network is small."""
        if self.budget.groups or not supported(self._graph) or _bound_products(self._graph) > _QUICK:
            return
        for case in self._cases:
            if self.stopped():
                return
            region, goal = case.region, case.goal
            plain = PlainCrown(self._graph, region.lower, region.upper, self.stopped)
            found, _ = plain.rows(region.lower[None], region.upper[None], plain.low, plain.high, goal.rows)
            self._take(case, found[0])

    def _prove(self, case: _Case, seconds: float, solver: Solver | None) -> None:
        """Work on one region: bounds, then a search or a solver."""
        end = time.perf_counter() + seconds
        if solver is None:
            self._search(case, end)
            return
        bounds = self._bounds(case, end)
        if self._proven(case).all():
            self._engine = self._engine or "bounds"
            return
        self._solve(case, bounds, solver, end)

    def _search(self, case: _Case, end: float) -> None:
        """The native search: halves where the inputs are few, else bounds of the whole box, then phases."""

        def expired() -> Stop | None:
            if self._should_stop is not None and self._should_stop():
                return Stop.INTERRUPTED
            return Stop.TIMEOUT if self._over(end) else None

        limits = SearchLimits(0.0, True, self.options.memory or _MEMORY, expired)
        few = np.count_nonzero(case.region.lower < case.region.upper) <= FEW_INPUTS
        plain = few and not self.budget.groups and supported(self._graph)
        lower, nodes = (self._halve if plain else self._branch)(case, limits)
        self._nodes += nodes
        if np.any(lower > case.best):
            self._message = "the search's bound is refuted by a point: please report it"
            return
        case.lower = np.maximum(case.lower, lower)
        self._engine = "bounds" if nodes <= 1 and self._witness is None else "search"

    def _halve(self, case: _Case, limits: SearchLimits) -> tuple[Float, int]:
        """Halve a region's box, without torch: lower bounds of the alternatives, and boxes bounded."""
        region, waiting = case.region, ~self._proven(case)
        goal = Goal.of(region.lower, region.upper, list(compress(region.pairs, waiting)))

        def offer(x: Float, removed: RemovedGates) -> Float:
            return self._replayed(case, x, removed)[waiting]

        plain = PlainCrown(self._graph, region.lower, region.upper, lambda: limits.expired() is not None)
        found, nodes, _ = halve(plain, goal, offer, case.best[waiting], limits)
        lower = case.lower.copy()
        lower[waiting] = np.maximum(lower[waiting], found)
        return lower, nodes

    def _branch(self, case: _Case, limits: SearchLimits) -> tuple[Float, int]:
        """Search a region's box in torch; as ``_halve``."""
        from milpver.search._tensors import torch_threads  # noqa: PLC0415  loads torch
        from milpver.search.box import BoxSearch  # noqa: PLC0415  loads torch

        region = case.region
        search = BoxSearch(
            self._tensors,
            self.budget,
            region.lower,
            region.upper,
            region.pairs,
            partial(self._replayed, case),
        )
        with torch_threads(self.options.threads):
            result = search.run(limits)
        return result.lower, result.nodes

    def _bounds_together(self) -> None:
        """Cheap bounds of many regions in batches: most boxes of a long list need no more."""
        bounding = registry.load("bounds", "crown")
        by_rows: dict[int, list[_Case]] = {}
        for case in self._cases:
            by_rows.setdefault(len(case.goal.limits), []).append(case)
        for cases in by_rows.values():
            for start in range(0, len(cases), _TOGETHER):
                if self.stopped():
                    return
                part = cases[start : start + _TOGETHER]
                found = bounding.bound(
                    self._graph,
                    np.stack([case.region.lower for case in part]),
                    np.stack([case.region.upper for case in part]),
                    self.budget,
                    np.stack([case.goal.rows for case in part]),
                    self.options.device,
                    hurry=self.stopped,
                )
                for case, lower in zip(part, found.rows_lower, strict=True):
                    self._take(case, lower)

    def _take(self, case: _Case, lower: Float) -> None:
        """Take over proven lower bounds of a region's rows, float64 [rows]."""
        found = case.goal.below(lower[None])[0]
        if np.any(found > case.best):
            self._message = "a bound is refuted by a point: please report it"
        else:
            case.lower = np.maximum(case.lower, found)

    def _bounds(self, case: _Case, end: float) -> Bounds:
        """Bounds of every node and of all rows."""
        region, goal = case.region, case.goal
        bounding = registry.load("bounds", self.options.bounds)
        bounds: Bounds = bounding.bound(
            self._graph,
            region.lower[None],
            region.upper[None],
            self.budget,
            goal.rows[None],
            self.options.device,
            hurry=partial(self._over, (time.perf_counter() + end) / 2),
        )
        self._take(case, bounds.rows_lower[0])
        return bounds

    def _solve(self, case: _Case, bounds: Bounds, solver: Solver, end: float) -> None:
        """The alternatives' programs, the most endangered first."""
        from milpver.encoder import encode  # noqa: PLC0415  only where a solver is asked

        region = case.region
        centre = np.where(region.lower == region.upper, region.lower, (region.lower + region.upper) / 2)
        box = Box(centre, region.lower, region.upper, region.lower, region.upper)
        encoding = registry.load("encodings", self.options.encoding)
        encoded = encode(self._graph, box, self.budget, bounds, encoding)
        self._engine = solver.name
        for patient in (False, True):
            tried = [k for k in np.argsort(case.lower, kind="stable") if not self._proven(case)[k]]
            for place, k in enumerate(tried):
                left = min(end - time.perf_counter(), self.remaining)
                if left <= 0 or self._witness is not None or case.hopeless or self.stopped():
                    return
                self._solve_alternative(
                    case, int(k), encoded, solver, left / (1 if patient else len(tried) - place)
                )

    def _solve_alternative(
        self, case: _Case, k: int, encoded: Encoded, solver: Solver, seconds: float
    ) -> None:
        """Minimise one alternative's value, and take from the solver what can be checked."""
        own = np.flatnonzero(case.goal.owner == k)
        if len(own) == 1:
            columns, coefficients, constant = encoded.row(case.goal.rows[own[0]])
            offset = constant - float(case.goal.limits[own[0]])
            program = encoded.builder.build().with_objective(columns, coefficients, offset)
        else:
            value = encoded.builder.add_columns("value", np.array([-np.inf]), np.array([np.inf]))
            for row in own:
                columns, coefficients, constant = encoded.row(case.goal.rows[row])
                blocks = [(columns, coefficients[None]), (value, np.array([[-1.0]]))]
                encoded.builder.add_matrix_rows(blocks, -np.inf, float(case.goal.limits[row]) - constant, 1)
            program = encoded.builder.build().with_objective(value, np.ones(1), 0.0)
        limits = Limits(
            seconds=seconds,
            gap=self.options.gap / 2,
            threads=self.options.threads,
            seed=self.options.seed,
            memory=self.options.memory,
            objective_stop=-SOLVER_TOLERANCE * self._scale,
            bound_stop=2 * SOLVER_TOLERANCE * self._scale,
        )
        stop = self._should_stop
        solution = solver.solve(
            program,
            limits,
            options=self.options.solver_options,
            should_stop=None if stop is None else lambda _progress: stop(),
        )
        self._nodes += solution.nodes
        if solution.x is not None:
            masks = {node: gone[None] for node, gone in encoded.removed(solution.x).items()}
            self._replayed(case, encoded.point(solution.x)[None], masks)
        if solution.stop in (Stop.ERROR, Stop.INFEASIBLE, Stop.UNBOUNDED):
            self._message = solution.message or f"the solver says {solution.stop.value}, which cannot be"
        elif solution.lower <= case.best[k] + SOLVER_TOLERANCE * self._scale:
            case.solved[k] = max(float(case.solved[k]), solution.lower)
        else:
            self._message = (
                f"the solver's bound {solution.lower:.9g} is refuted by a value of {case.best[k]:.9g}"
            )
            case.solved[:] = -np.inf


def _case(region: Region) -> _Case:
    """A region of which nothing is known."""
    count = len(region.alternatives)
    inside = region.has_float32
    low = region.inner_lower if inside else region.lower
    high = region.inner_upper if inside else region.upper
    goal = Goal.of(low, high, region.pairs)
    nothing = np.full(count, -np.inf)
    return _Case(region, goal, nothing, nothing.copy(), np.full(count, np.inf), np.tile(low, (count, 1)))


def _joined(graph: Graph) -> Graph:
    """The graph with its input joined to its output, for rows over both."""
    outputs, inputs = graph.outputs, graph.inputs
    eye = sparse.eye_array(outputs + inputs, format="csr")
    top, bottom = sparse.csr_array(eye[:, :outputs]), sparse.csr_array(eye[:, outputs:])
    terms = ((len(graph.nodes) - 1, Sparse(top)), (0, Sparse(bottom)))
    return Graph((*graph.nodes, Affine(terms, np.zeros(outputs + inputs), "output and input")))


def _with_inputs(outputs: Float32, x: Float32, joint: bool) -> Float:
    """Outputs as rows over them take them, float64 [n, outputs] or [n, outputs + inputs]."""
    found: Float = (np.concatenate([outputs, x], axis=1) if joint else outputs).astype(np.float64)
    return found


def _relus(graph: Graph) -> int:
    """Number of ReLUs and maxima."""
    return sum(node.size for node in graph.nodes if isinstance(node, Relu | Max))


def _convolutional(graph: Graph) -> bool:
    """Whether there is a convolution among the layers."""
    return any(
        isinstance(linear, Conv)
        for node in graph.nodes
        if isinstance(node, Affine)
        for _, linear in node.terms
    )


def _bound_products(graph: Graph) -> int:
    """Products that bounding every ReLU's input once takes at most: two rows each, back to the input."""
    total = before = 0
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Affine):
            before += sum(linear.outputs * linear.row_terms for _, linear in node.terms)
            if any(isinstance(graph.nodes[reader], Relu) for reader in graph.consumers[index]):
                total += 2 * node.size * before
    return total


def _products(graph: Graph) -> int:
    """Products in one run of the network."""
    return sum(
        linear.outputs * linear.row_terms
        for node in graph.nodes
        if isinstance(node, Affine)
        for _, linear in node.terms
    )
