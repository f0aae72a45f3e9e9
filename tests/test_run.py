"""The clock, the plug-ins of a run, and how a solver's stop becomes a status."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milpver import __version__
from milpver.errors import PluginError
from milpver.network import Network
from milpver.program import Program, ProgramBuilder
from milpver.query import Options
from milpver.run import Clock, RunContext, status_of
from milpver.solver import Limits, Progress, Solution, Stop
from milpver.verdict import SCHEMA_VERSION, Status
from tests.nets import random_network


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return random_network(tmp_path / "n.onnx", [2, 3, 2], 0)


def test_a_clock_starts_with_what_is_spent() -> None:
    clock = Clock(10.0, spent=4.0)
    assert 4.0 <= clock.seconds < 5.0
    assert 5.0 < clock.remaining <= 6.0
    assert Clock(1.0, spent=2.0).remaining == 0.0
    assert Clock(float("inf")).remaining == float("inf")


@pytest.mark.parametrize("stop", list(Stop))
def test_every_stop_has_a_status(stop: Stop) -> None:
    assert isinstance(status_of(stop), Status)


def test_only_finished_searches_are_optimal() -> None:
    assert [stop for stop in Stop if status_of(stop) is Status.OPTIMAL] == [Stop.OPTIMAL]
    assert status_of(Stop.UNBOUNDED) is Status.ERROR


def program() -> Program:
    builder = ProgramBuilder()
    builder.add_columns("x", np.zeros(1), np.ones(1))
    return builder.build()


class Spy:
    name, tolerance = "spy", 1e-7

    def __init__(self) -> None:
        self.limits: Limits | None = None
        self.asked: list[bool] = []

    def solve(self, _: Program, limits: Limits, **more: Any) -> Solution:
        self.limits = limits
        if more["should_stop"] is not None:
            self.asked.append(more["should_stop"](Progress(0.0, 0, 0.0, 1.0)))
        return Solution(Stop.TIMEOUT, 0.0, 1.0, None, 0, 0.0)


def context(network: Network, solver: Any, should_stop: Any = None, **options: Any) -> RunContext:
    return replace(RunContext.create(network, Options(**options), should_stop), solver=solver)


def test_a_solver_gets_the_options_of_the_run(network: Network) -> None:
    spy = Spy()
    options = {"gap": 1e-4, "threads": 2, "seed": 7, "memory": 10**9}
    context(network, spy, **options).solve(program(), 3.0, objective_stop=0.0, bound_stop=1.0)
    assert spy.limits == Limits(
        seconds=3.0, gap=5e-5, threads=2, seed=7, memory=10**9, objective_stop=0.0, bound_stop=1.0
    )
    assert spy.asked == []


def test_the_user_is_asked_whether_to_stop(network: Network) -> None:
    for answer in (True, False):
        spy = Spy()
        run = context(network, spy, lambda answer=answer: answer)
        run.solve(program(), 1.0)
        assert spy.asked == [answer]
        assert run.interrupted() is answer
    assert not context(network, Spy()).interrupted()


def test_constant_fields_say_what_was_run(network: Network) -> None:
    run = RunContext.create(network, Options(bounds="budget", solver="highs", seed=3))
    x = np.array([0.5, 1.0], dtype=np.float32)
    fields = run.constant_fields(x)
    assert fields["schema_version"] == SCHEMA_VERSION
    assert fields["milpver"] == __version__
    assert fields["model_sha256"] == network.sha256
    assert (fields["bounds"], fields["encoding"], fields["seed"]) == ("budget", "fused", 3)
    assert fields["input_sha256"] == hashlib.sha256(x.tobytes()).hexdigest()
    assert fields["solver_version"]


@pytest.mark.parametrize("kind", ["solver", "encoding", "bounds"])
def test_unknown_plugins_are_named(network: Network, kind: str) -> None:
    with pytest.raises(PluginError, match="nothing"):
        RunContext.create(network, Options(**{kind: "nothing"}))  # type: ignore[arg-type]  # a name by its kind


def test_a_clock_that_is_stopped_stands_still() -> None:
    clock = Clock(10.0, spent=1.0)
    clock.stop()
    seconds, remaining = clock.seconds, clock.remaining
    assert 1.0 <= seconds < 2.0
    assert (clock.seconds, clock.remaining) == (seconds, remaining)
