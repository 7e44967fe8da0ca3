"""The native path: patches from the feature graph, distances from `cpp_ext`, the same head as the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.bundle import Head, PadimHead, PatchcoreHead
from flawscope.cpp_ext import Bank, Gaussians, separable_maps
from flawscope.errors import BundleError
from flawscope.maphead import map_matrices

Float32Array = npt.NDArray[np.float32]
NativeHead = Callable[[Float32Array], tuple[Float32Array, Float32Array]]
"""patches float32 [N, P, D] → anomaly maps float32 [N, H, W], scores float32 [N]."""


def build_head(head: Head, tensors: Mapping[str, npt.NDArray[Any]], size: tuple[int, int]) -> NativeHead:
    """Return the head of a bundle as a function on patches.

    Args:
        head: Method and parameters.
        tensors: The bank.
        size: Height and width of the anomaly map in pixels.

    Raises:
        BundleError: If the bank lacks a tensor.
    """
    needed = ("mean", "whitening") if isinstance(head, PadimHead) else ("bank",)
    if isinstance(head, PatchcoreHead) and head.reweight == "paper" and head.neighbors > 1:
        needed = ("bank", "neighbours")
    for name in needed:
        if name not in tensors:
            raise BundleError(f"bank: expected the tensor {name}, got {sorted(tensors)}. Export the bundle again.")
    rows, columns = map_matrices(head.grid, size, head.sigma)

    def smooth(distances: Float32Array) -> Float32Array:
        return separable_maps(distances.reshape(-1, *head.grid), rows, columns)

    if isinstance(head, PadimHead):
        gaussians = Gaussians(tensors["mean"], tensors["whitening"])

        def padim(patches: Float32Array) -> tuple[Float32Array, Float32Array]:
            maps = smooth(np.sqrt(gaussians.mahalanobis(patches)))
            return maps, maps.max(axis=(1, 2))

        return padim

    bank = Bank(tensors["bank"])

    def patchcore(patches: Float32Array) -> tuple[Float32Array, Float32Array]:
        count, positions, channels = patches.shape
        squared, indices = bank.nearest(patches.reshape(-1, channels))
        distances = np.sqrt(squared).reshape(count, positions)
        scores = np.array(
            [
                _image_score(head, patches[i], distances[i], indices.reshape(count, positions)[i], bank, tensors)
                for i in range(count)
            ],
            np.float32,
        )
        return smooth(distances), scores

    return patchcore


def distance_scale(head: Head, tensors: Mapping[str, npt.NDArray[Any]]) -> float:
    """Return the size of an ordinary distance of a bundle: differences of scores near zero are judged against it.

    PatchCore: the root mean square norm of the bank's rows. PaDiM: √D, the expected Mahalanobis distance.
    """
    if isinstance(head, PadimHead):
        return float(np.sqrt(tensors["mean"].shape[1]))
    bank = tensors["bank"]
    return float(np.sqrt(np.einsum("md,md->", bank, bank, dtype=np.float64) / len(bank)))


def _image_score(
    head: PatchcoreHead,
    patches: Float32Array,
    distances: Float32Array,
    matched: npt.NDArray[np.int64],
    bank: Bank,
    tensors: Mapping[str, npt.NDArray[Any]],
) -> float:
    """Return the score of one image: equation 7 of arXiv:2106.08265, or the seed's variant of it."""
    place = int(distances.argmax())  # NaN counts as the largest: a patch without a distance is the score
    top = float(distances[place])
    if not math.isfinite(top):
        return top
    if head.reweight == "none" or min(head.neighbors, len(bank)) == 1:  # one neighbour is nothing to weigh against
        return top
    # A handful of numbers, right after code that has emptied the caches: row by row, NumPy needs half the time that its
    # functions on whole arrays need, because there are fewer of them to be fetched.
    if head.reweight == "paper":
        rows, patch = tensors["bank"], patches[place]
        differences = (rows[row] - patch for row in tensors["neighbours"][matched[place]].tolist())
        around = [math.sqrt(difference.dot(difference)) for difference in differences]
    else:
        squared, _ = bank.nearest(patches[place : place + 1], min(head.neighbors, len(bank)))
        around = [math.sqrt(value) for value in squared[0].tolist()]
    # The paper's numerator is the matched row, first of its own neighbours; the seed takes the largest distance.
    own = around[0] if head.reweight == "paper" else max(around)
    most = max(around)
    return top * (1.0 - math.exp(own - most) / sum([math.exp(distance - most) for distance in around]))
