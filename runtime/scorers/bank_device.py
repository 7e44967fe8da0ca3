"""The bank on the device: the CUDA kernels right after an engine, on its stream; only distances come back.

The kernels are called through the C interface (`flawscope/patch_distance.h`), which takes addresses as an engine does.
Compiled, not run on a GPU; tests run the same sources in emulation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope import cpp_ext
from flawscope.arrays import Float32Array
from flawscope.bundle import Head, PadimHead, PatchcoreHead
from flawscope.errors import BackendError, BundleError, DeviceError
from flawscope.runtime.backends.device import Device
from flawscope.runtime.scorers.bank_scorer import PatchcoreFinish, smoother

_FLOAT32 = 0  # FLAWSCOPE_FLOAT32
_NOT_FINITE = 4  # FLAWSCOPE_NOT_FINITE


class DeviceHead(Protocol):
    """What turns patches on the device into maps and scores."""

    def enqueue(self, count: int, patches: int) -> None:
        """Put the work for `count` pictures on the stream; their patches lie at this address."""

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N] once the stream is done."""


def device_head(
    device: Device, head: Head, tensors: Mapping[str, npt.NDArray[Any]], size: tuple[int, int], max_batch: int
) -> DeviceHead:
    """Put a bundle's bank on the device.

    Args:
        device: The device, current.
        head: Method and parameters.
        tensors: The bank.
        size: Height and width of the anomaly map in pixels.
        max_batch: Largest batch; memory is taken for it once.

    Raises:
        BackendError: If this installation has no CUDA kernels.
        BundleError: If the bank has a number that is not finite.
        DeviceError: If the device fails.
    """
    if not isinstance(head, PatchcoreHead | PadimHead):
        method = head.__struct_config__.tag
        raise BundleError(f"path kernel: expected a method with a bank, got {method}. Leave --path out.")
    library = kernel_library()
    if isinstance(head, PadimHead):
        return _Padim(device, library, head, tensors, size, max_batch)
    return _Patchcore(device, library, head, tensors, size, max_batch)


def kernel_library() -> Any:
    """Return the C library of the kernels.

    Raises:
        BackendError: If it is not there or has no CUDA kernels.
    """
    folder = Path(cpp_ext.__file__).parent / "lib"
    found = sorted(folder.glob("*flawscope_kernels.*"))
    if not cpp_ext.HAVE_CUDA or not found:
        raise BackendError("CUDA kernels: expected them in this installation, got none. See flawscope doctor.")
    return ctypes.CDLL(str(found[0]))


class _Patchcore:
    def __init__(
        self,
        device: Device,
        library: Any,
        head: Any,
        tensors: Mapping[str, npt.NDArray[Any]],
        size: tuple[int, int],
        max_batch: int,
    ) -> None:
        self._device, self._library = device, library
        self._finish = PatchcoreFinish(head, tensors, size)
        bank = np.ascontiguousarray(tensors["bank"], np.float32)
        self._rows, self._channels = bank.shape
        self._positions = head.grid[0] * head.grid[1]
        queries = max_batch * self._positions
        self._bank = device.upload(bank)
        self._packed = device.allocate(self._size(library.flawscope_cuda_bank_bytes, self._rows, self._channels))
        self._call(
            library.flawscope_cuda_bank_pack,
            self._bank,
            _FLOAT32,
            ctypes.c_int64(self._rows),
            ctypes.c_int64(self._channels),
            ctypes.c_void_p(self._packed),
        )
        status = library.flawscope_cuda_bank_check(ctypes.c_void_p(self._packed), ctypes.c_void_p(device.stream_number))
        if status == _NOT_FINITE:
            raise BundleError("bank: expected finite numbers, got NaN, infinity or an overflow. Export it again.")
        _raise_for(library, status)
        self._workspace_bytes = self._size(
            library.flawscope_cuda_nearest_bytes, queries, self._rows, self._channels, k=1
        )
        self._workspace = device.allocate(self._workspace_bytes)
        self._squared_at, self._found_at = device.allocate(4 * queries), device.allocate(8 * queries)
        self._squared = device.pinned((queries,), np.float32)
        self._found = device.pinned((queries,), np.int64)

    def enqueue(self, count: int, patches: int) -> None:
        queries = count * self._positions
        self._call(
            self._library.flawscope_cuda_nearest,
            self._packed,
            ctypes.c_void_p(self._bank),
            _FLOAT32,
            ctypes.c_int64(self._rows),
            ctypes.c_int64(self._channels),
            ctypes.c_void_p(patches),
            _FLOAT32,
            ctypes.c_int64(queries),
            1,
            0,
            ctypes.c_void_p(self._workspace),
            ctypes.c_int64(self._workspace_bytes),
            ctypes.c_void_p(self._squared_at),
            ctypes.c_void_p(self._found_at),
        )
        self._device.copy_out(self._squared[:queries], self._squared_at)
        self._device.copy_out(self._found[:queries], self._found_at)

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        queries = count * self._positions
        width = 4 * self._channels

        def patch_at(index: int) -> Float32Array:
            row = np.empty(self._channels, np.float32)
            self._device.fetch(row, patches + index * width)
            return row

        squared = self._squared[:queries].reshape(count, -1)
        return self._finish(squared, self._found[:queries].reshape(count, -1), patch_at)

    def _call(self, function: Callable[..., int], address: int, *arguments: Any) -> None:
        stream = ctypes.c_void_p(self._device.stream_number)
        _raise_for(self._library, function(ctypes.c_void_p(address), *arguments, stream))

    def _size(self, function: Callable[..., int], *sizes: int, k: int | None = None) -> int:
        found = ctypes.c_int64()
        options = () if k is None else (k, 0)
        _raise_for(self._library, function(*map(ctypes.c_int64, sizes), *options, ctypes.byref(found)))
        return found.value


class _Padim:
    def __init__(
        self,
        device: Device,
        library: Any,
        head: PadimHead,
        tensors: Mapping[str, npt.NDArray[Any]],
        size: tuple[int, int],
        max_batch: int,
    ) -> None:
        self._device, self._library = device, library
        self._smooth = smoother(head, size)
        mean = np.ascontiguousarray(tensors["mean"], np.float32)
        self._positions, self._channels = mean.shape
        self._mean = device.upload(mean)
        self._whitening = device.upload(np.ascontiguousarray(tensors["whitening"], np.float32))
        self._squared_at = device.allocate(4 * max_batch * self._positions)
        self._squared = device.pinned((max_batch * self._positions,), np.float32)

    def enqueue(self, count: int, patches: int) -> None:
        status = self._library.flawscope_cuda_mahalanobis(
            ctypes.c_void_p(self._mean),
            ctypes.c_void_p(self._whitening),
            ctypes.c_int64(self._positions),
            ctypes.c_int64(self._channels),
            ctypes.c_void_p(patches),
            ctypes.c_int64(count),
            ctypes.c_void_p(self._squared_at),
            ctypes.c_void_p(self._device.stream_number),
        )
        _raise_for(self._library, status)
        self._device.copy_out(self._squared[: count * self._positions], self._squared_at)

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        maps = self._smooth(np.sqrt(self._squared[: count * self._positions]).reshape(count, -1))
        return maps, maps.max(axis=(1, 2))


def _raise_for(library: Any, status: int) -> None:
    if status == 0:
        return
    text = library.flawscope_status_text
    text.restype = ctypes.c_char_p
    raise DeviceError(f"backend tensorrt: CUDA kernels: {(text(status) or b'unknown').decode()}")
