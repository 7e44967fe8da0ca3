"""LafitE in torch: maps and scores of a run, for the drawn check, previews, and as reference of the parity gate.

The editing shares no code with the runtime's, or the gate would compare a mistake with itself. The loop of the sampling
is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import LafiteHead
from flawscope.config import LafiteConfig
from flawscope.diffusion.schedule import reconstruct
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.training.detectors.lafite_network import FeatureDenoiser, JoinedFeatures
from flawscope.training.loop.network_scores import batches_of


def lafite_head(config: LafiteConfig, scale: float) -> LafiteHead:
    """Return the head of a bundle; `scale` is the mean score of sample images."""
    return LafiteHead(
        grid=config.grid,
        sampling=config.sampling if config.diffusion else None,
        neighbors=config.neighbors if config.editing else 0,
        temperature=config.temperature,
        mix=config.mix,
        score_window=config.score_window,
        sigma=config.maps.sigma,
        scale=scale,
    )


class LafiteDetector:
    """A fitted detector.

    Args:
        features: The features of images.
        head: How they are edited, denoised and scored; its scale has no part here.
        size: Height and width of the images.
        denoiser: Predicts noise; None without denoising.
        bank: Normal patches, float32 [M, C]; None without editing.
        noise: Noise of the sampling, float32 [K, C, h, w]; None without denoising.
    """

    def __init__(
        self,
        features: JoinedFeatures,
        head: LafiteHead,
        size: tuple[int, int],
        denoiser: FeatureDenoiser | None,
        bank: Float32Array | None,
        noise: Float32Array | None,
    ) -> None:
        self.features, self.head, self.size = features, head, size
        self.denoiser, self.bank, self.noise = denoiser, bank, noise

    def to(self, device: torch.device | str) -> LafiteDetector:
        """Move the networks to a device."""
        self.features.to(device)
        if self.denoiser is not None:
            self.denoiser.to(device)
        return self

    def scores(self, images: Sequence[UInt8Array], *, exact: bool = True) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N].

        Args:
            images: Prepared images, uint8 [H, W, 3].
            exact: Image by image, in float64 but for the networks; see `torch_scores`.
        """
        with torch.inference_mode():
            results = [self._scores(batch, exact) for batch in batches_of(images, exact)]
        maps, scores = (torch.cat(parts).float().cpu().numpy() for parts in zip(*results, strict=True))
        return maps, scores

    def _scores(self, images: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
        device = self.features.get_buffer("offset").device
        features = self.features(images.to(device))
        dtype = torch.float64 if exact else torch.float32
        changed = features.to(dtype) if self.bank is None else self._edited(features.to(dtype))
        sampling = self.head.sampling
        if sampling is not None:
            assert self.noise is not None, "a head with a sampling comes with its noise"
            start = changed.float().cpu().numpy()
            changed = torch.from_numpy(reconstruct(start, self.noise, sampling, self._denoise)).to(device, dtype)
        distances = torch.linalg.vector_norm(changed - features.to(dtype), dim=1)
        rows, columns = (
            torch.from_numpy(matrix).to(device, dtype)
            for matrix in map_matrices(self.head.grid, self.size, self.head.sigma)
        )
        maps = rows @ distances @ columns
        means = functional.avg_pool2d(maps[:, None], self.head.score_window, stride=1)
        return maps, means.amax(dim=(1, 2, 3))

    def _edited(self, features: Tensor) -> Tensor:
        """Return features [N, C, h, w] with the mean of the nearest bank rows in the place of each patch."""
        bank = torch.from_numpy(self.bank).to(features)
        count, channels, height, width = features.shape
        patches = features.permute(0, 2, 3, 1).reshape(-1, channels)
        is_exact = features.dtype == torch.float64
        mode = "donot_use_mm_for_euclid_dist" if is_exact else "use_mm_for_euclid_dist_if_necessary"
        distances = torch.cdist(patches, bank, compute_mode=mode).square()
        taken = min(self.head.neighbors, len(bank))
        nearest, rows = distances.topk(min(taken + 1, len(bank)), dim=1, largest=False)
        scaled = torch.exp(-nearest / (channels * self.head.temperature))
        weights = scaled[:, :taken] - (scaled[:, taken:] if len(bank) > taken else 0.0)
        weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, torch.ones_like(weights))
        weights = weights / weights.sum(dim=1, keepdim=True)
        edited = torch.einsum("pk,pkc->pc", weights, bank[rows[:, :taken]])
        edited = self.head.mix * edited + (1.0 - self.head.mix) * patches
        return edited.reshape(count, height, width, channels).permute(0, 3, 1, 2)

    def _denoise(self, x: Float32Array, timestep: int) -> Float32Array:
        denoiser = self.denoiser
        assert denoiser is not None, "a head with a sampling comes with its denoiser"
        device = next(denoiser.parameters()).device
        was_training = denoiser.training
        denoiser.eval()
        steps = torch.full((len(x),), timestep, dtype=torch.int64, device=device)
        noise: Float32Array = denoiser(torch.from_numpy(np.ascontiguousarray(x)).to(device), steps).cpu().numpy()
        denoiser.train(was_training)
        return noise
