"""Foreground segmentation of a part before a plain background, and the share of a rectangle that lies in it.

Source: AnoGen (ECCV 2024), foreground masks: Otsu's threshold on the grey image, then a closing by an ellipse of 15
pixels at 256. Departure: whether the dark or the bright side is background is decided by the majority of border pixels,
not by the top left one alone, which may be a speck.
"""

from __future__ import annotations

import cv2
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array

_CLOSING = 15 / 256  # diameter of the ellipse as a share of the shorter side


def find_foreground(image: UInt8Array, *, is_solid: bool = False) -> BoolArray:
    """Return bool [H, W], true on the part, for an image uint8 [H, W, 3] RGB.

    Meant for a part before a plain background. An image that the part fills, such as a texture, is split into bright
    and dark areas, which means nothing: check the contact sheet. An image of a single grey level is all background.

    Args:
        image: The image.
        is_solid: The part has no holes: all that its outline encloses is foreground.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    part = np.asarray(binary > 0)
    border = np.concatenate([part[0], part[-1], part[1:-1, 0], part[1:-1, -1]])
    if 2 * int(border.sum()) > border.size:
        part = ~part
    # | 1: an odd diameter, so that the ellipse has a centre.
    side = max(round(_CLOSING * min(part.shape)), 1) | 1
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    part = np.asarray(cv2.morphologyEx(part.astype(np.uint8), cv2.MORPH_CLOSE, ellipse) > 0)
    return _without_holes(part) if is_solid else part


def _without_holes(part: BoolArray) -> BoolArray:
    """Return the part with its holes filled: areas of background that do not touch the border."""
    # 4-connectivity: an outline that is closed only diagonally still encloses.
    _, labels = cv2.connectedComponents((~part).astype(np.uint8), connectivity=4)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.asarray(part | ~np.isin(labels, border))


class Coverage:
    """A mask that counts its pixels in any rectangle in constant time (summed-area table).

    Attributes:
        mask: bool [H, W].
    """

    def __init__(self, mask: BoolArray) -> None:
        self.mask = mask
        self._sums = cv2.integral(mask.astype(np.uint8))

    @property
    def total(self) -> int:
        """Number of true pixels."""
        return int(self._sums[-1, -1])

    def count(self, left: int, top: int, width: int, height: int) -> int:
        """Return how many true pixels the rectangle holds, which lies inside the image."""
        sums, right, bottom = self._sums, left + width, top + height
        return int(sums[bottom, right]) - int(sums[top, right]) - int(sums[bottom, left]) + int(sums[top, left])
