"""The stream read ahead: the same results in the same order as without, whatever goes wrong, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope.errors import ArgumentError, DeviceError
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Frame, Inspector, Result

KINDS = ("png", "grey png", "array", "grey array", "broken", "missing", "wrong type")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "tiny.flaw"
    write_tiny_bundle(path, thresholds=tiny_thresholds(128.0))
    return path


@pytest.fixture(scope="module")
def inspector(bundle: Path) -> Iterator[Inspector]:
    with Inspector.load(bundle, "cpu", "graph") as opened:
        yield opened


def source(kind: str, seed: int) -> Any:
    image = np.random.default_rng(seed).integers(0, 256, (20 + seed % 7, 24, 3), np.uint8) // (1 + seed % 3)
    if kind == "array":
        return image
    if kind == "grey array":
        return image[..., 0]
    if kind == "missing":
        return Path(f"/nowhere/{seed}.png")
    if kind == "wrong type":
        return image.astype(np.float32)
    encoded = cv2.imencode(".png", image[..., 0] if kind == "grey png" else image)[1].tobytes()
    return encoded[:60] if kind == "broken" else encoded


def told(result: Result) -> tuple[Any, ...]:
    """Return all of a result but its times."""
    image_map = None if result.anomaly_map is None else result.anomaly_map.tobytes()
    return result.image, result.decision, result.score, result.reason, result.boxes, result.notes, image_map


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("flawscope-ahead")]


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from(KINDS), max_size=9), batch=st.integers(1, 4), ahead=st.integers(1, 4))
def test_reading_ahead_changes_no_result(inspector: Inspector, kinds: list[str], batch: int, ahead: int) -> None:
    sources = [source(kind, seed) for seed, kind in enumerate(kinds)]
    expected = [told(result) for result in inspector.stream(sources, batch)]
    assert [told(result) for result in inspector.stream(sources, batch, ahead=ahead)] == expected
    assert [row[1] == "fault" for row in expected] == [k in ("broken", "missing", "wrong type") for k in kinds]
    assert readers() == []


def test_tiles_are_read_ahead_too(tmp_path: Path) -> None:
    path = tmp_path / "tiles.flaw"
    write_tiny_bundle(path, thresholds=tiny_thresholds(128.0), tiling=Tiling(size=(16, 16)))
    sources = [source(kind, seed) for seed, kind in enumerate(("png", "grey png", "broken", "grey array", "array"))]
    with Inspector.load(path, "cpu", "graph") as tiled:
        expected = [told(result) for result in tiled.stream(sources)]
        assert [told(result) for result in tiled.stream(sources, 4, ahead=2)] == expected
    assert [row[1] == "fault" for row in expected] == [False, False, True, False, False]


def test_an_error_of_the_sources_comes_after_the_results_before_it(inspector: Inspector) -> None:
    def sources() -> Iterator[Any]:
        yield from (source("array", seed) for seed in range(3))
        raise ValueError("the camera is gone")

    results: list[Any] = []
    with pytest.raises(ValueError, match="the camera is gone"):
        results.extend(map(told, inspector.stream(sources(), ahead=2)))
    assert results == [told(result) for result in inspector.stream([source("array", seed) for seed in range(3)])]
    assert readers() == []


def test_a_device_that_fails_makes_faults_of_its_batch_alone(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, infer = [], Inspector.infer

    def failing(self: Inspector, prepared: Any) -> Any:
        calls.append(len(prepared))
        if len(calls) == 2:
            raise DeviceError("backend cpu: the device failed")
        return infer(self, prepared)

    monkeypatch.setattr(Inspector, "infer", failing)
    results = list(inspector.stream([source("array", seed) for seed in range(6)], 2, ahead=3))
    assert [result.decision == "fault" for result in results] == [False, False, True, True, False, False]


def test_a_stream_that_is_left_leaves_no_thread(inspector: Inspector) -> None:
    stream = inspector.stream((source("png", seed) for seed in range(1000)), ahead=3)
    assert next(stream).decision != "fault"
    assert len(readers()) == 1
    stream.close()  # type: ignore[attr-defined]
    assert readers() == []


@pytest.mark.parametrize("ahead", [-1, 65, 1.0, "2", None])
def test_a_number_of_batches_that_is_out_of_range_is_refused(inspector: Inspector, ahead: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^ahead: expected 0 to 64 batches, got "):
        list(inspector.stream([], ahead=ahead))


@pytest.mark.parametrize("sources", [None, 5, Frame(b""), np.zeros(())])
def test_what_is_not_several_images_is_refused(inspector: Inspector, sources: Any) -> None:
    with pytest.raises(ArgumentError, match=f"expected several images, got {type(sources).__name__}"):
        list(inspector.stream(sources))
