"""Comparisons: who runs when, what the records say, and statistics against an independent count."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from milpver import registry
from milpver.compare import (
    TOLERANCE,
    Contender,
    Plan,
    check_options,
    contenders,
    contradictions,
    host,
    ranges,
    short_names,
    summarise,
    warm_up,
)
from milpver.errors import PluginError, QueryError, SolverUnavailableError
from milpver.query import Options, parse_budget
from milpver.solver import Availability
from milpver.verdict import RECORD_FIELDS
from tests.nets import brute_force_margins, network_of, random_layers

KEYS = ("highs/fused/crown", "scip/fused/crown", "gurobi/fused/crown")
SOLVERS = [
    name for name in ("highs", "scip", "gurobi") if registry.load("solvers", name).availability().available
]


def record(key: str, index: int, *, repeat: int = 0, **other: Any) -> dict[str, Any]:
    """A record as far as the statistics read it; solved in a second unless told otherwise."""
    keys = other.pop("compared", list(KEYS))
    found = {
        "job": (repeat * 1000 + index) * len(keys) + keys.index(key),
        "contender": key,
        "compared": keys,
        "index": index,
        "repeat": repeat,
        "label": 1,
        "predicted": 1,
        "status": "optimal",
        "verdict": "robust",
        "lower": 0.5,
        "upper": 0.5,
        "seconds": 1.0,
        "timeout": 10.0,
        "solver": key.split("/", maxsplit=1)[0],
        "solver_version": "1.0",
        "requested_solver": key.split("/", maxsplit=1)[0],
        "nodes": 3,
        "message": "",
        "host": {"cpu": "c", "cores": 1, "memory_gib": 1.0, "system": "s", "python": "3"},
    }
    return found | other


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three inputs of a net 4-5-4-3, one of them with a label that the network does not give."""
    weights, biases = random_layers((4, 5, 4, 3), 7)
    network = network_of(tmp_path_factory.mktemp("compare") / "net.onnx", weights, biases)
    x = np.random.default_rng(3).uniform(-1, 1, size=(3, 4)).astype(np.float32)
    y = network.graph.evaluate(x.astype(np.float64)).argmax(axis=1)
    y[2] = (y[2] + 1) % 3
    return Plan(
        network=network,
        inputs=x,
        labels=tuple(map(int, y)),
        indices=(4, 7, 9),
        contenders=contenders(SOLVERS, ["reference", "fused"], ["interval"]),
        options=Options(timeout=20.0, device="cpu"),
        budget=parse_budget("2,1", network),
        domain=(-2.0, 2.0),
    )


# ------------------------------------------------------------------------------------------- who runs


def test_contenders_are_all_combinations_in_order() -> None:
    found = contenders(["scip", "highs"], ["reference", "fused"], ["crown"])
    assert [each.key for each in found] == [
        "scip/reference/crown", "scip/fused/crown", "highs/reference/crown", "highs/fused/crown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lists", "error", "said"),
    [
        (([], ["fused"], ["crown"]), QueryError, "--solvers"),
        ((["highs", ""], ["fused"], ["crown"]), QueryError, "--solvers"),
        ((["highs"], ["fused", "fused"], ["crown"]), QueryError, "--encodings names 'fused' twice"),
        ((["highs"], ["fused"], []), QueryError, "--bounds"),
        ((["hihgs"], ["fused"], ["crown"]), PluginError, "did you mean highs"),
        ((["highs"], ["fusde"], ["crown"]), PluginError, "did you mean fused"),
        ((["highs"], ["fused"], ["crwon"]), PluginError, "crown"),
    ],
)
def test_lists_that_name_nothing_or_something_twice_are_refused(
    lists: tuple[list[str], list[str], list[str]], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        contenders(*lists)


def test_short_names_leave_out_what_all_share() -> None:
    assert list(short_names(KEYS).values()) == ["highs", "scip", "gurobi"]
    assert list(short_names(["a/f/c", "a/r/c"]).values()) == ["f", "r"]
    assert list(short_names(["a/f/c", "b/r/c"]).values()) == ["a f", "b r"]
    assert list(short_names(["a/f/c"]).values()) == ["a"]


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
    )
)
def test_jobs_are_interleaved_and_take_turns(shape: tuple[int, int, int, int]) -> None:
    count, queries, repeats, seed = shape
    names = tuple(Contender(f"s{k}", "e", "b") for k in range(count))
    # Only sizes and the seed matter here; the network is never looked at.
    made = Plan(
        network=None,  # type: ignore[arg-type]  # see above
        inputs=np.zeros((queries, 1), dtype=np.float32),
        labels=(0,) * queries,
        indices=tuple(range(queries)),
        contenders=names,
        options=Options(seed=seed),
        repeats=repeats,
    )
    jobs = made.jobs()
    assert [job.number for job in jobs] == list(range(count * queries * repeats))
    assert jobs == made.jobs()
    blocks = [jobs[k : k + count] for k in range(0, len(jobs), count)]
    assert all({job.contender for job in block} == set(names) for block in blocks)
    assert [(block[0].repeat, block[0].place) for block in blocks] == [
        *itertools.product(range(repeats), range(queries))
    ]
    assert all(len({(job.repeat, job.place) for job in block}) == 1 for block in blocks)
    firsts = [block[0].contender for block in blocks]
    assert all(len(set(firsts[k : k + count])) == len(firsts[k : k + count]) for k in range(len(firsts)))


