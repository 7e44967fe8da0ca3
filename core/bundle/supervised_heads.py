"""Heads of DRAEM and DeSTSeg: the graph computes map and score, and there is no memory bank."""

from __future__ import annotations

from typing import Annotated

import msgspec

from flawscope.bundle.heads import Head
from flawscope.ranges import MAX_SIDE, NotNegative, Top

Window = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]


class DraemHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="draem"):
    """Head of DRAEM (arXiv:2108.07610).

    Attributes:
        score_window: Side of the window in pixels, odd, whose largest mean of the map is the score.
        scale: Typical score: the mean over the sample images.
    """

    score_window: Window
    scale: NotNegative

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        if self.score_window % 2 == 1:
            return None
        return f"expected an odd score window, which has a middle, got {self.score_window}"


class DestsegHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="destseg"):
    """Head of DeSTSeg (arXiv:2211.11317).

    Attributes:
        top: The score is the mean of so many pixels of the map, the highest ones.
        scale: As of `DraemHead`.
    """

    top: Top
    scale: NotNegative

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        if self.top <= size[0] * size[1]:
            return None
        return f"expected a score of at most the input's {size[0] * size[1]} pixels, got {self.top}"
