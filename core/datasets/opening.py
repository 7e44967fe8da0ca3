"""Finding out what a folder is: `--data ROOT --category NAME` becomes a `Dataset`, or one clear sentence."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from flawscope.datasets.folders import contents, layout_of, read_folders
from flawscope.datasets.samples import GOOD, Dataset
from flawscope.datasets.visa import categories, find_table, read_visa
from flawscope.errors import DataError

_EXPECTED = "expected good pictures in train/good or good, or a folder of pictures"


def open_dataset(root: Path, category: str | None = None) -> Dataset:
    """Index the pictures of one category without opening them.

    `root` and `category` together mean the folder root/category; `root` alone may be a category itself, or hold a
    single one. VisA is recognised by its table. A plain folder of pictures and nothing else is taken as good
    training pictures; class folders without a split get a fixed one (a fifth of the good pictures becomes test).

    Args:
        root: The dataset's folder, or the category's.
        category: Name of the category below `root`.

    Raises:
        DataError: If nothing that can be trained on is found, or it is not clear which category is meant.
    """
    _check_folder(root)
    dataset = _open_visa(root, category) or _open_folders(root, category)
    if not dataset.train_good:
        raise DataError(
            f"{root}: {dataset.category}: {_EXPECTED}, got no good training picture among {len(dataset.samples)}. "
            "Add good pictures, or rename the folder that holds them."
        )
    return dataset


def list_categories(root: Path) -> tuple[str, ...]:
    """Return the names of the categories below `root` in alphabetical order; none where root is one itself.

    Raises:
        DataError: If `root` is no folder or cannot be listed.
    """
    _check_folder(root)
    if table := find_table(root):
        return categories(table)
    if layout_of(root):
        return ()
    return tuple(path.name for path in contents(root).folders if _is_category(path))


def _is_category(folder: Path) -> bool:
    try:
        return layout_of(folder) in ("mvtec", "folders")
    except DataError:  # a folder that may not be listed, such as lost+found, is none of ours
        return False


def _check_folder(root: Path) -> None:
    try:
        mode = root.stat().st_mode
    except OSError as err:
        raise DataError(f"{root}: expected a dataset's folder, got: {err.strerror or err}. Check the path.") from err
    if not stat.S_ISDIR(mode):
        raise DataError(f"{root}: expected a dataset's folder, got a file. Name the folder that holds the pictures.")


def _open_visa(root: Path, category: str | None) -> Dataset | None:
    if table := find_table(root):
        return read_visa(root, table, _choose(root, category, categories(table)))
    if category is None and (root / "Data" / "Images").is_dir():
        whole = root.resolve().parent  # root is one object of VisA, and the table lies beside it
        if (table := find_table(whole)) and root.resolve().name in categories(table):
            return read_visa(whole, table, root.resolve().name)
    return None


def _open_folders(root: Path, category: str | None) -> Dataset:
    layout = layout_of(root)
    if layout and category not in (None, root.resolve().name):
        raise DataError(
            f"{root}: expected a folder that holds the category {category}, got a category itself. "
            "Leave the category out, or name another folder."
        )
    if layout:
        return read_folders(root, layout)
    folders = {path.name: path for path in contents(root).folders}
    if category is None and not list_categories(root):
        raise DataError(_what_is_there(root))
    if category is None or category not in folders:
        category = _choose(root, category, list_categories(root))
    if not (layout := layout_of(folders[category])):
        raise DataError(_what_is_there(folders[category]))
    return read_folders(folders[category], layout)


def _choose(root: Path, category: str | None, found: Iterable[str]) -> str:
    names = list(found)
    if category is None and len(names) == 1:
        return names[0]
    if category is None:
        raise DataError(f"{root}: expected one category, got {len(names)}: {_listed(names)}. Name one with --category.")
    if category not in names:
        raise DataError(
            f"{root}: expected one of the categories {_listed(names)}; got {category!r}. Choose one of them."
        )
    return category


def _what_is_there(folder: Path) -> str:
    found = contents(folder)
    if found.images and found.folders:
        what = f"pictures beside the folders {_listed(p.name for p in found.folders)}"
    elif found.folders:
        what = f"the folders {_listed(p.name for p in found.folders)}"
    else:
        what = f"{len(found.others)} other files" if found.others else "an empty folder"
    return f"{folder}: {_EXPECTED}, got {what}. Put the good pictures into a folder called {GOOD}."


def _listed(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + more) if names else "(there is none)"
