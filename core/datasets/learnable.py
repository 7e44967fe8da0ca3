"""What there must be to learn from: `data inspect` and `train` ask the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flawscope.datasets.samples import Dataset
from flawscope.errors import DataError
from flawscope.imaging.images import read_image

MIN_TRAINING_IMAGES = 2
"""Fewest normal training images of different content: a single one shows no variation."""


def is_constant(image: npt.NDArray[Any]) -> bool:
    """Return whether all pixels are the same, as with the lens cap on or in full saturation."""
    return bool((image == image[:1, :1]).all())


def shortage_of(contents: Collection[str]) -> str | None:
    """Return what is wrong, without a full stop, where too few normal training images can be learned from.

    Args:
        contents: Hashes of those that can be read and are not of one colour; copies count once.
    """
    if (count := len(set(contents))) >= MIN_TRAINING_IMAGES:
        return None
    return (
        f"has {count} readable normal training images that differ and are not of one colour; at least "
        f"{MIN_TRAINING_IMAGES} are needed"
    )


def check_learnable(dataset: Dataset, hashes: Mapping[Path, str]) -> None:
    """Refuse a dataset that `data inspect` calls unusable; images are opened only until there are enough.

    Args:
        dataset: The dataset.
        hashes: Those of `hash_contents`, of every normal training image.

    Raises:
        DataError: If there is too little to learn from.
        ImageError: If one of the images that are opened is broken.
    """
    contents = set[str]()
    for sample in dataset.train_good:
        if hashes[sample.path] in contents:
            continue
        if not is_constant(read_image(sample.path)):
            contents.add(hashes[sample.path])
        if shortage_of(contents) is None:
            return
    raise DataError(f"{dataset.root}: {shortage_of(contents)}. See flawscope data inspect.")
