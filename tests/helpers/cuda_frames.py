"""Arrays "on a CUDA device" that is none: host memory behind addresses, and a driver that copies from it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class FakeCudaArray:
    """What CuPy or torch would hand over: a NumPy array that only tells its address."""

    def __init__(self, array: np.ndarray, **changes: Any) -> None:
        self.array, self.changes = array, changes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        told = {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.array.ctypes.data, True),
            "strides": None if self.array.flags.c_contiguous else self.array.strides,
            "version": 3,
        }
        return {**told, **self.changes}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, key: Any) -> FakeCudaArray:
        return FakeCudaArray(self.array[key])


class FakeDriver:
    """In place of libcuda: knows which calls have to be in which order.

    Args:
        context: The context to which all memory belongs; 0 is memory of a pool, which has none.
        fail: Name of the call that fails, with CUDA error 700.
    """

    def __init__(self, context: int = 77, fail: str = "") -> None:
        self.own, self.fail = context, fail
        self.current: list[int] = []
        self.retained = self.copied = 0
        self.is_ready = self.is_synchronized = False

    def _status(self, call: str) -> int:
        assert self.is_ready or call == "cuInit", f"{call} before cuInit"
        return 700 if call == self.fail else 0

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        self.is_ready = True
        return self._status("cuInit")

    def cuPointerGetAttribute(self, target: Any, attribute: int, pointer: ctypes.c_uint64) -> int:
        assert pointer.value
        if attribute == 1:
            target._obj.value = self.own
        else:
            assert attribute == 9
            target._obj.value = 3
        return self._status("cuPointerGetAttribute")

    def cuDeviceGet(self, target: Any, number: ctypes.c_int) -> int:
        target._obj.value = 10 + number.value
        return self._status("cuDeviceGet")

    def cuDevicePrimaryCtxRetain(self, target: Any, device: ctypes.c_int) -> int:
        target._obj.value = 100 + device.value
        if status := self._status("cuDevicePrimaryCtxRetain"):
            return status
        self.retained += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: ctypes.c_int) -> int:
        assert device.value == 13
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> int:
        if status := self._status("cuCtxPushCurrent"):
            return status
        assert context.value == (self.own or 113)
        self.current.append(context.value)
        return 0

    def cuCtxPopCurrent_v2(self, target: Any) -> int:
        target._obj.value = self.current.pop()
        return 0

    def cuCtxSynchronize(self) -> int:
        assert self.current
        self.is_synchronized = True
        return self._status("cuCtxSynchronize")

    def cuMemcpyDtoH_v2(self, target: ctypes.c_void_p, source: ctypes.c_uint64, size: ctypes.c_size_t) -> int:
        assert self.current
        assert self.is_synchronized, "copied before the work of others was done"
        if status := self._status("cuMemcpyDtoH"):
            return status
        ctypes.memmove(target, ctypes.c_void_p(source.value), size.value)
        self.copied += size.value
        return 0
