"""What a detector has seen, and is not measured on.

Test images that it has seen for labelled defects: real ones it learned from, and what defects were drawn on. The bundle
lists them by content (`images.json`), so that they are left out of its figures wherever it is evaluated, without a
support set being named. A support set that is named is still taken for its own: figures with leak show what its images
would have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from flawscope.datasets import Dataset, Sample, as_recorded, hash_contents
from flawscope.datasets.defects.file_names import place_of
from flawscope.datasets.samples import in_order
from flawscope.errors import DataError
from flawscope.progress import Progress

if TYPE_CHECKING:
    from flawscope.bundle import ImageHashes
    from flawscope.datasets.defects.support_set import SupportRecord

_WITHOUT_SPLIT = ("flat", "folders")
"""Layouts in which no folder says which images are for the test."""


def has_test_images(dataset: Dataset) -> bool:
    """Return whether a dataset has test images, or images that `with_test_images` makes some of."""
    return bool(dataset.test or (dataset.layout in _WITHOUT_SPLIT and dataset.samples))


def with_test_images(dataset: Dataset, hashes: ImageHashes, progress: Progress) -> tuple[Dataset, tuple[str, ...]]:
    """Return a dataset with test images, and a note where these are normal images that were no test images before.

    Normal images alone, in a folder, are training images for whoever trains. To a detector that was made without them
    they are new, and tell of false rejects.

    Args:
        dataset: The dataset.
        hashes: The images that the detector and its thresholds were made with.
        progress: Told how many images have been compared.

    Raises:
        DataError: If there is no such image.
    """
    if dataset.test or not has_test_images(dataset):
        return dataset, ()
    contents = hash_contents(
        [sample.path for sample in dataset.samples], lambda done, total: progress("Comparing images", done, total)
    )
    known = {*hashes.seen, *hashes.held_out}
    recorded = as_recorded(contents, known)
    new = [sample for sample in dataset.samples if recorded[sample.path] not in known]
    total, learned = len(dataset.samples), len(dataset.samples) - len(new)
    if not new:
        raise DataError(
            f"{dataset.root}: expected images that the bundle was made without, got none among {total}. Add new ones, "
            "and defective ones in a folder of their own (test/DEFECT)."
        )
    without = f", without {learned} that the bundle was made with" if learned else ""
    samples = (*(s for s in dataset.samples if recorded[s.path] in known), *(_for_test(sample) for sample in new))
    return msgspec.structs.replace(dataset, samples=in_order(samples)), (
        f"No image of the dataset is set apart for the test: its normal ones are the test images{without}. Where "
        "thresholds were set on them (flawscope calibrate), their false rejects are optimistic.",
    )


def _for_test(sample: Sample) -> Sample:
    return msgspec.structs.replace(sample, split="test")


def leave_out_seen(
    dataset: Dataset, seen: Mapping[str, str], support: SupportRecord | None, progress: Progress
) -> tuple[Dataset, dict[str, str]]:
    """Return a dataset without the test images that a detector has seen, and why each is left out.

    Args:
        dataset: The dataset.
        seen: Hash of an image -> how the detector has seen it; of `ImageHashes.defects`.
        support: A support set whose images are left out for themselves, or None.
        progress: Told how many images have been compared.

    Returns:
        The dataset, and the test images left out, below its root -> how they were seen.

    Raises:
        DataError: If no test image remains.
    """
    if not seen:
        return dataset, {}
    hashes = hash_contents(
        [sample.path for sample in dataset.test], lambda done, total: progress("Comparing images", done, total)
    )
    contents = as_recorded(hashes, seen)
    # By the image and not by the recorded hash: an image of the set may be recorded by its pixels too.
    named = frozenset[str]() if support is None else support.learned
    of_support = as_recorded(hashes, named)
    left_out = {
        place_of(dataset, sample.path): seen[contents[sample.path]]
        for sample in dataset.test
        if contents[sample.path] in seen and of_support[sample.path] not in named
    }
    if left_out and len(left_out) == len(dataset.test):
        raise DataError(
            f"{dataset.root}: expected test images that the detector has not learned from, got none among "
            f"{len(dataset.test)}. Add test images."
        )
    kept = tuple(
        sample
        for sample in dataset.samples
        if sample.split == "train" or place_of(dataset, sample.path) not in left_out
    )
    return msgspec.structs.replace(dataset, samples=kept), left_out


def seen_notes(left_out: Mapping[str, str], total: int) -> tuple[str, ...]:
    """Return what was left out, a sentence; empty if nothing was.

    Args:
        left_out: Of `leave_out_seen`.
        total: Test images before.
    """
    if not left_out:
        return ()
    # Reasons name the image that another is like; here they are counted by kind.
    kinds = Counter(why.partition(" as ")[0] for why in left_out.values())
    counted = ", ".join(f"{why} {count}" for why, count in sorted(kinds.items()))
    return (
        f"{len(left_out)} of {total} test images are left out of all figures, because the detector has seen them or "
        f"the same parts ({counted}).",
    )
