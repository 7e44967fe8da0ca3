"""Tiling of large images: tile positions, cutting, and blending of the tiles' anomaly maps without seams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.errors import ArgumentError, ImageError
from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import read_encoded, read_image
from flawscope.ranges import MAX_SIDE


class Tiling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image is cut into tiles.

    Attributes:
        size: Height and width of a tile in pixels of the image; a tile is what is resized to the graph's input.
        overlap: Least share of a tile that its neighbour shows too, 0 to 0.5; spacing tiles evenly may make it more.
    """

    size: tuple[int, int]
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if min(self.size) < 16 or max(self.size) > MAX_SIDE:
            sides = f"16 to {MAX_SIDE} pixels"
            raise ArgumentError(f"tile: expected height and width from {sides}, got {list(self.size)}.")
        if not 0.0 <= self.overlap <= 0.5:
            raise ArgumentError(f"tile_overlap: expected a share from 0 to 0.5, got {self.overlap}.")

    def corners(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return top and left of every tile of an image, row by row; together they cover it."""
        return [
            (top, left)
            for top in _starts(height, self.size[0], self.overlap)
            for left in _starts(width, self.size[1], self.overlap)
        ]

    def cut(self, image: UInt8Array, corner: tuple[int, int]) -> UInt8Array:
        """Return a tile uint8 [h, w, 3]; an image smaller than a tile is padded by reflection."""
        top, left = corner
        part = image[top : top + self.size[0], left : left + self.size[1]]
        below, right = self.size[0] - part.shape[0], self.size[1] - part.shape[1]
        if below == 0 and right == 0:
            return part
        padded = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_REFLECT_101)
        return padded.astype(np.uint8, copy=False)


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles begin along one axis: the fewest that reach the overlap, spaced evenly."""
    if length <= tile:
        return [0]
    step = max(1, int(tile * (1.0 - overlap)))
    # -(-a // b) rounds up.
    count = -(-(length - tile) // step) + 1
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


class MapBlender:
    """Blends the anomaly maps of tiles into that of the whole image.

    A weighted mean: a tile's weight falls from its middle to its edge (squared sine along both axes), so no seam shows.
    Memory is that of the map and its weights, whatever the number of tiles.

    Args:
        size: Height and width of the image in pixels.
        tiling: How it was cut into tiles.
    """

    def __init__(self, size: tuple[int, int], tiling: Tiling) -> None:
        self._tiling = tiling
        self._sums = np.zeros(size, np.float32)
        self._weights = np.zeros(size, np.float32)
        # 1e-3 keeps weights above 0 at the border of the image, where a pixel has one tile alone.
        down, across = (np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 + 1e-3 for side in tiling.size)
        self._window = np.outer(down, across).astype(np.float32)

    def add(self, corner: tuple[int, int], tile_map: Float32Array) -> None:
        """Add the map of a tile, float32 [h, w] of any size."""
        top, left = corner
        height, width = self._tiling.size
        # The map has the size of the graph's input; a tile may be larger or smaller in the image.
        larger = cv2.resize(tile_map, (width, height), interpolation=cv2.INTER_LINEAR)
        place = (slice(top, top + height), slice(left, left + width))
        rows, columns = self._sums[place].shape  # slicing cuts off what reaches beyond an image smaller than a tile
        self._sums[place] += (larger * self._window)[:rows, :columns]
        self._weights[place] += self._window[:rows, :columns]

    def finish(self) -> Float32Array:
        """Return the map, float32 [H, W]; call it once, as it divides the sums in place."""
        self._sums /= self._weights
        return self._sums


@dataclass(frozen=True)
class Tile:
    """A tile of an image file."""

    path: Path
    corner: tuple[int, int]
    tiling: Tiling

    def __str__(self) -> str:
        return f"{self.path} at row {self.corner[0]}, column {self.corner[1]}"


ImageSource = Path | Tile
"""What training reads: an image file, or a tile of one."""


def tiles_of(path: Path, tiling: Tiling) -> Iterator[Tile]:
    """Yield the tiles of an image file; only its header is decoded.

    Raises:
        ImageError: If it is not an image.
    """
    header = read_header(read_encoded(path))
    if header is None:
        raise ImageError(f"{path}: expected an image, got other or broken bytes. Remove the file or save it again.")
    for corner in tiling.corners(header.height, header.width):
        yield Tile(path, corner, tiling)


def read_source(image: ImageSource, bits: int | None = None) -> UInt8Array:
    """Read a file, or a tile of one, to uint8 [H, W, 3] RGB; see `flawscope.imaging.images.read_image`."""
    if isinstance(image, Path):
        return read_image(image, bits)
    return image.tiling.cut(_read_again(image.path, bits), image.corner)


# Module-wide and not locked: dict operations are atomic under the interpreter lock, and a lost race only decodes twice.
_last: dict[tuple[str, int | None], UInt8Array] = {}


def _read_again(path: Path, bits: int | None) -> UInt8Array:
    """Return the image of a file, from memory if it was the last one read: its tiles are read one after another."""
    name = str(path), bits
    image = _last.get(name)
    if image is None:
        image = read_image(path, bits)
        _last.clear()  # one image in all, whatever the number of readers: large ones would fill the memory
        _last[name] = image
    return image
