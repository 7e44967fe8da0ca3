"""Fitting PatchCore: real patches only, exact selection, plans within a memory budget, and the neighbour table."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from native_heads import build_head, torch_scores
from patchcore_fits import fit, patchcore_config, with_budget_mb
from tiny_dataset import CATEGORY, training_images

from flawscope import runs
from flawscope.arrays import Float32Array
from flawscope.bundle import PatchcoreHead
from flawscope.config import PatchcoreConfig, from_flat
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, DataError
from flawscope.imaging.images import prepare, read_image
from flawscope.progress import no_progress
from flawscope.training.detectors.patch_plan import Plan, bank_rows, johnson_lindenstrauss_size, sparse_projection
from flawscope.training.detectors.patchcore import fit_patchcore, top_count
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.features.patch_extraction import iterate_patches
from flawscope.training.features.patch_features import build_features
from flawscope.training.loop.fit_result import FitResult
from flawscope.training.loop.image_batches import image_sources


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(patchcore_config().features, None)[0]


def all_patches(config: PatchcoreConfig, backbone: Backbone, fitted: FitResult, paths: list[Path]) -> Float32Array:
    features = build_features(config, backbone, fitted)
    batches = iterate_patches(features, paths, config, "reading", no_progress)
    return np.concatenate([batch.numpy().reshape(-1, batch.shape[-1]) for batch in batches])


def is_row_of(rows: Float32Array, matrix: Float32Array) -> list[bool]:
    stored = {row.tobytes() for row in np.ascontiguousarray(matrix)}
    return [row.tobytes() in stored for row in np.ascontiguousarray(rows)]


def test_a_memory_of_all_patches_gives_zero_on_training_images(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:6]
    config = patchcore_config(coreset=1.0, held_out=0.0, held_out_minimum=0)
    fitted = fit(config, backbone, paths, tmp_path)
    assert fitted.tensors["bank"].shape == (6 * 256, 150)
    head = PatchcoreHead(fitted.grid, config.neighbors, config.reweight, config.maps.sigma)
    features = build_features(config, backbone, fitted)
    # One by one or all at once: the bank was filled from batches of the configured size.
    (patches,) = iterate_patches(features, paths, config, "reading", no_progress)
    maps, scores = build_head(head, fitted.tensors, (64, 64))(patches.numpy())
    np.testing.assert_array_equal(maps, np.zeros_like(maps))
    np.testing.assert_array_equal(scores, np.zeros_like(scores))
    images = [prepare(read_image(path), config.preprocessing) for path in paths]
    maps, scores = torch_scores(features, head, fitted.tensors, (64, 64), images)
    np.testing.assert_allclose(maps, 0, atol=1e-4)  # batches of another size round otherwise
    np.testing.assert_allclose(scores, 0, atol=1e-4)


def test_the_selection_repeats_under_a_seed_and_changes_with_it(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:6]
    first = fit(patchcore_config(seed=3), backbone, paths, tmp_path)
    np.random.default_rng(99).random(5)  # another generator's use changes nothing
    again = fit(patchcore_config(seed=3), backbone, paths, tmp_path)
    other = fit(patchcore_config(seed=4), backbone, paths, tmp_path)
    for name, value in first.tensors.items():
        assert value.tobytes() == again.tensors[name].tobytes(), name
    assert first.tensors["bank"].tobytes() != other.tensors["bank"].tobytes()


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
def test_the_bank_consists_of_different_patches_of_the_images(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, upsample: str
) -> None:
    paths = training_images(tiny_root)[:6]
    config = patchcore_config(upsample=upsample)
    fitted = fit(config, backbone, paths, tmp_path)
    bank = fitted.tensors["bank"]
    assert bank.shape == (40, 150)
    assert bank.dtype == np.float32
    assert all(is_row_of(bank, all_patches(config, backbone, fitted, paths)))
    assert len(np.unique(bank, axis=0)) == 40


def test_greedy_selection_covers_better_than_chance(tiny_root: Path, tmp_path: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)[:6]
    config = patchcore_config()
    fitted = fit(config, backbone, paths, tmp_path)
    patches = all_patches(config, backbone, fitted, paths).astype(np.float64)

    def radius(centres: npt.NDArray[np.float64]) -> float:
        squared = ((patches[:, None, :] - centres[None]) ** 2).sum(axis=2)
        return float(np.sqrt(squared.min(axis=1).max()))

    chance = patches[np.random.default_rng(0).choice(len(patches), 40, replace=False)]
    assert radius(fitted.tensors["bank"].astype(np.float64)) < radius(chance)


def test_a_projection_chooses_real_patches_from_disk(tiny_root: Path, tmp_path: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)[:1]
    config = patchcore_config(projection="jl")
    fitted = fit(config, backbone, paths, tmp_path)
    assert fitted.facts["selected_in"] == "a projection to 136 dimensions"
    assert fitted.tensors["bank"].shape == (40, 150)
    assert all(is_row_of(fitted.tensors["bank"], all_patches(config, backbone, fitted, paths)))
    assert list(tmp_path.iterdir()) == []  # the file has no name and is gone


def test_over_budget_patches_are_thinned_and_the_bank_still_holds_real_ones(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)
    assert 4 * len(paths) * 256 * 150 > 3 << 20
    for projection in ("auto", "none", "jl"):
        config = with_budget_mb(patchcore_config(projection=projection), 1)
        fitted = fit(config, backbone, paths, tmp_path)
        assert re.search(r"of \d+ random patches of the 256 in each image$", str(fitted.facts["selected_in"]))
        assert 4 * int(fitted.facts["patches"]) * 150 <= 1 << 20
        assert all(is_row_of(fitted.tensors["bank"], all_patches(config, backbone, fitted, paths)))


def test_a_budget_that_holds_one_patch_an_image_still_gives_a_bank(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:5]
    config = with_budget_mb(patchcore_config(coreset=100), 0)
    fitted = fit(config, backbone, paths, tmp_path)
    assert fitted.facts["patches"] == 5
    assert fitted.tensors["bank"].shape == (5, 150)  # never more than there are
    assert all(is_row_of(fitted.tensors["bank"], all_patches(config, backbone, fitted, paths)))


@pytest.mark.parametrize(
    ("projection", "images", "budget_mb", "dimensions", "kept", "description"),
    [
        ("auto", 10, 1024, 1000, 256, "the full space"),
        ("none", 10, 1024, 1000, 256, "the full space"),
        ("jl", 10, 1024, 193, 256, "a projection to 193 dimensions"),
        ("auto", 10, 2, 193, 256, "a projection to 193 dimensions"),
        ("auto", 10, 1, 193, 135, "a projection to 193 dimensions, of 135 random patches of the 256 in each image"),
        ("none", 10, 1, 1000, 26, "the full space, of 26 random patches of the 256 in each image"),
    ],
)
def test_the_plan_keeps_the_matrix_within_the_budget(
    projection: str, images: int, budget_mb: int, dimensions: int, kept: int, description: str
) -> None:
    config = with_budget_mb(patchcore_config(projection=projection), budget_mb)
    plan = Plan.for_budget(config, images, 256, 1000)
    assert (plan.dimensions, plan.kept_per_image, plan.description) == (dimensions, kept, description)
    assert 4 * images * plan.kept_per_image * plan.dimensions <= budget_mb << 20


def test_a_projection_that_would_not_shrink_is_left_out() -> None:
    plan = Plan.for_budget(with_budget_mb(patchcore_config(), 1), 100, 256, 150)
    assert plan.projection is None
    assert plan.description.startswith("the full space, of ")


@pytest.mark.parametrize(
    ("coreset", "min_bank", "max_bank", "patches", "rows"),
    [
        (0.01, 0, 16384, 10_000, 100),
        (1.0, 0, 16384, 500, 500),
        (1.0, 0, 300, 500, 300),
        (1000, 0, 16384, 500, 500),
        (250, 0, 16384, 500, 250),
        (250, 0, 100, 500, 100),
        (0.0001, 0, 16384, 500, 1),
        (1.4, 0, 16384, 500, 1),
        (0.01, 1000, 16384, 10_000, 1000),  # few images: the share alone would be 100
        (0.01, 1000, 16384, 200_000, 2000),
        (0.01, 1000, 16384, 500, 500),
        (0.01, 1000, 300, 10_000, 300),
        (90, 1000, 16384, 10_000, 90),  # a count is a count
    ],
)
def test_coreset_is_a_share_with_a_floor_or_a_count_within_the_cap(
    coreset: float, min_bank: int, max_bank: int, patches: int, rows: int
) -> None:
    assert bank_rows(patchcore_config(coreset=coreset, min_bank=min_bank, max_bank=max_bank), patches) == rows


def test_a_bank_of_few_images_has_a_thousand_rows_unless_it_was_fitted_before() -> None:
    assert bank_rows(from_flat(PatchcoreConfig, {}), 20 * 784) == 1000
    assert runs._OLDER["min_bank"] == 0


def test_the_cap_holds_in_the_fit(tiny_root: Path, tmp_path: Path, backbone: Backbone) -> None:
    config = patchcore_config(coreset=1.0, max_bank=17)
    fitted = fit(config, backbone, training_images(tiny_root)[:2], tmp_path)
    assert fitted.tensors["bank"].shape == (17, 150)
    assert fitted.tensors["neighbours"].shape == (17, 9)


@pytest.mark.parametrize(("reweight", "neighbors"), [("seed", 9), ("none", 9), ("paper", 1)])
def test_only_the_papers_reweighting_needs_a_table(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, reweight: str, neighbors: int
) -> None:
    config = patchcore_config(reweight=reweight, neighbors=neighbors)
    fitted = fit(config, backbone, training_images(tiny_root)[:2], tmp_path)
    assert set(fitted.tensors) == {"bank"}


@pytest.mark.parametrize(
    ("share", "positions", "count"),
    [(0.0, 256, 1), (0.01, 1024, 10), (0.01, 50, 1), (0.29, 100, 29), (1.0, 256, 256), (0.5, 7, 3)],
)
def test_a_score_is_of_a_share_of_the_patches_rounded_down_and_at_least_one(
    share: float, positions: int, count: int
) -> None:
    assert top_count(share, positions) == count


def test_a_score_of_more_patches_than_a_graph_can_choose_is_refused_before_any_work(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    with pytest.raises(ArgumentError, match=r"top_share: expected at most 3840 patches in a score, got 4096 of 4096"):
        top_count(1.0, 4096)
    config = patchcore_config(resize=256, top_share=1.0, reweight="none")
    with pytest.raises(ArgumentError, match=r"top_share: "):
        fit(config, backbone, training_images(tiny_root)[:1], tmp_path)


def test_a_mean_of_patches_is_not_reweighted() -> None:
    with pytest.raises(ArgumentError, match=r"reweight: expected none with top_share, a mean of patches, got 'paper'"):
        patchcore_config(top_share=0.01)
    assert not patchcore_config(top_share=0.01, neighbors=1).reweights


def test_without_pooling_patches_are_the_stages_own_values(tiny_root: Path, tmp_path: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)[:1]
    config = patchcore_config(pool=False, standardize="none", stages=[1])
    alone = build_backbone(config.features, None)[0]
    fitted = fit(config, alone, paths, tmp_path)
    image = prepare(read_image(paths[0]), config.preprocessing)
    with torch.inference_mode():
        (stage,) = alone(torch.from_numpy(image[None]))
    assert all(is_row_of(fitted.tensors["bank"], stage[0].flatten(1).T.contiguous().numpy()))


def test_a_bank_of_the_metric_cosine_has_rows_of_length_one(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:3]
    config = patchcore_config(metric="cosine")
    fitted = fit(config, backbone, paths, tmp_path)
    np.testing.assert_allclose(np.linalg.norm(fitted.tensors["bank"], axis=1), 1, atol=1e-6)
    assert all(is_row_of(fitted.tensors["bank"], all_patches(config, backbone, fitted, paths)))


def test_views_fill_the_bank_with_patches_of_turned_images(tiny_root: Path, tmp_path: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)[:2]
    reports: list[tuple[str, int, int]] = []
    # Without standardization: patches are then those of the backbone alone.
    config = patchcore_config(views="quarters", coreset=1.0, standardize="none", reweight="none")
    fitted = fit_patchcore(config, backbone, paths, tmp_path, lambda *report: reports.append(report))
    bank = fitted.tensors["bank"]
    assert bank.shape == (4 * 2 * 256, 150)
    assert (fitted.facts["views"], fitted.facts["patches"]) == (4, 4 * 2 * 256)
    assert ("reading patches, view 3 of 4 (turned by 180 degrees)", 2, 2) in reports
    features = build_features(config, backbone, fitted)
    for path in paths:
        image = np.rot90(prepare(read_image(path), config.preprocessing), 2)
        with torch.inference_mode():
            patches = features(torch.from_numpy(image[None].copy()))[0].numpy()
        to_bank = ((patches[:, None] - bank[None]) ** 2).sum(axis=2).min(axis=1)
        assert to_bank.max() < 1e-6 * (patches**2).sum(axis=1).max()


@pytest.mark.parametrize(
    ("input_settings", "sources"),
    [({"tile": 32}, 4), ({"resize": [48, 96], "resize_mode": "letterbox"}, 1), ({"resize": 80, "crop": 64}, 1)],
)
def test_views_are_of_what_is_prepared_tiles_and_letterboxed_images_too(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, input_settings: dict[str, object], sources: int
) -> None:
    config = patchcore_config(views="rotations", coreset=1.0, reweight="none", **input_settings)
    images = image_sources(open_dataset(tiny_root, CATEGORY).train_good[:2], config.tiling)
    assert len(images) == 2 * sources
    fitted = fit_patchcore(config, backbone, images, tmp_path, no_progress)
    height, width = config.preprocessing.size
    assert fitted.facts["patches"] == 8 * len(images) * (height // 4) * (width // 4)


def test_the_bank_of_views_does_not_depend_on_the_batch_size(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:3]
    banks = [
        fit(patchcore_config(views="flips", batch_size=size), backbone, paths, tmp_path).tensors["bank"]
        for size in (1, 2)
    ]
    np.testing.assert_allclose(banks[0], banks[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("standardize", ["none", "scale", "whiten"])
def test_layers_kept_apart_have_a_bank_each_of_their_own_channels(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, standardize: str
) -> None:
    paths = training_images(tiny_root)[:3]
    cut = {"components": 20, "shrinkage": 0.1} if standardize == "whiten" else {}
    config = patchcore_config(layers="separate", reweight="none", standardize=standardize, metric="cosine", **cut)
    fitted = fit(config, backbone, paths, tmp_path)
    width = 20 if cut else 75
    assert {name: bank.shape for name, bank in fitted.tensors.items()} == {
        "bank.0": (40, width),
        "bank.1": (40, width),
    }
    assert (fitted.facts["bank_rows"], fitted.facts["channels"]) == (80, 2 * width)
    patches = all_patches(config, backbone, fitted, paths)
    for number in range(2):
        layer = patches[:, number * width : (number + 1) * width]
        assert all(is_row_of(fitted.tensors[f"bank.{number}"], layer))
        np.testing.assert_allclose(np.linalg.norm(layer, axis=1), 1, atol=1e-6)


def test_a_bank_of_one_layer_is_the_one_of_that_stage_alone(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    paths = training_images(tiny_root)[:3]
    apart = fit(patchcore_config(layers="separate", reweight="none", standardize="scale"), backbone, paths, tmp_path)
    alone = patchcore_config(stages=[1], reweight="none", layers="separate", standardize="scale")
    fitted = fit(alone, build_backbone(alone.features, None)[0], paths, tmp_path)
    assert set(fitted.tensors) == {"bank"}  # one stage is one bank, whatever the setting
    np.testing.assert_allclose(fitted.tensors["bank"], apart.tensors["bank.0"], rtol=1e-4, atol=1e-4)


def test_banks_of_layers_share_the_memory(tiny_root: Path, tmp_path: Path, backbone: Backbone) -> None:
    paths = training_images(tiny_root)
    config = with_budget_mb(patchcore_config(layers="separate", reweight="none", projection="jl"), 1)
    fitted = fit(config, backbone, paths, tmp_path)
    assert 4 * int(fitted.facts["patches"]) * 75 <= 1 << 20
    patches = all_patches(config, backbone, fitted, paths)
    assert all(is_row_of(fitted.tensors["bank.1"], patches[:, 75:]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "separate"}, r"reweight: expected none with layers=separate, several banks, got 'paper'"),
        ({"components": 0.9, "standardize": "none"}, r"components: expected as it is without standardize=whiten"),
        ({"shrinkage": None, "standardize": "scale"}, r"shrinkage: expected as it is without standardize=whiten"),
        ({"foreground": True}, r"foreground: expected false with standardize=whiten, got True"),
        ({"components": 10, "backbone": "resnet18"}, r"components: expected as it is without standardize=whiten"),
    ],
)
def test_settings_that_would_be_idle_or_mean_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        patchcore_config(**settings)
    assert patchcore_config(components=0.9, shrinkage=0.1).bank.components == 0.9  # scattering is whitened by itself


def test_no_image_is_an_error(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"patchcore: expected at least one normal training image, got none"):
        fit(patchcore_config(), backbone, [], tmp_path)


def test_an_image_too_small_for_the_stages_is_one_sentence(tiny_root: Path, tmp_path: Path) -> None:
    config = patchcore_config(resize=32, stages=[3, 4])
    with pytest.raises(ArgumentError, match=r"image size: .* got 32x32 pixels"):
        fit(config, build_backbone(config.features, None)[0], training_images(tiny_root)[:2], tmp_path)


def test_the_projection_keeps_distances_on_average() -> None:
    projection = sparse_projection(400, 200, 0)
    values = np.unique(np.abs(projection))
    assert len(values) == 2
    assert values[0] == 0
    assert np.mean(projection != 0) == pytest.approx(1 / 20, rel=0.1)  # density 1/sqrt(400)
    points = np.random.default_rng(0).normal(size=(200, 400)).astype(np.float32)
    ratio = ((points @ projection) ** 2).sum(axis=1) / (points**2).sum(axis=1)
    assert ratio.mean() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(projection, sparse_projection(400, 200, 0))


def test_the_johnson_lindenstrauss_size_is_the_theorems() -> None:
    # 4 ln(n) / (e²/2 - e³/3) at n = 1000, e = 0.5: 27.63 / 0.08333
    assert johnson_lindenstrauss_size(1000, 0.5) == 331
    assert johnson_lindenstrauss_size(1, 0.9) >= 1
