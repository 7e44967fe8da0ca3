"""Texts that defects are learned with: photos of a learned word, and sentences on a defect at a place."""

from __future__ import annotations

import re

from flawscope.diffusion.location_words import LOCATION, LOCATIONS

_VIEWS = (
    "a camera picture",
    "a factory photo",
    "an inspection image",
    "a macro shot",
    "a magnified view",
    "a still frame",
    "a well lit shot",
    "a soft grey scan",
    "a quick snapshot",
    "a sharp detail",
)
_SUBJECTS = (
    "of {}",
    "of some {}",
    "of the same {}",
    "of one more {}",
    "of a faint {}",
    "of an obvious {}",
    "with {} in it",
    "that shows the {}",
)

_SENTENCES = (
    "There is a {defect} defect on the {category} {location} of the image; {token}",
    "A {category} with a {defect} defect {location} of the photo; {token}",
    "The {category} shows a {defect} defect {location}; {token}",
    "Seen {location} of the picture: a {defect} defect of the {category}; {token}",
)
"""The first is the form that MvP-Diff shows. Each ends with the token CATEGORY_DEFECT, as there."""

_PLACES = {words: (row, column) for row, line in enumerate(LOCATIONS) for column, words in enumerate(line)}
_ANY_PLACE = re.compile(rf"\b({'|'.join(_PLACES)})\b", re.IGNORECASE)


def photo_texts(placeholder: str) -> tuple[str, ...]:
    """Return 80 texts on a photo of a learned word: nothing in them but the word tells what is seen.

    Textual inversion (arXiv:2208.01618) has such a list, so that the word learns the thing and not the kind of photo.
    This is another one: every view with every subject.

    Args:
        placeholder: The word; it stands alone, between spaces.
    """
    return tuple(f"{view} {subject.format(placeholder)}" for view in _VIEWS for subject in _SUBJECTS)


def defect_sentences(category: str, defect: str, location: str) -> tuple[str, ...]:
    """Return sentences on a defect, all of the same meaning.

    Args:
        category: Name of the category.
        defect: Defect type.
        location: Of `LOCATIONS`.
    """
    words = {
        "category": category.replace("_", " "),
        "defect": defect.replace("_", " "),
        "location": location,
        "token": f"{category}_{defect}",
    }
    return tuple(sentence.format(**words) for sentence in _SENTENCES)


def without_location(sentence: str) -> str:
    """Return a sentence with `{location}` in the place of words of `LOCATIONS`, for a box anywhere."""
    return _ANY_PLACE.sub(LOCATION, sentence)


def mirrored(sentence: str, *, left_right: bool, top_bottom: bool) -> str:
    """Return a sentence as it is true of the mirrored picture: words of `LOCATIONS` are exchanged."""

    def exchanged(match: re.Match[str]) -> str:
        row, column = _PLACES[match[0].lower()]
        words = LOCATIONS[2 - row if top_bottom else row][2 - column if left_right else column]
        return match[0][0] + words[1:]

    return _ANY_PLACE.sub(exchanged, sentence)
