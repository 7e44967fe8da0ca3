"""The autoencoder of latent diffusion: its training, its two halves as they are exported, and reading it back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from flawscope.arrays import UInt8Array
from flawscope.config import AutoencoderConfig
from flawscope.config.diffusion_settings import check_widths
from flawscope.datasets import Sample
from flawscope.errors import RunError
from flawscope.imaging.png import write_png
from flawscope.progress import Progress
from flawscope.runs import RECORD, WEIGHTS, read_autoencoder_record
from flawscope.training.detectors.stfpm import stage_distances
from flawscope.training.diffusion.autoencoder_network import (
    fill_autoencoder,
    new_autoencoder,
    read_folder,
    read_tensors,
    settings_from_state,
    settings_of,
    shape_settings,
)
from flawscope.training.diffusion.unet import recompute_blocks
from flawscope.training.features.backbone import SCATTERING, Backbone
from flawscope.training.loop.epoch_data import rounded, split_images, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import run_loop
from flawscope.training.trainer import FitRequest, Trainer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Normalization = Literal["signed", "imagenet"]
"""What images are scaled to: [-1, 1], or mean 0 and deviation 1 of ImageNet."""

_RANGES: dict[Normalization, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "signed": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # 255 times the usual mean and deviation
}
"""Per channel, what is subtracted from an image's bytes, and what they are then divided by."""

_NETWORK = "autoencoder."  # how its tensors are named in the weights of a run
_PREVIEWS = 4
_LEAST_SQUARE = 1e-10  # a perfect reconstruction has a finite figure too: 106 dB


