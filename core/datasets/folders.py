"""Folder layouts of datasets: MVTec AD, plain class folders, and one flat folder of normal images.

    mvtec    train/good/*      test/{good,DEFECT}/*      ground_truth/DEFECT/*
    folders  good/*            DEFECT/*                  ground_truth/DEFECT/*, masks/DEFECT/*, DEFECT/STEM_mask.*
    flat     *

A mask belongs to the image of its defect type with the same stem, with or without a word for masks at its end (`_mask`,
`_GT`, `-label`, ...), whatever the extensions. Beside images it must have such a word, and every file that has one is a
mask there, unless all have. Masks are never paired by order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from flawscope.datasets.samples import GOOD, Dataset, Layout, Sample, Split, in_order
from flawscope.datasets.seeded_split import in_seeded_order
from flawscope.errors import DataError
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import list_folder

_MASK_FOLDERS = ("ground_truth", "masks")
_MASK_WORDS = ("mask", "gt", "ground[_-]?truth", "labels?", "seg", "segmentation", "anno", "annotations?")
_MASK_WORD = re.compile(rf"[ ._-]({'|'.join(_MASK_WORDS)})$", re.IGNORECASE)
"""What ends the stem of a mask: KolektorSDD2 has `NNN_GT`, KolektorSDD `NNN_label`, MVTec AD `NNN_mask`."""
_TEST_SHARE = 0.2
_MIN_GOOD_TO_SPLIT = 5  # fewer are all needed for training


class _Contents(NamedTuple):
    """Entries of one folder, each list sorted by name."""

    images: list[Path]
    masks: list[Path]
    folders: list[Path]
    others: list[Path]


def contents(folder: Path) -> _Contents:
    """List the entries of `folder` by kind; hidden files and those of editors and file managers are left out.

    Raises:
        DataError: If the folder cannot be listed.
    """
    listing = _Contents([], [], [], [])
    try:
        for path in list_folder(folder):
            if path.name.startswith(".") or path.name.endswith("~") or is_litter(path.name):
                continue
            if path.is_dir():
                listing.folders.append(path)
            elif path.suffix.lower() not in EXTENSIONS:
                listing.others.append(path)
            else:
                listing.images.append(path)
    except OSError as err:
        raise DataError(f"{folder}: expected a folder that can be listed, got: {err.strerror or err}.") from err
    # Masks may lie beside their images, where the name alone tells them apart: one that is learned as a normal image
    # spoils the model without a word. Only where all names end so it is the product that is called like that.
    masks = [path for path in listing.images if is_mask_name(path.stem)]
    if len(masks) == len(listing.images):
        return listing
    images = [path for path in listing.images if not is_mask_name(path.stem)]
    return _Contents(images, masks, listing.folders, listing.others)


def is_mask_name(stem: str) -> bool:
    """Return whether a file of this stem is taken for a mask where it lies beside images."""
    return _MASK_WORD.search(stem) is not None


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of a category's folder, or None if it is not a category (but may hold some).

    Raises:
        DataError: If the folder cannot be listed.
    """
    listing = contents(folder)
    folders = {path.name: path for path in listing.folders}
    # Before MVTec: there `good` is never directly below the category.
    if GOOD in folders:
        return "folders"
    if "train" in folders or ("test" in folders and any(p.name == GOOD for p in contents(folders["test"]).folders)):
        return "mvtec"
    return "flat" if listing.images and not folders else None


def read_folders(root: Path, layout: Layout) -> Dataset:
    """Index one category's folder that has the given layout ("mvtec", "folders" or "flat").

    Raises:
        DataError: If a folder cannot be listed.
    """
    builder = _Builder()
    if layout == "mvtec":
        for split in contents(root).folders:
            if split.name in ("train", "test"):
                for folder in contents(split).folders:
                    builder.add_images(folder, cast(Split, split.name), folder.name)
    elif layout == "folders":
        for folder in contents(root).folders:
            if folder.name not in _MASK_FOLDERS:
                builder.add_images(folder, "train" if folder.name == GOOD else "test", folder.name)
    else:
        builder.add_images(root, "train", GOOD)
    for folder in contents(root).folders:
        if folder.name in _MASK_FOLDERS:
            builder.add_mask_folders(folder)
    samples, orphans = builder.paired()
    if layout == "folders" and any(s.is_anomalous for s in samples):
        samples = _with_test_good(samples)
    # Path(".") has no name.
    category = root.name or root.resolve().name
    return Dataset(root, category, layout, in_order(samples), tuple(orphans), tuple(builder.ignored))


class _Builder:
    """Collects images and masks folder by folder, then pairs them."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.masks: list[tuple[str, Path]] = []
        self.ignored: list[Path] = []

    def add_images(self, folder: Path, split: Split, defect: str) -> None:
        """Add the images of a folder as samples, and those named STEM_mask beside them as their masks."""
        listing = contents(folder)
        self.samples += [Sample(path, split, defect) for path in listing.images]
        if defect == GOOD:
            self.ignored += listing.masks  # those of normal images are all zero
        else:
            self.masks += [(defect, path) for path in listing.masks]
        self.ignored += listing.others + listing.folders

    def add_mask_folders(self, parent: Path) -> None:
        """Add the images in the subfolders of `parent` as masks, where a subfolder is named after its defect type.

        Masks of normal images, which some datasets ship, are all zero: they are left out.
        """
        for folder in contents(parent).folders:
            if folder.name == GOOD:
                continue
            listing = contents(folder)
            self.masks += [(folder.name, path) for path in sorted(listing.masks + listing.images)]
            self.ignored += listing.others + listing.folders

    def paired(self) -> tuple[list[Sample], list[Path]]:
        """Return the samples with their masks, and the masks without an image (or whose image has another mask)."""
        stems = {(s.defect, s.path.stem) for s in self.samples}
        masks: dict[tuple[str, str], Path] = {}
        orphans = []
        for defect, path in self.masks:
            key = (defect, _stem_of_mask(path))
            # The first mask of an image counts; a second, such as one of another extension, is reported as an orphan.
            if key in stems and defect != GOOD and key not in masks:
                masks[key] = path
            else:
                orphans.append(path)
        return [msgspec.structs.replace(s, mask=masks.get((s.defect, s.path.stem))) for s in self.samples], orphans


def _stem_of_mask(path: Path) -> str:
    return _MASK_WORD.sub("", path.stem)


def _with_test_good(samples: list[Sample]) -> list[Sample]:
    """Move a fixed share of the normal images to the test split, chosen by their names alone.

    Plain folders have no split, and without normal test images no accuracy could be measured.
    """
    good = [s for s in samples if not s.is_anomalous]
    count = max(1, round(_TEST_SHARE * len(good))) if len(good) >= _MIN_GOOD_TO_SPLIT else 0
    # A fixed seed, not the run's: the test images of a dataset must be the same for every training.
    moved = set(in_seeded_order(good, seed=0)[:count])
    return [msgspec.structs.replace(s, split="test") if s in moved else s for s in samples]
