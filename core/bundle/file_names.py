"""Names in and beside a bundle: those of manifest, signature and overlay, and which names a file may have."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

MANIFEST = "manifest.json"

SIGNATURE = "signature.json"
"""The signature of the manifest, the one file that no manifest lists: it is made after it."""

RESERVED = frozenset({MANIFEST, SIGNATURE})
"""Names that no manifest may list."""

_OVERLAY = ".thresholds.json"


def overlay_beside(bundle: Path) -> Path:
    """Return the path of the threshold overlay that belongs to a bundle of this path."""
    # Not with_name, which fails where there is no name, as for "/": what opens the bundle says what is wrong with it.
    return bundle.parent / f"{bundle.name}{_OVERLAY}"


def is_safe(name: str) -> bool:
    """Return whether a name stays inside the bundle and has one spelling."""
    pure = PurePosixPath(name)
    # Two spellings of one path (`a`, `./a`) would let a second member overwrite one whose hash was already checked.
    is_plain = bool(pure.parts) and pure.as_posix() == name and "\0" not in name
    # Backslash and colon are separators on Windows, where a bundle may be opened too.
    return is_plain and ".." not in pure.parts and not pure.is_absolute() and "\\" not in name and ":" not in name
