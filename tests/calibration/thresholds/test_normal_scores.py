"""The scores of the normal images that thresholds were set on, as a bundle keeps them for the line."""

from __future__ import annotations

import numpy as np

from flawscope.bundle import open_bundle
from flawscope.calibration import calibrate_bundle, set_thresholds
from flawscope.calibration.thresholds.product_thresholds import with_products
from flawscope.calibration.thresholds.thresholds_from_scores import MOST_NORMAL, thresholds_from_scores, with_normal


def test_calibrate_keeps_them_and_a_threshold_by_hand_does_not_change_them(make_bundle, dataset):
    path = make_bundle()
    calibrate_bundle(path, dataset, false_reject_rate=0.2, command="c")
    set_thresholds(path, 66.0, None, None, command="c")
    with open_bundle(path) as bundle:
        thresholds = bundle.manifest.thresholds
    assert thresholds.image.value == 66.0
    assert thresholds.normal_scores == tuple(float(score) for score in range(50, 70))


def test_of_many_so_many_are_kept_at_equal_steps():
    scores = np.random.default_rng(0).permutation(np.arange(4996.0))
    new, _ = thresholds_from_scores(scores, scores, 0.01, 0.95, "cpu")
    assert new.normal_scores == ()
    kept = with_normal(new, scores).normal_scores
    assert (len(kept), kept[0], kept[-1]) == (MOST_NORMAL, 0.0, 4995.0)
    assert set(np.diff(kept)) == {5.0}


def test_by_product_there_are_none():
    scores = np.arange(40.0)
    new, _ = thresholds_from_scores(scores, scores, 0.2, 0.95, "cpu")
    by_product = with_products(with_normal(new, scores), ["a", "b"] * 20, scores, scores, 0.2, 0.95, "cpu")
    # Which product a score is of is not kept, and a line has one.
    assert by_product.by_product
    assert by_product.normal_scores == ()
