"""Batches of prepared images, decoded by a few threads ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.datasets import Sample
from flawscope.imaging.images import Preprocessing, prepare
from flawscope.imaging.tiles import ImageSource, Tiling, read_source, tiles_of
from flawscope.progress import Progress, no_progress


def load_batches(
    paths: Sequence[ImageSource], spec: Preprocessing, batch_size: int, workers: int
) -> Iterator[UInt8Array]:
    """Yield uint8 [N, H, W, 3] batches in the order of `paths`; at most two batches wait in memory.

    Raises:
        ImageError: If an image cannot be read.
    """

    def load(path: ImageSource) -> UInt8Array:
        return prepare(read_source(path), spec)

    with ThreadPoolExecutor(workers) as pool:
        remaining = iter(paths)
        waiting: deque[Future[UInt8Array]] = deque(
            pool.submit(load, path) for path in islice(remaining, 2 * batch_size)
        )
        while waiting:
            batch: list[UInt8Array] = []
            while waiting and len(batch) < batch_size:
                batch.append(waiting.popleft().result())
                waiting.extend(pool.submit(load, path) for path in islice(remaining, 1))
            yield np.stack(batch)


class Items(Protocol):
    """What an epoch consists of: images, or numbers by which a task finds what it has prepared itself."""

    def __len__(self) -> int:
        """Return how many there are."""

    def batches(self, order: Sequence[int] | npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[Any]]:
        """Yield arrays of up to `size` of the items with these numbers, in this order."""


class Numbers:
    """The numbers 0 to `count` - 1 as items, int64 [N]."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def batches(self, order: Sequence[int] | npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[Any]]:
        """Yield the numbers themselves."""
        numbers = np.asarray(order, np.int64)
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


class ImageReader:
    """Prepared images for many epochs: kept in memory where they fit, else decoded anew each time.

    Args:
        paths: The files.
        spec: How they are prepared.
        workers: Threads that decode.
        budget_mb: Memory for keeping them, in MB.
        progress: Told how many have been read, where they are kept.

    Raises:
        ImageError: If an image cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[ImageSource],
        spec: Preprocessing,
        workers: int,
        budget_mb: int,
        progress: Progress = no_progress,
    ) -> None:
        self._paths, self._spec, self._workers = tuple(paths), spec, workers
        height, width = spec.size
        self._kept: UInt8Array | None = None
        if len(paths) * height * width * 3 <= budget_mb * 1_000_000:
            self._kept = np.empty((len(paths), height, width, 3), np.uint8)
            done = 0
            for batch in load_batches(self._paths, spec, 16, workers):
                self._kept[done : done + len(batch)] = batch
                done += len(batch)
                progress("reading images", done, len(paths))

    def __len__(self) -> int:
        return len(self._paths)

    def batches(
        self, order: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]], size: int
    ) -> Iterator[UInt8Array]:
        """Yield uint8 [N, H, W, 3] batches of the images with these numbers, in this order."""
        indices = [int(index) for index in order]
        if self._kept is None:
            yield from load_batches([self._paths[index] for index in indices], self._spec, size, self._workers)
            return
        for start in range(0, len(indices), size):
            yield self._kept[indices[start : start + size]]


def image_sources(samples: Sequence[Sample], tiling: Tiling | None) -> list[ImageSource]:
    """Return what is learned from samples: their files, or the tiles of them, side by side.

    Raises:
        ImageError: If a file is no image.
    """
    if tiling is None:
        return [sample.path for sample in samples]
    apart = msgspec.structs.replace(tiling, overlap=0.0)
    return [tile for sample in samples for tile in tiles_of(sample.path, apart)]
