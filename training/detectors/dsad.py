"""DSAD and DiAD: reconstruction in latent space by a denoiser that is guided by the image and its sketch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.config import DsadConfig
from flawscope.datasets import Sample, as_recorded
from flawscope.diffusion.reconstruction import MapRule
from flawscope.diffusion.schedule import TRAINED_STEPS, signal_shares
from flawscope.errors import ArgumentError
from flawscope.files import sha256_file
from flawscope.progress import Progress
from flawscope.runs import AUTOENCODER_KNOWS, RECORD, RunRecord, read_run_record
from flawscope.text import encode_json
from flawscope.training.detectors.torch_scores import reconstruction_scores
from flawscope.training.diffusion.autoencoder import (
    Decoder,
    Encoder,
    Normalization,
    open_autoencoder,
    restore_autoencoder,
)
from flawscope.training.diffusion.autoencoder_network import weight_files
from flawscope.training.diffusion.comparison import Comparison
from flawscope.training.diffusion.diffusers_networks import import_diffusers
from flawscope.training.diffusion.noise import add_noise, noise_levels, sampling_noise
from flawscope.training.diffusion.semantic_guidance import GuidedDenoiser, build_guided_denoiser, load_guided_denoiser
from flawscope.training.diffusion.sketch import Sketcher, corrupt_sketches
from flawscope.training.diffusion.torch_reconstruction import Reconstruction, TorchNetworks, write_strips
from flawscope.training.diffusion.unet import recompute_blocks, signed_images
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop import draws
from flawscope.training.loop.augment import augment
from flawscope.training.loop.epoch_data import noise_error, split_images, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import run_loop
from flawscope.training.loop.network_state import load_state
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.trainer import EpochTrainer, FitRequest, check_rule

_PREVIEWS = 4
_WEIGHTS = (
    "weights.safetensors",
    "diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
"""Where the weights of an autoencoder are: in a run, in its own diffusers folder, in a Stable Diffusion folder."""


def train_dsad(
    config: DsadConfig,
    backbone: Backbone,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
) -> FitResult:
    """Train a guided denoiser on normal images, of one category or of all.

    Args:
        config: Settings.
        backbone: Extractor of features with its weights.
        samples: Normal images; a share of them chooses the best epoch.
        hashes: Content hash of every image.
        folder: Where metrics, previews and checkpoints are written.
        resume: Resume from the newest checkpoint there.
        progress: Receives progress.

    Raises:
        ArgumentError: If autoencoder, base model and settings contradict each other.
        DataError: If there are too few images.
        RunError: If autoencoder or base model cannot be used, memory runs out, the loss is not finite, or a
            checkpoint does not fit.
    """
    autoencoder, normalization = autoencoder_of(config)
    images, validation = split_images("dsad", config, config.data, samples, hashes, progress)
    task = DsadTask(config, backbone, autoencoder, normalization, validation)
    trained = run_loop(task, images, config, folder, resume=resume, progress=progress)
    state = {**trained.state}
    encoder: Any = autoencoder  # `config` is no attribute of an nn.Module
    return FitResult(
        grid=config.preprocessing.size,
        tensors={"noise": task.noise},
        facts={
            **training_facts(trained),
            "validation_pictures": len(validation),
            "scaling": float(encoder.config.scaling_factor),
            "normalization": normalization,
        },
        # The frozen autoencoder too: a run must open without the folder it was trained with.
        networks={"denoiser": state, "autoencoder": dict(encoder.state_dict())},
        rule=map_rule(config),
        unet=plain_settings(task.denoiser.unet),
    )


def autoencoder_of(config: DsadConfig) -> tuple[nn.Module, Normalization]:
    """Return the autoencoder that the settings name, frozen, and how its input is normalised.

    Raises:
        ArgumentError: If they name none, or it was trained with another normalisation than they say.
        RunError: If it cannot be used.
    """
    name = _autoencoder_path(config)
    opened, normalization = open_autoencoder(name)
    # None: a diffusers folder does not record it, so the setting is believed.
    if normalization is not None and normalization != config.normalization:
        raise ArgumentError(
            f"normalization: expected {normalization}, with which {name} was trained, got {config.normalization}. "
            f"Give --set normalization={normalization}."
        )
    network: Any = opened
    network.requires_grad_(False).eval()
    return network, config.normalization


def autoencoder_identity(config: DsadConfig) -> str:
    """Return the SHA-256 of the autoencoder's weights, by which a resumed training recognises them."""
    path = _autoencoder_path(config)
    files = [path / name for name in _WEIGHTS if (path / name).is_file()][:1]
    # Half precision, or several files.
    files = files or next((found for name in ("", "vae") if (found := _other_files(path / name))), [])
    # Not an error here: opening the autoencoder reports what is wrong with the folder.
    return f"sha256:{'-'.join(sha256_file(file) for file in files)}" if files else "not found"