def test_ranges_are_what_index_takes() -> None:
    assert ranges((0, 1, 2, 5, 7, 8)) == "0:3,5,7:9"
    assert ranges((3,)) == "3"
    assert ranges((2, 1)) == "2,1"


def test_the_host_is_described() -> None:
    facts = host()
    assert set(facts) == {"cpu", "cores", "memory_gib", "system", "python"}
    assert facts["cpu"]
    assert facts["cores"] >= 1


# ------------------------------------------------------------------------------------------- the runs


def test_every_contender_gives_the_margin_of_enumeration(plan: Plan) -> None:
    assert warm_up(plan) == {}
    found = [done for _, done in plan.run(plan.jobs(), {}, lambda: False)]
    assert len(found) == 3 * len(plan.contenders)
    identity = json.loads(json.dumps(plan.identity()))
    truth = {
        index: brute_force_margins(plan.network, x.astype(np.float64), label, (2, 1)).min()
        for index, x, label in list(zip(plan.indices, plan.inputs, plan.labels, strict=True))[:2]
    }
    for each in found:
        assert set(RECORD_FIELDS) < set(each)
        # As they stand in the file: JSON has no tuples.
        assert json.loads(json.dumps({name: each[name] for name in identity})) == identity
        assert each["contender"] == f"{each['requested_solver']}/{each['encoding']}/{each['bounds']}"
        assert each["host"] == host()
        if each["index"] == 9:
            assert each["status"] == "misclassified"
        else:
            assert each["status"] == "optimal"
            assert each["solver"] in (each["requested_solver"], "bounds")
            assert each["lower"] == pytest.approx(truth[each["index"]], abs=1e-5)
            assert each["upper"] == pytest.approx(truth[each["index"]], abs=1e-5)
    summary = summarise(found)
    assert (summary.queries, summary.misclassified) == (2, 1)
    assert all((row.runs, row.solved, row.wrong) == (2, 2, 0) for row in summary.rows)


def test_the_closed_form_does_not_answer_for_the_solvers(plan: Plan) -> None:
    last = replace(plan, budget=parse_budget("0,2", plan.network), contenders=plan.contenders[:2])
    found = [done for _, done in last.run(last.jobs(), {}, lambda: False)]
    assert "closed-form" not in {each["solver"] for each in found}
    assert {each["solver"] for each in found} & set(SOLVERS)


def test_distances_are_compared_too(plan: Plan) -> None:
    asked = replace(plan, question="distance", contenders=contenders(SOLVERS, ["fused"], ["crown"]))
    found = [done for _, done in asked.run(asked.jobs(), {}, lambda: False)]
    assert contradictions(found) == ()
    for index in (4, 7):
        values = [each["upper"] for each in found if each["index"] == index]
        assert len(values) == len(SOLVERS)
        assert max(values) - min(values) < 1e-5
    assert {each["budget"] for each in found} == {None}


