"""Part `window` of the kernel benchmark: the search within windows against our own search through the whole bank."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from kernels_measure import Elsewhere, patches, present, race, target

from flawscope.arrays import Float32Array
from flawscope.cpp_ext import Bank, WindowBank, reference
from flawscope.errors import FlawscopeError

RADIUS = 3
FEWER_DISTANCES, FASTER = 4.0, 1.0
TOLERANCE = 2e-6
"""Of a squared distance, in units of (‖q‖ + ‖m‖)²: rows that are equally near within rounding may be exchanged."""

GRIDS = ((28, 28), (64, 64))
ROWS_A_PLACE = (1, 3, 21)
CHANNELS = (128, 448)
BATCHES = (1, 8)
MOST_ROWS = 16384
"""Of a bank, as `max_bank` has it."""


def bank_of(grid: tuple[int, int], rows: int, channels: int, seed: int) -> tuple[Float32Array, Any]:
    """Return rows float32 [M, D] and their places int64 [M, 2]: as many on every place, give or take one."""
    cells = np.sort(np.arange(rows) % (grid[0] * grid[1]))
    return patches("clustered", rows, channels, seed), np.stack(np.divmod(cells, grid[1]), axis=1)


def measure_case(
    grid: tuple[int, int], rows: int, channels: int, batch: int, seed: int, threads: int, seconds: float, least: int
) -> dict[str, Any]:
    """Return the row of one case.

    Raises:
        FlawscopeError: If the search within windows and the reference found other distances.
    """
    bank, places = bank_of(grid, rows, channels, seed)
    positions = grid[0] * grid[1]
    queries = patches("clustered", batch * positions, channels, seed, stream=1)
    windows = WindowBank(bank, places, grid, RADIUS, threads=threads)
    whole, plain = Bank(bank, threads=threads), Bank(bank, screen=False, threads=threads)
    squared, _ = windows.nearest(queries, threads=threads)
    computed = windows.computed
    wanted, _ = reference.nearest_within(queries[:positions], bank, places, windows.reach)
    scale = float((np.linalg.norm(queries, axis=1).max() + np.linalg.norm(bank, axis=1).max()) ** 2)
    error = float(np.abs(squared[:positions] - wanted).max()) / scale
    if not error <= TOLERANCE:
        raise FlawscopeError(
            f"window: expected the distances of the reference within {TOLERANCE:g} (‖q‖ + ‖m‖)², got a difference of "
            f"{error:.3g}. One of the two is wrong; its speed says nothing."
        )
    elsewhere = Elsewhere()
    timings = race(
        {
            "window": lambda: windows.nearest(queries, threads=threads),
            "whole": lambda: whole.nearest(queries, 1, threads=threads),
            "unscreened": lambda: plain.nearest(queries, 1, threads=threads),
        },
        seconds,
        least,
    )
    ours, every = timings["window"]["median_s"], batch * positions * rows
    return {
        "grid": list(grid),
        "M": rows,
        "D": channels,
        "batch": batch,
        "radius": RADIUS,
        "contestants": timings,
        "ratios": {name: timings[name]["median_s"] / ours for name in ("whole", "unscreened")},
        # Distances that count, and products that were computed: blocks of places and of rows are computed as a whole.
        "fewer_distances": positions * rows / windows.pairs,
        "fewer_products": every / computed,
        "share_of_cores_elsewhere": elsewhere.share(),
    }


def measure(quick: bool, seed: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the rows of all grids, banks and batches."""
    seconds, least = (0.1, 2) if quick else (2.0, 5)
    cases = list(itertools.product(GRIDS, ROWS_A_PLACE, CHANNELS, BATCHES))
    rows: list[dict[str, Any]] = []
    for grid, each, channels, batch in cases[:1] if quick else cases:
        if (size := each * grid[0] * grid[1]) > MOST_ROWS + grid[0] * grid[1]:
            continue
        rows.append(measure_case(grid, min(size, MOST_ROWS), channels, batch, seed, threads, seconds, least))
        say(f"window {grid}, M {size}, D {channels}, batch {batch}: x{rows[-1]['ratios']['whole']:.2f}")
    return {"rows": rows}


def targets(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of this part."""

    def values(figure: Callable[[dict[str, Any]], float]) -> dict[str, float]:
        return {
            f"{row['grid'][0]} × {row['grid'][1]}, M {row['M']}, D {row['D']}, batch {row['batch']}": figure(row)
            for row in part["rows"]
        }

    case = f"window of radius {RADIUS}"
    return present(
        target(f"{case}: times fewer distances", FEWER_DISTANCES, values(lambda row: row["fewer_distances"])),
        target(f"{case}: times fewer products computed", None, values(lambda row: row["fewer_products"])),
        target(f"{case}: times the whole bank", FASTER, values(lambda row: row["ratios"]["whole"])),
        target(f"{case}: times the whole bank, no screen", None, values(lambda row: row["ratios"]["unscreened"])),
    )
