"""Trained detectors that share a session, run from several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_dataset import anomalous_images, normal_images

from flawscope.runtime import Inspector, Result, Router

pytestmark = pytest.mark.long


def bits(result: Result) -> tuple[object, ...]:
    """What an inspection found, to the last bit."""
    assert result.anomaly_map is not None
    return result.decision, result.score, result.boxes, result.anomaly_map.tobytes()


@pytest.mark.parametrize("path", ["graph", "kernel"])
def test_threads_in_one_session_of_a_trained_backbone_change_no_bit(
    bundles: dict[str, Path], tiny_root: Path, path: str
) -> None:
    # Copies of one detector have one session on both paths.
    made = {**bundles, **{f"{name} again": bundles[name] for name in bundles}}
    images = [*normal_images(tiny_root), *anomalous_images(tiny_root)]
    expected = {}
    for name, bundle in made.items():
        with Inspector.load(bundle, "cpu", path) as inspector:
            for image in images:
                expected[name, image] = bits(inspector(image))
    order = 4 * list(expected)
    np.random.default_rng(0).shuffle(order)
    with Router(made, "cpu", path) as router, ThreadPoolExecutor(4) as pool:
        assert {use.bundles for use in router.sharing} == {("padim", "padim again"), ("patchcore", "patchcore again")}
        found = list(pool.map(lambda step: bits(router.inspect(step[1], step[0])), order))
    assert found == [expected[step] for step in order]
