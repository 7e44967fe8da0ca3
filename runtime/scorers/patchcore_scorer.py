"""Scorer of PatchCore: nearest rows of the memory bank, and the score from the distances to them (arXiv:2106.08265)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array, Int64Array
from flawscope.bank_names import bank_names, norm_names, place_names
from flawscope.bundle import PatchcoreHead
from flawscope.cpp_ext import Bank
from flawscope.cpp_ext.window import place_starts
from flawscope.errors import ArgumentError, BackendError, BundleError
from flawscope.imaging.patch_foreground import foreground_weights
from flawscope.runtime.backends.session import DeviceHead
from flawscope.runtime.scorers.bank_scorer import (
    BankMethod,
    NativeHead,
    Tensors,
    need,
    packed_bank,
    packed_window_bank,
    smoother,
)
from flawscope.runtime.scorers.timed import Mark, no_mark

_NORM_TOLERANCE = 1e-3
"""Of squared norms, relative: far more than any order of summation makes of float32."""


def check_tensors(head: PatchcoreHead, tensors: Tensors) -> None:
    """Raise BundleError unless the bank has the tensors that the head needs, with shapes that fit each other."""
    banks = [need(tensors, name, 2, np.float32) for name in bank_names(head.banks)]
    for bank, name in zip(banks, norm_names(head.banks), strict=True):
        if name in tensors:  # the kernels do without
            _check_norms(tensors, name, bank)
    if head.window is not None:
        for bank, name in zip(banks, place_names(head.banks), strict=True):
            check_places(head, tensors, name, len(bank))
    if head.foreground:
        direction, limits = (
            need(tensors, "foreground", 2, np.float32),
            need(tensors, "foreground_limits", 1, np.float32),
        )
        channels = sum(bank.shape[1] for bank in banks)
        if direction.shape != (channels, 1) or limits.shape != (2,):
            raise BundleError(
                f"bank: expected a direction [{channels}, 1] of the foreground and 2 limits, got "
                f"{list(direction.shape)} and {list(limits.shape)}. Export the bundle again."
            )
    if head.reweight != "paper" or not head.reweights:
        return
    bank, neighbours = banks[0], need(tensors, "neighbours", 2, np.int64)
    if len(neighbours) != len(bank) or neighbours.min() < 0 or neighbours.max() >= len(bank):
        raise BundleError(
            f"bank: expected neighbours that are rows of the bank, {len(bank)} for {len(bank)}, got "
            f"{list(neighbours.shape)} from {neighbours.min()} to {neighbours.max()}. Export the bundle again."
        )


def _check_norms(tensors: Tensors, name: str, bank: Float32Array) -> None:
    """Raise BundleError unless the norms of a bank are those of its rows.

    The graph reads them and the kernels compute their own: with others, as of room that is counted as rows in use, the
    paths would find different rows.
    """
    norms, own = need(tensors, name, 1, np.float32), np.einsum("md,md->m", bank, bank)
    if norms.shape != own.shape or (np.abs(norms - own) > _NORM_TOLERANCE * np.maximum(own, own.mean())).any():
        raise BundleError(
            f"bank: expected in {name} the squared norms of the {len(bank)} rows, got others. Export the bundle again."
        )


def native_head(head: PatchcoreHead, tensors: Tensors, size: tuple[int, int]) -> NativeHead:
    """Return the head as a function on patches; see `BankMethod.head`."""
    searches = [bank_search(head, tensors, number) for number in range(head.banks)]
    channels = sum(search.channels for search in searches)
    # Rows of a shared bank lie there; those that were read are let go of.
    names = bank_names(head.banks)
    tensors = {**tensors, **{name: search.rows for name, search in zip(names, searches, strict=True)}}
    finish = PatchcoreFinish(head, tensors, size, searches[0].whole if head.banks == 1 else None)

    def score(patches: Float32Array, mark: Mark = no_mark) -> tuple[Float32Array, Float32Array]:
        count, positions, width = patches.shape
        if width != channels:
            raise BundleError(
                f"bank: expected rows of the {width} channels of a patch, got {channels}. Export the bundle again."
            )
        flat = patches.reshape(-1, channels)
        total, start = np.zeros(len(flat), np.float32), 0
        for search in searches:
            stop = start + search.channels
            # One search for the whole batch: the kernels then read the bank once instead of once per image.
            squared, indices = search.nearest(np.ascontiguousarray(flat[:, start:stop]))
            total += patch_distances(head, squared).reshape(-1)  # one neighbour each
            start = stop
        if head.banks > 1:
            total *= np.float32(1 / head.banks)
        distances = total.reshape(count, positions)
        if head.foreground:
            distances = distances * foreground_weights(
                patches, tensors["foreground"], tensors["foreground_limits"], head.grid
            )
        mark("search")
        finished = finish(distances, indices.reshape(count, positions), flat.__getitem__)
        mark("map")
        return finished

    return score


def check_places(head: PatchcoreHead, tensors: Tensors, name: str, rows: int) -> None:
    """Raise BundleError unless every row of a bank has a place on the grid, in ascending order."""
    places = need(tensors, name, 2, np.int64)
    try:
        if place_starts(places, head.grid)[-1] != rows:
            raise ArgumentError(f"places: expected one for each of the {rows} rows, got {len(places)}.")
    except ArgumentError as err:
        raise BundleError(f"bank: {err} Export the bundle again.") from err


@dataclass(frozen=True)
class BankSearch:
    """The search through one bank.

    Attributes:
        channels: Channels of its rows.
        rows: Its rows where they lie, float32 [M, channels].
        nearest: `(patches float32 [N·P, channels]) -> (squared distances float32, rows int64)`, of the nearest row.
        whole: The bank for searches of all its rows; None where there is a window.
    """

    channels: int
    rows: Float32Array
    nearest: Callable[[Float32Array], tuple[Float32Array, Int64Array]]
    whole: Bank | None


def bank_search(head: PatchcoreHead, tensors: Tensors, number: int) -> BankSearch:
    """Prepare a bank for the search of nearest rows, within the window if the head has one."""
    rows = tensors[bank_names(head.banks)[number]]
    if head.window is not None:
        # Neighbours that re-weight a score are those in the whole bank: `PatchcoreFinish` packs it again if it must.
        windows = packed_window_bank(rows, tensors[place_names(head.banks)[number]], head.grid, head.window)
        return BankSearch(windows.shape[1], windows.rows, windows.nearest, None)
    bank = packed_bank(rows)
    return BankSearch(bank.shape[1], rows if bank.rows is None else bank.rows, bank.nearest, bank)


def device_head(
    device: Any, head: PatchcoreHead, tensors: Tensors, size: tuple[int, int], max_batch: int
) -> DeviceHead:
    """Put the bank on a CUDA device; see `flawscope.runtime.scorers.bank_device`."""
    if not head.fits_device:
        raise BackendError(
            f"path kernel: expected a head that the CUDA kernels compute, one memory bank without foreground, got "
            f"{head.banks} with foreground {str(head.foreground).lower()}. Use --path graph."
        )
    # Lazy: on the CPU nothing of CUDA is imported, which keeps the start short.
    from flawscope.runtime.scorers.bank_device import PatchcoreDevice, WindowDevice

    finish = PatchcoreFinish(head, tensors, size)

    def score(
        squared: Float32Array, rows: Int64Array, patch_at: Callable[[int], Float32Array]
    ) -> tuple[Float32Array, Float32Array]:
        return finish(patch_distances(head, squared), rows, patch_at)

    if head.window is not None:
        return WindowDevice(device, score, head.grid, head.window, tensors, max_batch)
    return PatchcoreDevice(device, score, head.grid, tensors, max_batch)


def bank_scale(tensors: Tensors) -> float:
    """Return the root mean square norm of the rows, its mean over the banks."""
    banks = [value for name, value in tensors.items() if name.partition(".")[0] == "bank"]
    # Summed in float64: a large bank has so many squares that a float32 sum stops growing.
    norms = [np.sqrt(np.einsum("md,md->", bank, bank, dtype=np.float64) / len(bank)) for bank in banks]
    return float(np.mean(norms))


def patch_distances(head: PatchcoreHead, squared: Float32Array) -> Float32Array:
    """Return distances as the head's metric has them, from squared Euclidean ones: float32 of the same shape."""
    # Both make a new array: what the kernels of a device wrote lies in memory that the next image overwrites.
    return np.sqrt(squared) if head.metric == "euclidean" else np.float32(0.5) * squared


