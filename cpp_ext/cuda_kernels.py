"""CUDA kernels on device addresses: the only interface from Python to the CUDA part of the library.

Compiled, not run on a GPU; tests run the same sources in emulation on the CPU.

Memory belongs to the caller: an address is an integer, of memory on the current device that must stay allocated until
the stream has finished. Nothing is copied or allocated. A call enqueues its work on `stream`, the number of a
`cudaStream_t` (0: the default stream), and returns; only `bank_check` waits. Calls may be captured in a CUDA graph.

Names and order of the arguments are those of `include/flawscope/patch_distance.h`, which also documents the accuracy
of the results. Addresses carry no sizes: the caller must make the memory as large as the documented shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from flawscope.cpp_ext import native
from flawscope.errors import ArgumentError, BackendError

DType = Literal["float32", "float16"]
"""Element types that the kernels read."""


class CudaKernels:
    """The CUDA functions of one library.

    Every method raises ArgumentError where a type, size, option or alignment does not fit, and DeviceError where CUDA
    reports an error, which may be that of earlier work.

    Args:
        library: Another build of `libflawscope_kernels`, for example one in emulation; None for the installed one.

    Raises:
        ArgumentError: If the library does not load or has another version of the interface.
        BackendError: If the library has no CUDA kernels, or the installation no native ones.
    """

    def __init__(self, library: Path | None = None) -> None:
        if not native.HAVE_NATIVE:
            raise BackendError(
                "CUDA kernels: expected them in this installation, got none: native kernels are "
                f"{native.MISSING_BECAUSE}."
            )
        # Without a path the functions are those linked into the module; tests pass a library in emulation.
        self._native: Any = native.MODULE.CudaKernels(*([] if library is None else [str(library)]))

    def device_count(self) -> int:
        """Return the number of CUDA devices; DeviceError if there is no driver."""
        return int(self._native.device_count())

    def bank_bytes(self, *, m: int, d: int) -> int:
        """Return the bytes of a packed bank of m rows of d channels, d up to 65,536."""
        return int(self._native.bank_bytes(_size(m, "m"), _size(d, "d")))

    def bank_pack(self, *, rows: int, dtype: DType, m: int, d: int, packed: int, stream: int) -> None:
        """Pack rows as float16 with their squared norms and one scale.

        Args:
            rows: Address of `dtype` [m, d].
            dtype: Type of the rows.
            m: Rows.
            d: Channels.
            packed: Address of `bank_bytes` bytes, aligned to 16; written.
            stream: Stream.
        """
        self._native.bank_pack(
            _address(rows, "rows"),
            _dtype(dtype, "dtype"),
            _size(m, "m"),
            _size(d, "d"),
            _address(packed, "packed"),
            _address(stream, "stream"),
        )

    def bank_check(self, *, packed: int, stream: int) -> bool:
        """Wait for the stream; return whether every packed row is finite and has a squared norm below 2¹²⁶.

        A bank of which this is false gives NaN and the row −1 for every query.
        """
        return bool(self._native.bank_check(_address(packed, "packed"), _address(stream, "stream")))

    def nearest_bytes(self, *, n: int, m: int, d: int, k: int, rerank: int) -> int:
        """Return the bytes of workspace that `nearest` needs on the current device."""
        sizes = _size(n, "n"), _size(m, "m"), _size(d, "d")
        return int(self._native.nearest_bytes(*sizes, _option(k, "k"), _option(rerank, "rerank")))

    def nearest(
        self,
        *,
        packed: int,
        rows: int,
        rows_dtype: DType,
        m: int,
        d: int,
        queries: int,
        dtype: DType,
        n: int,
        k: int,
        rerank: int,
        workspace: int,
        workspace_bytes: int,
        squared: int,
        found: int,
        stream: int,
    ) -> None:
        """Write the k nearest bank rows of every query, nearest first.

        Args:
            packed: Address of what `bank_pack` wrote.
            rows: Address of `rows_dtype` [m, d], what `packed` was made of; 0: distances are to the packed rows.
            rows_dtype: Type of the rows.
            m: Bank rows.
            d: Channels.
            queries: Address of `dtype` [n, d].
            dtype: Type of the queries.
            n: Queries, 0 or more.
            k: Neighbours, 1 to 64 and at most m.
            rerank: Candidates whose distances are computed from `rows`, k to 64; 0 for k + 7.
            workspace: Address of memory aligned to 16 bytes.
            workspace_bytes: Its size, `nearest_bytes` at least.
            squared: Address of float32 [n, k], written: squared distances.
            found: Address of int64 [n, k], written: bank rows.
            stream: Stream.
        """
        self._native.nearest(
            _address(packed, "packed"),
            _address(rows, "rows"),
            _dtype(rows_dtype, "rows_dtype"),
            _size(m, "m"),
            _size(d, "d"),
            _address(queries, "queries"),
            _dtype(dtype, "dtype"),
            _size(n, "n"),
            _option(k, "k"),
            _option(rerank, "rerank"),
            _address(workspace, "workspace"),
            _size(workspace_bytes, "workspace_bytes"),
            _address(squared, "squared"),
            _address(found, "found"),
            _address(stream, "stream"),
        )

    def windows_nearest(
        self,
        *,
        rows: int,
        m: int,
        d: int,
        starts: int,
        height: int,
        width: int,
        reach: int,
        queries: int,
        dtype: DType,
        n: int,
        squared: int,
        found: int,
        stream: int,
    ) -> None:
        """Write the nearest bank row of every patch within its window; see `flawscope.cpp_ext.WindowBank`.

        Args:
            rows: Address of float32 [m, d], sorted by place.
            m: Bank rows.
            d: Channels.
            starts: Address of int64 [height · width + 1]: the first row of every place, from 0 to m, not falling.
            height: Rows of the patch grid.
            width: Columns of the patch grid.
            reach: Address of int32 [height · width], at least 0: how far the patch at each place looks.
            queries: Address of `dtype` [n, height · width, d].
            dtype: Type of the queries.
            n: Images, 0 or more.
            squared: Address of float32 [n, height · width], written: squared distances.
            found: Address of int64 [n, height · width], written: bank rows.
            stream: Stream.
        """
        self._native.windows_nearest(
            _address(rows, "rows"),
            _size(m, "m"),
            _size(d, "d"),
            _address(starts, "starts"),
            _size(height, "height"),
            _size(width, "width"),
            _address(reach, "reach"),
            _address(queries, "queries"),
            _dtype(dtype, "dtype"),
            _size(n, "n"),
            _address(squared, "squared"),
            _address(found, "found"),
            _address(stream, "stream"),
        )

    def mahalanobis(
        self, *, mean: int, whitening: int, p: int, d: int, features: int, n: int, squared: int, stream: int
    ) -> None:
        """Write squared Mahalanobis distances.

        Args:
            mean: Address of float32 [p, d].
            whitening: Address of float32 [p, d, d].
            p: Positions.
            d: Channels.
            features: Address of float32 [n, p, d].
            n: Images, 0 or more.
            squared: Address of float32 [n, p], written; NaN where a number is not finite.
            stream: Stream.
        """
        self._native.mahalanobis(
            _address(mean, "mean"),
            _address(whitening, "whitening"),
            _size(p, "p"),
            _size(d, "d"),
            _address(features, "features"),
            _size(n, "n"),
            _address(squared, "squared"),
            _address(stream, "stream"),
        )

    def mahalanobis_triangles(
        self,
        *,
        mean: int,
        triangles: int,
        dtype: str,
        p: int,
        d: int,
        features: int,
        n: int,
        squared: int,
        stream: int,
    ) -> None:
        """Write squared Mahalanobis distances by upper triangles; see `flawscope.triangles.pack_triangles`.

        Args:
            mean: Address of float32 [p, d].
            triangles: Address of [p, d·(d + 1)/2].
            dtype: Type of the triangles, `float32` or `float16`.
            p: Positions.
            d: Channels.
            features: Address of float32 [n, p, d].
            n: Images, 0 or more.
            squared: Address of float32 [n, p], written; NaN where a number is not finite.
            stream: Stream.
        """
        self._native.mahalanobis_triangles(
            _address(mean, "mean"),
            _address(triangles, "triangles"),
            _dtype(dtype, "dtype"),
            _size(p, "p"),
            _size(d, "d"),
            _address(features, "features"),
            _size(n, "n"),
            _address(squared, "squared"),
            _address(stream, "stream"),
        )

    def kcenter_bytes(self, *, n: int, count: int) -> int:
        """Return the bytes of workspace that `kcenter_greedy` needs."""
        return int(self._native.kcenter_bytes(_size(n, "n"), _size(count, "count")))

    def kcenter_greedy(
        self,
        *,
        features: int,
        n: int,
        d: int,
        count: int,
        first: int,
        workspace: int,
        workspace_bytes: int,
        chosen: int,
        stream: int,
    ) -> None:
        """Write the rows of a greedy k-centre selection.

        Args:
            features: Address of float32 [n, d].
            n: Rows.
            d: Channels.
            count: Rows to choose, 1 to n.
            first: The row to begin with.
            workspace: Address of memory aligned to 16 bytes.
            workspace_bytes: Its size, `kcenter_bytes` at least.
            chosen: Address of int64 [count], written; −1 throughout where a feature is not finite.
            stream: Stream.
        """
        self._native.kcenter_greedy(
            _address(features, "features"),
            _size(n, "n"),
            _size(d, "d"),
            _size(count, "count"),
            _size(first, "first"),
            _address(workspace, "workspace"),
            _size(workspace_bytes, "workspace_bytes"),
            _address(chosen, "chosen"),
            _address(stream, "stream"),
        )

    def diffusion_step(
        self,
        *,
        row: int,
        n: int,
        c: int,
        cells: int,
        guided: int,
        predicted: int,
        clean: int,
        hidden: int,
        keep: int,
        masked: int,
        noise: int,
        arrays: int,
        x: int,
        past: int,
        input: int,
        timesteps: int,
        stream: int,
    ) -> None:
        """Take one step of a diffusion sampling and write the network's next input.

        Args:
            row: Address of a row of `flawscope.diffusion.step_table`.
            n: Images, 0 or more.
            c: Channels of x.
            cells: Height times width of x.
            guided: 1: the network runs every image without and with its text, in a batch of 2n; 0: in one of n.
            predicted: Address of float32 [n or 2n, c, cells], what the network gave.
            clean: Address of float32 [n, c, cells], the normal image.
            hidden: Address of float32 [n, c, cells], what the start is mixed of instead; 0: `clean`.
            keep: Address of float32 [n, cells], 1 where the image is kept; 0 where no row restores.
            masked: Address of float32 [n, c, cells], the network's last channels; 0 where it takes x alone.
            noise: Address of float32 [n, arrays, c, cells].
            arrays: Arrays of noise of each image; 0: all images have the same, [any, c, cells].
            x: Address of float32 [n, c, cells], read and written.
            past: Address of float32 [n, c, cells], kept from step to step.
            input: Address of float32 [n or 2n, c or 2c + 1, cells], written.
            timesteps: Address of int64 [n or 2n], written.
            stream: Stream.
        """
        self._native.diffusion_step(
            _address(row, "row"),
            _size(n, "n"),
            _size(c, "c"),
            _size(cells, "cells"),
            _option(guided, "guided"),
            _address(predicted, "predicted"),
            _address(clean, "clean"),
            _address(hidden, "hidden"),
            _address(keep, "keep"),
            _address(masked, "masked"),
            _address(noise, "noise"),
            _size(arrays, "arrays"),
            _address(x, "x"),
            _address(past, "past"),
            _address(input, "input"),
            _address(timesteps, "timesteps"),
            _address(stream, "stream"),
        )


# The binding also refuses anything but integers, but its message lists C++ signatures instead of naming the argument.
def _address(value: object, name: str) -> int:
    return _integer(value, name, "an address or number of a stream as an integer", (1 << 64) - 1)  # uintptr_t


def _size(value: object, name: str) -> int:
    return _integer(value, name, "a size as an integer of at least 0", (1 << 63) - 1)  # int64_t


def _option(value: object, name: str) -> int:
    return _integer(value, name, "an integer of at least 0", (1 << 31) - 1)  # int


def _integer(value: object, name: str, expected: str, most: int) -> int:
    # bool is an int in Python; no caller means True as an address or a size.
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value <= most:
        raise ArgumentError(f"{name}: expected {expected} up to {most}, got {value!r}.")
    return int(value)


def _dtype(value: object, name: str) -> str:
    if not isinstance(value, str) or value not in get_args(DType):
        raise ArgumentError(f"{name}: expected one of {', '.join(get_args(DType))}, got {value!r}.")
    return value
