"""What the settings of all methods have in common: a seed, a device, and images of some size."""

from __future__ import annotations

from typing import Literal

import msgspec

from flawscope.config.input_settings import ResizeSettings
from flawscope.config.loop_settings import LoopSettings
from flawscope.config.setting_parts import check
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling


class Settings:
    """Base of the settings of all methods: a plain class, so that reading a record asks the table which struct it is.

    See `flawscope.bundle.heads.Head`, which does the same for heads.
    """

    __slots__ = ()


class MethodConfig(Settings, msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of a method: its parts, and what is its own.

    Only what every method uses may be here: a setting that one of them would ignore belongs to a part.

    Attributes:
        seed: Seed of every random choice.
        device: `auto`, `cpu` or `cuda`, for training only.
    """

    input: ResizeSettings = ResizeSettings()
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", "a number of at least 0", self.seed)

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing these settings ask for."""
        return self.input.preprocessing

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut into tiles, or None where they are taken whole."""
        return self.input.tiling


class TrainedConfig(MethodConfig, frozen=True, kw_only=True):
    """The settings of a method that has epochs."""

    loop: LoopSettings = LoopSettings()
