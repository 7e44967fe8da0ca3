"""Weights of the bank rows in the place of a patch: by the formula in float64, and where floats end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.diffusion.feature_editing import row_weights


def by_formula(squared: np.ndarray, count: int, channels: int, temperature: float) -> np.ndarray:
    shares = np.exp(-(squared.astype(np.float64) - squared[:, :1]) / (channels * temperature))
    shares = shares[:, :count] - (shares[:, count:] if squared.shape[1] > count else 0.0)
    return shares / shares.sum(axis=1, keepdims=True)


@given(
    st.lists(st.floats(0.0, 100.0, width=32), min_size=2, max_size=12, unique=True),
    st.booleans(),
    st.integers(1, 300),
    st.floats(1e-2, 1e2),
)
def test_weights_are_those_of_the_formula(
    distances: list[float], leaves_one_out: bool, channels: int, temperature: float
) -> None:
    squared = np.sort(np.array([distances], np.float32), axis=1)
    count = squared.shape[1] - leaves_one_out
    weights = row_weights(squared, count, channels, temperature)
    assert weights.dtype == np.float32
    assert weights.shape == (1, count)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(weights, axis=1) <= 1e-6).all(), "a nearer row counts no less"
    # The formula itself loses what is left of two exponentials near 1.
    span = float(squared.max() - squared.min()) / (channels * temperature)
    if span > 1e-3:
        np.testing.assert_allclose(
            weights, by_formula(squared, count, channels, temperature), rtol=0, atol=2e-5 + 1e-12 / span
        )


def test_a_row_as_near_as_the_one_left_out_has_no_weight_so_that_swapping_them_changes_nothing() -> None:
    squared = np.array([[1.0, 2.0, 3.0, 3.0]], np.float32)
    assert row_weights(squared, 3, 4, 1.0)[0, 2] == 0.0
    nearly = np.array([[1.0, 2.0, 3.0, 3.0 + 1e-6]], np.float32)
    np.testing.assert_allclose(row_weights(nearly, 3, 4, 1.0), row_weights(squared, 3, 4, 1.0), rtol=0, atol=1e-5)


def test_a_large_temperature_lets_weights_fall_linearly_and_a_small_one_takes_the_nearest() -> None:
    squared = np.array([[1.0, 2.0, 4.0]], np.float32)
    np.testing.assert_allclose(row_weights(squared, 2, 8, 1e6), [[3 / 5, 2 / 5]], rtol=1e-5)
    np.testing.assert_array_equal(row_weights(squared, 2, 8, 1e-6), [[1.0, 0.0]])


def test_equally_near_rows_count_alike() -> None:
    np.testing.assert_array_equal(row_weights(np.full((2, 5), 7.0, np.float32), 4, 3, 0.1), np.full((2, 4), 0.25))


@pytest.mark.parametrize("distance", [0.0, 1e30])
def test_the_ends_of_floats_give_finite_weights(distance: float) -> None:
    weights = row_weights(np.full((1, 3), distance, np.float32), 2, 3, 1e-30)
    assert np.isfinite(weights).all()


def test_a_patch_that_is_not_finite_has_no_weights() -> None:
    squared = np.array([[np.nan, np.nan, np.nan], [1.0, 2.0, 3.0]], np.float32)
    weights = row_weights(squared, 2, 3, 1.0)
    assert np.isnan(weights[0]).all()
    assert np.isfinite(weights[1]).all()
