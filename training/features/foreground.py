"""The foreground of normal images: a direction of the features and a threshold that part part and background.

The direction is the first principal component of all patches of normal images, as AnomalyDINO (arXiv:2405.14529) takes
it of each image; here it is fixed, so that it can be exported. The threshold is Otsu's (1979). Which side is the part
follows from where it lies: the border of the images shows background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flawscope.arrays import BoolArray, Float32Array, Float64Array
from flawscope.config import FittedConfig
from flawscope.errors import DataError
from flawscope.imaging.patch_foreground import foreground_weights
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.training.features.patch_extraction import iterate_patches, measure_covariance, sample_of, to_numpy
from flawscope.training.features.patch_features import PatchFeatures

SEPARATION = 0.75
"""Least share of the variance that lies between the two sides. A uniform distribution, which has no two groups, has
exactly so much where it is cut in half, a Gaussian 0.64."""

LEAST_IN_CENTRE = 0.35
"""Least share of the part in the centre of the images, without a fifth on every side; AnomalyDINO's figures."""

MOST_AT_BORDER = 0.5
"""Largest share of the part in the outermost patches."""

_RAMP = 0.1  # half the ramp's width, as a share of the distance between the means of the two sides


@dataclass(frozen=True)
class Split:
    """A threshold that cuts values in two.

    Attributes:
        threshold: Values above it are on the upper side.
        low: Mean of the lower side.
        high: Mean of the upper side.
        separation: Share of the variance that lies between the sides, 0 to 1.
    """

    threshold: float
    low: float
    high: float
    separation: float


@dataclass(frozen=True)
class Foreground:
    """What parts part and background; see `flawscope.imaging.patch_foreground`.

    Attributes:
        direction: float32 [D, 1].
        limits: Offset and least mean weight, float32 [2].
    """

    direction: Float32Array
    limits: Float32Array

    def shown(self, patches: Float32Array, grid: tuple[int, int]) -> BoolArray:
        """Return which patches of one image, float32 [P, D], show the part, bool [P]."""
        is_shown: BoolArray = foreground_weights(patches[None], self.direction, self.limits, grid)[0] > 0
        return is_shown


def measure_foreground(
    features: PatchFeatures,
    grid: tuple[int, int],
    paths: Sequence[ImageSource],
    config: FittedConfig,
    progress: Progress,
) -> Foreground:
    """Find the foreground on normal images as they are.

    Args:
        features: Gives the patches as the bank has them.
        grid: Rows and columns of the patch grid.
        paths: Normal images.
        config: Settings.
        progress: Receives progress.

    Raises:
        DataError: If the patches fall into no two groups of which one lies in the middle.
    """
    stage = "looking for the foreground"
    _, mean, covariance = measure_covariance(features, paths, config, stage, progress)
    # The last is the largest.
    axis = torch.linalg.eigh(covariance).eigenvectors[:, -1].numpy()
    batches = iterate_patches(features, sample_of(paths), config, stage, progress)
    projected = np.concatenate([(to_numpy(batch).astype(np.float64) - mean.numpy()) @ axis for batch in batches])
    sign, split = orient(projected.reshape(-1, *grid))
    axis = sign * axis
    half = _RAMP * (split.high - split.low)
    direction = (axis / (2 * half)).astype(np.float32)[:, None]
    offset = (half - split.threshold - float(mean.numpy() @ axis)) / (2 * half)
    found = Foreground(direction, np.array([offset, 0], np.float32))
    shares = [
        float(foreground_weights(to_numpy(batch), direction, found.limits, grid).mean(axis=1).min())
        for batch in iterate_patches(features, sample_of(paths), config, stage, progress)
    ]
    # Half of what any normal image shows.
    return Foreground(direction, np.array([offset, min(shares) / 2], np.float32))


def orient(projected: Float64Array) -> tuple[int, Split]:
    """Return the sign that makes the part's projections the larger ones, and how they are cut.

    Args:
        projected: Patches along the first principal component, float64 [N, h, w].

    Raises:
        DataError: If they fall into no two groups of which one lies in the middle.
    """
    height, width = projected.shape[1:]
    inner = projected[:, height // 5 : height - height // 5, width // 5 : width - width // 5]
    ring = np.ones((height, width), bool)
    ring[1:-1, 1:-1] = False
    sign = 1 if float(inner.mean()) >= float(projected[:, ring].mean()) else -1
    split = otsu(sign * projected.ravel())
    centre = float((sign * inner > split.threshold).mean())
    border = float((sign * projected[:, ring] > split.threshold).mean())
    if split.separation < SEPARATION or centre < LEAST_IN_CENTRE or border > MOST_AT_BORDER:
        raise DataError(
            f"foreground: expected patches in two groups, the part in the middle and background at the border, got "
            f"{split.separation:.2f} of the variance between them ({SEPARATION} at least), the part in {centre:.0%} of "
            f"the middle ({LEAST_IN_CENTRE:.0%} at least) and {border:.0%} of the border ({MOST_AT_BORDER:.0%} at "
            "most). Set foreground=false."
        )
    return sign, split


def otsu(values: Float64Array) -> Split:
    """Return the cut of values, float64 [N], that leaves the least variance within its sides (Otsu, 1979)."""
    ordered = np.sort(values)
    count = len(ordered)
    total, variance = float(ordered.mean()), float(ordered.var())
    if count < 2 or variance <= 0:
        return Split(total, total, total, 0.0)
    below = np.arange(1, count)
    sums = ordered.cumsum()[:-1]
    low, high = sums / below, (ordered.sum() - sums) / (count - below)
    between = below * (count - below) / count**2 * (high - low) ** 2
    best = int(between.argmax())
    # Between two values, so that neither lies on it.
    threshold = (ordered[best] + ordered[best + 1]) / 2
    return Split(float(threshold), float(low[best]), float(high[best]), float(between[best] / variance))
