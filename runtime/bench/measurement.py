"""Latency per stage, throughput and memory of a bundle, and the ratio to its backbone alone."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flawscope.errors import ArgumentError
from flawscope.resident_memory import peak_kib, resident_kib
from flawscope.runtime.backends import Session, open_session
from flawscope.runtime.bench.machine_state import device_memory, machine_state
from flawscope.runtime.bench.rounds import (
    BLOCK,
    SETTLE,
    STAGES,
    Record,
    backbone_round,
    check_seconds,
    count_transfers,
    golden_images,
    infer_parts_round,
    latency,
    one_round,
    percentiles,
)
from flawscope.runtime.bench.trend import fit_slope
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.scorers.timed import INFER_PARTS, TimedScorer
from flawscope.versions import cpu_name, package_versions

__all__ = ["STAGES", "bench", "sweep"]

WARM_UP_S = (1.0, 10.0)
"""Least and most seconds of warm-up before anything is counted."""
_WINDOW = 10  # rounds whose median tells whether a warm-up is over
_LEAST_ROUNDS = 30
NOT_LINUX = "resident memory is read from /proc/self/status, which this system does not have"


def bench(
    inspector: Inspector, *, batch: int = 1, seconds: float = 10.0, progress: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Measure from encoded image in memory to decision, in alternation with the backbone alone.

    After warm-up, blocks of rounds through all stages alternate with blocks in which `features.onnx` alone takes the
    place of the inference, after the same reading and resizing: the machine's state is then the same for both. So do
    blocks that time the parts of the inference, where it has several. The first rounds of a block are left out: the
    threads of the other session still spin then. Latency is per batch.

    Args:
        inspector: The loaded bundle.
        batch: Images per round.
        seconds: Measuring time; at least this long and at least 30 rounds.
        progress: Called with the completed share, 0 to 1.

    Returns:
        Percentiles in milliseconds per stage, per part of the inference (None where it is one graph) and for the
        backbone, images per second, their ratio, memory in KiB, bytes per image, machine, versions and state. What
        cannot be measured is None, with a reason.

    Raises:
        ArgumentError: If batch or seconds are out of range.
    """
    return sweep(inspector, batches=(batch,), seconds=seconds, progress=progress)


