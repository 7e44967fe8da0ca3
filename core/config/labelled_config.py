"""Base of the settings of detectors that learn from labelled defects: batches, sources, augmentation, focal loss."""

from __future__ import annotations

from flawscope.config.input_settings import HeldOutSettings, LineInputSettings
from flawscope.config.loop_settings import TrainingDataSettings
from flawscope.config.method_settings import TrainedConfig
from flawscope.config.setting_parts import check
from flawscope.config.supervised_settings import LabelledSettings


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
