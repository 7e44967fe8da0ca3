"""Structs of a dataset: `Sample`, one labelled image, and `Dataset`, an ordered index of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.datasets.problems import Problem
from flawscope.errors import ImageError
from flawscope.imaging.masks import MaskReading, read_mask_with_facts
from flawscope.part_words import GOOD

Split = Literal["train", "test"]
Layout = Literal["mvtec", "visa", "real_iad", "records", "folders", "flat"]


class Sample(msgspec.Struct, frozen=True):
    """One labelled image.

    Attributes:
        path: The image file.
        split: "train" or "test".
        defect: "good", or the defect type.
        mask: The mask file; None for normal images and where there is none.
        is_mask_indexed: The mask is known to hold class numbers (VisA); see `flawscope.imaging.masks.read_mask`.
        category: The category, in a dataset of all categories; empty otherwise, where `Dataset.category` says it.
        more_masks: Further mask files of the image, where it has one for each defect (MVTec LOCO AD).
    """

    path: Path
    split: Split
    defect: str
    # A path and not an array: a dataset is indexed without opening its files.
    mask: Path | None = None
    is_mask_indexed: bool = False
    category: str = ""
    more_masks: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """All mask files of the image."""
        return () if self.mask is None else (self.mask, *self.more_masks)

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD

    def read_mask(self) -> BoolArray | None:
        """Return the mask as bool [H, W], true at the defect, or None where the sample has no mask file.

        Of several mask files it is the union.

        Raises:
            ImageError: If a mask file cannot be read, or several are of different sizes.
        """
        return union_of(self.masks, self.read_masks())

    def read_masks(self) -> list[MaskReading]:
        """Return every mask file as it was understood, in the order of `masks`.

        Raises:
            ImageError: If a mask file cannot be read.
        """
        return [read_mask_with_facts(path, is_indexed=self.is_mask_indexed) for path in self.masks]


def union_of(paths: Sequence[Path], readings: Sequence[MaskReading]) -> BoolArray | None:
    """Return what any of the masks of one image shows, bool [H, W]; None where there is none.

    Raises:
        ImageError: If they are of different sizes.
    """
    if not readings:
        return None
    whole = readings[0].defect
    for path, reading in zip(paths[1:], readings[1:], strict=True):
        if reading.defect.shape != whole.shape:
            got, want = (f"{width}x{height}" for height, width in (reading.defect.shape, whole.shape))
            raise ImageError(f"{path}: expected {want} pixels as {paths[0]} has, got {got}. Export the masks again.")
        whole = np.logical_or(whole, reading.defect)
    return whole


class Dataset(msgspec.Struct, frozen=True):
    """The images of one category or of all of them, in an order that depends on their names alone.

    Attributes:
        root: The folder of the dataset; for VisA, Real-IAD and records that of all categories.
        category: Name of the category; "all" where all below the root are merged.
        layout: Layout of the files.
        samples: Training images first, good before defects, then by defect type and path.
        orphan_masks: Mask files that belong to no image.
        ignored: Files and folders among the images that were not used, such as text files and sub-folders.
        remarks: What was taken otherwise than it lies, and what is ambiguous, as far as names tell.
    """

    root: Path
    category: str
    layout: Layout
    samples: tuple[Sample, ...]
    orphan_masks: tuple[Path, ...] = ()
    ignored: tuple[Path, ...] = ()
    remarks: tuple[Problem, ...] = ()

    @property
    def train_good(self) -> tuple[Sample, ...]:
        """The normal training images, which detectors are trained on."""
        return tuple(s for s in self.samples if s.split == "train" and not s.is_anomalous)

    @property
    def test(self) -> tuple[Sample, ...]:
        """The test images, normal and anomalous."""
        return tuple(s for s in self.samples if s.split == "test")

    @property
    def defects(self) -> tuple[str, ...]:
        """The defect types in alphabetical order, without "good"."""
        return tuple(sorted({s.defect for s in self.samples if s.is_anomalous}))


def in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return samples in the order of `Dataset.samples`."""
    # Training order, seeds and fingerprints rest on this order: a change makes every run another one.
    return tuple(sorted(samples, key=lambda s: (s.split == "test", s.is_anomalous, s.defect, s.path.as_posix())))
