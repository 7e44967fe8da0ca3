"""The slope estimator on series whose slope is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flawscope.runtime.bench.trend import BLOCKS, LEAST_SAMPLES, fit_slope, student_97_5

SAMPLES = 180
THOUSANDS = np.linspace(10.0, 100.0, SAMPLES)


def autoregressive(generator: np.random.Generator, memory: float) -> np.ndarray:
    """Return noise of deviation 1/√(1 − memory²) in which a sample keeps a share of the one before."""
    noise = generator.normal(size=SAMPLES)
    noise[0] /= np.sqrt(1 - memory**2)
    for index in range(1, SAMPLES):
        noise[index] += memory * noise[index - 1]
    return noise


@pytest.mark.parametrize("slope", [-3.0, 0.0, 0.001, 250.0])
def test_a_line_without_noise_is_found_exactly(slope: float) -> None:
    fitted = fit_slope(THOUSANDS, 1e5 + slope * THOUSANDS)
    assert fitted is not None
    assert fitted.value == pytest.approx(slope, abs=1e-9)
    assert fitted.low == pytest.approx(slope, abs=1e-6)
    assert fitted.high == pytest.approx(slope, abs=1e-6)


def test_a_series_that_does_not_move_has_slope_zero_and_an_interval_of_no_width() -> None:
    fitted = fit_slope(THOUSANDS, np.full(SAMPLES, 108_812.0))
    assert fitted is not None
    assert (fitted.value, fitted.low, fitted.high) == (0.0, 0.0, 0.0)
    assert fitted.holds_zero


def test_without_correlation_it_is_the_textbook_interval_of_the_block_means() -> None:
    # A correlation below what the fitted line itself gives is left out; this seed has one.
    values = np.random.default_rng(0).normal(size=SAMPLES)
    fitted = fit_slope(THOUSANDS, values)
    assert fitted is not None
    assert fitted.correlation == 0.0
    across, up = (series.reshape(BLOCKS, -1).mean(axis=1) for series in (THOUSANDS, values))
    line = stats.linregress(across, up)
    margin = stats.t.ppf(0.975, BLOCKS - 2) * line.stderr
    assert fitted.value == pytest.approx(line.slope)
    assert (fitted.low, fitted.high) == pytest.approx((line.slope - margin, line.slope + margin))


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9, 0.95])
def test_the_interval_misses_a_slope_of_zero_about_as_seldom_as_it_says(memory: float) -> None:
    generator = np.random.default_rng(1)
    slopes = [fit_slope(THOUSANDS, autoregressive(generator, memory)) for _ in range(600)]
    missed = sum(not slope.holds_zero for slope in slopes if slope is not None) / len(slopes)
    assert missed < 0.08  # 5 % is meant; least squares on the samples themselves misses 66 % at 0.9 and 74 % at 0.95


def test_a_random_walk_is_given_a_slope_seldom() -> None:
    generator = np.random.default_rng(4)
    slopes = [fit_slope(THOUSANDS, generator.normal(size=SAMPLES).cumsum()) for _ in range(600)]
    assert sum(not slope.holds_zero for slope in slopes if slope is not None) / len(slopes) < 0.2


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_a_leak_is_found_below_noise(memory: float) -> None:
    generator = np.random.default_rng(2)
    deviation = np.sqrt(1 / (1 - memory**2))
    slopes = [fit_slope(THOUSANDS, autoregressive(generator, memory) + 0.2 * deviation * THOUSANDS) for _ in range(100)]
    assert all(slope is not None and slope.value == pytest.approx(0.2 * deviation, rel=0.5) for slope in slopes)
    assert sum(slope is not None and slope.low > 0 for slope in slopes) >= 95


@given(st.integers(1, SAMPLES - 1), st.floats(4.0, 1e5))
def test_one_step_is_never_a_leak(place: int, height: float) -> None:
    fitted = fit_slope(THOUSANDS, 1e5 + height * (np.arange(SAMPLES) >= place))
    assert fitted is not None
    assert fitted.holds_zero


@given(st.floats(0.0, 5.0), st.integers(0, 2**32 - 1), st.floats(-1e5, 1e5))
def test_a_slope_that_is_added_is_added_to_all_three_figures(slope: float, seed: int, level: float) -> None:
    noise = np.random.default_rng(seed).normal(size=SAMPLES)
    plain, tilted = fit_slope(THOUSANDS, noise), fit_slope(THOUSANDS, noise + level + slope * THOUSANDS)
    assert plain is not None
    assert tilted is not None
    for name in ("value", "low", "high"):
        assert getattr(tilted, name) == pytest.approx(getattr(plain, name) + slope, abs=1e-7)


def test_too_few_samples_tell_nothing() -> None:
    few = np.arange(LEAST_SAMPLES, dtype=float)
    assert fit_slope(few[:-1], few[:-1]) is None
    assert fit_slope(few, 2 * few) is not None


@pytest.mark.parametrize(("freedom", "within"), [(2.0, 1e-2), (3.0, 2e-3), (4.0, 1e-3), (18.0, 1e-5), (1e6, 1e-9)])
def test_students_point_is_that_of_the_tables(freedom: float, within: float) -> None:
    assert student_97_5(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=within)
