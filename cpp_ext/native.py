"""Loads the compiled kernels, and reports whether they are available and which SIMD instructions they use."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any

from flawscope.errors import ArgumentError, BackendError


def _load() -> tuple[Any, str]:
    setting = os.environ.get("FLAWSCOPE_NATIVE", "1")
    if setting not in ("0", "1"):
        raise ArgumentError(f"FLAWSCOPE_NATIVE: expected 0 or 1, got {setting!r}.")
    if setting == "0":
        return None, "switched off by FLAWSCOPE_NATIVE=0"
    # find_spec and not a caught ImportError: "not built" and "built but does not load" need different answers.
    if find_spec("flawscope.cpp_ext._native") is None:
        return None, "not built into this installation. Install a C++ compiler, then flawscope again"
    try:
        return importlib.import_module("flawscope.cpp_ext._native"), ""
    except ImportError as err:
        # Built but broken: falling back to NumPy in silence would hide the fault and be many times slower.
        raise BackendError(
            f"native kernels: expected a module that loads, got: {err}. Install flawscope again, or set "
            "FLAWSCOPE_NATIVE=0 to use the NumPy kernels."
        ) from err


# Loaded once, at import: a bank and its search must not come from two implementations.
MODULE, MISSING_BECAUSE = _load()
"""The compiled module, or None and the reason."""

HAVE_NATIVE = MODULE is not None
"""Whether `nearest`, `mahalanobis` and `kcenter_greedy` run compiled code."""

HAVE_CUDA: bool = HAVE_NATIVE and MODULE.has_cuda()
"""Whether the compiled module has CUDA kernels; it says nothing about a device."""


def simd_level() -> str:
    """Return the level in use, or `none` without native kernels.

    Levels are `avx512amx`, `avx512vnni`, `avx512`, `avx2`, `neon` and `scalar`. The environment variable FLAWSCOPE_SIMD
    forces one.

    Raises:
        ArgumentError: If FLAWSCOPE_SIMD names a level that this processor lacks.
    """
    return MODULE.simd_level() if HAVE_NATIVE else "none"


def implementation() -> str:
    """Return a readable description of the kernels' implementation."""
    if not HAVE_NATIVE:
        return f"reference (NumPy): native kernels {MISSING_BECAUSE}"
    return f"native ({simd_level()})"
