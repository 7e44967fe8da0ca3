"""The three stages of an inspection, for groups of images: they are loaded, scored in one inference, and judged."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Manifest
from flawscope.errors import ArgumentError
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.frame import Frame
from flawscope.runtime.image_loading import ImageLoader
from flawscope.runtime.image_sources import Color, Source
from flawscope.runtime.judge import Judge, LoadedImage
from flawscope.runtime.reading_ahead import load_ahead
from flawscope.runtime.results import Result, fault_of, fault_reason
from flawscope.runtime.tiled_image import score_tiles

_MOST_EARLY = 64
"""Batches that are read ahead, or inferred at once: more would only fill the memory."""


def check_taken_early(ahead: int, in_flight: int, backend: str) -> None:
    """Raise ArgumentError unless so many batches can be read ahead, and inferred at once on a backend."""
    if not isinstance(ahead, int) or not 0 <= ahead <= _MOST_EARLY:
        raise ArgumentError(f"ahead: expected 0 to {_MOST_EARLY} batches, got {ahead!r}.")
    if not isinstance(in_flight, int) or not 1 <= in_flight <= _MOST_EARLY:
        raise ArgumentError(f"in_flight: expected 1 to {_MOST_EARLY} batches, got {in_flight!r}.")
    if in_flight > 1 and not backend_row(backend).concurrent:
        raise ArgumentError(
            f"in_flight: expected 1 on backend {backend}, which infers one batch after the other, got {in_flight}. "
            "Raise batch instead."
        )


class _Scored(NamedTuple):
    """Maps and scores of the images of a group that were read, or why there are none; and each image's milliseconds."""

    maps: Sequence[Float32Array]
    scores: Sequence[float]
    failure: str | None
    share_ms: float


@dataclass(frozen=True)
class ImageStages:
    """The stages of one stream.

    Attributes:
        manifest: The bundle's manifest.
        loader: Reads and prepares images.
        infer: `Inspector.infer`.
        judge: Returns the judge in use, which may be another one from image to image.
        in_flight: Groups that are scored at once, each by a thread; more than one where the backend allows it.
    """

    manifest: Manifest
    loader: ImageLoader
    infer: Callable[[UInt8Array], tuple[Float32Array, Float32Array]]
    judge: Callable[[], Judge]
    in_flight: int = 1

    def run(
        self, groups: Iterable[list[tuple[int, Source | Frame]]], color: Color, product: str | None, ahead: int
    ) -> Iterator[Result]:
        """Yield the results of groups of images, each image with its position; arguments as `Inspector.stream`."""

        def load(group: list[tuple[int, Source | Frame]]) -> list[LoadedImage | Result]:
            judge = self.judge()
            return [self.loader.load(source, position, color, product, judge) for position, source in group]

        with contextlib.closing(load_ahead(groups, load, ahead)) as loaded_groups, self._threads() as start:
            waiting: deque[tuple[list[LoadedImage | Result], Callable[[], _Scored]]] = deque()
            for loaded in loaded_groups:
                waiting.append((loaded, start(loaded)))
                if len(waiting) >= self.in_flight:
                    yield from self._finish(*waiting.popleft())
            while waiting:
                yield from self._finish(*waiting.popleft())

    @contextlib.contextmanager
    def _threads(self) -> Iterator[Callable[[Sequence[LoadedImage | Result]], Callable[[], _Scored]]]:
        """Yield what starts the scoring of a group and returns how to wait for it; without threads it waits itself."""
        if self.in_flight == 1:
            yield lambda loaded: partial(self._score, loaded)
            return
        threads = ThreadPoolExecutor(self.in_flight, "flawscope-request")
        try:
            yield lambda loaded: threads.submit(self._score, loaded).result
        finally:
            # A stream that is left early does not begin what is waiting; what is under way has its time limits.
            threads.shutdown(cancel_futures=True)

    def _score(self, loaded: Sequence[LoadedImage | Result]) -> _Scored:
        """Return the maps and scores of a group; with tiles of its one image."""
        ready = [image.prepared for image in loaded if isinstance(image, LoadedImage)]
        started, tiling = time.perf_counter(), self.manifest.tiling
        maps: Sequence[Float32Array] = ()
        scores: Sequence[float] = ()
        failure = None
        if ready:  # np.stack refuses an empty list
            try:
                if tiling is not None:
                    anomaly_map, score = score_tiles(ready[0], tiling, self.manifest, self.infer)
                    maps, scores = [anomaly_map], [score]
                else:
                    # A single image is not copied.
                    found, numbers = self.infer(ready[0][None] if len(ready) == 1 else np.stack(ready))
                    maps, scores = list(found), [float(number) for number in numbers]
            except Exception as err:  # not only DeviceError: see `fault_reason`
                failure = fault_reason(err)
        return _Scored(maps, scores, failure, 1e3 * (time.perf_counter() - started) / max(len(ready), 1))

    def _finish(self, loaded: Sequence[LoadedImage | Result], wait: Callable[[], _Scored]) -> Iterator[Result]:
        """Yield the results of a group; images that could not be read have left the batch, and keep their place."""
        scored = wait()
        row = 0  # row of the batch, which counts only the images that were read
        for image in loaded:
            if isinstance(image, Result):
                yield image
                continue
            judge = self.judge()
            if scored.failure is not None:
                yield fault_of(image.seen, scored.failure, judge.origin, image.notes)
                continue
            yield judge.judge(image, scored.maps[row], scored.scores[row], scored.share_ms)
            row += 1
