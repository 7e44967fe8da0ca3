"""Where stored images lie: `images/YYYYMMDD/SEQ-view.png` below the state folder, maps beside them."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from flawscope.imaging.image_headers import read_header
from flawscope.runtime.line.gallery.keeper import Pixels

IMAGES = "images"
"""Folder of stored images, in the state folder."""

LARGEST_SEQ = (1 << 63) - 1
"""Largest number that a journal can hold."""

_ENDINGS = {"png": "png", "jpeg": "jpg", "bmp": "bmp", "tiff": "tif", "webp": "webp"}
# No view has a plus in its name: a map can never have the name of an image.
_MAP = "+map.png"
_DAY = re.compile(r"[0-9]{8}")
_FILE = re.compile(r"([0-9]{1,19})-[A-Za-z0-9][A-Za-z0-9_.-]*(?:\.[a-z]+|\+map\.png)")


def image_path(seq: int, utc_ns: int, view: str, image: Pixels | bytes) -> str:
    """Return where an image is stored, below the state folder; the day is that of the part, in UTC.

    Args:
        seq: Number of the part.
        utc_ns: When it was triggered, in UTC.
        view: Name of the view.
        image: The image; the bytes of a file keep their format, and `.bin` says that they are none that is known.
    """
    day = datetime.fromtimestamp(utc_ns / 1e9, timezone.utc).strftime("%Y%m%d")
    ending = "png"
    if isinstance(image, bytes):
        header = read_header(image)
        ending = "bin" if header is None else _ENDINGS.get(header.format.lower(), "bin")
    return f"{IMAGES}/{day}/{seq}-{view}.{ending}"


def map_path(image: str) -> str:
    """Return where the map of an image is stored, below the state folder."""
    path = PurePosixPath(image)
    return str(path.with_name(path.stem + _MAP))


def below(state: Path, path: str) -> Path | None:
    """Return the file that a record names; None where it is none of ours, as after a change of a journal by hand."""
    parts = PurePosixPath(path).parts
    if len(parts) != 3 or parts[0] != IMAGES or not _DAY.fullmatch(parts[1]) or not _FILE.fullmatch(parts[2]):
        return None
    return state / Path(*parts)


def is_day(name: str) -> bool:
    """Return whether a folder is one of a day's images."""
    return _DAY.fullmatch(name) is not None


def seq_of(name: str) -> int | None:
    """Return the number of the part whose image or map a file is; None for other files.

    It may be one that no part can have, above `LARGEST_SEQ`: the journal must not be asked for it.
    """
    found = _FILE.fullmatch(name)
    return int(found[1]) if found else None
