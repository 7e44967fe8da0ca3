"""Checks that all kernels share."""

from __future__ import annotations

from typing import Any

import numpy as np

from flawscope.errors import ArgumentError


def check_count(count: int, name: str, limit: int, what: str) -> None:
    """Raise ArgumentError unless `count` is an integer from 1 to `limit`; `what` says of what the limit is."""
    if not _is_integer(count) or not 1 <= count <= limit:
        raise ArgumentError(f"{name}: expected an integer from 1 to {limit} ({what}), got {count!r}.")


def check_seed(seed: int) -> None:
    """Raise ArgumentError unless `seed` is an integer of at least 0."""
    if not _is_integer(seed) or seed < 0:
        raise ArgumentError(f"seed: expected an integer of at least 0, got {seed!r}.")


def check_threads(threads: int) -> None:
    """Raise ArgumentError unless `threads` is an integer of at least 0."""
    if not _is_integer(threads) or not 0 <= threads <= 1024:
        raise ArgumentError(f"threads: expected an integer from 0 (all) to 1024, got {threads!r}.")


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_native(array: Any) -> Any:
    """Return an array as the binding takes it: NumPy arrays contiguous, others (DLPack) as they are.

    Raises:
        ArgumentError: If it is no array.
    """
    if isinstance(array, np.ndarray):
        if not array.dtype.isnative:
            raise ArgumentError(f"expected an array in the byte order of this machine, got {array.dtype.str}.")
        return np.ascontiguousarray(array) if array.ndim else array
    if not hasattr(array, "__dlpack__"):
        raise ArgumentError(f"expected an array (NumPy, or DLPack as PyTorch has it), got {type(array).__name__}.")
    return array
