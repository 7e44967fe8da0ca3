"""Batches of prepared pictures, decoded by a few threads ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from flawscope.images import Preprocessing, UInt8Array, prepare, read_image

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, total)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


def load_batches(paths: Sequence[Path], spec: Preprocessing, batch_size: int, workers: int) -> Iterator[UInt8Array]:
    """Yield uint8 [N, H, W, 3] batches in the order of `paths`; at most two batches wait in memory.

    Raises:
        ImageError: If a picture cannot be read.
    """

    def load(path: Path) -> UInt8Array:
        return prepare(read_image(path), spec)

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
