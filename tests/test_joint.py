"""Queries about several networks, inputs, outputs and hidden nodes: against grids and ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from milpver.counterexample import Outcome, PropertyAnswer, verify_property
from milpver.errors import MilpverError, ModelError, QueryError
from milpver.joint import join, load_networks
from milpver.network import Network
from milpver.onnx_import import load_network
from milpver.properties import vnnlib1, vnnlib2
from milpver.property import Property
from milpver.query import Options
from tests.nets import network_of, random_layers, random_network

pytest.importorskip("vnnlib", reason="the package vnnlib is not installed")

Float = NDArray[np.float64]

SOLVERS = ("auto", "highs")


def declared(name: str, inputs: int, outputs: int, relation: str = "") -> str:
    """A network ``name`` with input X``name`` and output Y``name``."""
    return (
        f"(declare-network {name} {relation} (declare-input X{name} float32 [1,{inputs}])"
        f" (declare-output Y{name} float32 [1,{outputs}]))\n"
    )


def box(name: str, inputs: int, low: float = -1.0, high: float = 1.0) -> str:
    return "".join(
        f"(assert (and (>= X{name}[0,{k}] {low}) (<= X{name}[0,{k}] {high})))\n" for k in range(inputs)
    )


def same(left: str, right: str, which: Sequence[int]) -> str:
    return "".join(f"(assert (== X{left}[0,{k}] X{right}[0,{k}]))\n" for k in which)


def differ(left: str, right: str, outputs: int, eps: float) -> str:
    """Some output of the two networks differs by more than eps."""
    parts = (
        f"(> Y{left}[0,{k}] (+ Y{right}[0,{k}] {eps:.6f})) (> Y{right}[0,{k}] (+ Y{left}[0,{k}] {eps:.6f}))"
        for k in range(outputs)
    )
    return f"(assert (or {' '.join(parts)}))\n"


def query(text: str) -> Property:
    return vnnlib2.PROPERTY_FORMAT.read("(vnnlib-version <2.0>)\n" + text, Path("q.vnnlib"))


def decide(asked: Property, networks: Mapping[str, Network], solver: str = "auto") -> PropertyAnswer:
    answer = verify_property(networks, asked, options=Options(solver=solver, timeout=20))
    if answer.outcome is Outcome.SAT:
        assert_counterexample(asked, networks, answer)
    return answer


def assert_counterexample(asked: Property, networks: Mapping[str, Network], answer: PropertyAnswer) -> None:
    """Each file gives the outputs that were said on its slice of the input; they meet the formula."""
    assert answer.x is not None
    assert answer.y is not None
    assert asked.violated(answer.x, answer.y)
    x, y = list(answer.x), list(answer.y)
    for each in asked.networks:
        model = onnx.load(networks[each.equal_to or each.name].path)
        own = [output.name for output in model.graph.output]
        for tensor in each.hidden:
            model.graph.output.append(helper.make_tensor_value_info(tensor.onnx, TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        feeds = {}
        for entry, tensor in zip(session.get_inputs(), each.inputs, strict=True):
            shape = [size if isinstance(size, int) else 1 for size in entry.shape]
            taken, x = x[: tensor.size], x[tensor.size :]
            feeds[entry.name] = np.array(taken, dtype=np.float32).reshape(shape)
        names = [*(tensor.onnx for tensor in each.hidden), *own]
        found = np.concatenate([part.reshape(-1) for part in session.run(names, feeds)])
        assert found.tolist() == y[: len(found)]
        y = y[len(found) :]
    assert not x
    assert not y


def perturbed(path: Path, shape: Sequence[int], seed: int) -> tuple[Network, Network]:
    """A network and one whose last layer differs a little."""
    weights, biases = random_layers(shape, seed)
    other = [*weights[:-1], weights[-1] + 0.03125]
    return network_of(path / "f.onnx", weights, biases), network_of(path / "g.onnx", other, biases)


def conv_network(path: Path, seed: int) -> Network:
    """Two channels of 3 x 3 through Conv, Relu, Flatten and Gemm to 2 outputs."""
    rng = np.random.default_rng(seed)
    shapes = {"k": (2, 2, 2, 2), "kb": (2,), "w": (2, 8), "b": (2,)}
    stored = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "k", "kb"], ["c"], kernel_shape=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["v"]),
        helper.make_node("Gemm", ["v", "w", "b"], ["output"], transB=1),
    ]
    return saved(path, nodes, {"input": ["N", 2, 3, 3]}, {"output": ["N", 2]}, stored)


def two_by_two(path: Path, seed: int = 0, *, batch: str | int = 1) -> Path:
    """Inputs a [1, 2] and b [1, 1]; h = relu([a b] W + w), s = h U, t = max(a) + b."""
    rng = np.random.default_rng(seed)
    stored = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in {"W": (3, 4), "w": (4,), "U": (4, 2), "V": (3, 1)}.items()
    ]
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["ab"], axis=1),
        helper.make_node("Gemm", ["ab", "W", "w"], ["z"]),
        helper.make_node("Relu", ["z"], ["h"]),
        helper.make_node("MatMul", ["h", "U"], ["s"]),
        helper.make_node("MatMul", ["ab", "V"], ["t"]),
    ]
    write(path, nodes, {"a": [batch, 2], "b": [batch, 1]}, {"s": [batch, 2], "t": [batch, 1]}, stored)
    return path


def saved(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, list[str | int]],
    outputs: Mapping[str, list[str | int]],
    stored: Sequence[onnx.TensorProto],
) -> Network:
    write(path, nodes, inputs, outputs, stored)
    return load_network(path)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, list[str | int]],
    outputs: Mapping[str, list[str | int]],
    stored: Sequence[onnx.TensorProto],
) -> None:
    given, made = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in part.items()]
        for part in (inputs, outputs)
    )
    graph = helper.make_graph(nodes, "made", given, made, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())


# ------------------------------------------------------------------------------- the joint graph


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), pairs=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=6))
def test_the_joint_graph_is_the_networks_side_by_side(
    seed: int, pairs: set[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever inputs are equal, across networks and within one; ``h`` is ``f`` once more."""
    folder = tmp_path_factory.mktemp("joint")
    f = random_network(folder / "f.onnx", (3, 4, 2), seed)
    g = random_network(folder / "g.onnx", (2, 5, 3, 1), seed + 1)
    names = [f"X{name}[0,{k}]" for name, count in (("f", 3), ("g", 2), ("h", 3)) for k in range(count)]
    text = declared("f", 3, 2) + declared("g", 2, 1) + declared("h", 3, 2, "(equal-to f)")
    text += box("f", 3) + box("g", 2) + box("h", 3)
    text += "".join(f"(assert (== {names[i]} {names[j]}))\n" for i, j in pairs)
    asked = query(text + "(assert (<= Yf[0,0] Yg[0,0]))")
    joint = join(asked, {"f": f, "g": g})
    for i, j in pairs:
        assert asked.places[i] == asked.places[j]
    assert joint.graph.inputs == asked.free == len(set(asked.places.tolist()))
    x = np.random.default_rng(seed).uniform(-1, 1, (5, asked.free))
    full = x[:, asked.places]
    parts = [f.graph.evaluate(full[:, :3]), g.graph.evaluate(full[:, 3:5]), f.graph.evaluate(full[:, 5:])]
    np.testing.assert_allclose(joint.graph.evaluate(x), np.concatenate(parts, axis=1), rtol=0, atol=1e-13)


