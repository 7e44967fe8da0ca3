"""Where the part is in an image, and how much of a rectangle lies there.

Source: AnoGen (ECCV 2024), second way of its mask sets: Otsu's threshold on the grey image, then a closing by an
ellipse of 15 pixels at 256. Departure: what is dark and what is bright is background is told by most of the border's
pixels, not by the top left one alone, which may be a speck.
"""

from __future__ import annotations

import cv2
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array

_CLOSING = 15 / 256  # diameter of the ellipse as a part of the shorter side


def find_foreground(image: UInt8Array, *, is_solid: bool = False) -> BoolArray:
    """Return bool [H, W], true on the part, for an image uint8 [H, W, 3] RGB.

    It is meant for a part before a plain background. An image that the part fills, such as a texture, splits into
    its bright and its dark areas, which says nothing: look at the contact sheet. Of one single grey level all is
    background.

    Args:
        image: The image.
        is_solid: The part has no holes: what its outline encloses belongs to it, however dark or bright.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    _, binary = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    part = np.asarray(binary > 0)
    border = np.concatenate([part[0], part[-1], part[1:-1, 0], part[1:-1, -1]])
    if 2 * int(border.sum()) > border.size:
        part = ~part
    side = max(round(_CLOSING * min(part.shape)), 1) | 1
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    part = np.asarray(cv2.morphologyEx(part.astype(np.uint8), cv2.MORPH_CLOSE, ellipse) > 0)
    return _without_holes(part) if is_solid else part


def _without_holes(part: BoolArray) -> BoolArray:
    """Return the part with every area of background that does not reach the border."""
    _, labels = cv2.connectedComponents((~part).astype(np.uint8), connectivity=4)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.asarray(part | ~np.isin(labels, border))


class Coverage:
    """A mask that tells how many of its pixels lie in a rectangle, in constant time.

    Attributes:
        mask: bool [H, W].
    """

    def __init__(self, mask: BoolArray) -> None:
        self.mask = mask
        self._sums = cv2.integral(mask.astype(np.uint8))

    @property
    def total(self) -> int:
        """How many pixels of the mask are true."""
        return int(self._sums[-1, -1])

    def count(self, left: int, top: int, width: int, height: int) -> int:
        """Return how many true pixels the rectangle holds, which lies inside the image."""
        sums, right, bottom = self._sums, left + width, top + height
        return int(sums[bottom, right]) - int(sums[top, right]) - int(sums[bottom, left]) + int(sums[top, left])
