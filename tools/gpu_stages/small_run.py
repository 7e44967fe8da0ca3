"""Every kernel once on small sizes, or one search of a shape: what is run below compute-sanitizer and Nsight Compute.

python -m gpu_stages.small_run WORK [N M D K]

The stages `sanitizer` and `ncu` start it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from gpu_stages.correctness import Bench, expect_exact, integers
from gpu_stages.kernels import Search, open_card
from gpu_stages.other_kernels import check_centres, check_diffusion, check_gaussians, check_windows
from gpu_stages.report import Report

SIZES = ((1, 1, 1, 1), (129, 257, 33, 1), (33, 300, 65, 9), (7, 200, 16, 64), (130, 129, 40, 17))


def every_kernel(bench: Bench) -> None:
    """Run all kernels, and check them: a tool that looks on must not change what they give."""
    for n, m, d, k in SIZES:
        expect_exact(bench, "small", integers(bench.rng, m, d), integers(bench.rng, n, d), k)
    check_gaussians(bench)
    check_windows(bench)
    check_centres(bench)
    check_diffusion(bench)


def one_search(bench: Bench, n: int, m: int, d: int, k: int) -> None:
    """Run a search three times."""
    rows, queries = (bench.rng.standard_normal((size, d), np.float32) for size in (m, n))
    search = Search(bench.card, bench.kernels, rows.shape, "float32", n, k).load(rows)
    for _ in range(3):
        search.run(queries)


def main(arguments: list[str], on_gpu: bool = True) -> int:
    """Run; return 0 where all checks hold."""
    work = Path(arguments[0])
    report = Report(work / "small_run.json", 600, work)
    card, kernels = open_card(report, on_gpu)
    bench = Bench(report, card, kernels, np.random.default_rng(0))
    if len(arguments) > 1:
        n, m, d, k = map(int, arguments[1:])
        one_search(bench, n, m, d, k)
    else:
        every_kernel(bench)
    card.wait()
    print(f"{report.checks} checks, failed: {report.failures or 'none'}", flush=True)
    return 1 if report.failures else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
