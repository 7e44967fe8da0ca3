"""Several configurations of one bundle, measured in alternation so that all meet the machine in the same state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.bundle import PRECISIONS
from flawscope.errors import ArgumentError
from flawscope.runtime.backends import BACKENDS
from flawscope.runtime.bench.machine_state import machine_state
from flawscope.runtime.bench.measurement import WARM_UP_S, machine, warm_up_rounds
from flawscope.runtime.bench.rounds import (
    BLOCK,
    SETTLE,
    STAGES,
    Record,
    check_seconds,
    count_transfers,
    golden_images,
    latency,
    one_round,
)
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.scorers.base import PATHS

_LEAST_TURNS = 5
_CHOICES = {"backend": BACKENDS, "path": PATHS, "precision": PRECISIONS}


@dataclass(frozen=True)
class Configuration:
    """One way to run a bundle.

    Attributes:
        backend: One of `BACKENDS`.
        path: One of `PATHS`.
        precision: One of `PRECISIONS`.
    """

    backend: str
    path: str = "auto"
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.backend}:{self.path}:{self.precision}"


def parse_configuration(text: str) -> Configuration:
    """Return the configuration that BACKEND, BACKEND:PATH or BACKEND:PATH:PRECISION names.

    Raises:
        ArgumentError: If it has another form or a name is not known.
    """
    parts = [part.strip() for part in text.split(":")]
    if len(parts) > len(_CHOICES):
        raise ArgumentError(f"compare: expected BACKEND:PATH:PRECISION, got {text!r}.")
    for part, (kind, known) in zip(parts, _CHOICES.items(), strict=False):
        if part not in known:
            raise ArgumentError(
                f"compare: expected BACKEND:PATH:PRECISION, {kind} one of {', '.join(known)}, got {part!r} in {text!r}."
            )
    return Configuration(*parts)


def compare(
    bundle: Path,
    configurations: Sequence[Configuration],
    *,
    batch: int = 1,
    seconds: float = 10.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measure configurations of one bundle in turns of 12 rounds.

    Every turn is a block of each configuration; the one that begins moves on by one each time, so that none is always
    behind the same neighbour. The first two rounds of a block are left out. The same configuration may be named twice:
    the difference between the two is the noise.

    Args:
        bundle: Path of the bundle.
        configurations: At least two; ratios are to the first.
        batch: Images per round.
        seconds: Measuring time of all together; at least this long and at least 5 turns.
        progress: Told the share done, 0 to 1.

    Returns:
        Per configuration what was taken, percentiles in milliseconds, images per second, bytes per image, ratios
        of medians to the first with the quartiles of the ratio over turns, and the largest relative difference of a
        golden score from the first's.

    Raises:
        ArgumentError: If there are fewer than two configurations, or batch or seconds are out of range.
        BackendError: If a backend is not there.
    """
    if len(configurations) < 2:
        raise ArgumentError(
            f"compare: expected at least 2 configurations, got {len(configurations)}. "
            "Give --compare once for each, for example --compare cpu:graph --compare cpu:kernel."
        )
    check_seconds(seconds)
    with contextlib.ExitStack() as stack:
        inspectors = [
            stack.enter_context(
                Inspector.load(bundle, configuration.backend, configuration.path, configuration.precision)
            )
            for configuration in configurations
        ]
        first = inspectors[0]
        first.check_batch(batch)
        encoded = golden_images(first)
        images = [encoded[number % len(encoded)] for number in range(batch)]
        scores = [_golden_scores(inspector, encoded) for inspector in inspectors]
        before = machine_state()
        warm_up = warm_up_rounds(lambda: [one_round(inspector, images) for inspector in inspectors], WARM_UP_S)
        records = [Record(len(STAGES), round(1.5 * seconds / warm_up.seconds_a_round) + BLOCK) for _ in inspectors]
        started = time.perf_counter()
        turns = 0
        while (elapsed := time.perf_counter() - started) < seconds or turns < _LEAST_TURNS:
            for step in range(len(inspectors)):
                index = (turns + step) % len(inspectors)
                for number in range(BLOCK):
                    times, _, _ = one_round(inspectors[index], images)
                    if number >= SETTLE:
                        records[index].add(times)
            turns += 1
            if progress is not None:
                progress(min(1.0, elapsed / seconds))
        rows = [
            {
                "asked_for": str(configuration),
                "backend": inspector.backend,
                "backend_reason": inspector.backend_reason,
                "path": inspector.path,
                "precision": inspector.precision,
                "rounds": len(record),
                "latency_ms": latency(record.rows),
                "images_per_second": float(batch * len(record) / (record.rows[:, -1].sum() / 1e3)),
                "transfers": count_transfers(inspector, images),
                "ratio_to_first": _ratios(record, records[0]),
                "largest_score_difference": _difference(own, scores[0]),
            }
            for configuration, inspector, record, own in zip(configurations, inspectors, records, scores, strict=True)
        ]
        manifest = first.manifest
        return {
            "bundle": manifest.name,
            "digest": manifest.digest,
            "method": manifest.method,
            "batch": batch,
            "turns": turns,
            "seconds": round(elapsed, 3),
            "warm_up_rounds": warm_up.count,
            "compare": rows,
            "input": list(manifest.input.size),
            "machine": machine(),
            "state": {"before": before, "after": machine_state()},
        }


def _ratios(record: Record, first: Record) -> dict[str, Any]:
    """Return ratios of medians, and how the ratio of the totals scatters from turn to turn."""
    kept = BLOCK - SETTLE
    own, reference = (np.median(one.rows[:, -1].reshape(-1, kept), axis=1) for one in (record, first))
    quartiles = np.percentile(own / reference, (25, 75))
    ratio = np.median(record.rows, axis=0) / np.median(first.rows, axis=0)
    return {
        "infer": float(ratio[STAGES.index("infer")]),
        "total": float(ratio[STAGES.index("total")]),
        "total_quartiles": [float(value) for value in quartiles],
    }


def _golden_scores(inspector: Inspector, encoded: Sequence[bytes]) -> list[float]:
    return [float(one_round(inspector, [image])[2][0]) for image in encoded]


def _difference(scores: Sequence[float], first: Sequence[float]) -> float:
    """Return the largest difference of a score, relative to the largest score of the first."""
    scale = max(map(abs, first)) or 1.0
    return max(abs(one - other) for one, other in zip(scores, first, strict=True)) / scale
