"""The filter: a sound image passes, and every way to spoil one is told by its reason, value and limit."""

from __future__ import annotations

from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.imaging.crops import Crop
from flawscope.runtime.synthesis.memorization import SupportPatch, find_likeness
from flawscope.runtime.synthesis.paste import feather_mask, paste_drawn
from flawscope.runtime.synthesis.precise_masks import precise_mask
from flawscope.runtime.synthesis.quality import (
    REASONS,
    Measure,
    QualityLimits,
    Reason,
    Verdict,
    judge_image,
    seam_step,
    summarise,
)

SIDE = 96


def normal_image(seed: int = 0) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 3)
    return np.clip(120 + noise / noise.std() * 10, 0, 255).astype(np.uint8)


def region() -> npt.NDArray[np.bool_]:
    box = np.zeros((SIDE, SIDE), bool)
    box[20:75, 15:80] = True
    return box


def blotch(
    image: npt.NDArray[np.uint8], row: int, column: int, radius: float, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """A dark, mottled spot with an irregular outline."""
    texture = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 3)
    texture = texture / texture.std()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    spot = np.hypot(rows - row, columns - column) + 2 * texture < radius
    drawn = image.astype(np.float32)
    drawn[spot] += (-60 + 25 * texture)[spot][:, None] * np.array([1.0, 0.8, 0.7])
    return np.clip(drawn, 0, 255).astype(np.uint8), np.asarray(spot)


def judge(drawn: npt.NDArray[np.uint8], good: npt.NDArray[np.uint8], **more: Any) -> Verdict:
    return judge_image(drawn, good, region(), precise_mask(drawn, good, region()), **more)


def value_of(verdict: Verdict, reason: Reason) -> float | None:
    return next(measure.value for measure in verdict.measures if measure.reason == reason)


def support(seed: int, name: str = "007") -> SupportPatch:
    image, mask = blotch(normal_image(seed + 50), 40, 50, 14, seed)
    return SupportPatch(name, image, mask)


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_image_is_accepted(seed: int) -> None:
    good = normal_image(seed)
    drawn, _ = blotch(good, 47, 46, 14, seed + 20)
    supports = [support(seed), support(seed + 10, "011")]
    verdict = judge(drawn, good, supports=supports, decoded=drawn.astype(np.float32))
    assert verdict.is_accepted, verdict.sentence()
    assert verdict.sentence() == "accepted"
    assert tuple(measure.reason for measure in verdict.measures) == REASONS
    assert all(measure.value is not None for measure in verdict.measures)
    assert verdict.likeness is not None
    assert verdict.likeness.correlation < 0.9


def test_an_image_without_a_defect_has_an_empty_mask() -> None:
    good = normal_image()
    verdict = judge(good.copy(), good)
    assert verdict.reasons == ("empty-mask",)
    assert verdict.sentence() == "rejected: empty-mask 0 (expected at least 9)"
    assert value_of(verdict, "faint") is None


def test_a_box_that_is_filled_is_told() -> None:
    good = normal_image()
    drawn = good.copy()
    drawn[region()] = drawn[region()] // 2 + 10
    reasons = judge(drawn, good).reasons
    assert "full-mask" in reasons
    assert "seam" in reasons


def test_a_defect_below_the_noise_is_faint() -> None:
    good = normal_image()
    noisy = np.clip(good + np.random.default_rng(1).normal(0, 20, good.shape), 0, 255).astype(np.uint8)
    verdict = judge(noisy, good)
    assert "faint" in verdict.reasons
    assert "outside" in verdict.reasons


def test_a_defect_beside_its_box_is_outside() -> None:
    good = normal_image()
    drawn, _ = blotch(good, 47, 46, 8, 3)
    drawn[86:91, 30:36] = (10, 10, 10)
    verdict = judge(drawn, good)
    assert verdict.reasons == ("outside",)
    assert 0.2 < (value_of(verdict, "outside") or 0.0) < 0.5
    drawn[86:95, 30:60] = (10, 10, 10)  # so much that the weaker one in the box drowns in it
    assert judge(drawn, good).reasons == ("empty-mask", "outside")


@pytest.mark.parametrize("colour", [0, 255, 130])
def test_a_constant_decode_is_flat(colour: int) -> None:
    good = normal_image()
    drawn = good.copy()
    drawn[region()] = colour
    verdict = judge(drawn, good)
    assert "flat" in verdict.reasons
    assert ("saturated" in verdict.reasons) == (colour in (0, 255))


def test_a_white_background_is_neither_flat_nor_saturated() -> None:
    good = normal_image()
    good[:, :60] = 255
    drawn, _ = blotch(good, 47, 46, 12, 3)
    assert judge(drawn, good).is_accepted


def test_colours_at_their_ends_are_saturated() -> None:
    good = normal_image()
    drawn = good.copy()
    burnt = np.random.default_rng(2).integers(0, 2, good.shape) * 255
    drawn[region()] = burnt[region()]
    verdict = judge(drawn, good)
    assert "saturated" in verdict.reasons
    assert value_of(verdict, "saturated") == 1.0


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_rejects(number: float) -> None:
    good = normal_image()
    drawn, _ = blotch(good, 47, 46, 14, 3)
    decoded = drawn.astype(np.float32)
    decoded[0, 0, 0] = number
    verdict = judge(drawn, good, decoded=decoded)
    assert verdict.reasons == ("not-finite",)
    assert value_of(verdict, "not-finite") == pytest.approx(1 / decoded.size)


