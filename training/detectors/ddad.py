"""DDAD and Diffusion-Based-AD: a denoiser learns to reconstruct normal images; the differences are anomalous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.config import DdadConfig, change_settings
from flawscope.datasets import Sample
from flawscope.diffusion.reconstruction import MapRule, finish_maps
from flawscope.diffusion.schedule import TRAINED_STEPS, signal_shares
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.detectors.ddad_extractor import train_extractor
from flawscope.training.detectors.torch_scores import reconstruction_scores
from flawscope.training.diffusion.comparison import Comparison
from flawscope.training.diffusion.noise import add_noise, draw_noise, noise_levels, sampling_noise
from flawscope.training.diffusion.torch_reconstruction import Reconstruction, TorchNetworks, write_strips
from flawscope.training.diffusion.unet import Denoiser, signed_images
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.patch_extraction import choose_device
from flawscope.training.loop.augment import augment
from flawscope.training.loop.epoch_data import MOST_VALIDATED, noise_error, rounded, split_images, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import run_loop
from flawscope.training.loop.network_state import load_state
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.loop.workspace import FREE
from flawscope.training.trainer import FitRequest, Trainer, check_rule

AFTER_DENOISER = frozenset(
    {
        *("extractor", "extractor_epochs", "extractor_rate", "extractor_weight", "extractor_guidance"),
        *("backbone", "backbone_options", "stages", "mean", "std"),
        *("start", "steps", "spacing", "eta", "level", "noise_seed", "conditioning", "weight", "clip"),
        *("pixel_map", "pixel_weight", "feature_weight", "smoothing", "sigma"),
        *("map_scale", "pixel_threshold", "feature_threshold"),
        *FREE,
    }
)
"""Settings that the training of the denoiser does not use: with other values a trained denoiser is still valid."""
# Keys of `facts` in run.json, hence the old word in one of them.
_DENOISER_FACTS = ("epochs", "best_epoch", "validation_error", "final_loss", "validation_pictures", "denoiser_command")
_PREVIEWS = 4
_QUANTILE = 0.999


def train_ddad(
    config: DdadConfig,
    backbone: Backbone,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
    denoiser_fit: FitResult | None = None,
) -> FitResult:
    """Train a denoiser on normal images, then the extractor if the settings ask for it; then measure the map scales.

    Args:
        config: Settings.
        backbone: Extractor of features with its weights.
        samples: Normal images; a share of them chooses the best epoch and determines the map scales.
        hashes: Content hash of every image.
        folder: Where metrics, previews and checkpoints are written.
        resume: Resume from the newest checkpoint there.
        progress: Receives progress.
        denoiser_fit: Fit result of an earlier training on the same images, whose denoiser is used instead of training
            one.

    Raises:
        DataError: If there are too few images.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    images, validation = split_images("ddad", config, config.data, samples, hashes, progress)
    task = DenoiserTask(config, backbone, validation)
    facts: dict[str, int | float | str]
    if denoiser_fit is None:
        trained = run_loop(task, images, config, folder, resume=resume, progress=progress)
        state = trained.state
        facts = training_facts(trained) | {"validation_pictures": len(validation)}
    else:
        state = denoiser_fit.networks["denoiser"]
        facts = {name: value for name, value in denoiser_fit.facts.items() if name in _DENOISER_FACTS}
        # In the other branch the loop has moved the denoiser; the extractor and the scales expect it on the device.
        task.networks.to(choose_device(config.device))
    task.network.load_state_dict(state)
    if config.extractor != "none":
        # `max_steps` limits the denoiser; the extractor has its own epochs.
        unlimited = change_settings(config, {"max_steps": None})
        adapted = train_extractor(unlimited, backbone, task.networks, images, validation, folder, resume, progress)
        facts |= {"extractor_best_epoch": adapted.epoch, "extractor_error": rounded(adapted.error)}
    # After the extractor, which changes the backbone and with it the map of features.
    scales = measure_scales(config, task.reconstruction(MapRule(1.0, 1.0, 0.0)), validation, progress)
    rule = MapRule(config.pixel_weight / scales[0], config.feature_weight / scales[1], config.maps.sigma)
    return FitResult(
        grid=config.preprocessing.size,
        tensors={"noise": task.noise},
        facts=facts | {"pixel_scale": rounded(scales[0]), "feature_scale": rounded(scales[1])},
        networks={"denoiser": state},
        rule=rule,
    )


