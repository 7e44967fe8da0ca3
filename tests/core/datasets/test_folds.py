"""Folds: every sample in one, copies together, the same choice wherever the files are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flawscope.datasets import Sample, split_folds
from flawscope.errors import ArgumentError, DataError

CATEGORIES = ("cap", "nut", "pin")


def samples_of(contents: list[int], root: str = "data") -> tuple[list[Sample], dict[Path, str]]:
    """Return a sample for every content, those of a content in one category, and their hashes."""
    samples = [
        Sample(Path(root) / f"{index}.png", "train", "good", category=CATEGORIES[content % 3])
        for index, content in enumerate(contents)
    ]
    return samples, {sample.path: f"h{content}" for sample, content in zip(samples, contents, strict=True)}


@given(contents=st.lists(st.integers(0, 30), min_size=3, max_size=60), folds=st.integers(2, 12), seed=st.integers(0, 9))
def test_every_sample_is_in_one_fold_and_copies_are_together(contents: list[int], folds: int, seed: int) -> None:
    samples, hashes = samples_of(contents)
    different = len(set(contents))
    assume(different >= 3 and folds <= different and different - -(-different // folds) >= 2)
    found = split_folds(samples, folds, seed, hashes)
    assert sorted(sample.path for fold in found for sample in fold) == sorted(sample.path for sample in samples)
    held = [{hashes[sample.path] for sample in fold} for fold in found]
    assert sum(map(len, held)) == different
    sizes = [len(names) for names in held]
    assert max(sizes) - min(sizes) <= 1
    for category in CATEGORIES:
        of_category = Counter(
            place for place, fold in enumerate(found) for _ in {hashes[s.path] for s in fold if s.category == category}
        )
        counts = [of_category[place] for place in range(folds)]
        assert max(counts) - min(counts) <= 1
    moved, moved_hashes = samples_of(contents, "elsewhere/deep")
    again = split_folds(moved[::-1], folds, seed, moved_hashes)
    assert [[s.path.name for s in fold] for fold in again] == [[s.path.name for s in fold] for fold in found]


@given(contents=st.lists(st.integers(0, 6), max_size=12), folds=st.integers(-3, 9))
def test_what_leaves_a_fit_with_one_image_is_refused_in_one_line(contents: list[int], folds: int) -> None:
    samples, hashes = samples_of(contents)
    different = len(set(contents))
    count = different if folds == -1 else folds
    if different >= 3 and 2 <= count <= different and different - -(-different // count) >= 2:
        assert all(split_folds(samples, folds, 0, hashes))
        return
    with pytest.raises((ArgumentError, DataError), match="cross_fit: expected") as caught:
        split_folds(samples, folds, 0, hashes)
    assert "\n" not in str(caught.value)
