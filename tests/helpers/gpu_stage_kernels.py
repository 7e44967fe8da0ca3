"""Kernels in emulation where the build stage of `tools/gpu_check.py` would have put them, and kernels that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cuda_emulation import emulated_kernels
from gpu_stages.kernels import EMULATION

from flawscope.cpp_ext.cuda_kernels import CudaKernels


def built_kernels(tmp_path_factory: pytest.TempPathFactory, work: Path) -> CudaKernels:
    """Return the kernels in emulation; their library lies in a stage's folder of work."""
    found = emulated_kernels(tmp_path_factory)
    (work / "build").mkdir()
    library = next((tmp_path_factory.getbasetemp() / "cuda_emulation").glob("*FLAWSCOPE_PATCH_DISTANCE_VERSION.so"))
    (work / "build" / EMULATION).symlink_to(library)
    return found


class Liar:
    """Kernels whose results are changed after a call."""

    def __init__(self, kernels: CudaKernels, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        self._kernels, self._name, self._change = kernels, name, change

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)
        if name != self._name:
            return function

        def call(**arguments: Any) -> None:
            function(**arguments)
            self._change(arguments)

        return call


def add_one(name: str, kind: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change by one of the first number of what an argument points to."""

    def change(arguments: dict[str, Any]) -> None:
        place = kind.from_address(arguments[name])
        place.value += 1

    return change
