"""STFPM: a student network learns to match a teacher's features on normal images, and deviates on anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flawscope.config import StfpmConfig
from flawscope.datasets import Sample
from flawscope.imaging.grid_places import GridPlaces
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.imaging.png import write_png
from flawscope.progress import Progress
from flawscope.runs import RunRecord
from flawscope.training.features.alignment import check_stages, measure_places
from flawscope.training.features.backbone import Backbone, restore_backbone, stages_of, untrained_backbone
from flawscope.training.features.stage_distances import stage_distances
from flawscope.training.loop.epoch_data import split_images, training_facts
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import ImageReader
from flawscope.training.loop.loop import run_loop
from flawscope.training.trainer import EpochTrainer

_PREVIEWS = 4


def train_stfpm(
    config: StfpmConfig,
    teacher: Backbone,
    samples: Sequence[Sample],
    hashes: Mapping[Path, str],
    folder: Path,
    resume: bool,
    progress: Progress,
) -> FitResult:
    """Train a student on normal images.

    Args:
        config: Settings.
        teacher: Frozen backbone with its weights.
        samples: Normal images; a share of them chooses the best epoch.
        hashes: Content hash of every image.
        folder: Where metrics, previews and checkpoints are written.
        resume: Resume from the newest checkpoint there.
        progress: Receives progress.

    Raises:
        DataError: If there are too few images.
        RunError: If memory runs out, the loss is not finite, or a checkpoint does not fit.
    """
    images, validation = split_images("stfpm", config, config.data, samples, hashes, progress)
    # Of the teacher: the student learns to give the same features at the same positions.
    measured = measure_places(teacher, config.preprocessing.size) if config.align else None
    places = None if measured is None else measured.places
    task = StfpmTask(config, teacher, validation, places)
    finest = stages_of(teacher, config.preprocessing.size)[0]
    trained = run_loop(task, images, config, folder, resume=resume, progress=progress)
    return FitResult(
        grid=(int(finest.shape[-2]), int(finest.shape[-1])),
        tensors={},
        facts=training_facts(trained)
        | {"validation_pictures": len(validation)}
        | ({} if measured is None else {"alignment": measured.note}),
        # The network alone: cast and normalisation belong to `Backbone` and are restored from the settings.
        networks={
            "student": {
                name.removeprefix("network."): value
                for name, value in trained.state.items()
                if name.startswith("network.")
            }
        },
        places=places,
    )


class StfpmNetwork(nn.Module):
    """Teacher and student: image in, anomaly map and score out (arXiv:2103.04257).

    `forward` takes uint8 [N, H, W, 3] and returns the map float32 [N, H, W], the product over the stages of half the
    squared distance of the normalised features (equations 2 and 3), each enlarged bilinearly, smoothed by a Gaussian
    if `sigma` is above 0; and its largest value, float32 [N].

    Args:
        teacher: Frozen backbone with its weights.
        student: The same architecture.
        size: Height and width of the map in pixels.
        sigma: Standard deviation of the Gaussian in pixels.
        places: Where the grid of each stage lies in the input, finest first; None: all are taken as centred.

    Raises:
        RunError: If there are places of more or fewer stages.
    """

    def __init__(
        self,
        teacher: Backbone,
        student: Backbone,
        size: tuple[int, int],
        sigma: float,
        places: Sequence[GridPlaces] | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.student, self.size = teacher, student, size
        rows, columns = (None, None) if sigma == 0 else map_matrices(size, size, sigma)
        # Registered even as None, so that `_buffers` has the names in either case.
        self.register_buffer("rows", None if rows is None else torch.from_numpy(rows), persistent=False)
        self.register_buffer("columns", None if columns is None else torch.from_numpy(columns), persistent=False)
        self._is_aligned = places is not None
        stages = [] if places is None else stages_of(teacher, size)
        check_stages(places or (), len(stages))
        for number, (stage, placed) in enumerate(zip(stages, places or (), strict=True)):
            # sigma 0: the Gaussian comes after the product of the stages.
            to_rows, to_columns = map_matrices((stage.shape[-2], stage.shape[-1]), size, 0.0, placed)
            self.register_buffer(f"rows{number}", torch.from_numpy(to_rows), persistent=False)
            self.register_buffer(f"columns{number}", torch.from_numpy(to_columns), persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and scores of a batch."""
        anomaly_map: Tensor | None = None
        # A product, not a sum: a position is anomalous where all stages agree.
        for number, distance in enumerate(stage_distances(self.teacher(image), self.student(image))):
            upsampled = self._upsample(distance, number)
            anomaly_map = upsampled if anomaly_map is None else anomaly_map * upsampled
        assert anomaly_map is not None
        smoothed = anomaly_map[:, 0]
        # A separable Gaussian as two matrix products: the same numbers in torch, ONNX Runtime and TensorRT.
        if self._buffers["rows"] is not None:
            smoothed = self.get_buffer("rows") @ smoothed @ self.get_buffer("columns")
        return smoothed, smoothed.amax(dim=(1, 2))

    def _upsample(self, distance: Tensor, number: int) -> Tensor:
        """Return the map of a stage, [N, h, w], in the size of the image, [N, 1, H, W]."""
        if self._is_aligned:
            drawn = self.get_buffer(f"rows{number}") @ distance @ self.get_buffer(f"columns{number}")
            return drawn[:, None]
        return functional.interpolate(distance[:, None], size=self.size, mode="bilinear", align_corners=False)


