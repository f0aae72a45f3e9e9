"""Local substitutes: a network whose ReLUs are linear where they hardly vary near an input.

After "Robustness Evaluation Using Local Substitute Networks": around an anchor x0, within the distance of an
adversarial input, the ReLUs whose pre-activation bounds are the narrowest become linear, a share of what is
left in each round, with the bounds computed anew (its Algorithm 1). Three kinds (its section 3.1), z being a
neuron's pre-activation at x0 and a at the adversarial input:

- ``con``: the constant relu(z);
- ``lin``: the line through (z, relu(z)) and (a, relu(a)), or the constant where z = a;
- ``act``: the identity where z > 0, zero otherwise.

Beyond the paper, for ``act``: substitute and network agree on the ball around x0 in which no replaced neuron
changes its sign. Its radius delta is certified by bounds, and exact by MILP. It is computed on the
substitute, which has fewer ReLUs: up to delta both are the same function. By the paper's Lemma 1 (first part)
``d_bnd(f) >= min(delta, d_bnd(g))``.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver import registry
from milpver.attack.boundary import closest_adversarials
from milpver.bounding import Bounding
from milpver.encoder import encode
from milpver.errors import ModelError, QueryError
from milpver.graph import Affine, Graph, Input, Node, Relu
from milpver.linear import Dense, Float, diagonal, selection
from milpver.nearest import nearest
from milpver.network import Network
from milpver.query import Box, Budget, Domain, ball
from milpver.solver import Limits, Solver, Stop

__all__ = ["KINDS", "Agreement", "Linear", "Substitute", "agreement", "closest_adversarial", "substitute"]

KINDS = ("con", "lin", "act")

#: Rounds in which the neurons are chosen.
ROUNDS = 6
#: Halvings of the radius that bounds certify.
_HALVINGS = 10
#: Neurons whose sign changes an attack looks for in each layer.
_ATTACKED = 32
#: A dual bound of a MILP solver is lowered by this share before it counts as certified.
_SOLVER_SHARE = 1e-6
#: The step, relative to the input, that shows whether an output that is 0 becomes negative.
_AT_ONCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """What replaces the ReLUs of one layer: ``y = slope z + constant`` where not kept.

    Attributes:
        kept: bool [size], ReLUs that stay; slope and constant are 0 there.
        slope, constant: float64 [size], float32 values, so that a file holds them exactly.
    """

    kept: NDArray[np.bool_]
    slope: Float
    constant: Float


@dataclass(frozen=True, slots=True, eq=False)
class Substitute:
    """A substitute network.

    Attributes:
        network: the substitute, with an ONNX model of its own.
        kind: of KINDS.
        layers: Relu node of the original graph -> what replaces its ReLUs.
        moved: node of the original graph -> node of the substitute's.
        seconds: wall-clock time it took to choose and replace.
    """

    network: Network
    kind: str
    layers: Mapping[int, Linear]
    moved: tuple[int, ...]
    seconds: float

    @property
    def replaced(self) -> int:
        """Number of ReLUs that were replaced."""
        return sum(int((~layer.kept).sum()) for layer in self.layers.values())


def closest_adversarial(
    network: Network, x: Float, label: int, domain: Domain | None, seed: int = 0
) -> Float | None:
    """The closest adversarial input that an attack finds, float64 [inputs], or None."""
    space = ball(x, math.inf, domain)
    targets = [j for j in range(network.graph.outputs) if j != label]
    found, points = closest_adversarials(
        network.graph, x, label, targets, space.inner_lower, space.inner_upper, steps=20, seed=seed
    )
    best = int(found.argmin())
    return points[best] if math.isfinite(found[best]) else None


def substitute(
    network: Network,
    x: Float,
    adversarial: Float,
    *,
    kind: str,
    ratio: float,
    domain: Domain | None = None,
    bounds: str = "crown",
    rounds: int = ROUNDS,
    device: str = "auto",
) -> Substitute:
    """Replace a share of the ReLUs.

    Args:
        network: f.
        x: the anchor, float64 [inputs].
        adversarial: an adversarial input; its distance is the radius in which bounds are computed.
        kind: of KINDS.
        ratio: gamma, the share of all ReLUs to replace, in (0, 1].
        domain: limits of the inputs.
        bounds: the bounding method.
        rounds: how often bounds are computed; gamma_0 is ``1 - (1 - gamma)^(1 / rounds)``.
        device: where they are computed.

    Raises:
        QueryError: an unknown kind, or a ratio outside of (0, 1].
        ModelError: the network has no ReLU of the file's own, or the file does not say its shape.
        PluginError: an unknown bounding method.
    """
    if kind not in KINDS:
        raise QueryError(f"--kind {kind}", needed=f"of {', '.join(KINDS)}", fix="correct --kind")
    if not 0 < ratio <= 1:
        raise QueryError(f"--ratio {ratio:g}", needed="a share above 0 and up to 1", fix="write e.g. 0.9")
    began = time.perf_counter()
    graph = network.graph
    relus = [index for index, node in enumerate(graph.nodes) if isinstance(node, Relu)]
    total = sum(graph.nodes[index].size for index in relus)
    if not total:
        raise ModelError(
            f"{network.path} has no ReLU", needed="a ReLU network", fix="ask about another network"
        )
    radius = float(np.abs(adversarial - x).max())
    values = graph.trace(np.stack([x, adversarial]))
    lines = {index: _line(kind, *values[graph.nodes[index].sources[0]]) for index in relus}
    layers = {
        index: Linear(
            np.ones(graph.nodes[index].size, dtype=np.bool_),
            np.zeros(graph.nodes[index].size),
            np.zeros(graph.nodes[index].size),
        )
        for index in relus
    }
    bounding: Bounding = registry.load("bounds", bounds)
    box = ball(x, radius, domain)
    goal = math.ceil(ratio * total)
    done = 0
    for k in range(1, rounds + 1):
        target = goal if k == rounds else min(goal, math.floor(total * (1 - (1 - ratio) ** (k / rounds))))
        if target <= done:
            continue
        current, moved = _replaced(graph, layers)
        rows = np.zeros((1, 1, graph.outputs))
        found = bounding.bound(current, box.lower[None], box.upper[None], Budget(), rows, device)
        for index, place in _narrowest(layers, found.lower, found.upper, current, moved, target - done):
            layer = layers[index]
            kept, slope, constant = layer.kept.copy(), layer.slope.copy(), layer.constant.copy()
            kept[place] = False
            slope[place], constant[place] = (part[place] for part in lines[index])
            layers[index] = Linear(kept, slope, constant)
        done = target
    final, moved = _replaced(graph, layers)
    content = _model(network, layers)
    made = replace(network, graph=final, model=content, sha256=hashlib.sha256(content).hexdigest(), layers=())
    return Substitute(made, kind, layers, moved, time.perf_counter() - began)


def _line(kind: str, z: Float, a: Float) -> tuple[Float, Float]:
    """Slope and constant of every neuron, float64 [size], rounded to float32 values."""
    at_z, at_a = np.maximum(z, 0.0), np.maximum(a, 0.0)
    match kind:
        case "con":
            slope, constant = np.zeros(len(z)), at_z
        case "act":
            slope, constant = (z > 0).astype(np.float64), np.zeros(len(z))
        case _:
            apart = z != a
            slope = np.where(apart, (at_a - at_z) / np.where(apart, a - z, 1.0), 0.0)
            slope = slope.astype(np.float32).astype(np.float64)
            constant = at_z - slope * z
    return slope, constant.astype(np.float32).astype(np.float64)


def _narrowest(
    layers: Mapping[int, Linear],
    lower: Sequence[Float],
    upper: Sequence[Float],
    graph: Graph,
    moved: Sequence[int],
    count: int,
) -> list[tuple[int, NDArray[np.int64]]]:
    """The ReLUs with the narrowest pre-activation bounds over all layers, as (Relu node, places)."""
    owners, places, widths = [], [], []
    for index, layer in layers.items():
        kept = np.flatnonzero(layer.kept)
        if len(kept) == 0:
            continue
        node = graph.nodes[moved[index]]
        relu = node if isinstance(node, Relu) else graph.nodes[node.sources[0]]
        source = relu.sources[0]
        owners.append(np.full(len(kept), index))
        places.append(kept)
        widths.append(upper[source][0] - lower[source][0])
    owner, place, width = (np.concatenate(part) for part in (owners, places, widths))
    chosen = np.argsort(width, kind="stable")[:count]
    return [
        (index, place[chosen[owner[chosen] == index]]) for index in layers if np.any(owner[chosen] == index)
    ]


def _replaced(graph: Graph, layers: Mapping[int, Linear]) -> tuple[Graph, tuple[int, ...]]:
    """The graph with ReLUs replaced, and where each of its nodes went.

    A layer becomes ``y = scatter relu(select z) + diag(slope) z + constant``.
    """
    nodes: list[Node] = []
    moved: list[int] = []

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    for index, node in enumerate(graph.nodes):
        layer = layers.get(index)
        if isinstance(node, Relu) and layer is not None and not layer.kept.all():
            source = moved[node.source]
            terms = [(source, diagonal(layer.slope))]
            kept = np.flatnonzero(layer.kept)
            if len(kept):
                picked = add(
                    Affine(((source, selection(kept, node.size)),), np.zeros(len(kept)), f"{node.name}/kept")
                )
                relu = add(Relu(picked, len(kept), node.name))
                back = np.full(node.size, -1)
                back[kept] = np.arange(len(kept))
                terms.insert(0, (relu, selection(back, len(kept))))
            moved.append(add(Affine(tuple(terms), layer.constant, f"{node.name}/linear")))
        else:
            moved.append(add(_moved(node, moved)))
    return Graph(tuple(nodes)), tuple(moved)


def _moved(node: Node, moved: Sequence[int]) -> Node:
    """A node with its sources where they went."""
    if isinstance(node, Affine):
        return replace(node, terms=tuple((moved[source], linear) for source, linear in node.terms))
    if isinstance(node, Input):
        return node
    return replace(node, source=moved[node.source])


def _model(network: Network, layers: Mapping[int, Linear]) -> bytes:
    """The ONNX model with ReLUs replaced: ``y = kept relu(z) + slope z + constant`` behind each Relu."""
    import onnx  # noqa: PLC0415  only where a network is written

    model = onnx.ModelProto.FromString(network.model)
    shapes = _shapes(network, model)
    graph = network.graph
    wanted = {graph.nodes[i].name: layer for i, layer in layers.items() if not layer.kept.all()}
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        name = node.output[0] if node.output else ""
        layer = wanted.pop(name, None) if node.op_type == "Relu" else None
        if layer is None:
            continue
        source, rectified = node.input[0], f"{name}_relu"
        node.output[0] = rectified
        parts = {"kept": layer.kept.astype(np.float64), "slope": layer.slope, "constant": layer.constant}
        for part, numbers in parts.items():
            tensor = onnx.numpy_helper.from_array(
                numbers.reshape(shapes[name]).astype(np.float32), f"{name}_{part}"
            )
            nodes.append(onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        for kind, left, right, made in (
            ("Mul", rectified, f"{name}_kept", f"{name}_rest"),
            ("Mul", source, f"{name}_slope", f"{name}_scaled"),
            ("Add", f"{name}_scaled", f"{name}_constant", f"{name}_line"),
            ("Add", f"{name}_rest", f"{name}_line", name),
        ):
            nodes.append(onnx.helper.make_node(kind, [left, right], [made]))
    if wanted:
        raise ModelError(
            f"{network.path}: the ReLU {next(iter(wanted))!r} is no Relu operator of the file",
            needed="a network whose nonlinear functions are Relu operators",
            fix="ask about another network",
        )
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    del model.graph.value_info[:]
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _shapes(network: Network, model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every Relu's output, the batch axis (which may be free) as 1."""
    import onnx  # noqa: PLC0415  only where a network is written

    found = {}
    for entry in onnx.shape_inference.infer_shapes(model).graph.value_info:
        found[entry.name] = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    shapes = {}
    for node in network.graph.nodes:
        if not isinstance(node, Relu):
            continue
        dims = found.get(node.name, [])
        shape = (1, *dims[1:]) if len(dims) > 1 and math.prod(dims[1:]) == node.size else tuple(dims)
        if math.prod(shape) != node.size or not shape:
            raise ModelError(
                f"{network.path}: the file does not say the shape of {node.name!r}",
                needed="shapes that onnx can infer",
                fix="export it with fixed shapes",
            )
        shapes[node.name] = shape
    return shapes


