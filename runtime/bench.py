"""Measuring a bundle: latency per stage, throughput, and the ratio to its backbone alone."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flawscope.errors import ArgumentError
from flawscope.images import UInt8Array, decode_image, prepare
from flawscope.runtime.backends import Session, open_session
from flawscope.runtime.decision import decide, find_boxes
from flawscope.runtime.inspector import Inspector
from flawscope.versions import cpu_name, package_versions

STAGES = ("read", "prepare", "infer", "decide", "total")
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
_WARM_UP_S = (1.0, 10.0)
_WINDOW = 10
_BLOCK = 12
"""Rounds of one kind before the other kind has its turn."""
_SETTLE = 2
"""Rounds left out at the start of a block."""


def bench(
    inspector: Inspector, *, batch: int = 1, seconds: float = 10.0, progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Measure from encoded picture in memory to decision, in alternation with the backbone alone.

    After warm-up, blocks of rounds through all stages alternate with blocks in which `features.onnx` alone stands in
    for the inference, after the same reading and resizing, so that both meet the machine in the same state. The first
    rounds of a block are left out: the threads of the other session still spin then. Latency is per batch.

    Args:
        inspector: The loaded bundle.
        batch: Pictures per round.
        seconds: Measuring time; at least this long and at least 30 rounds.
        progress: Told the share done, 0 to 1.

    Returns:
        Percentiles in milliseconds per stage and for the backbone, pictures per second, their ratio, and what a
        reader needs to judge the figures.

    Raises:
        ArgumentError: If batch or seconds are out of range.
    """
    manifest = inspector.manifest
    if not 1 <= batch <= manifest.max_batch:
        raise ArgumentError(f"batch: expected 1 to {manifest.max_batch}, got {batch}.")
    if not 0.1 <= seconds <= 86_400:
        raise ArgumentError(f"seconds: expected 0.1 to 86400, got {seconds}.")
    encoded = [inspector.bundle.file(golden.file).read_bytes() for golden in manifest.golden]
    if not encoded:
        raise ArgumentError("bench: expected a bundle with golden images, got none. Export it again.")
    pictures = [encoded[index % len(encoded)] for index in range(batch)]
    backbone = open_session(inspector.bundle.graph("features"), inspector.backend)
    try:
        warm_up = _warm_up(lambda: (_round(inspector, pictures), _backbone_round(inspector, backbone, pictures)))
        rounds: list[list[float]] = []
        alone: list[float] = []
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds or len(rounds) < 30:
            rounds += [_round(inspector, pictures) for _ in range(_BLOCK)][_SETTLE:]
            alone += [_backbone_round(inspector, backbone, pictures) for _ in range(_BLOCK)][_SETTLE:]
            if progress is not None:
                progress(min(1.0, elapsed / seconds))
    finally:
        backbone.close()
    times = np.array(rounds)
    return {
        "bundle": manifest.name,
        "digest": manifest.digest,
        "method": manifest.method,
        "precision": "fp32",
        "backend": inspector.backend,
        "backend_reason": inspector.backend_reason,
        "path": inspector.path,
        "batch": batch,
        "rounds": len(rounds),
        "seconds": round(elapsed, 3),
        "warm_up_rounds": warm_up,
        "latency_ms": {stage: _percentiles(times[:, column]) for column, stage in enumerate(STAGES)},
        "backbone_ms": _percentiles(np.array(alone)),
        "images_per_second": float(batch * len(rounds) / (times[:, -1].sum() / 1e3)),
        "ratio_infer_to_backbone": float(np.median(times[:, 2]) / np.median(alone)),
        "ratio_total_to_backbone": float(np.median(times[:, -1]) / np.median(alone)),
        "input": list(manifest.input.size),
        "machine": _machine(),
    }


def _backbone_round(inspector: Inspector, backbone: Session, pictures: list[bytes]) -> float:
    """Read and resize one batch, then return the milliseconds that the backbone alone takes for it."""
    images = np.stack([prepare(decode_image(data), inspector.manifest.input) for data in pictures])
    before = time.perf_counter()
    backbone.infer(images)
    return 1e3 * (time.perf_counter() - before)


def _round(inspector: Inspector, pictures: list[bytes]) -> list[float]:
    """Take one batch through all stages; return milliseconds per stage, the total last."""
    manifest = inspector.manifest
    marks = [time.perf_counter()]
    decoded = [decode_image(data) for data in pictures]
    marks.append(time.perf_counter())
    images: UInt8Array = np.stack([prepare(image, manifest.input) for image in decoded])
    marks.append(time.perf_counter())
    maps, scores = inspector.infer(images)
    marks.append(time.perf_counter())
    for image, anomaly_map, value in zip(decoded, maps, scores, strict=True):
        decide(float(value), anomaly_map, manifest.thresholds)
        if manifest.thresholds is not None:
            threshold = manifest.thresholds.pixel.value
            find_boxes(anomaly_map, threshold, manifest.min_area_px, manifest.input, (image.shape[0], image.shape[1]))
    marks.append(time.perf_counter())
    stages = [1e3 * (after - before) for before, after in itertools.pairwise(marks)]
    return [*stages, 1e3 * (marks[-1] - marks[0])]


def _warm_up(run: Callable[[], object]) -> int:
    """Run until two windows of rounds have medians within 10 %, for 1 to 10 seconds; return the number of rounds."""
    times: list[float] = []
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _WARM_UP_S[1]:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
        if elapsed >= _WARM_UP_S[0] and len(times) >= 2 * _WINDOW:
            earlier, later = statistics.median(times[-2 * _WINDOW : -_WINDOW]), statistics.median(times[-_WINDOW:])
            if abs(later - earlier) <= 0.1 * earlier:
                break
    return len(times)


def _percentiles(times: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> dict[str, float]:
    return {name: float(np.percentile(times, share)) for name, share in _PERCENTILES.items()}


def _machine() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        **package_versions(),
    }
