"""Image files of this machine, alone or in folders: listed one at a time, however many there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flawscope.errors import DataError, ImageError
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import scan_folder
from flawscope.runtime.scale.inputs.items import Found, Item
from flawscope.scratch import is_scratch

MASK_FOLDERS = frozenset({"ground_truth", "masks"})
"""Folders of a dataset whose files are called like images and are none."""


class FileReader:
    """Gives the paths of files, once they are those that were listed."""

    def read(self, item: Item) -> Path:
        """Return the path of an image file.

        Raises:
            ImageError: If it is gone, or has another size than when it was listed.
        """
        path = Path(item.name)
        if item.size < 0:  # it could not be looked at: reading says why
            return path
        try:
            size = path.stat().st_size
        except (OSError, ValueError) as err:
            reason = getattr(err, "strerror", None) or str(err)
            raise ImageError(
                f"{path}: expected the file of {item.size:,} bytes that was listed, got: {reason}. Put it back."
            ) from err
        check_size(item, size)
        return path

    def close(self) -> None:
        """Nothing is open."""


def check_size(item: Item, size: int) -> None:
    """Raise ImageError unless an image has the size in bytes that it was listed with."""
    if item.size not in (-1, size):
        raise ImageError(
            f"{item.name}: expected {item.size:,} bytes as when it was listed, got {size:,}: it was changed since. "
            "Put it back, or make a new plan."
        )


def named_file(path: Path, place: str) -> Item:
    """Return the item of a path that is no folder; of one that is missing, too: reading it says why."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        size = -1
    return Item(str(path), place, size)


def list_below(folder: Path, top: str, found: Found) -> Iterator[Item]:
    """Yield the images below a folder in the order of their names, faults in place of what cannot be listed.

    Each folder of the file system is listed once, also below others that were named: a link to a folder above would go
    round for ever, and who names a folder and one in it means each image once.

    Args:
        folder: The folder.
        top: Folder that places lie in; empty for none.
        found: Gets what is met beside images.
    """
    base = "" if str(folder) == "." else os.path.join(folder, "")  # noqa: PTH118
    # A stack of folders of which the rest is to come: names alone, so that folders of millions fit.
    pending = [iter(_entries(folder, folder, found))]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        if isinstance(entry, Item):
            yield entry
            continue
        path, is_folder = entry
        if is_folder:
            pending.append(iter(_entries(Path(path), folder, found)))
            continue
        try:
            size = os.stat(path).st_size  # noqa: PTH116
        except OSError:
            size = -1  # a broken link: reading it says why
        below = path[len(base) :]
        yield Item(path, f"{top}/{without_ending(below)}" if top else without_ending(below), size)


def _entries(folder: Path, named: Path, found: Found) -> Iterator[tuple[str, bool] | Item]:
    """Yield path and kind (is it a folder?) of the images and folders in a folder, in the order of their names."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in found.seen:
            found.again.append(str(folder))
            return
        found.seen.add((status.st_dev, status.st_ino))
        found.folders.setdefault(os.path.realpath(folder), named)
        entries = sorted(entry for entry in map(_kept, scan_folder(folder)) if entry is not None)
    except (OSError, DataError) as err:
        yield Item(str(folder), "", fault=str(err))
        return
    base = "" if str(folder) == "." else os.path.join(folder, "")  # noqa: PTH118
    for name, is_folder in entries:
        if is_folder and name.lower() in MASK_FOLDERS:
            found.masks.append(base + name)
        else:
            yield base + name, is_folder


def _kept(entry: os.DirEntry[str]) -> tuple[str, bool] | None:
    """Return name and kind of an entry that counts, else None."""
    name = entry.name
    if is_litter(name) or is_scratch(name):
        return None
    try:
        is_folder = entry.is_dir()
    except OSError:
        is_folder = False
    return (name, is_folder) if is_folder or ending_of(name) in EXTENSIONS else None


def ending_of(name: str) -> str:
    """Return the ending of a file name with its point, in lower case; empty for none. `.png` alone is a name."""
    point = name.rfind(".")
    return name[point:].lower() if 0 < point < len(name) - 1 else ""


def without_ending(path: str) -> str:
    """Return a path without the ending of its last part."""
    ending = ending_of(path[path.rfind("/") + 1 :])
    return path[: -len(ending)] if ending else path
