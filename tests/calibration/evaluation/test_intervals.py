"""Exact binomial limits, and bootstrap intervals against a plain bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flawscope.calibration.evaluation import intervals, metrics
from flawscope.errors import ArgumentError


def test_upper_bound_is_where_so_few_events_become_improbable():
    for count, n in [(0, 59), (1, 93), (3, 20), (19, 20)]:
        bound = intervals.upper_bound(count, n, 0.95)
        assert stats.binom.cdf(count, n, bound) == pytest.approx(0.05, abs=1e-9)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_two_sided_interval_holds_the_rate_and_mirrors_for_the_complement(case):
    count, n = case
    low, high = intervals.clopper_pearson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    assert intervals.clopper_pearson(n - count, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_no_event_in_59_gives_five_per_cent_one_sided_and_a_little_more_two_sided():
    seen = intervals.rate(0, 59)
    assert seen.upper == pytest.approx(1 - 0.05 ** (1 / 59))
    assert seen.upper < 0.05
    assert (seen.low, seen.value) == (0.0, 0.0)
    assert seen.high == pytest.approx(1 - 0.025 ** (1 / 59))


def test_a_rate_of_no_images_is_undefined():
    assert intervals.rate(0, 0) == intervals.Rate(0, 0, None, None, None, None, 0.95)


@pytest.mark.parametrize(("count", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(count, n):
    with pytest.raises(ArgumentError, match="count: expected 0 to n images"):
        intervals.clopper_pearson(count, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_must_be_a_fraction(confidence):
    with pytest.raises(ArgumentError, match="confidence: expected a fraction above 0 and below 1"):
        intervals.upper_bound(1, 5, confidence)


def _scores(seed, good=40, anomalous=25):
    random = np.random.default_rng(seed)
    scores = np.concatenate((random.normal(0, 1, good), random.normal(1.2, 1, anomalous))).round(1)
    return scores, np.arange(good + anomalous) >= good


@pytest.mark.long
def test_image_intervals_agree_with_a_bootstrap_that_really_draws_the_images():
    scores, labels = _scores(1)
    random = np.random.default_rng(2)
    good, bad = np.flatnonzero(~labels), np.flatnonzero(labels)
    drawn = []
    for _ in range(400):
        rows = np.concatenate((random.choice(good, good.size), random.choice(bad, bad.size)))
        drawn.append(
            (
                metrics.auroc(scores[rows], labels[rows]),
                metrics.average_precision(scores[rows], labels[rows]),
                metrics.f1_max(scores[rows], labels[rows]).value,
            )
        )
    expected = np.quantile(np.array(drawn), [0.025, 0.975], axis=0).T
    bounds = intervals.image_intervals(scores, labels, resamples=3000)
    for name, (low, high) in zip(("image_auroc", "image_ap", "image_f1_max"), expected, strict=True):
        # Two independent bootstraps of some thousand draws: their 2.5 % points differ by about 0.005 here.
        assert (bounds[name].low, bounds[name].high) == pytest.approx((low, high), abs=0.02), name


def test_intervals_repeat_with_the_seed_and_change_with_it():
    scores, labels = _scores(4)
    first, again, other = (intervals.image_intervals(scores, labels, resamples=300, seed=s) for s in (7, 7, 8))
    assert first == again
    assert first != other


def test_one_class_has_no_interval():
    assert intervals.image_intervals(np.arange(5.0), np.ones(5, np.bool_)) == {}


def _maps(seed, images=24, side=20):
    random = np.random.default_rng(seed)
    maps = random.normal(0, 1, (images, side, side)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    for index in range(images // 2):
        row, column = random.integers(0, side - 6, 2)
        masks[index, row : row + random.integers(2, 6), column : column + 5] = True
    maps[masks] += random.normal(1.5, 0.5)
    return maps, masks, np.ones(images, np.bool_)


def test_pixel_intervals_agree_with_a_bootstrap_that_really_draws_the_images():
    maps, masks, use = _maps(5)
    random = np.random.default_rng(6)
    half = len(maps) // 2
    drawn = []
    for _ in range(300):
        rows = np.concatenate((random.integers(0, half, half), random.integers(half, 2 * half, half)))
        ranking = metrics.rank_pixels(maps[rows], masks[rows])
        figures = (metrics.pixel_auroc, metrics.pixel_average_precision, metrics.aupro)
        strict = metrics.aupro(ranking, metrics.STRICT_PRO_LIMIT)
        drawn.append([*(figure(ranking) for figure in figures), strict])
    expected = np.quantile(np.array(drawn), [0.025, 0.975], axis=0).T
    bounds = intervals.pixel_intervals(maps, masks, use, metrics.rank_pixels(maps, masks), resamples=1000)
    for name, (low, high) in zip(("pixel_auroc", "pixel_ap", "aupro", "aupro_05"), expected, strict=True):
        width = high - low
        assert (bounds[name].low, bounds[name].high) == pytest.approx((low, high), abs=0.2 * width + 0.002), name


def test_pixel_intervals_hold_the_exact_figure_also_when_most_pixels_tie():
    maps, masks, use = _maps(9)
    coarse = np.round(maps)
    ranking = metrics.rank_pixels(coarse, masks)
    bounds = intervals.pixel_intervals(coarse, masks, use, ranking, resamples=200)
    assert bounds["aupro"].low < metrics.aupro(ranking) < bounds["aupro"].high
    assert bounds["pixel_ap"].low < metrics.pixel_average_precision(ranking) < bounds["pixel_ap"].high


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 450), st.integers(0, 5))
def test_of_each_stratum_as_many_images_are_drawn_as_there_are(kinds, resamples, seed):
    strata = [np.array(kinds) == kind for kind in range(3)]
    counts = np.concatenate(list(intervals.draw_counts(strata, resamples, seed)))
    assert counts.shape == (resamples, len(kinds))
    for rows in strata:
        assert (counts[:, rows].sum(axis=1) == rows.sum()).all()


def test_the_middle_of_the_resamples_is_the_interval_and_the_error_makes_it_wider():
    drawn = np.arange(101.0)
    assert intervals.percentile_interval(drawn, 0.5) == intervals.Interval(25.0, 75.0, 0.5)
    assert intervals.percentile_interval(drawn, 0.5, 2.0) == intervals.Interval(23.0, 77.0, 0.5)