class PatchcoreFinish:
    """From distances to maps and scores; shared by the CPU's kernels and those of the device.

    Args:
        head: The method's parameters.
        tensors: The bank.
        size: Height and width of the anomaly map in pixels.
        bank: The bank prepared for search; None prepares it if the re-weighting needs it.
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
        self._neighbors = min(head.neighbors, len(tensors["bank"])) if head.reweights else 1
        # A packed copy of the bank in host memory, which a device's search does not need: only the re-weighting `seed`
        # searches here.
        needs_search = head.reweight == "seed" and self._neighbors > 1
        self._bank = packed_bank(tensors["bank"]) if bank is None and needs_search else bank

    def __call__(
        self, distances: Float32Array, rows: Int64Array, patch_at: Callable[[int], Float32Array]
    ) -> tuple[Float32Array, Float32Array]:
        """Return anomaly maps float32 [N, H, W] and scores float32 [N].

        Args:
            distances: Distance of every patch, from `patch_distances`, times its weight, float32 [N, P].
            rows: Index of that row in the bank, [N, P].
            patch_at: Index in [0, N·P) -> patch, float32 [D]. A function, because on a device patches stay there, and
                only one per image is needed.
        """
        if self._head.top > 1:
            return self._smooth(distances), mean_of_largest(distances, self._head.top)
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
        position = int(distances.argmax())  # NumPy counts NaN as the largest, so a NaN distance becomes the score
        top = float(distances[position])
        if not math.isfinite(top):
            return top
        if self._neighbors == 1:  # one neighbour is nothing to weigh against
            return top
        patch = patch_at(image * len(distances) + position)
        # A handful of numbers, right after kernels that emptied the caches. This loop over rows takes half the time of
        # vectorized NumPy, because less code has to be fetched again. Measured; do not vectorize it.
        if self._bank is None or self._head.reweight == "paper":
            rows = self._tensors["bank"]
            differences = (rows[row] - patch for row in self._tensors["neighbours"][matched[position]].tolist())
            squared = [float(difference.dot(difference)) for difference in differences]
        else:
            squared = self._bank.nearest(patch[None], self._neighbors)[0][0].tolist()
        if self._head.metric == "euclidean":
            neighbour_distances = [math.sqrt(value) for value in squared]
        else:
            neighbour_distances = [0.5 * value for value in squared]
        # The paper's numerator is the matched row, first of its own neighbours; the seed takes the largest distance.
        largest = max(neighbour_distances)
        numerator = neighbour_distances[0] if self._head.reweight == "paper" else largest
        # The largest exponent is subtracted, as in every softmax: exp of a distance above 709 overflows.
        denominator = sum([math.exp(distance - largest) for distance in neighbour_distances])
        return top * (1.0 - math.exp(numerator - largest) / denominator)


def mean_of_largest(distances: Float32Array, count: int) -> Float32Array:
    """Return the mean of the `count` largest of every row, float32 [N]; a NaN counts as the largest."""
    # Sorted, so that the sum does not depend on where in the image the patches lie.
    largest = np.sort(distances, axis=1)[:, distances.shape[1] - count :]
    means: Float32Array = largest.mean(axis=1, dtype=np.float64).astype(np.float32)
    return means


PATCHCORE = BankMethod(check_tensors, native_head, device_head, bank_scale)
