"""Places of maps that are made of names of strangers: below the folder that is given, on every file system."""

from __future__ import annotations

import re
from hashlib import blake2b

from flawscope.runtime.scale.inputs.files import without_ending
from flawscope.text import printable

_LONGEST = 180
"""Bytes of one part: with a number and an ending it fits the 255 of file systems."""
_LONGEST_PLACE = 2048
"""Bytes of all: below a folder it fits the 4096 of paths."""
_SPLIT = re.compile(r"[/\\]+")


def safe_place(*names: str) -> str:
    r"""Return the place of an image whose name or archive is of a stranger.

    `..`, absolute beginnings, drives and `\` lead nowhere; characters that terminals obey become escapes. The ending of
    the last name is left out.

    Args:
        names: Folder after folder; the last is that of the image.
    """
    *folders, last = names
    parts = [part for name in (*folders, without_ending(last)) for part in _SPLIT.split(name)]
    kept = [_safe(part) for part in parts if part.strip(". ")]
    place = "/".join(kept) or "image"
    if len(place) <= _LONGEST_PLACE // 4 or len(data := place.encode()) <= _LONGEST_PLACE:
        return place
    return f"{kept[0]}/{blake2b(data, digest_size=12).hexdigest()}/{kept[-1]}"


def _safe(part: str) -> str:
    # Nearly all names, and there are millions.
    if len(part) <= _LONGEST and part.isascii() and part.isprintable() and ":" not in part:
        return part
    text = printable(part).replace("\\", "_").replace(":", "_")
    data = text.encode()
    if len(data) <= _LONGEST:
        return text
    # Two long names may have the same beginning.
    mark = blake2b(data, digest_size=6).hexdigest()
    return f"{data[:_LONGEST].decode(errors='ignore')}-{mark}"