class _Stub:
    """A solver that is not there, or that breaks."""

    tolerance = 0.0

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self._error = error

    def availability(self) -> Availability:
        if self._error is not None:
            return Availability(True, "0.1")
        return Availability(False, reason="it is not installed; fix: install it")

    def solve(self, *_arguments: Any, **_named: Any) -> Any:
        if self._error is not None:
            raise self._error
        raise AssertionError("asked although it is unavailable")


def _with_stub(monkeypatch: pytest.MonkeyPatch, stub: _Stub) -> None:
    real = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: stub if name == stub.name else real(kind, name))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, "unavailable", "not installed"),
        (RuntimeError("it\nbroke"), "error", "RuntimeError: it broke"),
        (SolverUnavailableError("no licence", needed="one", fix="buy it"), "unavailable", "no licence"),
    ],
)
def test_a_solver_that_is_missing_or_breaks_does_not_stop_the_others(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, error: Exception | None, status: str, said: str
) -> None:
    _with_stub(monkeypatch, _Stub("stub", error))
    names = contenders(["highs", "stub"], ["reference"], ["interval"])
    mixed = replace(plan, contenders=names, inputs=plan.inputs[:2], labels=plan.labels[:2], indices=(4, 7))
    reasons = warm_up(mixed)
    assert list(reasons) == ["stub"]
    # A backend may break later than in the warm-up.
    found = [done for _, done in mixed.run(mixed.jobs(), {} if error else reasons, lambda: False)]
    assert len(found) == 4
    for each in found:
        if each["requested_solver"] == "stub":
            assert each["status"] == status
            assert said in each["message"]
            assert set(RECORD_FIELDS) < set(each)
        else:
            assert each["status"] == "optimal"
    row = summarise(found).rows[1]
    assert (row.solved, row.unavailable, row.withdrawn) == (
        (0, 2, 0) if status == "unavailable" else (0, 0, 2)
    )


def test_an_interrupted_run_gives_no_record_of_the_job_under_way(plan: Plan) -> None:
    done = list(plan.run(plan.jobs(), {}, lambda: True))
    assert done == []
    asked: list[int] = []

    def later() -> bool:
        asked.append(1)
        return len(asked) > 3

    assert len(list(plan.run(plan.jobs(), {}, later))) < len(plan.jobs())


def test_options_reach_the_solver_that_they_are_for(plan: Plan) -> None:
    names = contenders(["highs", "gurobi"], ["fused"], ["interval"])
    mine = replace(
        plan,
        contenders=names,
        options=replace(plan.options, solver_options={"a": "1", "b": "1"}),
        solver_options={"gurobi": {"b": "2"}},
    )
    assert mine.options_of("highs") == {"a": "1", "b": "1"}
    assert mine.options_of("gurobi") == {"a": "1", "b": "2"}
    assert mine.identity()["solver_options"] == {
        "highs": {"a": "1", "b": "1"},
        "gurobi": {"a": "1", "b": "2"},
    }


def test_options_are_checked_and_recorded(plan: Plan, tmp_path: Path) -> None:
    log = tmp_path / "highs.log"
    names = contenders(["highs"], ["fused"], ["interval"])
    mine = replace(plan, contenders=names, solver_options={"highs": {"log_file": str(log)}})
    check_options(mine)
    assert log.exists()
    log.unlink()
    record = next(found for _, found in mine.run(mine.jobs()[:1], {}, lambda: False))
    assert record["solver_options"] == {"highs": {"log_file": str(log)}}
    assert log.exists() == (record["solver"] == "highs")
    wrong = replace(mine, solver_options={"highs": {"mip_max_node": "0"}})
    for check in (check_options, warm_up):
        with pytest.raises(QueryError, match="did you mean mip_max_nodes"):
            check(wrong)


# ------------------------------------------------------------------------------------- contradictions


