"""The images that thresholds are set on: which are chosen, and why others are left out."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flawscope.bundle import ImageHashes
from flawscope.calibration.evaluation.contamination import find_contamination
from flawscope.datasets import Dataset, Sample, as_recorded, hash_contents
from flawscope.errors import DataError
from flawscope.progress import Progress

if TYPE_CHECKING:
    from flawscope.datasets.defects.support_set import SupportRecord

Objective = Literal["good", "f1"]
"""`good` sets thresholds on normal images alone; `f1` the image threshold on labelled test images."""


@dataclass(frozen=True)
class ChosenImages:
    """The images to set thresholds on.

    Attributes:
        samples: They themselves; maybe none.
        left_out: Reasons why others of the same kind were left out, each with their number.
        contents: Content hash of every image that was looked at.
    """

    samples: tuple[Sample, ...]
    left_out: tuple[tuple[str, int], ...]
    contents: dict[Path, str]


def choose_images(
    dataset: Dataset, hashes: ImageHashes, objective: Objective, support: SupportRecord | None, progress: Progress
) -> ChosenImages:
    """Return the images of a dataset that thresholds may be set on, each content once.

    Args:
        dataset: Its normal training images are used, or its test images for `f1`.
        hashes: The images that the detector has learned.
        objective: What thresholds are set for.
        support: The support set whose images and near duplicates are left out.
        progress: Told how many images have been compared.

    Raises:
        DataError: If the objective is `f1` and there is one kind of test image only.
    """
    # Never test images for the objective `good`: figures on them, at thresholds set on them, would be optimistic.
    candidates = dataset.train_good if objective == "good" else dataset.test
    if objective == "f1" and len({sample.is_anomalous for sample in candidates}) < 2:
        raise DataError(
            f"{dataset.root}: expected normal and anomalous test images for the objective f1, got one kind only. "
            "Use the objective good."
        )
    # All images, because a support set may have been taken from the training images of this dataset.
    hashed = candidates if support is None else dataset.samples
    pixels = hash_contents(
        [sample.path for sample in hashed], lambda done, total: progress("Comparing images", done, total)
    )
    contents = as_recorded(pixels, hashes.seen)
    contaminated = set[Path]()
    if support is not None:
        is_contaminated = ~find_contamination(dataset, support, as_recorded(pixels, support.learned)).remaining
        contaminated = {sample.path for sample in itertools.compress(dataset.test, is_contaminated)}
    # `hashes.held_out` is not excluded: these images were kept out of training for thresholds to be set on.
    learned, seen = hashes.seen, set[str]()
    chosen, reasons = [], Counter[str]()
    for sample in candidates:
        content = contents[sample.path]
        if content in learned:
            reasons["that the detector has learned"] += 1
        elif sample.path in contaminated:
            reasons["of the support set, or probably of the same parts"] += 1
        elif content in seen:
            reasons["copies of another image: they are not independent"] += 1
        else:
            seen.add(content)
            chosen.append(sample)
    return ChosenImages(tuple(chosen), tuple(reasons.items()), contents)


def check_images(dataset: Dataset, chosen: ChosenImages, objective: Objective, without_cross: str = "") -> None:
    """Raise DataError unless there are normal images to set thresholds on, and for `f1` anomalous ones.

    Args:
        dataset: Where they are from.
        chosen: What was chosen.
        objective: What thresholds are set for.
        without_cross: The precision, where the bundle has cross-fitted scores that are not of it; else empty.
    """
    if not chosen.samples or all(sample.is_anomalous for sample in chosen.samples):
        crossed = (
            f" for {without_cross}, since the cross-fitted scores of the bundle are of FP32 and those of another "
            "precision differ"
        )
        raise DataError(
            f"{dataset.root}: expected normal images that the detector has not learned from"
            f"{crossed if without_cross else ''}, got none among "
            f"{len(dataset.train_good if objective == 'good' else dataset.test)}. "
            "Keep some out of training (--set held_out=0.2), or name another set."
        )
    if objective == "f1" and not any(sample.is_anomalous for sample in chosen.samples):
        raise DataError(
            f"{dataset.root}: expected anomalous test images for the objective f1, got none beside those that were "
            "learned or are of the support set. Add some, or use the objective good."
        )
