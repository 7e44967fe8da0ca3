"""Every kernel against float64 NumPy: on a GPU in full, in emulation on a few small sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gpu_stages import cold_graph
from gpu_stages.captures import check_captures
from gpu_stages.card import CudaError, Memory, opened
from gpu_stages.kernels import Array, Search, open_card, ranked, slack, squared_distances
from gpu_stages.other_kernels import check_centres, check_diffusion, check_gaussians, check_windows
from gpu_stages.report import Report

EDGES = (1, 31, 32, 33, 127, 128, 129)
NEIGHBOURS = (1, 8, 9, 16, 17, 64)
LARGE, BLOCK = (2_200_000, 1024), 65536
"""Rows and channels of a bank with more than 2³¹ components, in float16; rows that are drawn, of which it is made."""


class Bench(NamedTuple):
    """What the checks work with: report, card, its kernels, and random numbers."""

    report: Report
    card: Memory
    kernels: Any
    rng: np.random.Generator

    def search(self, rows: Array, n: int, k: int, stream: int | None = None) -> Search:
        """Return a search of up to n queries in these rows."""
        return Search(self.card, self.kernels, rows.shape, rows.dtype.name, n, k, stream).load(rows)

    def nearest(self, rows: Array, queries: Array, k: int) -> tuple[Array, Array]:
        """Return squared distances and rows of one search."""
        search = self.search(rows, len(queries), k)
        found = search.run(queries)
        search.close()
        return found


def integers(rng: np.random.Generator, *shape: int) -> Array:
    """Return small integers as float32: their products and sums are exact in any order."""
    return rng.integers(-4, 5, shape).astype(np.float32)


def expect_exact(bench: Bench, name: str, rows: Array, queries: Array, k: int) -> None:
    """Hold a search of small integers to what float64 gives: distances and rows, to the last bit."""
    squared, found = bench.nearest(rows, queries, k)
    wanted, places = ranked(squared_distances(queries, rows), k)
    same = bool((squared == wanted).all() and (found == places).all())
    bench.report.check(same, f"{name}: n {len(queries)}, m {len(rows)}, d {rows.shape[1]}, k {k}")


def edge_sizes(is_gpu: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield (n, m, d, k) around the edges of tiles: every pair of sizes is there, with every k that m allows."""
    turn = 0
    for n in EDGES if is_gpu else (1, 33, 129):
        for m in EDGES if is_gpu else (1, 129):
            for d in EDGES if is_gpu else (33,):
                k = NEIGHBOURS[turn % len(NEIGHBOURS)]
                turn += 1
                yield n, m, d, min(k, m)


def check_edges(bench: Bench) -> None:
    """Sizes around the edges of tiles, in both types."""
    for turn, (n, m, d, k) in enumerate(edge_sizes(bench.card.is_gpu)):
        types = np.float16 if turn % 2 else np.float32, np.float16 if turn % 3 else np.float32
        rows, queries = integers(bench.rng, m, d).astype(types[0]), integers(bench.rng, n, d).astype(types[1])
        expect_exact(bench, f"edges, {rows.dtype} and {queries.dtype}", rows, queries, k)


def check_ties(bench: Bench) -> None:
    """Of rows at one distance the lower ones, whatever the splits."""
    for k in NEIGHBOURS:
        many = 4000 if bench.card.is_gpu else 150
        rows = bench.rng.integers(-1, 2, (many, 3)).astype(np.float32)
        expect_exact(bench, "ties", rows, rows[:5], k)
        expect_exact(bench, "all rows equal", np.ones((many, 4), np.float32), integers(bench.rng, 2, 4), k)


def check_scales(bench: Bench) -> None:
    """Powers of two change no digit."""
    rows, queries = integers(bench.rng, 200, 18), integers(bench.rng, 6, 18)
    for exponent in (-58, -20, 14, 40, 58):
        by = np.float32(2.0**exponent)
        expect_exact(bench, f"scale 2^{exponent}", rows * by, queries * by, 3)


def check_not_finite(bench: Bench) -> None:
    """A query that is no number has no neighbour, and of a bank with one nobody has."""
    rows, queries = integers(bench.rng, 140, 5), integers(bench.rng, 4, 5)
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        for k in (1, 9):
            spoilt = queries.copy()
            spoilt[1, 3] = bad
            squared, found = bench.nearest(rows, spoilt, k)
            wanted = ranked(squared_distances(queries, rows), k)[0]
            rest = [0, 2, 3]
            holds = np.isnan(squared[1]).all() and (found[1] == -1).all() and (squared[rest] == wanted[rest]).all()
            bench.report.check(bool(holds), f"a query with {bad}, k {k}")
        damaged = rows.copy()
        damaged[77, 2] = bad
        search = bench.search(damaged, len(queries), 2)
        squared, found = search.run(queries)
        holds = np.isnan(squared).all() and (found == -1).all() and not search.is_finite()
        bench.report.check(bool(holds), f"a bank with {bad}")
        search.close()


