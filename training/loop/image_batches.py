"""Batches of prepared images, decoded ahead of the network by a few threads."""

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
    """Yield uint8 [N, H, W, 3] batches in the order of `paths`; at most two batches are decoded ahead.

    Args:
        paths: The images.
        spec: How they are prepared.
        batch_size: Images per batch; the last may have fewer.
        workers: Decoding threads; with 0 nothing is decoded ahead.

    Raises:
        ImageError: If an image cannot be read.
    """

    def load(path: ImageSource) -> UInt8Array:
        return prepare(read_source(path, spec.bits), spec)

    if workers == 0:
        for start in range(0, len(paths), batch_size):
            yield np.stack([load(path) for path in paths[start : start + batch_size]])
        return
    # Threads, not processes: decoding and resizing release the interpreter's lock, and nothing has to be pickled.
    with ThreadPoolExecutor(workers) as pool:
        remaining = iter(paths)
        waiting: deque[Future[UInt8Array]] = deque(
            pool.submit(load, path) for path in islice(remaining, 2 * batch_size)
        )
        while waiting:
            batch: list[UInt8Array] = []
            while waiting and len(batch) < batch_size:
                # In the order of submission, whichever is decoded first: a training must see the same order each time.
                batch.append(waiting.popleft().result())
                waiting.extend(pool.submit(load, path) for path in islice(remaining, 1))
            yield np.stack(batch)


class Items(Protocol):
    """The items of an epoch: images, or numbers by which a task looks up its own prepared data."""

    def __len__(self) -> int:
        """Return the number of items."""

    def batches(self, order: Sequence[int] | npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[Any]]:
        """Yield arrays of up to `size` of the items with these numbers, in this order."""


class Numbers:
    """Items that are their own numbers, 0 to `count` - 1, int64 [N]."""

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
    """Prepared images for many epochs: kept in memory if they fit, else decoded anew every epoch.

    Args:
        paths: The files.
        spec: How they are prepared.
        workers: Decoding threads, as `load_batches` takes them.
        budget_mb: Memory for prepared images, in MB.
        progress: Receives how many have been read, if they are kept in memory.

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
        self._cached: UInt8Array | None = None
        if len(paths) * height * width * 3 <= budget_mb * 1_000_000:
            # One array, filled in place: a list of batches that is joined at the end would need twice the memory.
            self._cached = np.empty((len(paths), height, width, 3), np.uint8)
            count = 0
            for batch in load_batches(self._paths, spec, 16, workers):
                self._cached[count : count + len(batch)] = batch
                count += len(batch)
                progress("reading images", count, len(paths))

    def __len__(self) -> int:
        return len(self._paths)

    def batches(
        self, order: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]], size: int
    ) -> Iterator[UInt8Array]:
        """Yield uint8 [N, H, W, 3] batches of the images with these numbers, in this order."""
        indices = [int(index) for index in order]
        if self._cached is None:
            yield from load_batches([self._paths[index] for index in indices], self._spec, size, self._workers)
            return
        for start in range(0, len(indices), size):
            yield self._cached[indices[start : start + size]]  # indexing by a list copies: callers may change a batch


def image_sources(samples: Sequence[Sample], tiling: Tiling | None) -> list[ImageSource]:
    """Return the images to learn from: the files of samples, or their tiles, with as little overlap as possible.

    Raises:
        ImageError: If a file is no image.
    """
    if tiling is None:
        return [sample.path for sample in samples]
    # Overlap is for inspection; in training it would count the same pixels twice.
    without_overlap = msgspec.structs.replace(tiling, overlap=0.0)
    return [tile for sample in samples for tile in tiles_of(sample.path, without_overlap)]
