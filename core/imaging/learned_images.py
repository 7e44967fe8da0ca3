"""What a bundle knows of the images that it learned from, and how another image differs from them.

A detector that is given frames of another camera answers as surely as before. Nothing here changes a score: the
differences are notes on a result, and reasons to refuse it only where somebody asked for that.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

import cv2
import msgspec

from flawscope.arrays import UInt8Array
from flawscope.ranges import PositiveCount

_Number = TypeVar("_Number", int, float)
_Level = Annotated[float, msgspec.Meta(ge=-255.0, le=255.0)]
_Ratio = Annotated[float, msgspec.Meta(gt=0.0)]

_STEP = 8
"""Whether an image is grey is looked up at every pixel of a grid of this step."""
_LISTED = 5
_ASPECT_MARGIN = 1.05
_SIDE_MARGIN = 1.25
_LEVEL_MARGIN = 12.0
"""Least distance in grey levels from the images learned from: few of them show little of the variation to come."""
_COLOUR_CAST = 8.0
"""Grey levels by which red and blue must differ in every image learned from, so that swapping them can be noticed."""


class Look(NamedTuple):
    """What of an image is compared.

    Attributes:
        height: Rows in pixels.
        width: Columns in pixels.
        is_grey: Red, green and blue are equal.
        bits: Bits of a stored value, 8 or 16.
        brightness: Mean of all values, 0 to 255.
        red_minus_blue: Mean of red minus that of blue.
    """

    height: int
    width: int
    is_grey: bool
    bits: int
    brightness: float
    red_minus_blue: float


class LearnedImages(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the normal images had in common that a detector learned from; smallest and largest values, both included.

    Attributes:
        images: How many there were.
        heights: Rows in pixels.
        widths: Columns in pixels.
        aspects: Width by height.
        colours: `grey`, `colour`, or `both` among them.
        bits: Bits of a stored value, 8 or 16, or both.
        brightness: Mean value of an image, 0 to 255.
        red_minus_blue: Mean of red minus that of blue of an image.
    """

    images: PositiveCount
    heights: tuple[PositiveCount, PositiveCount]
    widths: tuple[PositiveCount, PositiveCount]
    aspects: tuple[_Ratio, _Ratio]
    colours: Literal["grey", "colour", "both"]
    bits: tuple[Literal[8, 16], ...]
    brightness: tuple[_Level, _Level]
    red_minus_blue: tuple[_Level, _Level]


def look_of(image: UInt8Array, bits: int = 8) -> Look:
    """Return what of an image uint8 [H, W, 3] RGB, or [H, W] grey, is compared; `bits` are those of a stored value."""
    red, green, blue, _ = cv2.mean(image)
    if image.ndim == 2:  # as three equal channels
        return Look(image.shape[0], image.shape[1], True, bits, (red + red + red) / 3, 0.0)
    some = image[::_STEP, ::_STEP]
    # The means first: they tell most coloured images without a look at their pixels.
    is_grey = red == green == blue and bool((some == some[..., :1]).all())
    return Look(image.shape[0], image.shape[1], is_grey, bits, (red + green + blue) / 3, red - blue)


def summarize_looks(looks: Sequence[Look]) -> LearnedImages:
    """Return what images, at least one, have in common."""
    greys = {look.is_grey for look in looks}
    aspects = [look.width / look.height for look in looks]
    # Rounded: the last digits of a mean depend on the order of additions, and a bundle must not.
    levels = [round(look.brightness, 3) for look in looks]
    casts = [round(look.red_minus_blue, 3) for look in looks]
    return LearnedImages(
        images=len(looks),
        heights=_range([look.height for look in looks]),
        widths=_range([look.width for look in looks]),
        aspects=_range(aspects),
        colours="both" if len(greys) > 1 else "grey" if True in greys else "colour",
        bits=tuple(bits for bits in (8, 16) if any(look.bits == bits for look in looks)),
        brightness=_range(levels),
        red_minus_blue=_range(casts),
    )


