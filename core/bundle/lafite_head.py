"""Head of LafitE: how features are edited and denoised, and how their change becomes map and score."""

from __future__ import annotations

from typing import Annotated

import msgspec

from flawscope.bundle.heads import Head
from flawscope.diffusion.feature_editing import MOST_EDITED
from flawscope.diffusion.schedule import Sampling
from flawscope.ranges import MAX_SIDE, NotNegative, Share, Side, Sigma

Window = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Edited = Annotated[int, msgspec.Meta(ge=0, le=MOST_EDITED)]
Temperature = Annotated[float, msgspec.Meta(gt=0.0)]


class LafiteHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lafite"):
    """Head of LafitE (arXiv:2307.08059): the distance of features to what they are edited and denoised into.

    Attributes:
        grid: Rows and columns of the features.
        sampling: Noise levels, steps and seed of the denoising; None for no denoising.
        neighbors: Bank rows in the place of each patch; 0 for no editing.
        temperature: Of the rows' weights, in squared distance for each channel; see
            `flawscope.diffusion.feature_editing`.
        mix: Share of the edited features in what is denoised, the rest being the image's own.
        score_window: Side in pixels of the window of the map whose largest mean is the score.
        sigma: Standard deviation of the map's Gaussian, in input pixels; 0 for none.
        scale: Typical score: the mean over the sample images.
    """

    grid: tuple[Side, Side]
    sampling: Sampling | None
    neighbors: Edited
    temperature: Temperature
    mix: Share
    score_window: Window
    sigma: Sigma
    scale: NotNegative

    @property
    def fits_device(self) -> bool:
        """No CUDA kernels: the bank is searched on the host."""
        return False

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        if self.grid[0] > size[0] or self.grid[1] > size[1]:
            return f"expected a grid of at most the input's {list(size)} pixels, got {list(self.grid)}"
        if self.score_window > min(size):
            return f"expected a score window of at most the input's {list(size)} pixels, got {self.score_window}"
        if self.sampling is None and self.neighbors == 0:
            return "expected features that are edited, denoised, or both, got neither"
        return None
