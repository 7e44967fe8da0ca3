"""Gaussians of patch positions, packed for Mahalanobis distances (PaDiM)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, UInt8Array, check_array
from flawscope.cpp_ext import native, reference
from flawscope.cpp_ext.checks import as_native, check_block, check_native, check_threads
from flawscope.triangles import triangle_size, unpack_triangles


class Gaussians:
    """Means and whitening matrices, packed once for many calls; zeros of triangular matrices are not stored.

    Of `of_triangles` they may be float16: half the bytes to hold and to read.

    Args:
        mean: float32 [P, D].
        whitening: float32 [P, D, D]; W with W·Wᵀ = Σ⁻¹, for example a Cholesky factor of the precision.
        threads: Threads for packing, 0 for all.

    Attributes:
        shape: (P, D).
        nbytes: Bytes held, or read of a block; one call of `mahalanobis` reads them once, whatever the batch.

    Raises:
        ArgumentError: If shapes or dtypes do not fit, or a value is not finite.
    """

    shape: tuple[int, int]
    nbytes: int
    _packed: Any

    def __init__(self, mean: Float32Array, whitening: Float32Array, *, threads: int = 0) -> None:
        threads = check_threads(threads)
        if native.HAVE_NATIVE:
            self._take(native.MODULE.Gaussians(as_native(mean, "mean"), as_native(whitening, "whitening"), threads))
            return
        self._packed = None
        check_array(mean, "mean", ("P", "D"), np.float32, finite=True)
        positions, channels = mean.shape
        check_array(whitening, "whitening", (positions, channels, channels), np.float32, finite=True)
        self.shape = (positions, channels)
        self.nbytes = mean.nbytes + whitening.nbytes
        # Not copied: the caller must not change them. The native kernels hold a packed copy.
        self._mean, self._whitening = mean, whitening

    @classmethod
    def of_triangles(cls, mean: Float32Array, triangles: npt.NDArray[Any], *, threads: int = 0) -> Gaussians:
        """Return Gaussians of upper triangles; sums are float32, whatever the type of the factors.

        Args:
            mean: float32 [P, D].
            triangles: float32 or float16 [P, D·(D + 1)/2], row after row from the diagonal on, as
                `flawscope.triangles.pack_triangles` has them.
            threads: Threads for packing, 0 for all.

        Raises:
            ArgumentError: As for the class.
        """
        threads = check_threads(threads)
        self = cls.__new__(cls)
        if native.HAVE_NATIVE:
            self._take(
                native.MODULE.Gaussians.of_triangles(
                    as_native(mean, "mean"), as_native(triangles, "triangles"), threads
                )
            )
            return self
        self._packed = None
        check_array(mean, "mean", ("P", "D"), np.float32, finite=True)
        positions, channels = mean.shape
        dtype = np.float16 if isinstance(triangles, np.ndarray) and triangles.dtype == np.float16 else np.float32
        check_array(triangles, "triangles", (positions, triangle_size(channels)), dtype, finite=True)
        self.shape = (positions, channels)
        self._mean, self._whitening = mean, unpack_triangles(triangles, channels)
        self.nbytes = mean.nbytes + self._whitening.nbytes
        return self

    @staticmethod
    def block_of(mean: Float32Array, triangles: npt.NDArray[Any], *, threads: int = 0) -> UInt8Array:
        """Return Gaussians of upper triangles packed as one block, uint8 [N], that `from_block` takes.

        They are packed into the block at once, in no memory beside it. Equal ones give equal blocks. A block holds for
        the version of the kernels, the SIMD level and the byte order of this process alone: it is shared between
        processes that run now, and kept for no later ones.

        Args:
            mean: float32 [P, D].
            triangles: float32 or float16 [P, D·(D + 1)/2]; see `of_triangles`.
            threads: Threads for packing, 0 for all.

        Raises:
            ArgumentError: As for the class, or there are no native kernels.
        """
        threads = check_threads(threads)
        check_native()
        mean, triangles = as_native(mean, "mean"), as_native(triangles, "triangles")
        block = np.empty(native.MODULE.Gaussians.block_bytes(mean, triangles), np.uint8)
        native.MODULE.Gaussians.write_block(mean, triangles, threads, block)
        return block

    @classmethod
    def from_block(
        cls, block: UInt8Array, mean: Float32Array, triangles: npt.NDArray[Any], *, threads: int = 0
    ) -> Gaussians:
        """Return the Gaussians that lie in a block of `block_of`, which is used where it lies: nothing is copied.

        All of the block is compared with `mean` and `triangles`: it is to the last bit what these give, or refused.
        Where it is a read-only map of a file, processes that map it have one table in common.

        Args:
            block: uint8 [N], at a multiple of 64 bytes in memory. It is kept alive and must not be changed afterwards,
                nor the file be cut off.
            mean: float32 [P, D]; not kept.
            triangles: float32 or float16 [P, D·(D + 1)/2]; not kept.
            threads: Threads for the comparison, 0 for all.

        Raises:
            ArgumentError: If the block is another one, of another version of the kernels or another SIMD level, or
                there are no native kernels; else as for the class.
        """
        threads = check_threads(threads)
        check_block(block)
        self = cls.__new__(cls)
        self._take(
            native.MODULE.Gaussians.of_block(block, as_native(mean, "mean"), as_native(triangles, "triangles"), threads)
        )
        return self

    def _take(self, packed: Any) -> None:
        self._packed = packed
        self.shape = (packed.positions, packed.channels)
        self.nbytes = packed.nbytes

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
        threads = check_threads(threads)
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
