"""Upper triangles without their zeros: half the numbers of a square matrix, row after row from the diagonal on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.errors import ArgumentError


def triangle_size(channels: int) -> int:
    """Return the numbers of an upper triangle of D rows: D·(D + 1)/2."""
    return channels * (channels + 1) // 2


def pack_triangles(matrices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return upper triangles without the zeros below their diagonal.

    Args:
        matrices: [P, D, D] of any dtype, with nothing but zeros below the diagonal.

    Returns:
        [P, D·(D + 1)/2] of the same dtype.

    Raises:
        ArgumentError: If something below a diagonal is not zero: it would be lost.
    """
    channels = matrices.shape[-1]
    # Row by row: the memory of the result, and nothing more.
    packed = np.empty((len(matrices), triangle_size(channels)), matrices.dtype)
    start = 0
    for row in range(channels):
        if matrices[:, row, :row].any():
            raise ArgumentError(
                f"whitening: expected upper triangles, got numbers below the diagonal in row {row}. Train again."
            )
        packed[:, start : start + channels - row] = matrices[:, row, row:]
        start += channels - row
    return packed


def unpack_triangles(triangles: npt.NDArray[Any], channels: int) -> Float32Array:
    """Return the matrices of packed triangles.

    Args:
        triangles: [P, D·(D + 1)/2], float32 or float16.
        channels: D.

    Returns:
        float32 [P, D, D], zeros below the diagonal.
    """
    matrices = np.zeros((len(triangles), channels, channels), np.float32)
    start = 0
    for row in range(channels):
        matrices[:, row, row:] = triangles[:, start : start + channels - row]
        start += channels - row
    return matrices


def triangle_places(channels: int) -> npt.NDArray[np.int32]:
    """Return where each number of a matrix stands in its packed triangle, int32 [D, D]; 0 below the diagonal."""
    places = np.zeros((channels, channels), np.int32)
    places[np.triu_indices(channels)] = np.arange(triangle_size(channels))
    return places
