"""Gaussians of patch positions, packed for Mahalanobis distances (PaDiM)."""

from __future__ import annotations

from typing import Any

import numpy as np

from flawscope.arrays import Float32Array, check_array
from flawscope.cpp_ext import native, reference
from flawscope.cpp_ext.checks import as_native, check_threads


class Gaussians:
    """Means and whitening matrices, packed once for many calls; zeros of triangular matrices are not stored.

    Args:
        mean: float32 [P, D].
        whitening: float32 [P, D, D]; W with W·Wᵀ = Σ⁻¹, for example a Cholesky factor of the precision.
        threads: Threads for packing, 0 for all.

    Attributes:
        shape: (P, D).
        nbytes: Bytes held; one call of `mahalanobis` reads them once, whatever the batch.

    Raises:
        ArgumentError: If shapes or dtypes do not fit, or a value is not finite.
    """

    def __init__(self, mean: Float32Array, whitening: Float32Array, *, threads: int = 0) -> None:
        check_threads(threads)
        if native.HAVE_NATIVE:
            self._packed: Any = native.MODULE.Gaussians(
                as_native(mean, "mean"), as_native(whitening, "whitening"), threads
            )
            self.shape: tuple[int, int] = (self._packed.positions, self._packed.channels)
            self.nbytes: int = self._packed.nbytes
            return
        self._packed = None
        check_array(mean, "mean", ("P", "D"), np.float32, finite=True)
        positions, channels = mean.shape
        check_array(whitening, "whitening", (positions, channels, channels), np.float32, finite=True)
        self.shape = (positions, channels)
        self.nbytes = mean.nbytes + whitening.nbytes
        # Not copied: the caller must not change them. The native kernels hold a packed copy.
        self._mean, self._whitening = mean, whitening

    def mahalanobis(self, features: Float32Array, *, threads: int = 0) -> Float32Array:
        """Return the squared Mahalanobis distance of every patch to the Gaussian of its position.

        Args:
            features: float32 [N, P, D]; N may be 0. A patch with a NaN or infinite component gets NaN.
            threads: 0 for all.

        Returns:
            float32 [N, P].

        Raises:
            ArgumentError: If shape, dtype or device does not fit.
        """
        check_threads(threads)
        if self._packed is None:
            return reference.mahalanobis(features, self._mean, self._whitening)
        features = as_native(features, "features")
        # For anything that is no array the output is empty: the binding raises the error that names `features`.
        squared = np.empty((len(features) if getattr(features, "ndim", 0) else 0, self.shape[0]), np.float32)
        self._packed.mahalanobis(features, threads, squared)
        return squared


def mahalanobis(
    features: Float32Array, mean: Float32Array, whitening: Float32Array, *, threads: int = 0
) -> Float32Array:
    """Return squared Mahalanobis distances: `Gaussians.mahalanobis` for Gaussians that are used once.

    Args:
        features: float32 [N, P, D].
        mean: float32 [P, D].
        whitening: float32 [P, D, D].
        threads: 0 for all.

    Returns:
        float32 [N, P].

    Raises:
        ArgumentError: If shapes, dtypes or devices do not fit, or mean or whitening is not finite.
    """
    return Gaussians(mean, whitening, threads=threads).mahalanobis(features, threads=threads)
