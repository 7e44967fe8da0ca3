"""LafitE: a bank of normal features to edit with, and a denoiser trained on normal features (arXiv:2307.08059)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.config import LafiteConfig
from flawscope.cpp_ext import kcenter_greedy
from flawscope.datasets import Sample
from flawscope.diffusion.schedule import TRAINED_STEPS, signal_shares
from flawscope.errors import DataError
from flawscope.imaging.png import write_png
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.detectors.lafite_network import FeatureDenoiser, JoinedFeatures
from flawscope.training.detectors.lafite_scores import LafiteDetector, lafite_head
from flawscope.training.diffusion.noise import add_noise, draw_noise, noise_levels, sampling_noise
from flawscope.training.features.backbone import Backbone
from flawscope.training.features.cached_backbone import CachedBackbone
from flawscope.training.features.patch_extraction import covariance_of, scale_factors
from flawscope.training.loop.epoch_data import noise_error, split_images, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import METRICS, PREVIEWS, run_loop
from flawscope.training.loop.network_state import load_state
from flawscope.training.loop.optimizers import build_optimizer
from flawscope.training.trainer import EpochTrainer

_MEASURED = 64
"""Images from which mean and deviation of the channels are measured: tens of thousands of patches."""

_PREVIEWS = 4


def train_lafite(
    config: LafiteConfig,
    backbone: Backbone,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
) -> FitResult:
    """Measure the channels, choose the bank, and train the denoiser, on normal images.

    Args:
        config: Settings.
        backbone: Frozen backbone with its weights, on its device.
        samples: Normal images; a share of them chooses the best epoch. The bank is of all of them.
        hashes: Content hash of every image.
        folder: Where metrics, previews and checkpoints are written.
        resume: Resume from the newest checkpoint there.
        progress: Receives progress.

    Raises:
        DataError: If there are too few images, or the backbone gives NaN or infinity.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    images, validation = split_images("lafite", config, config.data, samples, hashes, progress)
    # Every epoch sees the same images: the backbone, most of an epoch's time, sees each of them once.
    with tempfile.TemporaryFile(dir=folder) as file:
        features = standardized_features(config, CachedBackbone(backbone, file), images, progress)
        tensors: dict[str, npt.NDArray[np.generic]] = {
            "offset": features.get_buffer("offset").cpu().numpy(),
            "factor": features.get_buffer("factor").cpu().numpy(),
        }
        facts: dict[str, int | float | str] = {"channels": features.channels}
        bank = choose_bank(config, features, (images, validation), progress) if config.editing else None
        if bank is not None:
            tensors["bank"] = bank
            facts["bank_rows"] = len(bank)
        networks: dict[str, dict[str, Tensor]] = {}
        if config.diffusion:
            task = FeatureTask(config, features, bank, validation)
            trained = run_loop(task, images, config, folder, resume=resume, progress=progress)
            tensors["noise"] = task.noise
            networks["denoiser"] = trained.state
            facts |= training_facts(trained) | {"validation_pictures": len(validation)}
        else:
            # The history of a run in which nothing was trained.
            (folder / METRICS).touch()
            (folder / PREVIEWS).mkdir(exist_ok=True)
    return FitResult(grid=config.grid, tensors=tensors, facts=facts, networks=networks)


