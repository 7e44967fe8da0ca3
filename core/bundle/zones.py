"""Zones of a bundle: parts of an image that have thresholds of their own.

They are one map of numbers in the manifest, drawn on an image of the part and scaled to every other, as a region of
interest is. What lies in no zone is the zone `rest`. An image has a score for each zone, the largest value of its
anomaly map there, and is rejected where any of them is above the threshold of its zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.bundle.region import LARGEST_SIDE, MOST_BYTES, SMALLEST_SIDE, mask_on_map, stored_size
from flawscope.bundle.small_drawing import decode_drawing
from flawscope.errors import ArgumentError, BundleError, ImageError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.png import encode_png
from flawscope.ranges import MAX_SIDE, Share, Side

REST = "rest"
"""Name of the zone of what lies in no other."""
MOST_ZONES = 32
"""Beside the rest. Each needs its share of the images that thresholds are set on."""
_LONGEST = 64
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=_LONGEST)]


class Zones(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The zones of a bundle.

    Attributes:
        drawn: Their names, in the order in which they were drawn, without the rest.
        png: Which pixel lies in which zone: a grey PNG with i + 1 in zone i and 0 elsewhere; base64 in the JSON.
        size: Height and width in pixels of the image that they were drawn on.
        shares: Share of the image that each takes.
        has_rest: Whether there is anything inside of the region of interest that lies in none of them.
    """

    # One map of numbers and not a mask a zone: so no pixel can lie in two.
    drawn: Annotated[tuple[_Name, ...], msgspec.Meta(min_length=1, max_length=MOST_ZONES)]
    png: Annotated[bytes, msgspec.Meta(min_length=8, max_length=MOST_BYTES)]
    size: tuple[Side, Side]
    shares: tuple[Share, ...]
    has_rest: bool

    def __post_init__(self) -> None:
        """Raise ValueError for names that are not allowed or come twice, or another number of shares."""
        if problem := next((problem for problem in map(_name_problem, self.drawn) if problem), None):
            raise ValueError(problem)
        if len(set(self.drawn)) != len(self.drawn) or len(self.shares) != len(self.drawn):
            raise ValueError("expected zones with a name and a share each, got one twice or without")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all zones; the rest comes last, where there is any."""
        return (*self.drawn, REST) if self.has_rest else self.drawn

    @property
    def numbers(self) -> tuple[int, ...]:
        """What stands in the map of numbers for each of `names`."""
        return (*range(1, len(self.drawn) + 1), 0) if self.has_rest else tuple(range(1, len(self.drawn) + 1))


def make_zones(masks: Mapping[str, BoolArray], inside: BoolArray | None, spec: Preprocessing | None) -> Zones:
    """Return the zones of masks.

    An edge that two zones share, up to two pixels wide, goes to the one that comes first.

    Args:
        masks: Name -> mask of the zone, bool [H, W], all of one size.
        inside: What counts, bool [h, w] of any size: the region of interest; None for everything.
        spec: The geometry of the map; None where it shows the whole image, see `Manifest.map_spec`.

    Raises:
        ArgumentError: If a name is not allowed, a zone is empty, overlaps another, leaves the region by more than an
            edge, or shows nowhere on the map.
    """
    _check_masks(masks)
    shape = next(iter(masks.values())).shape
    numbers = np.zeros(shape, np.uint8)
    for number, (name, mask) in enumerate(masks.items(), 1):
        twice = cv2.erode((mask & (numbers > 0)).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if twice.any():
            other = list(masks)[int(numbers[twice][0]) - 1]
            raise ArgumentError(
                f"zone {name}: expected zones that do not overlap, got one that overlaps {other} in "
                f"{int((mask & (numbers == numbers[twice][0])).sum())} pixels. Draw them apart; edges may be shared."
            )
        numbers[mask & (numbers == 0)] = number
    small = _shrunk(numbers, len(masks))
    counts = np.ones(small.shape, np.bool_) if inside is None else mask_on_map(inside, None, small.shape)
    _check_inside(tuple(masks), small, counts)
    # What is over the edge of the region counts nowhere.
    small[~counts] = 0
    png = encode_png(small)
    if len(png) > MOST_BYTES:
        raise ArgumentError(
            f"zones: expected zones that take at most {MOST_BYTES >> 10} KiB as PNG, got {len(png) >> 10} KiB. Draw "
            "simpler outlines."
        )
    shares = tuple(float((small == number).mean()) for number in range(1, len(masks) + 1))
    left = counts & (small == 0)
    # A sliver that shows nowhere on the map has no score, so it needs no threshold either.
    has_rest = bool(left.any()) and (spec is None or bool(mask_on_map(left, spec, spec.size).any()))
    zones = Zones(tuple(masks), png, (shape[0], shape[1]), shares, has_rest)
    if spec is not None and (hidden := hidden_zone(zones, zones_on_map(small, spec, spec.size))):
        raise ArgumentError(
            f"zone {hidden}: expected a zone in the part of the image that is inspected, got one that the crop of the "
            "bundle cuts off, or that is smaller than a pixel of the map. Draw another."
        )
    return zones


def zone_numbers(zones: Zones, where: str) -> UInt8Array:
    """Return which pixel lies in which zone, uint8 [h, w]: i + 1 in zone i, 0 elsewhere; h and w are at most 1024.

    Args:
        zones: The zones.
        where: What their bundle is called in messages.

    Raises:
        BundleError: If the PNG is broken or larger, or does not hold each of the zones and no other.
    """
    try:
        stored = decode_drawing(zones.png, "zones", LARGEST_SIDE)
    except ImageError as err:
        raise BundleError(f"{where}: expected zones as PNG, got {err} Draw them again.") from err
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise BundleError(f"{where}: expected grey zones of 8 bit, got shape {list(stored.shape)}. Draw them again.")
    expected = set(range(1, len(zones.drawn) + 1))
    if set(np.unique(stored).tolist()) - {0} != expected:
        raise BundleError(f"{where}: expected {len(expected)} zones in their PNG, got others. Draw them again.")
    return np.asarray(stored, np.uint8)


def zones_on_map(numbers: UInt8Array, spec: Preprocessing | None, shape: tuple[int, int]) -> UInt8Array:
    """Return which pixel of an anomaly map lies in which zone, uint8 [H, W].

    Args:
        numbers: As `zone_numbers` gives them, uint8 [h, w].
        spec: The geometry of the map; None where it shows the whole image, see `Manifest.map_spec`.
        shape: Height and width of the map.
    """
    on_map = np.zeros(shape if spec is None else spec.size, np.uint8)
    for number in np.unique(numbers[numbers > 0]):
        on_map[mask_on_map(numbers == number, spec, shape)] = number
    return on_map


def hidden_zone(zones: Zones, on_map: UInt8Array) -> str | None:
    """Return the name of a zone of which a map shows nothing; None where it shows all. `on_map` is of `zones_on_map`.

    Of the rest it says only whether all of the map lies in the other zones.
    """
    shown = set(np.unique(on_map).tolist())
    return next((name for name, number in zip(zones.names, zones.numbers, strict=True) if number not in shown), None)


def describe_zones(zones: Zones) -> str:
    """Return the names of the zones with their shares of the image, for messages."""
    named = [f"{name} ({share:.1%})" for name, share in zip(zones.drawn, zones.shares, strict=True)]
    return ", ".join([*named, REST] if zones.has_rest else named)


def _name_problem(name: str) -> str | None:
    if name == REST:
        return f"expected a name other than {REST!r}, which is that of what lies in no zone"
    if not name.isprintable() or name != name.strip() or not 1 <= len(name) <= _LONGEST:
        return f"expected a name of 1 to {_LONGEST} printable characters without spaces around it, got {name!r}"
    return None


def _check_masks(masks: Mapping[str, BoolArray]) -> None:
    if not 1 <= len(masks) <= MOST_ZONES:
        raise ArgumentError(f"zones: expected 1 to {MOST_ZONES}, got {len(masks)}. Draw fewer.")
    for name, mask in masks.items():
        if problem := _name_problem(name):
            raise ArgumentError(f"zone: {problem}. Choose another.")
        height, width = mask.shape
        if min(height, width) < SMALLEST_SIDE or max(height, width) > MAX_SIDE:
            raise ArgumentError(
                f"zone {name}: expected sides from {SMALLEST_SIDE} to {MAX_SIDE} pixels, got {width}x{height}. Draw it "
                "on an image of the part."
            )
        if not mask.any():
            raise ArgumentError(f"zone {name}: expected a mask with a part that is white, got none. Draw the zone.")


def _shrunk(numbers: UInt8Array, count: int) -> UInt8Array:
    """Return numbers at the size they are stored with: of each pixel that which takes most of it."""
    size = stored_size(numbers.shape)
    if size == numbers.shape:
        return numbers
    small, most = np.zeros(size, np.uint8), np.full(size, -1.0, np.float32)
    # Zones before what lies in none: of equal shares a zone takes the pixel, as the region of interest does.
    for number in (*range(1, count + 1), 0):
        share = cv2.resize((numbers == number).astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
        larger = share > most
        small[larger], most[larger] = number, share[larger]
    return small


def _check_inside(names: tuple[str, ...], small: UInt8Array, counts: BoolArray) -> None:
    # A pixel more on each side: region and zones were rounded to pixels one by one.
    near = cv2.dilate(counts.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    for number, name in enumerate(names, 1):
        mask = small == number
        if outside := float((mask & ~near).sum() / max(1, mask.sum())):
            raise ArgumentError(
                f"zone {name}: expected a zone inside of the region of interest, got one of which {outside:.1%} lies "
                "outside. Draw it smaller, or the region larger."
            )
        if not (mask & counts).any():
            raise ArgumentError(f"zone {name}: expected a zone of more than a few pixels, got one with less.")
