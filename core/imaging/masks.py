"""Masks by their meaning: grey levels, class numbers, or the alpha channel; and what makes a mask suspicious.

A mask of grey levels has a defect above half of full scale, so that a soft edge is halved. In a mask of class numbers
(1, 2, ..., often beside 255) every value but 0 is a defect; at half of full scale such defects would vanish without a
word. What a file is, its values tell:

    * Where it has one colour and an alpha channel that varies, the alpha is the mask.
    * Where it is stored with loss and nothing in it is above 32, every value from half of its largest on is a defect.
    * Where it is stored without loss and has at most 16 values above 0, they are class numbers if none is of the upper
      half, or if those of the lower half are at most 32 and no edges of brighter areas. An edge lies between two
      levels; an area of a class has no darker neighbour.

Areas of a grey between, as 127 beside 255, may be a soft edge or a level of doubt: they are named, and no defect.
Nothing is turned around: a mask that looks inverted is named, never inverted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.imaging.image_facts import facts_of
from flawscope.imaging.images import decode_stored, read_encoded

_MOST_CLASSES = 16
_LARGEST_CLASS = 32
"""Largest number of a class beside brighter values; above, it may as well be a grey level."""
_LOSSY = ("jpeg", "webp")
"""Formats whose small values may be noise of the compression."""
_LEAST_SHARE_OF_AREAS = 0.1
_MOST_INVERTED = 0.5
_LEAST_INVERTED_BORDER = 0.9


class MaskReading(NamedTuple):
    """A mask, and how its file was understood.

    Attributes:
        defect: bool [H, W], true at the defect.
        largest: The largest value stored in the file.
        classes: The values that were taken as class numbers; empty where they were taken as grey levels.
        is_from_alpha: The mask lies in the alpha channel.
        faint: Values of the lower half that are no mere edges, and no defect as grey levels.
    """

    defect: BoolArray
    largest: int
    classes: tuple[int, ...] = ()
    is_from_alpha: bool = False
    faint: tuple[int, ...] = ()


def read_mask(path: Path, *, is_indexed: bool = False) -> BoolArray:
    """Read a mask file to bool [H, W], true where there is a defect.

    Args:
        path: The mask; of a colour mask, each pixel's largest channel counts.
        is_indexed: The values are known to be class numbers, so every value but 0 is a defect. Otherwise they tell
            themselves what they are; a grey level is a defect from 128 in 8 bit, from 32,768 in 16 bit.

    Raises:
        ImageError: As `decode_stored`.
    """
    return read_mask_with_facts(path, is_indexed=is_indexed).defect


def read_mask_with_facts(path: Path, *, is_indexed: bool = False) -> MaskReading:
    """Read a mask file as `read_mask`, with how it was understood."""
    return understand_mask(read_encoded(path), str(path), is_indexed=is_indexed)


def decode_mask(data: bytes, name: str = "mask", *, is_indexed: bool = False) -> BoolArray:
    """Decode an encoded mask to bool [H, W]; see `read_mask`."""
    return understand_mask(data, name, is_indexed=is_indexed).defect


def understand_mask(data: bytes, name: str = "mask", *, is_indexed: bool = False) -> MaskReading:
    """Decode an encoded mask as `read_mask`, with how it was understood."""
    pixels = decode_stored(data, name)
    # The largest channel: a defect painted in pure blue has a luma of 29 and would be lost.
    values: npt.NDArray[Any] = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    largest, half = int(values.max()), np.iinfo(values.dtype).max // 2
    if is_indexed:
        return MaskReading(np.asarray(values > 0), largest)
    facts = facts_of(data, pixels)
    if facts.has_alpha and int(values.min()) == largest:
        alpha = decode_alpha(data)
        if alpha is not None and alpha.shape == values.shape and alpha.min() != alpha.max():
            return MaskReading(np.asarray(alpha > np.iinfo(alpha.dtype).max // 2), int(alpha.max()), is_from_alpha=True)
    # Without any bright area there is no edge whose compression could leave such values: they are 0 and 1 of a mask.
    if facts.format in _LOSSY and 0 < largest <= _LARGEST_CLASS:
        return MaskReading(np.asarray(2 * values.astype(np.int32) >= largest), largest, (largest,))
    low = (values > 0) & (values <= half)
    if facts.format in _LOSSY or not low.any():
        return MaskReading(np.asarray(values > half), largest)
    above = np.unique(values[values > 0]).tolist()
    if len(above) > _MOST_CLASSES:
        return MaskReading(np.asarray(values > half), largest)
    has_areas = _areas(values, low) >= _LEAST_SHARE_OF_AREAS
    if largest <= half or (has_areas and int(values[low].max()) <= _LARGEST_CLASS):
        return MaskReading(np.asarray(values > 0), largest, tuple(above))
    faint = np.unique(values[low if has_areas else _without_bright(values, half)]).tolist()
    return MaskReading(np.asarray(values > half), largest, faint=tuple(faint))


def _areas(values: npt.NDArray[Any], low: BoolArray) -> float:
    """Return the share of the low pixels that have no darker neighbour, which no pixel of an edge is without."""
    darkest = cv2.erode(values, np.ones((3, 3), np.uint8))
    return float((darkest == values)[low].mean())


def _without_bright(values: npt.NDArray[Any], half: int) -> BoolArray:
    """Return the pixels, bool [H, W], of connected areas above 0 whose largest value is at most `half`."""
    count, labels = cv2.connectedComponents((values > 0).astype(np.uint8))
    is_faint = np.ones(count, np.bool_)
    is_faint[0] = False  # the background
    is_faint[np.unique(labels[values > half])] = False
    return np.asarray(is_faint[labels])


def decode_alpha(data: bytes) -> npt.NDArray[Any] | None:
    """Return the alpha channel of an encoded image, uint8 or uint16 [H, W]; None where OpenCV gives none."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
        return None
    alpha: npt.NDArray[Any] = pixels[..., 3]
    return alpha if alpha.dtype in (np.uint8, np.uint16) else None


def looks_inverted(defect: BoolArray) -> bool:
    """Return whether a mask, bool [H, W], is rather the background: true at most pixels and nearly all the border."""
    border = np.concatenate([defect[0], defect[-1], defect[:, 0], defect[:, -1]])
    return bool(defect.mean() > _MOST_INVERTED and border.mean() >= _LEAST_INVERTED_BORDER)


def with_outline(image: UInt8Array, mask: BoolArray) -> UInt8Array:
    """Return an image uint8 [H, W, 3] RGB with the outline of a mask bool [H, W] in green."""
    shown = image.copy()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, outlines, -1, (0, 220, 0), max(1, round(max(mask.shape) / 400)))
    return shown
