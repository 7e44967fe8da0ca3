"""Image files as they are named on the command line: files, or folders with files in them."""

from __future__ import annotations

from pathlib import Path

from flawscope.errors import ArgumentError
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import list_folder


def images_in(folder: Path) -> list[Path]:
    """Return what is called like an image in a folder, sorted; a broken link too, which reading it will tell.

    Not recursive: in a dataset the subfolders are defect types.

    Raises:
        ArgumentError: If there is none.
        DataError: If the folder cannot be listed.
    """
    files = [
        entry
        for entry in list_folder(folder)
        if entry.suffix.lower() in EXTENSIONS and not is_litter(entry.name) and not is_folder(entry)
    ]
    if not files:
        raise ArgumentError(f"{folder}: expected images in this folder, got none. Name images or their folder.")
    return files


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False where it may not be looked at: reading it says why."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
