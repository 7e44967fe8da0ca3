"""What `flawscope score` is given, all of it listed: images, folders of them, and what else has some."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flawscope.errors import ArgumentError
from flawscope.runtime.scale.inputs import Found, Item, list_items


class Inputs(NamedTuple):
    """All that is to be scored, in order, and the folders of masks that are passed over.

    Attributes:
        items: Images, and faults of what cannot be listed.
        masks: The folders of masks.
        folders: Each folder that was listed, without links -> the named one above it.
    """

    items: list[Item]
    masks: list[str]
    folders: dict[str, Path]


def find_inputs(named: Sequence[str | Path], column: str | None = None) -> Inputs:
    """Return the images named, folders replaced by the images in them and in all folders below; see `list_items`.

    Args:
        named: Images, folders, and what else `list_items` takes.
        column: Column of Parquet tables that has the images; None: by type and name.

    Raises:
        FlawscopeError: As `list_items`.
    """
    found = Found()
    return Inputs(list(list_items(named, column=column, found=found)), found.masks, found.folders)


def check_apart(inputs: Inputs, folder: Path | None) -> None:
    """Raise ArgumentError if drawings in a folder could replace images, or be scored as images the next time.

    Args:
        inputs: The images.
        folder: Where drawings go; None for nowhere.
    """
    if folder is None:
        return
    # Links are followed, as they are to the images.
    place = os.path.realpath(folder)
    for item in inputs.items:
        if item.source == "file" and not item.fault and os.path.realpath(item.name).startswith(f"{place}{os.sep}"):
            raise ArgumentError(f"{folder}: expected another folder than that of the images. Choose another name.")
    for listed, path in inputs.folders.items():
        if f"{place}{os.sep}".startswith(f"{listed.rstrip(os.sep)}{os.sep}"):
            raise ArgumentError(
                f"{folder}: expected a folder outside of {path}, of which all images below are scored: those drawn now "
                "would be among them the next time. Choose another name."
            )
        if listed.startswith(f"{place}{os.sep}"):  # its images may be links to elsewhere
            raise ArgumentError(f"{folder}: expected another folder than that of the images. Choose another name.")
