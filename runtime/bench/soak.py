"""Soak test: very many inferences in one process, to find growth of memory or latency."""

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
SAMPLES = 200
WARM_UP_SHARE = 0.1
"""Share of the scorings, at the start, that no slope is fitted to: heaps and caches still fill then."""
MEMORY_BOUND_KIB = 1.0
"""Growth in KiB per 1,000 scorings up to which memory counts as not growing."""
MEMORY_STEPS_KIB = 64.0
"""Growth in KiB over all scorings that are fitted which counts as none, however few they are: a heap settles in steps
of pages. It is the larger of the two bounds below 64,000 scorings that are fitted."""
LATENCY_BOUND_SHARE = 1e-4
"""Change of the median latency per 1,000 scorings, as a share of it, up to which it counts as not changing: 1 % over
100,000."""
NO_SLOPE, GROWS, FALLS, UNKNOWN = "indistinguishable from zero", "grows", "falls", "not known"
WITHIN_BOUND = f"{NO_SLOPE} within the bound"


def soak(
    inspector: Inspector, scorings: int, *, batch: int = 1, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Score the golden images over and over, through all stages, and fit the slopes of memory and latency.

    A sample is the resident memory at its end and the median latency of its scorings; there are 200 or one for every
    round. Every score and every map must be the same, bit for bit, as the first time.

    Args:
        inspector: The loaded bundle.
        scorings: Images to score, at least 1,000; rounded up to whole rounds.
        batch: Images per round.
        progress: Told the images scored so far.

    Returns:
        Per quantity the slope per 1,000 scorings after the first 10 %, its 95 % interval, the bound and the verdict;
        the samples; and what a reader needs to judge them. `is_growing` says whether memory grows beyond the bound.

    Raises:
        ArgumentError: If scorings or batch are out of range.
        GateError: If a score or a map changes.
    """
    if not LEAST_SCORINGS <= scorings <= MOST_SCORINGS:
        raise ArgumentError(
            f"soak: expected {LEAST_SCORINGS:,} to {MOST_SCORINGS:,} scorings, got {scorings:,}. "
            "Fewer tell nothing about a slope."
        )
    inspector.check_batch(batch)
    encoded = golden_images(inspector)
    groups = [
        [(number * batch + place) % len(encoded) for place in range(batch)]
        for number in range(len(encoded) // math.gcd(len(encoded), batch))
    ]
    rounds = -(-scorings // batch)
    samples = min(SAMPLES, rounds)
    record = Record(3, samples)
    # One window is used again and again: the soak must not find its own notes.
    window = np.full(-(-rounds // samples), np.nan)
    expected: list[tuple[Float32Array, Float32Array] | None] = [None] * len(groups)
    before = machine_state()
    done = 0
    for end in _ends(rounds, samples):
        for place in range(end - done):
            group = (done + place) % len(groups)
            times, maps, scores = one_round(inspector, [encoded[index] for index in groups[group]])
            window[place] = times[-1]
            known = expected[group]
            if known is None:
                expected[group] = maps.copy(), scores.copy()
            elif not (_same_bits(known[0], maps) and _same_bits(known[1], scores)):
                raise _changed(inspector, groups[group], (done + place) * batch, known, (maps, scores))
        resident = resident_kib()
        record.add([end * batch, np.nan if resident is None else resident, float(np.median(window[: end - done]))])
        done = end
        if progress is not None:
            progress(done * batch)
    return _figures(inspector, batch, record.rows, {"before": before, "after": machine_state()})


def _figures(inspector: Inspector, batch: int, rows: Float64Array, state: dict[str, Any]) -> dict[str, Any]:
    count, resident, latency = rows.T
    kept = count > WARM_UP_SHARE * count[-1]
    thousands = count[kept] / 1e3
    is_known = not np.isnan(resident).any()
    memory_bound = max(MEMORY_BOUND_KIB, MEMORY_STEPS_KIB / float(thousands[-1] - thousands[0]))
    memory = _judged(fit_slope(thousands, resident[kept]) if is_known else None, memory_bound)
    bound_us = 1e3 * LATENCY_BOUND_SHARE * float(np.median(latency[kept]))
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
            "first_kib": float(resident[0]) if is_known else None,
            "last_kib": float(resident[-1]) if is_known else None,
            "peak_kib": peak_kib(),
            "reason": None if is_known else NOT_LINUX,
        },
        "latency": {
            "unit": "microseconds per 1,000 scorings, of one round",
            **_judged(fit_slope(thousands, 1e3 * latency[kept]), bound_us),
            "median_ms": percentiles(latency[kept]),
        },
        "series": {
            "scorings": [int(value) for value in count],
            "resident_kib": [float(value) for value in resident] if is_known else None,
            "latency_ms": [float(value) for value in latency],
        },
        "input": list(inspector.manifest.input.size),
        "machine": machine(),
        "state": state,
    }


def _judged(slope: Slope | None, bound: float) -> dict[str, Any]:
    """Return a slope with its interval and verdict.

    `resolves_bound` says whether half the interval is within the bound: where it is not, a slope above the bound
    could have stayed unseen.
    """
    if slope is None:
        return {"slope": None, "interval": None, "bound": bound, "verdict": UNKNOWN, "resolves_bound": False}
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


def _ends(rounds: int, samples: int) -> list[int]:
    """Return the round at which each sample ends."""
    return [rounds * number // samples for number in range(1, samples + 1)]


def _same_bits(one: Float32Array, other: Float32Array) -> bool:
    """Whether two float32 arrays hold the same bits, NaN included."""
    return bool(np.array_equal(one.view(np.uint32), other.view(np.uint32)))


def _changed(
    inspector: Inspector,
    images: Sequence[int],
    scored: int,
    known: tuple[Float32Array, Float32Array],
    now: tuple[Float32Array, Float32Array],
) -> GateError:
    """Return the error for the first image of a round that does not score as it did before."""
    place, what, old, new = next(
        (place, what, old[place], new[place])
        for place in range(len(images))
        for what, old, new in (("score", known[1], now[1]), ("largest value of the map", known[0], now[0]))
        if not _same_bits(old[place : place + 1], new[place : place + 1])
    )
    name = inspector.manifest.golden_of(inspector.precision)[images[place]].file
    return GateError(
        f"soak: {name}: expected the same score and map in every scoring, bit for bit, and the {what} was "
        f"{float(old.max())!r}; got {float(new.max())!r} at scoring {scored + place + 1:,}. Memory or the processor "
        "is faulty, or the backend does not repeat itself: see flawscope doctor."
    )
