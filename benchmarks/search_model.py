"""What a CUDA search should take: clocks of a multiprocessor per step and tile, by resource.

A model and no measurement: nothing here has run on a GPU. It is for the first run on one: where a measured time is far
from the predicted one, the resource that was thought to be the limit is not. `tensor`, `shared` and `l2` of a step
follow from what the kernel does; the constants marked as assumed are set so that the kernel of before (128 × 128, warps
of 64 × 32, lists in shared memory) has the shares of cuBLAS that were expected of it.

For several neighbours it depends on the data how often a buffer is full: `survive` plays the selection of keep.cuh with
rows in random order, block by block, without what a block learns of the limits of others. The waits in it are assumed,
and nothing was there to set them by: of the two predictions this is the weaker one.

    python benchmarks/search_model.py [--out FILE.json]
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.files import write_text
from flawscope.versions import package_versions

STEP_CHANNELS = 32
SHARED_BYTES_PER_CLOCK = 128
LAUNCH_SECONDS = 2.5e-6
"""Assumed: between two kernels of a stream. A search is three."""


@dataclass(frozen=True)
class Device:
    """A GPU; clocks are of a multiprocessor, for a step of 128 × 128 × 32."""

    name: str
    processors: int
    gigahertz: float  # assumed: under load
    full_rate: int  # tensor cores as their maker counts
    tensor: int  # by mma.sync
    l2_bytes_per_clock: float
    shared_kib: int  # that a block may have
    cublas: float  # TFLOP/s in float16: measured on the H200; assumed elsewhere, 95 % of the full rate

    def cublas_seconds(self, n: int, m: int, d: int) -> float:
        """Return what the product alone takes."""
        return 2.0 * n * m * d / (self.cublas * 1e12)


def _of_full_rate(processors: int, gigahertz: float, clocks: int) -> float:
    return 0.95 * 2 * 128 * 128 * STEP_CHANNELS / clocks * processors * gigahertz / 1000


DEVICES = {
    device.name: device
    for device in (
        Device("H200", 132, 1.65, 256, 410, 16384 / 650, 227, 788.0),
        Device("Orin", 16, 1.3, 512, 512, 64.0, 163, _of_full_rate(16, 1.3, 512)),
        Device("L4", 58, 1.6, 1024, 1024, 64.0, 99, _of_full_rate(58, 1.6, 1024)),
    )
}


@dataclass(frozen=True)
class Kernel:
    """What a block does in a step and at the end of a tile."""

    name: str
    tile_rows: int
    loads: int  # LDSM.x4 of a warp in a step
    loop: int  # instructions of a warp in a step
    epilogue: int  # and at the end of a tile, where nothing has changed
    found: int  # more for a query of a thread whose least value has changed
    waiting: float  # assumed: clocks at the end of a tile in which nothing is issued
    round: float  # assumed: clocks of a round of offers
    exposed: float  # assumed: share of the lesser of tensor cores and shared memory that does not hide behind the other
    blocks: int  # side by side on a multiprocessor
    resident: bool  # queries stay in shared memory where they fit

    def keeps_queries(self, device: Device, d: int) -> bool:
        """Return whether the queries fit beside three stages; as `choose_memory` of plan.cu."""
        bytes_ = 2048 + 4 * self.tile_rows * 4 + steps_of(d) * 8192 + 3 * self.tile_rows * 64
        return self.resident and bytes_ <= device.shared_kib * 1024


# Instructions are those of the compiled kernels for 8.7, `python tools/cuda_loops.py`.
BEFORE = Kernel("before", 128, 12, 85, 245, 0, 600, 770, 0.6, 2, resident=False)
NOW = Kernel("now", 256, 16, 190, 407, 39, 100, 0, 0.25, 1, resident=True)
LISTS = replace(NOW, name="now, several", loop=206, epilogue=493, found=67)
"""For several neighbours: `found` is what it takes to look at the values of a thread for a query one by one."""


@dataclass(frozen=True)
class Buffers:
    """What a warp does for several neighbours beside that; instructions as above, and clocks."""

    offer: int = 18  # instructions for a value that goes into a buffer
    stage: int = 17  # for a stage of a sort
    stages: int = 25  # of 64 keys that are sorted and merged with as many
    offer_wait: float = 30  # assumed: until the place in the buffer is known, as far as the other warp does not hide it
    stage_wait: float = 60  # assumed: a shuffle, a comparison and a choice, one after the other
    query_wait: float = 400  # assumed: a buffer is read from the second-level cache
    round: float = 80  # assumed: the barriers of a merge


BUFFERS = Buffers()
MARGIN, SMALL_LIST = 7, 16  # as plan.cu


@dataclass(frozen=True)
class Survived:
    """What the selection of a block has to do; a "query of a warp" is a query slot of its 32 threads.

    Attributes:
        looked: Queries of a warp whose values were looked at one by one.
        offered: Values of these at which a thread had one for a buffer.
        rounds: Merges.
        merged: Buffers that the warp sorted which had the most of them, over all merges.
        sorts: Sorts of 64 keys that it did.
        nearest: The least values of each query, ascending, float32 [128, capacity].
    """

    looked: int
    offered: int
    rounds: int
    merged: int
    sorts: int
    nearest: npt.NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def survive(tiles: int, capacity: int, stride: int) -> Survived:
    """Play the selection of a block of 128 queries through tiles of 256 rows in random order."""
    rng = np.random.default_rng(0)
    buffers, counts = np.full((128, stride), np.inf, np.float32), np.zeros(128, np.int64)
    limits = np.full(128, np.inf, np.float32)
    looked = offered = rounds = merged = sorts = 0
    for tile in range(tiles + 1):
        # After the last tile every buffer is sorted.
        values = rng.random((128, 256), np.float32) if tile < tiles else np.empty((128, 0), np.float32)
        pending, least = values <= limits[:, None], stride // 2 if tile < tiles else 0
        while True:
            # Query 64·half + 8·slot + group, row 64·quarter + 8·part + 2·lane + element: as `Place` of keep.cuh.
            grid = pending.reshape(2, 8, 8, 4, -1, 4, 2)
            looked += int(grid.any(axis=(2, 4, 5, 6)).sum())
            offered += int(grid.any(axis=(2, 5)).sum())
            places = counts[:, None] + pending.cumsum(axis=1) - 1
            fits = pending & (places < stride)
            queries, rows = np.nonzero(fits)
            buffers[queries, places[queries, rows]] = values[queries, rows]
            counts += fits.sum(axis=1)
            pending &= ~fits
            if tile < tiles and not pending.any():
                break
            is_full = counts > least
            runs = np.where(is_full, -(-counts // 64), 0).reshape(8, 16).sum(axis=1)  # by warp
            rounds, sorts = rounds + 1, sorts + int(runs.max())
            merged += int(is_full.reshape(8, 16).sum(axis=1).max())
            for query in np.flatnonzero(is_full):
                buffers[query, : counts[query]].sort()
            counts[is_full] = np.minimum(counts[is_full], capacity)
            buffers[np.arange(stride) >= counts[:, None]] = np.inf
            limits[is_full] = buffers[is_full, capacity - 1]
            if tile == tiles:
                break
            pending &= values <= limits[:, None]
    return Survived(looked, offered, rounds, merged, sorts, buffers[:, :capacity])


def list_sizes(k: int) -> tuple[int, int]:
    """Return the candidates of a query, and the keys that its buffer has room for; as `make_plan` of plan.cu."""
    candidates = min(k + MARGIN, 64)
    return candidates, 64 if candidates <= SMALL_LIST else 128


def list_clocks(tiles: int, k: int) -> float:
    """Return the clocks of the ends of all tiles of a block for k neighbours, two warps on a scheduler."""
    found = survive(tiles, *list_sizes(k))
    per_offer = BUFFERS.offer + BUFFERS.offer_wait
    tile_ends = tiles * (LISTS.epilogue * 2 + LISTS.waiting)
    offers = (found.looked * LISTS.found + found.offered * per_offer) / 4
    sorts = found.sorts * BUFFERS.stages * max(2 * BUFFERS.stage, BUFFERS.stage_wait)
    return tile_ends + offers + sorts + found.merged * BUFFERS.query_wait + found.rounds * BUFFERS.round


def steps_of(d: int) -> int:
    """Return the steps of a tile."""
    return -(-d // STEP_CHANNELS)


def step_clocks(kernel: Kernel, device: Device, d: int) -> dict[str, float]:
    """Return the clocks of each resource of a multiprocessor for a step of one block."""
    row_bytes = STEP_CHANNELS * 2
    query_rows = 0 if kernel.keeps_queries(device, d) else 128
    fetched = (kernel.tile_rows + query_rows) * row_bytes
    return {
        "tensor": device.tensor * kernel.tile_rows / 128,
        "shared": (kernel.loads * 8 * 512 + fetched) / SHARED_BYTES_PER_CLOCK,
        "l2": fetched / device.l2_bytes_per_clock,
        "issue": kernel.loop * 8 / 4,
    }


def step_time(kernel: Kernel, device: Device, d: int) -> float:
    """Return the clocks that a step takes with all resources at work."""
    clocks = step_clocks(kernel, device, d)
    products = sorted((clocks["tensor"], clocks["shared"]))
    return max(products[1] + kernel.exposed * products[0], clocks["l2"], clocks["issue"])


def epilogue_clocks(kernel: Kernel, tiles: int) -> float:
    """Return the clocks of the end of a tile, in the mean over the tiles of a block."""
    if kernel.round:  # lists: 1.7 rounds a tile over 32 tiles, 3 where they are still being filled
        return kernel.epilogue * 2 + kernel.waiting + kernel.round * (3.0 if tiles < 8 else 1.7)
    # A warp looks a row up where one of its 32 lanes has a new least value: in tile t a lane by 1/t.
    changes = sum(1 - (1 - 1 / t) ** 32 for t in range(1, tiles + 1)) / tiles
    return (kernel.epilogue + 8 * kernel.found * changes) * 2 + kernel.waiting


def splits_of(kernel: Kernel, device: Device, query_tiles: int, row_tiles: int, d: int) -> int:
    """Return the parts of the bank; as `make_plan` of plan.cu, and as it was before."""
    if kernel is BEFORE:
        return max(1, min(2 * device.processors // query_tiles, row_tiles, 128))
    blocks, begin = (2, 32) if kernel is LISTS else (4, 4)
    most = max(1, min(blocks * device.processors // query_tiles, row_tiles, 128))

    def end_of(splits: int) -> int:
        waves = -(-query_tiles * splits // device.processors)
        return waves * (-(-row_tiles // splits) * (steps_of(d) + 1) + begin)

    return min(range(1, most + 1), key=end_of)


def predict(kernel: Kernel, device: Device, n: int, m: int, d: int, k: int = 1) -> dict[str, Any]:
    """Return the predicted time of a search, and its share of the speed of cuBLAS; several neighbours with `LISTS`."""
    query_tiles, row_tiles = -(-n // 128), -(-m // kernel.tile_rows)
    splits = splits_of(kernel, device, query_tiles, row_tiles, d)
    tiles = -(-row_tiles // splits)
    turns = -(-query_tiles * splits // device.processors)  # blocks that a multiprocessor has, side by side or not
    step = step_time(kernel, device, d)
    end = list_clocks(tiles, k) / tiles if kernel is LISTS else epilogue_clocks(kernel, tiles)
    clocks = turns * tiles * (steps_of(d) * step + end)
    seconds = clocks / (device.gigahertz * 1e9) + 3 * LAUNCH_SECONDS
    limits = step_clocks(kernel, device, d)
    return {
        "device": device.name,
        "kernel": kernel.name,
        "n": n,
        "m": m,
        "d": d,
        "k": k,
        "splits": splits,
        "queries_resident": kernel.keeps_queries(device, d),
        "step_clocks": {name: round(value) for name, value in limits.items()},
        "step_time_clocks": round(step),
        "epilogue_clocks": round(end),
        "predicted_milliseconds": round(seconds * 1e3, 4),
        "predicted_share_of_cublas": round(device.cublas_seconds(n, m, d) / seconds, 3),
        "selection": _selection(tiles, k) if kernel is LISTS else None,
        "measured_milliseconds": None,
        "measured_share_of_cublas": None,
    }


def _selection(tiles: int, k: int) -> dict[str, float]:
    """Return what the selection of a block has to do, in the mean over its tiles."""
    found = survive(tiles, *list_sizes(k))
    counts = {"looked": found.looked, "offered": found.offered, "rounds": found.rounds, "sorts": found.sorts}
    return {name: round(count / tiles, 2) for name, count in counts.items()}


SIZES = ((50176, 65536, 1024), (50176, 65536, 384), (784, 16384, 384), (6272, 16384, 128))
SEVERAL = (9, 64)
"""Numbers of neighbours beside one: that of PatchCore's score, and the most."""


