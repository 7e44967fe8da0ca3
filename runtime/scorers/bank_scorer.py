"""The native path: patches from the feature graph, distances from `cpp_ext`, the same head as the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.bundle import DdadHead, DsadHead, EnsembleHead, Head, PadimHead, PatchcoreHead, StfpmHead
from flawscope.cpp_ext import Bank, Gaussians, separable_maps
from flawscope.errors import BundleError
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.runtime.scorers.ensemble_scorer import sum_scale

NativeHead = Callable[[Float32Array], tuple[Float32Array, Float32Array]]
"""patches float32 [N, P, D] → anomaly maps float32 [N, H, W], scores float32 [N]."""


def build_head(head: Head, tensors: Mapping[str, npt.NDArray[Any]], size: tuple[int, int]) -> NativeHead:
    """Return the head of a bundle as a function on patches.

    Args:
        head: Method and parameters.
        tensors: The bank.
        size: Height and width of the anomaly map in pixels.

    Raises:
        BundleError: If the bank lacks a tensor, or the method has no patches.
    """
    if not isinstance(head, PatchcoreHead | PadimHead):
        method = head.__struct_config__.tag
        raise BundleError(f"path kernel: expected a method with a bank, got {method}. Leave --path out.")
    needed = ("mean", "whitening") if isinstance(head, PadimHead) else ("bank",)
    if isinstance(head, PatchcoreHead) and head.reweight == "paper" and head.neighbors > 1:
        needed = ("bank", "neighbours")
    for name in needed:
        if name not in tensors:
            raise BundleError(f"bank: expected the tensor {name}, got {sorted(tensors)}. Export the bundle again.")
    if isinstance(head, PadimHead):
        smooth = smoother(head, size)
        gaussians = Gaussians(tensors["mean"], tensors["whitening"])

        def padim(patches: Float32Array) -> tuple[Float32Array, Float32Array]:
            maps = smooth(np.sqrt(gaussians.mahalanobis(patches)))
            return maps, maps.max(axis=(1, 2))

        return padim

    bank = Bank(tensors["bank"])
    finish = PatchcoreFinish(head, tensors, size, bank)

    def patchcore(patches: Float32Array) -> tuple[Float32Array, Float32Array]:
        count, positions, channels = patches.shape
        flat = patches.reshape(-1, channels)
        squared, indices = bank.nearest(flat)
        return finish(squared.reshape(count, positions), indices.reshape(count, positions), flat.__getitem__)

    return patchcore


def smoother(head: PatchcoreHead | PadimHead, size: tuple[int, int]) -> Callable[[Float32Array], Float32Array]:
    """Return the function from distances float32 [N, P] to anomaly maps float32 [N, H, W] of a size (H, W)."""
    rows, columns = map_matrices(head.grid, size, head.sigma)
    return lambda distances: separable_maps(distances.reshape(-1, *head.grid), rows, columns)


class PatchcoreFinish:
    """What PatchCore makes of the nearest rows: maps and scores.

    Args:
        head: Method and parameters.
        tensors: The bank.
        size: Height and width of the anomaly map in pixels.
        bank: The bank made ready for search; made when it is needed unless given.
    """

    def __init__(
        self,
        head: PatchcoreHead,
        tensors: Mapping[str, npt.NDArray[Any]],
        size: tuple[int, int],
        bank: Bank | None = None,
    ) -> None:
        self._head, self._tensors = head, tensors
        self._smooth = smoother(head, size)
        self._neighbors = min(head.neighbors, len(tensors["bank"]))
        searched = head.reweight == "seed" and self._neighbors > 1
        self._bank = Bank(tensors["bank"]) if bank is None and searched else bank

    def __call__(
        self, squared: Float32Array, rows: npt.NDArray[np.int64], patch_at: Callable[[int], Float32Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N].

        Args:
            squared: Squared distance of every patch to its nearest row, float32 [N, P].
            rows: That row, [N, P].
            patch_at: Gives a patch, float32 [D], by its index in [0, N·P).
        """
        distances = np.sqrt(squared)
        scores = np.array([self._score(i, distances[i], rows[i], patch_at) for i in range(len(distances))], np.float32)
        return self._smooth(distances), scores

    def _score(
        self,
        image: int,
        distances: Float32Array,
        matched: npt.NDArray[np.int64],
        patch_at: Callable[[int], Float32Array],
    ) -> float:
        """Return the score of one image: equation 7 of arXiv:2106.08265, or the seed's variant of it."""
        place = int(distances.argmax())  # NaN counts as the largest: a patch without a distance is the score
        top = float(distances[place])
        if not math.isfinite(top):
            return top
        if self._head.reweight == "none" or self._neighbors == 1:  # one neighbour is nothing to weigh against
            return top
        patch = patch_at(image * len(distances) + place)
        # A handful of numbers, right after code that has emptied the caches: row by row, NumPy needs half the time that
        # its functions on whole arrays need, because there are fewer of them to be fetched.
        if self._bank is None or self._head.reweight == "paper":
            rows = self._tensors["bank"]
            differences = (rows[row] - patch for row in self._tensors["neighbours"][matched[place]].tolist())
            around = [math.sqrt(difference.dot(difference)) for difference in differences]
        else:
            squared, _ = self._bank.nearest(patch[None], self._neighbors)
            around = [math.sqrt(value) for value in squared[0].tolist()]
        # The paper's numerator is the matched row, first of its own neighbours; the seed takes the largest distance.
        most = max(around)
        own = around[0] if self._head.reweight == "paper" else most
        return top * (1.0 - math.exp(own - most) / sum([math.exp(distance - most) for distance in around]))


def distance_scale(head: Head, tensors: Mapping[str, npt.NDArray[Any]]) -> float:
    """Return the size of an ordinary distance of a bundle: differences of scores near zero are judged against it.

    PatchCore: the root mean square norm of the bank's rows. PaDiM: √D, the expected Mahalanobis distance. An ensemble:
    its terms before their centers are taken off. Others: an ordinary score.
    """
    if isinstance(head, EnsembleHead):
        return sum_scale(head)
    if isinstance(head, StfpmHead | DdadHead | DsadHead):
        return head.scale
    if isinstance(head, PadimHead):
        return float(np.sqrt(tensors["mean"].shape[1]))
    bank = tensors["bank"]
    return float(np.sqrt(np.einsum("md,md->", bank, bank, dtype=np.float64) / len(bank)))
