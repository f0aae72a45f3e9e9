from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from milpver import registry
from milpver.cross_check import CrossCheck, contradiction
from milpver.distance import distances
from milpver.errors import QueryError, SolverUnavailableError
from milpver.linear import Float
from milpver.margin import margins
from milpver.program import Program
from milpver.query import Options, parse_budget
from milpver.run import load_solver
from milpver.solver import Availability, Limits, Progress, Solution, Solver, Stop
from milpver.verdict import Answer, Status
from tests.nets import random_network

INF = float("inf")

PROGRAM = Program(
    objective=np.ones(2),
    offset=0.0,
    lower=np.zeros(2),
    upper=np.full(2, 2.0),
    integer=np.ones(2, dtype=np.bool_),
    matrix=sparse.csr_array(np.ones((1, 2))),
    row_lower=np.ones(1),
    row_upper=np.full(1, INF),
)


@dataclass(frozen=True)
class Says:
    """A solver that says one thing."""

    name: str
    solution: Solution | None
    tolerance: float = 1e-7

    def availability(self) -> Availability:
        return Availability(self.solution is not None, "1.0", "" if self.solution else "it is not there")

    def solve(
        self,
        program: Program,
        limits: Limits,
        *,
        start: Float | None = None,
        options: Mapping[str, str] | None = None,
        should_stop: Callable[[Progress], bool] | None = None,
    ) -> Solution:
        del program, start, options, should_stop
        if self.solution is None:
            raise SolverUnavailableError("it is not there", needed="it", fix="install it")
        if limits.log is not None:
            limits.log.write_text(f"log of {self.name}\n")
        return self.solution


def said(stop: Stop, lower: float, upper: float, seconds: float = 0.1) -> Solution:
    x = None if upper == INF else np.array([upper, 0.0])
    return Solution(stop, lower, upper, x, 3, seconds)


OPTIMAL = said(Stop.OPTIMAL, 1.0, 1.0)


def both(one: Solution, other: Solution, limits: Limits | None = None) -> Solution:
    return CrossCheck([Says("a", one), Says("b", other)]).solve(PROGRAM, limits or Limits())


def test_agreement_is_the_weakest_claim() -> None:
    found = both(OPTIMAL, said(Stop.OPTIMAL, 0.9999999, 1.0000001, 0.5))
    assert (found.stop, found.lower, found.upper) == (Stop.OPTIMAL, 0.9999999, 1.0)
    assert (found.nodes, found.seconds, found.disputed) == (6, 0.6, False)
    timeout = both(OPTIMAL, said(Stop.TIMEOUT, 0.25, 2.0))
    assert (timeout.stop, timeout.lower, timeout.upper) == (Stop.TIMEOUT, 0.25, 1.0)
    nothing = said(Stop.INFEASIBLE, INF, INF)
    assert both(nothing, nothing).stop is Stop.INFEASIBLE
    assert both(nothing, said(Stop.TIMEOUT, -INF, INF)).stop is Stop.TIMEOUT
    target = both(OPTIMAL, said(Stop.TARGET, 0.5, INF), Limits(bound_stop=0.4))
    assert (target.stop, target.lower, target.upper) == (Stop.TARGET, 0.5, 1.0)
    unbounded = said(Stop.UNBOUNDED, -INF, INF)
    assert both(unbounded, unbounded).stop is Stop.UNBOUNDED
    broken = replace(said(Stop.ERROR, -INF, INF), message="it broke")
    assert (both(OPTIMAL, broken).stop, both(OPTIMAL, broken).message) == (Stop.ERROR, "it broke")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OPTIMAL, said(Stop.OPTIMAL, 2.0, 2.0)),
        (OPTIMAL, said(Stop.INFEASIBLE, INF, INF)),
        (OPTIMAL, said(Stop.UNBOUNDED, -INF, INF)),
        (OPTIMAL, said(Stop.OPTIMAL, 1.00001, 1.00001)),
        (OPTIMAL, said(Stop.TIMEOUT, 1.5, INF)),
        (said(Stop.TIMEOUT, -INF, 1.0), said(Stop.INFEASIBLE, INF, INF)),
        (said(Stop.INFEASIBLE, INF, INF), said(Stop.UNBOUNDED, -INF, INF)),
    ],
)
def test_contradictions_either_way_round(tmp_path: Path, one: Solution, other: Solution) -> None:
    for first, second in ((one, other), (other, one)):
        log = tmp_path / "deep" / "3-1.log"
        found = both(first, second, Limits(log=log))
        assert found.stop is Stop.ERROR
        assert found.disputed
        assert found.lower == -INF
        assert found.message.startswith("solvers disagree: ")
        assert str(log.with_suffix("")) in found.message
        names = {path.name for path in log.parent.iterdir()}
        assert names == {"3-1.mps", "3-1.0-a.log", "3-1.1-b.log"}
        assert (log.parent / "3-1.0-a.log").read_text() == "log of a\n"
    assert contradiction(PROGRAM, one, one) is None


