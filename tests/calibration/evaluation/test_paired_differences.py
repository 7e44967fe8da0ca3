"""Intervals of paired differences: exact cases, a bootstrap that really draws images, and what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.calibration.evaluation import metrics
from flawscope.calibration.evaluation.paired_differences import Truth, compare_tallies, student_interval, tally
from flawscope.errors import ArgumentError

SIDE = 12
THRESHOLDS = {"iou": 0.0}


def part_images(seed, strength, images=24):
    """Maps of a detector that raises defects by `strength`, scores, and what the images show."""
    chance = np.random.default_rng(seed)
    maps = chance.normal(-1, 1, (images, SIDE, SIDE)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    for index in range(images // 2):
        row, column = np.random.default_rng((7, index)).integers(0, SIDE - 4, 2)  # the same for all detectors
        masks[index, row : row + 3, column : column + 4] = True
    maps[masks] += strength * (1 + np.random.default_rng(8).random(int(masks.sum())).astype(np.float32))
    return maps, maps.max(axis=(1, 2)).astype(np.float64), Truth(masks.any(axis=(1, 2)), masks)


def tallies(strength, seeds):
    parts = [part_images(seed, strength) for seed in seeds]
    return [tally(*images, THRESHOLDS) for images in parts], parts[0][2]


def test_students_interval_of_1_2_3_is_2_plus_and_minus_4_3027_over_root_3():
    interval = student_interval([1.0, 2.0, 3.0])
    reach = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2) of the printed tables, 4.303
    assert (interval.low, interval.high, interval.confidence) == pytest.approx((2 - reach, 2 + reach, 0.95), rel=1e-9)


def test_one_seed_has_no_interval_over_seeds_and_equal_ones_have_one_without_width():
    assert student_interval([0.3]) is None
    interval = student_interval([0.25, 0.25, 0.25])
    assert (interval.low, interval.high) == (0.25, 0.25)


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=8), shift=st.floats(-1, 1), low=st.floats(0.5, 0.9)
)
def test_students_interval_holds_the_mean_moves_with_it_and_grows_with_the_confidence(values, shift, low):
    narrow, wider = student_interval(values, low), student_interval(values, 0.99)
    moved = student_interval([value + shift for value in values], low)
    assert narrow.low - 1e-12 <= np.mean(values) <= narrow.high + 1e-12
    assert wider.low - 1e-12 <= narrow.low <= narrow.high <= wider.high + 1e-12
    assert (moved.low - shift, moved.high - shift) == pytest.approx((narrow.low, narrow.high), abs=1e-9)


def test_figures_are_those_of_the_exact_metrics():
    maps, scores, truth = part_images(1, 1.5)
    figures = tally(maps, scores, truth, THRESHOLDS).figures
    ranking = metrics.rank_pixels(maps, truth.masks)
    assert figures["pixel_ap"] == metrics.pixel_average_precision(ranking)
    assert figures["pixel_auroc"] == metrics.pixel_auroc(ranking)
    assert figures["image_auroc"] == metrics.auroc(scores, truth.labels)


def test_the_overlap_counts_the_pixels_of_all_images_together_and_marks_strictly_above_the_threshold():
    maps = np.full((3, 8, 8), -1.0, np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[0, 0, :4] = True
    maps[0, 0, 2:6] = 1.0  # 2 of 4 found, 2 beside
    masks[1, 0, :2] = True  # nothing found
    maps[2, 0, 0] = 0.5  # a false alarm on a normal image
    maps[2, 0, 1] = 0.0  # at the threshold
    truth = Truth(np.array([True, True, False]), masks)
    results = tally(maps, np.array([1.0, 0.0, 0.5]), truth, THRESHOLDS)
    assert results.figures["iou"] == 2 / (6 + 2 + 1)


def test_an_anomalous_image_without_pixel_truth_counts_for_the_image_figure_alone():
    maps, scores, truth = part_images(3, 1.5)
    masks = truth.masks.copy()
    masks[0] = False
    part = Truth(truth.labels, masks)
    without = tally(maps[1:], scores[1:], truth.select(np.arange(24) > 0), THRESHOLDS)
    results = tally(maps, scores, part, THRESHOLDS)
    assert {k: v for k, v in results.figures.items() if k != "image_auroc"} == {
        k: v for k, v in without.figures.items() if k != "image_auroc"
    }
    assert results.figures["image_auroc"] == metrics.auroc(scores, truth.labels)
    assert set(compare_tallies([results], [results], part, resamples=50)) == set(results.figures)


def test_the_interval_agrees_with_a_bootstrap_that_really_draws_the_images_of_both_detectors_together():
    sides = [part_images(1, 1.0), part_images(3, 1.3)]
    truth = sides[0][2]
    chance = np.random.default_rng(5)
    drawn = {"pixel_ap": [], "pixel_auroc": [], "image_auroc": [], "iou": []}
    for _ in range(120):
        rows = np.concatenate((chance.integers(0, 12, 12), chance.integers(12, 24, 12)))
        figures = []
        for maps, scores, _ in sides:
            ranking = metrics.rank_pixels(maps[rows], truth.masks[rows])
            marked, masks = maps[rows] > 0, truth.masks[rows]
            iou = (marked & masks).sum() / (marked | masks).sum()
            pixel = [figure(ranking) for figure in (metrics.pixel_average_precision, metrics.pixel_auroc)]
            figures.append([*pixel, metrics.auroc(scores[rows], truth.labels[rows]), iou])
        for values, before, after in zip(drawn.values(), *figures, strict=True):
            values.append(after - before)
    first, second = ([tally(*side, THRESHOLDS)] for side in sides)
    intervals = {name: difference.by_pictures for name, difference in compare_tallies(first, second, truth).items()}
    for name, values in drawn.items():
        low, high = np.quantile(values, [0.025, 0.975])
        # Two independent bootstraps of some hundred draws: their ends differ by some hundredths of the width.
        near = pytest.approx((low, high), abs=0.25 * (high - low))
        assert (intervals[name].low, intervals[name].high) == near, name


def test_differences_are_second_minus_first_seed_by_seed():
    (first, truth), (second, _) = tallies(1.0, (1, 2, 3)), tallies(2.0, (4, 5, 6))
    difference = compare_tallies(first, second, truth, resamples=50)["pixel_ap"]
    assert difference.first == tuple(result.figures["pixel_ap"] for result in first)
    assert difference.second == tuple(result.figures["pixel_ap"] for result in second)
    assert difference.differences == tuple(b - a for a, b in zip(difference.first, difference.second, strict=True))
    assert difference.mean == pytest.approx(sum(difference.differences) / 3)
    assert difference.by_seeds == student_interval(difference.differences)


def test_the_wider_of_the_two_intervals_counts():
    (first, truth), (second, _) = tallies(1.0, (1, 2, 3)), tallies(2.0, (4, 5, 6))
    differences = compare_tallies(first, second, truth, resamples=200)
    for difference in differences.values():
        widths = {
            "seeds": difference.by_seeds.high - difference.by_seeds.low,
            "pictures": difference.by_pictures.high - difference.by_pictures.low,
        }
        assert difference.wider == max(widths, key=widths.get)
        assert difference.interval == (difference.by_seeds if difference.wider == "seeds" else difference.by_pictures)


def test_a_clear_gain_is_one_and_its_reverse_is_none():
    (first, truth), (second, _) = tallies(0.3, (1,)), tallies(3.0, (1,))
    forward = compare_tallies(first, second, truth, resamples=200)["pixel_ap"]
    back = compare_tallies(second, first, truth, resamples=200)["pixel_ap"]
    assert forward.is_gain
    assert not back.is_gain
    assert (back.interval.low, back.interval.high) == pytest.approx((-forward.interval.high, -forward.interval.low))
    assert forward.by_seeds is None
    assert forward.wider == "pictures"


def test_a_detector_gains_nothing_over_itself():
    first, truth = tallies(1.0, (1, 2, 3))
    for difference in compare_tallies(first, first, truth, resamples=100).values():
        assert difference.differences == (0.0, 0.0, 0.0)
        assert difference.interval.low <= 0.0 <= difference.interval.high
        assert not difference.is_gain


def test_pairing_takes_away_what_both_detectors_share():
    first, truth = tallies(1.0, (1,))
    maps, scores, _ = part_images(1, 1.0)
    better = maps.copy()
    better[truth.masks] += 0.1
    second = [tally(better, better.max(axis=(1, 2)).astype(np.float64), truth, THRESHOLDS)]
    other = [tally(*part_images(2, 1.0), THRESHOLDS)]
    together, apart = (
        compare_tallies(first, candidate, truth, resamples=300)["pixel_ap"] for candidate in (second, other)
    )
    assert together.interval.high - together.interval.low < 0.5 * (apart.interval.high - apart.interval.low)
    assert together.is_gain
    assert scores.shape == (24,)


def test_intervals_repeat_with_the_seed_and_change_with_it():
    (first, truth), (second, _) = tallies(1.0, (1,)), tallies(1.2, (2,))
    first_time, again, other = (compare_tallies(first, second, truth, resamples=100, seed=s) for s in (3, 3, 4))
    assert first_time == again
    assert first_time != other


def test_without_a_normal_image_the_image_figure_is_not_there():
    maps, scores, truth = part_images(1, 1.0)
    part = truth.select(truth.labels)
    results = tally(maps[truth.labels], scores[truth.labels], part, THRESHOLDS)
    assert set(results.figures) == {"pixel_ap", "pixel_auroc", "iou"}
    assert set(compare_tallies([results], [results], part, resamples=20)) == {"pixel_ap", "pixel_auroc", "iou"}


def test_unequal_numbers_of_seeds_none_and_a_percentage_are_refused():
    first, truth = tallies(1.0, (1, 2))
    for before, after in ((first, first[:1]), ([], [])):
        with pytest.raises(ArgumentError, match="tallies: expected as many of both detectors, got"):
            compare_tallies(before, after, truth)
    with pytest.raises(ArgumentError, match="confidence: expected a fraction"):
        compare_tallies(first, first, truth, confidence=95)


def test_a_normal_image_with_a_defect_in_its_mask_is_refused():
    with pytest.raises(ArgumentError, match="masks: expected empty ones of normal images"):
        Truth(np.array([False]), np.ones((1, 4, 4), np.bool_))


def test_bins_cost_nothing_for_few_defect_pixels_and_little_for_many():
    first, _ = tallies(1.0, (1,))
    assert first[0].errors == pytest.approx({"pixel_ap": 0.0, "pixel_auroc": 0.0}, abs=1e-12)
    chance = np.random.default_rng(2)
    maps = chance.normal(0, 1, (6, 64, 64)).astype(np.float32)
    masks = np.zeros(maps.shape, np.bool_)
    masks[:3, :32] = True
    maps[masks] += 1
    many = tally(maps, np.arange(6.0), Truth(masks.any(axis=(1, 2)), masks), THRESHOLDS)
    assert 0 < max(many.errors.values()) < 1e-3