def check_floats(bench: Bench) -> None:
    """The bound of the header, distances of the rows that are named, and recall; near zero and far from it."""
    shapes = ((784, 16384, 384), (784, 4096, 1536), (129, 1000, 33)) if bench.card.is_gpu else ((20, 300, 33),)
    for n, m, d in shapes:
        for offset in (0.0, 100.0):
            for k in (1, 9):
                rows = (bench.rng.standard_normal((m, d), np.float32) + np.float32(offset)).astype(np.float32)
                queries = (bench.rng.standard_normal((n, d), np.float32) + np.float32(offset)).astype(np.float32)
                _within_bound(bench, rows, queries, k, offset)


def _within_bound(bench: Bench, rows: Array, queries: Array, k: int, offset: float) -> None:
    squared, found = bench.nearest(rows, queries, k)
    name = f"floats around {offset:g}, n {len(queries)}, m {len(rows)}, d {rows.shape[1]}, k {k}"
    if not bench.report.check(bool(((found >= 0) & (found < len(rows))).all()), f"{name}: rows"):
        return
    # By differences, and not by the expanded square: far from zero that loses what is to be checked.
    differences = queries.astype(np.float64)[:, None] - rows.astype(np.float64)[found]
    own = (differences**2).sum(2)
    bench.report.check(bool((np.abs(squared - own) <= 1e-5 * own).all()), f"{name}: distances of the rows named")
    bench.report.check(bool((np.diff(squared, axis=1) >= 0).all()), f"{name}: nearest first")
    centred = rows.astype(np.float64) - offset, queries.astype(np.float64) - offset
    exact, places = ranked(squared_distances(centred[1], centred[0]), k)
    excess = np.sqrt(own) - np.sqrt(np.maximum(exact, 0))
    holds = bool((excess <= slack(queries, rows)[:, None]).all())
    bench.report.check(holds, f"{name}: the bound, {excess.max():.3g} too far")
    recall = float((found[:, 0] == places[:, 0]).mean())
    bench.report.row(
        "floats", offset=offset, n=len(queries), m=len(rows), d=rows.shape[1], k=k, recall_at_1=recall,
        largest_excess=float(excess.max()), bound=float(slack(queries, rows).min()),
    )  # fmt: skip


def check_repeats(bench: Bench) -> None:
    """Two runs are equal to the last bit; a graph gives the same, and one memory serves every batch."""
    m, d, positions, batches = (16384, 384, 784, 8) if bench.card.is_gpu else (200, 20, 9, 4)
    rows = bench.rng.standard_normal((m, d), np.float32)
    queries = bench.rng.standard_normal((batches * positions, d), np.float32)
    for k in (1, 9):
        search = bench.search(rows, len(queries), k)
        first, second = search.run(queries), search.run(queries)
        same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        bench.report.check(same, f"two runs, k {k}")
        for batch in range(1, batches + 1):
            n = batch * positions
            graph = bench.card.capture(lambda n=n, search=search: search.enqueue(n))  # type: ignore[misc]
            graph()
            replayed = search.results(n)
            same = all(np.array_equal(a, b[:n]) for a, b in zip(replayed, first, strict=True))
            bench.report.check(same, f"a graph of a batch of {batch} in the memory of {batches}, k {k}")
        search.close()


def check_other_streams(bench: Bench) -> None:
    """On the default stream as well, and on torch's with its arrays."""
    if not bench.card.is_gpu:
        return
    rows, queries = integers(bench.rng, 500, 64), integers(bench.rng, 100, 64)
    wanted = bench.nearest(rows, queries, 3)
    search = bench.search(rows, len(queries), 3, stream=0)
    search.card.copy_in(search.queries, queries)
    search.enqueue(len(queries))
    bench.card.driver.call("cuCtxSynchronize")  # type: ignore[attr-defined]  # the card waits for its own stream alone
    same = all(np.array_equal(a, b) for a, b in zip(search.results(len(queries)), wanted, strict=True))
    bench.report.check(same, "the default stream")
    search.close()
    try:
        import torch
    except ImportError:
        return bench.report.leave_out("torch's stream", "torch is not installed")
    if not torch.cuda.is_available():
        return bench.report.leave_out("torch's stream", "this torch has no CUDA")
    with torch.cuda.stream(torch.cuda.Stream()):
        array = torch.from_numpy(queries).cuda()
        search = bench.search(rows, len(queries), 3, stream=torch.cuda.current_stream().cuda_stream)
        bench.card.wait()
        search.enqueue(len(queries), queries=array.data_ptr())
        torch.cuda.current_stream().synchronize()
        same = all(np.array_equal(a, b) for a, b in zip(search.results(len(queries)), wanted, strict=True))
        bench.report.check(same, "torch's stream and memory")
        search.close()
    return None


