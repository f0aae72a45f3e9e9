"""The questions as functions: one input or a batch, any shape, options by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milpver
from milpver.errors import QueryError
from milpver.network import Network
from milpver.verdict import Status, Verdict
from milpver.verify import boundary_distance, pruning_distance, worst_margin
from tests.nets import brute_force_margins, random_network


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return random_network(tmp_path / "n.onnx", [4, 5, 4, 3], 4)


X = np.array([0.5, -1.0, 0.25, 1.5])


def label_of(network: Network, x: Any) -> int:
    return int(network.graph.evaluate(np.asarray(x, dtype=float).reshape(1, -1))[0].argmax())


def test_they_are_the_public_face(network: Network) -> None:
    assert milpver.worst_margin is worst_margin
    assert milpver.boundary_distance is boundary_distance
    assert isinstance(milpver.load(network.path), Network)


def test_one_input_gives_a_verdict_and_a_batch_a_tuple(network: Network) -> None:
    label = label_of(network, X)
    one = worst_margin(network, X, label, budget=[1, 1])
    assert isinstance(one, Verdict)
    assert one.upper == pytest.approx(brute_force_margins(network, X, label, [1, 1]).min(), abs=2e-6)
    many = worst_margin(network, np.stack([X, X]), [label, label], budget="1,1")
    assert isinstance(many, tuple)
    assert [verdict.index for verdict in many] == [0, 1]
    assert [verdict.upper for verdict in many] == pytest.approx([one.upper] * 2, abs=2e-6)
    assert worst_margin(network, np.zeros((0, 4)), [], budget="1,1") == ()
    single = worst_margin(network, X[None], np.array([label]), budget="1,1")
    assert isinstance(single, tuple)
    assert len(single) == 1


def test_any_shape_and_type_of_the_right_size(network: Network) -> None:
    label = label_of(network, X)
    expected = boundary_distance(network, X, label).upper
    for x in (X.tolist(), X.reshape(2, 2), X.reshape(1, 4), X.astype(np.float32)):
        assert boundary_distance(network, x, label).upper == expected


def test_inputs_are_taken_as_float32(network: Network) -> None:
    x = X + 1e-9
    verdict = worst_margin(network, x, label_of(network, X))
    assert verdict.witness is not None
    np.testing.assert_array_equal(verdict.witness, x.astype(np.float32).astype(float))


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 4), ()])
def test_the_wrong_size_is_an_error(network: Network, shape: tuple[int, ...]) -> None:
    for ask in (worst_margin, boundary_distance):
        with pytest.raises(QueryError, match=r"1 labels and an array.*4 entries"):
            ask(network, np.zeros(shape), 0)


def test_inputs_and_labels_that_do_not_pair_up_are_an_error(network: Network) -> None:
    """A transposed batch has the right size, and would be read across inputs."""
    for ask in (worst_margin, boundary_distance, pruning_distance):
        with pytest.raises(QueryError, match="along the first axis"):
            ask(network, np.zeros((4, 2)), [0, 0])
        with pytest.raises(QueryError, match=r"the label .*0\.5"):
            ask(network, X, 0.5)  # type: ignore[call-overload]  # what is refused


def test_options_reach_the_run(network: Network) -> None:
    label = label_of(network, X)
    verdict = worst_margin(
        network, X, label, budget="1,0", radius=0.1, domain=(-2.0, 2.0), decide=True, encoding="reference",
        bounds="interval", timeout=33.0, gap=1e-5, threads=1, seed=5, device="cpu", solver="highs",
    )  # fmt: skip
    record = verdict.record()
    assert record["budget"] == [1, 0]
    assert (record["radius"], record["domain"], record["decide"]) == (0.1, [-2.0, 2.0], True)
    assert (record["encoding"], record["bounds"], record["timeout"]) == ("reference", "interval", 33.0)
    assert (record["gap"], record["seed"], record["label"]) == (1e-5, 5, label)
    distance = boundary_distance(network, X, label, method="bisect", target=(label + 1) % 3, seed=9)
    record = distance.record()
    assert (record["method"], record["norm"], record["requested_target"]) == (
        "bisect",
        "linf",
        (label + 1) % 3,
    )
    assert (record["budget"], record["radius"], record["verdict"], record["seed"]) == (None, None, None, 9)
    assert distance.status is Status.OPTIMAL


def test_what_makes_no_sense_is_an_error(network: Network) -> None:
    for wrong in ({"budget": "1"}, {"radius": -1.0}, {"domain": (1.0, 0.0)}, {"gap": -1.0}, {"timeout": 0.0}):
        with pytest.raises(QueryError):
            worst_margin(network, X, 0, **wrong)
    with pytest.raises(QueryError, match="label 3"):
        worst_margin(network, X, 3)
    with pytest.raises(QueryError, match="NaN"):
        boundary_distance(network, [np.nan, 0, 0, 0], 0)
