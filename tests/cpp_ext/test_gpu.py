"""The Python face of the CUDA functions, as far as a machine without a device can show it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flawscope import cpp_ext
from flawscope.cpp_ext import gpu, native
from flawscope.errors import ArgumentError, BackendError, DeviceError

needs_native = pytest.mark.skipif(not cpp_ext.HAVE_NATIVE, reason="native kernels are not in this installation")
needs_cuda = pytest.mark.skipif(not cpp_ext.HAVE_CUDA, reason="this build has no CUDA kernels")
FEATURES = np.ones((4, 3), np.float32)


@needs_native
@pytest.mark.parametrize(
    "call",
    [
        lambda memory: gpu.pack_bank(FEATURES, memory),
        lambda memory: gpu.nearest(memory, FEATURES, FEATURES, 1, memory, FEATURES[:, :1], FEATURES[:, :1]),
        lambda memory: gpu.mahalanobis(FEATURES, np.ones((4, 3, 3), np.float32), FEATURES[None], FEATURES[:1]),
        lambda memory: gpu.kcenter_greedy(FEATURES, 2, 0, memory, np.zeros(2, np.int64)),
        lambda memory: gpu.check_bank(memory),
    ],
    ids=["pack", "nearest", "mahalanobis", "kcenter", "check"],
)
def test_arrays_of_the_cpu_are_refused(call) -> None:
    with pytest.raises(ArgumentError, match=r"^\w+: expected an array on a CUDA device, got one on device 1:0"):
        call(np.zeros(1 << 16, np.uint8))


@needs_native
def test_arrays_of_another_type_or_shape_are_refused() -> None:
    memory = np.zeros(1 << 16, np.uint8)
    with pytest.raises(ArgumentError, match=r"bank: expected float32 or float16 \[M, D\] .*, got float64 \[4, 3\]"):
        gpu.pack_bank(FEATURES.astype(np.float64), memory)
    with pytest.raises(ArgumentError, match=r"packed: expected uint8, got float32"):
        gpu.check_bank(FEATURES)


@needs_native
def test_without_native_kernels_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "HAVE_NATIVE", False)
    monkeypatch.setattr(native, "MISSING_BECAUSE", "switched off")
    with pytest.raises(BackendError, match="CUDA kernels: expected native kernels, got none: switched off"):
        gpu.device_count()


@pytest.mark.skipif(cpp_ext.HAVE_CUDA, reason="this build has CUDA kernels")
def test_without_cuda_kernels_every_size_says_so() -> None:
    for call in (gpu.device_count, lambda: gpu.bank_bytes(4, 3), lambda: gpu.kcenter_bytes(4, 2)):
        with pytest.raises(BackendError, match=r"CUDA kernels|native kernels"):
            call()


@needs_cuda
def test_sizes_are_known_without_a_device() -> None:
    assert gpu.bank_bytes(100, 64) >= 2 * 100 * 64
    assert gpu.kcenter_bytes(1000, 10) >= 4 * 1000


@needs_cuda
def test_without_a_driver_the_count_of_devices_is_an_error_in_words() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a driver")
    with pytest.raises(DeviceError, match=r"cuda_device_count: \w+"):
        gpu.device_count()