def test_a_network_that_two_names_stand_for_is_there_once_on_equal_inputs(tmp_path: Path) -> None:
    f = random_network(tmp_path / "f.onnx", (3, 6, 2), 1)
    text = declared("f", 3, 2) + declared("g", 3, 2, "(equal-to f)") + box("f", 3)
    once = join(query(text + same("f", "g", range(3)) + differ("f", "g", 2, 0.0)), {"f": f})
    assert len(once.graph.nodes) == len(f.graph.nodes) + 1
    twice = join(query(text + box("g", 3) + same("f", "g", [0]) + differ("f", "g", 2, 0.0)), {"f": f})
    assert len(twice.graph.nodes) == 2 * len(f.graph.nodes)


def test_limits_of_equal_inputs_meet() -> None:
    text = declared("f", 1, 1) + declared("g", 1, 1, "(equal-to f)")
    text += "(assert (>= Xf[0,0] 0.25)) (assert (<= Xg[0,0] 0.5)) (assert (and (<= Xf[0,0] Xg[0,0])"
    (region,) = query(text + "(>= Xf[0,0] Xg[0,0]))) (assert (<= Yf[0,0] Yg[0,0]))").regions
    assert (region.lower.tolist(), region.upper.tolist()) == ([0.25], [0.5])
    with pytest.raises(MilpverError, match="an empty box"):
        query(
            declared("f", 1, 1)
            + declared("g", 1, 1)
            + box("f", 1, 0.0, 1.0)
            + box("g", 1, 2.0, 3.0)
            + same("f", "g", [0])
            + "(assert (<= Yf[0,0] Yg[0,0]))"
        )


