"""Test images that a detector has seen: what is left out of figures, and what to a support set that is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_judged import Place, write_place

from flawscope.calibration.evaluation.seen_images import leave_out_seen, seen_notes
from flawscope.datasets import content_hash, image_hash, open_dataset
from flawscope.datasets.defects.support_set import read_support
from flawscope.errors import DataError
from flawscope.progress import no_progress


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("seen"))


@pytest.mark.parametrize("hash_of", [content_hash, image_hash])
def test_a_named_support_set_is_left_for_itself_whatever_hash_it_was_seen_by(
    place: Place, hash_of: Callable[[Path], str]
) -> None:
    dataset, support = open_dataset(place.root), read_support(place.support)
    good = next(sample.path for sample in dataset.test if not sample.is_anomalous)
    seen = {hash_of(place.root / place.spot): "a support image", hash_of(good): "defects were drawn on it"}
    _, left_out = leave_out_seen(dataset, seen, None, no_progress)
    assert set(left_out.values()) == set(seen.values())
    kept, left_out = leave_out_seen(dataset, seen, support, no_progress)
    assert set(left_out.values()) == {"defects were drawn on it"}
    assert len(kept.test) == len(dataset.test) - 1
    assert "defects were drawn on it 1" in seen_notes(left_out, len(dataset.test))[0]


def test_a_dataset_of_which_everything_was_seen_is_refused(place: Place) -> None:
    dataset = open_dataset(place.root)
    seen = {image_hash(sample.path): "a support image" for sample in dataset.test}
    with pytest.raises(DataError, match="expected test images that the detector has not learned from, got none"):
        leave_out_seen(dataset, seen, None, no_progress)


def test_images_of_which_none_was_seen_stay(place: Place) -> None:
    dataset = open_dataset(place.root)
    for seen in ({}, {"0" * 64: "a support image"}):
        assert leave_out_seen(dataset, seen, None, no_progress) == (dataset, {})
