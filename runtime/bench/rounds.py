"""One round of a measurement, stage by stage, and the statistics of many rounds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array, Float64Array, UInt8Array
from flawscope.errors import ArgumentError
from flawscope.imaging.images import decode_image, prepare
from flawscope.runtime.backends import Session
from flawscope.runtime.decision import decide, find_boxes
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.scorers.timed import PartClock, TimedScorer

STAGES = ("read", "prepare", "infer", "decide", "total")
BLOCK = 12
"""Successive rounds of one configuration before the next one has its turn."""
SETTLE = 2
"""Rounds left out at the start of a block: the threads of the other session still spin then."""
_MOST_ROWS_AHEAD = 100_000  # 4 MB for five stages
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def golden_images(inspector: Inspector) -> list[bytes]:
    """Return the encoded golden images of a bundle; every loaded one has some."""
    return [inspector.bundle.read(golden.file) for golden in inspector.manifest.golden_of(inspector.precision)]


def check_seconds(seconds: float) -> None:
    """Raise ArgumentError unless a measuring time is between 0.1 s and a day."""
    if not 0.1 <= seconds <= 86_400:
        raise ArgumentError(f"seconds: expected 0.1 to 86400, got {seconds}.")


def prepared(inspector: Inspector, images: Sequence[bytes]) -> UInt8Array:
    """Return encoded images as the input of a graph, uint8 [N, H, W, 3]."""
    return np.stack([prepare(decode_image(data), inspector.manifest.input) for data in images])


def one_round(inspector: Inspector, encoded: Sequence[bytes]) -> tuple[list[float], Float32Array, Float32Array]:
    """Run one batch of encoded images through all stages.

    It repeats the steps of `Inspector.stream` with a mark after each, as stages are timed per batch and not per image.

    Returns:
        Milliseconds per stage as in `STAGES`, anomaly maps float32 [N, H, W], scores float32 [N].
    """
    manifest, thresholds = inspector.manifest, inspector.thresholds
    marks = [time.perf_counter()]
    decoded = [decode_image(data) for data in encoded]
    marks.append(time.perf_counter())
    images: UInt8Array = np.stack([prepare(image, manifest.input) for image in decoded])
    marks.append(time.perf_counter())
    maps, scores = inspector.infer(images)
    marks.append(time.perf_counter())
    for image, anomaly_map, value in zip(decoded, maps, scores, strict=True):
        decide(float(value), anomaly_map, thresholds)  # for its time alone
        if thresholds is not None:
            threshold, smallest = thresholds.pixel.value, inspector.in_force.min_area_px
            find_boxes(anomaly_map, threshold, smallest, manifest.input, (image.shape[0], image.shape[1]))
    marks.append(time.perf_counter())
    stages = [1e3 * (after - before) for before, after in itertools.pairwise(marks)]
    return [*stages, 1e3 * (marks[-1] - marks[0])], maps, scores


def backbone_round(inspector: Inspector, backbone: Session, encoded: Sequence[bytes]) -> float:
    """Read and resize one batch, then return the milliseconds that the backbone alone takes for it."""
    images = prepared(inspector, encoded)
    before = time.perf_counter()
    backbone.infer(images)
    return 1e3 * (time.perf_counter() - before)


def infer_parts_round(scorer: TimedScorer, inspector: Inspector, encoded: Sequence[bytes]) -> list[float]:
    """Read and resize one batch, then return the milliseconds of each of `INFER_PARTS` for it."""
    images = prepared(inspector, encoded)
    clock = PartClock()
    scorer.score_marked(images, clock.mark)
    return clock.milliseconds


def configuration_name(figures: Mapping[str, Any]) -> str:
    """Return the measured configuration as BACKEND:PATH, with the precision if it is not FP32."""
    precision = "" if figures["precision"] == "fp32" else f":{figures['precision']}"
    return f"{figures['backend']}:{figures['path']}{precision}"


def percentiles(times: Float64Array) -> dict[str, float]:
    """Return p50, p90, p99 and p99.9 of a series, in its unit."""
    return {name: float(np.percentile(times, share)) for name, share in _PERCENTILES.items()}


def latency(times: Float64Array) -> dict[str, dict[str, float]]:
    """Return percentiles per stage of float64 [rounds, stages]."""
    return {stage: percentiles(times[:, column]) for column, stage in enumerate(STAGES)}


def count_transfers(inspector: Inspector, encoded: Sequence[bytes]) -> dict[str, Any]:
    """Return the bytes per image that are copied to the session and back, counted on its input and output arrays.

    On the path `kernel` the outputs are the patches, unless the bank is on the device.
    """
    images = prepared(inspector, encoded)
    outputs = inspector.scorer.outputs(images)
    return {
        "to_session_bytes": images.nbytes / len(images),
        "from_session_bytes": sum(array.nbytes for array in outputs.values()) / len(images),
        "outputs": {name: [str(array.dtype), *array.shape[1:]] for name, array in outputs.items()},
    }


class Record:
    """Preallocated rows of numbers, so that recording a measurement does not disturb it.

    Args:
        columns: Numbers in a row.
        expected: Likely number of rows; beyond it, the size doubles.
    """

    def __init__(self, columns: int, expected: int) -> None:
        # Written to, as Linux maps memory at the first write: it would count as growth of the process that is measured.
        self._rows = np.full((min(max(64, expected), _MOST_ROWS_AHEAD), columns), np.nan)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, row: Sequence[float]) -> None:
        """Add one row."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.full_like(self._rows, np.nan)])
        self._rows[self._count] = row
        self._count += 1

    @property
    def rows(self) -> Float64Array:
        """float64 [rows, columns]: a view of the rows so far."""
        return self._rows[: self._count]
