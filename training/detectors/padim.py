"""PaDiM: fits one Gaussian per patch position, stored as mean and whitening matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import PadimHead
from flawscope.config import Factors, PadimConfig, standardization
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.tiles import ImageSource
from flawscope.progress import Progress, no_progress
from flawscope.runs import RunRecord
from flawscope.training.detectors.torch_scores import padim_distances, torch_scores
from flawscope.training.features.alignment import measure_places
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.gathered_patches import own_images, shared_transform
from flawscope.training.features.patch_extraction import iterate_patches, measure_transform
from flawscope.training.features.patch_features import PatchFeatures, build_alignment, build_features
from flawscope.training.features.scaled_backbone import scaled_backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.ranks import Ranks
from flawscope.training.loop.shared_results import share_arrays, while_writer
from flawscope.training.trainer import FitRequest, Trainer

_BLOCK = 256
"""Positions factorised at once; bounds the float64 workspace."""
_IMAGES = 48
"""Images whose products are summed at once."""
MOST_ERROR = 0.01
"""Largest share of a distance by which factors rounded to float16 may move it."""


def fit_padim(
    config: PadimConfig,
    backbone: Backbone,
    paths: Sequence[ImageSource],
    progress: Progress,
    here: Ranks | None = None,
) -> FitResult:
    """Fit PaDiM (arXiv:2011.08785, section III) on normal images.

    Mean and sample covariance of every position are accumulated in float64 around the first batch's mean, so the
    memory needed does not grow with the number of images. Stored is W with W·Wᵀ = (Σ + λI)⁻¹, an upper triangle.
    In several processes each sums its batches, and rank 0 adds the sums of the processes in their order.

    Args:
        config: Settings.
        backbone: Frozen backbone on its device, of one scale.
        paths: Normal images, at least two.
        progress: Receives progress.
        here: This process among those that fit together; None: alone. All of them get the fit.

    Raises:
        ArgumentError: If channels or image size do not suit the backbone, or a covariance is singular.
        DataError: If there are fewer than two images, or one cannot be used.
    """
    if len(paths) < 2:
        raise DataError(f"padim: expected at least two normal training images for a covariance, got {len(paths)}.")
    here = here or Ranks()
    progress = progress if here.is_writer else no_progress
    upsample = config.patches.upsample
    backbone = scaled_backbone(backbone, config)
    measured = measure_places(backbone, config.preprocessing.size) if config.patches.align else None
    places = None if measured is None else measured.places
    alignment = build_alignment(config, backbone, places)
    features = PatchFeatures(backbone, pool=False, upsample=upsample, alignment=alignment)
    grid, total = features.layout(config.preprocessing.size)
    if config.channels > total:
        raise ArgumentError(
            f"channels: expected at most the {total} channels of {config.features.backbone} stages "
            f"{list(config.features.stages or ())}, got {config.channels}."
        )
    positions, channels = grid[0] * grid[1], config.channels
    # The same limit as `export/size_check.py`: TensorRT and others index a tensor's elements with 32 bits.
    if positions * channels * channels >= 2**31:
        raise ArgumentError(
            f"padim: expected fewer than 2³¹ covariance entries, got {positions} positions × {channels}² channels. "
            "Lower channels or the image size."
        )
    # Reduced first, measured then: the transform is that of the chosen channels. A projection comes after it, and both
    # are one matrix in the graph.
    choice, projection = _reduction(config, total)
    features = PatchFeatures(backbone, pool=False, upsample=upsample, channels=choice, alignment=alignment)
    transform = shared_transform(measure_transform(features, paths, config, progress), here)
    if projection is not None:
        transform = projection if transform is None else _as_matrix(transform) @ projection
    features = PatchFeatures(
        backbone, pool=False, upsample=upsample, channels=choice, transform=transform, alignment=alignment
    )

    own = own_images(paths, config.patches.batch_size, here)
    batches = iterate_patches(features, own, config, "reading patches", progress)
    gaussians = fit_gaussians(batches, positions, channels, config.regularization, progress, config.factors, here)
    facts: dict[str, int | float | str] = {"positions": positions, "channels": channels, "of_channels": total}
    facts |= {"factors": str(gaussians.whitening.dtype), "factor_error": float(f"{gaussians.error:.2g}")}
    facts |= here.facts()
    if measured is not None:
        facts["alignment"] = measured.note
    return FitResult(
        grid=grid,
        tensors={"mean": gaussians.mean, "whitening": gaussians.whitening},
        transform=None if transform is None else transform.cpu().numpy(),
        channels=choice,
        facts=facts,
        places=places,
    )


@dataclass(frozen=True)
class FittedGaussians:
    """The Gaussians of all positions.

    Attributes:
        mean: float32 [P, D].
        whitening: float32 or float16 [P, D, D], upper triangles.
        error: Largest share of a distance by which the rounding of `whitening` can move it; see `rounding_error`.
    """

    mean: Float32Array
    whitening: npt.NDArray[np.floating[Any]]
    error: float


def fit_gaussians(
    batches: Iterable[torch.Tensor],
    positions: int,
    channels: int,
    regularization: float,
    progress: Progress = no_progress,
    factors: Factors = "float32",
    here: Ranks | None = None,
) -> FittedGaussians:
    """Return mean and whitening matrix of every position.

    Args:
        batches: Patches of at least two images, float32 [N, P, D] each; in several processes, those of this one.
        positions: P.
        channels: D.
        regularization: Added to the diagonal of every covariance.
        progress: Receives progress.
        factors: Numbers of the whitening matrices. `auto` takes `float16` where `MOST_ERROR` holds for it.
        here: This process among those that fit together; None: alone. Every rank enters.

    Raises:
        ArgumentError: If a covariance is singular, or `float16` is asked for and moves distances by more than
            `MOST_ERROR`.
        DataError: If there are fewer than two images.
    """
    here = here or Ranks()
    moments = _Moments(positions, channels, here)
    for patches in batches:
        moments.add(patches)
    moments.gather()

    def invert(progress: Progress) -> FittedGaussians:
        mean, covariance = moments.finish()
        return _inverted(mean, covariance, moments.count, regularization, progress, factors)

    fitted = while_writer(here, invert, progress)
    if here.world == 1 and fitted is not None:
        return fitted
    arrays = {} if fitted is None else {"mean": fitted.mean, "whitening": fitted.whitening}
    shared = share_arrays(arrays, here)
    error = here.broadcast(None if fitted is None else fitted.error)
    return FittedGaussians(cast("Float32Array", shared["mean"]), cast("Any", shared["whitening"]), error)


def _inverted(
    mean: torch.Tensor,
    covariance: torch.Tensor,
    images: int,
    regularization: float,
    progress: Progress,
    factors: Factors,
) -> FittedGaussians:
    """Return the Gaussians of mean float64 [P, D] and covariance float64 [P, D, D]; see `fit_gaussians`."""
    positions, channels = mean.shape
    whitening = torch.empty((positions, channels, channels), dtype=torch.float32)
    identity = torch.eye(channels, dtype=torch.float64)
    errors = dict.fromkeys((torch.float32, torch.float16), 0.0)
    for start in range(0, positions, _BLOCK):
        block = slice(start, start + _BLOCK)
        # With Σ + λI = L·Lᵀ, W = L⁻ᵀ: the Mahalanobis distance is |Wᵀ(x − μ)|, one product at run time. float64, since
        # with fewer images than channels Σ is singular and only λ keeps the factor finite.
        factor, failed = torch.linalg.cholesky_ex(covariance[block] + regularization * identity)
        if bool(failed.any()):
            raise ArgumentError(
                f"regularization: expected enough to make every covariance of {images} images invertible, "
                f"got {regularization}. Raise it (0.01 is usual), or lower channels."
            )
        inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
        whitening[block] = inverse.transpose(1, 2).float()
        for dtype in errors:
            errors[dtype] = max(errors[dtype], rounding_error(factor, whitening[block].to(dtype)))
        progress("inverting covariances", min(start + _BLOCK, positions), positions)
    dtype = torch.float32 if factors == "float32" or errors[torch.float16] > MOST_ERROR else torch.float16
    if factors == "float16" and dtype != torch.float16:
        raise ArgumentError(
            f"factors: expected float16 to move distances by at most {MOST_ERROR:.0%}, got up to "
            f"{errors[torch.float16]:.2%} of these covariances. Take float32, or raise regularization."
        )
    return FittedGaussians(mean.float().numpy(), whitening.to(dtype).numpy(), errors[dtype])


def rounding_error(factor: torch.Tensor, rounded: torch.Tensor) -> float:
    """Return e with |d′ − d| ≤ e·d for the distance d of any patch, and d′ the one by rounded factors.

    With z = x − μ, d = ‖z·W‖ and d′ = ‖z·V‖, d′ − d is at most ‖z·(V − W)‖ = ‖z·W·W⁻¹·(V − W)‖ ≤ d·‖W⁻¹·V − 1‖₂, and
    this norm is at most the Frobenius norm, which is returned. A map is a mean of distances with weights of at least
    0, and a score its maximum: they are off by no larger share.

    Args:
        factor: float64 [B, D, D], L with L·Lᵀ = Σ + λI, so that Lᵀ = W⁻¹.
        rounded: [B, D, D], V. Infinite numbers give infinity.
    """
    deviation = factor.transpose(1, 2) @ rounded.double()
    deviation.diagonal(dim1=1, dim2=2).sub_(1.0)
    error = float(torch.linalg.matrix_norm(deviation).max())
    return error if math.isfinite(error) else math.inf


def _reduction(config: PadimConfig, total: int) -> tuple[tuple[int, ...] | None, torch.Tensor | None]:
    """Return the sampled channels, or the orthogonal projection float32 [total, channels], as the config asks."""
    generator = np.random.default_rng(config.seed)
    if config.reduction == "sample":
        indices = generator.choice(total, config.channels, replace=False)
        # Sorted: PatchFeatures picks them stage by stage, so only in ascending order is its output in this order.
        return tuple(sorted(int(index) for index in indices)), None
    # Q of a Gaussian matrix: a random orthonormal basis.
    directions, _ = np.linalg.qr(generator.standard_normal((total, config.channels)))
    return None, torch.from_numpy(directions.astype(np.float32))


def _as_matrix(transform: torch.Tensor) -> torch.Tensor:
    """Return a transform, which may be one factor per channel, as a matrix."""
    return torch.diag(transform) if transform.ndim == 1 else transform


class _Moments:
    """Mean and covariance of every position, streamed: sums in float64 around the first images' mean.

    Products are taken over several images at once, since one pass over the sums costs more than a product.

    Args:
        positions: P.
        channels: D.
        here: This process; others have sums of their own, around the same mean, until `gather`.
    """

    def __init__(self, positions: int, channels: int, here: Ranks) -> None:
        self._sums = torch.zeros((positions, channels), dtype=torch.float64)
        self._products = torch.zeros((positions, channels, channels), dtype=torch.float64)
        self._shift: torch.Tensor | None = None
        self._waiting: list[torch.Tensor] = []
        self._here = here
        self.count = 0

    def add(self, patches: torch.Tensor) -> None:
        """Add the patches of a batch, float32 [N, P, D]."""
        self._waiting.append(patches.cpu())
        if sum(len(batch) for batch in self._waiting) >= _IMAGES:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        at_position = torch.cat(self._waiting).transpose(0, 1)
        self._waiting.clear()
        # Without the shift a large mean would cancel in Σx² − n·mean²; the first images' mean is near enough. Which
        # images these are depends on `_IMAGES`, which therefore changes the last bits.
        if self._shift is None:
            self._shift = self._shared_shift(at_position.mean(dim=1, keepdim=True))
        for start in range(0, len(at_position), _BLOCK):
            block = slice(start, start + _BLOCK)
            # In float64 before the product: how images are spread over processes then changes the last bits of float64.
            centred = at_position[block].double() - self._shift[block]
            self._sums[block] += centred.sum(dim=1)
            self._products[block] += centred.transpose(1, 2) @ centred
        self.count += at_position.shape[1]

    def _shared_shift(self, own: torch.Tensor) -> torch.Tensor:
        """Return rank 0's shift. Every rank enters, once: with its first images, or in `gather` if it has none."""
        return self._here.broadcast_tensor(own.clone()) if self._here.world > 1 else own

    def gather(self) -> None:
        """Add the sums of all processes on rank 0, in the order of the processes. Every rank enters."""
        self._flush()
        here = self._here
        if here.world == 1:
            return
        if self._shift is None:  # no batch was this process's
            self._shift = self._shared_shift(torch.zeros((len(self._sums), 1, self._sums.shape[1])))
        self.count = int(here.sum(self.count))
        # In blocks: rank 0 holds as many of each as there are processes. `Ranks.sum` promises no order of adding.
        for start in range(0, len(self._sums), _BLOCK):
            block = slice(start, start + _BLOCK)
            for sums in (self._sums, self._products):
                gathered = here.gather_rows(sums[block][None].numpy(), np.array([here.rank]))
                if gathered is not None:
                    total = gathered[0]
                    for values in gathered[1:]:
                        total += values
                    sums[block] = torch.from_numpy(total)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean float64 [P, D] and sample covariance float64 [P, D, D], which reuses the memory of the sums."""
        if self._shift is None or self.count < 2:
            raise DataError(f"padim: expected at least two normal training images, got {self.count}.")
        mean = self._sums / self.count
        # In blocks and in place: a second array of this size may not fit in memory.
        for start in range(0, len(mean), _BLOCK):
            block = slice(start, start + _BLOCK)
            self._products[block] -= self.count * mean[block, :, None] * mean[block, None, :]
        self._products /= self.count - 1
        return mean + self._shift[:, 0], self._products


def padim_head(config: PadimConfig, grid: tuple[int, int], places: GridPlaces | None) -> PadimHead:
    """Return the head of a bundle; `grid` has the rows and columns of patches, `places` says where they lie."""
    return PadimHead(grid, config.maps.sigma, places)


class PadimTrainer(Trainer):
    """Fits and restores PaDiM."""

    takes_processes = True

    def fit(self, request: FitRequest) -> FitResult:
        """Estimate the Gaussians; see `fit_padim`."""
        return fit_padim(request.config, request.backbone, request.images, request.progress, request.here)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> PatchFeatures:
        """Return the feature module."""
        return build_features(cast("PadimConfig", record.config), backbone, fit_result)

    def scores(
        self, config: PadimConfig, module: PatchFeatures, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores in float32; see `Trainer.scores`."""
        head, size = padim_head(config, fit_result.grid, fit_result.finest_places), config.preprocessing.size
        return torch_scores(module, head, fit_result.tensors, size, images, padim_distances, exact=False)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the tensors of the Gaussians."""
        return frozenset({"mean", "whitening"})

    def needs_transform(self, config: PadimConfig) -> bool:
        """Return whether channels are standardized, or projected."""
        return config.reduction == "ortho" or standardization(config) != "none"


TRAINER = PadimTrainer()
