"""Folders written as outputs are, and what lies in them afterwards."""

from __future__ import annotations

from flawscope.files import atomic_folder


def tree(root):
    """Return path below a folder -> bytes of the file, or None for a folder."""
    return {str(e.relative_to(root)): e.read_bytes() if e.is_file() else None for e in root.rglob("*")}


def fill(path, replace_if=None, overwrite=False, own=(), **files):
    """Write a folder with some files as an output."""
    with atomic_folder(path, replace_if=replace_if, overwrite=overwrite, own=own) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
