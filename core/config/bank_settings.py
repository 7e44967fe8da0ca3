"""Settings of a memory bank: what its patches are, how distances to it are measured, and how they become a score."""

from __future__ import annotations

import math
from typing import Literal

from flawscope.config.setting_parts import SettingPart, check


class BankSettings(SettingPart, frozen=True, kw_only=True):
    """The memory bank and the distances to it.

    Attributes:
        pool: Every stage is averaged over 3 x 3 positions first (PatchCore, section 3.1). A ViT's tokens have seen the
            whole image already: AnomalyDINO does without.
        layers: `joined` puts the channels of all stages into a patch; `separate` keeps a bank for each stage (of
            each scale) and takes the mean of their distances (SuperADD, RAD). All are on the grid of the finest.
        metric: Distance of two patches: `euclidean`, or `cosine`: patches are divided by their length, and the distance
            is 1 - cos of the angle between them (AnomalyDINO, arXiv:2405.14529).
        top_share: Share of an image's patches, those farthest from the bank, whose mean distance is its score (0.01 in
            AnomalyDINO); at least one patch. 0 takes the farthest alone.
        views: Views of every fitting image that fill the bank: as it is (`none`), mirrored (`flips`, 4), turned by 90
            degrees (`quarters`, 4) or 45 (`rotations`, 8), or turned by 45 degrees and mirrored (`both`, 16). Fitting
            takes so many times as long.
        foreground: Only patches that show the part count, in bank and score: those on one side of a threshold
            along the first principal component of normal images (AnomalyDINO). For parts in front of a background.
        components: Principal axes that `standardize=whiten` keeps: a share of the variance up to 1, or a count above 1.
        shrinkage: How far `standardize=whiten` shrinks variances towards their mean, 0 to 1; null estimates it (OAS).
    """

    pool: bool = True
    layers: Literal["joined", "separate"] = "joined"
    metric: Literal["euclidean", "cosine"] = "euclidean"
    top_share: float = 0.0
    views: Literal["none", "flips", "quarters", "rotations", "both"] = "none"
    foreground: bool = False
    components: float = 1.0
    shrinkage: float | None = 0.0

    def __post_init__(self) -> None:
        check(0.0 <= self.top_share <= 1.0, "top_share", "a share from 0 to 1", self.top_share)
        is_count = 0.0 < self.components < math.inf
        check(is_count, "components", "a share up to 1 or a count above 1", self.components)
        is_share = self.shrinkage is None or 0.0 <= self.shrinkage <= 1.0
        check(is_share, "shrinkage", "0 to 1, or null", self.shrinkage)