def test_a_step_at_the_border_of_the_paste_is_a_seam_and_a_feather_takes_it_away() -> None:
    good = normal_image()
    drawn, spot = blotch(good, 47, 46, 14, 3)
    lighter = np.clip(drawn.astype(int) + 15, 0, 255).astype(np.uint8)
    whole = Crop(0, 0, SIDE, SIDE, (SIDE, SIDE))
    hard = paste_drawn(good, lighter, whole, feather_mask(region(), 0))
    assert seam_step(hard, good, region(), spot) == pytest.approx(15 / 255, abs=1e-6)
    assert "seam" in judge(hard, good).reasons
    weight = feather_mask(region(), 8)
    soft = paste_drawn(good, lighter, whole, weight)
    assert seam_step(soft, good, weight > 0, spot) < 0.01
    assert "seam" not in judge(soft, good, pasted=weight > 0).reasons


def test_a_defect_that_its_box_cuts_off_is_a_seam_and_noise_is_none() -> None:
    good = normal_image()
    drawn, spot = blotch(good, 20, 46, 14, 3)
    cut = np.where(region()[..., None], drawn, good)
    precise = precise_mask(cut, good, region())
    assert precise.mask.any()
    assert seam_step(cut, good, region(), precise.mask) > 0.04
    noise = np.random.default_rng(4).normal(0, 6, good.shape)
    decoded = np.where(region()[..., None], np.clip(good + noise, 0, 255), good).astype(np.uint8)
    assert seam_step(decoded, good, region(), np.zeros_like(spot)) < 0.01
    everywhere = np.ones_like(spot)
    assert seam_step(drawn, good, everywhere, spot) == 0.0  # a paste of the whole image has no border


@pytest.mark.parametrize("scale", [1.0, 0.8, 1.5])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_is_told_with_the_support_it_was_taken_from(scale: float, mirrored: bool) -> None:
    good = normal_image(9)
    supports = [support(3, "003"), support(4, "004"), support(5, "005")]
    source = supports[1]
    x, y, width, height = cv2.boundingRect(cv2.dilate(source.mask.astype(np.uint8), np.ones((3, 3), np.uint8)))
    patch = source.image[y : y + height, x : x + width]
    inside = source.mask[y : y + height, x : x + width].astype(np.float32)
    size = (round(width * scale), round(height * scale))
    patch = cv2.resize(patch, size, interpolation=cv2.INTER_LINEAR)
    inside = cv2.resize(inside, size, interpolation=cv2.INTER_LINEAR)
    if mirrored:
        patch, inside = patch[:, ::-1], inside[:, ::-1]
    drawn = good.copy()
    window = drawn[26 : 26 + size[1], 22 : 22 + size[0]]
    drawn[26 : 26 + size[1], 22 : 22 + size[0]] = np.where(inside[..., None] > 0.5, patch, window)
    verdict = judge(drawn, good, supports=supports)
    assert "copy" in verdict.reasons, verdict.sentence()
    assert verdict.likeness is not None
    assert verdict.likeness.support == "004"
    assert verdict.likeness.is_mirrored == mirrored
    # Brightness and contrast do not hide it.
    paler = np.clip(drawn * 0.8 + 30, 0, 255).astype(np.uint8)
    again = judge(paler, np.clip(good * 0.8 + 30, 0, 255).astype(np.uint8), supports=supports)
    assert "copy" in again.reasons


def test_what_cannot_be_compared_is_not_called_a_copy() -> None:
    good = normal_image()
    drawn, _ = blotch(good, 47, 46, 14, 3)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[40:47, 40:49] = True  # 63 pixels
    assert find_likeness(drawn, mask, [support(3)]) is None
    mask[47, 40] = True
    assert find_likeness(drawn, mask, [support(3)]) is not None
    assert find_likeness(drawn, mask, []) is None
    flat = np.full_like(good, 90)
    assert find_likeness(flat, mask, [support(3)]) is None
    assert find_likeness(drawn, mask, [SupportPatch("flat", flat, mask)]) is None
    verdict = judge(drawn, good)
    assert value_of(verdict, "copy") is None
    assert verdict.is_accepted


def test_limits_decide_and_the_limit_itself_passes() -> None:
    good = normal_image()
    drawn, _ = blotch(good, 47, 46, 14, 3)
    precise = precise_mask(drawn, good, region())
    marked = int(precise.mask.sum())
    at_limit = QualityLimits(mask_px=marked, contrast=precise.contrast, full=precise.share)
    assert judge(drawn, good, limits=at_limit).is_accepted
    assert judge(drawn, good, limits=QualityLimits(mask_px=marked + 1)).reasons == ("empty-mask",)
    strict = QualityLimits(contrast=precise.contrast + 1e-6, full=precise.share - 1e-6)
    assert judge(drawn, good, limits=strict).reasons == ("full-mask", "faint")


