"""Upsampling and smoothing of anomaly maps."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.cpp_ext import native, reference
from flawscope.cpp_ext.checks import as_native, check_threads


def separable_maps(grids: Float32Array, rows: Float32Array, columns: Float32Array, *, threads: int = 0) -> Float32Array:
    """Return rows · grid · columns for every grid: bilinear upsampling and Gaussian smoothing in one step.

    This is a kernel because the threads of a BLAS keep spinning after a product and take the processor from the
    inference that runs next; see docs/kernels.md.

    Args:
        grids: float32 [N, h, w]; N may be 0.
        rows: float32 [H, h].
        columns: float32 [w, W].
        threads: 0 for all; each thread computes whole maps.

    Returns:
        float32 [N, H, W].

    Raises:
        ArgumentError: If shapes, dtypes or devices do not fit.
    """
    threads = check_threads(threads)
    if not native.HAVE_NATIVE:
        return reference.separable_maps(grids, rows, columns)
    grids, rows, columns = as_native(grids, "grids"), as_native(rows, "rows"), as_native(columns, "columns")
    # Arrays of the wrong rank get an empty output: the binding then raises the error that names the array.
    fits = (getattr(grids, "ndim", 0), getattr(rows, "ndim", 0), getattr(columns, "ndim", 0)) == (3, 2, 2)
    maps = np.empty((len(grids), rows.shape[0], columns.shape[1]) if fits else (0, 0, 0), np.float32)
    native.MODULE.separable_maps(grids, rows, columns, threads, maps)
    return maps
