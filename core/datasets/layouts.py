"""Opens datasets of any layout: detects it, and indexes the images of a category as a `Dataset`."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from flawscope.datasets.all_categories import ALL, merge_categories
from flawscope.datasets.folders import contents, layout_of, read_folders
from flawscope.datasets.real_iad import find_real_iad, find_real_iad_above, read_real_iad
from flawscope.datasets.records import categories_of, dataset_of, find_records, read_records
from flawscope.datasets.samples import Dataset, Layout
from flawscope.datasets.visa import categories, find_table, find_table_beside, read_visa
from flawscope.errors import DataError
from flawscope.imaging.images import EXTENSIONS
from flawscope.near_names import did_you_mean
from flawscope.part_words import BAD_NAMES, GOOD, GOOD_NAMES, is_like_good, is_named_bad
from flawscope.path_kinds import UNFINISHED, kind_of_path

_EXPECTED = "expected normal images in train/good or good, a folder of images, or records in train.json"


class _Table(NamedTuple):
    """Tables in the root, of VisA, Real-IAD or records: their categories, and how to index one."""

    categories: tuple[str, ...]
    read: Callable[[str], Dataset]


def open_dataset(root: Path, category: str | None = None) -> Dataset:
    """Index the images of one category, or of all of them, without opening them.

    `root` with `category` is the folder root/category; `root` alone may be a category itself, or hold a single one.
    VisA and Real-IAD are recognised by their tables, records by the first line of train.json or test.json. A folder
    of images alone is taken as normal training images; class folders without a split get a fixed one (a fifth of the
    normal images becomes test).

    The category "all", unless one below the root has that name, merges all categories into one dataset: its defect
    types are called CATEGORY/DEFECT, and every sample names its category.

    Args:
        root: The dataset's folder, or the category's.
        category: Name of the category below `root`, or "all".

    Raises:
        DataError: If there is nothing to train on, or it is not clear which category is meant.
    """
    _check_folder(root)
    if table := _find_table(root):
        # A category that is really called "all" wins over the union.
        if category == ALL and table.categories and ALL not in table.categories:
            return merge_categories(root, [_trainable(root, table.read(name)) for name in table.categories])
        return _trainable(root, table.read(_choose(root, category, table.categories)))
    if category is None and (dataset := _open_object_of_visa(root) or _open_object_of_real_iad(root)):
        return _trainable(root, dataset)
    return _open_folders(root, category)


def open_categories(root: Path, categories: Sequence[str]) -> Dataset:
    """Index some categories: none named, one, or several merged as `open_dataset` merges all.

    Raises:
        DataError: As `open_dataset`, for the first category that cannot be read.
    """
    if len(categories) < 2:
        return open_dataset(root, categories[0] if categories else None)
    if ALL in categories:
        raise DataError(f"{root}: expected {ALL} or names of categories, got both. Leave one out.")
    return merge_categories(root, [open_dataset(root, name) for name in categories])


def list_categories(root: Path) -> tuple[str, ...]:
    """Return the names of the categories below `root` in alphabetical order; none if `root` is one itself.

    Raises:
        DataError: If `root` is not a folder or cannot be listed, or its table is broken.
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
    except DataError:  # a folder that may not be listed, such as lost+found, is not a category
        return None


def _check_folder(root: Path) -> None:
    try:
        # stat, not is_dir: its error says why, such as a missing permission.
        mode = root.stat().st_mode
    except OSError as err:
        raise DataError(f"{root}: expected a dataset's folder, got: {err.strerror or err}. Check the path.") from err
    if not stat.S_ISDIR(mode):
        kind = kind_of_path(root) or "a file"
        raise DataError(f"{root}: expected a dataset's folder, got {kind}. Name the folder that holds the images.")


def _trainable(root: Path, dataset: Dataset) -> Dataset:
    if dataset.layout == "flat":
        _check_flat(dataset)
    if not dataset.train_good:
        where = root if dataset.category in ("", root.name) else f"{root}: {dataset.category}"
        raise DataError(
            f"{where}: {_EXPECTED}, got no normal training image among {len(dataset.samples)}"
            f"{_left_out(dataset)}. Add normal images, or call the folder that holds them {GOOD} ({_also()})."
        )
    return dataset


def _check_flat(dataset: Dataset) -> None:
    """Raise DataError where a folder of images alone, all of which are taken as normal, says that some are not."""
    folder = dataset.root
    if (folder.name or folder.resolve().name).lower() in BAD_NAMES:
        raise DataError(
            f"{folder}: expected normal images, got a folder that is named as one of anomalous images. Name the folder "
            f"above it, where the normal images lie beside it in a folder called {GOOD} ({_also()})."
        )
    bad = [sample.path.name for sample in dataset.samples if is_named_bad(sample.path.stem)]
    if bad:
        raise DataError(
            f"{folder}: expected normal images, because it has no folders, got {len(bad)} of {len(dataset.samples)} "
            f"with names of anomalous ones ({_listed(bad, 3)}). Sort them into the folders {GOOD} and ng, or, if all "
            f"are normal, move them into a folder called {GOOD}."
        )


def _also() -> str:
    return f"or {', '.join(sorted(GOOD_NAMES - {GOOD}))}, in any case"


