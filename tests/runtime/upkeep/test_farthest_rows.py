"""The choice of new rows: the farthest patch, again and again, against a plain search over whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.arrays import Float32Array, Int64Array
from flawscope.bundle import PatchcoreHead
from flawscope.errors import DataError
from flawscope.progress import no_progress
from flawscope.runtime.upkeep.farthest_rows import Candidates

GRID = (2, 3)
PLACES: Int64Array = np.argwhere(np.ones(GRID)).astype(np.int64)


def plainly(
    bank: Float32Array, bank_places: Int64Array, images: list[Float32Array], window: int | None, count: int
) -> list[tuple[int, int]]:
    """Return (image, position) of the chosen patches; without a window every row counts everywhere."""
    rows = [(row, place) for row, place in zip(bank, bank_places, strict=True)]
    chosen: list[tuple[int, int]] = []
    for _ in range(count):
        best, farthest = None, 0.0
        for image, patches in enumerate(images):
            for position, patch in enumerate(patches):
                near = [
                    float(((patch - row) ** 2).sum())
                    for row, place in rows
                    if window is None or np.abs(PLACES[position] - place).max() <= window
                ]
                if min(near) > farthest:
                    best, farthest = (image, position), min(near)
        if best is None:
            break
        chosen.append(best)
        rows.append((images[best[0]][best[1]], PLACES[best[1]]))
    return sorted(chosen)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([None, 0, 1]), st.integers(1, 9), st.integers(1, 3))
def test_the_farthest_patches_are_chosen_as_by_a_plain_search(
    seed: int, window: int | None, count: int, images: int
) -> None:
    generator = np.random.default_rng(seed)
    # A row at every place, so that no window is empty.
    bank = generator.integers(-4, 5, (6, 3)).astype(np.float32)
    shown = [generator.integers(-4, 5, (6, 3)).astype(np.float32) for _ in range(images)]
    head = PatchcoreHead(GRID, 1, "none", 0.0, window=window)
    candidates = Candidates(head, {"bank": bank, "places": PLACES}, 0)
    for image, patches in enumerate(shown):
        candidates.add(patches, image, np.ones(6, bool))
    chosen = candidates.choose(count, no_progress)
    expected = plainly(bank, PLACES, shown, window, count)
    assert list(zip(chosen.images.tolist(), chosen.positions.tolist(), strict=True)) == expected
    for row, (image, position) in zip(chosen.rows, expected, strict=True):
        np.testing.assert_array_equal(row, shown[image][position])


def test_patches_that_do_not_count_are_never_chosen() -> None:
    head = PatchcoreHead(GRID, 1, "none", 0.0)
    candidates = Candidates(head, {"bank": np.zeros((1, 2), np.float32)}, 0)
    patches = np.arange(12, dtype=np.float32).reshape(6, 2)
    candidates.add(patches, 0, np.array([1, 1, 0, 0, 0, 0], bool))
    assert candidates.choose(9, no_progress).positions.tolist() == [0, 1]


def test_within_a_small_budget_the_farthest_stay() -> None:
    head = PatchcoreHead(GRID, 1, "none", 0.0)
    bank = {"bank": np.zeros((1, 2), np.float32)}
    wide, narrow = Candidates(head, bank, 0), Candidates(head, bank, 0, budget=4 * 2 * 4)
    generator = np.random.default_rng(0)
    for image in range(20):
        patches = generator.integers(-50, 51, (6, 2)).astype(np.float32)
        for candidates in (wide, narrow):
            candidates.add(patches, image, np.ones(6, bool))
    first, same = wide.choose(1, no_progress), narrow.choose(1, no_progress)
    np.testing.assert_array_equal(first.rows, same.rows)
    assert len(narrow.choose(9, no_progress).rows) <= 4


def test_a_patch_that_is_no_number_is_refused() -> None:
    head = PatchcoreHead(GRID, 1, "none", 0.0)
    candidates = Candidates(head, {"bank": np.zeros((1, 2), np.float32)}, 0)
    with pytest.raises(DataError, match="expected finite patches, got NaN or infinity"):
        candidates.add(np.full((6, 2), np.nan, np.float32), 0, np.ones(6, bool))
