"""PatchCore and PaDiM in several processes: the fit of one process, on every rank."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rank_fits
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patchcore_fits import patchcore_config
from rank_processes import run_processes
from thread_ranks import in_ranks
from tiny_dataset import CATEGORY, training_images

from flawscope.config import PadimConfig, build_config
from flawscope.cross_scores import CrossScores
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError, ImageError
from flawscope.progress import Progress, no_progress
from flawscope.training.detectors.cross_fitting import fit_and_cross
from flawscope.training.detectors.detector_training import _prepare, _record
from flawscope.training.detectors.padim import fit_gaussians, fit_padim
from flawscope.training.detectors.patchcore import fit_patchcore
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.ranks import Ranks
from flawscope.training.loop.shared_results import share_arrays, while_writer
from flawscope.training.trainer import trainer_of


def padim_config(**changed: object) -> PadimConfig:
    fixed = {"resize": 64, "stages": [1, 2], "channels": 12, "factors": "float32", "batch_size": 2}
    config, _ = build_config("padim", {**fixed, **changed})
    assert isinstance(config, PadimConfig)
    return config


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(padim_config().features, None)[0]


def assert_same(fitted: FitResult, alone: FitResult) -> None:
    assert fitted.tensors.keys() == alone.tensors.keys()
    for name, tensor in alone.tensors.items():
        np.testing.assert_array_equal(fitted.tensors[name], tensor)
        assert fitted.tensors[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("world", "changed"),
    [
        (2, {}),
        (3, {"batch_size": 1, "views": "flips"}),
        (4, {"batch_size": 8}),  # more processes than batches
        (2, {"window": 2}),
        (2, {"layers": "separate", "reweight": "none", "selection": "streaming"}),
        (2, {"projection": "jl", "standardize": "scale"}),
    ],
)
def test_patchcore_has_the_rows_of_one_process_on_every_rank(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, world: int, changed: dict[str, object]
) -> None:
    paths = training_images(tiny_root)[:7]
    config = patchcore_config(**{"batch_size": 2, **changed})
    alone = fit_patchcore(config, backbone, paths, tmp_path, no_progress)
    fits = in_ranks(world, lambda here: fit_patchcore(config, backbone, paths, tmp_path, no_progress, here))
    for fitted in fits:
        assert_same(fitted, alone)
        assert fitted.facts == {**alone.facts, "processes": world}
    assert "processes" not in alone.facts


@pytest.mark.parametrize(("world", "changed"), [(2, {}), (3, {"reduction": "ortho"}), (4, {"batch_size": 8})])
def test_padim_is_that_of_one_process_up_to_rounding(
    tiny_root: Path, backbone: Backbone, world: int, changed: dict[str, object]
) -> None:
    paths = training_images(tiny_root)[:7]
    config = padim_config(**changed)
    alone = fit_padim(config, backbone, paths, no_progress)
    fits = in_ranks(world, lambda here: fit_padim(config, backbone, paths, no_progress, here))
    again = in_ranks(world, lambda here: fit_padim(config, backbone, paths, no_progress, here))
    for fitted in (*fits[1:], *again):
        assert_same(fitted, fits[0])
    for name in ("mean", "whitening"):
        # Sums in float64, stored in float32: a unit in the last place, where a sum is at a border between two.
        np.testing.assert_allclose(fits[0].tensors[name], alone.tensors[name], rtol=2e-7, atol=1e-9)
    assert fits[0].facts["processes"] == world


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 99))
def test_moments_are_those_of_all_patches_whatever_a_rank_has(world: int, sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Far from zero: without a common shift the sums would cancel.
    batches = [torch.from_numpy(generator.normal(1000, 1, (size + 1, 3, 2)).astype(np.float32)) for size in sizes]
    fits = in_ranks(
        world, lambda here: fit_gaussians(batches[here.rank :: here.world], 3, 2, 0.01, no_progress, here=here)
    )
    patches = torch.cat(batches).numpy().astype(np.float64)
    for fitted in fits:
        np.testing.assert_allclose(fitted.mean, patches.mean(axis=0), rtol=1e-6)
        for position in range(3):
            covariance = np.cov(patches[:, position], rowvar=False) + 0.01 * np.eye(2)
            factor = fitted.whitening[position].astype(np.float64)
            np.testing.assert_allclose(factor @ factor.T @ covariance, np.eye(2), atol=1e-4)


@pytest.mark.slow
def test_two_processes_over_gloo_have_the_fit_of_one(tiny_root: Path, tmp_path: Path) -> None:
    ended = run_processes([rank_fits.__file__, str(tiny_root), str(tmp_path)], 2)
    assert [process.returncode for process in ended] == [0, 0], [process.stderr for process in ended]
    alone = rank_fits.fit_all(tiny_root, tmp_path, Ranks())
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    assert set(first) == set(second) == set(alone)
    for name, tensor in alone.items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_folds_are_shared_and_every_image_has_the_score_of_one_process(
    tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    settings: dict[str, object] = {"resize": 64, "stages": [1, 2], "cross_fit": 4}
    config, _ = build_config(method, settings | ({"coreset": 40} if method == "patchcore" else {"channels": 12}))
    dataset = open_dataset(tiny_root, CATEGORY)
    trainer = trainer_of(config)
    inputs = _prepare(config, dataset, trainer, None, None, no_progress)
    own = threading.local()
    monkeypatch.setattr("flawscope.training.trainer.ranks", lambda: getattr(own, "here", Ranks()))

    def crossed(here: Ranks) -> CrossScores:
        own.here = here
        request = inputs.request(tmp_path / "run", None, no_progress, is_resumed=False)
        return fit_and_cross(trainer, request, 4, functools.partial(_record, inputs, ""))[1]

    (alone,) = in_ranks(1, crossed)
    first, *others = in_ranks(3, crossed)
    assert others == [first, first]
    assert (first.folds, first.images) == (alone.folds, alone.images)
    # The backbone sees other images in a batch, which changes its last bits.
    np.testing.assert_allclose(first.scores, alone.scores, rtol=1e-4)
    np.testing.assert_allclose(first.map_max, alone.map_max, rtol=1e-4)


def test_settings_and_images_that_do_not_fit_are_refused_on_every_rank(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:3]
    with pytest.raises(ArgumentError, match="channels: expected at most"):
        in_ranks(2, lambda here: fit_padim(padim_config(channels=4000), backbone, paths, no_progress, here))
    with pytest.raises(DataError, match="padim: expected at least two"):
        in_ranks(2, lambda here: fit_padim(padim_config(), backbone, paths[:1], no_progress, here))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    config = patchcore_config(batch_size=1, standardize="none", align=False)
    with pytest.raises(ImageError, match=r"broken\.png"):  # of rank 1; rank 0 does not wait for ever
        in_ranks(2, lambda here: fit_patchcore(config, backbone, [paths[0], broken], tmp_path, no_progress, here))


def test_those_that_wait_are_told_that_rank_0_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawscope.training.loop.shared_results._BEAT", -1.0)
    told: list[int] = []

    def work(progress: Progress) -> int:
        for step in range(5):
            progress("work", step, 5)
        return 7

    results = in_ranks(3, lambda here: while_writer(here, work, lambda task, done, total: told.append(done)))
    assert results == [7, None, None]
    assert told == [0, 1, 2, 3, 4]


def test_arrays_of_rank_0_arrive_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flawscope.training.loop.shared_results._CHUNK_BYTES", 10)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "a": np.arange(12, dtype=np.float16).reshape(3, 4)[:, ::2],
        "b": np.array([[2**40]], np.int64),
        "single": np.array(0.5),
        "empty": np.empty((0, 3), np.float32),
    }

    def share(here: Ranks) -> dict[str, npt.NDArray[np.generic]]:
        return share_arrays(arrays if here.is_writer else {}, here)

    for shared in in_ranks(2, share):
        assert shared.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(shared[name], array)
            assert (shared[name].dtype, shared[name].shape) == (array.dtype, array.shape)
