"""Fine-tuning of DDAD's feature extractor: by reconstruction, or by DDAD's domain adaptation."""

from __future__ import annotations

from pathlib import Path

import cv2
import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.arrays import Float32Array
from flawscope.config import DdadConfig, change_settings
from flawscope.diffusion.reconstruction import signed
from flawscope.diffusion.schedule import reconstruct
from flawscope.imaging.png import write_png
from flawscope.progress import Progress
from flawscope.training.diffusion.comparison import pair_features
from flawscope.training.diffusion.noise import sampling_noise
from flawscope.training.diffusion.torch_reconstruction import TorchNetworks
from flawscope.training.features.backbone import Backbone, untrained_backbone
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import Trained, run_loop

FOLDER = "extractor"
"""Folder of this part of a training below that of the whole."""
_MOST_VALIDATED = 16
_PREVIEWS = 4


def train_extractor(
    config: DdadConfig,
    backbone: Backbone,
    networks: TorchNetworks,
    images: ImageReader,
    validation: ImageReader,
    folder: Path,
    resume: bool,
    progress: Progress,
) -> Trained:
    """Let a backbone learn normal images as `config.extractor` says; it has the best state afterwards.

    Args:
        config: Settings.
        backbone: Is changed.
        networks: With the trained denoiser.
        images: Normal images to learn from.
        validation: Normal images that choose the best epoch.
        folder: Where the training is; this part has a folder of its own in it.
        resume: Go on from the newest checkpoint there.
        progress: Told what is being done.
    """
    kind = AdaptationTask if config.extractor == "adaptation" else RebuildTask
    task = kind(config, backbone, networks, validation)
    part = change_settings(
        config,
        {
            "epochs": config.extractor_epochs,
            "learning_rate": config.extractor_rate,
            "schedule": "constant",
            "warmup_steps": 0,
            "ema": 0.0,
            "preview_every": max(1, config.extractor_epochs // 3),
        },
    )
    trained = run_loop(
        task,
        images,
        part,
        folder / FOLDER,
        resume=resume,
        progress=lambda what, done, total: progress(f"{what} the extractor", done, total),
    )
    task.network.load_state_dict(trained.state)
    backbone.eval().requires_grad_(False)
    return trained


class _ExtractorTask:
    """What both trainings share: reconstructions without gradients, the optimizer, previews of features."""

    network: nn.Module

    def __init__(
        self, config: DdadConfig, backbone: Backbone, networks: TorchNetworks, validation: ImageReader
    ) -> None:
        self._config, self._backbone, self._networks, self._validation = config, backbone, networks, validation
        self._noise = sampling_noise(config.sampling, (3, *config.preprocessing.size))
        backbone.requires_grad_(True)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(
            self.network.parameters(), lr=self._config.extractor_rate, betas=self._config.denoising.betas
        )

    def _reconstructed(self, aimed: Float32Array, hidden: Float32Array | None, weight: float | None) -> Tensor:
        sampling = self._config.sampling
        if weight is not None:
            sampling = msgspec.structs.replace(sampling, conditioning="ddad", weight=weight)
        networks = self._networks.to(next(self.network.parameters()).device)
        found = reconstruct(aimed, self._noise, sampling, lambda x, t: networks.denoise(x, t, {}), hidden)
        return torch.from_numpy(np.clip(found, -1.0, 1.0)).to(next(self.network.parameters()).device)

    def _validation_images(self) -> Tensor:
        count = min(len(self._validation), _MOST_VALIDATED)
        images = next(self._validation.batches(range(count), count))
        return torch.from_numpy(images).to(next(self.network.parameters()).device)

    def preview(self, path: Path) -> None:
        """Write held-back normal images beside how strongly the finest stage responds to them."""
        images = self._validation_images()[:_PREVIEWS]
        self._backbone.eval()
        with torch.inference_mode():
            strength = self._backbone(images)[0].norm(dim=1).cpu().numpy()
        rows = []
        for image, one in zip(images.cpu().numpy(), strength, strict=True):
            grey = (255 * (one - one.min()) / max(float(np.ptp(one)), 1e-12)).astype(np.uint8)
            larger = cv2.resize(grey, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)
            rows.append(np.hstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR), cv2.cvtColor(larger, cv2.COLOR_GRAY2BGR)]))
        write_png(path, np.vstack(rows), is_bgr=True)


