"""A detector that the project does not know: it compares each pixel with the mean of the normal images.

Everything that a new method has to bring is here, and a row for the table of methods.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from flawscope.bundle import Head
from flawscope.config import FeatureSettings, HeldOutSettings, LineInputSettings, MethodConfig
from flawscope.export.detectors.graph_exporter import GraphExporter
from flawscope.methods import Method
from flawscope.runs import RunRecord
from flawscope.runtime.scorers.graph_scorer import GRAPH
from flawscope.training.features.backbone import Backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import load_batches
from flawscope.training.trainer import FitRequest, Trainer

ROW = Method(
    "toy",
    "detector",
    "The distance of every pixel to the mean of the normal images.",
    "docs/training.md",
    settings="toy_method:ToyConfig",
    head="toy_method:ToyHead",
    trainer="toy_method:TRAINER",
    exporter="toy_method:EXPORTER",
    scorer="toy_method:SCORER",
)
SCORER = GRAPH


class ToyConfig(MethodConfig, frozen=True, kw_only=True, tag_field="method", tag="toy"):
    """Distance to the mean image.

    Attributes:
        power: What the distances are raised to.
    """

    input: LineInputSettings = LineInputSettings()
    features: FeatureSettings = FeatureSettings()
    split: HeldOutSettings = HeldOutSettings()
    power: float = 1.0


class ToyHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="toy"):
    """What the manifest says of it.

    Attributes:
        power: As in the settings.
        scale: An ordinary score.
    """

    power: float
    scale: float


class ToyNetwork(nn.Module):
    """Image uint8 [N, H, W, 3] in, map float32 [N, H, W] and its maximum float32 [N] out."""

    mean: Tensor

    def __init__(self, mean: Tensor, power: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.power = power

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and scores."""
        distance = (image.float() / 255 - self.mean).abs().mean(dim=3).pow(self.power)
        return distance, distance.amax(dim=(1, 2))


class ToyTrainer(Trainer):
    """Takes the mean."""

    def fit(self, request: FitRequest) -> FitResult:
        """Read every image once."""
        batches = load_batches(request.images, request.config.preprocessing, 4, 1)
        images = np.concatenate(list(batches)).astype(np.float32) / 255
        return FitResult(grid=images.shape[1:3], tensors={"mean": images.mean(axis=0)}, facts={"images": len(images)})

    def restore(self, path: Path, record: RunRecord, backbone: Backbone, fitted: FitResult) -> ToyNetwork:
        """Return the network."""
        config: Any = record.config
        return ToyNetwork(torch.from_numpy(fitted.tensors["mean"]), config.power).eval()

    def needed_tensors(self, record: RunRecord) -> frozenset[str]:
        """Return the mean image."""
        return frozenset({"mean"})


TRAINER = ToyTrainer()
EXPORTER = GraphExporter(lambda config, scale: ToyHead(config.power, scale))
