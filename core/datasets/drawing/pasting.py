"""Pasting of real defects: what a defect adds to its surroundings is moved to a normal image.

    change   the defect's image minus the membrane over its hole (see `membrane`), in grey levels
    moved    the change scaled, mirrored and turned

    feather  out = image + tone · strength · weight · moved      the image's texture stays, the defect's is added
    poisson  out = image + weight · (membrane(image) + tone · strength · moved - image)
                                                                 the defect's texture in place of the image's

where the weight is 1 on the defect and falls to 0 around it, and the membrane continues the image into the hole: on
the defect the second is the seamless clone of Pérez et al. (Poisson image editing, 2003). The tone is the
grey level of the image there as a share of that around the defect, 0.5 to 2: in a bright image a hole is no pale spot.

A defect lies as far from the sides as it did (see `places`), and what the border of its image cuts is pasted at that
border alone, not turned, and mirrored along it only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, check_array
from flawscope.datasets.drawing.changes import as_levels, keep_changes
from flawscope.datasets.drawing.correspondence import Correspondence, Surroundings, surroundings_of
from flawscope.datasets.drawing.membrane import membrane
from flawscope.datasets.drawing.places import SeenPlace, box_anywhere, box_at, box_near, place_of_box
from flawscope.errors import ArgumentError
from flawscope.imaging.boxes import Rect, bounds_of, boxes_of
from flawscope.imaging.images import check_image

Blend = Literal["feather", "poisson"]
BLENDS: tuple[Blend, ...] = get_args(Blend)
PastePlaces = Literal["near", "match", "anywhere"]
PASTE_PLACES: tuple[PastePlaces, ...] = get_args(PastePlaces)
_TONES = (0.5, 2.0)
_MOST_STRENGTH = 10.0
LEAST_PIXELS = 4
"""A drawing that changes fewer is made again: no detector is asked for a single pixel."""


class PasteOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How defects are pasted.

    Attributes:
        blend: `feather` adds the defect to the image's texture, `poisson` replaces that.
        feather_px: Pixels around the defect that belong to its change, 1 to 64.
        rotate: Largest turn to either side in degrees, 0 to 180.
        scale: Range of the size, as a factor; 1 keeps the defect's share of the image.
        strength: Range of the factor of the change.
        mirror: Whether half of the defects are mirrored, along each axis.
        level: Least change that belongs to the mask, in grey levels of 8 bit; what changes less is left as it was.
        places: `near` where it was seen, with a jitter; where the image is the best `match` of its surroundings; or
            `anywhere`.
    """

    blend: Blend = "feather"
    feather_px: int = 3
    rotate: float = 15.0
    scale: tuple[float, float] = (0.8, 1.25)
    strength: tuple[float, float] = (0.7, 1.2)
    mirror: bool = True
    level: int = 4
    places: PastePlaces = "near"

    def __post_init__(self) -> None:
        for name, choices in (("blend", BLENDS), ("places", PASTE_PLACES)):
            if getattr(self, name) not in choices:
                raise ArgumentError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if not 1 <= self.feather_px <= 64:
            raise ArgumentError(f"feather: expected 1 to 64 pixels, got {self.feather_px}.")
        if not 1 <= self.level <= 255:
            raise ArgumentError(f"level: expected 1 to 255 grey levels, got {self.level}.")
        if not 0.0 <= self.rotate <= 180.0:
            raise ArgumentError(f"rotate: expected 0 to 180 degrees, got {self.rotate:g}.")
        for name, limits in (("scale", (0.05, 20.0)), ("strength", (0.01, _MOST_STRENGTH))):
            low, high = getattr(self, name)
            if not limits[0] <= low <= high <= limits[1]:
                bounds = f"{limits[0]:g} to {limits[1]:g}"
                raise ArgumentError(f"{name}: expected two rising numbers from {bounds}, got {low:g} and {high:g}.")


