"""Good material that was drawn anew is no defect: what a box turned about shows."""

from __future__ import annotations

import numpy as np
import pytest

from flawscope.errors import ArgumentError
from flawscope.runtime.synthesis import judge_image, precise_mask, texture_contrast

SIDE = 64


def region() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[16:48, 20:44] = True
    return mask


def grooved(seed: int = 0, depth: float = 25.0) -> np.ndarray:
    grooves = np.random.default_rng(seed).normal(120, depth, (1, SIDE, 1))
    return np.broadcast_to(np.clip(np.rint(grooves), 0, 255), (SIDE, SIDE, 3)).astype(np.uint8)


def test_a_plain_box_has_no_texture_and_a_symmetric_one_none_but_grain():
    assert texture_contrast(np.full((SIDE, SIDE, 3), 90, np.uint8), region()) == 0.0
    assert texture_contrast(grooved(), region()) > 0.03
    assert texture_contrast(grooved(depth=2.0), region()) == 0.0, "below the least difference"


def test_a_shade_from_dark_to_light_is_turned_in_two_of_three_ways():
    shaded = np.broadcast_to(np.linspace(40, 200, SIDE)[None, :, None], (SIDE, SIDE, 3)).astype(np.uint8)
    assert texture_contrast(shaded, region()) > 0.05
    assert texture_contrast(np.where(region()[..., None], np.uint8(90), shaded), region()) == 0.0


def grain(seed: int) -> np.ndarray:
    levels = np.random.default_rng(seed).normal(120, 20, (SIDE, SIDE, 1))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).repeat(3, axis=2)


@pytest.mark.parametrize("seed", range(8))
def test_grain_drawn_anew_is_faint_and_a_hole_in_it_is_not(seed):
    good, mask = grain(seed), region()
    texture = texture_contrast(good, mask)
    anew, hole = good.copy(), good.copy()
    anew[mask] = grain(seed + 50)[mask]
    hole[26:38, 26:38] = 5
    for drawn, is_faint in ((anew, True), (hole, False)):
        precise = precise_mask(drawn, good, mask)
        assert precise.quality == "good", "nothing else tells them apart"
        verdict = judge_image(drawn, good, mask, precise, texture=texture)
        assert ("faint" in verdict.reasons) == is_faint


def test_the_image_is_not_changed_and_an_empty_region_is_refused():
    good = grooved()
    before = good.copy()
    texture_contrast(good, region())
    np.testing.assert_array_equal(good, before)
    with pytest.raises(ArgumentError, match="all-black mask"):
        texture_contrast(good, np.zeros((SIDE, SIDE), np.bool_))
