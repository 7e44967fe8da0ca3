"""Several cameras on one machine: images per second of all, and how long each image waits for its decision."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.errors import ArgumentError, DeviceError
from flawscope.runtime.bench.machine_state import machine_state
from flawscope.runtime.bench.measurement import WARM_UP_S, identity, machine, warm_up_rounds
from flawscope.runtime.bench.rounds import BLOCK, SETTLE, check_seconds, golden_images, percentiles
from flawscope.runtime.inspector import Inspector

__all__ = ["ARRANGEMENTS", "MOST_CAMERAS", "check_cameras", "several_cameras"]

ARRANGEMENTS = ("alone", "shared", "own")
"""One camera; all with one inspector, whose thread takes images as they come; all with an inspector each."""
MOST_CAMERAS = 64
_LEAST_TURNS = 3
_TURNS = 10  # that the measuring time is shared out to


@dataclass
class _Measured:
    """What the turns of one arrangement gave.

    Attributes:
        images: Counted images of each camera.
        seconds: Seconds of each camera, from the end of the last image that is left out to the end of its last one.
        times_ms: Milliseconds from each counted image to its decision.
        rates: Images per second of all cameras in each turn.
    """

    images: list[int]
    seconds: list[float]
    times_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def add(self, ends: Sequence[Sequence[float]], times_ms: Sequence[Sequence[float]]) -> None:
        """Add one turn: per camera the end of each image in seconds, and its milliseconds."""
        rate = 0.0
        for camera, (end, took) in enumerate(zip(ends, times_ms, strict=True)):
            count, seconds = len(end) - SETTLE, end[-1] - end[SETTLE - 1]
            self.images[camera] += count
            self.seconds[camera] += seconds
            self.times_ms += took[SETTLE:]
            rate += count / seconds
        self.rates.append(rate)

    @property
    def images_per_second(self) -> float:
        """Images per second of all cameras together."""
        return sum(count / seconds for count, seconds in zip(self.images, self.seconds, strict=True))


def check_cameras(cameras: int) -> None:
    """Raise ArgumentError unless so many cameras can be measured."""
    if not 2 <= cameras <= MOST_CAMERAS:
        raise ArgumentError(
            f"cameras: expected 2 to {MOST_CAMERAS}, got {cameras}. One camera is measured beside them anyway."
        )


def several_cameras(
    bundle: Path,
    cameras: int,
    *,
    seconds: float = 10.0,
    progress: Callable[[float], None] | None = None,
    **loaded: Any,
) -> dict[str, Any]:
    """Measure one camera and several ones, in turns.

    Each camera is a thread that gives one encoded image after the other, as fast as it gets decisions. `shared` and
    `own` are measured both: which is faster depends on backend and cores.

    Args:
        bundle: Path of the bundle; it is loaded once for each camera.
        cameras: Their number, 2 to 64.
        seconds: Measuring time of all together; at least this long, and at least three turns.
        progress: Called with the completed share, 0 to 1.
        loaded: Arguments of `Inspector.load`.

    Returns:
        Under `cameras` a row for each of `ARRANGEMENTS`: number of cameras, images, images per second of all, of the
        slowest and of the fastest camera, percentiles in milliseconds from image to decision, waiting included, and
        the ratios of throughput and median to one camera.

    Raises:
        ArgumentError: If cameras or seconds are out of range.
        BackendError: If the backend is not available.
        DeviceError: If an image has no decision.
    """
    check_cameras(cameras)
    check_seconds(seconds)
    with contextlib.ExitStack() as stack:
        inspectors = [stack.enter_context(Inspector.load(bundle, **loaded)) for _ in range(cameras)]
        first = inspectors[0]
        encoded = golden_images(first)
        before = machine_state()
        warm_up = warm_up_rounds(lambda: [inspector(encoded[0]) for inspector in inspectors], WARM_UP_S)
        measured, elapsed = _in_turns(inspectors, encoded, seconds, progress)
        alone = measured["alone"]
        return {
            **identity(first),
            "seconds": round(elapsed, 3),
            "turns": len(alone.rates),
            "warm_up_rounds": warm_up.count,
            "cameras": [_row(name, part, alone) for name, part in measured.items()],
            "input": list(first.manifest.input.size),
            "machine": machine(),
            "state": {"before": before, "after": machine_state()},
        }


def _in_turns(
    inspectors: Sequence[Inspector],
    encoded: Sequence[bytes],
    seconds: float,
    progress: Callable[[float], None] | None,
) -> tuple[dict[str, _Measured], float]:
    """Measure all arrangements in turns, each beginning with another one; return the seconds of all, too."""
    counts = {"alone": 1, "shared": len(inspectors), "own": len(inspectors)}
    measured = {name: _Measured([0] * count, [0.0] * count) for name, count in counts.items()}
    part_s = seconds / (_TURNS * len(ARRANGEMENTS))
    started, turns = time.perf_counter(), 0
    with ThreadPoolExecutor(len(inspectors), "camera") as threads:
        while (elapsed := time.perf_counter() - started) < seconds or turns < _LEAST_TURNS:
            for step in range(len(ARRANGEMENTS)):
                name = ARRANGEMENTS[(turns + step) % len(ARRANGEMENTS)]
                with _deciders(name, inspectors) as deciders:
                    measured[name].add(*_one_turn(threads, deciders, encoded, part_s))
            turns += 1
            if progress is not None:
                progress(min(1.0, elapsed / seconds))
    return measured, elapsed


@contextlib.contextmanager
def _deciders(name: str, inspectors: Sequence[Inspector]) -> Iterator[list[Callable[[bytes], None]]]:
    """Yield for each camera of an arrangement what decides on its images."""
    if name == "alone":
        yield [lambda image: _decide(inspectors[0], image)]
    elif name == "own":
        yield [lambda image, own=inspector: _decide(own, image) for inspector in inspectors]  # type: ignore[misc]
    else:
        # A thread of its own with a queue, as on a line, and no lock: a lock may be taken again and again by the camera
        # that has just released it, and the others would starve.
        with ThreadPoolExecutor(1, "inspector") as thread:
            yield [lambda image: thread.submit(_decide, inspectors[0], image).result()] * len(inspectors)


def _one_turn(
    threads: ThreadPoolExecutor, deciders: Sequence[Callable[[bytes], None]], encoded: Sequence[bytes], part_s: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Run all cameras at once; return per camera the end of each image in seconds, and its milliseconds."""
    begin, stop = threading.Barrier(len(deciders)), threading.Event()

    def run(camera: int) -> tuple[list[float], list[float]]:
        ends: list[float] = []
        times_ms: list[float] = []
        begin.wait()
        until = time.perf_counter() + part_s
        # Each camera starts with another image, so that not all decode the same one.
        while not stop.is_set() and (time.perf_counter() < until or len(ends) < BLOCK):
            before = time.perf_counter()
            deciders[camera](encoded[(camera + len(ends)) % len(encoded)])
            ends.append(time.perf_counter())
            times_ms.append(1e3 * (ends[-1] - before))
        return ends, times_ms

    runs = [threads.submit(run, camera) for camera in range(len(deciders))]
    try:
        results = [one.result() for one in runs]
    finally:
        stop.set()  # after an error or Ctrl-C the others must not go on
    return [ends for ends, _ in results], [times_ms for _, times_ms in results]


def _decide(inspector: Inspector, image: bytes) -> None:
    """Inspect one image as a user of the library does, and insist on a decision."""
    result = inspector(image)
    # Without thresholds or for an odd golden image the decision is no measure, but a fault without a score is.
    if result.decision == "fault" and result.score is None:
        raise DeviceError(f"bench: expected a decision on a golden image, got a fault: {result.reason}.")


def _row(name: str, part: _Measured, alone: _Measured) -> dict[str, Any]:
    """Return the figures of one arrangement."""
    each = [count / seconds for count, seconds in zip(part.images, part.seconds, strict=True)]
    latency_ms = percentiles(np.array(part.times_ms))
    return {
        "inspectors": name,
        "cameras": len(part.images),
        "images": sum(part.images),
        "images_per_second": part.images_per_second,
        "images_per_second_slowest": min(each),
        "images_per_second_fastest": max(each),
        "latency_ms": latency_ms,
        "ratio_to_alone": {
            "images_per_second": part.images_per_second / alone.images_per_second,
            "images_per_second_quartiles": [
                float(value) for value in np.percentile(np.array(part.rates) / np.array(alone.rates), [25, 75])
            ],
            "p50": latency_ms["p50"] / float(np.median(alone.times_ms)),
        },
    }
