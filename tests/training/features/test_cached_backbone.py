"""The cache of a backbone: the same stages, each image computed once."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.config import FeatureSettings
from flawscope.training.features import cached_backbone
from flawscope.training.features.backbone import build_backbone
from flawscope.training.features.cached_backbone import CachedBackbone
from flawscope.training.features.patch_features import PatchFeatures

BACKBONE = build_backbone(FeatureSettings(backbone="scattering", stages=(1, 2)), None)[0]
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8))


class Counted:
    """Counts the images that a backbone computes."""

    def __init__(self, monkeypatch: Any = None) -> None:
        self.images = 0

    def __call__(self, module: Any, inputs: tuple[torch.Tensor], output: Any) -> None:
        self.images += len(inputs[0])


@given(batches=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=25)
def test_any_batches_get_the_stages_of_the_backbone_and_each_image_is_computed_once(batches: list[list[int]]) -> None:
    counted = Counted()
    handle = BACKBONE.register_forward_hook(counted)
    with tempfile.TemporaryFile() as file, torch.inference_mode():
        cached = CachedBackbone(BACKBONE, file)
        for batch in batches:
            # A batch that repeats an image has it once: what is new is only known after the batch.
            chosen = sorted(set(batch))
            got = cached(IMAGES[chosen])
            handle.remove()
            expected = BACKBONE(IMAGES[chosen])
            handle = BACKBONE.register_forward_hook(counted)
            for mine, theirs in zip(got, expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert counted.images == len({index for batch in batches for index in batch})


def test_what_does_not_fit_is_computed_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(cached_backbone, "_MOST_BYTES", 1)
    with tempfile.TemporaryFile() as file, torch.inference_mode():
        cached = CachedBackbone(BACKBONE, file)
        first, again = cached(IMAGES), cached(IMAGES)
        assert file.tell() == 0
    for mine, theirs in zip(first, again, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_it_stands_for_the_backbone() -> None:
    with tempfile.TemporaryFile() as file:
        cached = CachedBackbone(BACKBONE, file)
        features = PatchFeatures(cached, pool=True, upsample="bilinear")
        assert features.layout((32, 48)) == PatchFeatures(BACKBONE, pool=True, upsample="bilinear").layout((32, 48))
        assert features.device == BACKBONE.get_buffer("scale").device
        assert cached.network is BACKBONE.network
        assert (cached.mean, cached.std) == (BACKBONE.mean, BACKBONE.std)
