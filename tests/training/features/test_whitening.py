"""Whitening: exact on diagonal covariances, axes kept by share and count, shrinkage by its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.training.features.whitening import FLOOR, kept_axes, oracle_approximation, whitening_matrix


def diagonal(*variances: float) -> torch.Tensor:
    return torch.diag(torch.tensor(variances, dtype=torch.float64))


def test_a_diagonal_covariance_is_divided_by_its_deviations() -> None:
    matrix = whitening_matrix(diagonal(4, 1, 9), 100)
    floor = FLOOR * 9
    expected = [1 / math.sqrt(1 + floor), 1 / math.sqrt(4 + floor), 1 / math.sqrt(9 + floor)]
    # One channel for each axis, the axis of the largest variance last.
    assert matrix.abs().max(dim=0).values.tolist() == pytest.approx(expected)
    assert matrix.abs().max(dim=0).indices.tolist() == [1, 0, 2]
    assert int((matrix != 0).sum()) == 3


@pytest.mark.parametrize(
    ("components", "kept"),
    [(1.0, 4), (2, 2), (3, 3), (400, 4), (0.4, 1), (0.5, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1e-9, 1)],
)
def test_so_many_axes_are_kept_as_the_share_or_count_asks_for(components: float, kept: int) -> None:
    variances = [0.5, 0.3, 0.15, 0.05]  # shares of their sum
    assert kept_axes(torch.tensor(sorted(variances), dtype=torch.float64), components) == kept
    matrix = whitening_matrix(diagonal(*variances), 10, components)
    assert matrix.shape == (4, kept)
    assert sorted(matrix.abs().max(dim=0).indices.tolist()) == list(range(kept))  # those of the largest variance


def test_shrinkage_moves_variances_towards_their_mean() -> None:
    matrix = whitening_matrix(diagonal(1, 9), 10, shrinkage=0.5)
    floor = FLOOR * 7  # of the largest after shrinking
    expected = [1 / math.sqrt(3 + floor), 1 / math.sqrt(7 + floor)]  # halfway to 5
    assert matrix.abs().max(dim=0).values.tolist() == pytest.approx(expected)
    whole = whitening_matrix(diagonal(1, 9), 10, shrinkage=1.0)
    assert whole.abs().max(dim=0).values.tolist() == pytest.approx([1 / math.sqrt(5 + 5 * FLOOR)] * 2)


def test_the_oracle_approximation_is_the_formula() -> None:
    variances = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    squares, square = 14, 36
    expected = ((1 - 2 / 3) * squares + square) / ((10 + 1 - 2 / 3) * (squares - square / 3))
    assert oracle_approximation(variances, 10) == pytest.approx(min(1, expected))
    assert oracle_approximation(variances, 10**6) == pytest.approx(expected * (10 + 1 / 3) / (10**6 + 1 / 3))
    assert oracle_approximation(torch.ones(3, dtype=torch.float64), 10) == 1.0
    of_few, of_many = (whitening_matrix(diagonal(1, 9), count, shrinkage=None) for count in (2, 10**9))
    torch.testing.assert_close(of_many, whitening_matrix(diagonal(1, 9), 1), rtol=1e-6, atol=0)
    assert of_few.abs().max() < of_many.abs().max()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_whitened_patches_are_uncorrelated_with_at_most_unit_variance(
    size: int, seed: int, components: float, shrinkage: float
) -> None:
    points = np.random.default_rng(seed).normal(size=(50, size)) @ np.random.default_rng(seed + 1).normal(
        size=(size, size)
    )
    covariance = torch.from_numpy(np.cov(points.T, bias=True).reshape(size, size))
    matrix = whitening_matrix(covariance, 50, components, shrinkage)
    assert 1 <= matrix.shape[1] <= size
    whitened = matrix.T @ covariance @ matrix
    off = whitened - torch.diag(whitened.diagonal())
    assert float(off.abs().max()) < 1e-8 * max(1.0, float(whitened.max()))
    if shrinkage == 0:
        assert float(whitened.diagonal().max()) <= 1
