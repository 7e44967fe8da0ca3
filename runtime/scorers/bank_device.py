"""Memory banks on a CUDA device: the kernels run right after an engine, on its stream; only distances come back.

The kernels take device addresses, as an engine does. Compiled, not run on a GPU; tests emulate the same sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, Int64Array
from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.errors import ArgumentError, BundleError
from flawscope.runtime.backends.device import Device
from flawscope.triangles import pack_triangles

Finish = Callable[
    [Float32Array, Int64Array, Callable[[int], Float32Array]],
    tuple[Float32Array, Float32Array],
]
"""Squared distances [N, P], rows [N, P] and a function that fetches one patch -> maps and scores."""


class _NearestRows:
    """Results of a search on the device, and what is made of them on the host."""

    def __init__(self, device: Device, finish: Finish, positions: int, channels: int, max_batch: int) -> None:
        self._device, self._finish = device, finish
        self._positions, self._channels = positions, channels
        queries = max_batch * positions
        # Bytes: float32 distances and int64 rows.
        self._squared_at, self._nearest_at = device.allocate(4 * queries), device.allocate(8 * queries)
        self._squared = device.pinned((queries,), np.float32)
        self._nearest = device.pinned((queries,), np.int64)

    def _copy_out(self, count: int) -> None:
        queries = count * self._positions
        self._device.copy_out(self._squared[:queries], self._squared_at)
        self._device.copy_out(self._nearest[:queries], self._nearest_at)

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N] once the stream is done."""
        queries = count * self._positions
        row_bytes = 4 * self._channels

        def patch_at(index: int) -> Float32Array:
            patch = np.empty(self._channels, np.float32)
            self._device.fetch(patch, patches + index * row_bytes)
            return patch

        # A view of pinned memory that the next frame overwrites: `finish` must not keep it.
        squared = self._squared[:queries].reshape(count, -1)
        return self._finish(squared, self._nearest[:queries].reshape(count, -1), patch_at)


class PatchcoreDevice(_NearestRows):
    """The rows of a memory bank on the device; see `DeviceHead` for the contract.

    Args:
        device: The device; its context must be current.
        finish: From the results of the search to maps and scores.
        grid: Rows and columns of the patch grid.
        tensors: The bank.
        max_batch: Largest batch; memory is allocated for it once.

    Raises:
        BackendError: If this installation has no CUDA kernels.
        BundleError: If the bank has a number that is not finite.
        DeviceError: If the device fails.
    """

    def __init__(
        self,
        device: Device,
        finish: Finish,
        grid: tuple[int, int],
        tensors: Mapping[str, npt.NDArray[Any]],
        max_batch: int,
    ) -> None:
        self._kernels = kernels = CudaKernels()
        bank = np.ascontiguousarray(tensors["bank"], np.float32)  # the kernels take no strides
        self._rows = len(bank)
        super().__init__(device, finish, grid[0] * grid[1], bank.shape[1], max_batch)
        self._bank = device.upload(bank)
        self._packed = device.allocate(kernels.bank_bytes(m=self._rows, d=self._channels))
        stream = device.stream_number
        kernels.bank_pack(
            rows=self._bank, dtype="float32", m=self._rows, d=self._channels, packed=self._packed, stream=stream
        )
        # Here and not in `enqueue`: the check waits for the stream, which is an error while a CUDA graph is captured.
        if not kernels.bank_check(packed=self._packed, stream=stream):
            raise BundleError("bank: expected finite numbers, got NaN, infinity or an overflow. Export it again.")
        # Allocated once for all batches: a captured graph uses the same addresses for ever. What is enough for the
        # largest batch is enough for smaller ones.
        self._workspace_bytes = kernels.nearest_bytes(
            n=max_batch * self._positions, m=self._rows, d=self._channels, k=1, rerank=0
        )
        self._workspace = device.allocate(self._workspace_bytes)

    def enqueue(self, count: int, patches: int) -> None:
        """Enqueue the search and the copy of its results to the host. Must not wait: it may be under capture."""
        self._kernels.nearest(
            packed=self._packed,
            rows=self._bank,
            rows_dtype="float32",
            m=self._rows,
            d=self._channels,
            queries=patches,
            dtype="float32",
            n=count * self._positions,
            k=1,
            rerank=0,
            workspace=self._workspace,
            workspace_bytes=self._workspace_bytes,
            squared=self._squared_at,
            found=self._nearest_at,
            stream=self._device.stream_number,
        )
        self._copy_out(count)


