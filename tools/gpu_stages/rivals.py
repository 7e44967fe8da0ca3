"""What the search is measured beside: torch's float16 product, with topk, and its cdist with topk. Written, not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gpu_stages.card import Work
from gpu_stages.kernels import Array

Replayed = Callable[[Sequence[Work], Callable[[Work], float]], dict[str, float]]
CDIST_PAIRS = 1 << 28
"""Pairs above which cdist is left out: it would take most of the time."""


class Rivals:
    """Torch's ways to the nearest rows, each captured as a graph for every set of queries.

    Args:
        sets: Number of sets of queries.

    Attributes:
        problem: Why there are none, or None.
    """

    def __init__(self, sets: int) -> None:
        self._sets = sets
        self.problem: str | None = None
        try:
            import torch
        except ImportError:
            self.problem = "torch is not installed"
            return
        if not torch.cuda.is_available():
            self.problem = "this torch has no CUDA, or none that this driver serves"
        self._torch: Any = torch

    def measure(self, rows: Array, queries: Array, k: int, replayed: Replayed) -> dict[str, Any]:
        """Return the times of each rival, or why it has none.

        Args:
            rows: float32 [M, D].
            queries: float32 [N, D].
            k: Neighbours.
            replayed: Takes calls and a function that measures one; returns their times.
        """
        torch = self._torch
        bank = torch.from_numpy(rows).cuda()
        plain = torch.from_numpy(queries).cuda()
        asked = [plain.roll(number, 0) for number in range(self._sets)]
        narrow_bank, narrow = bank.half(), [one.half() for one in asked]
        norms = (bank * bank).sum(1)

        def product(at: int) -> Any:
            return narrow[at] @ narrow_bank.T

        def with_topk(at: int) -> Any:
            return torch.topk(norms - 2 * (narrow[at] @ narrow_bank.T), k, 1, largest=False)

        def cdist(at: int) -> Any:
            return torch.topk(torch.cdist(asked[at], bank), k, 1, largest=False)

        pairs = len(rows) * len(queries)
        # Bytes of a pair: float16 products, and for topk what is made of them in float32.
        ways = {"product": (product, 2), "product_topk": (with_topk, 10)}
        if pairs <= CDIST_PAIRS:
            ways["cdist_topk"] = (cdist, 8)
        found: dict[str, Any] = {}
        for name, (way, width) in ways.items():
            # Twice: what runs before the capture, and the memory of the graphs.
            if torch.cuda.mem_get_info()[0] < 2 * width * pairs:
                found[name] = {"problem": "not enough memory is free"}
                continue
            try:
                found[name] = replayed(self._captured(way), self._milliseconds)
            except RuntimeError as err:  # out of memory, or a capture that is refused
                found[name] = {"problem": str(err).splitlines()[0][:200]}
                torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return found

    def _captured(self, way: Callable[[int], Any]) -> list[Work]:
        # One pool for all: the graphs are replayed one after another, and nobody reads what they leave.
        pool = self._torch.cuda.graph_pool_handle()
        return [self._graph(way, at, pool) for at in range(self._sets)]

    def _graph(self, way: Callable[[int], Any], at: int, pool: Any) -> Work:
        torch = self._torch
        way(at)  # before the capture, so that torch has made all that it makes once
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            way(at)
        return lambda: graph.replay()

    def _milliseconds(self, call: Work) -> float:
        torch = self._torch
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))