class DenoiserTask:
    """The training of a denoiser; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        backbone: Extractor of features, for previews.
        validation: Normal images that choose the best epoch.

    Attributes:
        network: The denoiser.
        networks: Denoiser and comparison.
        noise: Noise of the sampling, float32 [K, 3, H, W].
    """

    def __init__(self, config: DdadConfig, backbone: Backbone, validation: ImageReader) -> None:
        self._config, self._validation = config, validation
        # Directly before the network is built: its initial weights depend on the seed alone.
        torch.manual_seed(config.seed)
        self.network: nn.Module = Denoiser(config)
        compare = Comparison(backbone, config.pixel_map, config.smoothing)
        self.networks = TorchNetworks(self.network, compare)
        self.noise = sampling_noise(config.sampling, (3, *config.preprocessing.size))
        self._shares = torch.from_numpy(signal_shares(config.sampling)).float()

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the denoiser's parameters."""
        return build_optimizer(self._config.denoising, self.network.parameters(), rate=self._config.loop.learning_rate)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared error of the predicted noise (arXiv:2006.11239, equation 14)."""
        # Augmentation, levels, noise: draws of one generator, whose order a resumed training must repeat.
        config = self._config
        inputs = augment(
            signed_images(images),
            generator,
            flip=config.augmentation.flip,
            rotate=config.augmentation.rotate,
            color_jitter=config.augmentation.color_jitter,
        )
        levels = noise_levels(len(inputs), TRAINED_STEPS, generator)
        errors = self._squared_errors(network, inputs, levels, generator)
        # `sum`: over an image's values, so that the gradient is larger by their number; then the mean over the batch.
        return errors.mean() if config.loss == "mean" else errors.flatten(1).sum(dim=1).mean()

    def _squared_errors(self, network: nn.Module, images: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[-2:]
        noise = draw_noise(self._config.noise, (len(images), 3, height, width), generator)
        noisy = add_noise(images, noise, self._shares.to(images.device)[levels])
        predicted: Tensor = network(noisy, levels)
        return (predicted.float() - noise).square()

    def validate(self) -> dict[str, float]:
        """Return the mean squared error of the predicted noise, with the same levels and noise every time."""

        def errors(images: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
            return self._squared_errors(self.network, signed_images(images), levels, generator)

        return noise_error(self._config, self._validation, errors, next(self.network.parameters()).device)

    def preview(self, path: Path) -> None:
        """Write validation images beside their reconstructions and maps."""
        images = next(self._validation.batches(range(min(_PREVIEWS, len(self._validation))), _PREVIEWS))
        # The loop moves the denoiser alone; the backbone in the comparison may still be elsewhere.
        self.networks.to(next(self.network.parameters()).device)
        write_strips(path, images, self.reconstruction(MapRule(1.0, 1.0, self._config.maps.sigma))(images))

    def reconstruction(self, rule: MapRule) -> Reconstruction:
        """Return the reconstruction that scores images, with the networks in their present state."""
        return Reconstruction(self.networks, self._config.sampling, self.noise, rule)


def measure_scales(
    config: DdadConfig, reconstruction: Reconstruction, reader: ImageReader, progress: Progress
) -> tuple[float, float]:
    """Return the divisors of the map of pixels and of the map of features.

    Each is the 99.9 % quantile of the pixels of normal images, or their largest value, in the smoothed map, as it is
    used: divided by it, either map alone reaches 1 there.
    """
    fixed = (config.pixel_threshold, config.feature_threshold)
    if fixed[0] is not None and fixed[1] is not None:
        return fixed[0], fixed[1]
    rules = (MapRule(1.0, 0.0, config.maps.sigma), MapRule(0.0, 1.0, config.maps.sigma))
    maps: tuple[list[Float32Array], list[Float32Array]] = ([], [])
    total, count = min(len(reader), MOST_VALIDATED), 0
    for images in reader.batches(range(total), config.loop.batch_size):
        reconstructed = reconstruction(images)
        for batches, rule in zip(maps, rules, strict=True):
            batches.append(finish_maps(reconstructed.pixel, reconstructed.feature, rule)[0])
        count += len(images)
        progress("measuring the maps", count, total)
    share = _QUANTILE if config.map_scale == "quantile" else 1.0
    measured = [float(np.quantile(np.concatenate(batches), share)) for batches in maps]
    pixel, feature = (value if setting is None else setting for value, setting in zip(measured, fixed, strict=True))
    # A backbone that sees no difference at all gives 0: divided by the smallest number it stays 0, not NaN.
    least = float(np.finfo(np.float32).tiny)
    return max(pixel, least), max(feature, least)


class DdadTrainer(Trainer):
    """Trains and restores DDAD."""

    has_epochs = True
    takes_processes = True
    drawn_on = 3  # a reconstruction takes many passes through the denoiser
    drawn_strengths = (0.5,)

    def fit(self, request: FitRequest) -> FitResult:
        """Train the denoiser, or reuse that of `request.start`, and the extractor; see `train_ddad`."""
        return train_ddad(
            request.config,
            request.backbone,
            request.samples,
            request.hashes,
            request.folder,
            request.resume,
            request.progress,
            request.start,
        )

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> Reconstruction:
        """Return denoiser, comparison and their sampling."""
        config = cast("DdadConfig", record.config)
        assert fit_result.rule is not None, "refused by `check`"
        denoiser = Denoiser(config)
        load_state(denoiser, fit_result.networks.get("denoiser", {}), f"{path}: denoiser")
        networks = TorchNetworks(denoiser, Comparison(backbone, config.pixel_map, config.smoothing))
        noise = fit_result.tensors["noise"].astype(np.float32)
        return Reconstruction(networks, config.sampling, noise, fit_result.rule)

    def scores(
        self, config: Any, module: Reconstruction, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores; see `Trainer.scores`."""
        return reconstruction_scores(module, images, exact=False)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the noise of the sampling."""
        return frozenset({"noise"})

    def check(self, path: Path, record: RunRecord, bank: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Raise RunError unless the run has its map rule and noise."""
        check_rule(path, record.rule is not None)
        super().check(path, record, bank)

    def check_start(self, config: DdadConfig) -> None:
        """Raise ArgumentError if the settings train no extractor, for then nothing is left to train."""
        if config.extractor == "none":
            super().check_start(config)

    def start_settings(self) -> frozenset[str]:
        """Return the settings that the denoiser does not depend on."""
        return AFTER_DENOISER

    def describe(self, config: DdadConfig) -> str:
        """Return how the extractor was trained, if it was."""
        return "" if config.extractor == "none" else f"extractor by {config.extractor}"


TRAINER = DdadTrainer()
