"""Fitting PaDiM: the Gaussians are those of the patches, whatever the batch size, and survive saving bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_heads import build_head, torch_scores
from tiny_dataset import anomalous_images, normal_images, training_images

from flawscope import runs
from flawscope.bundle import PadimHead
from flawscope.config import PadimConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.training.detectors.detector_run import read_run, write_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.detectors.padim import MOST_ERROR, fit_gaussians, fit_padim
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.features.patch_extraction import iterate_patches
from flawscope.training.features.patch_features import PatchFeatures, build_features
from flawscope.training.loop.fit_result import FitResult


def padim_config(**settings: object) -> PadimConfig:
    fixed = {"resize": 64, "stages": [1, 2], "channels": 12, "factors": "float32"}
    config, _ = build_config("padim", {**fixed, **settings})
    assert isinstance(config, PadimConfig)
    return config


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(padim_config().features, None)[0]


def fit(config: PadimConfig, backbone: Backbone, paths: list[Path]) -> FitResult:
    return fit_padim(config, backbone, paths, no_progress)


def patches_of(features: PatchFeatures, config: PadimConfig, paths: list[Path]) -> npt.NDArray[np.float64]:
    """Return all patches at once, float64 [images, P, D]."""
    batches = iterate_patches(features, paths, config, "reading", no_progress)
    return np.concatenate([batch.numpy() for batch in batches]).astype(np.float64)


@pytest.mark.parametrize(
    "changed",
    [{}, {"standardize": "none"}, {"regularization": 0.5}, {"upsample": "bilinear"}, {"reduction": "ortho"}],
)
def test_mean_and_covariance_are_numpys_on_all_patches(
    tiny_root: Path, backbone: Backbone, changed: dict[str, object]
) -> None:
    config = padim_config(**changed)
    paths = training_images(tiny_root)
    fitted = fit(config, backbone, paths)
    patches = patches_of(build_features(config, backbone, fitted), config, paths)
    np.testing.assert_allclose(fitted.tensors["mean"], patches.mean(axis=0), rtol=1e-5, atol=1e-6)
    for position in (0, 17, 100, 255):
        covariance = np.cov(patches[:, position], rowvar=False) + config.regularization * np.eye(12)
        whitening = fitted.tensors["whitening"][position].astype(np.float64)
        inverse = np.linalg.inv(covariance)
        np.testing.assert_allclose(whitening @ whitening.T, inverse, rtol=0, atol=2e-5 * np.abs(inverse).max())


def test_the_distance_is_the_mahalanobis_distance_of_the_paper(tiny_root: Path, backbone: Backbone) -> None:
    config = padim_config(sigma=0.0)
    paths = training_images(tiny_root)
    fitted = fit(config, backbone, paths)
    features = build_features(config, backbone, fitted)
    patches = patches_of(features, config, paths)
    (tested,) = iterate_patches(features, anomalous_images(tiny_root)[:1], config, "reading", no_progress)
    centred = tested[0].numpy().astype(np.float64) - patches.mean(axis=0)
    expected = np.empty(256)
    for position in range(256):
        covariance = np.cov(patches[:, position], rowvar=False) + 0.01 * np.eye(12)
        expected[position] = np.sqrt(centred[position] @ np.linalg.inv(covariance) @ centred[position])
    # A map of the grid's own size: no up-sampling, no smoothing.
    maps, scores = build_head(PadimHead(fitted.grid, 0.0), fitted.tensors, fitted.grid)(tested.numpy())
    np.testing.assert_allclose(maps[0].ravel(), expected, rtol=1e-4)
    np.testing.assert_allclose(scores[0], expected.max(), rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_streaming_does_not_depend_on_the_batch_size(tiny_root: Path, backbone: Backbone, batch_size: int) -> None:
    paths = training_images(tiny_root)
    expected = fit(padim_config(batch_size=8), backbone, paths)
    got = fit(padim_config(batch_size=batch_size), backbone, paths)
    assert got.channels == expected.channels
    for name in ("mean", "whitening"):
        largest = float(np.abs(expected.tensors[name]).max())
        np.testing.assert_allclose(got.tensors[name], expected.tensors[name], rtol=0, atol=2e-5 * largest)


def test_the_channels_are_drawn_by_the_seed_and_sorted(tiny_root: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)[:3]
    first, again, other = (fit(padim_config(seed=seed), backbone, paths).channels for seed in (1, 1, 2))
    assert first is not None
    assert first == again != other
    assert list(first) == sorted(set(first))
    assert len(first) == 12
    assert first[0] >= 0
    assert first[-1] < 150


def scores_of_run(path: Path, part_images: list[Path]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    run = read_run(path)
    spec = run.record.config.preprocessing
    head = PadimHead(run.record.grid, run.record.config.maps.sigma)
    images = [prepare(read_image(image), spec) for image in part_images]
    return torch_scores(run.module, head, run.fitted.tensors, spec.size, images)


def test_saved_and_reloaded_scores_are_the_same_bit_for_bit_also_under_another_global_seed(
    tiny_root: Path, tmp_path: Path
) -> None:
    part_images = [*normal_images(tiny_root), *anomalous_images(tiny_root)]
    config = padim_config(held_out_minimum=4)
    dataset = open_dataset(tiny_root)
    record = train_detector(config, dataset, tmp_path / "run")

    # What was in memory before it was saved, made again from the same images.
    backbone, _ = build_backbone(config.features, None)
    trained = {str(digest) for digest in record.training}
    from flawscope.datasets import image_hash

    paths = [sample.path for sample in dataset.train_good if image_hash(sample.path) in trained]
    fitted = fit(config, backbone, paths)
    images = [prepare(read_image(image), config.preprocessing) for image in part_images]
    head = PadimHead(fitted.grid, config.maps.sigma)
    before = torch_scores(build_features(config, backbone, fitted), head, fitted.tensors, (64, 64), images)

    torch.manual_seed(1)
    first = scores_of_run(tmp_path / "run", part_images)
    torch.manual_seed(20_000)
    np.random.seed(20_000)  # noqa: NPY002  the global state is what must not matter
    write_run(tmp_path / "copy", record, read_run(tmp_path / "run").fitted, backbone, part_images[:1])
    second = scores_of_run(tmp_path / "copy", part_images)
    for got in (first, second):
        assert got[0].tobytes() == before[0].tobytes()
        assert got[1].tobytes() == before[1].tobytes()
    assert len(np.unique(before[1])) == len(part_images)


def test_the_choice_of_channels_is_read_from_the_run_not_drawn_again(padim_run: Path) -> None:
    run = read_run(padim_run)
    assert run.record.channels is not None
    assert run.module.channels == list(run.record.channels)
    assert dataclasses.asdict(run.fitted)["channels"] == run.record.channels


def test_ortho_projects_all_channels_onto_orthonormal_directions_of_the_seed(
    tiny_root: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)
    plain = padim_config(reduction="ortho", standardize="none")
    fitted = fit(plain, backbone, paths)
    assert fitted.channels is None
    assert fitted.transform is not None
    assert fitted.transform.shape == (150, 12)
    np.testing.assert_allclose(fitted.transform.T @ fitted.transform, np.eye(12), atol=1e-5)
    np.testing.assert_array_equal(fit(plain, backbone, paths).transform, fitted.transform)
    other = fit(padim_config(reduction="ortho", standardize="none", seed=1), backbone, paths)
    assert not np.array_equal(other.transform, fitted.transform)


def test_ortho_after_scaling_is_the_product_of_both(tiny_root: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)
    projected = fit(padim_config(reduction="ortho", standardize="none"), backbone, paths).transform
    scale = fit(padim_config(channels=150, standardize="scale"), backbone, paths).transform
    both = fit(padim_config(reduction="ortho", standardize="scale"), backbone, paths).transform
    assert projected is not None
    assert scale is not None
    assert both is not None
    np.testing.assert_allclose(both, scale[:, None] * projected, rtol=1e-5)


def test_more_channels_than_there_are_is_an_error(tiny_root: Path, backbone: Backbone) -> None:
    with pytest.raises(
        ArgumentError, match=r"channels: expected at most the 150 channels of scattering stages \[1, 2\]"
    ):
        fit(padim_config(channels=151), backbone, training_images(tiny_root)[:2])


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(tiny_root: Path, backbone: Backbone, count: int) -> None:
    with pytest.raises(DataError, match=rf"padim: expected at least two normal training images .* got {count}"):
        fit(padim_config(), backbone, training_images(tiny_root)[:count])


def test_two_images_are_enough(tiny_root: Path, backbone: Backbone) -> None:
    fitted = fit(padim_config(), backbone, training_images(tiny_root)[:2])
    assert all(np.isfinite(value).all() for value in fitted.tensors.values())


def test_too_little_regularization_is_one_sentence(tiny_root: Path, backbone: Backbone) -> None:
    config = padim_config(regularization=1e-300, channels=40)
    with pytest.raises(ArgumentError, match=r"regularization: expected enough to make every covariance of 2 images"):
        fit(config, backbone, training_images(tiny_root)[:2])


def test_covariances_beyond_two_to_the_31_are_refused_before_they_are_allocated(
    tiny_root: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatchFeatures, "layout", lambda self, size: ((512, 512), 150))
    with pytest.raises(ArgumentError, match=r"padim: expected fewer than 2³¹ covariance entries, got 262144 positions"):
        fit(padim_config(channels=100), backbone, training_images(tiny_root)[:2])


# --- factors in float16


def correlated(images: int, positions: int, channels: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Return patches float32 [N, P, D] whose channels are correlated and have sizes of their own."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(positions, channels, channels)) * rng.uniform(0.2, 3, (positions, 1, channels))
    patches = np.einsum("npd,pde->npe", rng.normal(size=(images, positions, channels)), mixing)
    return torch.from_numpy((scale * patches + rng.normal(size=(positions, channels))).astype(np.float32))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 60), st.integers(1, 24), st.integers(0, 10_000), st.sampled_from([1e-2, 1.0, 30.0]))
def test_rounded_factors_move_no_distance_by_more_than_the_error_that_is_told(
    images: int, channels: int, seed: int, scale: float
) -> None:
    patches = correlated(images, 3, channels, seed, scale)
    added = 0.01 * max(1.0, scale) ** 2
    exact, rounded = (fit_gaussians([patches], 3, channels, added, factors=kind) for kind in ("float32", "auto"))
    assert rounded.error <= MOST_ERROR
    np.testing.assert_array_equal(rounded.mean, exact.mean)
    tested = correlated(40, 3, channels, seed + 1, 2 * scale).numpy().astype(np.float64) - exact.mean
    true, moved = (
        np.linalg.norm(np.einsum("npd,pde->npe", tested, fitted.whitening.astype(np.float64)), axis=2)
        for fitted in (exact, rounded)
    )
    # The float32 factors have their own error, many times smaller.
    assert (np.abs(moved - true) <= (rounded.error + exact.error) * (1 + 1e-6) * true).all()


def ill_conditioned(images: int = 30, channels: int = 12) -> torch.Tensor:
    """Return patches with a nearly constant sum of channels: their factors cancel nearly to nothing."""
    rng = np.random.default_rng(5)
    patches = 10 * rng.normal(size=(images, 2, 1)) + 1e-3 * rng.normal(size=(images, 2, channels))
    return torch.from_numpy(patches.astype(np.float32))


def test_factors_that_float16_would_spoil_stay_in_float32_or_are_refused() -> None:
    kept = fit_gaussians([ill_conditioned()], 2, 12, 1e-3, factors="auto")
    assert kept.whitening.dtype == np.float32
    with pytest.raises(ArgumentError, match=r"^factors: expected float16 to move distances by at most 1%, got up to "):
        fit_gaussians([ill_conditioned()], 2, 12, 1e-3, factors="float16")


def test_factors_beyond_float16_stay_in_float32() -> None:
    patches = 1e-8 * correlated(20, 2, 3, 0)
    fitted = fit_gaussians([patches], 2, 3, 1e-20, factors="auto")
    assert fitted.whitening.dtype == np.float32
    assert fitted.whitening.max() > np.finfo(np.float16).max
    with pytest.raises(ArgumentError, match=r"got up to inf%"):
        fit_gaussians([patches], 2, 3, 1e-20, factors="float16")


def test_a_run_says_how_its_factors_are_stored_and_older_ones_keep_their_meaning(
    tiny_root: Path, backbone: Backbone
) -> None:
    fitted = fit(padim_config(factors="auto"), backbone, training_images(tiny_root))
    assert fitted.tensors["whitening"].dtype == np.float16
    assert fitted.facts["factors"] == "float16"
    assert 0 < float(fitted.facts["factor_error"]) <= MOST_ERROR
    assert fit(padim_config(), backbone, training_images(tiny_root)).facts["factors"] == "float32"
    assert runs._OLDER["factors"] == "float32"
