"""Lost texture: a smooth area is told from a defect with grain, and from real defects that are smooth themselves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.imaging.crops import Crop
from flawscope.runtime.synthesis import DrawOptions, SupportPatch, judge_image, precise_mask
from flawscope.runtime.synthesis.finishing import finish_drawing
from flawscope.runtime.synthesis.lost_texture import texture_left
from flawscope.runtime.synthesis.quality import QualityLimits

SIDE = 96


def grain(seed, level=130.0, depth=14.0):
    levels = np.random.default_rng(seed).normal(level, depth, (SIDE, SIDE, 1))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).repeat(3, axis=2)


def box_at(top, left, height, width):
    box = np.zeros((SIDE, SIDE), np.bool_)
    box[top : top + height, left : left + width] = True
    return box


def support(seed, *, smooth=False, depth=14.0):
    image, mask = grain(seed, depth=depth), box_at(30, 40, 20, 24)
    image[mask] = 60 if smooth else grain(seed + 1, 60.0)[mask]
    return SupportPatch("one", image, mask)


def left_in(drawn, good, region, supports):
    return texture_left(drawn, good, region, [share for one in supports for share in one.texture_shares])


boxes = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(14, 36), st.integers(14, 36))


@given(box=boxes, seed=st.integers(0, 2**32 - 3), dark=st.integers(30, 200))
@settings(max_examples=12, deadline=None)
def test_a_smooth_area_is_rejected_and_one_with_grain_is_not(box, seed, dark):
    good, region = grain(seed), box_at(*box)
    smooth, grained = good.copy(), good.copy()
    smooth[region] = dark
    grained[region] = grain(seed + 1, float(dark))[region]
    for drawn, is_smooth in ((smooth, True), (grained, False)):
        verdict = judge_image(drawn, good, region, precise_mask(drawn, good, region), [support(seed)])
        assert ("smooth" in verdict.reasons) == is_smooth, verdict.sentence()


@given(box=boxes, seed=st.integers(0, 2**32 - 3))
@settings(max_examples=12, deadline=None)
def test_where_one_real_defect_of_the_type_is_smooth_a_drawn_one_may_be_so(box, seed):
    good, region = grain(seed), box_at(*box)
    drawn = good.copy()
    drawn[region] = 60
    assert left_in(drawn, good, region, [support(seed)]) < QualityLimits().smooth
    assert left_in(drawn, good, region, [support(seed), support(seed, smooth=True)]) == 1.0


@given(seed=st.integers(0, 2**32 - 3), sigmas=st.sets(st.sampled_from([0.4, 0.7, 1.1, 1.8, 2.8]), min_size=2))
@settings(max_examples=30, deadline=None)
def test_the_more_a_box_is_blurred_the_less_is_left(seed, sigmas):
    good, region = grain(seed), box_at(20, 20, 40, 40)
    left = []
    for sigma in sorted(sigmas):
        drawn = good.copy()
        drawn[region] = cv2.GaussianBlur(good, (0, 0), sigma)[region]
        left.append(left_in(drawn, good, region, [support(seed)]))
    assert left == sorted(left, reverse=True)
    assert 0 <= left[-1] <= left[0] <= 1


def test_nothing_is_measured_where_there_is_nothing_to_compare_with():
    good, region = grain(0), box_at(20, 20, 40, 40)
    drawn = good.copy()
    drawn[region] = 60
    plain = np.full_like(good, 130)
    assert left_in(drawn, good, region, []) is None
    assert left_in(drawn, plain, region, [support(0)]) is None, "a plain part has no texture to lose"
    assert left_in(drawn, good, box_at(20, 20, 7, 9), [support(0)]) is None, "63 pixels"
    assert left_in(drawn, good, region, [support(0, depth=0.0)]) is None, "plain surroundings"
    everywhere = SupportPatch("all", good, np.ones((SIDE, SIDE), np.bool_))
    assert left_in(drawn, good, region, [everywhere]) is None, "no surroundings"


@pytest.mark.parametrize("paste", ["drawn", "change"])
def test_what_a_small_network_loses_is_kept_where_its_change_alone_is_pasted(paste):
    good, region = grain(0), box_at(30, 30, 40, 40)
    known = np.full((32, 32, 3), 130, np.uint8)  # the autoencoder has lost the grain
    drawn = known.copy()
    drawn[10:22, 10:22] = 40
    drawn = cv2.GaussianBlur(drawn, (0, 0), 3)
    crop = Crop(10, 10, 80, 80, (32, 32))
    finished = finish_drawing(good, region, crop, drawn, known, DrawOptions(paste=paste), [support(0)])
    assert ("smooth" in finished.verdict.reasons) == (paste == "drawn")
