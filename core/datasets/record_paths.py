"""Image paths in dataset tables: relative to the dataset's root, never outside it."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from flawscope.datasets.folders import contents
from flawscope.datasets.problems import Problem
from flawscope.errors import DataError


def place_below(root: Path, text: str, where: str) -> PurePosixPath:
    """Return the relative path that a table's cell names; the file need not exist.

    Backslashes, as Windows writes them, become slashes, unless a file of that very name is there.

    Args:
        root: The folder the path has to stay below.
        text: The path as written.
        where: File and line, for the message.

    Raises:
        DataError: If the path is empty, absolute, has a null byte, or leads out of `root`.
    """
    # Tables come from others: "../../etc" must not be read, nor be copied into a set. PurePosixPath drops "./" and
    # "//".
    path = PurePosixPath(text)
    is_of_windows = "\\" in text and not _is_there(root / path)
    if is_of_windows:
        path = PurePosixPath(text.replace("\\", "/"))
    has_drive = is_of_windows and PureWindowsPath(text).drive != ""
    if not path.parts or path.is_absolute() or ".." in path.parts or has_drive or "\0" in text:
        raise DataError(f"{where}: expected a path below {root}, got {text!r}. Mend that line.")
    return path


def backslash_remark(table: Path, count: int) -> Problem:
    """Return the note that `count` paths of a table were written with backslashes."""
    return Problem("backslashes", table, f"has {count} paths with backslashes, which were taken as slashes", "note")


def folder_of_paths(root: Path, first: PurePosixPath, where: str) -> Path:
    """Return the folder that a table's paths are relative to: its own, or the one folder below that has the first file.

    A table may lie beside the folder of the images, as `visa.csv` beside `visa/`.

    Args:
        root: The table's folder.
        first: Path of the first image, as `place_below` returns it.
        where: File and line, and what is in it, for the message.

    Raises:
        DataError: If several folders below `root` have the file.
    """
    if why_absent(root / first) is None:
        return root
    holding = [folder for folder in contents(root).folders if why_absent(folder / first) is None]
    if len(holding) > 1:
        names = ", ".join(folder.name for folder in holding)
        raise DataError(
            f"{where}: expected {str(first)!r} in one folder of {root}, got it in {names}. Leave one of them there."
        )
    return holding[0] if holding else root


def why_absent(path: Path) -> str | None:
    """Return why a file does not exist, or None if it does."""
    try:
        # stat, not is_file: its error says why.
        path.stat()
    except OSError as err:
        return err.strerror or str(err)
    except ValueError as err:  # a name that no file system takes, such as one with a null byte
        return str(err)
    return None if path.is_file() else "Not a file"


def _is_there(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a name that no file system takes, such as one with a null byte
        return False
