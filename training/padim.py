"""Fitting PaDiM: one Gaussian per patch position, stored as mean and whitening matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flawscope.config import PadimConfig
from flawscope.errors import ArgumentError, DataError
from flawscope.training.backbone import Backbone
from flawscope.training.extraction import iterate_patches, measure_scale
from flawscope.training.features import PatchFeatures
from flawscope.training.fitted import Fitted
from flawscope.training.loading import Progress

_BLOCK = 256
"""Positions factorised at once; bounds the float64 work space."""


def fit_padim(config: PadimConfig, backbone: Backbone, paths: Sequence[Path], progress: Progress) -> Fitted:
    """Fit PaDiM (arXiv:2011.08785, section III) on good pictures.

    Mean and sample covariance of every position are accumulated in float64 around the first batch's mean, so the
    memory needed does not grow with the number of pictures. Stored is W with W·Wᵀ = (Σ + λI)⁻¹.

    Args:
        config: Settings.
        backbone: Frozen backbone on its device.
        paths: Good pictures, at least two.
        progress: Told what is being done.
    """
    if len(paths) < 2:
        raise DataError(f"padim: expected at least two good training pictures for a covariance, got {len(paths)}.")
    features = PatchFeatures(backbone, pool=False, upsample=config.upsample)
    grid, total = features.layout(config.preprocessing.size)
    if config.channels > total:
        raise ArgumentError(
            f"channels: expected at most the {total} channels of {config.backbone} stages {list(config.stages)}, "
            f"got {config.channels}."
        )
    positions, kept = grid[0] * grid[1], config.channels
    if positions * kept * kept >= 2**31:
        raise ArgumentError(
            f"padim: expected fewer than 2³¹ covariance entries, got {positions} positions × {kept}² channels. "
            "Lower channels or the image size."
        )
    choice = np.sort(np.random.default_rng(config.seed).choice(total, kept, replace=False))
    scale = measure_scale(PatchFeatures(backbone, pool=False, upsample=config.upsample, channels=choice), paths, config,
                          progress)
    features = PatchFeatures(backbone, pool=False, upsample=config.upsample, channels=choice, scale=scale)

    shift: torch.Tensor | None = None
    sums = torch.zeros((positions, kept), dtype=torch.float64)
    products = torch.zeros((positions, kept, kept), dtype=torch.float64)
    for patches in iterate_patches(features, paths, config, "reading patches", progress):
        at_position = patches.transpose(0, 1).cpu()
        if shift is None:
            shift = at_position.mean(dim=1)
        centred = at_position - shift[:, None]
        sums += centred.sum(dim=1)
        products += centred.transpose(1, 2) @ centred
    if shift is None:
        raise DataError("padim: no picture gave any patches.")
    count = len(paths)
    mean = sums / count
    whitening = torch.empty((positions, kept, kept), dtype=torch.float32)
    diagonal = config.regularization * torch.eye(kept, dtype=torch.float64)
    identity = torch.eye(kept, dtype=torch.float64)
    for start in range(0, positions, _BLOCK):
        block = slice(start, start + _BLOCK)
        outer = mean[block, :, None] * mean[block, None, :]
        covariance = (products[block] - count * outer) / (count - 1) + diagonal
        factor = torch.linalg.cholesky(covariance)
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        whitening[block] = inverse.transpose(1, 2).float()
        progress("inverting covariances", min(start + _BLOCK, positions), positions)
    return Fitted(
        grid=grid,
        tensors={"mean": (mean + shift).float().numpy(), "whitening": whitening.numpy()},
        scale=None if scale is None else scale.cpu().numpy(),
        channels=tuple(int(index) for index in choice),
        facts={"positions": positions, "channels": kept, "of_channels": total},
    )
