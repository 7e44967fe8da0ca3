"""Scorer of PaDiM: Mahalanobis distance of every patch to the Gaussian of its position (arXiv:2011.08785, eq. 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.bundle import PadimHead
from flawscope.cpp_ext import Gaussians
from flawscope.errors import BundleError
from flawscope.runtime.backends.session import DeviceHead
from flawscope.runtime.scorers.bank_scorer import (
    BankMethod,
    NativeHead,
    Tensors,
    need,
    packed_gaussians,
    say_not_shared,
    smoother,
)
from flawscope.runtime.scorers.timed import Mark, no_mark
from flawscope.triangles import triangle_size


def check_tensors(head: PadimHead, tensors: Tensors) -> None:
    """Raise BundleError unless the bank has a Gaussian for every position of the grid."""
    mean = need(tensors, "mean", 2, np.float32)
    positions, channels = mean.shape
    wanted: tuple[int, ...]
    if is_old(tensors):
        factors, wanted = need(tensors, "whitening", 3, np.float32), (positions, channels, channels)
    else:
        stored = tensors.get("triangles")
        dtype = np.float16 if stored is not None and stored.dtype == np.float16 else np.float32
        factors, wanted = need(tensors, "triangles", 2, dtype), (positions, triangle_size(channels))
    if positions != head.grid[0] * head.grid[1] or factors.shape != wanted:
        raise BundleError(
            f"bank: expected a mean and a matrix or its triangle for each of {head.grid[0]} x {head.grid[1]} "
            f"positions, got {list(mean.shape)} and {list(factors.shape)}. Export the bundle again."
        )


def is_old(tensors: Tensors) -> bool:
    """Return whether a bank has whole matrices: that of a bundle from before they were stored as triangles."""
    return "whitening" in tensors


def native_head(head: PadimHead, tensors: Tensors, size: tuple[int, int]) -> NativeHead:
    """Return the head as a function on patches; see `BankMethod.head`."""
    smooth = smoother(head, size)
    if is_old(tensors):
        say_not_shared("whole matrices, of a bundle from before triangles were stored. Export it again to share it")
        gaussians = Gaussians(tensors["mean"], tensors["whitening"])
    else:
        gaussians = packed_gaussians(tensors["mean"], tensors["triangles"])

    def score(patches: Float32Array, mark: Mark = no_mark) -> tuple[Float32Array, Float32Array]:
        distances = np.sqrt(gaussians.mahalanobis(patches))
        mark("search")
        # The score is the maximum of the smoothed map, not of the distances: `score.onnx` and training do the same.
        maps = smooth(distances)
        scores = maps.max(axis=(1, 2))
        mark("map")
        return maps, scores

    return score


def device_head(device: Any, head: PadimHead, tensors: Tensors, size: tuple[int, int], max_batch: int) -> DeviceHead:
    """Put the Gaussians on a CUDA device; see `flawscope.runtime.scorers.bank_device`."""
    # Lazy: on the CPU nothing of CUDA is imported, which keeps the start short.
    from flawscope.runtime.scorers.bank_device import PadimDevice

    return PadimDevice(device, smoother(head, size), tensors, max_batch)


def gaussians_scale(tensors: Tensors) -> float:
    """Return √D, the root mean square Mahalanobis distance of D channels."""
    # The squared distance of a normal patch is chi-squared distributed with D degrees of freedom; its mean is D.
    return float(np.sqrt(tensors["mean"].shape[1]))


PADIM = BankMethod(check_tensors, native_head, device_head, gaussians_scale)
