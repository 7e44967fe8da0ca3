"""Shared by the parts of the kernel benchmark: data, turns, timings, bandwidths and targets."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array

DATA = ("clustered", "gaussian")
CENTRES, NOISE = 64, 0.5
GENERATED_ROWS = 4096
"""Rows generated at a time: generating must not raise the peak of a process whose peak memory is measured."""

SHORT_S, WARM_S, TURN_S = 0.05, 0.02, 0.06
"""A call shorter than the first is repeated untimed for the second time and timed for the third."""

STAT = Path("/proc/stat")

QUIET_SLICE_S, QUIET_SLICES, LONGEST_REST_S = 0.01, 2, 1.0
"""Linux adds up the time of a running thread once per tick, 4 ms or 10 ms: a single quiet slice may be chance."""


def patches(kind: str, count: int, channels: int, seed: int, stream: int = 0) -> Float32Array:
    """Return rows like the patches of a backbone, or rows without structure.

    Args:
        kind: `clustered`: 64 centres drawn from N(0, 1) plus N(0, 0.5²), then ReLU. `gaussian`: N(0, 1), independent.
        count: Number of rows N.
        channels: Number of columns D.
        seed: Same seed and channels, same centres.
        stream: Rows of two streams are independent but share the centres: 0 for a bank, 1 for queries.

    Returns:
        float32 [N, D].
    """
    centres = np.random.default_rng([seed, channels]).standard_normal((CENTRES, channels), dtype=np.float32)
    generator = np.random.default_rng([seed, channels, 1 + stream])
    rows = np.empty((count, channels), np.float32)
    for start in range(0, count, GENERATED_ROWS):
        block = rows[start : start + GENERATED_ROWS]
        generator.standard_normal(out=block, dtype=np.float32)
        if kind == "clustered":
            block *= NOISE
            block += centres[generator.integers(CENTRES, size=len(block))]
            np.maximum(block, 0, out=block)
    return rows


def rest() -> None:
    """Sleep until no thread of this process is running any more.

    Worker threads of OpenMP and OpenBLAS spin for a while after a call, waiting for another one, and would take the
    cores from the next contestant.
    """
    limit, quiet = time.perf_counter() + LONGEST_REST_S, 0
    while quiet < QUIET_SLICES and time.perf_counter() < limit:
        before = time.process_time()
        time.sleep(QUIET_SLICE_S)
        quiet = quiet + 1 if time.process_time() - before < QUIET_SLICE_S / 10 else 0


def clock(call: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def turn(call: Callable[[], Any], expected_s: float) -> list[float]:
    """Return the seconds of the calls of one turn.

    A short call is made untimed first, because the turn of another contestant has emptied the caches and put the worker
    threads and the processor to sleep, and is then repeated.
    """
    rest()
    if expected_s < SHORT_S:
        calls_for(call, WARM_S)
    return calls_for(call, TURN_S)


def calls_for(call: Callable[[], Any], seconds: float) -> list[float]:
    """Return the seconds of as many calls, at least one, as it takes to reach a time."""
    times = [clock(call)]
    while sum(times) < seconds:
        times.append(clock(call))
    return times


class Elsewhere:
    """Share of the cores that other processes used since this object was made: they disturb the figures."""

    def __init__(self) -> None:
        self._all_s, self._our_s, self._started = _all_s(), _our_s(), time.perf_counter()

    def share(self) -> float | None:
        """Return the share of all cores that other processes had, or None where the system does not tell."""
        all_s = _all_s()
        if all_s is None or self._all_s is None:
            return None
        other_s = (all_s - self._all_s) - (_our_s() - self._our_s)
        # Both counters move in ticks, so the difference may come out slightly negative.
        return max(0.0, other_s / (time.perf_counter() - self._started) / (os.cpu_count() or 1))


def _all_s() -> float | None:
    """Return the processor time of all processes so far, or None where /proc/stat does not tell."""
    try:
        user, nice, system, _, _, irq, soft_irq, steal = map(int, STAT.read_text().split("\n")[0].split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def _our_s() -> float:
    """Return the processor time of this process and of its children; children count once they have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def race(
    contestants: Mapping[str, Callable[[], Any]],
    seconds: float,
    least: int = 5,
    expected_s: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Time contestants in turn, round after round.

    Args:
        contestants: Name -> call that is timed.
        seconds: Time after which no new round begins; there are at most 15 rounds.
        least: Number of rounds that run in any case.
        expected_s: Time of one call of each, if they were called before; otherwise each is called once first.

    Returns:
        Name -> median and interquartile range over rounds of the median call of a turn, rounds, calls.
    """
    if expected_s is None:
        expected_s = {name: clock(call) for name, call in contestants.items()}
    turns: dict[str, list[list[float]]] = {name: [] for name in contestants}
    started = time.perf_counter()
    # In turn, and not one after the other: a change of clocks or load meets all contestants alike.
    for finished in range(15):
        if finished >= least and time.perf_counter() - started >= seconds:
            break
        for name, call in contestants.items():
            turns[name].append(turn(call, expected_s[name]))
    return {name: summary(its_turns) for name, its_turns in turns.items()}


def summary(turns: list[list[float]]) -> dict[str, Any]:
    """Return median and interquartile range over turns of the median call of each."""
    medians = [statistics.median(times) for times in turns]
    low, high = np.percentile(medians, (25, 75))
    return {
        "median_s": statistics.median(medians),
        "iqr_s": float(high - low),
        "rounds": len(turns),
        "calls": sum(len(times) for times in turns),
    }


def copy_contestants(source: Float32Array, threads: int) -> dict[str, Callable[[], Any]]:
    """Return ways to copy an array: NumPy alone, NumPy on all threads (it releases the GIL), and torch."""
    import torch

    flat = source.reshape(-1)
    target = np.zeros_like(flat)
    cuts = [slice(len(flat) * i // threads, len(flat) * (i + 1) // threads) for i in range(threads)]
    parts = [(target[cut], flat[cut]) for cut in cuts]
    pool = ThreadPoolExecutor(threads)
    from_torch, to_torch = torch.from_numpy(flat), torch.from_numpy(target)
    return {
        "copy_numpy": lambda: np.copyto(target, flat),
        "copy_numpy_threads": lambda: list(pool.map(lambda part: np.copyto(*part), parts)),
        "copy_torch": lambda: to_torch.copy_(from_torch),
    }


def read_contestants(source: Float32Array, threads: int) -> dict[str, Callable[[], Any]]:
    """Return ways to read an array once and write nothing."""
    import torch

    flat = source.reshape(-1)
    parts = [flat[len(flat) * i // threads : len(flat) * (i + 1) // threads] for i in range(threads)]
    pool, tensor = ThreadPoolExecutor(threads), torch.from_numpy(flat)
    return {
        "read_numpy_threads": lambda: list(pool.map(np.max, parts)),
        "read_torch_amax": lambda: tensor.amax(),
        "read_torch_dot": lambda: torch.dot(tensor, tensor),
    }


def multiply_contestants(left: Float32Array, right: Float32Array, out: Float32Array) -> dict[str, Callable[[], Any]]:
    """Return ways to multiply left [N, D] by right [M, D] transposed into out [N, M]: torch's and NumPy's sgemm."""
    import torch

    tensors = torch.from_numpy(left), torch.from_numpy(right).T, torch.from_numpy(out)
    return {
        "sgemm_torch": lambda: torch.mm(tensors[0], tensors[1], out=tensors[2]),
        "sgemm_numpy": lambda: np.matmul(left, right.T, out=out),
    }


def fastest(timings: Mapping[str, Mapping[str, Any]], prefix: str) -> str:
    """Return the name of the contestant with the least median among those whose names begin with `prefix`."""
    return min((name for name in timings if name.startswith(prefix)), key=lambda name: timings[name]["median_s"])


def target(claim: str, required: float | None, values: Mapping[str, float], unit: str = "") -> dict[str, Any] | None:
    """Return whether a target is met in every case, or None if there is no case.

    Args:
        claim: The comparison in words.
        required: Least value, or largest where `unit` is `MB`. None: the figure is only shown.
        values: Case -> figure.
        unit: `MB` for memory, otherwise a ratio.
    """
    if not values:
        return None
    at_most = unit == "MB"
    worst = (max if at_most else min)(values, key=lambda case: values[case])
    reached = [
        required is not None and (value <= required if at_most else value >= required) for value in values.values()
    ]
    is_positive = all(value > 0 for value in values.values())
    return {
        "claim": claim,
        "required": required,
        "unit": unit,
        "cases": len(values),
        "cases_met": None if required is None else sum(reached),
        "worst": values[worst],
        "worst_case": worst,
        "geometric_mean": math.exp(statistics.fmean(map(math.log, values.values()))) if is_positive else None,
        "met": None if required is None else all(reached),
    }


def present(*targets: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the targets that have cases."""
    return [entry for entry in targets if entry is not None]
