"""The CUDA driver by its C interface: all that the stages need of a GPU, without a package.

A test compares the arguments with the declarations of `cuda.h`. Where a function has versions, the name is that of the
one that `cuda.h` of CUDA 12 and 13 calls; the first version of cuEventElapsedTime is in the drivers of both. Written,
not run.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_ulonglong, c_void_p
from typing import Any

LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
ADDRESS, OUT = c_ulonglong, POINTER(c_void_p)
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL

MULTIPROCESSORS, CLOCK_KHZ, MEMORY_CLOCK_KHZ, L2_BYTES, MAJOR, MINOR = 16, 13, 36, 38, 75, 76  # CUdevice_attribute
READS_HOST_MEMORY = 88  # CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (OUT, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(ADDRESS), c_size_t),
    "cuMemFree_v2": (ADDRESS,),
    "cuMemcpyHtoDAsync_v2": (ADDRESS, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, ADDRESS, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (ADDRESS, ADDRESS, c_size_t, c_void_p),
    "cuMemsetD8Async": (ADDRESS, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (OUT, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, OUT),
    "cuGraphInstantiateWithFlags": (OUT, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (OUT, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class CudaError(Exception):
    """The driver is not here, or refused a call.

    Attributes:
        code: Its `CUresult`, or None where there is no driver.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class Driver:
    """The driver's library, ready to be asked.

    Raises:
        CudaError: If there is none, or it does not start.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = _load() if library is None else library
        for name, types in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver; CudaError where its status is not 0."""
        status = getattr(self._library, name)(*arguments)
        if status:
            text = c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(text))
            named = (text.value or b"unknown").decode().removeprefix("CUDA_ERROR_")
            raise CudaError(f"{name} failed with CUDA error {status} ({named})", status)

    def number(self, kind: Any, name: str, *arguments: Any) -> Any:
        """Return what a function writes to its first argument, a pointer to `kind`."""
        value = kind()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def copy_on(self, target: int, source: int, size: int, stream: int) -> None:
        """Put a copy within the device on a stream; a context must be current."""
        self.call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def device_count(self) -> int:
        """Return the number of GPUs."""
        return int(self.number(c_int, "cuDeviceGetCount"))

    def reads_host_memory(self, index: int = 0) -> bool:
        """Return whether a GPU reads plain memory of the host, as some do with newer drivers."""
        device = self.number(c_int, "cuDeviceGet", index)
        return bool(self.number(c_int, "cuDeviceGetAttribute", READS_HOST_MEMORY, device))

    def facts(self, index: int = 0) -> dict[str, Any]:
        """Return what the driver says of a GPU: name, compute capability, multiprocessors, clocks, bytes."""
        device = self.number(c_int, "cuDeviceGet", index)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, len(name), device)

        def attribute(which: int) -> int:
            return int(self.number(c_int, "cuDeviceGetAttribute", which, device))

        version = int(self.number(c_int, "cuDriverGetVersion"))
        return {
            "gpu": name.value.decode(),
            "gpus": self.device_count(),
            "compute_capability": f"{attribute(MAJOR)}.{attribute(MINOR)}",
            "cuda_of_driver": f"{version // 1000}.{version % 1000 // 10}",
            "multiprocessors": attribute(MULTIPROCESSORS),
            "l2_bytes": attribute(L2_BYTES),
            "clock_mhz": attribute(CLOCK_KHZ) / 1000,
            "memory_clock_mhz": attribute(MEMORY_CLOCK_KHZ) / 1000,
            "memory_bytes": int(self.number(c_size_t, "cuDeviceTotalMem_v2", device)),
        }


def _load() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError(f"no NVIDIA driver: neither {' nor '.join(LIBRARIES)} can be loaded")
