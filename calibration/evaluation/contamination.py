"""Contamination of the test split by a support set: which test images it affects, and why each is left out.

A detector may have learned from defects that were synthesised from a support set, and the images of that set may lie
in the test split: AnoGen (ECCV 2024) takes them from there and still scores them. Unbiased figures leave out the
support images and their near duplicates, which the record of the set lists.
"""

from __future__ import annotations

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
        alike: bool [N], their near duplicates: not support images, but probably of the same part as one.
        left_out: Test image below the dataset's root -> why it is left out.
        missing: Number of support images of the dataset's categories whose content is nowhere in it.
        gone: Defect types of which no test image remains.
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
    def remaining(self) -> BoolArray:
        """Test images that remain, bool [N]."""
        return ~(self.of_set | self.alike)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about figures on the images that remain, a sentence each."""
        total, images = len(self.left_out), len(self.record.pictures)
        notes = []
        if not self.of_set.any():
            consequence = "" if total else ", and nothing is left out"
            notes.append(f"None of the {images} support images is among the test images{consequence}.")
        if total:
            notes.append(
                f"{total} of {len(self.of_set)} test images are left out: {int(self.of_set.sum())} of the support "
                f"set, {int(self.alike.sum())} that probably show the same parts. The figures with leak include "
                "them."
            )
        if self.missing:
            notes.append(
                f"{self.missing} of {images} support images are not in this dataset with the content that was "
                "recorded. A copy in another file format is recognized only beside its original; "
                "such a copy is not left out."
            )
        if self.gone:
            unlisted = f" and {len(self.gone) - _LISTED} more" if len(self.gone) > _LISTED else ""
            names = ", ".join(self.gone[:_LISTED])
            notes.append(f"All images of these defect types are left out, so they are not judged: {names}{unlisted}.")
        return tuple(notes)


def find_contamination(dataset: Dataset, record: SupportRecord, contents: Mapping[Path, str]) -> Contamination:
    """Return the test images that are in a support set or near duplicates of it, matched by content.

    A copy under another name is found as well, and one in another format where the recorded file lies in the dataset.

    Args:
        dataset: The dataset.
        record: What the support set was made from.
        contents: The content hash of every image of the dataset.

    Raises:
        DataError: If the dataset holds nothing of the support set, or nothing but that in its test split.
    """
    # Lazy: evaluations without a support set do not load the package of defect sets.
    from flawscope.datasets.defects.file_names import place_of

    support_contents = record.contents
    resembles = {duplicate.content: duplicate.like for duplicate in record.alike}
    dataset_contents = frozenset(contents[sample.path] for sample in dataset.samples)
    # Nothing in common means another dataset: leaving nothing out in silence would give figures with leak.
    if not dataset_contents & {*support_contents, *resembles}:
        raise DataError(
            f"{dataset.root}: expected images of the support set, known by their content, got none of its "
            f"{len(record.pictures)} among {len(dataset.samples)}. Name the dataset it was taken from, or leave "
            "--support out."
        )
    samples = dataset.test
    of_set = np.array([contents[sample.path] in support_contents for sample in samples], np.bool_)
    # A support image may resemble another one: it counts once, as a support image.
    alike = np.array([contents[sample.path] in resembles for sample in samples], np.bool_) & ~of_set
    if not (~(of_set | alike)).any():
        raise DataError(
            f"{dataset.root}: expected test images beside the support set, got none: all {len(samples)} are of it, "
            "or probably show the same parts. Add test images, or take a smaller support set."
        )
    left_out, remaining = {}, []
    for sample, is_support, is_alike in zip(samples, of_set, alike, strict=True):
        if is_support:
            left_out[place_of(dataset, sample.path)] = "a support image"
        elif is_alike:
            left_out[place_of(dataset, sample.path)] = f"probably the same part as {resembles[contents[sample.path]]}"
        else:
            remaining.append(sample)
    # A dataset lists its training images first, so this keeps its order, which its fingerprint depends on.
    train = tuple(sample for sample in dataset.samples if sample.split == "train")
    # Support images of other categories are not missing. A category counts as here by its name or, where its folder has
    # been renamed, by any of its images.
    categories = {sample.category or dataset.category for sample in dataset.samples}
    categories |= {image.category for image in record.pictures if image.content in dataset_contents}
    return Contamination(
        record=record,
        of_set=of_set,
        alike=alike,
        left_out=left_out,
        missing=sum(
            image.category in categories and image.content not in dataset_contents for image in record.pictures
        ),
        gone=tuple(sorted({sample.defect for sample in samples} - {sample.defect for sample in remaining})),
        reduced=msgspec.structs.replace(dataset, samples=(*train, *remaining)),
    )
