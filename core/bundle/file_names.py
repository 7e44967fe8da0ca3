"""Names in a bundle: that of the manifest, and which names a file may have."""

from __future__ import annotations

from pathlib import PurePosixPath

MANIFEST = "manifest.json"


def is_safe(name: str) -> bool:
    """Return whether a name stays inside the bundle and has one spelling."""
    pure = PurePosixPath(name)
    # Two spellings of one path (`a`, `./a`) would let a second member overwrite one whose hash was already checked.
    is_plain = bool(pure.parts) and pure.as_posix() == name and "\0" not in name
    # Backslash and colon are separators on Windows, where a bundle may be opened too.
    return is_plain and ".." not in pure.parts and not pure.is_absolute() and "\\" not in name and ":" not in name
