"""Checks of blocks: packed tables as one piece of memory, which processes may map."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import UInt8Array, check_array
from flawscope.cpp_ext import native
from flawscope.errors import ArgumentError

_LINE = 64  # bytes at whose multiples a block begins, as its parts do


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
