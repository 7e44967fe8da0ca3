"""Lost texture: a box that was drawn much smoother than the material was there, and than any real defect is.

A small network fills a large box with a smooth grey area. Such an area differs from the normal image, lies in its box
and has a mask, and is no defect. The texture of a box is the root mean square of what a narrow blur takes out of it;
how much of it is left is compared with what real defects of the type leave, since a real defect may be smooth, too:

    left    texture(drawn, box) / texture(normal image, box)
    least   the least texture(support, a part, or its box) / texture(support, surroundings of that box)
    value   left / least, 1 at most

Every box is filtered by itself, so that nothing outside of it counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.imaging.boxes import Rect, bounds_of, boxes_of

_BLUR_PX = 1.5
_LEAST_TEXTURE = 0.5
"""Grey levels: below, a surface is plain (rounding alone is 0.3), and has no texture that could be lost."""

_LEAST_PIXELS = 64
"""Of fewer the texture is a matter of chance."""


def texture_left(drawn: UInt8Array, good: UInt8Array, region: BoolArray, shares: Sequence[float]) -> float | None:
    """Return how much texture a drawn box has left, as a share of what the smoothest support defect leaves, 0 to 1.

    Args:
        drawn: The image with the defect, uint8 [H, W, 3] RGB.
        good: The normal image, uint8 [H, W, 3] RGB.
        region: Where the defect was drawn, bool [H, W], not empty.
        shares: What the real defects of the type leave; see `texture_shares`.

    Returns:
        None where nothing can be compared: a region of less than 64 pixels, a normal image that is plain there, or no
        support defect with textured surroundings.
    """
    before = _texture(good, bounds_of(region), region)
    after = _texture(drawn, bounds_of(region), region)
    if before is None or after is None or before < _LEAST_TEXTURE or not shares:
        return None
    # No division: a support defect without any texture allows everything.
    return 1.0 if after >= min(shares) * before else after / before / min(shares)


def texture_shares(image: UInt8Array, mask: BoolArray) -> list[float]:
    """Return the texture of each part of a real defect as a share of that of its surroundings.

    Parts that are too small, and those whose surroundings are plain or none, are left out.

    Args:
        image: The image with the defect, uint8 [H, W, 3] RGB.
        mask: The defect, bool [H, W].
    """
    size, shares = (mask.shape[0], mask.shape[1]), []
    for box in boxes_of(mask, per_component=True):
        reach = max(box.width, box.height) // 2 + 8
        left, top = max(box.left - reach, 0), max(box.top - reach, 0)
        right, bottom = min(box.left + box.width + reach, size[1]), min(box.top + box.height + reach, size[0])
        around = ~mask & ~box.to_mask(size)
        part = mask & box.to_mask(size)
        # The smoother of the two: around a smooth defect the margin of its box may hold much grain.
        inside = [
            texture
            for texture in (_texture(image, box, None), _texture(image, bounds_of(part), part))
            if texture is not None
        ]
        outside = _texture(image, Rect(left, top, right - left, bottom - top), around)
        if inside and outside is not None and outside >= _LEAST_TEXTURE:
            shares.append(min(inside) / outside)
    return shares


def _texture(image: UInt8Array, box: Rect, where: BoolArray | None) -> float | None:
    """Return the texture of a box in grey levels, or of the pixels of it that are marked; None if they are too few."""
    pixels: Float32Array = image[box.window].astype(np.float32)
    fine = pixels - cv2.GaussianBlur(pixels, (0, 0), _BLUR_PX)
    marked = fine.reshape(-1, fine.shape[2]) if where is None else fine[where[box.window]]
    return float(np.sqrt(np.square(marked).mean())) if len(marked) >= _LEAST_PIXELS else None
