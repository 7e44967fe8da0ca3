"""Location words of prompts, such as "in the upper left" of a 3 x 3 grid; the same in training and at run time."""

from __future__ import annotations

import re

from flawscope.imaging.boxes import Rect

LOCATIONS = (
    ("in the upper left", "in the upper middle", "in the upper right"),
    ("in the middle left", "in the center", "in the middle right"),
    ("in the bottom left", "in the bottom middle", "in the bottom right"),
)
"""Words for a ninth of an image, by row and column."""

LOCATION = "{location}"
"""Placeholder of the location words in a text whose box is not known yet."""

_PLACES = {words: (row, column) for row, line in enumerate(LOCATIONS) for column, words in enumerate(line)}
# Whole words alone; none of the nine is the beginning of another, so their order does not matter.
_ANY_PLACE = re.compile(rf"\b({'|'.join(_PLACES)})\b", re.IGNORECASE)


def location_of(box: Rect, size: tuple[int, int]) -> str:
    """Return where the centre of a box lies in an image of size (H, W), such as "in the upper left".

    Both sides are divided at 1/3 and 2/3; a centre exactly on a line counts as the middle.
    """
    x, y = box.centre(size)
    return LOCATIONS[_third(y)][_third(x)]


def located(text: str, location: str) -> str:
    """Return a text with its location filled in, capitalized at the beginning of the sentence, as captions have it."""
    if text.startswith(LOCATION):
        text = location[:1].upper() + location[1:] + text.removeprefix(LOCATION)
    return text.replace(LOCATION, location)


def without_location(sentence: str) -> str:
    """Return a sentence with `{location}` in place of its location words, for a box anywhere."""
    return _ANY_PLACE.sub(LOCATION, sentence)


def mirrored_words(sentence: str, *, left_right: bool, top_bottom: bool) -> str:
    """Return a sentence that is true of the mirrored image: its location words are mirrored."""

    def exchanged(match: re.Match[str]) -> str:
        row, column = _PLACES[match[0].lower()]
        words = LOCATIONS[2 - row if top_bottom else row][2 - column if left_right else column]
        return match[0][0] + words[1:]

    return _ANY_PLACE.sub(exchanged, sentence)


def _third(part: float) -> int:
    return 0 if part < 1 / 3 else 2 if part > 2 / 3 else 1
