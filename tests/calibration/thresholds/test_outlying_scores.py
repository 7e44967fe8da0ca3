"""Scores far above the rest: found where there is one, seldom where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.calibration.thresholds.outlying_scores import count_outlying

SHAPES = {
    "normal": lambda rng, n: rng.normal(5, 1, n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "gamma": lambda rng, n: rng.gamma(2, 1, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 0.3, n),
    "gumbel": lambda rng, n: rng.gumbel(0, 1, n),
    "uniform": lambda rng, n: rng.random(n),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [8, 20, 100, 1000])
def test_fewer_than_one_in_a_hundred_sets_of_normal_scores_are_warned_of(shape, count):
    rng = np.random.default_rng(0)
    # 0.15% are expected at most, so 3 among 500: 5 are below 1%.
    assert sum(count_outlying(SHAPES[shape](rng, count)) > 0 for _ in range(500)) <= 5


@given(seed=st.integers(0, 1000), count=st.integers(10, 300), factor=st.floats(-1e3, 1e3), scale=st.floats(0.01, 100))
def test_one_score_far_above_is_found_whatever_the_scale(seed, count, factor, scale):
    scores = np.random.default_rng(seed).uniform(1, 2, count)
    assert count_outlying(scores * scale + factor * scale) == count_outlying(scores)
    assert count_outlying(np.append(scores, 40) * scale + factor * scale) == 1


@given(seed=st.integers(0, 1000), odd=st.integers(1, 3))
def test_a_few_that_stand_together_are_all_found(seed, odd):
    rng = np.random.default_rng(seed)
    assert count_outlying(np.append(rng.normal(5, 1, 60), 40 + rng.random(odd))) == odd


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, 9.0], [3.0] * 20, [3.0] * 20 + [3.0 + 1e-12]])
def test_nothing_is_said_of_few_or_equal_scores(scores):
    assert count_outlying(np.array(scores)) == 0


def test_one_above_equal_ones_is_found():
    assert count_outlying(np.array([3.0] * 20 + [4.0])) == 1