def check_large(bench: Bench) -> None:
    """A bank with more than 2³¹ components: the rows beyond are found by their own numbers."""
    if not bench.card.is_gpu:
        return
    (m, d), block = LARGE, BLOCK
    needed = 6 * m * d
    if bench.card.free_bytes() < needed:
        bench.report.leave_out("a bank of more than 2^31 components", f"{needed >> 30} GiB are not free")
        return
    rows = bench.rng.standard_normal((block, d), np.float32).astype(np.float16)
    queries = bench.rng.standard_normal((64, d), np.float32).astype(np.float16)
    search = Search(bench.card, bench.kernels, (m, d), "float16", len(queries), 1)
    bench.card.copy_in(search.rows_at, rows)
    for start in range(block, m, block):
        size = 2 * d * min(block, m - start)
        bench.card.copy(search.rows_at + 2 * d * start, search.rows_at, size)
    first = min(2**31 // d, m // 2)  # of the rows that lie beyond
    planted = np.linspace(first, m - 1, len(queries)).astype(np.int64)
    for place, query in zip(planted, queries, strict=True):
        bench.card.copy_in(search.rows_at + 2 * d * int(place), query)
    search.pack()
    squared, found = search.run(queries)
    holds = bool((found[:, 0] == planted).all() and (squared == 0).all())
    bench.report.check(holds, f"a bank of {m} x {d}: rows beyond 2^31 components")
    search.close()


def check_cold_graph(bench: Bench) -> None:
    """The first search of a process inside a capture: `nearest_bytes` has loaded what is else at a first launch."""
    if not bench.card.is_gpu:
        return
    cold_graph.prepare(bench)
    command = [sys.executable, "-m", "gpu_stages.cold_graph", str(bench.report.work)]
    limit = max(1.0, min(60.0, bench.report.left_s))
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    bench.report.put(cold_graph=last)
    bench.report.check(done.returncode == 0, f"a search that is captured before it ever ran: {last}")


def check_host_memory(bench: Bench) -> None:
    """Plain memory of the host is refused before anything is started, but on a device that reads it."""
    if not bench.card.is_gpu:
        return
    from flawscope.errors import ArgumentError

    rows, queries = integers(bench.rng, 500, 64), integers(bench.rng, 100, 64)
    wanted = bench.nearest(rows, queries, 1)
    search = bench.search(rows, len(queries), 1)
    reads = bench.card.driver.reads_host_memory()  # type: ignore[attr-defined]
    try:
        search.enqueue(len(queries), queries=queries.ctypes.data)
    except ArgumentError as err:
        bench.report.check(not reads, f"memory of the host, on a device that reads it: {err}")
    else:
        bench.report.check(reads, "memory of the host was not refused")
        same = all(np.array_equal(a, b) for a, b in zip(search.results(len(queries)), wanted, strict=True))
        bench.report.check(same, "memory of the host, on a device that reads it")
    search.close()


CHECKS: tuple[Callable[[Bench], None], ...] = (
    check_floats,
    check_edges,
    check_repeats,
    check_not_finite,
    check_ties,
    check_scales,
    check_gaussians,
    check_windows,
    check_centres,
    check_diffusion,
    check_cold_graph,
    check_other_streams,
    check_captures,
    check_large,
    check_host_memory,  # the last: where it is not refused, the device may be dead after it
)


def on_card(report: Report) -> None:
    """All checks on the GPU, as far as the time goes."""
    _run(report, on_gpu=True)


def on_cpu(report: Report) -> None:
    """The same on small sizes in emulation."""
    _run(report, on_gpu=False)


def is_alive(card: Memory) -> bool:
    """Return whether the device still works: after most errors of a kernel it answers nothing else."""
    try:
        card.wait()
    except CudaError:
        return False
    return True


def _run(report: Report, on_gpu: bool) -> None:
    card, kernels = open_card(report, on_gpu)
    from flawscope.errors import FlawscopeError

    with opened(card):
        for check in CHECKS:
            if report.left_s < 0:
                report.leave_out(check.__name__, "no time left")
                continue
            before = report.left_s
            try:
                check(Bench(report, card, kernels, np.random.default_rng(0)))
            except (CudaError, FlawscopeError) as err:
                report.check(False, f"{check.__name__}: {err}")
                if not is_alive(card):
                    report.leave_out("what comes after", "the device answers every call with an error")
                    break
            report.row("parts", name=check.__name__, seconds=round(before - report.left_s, 2))
        report.summary(f"{report.checks} checks against float64")