def standardized_features(
    config: LafiteConfig, backbone: Backbone, images: ImageReader, progress: Progress
) -> JoinedFeatures:
    """Return the features whose channels have mean 0 and deviation 1 over images, on the backbone's device."""
    raw = JoinedFeatures(backbone, config.grid, config.preprocessing.size).to(backbone.get_buffer("scale").device)
    chosen = range(0, len(images), max(1, len(images) // _MEASURED))
    patches = patches_of(raw, images, chosen, config, "measuring channels", progress)
    _, mean, covariance = covariance_of(torch.from_numpy(of_image)[None] for of_image in patches)
    features = JoinedFeatures(backbone, config.grid, config.preprocessing.size, mean.float(), scale_factors(covariance))
    return features.to(backbone.get_buffer("scale").device)


def patches_of(
    features: JoinedFeatures,
    reader: ImageReader,
    order: Sequence[int],
    config: LafiteConfig,
    stage: str,
    progress: Progress,
) -> Iterator[Float32Array]:
    """Yield the patches of every image, float32 [h·w, C].

    Raises:
        DataError: If the network gives NaN or infinity for an image.
    """
    device, count = features.get_buffer("offset").device, 0
    progress(stage, 0, len(order))
    for batch in reader.batches(order, config.loop.batch_size):
        with torch.inference_mode():
            found = features(torch.from_numpy(batch).to(device)).flatten(2).transpose(1, 2).cpu().numpy()
        # A single NaN would spread through every mean and distance.
        if not np.isfinite(found).all():
            raise DataError(
                "features: expected finite numbers, got NaN or infinity for one of the training images. Are these the "
                "weights' mean and std?"
            )
        yield from found
        count += len(batch)
        progress(stage, count, len(order))


def choose_bank(
    config: LafiteConfig, features: JoinedFeatures, readers: Sequence[ImageReader], progress: Progress
) -> Float32Array:
    """Return a greedy k-centre selection of normal patches, float32 [M, C].

    It is made among the same number of random patches of every image, `candidates` in all; the share `coreset` counts
    from all patches.
    """
    images, positions = sum(len(reader) for reader in readers), config.grid[0] * config.grid[1]
    each = max(1, min(positions, config.candidates // images))
    generator = np.random.default_rng([config.seed, 3])
    matrix = np.empty((images * each, features.channels), np.float32)
    start = 0
    for reader in readers:
        for patches in patches_of(features, reader, range(len(reader)), config, "reading patches", progress):
            # Sorted, so that the rows stay in the order of the image.
            kept = np.sort(generator.permutation(positions)[:each])
            matrix[start : start + each] = patches[kept]
            start += each
    share = round(config.coreset * images * positions) if config.coreset <= 1 else round(config.coreset)
    count = max(1, min(share, config.max_bank, len(matrix)))
    chosen = kcenter_greedy(
        matrix, count, config.seed, lambda done, total: progress("selecting the coreset", done, total)
    )
    return np.ascontiguousarray(matrix[chosen])


class FeatureTask:
    """The training of a denoiser of features; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        features: Standardized features.
        bank: The bank, for previews; None without editing.
        validation: Normal images that choose the best epoch.

    Attributes:
        network: The denoiser.
        noise: Noise of the sampling, float32 [K, C, h, w].
    """

    def __init__(
        self, config: LafiteConfig, features: JoinedFeatures, bank: Float32Array | None, validation: ImageReader
    ) -> None:
        self._config, self._features, self._validation = config, features, validation
        # Directly before the network is built: its initial weights depend on the seed alone.
        torch.manual_seed(config.seed)
        denoiser = FeatureDenoiser(config, features.channels)
        self.network: nn.Module = denoiser
        self.noise = sampling_noise(config.sampling, (features.channels, *config.grid))
        self._shares = torch.from_numpy(signal_shares(config.sampling)).float()
        head = lafite_head(config, 0.0)
        self._detector = LafiteDetector(features, head, config.preprocessing.size, denoiser, bank, self.noise)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer of the denoiser's parameters."""
        return build_optimizer(self._config.denoising, self.network.parameters(), rate=self._config.loop.learning_rate)

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the predicted noise (arXiv:2006.11239, equation 14)."""
        levels = noise_levels(len(images), TRAINED_STEPS, generator)
        return self._squared_errors(network, images, levels, generator).mean()

    def _squared_errors(self, network: nn.Module, images: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            features = self._features.to(images.device)(images).float()
        noise = draw_noise("gaussian", tuple(features.shape), generator)
        noisy = add_noise(features, noise, self._shares.to(images.device)[levels])
        predicted: Tensor = network(noisy, levels)
        return (predicted.float() - noise).square()

    def validate(self) -> dict[str, float]:
        """Return the mean squared error of the predicted noise, with the same levels and noise every time."""

        def errors(images: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
            return self._squared_errors(self.network, images, levels, generator)

        return noise_error(self._config, self._validation, errors, next(self.network.parameters()).device)

    def preview(self, path: Path) -> None:
        """Write validation images beside their maps, all maps on one scale."""
        images = next(self._validation.batches(range(min(_PREVIEWS, len(self._validation))), _PREVIEWS))
        maps, _ = self._detector.to(next(self.network.parameters()).device).scores(list(images), exact=False)
        highest = float(maps.max()) or 1.0  # maps that are zero everywhere stay black
        rows = [
            np.hstack(
                [
                    cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                    cv2.applyColorMap((255 * values / highest).astype(np.uint8), cv2.COLORMAP_INFERNO),
                ]
            )
            for image, values in zip(images, maps, strict=True)
        ]
        write_png(path, np.vstack(rows), is_bgr=True)


class LafiteTrainer(EpochTrainer):
    """Trains and restores LafitE."""

    train = staticmethod(train_lafite)
    drawn_on = 3  # many passes through the denoiser
    drawn_strengths = (0.5,)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> LafiteDetector:
        """Return features, bank and denoiser; a run whose denoiser lacks tensors is refused."""
        config = cast("LafiteConfig", record.config)
        tensors = {name: value.astype(np.float32) for name, value in fit_result.tensors.items()}
        offset, factor = (torch.from_numpy(tensors[name]) for name in ("offset", "factor"))
        features = JoinedFeatures(backbone, config.grid, config.preprocessing.size, offset, factor)
        denoiser = None
        if config.diffusion:
            denoiser = FeatureDenoiser(config, features.channels)
            load_state(denoiser, fit_result.networks.get("denoiser", {}), f"{path}: denoiser")
        head = lafite_head(config, 0.0)
        size = config.preprocessing.size
        return LafiteDetector(features, head, size, denoiser, tensors.get("bank"), tensors.get("noise"))

    def scores(
        self, config: Any, module: LafiteDetector, fit_result: FitResult, images: Sequence[UInt8Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return maps and scores; see `Trainer.scores`."""
        return module.scores(images, exact=False)

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return mean and factor of the channels, and bank and noise where they are used."""
        config = cast("LafiteConfig", record.config)
        used = {"bank": config.editing, "noise": config.diffusion}
        return frozenset({"offset", "factor", *(name for name, is_used in used.items() if is_used)})


TRAINER = LafiteTrainer()
