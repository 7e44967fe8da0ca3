"""PatchCore with `selection=streaming`: the exact bank where memory has room, a proven radius within it where not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from patchcore_fits import fit, patchcore_config, with_budget_mb
from tiny_dataset import training_images

from flawscope.arrays import Float32Array
from flawscope.config import PatchcoreConfig
from flawscope.errors import ArgumentError
from flawscope.progress import no_progress
from flawscope.training.detectors.patch_plan import StreamingPlan
from flawscope.training.detectors.patch_selection import StreamingSelection, open_selection
from flawscope.training.features.backbone import Backbone, build_backbone

GRID = (8, 8)
IMAGES = 500
CHANNELS = 24


def streaming(**settings: object) -> PatchcoreConfig:
    return patchcore_config(**{"selection": "streaming", **settings})


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(patchcore_config().features, None)[0]


def drawn_patches(images: int = IMAGES) -> Float32Array:
    """Return the patches of images that change with time, float32 [N, P, D]."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(images, GRID[0] * GRID[1], CHANNELS))
    values[:, :, 0] += np.linspace(0, 20, images)[:, None]
    return values.astype(np.float32)


def bank_of(config: PatchcoreConfig, patches: Float32Array, scratch: Path) -> tuple[Float32Array, float | None, str]:
    with open_selection(config, len(patches), GRID, CHANNELS, scratch) as selection:
        for image in patches:
            selection.add(image, np.arange(len(image)))
        assert selection.rows == patches.shape[0] * patches.shape[1]
        bank, places = selection.bank(no_progress, "")
        assert places.shape == (len(bank), 2)
        return bank, selection.factor, selection.description


def radius(bank: Float32Array, patches: Float32Array) -> float:
    rows, chosen = patches.reshape(-1, CHANNELS).astype(np.float64), bank.astype(np.float64)
    squared = (rows**2).sum(axis=1)[:, None] - 2 * rows @ chosen.T + (chosen**2).sum(axis=1)
    return float(np.sqrt(np.maximum(squared.min(axis=1), 0).max()))


@pytest.mark.parametrize("changed", [{}, {"window": 2}, {"layers": "separate", "reweight": "none"}])
def test_where_memory_has_room_the_bank_is_that_of_all_patches(
    tiny_root: Path, tmp_path: Path, backbone: Backbone, changed: dict[str, object]
) -> None:
    paths = training_images(tiny_root)[:4]
    whole = fit(patchcore_config(**changed), backbone, paths, tmp_path)
    fitted = fit(streaming(**changed), backbone, paths, tmp_path)
    assert fitted.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(fitted.tensors[name], tensor)
    assert fitted.facts["selected_in"] == whole.facts["selected_in"] == "the full space"
    assert fitted.facts.get("radius_factor") == (None if "window" in changed else 2.0)
    assert "radius_factor" not in whole.facts


def test_beyond_the_memory_every_patch_counts_and_the_radius_is_within_its_factor(tmp_path: Path) -> None:
    patches = drawn_patches()
    config = with_budget_mb(streaming(), 1)
    bank, factor, description = bank_of(config, patches, tmp_path)
    assert re.fullmatch(r"the full space, in one pass, reduced 1 times to \d+ of \d+", description)
    stored = {row.tobytes() for row in patches.reshape(-1, CHANNELS)}
    assert all(row.tobytes() in stored for row in bank)
    assert len({row.tobytes() for row in bank}) == len(bank) == 40
    whole, none, _ = bank_of(with_budget_mb(patchcore_config(), 64), patches, tmp_path)
    assert none is None
    assert factor is not None
    assert 2 <= factor <= 4
    # The exact greedy radius is at least the smallest possible, and at most twice that.
    assert radius(bank, patches) <= factor * radius(whole, patches)
    # Far better than the bound, and than patches left out at random.
    assert radius(bank, patches) <= 1.3 * radius(whole, patches)


def test_a_stream_has_one_bank_whatever_the_sizes_in_which_it_comes(tmp_path: Path) -> None:
    patches = drawn_patches(200)
    config = with_budget_mb(streaming(), 1)
    one, _, _ = bank_of(config, patches, tmp_path)
    selection = StreamingSelection(config, len(patches), GRID, CHANNELS)
    for three in np.split(patches, [1, 4, 100]):
        selection.add(three.reshape(-1, CHANNELS), np.tile(np.arange(64), len(three)))
    other, _ = selection.bank(no_progress, "")
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("changed", [{"projection": "jl"}, {"window": 1}, {"window": 1, "projection": "jl"}])
def test_a_projection_and_a_window_give_patches_as_they_are_and_claim_no_factor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object]
) -> None:
    monkeypatch.setattr("flawscope.training.detectors.patch_plan.johnson_lindenstrauss_size", lambda *_: 10)
    patches = drawn_patches()
    bank, factor, description = bank_of(with_budget_mb(streaming(**changed), 1), patches, tmp_path)
    assert factor is None
    assert "in one pass, reduced" in description
    assert description.startswith("a projection to 10 dimensions" if "projection" in changed else "the full space")
    stored = {row.tobytes() for row in patches.reshape(-1, CHANNELS)}
    assert bank.shape == (40, CHANNELS)
    assert all(row.tobytes() in stored for row in bank)


def test_a_window_of_a_stream_has_rows_of_every_place(tmp_path: Path) -> None:
    patches = drawn_patches(300)
    config = with_budget_mb(streaming(window=1, coreset=60), 1)
    selection = StreamingSelection(config, len(patches), GRID, CHANNELS)
    assert selection.plan.levels.depth > 0
    for image in patches:
        selection.add(image, np.arange(64))
    bank, places = selection.bank(no_progress, "")
    assert len(bank) == 60
    assert {tuple(place) for place in (places // 2).tolist()} == {(y, x) for y in range(4) for x in range(4)}


def test_a_bank_too_large_for_the_memory_is_refused_with_what_it_takes() -> None:
    config = streaming(coreset=16384, memory_budget_mb=16)
    with pytest.raises(
        ArgumentError, match=r"memory_budget_mb: expected at least \d+ for 16384 of 784000000"
    ) as caught:
        StreamingPlan(config, 10**6, 784, 128)
    least = int(re.findall(r"at least (\d+)", str(caught.value))[0])
    assert StreamingPlan(with_budget_mb(config, least), 10**6, 784, 128).levels.factor >= 4
    with pytest.raises(ArgumentError, match="memory_budget_mb"):
        StreamingPlan(with_budget_mb(config, least - 1), 10**6, 784, 128)


def test_a_million_images_fit_into_a_gibibyte() -> None:
    plan = StreamingPlan(streaming(coreset=0.01), 10**6, 784, 128)
    assert plan.levels.factor == 6
    assert (plan.levels.rows + 2 * plan.levels.kept) * (4 * 128 + 8) <= 1 << 30
