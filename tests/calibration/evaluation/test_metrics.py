"""Figures against slow oracles, tiny exact cases and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_oracles import naive_aupro, naive_average_precision, pair_auroc

from flawscope.calibration.evaluation import metrics
from flawscope.calibration.evaluation.intervals import pixel_intervals
from flawscope.errors import ArgumentError

LABELLED = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def _arrays(rows):
    scores, labels = zip(*rows, strict=True)
    return np.array(scores, np.float64), np.array(labels, np.bool_)


@given(LABELLED)
def test_auroc_and_ap_equal_the_counts_of_pairs_and_thresholds(rows):
    scores, labels = _arrays(rows)
    assert metrics.auroc(scores, labels) == pytest.approx(pair_auroc(scores.tolist(), labels.tolist()), abs=1e-12)
    expected = naive_average_precision(scores.tolist(), labels.tolist())
    assert metrics.average_precision(scores, labels) == pytest.approx(expected, abs=1e-12)


@given(LABELLED)
def test_f1_threshold_reaches_the_largest_f1_of_any_strict_threshold(rows):
    scores, labels = _arrays(rows)

    def f1(threshold):
        called = scores > threshold
        return 2 * (called & labels).sum() / (called.sum() + labels.sum())

    best = metrics.f1_max(scores, labels)
    assert f1(best.threshold) == pytest.approx(best.value)
    assert best.value == pytest.approx(max(f1(t) for t in [*scores, scores.min() - 1]))


def test_f1_takes_the_lowest_of_equally_good_thresholds_and_the_middle_of_its_gap():
    # Calling {5} gives 2·1/(1+2), calling {5, 4, 3} gives 2·2/(3+2), calling all gives 2·2/(4+2).
    best = metrics.f1_max(np.array([1.0, 3.0, 4.0, 5.0]), np.array([False, True, False, True]))
    assert (best.value, best.threshold) == (0.8, 2.0)


def test_f1_threshold_stays_below_a_score_whose_neighbour_is_the_next_float():
    low = 1.0
    high = float(np.nextafter(low, 2))
    best = metrics.f1_max(np.array([low, high]), np.array([False, True]))
    assert low <= best.threshold < high


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_figures_of_one_class_are_undefined(labels):
    scores, labels = np.array([1.0, 2.0]), np.array(labels)
    assert metrics.auroc(scores, labels) is None
    assert metrics.average_precision(scores, labels) is None
    assert metrics.f1_max(scores, labels) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ArgumentError, match="scores: expected finite numbers, got 1 NaN or infinite"):
        metrics.auroc(np.array([0.0, bad]), np.array([True, False]))


def test_maps_that_are_not_finite_are_refused():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[1, 2, 2] = np.nan
    with pytest.raises(ArgumentError, match="NaN or infinity in map 1"):
        metrics.rank_pixels(maps, np.zeros(maps.shape, np.bool_))


def test_scores_and_labels_of_different_length_are_refused():
    with pytest.raises(ArgumentError, match="scores: expected float64"):
        metrics.auroc(np.array([0.0, 1.0, 2.0]), np.array([True, False]))


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([2, 5, 1000]), st.sampled_from([0.1, 0.4]))
def test_pixel_figures_equal_the_oracles_with_and_without_ties(seed, images, levels, share):
    random = np.random.default_rng(seed)
    maps = random.integers(0, levels, (images, 5, 6)).astype(np.float32)
    masks = random.random(maps.shape) < share
    masks[0, 0, :2] = [True, False]
    ranking = metrics.rank_pixels(maps, masks)
    scores, labels = maps.ravel().tolist(), masks.ravel().tolist()
    assert metrics.aupro(ranking) == pytest.approx(naive_aupro(maps, masks), abs=1e-12)
    assert metrics.pixel_auroc(ranking) == pytest.approx(pair_auroc(scores, labels), abs=1e-12)
    expected = naive_average_precision(scores, labels)
    assert metrics.pixel_average_precision(ranking) == pytest.approx(expected, abs=1e-12)


def test_aupro_weighs_regions_alike_whatever_their_size():
    maps = np.zeros((1, 10, 10), np.float32)
    masks = np.zeros((1, 10, 10), np.bool_)
    masks[0, :4, :4] = True  # 16 pixels, found
    masks[0, 9, 9] = True  # 1 pixel, scored as low as the background
    maps[masks] = 1.0
    maps[0, 9, 9] = 0.0
    # PRO is 1/2 from FPR 0 to the last threshold, where all pixels tie and it rises linearly to 1 at FPR 1.
    assert metrics.aupro(metrics.rank_pixels(maps, masks), 1.0) == pytest.approx(0.75)
    assert metrics.aupro(metrics.rank_pixels(maps, masks)) == pytest.approx(0.5 + 0.3 / 4)


def test_pixels_that_touch_at_a_corner_are_one_region():
    mask = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 0]]], np.bool_)
    assert metrics.rank_pixels(np.zeros((1, 3, 3), np.float32), mask).regions == 1


def test_a_perfect_map_has_perfect_figures_and_a_reversed_one_none():
    mask = np.zeros((2, 6, 6), np.bool_)
    mask[0, 2:4, 2:4] = True
    perfect, reversed_ = (metrics.rank_pixels(m.astype(np.float32), mask) for m in (mask, ~mask))
    assert metrics.pixel_auroc(perfect) == metrics.pixel_average_precision(perfect) == 1.0
    assert metrics.aupro(perfect) == pytest.approx(1.0)
    assert metrics.pixel_auroc(reversed_) == metrics.aupro(reversed_) == 0.0


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 50), st.floats(-20, 20))
def test_a_monotone_change_of_the_scores_changes_no_figure(seed, scale, shift):
    random = np.random.default_rng(seed)
    maps = random.integers(0, 50, (2, 6, 6)).astype(np.float32)
    masks = random.random(maps.shape) < 0.3
    masks[0, 0, :2] = [True, False]
    changed = np.sqrt(maps.astype(np.float64)) * scale + shift
    first, second = (metrics.rank_pixels(m.astype(np.float32), masks) for m in (maps, changed))
    for figure in (metrics.pixel_auroc, metrics.pixel_average_precision, metrics.aupro):
        assert figure(first) == figure(second)


def test_images_without_pixel_truth_can_be_left_out():
    random = np.random.default_rng(3)
    maps = random.random((3, 8, 8), np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[0, 2:5, 2:5] = True
    use = np.array([True, False, True])
    ranking = metrics.rank_pixels(maps, masks, use)
    assert ranking.negatives == 2 * 64 - 9
    assert metrics.aupro(ranking) == metrics.aupro(metrics.rank_pixels(maps[use], masks[use]))


@given(seed=st.integers(0, 10_000), is_one=st.booleans())
def test_only_the_pixels_inside_count_of_one_region_or_of_one_for_each_image(seed, is_one):
    random = np.random.default_rng(seed)
    maps, masks = random.random((4, 8, 8), np.float32), random.random((4, 8, 8)) < 0.2
    inside = random.random((8, 8) if is_one else (4, 8, 8)) < 0.6
    masks &= inside
    everywhere = np.broadcast_to(inside, maps.shape)
    if not masks.any():
        return
    ranking = metrics.rank_pixels(maps, masks, None, inside)
    assert ranking.negatives == (everywhere & ~masks).sum()
    assert metrics.pixel_auroc(ranking) == pytest.approx(
        metrics.auroc(maps[everywhere].astype(np.float64), masks[everywhere])
    )
    bounds = pixel_intervals(maps, masks, np.ones(4, np.bool_), ranking, inside=inside, resamples=50)
    again = pixel_intervals(maps, masks, np.ones(4, np.bool_), ranking, inside=everywhere, resamples=50)
    assert bounds == again


@pytest.mark.parametrize("fill", [False, True])
def test_pixels_of_one_class_have_no_ranking(fill):
    assert metrics.rank_pixels(np.zeros((1, 4, 4), np.float32), np.full((1, 4, 4), fill)) is None


@pytest.mark.parametrize("limit", [0.0, 1.1])
def test_a_limit_outside_the_unit_interval_is_refused(limit):
    mask = np.eye(4, dtype=np.bool_)[None]
    with pytest.raises(ArgumentError, match="limit: expected a false-positive rate"):
        metrics.aupro(metrics.rank_pixels(np.zeros((1, 4, 4), np.float32), mask), limit)


def test_masks_are_stacked_with_empty_ones_where_none_is_known():
    stacked = metrics.stack_masks([None, np.ones((2, 3), np.bool_)], (2, 3))
    assert stacked.sum(axis=(1, 2)).tolist() == [0, 6]
    with pytest.raises(ArgumentError, match=r"mask 0: expected bool \[2, 3\]"):
        metrics.stack_masks([np.ones((3, 3), np.bool_)], (2, 3))
