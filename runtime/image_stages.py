"""The three stages of an inspection, for groups of images: they are loaded, scored in one inference, and judged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import Manifest
from flawscope.imaging.tiles import Tiling
from flawscope.runtime.frame import Frame
from flawscope.runtime.image_loading import ImageLoader
from flawscope.runtime.image_sources import Color, Source
from flawscope.runtime.judge import Judge, LoadedImage
from flawscope.runtime.reading_ahead import load_ahead
from flawscope.runtime.results import Result, fault_of, fault_reason
from flawscope.runtime.tiled_image import score_tiles


@dataclass(frozen=True)
class ImageStages:
    """The stages of one stream.

    Attributes:
        manifest: The bundle's manifest.
        loader: Reads and prepares images.
        infer: `Inspector.infer`.
        judge: Returns the judge in use, which may be another one from image to image.
    """

    manifest: Manifest
    loader: ImageLoader
    infer: Callable[[UInt8Array], tuple[Float32Array, Float32Array]]
    judge: Callable[[], Judge]

    def run(
        self, groups: Iterable[list[tuple[int, Source | Frame]]], color: Color, product: str | None, ahead: int
    ) -> Iterator[Result]:
        """Yield the results of groups of images, each image with its position; arguments as `Inspector.stream`."""
        tiling = self.manifest.tiling

        def load(group: list[tuple[int, Source | Frame]]) -> list[LoadedImage | Result]:
            judge = self.judge()
            return [self.loader.load(source, position, color, product, judge) for position, source in group]

        with contextlib.closing(load_ahead(groups, load, ahead)) as loaded_groups:
            for loaded in loaded_groups:
                if tiling is None:
                    yield from self._score_batch(loaded)
                else:
                    yield self._score_tiles(loaded[0], tiling)

    def _score_batch(self, loaded: Sequence[LoadedImage | Result]) -> Iterator[Result]:
        """Score images in one inference; those that could not be read leave the batch and keep their place."""
        ready = [image for image in loaded if isinstance(image, LoadedImage)]
        maps = scores = None
        failure = ""
        started = time.perf_counter()
        if ready:  # np.stack refuses an empty list
            try:
                # A single image is not copied.
                one = ready[0].prepared[None]
                maps, scores = self.infer(one if len(ready) == 1 else np.stack([image.prepared for image in ready]))
            except Exception as err:  # not only DeviceError: see `fault_reason`
                failure = fault_reason(err)
        share_ms = 1e3 * (time.perf_counter() - started) / max(len(ready), 1)
        row = 0  # row of the batch, which counts only the images that were read
        for image in loaded:
            if isinstance(image, Result):
                yield image
                continue
            judge = self.judge()
            if maps is None or scores is None:
                yield fault_of(image.seen, failure, judge.origin, image.notes)
                continue
            yield judge.judge(image, maps[row], float(scores[row]), share_ms)
            row += 1

    def _score_tiles(self, loaded: LoadedImage | Result, tiling: Tiling) -> Result:
        """Score one image in tiles."""
        if isinstance(loaded, Result):
            return loaded
        started = time.perf_counter()
        try:
            anomaly_map, score = score_tiles(loaded.prepared, tiling, self.manifest, self.infer)
        except Exception as err:
            return fault_of(loaded.seen, fault_reason(err), self.judge().origin, loaded.notes)
        infer_ms = 1e3 * (time.perf_counter() - started)
        return self.judge().judge(loaded, anomaly_map, score, infer_ms)
