"""Folders that tools write into, emptied before: those of an earlier run, and never one with something else in it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from linktree import ROOT

BUILD = ROOT / "build"
"""Below it all is made by tools."""


def emptied(folder: Path, marker: str) -> Path:
    """Return a folder, made anew; what an earlier run left in it is removed. Exits where it is somebody else's.

    Args:
        folder: The folder.
        marker: Name of a file that each run leaves in it.
    """
    check_ours(folder, marker)
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / marker).touch()
    return folder


def check_ours(folder: Path, marker: str) -> None:
    """Exit unless a folder is free, empty, below `build/`, or one with the file that marks an earlier run."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        sys.exit(f"{folder}: expected a folder, got something else. Choose another name.")
    is_ours = folder.resolve().is_relative_to(BUILD.resolve()) and folder.resolve() != BUILD.resolve()
    if folder.is_dir() and not is_ours and any(folder.iterdir()) and not (folder / marker).is_file():
        sys.exit(
            f"{folder}: expected a new or empty folder, or one with {marker} of an earlier run, got one with other "
            "files. Choose another name."
        )
