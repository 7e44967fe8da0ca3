"""Test images that a support set has given away: which they are, and why each is left out.

A detector may have learned from defects that were synthesised from a support set, and the images of that set may lie
in the test split, where AnoGen (ECCV 2024) takes them from and scores them all the same. Figures are honest on what
has nothing to do with the set: without its images, and without those that its record calls alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.datasets import Dataset
from flawscope.errors import DataError

if TYPE_CHECKING:
    from flawscope.datasets.defects.support_set import SupportRecord

_LISTED = 5


@dataclass(frozen=True)
class Contamination:
    """The contaminated test images of a dataset: members and near duplicates of a support set.

    Attributes:
        record: The record of the support set.
        of_set: bool [N], test images with the content of a support image, in the order of `Dataset.test`.
        alike: bool [N], those that are none and probably show the same part as one.
        left_out: Test image below the dataset's root -> why it is left out.
        missing: Support images of the dataset's categories whose content is nowhere in it.
        gone: Defect types of which no test image is left.
        reduced: The dataset without these test images; its training images are all there.
    """

    record: SupportRecord
    of_set: BoolArray
    alike: BoolArray
    left_out: dict[str, str]
    missing: int
    gone: tuple[str, ...]
    reduced: Dataset

    @property
    def kept(self) -> BoolArray:
        """Which test images stay, bool [N]."""
        return ~(self.of_set | self.alike)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about figures on the images that stay, a sentence each."""
        total, images = len(self.left_out), len(self.record.pictures)
        notes = []
        if not self.of_set.any():
            nothing = "" if total else ", and nothing is left out"
            notes.append(f"None of the {images} support images is among the test images{nothing}.")
        if total:
            notes.append(
                f"{total} of {len(self.of_set)} test images are left out: {int(self.of_set.sum())} of the support "
                f"set, {int(self.alike.sum())} that probably show the same parts. With leak says what the figures "
                "would be with them."
            )
        if self.missing:
            notes.append(
                f"{self.missing} of {images} support images are not in this dataset with the content that was "
                "recorded: if they are there in another form, they are not left out."
            )
        if self.gone:
            more = f" and {len(self.gone) - _LISTED} more" if len(self.gone) > _LISTED else ""
            names = ", ".join(self.gone[:_LISTED])
            notes.append(f"All images of these defect types are left out, so they are not judged: {names}{more}.")
        return tuple(notes)


def find_contamination(dataset: Dataset, record: SupportRecord, contents: Mapping[Path, str]) -> Contamination:
    """Return the test images that are in a support set or near duplicates of it, matched by content.

    A copy under another name is found as well; an image that was saved in another format is not.

    Args:
        dataset: The dataset.
        record: What the support set was made from.
        contents: The content hash of every image of the dataset.

    Raises:
        DataError: If the dataset holds nothing of the support set, or nothing but that in its test split.
    """
    # Whoever has a record has loaded that package; evaluations without one do not wait for it.
    from flawscope.datasets.defects.file_names import place_of

    own, like = record.contents, {one.content: one.like for one in record.alike}
    here = frozenset(contents[sample.path] for sample in dataset.samples)
    if not here & {*own, *like}:
        raise DataError(
            f"{dataset.root}: expected images of the support set, known by their content, got none of its "
            f"{len(record.pictures)} among {len(dataset.samples)}. Name the dataset it was taken from, or leave "
            "--support out."
        )
    samples = dataset.test
    of_set = np.array([contents[sample.path] in own for sample in samples], np.bool_)
    alike = np.array([contents[sample.path] in like for sample in samples], np.bool_) & ~of_set
    if not (~(of_set | alike)).any():
        raise DataError(
            f"{dataset.root}: expected test images beside the support set, got none: all {len(samples)} are of it, "
            "or probably show the same parts. Add test images, or take a smaller support set."
        )
    left_out, kept = {}, []
    for sample, is_own, is_alike in zip(samples, of_set, alike, strict=True):
        if is_own:
            left_out[place_of(dataset, sample.path)] = "a support image"
        elif is_alike:
            left_out[place_of(dataset, sample.path)] = f"probably the same part as {like[contents[sample.path]]}"
        else:
            kept.append(sample)
    # The order of a dataset has the training images first, so that this is its order without some.
    train = tuple(sample for sample in dataset.samples if sample.split == "train")
    # A category is known by its name or, where the folder is called otherwise, by any of its images.
    names = {sample.category or dataset.category for sample in dataset.samples}
    names |= {one.category for one in record.pictures if one.content in here}
    left = Counter(sample.defect for sample in kept)
    return Contamination(
        record=record,
        of_set=of_set,
        alike=alike,
        left_out=left_out,
        missing=sum(one.category in names and one.content not in here for one in record.pictures),
        gone=tuple(sorted({sample.defect for sample in samples} - left.keys())),
        reduced=msgspec.structs.replace(dataset, samples=(*train, *kept)),
    )
