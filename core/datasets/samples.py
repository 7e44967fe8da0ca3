"""Structs of a dataset: `Sample`, one labelled image, and `Dataset`, an ordered index of samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from flawscope.arrays import BoolArray
from flawscope.imaging.images import read_mask

Split = Literal["train", "test"]
Layout = Literal["mvtec", "visa", "records", "folders", "flat"]
GOOD = "good"


class Sample(msgspec.Struct, frozen=True):
    """One labelled image.

    Attributes:
        path: The image file.
        split: "train" or "test".
        defect: "good", or the defect type.
        mask: The mask file; None for normal images and where there is none.
        is_mask_indexed: The mask holds class numbers (VisA), not grey levels; see `flawscope.imaging.images.read_mask`.
        category: The category, in a dataset of all categories; empty otherwise, where `Dataset.category` says it.
    """

    path: Path
    split: Split
    defect: str
    # A path and not an array: a dataset is indexed without opening its files.
    mask: Path | None = None
    is_mask_indexed: bool = False
    category: str = ""

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD

    def read_mask(self) -> BoolArray | None:
        """Return the mask as bool [H, W], true at the defect, or None where the sample has no mask file.

        Raises:
            ImageError: If the mask file cannot be read.
        """
        return None if self.mask is None else read_mask(self.mask, is_indexed=self.is_mask_indexed)


class Dataset(msgspec.Struct, frozen=True):
    """The images of one category or of all of them, in an order that depends on their names alone.

    Attributes:
        root: The folder of the dataset; for VisA and records that of all categories.
        category: Name of the category; "all" where all below the root are merged.
        layout: Layout of the files.
        samples: Training images first, good before defects, then by defect type and path.
        orphan_masks: Mask files that belong to no image.
        ignored: Files and folders among the images that were not used, such as text files and sub-folders.
    """

    root: Path
    category: str
    layout: Layout
    samples: tuple[Sample, ...]
    orphan_masks: tuple[Path, ...] = ()
    ignored: tuple[Path, ...] = ()

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
