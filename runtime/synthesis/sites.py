"""Where defects are drawn: normal images with the masks of defects to come, of a box set or of a mask set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from flawscope.arrays import BoolArray
from flawscope.datasets import Dataset
from flawscope.datasets.defects.box_sets import find_box_lines, read_box_lines
from flawscope.datasets.defects.file_names import category_of
from flawscope.datasets.fingerprints import content_hash
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.masks import read_mask


@dataclass(frozen=True)
class Site:
    """A normal image and the mask of where a defect goes.

    Attributes:
        category: Name of the category.
        defect: Defect type.
        good: The normal image.
        place: Name of the image in the record: its path below the dataset's root.
        mask: The mask; white is where the defect goes.
        box: Name of the mask in the record: its path below the box set.
        text: The prompt, if the line has one.
        is_fitted: Whether a mask of another size is resized to that of the image; otherwise it is an error.
    """

    category: str
    defect: str
    good: Path
    place: str
    mask: Path
    box: str
    text: str | None = None
    is_fitted: bool = False

    @property
    def key(self) -> str:
        """CATEGORY/DEFECT."""
        return f"{self.category}/{self.defect}"

    def read_mask(self, size: tuple[int, int]) -> BoolArray:
        """Return the mask for an image of `size`, bool [H, W].

        Args:
            size: Height and width of the normal image.

        Raises:
            DataError: If it cannot be read, is of another size and not to be fitted, or is all black or all white.
        """
        mask = read_mask(self.mask)
        got, expected = (f"{width}x{height}" for height, width in (mask.shape, size))
        if mask.shape != size and not self.is_fitted:
            raise DataError(
                f"{self.mask}: expected {expected} pixels as {self.good} has, got {got}. Draw the box again."
            )
        if not mask.any():
            raise DataError(f"{self.mask}: expected at least one white pixel, got an all-black mask. Draw a box there.")
        if mask.all():
            raise DataError(f"{self.mask}: expected black pixels around the defect, got an all-white mask. Draw a box.")
        if mask.shape == size:
            return mask
        # Nearest, so that white stays white; both sides by their own factor, as AnoGen brings image and mask to 256.
        fitted = cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST) > 0
        if not fitted.any() or fitted.all():
            left = "no white pixel" if not fitted.any() else "no black pixel"
            raise DataError(
                f"{self.mask}: expected a mask that can be brought from {got} to {expected} pixels, got {left} then. "
                "Draw it in the size of the image."
            )
        return np.asarray(fitted)


def read_sites(boxes: Path, dataset: Dataset, defects: Sequence[str] = ()) -> tuple[list[Site], dict[str, str]]:
    """Return the sites that the lines of a box set describe, and the SHA-256 of the files with the lines.

    Args:
        boxes: Folder with NAME/NAME_test.jsonl (or NAME_test.jsonl) of each of the dataset's categories. The defect
            type of a line without one is the name of its mask's folder. Paths are relative to the dataset's root and
            to this folder; those of MvP-Diff's own lines, to the working folder.
        dataset: The dataset whose root `good` is relative to.
        defects: Defect types to take; empty means all.

    Raises:
        ArgumentError: If a defect type is in no line.
        DataError: If there are no lines, or one is broken.
    """
    sites: list[Site] = []
    hashes: dict[str, str] = {}
    names = sorted({category_of(dataset, sample) for sample in dataset.samples})
    for name in names:
        file = find_box_lines(boxes, name)
        if file is None:
            # A box set may cover some categories of a joint dataset; of a single category it must have the file.
            if len(names) == 1:
                raise DataError(
                    f"{boxes}: expected {name}/{name}_test.jsonl, got no such file. Make it with flawscope synth boxes "
                    "--num."
                )
            continue
        hashes[file.relative_to(boxes).as_posix()] = content_hash(file)
        for line in read_box_lines(boxes, file, dataset):
            good, mask = _good_of(dataset, line.good), _mask_of(boxes, line.mask)
            place = good.relative_to(dataset.root).as_posix()
            sites.append(Site(name, line.defect, good, place, mask, line.mask, line.text))
    types = sorted({site.defect for site in sites})
    if unknown := [name for name in defects if name not in types]:
        listed = ", ".join(types) or "(there is none)"
        raise ArgumentError(f"defect: expected defect types of the lines ({listed}), got {unknown[0]!r}.")
    # Filtered after all lines were read: a broken line is an error whichever types are drawn.
    sites = [site for site in sites if not defects or site.defect in defects]
    if not sites:
        raise DataError(f"{boxes}: expected lines to draw on, got none. Make them with flawscope synth boxes --num.")
    return sites, hashes


def _good_of(dataset: Dataset, text: str) -> Path:
    """Return the normal image of a line: below the dataset's root, or, as MvP-Diff writes it, the working folder."""
    path, here = dataset.root / text, Path(text)
    if path.exists() or not here.exists():
        return path
    try:
        # What a line names is below the dataset all the same: another place is read by nobody's wish.
        return dataset.root / here.resolve().relative_to(dataset.root.resolve())
    except ValueError:
        return path


def _mask_of(boxes: Path, text: str) -> Path:
    """Return the mask of a line: below the box set, or, as MvP-Diff writes it, below the working folder."""
    path, here = boxes / text, Path(text)
    return here if here.exists() and not path.exists() else path
