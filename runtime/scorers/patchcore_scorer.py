"""PatchCore on the line: nearest rows of the memory bank, and the re-weighting of the score (arXiv:2106.08265)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.bundle import PatchcoreHead
from flawscope.cpp_ext import Bank
from flawscope.runtime.backends.base import DeviceHead
from flawscope.runtime.scorers.bank_scorer import BankMethod, NativeHead, Tensors, smoother


def needed_tensors(head: PatchcoreHead) -> tuple[str, ...]:
    """Return the tensors of the bank: the paper's re-weighting looks up the rows' own neighbours."""
    return ("bank", "neighbours") if head.reweight == "paper" and head.neighbors > 1 else ("bank",)


def native_head(head: PatchcoreHead, tensors: Tensors, size: tuple[int, int]) -> NativeHead:
    """Return the head as a function on patches; see `BankMethod.head`."""
    bank = Bank(tensors["bank"])
    finish = PatchcoreFinish(head, tensors, size, bank)

    def score(patches: Float32Array) -> tuple[Float32Array, Float32Array]:
        count, positions, channels = patches.shape
        flat = patches.reshape(-1, channels)
        squared, indices = bank.nearest(flat)
        return finish(squared.reshape(count, positions), indices.reshape(count, positions), flat.__getitem__)

    return score


def device_head(
    device: Any, head: PatchcoreHead, tensors: Tensors, size: tuple[int, int], max_batch: int
) -> DeviceHead:
    """Put the bank on a CUDA device; see `flawscope.runtime.scorers.bank_device`."""
    from flawscope.runtime.scorers.bank_device import PatchcoreDevice

    return PatchcoreDevice(device, PatchcoreFinish(head, tensors, size), head.grid, tensors, max_batch)


def bank_scale(tensors: Tensors) -> float:
    """Return the root mean square norm of the bank's rows."""
    bank = tensors["bank"]
    # In float64: the sum of a large bank's squares outgrows what float32 counts exactly.
    return float(np.sqrt(np.einsum("md,md->", bank, bank, dtype=np.float64) / len(bank)))


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
        tensors: Tensors,
        size: tuple[int, int],
        bank: Bank | None = None,
    ) -> None:
        self._head, self._tensors = head, tensors
        self._smooth = smoother(head, size)
        self._neighbors = min(head.neighbors, len(tensors["bank"]))
        searched = head.reweight == "seed" and self._neighbors > 1
        self._bank = Bank(tensors["bank"]) if bank is None and searched else bank

    def __call__(
        self, squared: Float32Array, rows: Int64Array, patch_at: Callable[[int], Float32Array]
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
        matched: Int64Array,
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


PATCHCORE = BankMethod(needed_tensors, native_head, device_head, bank_scale)
