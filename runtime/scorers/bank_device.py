"""The bank on the device: the CUDA kernels right after an engine, on its stream; only distances come back.

The kernels are called through the C interface (`flawscope/patch_distance.h`), which takes addresses as an engine does.
Compiled, not run on a GPU; tests run the same sources in emulation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope import cpp_ext
from flawscope.arrays import Float32Array, Int64Array
from flawscope.errors import BackendError, BundleError, DeviceError
from flawscope.runtime.backends.device import Device

_FLOAT32 = 0  # FLAWSCOPE_FLOAT32
_NOT_FINITE = 4  # FLAWSCOPE_NOT_FINITE


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


class PatchcoreDevice:
    """The rows of a memory bank on the device; see `DeviceHead` for the contract.

    Args:
        device: The device, current.
        finish: Squared distances [N, P], rows [N, P] and a way to one patch -> maps and scores.
        grid: Rows and columns of the patch grid.
        tensors: The bank.
        max_batch: Largest batch; memory is taken for it once.

    Raises:
        BackendError: If this installation has no CUDA kernels.
        BundleError: If the bank has a number that is not finite.
        DeviceError: If the device fails.
    """

    def __init__(
        self,
        device: Device,
        finish: Callable[[Float32Array, Int64Array, Callable[[int], Float32Array]], tuple[Float32Array, Float32Array]],
        grid: tuple[int, int],
        tensors: Mapping[str, npt.NDArray[Any]],
        max_batch: int,
    ) -> None:
        self._device, self._library = device, kernel_library()
        self._finish = finish
        library = self._library
        bank = np.ascontiguousarray(tensors["bank"], np.float32)
        self._rows, self._channels = bank.shape
        self._positions = grid[0] * grid[1]
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


class PadimDevice:
    """The Gaussians on the device; see `DeviceHead` for the contract, and `PatchcoreDevice` for arguments and errors.

    Args:
        device: The device, current.
        smooth: Distances float32 [N, P] -> anomaly maps float32 [N, H, W].
        tensors: The bank.
        max_batch: Largest batch.
    """

    def __init__(
        self,
        device: Device,
        smooth: Callable[[Float32Array], Float32Array],
        tensors: Mapping[str, npt.NDArray[Any]],
        max_batch: int,
    ) -> None:
        self._device, self._library = device, kernel_library()
        self._smooth = smooth
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
