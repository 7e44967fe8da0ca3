"""Base of the settings of all methods: seed, device and input size."""

from __future__ import annotations

from typing import Literal

import msgspec

from flawscope.config.input_settings import ResizeSettings
from flawscope.config.loop_settings import LoopSettings
from flawscope.config.setting_parts import check
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling


class Settings:
    """Base of the settings of all methods.

    A plain class and no struct: msgspec then leaves decoding a record to `flawscope.runs`, which looks the struct up in
    the table of methods. `flawscope.bundle.heads.Head` does the same for heads.
    """

    __slots__ = ()


class MethodConfig(Settings, msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of a method: its parts, and the settings that are its own.

    Only what every method uses may be here: a setting that one of them would ignore belongs to a part.

    Attributes:
        seed: Seed of every random choice.
        device: Device of the training; the bundle runs on any. `auto` takes CUDA where it is available.
    """

    # A default may be shared by all instances, because every part is frozen.
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
    """Settings of a method that is trained in epochs."""

    loop: LoopSettings = LoopSettings()
