"""What a path is, where a command expected something else: so that its message names the cause."""

from __future__ import annotations

import os
from pathlib import Path

from flawscope.errors import ArgumentError, DataError
from flawscope.open_files import list_folder, open_regular
from flawscope.part_words import GOOD_NAMES
from flawscope.unfinished import BEGUN

_BUNDLE_RECORD = "manifest.json"
_RUN_RECORD = "run.json"
UNFINISHED = "an unfinished training"
_DATASET_FOLDERS = frozenset({*GOOD_NAMES, "train", "test", "ground_truth", "masks"})
_IMAGE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"II+\0", b"GIF8")
_END_BYTES = 1 << 20


_CHECKPOINTS = (".ckpt", ".safetensors")


def path_of(value: Path | str, name: str) -> Path:
    """Return an argument that names a file or folder.

    Raises:
        ArgumentError: If it is something else, or a text that no system takes for a name.
    """
    if not isinstance(value, str | Path):
        raise ArgumentError(f"{name}: expected a path, got {type(value).__name__}.")
    if not str(value):
        raise ArgumentError(f"{name}: expected a path, got an empty text. Name it, or leave it out.")
    if "\0" in str(value):
        raise ArgumentError(f"{name}: expected a path, got {str(value)!r}, which has a null character. Mend the name.")
    return Path(value)


def is_bundle(path: Path) -> bool:
    """Return whether a path looks like a bundle, folder or packed; it is not verified."""
    try:
        if path.is_dir():
            return (path / _BUNDLE_RECORD).is_file()
        with open_regular(path) as file:
            if file.read(4) != b"PK\x03\x04":
                return False
            # The names of a zip file stand at its end; that of the manifest is one of few.
            file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
            return _BUNDLE_RECORD.encode() in file.read()
    except (OSError, ValueError):
        return False


def kind_of_path(path: Path) -> str | None:
    """Return in words what a path is, by names and first bytes alone; None where it is nothing known.

    It is one of `a bundle`, `a training run`, `an unfinished training`, `an image`, `a folder of images`, `a dataset`,
    and `a checkpoint`, with the command that makes a folder of it.
    """
    try:
        if not path.exists():
            return None
        if is_bundle(path):
            return "a bundle"
        if not path.is_dir():
            if path.suffix.lower() in _CHECKPOINTS:
                return "a checkpoint, of which flawscope synth import makes a folder"
            return "an image" if _begins_as_image(path) else None
        if (path / _RUN_RECORD).is_file():
            return "a training run"
        if (path / BEGUN).is_file():
            return UNFINISHED
        entries = list_folder(path)
        if any(entry.name.lower() in _DATASET_FOLDERS and entry.is_dir() for entry in entries):
            return "a dataset"
        files = [entry for entry in entries if entry.is_file()]
        return "a folder of images" if files and _begins_as_image(files[0]) else None
    except (OSError, ValueError, DataError):
        return None


def _begins_as_image(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(4).startswith(_IMAGE_BEGINNINGS)