class WindowDevice(_NearestRows):
    """Rows and places of a memory bank on the device, for a head with a window; as `PatchcoreDevice`.

    Args:
        device: The device; its context must be current.
        finish: From the results of the search to maps and scores.
        grid: Rows and columns of the patch grid.
        radius: Radius of the window in cells.
        tensors: The bank and its places, which have been checked.
        max_batch: Largest batch; memory is allocated for it once.
    """

    def __init__(
        self,
        device: Device,
        finish: Finish,
        grid: tuple[int, int],
        radius: int,
        tensors: Mapping[str, npt.NDArray[Any]],
        max_batch: int,
    ) -> None:
        self._kernels = CudaKernels()
        self._grid = grid
        bank = np.ascontiguousarray(tensors["bank"], np.float32)
        self._rows = len(bank)
        # On the host: the kernel cannot refuse, and a row that is no number would be passed over in silence.
        if not (np.isfinite(bank).all() and np.isfinite(4 * np.einsum("md,md->m", bank, bank)).all()):
            raise BundleError("bank: expected finite numbers, got NaN, infinity or an overflow. Export it again.")
        super().__init__(device, finish, grid[0] * grid[1], bank.shape[1], max_batch)
        starts = place_starts(tensors["places"], grid)
        self._bank, self._starts = device.upload(bank), device.upload(starts)
        self._reach = device.upload(window_reach(starts, grid, radius))

    def enqueue(self, count: int, patches: int) -> None:
        """Enqueue the search and the copy of its results to the host. Must not wait: it may be under capture."""
        self._kernels.windows_nearest(
            rows=self._bank,
            m=self._rows,
            d=self._channels,
            starts=self._starts,
            height=self._grid[0],
            width=self._grid[1],
            reach=self._reach,
            queries=patches,
            dtype="float32",
            n=count,
            squared=self._squared_at,
            found=self._nearest_at,
            stream=self._device.stream_number,
        )
        self._copy_out(count)


class PadimDevice:
    """The Gaussians on the device; see `DeviceHead` for the contract, and `PatchcoreDevice` for arguments and errors.

    Args:
        device: The device; its context must be current.
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
        self._device, self._kernels = device, CudaKernels()
        self._smooth = smooth
        # No check of the numbers here: `Bundle.tensors` refuses what is not finite, and nothing is squared or packed.
        mean = np.ascontiguousarray(tensors["mean"], np.float32)
        self._positions, self._channels = mean.shape
        self._mean = device.upload(mean)
        self._factors: dict[str, Any]
        self._enqueue: Callable[..., None]
        factors = np.ascontiguousarray(_packed_if_triangles(tensors))
        if factors.ndim == 3:
            self._factors, self._enqueue = {"whitening": device.upload(factors)}, self._kernels.mahalanobis
        else:
            self._factors = {"triangles": device.upload(factors), "dtype": str(factors.dtype)}
            self._enqueue = self._kernels.mahalanobis_triangles
        self._squared_at = device.allocate(4 * max_batch * self._positions)
        self._squared = device.pinned((max_batch * self._positions,), np.float32)

    def enqueue(self, count: int, patches: int) -> None:
        """Enqueue the distances and their copy to the host. Must not wait: it may be under capture."""
        self._enqueue(
            mean=self._mean,
            **self._factors,
            p=self._positions,
            d=self._channels,
            features=patches,
            n=count,
            squared=self._squared_at,
            stream=self._device.stream_number,
        )
        self._device.copy_out(self._squared[: count * self._positions], self._squared_at)

    def finish(self, count: int, patches: int) -> tuple[Float32Array, Float32Array]:
        """Return maps float32 [N, H, W] and scores float32 [N] once the stream is done."""
        # sqrt makes a new array, so the maps do not share pinned memory with the next frame.
        maps = self._smooth(np.sqrt(self._squared[: count * self._positions]).reshape(count, -1))
        return maps, maps.max(axis=(1, 2))


def _packed_if_triangles(tensors: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the factors of a bank as triangles, [P, D·(D + 1)/2]; as matrices float32 [P, D, D] if they are none.

    A bundle from before they were stored as triangles has whole matrices, whose zeros would be read and multiplied.
    """
    if "whitening" not in tensors:
        return tensors["triangles"]
    whitening = np.asarray(tensors["whitening"], np.float32)
    try:
        return pack_triangles(whitening)
    except ArgumentError:  # other factors than Cholesky's
        return whitening
