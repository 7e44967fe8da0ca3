"""Detects the layout of a dataset folder: `--data ROOT --category NAME` becomes a `Dataset`, or a clear error."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flawscope.datasets.all_categories import ALL, merge_categories
from flawscope.datasets.folders import contents, layout_of, read_folders
from flawscope.datasets.records import categories_of, dataset_of, find_records, read_records
from flawscope.datasets.samples import GOOD, Dataset, Layout
from flawscope.datasets.visa import categories, find_table, read_visa
from flawscope.errors import DataError

_EXPECTED = "expected normal images in train/good or good, a folder of images, or records in train.json"


class _Table(NamedTuple):
    """What a table in the root, of VisA or of records, tells: the categories, and how to index one."""

    categories: tuple[str, ...]
    read: Callable[[str], Dataset]


def open_dataset(root: Path, category: str | None = None) -> Dataset:
    """Index the images of one category, or of all of them, without opening them.

    `root` and `category` together mean the folder root/category; `root` alone may be a category itself, or hold a
    single one. VisA is recognised by its table, records by the first line of train.json or test.json. A plain folder
    of images and nothing else is taken as normal training images; class folders without a split get a fixed one (a
    fifth of the normal images becomes test).

    The category "all", where none below the root is called so, is all of them in one dataset: the defect types are
    then called CATEGORY/DEFECT, and every sample says which category it is of.

    Args:
        root: The dataset's folder, or the category's.
        category: Name of the category below `root`, or "all".

    Raises:
        DataError: If nothing that can be trained on is found, or it is not clear which category is meant.
    """
    _check_folder(root)
    if table := _find_table(root):
        if category == ALL and table.categories and ALL not in table.categories:
            return merge_categories(root, [_trainable(root, table.read(name)) for name in table.categories])
        return _trainable(root, table.read(_choose(root, category, table.categories)))
    if category is None and (dataset := _open_object_of_visa(root)):
        return _trainable(root, dataset)
    return _open_folders(root, category)


def list_categories(root: Path) -> tuple[str, ...]:
    """Return the names of the categories below `root` in alphabetical order; none where root is one itself.

    Raises:
        DataError: If `root` is no folder or cannot be listed, or its table is broken.
    """
    _check_folder(root)
    if table := _find_table(root):
        return table.categories
    if layout_of(root):
        return ()
    return tuple(path.name for path in contents(root).folders if _layout_below(path) in ("mvtec", "folders"))


def _layout_below(folder: Path) -> Layout | None:
    try:
        return layout_of(folder)
    except DataError:  # a folder that may not be listed, such as lost+found, is none of ours
        return None


def _check_folder(root: Path) -> None:
    try:
        mode = root.stat().st_mode
    except OSError as err:
        raise DataError(f"{root}: expected a dataset's folder, got: {err.strerror or err}. Check the path.") from err
    if not stat.S_ISDIR(mode):
        raise DataError(f"{root}: expected a dataset's folder, got a file. Name the folder that holds the images.")


def _trainable(root: Path, dataset: Dataset) -> Dataset:
    if not dataset.train_good:
        raise DataError(
            f"{root}: {dataset.category}: {_EXPECTED}, got no normal training image among {len(dataset.samples)}. "
            "Add normal images, or rename the folder that holds them."
        )
    return dataset


def _find_table(root: Path) -> _Table | None:
    visa, files = find_table(root), find_records(root)
    if visa and files:
        names = ", ".join(path.relative_to(root).as_posix() for path in (visa, *files.values()))
        raise DataError(f"{root}: expected one table, of VisA or of records, got {names}. Keep one kind there.")
    if visa:
        return _Table(categories(visa), partial(read_visa, root, visa))
    if files:
        records = read_records(root, files)
        return _Table(categories_of(records), partial(dataset_of, root, records))
    return None


def _open_object_of_visa(root: Path) -> Dataset | None:
    """Return one object of VisA, where the root is its folder and the table lies beside it."""
    if not (root / "Data" / "Images").is_dir():
        return None
    whole, name = root.resolve().parent, root.resolve().name
    table = find_table(whole)
    return read_visa(whole, table, name) if table and name in categories(table) else None


def _open_folders(root: Path, category: str | None) -> Dataset:
    layout = layout_of(root)
    if layout and category not in (None, root.resolve().name):
        what = "categories" if category == ALL else f"the category {category}"
        raise DataError(
            f"{root}: expected a folder that holds {what}, got a category itself. "
            "Leave the category out, or name another folder."
        )
    if layout:
        return _trainable(root, read_folders(root, layout))
    folders = {path.name: path for path in contents(root).folders}
    found = {name: layout for name, path in folders.items() if (layout := _layout_below(path))}
    names = [name for name, layout in found.items() if layout != "flat"]
    if not names and category in (None, ALL) and category not in folders:
        raise DataError(_what_is_there(root))
    if category == ALL and names and ALL not in found:
        parts = [_trainable(root, read_folders(folders[name], found[name])) for name in names]
        return merge_categories(root, parts, [folders[name] for name, layout in found.items() if layout == "flat"])
    if category is None or category not in folders:
        category = _choose(root, category, names, is_all_free=ALL not in found)
    if not (layout := layout_of(folders[category])):
        raise DataError(_what_is_there(folders[category]))
    return _trainable(root, read_folders(folders[category], layout))


def _choose(root: Path, category: str | None, found: Iterable[str], *, is_all_free: bool = True) -> str:
    names = list(found)
    can_take_all = is_all_free and ALL not in names and len(names) > 1
    if category is None and len(names) == 1:
        return names[0]
    if category is None:
        more = f", or take all with --category {ALL}" if can_take_all else ""
        raise DataError(
            f"{root}: expected one category, got {len(names)}: {_listed(names)}. Name one with --category{more}."
        )
    if category not in names:
        more = f", or {ALL}" if can_take_all else ""
        raise DataError(
            f"{root}: expected one of the categories {_listed(names)}; got {category!r}. Choose one of them{more}."
        )
    return category


def _what_is_there(folder: Path) -> str:
    found = contents(folder)
    if found.images and found.folders:
        what = f"images beside the folders {_listed(p.name for p in found.folders)}"
    elif found.folders:
        what = f"the folders {_listed(p.name for p in found.folders)}"
    else:
        what = f"{len(found.others)} other files" if found.others else "an empty folder"
    return f"{folder}: {_EXPECTED}, got {what}. Put the normal images into a folder called {GOOD}."


def _listed(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + more) if names else "(there is none)"
