"""Switches of the head of a memory bank: kernels, graph and plain torch against NumPy, one number at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hand_graphs import CHANNELS, GRID, POSITIONS, build_graph, patches_of, random_images, run_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from native_heads import build_head, torch_scores

from flawscope.arrays import Float32Array
from flawscope.bank_names import bank_names, place_names
from flawscope.bundle import Head, PatchcoreHead, open_bundle
from flawscope.bundle.heads import decode_head
from flawscope.cpp_ext import neighbour_table
from flawscope.errors import BackendError, BundleError
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.runtime.scorers import bank_scorer, patchcore_scorer

SIZE = (16, 12)

Answer = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def naive_distances(patches: Float32Array, rows: Float32Array, metric: str) -> npt.NDArray[np.float64]:
    """Return the distance of every patch to every row, float64 [P, M]."""
    squared = ((patches[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    return np.sqrt(squared) if metric == "euclidean" else squared / 2


def reachable(head: PatchcoreHead, places: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which rows count for the patch at every place, bool [P, M]: those in its window, or else the nearest."""
    away = np.array([[np.abs(place - own).max() for place in places] for own in np.ndindex(*head.grid)])
    return np.asarray(away <= np.maximum(away.min(axis=1, keepdims=True), head.window))


def naive_image(
    patches: Float32Array, head: PatchcoreHead, tensors: Mapping[str, npt.NDArray[Any]]
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the distances [P] and the score of one image, patches [P, D]."""
    by_bank, start = [], 0
    for name, places in zip(bank_names(head.banks), place_names(head.banks), strict=True):
        rows = tensors[name]
        distances = naive_distances(patches[:, start : start + rows.shape[1]], rows, head.metric)
        within = distances
        if head.window is not None:
            within = np.where(reachable(head, tensors[places]), distances, np.inf)
        by_bank.append(within.min(axis=1))
        start += rows.shape[1]
    nearest = np.mean(by_bank, axis=0)
    if head.foreground:
        nearest = nearest * naive_weights(patches, head, tensors)
    if not head.reweights or len(tensors["bank"]) == 1:
        return nearest, float(np.mean(sorted(nearest.tolist())[-head.top :]))
    place = int(nearest.argmax())
    count = min(head.neighbors, len(tensors["bank"]))
    if head.reweight == "paper":
        around = distances[place, tensors["neighbours"][int(within[place].argmin())]]
        own = around[0]
    else:
        around = np.sort(distances[place])[:count]
        own = around.max()
    return nearest, float(nearest[place] * (1 - np.exp(own) / np.exp(around).sum()))


def naive_weights(
    patches: Float32Array, head: PatchcoreHead, tensors: Mapping[str, npt.NDArray[Any]]
) -> npt.NDArray[np.float64]:
    """Return the weights of the foreground [P], one patch after the other."""
    height, width = head.grid
    offset, least = tensors["foreground_limits"].astype(np.float64)
    ramp = [
        min(1.0, max(0.0, float(patch.astype(np.float64) @ tensors["foreground"][:, 0]) + offset)) for patch in patches
    ]
    around = [
        max(
            ramp[row * width + column]
            for row in range(max(0, y - 1), min(height, y + 2))
            for column in range(max(0, x - 1), min(width, x + 2))
        )
        for y in range(height)
        for x in range(width)
    ]
    return np.array(around) if np.mean(around) >= least else np.ones(len(around))


def naive(head: PatchcoreHead, tensors: Mapping[str, npt.NDArray[Any]], patches: Float32Array) -> Answer:
    to_rows, to_columns = (matrix.astype(np.float64) for matrix in map_matrices(head.grid, SIZE, head.sigma))
    results = [naive_image(image, head, tensors) for image in patches]
    maps = np.stack([to_rows @ distances.reshape(head.grid) @ to_columns for distances, _ in results])
    return maps, np.array([score for _, score in results])


class HandFeatures(torch.nn.Module):
    """The patches of `hand_graphs` as a torch module."""

    device = torch.device("cpu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(patches_of(images.numpy()))


def all_ways(
    head: PatchcoreHead, tensors: dict[str, npt.NDArray[Any]], images: npt.NDArray[np.uint8]
) -> dict[str, Answer]:
    """Return maps and scores of the kernels, of the graph, and of plain torch."""
    with tempfile.TemporaryDirectory() as folder:
        build_graph(Path(folder), head, tensors, SIZE, len(images))
        return {
            "kernels": build_head(head, tensors, SIZE)(patches_of(images)),
            "graph": run_graph(Path(folder), images),
            "torch": torch_scores(HandFeatures(), head, tensors, SIZE, list(images)),
        }


def tensors_for(head: PatchcoreHead, rows: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return a bank in which neighbours have no ties."""
    generator = np.random.default_rng(seed)
    # Banks of different widths and numbers of rows, which share the channels of a patch.
    widths = {1: [CHANNELS], 2: [4, 2], 3: [1, 2, 3]}[head.banks]
    tensors: dict[str, npt.NDArray[Any]] = {
        name: generator.uniform(0, 12, (rows + number, width)).astype(np.float32)
        for number, (name, width) in enumerate(zip(bank_names(head.banks), widths, strict=True))
    }
    if head.window is not None:
        for name, places in zip(bank_names(head.banks), place_names(head.banks), strict=True):
            cells = np.sort(generator.integers(POSITIONS, size=len(tensors[name])))
            tensors[places] = np.stack(np.divmod(cells, GRID[1]), axis=1).astype(np.int64)
    if head.reweight == "paper" and head.reweights:
        tensors["neighbours"] = neighbour_table(tensors["bank"], min(head.neighbors, rows))
    if head.foreground:
        tensors["foreground"] = generator.uniform(-0.3, 0.3, (CHANNELS, 1)).astype(np.float32)
        tensors["foreground_limits"] = np.array([generator.uniform(-1, 1), generator.choice([0, 0.3])], np.float32)
    return tensors


@st.composite
def heads(draw: st.DrawFn) -> PatchcoreHead:
    top = draw(st.integers(1, POSITIONS), label="top")
    banks = draw(st.integers(1, 3), label="banks")
    is_plain = top == banks == 1
    reweight: Any = draw(st.sampled_from(["paper", "seed", "none"] if is_plain else ["none"]), label="reweight")
    return PatchcoreHead(
        GRID,
        draw(st.integers(1, 6), label="neighbors"),
        reweight,
        1.5,
        metric=draw(st.sampled_from(["euclidean", "cosine"]), label="metric"),
        top=top,
        banks=banks,
        window=draw(st.none() | st.integers(0, 4), label="window"),
        foreground=draw(st.booleans(), label="foreground"),
    )


@settings(max_examples=80, deadline=None)
@given(head=heads(), rows=st.integers(1, 20), images=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_every_combination_is_the_formula_on_every_path(head: PatchcoreHead, rows: int, images: int, seed: int) -> None:
    assert head.problem(SIZE) is None
    tensors = tensors_for(head, rows, seed)
    shown = random_images(images, seed, high=13)
    maps, scores = naive(head, tensors, patches_of(shown))
    for way, (got_maps, got_scores) in all_ways(head, tensors, shown).items():
        np.testing.assert_allclose(got_maps, maps, rtol=2e-5, atol=1e-4, err_msg=way)
        np.testing.assert_allclose(got_scores, scores, rtol=2e-5, atol=1e-4, err_msg=way)


@pytest.mark.parametrize("top", [1, 2, 4, POSITIONS])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_integers_are_exact_on_every_path(tmp_path: Path, top: int, metric: Any) -> None:
    head = PatchcoreHead(GRID, 1, "none", 0.0, metric=metric, top=top)
    # One channel differs, by 4 or by 8: square, half of it, root and means of them are exact.
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images.reshape(2, POSITIONS, CHANNELS)[0, :3, 0] = 4
    images.reshape(2, POSITIONS, CHANNELS)[1, 5, 2] = 8
    tensors = {"bank": np.zeros((1, CHANNELS), np.float32)}
    build_graph(tmp_path, head, tensors, GRID, 2)
    near, far = (4, 8) if metric == "euclidean" else (8, 32)
    expected = [
        {1: near, 2: near, 4: near * 0.75, 8: near * 0.375}[top],
        far / top,
    ]
    for maps, scores in (run_graph(tmp_path, images), build_head(head, tensors, GRID)(patches_of(images))):
        assert scores.tolist() == expected
        assert maps[0].ravel().tolist() == [near] * 3 + [0] * 5
        assert maps[1].ravel().tolist() == [0] * 5 + [far] + [0] * 2


def test_the_score_is_taken_before_the_map_is_smoothed() -> None:
    images = random_images(2, 3)
    tensors = tensors_for(PatchcoreHead(GRID, 1, "none", 0.0), 5, 1)
    scores = [
        build_head(PatchcoreHead(GRID, 1, "none", sigma, top=3), tensors, SIZE)(patches_of(images))[1]
        for sigma in (0.0, 5.0)
    ]
    np.testing.assert_array_equal(scores[0], scores[1])


def test_several_banks_are_exact_on_integers(tmp_path: Path) -> None:
    """One channel a bank, rows 0 and 8, 0 and 6: distances of a patch are what is left to the nearer of them."""
    head = PatchcoreHead(GRID, 1, "none", 0.0, banks=2, top=2)
    images = np.zeros((1, 4, 4, 3), np.uint8)
    images.reshape(POSITIONS, CHANNELS)[:4, 0] = [2, 5, 8, 9]
    images.reshape(POSITIONS, CHANNELS)[:4, 1] = [2, 5, 6, 0]
    tensors = {
        "bank.0": np.array([[0], [8]], np.float32),
        "bank.1": np.array([[0] * 5, [6] + [0] * 4], np.float32),
    }
    build_graph(tmp_path, head, tensors, GRID, 1)
    for maps, scores in (run_graph(tmp_path, images), build_head(head, tensors, GRID)(patches_of(images))):
        assert maps.ravel().tolist() == [(2 + 2) / 2, (3 + 1) / 2, 0, 0.5, 0, 0, 0, 0]
        assert scores.tolist() == [2.0]


def test_banks_that_do_not_share_all_channels_are_refused() -> None:
    head = PatchcoreHead(GRID, 1, "none", 0.0, banks=2)
    tensors = {"bank.0": np.zeros((3, 2), np.float32), "bank.1": np.zeros((3, 3), np.float32)}
    with pytest.raises(BundleError, match=r"bank: expected rows of the 6 channels of a patch, got 5\. Export"):
        build_head(head, tensors, SIZE)(patches_of(random_images(1, 0)))
    with pytest.raises(BundleError, match=r"bank: expected the tensor bank\.1, got \['bank\.0'\]\. Export"):
        build_head(head, {"bank.0": tensors["bank.0"]}, SIZE)


@pytest.mark.parametrize(("backend", "path"), [("cpu", "kernel"), ("tensorrt", "graph"), ("cuda", "graph")])
def test_several_banks_take_the_graph_on_a_device(
    uncalibrated_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, backend: str, path: str
) -> None:
    monkeypatch.setattr(bank_scorer, "HAVE_NATIVE", True)
    head = PatchcoreHead(GRID, 1, "none", 0.0, banks=2)
    with open_bundle(uncalibrated_bundles["patchcore"]) as bundle:
        manifest = msgspec.structs.replace(bundle.manifest, head=head)
    assert bank_scorer.resolve_path(bank_scorer.ScorerOptions(backend, "auto"), manifest) == path
    with pytest.raises(
        BackendError, match=r"path kernel: .* one memory bank without foreground, got 2 .* Use --path graph\."
    ):
        patchcore_scorer.device_head(None, head, {}, SIZE, 1)


def test_a_distance_that_is_no_number_stays_visible_in_a_mean() -> None:
    patches = patches_of(random_images(2, 3)).copy()
    patches[1, 2, 1] = np.nan
    head = PatchcoreHead(GRID, 1, "none", 1.0, top=2)
    with np.errstate(invalid="ignore"):
        _, scores = build_head(head, tensors_for(head, 5, 1), SIZE)(patches)
    assert np.isfinite(scores).tolist() == [True, False]


def test_a_head_of_an_earlier_bundle_means_what_it_meant() -> None:
    plain = {"type": "patchcore", "grid": [4, 2], "neighbors": 9, "reweight": "paper", "sigma": 4.0}
    head = decode_head(Head, plain)
    assert (head.metric, head.top, head.banks, head.foreground) == ("euclidean", 1, 1, False)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'angle'"):
        decode_head(Head, {**plain, "metric": "angle"})


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (PatchcoreHead(GRID, 9, "none", 0.0, top=9), "expected a score of at most the 8 patches of an image, got 9"),
        (PatchcoreHead(GRID, 9, "paper", 0.0, top=2), "expected a score of 2 patches without re-weighting"),
        (PatchcoreHead(GRID, 9, "none", 0.0, banks=65), "expected at most 64 banks (stages times scales with "),
        (PatchcoreHead(GRID, 9, "seed", 0.0, banks=2), "expected 2 banks without re-weighting, got reweight seed"),
        (PatchcoreHead(GRID, 1, "paper", 0.0, top=2, banks=2), None),
    ],
)
def test_a_head_that_means_nothing_is_a_problem(head: PatchcoreHead, problem: str | None) -> None:
    got = head.problem(SIZE)
    assert got == problem if problem is None else got is not None and got.startswith(problem)
