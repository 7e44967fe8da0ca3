"""Precise masks: what was recoloured is found, noise and light are not, and nothing is marked outside the box."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flawscope.errors import ArgumentError
from flawscope.runtime.synthesis.precise_masks import MaskOptions, drop_small_parts, otsu_threshold, precise_mask

SIDE = 96
ROBUST = MaskOptions()
COSINE = MaskOptions(method="cosine")


def normal_image(seed: int = 0, texture: float = 12.0) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 3)
    ramp = np.linspace(70, 170, SIDE)[None, :, None]
    return np.clip(ramp + noise / noise.std() * texture, 0, 255).astype(np.uint8)


def region() -> npt.NDArray[np.bool_]:
    box = np.zeros((SIDE, SIDE), bool)
    box[20:75, 15:80] = True
    return box


def ellipse() -> npt.NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray(((rows - 47) / 17) ** 2 + ((columns - 46) / 22) ** 2 < 1)


def recoloured(good: npt.NDArray[np.uint8], patch: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    drawn = good.copy()
    drawn[patch] = (200, 40, 40)
    return drawn


def jpeg(image: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def brighter(image: npt.NDArray[np.uint8], gain: float, offset: float) -> npt.NDArray[np.uint8]:
    return np.clip(image * gain + offset, 0, 255).astype(np.uint8)


def iou(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("options", [ROBUST, COSINE, MaskOptions(refine=True)], ids=["robust", "cosine", "refined"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_recoloured_patch_is_found(options: MaskOptions, seed: int) -> None:
    good = normal_image(seed)
    precise = precise_mask(recoloured(good, ellipse()), good, region(), options)
    assert iou(precise.mask, ellipse()) > 0.9
    assert (precise.quality, precise.components, precise.spill) == ("good", 1, 0.0)
    assert precise.share == pytest.approx(precise.mask.sum() / region().sum(), abs=1e-12)
    assert precise.contrast > 0.2
    assert precise.noise == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("options", [ROBUST, COSINE], ids=["robust", "cosine"])
@pytest.mark.parametrize("black", [False, True])
def test_identical_images_have_an_empty_mask(options: MaskOptions, black: bool) -> None:
    good = normal_image()
    if black:
        good[:50] = 0
    precise = precise_mask(good.copy(), good, region(), options)
    assert not precise.mask.any()
    assert (precise.quality, precise.share, precise.contrast, precise.components, precise.spill) == (
        "empty",
        0.0,
        0.0,
        0,
        0.0,
    )


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (1.06, 4.0), (0.94, -3.0)])
@pytest.mark.parametrize("quality", [100, 80, 50])
def test_the_robust_mask_stands_jpeg_and_a_change_of_light(quality: int, gain: float, offset: float) -> None:
    good = normal_image()
    drawn = jpeg(brighter(recoloured(good, ellipse()), gain, offset), quality)
    precise = precise_mask(drawn, good, region())
    assert iou(precise.mask, ellipse()) > 0.9
    assert precise.quality == "good"


def test_a_dark_spot_is_found_by_the_robust_method_and_not_by_colour_alone() -> None:
    good = np.repeat(normal_image()[..., :1], 3, axis=2)
    drawn = good.copy()
    drawn[ellipse()] //= 2
    assert iou(precise_mask(drawn, good, region()).mask, ellipse()) > 0.9
    assert not precise_mask(drawn, good, region(), COSINE).mask.any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("quality", [90, 50, 20])
def test_mere_noise_is_never_a_good_mask(seed: int, quality: int) -> None:
    good = normal_image(seed, texture=25.0)
    precise = precise_mask(jpeg(good, quality), good, region())
    assert precise.quality in ("empty", "faint")
    assert precise.share < 0.05


def test_a_small_change_of_light_alone_leaves_the_mask_empty() -> None:
    good = normal_image()
    assert precise_mask(brighter(good, 1.05, 5.0), good, region()).quality == "empty"


def test_clipping_keeps_a_strong_difference_where_wrapping_loses_it() -> None:
    good = np.full((SIDE, SIDE, 3), 120, np.uint8)
    drawn = good.copy()
    colours = {(255, 0, 0): 20, (220, 40, 30): 40, (200, 60, 60): 60}  # 1, 0.61 and 0.35 of the largest distance
    for colour, column in colours.items():
        drawn[30:50, column : column + 12] = colour
    expected = (drawn != good).any(axis=2)
    assert np.array_equal(precise_mask(drawn, good, region(), COSINE).mask, expected)
    # The reference: distances stretched to 0 to 510 and cast to 8 bit, then Otsu.
    changed, normal = drawn.astype(np.float64), good.astype(np.float64)
    distance = 1 - (changed * normal).sum(axis=2) / np.linalg.norm(changed, axis=2) / np.linalg.norm(normal, axis=2)
    stretched = (distance - distance.min()) / (distance.max() - distance.min()) * 510 * region()
    wrapped = (stretched.astype(np.int64) % 256).astype(np.uint8)
    lost = cv2.threshold(wrapped, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1] == 0
    assert lost[30:50, 40:52].all()
    assert not lost[30:50, 60:72].any()


def test_a_patch_that_fills_the_box_is_flagged() -> None:
    good = normal_image()
    precise = precise_mask(recoloured(good, region()), good, region())
    assert precise.quality == "full"
    assert precise.share > 0.99
    assert precise.contrast > 0.2  # held against the outside


def test_a_defect_with_strong_and_weak_parts_stays_whole() -> None:
    good = normal_image()
    strength = cv2.GaussianBlur(np.random.default_rng(5).normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 2)
    strength = np.clip(70 + 30 * strength / strength.std(), 20, 150)[..., None]
    drawn = np.where(ellipse()[..., None], np.clip(good - strength, 0, 255), good).astype(np.uint8)
    assert iou(precise_mask(drawn, good, region()).mask, ellipse()) > 0.9


def test_a_few_glaring_pixels_do_not_outshine_the_defect_around_them() -> None:
    good = normal_image()
    drawn = np.where(ellipse()[..., None], good - np.uint8(25), good)
    drawn[40:43, 40:43] = 255
    assert iou(precise_mask(drawn, good, region()).mask, ellipse()) > 0.9


def test_a_defect_outside_the_box_is_not_marked_but_told() -> None:
    good = normal_image()
    other = np.zeros((SIDE, SIDE), bool)
    other[88:94, 30:40] = True
    inside = np.zeros((SIDE, SIDE), bool)
    inside[40:46, 30:40] = True
    precise = precise_mask(recoloured(good, other | inside), good, region())
    assert not precise.mask[~region()].any()
    assert 0.3 < precise.spill < 0.7  # as many pixels out as in


def test_small_parts_are_dropped_and_holes_are_filled() -> None:
    good = normal_image()
    ring = ellipse()
    ring[44:50, 40:50] = False
    speck = np.zeros_like(ring)
    speck[24:27, 20:23] = True
    drawn = recoloured(good, ring | speck)
    precise = precise_mask(drawn, good, region())
    assert precise.components == 1
    assert precise.mask[44:50, 40:50].all()
    open_ring = precise_mask(drawn, good, region(), MaskOptions(fill_holes=False, least_part=1e-6))
    assert open_ring.components == 2
    assert not open_ring.mask[46:48, 43:47].any()


def test_a_feature_finds_what_colours_do_not_show() -> None:
    good = normal_image()
    feature = np.where(ellipse(), np.float32(0.5), np.float32(0.0)).astype(np.float32)
    assert iou(precise_mask(good.copy(), good, region(), feature=feature).mask, ellipse()) > 0.9


def test_a_box_over_the_whole_image_has_no_noise_to_learn_from() -> None:
    good = normal_image()
    everywhere = np.ones((SIDE, SIDE), bool)
    precise = precise_mask(recoloured(good, ellipse()), good, everywhere)
    assert precise.noise is None
    assert iou(precise.mask, ellipse()) > 0.9


@settings(max_examples=40, deadline=None)
@given(
    images=hnp.arrays(np.uint8, (2, 16, 20, 3)),
    box=st.tuples(st.integers(0, 14), st.integers(0, 18), st.integers(1, 16), st.integers(1, 20)),
    method=st.sampled_from(["robust", "cosine"]),
    refine=st.booleans(),
)
def test_the_mask_never_leaves_the_box(images: Any, box: tuple[int, int, int, int], method: Any, refine: bool) -> None:
    inside = np.zeros((16, 20), bool)
    inside[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    precise = precise_mask(images[0], images[1], inside, MaskOptions(method=method, refine=refine))
    assert not precise.mask[~inside].any()
    assert precise.share == pytest.approx(precise.mask.sum() / inside.sum())
    assert (precise.quality == "empty") == (not precise.mask.any())
    assert 0.0 <= precise.spill <= 1.0
    again = precise_mask(images[0], images[1], inside, MaskOptions(method=method, refine=refine))
    assert np.array_equal(precise.mask, again.mask)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 50), min_size=2, max_size=30))
def test_the_threshold_is_the_best_of_all_splits(values: list[int]) -> None:
    array = np.array(values, np.float64)
    distinct = np.unique(array)
    threshold = otsu_threshold(array)
    if len(distinct) == 1:
        assert threshold == -np.inf
        return

    def between(split: float) -> float:
        low, high = array[array <= split], array[array > split]
        return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2)

    middles = (distinct[1:] + distinct[:-1]) / 2
    assert threshold in middles
    assert between(threshold) == pytest.approx(max(between(middle) for middle in middles), rel=1e-9)


def test_parts_are_kept_from_a_share_of_the_largest_on() -> None:
    mask = np.zeros((10, 40), bool)
    mask[0:10, 0:10] = mask[0:1, 20:30] = mask[5, 20:29] = True  # 100, 10 and 9 pixels
    large = drop_small_parts(mask, 0.1)
    assert large.sum() == 110
    assert not large[5, 20:29].any()
    assert not drop_small_parts(np.zeros((4, 4), bool), 0.1).any()


def test_wrong_arguments_are_one_sentence() -> None:
    good = normal_image()
    with pytest.raises(ArgumentError, match=r"^mask: expected at least one white pixel, got an all-black mask\."):
        precise_mask(good, good, np.zeros((SIDE, SIDE), bool))
    with pytest.raises(ArgumentError, match=r"^mask: expected bool \[96, 96\]"):
        precise_mask(good, good, np.ones((SIDE, SIDE - 1), bool))
    with pytest.raises(ArgumentError, match=r"^good: expected uint8 \[96, 96, 3\]"):
        precise_mask(good, good[:-1], region())
    with pytest.raises(ArgumentError, match=r'^feature: expected none with the method "cosine"'):
        precise_mask(good, good, region(), COSINE, feature=np.zeros((SIDE, SIDE), np.float32))
    with pytest.raises(ArgumentError, match=r"^least_part: expected a number above 0 up to 1, got 0\.0"):
        MaskOptions(least_part=0.0)
    with pytest.raises(ArgumentError, match=r"^colour: expected a weight of at least 0, got nan"):
        MaskOptions(colour=float("nan"))