@dataclass(frozen=True)
class Cutout:
    """A defect, taken out of its image.

    Attributes:
        change: What it adds to its surroundings, float32 [h, w, 3] in grey levels of 8 bit.
        mask: The defect, bool [h, w].
        weight: 1 on the defect, falling to 0 around it, float32 [h, w]; where it is 0 so is the change.
        tone: Mean grey level that would be there without the defect.
        place: Where the defect lay.
        size: Height and width of its image.
        around: What was around it, for places that match; None if that is other defects alone.
    """

    change: Float32Array
    mask: BoolArray
    weight: Float32Array
    tone: float
    place: SeenPlace
    size: tuple[int, int]
    around: Surroundings | None = None


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one defect is pasted; with its cutout and the options it gives the same bytes again.

    Attributes:
        box: Left, top, width and height of the moved defect, in pixels of the image.
        scale: Factors of width and height.
        angle: Turn in degrees, anticlockwise.
        mirror: Whether it is mirrored from left to right, and from top to bottom.
        strength: Factor of the change.
    """

    box: Rect
    scale: tuple[float, float]
    angle: float
    mirror: tuple[bool, bool]
    strength: float


def cut_defects(image: UInt8Array, mask: BoolArray, feather_px: int = 3) -> list[Cutout]:
    """Return the defects of an image: distant parts apart, as `boxes_of` has them.

    Args:
        image: uint8 [H, W, 3] RGB.
        mask: Its defect, bool [H, W].
        feather_px: Pixels around the defect that belong to its change.

    Raises:
        ArgumentError: If the mask shows no defect, or leaves no surroundings.
    """
    check_image(image)
    size = (image.shape[0], image.shape[1])
    check_array(mask, "mask", size, np.bool_)
    if not mask.any():
        raise ArgumentError("mask: expected a defect, got an all-black mask.")
    # In the window of the defect, with two pixels beyond the feather: the image may be a hundred times larger.
    frame = _grown(bounds_of(mask), feather_px + 3, size)
    inside, pixels = mask[frame.window], image[frame.window].astype(np.float32)
    # For all parts together: the surroundings of one may not hold another.
    ground = membrane(pixels, np.asarray(_weight(inside, feather_px) > 0))
    change = pixels - ground
    cutouts = []
    for box in boxes_of(mask, per_component=True):
        part = inside & box.to_mask(size)[frame.window]
        weight = _weight(part, feather_px)
        window = bounds_of(np.asarray(weight > 0)).window
        kept = np.where(weight[..., None] > 0, change, np.float32(0.0))[window]
        own = bounds_of(part)
        whole = Rect(own.left + frame.left, own.top + frame.top, own.width, own.height)
        tone, around = float(ground[part].mean()), surroundings_of(image, mask, whole)
        cutouts.append(Cutout(kept, part[window], weight[window], tone, place_of_box(whole, size), size, around))
    return cutouts


def _grown(box: Rect, by: int, size: tuple[int, int]) -> Rect:
    left, top = max(box.left - by, 0), max(box.top - by, 0)
    right, bottom = min(box.left + box.width + by, size[1]), min(box.top + box.height + by, size[0])
    return Rect(left, top, right - left, bottom - top)


def _weight(mask: BoolArray, feather_px: int) -> Float32Array:
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(np.clip(1.0 - distance / np.float32(feather_px + 1), 0.0, 1.0), np.float32)


def paste_defect(
    image: UInt8Array,
    cutout: Cutout,
    rng: np.random.Generator,
    options: PasteOptions | None = None,
    *,
    within: BoolArray | None = None,
    overlap: float = 0.75,
    tries: int = 100,
) -> tuple[UInt8Array, BoolArray] | None:
    """Return an image with a pasted defect and the mask of the pixels that differ, or None if it fits nowhere.

    Args:
        image: A normal image, uint8 [H, W, 3] RGB.
        cutout: The defect.
        rng: Random generator.
        options: How it is pasted.
        within: Where defects may lie, bool [H, W]; None allows every place.
        overlap: Least share of the defect that lies there.
        tries: Most placements drawn.

    Raises:
        ArgumentError: If places have to match and the defect has no surroundings.
    """
    pasted = try_paste(image, cutout, rng, options or PasteOptions(), within=within, overlap=overlap, tries=tries)
    return None if pasted is None else (pasted.image, pasted.mask)


class Pasted(NamedTuple):
    """A pasted image, uint8 [H, W, 3], its mask, bool [H, W], and how it was made."""

    image: UInt8Array
    mask: BoolArray
    placement: Placement


def try_paste(
    image: UInt8Array,
    cutout: Cutout,
    rng: np.random.Generator,
    options: PasteOptions,
    *,
    within: BoolArray | None = None,
    overlap: float = 0.75,
    tries: int = 100,
) -> Pasted | None:
    """Paste as `paste_defect`, and say how."""
    size = (image.shape[0], image.shape[1])
    # Once for all tries: an image is described in a few milliseconds, as long as a whole paste takes.
    centres = _matching(image, cutout) if options.places == "match" else None
    for _ in range(tries):
        placement = draw_placement(cutout, size, rng, options, centres)
        moved = _move(cutout, placement)
        if within is not None:
            part = within[placement.box.window]
            if np.count_nonzero(part & moved.mask) <= overlap * np.count_nonzero(moved.mask):
                continue
        blended = _blend(image, moved, placement, options)
        if blended is not None and np.count_nonzero(blended[1]) >= LEAST_PIXELS:
            return Pasted(*blended, placement)
    return None


def _matching(image: UInt8Array, cutout: Cutout) -> Float32Array:
    if cutout.around is None:
        raise ArgumentError(
            "places: expected a defect with surroundings to match, got one among other defects alone. Take near."
        )
    return Correspondence(image).centres(cutout.around)


def draw_placement(
    cutout: Cutout,
    size: tuple[int, int],
    rng: np.random.Generator,
    options: PasteOptions,
    centres: Float32Array | None = None,
) -> Placement:
    """Return a random placement of a defect in an image of size (H, W), at one of the centres if they are given."""
    left, top, right, bottom = cutout.place.sides
    # Everything is drawn in every case: a border that is touched must not move the numbers of what follows.
    angle = float(rng.uniform(-options.rotate, options.rotate))
    factor = float(math.exp(rng.uniform(*np.log(options.scale)))) * math.sqrt(math.prod(size) / math.prod(cutout.size))
    flips = rng.random(2) < 0.5 if options.mirror else np.zeros(2, np.bool_)
    strength = float(rng.uniform(*options.strength))
    # What the border has cut can neither be turned nor lie with that side anywhere else.
    if left or top or right or bottom:
        angle = 0.0
    mirror = (bool(flips[0]) and left == right, bool(flips[1]) and top == bottom)
    # From border to border: the width of the image decides.
    wide, high = left and right, top and bottom
    scale = (size[1] / cutout.size[1] if wide else factor, size[0] / cutout.size[0] if high else factor)
    placement = Placement(Rect(0, 0, 1, 1), scale, angle, mirror, strength)
    sides = _move(cutout, placement).mask.shape
    # A defect that is larger than the image is reduced; rounding may take a second step.
    while sides[0] > size[0] or sides[1] > size[1]:
        shrink = 0.99 * min(size[0] / sides[0], size[1] / sides[1])
        scale = (scale[0] * shrink, scale[1] * shrink)
        placement = msgspec.structs.replace(placement, scale=scale)
        sides = _move(cutout, placement).mask.shape
    height, width = sides
    if centres is not None:
        x, y = centres[int(rng.integers(len(centres)))].tolist()
        return msgspec.structs.replace(placement, box=box_at(cutout.place, (x, y), (height, width), size))
    draw = box_near if options.places == "near" else box_anywhere
    return msgspec.structs.replace(placement, box=draw(cutout.place, (height, width), size, rng))


def apply_placement(
    image: UInt8Array, cutout: Cutout, placement: Placement, options: PasteOptions
) -> tuple[UInt8Array, BoolArray]:
    """Return an image with a defect pasted as a placement says, and its mask.

    Raises:
        ArgumentError: If the placement is not one of this cutout in an image of this size.
    """
    box = placement.box
    # Before anything is moved: a line that somebody has edited could ask for more memory than there is.
    _check_numbers(cutout, placement, (image.shape[0], image.shape[1]))
    moved = _move(cutout, placement)
    fits = (
        min(box.left, box.top) >= 0
        and box.left + box.width <= image.shape[1]
        and box.top + box.height <= image.shape[0]
    )
    if not fits or moved.mask.shape != (box.height, box.width):
        raise ArgumentError(f"placement: expected one of this defect in this image, got {tuple(box)}.")
    blended = _blend(image, moved, placement, options)
    if blended is None:
        raise ArgumentError("placement: expected one that leaves some of the image, got one that covers all.")
    return blended


def _check_numbers(cutout: Cutout, placement: Placement, size: tuple[int, int]) -> None:
    own = bounds_of(cutout.mask)
    # Turned as well, no defect of an image is longer than its diagonal; two pixels for rounding.
    longest = math.hypot(*size) + 2
    fits = all(
        0 < side * scale <= longest for side, scale in zip((own.width, own.height), placement.scale, strict=True)
    )
    if not fits or not math.isfinite(placement.angle) or not 0 < placement.strength <= _MOST_STRENGTH:
        raise ArgumentError(
            f"placement: expected one of this defect in this image, got the scale {placement.scale}, the angle "
            f"{placement.angle} and the strength {placement.strength}."
        )


class _Moved(NamedTuple):
    """A moved defect: change, weight and tone, and its mask cut to the bounding box, which begins at `offset`."""

    change: Float32Array
    weight: Float32Array
    tone: float
    mask: BoolArray
    offset: tuple[int, int]


def _move(cutout: Cutout, placement: Placement) -> _Moved:
    # OpenCV takes at most four channels at once.
    pixels = _transformed(np.dstack([cutout.change, cutout.weight]), placement)
    cover = _transformed(cutout.mask.astype(np.float32), placement)
    # What was reduced below half a pixel is where it is strongest.
    mask = np.asarray(cover >= min(0.5, float(cover.max())))
    box = bounds_of(mask)
    return _Moved(pixels[..., :3], pixels[..., 3], cutout.tone, mask[box.window], (box.top, box.left))


def _transformed(planes: Float32Array, placement: Placement) -> Float32Array:
    if placement.mirror[0]:
        planes = planes[:, ::-1]
    if placement.mirror[1]:
        planes = planes[::-1]
    planes = np.ascontiguousarray(planes)
    height, width = planes.shape[:2]
    size = (max(round(width * placement.scale[0]), 1), max(round(height * placement.scale[1]), 1))
    if size != (width, height):
        # By area where it shrinks: a thin crack must not fall between two pixels.
        method = cv2.INTER_AREA if size[0] * size[1] < width * height else cv2.INTER_LINEAR
        planes = np.asarray(cv2.resize(planes, size, interpolation=method), np.float32)
    return _turned(planes, placement.angle) if placement.angle else planes


def _turned(planes: Float32Array, angle: float) -> Float32Array:
    """Return the planes turned about their centre, on a canvas that holds all of them."""
    height, width = planes.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    cos, sin = abs(turn[0, 0]), abs(turn[0, 1])
    new_width, new_height = math.ceil(width * cos + height * sin) + 1, math.ceil(width * sin + height * cos) + 1
    turn[:, 2] += ((new_width - width) / 2, (new_height - height) / 2)
    # Nothing lies beyond the cutout: its change is 0 at the edge of its weight.
    turned = cv2.warpAffine(
        planes, turn, (new_width, new_height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return np.asarray(turned, np.float32)


def _blend(
    image: UInt8Array, moved: _Moved, placement: Placement, options: PasteOptions
) -> tuple[UInt8Array, BoolArray] | None:
    """Return the image with the moved defect, and its mask; None if the defect covers all of it.

    Computed in the window of the defect alone.
    """
    rows, own_rows = _overlap(placement.box.top - moved.offset[0], moved.weight.shape[0], image.shape[0])
    columns, own_columns = _overlap(placement.box.left - moved.offset[1], moved.weight.shape[1], image.shape[1])
    part = image[rows, columns]
    change, weight = np.zeros(part.shape, np.float32), np.zeros(part.shape[:2], np.float32)
    change[own_rows.inner, own_columns.inner] = moved.change[own_rows.source, own_columns.source]
    weight[own_rows.inner, own_columns.inner] = moved.weight[own_rows.source, own_columns.source]
    before, region = part.astype(np.float32), np.asarray(weight > 0)
    if region.all():
        return None
    tone = np.clip(before[region].mean() / max(moved.tone, 1.0), *_TONES)
    scaled = np.float32(placement.strength * tone) * change
    added = membrane(before, region) + scaled - before if options.blend == "poisson" else scaled
    after = before + weight[..., None] * added
    defect = np.zeros(image.shape[:2], np.bool_)
    defect[placement.box.window] = moved.mask
    fringe = region & ~defect[rows, columns]
    drawn, changed = keep_changes(part, as_levels(np.asarray(after, np.float32)), region, options.level, fringe)
    result, mask = image.copy(), np.zeros(image.shape[:2], np.bool_)
    result[rows, columns], mask[rows, columns] = drawn, changed
    return result, mask


class _Span(NamedTuple):
    """Where the part of a moved defect that is inside the image lies in the window, and in the moved defect."""

    inner: slice
    source: slice


def _overlap(start: int, length: int, total: int) -> tuple[slice, _Span]:
    """Return the window along one axis, with two pixels of surroundings for the membrane, and what lies in it.

    The border of the image may cut off some of the feather, never of the defect.
    """
    first, last = max(start, 0), min(start + length, total)
    window = slice(max(first - 2, 0), min(last + 2, total))
    return window, _Span(slice(first - window.start, last - window.start), slice(first - start, last - start))
