"""Settings of the methods that are fitted: their bundles have a bank."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.detector import DetectorConfig, check


class PatchcoreConfig(DetectorConfig, frozen=True, kw_only=True, tag_field="method", tag="patchcore"):
    """PatchCore (arXiv:2106.08265).

    Attributes:
        coreset: Share of all patches kept (up to 1), or their number (above 1).
        max_bank: Upper bound of the bank's rows, whatever `coreset` says.
        neighbors: b of equation 7; 1 switches the re-weighting off.
        reweight: `paper` (equation 7), `seed` (the test patch's own neighbours), or `none`.
        projection: Select the coreset in the full space (`none`), in a sparse random projection of
            Johnson-Lindenstrauss size (`jl`), or let the memory budget decide (`auto`).
    """

    stages: tuple[int, ...] = (2, 3)
    upsample: Literal["nearest", "bilinear"] = "bilinear"
    coreset: float = 0.01
    max_bank: int = 16384
    neighbors: int = 9
    reweight: Literal["paper", "seed", "none"] = "paper"
    projection: Literal["auto", "none", "jl"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0.0 < self.coreset < math.inf, "coreset", "a share up to 1 or a count above 1", self.coreset)
        check(1 <= self.max_bank <= 1_000_000, "max_bank", "1 to 1,000,000", self.max_bank)
        check(1 <= self.neighbors <= 64, "neighbors", "1 to 64", self.neighbors)


class PadimConfig(DetectorConfig, frozen=True, kw_only=True, tag_field="method", tag="padim"):
    """PaDiM (arXiv:2011.08785).

    Attributes:
        channels: Number of channels kept; the choice is stored in the run.
        reduction: How they are kept, under the seed: `sample` draws them at random (the paper), `ortho` projects all
            onto as many random orthonormal directions (arXiv:2105.14737), so that no channel is lost entirely.
        regularization: Added to the diagonal of every covariance.
    """

    channels: int = 100
    reduction: Literal["sample", "ortho"] = "sample"
    regularization: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.channels <= 4096, "channels", "1 to 4096", self.channels)
        check(0.0 < self.regularization < math.inf, "regularization", "a positive number", self.regularization)
