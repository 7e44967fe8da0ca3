"""Fitting PaDiM: one Gaussian per patch position, stored as mean and whitening matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from flawscope.config import PadimConfig
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.patch_extraction import iterate_patches, measure_transform, standardization
from flawscope.training.features.patch_features import PatchFeatures, build_features
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.trainer import FitRequest, Trainer

_BLOCK = 256
"""Positions factorised at once; bounds the float64 work space."""
_IMAGES = 48
"""Images whose products are summed at once."""


def fit_padim(config: PadimConfig, backbone: Backbone, paths: Sequence[ImageSource], progress: Progress) -> FitResult:
    """Fit PaDiM (arXiv:2011.08785, section III) on normal images.

    Mean and sample covariance of every position are accumulated in float64 around the first batch's mean, so the
    memory needed does not grow with the number of images. Stored is W with W·Wᵀ = (Σ + λI)⁻¹.

    Args:
        config: Settings.
        backbone: Frozen backbone on its device.
        paths: Normal images, at least two.
        progress: Told what is being done.

    Raises:
        ArgumentError: If channels, image size or regularization do not fit the backbone or the images.
        DataError: If there are fewer than two images, or one cannot be used.
    """
    if len(paths) < 2:
        raise DataError(f"padim: expected at least two normal training images for a covariance, got {len(paths)}.")
    upsample = config.patches.upsample
    features = PatchFeatures(backbone, pool=False, upsample=upsample)
    grid, total = features.layout(config.preprocessing.size)
    if config.channels > total:
        raise ArgumentError(
            f"channels: expected at most the {total} channels of {config.features.backbone} stages "
            f"{list(config.features.stages)}, got {config.channels}."
        )
    positions, kept = grid[0] * grid[1], config.channels
    if positions * kept * kept >= 2**31:
        raise ArgumentError(
            f"padim: expected fewer than 2³¹ covariance entries, got {positions} positions × {kept}² channels. "
            "Lower channels or the image size."
        )
    choice, projection = _reduction(config, total)
    transform = measure_transform(
        PatchFeatures(backbone, pool=False, upsample=upsample, channels=choice), paths, config, progress
    )
    if projection is not None:
        transform = projection if transform is None else _matrix(transform) @ projection
    features = PatchFeatures(backbone, pool=False, upsample=upsample, channels=choice, transform=transform)

    moments = _Moments(positions, kept)
    for patches in iterate_patches(features, paths, config, "reading patches", progress):
        moments.add(patches)
    mean, covariance = moments.finish()
    whitening = torch.empty((positions, kept, kept), dtype=torch.float32)
    identity = torch.eye(kept, dtype=torch.float64)
    for start in range(0, positions, _BLOCK):
        block = slice(start, start + _BLOCK)
        factor, failed = torch.linalg.cholesky_ex(covariance[block] + config.regularization * identity)
        if bool(failed.any()):
            raise ArgumentError(
                f"regularization: expected enough to make every covariance of {len(paths)} images invertible, "
                f"got {config.regularization}. Raise it (0.01 is usual), or lower channels."
            )
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        whitening[block] = inverse.transpose(1, 2).float()
        progress("inverting covariances", min(start + _BLOCK, positions), positions)
    return FitResult(
        grid=grid,
        tensors={"mean": mean.float().numpy(), "whitening": whitening.numpy()},
        transform=None if transform is None else transform.cpu().numpy(),
        channels=choice,
        facts={"positions": positions, "channels": kept, "of_channels": total},
    )


def _reduction(config: PadimConfig, total: int) -> tuple[tuple[int, ...] | None, torch.Tensor | None]:
    """Return the kept channels, or the projection float32 [total, kept], as the config asks."""
    generator = np.random.default_rng(config.seed)
    if config.reduction == "sample":
        drawn = generator.choice(total, config.channels, replace=False)
        return tuple(sorted(int(index) for index in drawn)), None
    directions, _ = np.linalg.qr(generator.standard_normal((total, config.channels)))
    return None, torch.from_numpy(directions.astype(np.float32))


def _matrix(transform: torch.Tensor) -> torch.Tensor:
    """Return a transform as a matrix, also where it is a factor per channel."""
    return torch.diag(transform) if transform.ndim == 1 else transform


class _Moments:
    """Mean and covariance of every position, streamed: sums in float64 around the first images' mean.

    Products are taken over several images at once: one pass over the sums costs more than the product itself.
    """

    def __init__(self, positions: int, channels: int) -> None:
        self._sums = torch.zeros((positions, channels), dtype=torch.float64)
        self._products = torch.zeros((positions, channels, channels), dtype=torch.float64)
        self._shift: torch.Tensor | None = None
        self._waiting: list[torch.Tensor] = []
        self._count = 0

    def add(self, patches: torch.Tensor) -> None:
        """Take in float32 [N, P, D]."""
        self._waiting.append(patches.cpu())
        if sum(len(batch) for batch in self._waiting) >= _IMAGES:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        at_position = torch.cat(self._waiting).transpose(0, 1)
        self._waiting.clear()
        if self._shift is None:
            self._shift = at_position.mean(dim=1, keepdim=True)
        centred = at_position - self._shift
        self._sums += centred.sum(dim=1)
        self._products += centred.transpose(1, 2) @ centred
        self._count += at_position.shape[1]

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean float64 [P, D] and sample covariance float64 [P, D, D], which takes over the sums' memory."""
        self._flush()
        if self._shift is None or self._count < 2:
            raise DataError(f"padim: expected at least two normal training images, got {self._count}.")
        mean = self._sums / self._count
        for start in range(0, len(mean), _BLOCK):
            block = slice(start, start + _BLOCK)
            self._products[block] -= self._count * mean[block, :, None] * mean[block, None, :]
        self._products /= self._count - 1
        return mean + self._shift[:, 0], self._products


class PadimTrainer(Trainer):
    """Fits and restores PaDiM."""

    def fit(self, request: FitRequest) -> FitResult:
        """Estimate the Gaussians; see `fit_padim`."""
        return fit_padim(request.config, request.backbone, request.images, request.progress)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fitted: FitResult) -> PatchFeatures:
        """Return the feature module."""
        return build_features(cast("PadimConfig", record.config), backbone, fitted)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the Gaussians."""
        return frozenset({"mean", "whitening"})

    def needs_transform(self, config: PadimConfig) -> bool:
        """Return whether channels are standardized, or projected."""
        return config.reduction == "ortho" or standardization(config) != "none"


TRAINER = PadimTrainer()
