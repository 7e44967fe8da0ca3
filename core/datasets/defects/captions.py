"""Captions of a defect at a location: a phrase per defect type, put into several sentence templates ("frames").

Source: MvP-Diff, stage 1a, after its figure. There a language model varies one sentence; here the frames do, and others
can be given.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from flawscope.datasets.defects.set_files import read_json
from flawscope.errors import ArgumentError, DataError
from flawscope.open_files import TEXT_BYTES, read_regular

# Model input: a generator trained with these sentences has to be prompted with the same.
FRAMES = (
    "There is {description} {location} of the image; {token}",
    "The image shows {description} {location}; {token}",
    "{location} of the image lies {description}; {token}",
    "{description} is visible {location} of the picture; {token}",
    "A photo of a part with {description} {location}; {token}",
    "The part carries {description}, seen {location} of the photo; {token}",
    "Look {location} of the picture for {description}; {token}",
    "Inspection found {description} {location} of the image; {token}",
)
"""The first is the form that MvP-Diff shows; every frame ends with the token CLASS_DEFECT, as there."""

_FIELDS = ("description", "location", "token")


class Captions(msgspec.Struct, frozen=True):
    """Phrases and frames in force.

    Attributes:
        phrases: "CATEGORY/DEFECT" -> what the defect looks like; see `phrase`.
        frames: Sentence templates with the fields {description}, {location} and {token}.
    """

    phrases: dict[str, str] = {}
    frames: tuple[str, ...] = FRAMES

    def phrase(self, category: str, defect: str) -> str:
        """Return the phrase of a defect type: that of the table, or one made of its name."""
        default = f"a {defect.replace('_', ' ')} defect on the {category.replace('_', ' ')}"
        return self.phrases.get(f"{category}/{defect}", default)

    def all(self, category: str, defect: str, location: str) -> tuple[str, ...]:
        """Return one sentence for each frame."""
        fields = {
            "description": self.phrase(category, defect),
            "location": location,
            "token": f"{category}_{defect}",
        }
        # In one pass, not str.replace field by field: a phrase may contain braces, which must stay as they are.
        sentences = (re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], frame) for frame in self.frames)
        # dict.fromkeys: given frames may yield equal sentences; their order is kept for the random choice.
        return tuple(dict.fromkeys(sentence[:1].upper() + sentence[1:] for sentence in sentences))

    def one(self, category: str, defect: str, location: str, rng: np.random.Generator) -> str:
        """Return the sentence of a frame drawn at random."""
        sentences = self.all(category, defect, location)
        return sentences[int(rng.integers(len(sentences)))]


def read_phrases(path: Path, known: Collection[str]) -> dict[str, str]:
    """Read a table of phrases: a JSON object "CATEGORY/DEFECT" -> phrase.

    Args:
        path: The file.
        known: The keys that may occur; any other is taken for a typing error and refused.

    Raises:
        DataError: If the file cannot be read, a key is unknown, or a phrase is empty.
    """
    phrases = read_json(path, dict[str, str], "a table of phrases (CATEGORY/DEFECT -> words)")
    for name, phrase in phrases.items():
        if name not in known:
            raise DataError(f"{path}: expected keys of {', '.join(sorted(known))}, got {name!r}. Mend the file.")
        if not phrase.strip() or not phrase.isprintable():
            raise DataError(f"{path}: {name}: expected words that can be printed, got {phrase!r}. Mend the file.")
    return phrases


def read_frames(path: Path) -> tuple[str, ...]:
    """Read frames: a UTF-8 text file with one sentence per line; empty lines are ignored.

    Raises:
        DataError: If the file cannot be read.
        ArgumentError: If a frame lacks a field or names an unknown one.
    """
    try:
        lines = read_regular(path, TEXT_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path}: expected a text file with a sentence a line, got: {err}. Check the path.") from err
    frames = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not frames:
        raise DataError(f"{path}: expected at least one sentence, got none. Add one.")
    return tuple(check_frame(frame, str(path)) for frame in frames)


def check_frame(frame: str, where: str) -> str:
    """Return `frame` if it has each of the three fields and no other braces, or raise ArgumentError."""
    fields = " ".join(f"{{{name}}}" for name in _FIELDS)
    # Whatever braces are left are a misspelt field, which would otherwise reach the model as text.
    rest = re.sub(r"\{(description|location|token)\}", "", frame)
    if any(f"{{{name}}}" not in frame for name in _FIELDS) or "{" in rest or "}" in rest:
        raise ArgumentError(f"{where}: expected a sentence with {fields} and no other braces, got {frame!r}. Mend it.")
    return frame
