"""Pixel formats of industrial cameras, by the names of the GenICam Pixel Format Naming Convention (PFNC).

One function turns a camera's buffer into an image. Two traps it keeps from everybody else:

- PFNC and OpenCV name Bayer patterns by different corners: PFNC's `BayerRG` (red at the top left) is
  OpenCV's `BayerBG`.
- OpenCV's `YUV2RGB_YUYV` expects the narrow range of television (16 to 235), cameras send the full one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import cv2
import numpy as np

from flawscope.arrays import UInt8Array
from flawscope.errors import ArgumentError, ImageError

Kind = Literal["mono", "bayer", "colour", "chroma"]


class PixelFormat(NamedTuple):
    """How the pixels of a format lie in a buffer.

    Attributes:
        kind: Grey; one colour a pixel in a pattern; all colours of a pixel; or brightness of each pixel and colour of
            each pair.
        bits: Bits of a value.
        packing: Empty: a value has one or two whole bytes, little-endian. `p`: values follow each other bit by bit, the
            lowest bit first. `packed`: two values in three bytes, the high bits of each in a byte of its own (GigE
            Vision 1).
        order: Of a Bayer pattern its first row, such as `RG`; of colours their order, such as `BGR`.
    """

    kind: Kind
    bits: int = 8
    packing: Literal["", "p", "packed"] = ""
    order: str = ""


# The pattern with red at the top left has blue at the second row and column, by which OpenCV names it.
_BAYER: dict[str, int] = {
    "RG": cv2.COLOR_BayerBG2RGB,
    "GR": cv2.COLOR_BayerGB2RGB,
    "GB": cv2.COLOR_BayerGR2RGB,
    "BG": cv2.COLOR_BayerRG2RGB,
}
_COLOURS: dict[str, int | None] = {
    "RGB": None,
    "BGR": cv2.COLOR_BGR2RGB,
    "RGBa": cv2.COLOR_RGBA2RGB,
    "BGRa": cv2.COLOR_BGRA2RGB,
}


def _formats() -> dict[str, PixelFormat]:
    rows = {
        "RGB8": PixelFormat("colour", order="RGB"),
        "BGR8": PixelFormat("colour", order="BGR"),
        "RGBa8": PixelFormat("colour", order="RGBa"),
        "BGRa8": PixelFormat("colour", order="BGRa"),
        "YUV422_8": PixelFormat("chroma", order="YUYV"),
        "YUV422_8_UYVY": PixelFormat("chroma", order="UYVY"),
        "YCbCr422_8": PixelFormat("chroma", order="YUYV"),
        # Names of GigE Vision 1, which many cameras still use.
        "RGB8Packed": PixelFormat("colour", order="RGB"),
        "BGR8Packed": PixelFormat("colour", order="BGR"),
        "YUV422Packed": PixelFormat("chroma", order="UYVY"),
    }
    stems: list[tuple[str, Kind, str]] = [
        ("Mono", "mono", ""),
        *((f"Bayer{order}", "bayer", order) for order in _BAYER),
    ]
    for stem, kind, order in stems:
        for bits in (8, 10, 12, 14, 16):
            rows[f"{stem}{bits}"] = PixelFormat(kind, bits, "", order)
        for bits in (10, 12):
            rows[f"{stem}{bits}p"] = PixelFormat(kind, bits, "p", order)
            rows[f"{stem}{bits}Packed"] = PixelFormat(kind, bits, "packed", order)
    return rows


PIXEL_FORMATS: dict[str, PixelFormat] = _formats()
"""Name -> format, of all that `image_of_buffer` takes."""


def pixel_format(name: str) -> PixelFormat:
    """Return a format by its name.

    Raises:
        ArgumentError: If it is not in the table.
    """
    if name not in PIXEL_FORMATS:
        raise ArgumentError(f"pixel_format: expected one of {', '.join(sorted(PIXEL_FORMATS))}, got {name!r}.")
    return PIXEL_FORMATS[name]


def row_bytes(name: str, width: int) -> int:
    """Return the bytes of a row of pixels, without padding.

    Raises:
        ArgumentError: If the format is unknown, or rows of this width do not end at a byte.
    """
    form = pixel_format(name)
    if form.kind == "colour":
        return width * len(form.order)
    if form.kind == "chroma":
        _check_width(name, width, 2)
        return 2 * width
    if form.packing == "packed":
        _check_width(name, width, 2)
        return width // 2 * 3
    if form.packing == "p":
        _check_width(name, width, 4 if form.bits == 10 else 2)
        return width * form.bits // 8
    return width if form.bits == 8 else 2 * width


def image_of_buffer(
    data: bytes | memoryview | UInt8Array, width: int, height: int, name: str, *, padding: int = 0
) -> UInt8Array:
    """Turn a camera's buffer into an image, which owns its memory: the buffer may be given back at once.

    Values of more than 8 bits are reduced by one rule: the upper 8 bits of the format's nominal range, so `Mono12` 4095
    is 255 and 15 is 0; a value above the nominal range is 255. Bayer patterns are interpolated bilinearly, after that.
    Brightness and colour are those of ITU-R BT.601 in the full range; a pair of pixels has one colour. Opacity (`a`) is
    left out.

    Args:
        data: The buffer; what follows the last row is ignored.
        width: Pixels of a row.
        height: Rows.
        name: Name of the format, such as `BayerRG12p`.
        padding: Bytes between the end of a row and the next.

    Returns:
        uint8 [H, W] of grey formats, uint8 [H, W, 3] RGB of all others.

    Raises:
        ArgumentError: If the format is unknown, the size is not positive, or rows do not end at a byte.
        ImageError: If the buffer is too small for an image of this size.
    """
    form = pixel_format(name)
    # OpenCV gives black for a Bayer pattern that has no inside.
    least = 3 if form.kind == "bayer" else 1
    if width < least or height < least or padding < 0:
        raise ArgumentError(
            f"buffer: expected at least {least} × {least} pixels of {name} and no negative padding, "
            f"got {width} × {height} and {padding}."
        )
    rows = _rows(np.frombuffer(data, np.uint8), row_bytes(name, width), height, padding, f"{width} × {height} {name}")
    if form.kind == "colour":
        pixels, code = rows.reshape(height, width, len(form.order)), _COLOURS[form.order]
        return np.array(pixels, order="C") if code is None else _converted(pixels, code)
    if form.kind == "chroma":
        return _from_chroma(rows, height, width, form.order)
    grey = _upper_bits(rows, height, width, form)
    if form.kind == "mono":
        return np.array(grey, np.uint8, order="C")
    return _converted(grey, _BAYER[form.order])


def _converted(pixels: UInt8Array, code: int) -> UInt8Array:
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code), np.uint8)


def _check_width(name: str, width: int, multiple: int) -> None:
    # Whether the next row of a narrower one begins within a byte is told differently by the standards.
    if width % multiple:
        raise ArgumentError(
            f"buffer: expected a width of {name} that is a multiple of {multiple}, so that rows end at a byte, "
            f"got {width}. Change the camera's Width."
        )


def _rows(data: UInt8Array, row: int, height: int, padding: int, what: str) -> UInt8Array:
    """Return the rows without their padding, uint8 [H, row bytes]; a view where there is none."""
    stride = row + padding
    needed = stride * (height - 1) + row  # cameras leave out the padding of the last row
    if data.size < needed:
        raise ImageError(f"buffer: expected at least {needed} bytes of {what}, got {data.size}.")
    if padding == 0:
        return data[:needed].reshape(height, row)
    return np.lib.stride_tricks.as_strided(data, (height, row), (stride, 1), writeable=False)


def _upper_bits(rows: UInt8Array, height: int, width: int, form: PixelFormat) -> UInt8Array:
    """Return the upper 8 bits of each value, uint8 [H, W]; a view of the buffer where a byte holds them."""
    if form.packing == "packed":
        return rows.reshape(height, width // 2, 3)[:, :, ::2].reshape(height, width)
    if form.packing == "p":
        return _upper_of_bits(rows, height, width, form.bits)
    if form.bits == 8:
        return rows
    values = np.ascontiguousarray(rows).view("<u2") >> (form.bits - 8)
    reduced: UInt8Array = np.minimum(values, 255).astype(np.uint8)
    return reduced


def _upper_of_bits(rows: UInt8Array, height: int, width: int, bits: int) -> UInt8Array:
    # Value i of a group begins `bits * i` bits after the group does; its upper 8 bits `bits - 8` later.
    count = 4 if bits == 10 else 2
    groups = rows.reshape(height, width // count, bits * count // 8)
    upper = np.empty((height, width // count, count), np.uint8)
    for i in range(count):
        first, shift = divmod(bits * i + bits - 8, 8)
        # uint8 arithmetic drops what belongs to the neighbours.
        upper[:, :, i] = groups[:, :, first] >> shift
        if shift:
            upper[:, :, i] |= groups[:, :, first + 1] << (8 - shift)
    return upper.reshape(height, width)


def _from_chroma(rows: UInt8Array, height: int, width: int, order: str) -> UInt8Array:
    pairs = rows.reshape(height, width // 2, 4)
    wide = np.empty((height, width, 3), np.uint8)
    wide[:, :, 0] = pairs[:, :, order.index("Y") :: 2].reshape(height, width)
    # OpenCV calls it YCrCb: red before blue.
    for channel, letter in ((1, "V"), (2, "U")):
        wide[:, :, channel] = np.repeat(pairs[:, :, order.index(letter)], 2, axis=1)
    return _converted(wide, cv2.COLOR_YCrCb2RGB)
