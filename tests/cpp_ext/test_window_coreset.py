"""Fitting a bank for a positional window: a selection that covers every place, and the places that are stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patchcore_fits import fit, patchcore_config, with_budget_mb
from tiny_dataset import training_images

from flawscope.arrays import Float32Array
from flawscope.config import PatchcoreConfig
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.cpp_ext.window_coreset import places_of, select_for_window
from flawscope.errors import ArgumentError
from flawscope.progress import no_progress
from flawscope.training.detectors.patchcore import PatchcoreTrainer
from flawscope.training.features.backbone import Backbone, build_backbone
from flawscope.training.features.patch_extraction import iterate_patches
from flawscope.training.features.patch_features import build_features
from flawscope.training.loop.fit_result import FitResult


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


@st.composite
def selections(draw: st.DrawFn) -> tuple[Float32Array, npt.NDArray[np.int64], tuple[int, int], int, int]:
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)), label="grid")
    images = draw(st.integers(1, 4), label="images")
    kept = draw(st.integers(1, grid[0] * grid[1]), label="kept")  # of each image, where memory is short
    generator = np.random.default_rng(draw(st.integers(0, 999), label="seed"))
    positions = np.concatenate([np.sort(generator.permutation(grid[0] * grid[1])[:kept]) for _ in range(images)])
    matrix = np.pad(generator.normal(size=(len(positions), 3)), ((0, 0), (0, 2))).astype(np.float32)
    count = draw(st.integers(1, len(matrix)), label="count")
    return matrix, positions, grid, draw(st.integers(0, 8), label="radius"), count


@settings(max_examples=150, deadline=None)
@given(selections())
def test_a_selection_has_the_rows_it_was_asked_for_in_the_order_of_places(case: Any) -> None:
    matrix, positions, grid, radius, count = case
    rows = select_for_window(matrix, positions, grid, radius, count, 0, silent)
    assert len(set(rows.tolist())) == len(rows) == count
    places = places_of(positions[rows], grid)
    starts = place_starts(places, grid)  # refuses places in another order
    assert starts[-1] == count
    matrix[:, 3:] = 0
    again = select_for_window(matrix, positions, grid, radius, count, 0, silent)
    assert rows.tolist() == again.tolist()
    side = radius + 1
    blocks = -(-grid[0] // side) * -(-grid[1] // side)
    every_place_has_patches = len(np.unique(positions)) == grid[0] * grid[1]
    if count >= blocks and every_place_has_patches:
        assert window_reach(starts, grid, radius).max() <= max(radius, 0)
    own = positions // grid[1] // side * -(-grid[1] // side) + positions % grid[1] // side
    if len(set(own.tolist())) <= count:
        assert set(own[rows].tolist()) == set(own.tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_patches_that_vary_get_more_rows_than_those_that_do_not(seed: int) -> None:
    """The left half of every image is noise, the right half is plain."""
    grid, generator = (8, 8), np.random.default_rng(seed)
    positions = np.tile(np.arange(64), 12)
    features = np.zeros((len(positions), 6), np.float32)
    left = positions % 8 < 4
    features[left, :4] = generator.normal(size=(left.sum(), 4))
    rows = select_for_window(features, positions, grid, 2, 60, seed, silent)
    columns = positions[rows] % 8
    assert (columns < 4).sum() > 2 * (columns >= 4).sum()
    # And what is plain is kept near every place where it is seen.
    starts = place_starts(places_of(positions[rows], grid), grid)
    assert window_reach(starts, grid, 2).max() == 2


def test_what_every_place_shows_is_kept_at_every_place() -> None:
    """Ten images with one patch that all places share: a selection over all patches would keep it once."""
    grid = (6, 6)
    matrix = np.pad(np.ones((10 * 36, 4), np.float32), ((0, 0), (0, 2)))
    positions = np.tile(np.arange(36), 10)
    rows = select_for_window(matrix, positions, grid, 1, 9, 0, silent)
    assert {tuple(place) for place in (places_of(positions[rows], grid) // 2).tolist()} == {
        (y, x) for y in range(3) for x in range(3)
    }


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(patchcore_config().features, None)[0]


def all_patches(
    config: PatchcoreConfig, backbone: Backbone, fitted: FitResult, paths: list[Path]
) -> npt.NDArray[np.float32]:
    """Patches of the images, float32 [N, rows, columns, D]."""
    batches = iterate_patches(build_features(config, backbone, fitted), paths, config, "reading", no_progress)
    return np.concatenate([batch.numpy() for batch in batches]).reshape(len(paths), *fitted.grid, -1)


@pytest.mark.parametrize("layers", ["joined", "separate"])
def test_with_a_window_rows_are_patches_of_the_places_that_are_stored(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, layers: str
) -> None:
    paths = training_images(tiny_root)[:4]
    config = patchcore_config(window=3, coreset=70, layers=layers, reweight="none")
    fitted = fit(config, backbone, paths, tmp_path)
    patches = all_patches(config, backbone, fitted, paths)
    names = [("bank", "places")] if layers == "joined" else [("bank.0", "places.0"), ("bank.1", "places.1")]
    start = 0
    for bank, place in names:
        rows, places = fitted.tensors[bank], fitted.tensors[place]
        assert places.dtype == np.int64
        cells = places[:, 0] * fitted.grid[1] + places[:, 1]
        assert (np.diff(cells) >= 0).all()
        assert len(places) == len(rows) == 70
        own = patches[..., start : start + rows.shape[1]]
        assert all(any((image[y, x] == row).all() for image in own) for row, (y, x) in zip(rows, places, strict=True))
        start += rows.shape[1]
    assert (fitted.facts["window_widened"], fitted.facts["window_reach"]) == (0, 3)
    record: Any = SimpleNamespace(config=config)
    assert PatchcoreTrainer().needed_tensors(record) == set(fitted.tensors)


def test_a_window_that_the_bank_cannot_fill_is_widened_and_said_so(
    tiny_root: Path, tmp_path: Path, backbone: Backbone
) -> None:
    fitted = fit(patchcore_config(window=1, coreset=3), backbone, training_images(tiny_root)[:2], tmp_path)
    widened, reach = fitted.facts["window_widened"], fitted.facts["window_reach"]
    places = fitted.tensors["places"]
    away = np.abs(np.array(list(np.ndindex(*fitted.grid)))[:, None] - places[None]).max(axis=2).min(axis=1)
    assert (widened, reach) == ((away > 1).sum(), away.max())
    assert 0 < widened < 256


@pytest.mark.parametrize("limits", [{"projection": "jl"}, {"budget": 1}])
def test_places_stay_true_where_patches_are_projected_or_thinned(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, limits: dict[str, object]
) -> None:
    paths = training_images(tiny_root)
    paths = paths if "budget" in limits else paths[:1]
    config = patchcore_config(window=2, **{key: value for key, value in limits.items() if key != "budget"})
    if "budget" in limits:
        config = with_budget_mb(config, 1)
    fitted = fit(config, backbone, paths, tmp_path)
    if "budget" in limits:
        assert "random patches" in str(fitted.facts["selected_in"])
    patches = all_patches(config, backbone, fitted, paths)
    for row, (y, x) in zip(fitted.tensors["bank"], fitted.tensors["places"], strict=True):
        assert (patches[:, y, x] == row).all(axis=1).any()


def test_a_window_and_tiles_exclude_each_other() -> None:
    with pytest.raises(ArgumentError, match="tile: expected none with window, got"):
        patchcore_config(window=3, tile=64)
