"""A search whose first launch of all is inside a capture; started by the stage `correctness`.

    python -m gpu_stages.cold_graph WORK

Exit status 0 where the graph gives what a plain search gives afterwards.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from gpu_stages.kernels import Search, open_card
from gpu_stages.report import Report


def main() -> int:
    """Capture, replay, and compare."""
    work = Path(sys.argv[1])
    report = Report(work / "cold_graph.json", 60, work)
    card, kernels = open_card(report, on_gpu=True)
    rng = np.random.default_rng(0)
    rows, queries = (rng.integers(-4, 5, (size, 64)).astype(np.float32) for size in (700, 100))
    search = Search(card, kernels, rows.shape, "float32", len(queries), 1).load(rows)
    card.copy_in(search.queries, queries)
    graph = card.capture(lambda: search.enqueue(len(queries)))
    graph()
    captured = search.results(len(queries))
    plain = search.run(queries)
    same = all(np.array_equal(a, b) for a, b in zip(captured, plain, strict=True))
    print("equal" if same else "different results", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
