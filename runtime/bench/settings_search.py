"""`bench --find-settings`: which threads, streams and batch are best on this machine, for one image and for many."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.errors import ArgumentError
from flawscope.runtime.backends import OWN_CHOICE, Cores
from flawscope.runtime.backends.cores import usable_cores
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.bench.machine_state import machine_state
from flawscope.runtime.bench.measurement import identity, machine, warm_up_rounds
from flawscope.runtime.bench.rounds import SETTLE, check_seconds, golden_images, one_round
from flawscope.runtime.inspector import Inspector

MANY = 8
"""Images of a batch where none is named, or as many as the bundle takes."""
AS_GOOD = 0.03
"""Relative difference up to which the earlier row is taken: the first is what runs without any option."""
_PASSES = 2  # there and back, so that a machine that becomes slower favours none
_LEAST_ROUNDS = 10  # of a row in a pass
_WARM_UP_S = (0.2, 2.0)


@dataclass
class _Row:
    """One setting with one batch, and the milliseconds of its rounds, from encoded images to decisions."""

    cores: Cores
    batch: int
    times: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        times = np.array(self.times)
        return {
            "threads": self.cores.threads,
            "streams": self.cores.streams,
            "batch": self.batch,
            "rounds": len(times),
            "p50_ms": float(np.median(times)),
            "p99_ms": float(np.percentile(times, 99)),
            # From the median: one stall of a busy machine would decide over a sum of few rounds.
            "images_per_second": float(1e3 * self.batch / np.median(times)),
        }


def settings_grid(backend: str, cores: int, batches: Sequence[int]) -> list[tuple[Cores, tuple[int, ...]]]:
    """Return the settings to measure, each with its batches; the first sets nothing.

    Threads are halved until one is left, all with the backend's own streams; then streams are doubled, with all
    threads. A batch of one has no use for streams.

    Args:
        backend: Name of a backend, not `auto`.
        cores: Cores that the process may use.
        batches: Images per inference.

    Raises:
        ArgumentError: If the backend has nothing to choose.
    """
    names = backend_row(backend).cores
    if not names:
        raise ArgumentError(f"find-settings: backend {backend} has neither threads nor streams to choose.")
    grid = [(OWN_CHOICE, tuple(batches))]
    if "threads" in names:
        count = cores // 2
        while count:
            grid.append((Cores(threads=count), tuple(batches)))
            count //= 2
    several = tuple(batch for batch in batches if batch > 1)
    if "streams" in names and several:
        count = 1
        while count <= min(cores, max(several)):
            grid.append((Cores(streams=count), several))
            count *= 2
    return grid


def find_settings(
    bundle: Path,
    backend: str = "auto",
    path: str = "auto",
    precision: str = "fp32",
    *,
    batches: Sequence[int] | None = None,
    seconds: float = 10.0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Measure every setting of a small grid; say which is best for one image and which for images per second.

    Every setting is loaded, measured with each of its batches, and closed, twice: in one order and in the other. So one
    session is open at a time, and no threads of another one are in the way.

    Args:
        bundle: Path of the bundle.
        backend: As in `Inspector.load`.
        path: As in `Inspector.load`.
        precision: As in `Inspector.load`.
        batches: Images per inference; None for one, and for 8 or as many as the bundle takes.
        seconds: Measuring time of all settings together, without loading; each has at least 20 rounds.
        progress: Called with the completed share, 0 to 1.

    Returns:
        A row for each setting and batch: median and p99 in milliseconds from encoded images in memory to decisions,
        images per second. `asked_path` is `path` as it was given. `best` names the row for the latency of one image
        (None unless it was measured), and that
        for images per second.

    Raises:
        ArgumentError: If a batch or seconds are out of range, or the backend has nothing to choose.
        BackendError: If the backend is not available.
    """
    check_seconds(seconds)
    before = machine_state()
    with Inspector.load(bundle, backend, path, precision) as inspector:
        name = inspector.backend
        manifest, about = inspector.manifest, identity(inspector)
        wanted = sorted(set(batches or (1, min(MANY, manifest.max_batch))))
        for batch in wanted:
            inspector.check_batch(batch)
        encoded = golden_images(inspector)
    grid = settings_grid(name, usable_cores(), wanted)
    rows = [[_Row(cores, batch) for batch in its] for cores, its in grid]
    share = seconds / (_PASSES * sum(map(len, rows)))
    done = 0
    for turn in range(_PASSES):
        for of_setting in rows if turn % 2 == 0 else reversed(rows):
            cores = of_setting[0].cores
            with Inspector.load(
                bundle, name, path, precision, threads=cores.threads, streams=cores.streams
            ) as inspector:
                for row in of_setting:
                    _measure(inspector, row, encoded, share)
            done += 1
            if progress is not None:
                progress(done / (_PASSES * len(rows)))
    figures = [row.figures() for of_setting in rows for row in of_setting]
    return {
        **about,
        "asked_path": path,
        "settings": figures,
        "best": best_settings(figures),
        "usable_cores": usable_cores(),
        "input": list(manifest.input.size),
        "machine": machine(),
        "state": {"before": before, "after": machine_state()},
    }


def _measure(inspector: Inspector, row: _Row, encoded: Sequence[bytes], seconds: float) -> None:
    images = [encoded[number % len(encoded)] for number in range(row.batch)]
    warm_up_rounds(lambda: one_round(inspector, images), _WARM_UP_S)
    started = time.perf_counter()
    count = 0
    while time.perf_counter() - started < seconds or count < _LEAST_ROUNDS + SETTLE:
        times, _, _ = one_round(inspector, images)
        if count >= SETTLE:
            row.times.append(times[-1])
        count += 1


def best_settings(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """Return the index of the row that is best for one image, and of that for images per second.

    Of rows that differ by no more than `AS_GOOD`, the first: noise must not recommend an option.
    """
    single = [number for number, row in enumerate(rows) if row["batch"] == 1]
    every = range(len(rows))

    def best(numbers: Sequence[int], cost: Callable[[dict[str, Any]], float]) -> int | None:
        if not numbers:
            return None
        least = min(cost(rows[number]) for number in numbers)
        return next(number for number in numbers if cost(rows[number]) <= (1 + AS_GOOD) * least)

    return {
        "one_image": best(single, lambda row: float(row["p50_ms"])),
        "images_per_second": best(every, lambda row: 1 / float(row["images_per_second"])),
    }


def options_text(figures: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return a row as options of `flawscope score`."""
    words = [f"--backend {figures['backend']}"]
    words += [f"--{name} {value}" for name, value in _not_usual(figures).items()]
    words += [f"--{name} {row[name]}" for name in ("threads", "streams") if row[name] is not None]
    return " ".join(words + ([f"--batch {row['batch']}"] if row["batch"] > 1 else []))


def arguments_text(figures: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Return a row as a call of `Inspector.load`."""
    words = [f'"{figures["backend"]}"']
    words += [f'{name}="{value}"' for name, value in _not_usual(figures).items()]
    words += [f"{name}={row[name]}" for name in ("threads", "streams") if row[name] is not None]
    stream = f".stream(images, {row['batch']})" if row["batch"] > 1 else ""
    return f"Inspector.load(bundle, {', '.join(words)}){stream}"


def _not_usual(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return path and precision, as options are called, where they are not those that are taken without an option."""
    named = {"path": (figures["asked_path"], "auto"), "precision": (figures["precision"], "fp32")}
    return {name: value for name, (value, usual) in named.items() if value != usual}