# ------------------------------------------------------------------------------- where both agree


@dataclass(frozen=True, slots=True)
class Agreement:
    """The ball around x0 in which substitute and network agree.

    Attributes:
        lower: certified radius: in it no replaced neuron changes its sign.
        upper: distance of an input at which one does; infinity where none was found.
        exact: whether every neuron was settled, so that the two differ by the gap at most.
        rounded: whether ``lower`` rests on bounds alone; otherwise on a MILP solver's word.
    """

    lower: float
    upper: float
    exact: bool
    rounded: bool


def agreement(
    found: Substitute,
    x: Float,
    *,
    reach: float,
    domain: Domain | None = None,
    bounds: str = "crown",
    device: str = "auto",
    solver: Solver | None = None,
    seconds: float = math.inf,
    gap: float = 1e-6,
) -> Agreement:
    """The radius delta in which an ``act`` substitute and its network agree.

    Args:
        found: the substitute.
        x: its anchor, float64 [inputs].
        reach: radii beyond this are not looked at.
        domain: limits of the inputs.
        bounds: the bounding method.
        device: where bounds are computed.
        solver: a MILP solver that closes what bounds leave open; None: bounds alone.
        seconds: limit in all.
        gap: absolute gap at which a neuron counts as settled.

    Raises:
        QueryError: the substitute is not of the kind ``act``.
    """
    if found.kind != "act":
        raise QueryError(
            f"the radius of agreement of a {found.kind} substitute", needed="kind act", fix="--kind act"
        )
    end = time.perf_counter() + seconds
    signs = [graph for graph in _sign_graphs(found) if graph.outputs]
    upper = min((_attacked(graph, x, domain) for graph in signs), default=math.inf)
    limit = min(reach, upper)
    method: Bounding = registry.load("bounds", bounds)

    def keeps(graph: Graph, radius: float) -> NDArray[np.bool_]:
        box = ball(x, radius, domain)
        rows = np.eye(graph.outputs)[None]
        bound = method.bound(
            graph,
            box.lower[None],
            box.upper[None],
            Budget(),
            rows,
            device,
            hurry=lambda: time.perf_counter() > end,
        )
        return np.asarray(bound.rows_lower[0] >= 0)

    lower = _certified(signs, keeps, limit, lambda: time.perf_counter() > end)
    if solver is None or lower >= limit:
        return Agreement(lower, upper, lower >= limit - gap, True)
    solved = limit
    for graph in signs:
        for row in np.flatnonzero(~keeps(graph, limit)):
            left = end - time.perf_counter()
            if left <= 0:
                return Agreement(lower, upper, False, True)
            radius = min(reach, upper)
            box = ball(x, radius, domain)
            proven, crossing = _crossing(graph, int(row), box, radius, solver, left, gap)
            upper, solved = min(upper, crossing), min(solved, proven)
    solved = min(solved * (1 - _SOLVER_SHARE), reach, upper)
    closed = solved >= min(reach, upper) - gap - _SOLVER_SHARE * solved
    return Agreement(max(lower, solved), upper, closed, solved <= lower)


