"""Paths in JSON: a name that is not UTF-8 comes back as it was, where `flawscope.text.storable` only shows it.

An absolute path begins with a slash, so that a text with another beginning can stand for what has no text:
`bytes:/data/w%FF/parts`.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from flawscope.text import name_bytes

_BYTES = "bytes:"


def stored_path(path: Path | str) -> str:
    """Return a path as absolute text that JSON can hold; `path_from` makes the same path of it."""
    text = str(Path(path).absolute())
    raw = name_bytes(text)
    return text if raw is None else _BYTES + quote_from_bytes(raw, safe="/")


def path_from(text: str) -> Path:
    """Return the path of a text that `stored_path` made, or of any other that names one."""
    if text.startswith(_BYTES):
        return Path(os.fsdecode(unquote_to_bytes(text.removeprefix(_BYTES))))
    return Path(text)
