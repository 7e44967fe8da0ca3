"""The parity gate: what agrees passes with a measured figure, what does not stops the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawscope.arrays import Float32Array
from flawscope.bundle import Parity, open_bundle
from flawscope.errors import GateError
from flawscope.export.detectors import detector_export
from flawscope.export.parity import MAP_LIMIT, SCORE_LIMIT, SPEARMAN_LIMIT, check_parity, measure_parity
from flawscope.training.detectors import torch_scores

Answer = tuple[Float32Array, Float32Array]


def answer(scores: list[float], peak: float = 2.0) -> Answer:
    maps = np.zeros((len(scores), 3, 3), np.float32)
    maps[:, 1, 1] = peak
    return maps, np.array(scores, np.float32)


def test_equal_answers_differ_by_nothing() -> None:
    row = measure_parity("a", "b", answer([1, 2, 3]), answer([1, 2, 3]))
    assert (row.score_max_relative, row.map_max_relative, row.score_spearman) == (0, 0, 1)
    assert (row.reference, row.candidate, row.images) == ("a", "b", 3)
    check_parity([row])


def test_scores_are_compared_each_with_its_own_and_maps_with_the_largest_value() -> None:
    maps, scores = answer([1, 200, 3])
    other_maps, other_scores = maps.copy(), scores.copy()
    other_scores[0] *= 1.01  # a hundredth of the smallest score, a twenty-thousandth of the largest
    other_maps[2, 0, 0] = 0.5
    row = measure_parity("a", "b", (maps, scores), (other_maps, other_scores))
    assert row.score_max_relative == pytest.approx(0.01, rel=1e-4)
    assert row.map_max_relative == pytest.approx(0.25)


def test_rank_correlation_needs_three_scores() -> None:
    assert measure_parity("a", "b", answer([1, 2]), answer([1, 2])).score_spearman is None
    assert measure_parity("a", "b", answer([1, 1, 1]), answer([1, 1, 1])).score_spearman is None
    assert measure_parity("a", "b", answer([1, 2, 3]), answer([3, 2, 1])).score_spearman == pytest.approx(-1)


def test_a_tie_broken_by_rounding_is_no_change_of_rank() -> None:
    reference, rounded = [5.0, 5.0, 7.0, 9.0], [5.0, 5.000001, 7.0, 9.0]
    row = measure_parity("a", "b", answer(reference), answer(rounded))
    assert row.score_max_relative > 0
    assert row.score_spearman == pytest.approx(1.0)
    check_parity([row])
    swapped = measure_parity("a", "b", answer(reference), answer([5.0, 5.0, 9.0, 7.0]))
    assert swapped.score_spearman is not None
    assert swapped.score_spearman < 0.999


def test_zero_scores_that_agree_pass() -> None:
    row = measure_parity("a", "b", answer([0, 0, 0], 0.0), answer([0, 0, 0], 0.0))
    check_parity([row])
    assert row.score_max_relative == 0


@pytest.mark.parametrize(
    ("scores", "maps", "rank"),
    [
        (SCORE_LIMIT * 1.01, 0.0, 1.0),
        (0.0, MAP_LIMIT * 1.01, 1.0),
        (0.0, 0.0, SPEARMAN_LIMIT - 0.001),
        (float("nan"), 0.0, 1.0),
        (0.0, float("nan"), 1.0),
        (0.0, 0.0, float("nan")),
        (float("inf"), 0.0, None),
    ],
)
def test_each_figure_outside_its_limit_or_no_number_closes_the_gate(
    scores: float, maps: float, rank: float | None
) -> None:
    good = Parity("torch", "fine", 3, 0.0, 0.0, 1.0)
    with pytest.raises(GateError, match=r"parity: bad against torch on 3 images: .* No bundle was written\."):
        check_parity([good, Parity("torch", "bad", 3, scores, maps, rank)])


def test_figures_at_the_limit_pass() -> None:
    check_parity([Parity("a", "b", 3, SCORE_LIMIT, MAP_LIMIT, SPEARMAN_LIMIT), Parity("a", "b", 2, 0.0, 0.0, None)])


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_bundles_carry_measured_rows_far_within_the_limits(uncalibrated_bundles: dict[str, Path], method: str) -> None:
    with open_bundle(uncalibrated_bundles[method]) as bundle:
        rows = bundle.manifest.evidence.parity
    assert [(row.reference, row.candidate) for row in rows] == [
        ("torch", "score.onnx, cpu"),
        ("score.onnx, cpu", "features.onnx + kernel, cpu"),
    ]
    for row in rows:
        assert row.images == 5
        assert 0 < row.score_max_relative < 1e-4  # measured: never exactly equal, in float32 by other orders of sums
        assert 0 < row.map_max_relative < 1e-4
        assert row.score_spearman == pytest.approx(1.0)


def times(factor: float) -> Callable[[Answer], Answer]:
    return lambda answer: (answer[0], (answer[1] * np.float32(factor)).astype(np.float32))


def with_nan_score(answer: Answer) -> Answer:
    scores = answer[1].copy()
    scores[-1] = np.nan
    return answer[0], scores


def with_nan_map(answer: Answer) -> Answer:
    maps = answer[0].copy()
    maps[0, 0, 0] = np.nan
    return maps, answer[1]


def shifted_map(answer: Answer) -> Answer:
    return np.roll(answer[0], 4, axis=2), answer[1]


@pytest.mark.usefixtures("traced_features")
@pytest.mark.parametrize("implementation", ["torch", "graph", "kernel"])
@pytest.mark.parametrize("spoil", [times(1.01), with_nan_score, with_nan_map, shifted_map])
def test_a_candidate_that_computes_something_else_leaves_no_bundle(
    padim_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    spoil: Callable[[Answer], Answer],
) -> None:
    scores, reference = detector_export._scores, torch_scores.torch_scores

    def spoiled_scores(inspector: Any, images: Any) -> Answer:
        answer = scores(inspector, images)
        return spoil(answer) if inspector.path == implementation else answer

    def spoiled_reference(*arguments: Any) -> Answer:
        answer = reference(*arguments)
        return spoil(answer) if implementation == "torch" else answer

    monkeypatch.setattr(detector_export, "_scores", spoiled_scores)
    monkeypatch.setattr(torch_scores, "torch_scores", spoiled_reference)
    candidate = "score.onnx, cpu" if implementation != "kernel" else r"features.onnx \+ kernel, cpu"
    with pytest.raises(GateError, match=rf"parity: {candidate} against .* on 5 images"):
        detector_export.export_run(padim_run, tmp_path / "part.flaw", max_batch=4)
    assert list(tmp_path.iterdir()) == []