def _other_files(folder: Path) -> list[Path]:
    return weight_files(folder) if folder.is_dir() else []


def images_known_to_autoencoder(config: DsadConfig, request: FitRequest) -> int:
    """Return how many images of the dataset the autoencoder has learned from and this training has not.

    Those are held-out images, or test images: an autoencoder reproduces what it has learned better than what it has
    not, so thresholds that are set on them are too low for new images.
    """
    path = _autoencoder_path(config)
    if not (path / RECORD).is_file():
        return 0  # a folder of diffusers does not say what it was trained on
    known = set(read_run_record(path)[0].training)
    hashes = as_recorded(request.hashes, known)
    return len(known & (set(hashes.values()) - {hashes[sample.path] for sample in request.samples}))


def _autoencoder_path(config: DsadConfig) -> Path:
    name = config.autoencoder or config.base
    if name is None:
        raise ArgumentError(
            "autoencoder: expected a run of flawscope train autoencoder or a folder of diffusers, got none. Name one "
            "with --set autoencoder=PATH, or a Stable Diffusion folder with --set base=PATH."
        )
    return Path(name)


def map_rule(config: DsadConfig) -> MapRule:
    """Return the map rule: differences of features alone, as in DiAD."""
    return MapRule(0.0, 1.0, config.maps.sigma, config.pooling)


