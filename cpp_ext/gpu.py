"""The kernels on CUDA devices. Compiled, not run; their sources run in emulation on the CPU.

Arrays are of any library that speaks DLPack (PyTorch, CuPy, ...), contiguous, and on one CUDA device, which is the
current one. Nothing is copied and nothing allocated: results and workspace are the caller's. A call puts its work on
`stream`, the number of a `cudaStream_t` (0: the default stream), and returns; arrays must live until the stream is
done. Calls may be captured in a CUDA graph. What goes wrong at launch raises `DeviceError`.
"""

from __future__ import annotations

from typing import Any

from flawscope.cpp_ext import native
from flawscope.errors import BackendError


def _module() -> Any:
    if not native.HAVE_NATIVE:
        raise BackendError(f"CUDA kernels: expected native kernels, got none: {native.MISSING_BECAUSE}.")
    return native.MODULE


def device_count() -> int:
    """Return the number of CUDA devices.

    Raises:
        BackendError: If this installation has no CUDA kernels.
        DeviceError: If there is no driver.
    """
    return int(_module().cuda_device_count())


def bank_bytes(rows: int, channels: int) -> int:
    """Return the bytes of a packed bank."""
    return int(_module().cuda_bank_bytes(rows, channels))


def pack_bank(rows: Any, packed: Any, stream: int = 0) -> None:
    """Pack rows float32 or float16 [M, D] into `packed`, uint8 [`bank_bytes`], as float16 with norms and one scale."""
    _module().cuda_bank_pack(rows, packed, stream)


def check_bank(packed: Any, stream: int = 0) -> None:
    """Wait for the stream; raise ArgumentError if a packed row is not finite or out of range."""
    _module().cuda_bank_check(packed, stream)


def nearest_bytes(queries: int, rows: int, channels: int, k: int, rerank: int = 0) -> int:
    """Return the bytes of workspace that `nearest` needs on the current device."""
    return int(_module().cuda_nearest_bytes(queries, rows, channels, k, rerank))


def nearest(
    packed: Any,
    rows: Any,
    queries: Any,
    k: int,
    workspace: Any,
    squared: Any,
    found: Any,
    *,
    rerank: int = 0,
    stream: int = 0,
) -> None:
    """Write the k nearest bank rows of every query.

    Args:
        packed: uint8, made by `pack_bank`.
        rows: float32 or float16 [M, D], what `packed` was made of.
        queries: float32 or float16 [N, D].
        k: Number of neighbours, 1 to 64 and at most M.
        workspace: uint8 of at least `nearest_bytes`, aligned to 16 bytes.
        squared: float32 [N, k], written: squared distances.
        found: int64 [N, k], written: rows.
        rerank: How many candidates get their distance from `rows` (k to 64); 0 for k + 7.
        stream: Number of a `cudaStream_t`.

    Raises:
        ArgumentError: If an array does not fit, or is not on the device of the others.
        BackendError: If this installation has no CUDA kernels.
        DeviceError: If a launch fails.
    """
    _module().cuda_nearest(packed, rows, queries, k, rerank, workspace, squared, found, stream)


def mahalanobis(mean: Any, whitening: Any, features: Any, squared: Any, *, stream: int = 0) -> None:
    """Write the squared Mahalanobis distances of features float32 [N, P, D] to `squared`, float32 [N, P].

    mean is float32 [P, D] and whitening float32 [P, D, D]; errors as for `nearest`.
    """
    _module().cuda_mahalanobis(mean, whitening, features, squared, stream)


def kcenter_bytes(rows: int, count: int) -> int:
    """Return the bytes of workspace that `kcenter_greedy` needs."""
    return int(_module().cuda_kcenter_bytes(rows, count))


def kcenter_greedy(features: Any, count: int, first: int, workspace: Any, chosen: Any, *, stream: int = 0) -> None:
    """Write the rows of the greedy selection from row `first` to `chosen`, int64 [count].

    features is float32 [N, D]; where one is not finite all of `chosen` is −1. Errors as for `nearest`.
    """
    _module().cuda_kcenter_greedy(features, count, first, workspace, chosen, stream)
