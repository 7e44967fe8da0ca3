"""What becomes of a decoded drawing: its precise mask, the paste into the normal image, and the verdict.

All of it is computed in the window that the model drew, with a margin, and not on the whole image: a box of a few
pixels in a large image costs what it costs in a small one. The results are those of the whole image bit for bit,
because nothing beyond the window can have changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.imaging.boxes import bounds_of
from flawscope.imaging.crops import Crop, cut_mask
from flawscope.imaging.images import MIN_SIDE_PX
from flawscope.runtime.synthesis.draw_options import DrawOptions
from flawscope.runtime.synthesis.memorization import SupportPatch, outline_margin
from flawscope.runtime.synthesis.paste import feather_mask, paste_drawn
from flawscope.runtime.synthesis.precise_masks import PreciseMask, precise_mask
from flawscope.runtime.synthesis.quality import Verdict, judge_image
from flawscope.runtime.synthesis.texture import texture_contrast
from flawscope.runtime.synthesis.tone import match_tone


class Finished(NamedTuple):
    """The image with its defect, uint8 [H, W, 3]; the precise mask, bool [H, W]; the verdict."""

    image: UInt8Array
    mask: BoolArray
    verdict: Verdict


def finish_drawing(
    good: UInt8Array,
    region: BoolArray,
    crop: Crop,
    drawn: UInt8Array,
    known: UInt8Array,
    options: DrawOptions,
    supports: Sequence[SupportPatch] = (),
    numbers: Float32Array | None = None,
) -> Finished:
    """Return a drawing as it is kept, with its mask and its verdict.

    Args:
        good: The normal image, uint8 [H, W, 3] RGB; it is not changed.
        region: Where the defect was asked for, bool [H, W], not empty.
        crop: The window that the model drew; the region lies in it.
        drawn: What it drew, uint8 [*crop.size, 3].
        known: The autoencoder's reconstruction of the window without a defect, uint8 [*crop.size, 3].
        options: How the drawing is pasted and measured, as `DrawOptions.resolved` gives it.
        supports: Support patches of the defect.
        numbers: The decoder's output before the cast, float32, where NaN can still be seen.

    Raises:
        ArgumentError: If shapes differ, or the window is not in the image.
    """
    view = _view(region, crop)
    near, marked = good[view], region[view]
    local = Crop(crop.top - view[0].start, crop.left - view[1].start, crop.height, crop.width, crop.size)
    if options.tone == "match":
        drawn = match_tone(drawn, known, cut_mask(marked, local))
    everywhere = np.zeros(marked.shape, np.float32)
    everywhere[local.window] = 1.0
    # The mask is measured before the feathered paste: there the noise outside the box can still be seen.
    whole = paste_drawn(near, drawn, local, everywhere)
    # MvP-Diff compares with the normal image itself, and so takes the autoencoder's losses for changes.
    before = near if options.mask.method == "cosine" else paste_drawn(near, known, local, everywhere)
    precise, texture = mask_in_window(whole, before, marked, local, options)
    weight = everywhere
    if not options.is_parity:
        # Times `everywhere`: near the border of the image the feather would reach beyond the window.
        weight = feather_mask(marked, options.feather_px) * everywhere
    pasted = paste_drawn(near, drawn, local, weight, known if options.paste == "change" else None)
    verdict = judge_image(
        pasted,
        near,
        marked,
        precise,
        supports,
        options.limits,
        pasted=weight > 0,
        decoded=numbers,
        texture=texture,
    )
    image, mask = good.copy(), np.zeros_like(region)
    image[view], mask[view] = pasted, precise.mask
    return Finished(image, mask, verdict)


def mask_in_window(
    whole: UInt8Array, good: UInt8Array, region: BoolArray, crop: Crop, options: DrawOptions
) -> tuple[PreciseMask, float]:
    """Return the precise mask of a drawing before the feathered paste, at the image's size, and its texture contrast.

    Only the window is compared. The rest of the image cannot differ, and so many equal pixels would hide the decoder's
    own noise, which the comparison estimates from the pixels outside the region.
    """
    spans = ((crop.top, crop.height), (crop.left, crop.width))
    rows, columns = (_span(*span, side) for span, side in zip(spans, region.shape, strict=True))
    precise = precise_mask(whole[rows, columns], good[rows, columns], region[rows, columns], options.mask)
    mask = np.zeros_like(region)
    mask[rows, columns] = precise.mask
    texture = texture_contrast(good[rows, columns], region[rows, columns], options.mask)
    return dataclasses.replace(precise, mask=mask), texture


def _view(region: BoolArray, crop: Crop) -> tuple[slice, slice]:
    """Return rows and columns of all that finishing looks at: the window, and a margin around it.

    The margin holds the pixels beside a paste that ends at the window's border, between which a seam is looked for, and
    the outline of a defect that fills its region.
    """
    box = bounds_of(region)
    margin = outline_margin(box.width, box.height)
    spans = ((crop.top, crop.height), (crop.left, crop.width))
    inner = (_span(*span, side) for span, side in zip(spans, region.shape, strict=True))
    rows, columns = (
        slice(max(0, part.start - margin), min(side, part.stop + margin))
        for part, side in zip(inner, region.shape, strict=True)
    )
    return rows, columns


def _span(start: int, length: int, side: int) -> slice:
    """Return a part of an image's side of at least `MIN_SIDE_PX`, below which images are refused."""
    length = max(length, MIN_SIDE_PX)
    start = min(start, side - length)
    return slice(start, start + length)
