"""Linear maps: every way to apply one agrees with its matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, sparse

from milpver.linear import Conv, Dense, LinearMap, Sparse, diagonal, identity, magnitude, selection


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilations = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    rows = max(dilations[0] * (height - 1) + 1 - pads[0] - pads[2], 1) + draw(st.integers(0, 3))
    columns = max(dilations[1] * (width - 1) + 1 - pads[1] - pads[3], 1) + draw(st.integers(0, 3))
    channels = draw(st.integers(1, 2))
    return Conv(
        rng.normal(size=(groups * draw(st.integers(1, 2)), channels, height, width)),
        (groups * channels, rows, columns),
        strides=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilations=dilations,
        groups=groups,
    )


@st.composite
def maps(draw: st.DrawFn) -> LinearMap:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["dense", "sparse", "conv", "selection"]))
    outputs, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    if kind == "dense":
        return Dense(rng.normal(size=(outputs, inputs)))
    if kind == "sparse":
        return Sparse(
            sparse.csr_array(rng.normal(size=(outputs, inputs)) * (rng.random((outputs, inputs)) < 0.4))
        )
    if kind == "selection":
        return selection(rng.integers(-1, inputs, outputs), inputs)
    return draw(convolutions())


@given(maps())
def test_a_map_agrees_with_its_matrix(linear: LinearMap) -> None:
    rng = np.random.default_rng(0)
    matrix = linear.csr.toarray()
    assert matrix.shape == (linear.outputs, linear.inputs)
    assert matrix.dtype == np.float64
    x, g = rng.normal(size=(3, linear.inputs)), rng.normal(size=(2, linear.outputs))
    np.testing.assert_allclose(linear.apply(x), x @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(linear.adjoint(g), g @ matrix, atol=1e-12)
    assert linear.apply(x[:0]).shape == (0, linear.outputs)
    assert np.count_nonzero(matrix, axis=1).max(initial=0) <= linear.row_terms
    np.testing.assert_array_equal(magnitude(linear).csr.toarray(), np.abs(matrix))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 7), st.integers(4, 7))
def test_a_plain_convolution_is_that_of_scipy(height: int, width: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(1)
    kernel, image = rng.normal(size=(height, width)), rng.normal(size=(rows, columns))
    linear = Conv(kernel[None, None], (1, rows, columns))
    expected = signal.correlate2d(image, kernel, mode="valid")
    assert linear.out_shape == (1, *expected.shape)
    np.testing.assert_allclose(linear.apply(image.reshape(1, -1))[0], expected.reshape(-1), atol=1e-12)


def test_a_convolution_of_the_padding_alone_is_zero() -> None:
    linear = Conv(np.ones((1, 1, 2, 2)), (1, 1, 1), pads=(2, 2, 2, 2))
    assert linear.out_shape == (1, 4, 4)
    np.testing.assert_array_equal(
        linear.apply(np.array([[3.0]])).reshape(4, 4),
        [[0, 0, 0, 0], [0, 3, 3, 0], [0, 3, 3, 0], [0, 0, 0, 0]],
    )


def test_selection_picks_and_pads() -> None:
    picked = selection(np.array([2, -1, 0, 2]), 3)
    np.testing.assert_array_equal(picked.apply(np.array([[5.0, 6.0, 7.0]])), [[7, 0, 5, 7]])
    assert picked.row_terms == 1
    assert selection(np.array([-1, -1]), 3).row_terms == 0


@pytest.mark.parametrize("size", [1, 4])
def test_identity_and_diagonal(size: int) -> None:
    x = np.random.default_rng(2).normal(size=(2, size))
    np.testing.assert_array_equal(identity(size).apply(x), x)
    np.testing.assert_array_equal(diagonal(np.arange(size, dtype=np.float64)).apply(x), x * np.arange(size))
