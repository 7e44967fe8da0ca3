"""Where the part lies on the image that a region of interest was drawn on, so that the region can follow it.

A part that lies further off than the region may follow, or whose place cannot be told, is an error: a region that is
not where the part is inspects nothing.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array
from flawscope.bundle.small_drawing import decode_drawing
from flawscope.errors import ArgumentError, BundleError, ImageError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.part_shift import LOBE, SIDE, Box, Found, PartFinder, part_thumbnail, thumbnail_size
from flawscope.imaging.png import encode_png
from flawscope.ranges import NotNegative, PositiveCount

MOST_FOLLOWED = 0.25
"""Longest shift that a region follows, as a share of the longest side of the image."""
_MOST_BYTES = 1 << 17
"""Of a thumbnail's PNG; one of noise has half of it."""
_MARGIN = SIDE // 8
"""Pixels of the thumbnail around what counts that the part is known by as well."""
_Place = Annotated[int, msgspec.Meta(ge=0, le=SIDE)]


class PartPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the part looks like where it lies, and how far off it may be.

    Attributes:
        png: Grey thumbnail of the part, its longest side 256 pixels, a PNG; base64 in the JSON.
        box: Top, left, bottom and right of what is compared, in pixels of the thumbnail.
        follow_px: Largest shift down or right that is followed, in pixels of an image of the region's size.
        least_clear: How far the correlation at the shift has to be above that at all others, or no place is told.
        images: How many images the thumbnail is the mean of.
        measured: How many normal images the shifts below were measured on; 0 where none were given.
        median_px: Their median shift, the longer of down and right, in pixels of an image of the region's size.
        largest_px: Their largest one.
    """

    png: Annotated[bytes, msgspec.Meta(min_length=8, max_length=_MOST_BYTES)]
    box: tuple[_Place, _Place, _Place, _Place]
    follow_px: Annotated[float, msgspec.Meta(gt=0.0)]
    # Below a tenth shifts are told that are not there.
    least_clear: Annotated[float, msgspec.Meta(ge=0.1, le=1.0)]
    images: PositiveCount
    measured: Annotated[int, msgspec.Meta(ge=0)]
    median_px: NotNegative
    largest_px: NotNegative

    @property
    def line(self) -> str:
        """What it does, for people."""
        usual = f", on {self.measured} normal images {self.largest_px:.1f} at most" if self.measured else ""
        return f"follows the part up to {self.follow_px:g} pixels{usual}"


class PartShift(NamedTuple):
    """How far a part lies from where the region was drawn.

    Attributes:
        right: Pixels of the image.
        down: Pixels of the image.
        size: Its height and width.
    """

    right: float
    down: float
    size: tuple[int, int]

    @property
    def line(self) -> str:
        """In words, such as `12 pixels right and 3 down`."""
        across = f"{abs(self.right):.0f} pixels {'right' if self.right >= 0 else 'left'}"
        return f"{across} and {abs(self.down):.0f} {'down' if self.down >= 0 else 'up'}"

    def on(self, mask: BoolArray) -> tuple[int, int]:
        """Return the shift down and right in whole pixels of a mask that shows what the image shows, bool [h, w]."""
        return round(self.down * mask.shape[0] / self.size[0]), round(self.right * mask.shape[1] / self.size[1])


def reach_of(follow_px: float, size: tuple[int, int]) -> int:
    """Return the largest shift that has to be looked at, in pixels of a thumbnail, so that a longer one is noticed.

    Raises:
        ArgumentError: If the shift is none that a region follows on an image of a size (H, W).
    """
    most = MOST_FOLLOWED * max(size)
    # NaN fails the comparison.
    if not 0.0 < follow_px <= most:
        raise ArgumentError(
            f"--follow: expected 0 to {most:g} pixels, a quarter of the longest side, got {follow_px:g}. Choose less, "
            "or fix the part."
        )
    return int(np.ceil(follow_px * SIDE / max(size))) + 2 * LOBE


def part_box(counted: BoolArray) -> Box:
    """Return what of a thumbnail shows what counts in a mask bool [H, W], and a margin."""
    height, width = thumbnail_size(*counted.shape)
    ends = []
    for axis, side in ((1, height), (0, width)):
        places = np.flatnonzero(counted.any(axis=axis)) * side / counted.shape[1 - axis]
        ends.append((max(0, int(places[0]) - _MARGIN), min(side, int(places[-1]) + 1 + _MARGIN)))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def encode_thumbnail(thumbnail: Float32Array) -> bytes:
    """Return a thumbnail, float32 [h, w], as it is stored."""
    return encode_png(np.rint(thumbnail).clip(0, 255).astype(np.uint8))


class PartFollower:
    """Tells where the part of an image lies.

    Args:
        place: That of a bundle's region.
        size: Height and width in pixels of the image that the region was drawn on.
        where: What the bundle is called in messages.

    Raises:
        BundleError: If the thumbnail is broken.
    """

    def __init__(self, place: PartPlace, size: tuple[int, int], where: str) -> None:
        self._place, self._drawn = place, size
        self._size = thumbnail_size(*size)
        top, left, bottom, right = place.box
        try:
            thumbnail = decode_drawing(place.png, "part", SIDE)
            reach = reach_of(place.follow_px, size)
        except (ImageError, ArgumentError) as err:
            raise BundleError(f"{where}: expected a part that the region follows, got {err} Set it again.") from err
        if (
            thumbnail.dtype != np.uint8
            or thumbnail.shape != self._size
            or not (top < bottom <= self._size[0] and left < right <= self._size[1])
        ):
            raise BundleError(
                f"{where}: expected a grey thumbnail of {list(self._size)} with a box in it, got "
                f"{list(thumbnail.shape)} and {list(place.box)}. Set the region again."
            )
        self._finder = PartFinder(thumbnail.astype(np.float32), place.box, reach)

    def shift_of(self, image: UInt8Array) -> PartShift:
        """Return how far the part of an image uint8 [H, W, 3] lies from where the region was drawn.

        Raises:
            ImageError: If it cannot be told, or is further than the region follows.
        """
        found = self._finder.find(part_thumbnail(image, self._size))
        if not found.clear >= self._place.least_clear:
            raise ImageError(
                "the place of the part cannot be told, so the region of interest cannot follow it (clear "
                f"{found.clear:.2f}, at least {self._place.least_clear:.2f} is needed)"
            )
        here, drawn = (self._scaled(found, size) for size in ((image.shape[0], image.shape[1]), self._drawn))
        # In whole pixels: a part that lies exactly as far off as allowed may be measured a hundredth further.
        if max(round(abs(drawn.down)), round(abs(drawn.right))) > self._place.follow_px:
            raise ImageError(
                f"the part lies {drawn.line} of where the region of interest was drawn, more than the "
                f"{self._place.follow_px:g} pixels that it follows"
            )
        return here

    def _scaled(self, found: Found, size: tuple[int, int]) -> PartShift:
        return PartShift(found.right * size[1] / self._size[1], found.down * size[0] / self._size[0], size)


def move_mask(mask: BoolArray, down: int, right: int) -> BoolArray:
    """Return a mask bool [h, w] moved by whole pixels; what reaches an edge is taken to go on beyond it."""
    rows, columns = (
        np.clip(np.arange(side) - by, 0, side - 1) for side, by in zip(mask.shape, (down, right), strict=True)
    )
    return np.asarray(mask[rows][:, columns], np.bool_)


def edge_left(mask: BoolArray, down: int, right: int, spec: Preprocessing | None) -> str | None:
    """Return at which edge a mask that is moved leaves the part of the image that is inspected; None if at none.

    At an edge that it reached before, it is the image that ends there and not the region.

    Args:
        mask: bool [h, w], not all false.
        down: Pixels of the mask.
        right: Pixels of the mask.
        spec: The geometry of the map, whose crop counts; None where it shows the whole image.
    """
    for axis, by, names in ((0, down, ("top", "bottom")), (1, right, ("left", "right"))):
        side = mask.shape[axis]
        low, high = 0.0, float(side)
        if spec is not None:
            low = spec.offset[axis] * side / spec.resize[axis]
            high = low + spec.size[axis] * side / spec.resize[axis]
        places = np.flatnonzero(mask.any(axis=1 - axis))
        first, last = int(places[0]), int(places[-1]) + 1
        if first + by < low < first:
            return names[0]
        if last < high < last + by:
            return names[1]
    return None
