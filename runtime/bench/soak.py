"""Soak test: a very long run of inferences in one process, to find growth of memory or latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array, Float64Array
from flawscope.errors import ArgumentError, GateError
from flawscope.resident_memory import peak_kib, resident_kib
from flawscope.runtime.bench.machine_state import machine_state
from flawscope.runtime.bench.measurement import NOT_LINUX, identity, machine
from flawscope.runtime.bench.rounds import Record, golden_images, one_round, percentiles
from flawscope.runtime.bench.trend import Slope, fit_slope
from flawscope.runtime.inspector import Inspector

LEAST_SCORINGS, MOST_SCORINGS = 1_000, 1_000_000_000
SAMPLES = 200  # also the points of the plot
WARM_UP_SHARE = 0.1
"""Share of the scorings, at the start, that is left out of the slopes: heaps and caches are still filling then."""
MEMORY_BOUND_KIB = 1.0
"""Growth of memory in KiB per 1,000 scorings that is tolerated."""
MEMORY_STEPS_KIB = 64.0
"""Growth of memory in KiB over the whole fitted run that is tolerated: a heap settles in steps of pages. Below 64,000
fitted scorings this is the larger of the two bounds."""
LATENCY_BOUND_SHARE = 1e-4
"""Change of the median latency per 1,000 scorings, as a share of it, that is tolerated: 1 % over 100,000 scorings."""
NO_SLOPE, GROWS, FALLS, UNKNOWN = "indistinguishable from zero", "grows", "falls", "not known"
WITHIN_BOUND = f"{NO_SLOPE} within the bound"


def soak(
    inspector: Inspector, scorings: int, *, batch: int = 1, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Score the golden images over and over, through all stages, and fit the slopes of memory and latency.

    The run is divided into 200 samples (or one per round, if there are fewer rounds), each with the resident memory at
    its end and the median latency of its rounds. Every score and every map must equal the first one, bit for bit.

    Args:
        inspector: The loaded bundle.
        scorings: Images to score, at least 1,000; rounded up to whole rounds.
        batch: Images per round.
        progress: Called with the number of images scored so far.

    Returns:
        Per quantity the slope per 1,000 scorings after the first 10 %, its 95 % interval, the bound and the verdict;
        the samples; machine, versions and state. `is_growing` says whether memory grows beyond the bound.

    Raises:
        ArgumentError: If scorings or batch are out of range.
        GateError: If a score or a map changes.
    """
    if not LEAST_SCORINGS <= scorings <= MOST_SCORINGS:
        raise ArgumentError(
            f"soak: expected {LEAST_SCORINGS:,} to {MOST_SCORINGS:,} scorings, got {scorings:,}. "
            "Fewer are not enough to fit a slope."
        )
    inspector.check_batch(batch)
    encoded = golden_images(inspector)
    # The golden images in batches, cyclically: after this many groups the sequence repeats, so each group has one
    # expected result, and maps of different batches (whose rounding may differ) are never compared.
    groups = [
        [(number * batch + place) % len(encoded) for place in range(batch)]
        for number in range(len(encoded) // math.gcd(len(encoded), batch))
    ]
    rounds = -(-scorings // batch)
    samples = min(SAMPLES, rounds)
    record = Record(3, samples)
    # Latencies of one sample, overwritten by the next: keeping all would be growth that the soak itself causes.
    window = np.full(-(-rounds // samples), np.nan)
    expected: list[tuple[Float32Array, Float32Array] | None] = [None] * len(groups)
    before = machine_state()
    start = 0
    for end in _sample_ends(rounds, samples):
        for offset in range(end - start):
            group = (start + offset) % len(groups)
            times, maps, scores = one_round(inspector, [encoded[index] for index in groups[group]])
            window[offset] = times[-1]
            reference = expected[group]
            if reference is None:
                expected[group] = maps.copy(), scores.copy()
            elif not (_same_bits(reference[0], maps) and _same_bits(reference[1], scores)):
                raise _changed(inspector, groups[group], (start + offset) * batch, reference, (maps, scores))
        resident = resident_kib()
        record.add([end * batch, np.nan if resident is None else resident, float(np.median(window[: end - start]))])
        start = end
        if progress is not None:
            progress(end * batch)
    return _figures(inspector, batch, record.rows, {"before": before, "after": machine_state()})


def _figures(inspector: Inspector, batch: int, rows: Float64Array, state: dict[str, Any]) -> dict[str, Any]:
    """Return the figures from rows of scorings so far, resident KiB and median latency in milliseconds."""
    count, resident, latency = rows.T
    is_fitted = count > WARM_UP_SHARE * count[-1]
    thousands = count[is_fitted] / 1e3
    has_memory = not np.isnan(resident).any()
    memory_bound = max(MEMORY_BOUND_KIB, MEMORY_STEPS_KIB / float(thousands[-1] - thousands[0]))
    memory = _judge_slope(fit_slope(thousands, resident[is_fitted]) if has_memory else None, memory_bound)
    bound_us = 1e3 * LATENCY_BOUND_SHARE * float(np.median(latency[is_fitted]))
    return {
        **identity(inspector),
        "batch": batch,
        "scorings": int(count[-1]),
        "samples": len(rows),
        "warm_up_share": WARM_UP_SHARE,
        "scores": "bit-identical",
        "is_growing": memory["verdict"] == GROWS,
        "memory": {
            "unit": "KiB per 1,000 scorings",
            **memory,
            "first_kib": float(resident[0]) if has_memory else None,
            "last_kib": float(resident[-1]) if has_memory else None,
            "peak_kib": peak_kib(),
            "reason": None if has_memory else NOT_LINUX,
        },
        "latency": {
            "unit": "microseconds per 1,000 scorings, of one round",
            **_judge_slope(fit_slope(thousands, 1e3 * latency[is_fitted]), bound_us),
            "median_ms": percentiles(latency[is_fitted]),
        },
        "series": {
            "scorings": [int(value) for value in count],
            "resident_kib": [float(value) for value in resident] if has_memory else None,
            "latency_ms": [float(value) for value in latency],
        },
        "input": list(inspector.manifest.input.size),
        "machine": machine(),
        "state": state,
    }


def _judge_slope(slope: Slope | None, bound: float) -> dict[str, Any]:
    """Return a slope with its interval and verdict.

    `resolves_bound` says whether half the interval is within the bound: if not, a slope above the bound may have gone
    undetected.
    """
    if slope is None:
        return {"slope": None, "interval": None, "bound": bound, "verdict": UNKNOWN, "resolves_bound": False}
    # Noise first: a slope must be distinguishable from zero before its size means anything.
    if slope.holds_zero:
        verdict = NO_SLOPE
    elif abs(slope.value) <= bound:
        verdict = WITHIN_BOUND
    else:
        verdict = GROWS if slope.value > 0 else FALLS
    return {
        "slope": slope.value,
        "interval": [slope.low, slope.high],
        "bound": bound,
        "verdict": verdict,
        "resolves_bound": (slope.high - slope.low) / 2 <= bound,
    }


def _sample_ends(rounds: int, samples: int) -> list[int]:
    """Return the round at which each sample ends."""
    return [rounds * number // samples for number in range(1, samples + 1)]


def _same_bits(first: Float32Array, second: Float32Array) -> bool:
    """Whether two float32 arrays hold the same bits."""
    # As integers: NaN equals itself then, and 0.0 differs from -0.0.
    return bool(np.array_equal(first.view(np.uint32), second.view(np.uint32)))


def _changed(
    inspector: Inspector,
    images: Sequence[int],
    scored: int,
    expected: tuple[Float32Array, Float32Array],
    got: tuple[Float32Array, Float32Array],
) -> GateError:
    """Return the error for the first image of a round whose score or map changed.

    `expected` and `got` are maps and scores of the round, `scored` the number of images before it.
    """
    row, quantity, old, new = next(
        (row, quantity, old[row], new[row])
        for row in range(len(images))
        for quantity, old, new in (
            ("score", expected[1], got[1]),
            ("largest value of the map", expected[0], got[0]),
        )
        if not _same_bits(old[row : row + 1], new[row : row + 1])
    )
    name = inspector.manifest.golden_of(inspector.precision)[images[row]].file
    return GateError(
        f"soak: {name}: expected the same score and map in every scoring, bit for bit, and the {quantity} was "
        f"{float(old.max())!r}; got {float(new.max())!r} at scoring {scored + row + 1:,}. Memory or the processor "
        "is faulty, or the backend does not repeat itself: see flawscope doctor."
    )
