"""What a path is, where a command expected something else: so that its message names the cause."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

_BUNDLE_RECORD = "manifest.json"
_RUN_RECORD = "run.json"
_DATASET_FOLDERS = frozenset({"good", "normal", "ok", "train", "test", "ground_truth", "masks"})
_IMAGE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"II+\0", b"GIF8")

_MOST_ENTRIES = 1000


def is_bundle(path: Path) -> bool:
    """Return whether a path looks like a bundle, folder or packed; it is not verified."""
    try:
        if path.is_dir():
            return (path / _BUNDLE_RECORD).is_file()
        if not path.is_file():  # a pipe would wait for its writer
            return False
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as packed:
            return _BUNDLE_RECORD in packed.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False


def kind_of_path(path: Path) -> str | None:
    """Return in words what a path is, by names and first bytes alone; None where it is nothing known.

    It is one of `a bundle`, `a training run`, `an image`, `a folder of images` and `a dataset`.
    """
    try:
        if not path.exists():
            return None
        if is_bundle(path):
            return "a bundle"
        if not path.is_dir():
            return "an image" if path.is_file() and _begins_as_image(path) else None
        if (path / _RUN_RECORD).is_file():
            return "a training run"
        # Some only: a folder may hold millions.
        entries = sorted(itertools.islice(path.iterdir(), _MOST_ENTRIES))
        if any(entry.name.lower() in _DATASET_FOLDERS and entry.is_dir() for entry in entries):
            return "a dataset"
        files = [entry for entry in entries if entry.is_file()]
        return "a folder of images" if files and _begins_as_image(files[0]) else None
    except OSError:
        return None


def _begins_as_image(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith(_IMAGE_BEGINNINGS)
