"""Bounding boxes of defects: geometry and masks, the same in training and at run time.

Source: MvP-Diff, stage 1b, whose code was never published: the margin is read off its figure. One rectangle holds all
parts of a defect, unless parts are asked for apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.errors import ArgumentError

# One latent cell of 8 pixels at the 512 pixels of Stable Diffusion.
MIN_MARGIN = 8 / 512
"""Least margin on each side, as a share of the image's width or height: 8 pixels at 512."""


class Rect(NamedTuple):
    """An axis-parallel rectangle in pixels of its image: it covers width x height whole pixels."""

    left: int
    top: int
    width: int
    height: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array of the image."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def to_mask(self, size: tuple[int, int]) -> BoolArray:
        """Return bool [H, W] for a size (H, W), true inside."""
        mask = np.zeros(size, np.bool_)
        mask[self.window] = True
        return mask

    def overlaps(self, other: Rect) -> bool:
        """Return whether the two share a pixel."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )

    def union(self, other: Rect) -> Rect:
        """Return the least rectangle around both."""
        left, top = min(self.left, other.left), min(self.top, other.top)
        right = max(self.left + self.width, other.left + other.width)
        bottom = max(self.top + self.height, other.top + other.height)
        return Rect(left, top, right - left, bottom - top)

    def centre(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the centre (x, y) as shares of width and height of an image of size (H, W)."""
        return (self.left + self.width / 2) / size[1], (self.top + self.height / 2) / size[0]


def bounds_of(mask: BoolArray) -> Rect:
    """Return the bounding box of a mask bool [H, W] that is not empty."""
    return Rect(*(int(number) for number in cv2.boundingRect(mask.astype(np.uint8))))


def boxes_of(mask: BoolArray, margin: float = 0.1, *, per_component: bool = False) -> list[Rect]:
    """Return the bounding boxes of a mask's defect with a margin, clipped to the image.

    Args:
        mask: bool [H, W], true at the defect.
        margin: Margin on each side as a share of the box's side; never less than 8 pixels at 512.
        per_component: One rectangle per connected component (8-connectivity), from top to bottom, not one for all;
            components whose rectangles overlap share one, so that a speck beside its defect is no defect of its own.

    Returns:
        The rectangles; none for an empty mask.

    Raises:
        ArgumentError: If the margin is negative or above 1.
    """
    if not 0 <= margin <= 1:
        raise ArgumentError(f"margin: expected a share of the box's side from 0 to 1, got {margin:g}.")
    if not mask.any():
        return []
    if not per_component:
        return [_with_margin(bounds_of(mask), margin, mask.shape)]
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    # Row 0 of the statistics is the background. Sorted, because the order of labels is not specified by OpenCV.
    components = sorted((int(top), int(left), int(w), int(h)) for left, top, w, h, _ in stats[1:])
    boxes: list[Rect] = []
    for top, left, w, h in components:
        joined = _with_margin(Rect(left, top, w, h), margin, mask.shape)
        # Again from the start after each union: the larger rectangle may reach one that the smaller one missed.
        while other := next((box for box in boxes if box.overlaps(joined)), None):
            boxes.remove(other)
            joined = joined.union(other)
        boxes.append(joined)
    return sorted(boxes, key=lambda box: (box.top, box.left))


def mask_of(boxes: Sequence[Rect], size: tuple[int, int]) -> BoolArray:
    """Return bool [H, W] for a size (H, W), true inside any of the boxes."""
    mask = np.zeros(size, np.bool_)
    for box in boxes:
        mask |= box.to_mask(size)
    return mask


def _with_margin(box: Rect, margin: float, size: tuple[int, ...]) -> Rect:
    height, width = size
    # Rounded up: a margin of less than a pixel is still one.
    dx = int(np.ceil(max(MIN_MARGIN * width, margin * box.width)))
    dy = int(np.ceil(max(MIN_MARGIN * height, margin * box.height)))
    left, top = max(box.left - dx, 0), max(box.top - dy, 0)
    right, bottom = min(box.left + box.width + dx, width), min(box.top + box.height + dy, height)
    return Rect(left, top, right - left, bottom - top)
