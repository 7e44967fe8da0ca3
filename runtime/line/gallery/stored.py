"""Reading stored images: the file as it is, or drawn under its map."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from flawscope.errors import DataError
from flawscope.imaging.image_headers import read_header
from flawscope.imaging.images import decode_stored
from flawscope.imaging.png import encode_png
from flawscope.open_files import read_regular
from flawscope.runtime.line.gallery.drawing import rgb, with_map
from flawscope.runtime.line.gallery.paths import below, map_path
from flawscope.runtime.line.parts import ViewRecord

MOST_BYTES = 1 << 30
"""Largest stored file that is read."""

_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "bmp": "image/bmp", "webp": "image/webp"}
"""Formats that browsers show -> their media types."""


class Shown(NamedTuple):
    """An image for a browser.

    Attributes:
        data: Bytes of the file.
        media_type: Its media type.
    """

    data: bytes
    media_type: str


def as_shown(data: bytes, name: str) -> Shown:
    """Return the bytes of an image file as a browser can show them: as they are, or as PNG where it cannot.

    Raises:
        ImageError: If they are no image.
    """
    header = read_header(data)
    kind = "" if header is None else header.format
    if kind in _TYPES:
        return Shown(data, _TYPES[kind])
    return Shown(encode_png(rgb(data, name, "bgr", None)), "image/png")


def read_image(state: Path, record: ViewRecord) -> bytes | None:
    """Return the bytes of the stored image of a view; None where there is none, or no longer.

    Raises:
        DataError: If it cannot be read.
    """
    return _read(state, record.image) if record.image else None


def drawn_with_map(state: Path, record: ViewRecord) -> bytes | None:
    """Return the stored image of a view under its map as PNG; None where one of them is not there, or no longer.

    Raises:
        DataError: If one of them cannot be read.
    """
    data = read_image(state, record)
    levels = _read(state, map_path(record.image)) if data is not None else None
    if data is None or levels is None:
        return None
    level = decode_stored(levels, f"map of {record.view}").astype(np.float32) / np.float32(65535)
    return encode_png(with_map(rgb(data, record.view, "bgr", None), level))


def _read(state: Path, path: str) -> bytes | None:
    file = below(state, path)
    if file is None:
        raise DataError(f"{path}: expected the path of a stored image, got another. The journal was changed by hand.")
    try:
        return read_regular(file, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise DataError(f"{path}: could not be read: {err.strerror or err}. See to the disk.") from err