def merge_learned(parts: Sequence[LearnedImages | None]) -> LearnedImages | None:
    """Return what the images of several bundles have in common; None where one of them does not know."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    colours = {part.colours for part in known}
    return LearnedImages(
        images=max(part.images for part in known),
        heights=_range([side for part in known for side in part.heights]),
        widths=_range([side for part in known for side in part.widths]),
        aspects=_range([aspect for part in known for aspect in part.aspects]),
        colours=known[0].colours if len(colours) == 1 else "both",
        bits=tuple(bits for bits in (8, 16) if any(bits in part.bits for part in known)),
        brightness=_range([level for part in known for level in part.brightness]),
        red_minus_blue=_range([cast for part in known for cast in part.red_minus_blue]),
    )


def extend_learned(learned: LearnedImages | None, more: Sequence[LearnedImages]) -> LearnedImages | None:
    """Return what images had in common when others are learned as well; None where the first are not known.

    Args:
        learned: Of the images that were learned from.
        more: Of others, which are not among them.
    """
    merged = merge_learned([learned, *more])
    if learned is None or merged is None:
        return None
    return msgspec.structs.replace(merged, images=learned.images + sum(part.images for part in more))


def describe_learned(learned: LearnedImages) -> str:
    """Return in one line what images had in common that were learned from."""
    levels = _span(*(f"{level:.0f}" for level in learned.brightness))
    colours = {"grey": "grey", "colour": "coloured", "both": "grey and coloured"}[learned.colours]
    bits = _span(*map(str, learned.bits))
    return f"{learned.images} images, {_sizes(learned)} px, {colours}, {bits} bit, mean brightness {levels}"


def differences(look: Look, learned: LearnedImages) -> tuple[str, ...]:
    """Return in what an image differs from all that were learned from, one phrase each; empty where in nothing."""
    return tuple(_differences(look, learned))


def summarize_differences(each: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the differences of several images with how many have them, the most frequent first.

    Args:
        each: What `differences` returned for each image; empty tuples count as images too.
    """
    counts = Counter(itertools.chain.from_iterable(each))
    lines = [f"{count} of {len(each)} images: {text}" for text, count in counts.most_common(_LISTED)]
    if (more := len(counts) - len(lines)) > 0:
        lines.append(f"{more} more such notes")
    return tuple(lines)


def _differences(look: Look, learned: LearnedImages) -> Iterator[str]:
    aspect = look.width / look.height
    if not learned.aspects[0] / _ASPECT_MARGIN <= aspect <= learned.aspects[1] * _ASPECT_MARGIN:
        known = _span(*(f"{value:.3g}" for value in learned.aspects))
        yield f"width by height is {aspect:.3g}, of the images learned from {known}"
    elif not (_is_usual(look.height, learned.heights) and _is_usual(look.width, learned.widths)):
        yield f"{look.width}x{look.height} pixels, of the images learned from {_sizes(learned)}"
    if look.is_grey and learned.colours == "colour":
        yield "grey; the images learned from are coloured"
    elif not look.is_grey and learned.colours == "grey":
        yield "coloured; the images learned from are grey"
    elif _is_swapped(look, learned):
        yield "red and blue look exchanged (color=bgr?)"
    if look.bits not in learned.bits:
        yield f"{look.bits} bit; the images learned from have {_span(*map(str, learned.bits))}"
    low, high = learned.brightness
    margin = max(_LEVEL_MARGIN, (high - low) / 2)
    if look.brightness < low - margin:
        yield f"darker than any image learned from: their mean brightness is from {low:.0f} to {high:.0f}"
    elif look.brightness > high + margin:
        yield f"brighter than any image learned from: their mean brightness is from {low:.0f} to {high:.0f}"


def _is_usual(side: int, learned: tuple[int, int]) -> bool:
    # Where all images learned from have one size, every other is another camera's; of several sizes more may come.
    margin = 1.0 if learned[0] == learned[1] else _SIDE_MARGIN
    return learned[0] / margin <= side <= learned[1] * margin


def _is_swapped(look: Look, learned: LearnedImages) -> bool:
    """Return whether the image looks as those learned from do with red and blue exchanged, and not as they are."""
    low, high = learned.red_minus_blue
    if min(abs(low), abs(high)) < _COLOUR_CAST or (low < 0) != (high < 0):
        return False
    margin = (high - low) / 2 + _COLOUR_CAST / 2
    as_it_is, exchanged = (
        low - margin <= cast <= high + margin for cast in (look.red_minus_blue, -look.red_minus_blue)
    )
    return exchanged and not as_it_is


def _range(values: Sequence[_Number]) -> tuple[_Number, _Number]:
    return min(values), max(values)


def _sizes(learned: LearnedImages) -> str:
    smallest = f"{learned.widths[0]}x{learned.heights[0]}"
    return _span(smallest, f"{learned.widths[1]}x{learned.heights[1]}")


def _span(*ends: str) -> str:
    return ends[0] if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}"
