"""Reconstruction on a device that is none: each step is that of the NumPy loop, and so are the scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cuda_stand_in import Stand
from method_bundles import MAX_BATCH, MethodBundles
from standing_device import check_same, seen_on_device, seen_on_host, standing_device
from tiny_dataset import anomalous_images, normal_images

from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector
from flawscope.runtime.backends import engine_session
from flawscope.runtime.scorers.reconstruction_scorer import ReconstructionScorer

pytestmark = pytest.mark.long

METHODS = ["ddad", pytest.param("dsad", marks=pytest.mark.slow)]  # the second trains an autoencoder, too


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> MethodBundles:
    return MethodBundles(tmp_path_factory.mktemp("methods"), tiny_root)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing_device(monkeypatch, tmp_path_factory) as stand:
        yield stand


def scorer_of(inspector: Inspector) -> Any:
    assert isinstance(inspector.scorer, ReconstructionScorer)
    return inspector.scorer


@pytest.mark.parametrize("method", METHODS)
def test_each_step_and_the_scores_are_those_of_the_numpy_loop(
    made: MethodBundles, tiny_root: Path, method: str, stand: Stand
) -> None:
    paths = [*normal_images(tiny_root)[:1], *anomalous_images(tiny_root)[:2]]
    with Inspector.load(made[method], "cpu") as host, Inspector.load(made[method], "tensorrt") as device:
        images = np.stack([prepare(read_image(path), host.manifest.input) for path in paths])
        ours, theirs = scorer_of(device), scorer_of(host)
        assert ours.describe().startswith("the sampling, on the device")
        assert theirs.describe().startswith("the sampling, on the host")
        seen = seen_on_device(ours._sessions, "denoise"), seen_on_host(theirs._sessions, "denoise")
        sampling = host.manifest.head.sampling  # type: ignore[union-attr]
        for change in ({}, {"eta": 0.0}, {"steps": 2}, {"conditioning": "blend", "weight": 2.0}, {}):
            for scorer in (ours, theirs):
                scorer.resample(msgspec.structs.replace(sampling, **change))
            for batch in (images[:1], images, images[1:2], images[::-1].copy()):
                one, other = ours.reconstruct(batch), theirs.reconstruct(batch)
                check_same(*seen)
                for name in ("reconstructions", "pixel", "feature", "maps", "scores"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
                np.testing.assert_array_equal(one.unsampled(), other.unsampled())
        own = {(sampling.steps, count) for count in range(1, MAX_BATCH + 1)}
        assert set(ours._on_device.loop._graphs) == {*own, (2, 1), (2, 3)}
        kept = stand.allocated
        ours.score(images)
        assert stand.allocated == kept
    assert stand.graphs == {}
    assert stand.freed == stand.allocated


@pytest.mark.parametrize("method", METHODS)
def test_every_batch_size_is_captured_at_load_and_takes_one_launch(
    made: MethodBundles, tiny_root: Path, method: str, stand: Stand
) -> None:
    with Inspector.load(made[method], "tensorrt") as device:
        scorer = scorer_of(device)
        captured = set(scorer._on_device.loop._graphs)
        assert captured == {(scorer._sampling.steps, count) for count in range(1, MAX_BATCH + 1)}
        image = prepare(read_image(normal_images(tiny_root)[0]), device.manifest.input)
        kept = stand.allocated
        for count in range(1, MAX_BATCH + 1):
            launches, enqueued = stand.launches, stand.enqueued
            scorer.score(np.stack([image] * count))
            assert stand.launches == launches + 1
            # What two networks begin with, or the loop; table and noise; three results. No network.
            assert stand.enqueued == enqueued + 7
        assert set(scorer._on_device.loop._graphs) == captured
        assert stand.allocated == kept


def test_without_the_kernels_the_sampling_is_on_the_host(
    made: MethodBundles, tiny_root: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", False)
    with Inspector.load(made["ddad"], "cpu") as host, Inspector.load(made["ddad"], "tensorrt") as device:
        image = prepare(read_image(normal_images(tiny_root)[0]), host.manifest.input)[None]
        assert scorer_of(device).describe().startswith("the sampling, on the host")
        for ours, theirs in zip(device.infer(image), host.infer(image), strict=True):
            np.testing.assert_array_equal(ours, theirs)