def predictions() -> list[dict[str, Any]]:
    """Return all rows: one neighbour by both kernels, several by that of now."""
    places = [(size, device) for size in SIZES for device in DEVICES.values()]
    one = [predict(kernel, device, *size) for size, device in places for kernel in (BEFORE, NOW)]
    return one + [predict(LISTS, device, *size, k) for k in SEVERAL for size, device in places]


def main() -> None:
    """Write the predictions and print them."""
    from result_file import machine

    out = Path(__file__).parent / "results" / "0.1.0" / "search_model--prediction.json"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    rows = predictions()
    document = {
        "suite": "search_model",
        "state": "a prediction, not a measurement: measured_* are empty until the kernels have run",
        "settings": {
            "devices": [asdict(device) for device in DEVICES.values()],
            "kernels": [asdict(BEFORE), asdict(NOW), asdict(LISTS)],
            "buffers": asdict(BUFFERS),
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")
    for row in rows:
        print(f"{row['device']:5} {row['kernel']:12} k {row['k']:2} {row['n']:6} x {row['m']:6} x {row['d']:5}", end="")
        print(f" step {row['step_time_clocks']:5} end {row['epilogue_clocks']:5}", end="")
        print(f" {row['predicted_milliseconds']:9.3f} ms, {row['predicted_share_of_cublas']:.0%} of cuBLAS")


if __name__ == "__main__":
    main()
