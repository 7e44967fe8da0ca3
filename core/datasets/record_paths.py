"""Image paths in dataset tables: relative to the dataset's root, never outside it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from flawscope.errors import DataError


def place_below(root: Path, text: str, where: str) -> PurePosixPath:
    """Return the relative path that a table's cell names; the file need not exist.

    Args:
        root: The folder the path has to stay below; for the message.
        text: The path as written, with slashes.
        where: File and line, for the message.

    Raises:
        DataError: If the path is empty, absolute, has a null byte, or leads out of `root`.
    """
    # Tables come from others: "../../etc" must not be read, nor be copied into a set. PurePosixPath drops "./" and
    # "//".
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise DataError(f"{where}: expected a path below {root}, got {text!r}. Mend that line.")
    return path