def test_a_lower_bound_above_another_contenders_witness_is_wrong() -> None:
    found = [
        record(KEYS[0], 0, lower=0.2, upper=0.2),
        record(KEYS[1], 0, lower=0.5, upper=0.5),
        record(KEYS[2], 0, lower=0.1, upper=0.6, status="timeout"),
        record(KEYS[0], 1, lower=0.4, upper=0.4),
    ]
    (wrong,) = contradictions(found)
    assert (wrong.contender, wrong.index, wrong.refuted_by, wrong.witness) == (KEYS[1], 0, KEYS[0], 0.2)
    summary = summarise(found)
    assert [row.wrong for row in summary.rows] == [0, 1, 0]
    assert [row.solved for row in summary.rows] == [2, 0, 0]
    assert summary.rows[1].par2 == 20.0


def test_the_majority_does_not_outvote_a_witness() -> None:
    found = [
        record(KEYS[0], 0),
        record(KEYS[1], 0),
        record(KEYS[2], 0, lower=-1.0, upper=-1.0, verdict="vulnerable"),
    ]
    assert [each.contender for each in contradictions(found)] == list(KEYS[:2])


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_what_lies_within_the_tolerance_is_no_contradiction(scale: float) -> None:
    room = TOLERANCE * max(1.0, scale)
    near = [record(KEYS[0], 0, lower=scale, upper=scale)]
    inside = record(KEYS[1], 0, lower=scale + 0.9 * room, upper=scale + 0.9 * room)
    outside = record(KEYS[1], 0, lower=scale + 1.1 * room, upper=scale + 1.1 * room)
    assert contradictions([*near, inside]) == ()
    assert len(contradictions([*near, outside])) == 1


def test_infeasible_against_a_witness_and_robust_against_a_tie_are_wrong() -> None:
    distance: dict[str, Any] = {"verdict": None}
    found = [
        record(KEYS[0], 0, status="infeasible", lower=1.0, upper=None, **distance),
        record(KEYS[1], 0, lower=2.0, upper=2.0, **distance),
        record(KEYS[0], 1, lower=1e-7, upper=1e-7, verdict="robust"),
        record(KEYS[1], 1, lower=0.0, upper=0.0, verdict="vulnerable"),
    ]
    assert [(each.index, each.claim) for each in contradictions(found)] == [(0, "infeasible"), (1, "robust")]


def test_records_without_bounds_say_nothing() -> None:
    empty: Mapping[str, Any] = {"lower": None, "upper": None, "verdict": "unknown"}
    found = [record(key, 0, status="unavailable", **empty) for key in KEYS]
    assert contradictions(found) == ()
    rows = summarise(found).rows
    assert [(row.unavailable, row.median, row.par2, row.speedup) for row in rows] == [
        (1, None, None, None)
    ] * 3


# ----------------------------------------------------------------------------------------- statistics


