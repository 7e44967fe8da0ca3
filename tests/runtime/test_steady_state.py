"""The steady state: what an image needs is released, comes from the same memory again, and no result changes later."""

from __future__ import annotations

import gc
import platform
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_dataset import normal_images

from flawscope.runtime import Inspector, Result

CASES = [("patchcore", "kernel"), ("patchcore", "graph"), ("padim", "kernel"), ("padim", "graph")]
KEPT_BYTES = 64
"""Most bytes an image may leave behind, over hundreds of them: caches of the interpreter fill a little."""
SIDE = 1024


@pytest.fixture(params=CASES, ids=lambda case: ":".join(case))
def inspector(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[Inspector]:
    method, path = request.param
    with Inspector.load(bundles[method], "cpu", path) as opened:
        yield opened


def encoded(side: int, kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    image = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(kind, image)[1].tobytes()


def _traced(run: Callable[[], object], calls: int) -> tuple[int, int]:
    """Return by how many bytes Python's memory has grown after so many calls, and by how many at its peak."""
    gc.collect()
    tracemalloc.start()
    try:
        run()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(calls):
            run()
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before, peak - before


@pytest.mark.serial
@pytest.mark.long
@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_leaves_nothing_behind_and_needs_no_more_than_its_arrays(inspector: Inspector, batch: int) -> None:
    sources: Any = encoded(256, ".jpg") if batch == 1 else [encoded(256, ".png")] * batch
    run: Callable[[], object] = lambda: inspector(sources)  # noqa: E731
    for _ in range(20):
        run()
    height, width = inspector.manifest.input.size
    outputs = inspector.scorer.outputs(np.zeros((1, height, width, 3), np.uint8))
    of_image = (
        2 * 256 * 256 * 3  # decoded, and its colours in order
        + 3 * height * width * 3  # resized, prepared, in the batch
        + 3 * sum(array.nbytes for array in outputs.values())  # patches, or map and score; in the search once more
        + 8 * 4 * height * width  # the map, blurred along one side and both, what is above the threshold, its labels
    )
    # The result before is released only when the next one is there.
    most = batch * of_image + 64 * 1024
    found = []
    # Threads of other tests that are just ending are counted, too: what an image leaves behind, it leaves each time.
    for _ in range(3):
        kept, peak = _traced(run, calls=200)
        found.append((kept / (200 * batch), peak))
        if found[-1][0] <= KEPT_BYTES and peak <= most:
            return
    raise AssertionError(f"expected at most {KEPT_BYTES} bytes kept of an image and {most} at the peak, got {found}")


@pytest.mark.serial
@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="how memory is reused is a matter of the C library")
@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_the_system_is_asked_for_no_memory_by_an_image(inspector: Inspector, kind: str) -> None:
    source, calls = encoded(SIDE, kind), 30
    for _ in range(10):
        inspector(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        inspector(source)
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls
    # Each page of the decoded image alone would be a fault if it came from the system: 768 of 4 KiB.
    assert faults < SIDE * SIDE * 3 / resource.getpagesize() / 4


def test_no_result_changes_later_or_shares_memory_with_another_or_its_source(
    inspector: Inspector, tiny_root: Path
) -> None:
    paths = normal_images(tiny_root)[:3]
    height, width = inspector.manifest.input.size
    arrays = [np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8) for seed in range(3)]
    grey = [array[..., 0].copy() for array in arrays]
    kept: list[tuple[Result, bytes]] = []
    for sources in ([paths[0]], paths, arrays, grey, [arrays[0]], [grey[0]], paths[::-1]):
        for batch in (1, 3):
            for result in inspector.stream(sources, batch, ahead=batch - 1):  # type: ignore[arg-type]
                assert result.anomaly_map is not None
                assert not any(np.shares_memory(result.anomaly_map, array) for array in (*arrays, *grey))
                assert not any(
                    np.shares_memory(result.anomaly_map, other.anomaly_map)
                    for other, _ in kept
                    if other.anomaly_map is not None
                )
                kept.append((result, result.anomaly_map.tobytes()))
    assert len(kept) == 2 * (1 + 3 + 3 + 3 + 1 + 1 + 3)
    for result, bits in kept:
        assert result.anomaly_map is not None
        assert result.anomaly_map.tobytes() == bits
