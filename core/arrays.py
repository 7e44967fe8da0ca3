"""Array types and checks with uniform messages, and the axis letters used in all array shapes.

N  images in a batch, or query rows     H, W  height and width in pixels
P  patches of one image                 h, w  height and width of the patch grid
M  rows of the memory bank              D     channels of a patch feature
K  neighbours per query
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.errors import ArgumentError

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


def check_array(
    value: object,
    name: str,
    shape: tuple[int | str, ...],
    dtype: npt.DTypeLike,
    *,
    finite: bool = False,
) -> npt.NDArray[Any]:
    """Return `value` if it is an array of the expected dtype and shape, or raise.

    Args:
        value: The object to check.
        name: What the array is called in the error message.
        shape: Expected shape; an int must match, a letter stands for any size of at least one.
        dtype: Expected dtype, matched exactly: nothing is converted.
        finite: Also refuse NaN and infinity.

    Raises:
        ArgumentError: If type, dtype, shape or finiteness differ.
    """
    expected = f"{np.dtype(dtype).name} [{', '.join(str(size) for size in shape)}]"
    if not isinstance(value, np.ndarray):
        raise ArgumentError(f"{name}: expected a NumPy array {expected}, got {type(value).__name__}.")
    # A foreign byte order is named by dtype.str (">f4"): dtype.name is float32 for both.
    got = f"{value.dtype.name if value.dtype.isnative else value.dtype.str} {list(value.shape)}"
    fits = len(value.shape) == len(shape) and all(
        size > 0 if isinstance(expected_size, str) else size == expected_size
        for size, expected_size in zip(value.shape, shape, strict=True)
    )
    # Never converted silently: a cast hides where a float64 or a wrong scale came from, and costs a copy per image.
    if value.dtype != np.dtype(dtype) or not fits:
        raise ArgumentError(f"{name}: expected {expected} with no empty axis, got {got}.")
    if finite and not np.isfinite(value).all():
        # Counted again only on failure: the check above runs on every image.
        bad = int(value.size - np.isfinite(value).sum())
        raise ArgumentError(f"{name}: expected finite numbers, got {bad} NaN or infinite values in {got}.")
    return value


def only_output(outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the array of a graph that has a single output, whatever its name."""
    (value,) = outputs.values()
    return value
