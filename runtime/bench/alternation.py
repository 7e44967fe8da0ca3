"""`bench --compare`: configurations of one bundle, measured in alternation so that the machine's state is the same."""

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
from flawscope.runtime.scorers.scorer import PATHS

_LEAST_TURNS = 5  # fewer have no quartiles worth the name
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
        ArgumentError: If it has another form or a name is unknown.
    """
    parts = [part.strip() for part in text.split(":")]
    if ":".join(parts[:2]) in BACKENDS:  # as `openvino:gpu`, whose colon is part of the name
        parts[:2] = [":".join(parts[:2])]
    if len(parts) > len(_CHOICES):
        raise ArgumentError(f"compare: expected BACKEND:PATH:PRECISION, got {text!r}.")
    for part, (field, choices) in zip(parts, _CHOICES.items(), strict=False):  # later parts may be left out
        if part not in choices:
            raise ArgumentError(
                f"compare: expected BACKEND:PATH:PRECISION, {field} one of {', '.join(choices)}, got {part!r} in "
                f"{text!r}."
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
    """Measure configurations of one bundle in turns.

    In every turn each configuration has a block of 12 rounds. The configuration that begins moves on by one from turn
    to turn, so that none always runs after the same other one. The first two rounds of a block are left out. The same
    configuration may be named twice: the difference between the two is the noise.

    Args:
        bundle: Path of the bundle.
        configurations: At least two; ratios are relative to the first.
        batch: Images per round.
        seconds: Measuring time of all configurations together; at least this long and at least 5 turns.
        progress: Called with the completed share, 0 to 1.

    Returns:
        Per configuration the resolved backend and path, percentiles in milliseconds, images per second, bytes per
        image, ratios of medians to the first with the quartiles of the ratio over turns, and the largest relative
        difference of a golden score from the first's.

    Raises:
        ArgumentError: If there are fewer than two configurations, or batch or seconds are out of range.
        BackendError: If a backend is not available.
    """
    if len(configurations) < 2:
        raise ArgumentError(
            f"compare: expected at least 2 configurations, got {len(configurations)}. "
            "Give --compare once for each, for example --compare cpu:graph --compare cpu:kernel."
        )
    check_seconds(seconds)
    # All are open at the same time: opening in turns would measure cold caches and new thread pools.
    with contextlib.ExitStack() as stack:
        inspectors = [
            stack.enter_context(
                Inspector.load(bundle, configuration.backend, configuration.path, configuration.precision)
            )
            for configuration in configurations
        ]
        inspectors[0].check_batch(batch)
        encoded = golden_images(inspectors[0])
        images = [encoded[number % len(encoded)] for number in range(batch)]
        scores = [_golden_scores(inspector, encoded) for inspector in inspectors]
        before = machine_state()
        alternation = _alternate(inspectors, images, seconds, progress)
        rows = [
            {
                "asked_for": str(configuration),
                **_row(inspector, record, alternation.records[0], images),
                "largest_score_difference": _largest_difference(golden_scores, scores[0]),
            }
            for configuration, inspector, record, golden_scores in zip(
                configurations, inspectors, alternation.records, scores, strict=True
            )
        ]
        manifest = inspectors[0].manifest
        return {
            "bundle": manifest.name,
            "digest": manifest.digest,
            "method": manifest.method,
            "batch": batch,
            "turns": alternation.turns,
            "seconds": round(alternation.seconds, 3),
            "warm_up_rounds": alternation.warm_up_rounds,
            "compare": rows,
            "input": list(manifest.input.size),
            "machine": machine(),
            "state": {"before": before, "after": machine_state()},
        }


@dataclass(frozen=True)
class _Alternation:
    """The measured rounds: a record per configuration, turns, seconds of all turns, rounds of the warm-up."""

    records: list[Record]
    turns: int
    seconds: float
    warm_up_rounds: int


def _alternate(
    inspectors: Sequence[Inspector],
    images: Sequence[bytes],
    seconds: float,
    progress: Callable[[float], None] | None,
) -> _Alternation:
    """Run all inspectors in turns of one block each, until the time is over."""
    warm_up = warm_up_rounds(lambda: [one_round(inspector, images) for inspector in inspectors], WARM_UP_S)
    # Half as much again as is likely: growing a record would disturb the round after it.
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
    return _Alternation(records, turns, elapsed, warm_up.count)


def _row(inspector: Inspector, record: Record, first: Record, images: Sequence[bytes]) -> dict[str, Any]:
    """Return the figures of one configuration."""
    return {
        "backend": inspector.backend,
        "backend_reason": inspector.backend_reason,
        "path": inspector.path,
        "precision": inspector.precision,
        "rounds": len(record),
        "latency_ms": latency(record.rows),
        # From the sum of the totals and not from the clock, which ran on in the blocks of the others.
        "images_per_second": float(len(images) * len(record) / (record.rows[:, -1].sum() / 1e3)),
        "transfers": count_transfers(inspector, images),
        "ratio_to_first": _ratios(record, first),
    }


def _ratios(record: Record, first: Record) -> dict[str, Any]:
    """Return ratios of medians, and how the ratio of the totals scatters from turn to turn."""
    rounds_per_turn = BLOCK - SETTLE
    # One median per turn: the two blocks of a turn saw the same clocks and load, so their ratio has less noise.
    medians, first_medians = (
        np.median(rounds.rows[:, -1].reshape(-1, rounds_per_turn), axis=1) for rounds in (record, first)
    )
    quartiles = np.percentile(medians / first_medians, (25, 75))
    ratio = np.median(record.rows, axis=0) / np.median(first.rows, axis=0)
    return {
        "infer": float(ratio[STAGES.index("infer")]),
        "total": float(ratio[STAGES.index("total")]),
        "total_quartiles": [float(value) for value in quartiles],
    }


def _golden_scores(inspector: Inspector, encoded: Sequence[bytes]) -> list[float]:
    return [float(one_round(inspector, [image])[2][0]) for image in encoded]


def _largest_difference(scores: Sequence[float], first: Sequence[float]) -> float:
    """Return the largest difference of a score, relative to the largest score of the first configuration."""
    scale = max(map(abs, first)) or 1.0  # all scores are 0, perhaps
    return max(abs(score - reference) for score, reference in zip(scores, first, strict=True)) / scale
