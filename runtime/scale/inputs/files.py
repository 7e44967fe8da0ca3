"""Image files of this machine, alone or in folders: listed one at a time, however many there are."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from flawscope.errors import DataError, ImageError
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import scan_folder
from flawscope.runtime.scale.inputs.items import Found, Item
from flawscope.runtime.scale.inputs.patterns import Pattern
from flawscope.runtime.scale.inputs.sorting import sorted_names
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


class Walk:
    """The images below a folder, in the order of their names, faults in place of what cannot be listed.

    Each folder of the file system is listed once: a link to a folder above would go round for ever.

    Args:
        folder: The folder.
        top: Folder that places lie in; empty for none.
        found: Gets what is met beside images. Without a pattern, folders that it has seen are not listed again: who
            names a folder and one in it means each image once.
        pattern: What paths below the folder must match; None for all.
        endings: Of the files that count.
    """

    def __init__(
        self,
        folder: Path,
        top: str,
        found: Found,
        pattern: Pattern | None = None,
        endings: Collection[str] = EXTENSIONS,
    ) -> None:
        self._folder, self._found, self._pattern, self._endings = folder, found, pattern, endings
        self._place = f"{top}/" if top else ""
        self._base = "" if str(folder) == "." else os.path.join(folder, "")  # noqa: PTH118
        self._seen = found.seen if pattern is None else set[tuple[int, int]]()

    def __iter__(self) -> Iterator[Item]:
        """Yield the items."""
        # Folders of which the rest is to come: names alone, so that millions fit.
        pending = [self._entries("")]
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
            elif isinstance(entry, Item):
                yield entry
            elif entry.endswith("/"):
                pending.append(self._entries(entry))
            else:
                yield self._item(entry)

    def _item(self, below: str) -> Item:
        path = self._base + below
        try:
            size = os.stat(path).st_size  # noqa: PTH116
        except OSError:
            size = -1  # a broken link: reading it says why
        return Item(path, self._place + without_ending(below), size)

    def _entries(self, folder: str) -> Iterator[str | Item]:
        """Yield the images and folders in a folder, below the whole one; folders end with a slash, as `folder` does."""
        path = Path(self._base + folder) if folder else self._folder
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self._found.again.append(str(path))
                return
            self._seen.add((status.st_dev, status.st_ino))
            self._found.folders.setdefault(os.path.realpath(path), self._folder)
            # A name is sorted without its slash.
            for name, _, is_folder in (
                text.partition("\0") for text in sorted_names(filter(None, map(self._kept, scan_folder(path))))
            ):
                below = folder + name
                if is_folder and self._is_masks(below):
                    self._found.masks.append(self._base + below)
                elif is_folder and (self._pattern is None or self._pattern.may_match_in(below)):
                    yield f"{below}/"
                elif not is_folder and (self._pattern is None or self._pattern.matches(below)):
                    yield below
        except DataError as err:
            yield Item(str(path), "", fault=str(err))
        except OSError as err:
            fault = f"{path}: expected a folder that can be listed, got: {err.strerror or err}. Check its permissions."
            yield Item(str(path), "", fault=fault)

    def _kept(self, entry: os.DirEntry[str]) -> str | None:
        """Return name and kind of an entry that counts, with a character between them that is in no name."""
        name = entry.name
        if is_litter(name) or is_scratch(name):
            return None
        try:
            is_folder = entry.is_dir()
        except OSError:
            is_folder = False
        if is_folder:
            return f"{name}\0folder"
        return f"{name}\0" if ending_of(name) in self._endings else None

    def _is_masks(self, below: str) -> bool:
        name = below[below.rfind("/") + 1 :]
        return name.lower() in MASK_FOLDERS and (self._pattern is None or not self._pattern.names(below))


def ending_of(name: str) -> str:
    """Return the ending of a file name with its point, in lower case; empty for none. `.png` alone is a name."""
    point = name.rfind(".")
    return name[point:].lower() if 0 < point < len(name) - 1 else ""


def without_ending(path: str) -> str:
    """Return a path without the ending of its last part."""
    ending = ending_of(path[path.rfind("/") + 1 :])
    return path[: -len(ending)] if ending else path
