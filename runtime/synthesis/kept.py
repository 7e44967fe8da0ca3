"""Results of a network that are asked for again: kept up to a size and a number, those unused longest forgotten."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Kept:
    """Arrays by key. None of them may be changed: they are given out as they are.

    Args:
        most_bytes: Bytes of all arrays together.
        most_arrays: Arrays. Small ones take more memory for what is around them than they hold: a run over many small
            images would grow for hours until it had so many bytes.
    """

    def __init__(self, most_bytes: int, most_arrays: int = 4096) -> None:
        self._most, self._most_arrays, self._bytes = most_bytes, most_arrays, 0
        self._arrays: OrderedDict[Hashable, npt.NDArray[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrays)

    def find(self, keys: Sequence[Hashable]) -> list[npt.NDArray[Any]] | None:
        """Return the arrays of all these keys, or None if one is missing."""
        if not all(key in self._arrays for key in keys):
            return None
        for key in keys:
            self._arrays.move_to_end(key)
        return [self._arrays[key] for key in keys]

    def keep(self, keys: Sequence[Hashable], arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Keep arrays; the first go again where all are too much."""
        for key, array in zip(keys, arrays, strict=True):
            self._drop(key)
            self._arrays[key] = array.copy()  # a view would keep the whole batch
            self._bytes += array.nbytes
        while self._bytes > self._most or len(self._arrays) > self._most_arrays:
            self._drop(next(iter(self._arrays)))

    def clear(self) -> None:
        """Forget all."""
        self._arrays.clear()
        self._bytes = 0

    def _drop(self, key: Hashable) -> None:
        array = self._arrays.pop(key, None)
        self._bytes -= 0 if array is None else array.nbytes


def digest_of(*arrays: npt.NDArray[Any]) -> bytes:
    """Return a hash over the contents of arrays, whose shapes and types are always alike."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


class Slots:
    """Numbered places by key, those unused for longest given away first.

    Args:
        count: Places; at least as many as are taken at once.
    """

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._slots: OrderedDict[Hashable, int] = OrderedDict()

    def find(self, keys: Sequence[Hashable]) -> list[int] | None:
        """Return the places of all these keys, or None if one is missing."""
        if not all(key in self._slots for key in keys):
            return None
        return self.take(keys)

    def take(self, keys: Sequence[Hashable]) -> list[int]:
        """Return a place for each key: the one it has, else one that is free, else the one unused for longest."""
        for key in keys:
            if key not in self._slots:
                self._slots[key] = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            self._slots.move_to_end(key)
        return [self._slots[key] for key in keys]

    def clear(self) -> None:
        """Forget what lies in all places."""
        self._free += self._slots.values()
        self._slots.clear()