def test_logs_are_kept_on_agreement_only_if_asked_for(tmp_path: Path) -> None:
    solvers = [Says("a", OPTIMAL), Says("b", OPTIMAL)]
    CrossCheck(solvers).solve(PROGRAM, Limits(log=tmp_path / "x.log"))
    assert list(tmp_path.iterdir()) == []
    CrossCheck(solvers, keep=True).solve(PROGRAM, Limits(log=tmp_path / "x.log"))
    assert {path.name for path in tmp_path.iterdir()} == {"x.0-a.log", "x.1-b.log"}


def test_one_that_is_missing_makes_the_check_unavailable() -> None:
    check = CrossCheck([Says("a", OPTIMAL), Says("b", None)])
    assert check.availability().reason == "b: it is not there"
    with pytest.raises(SolverUnavailableError):
        check.solve(PROGRAM, Limits())
    assert CrossCheck([Says("a", OPTIMAL), Says("c", OPTIMAL)]).availability().version == "1.0, 1.0"
    assert check.name == "cross-check:a,b"


def test_an_interruption_ends_the_check_at_once() -> None:
    found = both(said(Stop.INTERRUPTED, -INF, INF), OPTIMAL)
    assert (found.stop, found.nodes) == (Stop.INTERRUPTED, 3)


@pytest.mark.parametrize(
    ("names", "solver"), [(("highs",), "highs"), (("scip", "scip"), "highs"), (("highs", "scip"), "bab")]
)
def test_what_makes_no_sense_is_refused(names: Sequence[str], solver: str) -> None:
    with pytest.raises(QueryError, match="--cross-check"):
        load_solver(Options(cross_check=tuple(names), solver=solver))


def real_pair() -> tuple[str, str]:
    for other in ("scip", "gurobi", "pyomo:highs", "pyomo:cbc"):
        if registry.load("solvers", other).availability().available:
            return "highs", other
    pytest.skip("no second solver is available")


def test_real_solvers_agree_on_margins_and_distances(tmp_path: Path) -> None:
    pair = real_pair()
    network = random_network(tmp_path / "net.onnx", [3, 5, 4, 3], seed=1)
    inputs = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    labels = [int(label) for label in network.graph.evaluate(inputs.astype(np.float64)).argmax(axis=1)]
    plain = Options(bounds="interval")
    checked = replace(plain, cross_check=pair, solver_log=tmp_path / "logs")
    budget = parse_budget([1, 1], network)
    for one, other in zip(
        [
            *margins(network, inputs, labels, budget=budget, options=plain),
            *distances(network, inputs, labels),
        ],
        [
            *margins(network, inputs, labels, budget=budget, options=checked),
            *distances(network, inputs, labels, options=checked),
        ],
        strict=True,
    ):
        assert other.status is one.status is Status.OPTIMAL
        assert other.upper == pytest.approx(one.upper, abs=1e-5)
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs
    assert all(name.endswith((f"0-{pair[0]}.log", f"1-{pair[1].replace(':', '-')}.log")) for name in logs)
    assert all(path.stat().st_size > 0 for path in (tmp_path / "logs").iterdir())


class Shifted:
    """HiGHS, its objective off by one: a wrong optimum that no check of one solver by itself sees."""

    name = "shifted"
    tolerance = 1e-7

    def __init__(self) -> None:
        self._highs: Solver = registry.load("solvers", "highs")

    def availability(self) -> Availability:
        return Availability(True, "1.0")

    def solve(
        self,
        program: Program,
        limits: Limits,
        *,
        start: Float | None = None,
        options: Mapping[str, str] | None = None,
        should_stop: Callable[[Progress], bool] | None = None,
    ) -> Solution:
        found = self._highs.solve(program, limits, start=start, options=options, should_stop=should_stop)
        return replace(found, lower=found.lower + 1.0, upper=found.upper + 1.0)


@pytest.mark.parametrize("label_wins", [True, False])
def test_a_dispute_leaves_the_verdict_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_wins: bool
) -> None:
    loaded = registry.load
    monkeypatch.setattr(
        registry,
        "load",
        lambda kind, name: Shifted() if name == "shifted" else loaded(kind, name),
    )
    monkeypatch.chdir(tmp_path)
    seed = 3 if label_wins else 7
    network = random_network(tmp_path / "net.onnx", [3, 6, 5, 3], seed=seed)
    x = np.random.default_rng(seed).normal(size=(1, 3)).astype(np.float32)
    label = int(network.graph.evaluate(x.astype(np.float64))[0].argmax())
    options = Options(bounds="interval", cross_check=("highs", "shifted"))
    budget = parse_budget([1 if label_wins else 4, 1], network)
    (verdict,) = margins(network, x, [label], budget=budget, options=options, indices=[9])
    assert (verdict.status, verdict.verdict) == (Status.ERROR, Answer.UNKNOWN)
    assert verdict.message.startswith("solvers disagree: ")
    kept = {path.name.split(".", 1)[1] for path in (tmp_path / "milpver-cross-check").iterdir()}
    assert kept == {"mps", "0-highs.log", "1-shifted.log"}
    assert all(path.name.startswith("9-") for path in (tmp_path / "milpver-cross-check").iterdir())
