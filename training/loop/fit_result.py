"""Fit result, the same for every detector."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flawscope.diffusion.reconstruction import MapRule


@dataclass(frozen=True)
class FitResult:
    """A fitted detector.

    Attributes:
        grid: Rows and columns of the patch grid.
        tensors: The bank: names and arrays as the bundle stores them.
        transform: What patches are multiplied with: float32 [D], float32 [C, D] for C kept channels, or None.
        channels: Indices of the kept channels, or None for all.
        facts: What a person may want to know of the fit.
        networks: Name -> state of a trained network beside the backbone.
        unet: Settings of the UNet of a guided denoiser, or None for other methods.
        rule: How the maps of a reconstruction become one, or None for other methods.
    """

    grid: tuple[int, int]
    tensors: dict[str, npt.NDArray[np.generic]]
    transform: npt.NDArray[np.float32] | None = None
    channels: tuple[int, ...] | None = None
    facts: dict[str, int | float | str] = field(default_factory=dict)
    networks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rule: MapRule | None = None
    unet: dict[str, Any] | None = None
