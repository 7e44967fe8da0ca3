"""Map upsampling: bilinear upsampling and Gaussian smoothing of a patch map, as two small matrix products.

Both steps are linear and separable, so for a patch map A [h, w] the anomaly map is R · A · Cᵀ with two constant
matrices R [H, h] and C [W, w]. The graph, the native path and training use the same matrices, so no library's resize or
border rule can make them differ.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.imaging.grid_places import GridPlaces


def upsample_matrix(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return the bilinear interpolation matrix [target, source], half-pixel centres, edges repeated."""
    return interpolation_matrix((np.arange(target) + 0.5) * source / target - 0.5, source)


def interpolation_matrix(position: npt.NDArray[np.float64], source: int) -> npt.NDArray[np.float64]:
    """Return the matrix [T, source] of the linear interpolation at positions float64 [T]; edges are repeated.

    Args:
        position: Where values are wanted, in indices of the source; 0 is its first value.
        source: Number of values.
    """
    low = np.floor(position).astype(np.int64)
    fraction = position - low
    matrix = np.zeros((len(position), source))
    rows = np.arange(len(position))
    # Clipped indices repeat the edge: there both weights fall on one pixel and have to add up to 1.
    np.add.at(matrix, (rows, np.clip(low, 0, source - 1)), 1.0 - fraction)
    np.add.at(matrix, (rows, np.clip(low + 1, 0, source - 1)), fraction)
    return matrix


def resampling_matrix(source: int, target: int) -> npt.NDArray[np.float64]:
    """Return the linear resampling matrix [target, source], half-pixel centres, that leaves out no value.

    Towards more values it is `upsample_matrix`. Towards fewer, the linear filter is as much wider as values get
    fewer, as in Pillow and in torch's `antialias`: a plain interpolation would skip values between its two.
    """
    width = max(1.0, source / target)
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    weights = np.maximum(1.0 - np.abs(centres[:, None] - np.arange(source)) / width, 0.0)
    # At the borders a part of the filter lies outside.
    matrix: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return matrix


def window_matrix(size: int, window: int) -> Float32Array:
    """Return the matrix float32 [size - window + 1, size] that takes the mean of every window along an axis."""
    matrix = np.zeros((size - window + 1, size), np.float32)
    for row in range(len(matrix)):
        matrix[row, row : row + window] = 1.0 / window
    return matrix


def gaussian_matrix(size: int, sigma: float) -> npt.NDArray[np.float64]:
    """Return the Gaussian smoothing matrix [size, size], cut at 4 sigma, with mirrored borders (d c b | a b c d).

    Args:
        size: Length of the axis in pixels.
        sigma: Standard deviation in pixels; 0 gives the identity.
    """
    if sigma <= 0:
        return np.eye(size)
    # As scipy.ndimage.gaussian_filter: truncate=4.0, and the border mode it calls mirror.
    radius = int(4.0 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size, size))
    period = max(2 * (size - 1), 1)
    for row in range(size):
        index = np.abs(row + offsets) % period
        # add.at, not +=: where the filter is wider than the axis an index occurs several times.
        np.add.at(matrix[row], np.minimum(index, period - index), weights)
    return matrix


def map_matrices(
    grid: tuple[int, int], size: tuple[int, int], sigma: float, places: GridPlaces | None = None
) -> tuple[Float32Array, Float32Array]:
    """Return R [H, h] and Cᵀ [w, W], float32: the anomaly map is R @ patch_map @ Cᵀ.

    Args:
        grid: Rows h and columns w of the patch map.
        size: Height H and width W of the anomaly map, in pixels.
        sigma: Standard deviation of the Gaussian, in pixels of the anomaly map.
        places: Where the patches lie, in pixels of the anomaly map; None: the grid is centred on the image.
    """
    upsampled = [
        upsample_matrix(source, target) if places is None else _drawn_matrix(source, target, *places.axis(axis))
        for axis, (source, target) in enumerate(zip(grid, size, strict=True))
    ]
    # In float64, rounded once at the end: export and training have to get the same bits.
    rows, columns = (gaussian_matrix(side, sigma) @ matrix for side, matrix in zip(size, upsampled, strict=True))
    return rows.astype(np.float32), np.ascontiguousarray(columns.T, dtype=np.float32)


def _drawn_matrix(source: int, target: int, start: float, step: float) -> npt.NDArray[np.float64]:
    position = (np.arange(target, dtype=np.float64) - start) / step
    return interpolation_matrix(position, source)
