"""Whether the compiled kernels are there, and which processor instructions they use."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any

from flawscope.errors import ArgumentError, BackendError


def _load() -> tuple[Any, str]:
    wanted = os.environ.get("FLAWSCOPE_NATIVE", "1")
    if wanted not in ("0", "1"):
        raise ArgumentError(f"FLAWSCOPE_NATIVE: expected 0 or 1, got {wanted!r}.")
    if wanted == "0":
        return None, "switched off by FLAWSCOPE_NATIVE=0"
    if find_spec("flawscope.cpp_ext._native") is None:
        return None, "not built into this installation. Install a C++ compiler, then flawscope again"
    try:
        return importlib.import_module("flawscope.cpp_ext._native"), ""
    except ImportError as err:
        # There, but broken: to go on slowly and in silence is what nobody would want.
        raise BackendError(
            f"native kernels: expected a module that loads, got: {err}. Install flawscope again, or set "
            "FLAWSCOPE_NATIVE=0 to use the NumPy kernels."
        ) from err


# Once, when the package is imported: a bank and its search must not come from two implementations.
MODULE, MISSING_BECAUSE = _load()
"""The compiled module or None, and in the second case the reason."""

HAVE_NATIVE = MODULE is not None
"""Whether `nearest`, `mahalanobis` and `kcenter_greedy` run compiled code."""

HAVE_CUDA: bool = HAVE_NATIVE and MODULE.has_cuda()
"""Whether the compiled module has CUDA kernels; whether a device is there is another question."""


def simd_level() -> str:
    """Return the level in use, or `none` without native kernels.

    Levels are `avx512amx`, `avx512vnni`, `avx512`, `avx2`, `neon` and `scalar`. The environment variable FLAWSCOPE_SIMD
    forces one.

    Raises:
        ArgumentError: If FLAWSCOPE_SIMD names a level that this processor lacks.
    """
    return MODULE.simd_level() if HAVE_NATIVE else "none"


def implementation() -> str:
    """Return which implementation the kernels are, in words for people."""
    if not HAVE_NATIVE:
        return f"reference (NumPy): native kernels {MISSING_BECAUSE}"
    return f"native ({simd_level()})"
