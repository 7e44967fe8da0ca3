"""Contact sheets of image sets: rows of images of any size, with masks and boxes outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array

_TILE, _GAP, _LABEL, _TITLE = 192, 8, 18, 26  # pixels
_PAPER, _INK, _FAINT = (245, 245, 245), (30, 30, 30), (110, 110, 110)
_FONT = cv2.FONT_HERSHEY_SIMPLEX

Colour = tuple[int, int, int]
MAGENTA: Colour = (255, 40, 200)
CYAN: Colour = (0, 190, 255)
COLUMNS = 8
"""Most images in a row of a sheet; sets show this many per defect type."""


class Outline(NamedTuple):
    """A mask, bool [H, W] of its image's size, whose edge is drawn in a colour."""

    mask: BoolArray
    colour: Colour = MAGENTA


class Tile(NamedTuple):
    """One image of a row: its label, uint8 [H, W, 3] RGB, and the outlines on it."""

    label: str
    image: UInt8Array
    outlines: tuple[Outline, ...] = ()


class Row(NamedTuple):
    """A title and the images below it."""

    title: str
    tiles: Sequence[Tile]


def draw_sheet(rows: Sequence[Row]) -> UInt8Array:
    """Return a labelled sheet, uint8 [H, W, 3] RGB; images keep their aspect ratio."""
    columns = max((len(row.tiles) for row in rows), default=1)
    strip = _TITLE + _TILE + _LABEL + _GAP
    size = (max(len(rows), 1) * strip + _GAP, max(columns, 2) * (_TILE + _GAP) + _GAP, 3)
    sheet = np.full(size, _PAPER, np.uint8)
    for number, row in enumerate(rows):
        top = number * strip
        cv2.putText(sheet, row.title, (_GAP, top + _TITLE - 7), _FONT, 0.55, _INK, 1, cv2.LINE_AA)
        for column, tile in enumerate(row.tiles):
            left = _GAP + column * (_TILE + _GAP)
            drawn = _drawn(tile)
            height, width = drawn.shape[:2]
            y, x = top + _TITLE + (_TILE - height) // 2, left + (_TILE - width) // 2
            sheet[y : y + height, x : x + width] = drawn
            at = (left, top + _TITLE + _TILE + _LABEL - 5)
            cv2.putText(sheet, _fitting(tile.label), at, _FONT, 0.4, _FAINT, 1, cv2.LINE_AA)
    return sheet


def small_tile(label: str, image: UInt8Array, mask: BoolArray | None = None, colour: Colour = MAGENTA) -> Tile:
    """Return a tile for a sheet, reduced to the size it has there: all tiles of a run stay in memory until its end."""
    scale = min(1.0, _TILE / max(image.shape[:2]))
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    if mask is None:
        return Tile(label, small)
    # By area and not nearest neighbour: a defect of one pixel must not vanish from the sheet.
    inside = cv2.resize(mask.astype(np.uint8) * np.uint8(255), size, interpolation=cv2.INTER_AREA) > 0
    return Tile(label, small, (Outline(np.asarray(inside), colour),))


def _drawn(tile: Tile) -> UInt8Array:
    height, width = tile.image.shape[:2]
    scale = _TILE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    drawn = np.asarray(cv2.resize(tile.image, size, interpolation=method), np.uint8).copy()
    for outline in tile.outlines:
        # By area and above 0: a defect of one pixel must not vanish from the sheet.
        grey = outline.mask.astype(np.uint8) * np.uint8(255)
        inside = (cv2.resize(grey, size, interpolation=method) > 0).astype(np.uint8)
        # The line lies just outside, so that the defect stays visible; at the image's border just inside.
        line = cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside
        line[[0, -1]] |= inside[[0, -1]] > 0
        line[:, [0, -1]] |= inside[:, [0, -1]] > 0
        drawn[line] = outline.colour
    return drawn


def _fitting(label: str) -> str:
    """Return the label, cut at its beginning if it is wider than a tile: file names differ at their end."""
    while cv2.getTextSize(label, _FONT, 0.4, 1)[0][0] > _TILE and len(label) > 4:
        label = f"..{label[4:]}" if label.startswith("..") else f"..{label[2:]}"
    return label
