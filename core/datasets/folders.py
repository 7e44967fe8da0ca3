"""Folder layouts of datasets: MVTec AD, plain class folders, and one flat folder of normal images.

    mvtec    train/good/*      test/{good,DEFECT}/*      ground_truth/DEFECT/*
             train/good/*      test_public/{good,bad}/*  test_public/ground_truth/bad/*      (MVTec AD 2)
    folders  good/*            DEFECT/*                  ground_truth/DEFECT/*, masks/DEFECT/*, DEFECT/STEM_mask.*
    flat     *

`good` may have any of the names in `flawscope.part_words.GOOD_NAMES` (ok, gut, ...); they, `train` and `test` may be
written in any case. A folder of a type
that holds no image itself may have its images in folders below, such as one for every day. What was taken so is noted.

A mask belongs to the image of its defect type with the same stem, with or without a word for masks at its end (`_mask`,
`_GT`, `-label`, ...), whatever the extensions; see `mask_pairing.py`. Beside images it must have such a word, and every
file that has one is a mask there, unless all have. An image may have several masks: `ground_truth/DEFECT/STEM/*`, or
with numbers at their ends. Masks in no folder of a type belong to the one anomalous image of their stem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from flawscope.datasets.mask_pairing import MaskFile, ends_like_a_mask, is_mask_folder, masks_among, pair
from flawscope.datasets.problems import Problem
from flawscope.datasets.samples import Dataset, Layout, Sample, Split, in_order
from flawscope.datasets.seeded_split import in_seeded_order
from flawscope.errors import DataError
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import list_folder
from flawscope.part_words import BAD_NAMES, GOOD, GOOD_NAMES

_SPLITS = ("train", "test")
_PUBLIC_TEST = "test_public"
"""The labelled test images of MVTec AD 2; those of its private folders have no labels."""
_TEST_SHARE = 0.2
_MIN_GOOD_TO_SPLIT = 5  # fewer are all needed for training
_IN_NO_TYPE = "lies in no folder of normal images or of a defect type and was left out"
_DEEPEST = 4  # folders below that of a type
_NOT_OPENED = frozenset({*_SPLITS, "val", "validation"})


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
    # Masks may lie beside their images, where the name alone tells them apart.
    masks = set(masks_among(listing.images))
    images = [path for path in listing.images if path not in masks]
    return _Contents(images, sorted(masks), listing.folders, listing.others)


def layout_of(folder: Path) -> Layout | None:
    """Return the layout of a category's folder, or None if it is not a category (but may hold some).

    Raises:
        DataError: If the folder cannot be listed.
    """
    listing = contents(folder)
    # Before MVTec: there `good` is never directly below the category.
    if any(path.name == GOOD for path in listing.folders):
        return "folders"
    splits = {path.name.lower(): path for path in listing.folders}
    if "train" in splits or ("test" in splits and any(_is_good(path) for path in contents(splits["test"]).folders)):
        return "mvtec"
    # A category may be called `normal` too.
    if any(_is_good(path) and not _is_category(path) for path in listing.folders):
        return "folders"
    return "flat" if listing.images and not listing.folders else None


def _is_good(folder: Path) -> bool:
    return folder.name.lower() in GOOD_NAMES


def _is_category(folder: Path) -> bool:
    try:
        names = {path.name.lower() for path in contents(folder).folders}
    except DataError:  # what may not be listed is no category
        return False
    return bool(names & {*GOOD_NAMES, *_SPLITS})


def read_folders(root: Path, layout: Layout) -> Dataset:
    """Index one category's folder that has the given layout ("mvtec", "folders" or "flat").

    Raises:
        DataError: If a folder cannot be listed, or two may hold the normal images.
    """
    builder = _Builder(root)
    listing = contents(root)
    mask_folders = [folder for folder in listing.folders if is_mask_folder(folder.name)]
    others = [folder for folder in listing.folders if folder not in mask_folders]
    if layout == "mvtec":
        splits = {folder: split for folder in others if (split := _split_of(folder, others)) is not None}
        builder.leave_out((f for f in others if f not in splits), "is neither train nor test and was left out")
        _check_unique(list(splits), key=splits.__getitem__, what="folder of each split")
        for folder, split in splits.items():
            builder.add_split(folder, split)
    elif layout == "folders":
        builder.add_types(others, lambda name: "train" if name == GOOD else "test")
    else:
        builder.add_images(root, "train", GOOD)
    if layout != "flat":
        builder.leave_out([*listing.images, *listing.masks], _IN_NO_TYPE)
    for folder in mask_folders:
        builder.add_mask_folder(folder)
    samples, orphans = builder.paired()
    if layout == "folders" and any(s.is_anomalous for s in samples):
        samples = _with_test_good(samples)
    # Path(".") has no name.
    category = root.name or root.resolve().name
    return Dataset(
        root,
        category,
        layout,
        in_order(samples),
        tuple(orphans),
        tuple(builder.ignored),
        tuple(builder.remarks),
    )


def _split_of(folder: Path, beside: Sequence[Path]) -> Split | None:
    """Return the split that a folder of a category holds, or None."""
    name = folder.name.lower()
    if name == _PUBLIC_TEST and not any(other.name.lower() == "test" for other in beside):
        return "test"
    return cast(Split, name) if name in _SPLITS else None


def _check_unique(folders: Sequence[Path], key: Callable[[Path], str], what: str) -> None:
    names: dict[str, Path] = {}
    for folder in folders:
        if (other := names.setdefault(key(folder), folder)) is not folder:
            # Not guessed: one of them may hold what was put aside.
            raise DataError(
                f"{folder.parent}: expected one {what}, got {other.name} and {folder.name}. Keep one, or join them."
            )


class _Builder:
    """Collects images and masks folder by folder, then pairs them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.samples: list[Sample] = []
        self.places: dict[Path, str] = {}
        self.masks: list[MaskFile] = []
        self.ignored: list[Path] = []
        self.remarks: list[Problem] = []

    def add_split(self, folder: Path, split: Split) -> None:
        """Add the folders of types in the folder of a split; images that lie beside them are of no type."""
        if folder.name != split:
            self._remark("taken_as_split", folder, f"was taken as {split}")
        listing = contents(folder)
        self.leave_out([*listing.images, *listing.masks], _IN_NO_TYPE)
        types = []
        for path in listing.folders:
            if is_mask_folder(path.name):
                self.add_mask_folder(path)
            else:
                types.append(path)
        self.add_types(types, lambda _: split)

    def add_types(self, folders: Sequence[Path], split_of: Callable[[str], Split]) -> None:
        """Add the folders of normal images and of defect types."""
        _check_unique([f for f in folders if _is_good(f)], key=lambda _: GOOD, what="folder of normal images")
        for folder in folders:
            defect = GOOD if _is_good(folder) else folder.name
            if defect == GOOD != folder.name:
                self._remark("taken_as_good", folder, "was taken as the folder of normal images")
            self.add_images(folder, split_of(defect), defect)

    def add_images(self, folder: Path, split: Split, defect: str) -> None:
        """Add the images of a type as samples, and the masks among them."""
        opened: list[str] = []
        self._add_place(folder, folder, split, defect, opened)
        here = [sample.path for sample in self.samples if sample.path.is_relative_to(folder)]
        if here and all(ends_like_a_mask(path.stem) for path in here):
            self._remark("named_like_masks", folder, "has names that all end as those of masks do, taken as images")
        if opened:
            names = ", ".join(opened[:3]) + (f", ... ({len(opened)})" if len(opened) > 3 else "")
            self._remark("nested_folders", folder, f"holds no image itself: those in {names} were taken as {defect}")

    def _add_place(self, top: Path, folder: Path, split: Split, defect: str, opened: list[str]) -> None:
        listing = contents(folder)
        place = folder.relative_to(top).as_posix() if folder != top else ""
        if place and listing.images:
            opened.append(place)
        self.samples += [Sample(path, split, defect) for path in listing.images]
        self.places.update(dict.fromkeys(listing.images, place))
        if defect == GOOD:
            self.ignored += listing.masks  # those of normal images are all zero
        else:
            self.masks += [MaskFile(path, defect, place) for path in listing.masks]
        self.ignored += listing.others
        # Masks last: which image a folder of masks belongs to is known when all images are.
        for path in sorted(listing.folders, key=lambda path: is_mask_folder(path.name)):
            if is_mask_folder(path.name) and defect != GOOD:
                self._add_masks(path, defect, place)
            elif listing.images or not _may_open(path, top, defect):
                self.ignored.append(path)
            else:
                self._add_place(top, path, split, defect, opened)

    def add_mask_folder(self, parent: Path) -> None:
        """Add the images below `parent` as masks: in folders named after their defect types, or in `parent` itself.

        Masks of normal images, which some datasets ship, are all zero: they are left out.
        """
        listing = contents(parent)
        if loose := sorted(listing.images + listing.masks):
            self.masks += [MaskFile(path, None) for path in loose]
            self._remark("loose_masks", parent, "has masks in no folder of a type: they were paired by stem alone")
        self.ignored += listing.others
        types = {sample.defect for sample in self.samples}
        stems = {sample.path.stem for sample in self.samples}
        for folder in listing.folders:
            if _is_good(folder):
                continue
            if folder.name in types or folder.name not in stems:
                self._add_masks(folder, folder.name)
            else:
                inside = contents(folder)
                self.masks += [MaskFile(path, None, "", folder.name) for path in sorted(inside.images + inside.masks)]
                self.ignored += inside.others + inside.folders

    def _add_masks(self, folder: Path, defect: str, place: str = "") -> None:
        """Add the masks of one type.

        Args:
            folder: The folder; one inside is named after an image, or as one that images lie in.
            defect: The type.
            place: The folder below that of the type whose images they belong to; empty for all of them.
        """
        listing = contents(folder)
        self.masks += [MaskFile(path, defect, place) for path in sorted(listing.masks + listing.images)]
        self.ignored += listing.others
        here = [sample for sample in self.samples if sample.defect == defect]
        stems = {sample.path.stem for sample in here if not place or self.places[sample.path] == place}
        places = {parent for sample in here for parent in _with_parents(self.places[sample.path])}
        for path in listing.folders:
            inside = f"{place}/{path.name}" if place else path.name
            if inside in places:
                self._add_masks(path, defect, inside)
            elif path.name in stems:
                parts = contents(path)
                self.masks += [MaskFile(p, defect, place, path.name) for p in sorted(parts.masks + parts.images)]
                self.ignored += parts.others + parts.folders
            else:
                self.ignored.append(path)

    def paired(self) -> tuple[list[Sample], list[Path]]:
        """Return the samples with their masks, and the masks without an image (or whose image has another mask)."""
        pairing = pair(self.samples, self.places, self.masks)
        self.ignored += pairing.of_normal
        self.remarks += pairing.problems
        return pairing.samples, pairing.orphans

    def leave_out(self, paths: Iterable[Path], message: str) -> None:
        """Say that files or folders are not used."""
        for path in paths:
            self._remark("ignored", path, message)

    def _remark(self, kind: str, path: Path, message: str) -> None:
        self.remarks.append(Problem(kind, path, message, "note"))