class StfpmTask:
    """The training of a student; see `flawscope.training.loop.loop.Task`.

    Args:
        config: Settings.
        teacher: Frozen backbone with its weights.
        validation: Normal images that choose the best epoch.
        places: As of `StfpmNetwork`.

    Attributes:
        network: The student.
    """

    def __init__(
        self,
        config: StfpmConfig,
        teacher: Backbone,
        validation: ImageReader,
        places: Sequence[GridPlaces] | None = None,
    ) -> None:
        self._config, self._teacher, self._validation = config, teacher, validation
        torch.manual_seed(config.seed)  # the student's initial weights depend on the seed alone
        student = untrained_backbone(config.features)
        student.requires_grad_(True)
        self.network: nn.Module = student
        # Shares the student's parameters, and puts it into inference mode; the loop sets the mode of `network` itself.
        self._model = StfpmNetwork(teacher, student, config.preprocessing.size, config.maps.sigma, places)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return stochastic gradient descent with momentum."""
        config = self._config
        return torch.optim.SGD(
            self.network.parameters(),
            lr=config.loop.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sum over stages of the mean distance (equation 3)."""
        self._teacher.to(images.device)
        with torch.no_grad():
            expected = self._teacher(images)
        distances = stage_distances(expected, network(images))
        factor = 2.0 if self._config.loss == "seed" else 1.0
        return factor * torch.stack([distance.mean() for distance in distances]).sum()

    def validate(self) -> dict[str, float]:
        """Return the mean of the maps of the validation images, and their largest score."""
        means, scores = [], []
        for images in self._validation.batches(range(len(self._validation)), self._config.loop.batch_size):
            maps, batch_scores = self._maps(images)
            means.append(maps.mean(dim=(1, 2)))
            scores.append(batch_scores)
        return {"error": float(torch.cat(means).mean()), "largest_score": float(torch.cat(scores).max())}

    def preview(self, path: Path) -> None:
        """Write validation images beside their maps, all maps on one scale."""
        images = next(self._validation.batches(range(min(_PREVIEWS, len(self._validation))), _PREVIEWS))
        maps = self._maps(images)[0].numpy()
        highest = float(maps.max()) or 1.0  # maps that are zero everywhere stay black
        coloured = [
            cv2.applyColorMap((255 * values / highest).astype(np.uint8), cv2.COLORMAP_INFERNO) for values in maps
        ]
        rows = [
            np.hstack([cv2.cvtColor(image, cv2.COLOR_RGB2BGR), heat])
            for image, heat in zip(images, coloured, strict=True)
        ]
        write_png(path, np.vstack(rows), is_bgr=True)

    def _maps(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[Tensor, Tensor]:
        device = next(self.network.parameters()).device
        self._model.to(device)
        self.network.eval()
        with torch.inference_mode():
            maps, scores = self._model(torch.from_numpy(images).to(device))
        return maps.float().cpu(), scores.float().cpu()


class StfpmTrainer(EpochTrainer):
    """Trains and restores STFPM."""

    train = staticmethod(train_stfpm)

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fit_result: FitResult) -> StfpmNetwork:
        """Return teacher and student; a run whose student lacks tensors is refused."""
        config = cast("StfpmConfig", record.config)
        student = restore_backbone(config.features, fit_result.networks.get("student", {}))
        size = config.preprocessing.size
        return StfpmNetwork(backbone, student, size, config.maps.sigma, fit_result.places)


TRAINER = StfpmTrainer()
