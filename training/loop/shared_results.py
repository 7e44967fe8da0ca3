"""Results of rank 0 for all processes of a fit, and the wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from flawscope.progress import Progress
from flawscope.training.loop.ranks import Ranks

_Result = TypeVar("_Result")
_BEAT = 60.0
"""Seconds after which those that wait are told that rank 0 is at work: far below the patience of a collective."""
_CHUNK_BYTES = 256 << 20


def while_writer(here: Ranks, do: Callable[[Progress], _Result], progress: Progress) -> _Result | None:
    """Return what a function returns on rank 0, where alone it is called, and None on the others, which wait.

    However long it takes: they are told from time to time that rank 0 is at work. Every rank enters.

    Args:
        here: This process.
        do: Gets a progress that it has to call from time to time.
        progress: Receives progress.
    """
    if here.world == 1:
        return do(progress)
    if not here.is_writer:
        while not here.broadcast():
            pass
        return None
    told = time.monotonic()

    def telling(task: str, done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > _BEAT:
            here.broadcast(False)
            told = time.monotonic()
        progress(task, done, total)

    result = do(telling)
    here.broadcast(True)
    return result


def share_arrays(arrays: Mapping[str, npt.NDArray[np.generic]], here: Ranks) -> dict[str, npt.NDArray[np.generic]]:
    """Return rank 0's arrays on every process; the others' do not matter. Every rank enters."""
    if here.world == 1:
        return dict(arrays)
    shapes = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    shared: dict[str, npt.NDArray[np.generic]] = {}
    for name, (dtype, shape) in here.broadcast(shapes).items():
        # Not ascontiguousarray, which gives a single number a dimension.
        array = np.require(arrays[name], requirements=["C", "W"]) if here.is_writer else np.empty(shape, dtype)
        # As bytes: gloo has no transport for every type of number.
        for part in torch.split(torch.from_numpy(array.reshape(-1).view(np.uint8)), _CHUNK_BYTES):
            here.broadcast_tensor(part)
        shared[name] = array
    return shared
