"""The bytes of everything in a folder or an archive, for comparing two of them."""

from __future__ import annotations

import zipfile
from pathlib import Path


def files_of(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, or of every member of a zip file, by its name."""
    if path.is_dir():
        files = (entry for entry in sorted(path.rglob("*")) if entry.is_file())
        return {entry.relative_to(path).as_posix(): entry.read_bytes() for entry in files}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
