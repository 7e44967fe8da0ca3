"""The editing of features by the kernels, and the score of what changed, by plain NumPy in float64."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from flawscope.bundle import LafiteHead
from flawscope.diffusion.schedule import Sampling
from flawscope.imaging.map_upsampling import map_matrices
from flawscope.runtime.scorers.lafite_scorer import FeatureEditor, finish_features

HEAD = LafiteHead(
    grid=(3, 4), sampling=None, neighbors=4, temperature=0.5, mix=1.0, score_window=3, sigma=1.0, scale=1.0
)


def edited_slowly(features: np.ndarray, rows: np.ndarray, head: LafiteHead) -> np.ndarray:
    result = np.empty(features.shape)
    for place in np.ndindex(features.shape[0], *features.shape[2:]):
        patch = features[place[0], :, place[1], place[2]].astype(np.float64)
        squared = np.square(rows.astype(np.float64) - patch).sum(axis=1)
        order = squared.argsort()
        taken, rest = order[: head.neighbors], order[head.neighbors :]
        shares = np.exp(-(squared - squared.min()) / (len(patch) * head.temperature))
        weights = shares[taken] - (shares[rest[0]] if len(rest) else 0.0)
        mean = weights @ rows[taken] / weights.sum()
        result[place[0], :, place[1], place[2]] = head.mix * mean + (1 - head.mix) * patch
    return result


@given(
    st.integers(0, 1_000_000), st.integers(1, 9), st.integers(1, 12), st.floats(0.1, 10.0), st.sampled_from([1.0, 0.3])
)
def test_patches_give_way_to_the_mean_of_their_nearest_rows(
    seed: int, neighbors: int, rows: int, temperature: float, mix: float
) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    bank = rng.standard_normal((rows, 5)).astype(np.float32)
    head = msgspec.structs.replace(HEAD, neighbors=neighbors, temperature=temperature, mix=mix)
    edited = FeatureEditor(bank, head)(features)
    assert edited.dtype == np.float32
    np.testing.assert_allclose(edited, edited_slowly(features, bank, head), rtol=0, atol=1e-3)


def test_an_image_is_edited_alike_in_every_batch() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((5, 6, 3, 4)).astype(np.float32)
    edit = FeatureEditor(rng.standard_normal((40, 6)).astype(np.float32), HEAD)
    together = edit(features)
    for index in range(5):
        np.testing.assert_allclose(together[index], edit(features[index : index + 1])[0], rtol=0, atol=1e-6)


def test_features_that_are_not_finite_do_not_become_normal_ones() -> None:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((1, 6, 3, 4)).astype(np.float32)
    features[0, 2, 1, 1] = np.nan
    edited = FeatureEditor(rng.standard_normal((40, 6)).astype(np.float32), HEAD)(features)
    assert np.isnan(edited[0, :, 1, 1]).all()
    assert np.isfinite(np.delete(edited.reshape(6, 12), 5, axis=1)).all()
    _, scores = finish_features(edited, features, HEAD, (12, 16))
    assert np.isnan(scores).all()


@pytest.mark.parametrize("window", [1, 3, 12])
def test_the_score_is_the_largest_mean_of_a_window_of_the_map(window: int) -> None:
    rng = np.random.default_rng(2)
    changed, features = rng.standard_normal((2, 2, 6, 3, 4)).astype(np.float32)
    head = msgspec.structs.replace(HEAD, score_window=window)
    maps, scores = finish_features(changed, features, head, (12, 16))
    rows, columns = map_matrices((3, 4), (12, 16), 1.0)
    for image in range(2):
        expected = rows @ np.linalg.norm(changed[image].astype(np.float64) - features[image], axis=0) @ columns
        np.testing.assert_allclose(maps[image], expected, rtol=1e-5)
        means = ndimage.uniform_filter(expected, window, mode="constant", origin=0)
        low, high = window // 2, (window - 1) // 2
        inside = means[low : 12 - high, low : 16 - high]
        assert scores[image] == pytest.approx(inside.max(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (20, 4)}, "expected a grid of at most"),
        ({"score_window": 13}, "expected a score window of at most"),
        ({"neighbors": 0}, "expected features that are edited, denoised, or both"),
    ],
)
def test_a_head_that_does_not_fit_its_input_says_why(changes: dict[str, object], message: str) -> None:
    assert HEAD.problem((12, 16)) is None
    assert msgspec.structs.replace(HEAD, neighbors=0, sampling=Sampling()).problem((12, 16)) is None
    assert message in (msgspec.structs.replace(HEAD, **changes).problem((12, 16)) or "")
