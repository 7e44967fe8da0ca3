"""Reconstruction detectors in NumPy: from an image to its reconstruction, and from their difference to map and score.

Training and the runtime run this same code; only the networks differ, torch modules or ONNX sessions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import msgspec
import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.diffusion.schedule import Sampling, reconstruct
from flawscope.errors import ArgumentError
from flawscope.imaging.map_upsampling import gaussian_matrix
from flawscope.ranges import Sigma

_POOL = 8


class MapRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the pixel and feature maps of a reconstruction become one anomaly map.

    Attributes:
        pixel_factor: Factor of the map of pixel differences.
        feature_factor: Factor of the map of feature differences.
        sigma: Standard deviation of the Gaussian over their sum, in pixels.
        pooling: Successive 8 x 8 mean filters on the map before its maximum is the score; each makes it 7 pixels
            smaller. The anomaly map itself is not pooled.
    """

    pixel_factor: float
    feature_factor: float
    sigma: Sigma
    pooling: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0


class Networks(Protocol):
    """The networks of a reconstruction, as functions on arrays."""

    def encode(self, images: UInt8Array) -> tuple[Float32Array, Mapping[str, Float32Array]]:
        """Return the input of the diffusion, float32 [N, C, h, w], and the conditions of the denoiser by name.

        Args:
            images: uint8 [N, H, W, 3].
        """

    def denoise(self, x: Float32Array, timestep: int, conditions: Mapping[str, Float32Array]) -> Float32Array:
        """Return the predicted noise in x, float32 [N, C, h, w]."""

    def decode(self, x: Float32Array) -> Float32Array:
        """Return reconstructed images, float32 [N, 3, H, W] in [-1, 1]."""

    def compare(self, images: UInt8Array, reconstructions: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return the differences of pixels and of features, each float32 [N, H, W]."""


@dataclass(frozen=True)
class Reconstructed:
    """Result of reconstructing a batch.

    Attributes:
        maps: Anomaly maps, float32 [N, H, W].
        scores: Float32 [N].
        reconstructions: Float32 [N, 3, H, W] in [-1, 1].
        unsampled: Decodes the images without any diffusion, of the same form: with latents, what the autoencoder alone
            loses. A function, because inspection does not need it.
        pixel: Differences of pixels, float32 [N, H, W].
        feature: Differences of features, float32 [N, H, W].
    """

    maps: Float32Array
    scores: Float32Array
    reconstructions: Float32Array
    unsampled: Callable[[], Float32Array]
    pixel: Float32Array
    feature: Float32Array


def score_reconstructions(
    images: UInt8Array, networks: Networks, sampling: Sampling, noise: Float32Array, rule: MapRule
) -> Reconstructed:
    """Reconstruct images and score them by their difference from the reconstruction.

    Args:
        images: uint8 [N, H, W, 3].
        networks: The networks.
        sampling: Noise levels, steps and conditioning.
        noise: Float32 [K, C, h, w]; see `flawscope.diffusion.schedule.reconstruct`.
        rule: How the differences become map and score.
    """
    # Conditions once per image, not per step: they do not depend on the timestep.
    clean, conditions = networks.encode(images)
    sampled = reconstruct(clean, noise, sampling, lambda x, timestep: networks.denoise(x, timestep, conditions))
    reconstructions = networks.decode(sampled)
    pixel, feature = networks.compare(images, reconstructions)
    maps, scores = finish_maps(pixel, feature, rule)
    return Reconstructed(maps, scores, reconstructions, lambda: networks.decode(clean), pixel, feature)


def signed(images: UInt8Array) -> Float32Array:
    """Return images uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [-1, 1]."""
    scaled = images.astype(np.float32) * np.float32(1.0 / 127.5) - np.float32(1.0)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def unsigned(images: Float32Array) -> UInt8Array:
    """Return images float32 [N, 3, H, W] in [-1, 1] as uint8 [N, H, W, 3], rounded."""
    # rint and not a cast: it would truncate, and darken every image by half a level.
    scaled = np.clip((images + 1.0) * 127.5, 0.0, 255.0)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8).transpose(0, 2, 3, 1))


def finish_maps(pixel: Float32Array, feature: Float32Array, rule: MapRule) -> tuple[Float32Array, Float32Array]:
    """Return anomaly maps float32 [N, H, W] and scores float32 [N].

    Args:
        pixel: Differences of pixels, float32 [N, H, W].
        feature: Differences of features, float32 [N, H, W].
        rule: Factors, smoothing and pooling.

    Raises:
        ArgumentError: If the maps are too small for the pooling.
    """
    height, width = pixel.shape[1:]
    rows, columns = _smoothing(height, rule.sigma), _smoothing(width, rule.sigma).T
    # Summed before smoothing: one Gaussian does for both, as it is linear.
    summed = pixel * np.float32(rule.pixel_factor) + feature * np.float32(rule.feature_factor)
    # Image by image: BLAS may sum in another order for another shape, and a score must not depend on its batch.
    maps = np.stack([rows @ image_map @ columns for image_map in summed])
    if rule.pooling == 0:
        return maps, maps.max(axis=(1, 2))
    least = rule.pooling * (_POOL - 1) + 1
    if min(height, width) < least:
        raise ArgumentError(
            f"pooling: expected maps of at least {least} pixels for {rule.pooling} filters, got "
            f"{height} x {width}. Lower pooling."
        )
    above, beside = _pooling(height, rule.pooling), _pooling(width, rule.pooling).T
    return maps, np.array([(above @ image_map @ beside).max() for image_map in maps], np.float32)


@functools.lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float) -> Float32Array:
    return gaussian_matrix(size, sigma).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _pooling(size: int, times: int) -> Float32Array:
    """Return `times` successive mean filters of 8 pixels as one matrix [size - 7·times, size]."""
    # float64 until the end, so that rounding does not add up over the filters.
    matrix = np.eye(size)
    for _ in range(times):
        remaining = len(matrix) - _POOL + 1
        matrix = np.mean([matrix[shift : remaining + shift] for shift in range(_POOL)], axis=0)
    return matrix.astype(np.float32)
