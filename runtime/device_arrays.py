"""Images outside NumPy: arrays on a CUDA device, and arrays with DLPack.

Everything that gives `__cuda_array_interface__` (version 2 or 3: CuPy, PyCUDA, Numba, torch on a device) is copied to
the host by the driver, after all that was put on its context; everything that gives `__dlpack__` on the host (torch on
the CPU) is taken as it is. Written against the CUDA driver's interface, not run on a GPU: tests put a stand-in in its
place.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.errors import ArgumentError, DeviceError

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_CONTEXT_OF, _DEVICE_OF = 1, 9  # CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


class CudaArray(Protocol):
    """An array on a CUDA device."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Where it lies, as Numba's documentation describes it."""


class DlpackArray(Protocol):
    """An array that can be handed over by DLPack."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Return its capsule."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Return kind and number of its device."""


def on_host(value: object, name: str) -> npt.NDArray[Any]:
    """Return an array of any kind as one of NumPy; one of NumPy is returned as it is.

    Args:
        value: The array. What is on a device is copied.
        name: What it is called in messages.

    Raises:
        ArgumentError: If it is no array, or one in memory that cannot be reached.
        DeviceError: If the driver cannot copy it.
    """
    if isinstance(value, np.ndarray):
        return value
    if _gives(value, "__cuda_array_interface__"):
        return _from_device(value.__cuda_array_interface__, name)  # type: ignore[attr-defined]
    if _gives(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, BufferError, RuntimeError) as err:
            raise ArgumentError(
                f"{name}: expected an array in the host's memory or with __cuda_array_interface__, got one of "
                f"{type(value).__name__}, which NumPy does not take: {err}."
            ) from err
    raise ArgumentError(f"{name}: expected an array of NumPy, CUDA or DLPack, got {type(value).__name__}.")


def _gives(value: object, name: str) -> bool:
    try:
        return hasattr(value, name)
    except RuntimeError:  # torch says so of a tensor that needs gradients
        return False


def _from_device(interface: dict[str, Any], name: str) -> npt.NDArray[Any]:
    try:
        shape = tuple(int(size) for size in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        address = int(interface["data"][0])
        strides = interface.get("strides")
        strides = _packed(shape, dtype) if strides is None else tuple(int(step) for step in strides)
        has_mask = interface.get("mask") is not None
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise ArgumentError(f"{name}: expected a valid __cuda_array_interface__, got one without: {err}.") from err
    if len(strides) != len(shape) or min(shape, default=0) < 0 or dtype.hasobject or has_mask:
        raise ArgumentError(f"{name}: expected numbers without a mask, a stride an axis, got {interface}.")
    if 0 in shape:
        return np.empty(shape, dtype)
    steps = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    # A slice is copied with what lies between its rows, in one piece: one copy of more bytes beats many of few.
    first, last = sum(min(step, 0) for step in steps), sum(max(step, 0) for step in steps) + dtype.itemsize
    memory = np.empty(last - first, np.uint8)
    _copy(memory, address + first, address)
    return np.asarray(np.ndarray(shape, dtype, memory, -first, strides), order="C")


def _packed(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return the strides in bytes of an array whose rows follow each other."""
    strides, step = [], dtype.itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _copy(memory: npt.NDArray[np.uint8], address: int, owner: int) -> None:
    """Fill memory from the device, after everything that was put on the context to which `owner` belongs."""
    driver = _load_driver()
    _check(driver.cuInit(0), "cuInit")
    with _context(driver, owner):
        # What fills the frame may still be on a stream; which one is not always said.
        _check(driver.cuCtxSynchronize(), "cuCtxSynchronize")
        target = ctypes.c_void_p(memory.ctypes.data)
        status = driver.cuMemcpyDtoH_v2(target, ctypes.c_uint64(address), ctypes.c_size_t(memory.nbytes))
        _check(status, "cuMemcpyDtoH")


@contextlib.contextmanager
def _context(driver: Any, address: int) -> Iterator[None]:
    """Make the context current in which an address was allocated; memory of a pool has none, but its device."""
    context, number, device = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    pointer = ctypes.c_uint64(address)
    is_retained = False
    if driver.cuPointerGetAttribute(ctypes.byref(context), _CONTEXT_OF, pointer) != 0 or not context.value:
        status = driver.cuPointerGetAttribute(ctypes.byref(number), _DEVICE_OF, pointer)
        _check(status, "cuPointerGetAttribute")
        _check(driver.cuDeviceGet(ctypes.byref(device), number), "cuDeviceGet")
        _check(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
        is_retained = True
    try:
        _check(driver.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
        try:
            yield
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        if is_retained:
            driver.cuDevicePrimaryCtxRelease_v2(device)


def _load_driver() -> Any:
    for name in _DRIVERS:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise DeviceError(
        f"CUDA array: the NVIDIA driver library ({' or '.join(_DRIVERS)}) cannot be loaded. Install the driver, or "
        "hand over NumPy arrays."
    )


def _check(status: int, call: str) -> None:
    if status != 0:
        raise DeviceError(f"CUDA array: {call} failed with CUDA error {status}. Is the array still there?")
