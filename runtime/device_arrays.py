"""Images outside NumPy: arrays on a CUDA device, and arrays with DLPack.

An array with `__cuda_array_interface__` (version 2 or 3: CuPy, PyCUDA, Numba, torch on a device) is copied to the host
by the CUDA driver, once all work on its context is finished. An array with `__dlpack__` in host memory (torch on the
CPU) is used without a copy. Written against the CUDA driver's interface, not run on a GPU: tests replace the driver.

Through ctypes, unlike all else that asks the driver: any backend takes such arrays, `cpu` as well, and whoever has made
one has the driver's library, but not always NVIDIA's bindings.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.errors import ArgumentError, DeviceError

_CONTEXT_OF, _DEVICE_OF = 1, 9  # CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


class CudaArray(Protocol):
    """An array on a CUDA device."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Address, shape, type and strides, as Numba's documentation describes them."""


class DlpackArray(Protocol):
    """An array that implements the DLPack protocol."""

    def __dlpack__(self, *, stream: Any = None) -> Any:
        """Return the array's DLPack capsule."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Return type and number of the array's device."""


def on_host(value: object, name: str) -> npt.NDArray[Any]:
    """Return any supported array as a NumPy array; a NumPy array is returned as it is.

    Args:
        value: The array. An array on a device is copied.
        name: Name of the array in messages.

    Raises:
        ArgumentError: If it is no array, or lies in memory that cannot be read.
        DeviceError: If the driver cannot copy it.
    """
    if isinstance(value, np.ndarray):
        return value
    # Before DLPack: CuPy and torch offer both, and NumPy's from_dlpack refuses memory of a device.
    if _has_attribute(value, "__cuda_array_interface__"):
        return _from_device(value.__cuda_array_interface__, name)  # type: ignore[attr-defined]
    if _has_attribute(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, BufferError, RuntimeError) as err:
            raise ArgumentError(
                f"{name}: expected an array in host memory or with __cuda_array_interface__, got a "
                f"{type(value).__name__} that NumPy cannot read: {err}."
            ) from err
    raise ArgumentError(f"{name}: expected an array of NumPy, CUDA or DLPack, got {type(value).__name__}.")


def _has_attribute(value: object, name: str) -> bool:
    try:
        return hasattr(value, name)
    except RuntimeError:  # torch raises this instead of AttributeError for a tensor that requires gradients
        return False


def _from_device(interface: dict[str, Any], name: str) -> npt.NDArray[Any]:
    try:
        shape = tuple(int(size) for size in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        address = int(interface["data"][0])
        strides = interface.get("strides")  # absent or None (both are allowed) means C-contiguous
        strides = _packed(shape, dtype) if strides is None else tuple(int(step) for step in strides)
        has_mask = interface.get("mask") is not None
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise ArgumentError(f"{name}: expected a valid __cuda_array_interface__, got one without: {err}.") from err
    # These values come from another library and become addresses below: what is inconsistent is refused.
    if len(strides) != len(shape) or min(shape, default=0) < 0 or dtype.hasobject or has_mask:
        raise ArgumentError(f"{name}: expected numbers without a mask and one stride per axis, got {interface}.")
    if 0 in shape:  # the address of an empty array may be 0
        return np.empty(shape, dtype)
    extents = [(size - 1) * step for size, step in zip(shape, strides, strict=True)]
    # A slice is copied together with the bytes between its rows: one large copy is faster than many small ones.
    # Strides may be negative (a flipped image): its first element is then not at the lowest address.
    first, last = sum(min(extent, 0) for extent in extents), sum(max(extent, 0) for extent in extents) + dtype.itemsize
    memory = np.empty(last - first, np.uint8)
    _copy(memory, address + first, address)
    return np.asarray(np.ndarray(shape, dtype, memory, -first, strides), order="C")


def _packed(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return the strides in bytes of a C-contiguous array."""
    strides, step = [], dtype.itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _copy(memory: npt.NDArray[np.uint8], address: int, owner: int) -> None:
    """Copy device memory at an address to host memory, once all work on the context of `owner` is finished."""
    from flawscope.runtime.engines.capture_lock import CAPTURES  # most images are in host memory

    driver = _load_driver()
    _check(driver.cuInit(0), "cuInit")
    with CAPTURES.disturbing(), _context(driver, owner):
        # The kernel that writes the image may still run on a stream, and version 2 of the interface does not name it.
        _check(driver.cuCtxSynchronize(), "cuCtxSynchronize")
        target = ctypes.c_void_p(memory.ctypes.data)
        status = driver.cuMemcpyDtoH_v2(target, ctypes.c_uint64(address), ctypes.c_size_t(memory.nbytes))
        _check(status, "cuMemcpyDtoH")


@contextlib.contextmanager
def _context(driver: Any, address: int) -> Iterator[None]:
    """Make the context current in which an address was allocated, or the primary one of its device.

    Memory of a pool (`cudaMallocAsync`) belongs to no context, but to a device.
    """
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
            # The caller's context (torch's, for one) becomes current again, whatever happened.
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        if is_retained:
            driver.cuDevicePrimaryCtxRelease_v2(device)


def _load_driver() -> Any:
    # Here and not at the top: most images are no arrays on a device.
    from flawscope.runtime.backends import driver_library

    if (driver := driver_library.load_driver()) is None:
        raise DeviceError(
            f"CUDA array: the NVIDIA driver library ({' or '.join(driver_library.DRIVERS)}) cannot be loaded. Install "
            "the driver, or pass NumPy arrays."
        )
    return driver


def _check(status: int, call: str) -> None:
    if status != 0:
        raise DeviceError(f"CUDA array: {call} failed with CUDA error {status}. Was its memory freed?")
