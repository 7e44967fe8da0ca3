"""Checked names of categories, defect types and images, for use as folder and file names."""

from __future__ import annotations

from pathlib import Path

from flawscope.datasets import Dataset, Sample
from flawscope.errors import DataError
from flawscope.part_words import GOOD_NAMES


def category_of(dataset: Dataset, sample: Sample) -> str:
    """Return the sample's category as a folder name, also in a dataset of all categories.

    Raises:
        DataError: If the name cannot be a folder's.
    """
    return check_name(sample.category or dataset.category, "category")


def defect_of(sample: Sample) -> str:
    """Return the sample's defect type without the category that a dataset of all categories puts before it.

    Raises:
        DataError: If the name cannot be a folder's.
    """
    prefix = f"{sample.category}/" if sample.category else ""
    return check_name(sample.defect.removeprefix(prefix), "defect type")


def check_name(name: str, role: str) -> str:
    """Return `name` if it can be a folder or file name on its own, or raise DataError.

    Tables of images and range files may hold any text: "../elsewhere" must not become a place to write to.
    """
    # A leading dot would hide it, and the backslash is a separator on Windows.
    if not name or name != Path(name).name or name.startswith(".") or not name.isprintable() or "\\" in name:
        raise DataError(f"{role}: expected a name that a folder can have, got {name!r}. Rename it in the dataset.")
    return name


def check_defect_name(name: str, role: str) -> str:
    """Return `name` if it can be the folder name of a defect type, or raise DataError.

    Datasets have their normal images in a folder called good, ok, gut and the like: a defect of that name would be
    learned as normal.
    """
    if name.casefold() in GOOD_NAMES:
        raise DataError(f"{role}: expected a defect type, got {name!r}, which stands for normal images. Rename it.")
    return check_name(name, role)


def place_of(dataset: Dataset, path: Path) -> str:
    """Return a file's path below the dataset's root, with slashes.

    Raises:
        DataError: If the name is not valid UTF-8, so that no record can hold it.
    """
    place = path.relative_to(dataset.root).as_posix()
    try:
        # Records are JSON in UTF-8; Linux names may be any bytes, which Python keeps as lone surrogates.
        place.encode()
    except UnicodeEncodeError as err:
        raise DataError(f"{path}: expected a file name in UTF-8, got other bytes. Rename the file.") from err
    return place