class RebuildTask(_ExtractorTask):
    """The backbone as the encoder of an autoencoder; only it is kept.

    The target is the image, or with `extractor=diffusion` its reconstruction, as the backbone sees it: normalised.
    The decoder doubles the sides with transposed convolutions, 3 x 3, stride 2, half the channels each time.
    """

    def __init__(
        self, config: DdadConfig, backbone: Backbone, networks: TorchNetworks, validation: ImageReader
    ) -> None:
        super().__init__(config, backbone, networks, validation)
        height, width = config.preprocessing.size
        with torch.inference_mode():
            coarsest = backbone(torch.zeros((1, height, width, 3), dtype=torch.uint8, device=networks.device))[-1]
        channels, halvings = coarsest.shape[1], round(np.log2(height / coarsest.shape[-2]))
        torch.manual_seed(config.seed)
        layers: list[nn.Module] = []
        for number in range(halvings):
            fewer = 3 if number == halvings - 1 else max(channels // 2, 3)
            layers += [
                nn.ConvTranspose2d(channels, fewer, 3, stride=2, padding=1, output_padding=1),
                nn.ReLU(),
            ]
            channels = fewer
        layers.append(nn.Conv2d(channels, 3, 3, padding=1))
        self.network: nn.Module = nn.ModuleDict({"encoder": backbone.network, "decoder": nn.Sequential(*layers)})

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the rebuilt, normalised image."""
        return self._error(images)

    def _error(self, images: Tensor) -> Tensor:
        self._backbone.to(images.device)
        target = images.to(torch.float32)
        if self._config.extractor == "diffusion":
            rebuilt = self._reconstructed(signed(images.cpu().numpy()), None, None)
            target = (rebuilt.permute(0, 2, 3, 1) + 1.0) * 127.5
        scale, offset = self._backbone.get_buffer("scale"), self._backbone.get_buffer("offset")
        assert isinstance(self.network, nn.ModuleDict)
        made = self.network["decoder"](self._backbone(images)[-1])
        target = (target * scale + offset).permute(0, 3, 1, 2)
        if made.shape != target.shape:  # a side that is no multiple of the coarsest stage's stride
            made = functional.interpolate(made, size=target.shape[-2:], mode="bilinear")
        return functional.mse_loss(made, target)

    def validate(self) -> dict[str, float]:
        """Return the error on images that were held back."""
        with torch.inference_mode():
            return {"error": float(self._error(self._validation_images()))}


class AdaptationTask(_ExtractorTask):
    """DDAD's domain adaptation (arXiv:2305.15956).

    For two normal images x and y, x is reconstructed towards y; features of that and of y shall agree, and both stay
    near what the backbone gave before. Statistics of batch normalisation stay as they are.
    """

    def __init__(
        self, config: DdadConfig, backbone: Backbone, networks: TorchNetworks, validation: ImageReader
    ) -> None:
        super().__init__(config, backbone, networks, validation)
        self._before = untrained_backbone(config.features)
        self._before.load_state_dict(backbone.state_dict())
        self.network: nn.Module = backbone.network

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sum of the three terms over the stages, averaged over the batch."""
        network.eval()
        return self._error(images)

    def _error(self, images: Tensor) -> Tensor:
        self._before.to(images.device)
        self._backbone.to(images.device)
        other = torch.roll(images, 1, dims=0)
        reconstructed = self._reconstructed(
            signed(images.cpu().numpy()), signed(other.cpu().numpy()), self._config.extractor_guidance
        )
        with torch.no_grad():
            before = pair_features(self._before, images, reconstructed)
        total = torch.zeros((), device=images.device)
        pairs = zip(pair_features(self._backbone, images, reconstructed), before, strict=True)
        for (good, rebuilt), (good_before, rebuilt_before) in pairs:
            kept = _away(good, good_before) + _away(rebuilt, rebuilt_before)
            total = total + _away(rebuilt, good) + self._config.extractor_weight * kept
        return total

    def validate(self) -> dict[str, float]:
        """Return the loss on images that were held back."""
        with torch.inference_mode():
            return {"error": float(self._error(self._validation_images()))}


def _away(first: Tensor, second: Tensor) -> Tensor:
    """Return one minus the cosine of the features of whole images, averaged over the batch."""
    return 1.0 - functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1).mean()
