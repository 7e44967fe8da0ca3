"""Scores of a graph that is no bundle yet: the same on both backends, and how far they move."""

from __future__ import annotations

import int8_graphs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.calibration.quantization.candidate_scores import CandidateScores, first_moved, score_candidate
from flawscope.runtime.backends.openvino_devices import cuts_int8


def head(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    maps = np.abs(patches).mean(1)
    return maps, maps.max((1, 2))


def test_both_backends_score_every_image() -> None:
    pytest.importorskip("openvino", reason='OpenVINO is not installed: pip install "flawscope[openvino]"')
    if cuts_int8():
        pytest.skip("OpenVINO cuts sums of INT8 products on this processor")
    model = int8_graphs.two_stages(np.random.default_rng(0))
    images = int8_graphs.images(3)
    first, second = (score_candidate(model, head, images, backend) for backend in ("cpu", "openvino"))
    assert first.maps.shape == (3, int8_graphs.SIZE, int8_graphs.SIZE)
    assert len(set(first.scores)) == 3
    np.testing.assert_allclose(second.scores, first.scores, rtol=1e-4)
    without = score_candidate(model, head, images, with_maps=False)
    assert without.maps.size == 0
    np.testing.assert_allclose(without.scores, first.scores, rtol=1e-6)


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
def test_what_moves_more_counts(score: float, maps: float) -> None:
    exact = CandidateScores(np.full((4, 3, 3), 2.0, np.float32), np.array([1, 2, 3, 4], np.float32))
    moved = CandidateScores(exact.maps * np.float32(1 + maps), exact.scores * np.float32(1 + score))
    assert moved.change(exact) == pytest.approx(max(abs(score), abs(maps)), abs=1e-5)
    np.testing.assert_allclose(moved.score_changes(exact), abs(score), atol=1e-5)


def test_a_score_that_is_no_number_is_within_no_limit() -> None:
    exact = CandidateScores(np.ones((1, 1, 1), np.float32), np.ones(1, np.float32))
    lost = CandidateScores(exact.maps, np.full(1, np.nan, np.float32))
    assert not (lost.score_changes(exact) <= 1.0).any()


def test_the_first_image_that_moved_ends_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = int8_graphs.two_stages(np.random.default_rng(0)), int8_graphs.images(4)
    exact = score_candidate(model, head, images)
    asked = 0

    def counting(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal asked
        asked += 1
        maps, scores = head(patches)
        return maps, scores

    def first(exact: CandidateScores, order: list[int]) -> int | None:
        return first_moved(model, counting, images, "cpu", exact, 0.01, order)

    assert first(exact, [0, 1, 2, 3]) is None
    assert asked == 4
    other = CandidateScores(exact.maps, exact.scores * np.array([1, 1.02, 1, np.nan], np.float32))
    for order, moved, after in (([0, 1, 2, 3], 1, 2), ([3, 0, 1, 2], 3, 1), ([0, 2, 3, 1], 3, 3)):
        asked = 0
        assert first(other, order) == moved
        assert asked == after
