"""The parts of an inference: each ends once, in order, and being timed changes no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flawscope.runtime import Inspector
from flawscope.runtime.scorers.timed import INFER_PARTS, PartClock, TimedScorer


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_every_part_is_timed_and_the_result_is_that_of_score(bundles: dict[str, Path], method: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 1, 3), np.uint8)
    with Inspector.load(bundles[method], "cpu", "kernel") as inspector:
        images = np.broadcast_to(images, (3, *inspector.manifest.input.size, 3)).copy()
        assert isinstance(inspector.scorer, TimedScorer)
        clock, ended = PartClock(), []
        expected = inspector.scorer.score(images)
        got = inspector.scorer.score_marked(images, lambda part: (ended.append(part), clock.mark(part))[0])
    assert ended == list(INFER_PARTS)
    assert len(clock.milliseconds) == len(INFER_PARTS)
    assert min(clock.milliseconds) > 0
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_graph_has_no_parts(padim_bundle: Path) -> None:
    with Inspector.load(padim_bundle, "cpu", "graph") as inspector:
        assert not isinstance(inspector.scorer, TimedScorer)


def test_a_part_out_of_order_is_noticed() -> None:
    clock = PartClock()
    with pytest.raises(AssertionError, match="map"):
        clock.mark("map")
