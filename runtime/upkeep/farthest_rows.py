"""Which patches of new images become rows: those farthest from the bank, one after another."""

from __future__ import annotations

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, Int64Array
from flawscope.bank_names import place_names
from flawscope.bundle import PatchcoreHead
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.cpp_ext.window_coreset import places_of
from flawscope.errors import DataError
from flawscope.progress import Progress
from flawscope.runtime.scorers.bank_scorer import Tensors
from flawscope.runtime.scorers.patchcore_scorer import bank_search
from flawscope.runtime.upkeep.bank_rows import NewRows

_BUDGET = 256 << 20
"""Bytes of the patches that are candidates; those nearest to the bank are dropped where there are more."""

_SAME = 1e-6
"""Squared distance, as a share of the squared norm, up to which a patch is a row that is there already."""


class Candidates:
    """Patches of new images that may become rows of one bank.

    Args:
        head: The head of the bundle.
        tensors: Its bank, the rows in use.
        number: Which of its banks.
        budget: Bytes that patches may take.
    """

    def __init__(self, head: PatchcoreHead, tensors: Tensors, number: int, budget: int = _BUDGET) -> None:
        self._search = bank_search(head, tensors, number)
        self._grid, self._reach = head.grid, None
        if head.window is not None:
            starts = place_starts(tensors[place_names(head.banks)[number]], head.grid)
            self._reach = window_reach(starts, head.grid, head.window)
        self.channels = self._search.channels
        self._most = max(1, budget // (4 * self.channels))
        # Patches, squared distances, positions and images; several blocks until they are many.
        self._blocks: list[tuple[Float32Array, Float32Array, Int64Array, Int64Array]] = []

    def add(self, patches: Float32Array, image: int, shown: BoolArray) -> None:
        """Add the patches of one image, or of one view or tile of it.

        Args:
            patches: All of them, float32 [P, D].
            image: Index of the image.
            shown: Which of them may become rows, bool [P].

        Raises:
            DataError: If a patch is no number.
        """
        patches = np.ascontiguousarray(patches)
        # Of whole images, as the search within a window wants them.
        squared, _ = self._search.nearest(patches)
        squared = squared.reshape(-1)
        if not np.isfinite(squared).all():
            raise DataError("bank add: expected finite patches, got NaN or infinity. Nothing was written.")
        positions = np.flatnonzero(shown)
        self._blocks.append((patches[shown], squared[shown], positions, np.full(len(positions), image, np.int64)))
        if sum(len(block[0]) for block in self._blocks) > 2 * self._most:
            self._blocks = [self._farthest()]

    def _farthest(self) -> tuple[Float32Array, Float32Array, Int64Array, Int64Array]:
        """Return the farthest patches, as many as the budget takes, in their order."""
        patches, squared, positions, images = (np.concatenate(part) for part in zip(*self._blocks, strict=True))
        if len(patches) > self._most:
            # Stable, so that of equally far ones the first stay.
            kept = np.sort(np.argsort(-squared, kind="stable")[: self._most])
            patches, squared, positions, images = patches[kept], squared[kept], positions[kept], images[kept]
        return patches, squared, positions, images

    def choose(self, count: int, progress: Progress) -> NewRows:
        """Return up to `count` rows: always the patch that is farthest from all rows, the chosen ones included.

        This is the greedy k-centre selection (Gonzalez 1985; PatchCore, arXiv:2106.08265, equation 5) that goes on from
        the rows of the bank. Fewer come back where the patches left are in the bank already.

        Args:
            count: Most rows.
            progress: Receives progress.
        """
        patches, squared, positions, images = self._farthest()
        norms = np.einsum("nd,nd->n", patches, patches)
        chosen: list[int] = []
        for step in range(min(count, len(patches))):
            best = int(squared.argmax())
            if squared[best] <= _SAME * norms[best]:
                break
            chosen.append(best)
            near = self._near(positions, best)
            # ‖p − r‖² by products: a matrix times a vector, the whole cost of a step.
            away = norms[near] - 2 * (patches[near] @ patches[best]) + norms[best]
            squared[near] = np.minimum(squared[near], np.maximum(away, 0))
            squared[best] = 0
            progress("choosing rows", step + 1, count)
        # By image, and within one by place.
        at = np.array(sorted(chosen, key=lambda index: (images[index], index)), np.int64)
        return NewRows(patches[at], positions[at], images[at])

    def _near(self, positions: Int64Array, row: int) -> Int64Array | slice:
        """Return the patches that a row at the place of patch `row` counts for."""
        if self._reach is None:
            return slice(None)
        own = places_of(positions, self._grid)
        away = np.abs(own - own[row]).max(axis=1)
        return np.flatnonzero(away <= self._reach[own[:, 0], own[:, 1]])
