"""Argument checks of all kernels: counts, seeds, threads, blocks, and arrays of any library as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from flawscope.arrays import UInt8Array, check_array
from flawscope.cpp_ext import native
from flawscope.errors import ArgumentError

_DEFAULT: ContextVar[int] = ContextVar("threads", default=0)
_LINE = 64  # bytes at whose multiples a block begins, as its parts do
_CPU_DEVICES = (1, 3)  # DLPack: CPU, and CPU memory pinned for CUDA


def check_count(count: int, name: str, limit: int, unit: str) -> None:
    """Raise ArgumentError unless `count` is an integer from 1 to `limit`; `unit` names what the limit counts."""
    if not is_integer(count) or not 1 <= count <= limit:
        raise ArgumentError(f"{name}: expected an integer from 1 to {limit} ({unit}), got {count!r}.")


def check_seed(seed: int) -> None:
    """Raise ArgumentError unless `seed` is an integer of at least 0."""
    if not is_integer(seed) or seed < 0:
        raise ArgumentError(f"seed: expected an integer of at least 0, got {seed!r}.")


def check_threads(threads: int) -> int:
    """Return how many threads to take: `threads`, or where that is 0, what `default_threads` says, 0 for all.

    Raises:
        ArgumentError: Unless it is an integer of at least 0.
    """
    if not is_integer(threads) or not 0 <= threads <= 1024:
        raise ArgumentError(f"threads: expected an integer from 0 (all) to 1024, got {threads!r}.")
    return threads or _DEFAULT.get()


@contextmanager
def default_threads(threads: int | None) -> Iterator[None]:
    """Let the kernels that are called within, by this thread, take so many threads where nothing else is said.

    Args:
        threads: Their number; None changes nothing.
    """
    if threads is None:
        yield
        return
    token = _DEFAULT.set(check_threads(threads))
    try:
        yield
    finally:
        _DEFAULT.reset(token)


def is_integer(value: object) -> bool:
    """Return whether a value is an integer, of Python or NumPy."""
    # bool is a subclass of int: k=True would pass as 1.
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_native() -> None:
    """Raise ArgumentError unless there are native kernels."""
    if not native.HAVE_NATIVE:
        raise ArgumentError(f"block: expected native kernels, which alone pack banks: {native.MISSING_BECAUSE}.")


def check_block(block: UInt8Array) -> None:
    """Raise ArgumentError unless a block is uint8 [N] without gaps at a multiple of 64 bytes, for native kernels."""
    check_native()
    check_array(block, "block", ("N",), np.uint8)
    if not block.flags.c_contiguous or block.ctypes.data % _LINE:
        raise ArgumentError(
            f"block: expected bytes without gaps that begin at a multiple of {_LINE} bytes, got others. Map the "
            "file, or copy it."
        )


def as_native(array: Any, name: str) -> Any:
    """Return an array as the binding takes it: a NumPy array, contiguous and aligned.

    An array that is so already is not copied, whatever library it comes from.

    Raises:
        ArgumentError: If it is no array, or does not lie in CPU memory.
    """
    if isinstance(array, np.ndarray):
        if not array.dtype.isnative:
            raise ArgumentError(f"{name}: expected an array in the byte order of this machine, got {array.dtype.str}.")
        if array.dtype.kind not in "biufc" or array.dtype.char in "gG":  # DLPack has no code for them
            raise ArgumentError(f"{name}: expected an array of float32, got {array.dtype}.")
        # np.require makes a vector of a 0-d array, which the binding could then no longer refuse.
        return np.require(array, requirements=("C", "A")) if array.ndim else array
    if not hasattr(array, "__dlpack__"):
        raise ArgumentError(
            f"{name}: expected an array (NumPy, or DLPack as PyTorch has it), got {type(array).__name__}."
        )
    try:
        device = array.__dlpack_device__()
        if device[0] not in _CPU_DEVICES:
            raise ArgumentError(
                f"{name}: expected an array in the memory of the CPU, got one on device {device[0]}:{device[1]} "
                "(DLPack). Copy it to the CPU first."
            )
        plain = array.detach() if hasattr(array, "detach") else array  # torch exports no tensor that needs gradients
        return as_native(np.from_dlpack(plain), name)
    except ArgumentError:
        raise
    except Exception as err:  # every library raises its own types: BufferError, RuntimeError, ValueError, ...
        raise ArgumentError(
            f"{name}: expected an array that NumPy can read where it lies, got {type(array).__name__} of "
            f"{getattr(array, 'dtype', 'unknown type')}: "
            f"{(str(err).strip() or type(err).__name__).splitlines()[0]}"
        ) from err
