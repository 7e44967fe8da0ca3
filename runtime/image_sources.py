"""Where images come from: files, encoded bytes, images of Pillow, and arrays on the host or a device.

Whatever an image is given as, its pixels are those that its file would have: alpha is dropped, 16 bit becomes 8 bit by
the rule of the bundle. Grey stays one channel: `prepare` makes three equal ones of it when it is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.errors import ArgumentError
from flawscope.imaging.images import check_sides, decode_stored, read_stored, to_8_bit, to_rgb
from flawscope.runtime.device_arrays import CudaArray, DlpackArray, on_host

Color = Literal["rgb", "bgr"]
"""Order of the channels of arrays: `rgb`, or `bgr` as OpenCV reads them. Files and images of Pillow know their own."""


class PillowImage(Protocol):
    """An image of Pillow (`PIL.Image.Image`), which this package does not import."""

    @property
    def mode(self) -> str:
        """What a pixel is, `RGB` for one."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def convert(self, mode: str) -> PillowImage:
        """Return the image with other pixels."""


Source = Path | str | bytes | npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | PillowImage | CudaArray | DlpackArray
"""An image: a file by its path, the bytes of a file, an image of Pillow, or an array uint8 or uint16 [H, W], [H, W, 1],
[H, W, 3] or [H, W, 4] of NumPy, on a CUDA device, or with DLPack."""

_CHANNELS = (1, 3, 4)
_WITH_CHANNELS = {"RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB", "L": "L", "LA": "L", "1": "L", "P": "RGB", "PA": "RGB"}
"""Mode of Pillow -> the mode with the same colours and without alpha."""


Item = TypeVar("Item")


class SourceImage(NamedTuple):
    """An image uint8 [H, W, 3] RGB, or [H, W] grey, and the bits of a value as it was stored, 8 or 16."""

    pixels: UInt8Array
    bits: int


def check_color(color: str) -> None:
    """Raise ArgumentError unless a word is an order of channels."""
    if color not in ("rgb", "bgr"):
        raise ArgumentError(f"color: expected rgb or bgr, got {color!r}.")


def split_batch(source: Any) -> Sequence[Source] | None:
    """Return the images of an array [N, H, W, C], or None for anything else."""
    # By attribute and not by type: arrays on a device have a shape, too, and a path has none.
    shape = getattr(source, "shape", None)
    return [source[row] for row in range(shape[0])] if isinstance(shape, tuple) and len(shape) == 4 else None


def as_several(sources: Iterable[Item]) -> Iterator[Item]:
    """Return an iterator over sources.

    Raises:
        ArgumentError: If it is one image.
    """
    try:
        several = None if isinstance(sources, str | bytes | Path) else iter(sources)
    except TypeError:  # a frame, None
        several = None
    if several is None:
        raise ArgumentError(f"sources: expected several images, got {type(sources).__name__}. Pass a list of them.")
    return several


def in_groups(sources: Iterable[Item], size: int) -> Iterator[list[tuple[int, Item]]]:
    """Yield the sources in groups of a size, the last one perhaps smaller, each with its position."""
    numbered = enumerate(sources)
    while group := list(islice(numbered, size)):
        yield group


def read_source_image(source: Source, name: str, color: Color, bits: int | None) -> SourceImage:
    """Return the image of a source.

    Args:
        source: The source.
        name: What it is called in messages.
        color: Order of the channels of an array.
        bits: Bits in use of 16-bit values; see `Preprocessing.bits`.

    Raises:
        ArgumentError: If it is no image, or an array of another shape or type.
        ImageError: If a file is missing or broken.
        DeviceError: If an array cannot be copied from its device.
    """
    if isinstance(source, Path | str):
        stored = read_stored(Path(source))
    elif isinstance(source, bytes | bytearray | memoryview):
        stored = decode_stored(bytes(source), name)
    else:
        # An image of Pillow has an order of its own.
        array, order = (_unpack(source, name), "rgb") if _is_pillow(source) else (on_host(source, name), color)
        array = _without_alpha(array, name)
        return SourceImage(_grey_or_rgb(to_8_bit(array, name, bits), order), 8 * array.itemsize)
    if stored.ndim == 2:
        return SourceImage(to_8_bit(stored, name, bits), 8 * stored.itemsize)
    return SourceImage(to_rgb(stored, name, bits), 8 * stored.itemsize)


def _is_pillow(source: object) -> bool:
    return isinstance(getattr(source, "mode", None), str) and hasattr(source, "convert")


def _unpack(image: Any, name: str) -> npt.NDArray[Any]:
    """Return the pixels of an image of Pillow."""
    check_sides(image.size[1], image.size[0], name)  # before its file is decoded
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16, copy=False)  # without a foreign byte order
    if image.mode not in _WITH_CHANNELS:
        raise ArgumentError(
            f"{name}: expected an image of Pillow in mode {', '.join(_WITH_CHANNELS)} or I;16, got {image.mode}. "
            "Pass its file, or its pixels as an array of 8 or 16 bit."
        )
    # Pillow opens colours of 16 bit as 8 bit, and the scale of the bundle would be applied to something else. Once it
    # has read the pixels, nobody can tell.
    if any(";16" in str(part) for part in getattr(image, "tile", ())):
        raise ArgumentError(
            f"{name}: expected 8 bit, or grey of 16 bit, of an image of Pillow, got colours of 16 bit, of which Pillow "
            "keeps 8. Pass its file, or its pixels as an array."
        )
    return np.asarray(image.convert(_WITH_CHANNELS[image.mode]))


def _without_alpha(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return an array [H, W], [H, W, 1] or [H, W, 3] of an image, or raise ArgumentError."""
    if np.ma.isMaskedArray(array):
        raise ArgumentError(f"{name}: expected an array without a mask, got a masked one. Fill it first.")
    array = np.asarray(array)
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    if array.dtype not in (np.uint8, np.uint16) or not fits or array.size == 0:
        # A foreign byte order is named by dtype.str alone.
        got = array.dtype.name if array.dtype.isnative else array.dtype.str
        raise ArgumentError(
            f"{name}: expected uint8 or uint16 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] with no empty axis, got "
            f"{got} {list(array.shape)}."
        )
    check_sides(array.shape[0], array.shape[1], name)  # before it is converted
    # Before bits are counted: alpha fills all 16, whatever the colours use.
    return np.ascontiguousarray(array[..., :3]) if array.ndim == 3 and array.shape[2] == 4 else array


def _grey_or_rgb(array: UInt8Array, color: str) -> UInt8Array:
    """Return an array [H, W] or [H, W, 1] as [H, W], one [H, W, 3] as RGB; one that is so already, as it is."""
    if array.ndim == 2 or array.shape[2] == 1:
        return np.ascontiguousarray(array.reshape(array.shape[:2]))
    if color == "rgb":
        return array
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_BGR2RGB), np.uint8)
