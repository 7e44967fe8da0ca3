"""Quality filter of generated images: every check compares a measured value with a limit.

Every image gets every check that can be measured on it, so that a rejection lists everything that is wrong:

    reason      measured                                                                          bound
    not-finite  share of NaN and infinity in the decoder's output, before the cast to uint8      0
    flat        share of the region that changed to a single colour, as NaN does in the cast      at most
    saturated   share of the region with a channel that is at 0 or 255 and was not before         at most
    empty-mask  pixels of the precise mask                                                        at least
    full-mask   marked share of the region                                                        at most
    faint       contrast of the mask; it is compared with noise outside and texture, too          at least
    smooth      texture left in the region, as a share of what the smoothest support defect leaves at least
    outside     share of equally strong changes that lie outside the region                       at most
    seam        new steps across the border of what was pasted, beyond those on either side       at most
    copy        correlation with the support defects                                              at most
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array, check_array
from flawscope.errors import ArgumentError
from flawscope.imaging.images import check_image
from flawscope.runtime.synthesis.lost_texture import texture_left
from flawscope.runtime.synthesis.memorization import Likeness, SupportPatch, find_likeness
from flawscope.runtime.synthesis.precise_masks import PreciseMask

Reason = Literal[
    "not-finite", "flat", "saturated", "empty-mask", "full-mask", "faint", "smooth", "outside", "seam", "copy"
]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""All reasons, in the order in which a verdict lists them."""

_WORST = 0.75
"""Quantile of the steps above which they are averaged: a defect cut at one side of its box is a seam, too."""


class QualityLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits that a generated image must keep.

    Attributes:
        flat: Largest share of the region that may have changed to one colour.
        saturated: Largest share of the region in which a channel may newly be at 0 or 255.
        mask_px: Least number of pixels of the precise mask.
        full: Largest marked share of the region.
        contrast: Least contrast of the mask, 0 to 1; 0.03 is 8 grey levels in every channel.
        noise: Least contrast of the mask, in multiples of the noise outside the region.
        texture: Least contrast of the mask, in multiples of the texture contrast of the box.
        smooth: Least texture that is left in the region, as a share of what the smoothest support defect of the type
            leaves, 0 to 1; see `texture_left`.
        outside: Largest share of equally strong changes outside the region.
        seam: Largest mean step across the border of what was pasted, 0 to 1.
        copy: Largest correlation with a support defect.
    """

    flat: float = 0.6
    saturated: float = 0.5
    mask_px: int = 9
    full: float = 0.95
    contrast: float = 0.03
    noise: float = 1.0
    texture: float = 1.3
    smooth: float = 0.15
    outside: float = 0.2
    seam: float = 0.04
    copy: float = 0.92

    def __post_init__(self) -> None:
        # As a chained comparison: NaN fails it, where `value < 0 or value > 1` would let NaN pass.
        for name in ("flat", "saturated", "full", "contrast", "smooth", "outside", "seam", "copy"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ArgumentError(f"{name}: expected a limit from 0 to 1, got {getattr(self, name)}.")
        for name in ("noise", "texture"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ArgumentError(f"{name}: expected a factor from 0 to 100, got {getattr(self, name)}.")
        if self.mask_px < 1:
            raise ArgumentError(f"mask_px: expected at least 1 pixel, got {self.mask_px}.")


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One check of one image.

    Attributes:
        reason: Name of the check: the reason for which an image that fails it is rejected.
        value: The measured value; None where there was nothing to measure, which passes.
        bound: Side of the limit that passes; the limit itself passes.
        limit: The limit.
    """

    reason: Reason
    value: float | None
    bound: Literal["at most", "at least"]
    limit: float

    @property
    def is_passed(self) -> bool:
        """Whether the value keeps the limit."""
        if self.value is None:
            return True
        # Not the negated opposite: a NaN must fail either bound.
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit

    @property
    def margin(self) -> float | None:
        """How far the value is from its limit, -1 to 1: 0 at the limit, below 0 beyond it; None if none was measured.

        The smaller of value and limit is divided by the larger, so that margins of both bounds can be compared.
        """
        if self.value is None:
            return None
        if math.isnan(self.value):
            return -1.0
        # A correlation may be negative: it is as far from its limit as 0.
        smaller, larger = sorted((max(self.value, 0.0), self.limit))
        size = 1.0 - smaller / larger if larger > 0.0 else 0.0
        # Never 0 beyond the limit, where a value just below 0 and the limit 0 meet.
        return size if self.is_passed else min(-size, -sys.float_info.epsilon)


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of the filter for one image.

    Attributes:
        reasons: The checks that it failed, in the order of `REASONS`; empty for an accepted image.
        measures: Every check, in the order of `REASONS`.
        likeness: The support defect it resembles most, where that was measured.
    """

    reasons: tuple[Reason, ...]
    measures: tuple[Measure, ...]
    likeness: Likeness | None = None

    @property
    def is_accepted(self) -> bool:
        """Whether all checks passed."""
        return not self.reasons

    @property
    def margin(self) -> float:
        """The least margin of all measures, -1 to 1: at least 0 for an accepted image, and the larger the safer."""
        return min((measure.margin for measure in self.measures if measure.margin is not None), default=0.0)

    def sentence(self) -> str:
        """Return the verdict as one line: every failed check with its value and its limit."""
        failed = [measure for measure in self.measures if measure.reason in self.reasons]
        if not failed:
            return "accepted"
        return "rejected: " + ", ".join(
            f"{measure.reason} {measure.value:.3g} (expected {measure.bound} {measure.limit:.3g})" for measure in failed
        )


class RejectSummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share of a run that was rejected, by reason.

    Attributes:
        pictures: Number of verdicts.
        accepted: Accepted images.
        rejected: Rejected images.
        reject_rate: Share of rejected images, 0 to 1.
        counts: Images per reason, all reasons in order; one with two reasons counts under both.
        rates: Counts as shares of all images.
    """

    pictures: int
    accepted: int
    rejected: int
    reject_rate: float
    counts: dict[Reason, int]
    rates: dict[Reason, float]


