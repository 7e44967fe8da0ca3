"""A search whose first launch of all is inside a capture; started by the stage `correctness`.

    python -m gpu_stages.cold_graph WORK

The bank comes packed from the process that started this one, and copies are the driver's: before the capture nothing is
asked of the kernels but `nearest_bytes`, which loads them. Exit status 0 where the graph gives what it should.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gpu_stages.kernels import Search, open_card
from gpu_stages.report import Report

FILE = "cold_graph.npz"


def prepare(bench: Any) -> None:
    """Write a packed bank, queries and what a plain search finds for them."""
    rows, queries = (bench.rng.integers(-4, 5, (size, 64)).astype(np.float32) for size in (700, 100))
    search = bench.search(rows, len(queries), 1)
    squared, found = search.run(queries)
    arrays = {"rows": rows, "packed": search.packed(), "queries": queries, "squared": squared, "found": found}
    search.close()
    np.savez(bench.report.work / FILE, **arrays)


def main(arguments: list[str], on_gpu: bool = True) -> int:
    """Capture, replay, and compare; then the same without a graph."""
    work = Path(arguments[0])
    with np.load(work / FILE, allow_pickle=False) as file:
        given = dict(file)
    report = Report(work / "cold_graph.json", 60, work)
    card, kernels = open_card(report, on_gpu)
    rows, queries = given["rows"], given["queries"]
    search = Search(card, kernels, rows.shape, "float32", len(queries), 1).load_packed(rows, given["packed"])
    card.copy_in(search.queries, queries)
    graph = card.capture(lambda: search.enqueue(len(queries)))
    graph()
    ways = {"the graph": search.results(len(queries)), "a plain search": search.run(queries)}
    wanted = given["squared"], given["found"]
    wrong = [name for name, got in ways.items() if not all(map(np.array_equal, got, wanted))]
    print(f"different results: {' and '.join(wrong)}" if wrong else "equal", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
