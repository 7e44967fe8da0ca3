"""The autoencoder of latent diffusion: training it, reading it back, and its two halves as they are exported."""

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
from flawscope.training.features.stage_distances import stage_distances
from flawscope.training.loop import draws
from flawscope.training.loop.epoch_data import rounded, split_images, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import run_loop
from flawscope.training.trainer import EpochTrainer
from flawscope.unfinished import check_finished

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Normalization = Literal["signed", "imagenet"]
"""How input images are scaled: to [-1, 1], or to mean 0 and deviation 1 over ImageNet."""

_RANGES: dict[Normalization, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "signed": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # 255 times the usual mean and deviation
}
"""Center and spread per channel: subtracted from the bytes of an image, then divided by."""

_NETWORK = "autoencoder."  # prefix of its tensors in the weights of a run
_PREVIEWS = 4
_LEAST_SQUARE = 1e-10  # keeps the PSNR of a perfect reconstruction finite, at 106 dB


class Encoder(nn.Module):
    """Image in, latents out: the mean of the posterior, so that an image always has the same latents.

    `forward` takes uint8 [N, H, W, 3] RGB and returns float32 [N, C, h, w], multiplied with the autoencoder's
    `scaling_factor`; every level of the network after the first halves the sides.

    Args:
        autoencoder: The network; its parameters are shared, not copied.
        normalization: What it was trained with.
    """

    def __init__(self, autoencoder: AutoencoderKL, normalization: Normalization) -> None:
        super().__init__()
        parts: Any = autoencoder  # type checkers do not know the parts of diffusers' networks
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
        """Return images uint8 [N, H, W, 3] as input of the network, float32 [N, 3, H, W]."""
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
        # float64: each constant is rounded once. With `signed` they are exactly 1 and 0.
        center, spread = (
            torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1) for values in _RANGES[normalization]
        )
        self.register_buffer("gain", (spread / 127.5).float(), persistent=False)
        self.register_buffer("shift", (center / 127.5 - 1.0).float(), persistent=False)
        self.eval()

    def forward(self, latents: Tensor) -> Tensor:
        """Return the images of a batch."""
        # The clamp is not in `signed`: the perceptual loss needs its gradients outside the range as well.
        return self.signed(self.decoder(self.latents(latents / self.scaling))).clamp(-1.0, 1.0)

    def signed(self, decoded: Tensor) -> Tensor:
        """Return decoded images float32 [N, 3, H, W], rescaled so that -1 is black and 1 is white."""
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

    The fact `scaling` of the result is the factor of the latents: that of `base`, or else one over their standard
    deviation on validation images, since diffusion expects a variance of one (arXiv:2112.10752).

    Args:
        config: Settings.
        backbone: Frozen, for the perceptual loss.
        samples: Normal images; a share of them chooses the best epoch.
        hashes: Content hash of every image.
        folder: Where metrics, previews and checkpoints are written.
        resume: Resume from the newest checkpoint there.
        progress: Receives progress.

    Raises:
        ArgumentError: If the size of the images is not divisible by the levels of `base`.
        DataError: If there are too few images.
        RunError: If `base` cannot be used, memory runs out, the loss is not finite, a checkpoint does not fit, or
            all latents are equal.
    """
    images, validation = split_images("autoencoder", config, config.data, samples, hashes, progress)
    task = AutoencoderTask(config, backbone, validation)
    trained = run_loop(task, images, config, folder, resume=resume, progress=progress)
    task.network.load_state_dict(trained.state)
    # Measured again: the last epoch need not have been the best.
    figures = task.validate()
    deviation = figures["latent_std"]
    if not 1e-6 < deviation < math.inf:
        raise RunError(
            f"autoencoder: expected latents that differ, got a standard deviation of {deviation:g}. Train longer, or "
            f"lower the divergence's weight (--set kl={config.kl / 10:g})."
        )
    base_scaling = float(settings_of(task.autoencoder)["scaling_factor"])
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
            # Not rounded, unlike the other facts: latents are multiplied with it. A base's own factor stays, since
            # denoisers made for that base expect it.
            "scaling": 1.0 / deviation if config.base is None else base_scaling,
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
        network: The autoencoder in a module whose `forward` samples the posterior.
        autoencoder: The autoencoder itself.

    Raises:
        ArgumentError: If the size of the images is not divisible by the levels of `base`.
        RunError: If `base` cannot be used.
    """

    def __init__(self, config: AutoencoderConfig, backbone: Backbone, validation: ImageReader) -> None:
        self._config, self._validation = config, validation
        self._backbone = None if config.features.backbone == SCATTERING or config.perceptual == 0 else backbone
        torch.manual_seed(config.seed)  # the initial weights depend on the seed alone
        self.autoencoder = build_autoencoder(config)
        recompute_blocks(self.autoencoder, config.gradient_checkpointing)
        self.network: nn.Module = _Sampling(self.autoencoder)
        # They share the parameters of the network that learns.
        self._encoder = Encoder(self.autoencoder, config.normalization)
        self._decoder = Decoder(self.autoencoder, config.normalization)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.network.parameters(), lr=self._config.loop.learning_rate, betas=self._config.betas)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return Σ|x − x̂| + perceptual · P · d(x, x̂) + kl · KL, averaged over the batch.

        Pixels are compared on the scale of the input. d is the distance of `perceptual_distances`, and P the
        number of values of an image, so that both terms are sums over them. KL is the divergence of the posterior from
        the standard normal distribution. The decoded latents are drawn from the posterior with the generator.
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
        """Return figures of the validation images.

        `error` is the mean absolute difference between images in [-1, 1] and what the mean of their latents is decoded
        to; `psnr` the peak signal-to-noise ratio over all images in dB; `latent_std` the standard deviation of all
        latents before scaling.
        """
        errors, squares, latents = [], [], []
        for images in self._validation.batches(range(len(self._validation)), self._config.loop.batch_size):
            encoded, restored = self._restored(images)
            # float64: means over millions of values, and a deviation from which the scaling is taken.
            difference = restored.double() - (torch.from_numpy(images).double() / 127.5 - 1.0).permute(0, 3, 1, 2)
            errors.append(difference.abs().mean(dim=(1, 2, 3)))
            squares.append(difference.square().mean(dim=(1, 2, 3)))
            latents.append(encoded.double() / self._encoder.scaling)
        square = float(torch.cat(squares).mean())
        return {
            "error": float(torch.cat(errors).mean()),
            "psnr": 10.0 * math.log10(4.0 / max(square, _LEAST_SQUARE)),  # the peak is 2, from -1 to 1
            "latent_std": float(torch.cat(latents).std(correction=0)),
        }

    def preview(self, path: Path) -> None:
        """Write validation images above their reconstructions."""
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
        # The shared parameters are on the device already: only the halves' own buffers move.
        self._encoder.to(device)
        self._decoder.to(device)