def _random_records(seed: int, queries: int, repeats: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for repeat, index, key in itertools.product(range(repeats), range(queries), KEYS):
        status = str(
            rng.choice(["optimal", "decided", "timeout", "memory", "error"], p=[0.5, 0.2, 0.1, 0.1, 0.1])
        )
        predicted = 0 if index == 3 else 1
        found.append(
            record(
                key,
                index,
                repeat=repeat,
                status="misclassified" if predicted == 0 else status,
                predicted=predicted,
                seconds=float(rng.lognormal(0, 1)),
                solver="bounds" if rng.random() < 0.2 else key.split("/")[0],
                nodes=int(rng.integers(0, 50)),
                lower=0.1,
                upper=0.5,
            )
        )
    rng.shuffle(found)
    return found


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3))
def test_the_table_is_what_plain_python_counts(seed: int, queries: int, repeats: int) -> None:
    found = _random_records(seed, queries, repeats)
    summary = summarise(found, seed)
    first = {(each["index"], each["repeat"]): each for each in found if each["contender"] == KEYS[0]}
    for key, row in zip(KEYS, summary.rows, strict=True):
        mine = [each for each in found if each["contender"] == key and each["index"] != 3]
        solved = [each for each in mine if each["status"] in ("optimal", "decided")]
        times = [each["seconds"] if each in solved else 10.0 for each in mine]
        assert row.contender == key
        assert (row.runs, row.solved) == (len(mine), len(solved))
        assert row.timeouts == sum(each["status"] == "timeout" for each in mine)
        assert row.memory == sum(each["status"] == "memory" for each in mine)
        assert row.withdrawn == sum(each["status"] == "error" for each in mine)
        assert row.bounds_only == sum(each["solver"] == "bounds" for each in solved)
        assert row.median == pytest.approx(statistics.median(times))
        assert row.mean == pytest.approx(statistics.fmean(times))
        doubled = [time if each in solved else 20.0 for time, each in zip(times, mine, strict=True)]
        assert row.par2 == pytest.approx(statistics.fmean(doubled))
        ratios = []
        for time, each in zip(times, mine, strict=True):
            other = first[each["index"], each["repeat"]]
            other_solved = other["status"] in ("optimal", "decided")
            if other_solved or each in solved:
                ratios.append((other["seconds"] if other_solved else 10.0) / time)
        assert row.pairs == len(ratios)
        if ratios:
            assert row.speedup == pytest.approx(statistics.geometric_mean(ratios))
        else:
            assert row.speedup is None
        if row.interval is not None and row.speedup is not None:
            assert row.interval[0] <= row.interval[1]
    assert summary.misclassified == (queries > 3)


def test_the_interval_is_that_of_another_bootstrap() -> None:
    rng = np.random.default_rng(0)
    ratios = rng.lognormal(0.5, 0.6, size=60)
    found = []
    for index, ratio in enumerate(ratios):
        found.append(record(KEYS[0], index, seconds=float(ratio)))
        found.append(record(KEYS[1], index, seconds=1.0))
    row = summarise(found).rows[1]
    assert row.speedup is not None
    assert row.interval is not None
    other = bootstrap(
        (np.log(ratios),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert row.interval == pytest.approx((math.exp(other.low), math.exp(other.high)), rel=0.03)
    assert row.interval[0] < row.speedup < row.interval[1]
    assert summarise(found).rows == summarise(found[::-1]).rows
    assert summarise(found, seed=1).rows[1].interval != row.interval


def test_equal_ratios_have_an_interval_without_width_and_one_query_none() -> None:
    found = [record(KEYS[k], index, seconds=(4.0, 1.0)[k]) for index in range(5) for k in range(2)]
    row = summarise(found).rows[1]
    assert row.speedup == pytest.approx(4.0)
    assert row.interval == pytest.approx((4.0, 4.0))
    assert summarise(found[:2]).rows[1].interval is None


def test_a_query_that_neither_solved_is_no_pair_and_one_that_one_did_not_counts_the_limit() -> None:
    found = [
        record(KEYS[0], 0, status="timeout", seconds=10.2, lower=0.0),
        record(KEYS[1], 0, status="timeout", seconds=10.1, lower=0.0),
        record(KEYS[0], 1, status="timeout", seconds=10.2, lower=0.0),
        record(KEYS[1], 1, seconds=2.0),
    ]
    row = summarise(found).rows[1]
    assert row.pairs == 1
    assert row.speedup == pytest.approx(5.0)


def test_without_records_there_is_nothing_to_say() -> None:
    with pytest.raises(ValueError, match="no records"):
        summarise([])


def test_the_identity_tells_comparisons_apart(plan: Plan, tmp_path: Path) -> None:
    del tmp_path
    mine = plan.identity()
    for other in (
        replace(plan, repeats=2),
        replace(plan, contenders=plan.contenders[:1]),
        replace(plan, radius=0.1),
        replace(plan, options=replace(plan.options, gap=1e-4)),
        replace(plan, indices=(4, 7, 8)),
        replace(plan, inputs=plan.inputs + np.float32(0.1)),
        replace(plan, labels=(0, 0, 0)),
        replace(plan, question="distance"),
        replace(plan, solver_options={"highs": {"presolve": "off"}}),
        replace(plan, options=replace(plan.options, solver_options={"presolve": "off"})),
    ):
        assert other.identity() != mine
