"""Anomalous images of a dataset that have a mask, by split and defect type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets import Dataset, Sample
from flawscope.datasets.defects.file_names import category_of, defect_of, place_of
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import read_image

Source = Literal["train", "test", "any"]


class AnomalousSample(NamedTuple):
    """One anomalous image with a mask.

    Attributes:
        sample: The sample of the dataset.
        category: Name of its category.
        defect: Its defect type, without the category.
        place: The image's path below the dataset's root.
    """

    sample: Sample
    category: str
    defect: str
    place: str

    def read(self) -> tuple[UInt8Array, BoolArray]:
        """Return the image, uint8 [H, W, 3] RGB, and its mask, bool [H, W], which may be empty.

        Raises:
            DataError: If a file cannot be read, or the mask is not of the image's size.
        """
        image, mask = read_image(self.sample.path), self.sample.read_mask()
        # `list_anomalous` takes samples with a mask only.
        assert mask is not None
        # Never resized to fit: the mask may belong to another image.
        if mask.shape != image.shape[:2]:
            got, want = (f"{width}x{height}" for height, width in (mask.shape, image.shape[:2]))
            raise DataError(
                f"{self.sample.mask}: expected {want} pixels as its image has, got {got}. Export the mask again."
            )
        return image, mask


def list_anomalous(dataset: Dataset, split: Source, defects: Sequence[str] = ()) -> list[AnomalousSample]:
    """Return the anomalous images with a mask in the dataset's order.

    Args:
        dataset: The dataset.
        split: Where they may come from. Test images that a generator is trained on have to be left out of the
            evaluation, so none is taken unless `test` or `any` says so.
        defects: Defect types by the dataset's names; empty for all.

    Raises:
        ArgumentError: If a defect type is unknown.
        DataError: If a defect type has no image with a mask in the split.
    """
    if unknown := [name for name in defects if name not in dataset.defects]:
        types = ", ".join(dataset.defects) or "(there is none)"
        raise ArgumentError(f"defect: expected defect types of {dataset.root} ({types}), got {unknown[0]!r}.")
    if not dataset.defects:
        raise DataError(f"{dataset.root}: expected anomalous images with masks, got normal ones only. Add some.")
    entries: list[AnomalousSample] = []
    # As a sorted set, so that the order of --defect options changes nothing.
    for name in sorted(set(defects)) or dataset.defects:
        with_mask = [sample for sample in dataset.samples if sample.defect == name and sample.mask is not None]
        chosen = [sample for sample in with_mask if split in ("any", sample.split)]
        if not chosen:
            _raise_none(dataset, name, split, len(with_mask))
        for sample in chosen:
            place = place_of(dataset, sample.path)
            entries.append(AnomalousSample(sample, category_of(dataset, sample), defect_of(sample), place))
    return entries


def _raise_none(dataset: Dataset, defect: str, split: Source, elsewhere: int) -> None:
    where = "" if split == "any" else f" in the {split} split"
    text = f"{dataset.root}: {defect}: expected anomalous images with masks{where}, got none"
    if not elsewhere:
        raise DataError(f"{text} anywhere. Add masks, or name other defect types with --defect.")
    other = "test" if split == "train" else "train"
    remark = " Images taken from there have to be left out of the evaluation." if other == "test" else ""
    raise DataError(f"{text}, and {elsewhere} in {other}. Take those with --split {other}.{remark}")
