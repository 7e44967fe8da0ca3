"""Writing pictures, masks and records of the synthesis tools; reading the records back, strictly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import msgspec
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.errors import DataError

_Struct = TypeVar("_Struct")

SHEET = "contact_sheet.png"


def write_picture(path: Path, image: UInt8Array) -> None:
    """Write uint8 [H, W, 3] RGB as a real PNG, whatever the format of the original was."""
    _write_png(path, np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8))


def write_mask(path: Path, mask: BoolArray) -> None:
    """Write bool [H, W] as a grey PNG of 8 bit with the values 0 and 255 and no others."""
    _write_png(path, mask.astype(np.uint8) * np.uint8(255))


def _write_png(path: Path, pixels: UInt8Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def write_json(path: Path, value: Any) -> None:
    """Write a struct or a dictionary as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(value) + b"\n" for value in values))


def read_json(path: Path, kind: type[_Struct], what: str) -> _Struct:
    """Read a JSON file as `kind`; types are strict, so the text "True" is no boolean.

    Raises:
        DataError: If the file cannot be read, is no JSON, or has other keys or types; the message names the place.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: expected {what}, got: {err.strerror or err}. Check the path.") from err
    return decode_json(data, kind, str(path), what)


def decode_json(data: bytes | msgspec.Raw, kind: type[_Struct], where: str, what: str) -> _Struct:
    """Decode JSON as `kind`, strictly.

    Raises:
        DataError: If it is no JSON, or has other keys or types; the message begins with `where`.
    """
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise DataError(f"{where}: expected {what}, got: {err}. Mend the file.") from err
