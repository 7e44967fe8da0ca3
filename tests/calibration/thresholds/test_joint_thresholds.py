"""Thresholds of several zones: one zone is the plain case, and the common bound has the stated law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flawscope.calibration.evaluation.intervals import images_needed, upper_bound
from flawscope.calibration.thresholds.joint_thresholds import joint_thresholds
from flawscope.calibration.thresholds.normal_quantile import order_statistic_threshold
from flawscope.errors import ArgumentError

RATES = st.sampled_from([0.01, 0.05, 0.2, 0.5])


@given(seed=st.integers(0, 10_000), n=st.integers(1, 400), rate=RATES)
def test_one_zone_has_the_threshold_and_bound_of_an_image_without_zones(seed, n, rate):
    scores = np.random.default_rng(seed).integers(0, 50, n).astype(np.float64)
    joint, alone = joint_thresholds(scores[:, None], rate, 0.95), order_statistic_threshold(scores, rate, 0.95)
    assert joint.values.tolist() == [alone.value]
    assert joint.whole.upper_bound == pytest.approx(alone.upper_bound, rel=1e-12)
    assert (joint.whole.rank, joint.whole.images_needed) == (alone.rank, alone.images_needed)


@given(seed=st.integers(0, 10_000), zones=st.integers(1, 5), extra=st.integers(0, 400), rate=RATES)
def test_thresholds_are_scores_of_their_zones_and_reject_no_more_than_was_cut(seed, zones, extra, rate):
    scores = np.random.default_rng(seed).normal(size=(zones + extra, zones)) * np.arange(1, zones + 1)
    joint = joint_thresholds(scores, rate, 0.95)
    for zone, value in enumerate(joint.values):
        assert value in scores[:, zone]
    cuts = len(scores) - joint.whole.rank + 1
    rejected = int((scores > joint.values).any(axis=1).sum())
    # The images at the thresholds are accepted by their zones, so at least one of the images that were cut.
    assert rejected <= cuts - 1
    assert cuts >= zones
    assert joint.whole.upper_bound == pytest.approx(upper_bound(cuts - 1, len(scores), 0.95))
    # As many cuts as the rate allows: one more would break it.
    if joint.whole.holds and cuts < len(scores):
        assert upper_bound(cuts, len(scores), 0.95) > rate
    assert joint.whole.holds == (len(scores) >= joint.whole.images_needed)


@pytest.mark.parametrize("n", [30, 120, 130])
@pytest.mark.parametrize("kind", ["independent", "opposed", "equal"])
def test_the_rate_of_the_image_as_a_whole_has_the_law_of_beta(n, kind):
    """Of a further image whose probability is known exactly, whichever way the zones depend on each other."""
    generator, rates = np.random.default_rng(3), []
    cuts = 0
    for _ in range(500):
        first = generator.random(n)
        if kind == "independent":
            scores = np.stack([first, generator.random(n), generator.random(n)], axis=1)
        else:
            scores = np.stack([first, 1 - first if kind == "opposed" else first, first], axis=1)
        joint = joint_thresholds(scores, 0.05, 0.95)
        one, two, three = joint.values
        cuts = n - joint.whole.rank + 1
        rates.append(
            {
                "independent": 1 - one * two * three,
                "opposed": 1 - max(0.0, min(one, three) - (1 - two)),
                "equal": 1 - min(one, two, three),
            }[kind]
        )
    assert stats.kstest(rates, stats.beta(cuts, n - cuts + 1).cdf).pvalue > 1e-3
    bound = joint.whole.upper_bound
    # 500 draws of 5 %: 25 expected, 4.9 is one standard deviation.
    assert 8 < np.sum(np.array(rates) > bound) < 45


@pytest.mark.parametrize("levels", [2, 6, 40])
def test_tied_scores_keep_the_bound(levels):
    """Of zones with few levels, whose probabilities are known: rejects are strictly above, so ties make them fewer."""
    generator, above = np.random.default_rng(4), 0
    for _ in range(300):
        scores = generator.integers(0, levels, (130, 3)).astype(np.float64)
        joint = joint_thresholds(scores, 0.05, 0.95)
        above += 1 - np.prod((joint.values + 1) / levels) > joint.whole.upper_bound
    assert above <= 28  # of 300 draws at 5 %: 15 expected at most, 3.8 is one standard deviation


@pytest.mark.parametrize(("zones", "needed"), [(1, 299), (2, 473), (3, 628)])
def test_zones_need_more_images_and_fewer_than_a_union_bound(zones, needed):
    assert images_needed(0.01, 0.95, zones) == needed
    assert upper_bound(zones - 1, needed, 0.95) <= 0.01 < upper_bound(zones - 1, needed - 1, 0.95)
    if zones > 1:
        assert needed < images_needed(0.01 / zones, 1 - 0.05 / zones)


def test_fewer_images_than_zones_are_refused():
    with pytest.raises(ArgumentError, match="at least as many normal images as zones, 3, got 2"):
        joint_thresholds(np.zeros((2, 3)), 0.05, 0.95)
