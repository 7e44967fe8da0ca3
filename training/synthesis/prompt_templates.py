"""Prompt templates of the generators: photos of a learned placeholder, and sentences on a defect at a location.

The templates are inputs of the text encoder: another wording, or another order, trains other networks from the same
seed.
"""

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
"""The first has the form of the prompt in MvP-Diff, whose prompts also end with the token CATEGORY_DEFECT."""


def photo_texts(placeholder: str) -> tuple[str, ...]:
    """Return 80 neutral prompts for a photo of the placeholder, every view with every subject.

    Textual inversion (arXiv:2208.01618) uses such a list, so that the embedding learns the object and not the kind of
    photo. This list is our own.

    Args:
        placeholder: Word that stands for the learned embedding; it stands alone, between spaces.
    """
    return tuple(f"{view} {subject.format(placeholder)}" for view in _VIEWS for subject in _SUBJECTS)


def defect_sentences(category: str, defect: str, location: str) -> tuple[str, ...]:
    """Return prompts for a defect, all of the same meaning.

    Args:
        category: Name of the category.
        defect: Defect type.
        location: One of `flawscope.diffusion.location_words.LOCATIONS`.
    """
    fields = {
        "category": category.replace("_", " "),
        "defect": defect.replace("_", " "),
        "location": location,
        "token": f"{category}_{defect}",
    }
    return tuple(sentence.format(**fields) for sentence in _SENTENCES)