class _Sampling(nn.Module):
    """Normalised images in; images decoded from a sample of the posterior, and the divergences [N], out."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = self.autoencoder.encode(images, return_dict=False)[0]
        # As diffusers' `sample`, but for the rows of a batch that other processes have.
        mean = posterior.mean
        sample = mean + posterior.std * draws.normal(mean.shape, generator, dtype=mean.dtype)
        decoded = self.autoencoder.decode(sample, return_dict=False)[0]
        return decoded, posterior.kl()


def perceptual_distances(backbone: Backbone, images: Tensor, restored: Tensor) -> Tensor:
    """Return the distances between images and reconstructions in the features of a backbone, float32 [N].

    The squared distance of the unit-length features at a position, averaged over the positions and summed over the
    stages: equation 1 of arXiv:1801.03924 (LPIPS) with all weights one.

    Args:
        backbone: Frozen; includes its own normalisation.
        images: uint8 [N, H, W, 3].
        restored: Float32 [N, 3, H, W]; -1 is black and 1 white. Gradients flow into it.
    """
    with torch.no_grad():
        expected = backbone(images)
    rebuilt = backbone((restored.permute(0, 2, 3, 1) + 1.0) * 127.5)
    # Small differences of unit vectors are lost in half precision.
    expected_stages, rebuilt_stages = ([stage.float() for stage in stages] for stages in (expected, rebuilt))
    # STFPM's distance is half of the squared one.
    halves = stage_distances(expected_stages, rebuilt_stages)
    return 2.0 * torch.stack([half.mean(dim=(1, 2)) for half in halves]).sum(dim=0)


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Return the autoencoder that a training starts from: that of `base`, or one with random weights.

    Raises:
        ArgumentError: If the size of the images is not divisible by the levels of `base`.
        MissingExtra: If diffusers is not installed.
        RunError: If `base` is not a folder with a supported AutoencoderKL.
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
    name: str = "the run's autoencoder",
) -> AutoencoderKL:
    """Return a trained autoencoder, frozen and in inference mode.

    Args:
        config: Settings of its training. Without them, or if it started from a `base`, widths and layers are read
            from the shapes of the tensors.
        state: Its tensors, by the names of `AutoencoderKL`.
        scaling: Factor of the latents.
        name: Name of the tensors, for errors.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If the tensors are not those of such an autoencoder, or are not finite.
    """
    if config is None or config.base is not None:
        settings = settings_from_state(state, name)
    else:
        settings = shape_settings(config.widths, config.layers, config.latent)
    return fill_autoencoder(settings, state, scaling, name)


def open_autoencoder(path: Path) -> tuple[AutoencoderKL, Normalization | None]:
    """Read an autoencoder for latent diffusion, frozen and in inference mode, and how its input is normalised.

    Args:
        path: A run of `train autoencoder`; a folder with an AutoencoderKL as diffusers writes it; or a Stable
            Diffusion folder, whose `vae` is read. The last two do not record the normalisation: None.

    Raises:
        MissingExtra: If diffusers is not installed.
        RunError: If it is none of them, or broken.
    """
    check_finished(path)
    if not (path / RECORD).is_file():
        return read_folder(path), None
    config, scaling = read_autoencoder_record(path)
    tensors = read_tensors(path / WEIGHTS)
    state = {name.removeprefix(_NETWORK): value for name, value in tensors.items() if name.startswith(_NETWORK)}
    restored = restore_autoencoder(config, state, scaling, str(path / WEIGHTS))
    return restored, config.normalization


class AutoencoderTrainer(EpochTrainer):
    """Trains autoencoders, in whose latent space dsad and base work. They score nothing."""

    train = staticmethod(train_autoencoder)
    keeps_backbone = False  # only the loss needs it
    is_detector = False


TRAINER = AutoencoderTrainer()
