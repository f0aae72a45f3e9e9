"""Backward linear bounds (CROWN) through gates, with slopes alpha and budget multipliers lambda.

A row over a node's values is pulled back to the input, each nonlinear node being replaced by a linear lower
bound of its share (Zhang et al. 2018, CROWN; Xu et al. 2021, alpha-CROWN; the rule for gates is ours):

- c relu(z), c >= 0: ``alpha c z`` with any alpha in [0, 1]; c < 0: the chord of the concave function over
  [l, u]; less ``mu z`` where branching has fixed the sign of z, mu having the same sign.
- max over a window, c >= 0: the entry with the largest lower bound; c < 0: the entry that is surely the
  largest, or the constant c max u.
- a budget group with at most s removals: for every lambda >= 0

      min_m sum_g m_g sum_{r in g} C_r v_r  >=  sum_g min(sum_{r in g} C_r v_r, lambda) - lambda s,

  one lambda for each row and group, charged once; entries that share a gate split it evenly,
  lambda = sum lambda_r, since min(sum a, sum b) >= sum min(a, b). Each entry then takes the chord of the
  concave min(C v, lambda_r) over [lv, uv].
- a gated node that the input fixes: the exact sum of A_g = sum_{r in g} C_r v_r less the s largest
  positive ones, without lambda.

A linear function that lies below a concave one at both ends of an interval lies below it in between: chords
take their constant from the ends, so that any slope, however rounded, is sound. The rounding of pulling C
back through M, at most gamma_n |C| |M|, is charged at max(|l|, |u|) of the values it multiplies.

Bounds are functions of explicit multipliers (``Multipliers``), which an ascent improves; what is returned is
evaluated once more at the best ones, rounded outward.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from milpver.bounds._rounding import gamma, outward
from milpver.bounds._tensors import TensorGraph
from milpver.bounds._workspace import Workspace, per_gate, top_kept
from milpver.graph import Affine, Gate, Input, Max, Relu
from milpver.query import BudgetGroup

__all__ = [
    "Multipliers",
    "ReluLines",
    "affine_terms",
    "backward",
    "bound_sensitivities",
    "crown_bounds",
    "entries_that_matter",
    "optimised_rows",
    "worth_tightening",
]

#: Elements of the largest temporary (batch x rows x entries) of a backward pass.
_CHUNK = 1 << 23
#: Elements (batch x rows x entries) of a layer beyond which its intermediate bounds get no ascent.
_ASCENT = 1 << 24
#: Intervals narrower than this, relative to their ends, are treated as constants by the gate rule.
_NARROW = 1e-9


@dataclass(frozen=True, slots=True)
class ReluLines:
    """The lines around relu(z) over z in [low, high]; every tensor has the bounds' shape.

    Attributes:
        unstable: the sign of z is open.
        flat: slope of the line below, 0 or 1 by the larger side; any other in [0, 1] is sound as well.
        steep: slope of the chord above; 1 or 0 where the sign is known.
        missed: constant of the chord, >= 0: from the end where the line through the origin misses it most,
            so that the chord is above whatever the rounding of its slope.
    """

    unstable: torch.Tensor
    flat: torch.Tensor
    steep: torch.Tensor
    missed: torch.Tensor

    @classmethod
    def of(cls, low: torch.Tensor, high: torch.Tensor) -> ReluLines:
        """The lines for bounds."""
        unstable = (low < 0) & (high > 0)
        active = (low >= 0).to(low.dtype)
        steep = torch.where(unstable, high / (high - low).clamp(min=1e-300), active)
        missed = torch.where(unstable, torch.maximum(-steep * low, (1 - steep) * high), torch.zeros_like(low))
        return cls(unstable, torch.where(unstable, (high > -low).to(low.dtype), active), steep, missed)


@dataclass(slots=True)
class Multipliers:
    """What a backward pass depends on.

    Attributes:
        alpha: Relu node -> slope, float64 [batch, rows, size], in [0, 1].
        lam: budget group's first node -> lambda, float64 [batch, rows], >= 0.
        mu: Relu node -> multiplier of its input z, float64 [batch, rows, size]: ``- mu z`` is added to the
            row. Where bounds (a branch) say z >= 0 it counts if >= 0, where they say z <= 0 if <= 0, and
            nowhere else (Wang et al. 2021, beta-CROWN, eq. 8; mu = beta times the branch's sign).
    """

    alpha: dict[int, torch.Tensor] = field(default_factory=dict)
    lam: dict[int, torch.Tensor] = field(default_factory=dict)
    mu: dict[int, torch.Tensor] = field(default_factory=dict)

    def leaves(self) -> list[torch.Tensor]:
        """All tensors."""
        return [*self.alpha.values(), *self.lam.values(), *self.mu.values()]

    def clone(self) -> Multipliers:
        """A detached copy."""
        return Multipliers(
            {node: value.detach().clone() for node, value in self.alpha.items()},
            {node: value.detach().clone() for node, value in self.lam.items()},
            {node: value.detach().clone() for node, value in self.mu.items()},
        )

    def take(self, better: torch.Tensor, other: Multipliers) -> None:
        """Take over the multipliers of the rows where ``better``, bool [batch, rows], holds."""
        for mine, its in ((self.alpha, other.alpha), (self.mu, other.mu)):
            for node, value in its.items():
                mine[node] = torch.where(better.unsqueeze(2), value.detach(), mine[node])
        for node, value in other.lam.items():
            self.lam[node] = torch.where(better, value.detach(), self.lam[node])


def crown_bounds(
    workspace: Workspace,
    lower: torch.Tensor,
    upper: torch.Tensor,
    rows: torch.Tensor,
    *,
    steps: int,
    row_steps: int,
    first: Multipliers | None = None,
) -> tuple[torch.Tensor, Multipliers]:
    """Fill a workspace with bounds of every node, tightened where a neuron is unstable, and bound the rows.

    Args:
        workspace: empty, with budget and fixed gates.
        lower, upper: the boxes, float64 [batch, inputs].
        rows: float64 [batch, rows, outputs].
        steps: ascent steps for intermediate bounds.
        row_steps: ascent steps for the rows over the output.
        first: multipliers of the rows to begin with.

    Returns:
        Lower bounds of the rows, float64 [batch, rows], rounded outward, and their multipliers.
    """
    graph = workspace.graph
    for index, node in enumerate(graph.nodes):
        workspace.add(lower, upper)
        if isinstance(node, Affine) and worth_tightening(workspace, index, node):
            _tighten(workspace, index, steps)
            workspace.tightened.append(index)
    start = len(graph.nodes) - 1
    return optimised_rows(workspace, start, rows, row_steps, first)


def bound_sensitivities(
    workspace: Workspace, rows: torch.Tensor, multipliers: Multipliers
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """What rows over the output depend on, for branching: nothing of it is rounded, no bound rests on it.

    Args:
        workspace: full.
        rows: float64 [batch, rows, outputs].
        multipliers: of these rows.

    Returns:
        The coefficients that arrive at each Relu and budgeted Gate, float64 [batch, rows, size]; and, for
        each node that the masks change, how fast the sum of the rows' bounds falls as the node's own bounds
        widen, ``|dL/dl| + |dL/du|``, float64 [batch, size].
    """
    last = len(workspace.graph.nodes) - 1
    changing = [index for index in range(last) if index not in workspace.constants]
    kept_lows, kept_highs = list(workspace.lows), list(workspace.highs)
    try:
        leaves: list[torch.Tensor] = []
        for index in changing:
            workspace.lows[index] = workspace.lows[index].detach().clone().requires_grad_()
            workspace.highs[index] = workspace.highs[index].detach().clone().requires_grad_()
            leaves += [workspace.lows[index], workspace.highs[index]]
        found, arrived = backward(workspace, last, rows, multipliers, rounded=False)
        fallen: list[torch.Tensor | None] = [None] * len(leaves)
        if found.requires_grad:
            fallen = list(torch.autograd.grad(found.sum(), leaves, allow_unused=True))
    finally:
        workspace.lows[:], workspace.highs[:] = kept_lows, kept_highs
    felt: dict[int, torch.Tensor] = {}
    for place, index in enumerate(changing):
        parts = [part.abs() for part in fallen[2 * place : 2 * place + 2] if part is not None]
        if parts:
            felt[index] = torch.nan_to_num(torch.stack(parts).sum(dim=0))
    return {node: c.detach() for node, c in arrived.items()}, felt


def worth_tightening(workspace: Workspace, index: int, node: Affine) -> bool:
    """Whether something nonlinear reads an Affine node, and the interval rule is not exact for it."""
    graph = workspace.graph
    if not any(isinstance(graph.nodes[reader], Relu | Max | Gate) for reader in graph.consumers[index]):
        return False
    exact = all(source in workspace.constants or workspace.settled(source) for source in node.sources)
    return not exact and (node.sources != (0,) or not workspace.box_shaped)


def entries_that_matter(workspace: Workspace, index: int) -> torch.Tensor:
    """The entries of an Affine node whose bounds what reads it depends on, bool [batch, size].

    They are those whose sign is open, and behind a Relu that a gate follows all that may be active.
    """
    low, high = workspace.lows[index], workspace.highs[index]
    readers = [workspace.graph.nodes[reader] for reader in workspace.graph.consumers[index]]
    open_ = (low < 0) & (high > 0)
    consumers = workspace.graph.consumers
    relus = [reader for reader in consumers[index] if isinstance(workspace.graph.nodes[reader], Relu)]
    if any(_ends_matter(workspace, gate) for relu in relus for gate in consumers[relu]):
        open_ = high > 0
    if any(isinstance(reader, Max | Gate) for reader in readers):
        open_ = torch.ones_like(open_)
    return open_


def _tighten(workspace: Workspace, index: int, steps: int) -> None:
    """Replace a node's interval bounds by backward ones where they matter, in both directions."""
    low, high = workspace.lows[index], workspace.highs[index]
    open_ = entries_that_matter(workspace, index)
    # Each box has its own open entries; boxes that have fewer get others as well, which stay as they are.
    count = int(open_.sum(dim=1).max())
    picked = open_.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    size, width = low.shape[1], max(node.size for node in workspace.graph.nodes[: index + 1])
    per_row = 2 * len(low) * width
    step = max(1, _CHUNK // max(1, per_row))
    if count * per_row > _ASCENT:
        steps = 0
    for start in range(0, count, step):
        if workspace.hurried:
            break
        part = picked[:, start : start + step]
        unit = torch.zeros(*part.shape, size, dtype=low.dtype, device=low.device)
        unit.scatter_(2, part.unsqueeze(2), 1.0)
        bound, _ = optimised_rows(workspace, index, torch.cat([unit, -unit], dim=1), steps)
        bound = bound.masked_fill(~open_.gather(1, part).repeat(1, 2), -torch.inf)
        low = low.scatter(1, part, torch.maximum(low.gather(1, part), bound[:, : part.shape[1]]))
        high = high.scatter(1, part, torch.minimum(high.gather(1, part), -bound[:, part.shape[1] :]))
    workspace.lows[index], workspace.highs[index] = low, high


def _ends_matter(workspace: Workspace, index: int) -> bool:
    """Whether a node is a Gate with a budget, whose chords depend on the bounds of active neurons as well."""
    return isinstance(workspace.graph.nodes[index], Gate) and workspace.budget.group_of(index) is not None


def optimised_rows(
    workspace: Workspace,
    start: int,
    rows: torch.Tensor,
    steps: int,
    first: Multipliers | None = None,
) -> tuple[torch.Tensor, Multipliers]:
    """Bound rows over a node from below, with ``steps`` of projected gradient ascent on the multipliers.

    Args:
        workspace: with bounds of all nodes up to ``start``.
        start: the node.
        rows: float64 [batch, rows, size].
        steps: ascent steps; 0 evaluates the first multipliers alone.
        first: where to begin; None for slopes by the larger side and lambda at the (s+1)-th largest share.

    Returns:
        float64 [batch, rows], rounded outward, and the multipliers they were evaluated at.
    """
    best = first.clone() if first is not None else Multipliers()
    value, _ = backward(workspace, start, rows, best, rounded=steps == 0)
    if steps and best.leaves():
        value = _ascend(workspace, start, rows, best, value, steps)
    if steps:
        value, _ = backward(workspace, start, rows, best, rounded=True)
    return value.detach(), best


def _ascend(
    workspace: Workspace,
    start: int,
    rows: torch.Tensor,
    best: Multipliers,
    value: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Adam on (alpha, lambda), projected; keeps each row's best multipliers in ``best``."""
    current = best.clone()
    scales = {node: lam.clamp(min=lam.mean().item() * 0.1 + 1e-9) for node, lam in current.lam.items()}
    unit = {node: lam / scales[node] for node, lam in current.lam.items()}
    leaves = [*current.alpha.values(), *unit.values()]
    rates = [0.25] * len(current.alpha) + [0.15] * len(unit)
    moments = [(torch.zeros_like(leaf), torch.zeros_like(leaf)) for leaf in leaves]
    for step in range(1, steps + 1):
        if workspace.hurried:
            break
        for leaf in leaves:
            leaf.requires_grad_(True)
        current.lam = {node: unit[node] * scales[node] for node in unit}
        found, _ = backward(workspace, start, rows, current, rounded=False)
        with torch.no_grad():
            better = found > value
            best.take(better, current)
            value = torch.where(better, found, value).detach()
        if step == steps:
            break
        grads = torch.autograd.grad(found.sum(), leaves, allow_unused=True)
        with torch.no_grad():
            for i, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
                if grad is None:
                    continue
                mean, square = moments[i]
                mean.mul_(0.9).add_(grad, alpha=0.1)
                square.mul_(0.999).addcmul_(grad, grad, value=0.001)
                adapted = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-12)
                leaf.requires_grad_(False)
                leaf.add_(adapted, alpha=rates[i] * 0.9**step)
                leaf.clamp_(min=0.0, max=1.0 if i < len(current.alpha) else None)
    for leaf in leaves:
        leaf.requires_grad_(False)
    return value


@dataclass(slots=True)
class _Pass:
    """What a backward pass goes through with.

    Attributes:
        multipliers: of the rows; missing ones are filled in.
        rounded: whether the error of rounding is accounted for.
        arrived: coefficients that arrived at each Relu and budgeted Gate.
        charged: groups whose lambda has been charged.
    """

    multipliers: Multipliers
    rounded: bool
    arrived: dict[int, torch.Tensor] = field(default_factory=dict)
    charged: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a node makes of the coefficients C that arrive at it.

    Attributes:
        sent: coefficients for its sources, float64 [batch, rows, size] each.
        added: what goes to the constant, float64 [batch, rows].
        size: sum of the magnitudes whose rounding is charged, float64 [batch, rows]; None where it is not.
        terms: how many roundings they went through (the n of gamma_n).
    """

    sent: tuple[tuple[int, torch.Tensor], ...]
    added: torch.Tensor
    size: torch.Tensor | None
    terms: int


def backward(
    workspace: Workspace, start: int, rows: torch.Tensor, multipliers: Multipliers, *, rounded: bool
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """One backward pass; multipliers that are missing are filled in with their first values.

    Args:
        workspace: with bounds of all nodes up to ``start``.
        start: the node.
        rows: float64 [batch, rows, size].
        multipliers: what to evaluate at.
        rounded: account for the error of rounding; without it nothing may rest on the bound.

    Returns:
        The bound, float64 [batch, rows] (rounded outward where asked), and the coefficients that arrived at
        each nonlinear node, for branching.
    """
    rows = rows.expand(workspace.batch, -1, -1)
    constant = torch.zeros(rows.shape[:2], dtype=torch.float64, device=rows.device)
    error = torch.zeros_like(constant)
    summed = torch.zeros_like(constant)  # sum of |what was added to the constant|: each addition rounds
    pending: dict[int, torch.Tensor] = {start: rows}
    state = _Pass(multipliers, rounded)
    additions = 8
    while pending:
        index = max(pending)
        step = _through(workspace, index, pending.pop(index), state)
        additions += 4
        constant = constant + step.added
        if step.size is not None:
            error = error + gamma(step.terms) * step.size
            summed = summed + step.added.abs()
        for source, part in step.sent:
            if source in pending and rounded:
                both = (pending[source].abs() + part.abs()) @ workspace.largest(source).unsqueeze(2)
                error = error + gamma(4) * both.squeeze(2)
            pending[source] = pending[source] + part if source in pending else part
    if not rounded:
        return constant, state.arrived
    with torch.no_grad():
        error = error * (1 + gamma(4096)) + gamma(4 * additions) * summed + 1e-300
        return outward(constant, constant, error)[0], state.arrived


def _through(workspace: Workspace, index: int, c: torch.Tensor, state: _Pass) -> _Step:
    """Pull rows over a node back to its sources; see the rules at the head of this file."""
    node = workspace.graph.nodes[index]
    match node:
        case Input():
            added = workspace.least(c)
            size = (c.abs() @ workspace.largest(0).unsqueeze(2)).squeeze(2) if state.rounded else None
            return _Step((), added, size, 2 * node.size + 8)
        case Affine():
            return _affine(workspace, index, node, c, state)
        case Relu():
            state.arrived[index] = c
            through, added, size = _relu(workspace, index, node, c, state.multipliers)
            return _Step(
                ((node.source, through),), added, size if state.rounded else None, 2 * node.size + 16
            )
        case Max():
            through, added, size = _max(workspace, node, c)
            return _Step(
                ((node.source, through),), added, size if state.rounded else None, 2 * node.size + 16
            )
        case Gate():
            return _gated(workspace, index, node, c, state)


def _affine(workspace: Workspace, index: int, node: Affine, c: torch.Tensor, state: _Pass) -> _Step:
    """``C (M x + b) = (C M) x + C b``."""
    operators = workspace.tensors.operators[index]
    sent = tuple(
        (source, operator.adjoint(c)) for (source, _), operator in zip(node.terms, operators, strict=True)
    )
    size = None
    if state.rounded:
        size = (c.abs() @ workspace.magnitudes[index].unsqueeze(2)).squeeze(2)
    return _Step(sent, c @ workspace.tensors.biases[index], size, affine_terms(workspace.tensors, index))


def affine_terms(tensors: TensorGraph, index: int) -> int:
    """The n of gamma_n that an Affine node's magnitudes are charged with where a row is pulled back."""
    longest = max(operator.column_terms for operator in tensors.operators[index])
    return 4 * (max(tensors.graph.nodes[index].size, longest) + 4)


def _gated(workspace: Workspace, index: int, node: Gate, c: torch.Tensor, state: _Pass) -> _Step:
    """A Gate: the identity without a budget, the exact top-s sum where the input fixes it, else lambda."""
    group = workspace.budget.group_of(index)
    terms = 4 * node.size + 16
    if group is None:
        nothing = torch.zeros(c.shape[:2], dtype=c.dtype, device=c.device)
        return _Step(((node.source, c),), nothing, nothing if state.rounded else None, terms)
    state.arrived[index] = c
    if workspace.settled(index):
        added, size = _top_sum(workspace, index, node, group, c)
        return _Step((), added, size if state.rounded else None, terms)
    charge = group.nodes[0] not in state.charged
    state.charged.add(group.nodes[0])
    through, added, size = _gate(workspace, index, node, group, c, state.multipliers, charge)
    return _Step(((node.source, through),), added, size if state.rounded else None, terms)


def _relu(
    workspace: Workspace, index: int, node: Relu, c: torch.Tensor, multipliers: Multipliers
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Linear lower bound of ``c relu(z)``: coefficients on z, constant, and its magnitude."""
    low, high = workspace.lows[node.source].unsqueeze(1), workspace.highs[node.source].unsqueeze(1)
    lines = ReluLines.of(low, high)
    if index not in multipliers.alpha:
        multipliers.alpha[index] = lines.flat.expand(c.shape).clone()
    alpha = torch.where(lines.unstable, multipliers.alpha[index], lines.steep)
    steep = lines.steep
    up, down = c.clamp(min=0.0), c.clamp(max=0.0)
    with torch.no_grad():
        zero = torch.zeros_like(low)
        size = -down @ torch.where(lines.unstable, high - steep * low, zero).transpose(1, 2)
    constant = down @ lines.missed.transpose(1, 2)
    through = torch.addcmul(up * alpha, down, steep)
    if index in multipliers.mu:
        mu = multipliers.mu[index]
        mu = torch.where(low >= 0, mu.clamp(min=0.0), torch.where(high <= 0, mu.clamp(max=0.0), zero))
        through = through - mu
        with torch.no_grad():
            moved = (through.abs() + mu.abs()) @ torch.maximum(low.abs(), high.abs()).transpose(1, 2)
            size = size + moved
    return through, constant.squeeze(2), size.squeeze(2)


def _max(workspace: Workspace, node: Max, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Linear lower bound of ``c max(window)``: coefficients on the source, constant, and its magnitude."""
    groups = torch.as_tensor(node.groups, device=c.device)
    low, high = workspace.lows[node.source][:, groups], workspace.highs[node.source][:, groups]
    best = low.argmax(dim=2, keepdim=True)
    winner = groups.unsqueeze(0).expand(low.shape).gather(2, best).squeeze(2)
    same = groups.unsqueeze(0) == winner.unsqueeze(2)
    others = high.masked_fill(same, -torch.inf).amax(dim=2)
    sure = low.gather(2, best).squeeze(2) >= others
    top = high.amax(dim=2)
    up, down = c.clamp(min=0.0), c.clamp(max=0.0)
    follows = up + torch.where(sure.unsqueeze(1), down, torch.zeros_like(down))
    through = torch.zeros(*c.shape[:2], workspace.lows[node.source].shape[1], dtype=c.dtype, device=c.device)
    through = through.scatter_add(2, winner.unsqueeze(1).expand(c.shape), follows)
    added = torch.where(sure.unsqueeze(1), torch.zeros_like(down), down * top.unsqueeze(1))
    # Windows that share an entry add their coefficients up, which rounds at the entry's size.
    largest = torch.maximum(low.abs(), high.abs()).gather(2, best).squeeze(2).unsqueeze(1)
    size = (added.abs() + follows.abs() * largest).detach()
    return through, added.sum(dim=2), size.sum(dim=2)


def _shares(workspace: Workspace, node: Gate, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``C l`` and ``C u`` of a Gate's source, float64 [batch, rows, size]."""
    return c * workspace.lows[node.source].unsqueeze(1), c * workspace.highs[node.source].unsqueeze(1)


def _top_sum(
    workspace: Workspace, index: int, node: Gate, group: BudgetGroup, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact worst sum over a Gate whose values the input fixes: constant and magnitude."""
    if node.private:
        return _private_top_sum(workspace, index, node, group, c)
    at_low, at_high = _shares(workspace, node, c)
    free, gone = (state.unsqueeze(1) for state in workspace.states(index))
    shares = per_gate(torch.minimum(at_low, at_high), node).masked_fill(gone, 0.0)
    size = torch.maximum(at_low.abs(), at_high.abs()).detach().sum(dim=2)
    return top_kept(shares, free, group.removable, workspace.removable(group)), size


def _private_top_sum(
    workspace: Workspace, index: int, node: Gate, group: BudgetGroup, c: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``_top_sum`` where every entry has a gate of its own: few passes over [batch, rows, size].

    The values are known up to rounding, v in [l, u]: ``sum m C v >= sum m C l - sum |C| (u - l)`` for a mask,
    (its minimum over the masks is the exact top-s sum at l).
    """
    low, high = workspace.lows[node.source], workspace.highs[node.source]
    free, gone = workspace.states(index)
    left = workspace.removable(group)
    present = torch.where(gone, torch.zeros_like(low), low).unsqueeze(2)
    removable = torch.where(free, low, torch.zeros_like(low)).unsqueeze(1)
    count = min(group.removable, node.gates)
    worst = (c * removable).topk(count, dim=2).values.clamp(min=0.0)
    rank = torch.arange(count, device=c.device)
    taken = worst * (rank < left.unsqueeze(1)).unsqueeze(1)
    size = c.abs() @ torch.stack([high - low, torch.maximum(low.abs(), high.abs())], dim=2)
    return (c @ present).squeeze(2) - taken.sum(dim=2) - size[..., 0], size.detach()[..., 1]


def _gate(
    workspace: Workspace,
    index: int,
    node: Gate,
    group: BudgetGroup,
    c: torch.Tensor,
    multipliers: Multipliers,
    charge: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Linear lower bound of a gated sum: coefficients on the gate's source, constant, and its magnitude."""
    at_low, at_high = _shares(workspace, node, c)
    owner = workspace.owner(index)
    free_gates, gone_gates = workspace.states(index)
    free, gone = free_gates[:, owner].unsqueeze(1), gone_gates[:, owner].unsqueeze(1)
    left = workspace.removable(group)
    key = group.nodes[0]
    if key not in multipliers.lam:
        shares = per_gate(torch.maximum(at_low, at_high).clamp(min=0.0), node)
        multipliers.lam[key] = _first_lambda(workspace, group, shares * free_gates.unsqueeze(1))
    lam = multipliers.lam[key].unsqueeze(2)
    if not node.private:
        lam = lam / torch.bincount(owner, minlength=node.gates)[owner].to(c.dtype) * (1 - 2.0**-50)
    low, high = workspace.lows[node.source].unsqueeze(1), workspace.highs[node.source].unsqueeze(1)
    f_low, f_high = torch.minimum(at_low, lam), torch.minimum(at_high, lam)
    width = high - low
    narrow = width <= _NARROW * torch.maximum(low.abs(), high.abs())
    slope = torch.where(narrow, torch.zeros_like(c), (f_high - f_low) / width.clamp(min=1e-300))
    chord = torch.minimum(f_low - slope * low, f_high - slope * high)
    zero = torch.zeros_like(c)
    through = torch.where(free, slope, torch.where(gone, zero, c))
    ends = torch.where(free, chord, zero)
    largest = torch.maximum(low.abs(), high.abs())
    size = torch.where(free, (c.abs() + slope.abs()) * largest + lam, zero).detach().sum(dim=2)
    added = ends.sum(dim=2)
    if charge:
        added = added - multipliers.lam[key] * left.unsqueeze(1)
        size = size + (multipliers.lam[key] * left.unsqueeze(1)).detach()
    return through, added, size


def _first_lambda(workspace: Workspace, group: BudgetGroup, shares: torch.Tensor) -> torch.Tensor:
    """The (s+1)-th largest share, s the removals left, float64 [batch, rows].

    Args:
        workspace: for the removals left.
        group: the budget group.
        shares: what removing each gate could take away at most, float64 [batch, rows, gates].
    """
    count = min(group.removable + 1, shares.shape[2])
    largest = shares.detach().topk(count, dim=2).values
    place = workspace.removable(group).clamp(max=count - 1)
    return largest.gather(2, place.view(-1, 1, 1).expand(-1, largest.shape[1], 1)).squeeze(2).clone()
