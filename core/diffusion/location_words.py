"""Location words for prompts: a 3 x 3 grid such as "in the upper left", used in training and in drawing."""

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
"""What stands for such words in a text whose place is not known yet."""

_PLACES = {words: (row, column) for row, line in enumerate(LOCATIONS) for column, words in enumerate(line)}
_ANY_PLACE = re.compile(rf"\b({'|'.join(_PLACES)})\b", re.IGNORECASE)


def location_of(box: Rect, size: tuple[int, int]) -> str:
    """Return where the centre of a box lies in an image of size (H, W), such as "in the upper left".

    The grid divides both sides in three: before 1/3, from 1/3 to 2/3, and after 2/3.
    """
    x, y = box.centre(size)
    return LOCATIONS[_third(y)][_third(x)]


def located(text: str, words: str) -> str:
    """Return a text with its place filled in, with a capital where that begins the sentence, as when it was learned."""
    if text.startswith(LOCATION):
        text = words[:1].upper() + words[1:] + text.removeprefix(LOCATION)
    return text.replace(LOCATION, words)


def without_location(sentence: str) -> str:
    """Return a sentence with `{location}` in the place of words of `LOCATIONS`, for a box anywhere."""
    return _ANY_PLACE.sub(LOCATION, sentence)


def mirrored_words(sentence: str, *, left_right: bool, top_bottom: bool) -> str:
    """Return a sentence as it is true of the mirrored image: words of `LOCATIONS` are exchanged."""

    def exchanged(match: re.Match[str]) -> str:
        row, column = _PLACES[match[0].lower()]
        words = LOCATIONS[2 - row if top_bottom else row][2 - column if left_right else column]
        return match[0][0] + words[1:]

    return _ANY_PLACE.sub(exchanged, sentence)


def _third(part: float) -> int:
    return 0 if part < 1 / 3 else 2 if part > 2 / 3 else 1
