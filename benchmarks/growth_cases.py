"""The cases of `growth.py`, each measured in a process of its own, so that its memory is its own.

Features are synthetic: 64 centres from N(0, 1) plus N(0, 0.5²), then ReLU, as in the kernel benchmark. The time of a
search or a selection does not depend on whose features they are, but an int8 screen saves more where rows are alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flawscope.arrays import Float32Array
from flawscope.resident_memory import peak_kib, resident_kib

_BLOCK_ROWS = 1 << 16


def synthetic(rows: int, channels: int, seed: int) -> Float32Array:
    """Return features float32 [rows, channels], at least 0, made a block at a time."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((64, channels), np.float32)
    made = np.empty((rows, channels), np.float32)
    for start in range(0, rows, _BLOCK_ROWS):
        block = made[start : start + _BLOCK_ROWS]
        generator.standard_normal(block.shape, np.float32, out=block)
        block *= np.float32(0.5)
        block += centres[generator.integers(0, len(centres), len(block))]
        np.maximum(block, 0, out=block)
    return made


def measure_case(case: dict[str, Any]) -> dict[str, Any]:
    """Return `ms` of one case, the memory of the process before it and at its peak in KiB, and what it was.

    Args:
        case: `series`, `system`, `n`, and what the series needs; see `growth.cases_of`.
    """
    return {**_SERIES[case["series"]](case), "peak_kib": peak_kib()}


def _median_ms(work: Callable[[], object], rounds: int, seconds: float) -> dict[str, Any]:
    """Return the median milliseconds of a call after two untimed ones, and the number of calls."""
    began = time.perf_counter()
    for _ in range(2):
        work()
    times: list[float] = []
    while len(times) < rounds or (time.perf_counter() - began < seconds and len(times) < 1000):
        before = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - before))
    return {
        "ms": statistics.median(times),
        "ms_quartiles": np.percentile(times, (25, 75)).tolist(),
        "calls": len(times),
    }


def _decision(case: dict[str, Any]) -> dict[str, Any]:
    """Time an image, from its encoded bytes to the decision."""
    from flawscope.bundle import open_bundle
    from flawscope.runtime import Inspector

    encoded = Path(case["image"]).read_bytes()
    before = resident_kib()
    # A candidate: a bank that was made up has no golden scores.
    started = time.perf_counter()
    with Inspector(open_bundle(case["bundle"]), "cpu", "kernel", is_candidate=True) as inspector:
        loaded_s = time.perf_counter() - started
        result = inspector(encoded)
        if result.decision == "fault":
            raise SystemExit(f"growth: expected a decision, got a fault: {result.reason}")
        figures = _median_ms(lambda: inspector(encoded), case["rounds"], case["seconds"])
        return {**figures, "load_s": loaded_s, "before_kib": before}


def _search(case: dict[str, Any]) -> dict[str, Any]:
    """Time the search of one image's patches in a bank, by our kernels or by faiss."""
    bank = synthetic(case["n"], case["channels"], 1)
    queries = synthetic(case["patches"], case["channels"], 2)
    before = resident_kib()
    work: Callable[[], object]
    if case["system"] == "faiss":
        import faiss

        faiss.omp_set_num_threads(case["threads"])
        index = faiss.IndexFlatL2(case["channels"])
        index.add(bank)
        work = lambda: index.search(queries, 1)  # noqa: E731
    else:
        from flawscope.cpp_ext import Bank

        packed = Bank(bank)
        work = lambda: packed.nearest(queries, 1, threads=case["threads"])  # noqa: E731
    return {**_median_ms(work, case["rounds"], case["seconds"]), "before_kib": before}


def _fit_patchcore(case: dict[str, Any]) -> dict[str, Any]:
    """Time the selection of a bank of `bank_rows` from all patches, and the table of neighbours in it."""
    from flawscope.cpp_ext import kcenter_greedy, neighbour_table

    before = resident_kib()
    patches = synthetic(case["n"] * case["patches"], case["channels"], 1)
    rows = min(case["bank_rows"], len(patches))
    started = time.perf_counter()
    chosen = kcenter_greedy(patches, rows, 0, threads=case["threads"])
    neighbour_table(np.ascontiguousarray(patches[chosen]), min(9, rows))
    return {"ms": 1e3 * (time.perf_counter() - started), "calls": 1, "before_kib": before}


def _fit_padim(case: dict[str, Any]) -> dict[str, Any]:
    """Time the Gaussians of all positions; patches come in batches as from a backbone, and their making is left out."""
    import torch

    from flawscope.training.detectors.padim import fit_gaussians

    torch.set_num_threads(case["threads"])
    before, making = resident_kib(), 0.0

    def batches() -> Iterator[torch.Tensor]:
        nonlocal making
        for number in range(0, case["n"], 32):
            count = min(32, case["n"] - number)
            began = time.perf_counter()
            patches = synthetic(count * case["patches"], case["channels"], number)
            made = torch.from_numpy(patches.reshape(count, case["patches"], case["channels"]))
            making += time.perf_counter() - began
            yield made

    started = time.perf_counter()
    fit_gaussians(batches(), case["patches"], case["channels"], 0.01)
    return {"ms": 1e3 * (time.perf_counter() - started - making), "calls": 1, "before_kib": before}


_SERIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "decision_by_rows": _decision,
    "decision_by_side": _decision,
    "search_by_rows": _search,
    "fit_patchcore_by_images": _fit_patchcore,
    "fit_padim_by_images": _fit_padim,
}
