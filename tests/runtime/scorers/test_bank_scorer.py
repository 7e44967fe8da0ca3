"""The native heads against the formulas, one number at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hand_graphs import naive_patchcore
from hypothesis import given, settings
from hypothesis import strategies as st
from native_heads import build_head

from flawscope.bundle import PadimHead, PatchcoreHead
from flawscope.errors import BundleError
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.triangles import pack_triangles

GRID, SIZE = (3, 2), (12, 10)


def random_rows(rows: int, channels: int, seed: int) -> npt.NDArray[np.float32]:
    """Rows of eighths from 0 to 3: every product and sum of them is exact, so both sides match the same rows."""
    return np.random.default_rng(seed).integers(0, 25, (rows, channels)).astype(np.float32) / 8


def neighbours_of(bank: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    squared = ((bank[:, None] - bank[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, -1)
    return np.argsort(squared, axis=1, kind="stable")[:, :count].astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 30),
    channels=st.integers(1, 9),
    neighbors=st.integers(1, 40),
    reweight=st.sampled_from(["paper", "seed", "none"]),
    images=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_patchcore_is_equation_7(
    rows: int, channels: int, neighbors: int, reweight: Any, images: int, seed: int
) -> None:
    bank = random_rows(rows, channels, seed)
    patches = random_rows(images * 6, channels, seed + 1).reshape(images, 6, channels)
    head = PatchcoreHead(GRID, neighbors, reweight, 1.5)
    tensors = {"bank": bank, "neighbours": neighbours_of(bank, min(neighbors, rows))}
    maps, scores = build_head(head, tensors, SIZE)(patches)
    to_rows, to_columns = (matrix.astype(np.float64) for matrix in map_matrices(GRID, SIZE, 1.5))
    assert maps.dtype == scores.dtype == np.float32
    for index in range(images):
        distances, score = naive_patchcore(patches[index], bank, head)
        np.testing.assert_allclose(maps[index], to_rows @ distances.reshape(GRID) @ to_columns, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores[index], score, rtol=1e-4, atol=1e-5)


def test_the_weight_does_not_overflow_at_large_distances() -> None:
    bank = random_rows(20, 4, 0)
    patches = (random_rows(6, 4, 1) + 1e4)[None]
    head = PatchcoreHead(GRID, 5, "paper", 0.0)
    _, scores = build_head(head, {"bank": bank, "neighbours": neighbours_of(bank, 5)}, GRID)(patches)
    assert np.isfinite(scores).all()
    assert scores[0] > 0


def test_more_neighbours_lower_no_distance_only_the_weight() -> None:
    bank, patches = random_rows(20, 4, 0), random_rows(6, 4, 1)[None]
    results = [build_head(PatchcoreHead(GRID, b, "seed", 2.0), {"bank": bank}, SIZE)(patches) for b in (1, 2, 20)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][0], results[2][0])
    assert 0 < results[1][1][0] < results[0][1][0]


@pytest.mark.parametrize("form", ["whole", "float32", "float16"])
def test_padim_scores_are_the_maximum_of_the_map(form: str) -> None:
    mean = random_rows(6, 4, 0)
    whitening = np.random.default_rng(1).normal(size=(6, 4, 4)).astype(np.float32)
    patches = random_rows(18, 4, 2).reshape(3, 6, 4)
    tensors = {"mean": mean, "whitening": whitening}
    if form != "whole":  # as bundles have it since
        whitening = np.triu(whitening).astype(form).astype(np.float32)
        tensors = {"mean": mean, "triangles": pack_triangles(whitening.astype(form))}
    maps, scores = build_head(PadimHead(GRID, 1.0), tensors, SIZE)(patches)
    distances = np.array(
        [[np.linalg.norm((patches[i, p] - mean[p]) @ whitening[p]) for p in range(6)] for i in range(3)]
    )
    rows, columns = (matrix.astype(np.float64) for matrix in map_matrices(GRID, SIZE, 1.0))
    np.testing.assert_allclose(maps, rows @ distances.reshape(3, *GRID) @ columns, rtol=1e-5)
    np.testing.assert_array_equal(scores, maps.max(axis=(1, 2)))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "match"),
    [
        ("whitening", (6, 4, 3), "float32", r"got \[6, 4\] and \[6, 4, 3\]\. Export"),
        ("whitening", (5, 4, 4), "float32", r"got \[6, 4\] and \[5, 4, 4\]\. Export"),
        ("whitening", (6, 4, 4), "float16", r"expected float32 with 3 dimensions in whitening, got float16"),
        ("triangles", (6, 16), "float16", r"got \[6, 4\] and \[6, 16\]\. Export"),
        ("triangles", (7, 10), "float32", r"got \[6, 4\] and \[7, 10\]\. Export"),
        (
            "triangles",
            (6, 4, 4),
            "float32",
            r"expected float32 with 2 dimensions in triangles, got float32 \[6, 4, 4\]",
        ),
        ("triangles", (6, 10), "float64", r"expected float32 with 2 dimensions in triangles, got float64"),
        ("triangles", (6, 10), "int64", r"expected float32 with 2 dimensions in triangles, got int64"),
    ],
)
def test_factors_of_another_shape_or_type_are_refused(
    name: str, shape: tuple[int, ...], dtype: str, match: str
) -> None:
    tensors = {"mean": random_rows(6, 4, 0), name: np.ones(shape, dtype)}
    with pytest.raises(BundleError, match=match):
        build_head(PadimHead(GRID, 1.0), tensors, SIZE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_patches_that_are_no_numbers_stay_visible(value: float) -> None:
    patches = random_rows(6, 4, 1)[None].copy()
    patches[0, 2, 1] = value
    bank = random_rows(20, 4, 0)
    maps, _ = build_head(PatchcoreHead(GRID, 5, "none", 1.0), {"bank": bank}, SIZE)(patches)
    assert not np.isfinite(maps).all()


@pytest.mark.parametrize(
    ("head", "tensors", "missing"),
    [
        (PatchcoreHead(GRID, 5, "none", 1.0), {}, "bank"),
        (PatchcoreHead(GRID, 5, "paper", 1.0), {"bank": random_rows(3, 2, 0)}, "neighbours"),
        (PadimHead(GRID, 1.0), {"mean": random_rows(6, 4, 0)}, "triangles"),
        (PadimHead(GRID, 1.0), {"bank": random_rows(6, 4, 0)}, "mean"),
    ],
)
def test_a_bank_without_a_needed_tensor_is_refused_by_name(head: Any, tensors: Any, missing: str) -> None:
    with pytest.raises(BundleError, match=rf"bank: expected the tensor {missing}, got \[.*\]\. Export"):
        build_head(head, tensors, SIZE)