def test_a_verdict_goes_through_json_and_comes_back() -> None:
    good = normal_image()
    drawn, _ = blotch(good, 47, 46, 14, 3)
    verdict = judge(drawn, good, supports=[support(3)])
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict
    with pytest.raises(msgspec.ValidationError, match=r"unknown field `speed`"):
        msgspec.json.decode(b'{"speed": 1}', type=QualityLimits)


@settings(max_examples=50, deadline=None)
@given(chosen=st.lists(st.lists(st.sampled_from(REASONS), unique=True), min_size=1, max_size=30))
def test_the_rates_count_every_reason_of_every_image(chosen: list[list[Reason]]) -> None:
    summary = summarise(Verdict(tuple(reasons), ()) for reasons in chosen)
    rejected = sum(bool(reasons) for reasons in chosen)
    assert (summary.pictures, summary.rejected) == (len(chosen), rejected)
    assert summary.accepted == len(chosen) - rejected
    assert summary.reject_rate == rejected / len(chosen)
    assert tuple(summary.counts) == tuple(summary.rates) == REASONS
    for reason in REASONS:
        assert summary.counts[reason] == sum(reason in reasons for reasons in chosen)
        assert summary.rates[reason] == summary.counts[reason] / len(chosen)


def test_wrong_arguments_are_one_sentence() -> None:
    good = normal_image()
    precise = precise_mask(good, good, region())
    with pytest.raises(ArgumentError, match=r"^verdicts: expected at least one, got none\."):
        summarise([])
    with pytest.raises(ArgumentError, match=r"^seam: expected a limit from 0 to 1, got nan\."):
        QualityLimits(seam=float("nan"))
    with pytest.raises(ArgumentError, match=r"^mask_px: expected at least 1 pixel, got 0\."):
        QualityLimits(mask_px=0)
    with pytest.raises(ArgumentError, match=r"^mask: expected at least one white pixel"):
        judge_image(good, good, np.zeros((SIDE, SIDE), bool), precise)
    with pytest.raises(ArgumentError, match=r"^pasted: expected bool \[96, 96\]"):
        judge(good, good, pasted=np.zeros((3, 3), bool))
    with pytest.raises(ArgumentError, match=r"^decoded: expected the decoder's numbers, got an empty array\."):
        judge(good, good, decoded=np.zeros((0, 3), np.float32))
    empty = SupportPatch("012", good, np.zeros((SIDE, SIDE), bool))
    with pytest.raises(ArgumentError, match=r"^mask of support 012: expected at least one white pixel, got none\."):
        judge(good, good, supports=[empty])


# --- margins


@given(
    st.floats(-2, 2) | st.sampled_from([0.0, 9.0, 1e-300, float("nan"), float("inf")]),
    st.floats(0, 2) | st.sampled_from([0.0, 9.0]),
    st.sampled_from(["at most", "at least"]),
)
def test_a_margin_is_at_least_0_for_what_passes_and_for_nothing_else(value, limit, bound):
    for measured in (value, limit, np.nextafter(limit, 3.0), np.nextafter(limit, -3.0)):
        measure = Measure("seam", float(measured), bound, limit)
        assert -1.0 <= measure.margin <= 1.0
        assert (measure.margin >= 0.0) == measure.is_passed


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0.01, 2))
def test_margins_grow_with_the_distance_from_the_limit(one, other, limit):
    low, high = sorted((one, other))
    margins = [Measure("seam", value, "at most", limit).margin for value in (low, high)]
    assert margins[0] >= margins[1]
    margins = [Measure("faint", value, "at least", limit).margin for value in (low, high)]
    assert margins[0] <= margins[1]


def test_the_margin_of_an_image_is_the_least_of_its_measures():
    safe, close = Measure("outside", 0.0, "at most", 0.2), Measure("seam", 0.03, "at most", 0.04)
    unmeasured = Measure("copy", None, "at most", 0.9)
    assert Verdict((), (safe, close, unmeasured)).margin == close.margin == 0.25
    assert Verdict((), (unmeasured,)).margin == 0.0


def test_every_limit_of_an_image_can_be_opened_but_that_of_what_is_no_image():
    rng = np.random.default_rng(0)
    good = normal_image()
    noisy = np.clip(good + rng.normal(0, 30, good.shape), 0, 255).astype(np.uint8)
    noisy[region()] = np.where(rng.random(noisy[region()].shape) < 0.5, noisy[region()], 255)
    precise = precise_mask(noisy, good, region())
    assert precise.noise > 0.05, "a defect that is hidden in noise"
    assert judge_image(noisy, good, region(), precise).reasons
    limits = QualityLimits(
        flat=1, saturated=1, mask_px=1, full=1, contrast=0, noise=0, texture=0, smooth=0, outside=1, seam=1, copy=1
    )
    assert judge_image(noisy, good, region(), precise, limits=limits, texture=1.0).is_accepted
    nothing = np.full(3, np.nan, np.float32)
    assert judge_image(noisy, good, region(), precise, limits=limits, decoded=nothing).reasons == ("not-finite",)
