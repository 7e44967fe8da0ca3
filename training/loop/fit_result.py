"""The fit result: what fitting any method returns, before it is written as a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from flawscope.diffusion.reconstruction import MapRule
from flawscope.imaging.grid_places import GridPlaces
from flawscope.learned_defects import LearnedDefects


@dataclass(frozen=True)
class FitResult:
    """A fitted method.

    Attributes:
        grid: Rows and columns of the patch grid.
        tensors: Name -> array as the bundle stores it: memory bank, Gaussians or noise.
        transform: Patches are multiplied with it: float32 [D], float32 [C, D] for C kept channels, or None.
        channels: Indices of the kept channels, or None for all.
        facts: Figures of the fit for the record.
        networks: Name -> state of a trained network other than the backbone.
        rule: How the two maps of a reconstruction become one, or None for other methods.
        unet: Settings of the UNet of a guided denoiser, or None for other methods.
        places: Where the grid of each feature stage lies in the input, finest first, those of scale 1 before
            those of other scales; None: all are taken as centred.
        defects: The labelled defects that were learned from, or None for methods that learn from normal images alone.
        defect_images: Hash of an image that was seen for them and may lie in a test split -> how it was seen.
    """

    grid: tuple[int, int]
    tensors: dict[str, npt.NDArray[np.generic]]
    transform: npt.NDArray[np.float32] | None = None
    channels: tuple[int, ...] | None = None
    facts: dict[str, int | float | str] = field(default_factory=dict)
    networks: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rule: MapRule | None = None
    unet: dict[str, Any] | None = None
    places: tuple[GridPlaces, ...] | None = None
    defects: LearnedDefects | None = None
    defect_images: dict[str, str] = field(default_factory=dict)

    @property
    def finest_places(self) -> GridPlaces | None:
        """Where the patches lie: the places of the finest stage."""
        return None if self.places is None else self.places[0]
