"""Real-IAD layout: one JSON table for each category, beside the folder of the images.

    realiad_jsons/realiad_jsons/CATEGORY.json    realiad_1024/CATEGORY/{OK,NG/TYPE}/S0001/*.jpg

    {"meta": {"normal_class": "OK", "prefix": "CATEGORY/"},
     "train": [{"category": "...", "anomaly_class": "OK", "image_path": "OK/S0001/....jpg", "mask_path": null}, ...],
     "test": [...]}

The tables may also lie in `realiad_jsons/` itself. The class of an image decides, not its folder: a part with a defect
has views on which nothing is seen of it, and those are normal. Tables of other splits (`realiad_jsons_sv`, ...) are
taken when they are put in the place of the published one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from flawscope.datasets.folders import contents
from flawscope.datasets.record_paths import place_below, why_absent
from flawscope.datasets.samples import Dataset, Sample, Split, in_order
from flawscope.errors import DataError
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular
from flawscope.part_words import GOOD
from flawscope.text import NOT_JSON

_TABLES = "realiad_jsons"
_SIZED = "realiad_"
"""What the folders of the published image sizes begin with: realiad_1024, realiad_512, realiad_256."""


class RealIadTables(NamedTuple):
    """The tables of Real-IAD, and where their images are.

    Attributes:
        files: Category -> its table; only those whose folder of images is there, in alphabetical order.
        images: The folder that holds the folders of the categories.
    """

    files: dict[str, Path]
    images: Path


class _Meta(msgspec.Struct, frozen=True):
    normal_class: str
    prefix: str


class _Row(msgspec.Struct, frozen=True):
    anomaly_class: str
    image_path: str
    mask_path: str | None = None


class _Table(msgspec.Struct, frozen=True):
    meta: _Meta
    train: list[_Row]
    test: list[_Row]


def find_real_iad(root: Path) -> RealIadTables | None:
    """Return the tables of Real-IAD in a folder or beside it, or None if it is not Real-IAD.

    Args:
        root: The folder of tables and images, or that of the images in one size beside the tables.

    Raises:
        DataError: If the images are there in several sizes, or a folder cannot be listed.
    """
    if tables := _tables_in(root):
        return _below(root, tables)
    # Resolved: `.` has no parent of its own.
    beside = _tables_in(root.resolve().parent)
    here = {name: table for name, table in beside.items() if (root / name).is_dir()}
    return RealIadTables(here, root) if here else None


def find_real_iad_above(category: Path) -> RealIadTables | None:
    """Return the tables of Real-IAD where `category` is the folder of one of its categories, or None.

    Raises:
        DataError: If the folder of the tables cannot be listed.
    """
    folder = category.resolve()
    images = folder.parent
    tables = _tables_in(images) or _tables_in(images.parent)
    return RealIadTables({folder.name: tables[folder.name]}, images) if folder.name in tables else None


def read_real_iad(root: Path, tables: RealIadTables, category: str) -> Dataset:
    """Index one category.

    Args:
        root: Folder of the dataset.
        tables: Its tables, which have the category.
        category: Name of the category.

    Raises:
        DataError: If the table cannot be read or a row is wrong, or an image or mask is missing.
    """
    path = tables.files[category]
    try:
        table = msgspec.json.decode(read_regular(path, RECORD_BYTES), type=_Table)
    except OSError as err:
        raise DataError(f"{path}: expected a file that can be read, got: {err.strerror or err}.") from err
    except NOT_JSON as err:
        raise DataError(
            f"{path}: expected a table of Real-IAD with meta, train and test, got: {err}. Unpack the tables again."
        ) from err
    prefix = place_below(tables.images, table.meta.prefix, f"{path}: meta.prefix")
    return Dataset(root, category, "real_iad", in_order(_samples(path, table, tables.images / prefix)))


def _tables_in(folder: Path) -> dict[str, Path]:
    # An ancestor may forbid looking into it, which is nobody's fault here: then there are no tables.
    places = (folder / _TABLES / _TABLES, folder / _TABLES) if os.access(folder, os.X_OK) else ()
    for place in places:
        if place.is_dir() and (files := [path for path in list_folder(place) if path.suffix == ".json"]):
            return {path.stem: path for path in sorted(files)}
    return {}


def _below(root: Path, tables: dict[str, Path]) -> RealIadTables:
    sized = [path for path in contents(root).folders if path.name.startswith(_SIZED) and path.name != _TABLES]
    holding = [folder for folder in (root, *sized) if any((folder / name).is_dir() for name in tables)]
    if len(holding) > 1:
        names = ", ".join(folder.name for folder in holding)
        raise DataError(
            f"{root}: expected the images of Real-IAD in one size, got {names}. Name the folder of one: {holding[-1]}."
        )
    if not holding:
        raise DataError(
            f"{root}: expected the images that {_TABLES} names, in a folder such as realiad_1024, got none. Unpack "
            "the categories there."
        )
    return RealIadTables({name: table for name, table in tables.items() if (holding[0] / name).is_dir()}, holding[0])


def _samples(path: Path, table: _Table, base: Path) -> Iterator[Sample]:
    splits: tuple[tuple[Split, list[_Row]], ...] = (("train", table.train), ("test", table.test))
    for split, rows in splits:
        for number, row in enumerate(rows):
            where = f"{path}: {split}[{number}]"
            if not row.anomaly_class.strip() or not row.anomaly_class.isprintable():
                raise DataError(
                    f"{where}: anomaly_class: expected a name that can be printed, got {row.anomaly_class!r}. Mend "
                    "that row."
                )
            is_normal = row.anomaly_class == table.meta.normal_class
            yield Sample(
                path=_there(base, row.image_path, f"{where}: image_path"),
                split=split,
                defect=GOOD if is_normal else row.anomaly_class,
                # Masks of normal images, where a table names them, are all zero.
                mask=_there(base, row.mask_path, f"{where}: mask_path") if row.mask_path and not is_normal else None,
            )


def _there(base: Path, text: str, where: str) -> Path:
    path = base / place_below(base, text, where)
    if reason := why_absent(path):
        raise DataError(
            f"{where}: expected a file below {base}, got {text!r}: {reason}. Unpack the category again, or take the "
            "row out."
        )
    return path
