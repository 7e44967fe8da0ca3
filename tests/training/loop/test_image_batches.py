"""Batches of images: the same whatever decodes them, in the order that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_dataset import training_images

from flawscope.errors import ImageError
from flawscope.imaging.images import Preprocessing
from flawscope.training.loop.image_batches import ImageReader, load_batches


@pytest.mark.parametrize("size", [1, 5, 24, 30])
def test_batches_do_not_depend_on_the_number_of_workers(tiny_root, size):
    paths, spec = training_images(tiny_root), Preprocessing((32, 32))
    alone, ahead = (list(load_batches(paths, spec, size, workers)) for workers in (0, 3))
    assert [batch.shape[0] for batch in alone] == [len(paths[i : i + size]) for i in range(0, len(paths), size)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, ahead, strict=True))
    order = [7, 0, 7, 3]
    for budget_mb in (0, 100):  # decoded again each time, or kept
        (batch,) = ImageReader(paths, spec, 0, budget_mb).batches(order, 4)
        assert np.array_equal(batch, np.concatenate(alone)[order])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(tmp_path, workers):
    (tmp_path / "text.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"text\.png"):
        list(load_batches([tmp_path / "text.png"], Preprocessing((32, 32)), 4, workers))
