"""Contact sheet of the rendered parts: each kind, normal and with every defect, plain and with the mask outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array

_TILE, _GAP, _LABEL = 256, 6, 24  # pixels
_PAPER, _INK, _OUTLINE = (245, 245, 245), (30, 30, 30), (255, 40, 200)


class Tile(NamedTuple):
    """One column of a row: a label, an image uint8 [H, W, 3] and its mask bool [H, W]."""

    label: str
    image: UInt8Array
    mask: BoolArray


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> UInt8Array:
    """Return a labelled sheet, uint8 [H, W, 3] RGB: each row of tiles plain, and below it with masks outlined."""
    columns = max(len(row) for row in rows)
    strip = _LABEL + 2 * (_TILE + _GAP)
    sheet = np.full((len(rows) * strip + _GAP, columns * (_TILE + _GAP) + _GAP, 3), _PAPER, np.uint8)
    for row_number, row in enumerate(rows):
        for column, tile in enumerate(row):
            left, top = _GAP + column * (_TILE + _GAP), row_number * strip + _LABEL
            baseline = (left, top - 7)
            cv2.putText(sheet, tile.label, baseline, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
            image = cv2.resize(tile.image, (_TILE, _TILE), interpolation=cv2.INTER_AREA)
            sheet[top : top + _TILE, left : left + _TILE] = image
            top += _TILE + _GAP
            sheet[top : top + _TILE, left : left + _TILE] = _outlined(np.asarray(image, np.uint8), tile.mask)
    return sheet


def _outlined(image: UInt8Array, mask: BoolArray) -> UInt8Array:
    """Return the image with a thin line just outside the mask, so that the defect itself stays visible."""
    # NEAREST_EXACT: plain INTER_NEAREST rounds coordinates in its own way, and shifts the mask by up to a pixel.
    large = cv2.resize(mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    near = cv2.dilate(large, np.ones((5, 5), np.uint8))
    line = cv2.dilate(near, np.ones((3, 3), np.uint8)) > near
    drawn = image.copy()
    drawn[line] = _OUTLINE
    return drawn