def _sign_graphs(found: Substitute) -> list[Graph]:
    """For each layer the substitute up to it, its output ``sign_i z_i`` of the replaced neurons.

    An output < 0 says that the neuron has changed its sign since x0.
    """
    graphs = []
    nodes = found.network.graph.nodes
    for index, layer in found.layers.items():
        places = np.flatnonzero(~layer.kept)
        if len(places) == 0:
            continue
        after = nodes[found.moved[index]]
        if not isinstance(after, Affine):
            raise TypeError(f"node {found.moved[index]} does not replace a Relu")
        source = after.terms[-1][0]  # the pre-activation, behind the ReLUs that stay
        # What no weight leads to never changes its sign; a 0 there would be one to bounds, but for rounding.
        places = places[~_constant(nodes[source])[places]]
        if len(places) == 0:
            continue
        sign = np.where(layer.slope[places] > 0, 1.0, -1.0)
        picked = selection(places, nodes[source].size)
        scaled = type(picked)(picked.csr.multiply(sign[:, None]).tocsr())
        graphs.append(
            Graph((*nodes[: source + 1], Affine(((source, scaled),), np.zeros(len(places)), "signs")))
        )
    return graphs


def _constant(node: Node) -> NDArray[np.bool_]:
    """Which entries of a node have no weights, bool [size]."""
    if not isinstance(node, Affine):
        return np.zeros(node.size, dtype=np.bool_)
    weight = sum(np.asarray(abs(linear.csr).sum(axis=1)).reshape(-1) for _, linear in node.terms)
    return np.asarray(weight == 0)


