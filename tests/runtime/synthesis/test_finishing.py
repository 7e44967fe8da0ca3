"""Finishing in the window: the same bits as on the whole image, and no work that grows with the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flawscope.imaging.crops import Crop, crop_around, cut_mask
from flawscope.imaging.images import MIN_SIDE_PX
from flawscope.runtime.synthesis import (
    DrawOptions,
    MaskOptions,
    SupportPatch,
    feather_mask,
    finishing,
    judge_image,
    paste_drawn,
    quality,
)
from flawscope.runtime.synthesis.finishing import finish_drawing, mask_in_window
from flawscope.runtime.synthesis.quality import seam_step

SIZE = (24, 32)  # of the model's input


def finish_whole(good, region, crop, drawn, known, options, supports, numbers):
    """Return image, mask and verdict with every step on the whole image."""
    everywhere = np.zeros(region.shape, np.float32)
    everywhere[crop.window] = 1.0
    whole = paste_drawn(good, drawn, crop, everywhere)
    before = good if options.mask.method == "cosine" else paste_drawn(good, known, crop, everywhere)
    precise, texture = mask_in_window(whole, before, region, crop, options)
    weight = everywhere if options.is_parity else feather_mask(region, options.feather_px) * everywhere
    image = paste_drawn(good, drawn, crop, weight, known if options.paste == "change" else None)
    verdict = judge_image(
        image, good, region, precise, supports, options.limits, pasted=weight > 0, decoded=numbers, texture=texture
    )
    return image, precise.mask, verdict


@st.composite
def places(draw: st.DrawFn):
    """A size and a region in it, often at a border: a box, or one of its parts at random."""
    size = draw(st.integers(MIN_SIDE_PX, 150)), draw(st.integers(MIN_SIDE_PX, 150))
    spans = []
    for side in size:
        length = draw(st.integers(1, min(side, 60)))
        spans.append((draw(st.sampled_from([0, side - length]) | st.integers(0, side - length)), length))
    (top, height), (left, width) = spans
    region = np.zeros(size, np.bool_)
    region[top : top + height, left : left + width] = True
    if draw(st.booleans()):
        region &= np.random.default_rng(draw(st.integers(0, 99))).random(size) < 0.5
        region[top, left] = True
    return region


@settings(max_examples=80)
@given(
    region=places(),
    seed=st.integers(0, 2**32 - 1),
    feather=st.integers(0, 12),
    fill=st.sampled_from([0.3, 0.5, 1.0]),
    crop=st.booleans(),
    paste=st.sampled_from(["drawn", "change", "parity"]),
    method=st.sampled_from(["robust", "cosine"]),
    contrast=st.sampled_from([0.0, 10.0, 90.0]),
)
@example(np.eye(16, 40, dtype=np.bool_), 0, 0, 1.0, True, "drawn", "robust", 90.0)
def test_it_is_the_whole_images_result_bit_for_bit(region, seed, feather, fill, crop, paste, method, contrast):
    rng = np.random.default_rng(seed)
    good = np.clip(rng.normal(128, 20, (*region.shape, 3)), 0, 255).astype(np.uint8)
    window = Crop(0, 0, *region.shape, SIZE)
    if crop and paste != "parity":
        window = crop_around(region, SIZE, fill=fill, feather_px=feather)
    known = rng.normal(128, 15, (*SIZE, 3))
    drawn = known + rng.normal(0, 3, known.shape) + contrast * (rng.random((*SIZE, 1)) < 0.3)
    known, drawn = (np.clip(image, 0, 255).astype(np.uint8) for image in (known, drawn))
    support = np.zeros((40, 40), np.bool_)
    support[10:25, 12:30] = True
    supports = [SupportPatch("one", rng.integers(0, 256, (40, 40, 3), np.uint8), support)]
    options = DrawOptions(
        feather_px=feather,
        mask=MaskOptions(method=method),
        is_parity=paste == "parity",
        paste="change" if paste == "change" else "drawn",
    )
    numbers = rng.normal(size=50).astype(np.float32)
    expected = finish_whole(good, region, window, drawn, known, options, supports, numbers)
    kept = good.copy()
    finished = finish_drawing(good, region, window, drawn, known, options, supports, numbers)
    assert np.array_equal(finished.image, expected[0])
    assert np.array_equal(finished.mask, expected[1])
    assert finished.verdict == expected[2]
    assert np.array_equal(good, kept)


def test_no_step_is_run_on_more_than_the_window_and_its_margin(monkeypatch):
    region = np.zeros((900, 1100), np.bool_)
    region[500:512, 700:712] = True
    good = np.full((900, 1100, 3), 128, np.uint8)
    crop = crop_around(region, SIZE)
    seen = []

    def record(module, name):
        function = getattr(module, name)

        def recorded(*arguments, **named):
            arrays = [value for value in (*arguments, *named.values()) if isinstance(value, np.ndarray)]
            seen.extend((name, array.size) for array in arrays if array.dtype != np.float32 or array.ndim == 2)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, recorded)

    for name in ("paste_drawn", "feather_mask", "mask_in_window", "judge_image"):
        record(finishing, name)
    for name in ("seam_step", "find_likeness"):
        record(quality, name)
    drawn = np.full((*SIZE, 3), 90, np.uint8)
    finish_drawing(good, region, crop, drawn, np.full_like(drawn, 128), DrawOptions())
    assert {name for name, _ in seen} >= {"paste_drawn", "feather_mask", "mask_in_window", "judge_image", "seam_step"}
    assert max(size for _, size in seen) <= 3 * (crop.height + 4) * (crop.width + 4)


@pytest.mark.parametrize("tone", ["restore", "match", "none"])
def test_a_hard_edge_is_a_seam_whatever_holds_the_tone_and_a_tone_that_was_matched_is_none(tone):
    region = np.zeros((300, 400), np.bool_)
    region[100:130, 200:240] = True
    rng = np.random.default_rng(3)
    good = np.clip(rng.normal(128, 3, (300, 400, 3)), 0, 255).astype(np.uint8)
    crop = crop_around(region, SIZE, feather_px=0)
    known = np.full((*SIZE, 3), 128, np.uint8)
    options = DrawOptions(feather_px=0, tone=tone)
    box = known + np.uint8(50) * cut_mask(region, crop)[..., None]
    for drawn, is_seam in ((box, True), (known + np.uint8(50), tone != "match")):
        finished = finish_drawing(good, region, crop, drawn, known, options)
        assert ("seam" in finished.verdict.reasons) == is_seam
        (seam,) = (measure for measure in finished.verdict.measures if measure.reason == "seam")
        assert seam.value == seam_step(finished.image, good, region, finished.mask)
