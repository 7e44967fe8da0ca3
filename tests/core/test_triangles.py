"""Upper triangles without their zeros: nothing is lost, and what would be lost is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.triangles import pack_triangles, triangle_places, triangle_size, unpack_triangles

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**32 - 1))


def triangles(count: int, channels: int, seed: int, dtype: type = np.float32) -> np.ndarray:
    return np.triu(np.random.default_rng(seed).integers(-99, 100, (count, channels, channels))).astype(dtype)


@given(SHAPES, st.sampled_from([np.float32, np.float16]))
def test_packing_keeps_every_number_and_nothing_else(shape, dtype):
    count, channels, seed = shape
    matrices = triangles(count, channels, seed, dtype)
    packed = pack_triangles(matrices)
    assert packed.dtype == dtype
    assert packed.shape == (count, triangle_size(channels))
    rows, columns = np.triu_indices(channels)
    np.testing.assert_array_equal(packed, matrices[:, rows, columns])
    unpacked = unpack_triangles(packed, channels)
    assert unpacked.dtype == np.float32
    np.testing.assert_array_equal(unpacked, matrices)


@given(SHAPES)
def test_places_are_those_of_the_numbers(shape):
    count, channels, seed = shape
    matrices = triangles(count, channels, seed)
    gathered = pack_triangles(matrices)[:, triangle_places(channels)]
    np.testing.assert_array_equal(np.triu(gathered), matrices)


@given(SHAPES, st.data())
def test_a_number_below_the_diagonal_is_refused(shape, data):
    count, channels, seed = shape
    matrices = triangles(count, channels + 1, seed)
    row = data.draw(st.integers(1, channels))
    matrices[data.draw(st.integers(0, count - 1)), row, data.draw(st.integers(0, row - 1))] = 1e-30
    with pytest.raises(
        ArgumentError, match=rf"expected upper triangles, got numbers below the diagonal in row {row}\."
    ):
        pack_triangles(matrices)
