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
"""Folder below the workspace, and below the run, for this part of the training."""
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
    """Fine-tune a backbone on normal images as `config.extractor` says; afterwards it is frozen in its best state.

    Args:
        config: Settings.
        backbone: Fine-tuned in place.
        networks: Their denoiser is trained.
        images: Normal images to learn from.
        validation: Normal images that choose the best epoch.
        folder: Workspace of the whole training; this part has its own folder in it.
        resume: Resume from the newest checkpoint there.
        progress: Receives progress.
    """
    kind = AdaptationTask if config.extractor == "adaptation" else RebuildTask
    task = kind(config, backbone, networks, validation)
    # The loop's settings are the denoiser's; those of this part replace them, and what it has no setting for is off.
    loop_config = change_settings(
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
        loop_config,
        folder / FOLDER,
        resume=resume,
        progress=lambda stage, count, total: progress(f"{stage} the extractor", count, total),
    )
    task.network.load_state_dict(trained.state)
    backbone.eval().requires_grad_(False)
    return trained


class _ExtractorTask:
    """Shared by both kinds of fine-tuning: reconstructions without gradients, the optimizer, previews of features."""

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

    def _reconstruct(self, images: Float32Array, hidden: Float32Array | None, weight: float | None) -> Tensor:
        sampling = self._config.sampling
        if weight is not None:
            sampling = msgspec.structs.replace(sampling, conditioning="ddad", weight=weight)
        networks = self._networks.to(next(self.network.parameters()).device)
        # The sampling of the runtime, in NumPy: it cuts the gradients, so the denoiser is not trained by accident.
        reconstructed = reconstruct(images, self._noise, sampling, lambda x, t: networks.denoise(x, t, {}), hidden)
        return torch.from_numpy(np.clip(reconstructed, -1.0, 1.0)).to(next(self.network.parameters()).device)

    def _validation_images(self) -> Tensor:
        count = min(len(self._validation), _MOST_VALIDATED)
        images = next(self._validation.batches(range(count), count))
        return torch.from_numpy(images).to(next(self.network.parameters()).device)

    def preview(self, path: Path) -> None:
        """Write validation images beside how strongly the finest stage responds to them."""
        images = self._validation_images()[:_PREVIEWS]
        self._backbone.eval()
        with torch.inference_mode():
            strength = self._backbone(images)[0].norm(dim=1).cpu().numpy()
        rows = []
        for image, response in zip(images.cpu().numpy(), strength, strict=True):
            grey = (255 * (response - response.min()) / max(float(np.ptp(response)), 1e-12)).astype(np.uint8)
            larger = cv2.resize(grey, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_NEAREST)
            rows.append(np.hstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR), cv2.cvtColor(larger, cv2.COLOR_GRAY2BGR)]))
        write_png(path, np.vstack(rows), is_bgr=True)


class RebuildTask(_ExtractorTask):
    """Trains the backbone as the encoder of an autoencoder, of which only it is kept.

    The target is the image, or with `extractor=diffusion` its reconstruction, normalised as the backbone's input is.
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
        torch.manual_seed(config.seed)  # the decoder's initial weights depend on nothing drawn before
        layers: list[nn.Module] = []
        for number in range(halvings):
            halved = 3 if number == halvings - 1 else max(channels // 2, 3)
            layers += [
                nn.ConvTranspose2d(channels, halved, 3, stride=2, padding=1, output_padding=1),
                nn.ReLU(),
            ]
            channels = halved
        layers.append(nn.Conv2d(channels, 3, 3, padding=1))
        self.network: nn.Module = nn.ModuleDict({"encoder": backbone.network, "decoder": nn.Sequential(*layers)})

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the rebuilt, normalised image."""
        return self._error(images)

    def _error(self, images: Tensor) -> Tensor:
        self._backbone.to(images.device)
        target = images.to(torch.float32)
        if self._config.extractor == "diffusion":
            rebuilt = self._reconstruct(signed(images.cpu().numpy()), None, None)
            target = (rebuilt.permute(0, 2, 3, 1) + 1.0) * 127.5
        scale, offset = self._backbone.get_buffer("scale"), self._backbone.get_buffer("offset")
        assert isinstance(self.network, nn.ModuleDict)
        decoded = self.network["decoder"](self._backbone(images)[-1])
        target = (target * scale + offset).permute(0, 3, 1, 2)
        if decoded.shape != target.shape:  # a side that is no multiple of the coarsest stage's stride
            decoded = functional.interpolate(decoded, size=target.shape[-2:], mode="bilinear")
        return functional.mse_loss(decoded, target)

    def validate(self) -> dict[str, float]:
        """Return the error on the validation images."""
        with torch.inference_mode():
            return {"error": float(self._error(self._validation_images()))}


class AdaptationTask(_ExtractorTask):
    """DDAD's domain adaptation (arXiv:2305.15956).

    For two normal images x and y, x is reconstructed towards y. The features of this reconstruction and of y are drawn
    together, while both stay near those of the backbone before fine-tuning. Statistics of batch norm stay fixed.
    """

    def __init__(
        self, config: DdadConfig, backbone: Backbone, networks: TorchNetworks, validation: ImageReader
    ) -> None:
        super().__init__(config, backbone, networks, validation)
        # A frozen copy, built anew: the backbone has gradients enabled by now, and is about to change.
        self._before = untrained_backbone(config.features)
        self._before.load_state_dict(backbone.state_dict())
        self.network: nn.Module = backbone.network

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sum of the three terms over the stages, averaged over the batch."""
        network.eval()  # the loop has set training mode, in which batch norm would change its statistics
        return self._error(images)

    def _error(self, images: Tensor) -> Tensor:
        self._before.to(images.device)
        self._backbone.to(images.device)
        # Every image's pair is its neighbour in the batch; no random numbers are drawn for it. A batch of one pairs an
        # image with itself.
        other = torch.roll(images, 1, dims=0)
        reconstructed = self._reconstruct(
            signed(images.cpu().numpy()), signed(other.cpu().numpy()), self._config.extractor_guidance
        )
        with torch.no_grad():
            before = pair_features(self._before, images, reconstructed)
        total = torch.zeros((), device=images.device)
        pairs = zip(pair_features(self._backbone, images, reconstructed), before, strict=True)
        for (image, rebuilt), (image_before, rebuilt_before) in pairs:
            drift = _cosine_distance(image, image_before) + _cosine_distance(rebuilt, rebuilt_before)
            total = total + _cosine_distance(rebuilt, image) + self._config.extractor_weight * drift
        return total

    def validate(self) -> dict[str, float]:
        """Return the loss on the validation images."""
        with torch.inference_mode():
            return {"error": float(self._error(self._validation_images()))}


def _cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return one minus the cosine of the features of whole images, averaged over the batch."""
    return 1.0 - functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=1).mean()
