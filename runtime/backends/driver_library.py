"""The library of the NVIDIA driver, by ctypes: it is there where a GPU can be used, and needs no package of Python."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
"""Its names: on Linux, and on Windows."""


def load_driver() -> Any | None:
    """Return the library, or None where this machine has none; nothing in it is called."""
    for name in DRIVERS:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
