"""Rectangles around defects: geometry, masks, and the ranges of sizes and places they are seen in.

Source: MvP-Diff, stage 1b, whose code was never published: the margin, the percentiles and the jitter are readings of
its figure. One rectangle holds all parts of a defect unless each part is to have its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import msgspec
import numpy as np

from flawscope.errors import ArgumentError
from flawscope.images import BoolArray
from flawscope.runtime.synthesis.foreground import Coverage

MIN_MARGIN = 8 / 512
"""Least margin on each side, as a part of the picture's width or height."""

LOW_PERCENTILE, HIGH_PERCENTILE = 5, 95
JITTER = 0.2


class Rect(NamedTuple):
    """An axis-parallel rectangle in pixels of its picture: it covers width x height whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def to_mask(self, size: tuple[int, int]) -> BoolArray:
        """Return bool [H, W] for a size (H, W), true inside."""
        mask = np.zeros(size, np.bool_)
        mask[self.top : self.top + self.height, self.left : self.left + self.width] = True
        return mask

    def centre(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the centre (x, y) as parts of width and height of a picture of size (H, W)."""
        return (self.left + self.width / 2) / size[1], (self.top + self.height / 2) / size[0]


class BoxRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the boxes of one defect type lie: 5th and 95th percentile of each quantity.

    Attributes:
        boxes: Boxes the range was taken from.
        width: Width as a part of the picture's width.
        height: Height as a part of the picture's height.
        x: Centre as a part of the picture's width.
        y: Centre as a part of the picture's height.
    """

    boxes: int
    width: tuple[float, float]
    height: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]


def boxes_of(mask: BoolArray, margin: float = 0.1, *, per_component: bool = False) -> list[Rect]:
    """Return the rectangles that hold a mask's defect with a margin, clipped to the picture.

    Args:
        mask: bool [H, W], true at the defect.
        margin: Margin on each side as a part of the box's side; never less than 8 pixels in 512.
        per_component: One rectangle for each connected part (8 neighbours), from top to bottom, not one for all.

    Returns:
        The rectangles; none for an empty mask.

    Raises:
        ArgumentError: If the margin is negative or above 1.
    """
    if not 0 <= margin <= 1:
        raise ArgumentError(f"margin: expected a part of the box's side from 0 to 1, got {margin:g}.")
    if not mask.any():
        return []
    if not per_component:
        return [_with_margin(_bounds(mask), margin, mask.shape)]
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = sorted((int(top), int(left), int(w), int(h)) for left, top, w, h, _ in stats[1:])
    return [_with_margin(Rect(left, top, w, h), margin, mask.shape) for top, left, w, h in found]


def mask_of(boxes: Sequence[Rect], size: tuple[int, int]) -> BoolArray:
    """Return bool [H, W] for a size (H, W), true inside any of the boxes."""
    mask = np.zeros(size, np.bool_)
    for box in boxes:
        mask |= box.to_mask(size)
    return mask


def _bounds(mask: BoolArray) -> Rect:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return Rect(left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top)


def _with_margin(box: Rect, margin: float, size: tuple[int, ...]) -> Rect:
    height, width = size
    dx = int(np.ceil(max(MIN_MARGIN * width, margin * box.width)))
    dy = int(np.ceil(max(MIN_MARGIN * height, margin * box.height)))
    left, top = max(box.left - dx, 0), max(box.top - dy, 0)
    right, bottom = min(box.left + box.width + dx, width), min(box.top + box.height + dy, height)
    return Rect(left, top, right - left, bottom - top)


def range_of(boxes: Sequence[tuple[Rect, tuple[int, int]]]) -> BoxRange:
    """Return the range of sizes and places of boxes, each given with the size (H, W) of its picture; at least one."""
    relative = np.array([(b.width / w, b.height / h, *b.centre((h, w))) for b, (h, w) in boxes])
    low, high = np.percentile(relative, (LOW_PERCENTILE, HIGH_PERCENTILE), axis=0).round(6).tolist()
    width, height, x, y = zip(low, high, strict=True)
    return BoxRange(len(boxes), width, height, x, y)


def draw_box(
    seen: BoxRange,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    within: Coverage | None = None,
    overlap: float = 0.75,
    is_anywhere: bool = False,
    tries: int = 1000,
) -> tuple[Rect, int] | None:
    """Return a random box like those seen and the number of tries it took, or None where none fitted.

    Sides are uniform between the percentiles and changed by up to 20 %; so few pictures as a support set holds would
    otherwise give one size only. The centre is uniform between its percentiles, with the same share of the picture's
    side around them where they are closer than that.

    Args:
        seen: Range of sizes and places.
        size: Height and width of the picture.
        rng: Source of chance.
        within: Where boxes belong, of the same size; None allows every place.
        overlap: More than this part of the box lies within.
        is_anywhere: Take the centre from the whole picture and not from where defects were seen.
        tries: Boxes drawn at most.
    """
    height, width = size
    for attempt in range(1, tries + 1):
        w = _side(seen.width, width, rng)
        h = _side(seen.height, height, rng)
        if is_anywhere:
            box = Rect(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
        else:
            box = Rect(_start(seen.x, width, w, rng), _start(seen.y, height, h, rng), w, h)
        if within is None or within.count(box.left, box.top, w, h) > overlap * w * h:
            return box, attempt
    return None


def _side(limits: tuple[float, float], length: int, rng: np.random.Generator) -> int:
    side = rng.uniform(*limits) * rng.uniform(1 - JITTER, 1 + JITTER) * length
    return int(np.clip(round(side), 1, length))


def _start(limits: tuple[float, float], length: int, side: int, rng: np.random.Generator) -> int:
    low, high = limits
    spare = max(0.0, JITTER - (high - low)) / 2
    centre = rng.uniform(max(low - spare, 0.0), min(high + spare, 1.0)) * length
    return int(np.clip(round(centre - side / 2), 0, length - side))
