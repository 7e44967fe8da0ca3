"""Prompt templates of the generators: photos of a learned placeholder, and sentences on a defect at a location."""

from __future__ import annotations

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
        location: Of `flawscope.diffusion.location_words.LOCATIONS`.
    """
    words = {
        "category": category.replace("_", " "),
        "defect": defect.replace("_", " "),
        "location": location,
        "token": f"{category}_{defect}",
    }
    return tuple(sentence.format(**words) for sentence in _SENTENCES)