def judge_image(
    drawn: UInt8Array,
    good: UInt8Array,
    region: BoolArray,
    precise: PreciseMask,
    supports: Sequence[SupportPatch] = (),
    limits: QualityLimits | None = None,
    *,
    pasted: BoolArray | None = None,
    decoded: npt.NDArray[np.float32] | None = None,
    texture: float = 0.0,
) -> Verdict:
    """Return the verdict on a generated image: every check with its value and its limit.

    Args:
        drawn: The image with the defect, uint8 [H, W, 3] RGB.
        good: The normal image it was drawn on, uint8 [H, W, 3] RGB.
        region: Box or coarse mask that was asked for, bool [H, W].
        precise: Its precise mask, from these images or from the drawn one before the paste.
        supports: Support patches of the defect; without any, `smooth` and `copy` are not measured.
        limits: The limits; None for the defaults of `QualityLimits`.
        pasted: Pixels that were written, bool [H, W]; None if they are those of the region.
        decoded: The decoder's output, float32 of any shape: the cast to uint8 removes NaN.
        texture: Texture contrast of the box; see `texture_contrast`.

    Raises:
        ArgumentError: If shapes or dtypes differ, or the region is empty.
    """
    limits = limits or QualityLimits()
    check_image(drawn, "drawn")
    size = drawn.shape[:2]
    check_array(good, "good", (*size, 3), np.uint8)
    check_array(region, "mask", size, np.bool_)
    check_array(precise.mask, "precise mask", size, np.bool_)
    if not region.any():
        raise ArgumentError("mask: expected at least one white pixel, got an all-black mask. Draw a box first.")
    if pasted is not None:
        check_array(pasted, "pasted", size, np.bool_)
    marked = int(np.count_nonzero(precise.mask))
    likeness = find_likeness(drawn, precise.mask, supports)
    shares = [share for support in supports for share in support.texture_shares]
    # The limit of `faint` is this image's own: a defect must stand out from its noise and its texture.
    contrast = max(limits.contrast, limits.noise * (precise.noise or 0.0), limits.texture * texture)
    measures = (
        Measure("not-finite", None if decoded is None else _nonfinite_share(decoded), "at most", 0.0),
        Measure("flat", _flat_share(drawn, good, region), "at most", limits.flat),
        Measure("saturated", _saturated_share(drawn, good, region), "at most", limits.saturated),
        Measure("empty-mask", float(marked), "at least", float(limits.mask_px)),
        Measure("full-mask", precise.share, "at most", limits.full),
        # An empty mask is rejected as `empty-mask` alone: it has no contrast that could be faint.
        Measure("faint", precise.contrast if marked else None, "at least", contrast),
        Measure("smooth", texture_left(drawn, good, region, shares), "at least", limits.smooth),
        Measure("outside", precise.spill, "at most", limits.outside),
        Measure(
            "seam", seam_step(drawn, good, region if pasted is None else pasted, precise.mask), "at most", limits.seam
        ),
        Measure("copy", None if likeness is None else likeness.correlation, "at most", limits.copy),
    )
    return Verdict(tuple(measure.reason for measure in measures if not measure.is_passed), measures, likeness)


