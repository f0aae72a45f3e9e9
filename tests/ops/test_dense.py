"""Gemm, MatMul and BatchNormalization against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from milpver.errors import ModelError
from milpver.graph import Affine
from milpver.linear import Dense
from milpver.network import Network
from milpver.onnx_import import load_network

Check = Callable[..., Network]
Build = Callable[..., Path]

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RNG.standard_normal(shape).astype(np.float32)


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1.0, 0.5, -1.7]),
    st.sampled_from([1.0, 0.3]),
    st.sampled_from(["none", "vector", "row", "one", "scalar"]),
    st.sampled_from([None, 1, 5]),
    st.sampled_from([7, 9, 11, 13]),
)
def test_gemm_agrees_with_onnx_runtime(  # noqa: PLR0917  hypothesis passes what it draws by position
    check: Check,
    rows: int,
    columns: int,
    transposed: bool,
    alpha: float,
    beta: float,
    form: str,
    batch: int | None,
    opset: int,
) -> None:
    constants = {"w": normal(columns, rows) if transposed else normal(rows, columns)}
    bias = {"vector": (columns,), "row": (1, columns), "one": (1,), "scalar": ()}.get(form)
    if bias is not None:
        constants["b"] = normal(*bias)
    elif opset < 11:
        constants["b"] = np.zeros((), dtype=np.float32)
    node = helper.make_node("Gemm", ["x", *constants], ["y"], alpha=alpha, beta=beta, transB=int(transposed))
    network = check([node], [batch, rows], constants, opset=opset)
    if alpha == beta == 1.0:
        (_, affine) = network.graph.nodes
        assert isinstance(affine, Affine)
        np.testing.assert_array_equal(
            affine.terms[0][1].csr.toarray(), constants["w"] if transposed else constants["w"].T
        )


def test_gemm_of_a_transposed_input_works_for_one_input(check: Check) -> None:
    check([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], [1, 3], {"w": normal(1, 4)})
    check([helper.make_node("Gemm", ["w", "x"], ["y"], transB=1)], [1, 3], {"w": normal(4, 3)})


def test_gemm_with_a_bias_per_input_is_refused(build: Build) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    with pytest.raises(ModelError, match="differs between the inputs"):
        load_network(build([node], [2, 3], {"w": normal(3, 4), "b": normal(2, 4)}))
    same = np.broadcast_to(normal(1, 4), (2, 4)).copy()
    assert load_network(build([node], [2, 3], {"w": normal(3, 4), "b": same})).batch == 2


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize(
    ("shape", "weight", "left"),
    [
        ((3,), (3, 2), False),
        ((2, 3), (3, 2), False),
        ((2, 2, 3), (2, 3, 4), False),
        ((2, 3), (1, 3, 4), False),
        ((1, 3), (3, 4), False),
        ((3,), (3,), False),
        ((3, 2), (4, 3), True),
        ((3, 1), (4, 3), True),
        ((2, 3, 2), (2, 4, 3), True),
        ((2, 3, 2), (4, 3), True),
    ],
)
def test_matmul_agrees_with_onnx_runtime(
    check: Check, batch: int | None, shape: tuple[int, ...], weight: tuple[int, ...], left: bool
) -> None:
    inputs = ["w", "x"] if left else ["x", "w"]
    network = check([helper.make_node("MatMul", inputs, ["y"])], [batch, *shape], {"w": normal(*weight)})
    (_, affine) = network.graph.nodes
    assert isinstance(affine, Affine)
    whole = np.prod(shape) == max(shape) and len(shape) < 3
    assert isinstance(affine.terms[0][1], Dense) is bool(whole)


@pytest.mark.parametrize(("weight", "left"), [((3, 2), False), ((4, 3), True), ((3,), False), ((3,), True)])
def test_matmul_without_batch_agrees_with_onnx_runtime(
    check: Check, weight: tuple[int, ...], left: bool
) -> None:
    inputs = ["w", "x"] if left else ["x", "w"]
    network = check([helper.make_node("MatMul", inputs, ["y"])], [3], {"w": normal(*weight)})
    assert network.batch == 0
    assert network.input_shape == (3,)


def test_a_column_without_batch_is_read_as_such(check: Check) -> None:
    network = check([helper.make_node("MatMul", ["w", "x"], ["y"])], [3, 1], {"w": normal(4, 3)})
    assert network.batch == 0
    assert network.input_shape == (3, 1)


def test_matmul_along_a_free_batch_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match="batch axis"):
        load_network(build([helper.make_node("MatMul", ["w", "x"], ["y"])], [None, 3], {"w": normal(4, 3)}))


@pytest.mark.parametrize("weight", [(2, 3, 4), (1, 1, 3, 4)])
def test_matmul_by_weights_of_a_batch_is_refused(build: Build, weight: tuple[int, ...]) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(ModelError, match="batch"):
        load_network(build([node], [None, 2, 3], {"w": normal(*weight)}))


def test_matmul_of_two_tensors_is_refused(build: Build) -> None:
    with pytest.raises(ModelError, match="both computed"):
        load_network(build([helper.make_node("MatMul", ["x", "x"], ["y"])], [1, 3, 3]))


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 2)])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_batch_normalization_agrees_with_onnx_runtime(
    check: Check, opset: int, shape: tuple[int, ...], mean: float
) -> None:
    constants = {"s": normal(3), "b": normal(3), "m": mean * normal(3), "v": normal(3) ** 2}
    node = helper.make_node("BatchNormalization", ["x", *constants], ["y"], epsilon=1e-3)
    network = check([node], [None, *shape], constants, opset=opset)
    assert len(network.graph.nodes) == (3 if mean else 2)
    # torch warns of arrays that cannot be written to, once a process
    assert all(node.bias.flags.writeable for node in network.graph.nodes if isinstance(node, Affine))


@pytest.mark.parametrize(
    ("attributes", "opset", "message"),
    [({"spatial": 0}, 7, "spatial"), ({"training_mode": 1}, 15, "training")],
)
def test_batch_normalization_that_depends_on_the_batch_is_refused(
    build: Build, attributes: dict[str, Any], opset: int, message: str
) -> None:
    constants = {name: np.ones(3, dtype=np.float32) for name in "sbmv"}
    node = helper.make_node("BatchNormalization", ["x", *constants], ["y"], **attributes)
    with pytest.raises(ModelError, match=message):
        load_network(build([node], [None, 3], constants, opset=opset))


@given(st.integers(1, 3), st.data())
@settings(max_examples=30)
def test_a_permutation_merges_exactly_into_the_layer_behind_it(
    check: Check, rank: int, data: st.DataObject
) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    order = data.draw(st.permutations(range(rank)))
    size = int(np.prod(shape))
    weight = normal(size, 4)
    network = check(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, *(axis + 1 for axis in order)]),
            helper.make_node("Flatten", ["t"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ],
        [None, *shape],
        {"w": weight, "b": normal(4)},
    )
    (_, affine) = network.graph.nodes
    assert isinstance(affine, Affine)
    linear = affine.terms[0][1]
    assert isinstance(linear, Dense)
    np.testing.assert_array_equal(np.sort(linear.weight, axis=None), np.sort(weight.astype(float), axis=None))
