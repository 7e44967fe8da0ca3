"""Places by correspondence: where a normal image is most like the surroundings that a defect was seen in.

Image and support image are described on a grid of cells, without a network: mean colour, and the strength of edges in
four directions at two scales, each channel by its deviation from the image's own mean, so that a brighter photograph
is no other place. The descriptions of the ring of cells around the defect are laid on every place of the normal image;
a place is as like as the mean cosine of the angles between them, where a cell beyond the border is like nothing. One of
the places in the top share is drawn. What the border has cut is compared along that border alone.

Source: the mask placement of MAGIC (arXiv:2507.02314), which compares the features of a large network at key points.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.datasets.drawing.places import SeenPlace, place_of_box
from flawscope.imaging.boxes import Rect

GRID = 64
"""Cells along the longer side of an image."""

CHANNELS = 11
"""Numbers that describe a cell: three of colour, and edges in four directions at two scales."""

TOP_SHARE = 0.05
"""Share of the places that count as most alike."""

_CELL_PX = 4  # pixels of a cell in the reduced image whose edges are measured
_LEAST_RING = 2  # cells
_PLAIN = 1.0  # grey levels: what varies less is plain, and its noise must not become a pattern
_DECIMALS = 4  # of a likeness: places that differ by rounding alone are equally like


@dataclass(frozen=True)
class Surroundings:
    """What was around a seen defect.

    Attributes:
        cells: Descriptions of the cells around it, each of length 1, float32 [h, w, C]; 0 on the defect itself.
        start: Row and column of the defect's centre, in cells from the first one.
        place: Where the defect lay.
    """

    cells: Float32Array
    start: tuple[float, float]
    place: SeenPlace


def surroundings_of(image: UInt8Array, mask: BoolArray, box: Rect) -> Surroundings | None:
    """Return what is around a defect, or None if other defects are all that is around it.

    A box that fills its image, but for less than a cell, has empty surroundings: all of its few places are as good.

    Args:
        image: The image with the defect, uint8 [H, W, 3] RGB.
        mask: All its defects, bool [H, W]: no part of one belongs to the surroundings of another.
        box: The box around this one.
    """
    size = (image.shape[0], image.shape[1])
    height, width = _grid(size)
    own, taken = _covered(box.to_mask(size), (height, width)), _covered(mask | box.to_mask(size), (height, width))
    cells = np.zeros((height, width, CHANNELS), np.float32) if taken.all() else _describe(image, np.asarray(~taken))
    down, across = height / size[0], width / size[1]
    top, bottom = box.top * down, (box.top + box.height) * down
    left, right = box.left * across, (box.left + box.width) * across
    ring = max(_LEAST_RING, round(max(bottom - top, right - left) / 2))
    rows = slice(max(int(top) - ring, 0), min(int(np.ceil(bottom)) + ring, height))
    columns = slice(max(int(left) - ring, 0), min(int(np.ceil(right)) + ring, width))
    around = np.where(taken[rows, columns, None], np.float32(0.0), cells[rows, columns])
    if taken[rows, columns].all() and not own.all():
        return None
    start = ((top + bottom) / 2 - rows.start, (left + right) / 2 - columns.start)
    return Surroundings(np.asarray(around, np.float32), start, place_of_box(box, size))


def _covered(mask: BoolArray, grid: tuple[int, int]) -> BoolArray:
    """Return the cells that hold a pixel of a mask: none of them belongs to the surroundings."""
    return np.asarray(cv2.resize(mask.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA) > 0)


class Correspondence:
    """A normal image, whose places are compared with the surroundings of seen defects."""

    def __init__(self, image: UInt8Array) -> None:
        """Describe an image, uint8 [H, W, 3] RGB."""
        self._cells = _describe(image, None)
        self._found: dict[int, tuple[Surroundings, Float32Array]] = {}

    def centres(self, around: Surroundings) -> Float32Array:
        """Return where a defect may lie: centres (x, y) as shares of width and height, float32 [K, 2]."""
        # With the surroundings themselves: an id alone could be that of an object that is gone.
        known = self._found.get(id(around))
        if known is None:
            known = self._found[id(around)] = (around, _most_alike(self._cells, around))
        return known[1]


def _most_alike(cells: Float32Array, around: Surroundings) -> Float32Array:
    height, width = cells.shape[:2]
    rows, columns = around.cells.shape[:2]
    # Beyond the border there is nothing, which is like nothing: a row or column of it for every shift.
    padded = np.pad(cells, ((rows, rows), (columns, columns), (0, 0)))
    likeness = np.zeros((height + rows + 1, width + columns + 1), np.float32)
    # OpenCV correlates one channel at a time where it takes any number of them.
    for channel in range(cells.shape[2]):
        plane, part = (np.ascontiguousarray(array[..., channel]) for array in (padded, around.cells))
        likeness += cv2.matchTemplate(plane, part, cv2.TM_CCORR)
    count = np.count_nonzero(np.abs(around.cells).sum(axis=2))
    likeness = np.round(likeness / max(count, 1), _DECIMALS)
    y = (np.arange(likeness.shape[0]) - rows + around.start[0]) / height
    x = (np.arange(likeness.shape[1]) - columns + around.start[1]) / width
    down = _allowed(y, around.place.top, around.place.bottom, around.place.height, height)
    across = _allowed(x, around.place.left, around.place.right, around.place.width, width)
    values = likeness[np.ix_(down, across)]
    wanted = max(1, round(TOP_SHARE * values.size))
    # With all that are as like as the last of them: the first of equals would lie at the top left.
    chosen = np.argwhere(values >= np.partition(values, values.size - wanted, axis=None)[values.size - wanted])
    return np.stack([x[across][chosen[:, 1]], y[down][chosen[:, 0]]], axis=1).astype(np.float32)


def _allowed(centres: Float32Array, before: float, after: float, side: float, cells: int) -> np.ndarray:
    """Return which centres leave a defect in the image, or at the border that it touched, where there is any."""
    first, last = side / 2, 1 - side / 2
    if SeenPlace(before, 0.0, after, 0.0).sides[0]:
        last = first
    elif SeenPlace(before, 0.0, after, 0.0).sides[2]:
        first = last
    # Half a cell beyond, and the nearest in any case: centres lie on a grid that the limits do not.
    slack = 0.5 / cells
    near = (centres >= first - slack) & (centres <= last + slack)
    if not near.any():
        near[np.argmin(np.abs(centres - (first + last) / 2))] = True
    return np.flatnonzero(near)


def _grid(size: tuple[int, int]) -> tuple[int, int]:
    scale = GRID / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def _describe(image: UInt8Array, where: BoolArray | None) -> Float32Array:
    """Return the description of every cell, of length 1 or, where nothing stands out, below; float32 [h, w, 11].

    Args:
        image: uint8 [H, W, 3] RGB.
        where: Cells whose mean and deviation are taken, bool [h, w]; None for all.
    """
    height, width = _grid((image.shape[0], image.shape[1]))
    pixels = _resized(image, _CELL_PX * height, _CELL_PX * width).astype(np.float32)
    grey = pixels.mean(axis=2)
    red, green, blue = (pixels[..., index] for index in range(3))
    planes = [grey, red - blue, green - (red + blue) / 2]
    coarse = _resized(grey, 2 * height, 2 * width)
    for scale in (grey, coarse):
        across, down = cv2.Scharr(scale, cv2.CV_32F, 1, 0) / 32, cv2.Scharr(scale, cv2.CV_32F, 0, 1) / 32
        planes += [np.abs(across), np.abs(down), np.abs(across + down) / 2, np.abs(across - down) / 2]
    cells = np.stack([_resized(plane, height, width) for plane in planes], axis=2)
    chosen = cells.reshape(-1, cells.shape[2]) if where is None else cells[where]
    # Not below a grey level: what hardly varies says nothing about a place.
    cells = (cells - chosen.mean(axis=0)) / np.maximum(chosen.std(axis=0), _PLAIN)
    length = np.sqrt(np.square(cells).sum(axis=2, keepdims=True))
    return np.asarray(cells / np.maximum(length, 1.0), np.float32)


def _resized(plane: np.ndarray, height: int, width: int) -> Float32Array:
    is_smaller = height * width < plane.shape[0] * plane.shape[1]
    method = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(plane, (width, height), interpolation=method))
