"""Settings of the detectors that learn from labelled defects: where the defects come from, and the segmenter."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.feature_settings import FeatureSettings, MapSettings
from flawscope.config.input_settings import HeldOutSettings, LineInputSettings
from flawscope.config.loop_settings import LoopSettings, TrainingDataSettings, check_decay
from flawscope.config.method_settings import TrainedConfig
from flawscope.config.setting_parts import SettingPart, check
from flawscope.errors import ArgumentError
from flawscope.ranges import MOST_TOP

DefectSourceName = Literal["support", "drawn", "train", "procedural"]
"""Sources of labelled defects, by the settings that name them."""


class LabelledSettings(SettingPart, frozen=True, kw_only=True):
    """Labelled defects to learn from, in any mixture of four sources.

    Shares are parts of the anomalous images of a batch, and count in relation to each other: 1 and 3 are a quarter and
    three quarters. A source without a share of its own counts as 1.

    Attributes:
        support: Support set of real defects: folder written by `synth support`; null for none.
        drawn: Folders of drawn defects, written by `synth generate`, `synth paste` or `synth perlin`.
        drawn_number: Most drawn images that are learned from, of every folder and defect type in turn; null for all.
        train_defects: Learn from the anomalous images with masks in the dataset's own train split.
        procedural: Draw anomalies anew for each batch (Perlin noise, as DRAEM does).
        defects: Defect types to learn, as DEFECT or CATEGORY/DEFECT; empty for all that the sources have. Procedural
            anomalies are of no type.
        support_share: Share of support images; null for 1.
        drawn_share: Share of drawn images; null for 1.
        train_share: Share of anomalous training images; null for 1.
        procedural_share: Share of procedural anomalies; null for 1.
        weak_tau: Use the boxes of drawn images as labels, and count pixels inside only where the probability of a
            defect is above this (AnoGen: 0.1); null uses their precise masks. Masks of real defects always count whole.
    """

    support: str | None = None
    drawn: tuple[str, ...] = ()
    drawn_number: int | None = None
    train_defects: bool = False
    procedural: bool = False
    defects: tuple[str, ...] = ()
    support_share: float | None = None
    drawn_share: float | None = None
    train_share: float | None = None
    procedural_share: float | None = None
    weak_tau: float | None = None

    def __post_init__(self) -> None:
        for name, is_named in self._named().items():
            share = getattr(self, f"{name}_share")
            if share is None:
                continue
            check(is_named, f"{name}_share", f"none without {_SETTING_OF[name]}", share)
            # A share of nothing would be a source that is named and never learned from.
            check(0.0 < share < math.inf, f"{name}_share", "a number above 0 (leave the source out instead)", share)
        check(len(set(self.drawn)) == len(self.drawn), "drawn", "different folders", list(self.drawn))
        if self.drawn_number is not None:
            check(self.drawn_number >= 1, "drawn_number", "at least 1, or null", self.drawn_number)
            check(bool(self.drawn), "drawn_number", "null without drawn", self.drawn_number)
        if self.weak_tau is not None:
            check(0.0 <= self.weak_tau < 1.0, "weak_tau", "a probability from 0 to below 1", self.weak_tau)
            check(bool(self.drawn), "weak_tau", "null without drawn, whose boxes it is for", self.weak_tau)

    def _named(self) -> dict[DefectSourceName, bool]:
        return {
            "support": self.support is not None,
            "drawn": bool(self.drawn),
            "train": self.train_defects,
            "procedural": self.procedural,
        }

    @property
    def shares(self) -> dict[DefectSourceName, float]:
        """Share of each source that is named, in the order of the settings; together 1."""
        parts = {name: getattr(self, f"{name}_share") or 1.0 for name, is_named in self._named().items() if is_named}
        return {name: part / sum(parts.values()) for name, part in parts.items()}

    def check_named(self) -> None:
        """Raise ArgumentError unless there is a source.

        Not in `__post_init__`: settings are complete without any, so that they can be listed and merged.
        """
        if not self.shares:
            raise ArgumentError(
                "labelled defects: expected at least one source, got none. Name a support set (support=DIR), drawn "
                "defects (drawn=DIR), or set train_defects=true or procedural=true."
            )


_SETTING_OF: dict[DefectSourceName, str] = {
    "support": "support",
    "drawn": "drawn",
    "train": "train_defects",
    "procedural": "procedural",
}


class LabelledConfig(TrainedConfig, frozen=True, kw_only=True):
    """Settings of a detector that learns from labelled defects.

    Attributes:
        epoch_batches: Batches of an epoch.
        gamma: Exponent of the focal loss (arXiv:1708.02002).
        defective_share: Share of anomalous images in a batch.
        flip: Mirror half of the images left to right.
        flip_vertical: Mirror half of the images top to bottom.
        shift: Largest shift, as a share of the sides; borders are continued by reflection.
    """

    input: LineInputSettings = LineInputSettings()
    split: HeldOutSettings = HeldOutSettings()
    data: TrainingDataSettings = TrainingDataSettings(validation=0.1)
    labelled: LabelledSettings = LabelledSettings()
    epoch_batches: int = 25
    gamma: float = 2.0
    defective_share: float = 0.5
    flip: bool = True
    flip_vertical: bool = False
    shift: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.epoch_batches <= 1_000_000, "epoch_batches", "1 to 1,000,000", self.epoch_batches)
        check(self.loop.batch_size >= 2, "batch_size", "at least 2, of which one is normal", self.loop.batch_size)
        check(0.0 <= self.gamma <= 10.0, "gamma", "0 to 10", self.gamma)
        check(0.0 < self.defective_share < 1.0, "defective_share", "a share above 0 and below 1", self.defective_share)
        check(0.0 <= self.shift <= 0.25, "shift", "a share from 0 to 0.25", self.shift)

    @property
    def anomalous(self) -> int:
        """Number of anomalous images in a batch: at least one, and at least one fewer than the batch."""
        return min(max(1, round(self.loop.batch_size * self.defective_share)), self.loop.batch_size - 1)


class SegmenterConfig(LabelledConfig, frozen=True, kw_only=True, tag_field="method", tag="segmenter"):
    """A segmenter of defects on a frozen backbone: a U-shaped decoder (arXiv:1505.04597) that learns from labels.

    Attributes:
        width: Channels of the decoder, a multiple of 8.
        train_encoder: Train the backbone too; the statistics of its batch norm stay fixed.
        encoder_rate: Learning rate of the backbone, as a share of `learning_rate`.
        top: The score of an image is the mean of so many pixels of its map, the highest ones (DeSTSeg).
        weight_decay: Weight decay of AdamW.
    """

    features: FeatureSettings = FeatureSettings()
    maps: MapSettings = MapSettings(sigma=0.0)
    loop: LoopSettings = LoopSettings(
        epochs=40, batch_size=16, learning_rate=2e-3, schedule="cosine", warmup_steps=20, ema=0.98, patience=10
    )
    width: int = 48
    train_encoder: bool = False
    encoder_rate: float = 0.1
    top: int = 100
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(8 <= self.width <= 1024 and self.width % 8 == 0, "width", "a multiple of 8, 8 to 1024", self.width)
        backbone = self.features.backbone
        can_learn = not self.train_encoder or backbone != "scattering"
        check(can_learn, "backbone", "a network that can be trained (train_encoder is set)", backbone)
        check(0.0 < self.encoder_rate <= 1.0, "encoder_rate", "a share above 0 up to 1", self.encoder_rate)
        height, width = self.preprocessing.size
        most = min(MOST_TOP, height * width)
        check(1 <= self.top <= most, "top", f"1 to {most} pixels", self.top)
        check_decay(self.weight_decay)
