"""Time of the parts of an inference: the feature graph, the search in the bank, and what makes maps of distances."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from flawscope.arrays import Float32Array, UInt8Array

INFER_PARTS = ("graph", "search", "map")
"""`graph`: normalization, which is its first nodes, and backbone; `search`: distances of all patches; `map`: the map's
upsampling and blur, and the score of the image."""

Mark = Callable[[str], None]
"""Called with the name of a part when it ends."""


def no_mark(part: str) -> None:
    """Do nothing: nobody measures."""


@runtime_checkable
class TimedScorer(Protocol):
    """A scorer whose inference has several parts; others compute everything in one graph, or are loops of graphs."""

    def score_marked(self, images: UInt8Array, mark: Mark) -> tuple[Float32Array, Float32Array]:
        """Return what `score` returns; `mark` is called at the end of each of `INFER_PARTS`, in their order."""


class PartClock:
    """Milliseconds of each of `INFER_PARTS` of one inference. Begin right before it; pass `mark` to it."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self._before = time.perf_counter()

    def mark(self, part: str) -> None:
        """Note the time since the last part."""
        assert part == INFER_PARTS[len(self.milliseconds)], part
        now = time.perf_counter()
        self.milliseconds.append(1e3 * (now - self._before))
        self._before = now