def sweep(
    inspector: Inspector,
    *,
    batches: Sequence[int],
    seconds: float = 10.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measure several batches, one after the other, as `bench` does.

    Args:
        inspector: The loaded bundle.
        batches: Images per round, at least one number.
        seconds: Measuring time for each batch.
        progress: Called with the completed share of all, 0 to 1.

    Returns:
        The figures of the first batch, as `bench` returns them, and under `sweep` those of every batch.

    Raises:
        ArgumentError: If a batch or seconds are out of range.
    """
    for batch in batches:
        inspector.check_batch(batch)
    if not batches:
        raise ArgumentError("batch: expected at least one number of images, got none.")
    check_seconds(seconds)
    encoded = golden_images(inspector)
    loaded_kib = resident_kib()  # before the session of the backbone, which no inspection needs
    before = machine_state()
    measured = []
    # A method without patches has no features that could be taken alone.
    has_features = "features" in inspector.manifest.graphs
    backbone = (
        open_session(inspector.bundle, "features", inspector.precision, inspector.backend, cores=inspector.cores)
        if has_features
        else None
    )
    try:
        for index, batch in enumerate(batches):
            # A batch larger than the number of golden images repeats them; equal images cost as much as different ones.
            images = [encoded[number % len(encoded)] for number in range(batch)]
            batch_progress = _part_progress(progress, index, len(batches))
            measured.append({"batch": batch, **_measure(inspector, backbone, images, seconds, batch_progress)})
            host = measured[-1]["memory"]["host"]
            host["rss_after_load_kib"] = loaded_kib
            # The kernel notes its peak with some pages less than it counts when it is asked.
            if loaded_kib is not None and host["peak_kib"] is not None:
                host["peak_kib"] = max(host["peak_kib"], loaded_kib)
    finally:
        if backbone is not None:
            backbone.close()
    return {
        **identity(inspector),
        **measured[0],  # also at the top level, where a measurement of one batch has them
        "sweep": measured,
        "input": list(inspector.manifest.input.size),
        "machine": machine(),
        "state": {"before": before, "after": machine_state()},
    }


def identity(inspector: Inspector) -> dict[str, Any]:
    """Return which bundle was measured, on which backend, path and precision."""
    manifest = inspector.manifest
    return {
        "bundle": manifest.name,
        "digest": manifest.digest,
        "method": manifest.method,
        "precision": inspector.precision,
        "backend": inspector.backend,
        "backend_reason": inspector.backend_reason,
        "path": inspector.path,
        "threads": inspector.cores.threads,
        "streams": inspector.cores.streams,
    }


def _measure(
    inspector: Inspector,
    backbone: Session | None,
    images: Sequence[bytes],
    seconds: float,
    progress: Callable[[float], None] | None,
) -> dict[str, Any]:
    """Return the figures of one batch."""
    batch = len(images)
    timed = inspector.scorer if isinstance(inspector.scorer, TimedScorer) else None

    def run_both() -> None:
        one_round(inspector, images)
        if timed is not None:
            infer_parts_round(timed, inspector, images)
        if backbone is not None:
            backbone_round(inspector, backbone, images)

    warm_up = warm_up_rounds(run_both, WARM_UP_S)
    transfers = count_transfers(inspector, images)
    # Half as much again as is likely: growing a record would disturb the round after it.
    likely = round(1.5 * seconds / warm_up.seconds_a_round) + 2 * BLOCK
    rounds, alone, parts = Record(len(STAGES), likely), Record(1, likely), Record(len(INFER_PARTS), likely)
    memory = Record(2, likely // BLOCK)
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or len(rounds) < _LEAST_ROUNDS:
        for number in range(BLOCK):
            times, _, _ = one_round(inspector, images)
            if number >= SETTLE:
                rounds.add(times)
        for _ in range(BLOCK - SETTLE if timed is not None else 0):  # the session of the rounds before: nothing settles
            assert timed is not None  # for the type checker, as below
            parts.add(infer_parts_round(timed, inspector, images))
        for number in range(BLOCK if backbone is not None else 0):
            assert backbone is not None  # for the type checker: the range is empty without it
            milliseconds = backbone_round(inspector, backbone, images)
            if number >= SETTLE:
                alone.add([milliseconds])
        if (now := resident_kib()) is not None:
            memory.add([(len(memory) + 1) * BLOCK, now])  # rounds that are left out of the latency can leak, too
        if progress is not None:
            progress(min(1.0, elapsed / seconds))
    total = rounds.rows[:, -1]
    backbone_ms = float(np.median(alone.rows)) if backbone is not None else None
    return {
        "rounds": len(rounds),
        "seconds": round(elapsed, 3),
        "warm_up_rounds": warm_up.count,
        "latency_ms": latency(rounds.rows),
        "infer_parts_ms": None
        if timed is None
        else {part: percentiles(parts.rows[:, column]) for column, part in enumerate(INFER_PARTS)},
        "backbone_ms": None if backbone_ms is None else percentiles(alone.rows[:, 0]),
        "images_per_second": float(batch * len(rounds) / (total.sum() / 1e3)),
        "ratio_infer_to_backbone": None if backbone_ms is None else float(np.median(rounds.rows[:, 2]) / backbone_ms),
        "ratio_total_to_backbone": None if backbone_ms is None else float(np.median(total) / backbone_ms),
        "transfers": transfers,
        "memory": {"host": _host_memory(memory), "device": device_memory(inspector.backend)},
    }


def _host_memory(samples: Record) -> dict[str, Any]:
    """Return resident memory; its growth is per 1,000 rounds, each with a round of the backbone."""
    peak = peak_kib()
    slope = None if len(samples) == 0 else fit_slope(samples.rows[:, 0] / 1e3, samples.rows[:, 1])
    reason = NOT_LINUX if peak is None else None
    if peak is not None and slope is None:
        reason = f"{len(samples)} samples are too few for a slope: measure longer"
    return {
        "peak_kib": peak,
        "growth_kib_per_1000_rounds": None if slope is None else slope.value,
        "growth_interval": None if slope is None else [slope.low, slope.high],
        "reason": reason,
    }


class WarmUp:
    """Rounds of a warm-up, and the seconds of one round at its end."""

    def __init__(self, count: int, seconds_a_round: float) -> None:
        self.count = count
        self.seconds_a_round = seconds_a_round


def warm_up_rounds(run: Callable[[], object], limits_s: tuple[float, float]) -> WarmUp:
    """Run until two successive windows of rounds have medians within 10 %, within limits of the time in seconds."""
    times: list[float] = []
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < limits_s[1]:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
        # A least time as well: clocks of a processor rise for a second or so, and two slow windows can be alike.
        if elapsed >= limits_s[0] and len(times) >= 2 * _WINDOW:
            earlier, later = statistics.median(times[-2 * _WINDOW : -_WINDOW]), statistics.median(times[-_WINDOW:])
            if abs(later - earlier) <= 0.1 * earlier:
                break
    return WarmUp(len(times), statistics.median(times[-_WINDOW:]))


def _part_progress(progress: Callable[[float], None] | None, index: int, count: int) -> Callable[[float], None] | None:
    """Return the progress callback of one part among several of equal length."""
    if progress is None:
        return None
    return lambda share: progress((index + share) / count)


def machine() -> dict[str, Any]:
    """Return processor, system and versions."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        **package_versions(),
    }