def _may_open(folder: Path, top: Path, defect: str) -> bool:
    """Return whether a folder in a folder of a type that holds no image itself has images of that type."""
    name = folder.name.lower()
    if is_mask_folder(name) or name in _NOT_OPENED or (defect == GOOD and name in BAD_NAMES):
        return False
    # Links may lead in a circle.
    return not folder.is_symlink() and len(folder.relative_to(top).parts) <= _DEEPEST


def _with_parents(place: str) -> list[str]:
    parts = place.split("/") if place else []
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def images_to_add(dataset: Dataset, wanted: int) -> int:
    """Return how many normal images to add to a dataset so that `wanted` of them become training images.

    More than `wanted` where the split keeps a share of them for the test, as that of plain folders with defects does.
    """
    if dataset.layout != "folders" or not any(sample.is_anomalous for sample in dataset.samples):
        return wanted
    training = len(dataset.train_good)
    # Of all categories together: where images are added to one of several, it may be one image more or less.
    good = sum(not sample.is_anomalous for sample in dataset.samples)
    added = wanted
    while good + added - _kept_for_test(good + added) < training + wanted:
        added += 1
    return added


def _kept_for_test(good: int) -> int:
    """Return how many of the normal images of plain folders are test images."""
    return max(1, round(_TEST_SHARE * good)) if good >= _MIN_GOOD_TO_SPLIT else 0


def _with_test_good(samples: list[Sample]) -> list[Sample]:
    """Move a fixed share of the normal images to the test split, chosen by their names alone.

    Plain folders have no split, and without normal test images no accuracy could be measured.
    """
    good = [s for s in samples if not s.is_anomalous]
    count = _kept_for_test(len(good))
    # A fixed seed, not the run's: the test images of a dataset must be the same for every training.
    moved = set(in_seeded_order(good, seed=0)[:count])
    return [msgspec.structs.replace(s, split="test") if s in moved else s for s in samples]
