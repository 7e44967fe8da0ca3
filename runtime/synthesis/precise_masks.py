"""Precise masks: the pixels of a normal image that a generated defect has changed.

A box says where a defect was asked for. The pixels that it changed are found by comparing the drawn image g with the
normal image n, both with colours from 0 to 1:

    D(p) = max(1 - cos(g_p, n_p), colour · |g_p - n_p|_1 / 3, feature · F(p))        method `robust`
    D(p) = 1 - cos(g_p, n_p)                                                         method `cosine`, MvP-Diff's

and D is divided into two classes by Otsu's threshold. `cosine` follows the reference step by step, with one repair:
differences beyond half of the range are clipped to 255; in the reference they wrap around, so that its strongest
differences count as weak ones. Its last step, a fully connected CRF, is left out: the CRF treats pixels outside the
mask as undecided, so that the mask grows by the reach of its pairwise terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, check_array
from flawscope.errors import ArgumentError
from flawscope.imaging.images import check_image
from flawscope.runtime.synthesis.tone import align, outside_of

MaskMethod = Literal["robust", "cosine"]
MaskQuality = Literal["good", "empty", "full", "faint"]

_DARK = 3.0 * (16.0 / 255.0) ** 2
"""Added to the products of the robust cosine: the direction of a colour near black is noise."""


class MaskOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a precise mask is found.

    Attributes:
        method: `robust`, or `cosine` for parity with MvP-Diff.
        colour: Weight of the mean absolute difference of the colours; `robust` only.
        feature: Weight of the difference of features, where one is given; `robust` only.
        least_difference: Smallest D, from 0 to 1, that counts as a change; `robust` only.
        least_part: Parts smaller than this share of the largest are dropped.
        fill_holes: Whether holes are filled; `robust` only.
        refine: Whether the mask is fitted to the edges of the drawn image by a guided filter.
        full_share: Share of the region above which the quality is `full`.
    """

    method: MaskMethod = "robust"
    colour: float = 1.0
    feature: float = 1.0
    least_difference: float = 0.03
    least_part: float = 0.1
    fill_holes: bool = True
    refine: bool = False
    full_share: float = 0.95

    def __post_init__(self) -> None:
        # Chained comparisons also refuse NaN.
        for name in ("colour", "feature"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ArgumentError(f"{name}: expected a weight of at least 0, got {getattr(self, name)}.")
        for name in ("least_difference", "least_part", "full_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ArgumentError(f"{name}: expected a number above 0 up to 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class PreciseMask:
    """The mask of a drawn defect, and measures of how reliable it is.

    Contrast, noise and spill are measured on the robust D, whatever the method, so that they can be compared.

    Attributes:
        mask: bool [H, W], True where the image has changed; nowhere outside the region.
        quality: `good`; `empty` where nothing has changed; `full` where (nearly) the whole region has, as after a
            change of light or a failed drawing; `faint` where the contrast is below the noise: one pixel in a hundred
            of mere noise exceeds a floor at its 99th percentile.
        share: Marked share of the region, 0 to 1.
        contrast: Mean D on the mask minus mean D on the rest of the region, 0 to 1; 0 for an empty mask.
        components: Connected parts of the mask (8 neighbours).
        threshold: Least D at which a pixel is marked; of the method `cosine`, on its scale from 0 to 1.
        noise: 99th percentile of D outside the region; None where the region leaves too few pixels to estimate it.
        spill: Of the pixels that have changed as much as the mask has on average, the share outside the region; for an
            empty mask, of those that have changed by `least_difference`.
    """

    mask: BoolArray = field(repr=False)
    quality: MaskQuality
    share: float
    contrast: float
    components: int
    threshold: float
    noise: float | None
    spill: float


def precise_mask(
    drawn: UInt8Array,
    good: UInt8Array,
    region: BoolArray,
    options: MaskOptions | None = None,
    *,
    feature: Float32Array | None = None,
) -> PreciseMask:
    """Return the mask of the pixels of `region` that differ from the normal image.

    The robust method first removes what has changed everywhere: a gain and an offset per channel, fitted outside the
    region. A pixel is marked above half of the largest D in its 3 x 3 neighbourhood, but at most above Otsu's
    threshold of D and at least above that of log(D + floor), both over the region alone and on floats: weak parts
    beside strong ones are kept, and edges lie halfway. Neither is below the floor, the larger of `least_difference`
    and the 99th percentile of D outside, so that noise is not split into a defect. A decoder's own noise is visible
    only before the paste; in a pasted image the outside is identical, and `least_difference` alone is the floor.

    Args:
        drawn: Image with the defect, uint8 [H, W, 3] RGB.
        good: Image it was drawn on, uint8 [H, W, 3] RGB.
        region: Box or coarse mask in which it was drawn, bool [H, W].
        options: How the mask is found; None for the defaults of `MaskOptions`.
        feature: Differences of features, float32 [H, W], 0 (same) to 1, for example the cosine distance of the first
            layers of a frozen network, enlarged to the image; `robust` only.

    Raises:
        ArgumentError: If shapes or dtypes differ, the region is empty, or a feature is given to the method `cosine`.

    Source:
        MvP-Diff's reference for `cosine` (departures: clipped, no CRF, and two black pixels are equal where the
        reference gives them the largest distance); Otsu 1979 for the threshold.
    """
    options = options or MaskOptions()
    check_image(drawn, "drawn")
    height, width = drawn.shape[:2]
    check_array(good, "good", (height, width, 3), np.uint8)
    check_array(region, "mask", (height, width), np.bool_)
    if not region.any():
        raise ArgumentError("mask: expected at least one white pixel, got an all-black mask. Draw a box first.")
    if feature is not None:
        if options.method == "cosine":
            raise ArgumentError('feature: expected none with the method "cosine", got one. Use the method "robust".')
        check_array(feature, "feature", (height, width), np.float32, finite=True)

    outside = outside_of(region)
    # The robust D for `cosine` too: contrast, noise and spill are measured on it whatever the method.
    difference = robust_difference(drawn, good, outside, colour=options.colour)
    if feature is not None:
        difference = np.maximum(difference, np.float32(options.feature) * feature)
    noise = float(np.percentile(difference[outside], 99.0)) if outside.any() else None
    if options.method == "cosine":
        mask, threshold = _cosine_mask(drawn, good, region, options.least_part)
    else:
        mask, threshold = _changed(difference, region, max(options.least_difference, noise or 0.0), options.full_share)
        mask = drop_small_parts(mask, options.least_part)
        if options.fill_holes:
            mask = _fill_holes(mask) & region  # a region need not be a box: its own holes stay open
    if options.refine and mask.any():
        mask = _fit_edges(mask, drawn) & region
    return _describe(mask, region, difference, outside, threshold, noise, options)


def robust_difference(drawn: UInt8Array, good: UInt8Array, outside: BoolArray, *, colour: float = 1.0) -> Float32Array:
    """Return D of the method `robust` without features, float32 [H, W] from 0.

    Both images are first smoothed by a 3 x 3 Gaussian, so that noise averages out.

    Args:
        drawn: uint8 [H, W, 3] RGB.
        good: uint8 [H, W, 3] RGB.
        outside: bool [H, W], where nothing was drawn: gain and offset of the light are fitted there. If it is empty
            the light is assumed to be the same.
        colour: Weight of the mean absolute difference.
    """
    if np.array_equal(drawn, good):  # exactly 0 everywhere: computed, rounding errors would remain
        return np.zeros(drawn.shape[:2], np.float32)
    changed, normal = (cv2.GaussianBlur(image.astype(np.float32) / 255.0, (3, 3), 0) for image in (drawn, good))
    normal = align(np.asarray(normal, np.float32), np.asarray(changed, np.float32), outside)
    # The same constant in dot product and lengths: equal colours keep a cosine of 1.
    dot = (changed * normal).sum(axis=2) + _DARK
    lengths = np.sqrt(((changed * changed).sum(axis=2) + _DARK) * ((normal * normal).sum(axis=2) + _DARK))
    absolute = np.abs(changed - normal).mean(axis=2)
    return np.asarray(np.maximum(np.maximum(1.0 - dot / lengths, 0.0), colour * absolute), np.float32)


def otsu_threshold(values: npt.NDArray[np.floating]) -> float:
    """Return the threshold with the largest variance between the two classes, computed without a histogram.

    Args:
        values: Floats of any shape, not empty.

    Returns:
        The middle of the gap: values above it are the upper class. Negative infinity where all values are equal.

    Source: Otsu, A threshold selection method from gray-level histograms, 1979, equation 18, over all gaps between
        sorted values instead of histogram bins.
    """
    # float64: in float32 the cumulative sum of a large region would lose the small values.
    ordered = np.sort(values.ravel().astype(np.float64))
    gaps = np.flatnonzero(np.diff(ordered) > 0)
    if gaps.size == 0:
        return -float("inf")
    below = gaps + 1.0
    sums = np.cumsum(ordered)
    above = ordered.size - below
    distance = sums[gaps] / below - (sums[-1] - sums[gaps]) / above
    best = gaps[int(np.argmax(below * above * distance**2))]
    return float((ordered[best] + ordered[best + 1]) / 2.0)


def drop_small_parts(mask: BoolArray, least: float) -> BoolArray:
    """Return the mask without the parts (8 neighbours) smaller than `least` times the largest; bool [H, W]."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:  # the background counts as one
        return mask.copy()
    areas = stats[:, cv2.CC_STAT_AREA]
    is_large = areas >= least * areas[1:].max()
    is_large[0] = False  # label 0 is the background, usually the largest of all
    return np.asarray(is_large[labels], np.bool_)


def _changed(difference: Float32Array, region: BoolArray, floor: float, full_share: float) -> tuple[BoolArray, float]:
    """Return what has changed in the region, bool [H, W], and the least D at which a pixel is marked.

    Otsu's threshold of D follows the strongest parts of a defect: a few very strong pixels raise it above all others.
    That of log(D + floor) finds weak parts, but includes the blurred rim of a strong edge. So each pixel has its own
    threshold between the two: half of the largest D next to it, which is where an edge between two levels lies.

    Where (nearly) all of the region is above the floor there may be no second class, and Otsu would split the defect.
    Values uniform from 0 split into classes with means in the ratio 1 to 3; closer means count as one class.
    """
    values = difference[region].astype(np.float64)
    threshold = max(otsu_threshold(values), floor)
    low, high = values[values <= threshold], values[values > threshold]
    one_class = np.mean(values > floor) > full_share and (
        high.size == 0 or low.size == 0 or low.mean() > high.mean() / 3
    )
    if one_class:
        return np.asarray((difference > floor) & region), floor
    # The floor is above 0, so the logarithm is finite where D is 0.
    weakest = min(threshold, max(float(np.exp(otsu_threshold(np.log(values + floor)))) - floor, floor))
    # D outside the region is blanked: a strong change beside it must not raise the thresholds at its rim.
    nearby = cv2.dilate(np.where(region, difference, np.float32(0)), np.ones((3, 3), np.uint8))
    return np.asarray((difference > np.clip(nearby / 2.0, weakest, threshold)) & region), weakest


def _cosine_mask(drawn: UInt8Array, good: UInt8Array, region: BoolArray, least_part: float) -> tuple[BoolArray, float]:
    """Return MvP-Diff's mask, and its threshold relative to the range of the distance, 0 to 1."""
    # Integers under one root: equal and parallel colours have a distance of exactly 0, which floats would miss by 1e-8,
    # and stretched to the full range that error would become a mask.
    changed, normal = drawn.astype(np.int64), good.astype(np.int64)
    lengths = (changed * changed).sum(axis=2) * (normal * normal).sum(axis=2)
    cosine = (changed * normal).sum(axis=2) / np.sqrt(np.maximum(lengths, 1))
    both_black = ~(drawn.any(axis=2) | good.any(axis=2))
    distance = np.where(both_black, 0.0, 1.0 - cosine)
    span = float(distance.max() - distance.min())
    if span == 0.0:
        return np.zeros_like(region), 0.0
    stretched = (distance - distance.min()) / span / 0.5
    # Clipped, unlike in the reference: without it values above 255 wrap around in uint8.
    levels = np.clip(stretched * np.where(region, 255.0, 0.0), 0.0, 255.0).astype(np.uint8)
    level, binary = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    areas = [cv2.contourArea(contour) for contour in contours]
    small = [contour for contour, area in zip(contours, areas, strict=True) if area < least_part * max(areas)]
    cv2.drawContours(binary, small, -1, 0, cv2.FILLED)
    return np.asarray(binary > 0), float(level) / 510.0  # 255 levels, and D was stretched by 1 / 0.5


def _fill_holes(mask: BoolArray) -> BoolArray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = mask.astype(np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return np.asarray(filled > 0)


def _fit_edges(mask: BoolArray, drawn: UInt8Array) -> BoolArray:
    """Return the mask after a guided filter (He et al. 2010, radius 4 pixels, epsilon 1e-3) with the grey image."""
    guide = cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255.0
    target = mask.astype(np.float32)

    def mean(array: npt.NDArray[np.float32]) -> Float32Array:
        return np.asarray(cv2.blur(array, (9, 9)), np.float32)

    # Linear coefficients of every window, averaged: a = cov(I, p) / (var(I) + epsilon), b = mean(p) - a · mean(I).
    gain = (mean(guide * target) - mean(guide) * mean(target)) / (mean(guide * guide) - mean(guide) ** 2 + 1e-3)
    return np.asarray(mean(gain) * guide + mean(mean(target) - gain * mean(guide)) > 0.5)


def _describe(
    mask: BoolArray,
    region: BoolArray,
    difference: Float32Array,
    outside: BoolArray,
    threshold: float,
    noise: float | None,
    options: MaskOptions,
) -> PreciseMask:
    marked, size = int(np.count_nonzero(mask)), int(np.count_nonzero(region))
    level = float(difference[mask].mean()) if marked else options.least_difference
    strong = int(np.count_nonzero(difference[mask if marked else region] >= level))
    spilled = int(np.count_nonzero(difference[outside] >= level))
    spill = spilled / (spilled + strong) if spilled else 0.0
    if marked == 0:
        return PreciseMask(mask, "empty", 0.0, 0.0, 0, threshold, noise, spill)
    rest = region & ~mask if marked < size else outside  # a mask that fills the region is compared with the outside
    contrast = level - (float(difference[rest].mean()) if rest.any() else 0.0)
    quality: MaskQuality = "good"
    if marked / size > options.full_share:
        quality = "full"
    elif contrast <= (noise or 0.0):
        quality = "faint"
    return PreciseMask(
        mask=mask,
        quality=quality,
        share=marked / size,
        contrast=contrast,
        components=cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1,
        threshold=threshold,
        noise=noise,
        spill=spill,
    )