class LatentEncoder(nn.Module):
    """The graph `encode`: image in, latents and hint out; with `canny` the edges are a second input.

    `forward` takes uint8 [N, H, W, 3], for `canny` also edges float32 [N, 1, H, W], and returns latents float32
    [N, C, h, w] and the hint float32 [N, width, h, w].

    Args:
        encoder: Encoder of the autoencoder.
        denoiser: Its guidance encodes image and sketch.
        sketcher: Makes and softens sketches, or None without a sketch.
    """

    def __init__(self, encoder: Encoder, denoiser: GuidedDenoiser, sketcher: Sketcher | None) -> None:
        super().__init__()
        self.encoder, self.denoiser, self.sketcher = encoder, denoiser, sketcher

    def forward(self, image: Tensor, edges: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return latents and hint."""
        sketch = None
        if self.sketcher is not None:
            # Canny's algorithm has no ONNX form: its edges come from outside, and the graph only softens them.
            sketch = self.sketcher(image) if edges is None else self.sketcher.soften(edges)
        return self.encoder(image), self.denoiser.encode_hint(self.encoder.normalised(image), sketch)


class DsadTask:
    """The training of a guided denoiser; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        backbone: Extractor of features, for previews.
        autoencoder: AutoencoderKL, frozen.
        normalization: How its input is normalised.
        validation: Normal images that choose the best epoch.

    Attributes:
        network: The guided denoiser.
        denoiser: The same object, with its own type.
        networks: All networks of the reconstruction.
        noise: Noise of the sampling, float32 [K, C, h, w].
    """

    def __init__(
        self,
        config: DsadConfig,
        backbone: Backbone,
        autoencoder: nn.Module,
        normalization: Normalization,
        validation: ImageReader,
    ) -> None:
        self._config, self._validation = config, validation
        encoder = Encoder(_as_autoencoder(autoencoder), normalization)
        size = config.preprocessing.size
        # Measured, not computed: foreign autoencoders have other depths.
        with torch.inference_mode():
            shape = tuple(encoder(torch.zeros((1, *size, 3), dtype=torch.uint8)).shape[1:])
        if config.base is not None:
            denoiser = load_guided_denoiser(Path(config.base), config)
        else:
            denoiser = build_guided_denoiser(config, shape[0], (shape[1], shape[2]))
        denoiser.trainable(config.train_decoder)
        if config.base is None:
            # A UNet with random weights has to be trained whole; only a pretrained one may stay frozen.
            denoiser.unet.requires_grad_(True)
        for part in (denoiser.unet, denoiser.guidance):
            recompute_blocks(part, config.denoising.gradient_checkpointing)
        self.network: nn.Module = denoiser
        self.denoiser = denoiser
        self.networks = dsad_networks(config, denoiser, autoencoder, normalization, backbone)
        self.noise: Float32Array = sampling_noise(config.sampling, (shape[0], shape[1], shape[2]))
        self._encoder, self._sketcher = encoder, sketcher_of(config)
        self._shares = torch.from_numpy(signal_shares(config.sampling)).float()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the trainable parameters."""
        return build_optimizer(
            self._config.denoising,
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            rate=self._config.loop.learning_rate,
        )

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared error of the predicted noise (arXiv:2312.06607), with partly corrupted sketches."""
        config = self._config
        if config.augmentation.flip or config.augmentation.rotate > 0 or config.augmentation.color_jitter > 0:
            # Back to bytes afterwards: encoder, sketcher and hint must see an image as it comes at run time.
            augmented = augment(
                signed_images(images),
                generator,
                flip=config.augmentation.flip,
                rotate=config.augmentation.rotate,
                color_jitter=config.augmentation.color_jitter,
            )
            images = ((augmented + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        levels = noise_levels(len(images), TRAINED_STEPS, generator)
        return self._squared_errors(network, images, levels, generator, corrupt=True).mean()

    def _squared_errors(
        self, network: nn.Module, images: Tensor, levels: Tensor, generator: torch.Generator, *, corrupt: bool
    ) -> Tensor:
        config, device = self._config, images.device
        encoder, sketcher = self._encoder.to(device), self._sketcher
        sketch = None
        # Autoencoder and sketcher are frozen; the hint below is outside, since its encoders learn.
        with torch.no_grad():
            image = encoder.normalised(images)
            mean, log_variance = encoder.moments(encoder.encoder(image)).float().chunk(2, dim=1)
            # Limits of diffusers' DiagonalGaussianDistribution. Training samples the posterior; inspection takes its
            # mean.
            deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
            sample = draws.normal(mean.shape, generator)
            latents = encoder.scaling * (mean + deviation * sample)
            if sketcher is not None:
                edges = sketcher.to(device).edges(images)
                if corrupt:
                    edges = corrupt_sketches(edges, generator, config.sketch_drop, config.sketch_corrupt)
                sketch = sketcher.soften(edges)
        noise = draws.normal(latents.shape, generator)
        noisy = add_noise(latents, noise, self._shares.to(device)[levels])
        hint = self.denoiser.encode_hint(image, sketch)
        predicted: Tensor = network(noisy, levels, hint)
        return (predicted.float() - noise).square()

    def validate(self) -> dict[str, float]:
        """Return the mean squared error of the predicted noise, with the same levels and noise every time."""

        def errors(images: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
            return self._squared_errors(self.network, images, levels, generator, corrupt=False)

        return noise_error(self._config, self._validation, errors, next(self.network.parameters()).device)

    def preview(self, path: Path) -> None:
        """Write validation images beside their reconstructions and maps."""
        images = next(self._validation.batches(range(min(_PREVIEWS, len(self._validation))), _PREVIEWS))
        self.networks.to(next(self.network.parameters()).device)
        # Pooling affects the score alone, which a preview does not show.
        rule = msgspec.structs.replace(map_rule(self._config), pooling=0)
        write_strips(path, images, Reconstruction(self.networks, self._config.sampling, self.noise, rule)(images))


def dsad_networks(
    config: DsadConfig,
    denoiser: GuidedDenoiser,
    autoencoder: nn.Module,
    normalization: Normalization,
    backbone: Backbone,
) -> TorchNetworks:
    """Return the networks of a reconstruction."""
    halves = _as_autoencoder(autoencoder)
    return TorchNetworks(
        denoiser,
        Comparison(backbone, "absolute", smoothing=1),
        LatentEncoder(Encoder(halves, normalization), denoiser, sketcher_of(config)),
        Decoder(halves, normalization),
        edges=config.sketch == "canny",
    )


def sketcher_of(config: DsadConfig) -> Sketcher | None:
    """Return the sketcher, or None without a sketch."""
    if config.sketch == "none":
        return None
    return Sketcher(config.sketch, config.preprocessing.size, config.sketch_size)


def restore_dsad(config: DsadConfig, backbone: Backbone, fit_result: FitResult, name: str) -> Reconstruction:
    """Return the torch reconstruction that scores images, with the networks of a run.

    Args:
        config: Settings.
        backbone: Extractor of features with its weights.
        fit_result: Contents of the run.
        name: The run, for errors.

    Raises:
        RunError: If weights are of another architecture.
    """
    assert fit_result.rule is not None
    assert fit_result.unet is not None
    state = fit_result.networks.get("denoiser", {})
    scaling = float(fit_result.facts.get("scaling", 1.0))
    autoencoder: Any = restore_autoencoder(
        None, fit_result.networks.get("autoencoder", {}), scaling, f"{name}: autoencoder"
    )
    normalization: Normalization = "imagenet" if fit_result.facts.get("normalization") == "imagenet" else "signed"
    # Zeros of the right shape: `load_state` fills them in, as all other weights.
    context = torch.zeros_like(state["context"]) if "context" in state else torch.zeros((1, config.context))
    denoiser = GuidedDenoiser(
        import_diffusers().UNet2DConditionModel.from_config(dict(fit_result.unet)), config, context
    )
    load_state(denoiser, state, f"{name}: denoiser")
    networks = dsad_networks(config, denoiser, autoencoder, normalization, backbone)
    noise = fit_result.tensors["noise"].astype("float32")
    return Reconstruction(networks, config.sampling, noise, fit_result.rule)


def plain_settings(unet: Any) -> dict[str, Any]:
    """Return the settings of a diffusers network as plain JSON values, without its private ones (paths, versions)."""
    plain = {name: value for name, value in dict(unet.config).items() if not name.startswith("_")}
    settings: dict[str, Any] = msgspec.json.decode(encode_json(plain))
    return settings


def _as_autoencoder(network: nn.Module) -> Any:
    # `open_autoencoder` and `restore_autoencoder` return an AutoencoderKL; the signatures here say nn.Module.
    return network


class DsadTrainer(EpochTrainer):
    """Trains and restores DSAD."""

    train = staticmethod(train_dsad)
    drawn_on = 3  # a reconstruction takes many passes through the denoiser
    drawn_strengths = (0.5,)

    def fit(self, request: FitRequest) -> FitResult:
        """Train in the workspace, and note which images the autoencoder knows."""
        fit_result = super().fit(request)
        known = images_known_to_autoencoder(request.config, request)
        return dataclasses.replace(fit_result, facts={**fit_result.facts, AUTOENCODER_KNOWS: known})

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> Reconstruction:
        """Return the networks and their sampling; see `restore_dsad`."""
        return restore_dsad(cast("DsadConfig", record.config), backbone, fit_result, str(path))

    def scores(
        self, config: Any, module: Reconstruction, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores; see `Trainer.scores`."""
        return reconstruction_scores(module, images, exact=False)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the noise of the sampling."""
        return frozenset({"noise"})

    def check(self, path: Path, record: RunRecord, bank: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Raise RunError unless the run has its map rule, the settings of its UNet, and noise."""
        check_rule(path, record.rule is not None and record.unet is not None)
        super().check(path, record, bank)

    def other_weights(self, config: DsadConfig) -> str:
        """Return the identity of the autoencoder."""
        return f"autoencoder {autoencoder_identity(config)}"


TRAINER = DsadTrainer()
