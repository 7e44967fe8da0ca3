"""Times of the kernels beside torch's products, and their bytes beside the copy bandwidth. Medians, in milliseconds.

On a GPU a call is captured once for each of several sets of queries, and the graphs are replayed in turn: nothing but
the device's own time is measured, and no set is still in its caches only because it was the last one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpu_stages.card import Memory, Work, opened
from gpu_stages.facts import COPIED_BYTES, copy_rate
from gpu_stages.kernels import Array, Search, open_card
from gpu_stages.other_kernels import Arrays
from gpu_stages.report import Absent, Report
from gpu_stages.rivals import Rivals

N, M, D, K = (784, 6272, 50176), (1024, 16384, 65536, 262144), (128, 384, 1024, 1536), (1, 9)
FIRST = (
    (784, 16384, 384, 1),
    (6272, 16384, 384, 1),
    (784, 1024, 384, 9),
    (6272, 65536, 1024, 1),
    (784, 16384, 1536, 9),
)
"""What tells most, for a run with little time: (queries, rows, channels, neighbours)."""
SETS, TURNS, MOST_S = 4, 30, 1.5
"""Sets of queries; replays of a shape; seconds after which a shape has been replayed often enough."""
GAUSSIANS = ((784, 100, 1), (784, 100, 8), (3136, 100, 8), (784, 550, 1))
"""Positions, channels, images."""
CENTRES = (50_000, 384, 500)


def shapes() -> Iterator[tuple[int, int, int, int]]:
    """Yield all shapes, those that tell most first, then the small before the large."""
    yield from FIRST
    rest = [(n, m, d, k) for n in N for m in M for d in D for k in K if (n, m, d, k) not in FIRST]
    yield from sorted(rest, key=lambda shape: shape[0] * shape[1] * shape[2])


def replayed(measure: Callable[[Work], float], calls: Sequence[Work], turns: int = TURNS) -> dict[str, float]:
    """Return median and quartiles of the milliseconds of calls that are made in turn.

    Args:
        measure: Returns how long one call takes.
        calls: What is measured; each is called once before, untimed.
        turns: Largest number of calls that are timed, at least 5 of them whatever they take.
    """
    for call in calls:
        measure(call)
    times: list[float] = []
    started = time.monotonic()
    while len(times) < turns and (len(times) < 5 or time.monotonic() - started < MOST_S):
        times.append(measure(calls[len(times) % len(calls)]))
    low, middle, high = np.percentile(times, (25, 50, 75))
    return {"median_ms": float(middle), "low_ms": float(low), "high_ms": float(high), "turns": len(times)}


class Rows:
    """Random rows of every shape, cut from one array: drawing them anew would take longer than what is measured."""

    def __init__(self, seed: int) -> None:
        self._rng, self._flat = np.random.default_rng(seed), np.empty(0, np.float32)

    def of(self, count: int, channels: int) -> Array:
        """Return float32 [count, channels], N(0, 1), the same for the same shape."""
        if self._flat.size < count * channels:
            self._flat = self._rng.standard_normal(count * channels, np.float32)
        return self._flat[: count * channels].reshape(count, channels)


def bytes_of(n: int, m: int, d: int, k: int) -> int:
    """Return what a shape takes on the device, with a little left over: ours, and rows and queries in torch."""
    ours = 6 * m * d + (SETS + 1) * 4 * n * d + 2 * n * d + 1024 * n * k
    return int(1.2 * (ours + 6 * m * d + (SETS + 1) * 6 * n * d))


def on_card(report: Report) -> None:
    """All shapes, as far as time and memory go."""
    card, kernels = open_card(report, on_gpu=True)
    with opened(card):
        copy = copy_rate(card, min(COPIED_BYTES, card.free_bytes() // 8))
        report.put(copy_gb_per_s=copy)
        rivals = Rivals(SETS)
        if rivals.problem:
            report.leave_out("rivals", rivals.problem)
        rows, queries = Rows(0), Rows(1)
        others_s = 0.2 * report.left_s  # for what comes after the searches
        for shape in shapes():
            if report.left_s < others_s:
                report.leave_out("search " + " x ".join(map(str, shape)), "no time left")
            elif card.free_bytes() < bytes_of(*shape):
                report.leave_out("search " + " x ".join(map(str, shape)), "not enough memory is free")
            else:
                measure_search(report, card, kernels, shape, rows, queries, rivals)
        for case in GAUSSIANS:
            if report.left_s > 3:
                measure_gaussians(report, card, kernels, case, copy)
        if report.left_s > 5:
            measure_centres(report, card, kernels, CENTRES, copy)
    done = report.figures("search")
    report.summary(f"{len(done)} shapes of the search")


def measure_search(
    report: Report,
    card: Memory,
    kernels: Any,
    shape: tuple[int, int, int, int],
    rows: Rows,
    queries: Rows,
    rivals: Rivals,
) -> None:
    """Measure one shape: the whole call, and the rivals on the same numbers."""
    n, m, d, k = shape
    bank, asked = rows.of(m, d), queries.of(n, d)
    search = Search(card, kernels, bank.shape, "float32", n, k).load(bank)
    card.wait()
    sets = [card.allocate(4 * n * d) for _ in range(SETS)]
    for number, address in enumerate(sets):
        card.copy_in(address, np.roll(asked, number, axis=0))
    search.enqueue(n, queries=sets[0])  # before a capture, so that the kernels are loaded
    graphs = [card.capture(lambda at=address: search.enqueue(n, queries=at)) for address in sets]  # type: ignore[misc]
    whole = replayed(card.milliseconds, graphs)
    row: dict[str, Any] = {"n": n, "m": m, "d": d, "k": k, "whole": whole}
    row["tflops"] = 2e-9 * n * m * d / whole["median_ms"]
    packing = replayed(card.milliseconds, [card.capture(search.pack)], turns=5)
    row["pack_ms"] = packing["median_ms"]
    search.close()
    for address in sets:
        card.free(address)
    if rivals.problem is None:
        row["rivals"] = rivals.measure(bank, asked, k, lambda calls, measure: replayed(measure, calls))
        product = row["rivals"].get("product", {}).get("median_ms")
        if product:
            row["share_of_product"] = product / whole["median_ms"]
    report.row("search", **row)


def measure_gaussians(report: Report, card: Memory, kernels: Any, case: tuple[int, int, int], copy: float) -> None:
    """Measure Mahalanobis distances: the bytes of the factors in a second, and as a share of the copy bandwidth."""
    p, d, n = case
    rng = np.random.default_rng(0)
    arrays = Arrays(card)
    triangle = rng.standard_normal((p, d * (d + 1) // 2), np.float32)
    given: dict[str, Any] = {"mean": arrays.put(np.zeros((p, d), np.float32)), "p": p, "d": d, "n": n}
    given |= {"features": arrays.put(rng.standard_normal((n, p, d), np.float32)), "squared": arrays.room(4 * n * p)}
    given["stream"] = card.stream
    for kind in ("float32", "float16"):
        factors = triangle.astype(kind)
        at = arrays.put(factors)

        def work(at: int = at, kind: str = kind) -> None:
            kernels.mahalanobis_triangles(triangles=at, dtype=kind, **given)

        work()
        times = replayed(card.milliseconds, [card.capture(work)])
        rate = factors.nbytes / times["median_ms"] / 1e6
        report.row("mahalanobis", p=p, d=d, n=n, kind=kind, **times, gb_per_s=rate, share_of_copy=rate / copy)
    arrays.close()


def measure_centres(report: Report, card: Memory, kernels: Any, case: tuple[int, int, int], copy: float) -> None:
    """Measure greedy k-centre: every centre reads all features once."""
    n, d, count = case
    features = np.random.default_rng(0).standard_normal((n, d), np.float32)
    arrays = Arrays(card)
    size = kernels.kcenter_bytes(n=n, count=count)
    given: dict[str, Any] = {"features": arrays.put(features), "n": n, "d": d, "count": count, "first": 0}
    given |= {"workspace": arrays.room(size), "workspace_bytes": size, "chosen": arrays.room(8 * count)}
    times = replayed(card.milliseconds, [lambda: kernels.kcenter_greedy(stream=card.stream, **given)], turns=5)
    rate = count * features.nbytes / times["median_ms"] / 1e6
    report.row("kcenter", n=n, d=d, count=count, **times, gb_per_s=rate, share_of_copy=rate / copy)
    arrays.close()


def on_cpu(report: Report) -> None:
    """The harness on the CPU's own kernels, beside a product in NumPy: two shapes."""
    try:
        from flawscope.cpp_ext import Bank, implementation
    except ImportError as err:
        raise Absent(f"flawscope cannot be imported: {err}") from err

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    report.put(implementation=implementation(), threads=threads)
    for n, m, d, k in ((784, 1024, 128, 1), (784, 1024, 384, 9)):
        rows, queries = Rows(0).of(m, d), Rows(1).of(n, d)
        bank = Bank(rows)
        sets = [np.roll(queries, number, axis=0) for number in range(SETS)]

        def measure(call: Work) -> float:
            started = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - started)

        whole = replayed(measure, [lambda q=one, b=bank, k=k: b.nearest(q, k) for one in sets])  # type: ignore[misc]
        product = replayed(measure, [lambda q=one, r=rows: q @ r.T for one in sets])  # type: ignore[misc]
        share = product["median_ms"] / whole["median_ms"]
        report.row("search", n=n, m=m, d=d, k=k, whole=whole, product=product, share_of_product=share)
    report.summary("two shapes on the CPU's kernels")
