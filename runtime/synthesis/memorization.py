"""Memorization check: is a generated defect a copy of a support defect? Patch correlation at several scales.

A few support images are soon memorized, and a generator that reproduces them adds nothing to a dataset. The pixels of
the drawn defect, with a margin that holds its outline, are slid over the surroundings of every support defect. The
result is the largest normalised cross-correlation with means subtracted

    r = Σ (T - T̄)(S - S̄) / sqrt(Σ (T - T̄)² · Σ (S - S̄)²)          over the pixels and channels of the defect T

which is invariant to brightness and contrast. The support is compared at the scale at which both defects have the same
area, at six scales around that one, and unscaled; each plain and mirrored left to right, as training augments it.
Copies that were rotated, or stretched in one direction, are not detected.

What to expect: on mottled spots of 26 pixels, copies that were enlarged, shrunk, mirrored and made noisy had a
correlation of 0.85 to 0.98 and other spots of the same kind 0.70 at most; on smooth dark ellipses copies had 0.95 to
0.99 and others up to 0.92: shapes without texture all look alike, and the limit must be higher there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array, check_array
from flawscope.errors import ArgumentError
from flawscope.imaging.boxes import bounds_of
from flawscope.imaging.images import check_image
from flawscope.runtime.synthesis.lost_texture import texture_shares

SCALES = (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)
"""Factors on the scale at which both defects have the same area; that scale is as uncertain as the two masks."""

MIN_PIXELS = 64
"""Smaller defects are not compared: any two dark dots of a few pixels correlate."""

_SIDE_PX = 48
"""Largest longer side of the compared patch; it bounds the time of template matching."""

_MARGIN = 0.05  # share of the longer side; without it the outline, where a shape shows, would be cut off
_MIN_DEVIATION = 1.0  # grey levels; below, a patch is flat and its correlation is that of rounding errors


@dataclass(frozen=True)
class SupportPatch:
    """A real defect that the generator was trained on.

    Attributes:
        name: Its name in a verdict.
        image: The image, uint8 [H, W, 3] RGB.
        mask: Its defect, bool [H, W].
    """

    name: str
    image: UInt8Array = field(repr=False)
    mask: BoolArray = field(repr=False)

    @cached_property
    def texture_shares(self) -> list[float]:
        """Texture of each of its parts as a share of that around it; found once, however many images are judged."""
        return texture_shares(self.image, self.mask)


class Likeness(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The support defect that a drawn one resembles most.

    Attributes:
        support: Name of the support patch.
        correlation: Largest normalised cross-correlation, -1 to 1.
        scale: Pixels of the support per pixel of the drawn image at that correlation.
        is_mirrored: Whether the support was mirrored left to right.
    """

    support: str
    correlation: float
    scale: float
    is_mirrored: bool


def find_likeness(drawn: UInt8Array, mask: BoolArray, supports: Sequence[SupportPatch]) -> Likeness | None:
    """Return the support defect that the drawn one resembles most.

    Args:
        drawn: Image with the drawn defect, uint8 [H, W, 3] RGB.
        mask: Its precise mask, bool [H, W].
        supports: The defects that the generator was trained on.

    Returns:
        None where nothing can be compared: no support, a mask of less than `MIN_PIXELS`, or flat patches.

    Raises:
        ArgumentError: If shapes or dtypes differ, or a support's mask is empty.
    """
    check_image(drawn, "drawn")
    check_array(mask, "mask", drawn.shape[:2], np.bool_)
    for support in supports:
        check_image(support.image, f"support {support.name}")
        check_array(support.mask, f"mask of support {support.name}", support.image.shape[:2], np.bool_)
        if not support.mask.any():
            raise ArgumentError(f"mask of support {support.name}: expected at least one white pixel, got none.")
    if np.count_nonzero(mask) < MIN_PIXELS:
        return None
    rows, columns, margin = _surroundings(mask, _MARGIN)
    shrink = min(1.0, _SIDE_PX / max(rows.stop - rows.start, columns.stop - columns.start))
    around = cv2.dilate(mask[rows, columns].astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    template = _resized(drawn[rows, columns], shrink)
    # A weight for each pixel: with the whole rectangle the normal material around the defect would correlate.
    weights = (_resized(around.astype(np.float32), shrink) > 0.5).astype(np.float32)
    if not weights.any() or template[weights > 0].std(axis=0).max() < _MIN_DEVIATION:
        return None
    likenesses: list[Likeness] = []
    for support in supports:
        same_area = float(np.sqrt(np.count_nonzero(support.mask) / np.count_nonzero(mask)))
        rows, columns, _ = _surroundings(support.mask, 0.5)  # room for the template to slide and to be larger
        area = support.image[rows, columns]
        # Sorted: of equal correlations the first is reported, and a set has no order to rely on.
        for scale in sorted({1.0, *(same_area * factor for factor in SCALES)}):
            # `shrink` reduces support and template alike; `scale` is the support pixels per drawn pixel.
            resized = _resized(area, shrink / scale)
            for is_mirrored in (False, True):
                best = _correlation(resized[:, ::-1] if is_mirrored else resized, template, weights)
                if best is not None:
                    likenesses.append(Likeness(support.name, best, scale, is_mirrored))
    return max(likenesses, key=lambda likeness: likeness.correlation, default=None)


def outline_margin(width: int, height: int) -> int:
    """Return how many pixels around a defect of this width and height `find_likeness` looks at; at least 1."""
    return _margin(width, height, _MARGIN)


def _margin(width: int, height: int, share: float) -> int:
    return max(1, round(share * max(width, height)))


def _surroundings(mask: BoolArray, share: float) -> tuple[slice, slice, int]:
    """Return rows and columns of a mask with a margin of at least one pixel, clipped to the image, and the margin."""
    x, y, width, height = bounds_of(mask)
    margin = _margin(width, height, share)
    rows = slice(max(0, y - margin), min(mask.shape[0], y + height + margin))
    return rows, slice(max(0, x - margin), min(mask.shape[1], x + width + margin)), margin


def _resized(image: npt.NDArray[np.generic], factor: float) -> npt.NDArray[np.float32]:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    method = cv2.INTER_AREA if factor < 1.0 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image.astype(np.float32), (width, height), interpolation=method), np.float32)


def _correlation(
    area: npt.NDArray[np.float32], template: npt.NDArray[np.float32], weights: npt.NDArray[np.float32]
) -> float | None:
    """Return the largest correlation over all positions of the template, or None if there is none.

    An area smaller than the template, because its image ends there, is padded with its edge pixels.
    """
    missing = [max(0, template.shape[axis] - area.shape[axis]) for axis in (0, 1)]
    if any(missing):
        top, left = missing[0] // 2, missing[1] // 2
        area = np.asarray(
            cv2.copyMakeBorder(area, top, missing[0] - top, left, missing[1] - left, cv2.BORDER_REPLICATE), np.float32
        )
    if area.std(axis=(0, 1)).max() < _MIN_DEVIATION:
        return None
    # contiguous: a mirrored view has negative strides, which OpenCV refuses.
    scores = cv2.matchTemplate(np.ascontiguousarray(area), template, cv2.TM_CCOEFF_NORMED, mask=weights)
    # Over a flat window the quotient is 0/0, which OpenCV gives as NaN, infinity or any number.
    valid = scores[np.isfinite(scores) & (np.abs(scores) <= 1.0 + 1e-3)]
    return float(min(valid.max(), 1.0)) if valid.size else None
