"""Names that become folders and files: of categories, defect types and images."""

from __future__ import annotations

from pathlib import Path

from flawscope.datasets import Dataset, Sample
from flawscope.errors import DataError


def category_of(dataset: Dataset, sample: Sample) -> str:
    """Return the sample's category, also in a dataset of all categories, as a name that may be a folder.

    Raises:
        DataError: If the category's name is no folder's.
    """
    return check_name(sample.category or dataset.category, "category")


def defect_of(sample: Sample) -> str:
    """Return the sample's defect type without the category that a dataset of all categories puts before it.

    Raises:
        DataError: If the defect type's name is no folder's.
    """
    prefix = f"{sample.category}/" if sample.category else ""
    return check_name(sample.defect.removeprefix(prefix), "defect type")


def check_name(name: str, what: str) -> str:
    """Return `name` if it can be a folder or file name on its own, or raise DataError.

    Tables of images and range files may hold any text: "../elsewhere" must not become a place to write to.
    """
    if not name or name != Path(name).name or name.startswith(".") or not name.isprintable() or "\\" in name:
        raise DataError(f"{what}: expected a name that a folder can have, got {name!r}. Rename it in the dataset.")
    return name


def place_of(dataset: Dataset, path: Path) -> str:
    """Return a file's path below the dataset's root, with slashes.

    Raises:
        DataError: If the name is no text that a record can hold.
    """
    place = path.relative_to(dataset.root).as_posix()
    try:
        place.encode()
    except UnicodeEncodeError as err:
        raise DataError(f"{path}: expected a file name in UTF-8, got other bytes. Rename the file.") from err
    return place