class RejectTally:
    """Counts verdicts one by one, in the memory of the counts."""

    def __init__(self) -> None:
        self._counts: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self._images = self._rejected = 0

    def add(self, verdict: Verdict) -> None:
        """Count a verdict."""
        self._images += 1
        self._rejected += not verdict.is_accepted
        for reason in verdict.reasons:
            self._counts[reason] += 1

    def summary(self) -> RejectSummary:
        """Return the rates of rejection, over all and by reason.

        Raises:
            ArgumentError: If there is no verdict: a rate of nothing is not 0.
        """
        images, rejected = self._images, self._rejected
        if images == 0:
            raise ArgumentError("verdicts: expected at least one, got none. Generate images first.")
        rates = {reason: count / images for reason, count in self._counts.items()}
        return RejectSummary(images, images - rejected, rejected, rejected / images, dict(self._counts), rates)


def summarise(verdicts: Iterable[Verdict]) -> RejectSummary:
    """Return the rates of rejection, over all and by reason.

    Raises:
        ArgumentError: If there is no verdict: a rate of nothing is not 0.
    """
    tally = RejectTally()
    for verdict in verdicts:
        tally.add(verdict)
    return tally.summary()


def seam_step(drawn: UInt8Array, good: UInt8Array, pasted: BoolArray, mask: BoolArray) -> float:
    """Return how much stronger the new steps across the border of a paste are than new steps elsewhere, 0 to 1.

    A new step is the mean over the channels of |(drawn - good)_p - (drawn - good)_q| / 255 of two neighbours p and q.
    The strongest quarter is averaged. The larger of two other averages is subtracted from the border's, that of
    neighbours outside and that of neighbours inside but off the mask, so that a decoder's noise is no seam.

    Args:
        drawn: uint8 [H, W, 3].
        good: uint8 [H, W, 3].
        pasted: Pixels that were written, bool [H, W]; where they touch the border of the image there is no seam.
        mask: Precise mask of the defect, bool [H, W]: its own edges do not count, except on the border.
    """
    change = drawn.astype(np.float32) - good.astype(np.float32)
    # Two pixels wider than the mask: the defect's own edges are no noise of the decoder.
    quiet = pasted & ~(cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
    steps: dict[str, list[npt.NDArray[np.float32]]] = {"border": [], "inside": [], "outside": []}
    # Vertical neighbours, then horizontal ones.
    for second, first in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        step = np.abs(change[second] - change[first]).mean(axis=2) / 255.0
        steps["border"].append(step[pasted[second] != pasted[first]])
        steps["inside"].append(step[quiet[second] & quiet[first]])
        steps["outside"].append(step[~pasted[second] & ~pasted[first]])
    border, inside, outside = (_strongest(np.concatenate(values)) for values in steps.values())
    return max(0.0, border - max(inside, outside))


def _strongest(steps: npt.NDArray[np.float32]) -> float:
    if steps.size == 0:
        return 0.0
    return float(np.sort(steps)[int(_WORST * steps.size) :].mean())


def _nonfinite_share(decoded: npt.NDArray[np.float32]) -> float:
    if decoded.size == 0:
        raise ArgumentError("decoded: expected the decoder's numbers, got an empty array.")
    return float(np.count_nonzero(~np.isfinite(decoded)) / decoded.size)


def _flat_share(drawn: UInt8Array, good: UInt8Array, region: BoolArray) -> float:
    """Unchanged pixels do not count: a white background may be flat."""
    after = drawn[region].astype(np.uint32)  # in uint8 the shifts below would lose red and green
    changed = after[(drawn[region] != good[region]).any(axis=1)]
    if changed.size == 0:
        return 0.0
    colours = (changed[:, 0] << 16) | (changed[:, 1] << 8) | changed[:, 2]
    # Over all pixels of the region and not over the changed ones: a single changed pixel is one colour by itself.
    return float(np.unique(colours, return_counts=True)[1].max() / len(after))


def _saturated_share(drawn: UInt8Array, good: UInt8Array, region: BoolArray) -> float:
    after, before = drawn[region], good[region]
    # Newly at an end: on a white or black ground every drawing would be saturated.
    ends = ((after == 0) | (after == 255)) & (before != 0) & (before != 255)
    return float(ends.any(axis=1).mean())
