"""Files of image sets: writes images, masks and records; reads records back, strictly."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.errors import DataError
from flawscope.imaging.png import encode_mask, encode_png
from flawscope.open_files import RECORD_BYTES, open_regular, read_regular
from flawscope.text import NOT_JSON, encode_json

_Struct = TypeVar("_Struct")

SHEET = "contact_sheet.png"

Text = Annotated[str, msgspec.Meta(min_length=1)]
"""A name, path or sentence of a record: never empty."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""A content hash. Sets are compared by it, and a shortened one would silently match nothing."""


def write_image(path: Path, image: UInt8Array) -> None:
    """Write uint8 [H, W, 3] RGB as PNG, whatever the format of the original."""
    _write(path, encode_png(image))


def write_mask(path: Path, mask: BoolArray) -> None:
    """Write bool [H, W] as 8-bit grey PNG with the values 0 and 255 only."""
    _write(path, encode_mask(mask))


def write_json(path: Path, value: Any) -> None:
    """Write a struct or a dictionary as indented JSON."""
    # Indented and with a newline at its end: people read and compare these records.
    _write(path, msgspec.json.format(encode_json(value), indent=2) + b"\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON object per line."""
    _write(path, b"".join(encode_json(value) + b"\n" for value in values))


def _write(path: Path, data: bytes) -> None:
    # Not `files.write_bytes`: sets are written below `atomic_folder`, which is atomic itself. When the disk is full it
    # names the folder the user asked for, where a file's own error would name a temporary one.
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read_json(path: Path, kind: type[_Struct], what: str) -> _Struct:
    """Read a JSON file as `kind`; types are strict, so the text "True" is not a boolean.

    Raises:
        DataError: If the file cannot be read, is not JSON, or has other keys or types; the message says where.
    """
    try:
        data = read_regular(path, RECORD_BYTES)
    except OSError as err:
        raise DataError(f"{path}: expected {what}, got: {err.strerror or err}. Check the path.") from err
    return decode_json(data, kind, str(path), what)


def read_lines(path: Path, kind: type[_Struct], what: str, absent: str) -> Iterator[tuple[str, _Struct]]:
    """Yield place (file and line, for messages) and content of every line of a JSON Lines file.

    Args:
        path: The file.
        kind: Each line is read as this, strictly.
        what: Expected content of a line, for the message.
        absent: Expected file, for the message if it cannot be read.

    Raises:
        DataError: If the file cannot be read, or a line is not JSON (also an empty one) or has other keys or types.
    """
    for number, line in enumerate(_lines_of(path, absent), 1):
        where = f"{path}: line {number}"
        yield where, decode_json(line, kind, where, what)


def _lines_of(path: Path, absent: str) -> Iterator[bytes]:
    """Yield the lines without their ends, one at a time: a set of a million images has gigabytes of them."""
    try:
        with open_regular(path) as file:
            while line := file.readline(RECORD_BYTES + 1):
                if len(line) > RECORD_BYTES:
                    raise OSError(
                        errno.EFBIG, f"it has a line of more than {RECORD_BYTES:,} bytes, the most that is read"
                    )
                yield line.rstrip(b"\r\n")
    except OSError as err:
        raise DataError(f"{path}: expected {absent}, got: {err.strerror or err}. Check the path.") from err


def decode_json(data: bytes | msgspec.Raw, kind: type[_Struct], where: str, what: str) -> _Struct:
    """Decode JSON as `kind`, strictly.

    Raises:
        DataError: If it is not JSON, or has other keys or types; the message begins with `where`.
    """
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except NOT_JSON as err:
        raise DataError(f"{where}: expected {what}, got: {err}. Mend the file.") from err
