"""LafitE on a device that is none: each step of its denoising is that of the NumPy loop, and so are the scores."""

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

from flawscope.errors import BackendError
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector
from flawscope.runtime.backends import engine_session
from flawscope.runtime.scorers import lafite_scorer
from flawscope.runtime.scorers.lafite_scorer import LafiteScorer

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> Path:
    return MethodBundles(tmp_path_factory.mktemp("methods"), tiny_root)["lafite"]


@pytest.fixture(scope="module")
def images(bundle: Path, tiny_root: Path) -> np.ndarray:
    paths = [*normal_images(tiny_root)[:1], *anomalous_images(tiny_root)[:2]]
    with Inspector.load(bundle, "cpu") as inspector:
        return np.stack([prepare(read_image(path), inspector.manifest.input) for path in paths])


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing_device(monkeypatch, tmp_path_factory) as stand:
        yield stand


def scorer_of(inspector: Inspector) -> Any:
    assert isinstance(inspector.scorer, LafiteScorer)
    return inspector.scorer


def test_each_step_and_the_scores_are_those_of_the_numpy_loop(bundle: Path, images: np.ndarray, stand: Stand) -> None:
    with Inspector.load(bundle, "cpu") as host, Inspector.load(bundle, "tensorrt") as device:
        ours, theirs = scorer_of(device), scorer_of(host)
        assert "the sampling, on the device" in ours.describe()
        assert "the sampling, on the host" in theirs.describe()
        seen = seen_on_device(ours._sessions, "denoise"), seen_on_host(theirs._sessions, "denoise")
        head, edit = theirs._head, theirs._edit
        noise = np.random.default_rng(0).standard_normal((9, *theirs._noise.shape[1:]), np.float32)
        # The bundle's own; the features as they are; noise in each step; other steps; and what was edited mixed in.
        for edits, change in (
            (True, {}),
            (False, {}),
            (True, {"eta": 1.0}),
            (True, {"steps": 2, "level": "start"}),
            (False, {"conditioning": "blend", "weight": 2.0}),
            (True, {}),
        ):
            for scorer in (ours, theirs):
                sampling = msgspec.structs.replace(head.sampling, **change)
                scorer._head = msgspec.structs.replace(head, sampling=sampling)
                scorer._edit = edit if edits else None
                scorer._noise = noise
            for batch in (images[:1], images, images[1:2], images[::-1].copy()):
                for one, other in zip(ours.score(batch), theirs.score(batch), strict=True):
                    np.testing.assert_array_equal(one, other)
                check_same(*seen)
    assert stand.graphs == {}
    assert stand.freed == stand.allocated


def test_every_batch_size_is_captured_at_load_and_takes_two_launches(
    bundle: Path, images: np.ndarray, stand: Stand
) -> None:
    with Inspector.load(bundle, "tensorrt") as device:
        scorer = scorer_of(device)
        steps = scorer._head.sampling.steps
        captured = [(steps, count) for count in range(1, MAX_BATCH + 1)]
        assert sorted(scorer._on_device.loop._graphs) == captured
        kept = stand.allocated
        for count in range(1, MAX_BATCH + 1):
            launches, enqueued = stand.launches, stand.enqueued
            scorer.score(images[:count])
            assert stand.launches == launches + 2, "the features; the steps"
            assert stand.enqueued == enqueued + 4, "features, table and noise; the result"
        assert sorted(scorer._on_device.loop._graphs) == captured
        assert stand.allocated == kept


def test_what_cannot_be_captured_is_launched_call_by_call(bundle: Path, images: np.ndarray, stand: Stand) -> None:
    stand.capturable = False
    with Inspector.load(bundle, "cpu") as host, Inspector.load(bundle, "tensorrt") as device:
        for one, other in zip(device.infer(images), host.infer(images), strict=True):
            np.testing.assert_array_equal(one, other)
        scorer = scorer_of(device)
        for part in (scorer._on_device.loop, scorer._sessions["encode"]):
            assert "capture" in part.graph_problem.lower()
    assert stand.launches == 0


def test_without_the_kernels_the_sampling_is_on_the_host(
    bundle: Path, images: np.ndarray, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", False)
    with Inspector.load(bundle, "cpu") as host, Inspector.load(bundle, "tensorrt") as device:
        assert "the sampling, on the host" in scorer_of(device).describe()
        for one, other in zip(device.infer(images), host.infer(images), strict=True):
            np.testing.assert_array_equal(one, other)


def test_features_of_others_than_the_noise_are_refused_before_they_are_copied(
    bundle: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Any = lafite_scorer.Bundle.tensors

    def wider(opened: Any) -> dict[str, np.ndarray]:
        tensors = read(opened)
        noise = tensors["noise"]
        return {"noise": np.concatenate([noise, noise], axis=1), "bank": np.tile(tensors["bank"], 2)}

    monkeypatch.setattr(lafite_scorer.Bundle, "tensors", wider)
    with pytest.raises(BackendError, match="features: expected float32"):
        Inspector.load(bundle, "tensorrt")
    assert stand.freed == stand.allocated
