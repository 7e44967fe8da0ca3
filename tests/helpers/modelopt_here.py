"""Whether ModelOpt is at hand, and in which interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawscope.calibration.quantization.modelopt import PYTHON, find_python
from flawscope.errors import ArgumentError


def _found() -> Path | None:
    try:
        return find_python()
    except ArgumentError:
        return None


needs_modelopt = pytest.mark.skipif(
    _found() is None, reason=f"no interpreter with ModelOpt: run make test, or set {PYTHON}"
)


def modelopt_python() -> Path:
    """Return that interpreter."""
    return find_python()
