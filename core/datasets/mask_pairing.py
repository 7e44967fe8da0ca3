"""Which mask belongs to which image, by names alone and never by order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from flawscope.datasets.problems import Problem
from flawscope.datasets.samples import Sample

_WORDS = "mask|gt|ground[_-]?truth|labels?|seg|segmentation|anno|annotations?"
_MASK_WORD = re.compile(rf"[ ._-]({_WORDS})$", re.IGNORECASE)
"""What ends the stem of a mask: KolektorSDD2 has `NNN_GT`, KolektorSDD `NNN_label`, MVTec AD `NNN_mask`."""
_NUMBERED_WORD = re.compile(rf"[ ._-]({_WORDS})[ ._-]?\d{{1,4}}$", re.IGNORECASE)
_NUMBER = re.compile(r"[ ._-]\d{1,4}$")
_MASK_FOLDER = re.compile(r"(masks?|gt|ground[ _-]?truth)", re.IGNORECASE)


class MaskFile(NamedTuple):
    """A mask file that was found.

    Attributes:
        path: The file.
        defect: The defect type of the folder it lies in; None where the folder has masks of all types.
        place: The folder below that of its type, in posix form; empty for that folder itself.
        stem: The stem of its image, where the folder that it lies in is named after it; None where the file is.
    """

    path: Path
    defect: str | None
    place: str = ""
    stem: str | None = None


class Pairing(NamedTuple):
    """Samples with their masks, masks of no image, masks of normal images, and masks of several images."""

    samples: list[Sample]
    orphans: list[Path]
    of_normal: list[Path]
    problems: list[Problem]


def ends_like_a_mask(stem: str) -> bool:
    """Return whether a name ends in a word for masks."""
    return _MASK_WORD.search(stem) is not None


def is_mask_folder(name: str) -> bool:
    """Return whether a folder of this name holds masks, wherever it lies in a dataset."""
    return _MASK_FOLDER.fullmatch(name) is not None


def masks_among(paths: Sequence[Path]) -> list[Path]:
    """Return the files that are taken for masks where they lie beside images; none where all are called like masks.

    One that is learned as a normal image spoils the model without a word. Only where all names end so it is the
    product that is called like that. A name that ends in a number too is a mask only beside its image.
    """
    stems = {path.stem for path in paths}
    masks = []
    for path in paths:
        numbered = _NUMBERED_WORD.search(path.stem)
        if ends_like_a_mask(path.stem) or (numbered and path.stem[: numbered.start()] in stems):
            masks.append(path)
    return [] if len(masks) == len(paths) else masks


def pair(samples: Sequence[Sample], places: Mapping[Path, str], masks: Sequence[MaskFile]) -> Pairing:
    """Give every mask to the image of its defect type with its stem, whatever the extensions.

    Args:
        samples: All images.
        places: Path of an image -> its folder below that of its type; a mask in such a folder is of an image there.
        masks: The masks; the first of an image counts, unless several are numbered.
    """
    by_stem: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_stem[sample.path.stem].append(sample)
    found: dict[Path, list[Path]] = {}
    parts: set[Path] = set()  # images whose masks are numbered, one for each defect
    pairing = Pairing([], [], [], [])
    for mask in masks:
        images, is_part = _images_of(mask, by_stem, places)
        anomalous = [sample for sample in images if sample.is_anomalous]
        # An image of the training split never takes the mask of a test image: ground truth is of the test.
        anomalous = [sample for sample in anomalous if sample.split == "test"] or anomalous
        if not anomalous:
            (pairing.of_normal if images else pairing.orphans).append(mask.path)
        elif len(anomalous) > 1:
            names = " or ".join(sorted(f"{s.defect}/{s.path.name}" for s in anomalous))
            text = f"may belong to {names}, and was used for neither: give each image a stem of its own"
            pairing.problems.append(Problem("ambiguous_mask", mask.path, text))
        elif (image := anomalous[0].path) not in found:
            found[image] = [mask.path]
            parts |= {image} if is_part else set()
        elif is_part and image in parts:
            found[image].append(mask.path)
        else:
            pairing.orphans.append(mask.path)
    for sample in samples:
        first, *more = found.get(sample.path, [None])
        pairing.samples.append(msgspec.structs.replace(sample, mask=first, more_masks=tuple(filter(None, more))))
    return pairing


def _images_of(
    mask: MaskFile, by_stem: Mapping[str, Sequence[Sample]], places: Mapping[Path, str]
) -> tuple[list[Sample], bool]:
    """Return the images that a mask may belong to, and whether it shows only a part of the defects."""
    stem = mask.path.stem
    without_number = _NUMBERED_WORD.sub("", stem)
    stems = [(stem, False), (_MASK_WORD.sub("", stem), False), (without_number, True), (_NUMBER.sub("", stem), True)]
    for name, is_part in stems if mask.stem is None else [(mask.stem, True)]:
        images = [s for s in by_stem.get(name, ()) if mask.defect in (None, s.defect) and s.path != mask.path]
        # In a folder of its own a mask is of an image in the folder of the same name; one above is of any.
        images = [s for s in images if not mask.place or places[s.path] == mask.place]
        if images:
            return images, is_part
    return [], False
