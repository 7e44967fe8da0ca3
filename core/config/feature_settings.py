"""Settings of the features: the backbone, the patches taken from it, and the anomaly map."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import msgspec

from flawscope.config.setting_parts import SettingPart, check
from flawscope.errors import ArgumentError


class FeatureSettings(SettingPart, frozen=True, kw_only=True):
    """The backbone and its feature stages.

    Attributes:
        backbone: Feature extractor: `scattering` (fixed wavelet filters, no download), or the name of any timm model,
            with its tag where several weights are published under one name (`resnet18.tv_in1k`).
        stages: Stages that give features, numbered as timm's `out_indices`. For ResNets and most networks stage s has
            stride 2^(s+1): 1 is /4, 2 is /8, 3 is /16. Null takes the stages of stride 4, 8 and 16, or, where all have
            one stride, as in a ViT, the blocks after each quarter of the depth; the run records which.
        backbone_options: Further arguments of `timm.create_model`, such as {"pad_type": "same"}.
        mean: Channel means the backbone expects, for pixels in [0, 1]; null takes those that come with the weights.
        std: Channel standard deviations, as `mean`.
        final_norm: Pass the features of every block through the final normalization of the network; null does so where
            all stages have one stride and the network allows it, as in a ViT.
        accept_licence: Licence of weights that forbids commercial use, and is accepted all the same.
    """

    AUTO_STAGES: ClassVar[tuple[int, ...]] = (1, 2, 3)
    """Stages that null stands for, by strides: s is the stage of stride 2^(s+1)."""

    backbone: str = "scattering"
    stages: tuple[int, ...] | None = None
    backbone_options: dict[str, Any] = msgspec.field(default_factory=dict)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    final_norm: bool | None = None
    accept_licence: str | None = None

    def __post_init__(self) -> None:
        # Rising and without repeats: the first stage gives the patch grid, and channels are joined in this order.
        if self.stages is not None and (
            not self.stages or list(self.stages) != sorted(set(self.stages)) or not self.stages[0] >= 0
        ):
            raise ArgumentError(f"stages: expected rising stage numbers such as 1,2,3, got {list(self.stages)}.")
        if self.mean is not None:
            check(all(map(math.isfinite, self.mean)), "mean", "finite numbers", list(self.mean))
        if self.std is not None:
            # Images are divided by it.
            check(all(0.0 < value < math.inf for value in self.std), "std", "positive numbers", list(self.std))


class CoarseFeatureSettings(FeatureSettings, frozen=True, kw_only=True):
    """The backbone and its feature stages.

    Attributes:
        stages: Stages that give features, numbered as timm's `out_indices`. For ResNets and most networks stage s has
            stride 2^(s+1): 1 is /4, 2 is /8, 3 is /16. Null takes the stages of stride 8 and 16, or, where all have one
            stride, as in a ViT, the blocks after each quarter of the depth; the run records which.
    """

    AUTO_STAGES: ClassVar[tuple[int, ...]] = (2, 3)


class FineFeatureSettings(FeatureSettings, frozen=True, kw_only=True):
    """The backbone and its feature stages.

    Attributes:
        stages: Stages that give features, numbered as timm's `out_indices`. For ResNets and most networks stage s has
            stride 2^(s+1): 0 is /2, 1 is /4, 2 is /8. Null takes the stages of stride 2, 4, 8 and 16 (those of them
            that `scattering` has), or, where all have one stride, as in a ViT, the blocks after each quarter of the
            depth; the run records which.
    """

    AUTO_STAGES: ClassVar[tuple[int, ...]] = (0, 1, 2, 3)


Standardization = Literal["none", "scale", "whiten"]
"""Standardization of patches: none, division by each channel's standard deviation, or a whitening matrix."""


MOST_SCALES = 5
"""Most scales of an image; each is a pass of the backbone."""


class PatchSettings(SettingPart, frozen=True, kw_only=True):
    """Patches, for methods that are fitted in one pass.

    Attributes:
        upsample: Interpolation that brings coarser stages to the patch grid, that of the finest stage.
        standardize: Standardization of patches, measured on normal images: `none`, `scale` (each channel to unit
            variance), `whiten` (decorrelated, unit variance along the principal axes), or `auto`: `none`, but for
            `scattering` the one that suits the method.
        align: Measure where the features of each stage lie in the image, and join stages and draw maps accordingly;
            off: every stage is taken as centred on the image.
        scales: Scales at which the backbone sees the image, 1 among them, such as 0.5,1 (MuRF). The graph resizes the
            image for each, and a patch has the stages of all of them side by side, on the grid of scale 1; with
            `layers=separate` there is a bank for each stage of each scale. Each costs as much as an image of its size.
        batch_size: Images per forward pass.
        num_workers: Threads that decode and resize images; 0 does so between the batches, without threads.
    """

    upsample: Literal["nearest", "bilinear"] = "nearest"
    # A default per method and backbone: learned features have a meaningful scale, scattering has none.
    standardize: Literal["auto", "none", "scale", "whiten"] = "auto"
    align: bool = True
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 8
    num_workers: int = 2

    def __post_init__(self) -> None:
        # Rising and without repeats, as stages are: the order of channels and banks follows from it. NaN rises nowhere.
        fit = all(0.1 <= scale <= 4.0 for scale in self.scales) and list(self.scales) == sorted(set(self.scales))
        is_good = fit and 1.0 in self.scales and len(self.scales) <= MOST_SCALES
        expected = f"at most {MOST_SCALES} rising numbers from 0.1 to 4, 1 among them"
        check(is_good, "scales", expected, list(self.scales))
        check(1 <= self.batch_size <= 1024, "batch_size", "1 to 1024", self.batch_size)
        check(0 <= self.num_workers <= 64, "num_workers", "0 to 64", self.num_workers)


class MapSettings(SettingPart, frozen=True, kw_only=True):
    """The anomaly map.

    Attributes:
        sigma: Standard deviation of the Gaussian that smooths the anomaly map, in input pixels; 0 for none.
    """

    sigma: float = 4.0

    def __post_init__(self) -> None:
        check(0.0 <= self.sigma <= 1000.0, "sigma", "0 to 1000 pixels", self.sigma)


def check_memory_budget(megabytes: int) -> None:
    """Raise ArgumentError if a memory budget in MiB is below 16."""
    check(megabytes >= 16, "memory_budget_mb", "at least 16", megabytes)