class Encoder(nn.Module):
    """Image in, latents out: the mean of the posterior, so that the same image has the same latents.

    `forward` takes uint8 [N, H, W, 3] RGB and returns float32 [N, C, h, w], multiplied with the autoencoder's
    `scaling_factor`; every level of the network after the first halves the sides.

    Args:
        autoencoder: The network; its parameters are shared, not copied.
        normalization: What it was trained with.
    """

    def __init__(self, autoencoder: AutoencoderKL, normalization: Normalization) -> None:
        super().__init__()
        parts: Any = autoencoder
        self.encoder, self.moments = parts.encoder, parts.quant_conv
        self.scaling = float(settings_of(autoencoder)["scaling_factor"])
        center, spread = _RANGES[normalization]
        self.register_buffer("center", torch.tensor(center), persistent=False)
        self.register_buffer("spread", torch.tensor(spread), persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return the latents of a batch."""
        mean = self.moments(self.encoder(self.normalised(image))).chunk(2, dim=1)[0]
        return cast(Tensor, mean * self.scaling)

    def normalised(self, image: Tensor) -> Tensor:
        """Return images uint8 [N, H, W, 3] as the network takes them, float32 [N, 3, H, W]."""
        # The cast comes first: TensorRT rejects a transpose of uint8.
        scaled = (image.to(torch.float32) - self.get_buffer("center")) / self.get_buffer("spread")
        return scaled.permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Latents in, image out.

    `forward` takes float32 [N, C, h, w] as `Encoder` gives them and returns RGB float32 [N, 3, H, W], limited to
    [-1, 1], whatever the normalisation.

    Args:
        autoencoder: The network; its parameters are shared, not copied.
        normalization: What it was trained with.
    """

    def __init__(self, autoencoder: AutoencoderKL, normalization: Normalization) -> None:
        super().__init__()
        parts: Any = autoencoder
        self.decoder, self.latents = parts.decoder, parts.post_quant_conv
        self.scaling = float(settings_of(autoencoder)["scaling_factor"])
        center, spread = (torch.tensor(one, dtype=torch.float64).reshape(3, 1, 1) for one in _RANGES[normalization])
        self.register_buffer("gain", (spread / 127.5).float(), persistent=False)
        self.register_buffer("shift", (center / 127.5 - 1.0).float(), persistent=False)
        self.eval()

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images of a batch."""
        return self.signed(self.decoder(self.latents(latents / self.scaling))).clamp(-1.0, 1.0)

    def signed(self, decoded: Tensor) -> Tensor:
        """Return images float32 [N, 3, H, W] as the network gives them on the scale whose limits are -1 and 1."""
        return decoded * self.get_buffer("gain") + self.get_buffer("shift")


def train_autoencoder(
    config: AutoencoderConfig,
    backbone: Backbone,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
) -> FitResult:
    """Train an autoencoder on normal images.

    The fact `scaling` of the result is what latents are to be multiplied with: that of `base`, or else one over their
    standard deviation on held-back images, since diffusion expects a variance of one (arXiv:2112.10752).

    Args:
        config: Settings.
        backbone: Frozen, for the perceptual loss.
        samples: Normal images; a share of them chooses the best epoch.
        hashes: Content hash of every image.
        folder: Where metrics, previews and checkpoints are written.
        resume: Go on from the newest checkpoint there.
        progress: Told what is being done.

    Raises:
        ArgumentError: If the images' size does not fit the levels of `base`.
        DataError: If there are too few images.
        RunError: If `base` cannot be used, memory runs out, the loss is not finite, a checkpoint does not fit, or
            all latents are the same.
    """
    images, validation = split_images("autoencoder", config, config.data, samples, hashes, progress)
    task = AutoencoderTask(config, backbone, validation)
    trained = run_loop(task, images, config, folder, resume=resume, progress=progress)
    task.network.load_state_dict(trained.state)
    figures = task.validate()
    deviation = figures["latent_std"]
    if not 1e-6 < deviation < math.inf:
        raise RunError(
            f"autoencoder: expected latents that differ, got a standard deviation of {deviation:g}. Train longer, or "
            f"lower the divergence's weight (--set kl={config.kl / 10:g})."
        )
    stock = float(settings_of(task.autoencoder)["scaling_factor"])
    height, width = config.preprocessing.size
    halvings = len(settings_of(task.autoencoder)["block_out_channels"]) - 1
    return FitResult(
        grid=(height >> halvings, width >> halvings),
        tensors={},
        facts={
            **training_facts(trained),
            "psnr": rounded(figures["psnr"]),
            "validation_pictures": len(validation),
            "latent_std": rounded(deviation),
            "scaling": 1.0 / deviation if config.base is None else stock,
        },
        networks={"autoencoder": {name.removeprefix(_NETWORK): value for name, value in trained.state.items()}},
    )


class AutoencoderTask:
    """The training of an autoencoder; see `flawscope.training.loop.loop.Task`.

    The adversarial term of arXiv:2112.10752 is left out: in DiAD's training it begins after step 50,001, which its
    author reports is never reached.

    Args:
        config: Settings.
        backbone: Frozen, for the perceptual loss; the backbone `scattering` leaves that loss out.
        validation: Normal images that choose the best epoch.

    Attributes:
        network: What is trained: the autoencoder, with a forward that samples.
        autoencoder: The autoencoder in it.

    Raises:
        ArgumentError: If the images' size does not fit the levels of `base`.
        RunError: If `base` cannot be used.
    """

    def __init__(self, config: AutoencoderConfig, backbone: Backbone, validation: ImageReader) -> None:
        self._config, self._validation = config, validation
        self._backbone = None if config.features.backbone == SCATTERING or config.perceptual == 0 else backbone
        torch.manual_seed(config.seed)
        self.autoencoder = build_autoencoder(config)
        recompute_blocks(self.autoencoder, config.gradient_checkpointing)
        self.network: nn.Module = _Sampling(self.autoencoder)
        self._encoder = Encoder(self.autoencoder, config.normalization)
        self._decoder = Decoder(self.autoencoder, config.normalization)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self._config.loop.learning_rate, betas=self._config.betas)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return Σ|x − x̂| + perceptual · P · d(x, x̂) + kl · KL, averaged over the batch.

        Pixels are compared on the scale that the network works in. d is the distance of `perceptual_distances`, and P
        the number of an image's values: both terms are sums over them. KL is the divergence of the posterior from
        the normal distribution. The latents that are decoded are drawn from the posterior with the generator.
        """
        config = self._config
        self._move(images.device)
        expected = self._encoder.normalised(images)
        decoded, divergence = network(expected, generator)
        loss = (decoded - expected).abs().flatten(1).sum(dim=1) + config.kl * divergence
        if self._backbone is not None:
            distance = perceptual_distances(self._backbone.to(images.device), images, self._decoder.signed(decoded))
            loss = loss + config.perceptual * expected[0].numel() * distance
        return cast(Tensor, loss.mean())

    def validate(self) -> dict[str, float]:
        """Return figures on images that were held back.

        `error` is the mean absolute difference of an image in [-1, 1] and what its latents' mean is decoded to;
        `psnr` the peak signal-to-noise ratio of all of them in dB; `latent_std` the standard deviation of all latents
        before they are scaled.
        """
        errors, squares, latents = [], [], []
        for images in self._validation.batches(range(len(self._validation)), self._config.loop.batch_size):
            encoded, restored = self._restored(images)
            difference = restored.double() - (torch.from_numpy(images).double() / 127.5 - 1.0).permute(0, 3, 1, 2)
            errors.append(difference.abs().mean(dim=(1, 2, 3)))
            squares.append(difference.square().mean(dim=(1, 2, 3)))
            latents.append(encoded.double() / self._encoder.scaling)
        square = float(torch.cat(squares).mean())
        return {
            "error": float(torch.cat(errors).mean()),
            "psnr": 10.0 * math.log10(4.0 / max(square, _LEAST_SQUARE)),
            "latent_std": float(torch.cat(latents).std(correction=0)),
        }

    def preview(self, path: Path) -> None:
        """Write held-back normal images above their reconstructions."""
        images = next(self._validation.batches(range(min(_PREVIEWS, len(self._validation))), _PREVIEWS))
        restored = self._restored(images)[1].permute(0, 2, 3, 1).numpy()
        below = np.rint((restored + 1.0) * 127.5).astype(np.uint8)
        sheet = np.vstack([np.hstack(list(images)), np.hstack(list(below))])
        write_png(path, sheet)

    def _restored(self, images: UInt8Array) -> tuple[Tensor, Tensor]:
        """Return latents and reconstructions of a batch, on the CPU."""
        device = next(self.network.parameters()).device
        self._move(device)
        self.network.eval()
        with torch.inference_mode():
            latents = self._encoder(torch.from_numpy(images).to(device))
            return latents.cpu(), self._decoder(latents).cpu()

    def _move(self, device: torch.device) -> None:
        # The parameters are the network's and are there already: what moves are the halves' own buffers.
        self._encoder.to(device)
        self._decoder.to(device)


class _Sampling(nn.Module):
    """Normalised images in; out what latents drawn from the posterior are decoded to, and the divergences [N]."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = self.autoencoder.encode(images, return_dict=False)[0]
        decoded = self.autoencoder.decode(posterior.sample(generator), return_dict=False)[0]
        return decoded, posterior.kl()


def perceptual_distances(backbone: Backbone, images: Tensor, restored: Tensor) -> Tensor:
    """Return how far reconstructions are from images in the features of a backbone, float32 [N].

    The squared distance of the features of unit length at a position, averaged over the positions and summed over the
    stages: equation 1 of arXiv:1801.03924 with all weights one.

    Args:
        backbone: Frozen; it normalises as it was trained.
        images: uint8 [N, H, W, 3].
        restored: Float32 [N, 3, H, W]; -1 is black and 1 white. Gradients flow into it.
    """
    with torch.no_grad():
        expected = backbone(images)
    found = backbone((restored.permute(0, 2, 3, 1) + 1.0) * 127.5)
    # Small differences of unit vectors are lost in half precision.
    whole, other = ([stage.float() for stage in stages] for stages in (expected, found))
    # That of STFPM is half of the squared distance.
    return 2.0 * torch.stack([half.mean(dim=(1, 2)) for half in stage_distances(whole, other)]).sum(dim=0)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Return the autoencoder that a training starts from: that of `base`, or one from random weights.

    Raises:
        ArgumentError: If the images' size does not fit the levels of `base`.
        MissingExtra: If diffusers is not installed.
        RunError: If `base` is no folder with an AutoencoderKL of a known kind.
    """
    if config.base is None:
        return new_autoencoder(shape_settings(config.widths, config.layers, config.latent))
    autoencoder: Any = read_folder(Path(config.base))
    check_widths(tuple(settings_of(autoencoder)["block_out_channels"]), config.preprocessing.size)
    return cast("AutoencoderKL", autoencoder.requires_grad_(True))


def restore_autoencoder(
    config: AutoencoderConfig | None,
    state: Mapping[str, Tensor],
    scaling: float,
    what: str = "the run's autoencoder",
) -> AutoencoderKL:
    """Return a trained autoencoder, frozen and in inference mode.

    Args:
        config: Settings of its training. Without them, or where it began with a `base`, widths and layers are those
            that the tensors have.
        state: Its tensors, by the names of `AutoencoderKL`.
        scaling: What latents are multiplied with.
        what: What the tensors are, for errors.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If the tensors are not those of such an autoencoder, or are not finite.
    """
    if config is None or config.base is not None:
        settings = settings_from_state(state, what)
    else:
        settings = shape_settings(config.widths, config.layers, config.latent)
    return fill_autoencoder(settings, state, scaling, what)


def open_autoencoder(path: Path) -> tuple[AutoencoderKL, Normalization | None]:
    """Read an autoencoder for latent diffusion, frozen and in inference mode, and how it wants images normalised.

    Args:
        path: A run of `train autoencoder`; a folder with an AutoencoderKL as diffusers writes it; or a Stable
            Diffusion folder, whose `vae` is taken. The last two do not say how images are normalised: None.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If it is none of them, or broken.
    """
    if not (path / RECORD).is_file():
        return read_folder(path), None
    config, scaling = read_autoencoder_record(path)
    tensors = read_tensors(path / WEIGHTS)
    state = {name.removeprefix(_NETWORK): value for name, value in tensors.items() if name.startswith(_NETWORK)}
    restored = restore_autoencoder(config, state, scaling, str(path / WEIGHTS))
    return restored, config.normalization


class AutoencoderTrainer(Trainer):
    """Trains autoencoders. They score nothing: dsad and base work in one."""

    has_epochs = True
    keeps_backbone = False  # it was needed for the loss alone
    is_detector = False

    def fit(self, request: FitRequest) -> FitResult:
        """Train encoder and decoder; see `train_autoencoder`."""
        return train_autoencoder(
            request.config,
            request.backbone,
            request.samples,
            request.hashes,
            request.folder,
            request.resume,
            request.progress,
        )


TRAINER = AutoencoderTrainer()