def _certified(
    signs: Sequence[Graph],
    keeps: Callable[[Graph, float], NDArray[np.bool_]],
    limit: float,
    over: Callable[[], bool],
) -> float:
    """The largest radius at which bounds show that no sign changes, by halving."""
    if not signs:
        return limit
    low, high = 0.0, limit
    radius = limit
    for _ in range(_HALVINGS):
        if over():
            break
        if all(bool(keeps(graph, radius).all()) for graph in signs):
            low = radius
            if low == limit:
                break
        else:
            high = radius
        radius = (low + high) / 2
    return low


def _attacked(graph: Graph, x: Float, domain: Domain | None) -> float:
    """The distance at which an attack makes an output negative; infinity where it does not.

    An output that is 0 at x itself is negative at once, or not where its slope leads (a neuron that is never
    active, or on the domain's edge): then it says nothing.
    """
    space = ball(x, math.inf, domain)
    values = graph.trace(x[None])
    margins = values[-1][0]
    slopes = np.concatenate(
        [
            graph.pullback([np.repeat(v, len(part), axis=0) for v in values], part)
            for part in np.array_split(np.eye(graph.outputs), max(1, graph.outputs // 256))
        ]
    )
    tied = np.flatnonzero(margins <= 0)
    if len(tied):
        step = _AT_ONCE * max(1.0, float(np.abs(x).max(initial=0.0)))
        moved = np.clip(x - step * np.sign(slopes[tied]), space.inner_lower, space.inner_upper)
        if np.any(graph.evaluate(moved)[np.arange(len(tied)), tied] < 0):
            return 0.0
    size = np.abs(slopes).sum(axis=1)
    near = np.where(size > 0, margins / np.where(size > 0, size, 1.0), np.inf)
    picked = np.argsort(near, kind="stable")
    picked = picked[margins[picked] > 0][:_ATTACKED]
    if len(picked) == 0:
        return math.inf
    weight = np.vstack([np.zeros(graph.outputs), -np.eye(graph.outputs)[picked]])
    head = Affine(((len(graph.nodes) - 1, Dense(weight)),), np.zeros(len(weight)), "margins")
    targets = list(range(1, len(weight)))
    found, _ = closest_adversarials(
        Graph((*graph.nodes, head)), x, 0, targets, space.inner_lower, space.inner_upper, steps=8, seed=0
    )
    return float(found.min())


def _crossing(
    graph: Graph, row: int, box: Box, radius: float, solver: Solver, seconds: float, gap: float
) -> tuple[float, float]:
    """The smallest step within a box at which one output is <= 0: what is proven, and what was met.

    ``min eps`` subject to ``|x' - x| <= eps`` and ``output_row(x') <= 0``, as for d_bnd.
    """
    x = box.centre
    bounding: Bounding = registry.load("bounds", "crown")
    rows = np.eye(graph.outputs)[None, row : row + 1]
    found = bounding.bound(graph, box.lower[None], box.upper[None], Budget(), rows, "cpu")
    if found.rows_lower[0, 0] >= 0:
        return radius, math.inf
    if graph.evaluate(x[None])[0, row] <= 0:
        return 0.0, math.inf  # x itself is that input: the program cannot say where the output is below 0
    encoded = encode(graph, box, Budget(), found, registry.load("encodings", "fused"))
    if encoded.input is None:
        return 0.0, math.inf
    program = nearest(encoded, "linf", x, radius, 0.0, rows[0, 0]).program
    solution = solver.solve(program, Limits(seconds=seconds, gap=gap / 2))
    if solution.stop is Stop.INFEASIBLE:
        return radius, math.inf
    if solution.stop in (Stop.ERROR, Stop.UNBOUNDED):
        return 0.0, math.inf
    met = math.inf
    if solution.x is not None:
        point = encoded.point(solution.x)
        scale = max(1.0, float(np.abs(graph.evaluate(point[None])[0]).max()))
        if graph.evaluate(point[None])[0, row] <= _SOLVER_SHARE * scale:
            met = float(np.abs(point - x).max())
    return min(max(0.0, solution.lower), radius), met