def _left_out(dataset: Dataset) -> str:
    """Return in brackets what may hold the normal images and was left out; empty where there is nothing."""
    endings = Counter(path.suffix for path in dataset.ignored if path.suffix and not path.is_dir())
    parts = []
    if named := [f"{count} {ending}" for ending, count in endings.most_common(3) if ending.lower() not in EXTENSIONS]:
        parts.append(f"files {', '.join(named)}, while images end in {', '.join(sorted(EXTENSIONS))}")
    if folders := sorted({path.relative_to(dataset.root).as_posix() for path in dataset.ignored if path.is_dir()}):
        parts.append(f"folders {_listed(folders, 3)}")
    loose = [remark.path for remark in dataset.remarks if remark.kind == "ignored" and not remark.path.is_dir()]
    for folder, count in Counter(path.parent for path in loose).most_common(3):
        place = folder.relative_to(dataset.root).as_posix() if folder != dataset.root else "the folder"
        parts.append(f"{count} images in {place} itself")
    return f" (left out: {'; '.join(parts)})" if parts else ""


def _find_table(root: Path) -> _Table | None:
    visa, files = find_table(root), find_records(root)
    if visa and files:
        names = ", ".join(path.relative_to(root).as_posix() for path in (visa, *files.values()))
        # Not guessed: the two may disagree about which images are normal.
        raise DataError(f"{root}: expected one table, of VisA or of records, got {names}. Keep one kind there.")
    if visa:
        return _Table(categories(visa), partial(read_visa, root, visa))
    if files:
        records = read_records(root, files)
        return _Table(categories_of(records), partial(dataset_of, root, records))
    if beside := find_table_beside(root):
        # Only what is here: the table may name more.
        here = tuple(name for name in categories(beside) if (root / name).is_dir())
        return _Table(here, partial(read_visa, root, beside, base=root)) if here else None
    if tables := find_real_iad(root):
        return _Table(tuple(tables.files), partial(read_real_iad, root, tables))
    return None


def _open_object_of_visa(root: Path) -> Dataset | None:
    """Return one category of VisA, where `root` is its folder and the table lies beside it."""
    if not (root / "Data" / "Images").is_dir():
        return None
    # Resolved: `.` has no name and no parent of its own.
    whole, name = root.resolve().parent, root.resolve().name
    table = find_table(whole) or find_table_beside(whole)
    return read_visa(whole, table, name, base=whole) if table and name in categories(table) else None


def _open_object_of_real_iad(root: Path) -> Dataset | None:
    """Return one category of Real-IAD, where `root` is its folder: its own folders know nothing of the split."""
    tables = find_real_iad_above(root)
    return read_real_iad(tables.images, tables, root.resolve().name) if tables else None


def _open_folders(root: Path, category: str | None) -> Dataset:
    layout = layout_of(root)
    if layout and category not in (None, root.resolve().name):
        target = "categories" if category == ALL else f"the category {category}"
        raise DataError(
            f"{root}: expected a folder that holds {target}, got a category itself. "
            "Leave the category out, or name another folder."
        )
    if layout:
        return _trainable(root, read_folders(root, layout))
    folders = {path.name: path for path in contents(root).folders}
    layouts = {name: layout for name, path in folders.items() if (layout := _layout_below(path))}
    # A flat folder below the root may be anything, such as `docs/`: it is a category only when it is named.
    names = [name for name, layout in layouts.items() if layout != "flat"]
    if not names and category in (None, ALL) and category not in folders:
        raise DataError(_no_category(root))
    if category == ALL and names and ALL not in layouts:
        parts = [_trainable(root, read_folders(folders[name], layouts[name])) for name in names]
        return merge_categories(root, parts, [folders[name] for name, layout in layouts.items() if layout == "flat"])
    if category is None or category not in folders:
        category = _choose(root, category, names, is_all_free=ALL not in layouts)
    if not (layout := layout_of(folders[category])):
        raise DataError(_no_category(folders[category]))
    return _trainable(root, read_folders(folders[category], layout))


def _choose(root: Path, category: str | None, available: Iterable[str], *, is_all_free: bool = True) -> str:
    names = list(available)
    can_take_all = is_all_free and ALL not in names and len(names) > 1
    if category is None and len(names) == 1:
        return names[0]
    if category is None:
        hint = f", or take all with --category {ALL}" if can_take_all else ""
        raise DataError(
            f"{root}: expected one category, got {len(names)}: {_listed(names)}. Name one with --category{hint}."
        )
    if category not in names:
        hint = f", or {ALL}" if can_take_all else ""
        meant = did_you_mean(category, names) or f" Choose one of them{hint}."
        raise DataError(f"{root}: expected one of the categories {_listed(names)}; got {category!r}.{meant}")
    return category


def _no_category(folder: Path) -> str:
    if (kind := kind_of_path(folder)) in ("a bundle", "a training run", UNFINISHED):
        return f"{folder}: expected a dataset's folder, got {kind}. Name the folder that holds the images."
    listing = contents(folder)
    advice = f"Put the normal images into a folder called {GOOD} ({_also()})."
    if like := [path.name for path in listing.folders if is_like_good(path.name)]:
        advice = f"If {_listed(like)} holds the normal images, call it {GOOD}."
    elif len(listing.folders) > 1 and not listing.images:
        # Not guessed: of positive and negative, either may be the normal ones.
        advice = f"Call the one that holds the normal images {GOOD} ({_also()})."
    if listing.images and listing.folders:
        got = f"images beside the folders {_listed(p.name for p in listing.folders)}"
    elif listing.folders:
        got = f"the folders {_listed(p.name for p in listing.folders)}"
    else:
        got = f"{len(listing.others)} other files" if listing.others else "an empty folder"
    return f"{folder}: {_EXPECTED}, got {got}. {advice}"


def _listed(names: Iterable[str], limit: int = 20) -> str:
    names = list(names)
    rest = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + rest) if names else "(there is none)"
