"""What the settings of all detectors share."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from flawscope.errors import ArgumentError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling


class DetectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all detectors share.

    Attributes:
        backbone: `scattering` (fixed filters, no download), or the name of any timm model.
        stages: Feature stages; stage s has stride 2^(s+1): 1 is /4, 2 is /8, 3 is /16.
        backbone_options: Further arguments of `timm.create_model`, for example {"pad_type": "same"}.
        mean: Per-channel mean on [0, 1] that the backbone expects; None takes the backbone's own.
        std: Per-channel deviation, as `mean`.
        resize: Height and width in pixels after the resize.
        crop: Height and width of a centre crop that follows, or None.
        tile: Height and width in pixels of the tiles that pictures are cut into, each resized to `resize`; None takes
            pictures whole. Export, thresholds and the line use the same tiles.
        tile_overlap: Share of a tile that its neighbour has too, on the line; training takes tiles side by side.
        upsample: How coarser stages reach the grid of the finest.
        standardize: What patches are multiplied with, measured on good ones: `none`, `scale` (one over every
            channel's deviation), `whiten` (decorrelated, principal axes at equal deviation), or `auto`, which is
            `none` but for `scattering`, whose channels have no learned scale.
        sigma: Standard deviation of the anomaly map's Gaussian, in input pixels.
        held_out: Share of the good training images that is kept for calibration.
        held_out_minimum: At least so many, where there are enough images.
        batch_size: Images per forward pass.
        num_workers: Threads that decode and resize.
        device: `auto`, `cpu` or `cuda`, for training only.
        memory_budget_mb: Upper bound of the patch matrix held in memory during fitting.
        seed: Seed of every random choice.
    """

    backbone: str = "scattering"
    stages: tuple[int, ...] = (1, 2, 3)
    backbone_options: dict[str, Any] = {}
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: tuple[int, int] = (256, 256)
    crop: tuple[int, int] | None = None
    tile: tuple[int, int] | None = None
    tile_overlap: float = 0.25
    upsample: Literal["nearest", "bilinear"] = "nearest"
    standardize: Literal["auto", "none", "scale", "whiten"] = "auto"
    sigma: float = 4.0
    held_out: float = 0.1
    held_out_minimum: int = 20
    batch_size: int = 8
    num_workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_budget_mb: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or not self.stages[0] >= 0:
            raise ArgumentError(f"stages: expected rising stage numbers such as 1,2,3, got {list(self.stages)}.")
        check(0.0 <= self.held_out < 1.0, "held_out", "a share from 0 to below 1", self.held_out)
        check(self.held_out_minimum >= 0, "held_out_minimum", "a count of at least 0", self.held_out_minimum)
        check(0.0 <= self.sigma <= 1000.0, "sigma", "0 to 1000 pixels", self.sigma)
        check(1 <= self.batch_size <= 1024, "batch_size", "1 to 1024", self.batch_size)
        check(1 <= self.num_workers <= 64, "num_workers", "1 to 64", self.num_workers)
        check(self.memory_budget_mb >= 16, "memory_budget_mb", "at least 16", self.memory_budget_mb)
        check(self.seed >= 0, "seed", "a number of at least 0", self.seed)
        if self.mean is not None:
            check(all(map(math.isfinite, self.mean)), "mean", "finite numbers", list(self.mean))
        if self.std is not None:
            check(all(0.0 < one < math.inf for one in self.std), "std", "positive numbers", list(self.std))
        _ = self.preprocessing  # refuses impossible sizes
        check(0.0 <= self.tile_overlap <= 0.5, "tile_overlap", "a share from 0 to 0.5", self.tile_overlap)
        if self.tiling is not None:
            check(self.crop is None, "crop", "none with tiles", self.crop)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these settings ask for."""
        return Preprocessing(resize=self.resize, crop=self.crop)

    @property
    def tiling(self) -> Tiling | None:
        """How pictures are cut, or None where they are taken whole."""
        return None if self.tile is None else Tiling(self.tile, self.tile_overlap)


def check(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ArgumentError unless a setting is as expected."""
    if not holds:
        raise ArgumentError(f"{name}: expected {expected}, got {got!r}.")
