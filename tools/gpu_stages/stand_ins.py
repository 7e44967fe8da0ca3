"""For twins of what runs through PyCUDA: the stand-ins of the tests, with the kernels in emulation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpu_stages.document import ROOT
from gpu_stages.kernels import open_card
from gpu_stages.report import Absent, Report


@contextmanager
def standing(report: Report) -> Iterator[tuple[Any, Any]]:
    """Put stand-ins in the place of PyCUDA and the driver; check afterwards that nothing was done that must not be.

    Yields:
        The device's stand-in, and the kernels on it. The modules of the session and the loop have the kernels, too.

    Raises:
        Absent: If the tests' helpers cannot be imported, or the build stage has left no emulation.
    """
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    try:
        import pytest
        from cuda_stand_in import Stand, check_left, stand_in
        from tensorrt_stand_in import KernelsOnStand
    except ImportError as err:
        raise Absent(f"the stand-ins of the tests cannot be imported: {err}") from err
    _, kernels = open_card(report, on_gpu=False)
    from flawscope.runtime.backends import sampling_loop
    from flawscope.runtime.scorers import bank_device

    stand: Any = Stand()
    with pytest.MonkeyPatch.context() as patch:
        stand_in(stand, patch)
        on_stand = KernelsOnStand(stand, kernels)
        for place in (bank_device, sampling_loop):
            patch.setattr(place, "CudaKernels", lambda: on_stand)
        yield stand, on_stand
        check_left(stand)


def copying(stand: Any) -> Callable[[int, int, int, int], None]:
    """Return what puts a copy within the stand-in's memory on one of its streams: see `engine_stand_in.Copy`."""

    def copy(target: int, source: int, size: int, stream: int) -> None:
        stand.streams[stream].launch("engine", moving(target, source, size))

    return copy


def moving(target: int, source: int, size: int) -> Callable[[], None]:
    """Return the copy itself."""
    return lambda: ctypes.memmove(target, source, size) and None
