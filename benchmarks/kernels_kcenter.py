"""Part `kcenter` of the kernel benchmark: greedy selection against anomalib and plain loops, and time against n."""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kernels_measure import DATA, Elsewhere, Float32Array, clock, patches, present, race, rest, summary, target

from flawscope.arrays import Int64Array
from flawscope.cpp_ext import kcenter_greedy, native, nearest
from flawscope.errors import FlawscopeError

ANOMALIB_RATIO, LOOP_RATIO = 30.0, 5.0
RADIUS_TOLERANCE = 0.02
"""Two greedy selections diverge if two rows are equally far up to rounding; their radii stay close."""


def shapes(quick: bool) -> list[tuple[int, int, int]]:
    """Return (N, D, count) of the comparison."""
    return [(2000, 128, 50)] if quick else [(50_000, 128, 500), (50_000, 384, 500)]


def growth_shapes(quick: bool) -> list[tuple[int, int, int]]:
    """Return (N, D, count) of the table of time against n."""
    if quick:
        return [(5000, 384, 50)]
    return [(n, 384, n // share) for n, share in itertools.product((50_000, 200_000, 1_000_000), (1000, 100))]


def first_row(rows: int, seed: int) -> int:
    """Return the first centre as `kcenter_greedy` draws it."""
    return int(np.random.default_rng(seed).integers(rows))


def select(features: Float32Array, count: int, first: int, threads: int) -> tuple[Int64Array, int]:
    """Return our selection from a given first row, and the number of distances that it computed."""
    chosen = np.empty(count, np.int64)
    return chosen, native.MODULE.kcenter_greedy(features, count, first, threads, None, chosen)


def numpy_loop(features: Float32Array, count: int, first: int) -> Int64Array:
    """Return the selection of the best plain NumPy loop: one product per centre, everything in place."""
    norms = np.einsum("nd,nd->n", features, features)
    closest, distance = np.full(len(features), np.inf, np.float32), np.empty(len(features), np.float32)
    chosen = np.empty(count, np.int64)
    row = first
    for place in range(count):
        chosen[place] = row
        # Twice the row, so that no pass over the distances is spent on the factor.
        np.matmul(features, -2 * features[row], out=distance)
        distance += norms
        distance += norms[row]
        np.minimum(closest, distance, out=closest)
        closest[row] = -np.inf
        row = int(closest.argmax())
    return chosen


def torch_loop(features: Float32Array, count: int, first: int) -> Int64Array:
    """Return the selection of the best plain torch loop: norms added within the product, everything in place."""
    import torch

    rows = torch.from_numpy(features)
    norms = torch.einsum("nd,nd->n", rows, rows)
    closest, distance = torch.full((len(rows),), torch.inf), torch.empty(len(rows))
    chosen = np.empty(count, np.int64)
    row = first
    with torch.inference_mode():
        for place in range(count):
            chosen[place] = row
            torch.addmv(norms, rows, rows[row], alpha=-2, out=distance)
            distance += norms[row]
            torch.minimum(closest, distance, out=closest)
            closest[row] = -torch.inf
            row = int(closest.argmax())
    return chosen


def radius(features: Float32Array, chosen: Int64Array, threads: int) -> float:
    """Return the covering radius, the largest distance of a row to its nearest centre: what the selection minimises."""
    squared, _ = nearest(features, np.ascontiguousarray(features[chosen]), 1, threads=threads)
    return float(np.sqrt(squared.max()))


def run_anomalib(
    python: Path, features: Float32Array, count: int, seed: int, threads: int, rounds: int
) -> dict[str, Any]:
    """Return the measurement of kernels_rival.py in anomalib's environment.

    Raises:
        FlawscopeError: If it fails.
    """
    with tempfile.TemporaryDirectory(prefix="flawscope-bench-") as folder:
        file, out = Path(folder) / "features.npy", Path(folder) / "result.json"
        np.save(file, features)
        command = [str(python), str(Path(__file__).resolve().parent / "kernels_rival.py")]
        command += ["--features", str(file), "--count", str(count), "--seed", str(seed), "--threads", str(threads)]
        command += ["--rounds", str(rounds), "--out", str(out)]
        rest()
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            lines = process.stderr.strip().splitlines() or ["no output"]
            raise FlawscopeError(f"{python}: expected a selection, got status {process.returncode}: {lines[-1]}")
        return dict(json.loads(out.read_text()))


def compare(
    shape: tuple[int, int, int], kind: str, seed: int, threads: int, seconds: float, anomalib: Path | None, rounds: int
) -> dict[str, Any]:
    """Return the row of one comparison.

    Raises:
        FlawscopeError: If a selection is worse than ours by more than rounding explains.
    """
    rows, channels, count = shape
    features = patches(kind, rows, channels, seed)
    first, elsewhere = first_row(rows, seed), Elsewhere()
    calls: dict[str, Callable[[], Int64Array]] = {
        "flawscope": lambda: kcenter_greedy(features, count, seed, threads=threads),
        "numpy": lambda: numpy_loop(features, count, first),
        "torch": lambda: torch_loop(features, count, first),
    }
    chosen = {name: call() for name, call in calls.items()}
    timings = race(calls, seconds, least=3)
    ours, computed = select(features, count, first, threads)
    same = {name: float((selection == ours).mean()) for name, selection in chosen.items()}
    radii = {name: radius(features, selection, threads) for name, selection in chosen.items()}
    versions: dict[str, str] = {}
    projected_channels = None
    if anomalib is not None:
        result = run_anomalib(anomalib, features, count, seed, threads, rounds)
        versions, projected_channels = result["versions"], result["shipped"]["channels"]
        for variant in ("shipped", "unprojected"):
            name, selection = f"anomalib_{variant}", np.array(result[variant]["chosen"])
            timings[name] = summary([[value] for value in result[variant]["seconds"]])
            radii[name] = radius(features, selection, threads)
            # It draws its first row itself: ours is compared from the same one.
            same[name] = float((selection == select(features, count, int(selection[0]), threads)[0]).mean())
    # anomalib starts from another row, and selects in another space after its projection: its radii are only shown.
    for name in ("numpy", "torch"):
        if abs(radii[name] / radii["flawscope"] - 1) > RADIUS_TOLERANCE:
            raise FlawscopeError(
                f"kcenter, {name}: expected our radius {radii['flawscope']:.4g} within {RADIUS_TOLERANCE:.0%}, got "
                f"{radii[name]:.4g}. One of the two is wrong; its speed says nothing."
            )
    rivals = [name for name in timings if name != "flawscope"]
    return {
        "N": rows,
        "D": channels,
        "count": count,
        "data": kind,
        "contestants": timings,
        "ratios": {name: timings[name]["median_s"] / timings["flawscope"]["median_s"] for name in rivals},
        "share_computed": computed / (rows * count),
        "same_rows": same,
        "radius": radii,
        "anomalib_projected_channels": projected_channels,
        "anomalib_versions": versions,
        "share_of_cores_elsewhere": elsewhere.share(),
    }


def grow(shape: tuple[int, int, int], kind: str, seed: int, threads: int) -> dict[str, Any]:
    """Return the row of one selection of the table of time against n; large ones are timed once."""
    rows, channels, count = shape
    features = patches(kind, rows, channels, seed)
    first, times, elsewhere = first_row(rows, seed), [], Elsewhere()
    computed = 0

    def once() -> None:
        nonlocal computed
        computed = select(features, count, first, threads)[1]

    while len(times) < 3 and sum(times) < 3:
        rest()
        times.append(clock(once))
    return {
        "N": rows,
        "D": channels,
        "count": count,
        "data": kind,
        "timing": summary([[value] for value in times]),
        "share_computed": computed / (rows * count),
        "share_of_cores_elsewhere": elsewhere.share(),
        "computed_gflops": 2e-9 * channels * computed / float(np.median(times)),
    }


def measure(quick: bool, seed: int, threads: int, say: Callable[[str], None], anomalib: Path | None) -> dict[str, Any]:
    """Return the rows of the comparison and of the table of time against n."""
    rows, growth = [], []
    for shape, kind in itertools.product(shapes(quick), DATA):
        rows.append(compare(shape, kind, seed, threads, 0.1 if quick else 3.0, anomalib, 1 if quick else 2))
        say(f"kcenter {shape} {kind}: " + ", ".join(f"{n} x{r:.1f}" for n, r in rows[-1]["ratios"].items()))
    for shape, kind in itertools.product(growth_shapes(quick), DATA):
        growth.append(grow(shape, kind, seed, threads))
        say(f"kcenter {shape} {kind}: {growth[-1]['timing']['median_s']:.2f} s")
    return {"rows": rows, "growth": growth}


def targets(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of this part."""

    def values(*rivals: str) -> dict[str, float]:
        return {
            f"N {row['N']}, D {row['D']}, {row['data']}": min(row["ratios"][rival] for rival in rivals)
            for row in part["rows"]
            if all(rival in row["ratios"] for rival in rivals)
        }

    return present(
        target("kcenter: times anomalib's KCenterGreedy", ANOMALIB_RATIO, values("anomalib_shipped")),
        target("kcenter: times anomalib's, its projection left out", ANOMALIB_RATIO, values("anomalib_unprojected")),
        target("kcenter: times the best plain loop (NumPy, torch)", LOOP_RATIO, values("numpy", "torch")),
    )
