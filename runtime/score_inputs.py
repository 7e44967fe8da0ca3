"""What `flawscope score` is given: images, and folders, of which all images below count."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flawscope.errors import ArgumentError, DataError
from flawscope.files import free_name, is_litter
from flawscope.imaging.image_files import is_folder
from flawscope.imaging.images import EXTENSIONS
from flawscope.open_files import list_folder
from flawscope.runtime.results import Result
from flawscope.scratch import is_scratch

_MASK_FOLDERS = frozenset({"ground_truth", "masks"})
"""Folders of a dataset whose files are called like images and are none."""


class Input(NamedTuple):
    """An image that was named or found.

    Attributes:
        path: The image.
        place: Where what is drawn of it goes below a folder, without ending; no two of a command are equal.
    """

    path: Path
    place: str


class Inputs(NamedTuple):
    """All that is to be scored, in order, and the folders of masks that are passed over.

    Attributes:
        sources: An image, or the fault of a folder that cannot be listed.
        masks: The folders.
        folders: Each folder that was listed, without links -> the named one above it.
    """

    sources: list[Input | Result]
    masks: list[Path]
    folders: dict[str, Path]


def find_inputs(named: Sequence[Path]) -> Inputs:
    """Return the images named, folders replaced by the images in them and in all folders below.

    Images of one folder keep their folders below it in `Input.place`; those of several lie below the name of theirs.
    What does not exist stays: it becomes a fault with its reason, and the others are scored.

    Args:
        named: Images and folders.

    Raises:
        ArgumentError: If a folder has no image, in itself or below.
    """
    sources: list[Input | Result] = []
    masks: list[Path] = []
    folders: dict[str, Path] = {}
    places, tops = set[str](), set[str]()
    seen, again = set[tuple[int, int]](), list[Path]()
    has_several = sum(is_folder(path) for path in named) > 1
    for path in named:
        if not is_folder(path):
            sources.append(Input(path, free_name(path.stem, places)))
            continue
        top = Path()
        if has_several:
            top = Path(free_name(path.name or Path(os.path.abspath(path)).name or "images", tops))  # noqa: PTH100
        before = len(sources), len(again)
        for found in _walk(path, masks, folders, seen, again):
            if isinstance(found, Path):
                place = top / found.relative_to(path).with_suffix("")
                sources.append(Input(found, free_name(place.as_posix(), places)))
            else:
                sources.append(found)
        if (len(sources), len(again)) == before:
            raise _no_image(path)
    if not sources:  # nothing but links that go round
        raise _no_image(named[0])
    return Inputs(sources, masks, folders)


def _no_image(folder: Path) -> ArgumentError:
    return ArgumentError(f"{folder}: expected images in this folder or below, got none. Name images or their folder.")


def _walk(
    folder: Path, masks: list[Path], folders: dict[str, Path], seen: set[tuple[int, int]], again: list[Path]
) -> Iterator[Path | Result]:
    """Yield the images below a folder in the order of their names, faults in place of what cannot be listed.

    Args:
        folder: The folder.
        masks: Folders of masks, which are passed over, are added here.
        folders: As in `Inputs`.
        seen: Device and number of every folder that was listed, also below others that were named.
        again: Folders that were reached once more, and not listed, are added here.
    """
    pending = [folder]
    while pending:
        path = pending.pop()
        if not is_folder(path):
            yield path  # a broken link too: reading it says why
            continue
        try:
            status = path.stat()
            # A link to a folder above would go round for ever; who names a folder and one in it means each image once.
            if (status.st_dev, status.st_ino) in seen:
                again.append(path)
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.setdefault(os.path.realpath(path), folder)
            entries = list_folder(path)
        except (OSError, DataError) as err:
            yield Result(str(path), "fault", reason=str(err))
            continue
        for entry in reversed(entries):
            if is_litter(entry.name) or is_scratch(entry.name):
                continue
            if is_folder(entry):
                if entry.name.lower() in _MASK_FOLDERS:
                    masks.append(entry)
                else:
                    pending.append(entry)
            elif entry.suffix.lower() in EXTENSIONS:
                pending.append(entry)


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
    for source in inputs.sources:
        if isinstance(source, Input) and os.path.realpath(source.path).startswith(f"{place}{os.sep}"):
            raise ArgumentError(f"{folder}: expected another folder than that of the images. Choose another name.")
    for listed, path in inputs.folders.items():
        if f"{place}{os.sep}".startswith(f"{listed.rstrip(os.sep)}{os.sep}"):
            raise ArgumentError(
                f"{folder}: expected a folder outside of {path}, of which all images below are scored: those drawn now "
                "would be among them the next time. Choose another name."
            )
        if listed.startswith(f"{place}{os.sep}"):  # its images may be links to elsewhere
            raise ArgumentError(f"{folder}: expected another folder than that of the images. Choose another name.")