# ------------------------------------------------------------------------------- verdicts


def test_a_network_is_equivalent_to_itself_and_to_its_neurons_in_another_order(tmp_path: Path) -> None:
    weights, biases = random_layers((2, 6, 4, 1), 3)
    f = network_of(tmp_path / "f.onnx", weights, biases)
    order = np.random.default_rng(0).permutation(6)
    turned = [weights[0][order], weights[1][:, order], weights[2]]
    g = network_of(tmp_path / "g.onnx", turned, [biases[0][order], *biases[1:]])
    text = box("f", 2) + same("f", "g", range(2)) + differ("f", "g", 1, 0.01)
    itself = query(declared("f", 2, 1) + declared("g", 2, 1, "(equal-to f)") + text)
    other = query(declared("f", 2, 1) + declared("g", 2, 1, "(isomorphic-to f)") + text)
    for solver in SOLVERS:
        assert decide(itself, {"f": f}, solver).outcome is Outcome.UNSAT
    assert decide(other, {"f": f, "g": g}).outcome is Outcome.UNSAT


@pytest.mark.parametrize("solver", SOLVERS)
def test_equivalence_with_a_perturbed_network_against_a_grid(solver: str, tmp_path: Path) -> None:
    f, g = perturbed(tmp_path, (2, 6, 5, 2), 1)
    axis = np.linspace(-1, 1, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    most = float(np.abs(f.graph.evaluate(grid) - g.graph.evaluate(grid)).max())
    assert most > 0.01
    head = (
        declared("f", 2, 2) + declared("g", 2, 2, "(isomorphic-to f)") + box("f", 2) + same("f", "g", [0, 1])
    )
    # Between two points of the grid both functions are within 0.01 of what they are at the nearer one.
    for eps, expected in ((most * 0.98, Outcome.SAT), (most + 0.05, Outcome.UNSAT)):
        assert decide(query(head + differ("f", "g", 2, eps)), {"f": f, "g": g}, solver).outcome is expected


@pytest.mark.parametrize("solver", SOLVERS)
def test_monotonicity_by_two_copies(solver: str, tmp_path: Path) -> None:
    """Of a network with weights >= 0 in all inputs; of another one against a grid."""
    weights, biases = random_layers((2, 4, 3, 1), 1)
    rising = network_of(tmp_path / "r.onnx", [np.abs(each) for each in weights], biases)
    network = network_of(tmp_path / "n.onnx", weights, biases)
    text = declared("f", 2, 1) + declared("g", 2, 1, "(equal-to f)") + box("f", 2) + box("g", 2)
    text += same("f", "g", [1]) + "(assert (<= Xf[0,0] Xg[0,0]))\n"
    falls = query(text + "(assert (>= Yf[0,0] (+ Yg[0,0] 0.01)))")
    assert falls.joint
    assert falls.free == 3
    assert decide(falls, {"f": rising}, solver).outcome is Outcome.UNSAT
    axis = np.linspace(-1, 1, 81)
    values = network.graph.evaluate(np.array(list(itertools.product(axis, axis))))[:, 0].reshape(81, 81)
    assert any((values[i] >= values[j] + 0.02).any() for i in range(81) for j in range(i, 81))
    assert decide(falls, {"f": network}, solver).outcome is Outcome.SAT


def test_inputs_near_each_other_against_a_grid(tmp_path: Path) -> None:
    """Rows over the inputs of two networks alone, and over inputs and outputs together."""
    f = random_network(tmp_path / "f.onnx", (1, 6, 4, 1), 2)
    text = declared("f", 1, 1) + declared("g", 1, 1, "(equal-to f)") + box("f", 1) + box("g", 1)
    text += "(assert (<= (- Xf[0,0] Xg[0,0]) 0.125)) (assert (<= (- Xg[0,0] Xf[0,0]) 0.125))\n"
    axis = np.linspace(-1, 1, 4001)
    y = f.graph.evaluate(axis[:, None])[:, 0]
    most = max(float(np.abs(y[k:] - y[:-k]).max()) for k in range(1, 251))
    slope = float(np.abs(np.diff(y)).max() / np.diff(axis).max())
    for jump, expected in ((most * 0.98, Outcome.SAT), (most * 1.02, Outcome.UNSAT)):
        asked = query(text + f"(assert (>= Yf[0,0] (+ Yg[0,0] {jump:.6f})))")
        assert decide(asked, {"f": f}).outcome is expected or jump > most
        mirrored = query(text + f"(assert (>= Yg[0,0] (+ Yf[0,0] {jump:.6f})))")
        assert decide(mirrored, {"f": f}).outcome is expected
    rise = f"(assert (>= (- Yf[0,0] Yg[0,0]) (+ (* {slope * 1.05:.6f} (- Xf[0,0] Xg[0,0])) 0.01)))"
    steep = query(text + "(assert (>= Xf[0,0] Xg[0,0]))" + rise)
    assert decide(steep, {"f": f}).outcome is Outcome.UNSAT


def test_convolutions_beside_a_fully_connected_network(tmp_path: Path) -> None:
    f = conv_network(tmp_path / "f.onnx", 0)
    g = random_network(tmp_path / "g.onnx", (3, 5, 2), 1)
    head = "(declare-network f (declare-input Xf float32 [1,2,3,3]) (declare-output Yf float32 [1,2]))\n"
    head += declared("g", 3, 2) + declared("h", 3, 2, "(isomorphic-to g)")
    places = list(itertools.product((0, 1), (0, 1, 2), (0, 1, 2)))
    text = "".join(
        f"(assert (and (>= Xf[0,{c},{i},{j}] 0.0) (<= Xf[0,{c},{i},{j}] 0.25)))" for c, i, j in places
    )
    text += "(assert (== Xg[0,0] Xf[0,1,2,2])) (assert (== Xg[0,1] Xf[0,0,0,1]))"
    text += "(assert (and (>= Xg[0,2] 0.0) (<= Xg[0,2] 1.0)))" + box("h", 3)
    asked = query(head + text + "(assert (<= (+ Yf[0,0] Yg[0,0]) -50.0))")
    networks = {"f": f, "g": g, "h": random_network(tmp_path / "h.onnx", (3, 5, 2), 5)}
    joint = join(asked, networks)
    x = np.random.default_rng(0).uniform(0, 1, (6, asked.free))
    full = x[:, asked.places]
    parts = [f.graph.evaluate(full[:, :18]), g.graph.evaluate(full[:, 18:21])]
    np.testing.assert_allclose(joint.graph.evaluate(x)[:, :4], np.concatenate(parts, axis=1), atol=1e-12)
    assert decide(asked, networks).outcome is Outcome.UNSAT
    least = float((parts[0][:, 0] + parts[1][:, 0]).min())
    inner = query(head + text + f"(assert (<= (+ Yf[0,0] Yg[0,0]) {max(least, 0.0) + 5.0:.6f}))")
    assert decide(inner, networks).outcome is Outcome.SAT


@pytest.mark.parametrize("solver", SOLVERS)
def test_networks_in_a_row_against_a_grid(solver: str, tmp_path: Path) -> None:
    """g reads an output of f, in which f has to lie, and an input of its own; h reads what g gives."""
    shapes = {"f": (2, 5, 2), "g": (2, 4, 1), "h": (1, 3, 1)}
    networks = {
        name: random_network(tmp_path / f"{name}.onnx", shape, seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    text = "".join(declared(name, shape[0], shape[-1]) for name, shape in shapes.items())
    text += box("f", 2) + "(assert (and (>= Xg[0,1] 0.0) (<= Xg[0,1] 0.5)))\n"
    text += "(assert (== Yf[0,1] Xg[0,0])) (assert (and (<= Xh[0,0] Yg[0,0]) (>= Xh[0,0] Yg[0,0])))\n"
    axis = np.linspace(-1, 1, 61)
    x = np.array(list(itertools.product(axis, axis, np.linspace(0, 0.5, 31))))
    f = networks["f"].graph.evaluate(x[:, :2])
    between = np.stack([f[:, 1], x[:, 2]], axis=1)
    g = networks["g"].graph.evaluate(between)
    y = np.concatenate([f, g, networks["h"].graph.evaluate(g)], axis=1)
    asked = query(text + "(assert (<= Yh[0,0] 0.0))")
    assert (asked.free, asked.places.tolist()) == (3, [0, 1, 4, 2, 5])
    np.testing.assert_allclose(join(asked, networks).graph.evaluate(x), y, atol=1e-12)
    middle = float(np.median(f[:, 1]))
    inside = f[:, 1] <= middle
    for most, more in ((y[:, 3].max(), ""), (y[inside, 3].max(), f"(assert (<= Xg[0,0] {middle:.6f}))")):
        for limit, expected in ((most - 0.01, Outcome.SAT), (most + 0.1, Outcome.UNSAT)):
            found = decide(query(text + more + f"(assert (>= Yh[0,0] {limit:.6f}))"), networks, solver)
            assert found.outcome is expected
            if found.x is not None and found.y is not None:
                assert found.x[2] == found.y[1]


def test_outputs_of_networks_declared_later_or_of_the_same_are_no_inputs(tmp_path: Path) -> None:
    """They are rows like others: nothing is defined by itself."""
    f = random_network(tmp_path / "f.onnx", (1, 3, 1), 0)
    text = declared("f", 1, 1) + declared("g", 1, 1, "(equal-to f)") + box("f", 1) + box("g", 1)
    for equal in ("(== Xf[0,0] Yg[0,0])", "(== Xf[0,0] Yf[0,0])", "(== Xg[0,0] Yg[0,0])"):
        asked = query(text + f"(assert {equal}) (assert (<= Yf[0,0] 0.5))")
        assert asked.places.tolist() == [0, 1]
        assert asked.joint
    both = query(
        text + "(assert (== Xg[0,0] Yf[0,0])) (assert (== Xg[0,0] Xf[0,0])) (assert (<= Yg[0,0] 9.0))"
    )
    assert both.places.tolist() == [0, 0]
    assert both.joint
    far = query(text + "(assert (== Xg[0,0] Yf[0,0])) (assert (>= Yf[0,0] 1.5)) (assert (<= Yg[0,0] 9.0))")
    assert decide(far, {"f": f}).outcome is Outcome.UNSAT, "Xg is at most 1"


def test_equal_inputs_of_one_network_in_version_1(tmp_path: Path) -> None:
    """No search in float32 meets the diagonal of a square, but it is an interval; masks as ever."""
    f = random_network(tmp_path / "f.onnx", (2, 5, 1), 4)
    line = f.graph.evaluate(np.repeat(np.linspace(-1, 1, 20001)[:, None], 2, axis=1))[:, 0]
    text = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
    text += "(assert (and (>= X_0 -1) (<= X_0 1) (= X_0 X_1)))(assert (>= Y_0 LIMIT))"
    for limit, expected in ((line.max() - 0.001, Outcome.SAT), (line.max() + 0.001, Outcome.UNSAT)):
        asked = vnnlib1.PROPERTY_FORMAT.read(text.replace("LIMIT", f"{limit:.6f}"), Path("p.vnnlib"))
        answer = verify_property(f, asked, options=Options(timeout=20))
        assert answer.outcome is expected
        if answer.x is not None:
            assert answer.x[0] == answer.x[1]
    gates = dict.fromkeys(f.graph.gate_nodes, np.zeros((1, 5), dtype=np.bool_))
    least = []
    for neuron in range(5):
        gates = {node: np.arange(5)[None] == neuron for node in gates}
        x = np.repeat(np.linspace(-1, 1, 2001)[:, None], 2, axis=1)
        least.append(float(f.graph.evaluate(x, {n: np.repeat(m, 2001, 0) for n, m in gates.items()}).max()))
    most = max(*least, float(line.max()))
    for limit, expected in ((most - 0.01, Outcome.SAT), (most + 0.01, Outcome.UNSAT)):
        asked = vnnlib1.PROPERTY_FORMAT.read(text.replace("LIMIT", f"{limit:.6f}"), Path("p.vnnlib"))
        assert verify_property(f, asked, budget="1", options=Options(timeout=20)).outcome is expected


# ------------------------------------------------------------------------------- inputs, outputs, hidden


SEVERAL = """(declare-network f
  (declare-input A float32 [1,2]) (declare-input B float32 [1])
  (declare-hidden H float32 [1,4] "h")
  (declare-output S float32 [1,2]) (declare-output T float32 [1,1]))
(assert (and (>= A[0,0] -1.0) (<= A[0,0] 1.0) (>= A[0,1] -1.0) (<= A[0,1] 1.0) (>= B[0] 0.0) (<= B[0] 1.0)))
"""


@pytest.mark.parametrize("batch", [1, "N"])
def test_several_inputs_outputs_and_hidden_nodes_against_a_grid(batch: str | int, tmp_path: Path) -> None:
    path = two_by_two(tmp_path / "f.onnx", batch=batch)
    asked = query(SEVERAL + "(assert (<= T[0,0] 0.0))")
    networks = load_networks(asked, {"f": path})
    assert [port.name for port in networks["f"].outputs] == ["h", "s", "t"]
    axis = np.linspace(-1, 1, 41, dtype=np.float32)
    grid = np.array(list(itertools.product(axis, axis, (axis + 1) / 2)), dtype=np.float32)
    model = onnx.load(path)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    h = np.maximum(grid @ stored["W"] + stored["w"], 0.0)
    expected = np.concatenate([h, h @ stored["U"], grid @ stored["V"]], axis=1)
    np.testing.assert_allclose(networks["f"].graph.evaluate(grid.astype(float)), expected, atol=1e-5)
    s, t = expected[:, 4:6], expected[:, 6]
    cases = {
        f"(assert (>= T[0,0] {t.max() + 0.01:.6f}))": False,
        f"(assert (>= T[0,0] {t.max() - 0.01:.6f}))": True,
        f"(assert (and (>= S[0,0] {np.quantile(s[:, 0], 0.9):.6f}) (<= H[0,1] H[0,0])))": bool(
            ((s[:, 0] >= np.quantile(s[:, 0], 0.9)) & (h[:, 1] <= h[:, 0])).any()
        ),
        f"(assert (>= H[0,2] {h[:, 2].max() + 0.01:.6f}))": False,
        "(assert (<= H[0,3] -0.001))": False,
        "(assert (>= (+ S[0,0] T[0,0]) (+ S[0,1] B[0])))": bool((s[:, 0] + t >= s[:, 1] + grid[:, 2]).any()),
    }
    for text, met in cases.items():
        for solver in SOLVERS:
            found = decide(query(SEVERAL + text), networks, solver).outcome
            assert found is (Outcome.SAT if met else Outcome.UNSAT), text


def test_copies_share_hidden_nodes_and_see_their_own(tmp_path: Path) -> None:
    """The copy declares no hidden node: its outputs are those of the file alone."""
    text = SEVERAL.replace(
        "(assert",
        "(declare-network g (equal-to f) (declare-input C float32 [1,2]) (declare-input D float32 [1])"
        " (declare-output U float32 [1,2]) (declare-output V float32 [1,1]))\n(assert",
        1,
    )
    text += "(assert (and (== A[0,0] C[0,0]) (== A[0,1] C[0,1]) (== B[0] D[0])))"
    asked = query(text + "(assert (or (!= S[0,1] U[0,1]) (!= T[0,0] V[0,0])))")
    networks = load_networks(asked, {"f": two_by_two(tmp_path / "f.onnx")})
    joint = join(asked, networks)
    x = np.random.default_rng(1).uniform(0, 1, (4, 3))
    y = joint.graph.evaluate(x)
    assert y.shape == (4, 4 + 3 + 3)
    np.testing.assert_array_equal(y[:, 4:7], y[:, 7:])
    apart = query(text + "(assert (>= S[0,1] (+ U[0,1] 0.001)))")
    assert decide(apart, networks).outcome is Outcome.UNSAT


# ------------------------------------------------------------------------------- what is refused


def refused(text: str, files: Mapping[str, Path]) -> str:
    def ask() -> None:
        asked = query(text)
        join(asked, load_networks(asked, files))

    with pytest.raises(MilpverError) as caught:
        ask()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_queries_that_do_not_fit_name_what_is_wrong(tmp_path: Path) -> None:
    f, g = tmp_path / "f.onnx", tmp_path / "g.onnx"
    random_network(f, (2, 3, 1), 0)
    random_network(g, (2, 4, 1), 0)
    two = two_by_two(tmp_path / "two.onnx")
    conv = tmp_path / "conv.onnx"
    conv_network(conv, 0)
    pair, end = (
        declared("f", 2, 1) + declared("g", 2, 1),
        box("f", 2) + box("g", 2) + "(assert (<= Yf[0,0] 0.0))",
    )
    equal = pair.replace("network g ", "network g (equal-to f)")
    alike = pair.replace("network g ", "network g (isomorphic-to f)")
    alone = box("f", 2) + "(assert (<= Yf[0,0] 0.0))"
    cases: list[tuple[str, dict[str, Path], str]] = [
        (pair + end, {"f": f}, "no file for the network g"),
        (pair + end, {"f": f, "g": g, "h": g}, "the name h, and q.vnnlib declares the networks f, g"),
        (pair + end, {"": f}, "a file without a name"),
        (equal + end, {"f": f, "g": f}, "the network g, which q.vnnlib declares equal to f"),
        (alike + end, {"f": f, "g": g}, "g isomorphic to f"),
        (alike + end, {"f": f, "g": tmp_path / "none.onnx"}, "none.onnx"),
        (
            pair.replace("Xg float32 [1,2]", "Xg float32 [1,3]") + box("g", 3) + end,
            {"f": f, "g": g},
            "the input Xg of the network g with shape [1, 3]",
        ),
        (declared("f", 2, 2) + alone, {"f": f}, "the output Yf of the network f with shape [1, 2]"),
        (declared("f", 2, 1) + alone, {"f": two}, "2 outputs"),
        (SEVERAL + "(assert (<= T[0,0] 0.0))", {"f": f}, "no node that makes the tensor 'h'"),
        (SEVERAL.replace('"h"', '"a"') + "(assert (<= T[0,0] 0.0))", {"f": two}, "makes the tensor 'a'"),
        (SEVERAL.replace('"h"', '"s"') + "(assert (<= T[0,0] 0.0))", {"f": two}, "the hidden node H of"),
        (declared("f", 2, 1) + declared("f", 2, 1).replace("Xf", "Z").replace("Yf", "W") + alone, {"f": f},
         "the network f is declared twice"),
        (pair.replace("network g ", "network g (equal-to h)") + end, {"f": f}, "Referenced network 'h'"),
        (alike.replace("Xg float32 [1,2]", "Xg float32 [1,3]") + end, {"f": f}, "'g' and 'f'"),
        (pair + box("f", 2) + "(assert (<= Yg[0,0] 0.0))", {"f": f, "g": g}, "Xg[0,0] has no lower bound"),
        (pair + end + "(assert (<= Zg[0,0] 0.0))", {"f": f, "g": g}, "Zg"),
    ]  # fmt: skip
    for text, files, said in cases:
        assert said in refused(text, files)
    three = declared("f", 2, 1).replace("[1,2]", "[3,3,2]").replace("[1,1]", "[2]")
    bounds = "".join(
        f"(assert (and (>= Xf[{i},{j},{c}] 0.0) (<= Xf[{i},{j},{c}] 1.0)))"
        for i, j, c in itertools.product(range(3), range(3), range(2))
    )
    assert "shape [3, 3, 2]" in refused(three + bounds + "(assert (<= Yf[0] 0.0))", {"f": conv})
    asked = query(pair + end)
    with pytest.raises(QueryError, match="a budget, and 2 networks"):
        verify_property(load_networks(asked, {"f": f, "g": g}), asked, budget="1")


def test_a_witness_that_its_own_network_refuses_is_no_sat(tmp_path: Path) -> None:
    """The graph of g is not what its file computes: what that file refuses is never a counterexample."""
    f, g = perturbed(tmp_path, (2, 4, 1), 0)
    wrong = replace(f, path=g.path, model=g.model, sha256=g.sha256)
    text = declared("f", 2, 1) + declared("g", 2, 1) + box("f", 2) + same("f", "g", [0, 1])
    asked = query(text + "(assert (>= Yg[0,0] (+ Yf[0,0] 0.001)))")
    assert decide(asked, {"f": f, "g": g}).outcome is Outcome.SAT
    assert decide(asked, {"f": f, "g": wrong}).outcome is not Outcome.SAT
    weights, biases = random_layers((2, 4, 1), 0)
    further = network_of(tmp_path / "h.onnx", [weights[0], weights[1] + 0.0625], biases)
    with pytest.raises(MilpverError, match="ONNX Runtime and the graph differ"):
        decide(asked, {"f": f, "g": replace(g, path=further.path, model=further.model)})


def test_two_types_of_inputs_are_refused(tmp_path: Path) -> None:
    path = two_by_two(tmp_path / "f.onnx")
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.DOUBLE
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="types float32, float64"):
        load_network(path, several=True)
