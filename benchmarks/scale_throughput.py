"""Images a second and memory of `score` in shards: one process with threads, a process for each core, and Ray workers.

All of them are started and open at the same time; each has a turn of all images, one after the other, and another one
begins each time. Time is from the first shard given out to the last whole file: images are read from the disk, decided
on, and written as shards. Results with as many threads must be equal to the last bit. Memory is the proportional set
size (PSS): a page that several processes share counts once in all.

    python benchmarks/scale_throughput.py BUNDLE IMAGES... --out results/NAME.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from result_file import machine

from flawscope.files import write_text
from flawscope.imaging.image_files import images_in
from flawscope.runtime.scale.driver import Driver
from flawscope.runtime.scale.executors import Executor, Placement, make_executor
from flawscope.runtime.scale.score_plan import Planned, ScoreRequest, plan_score
from flawscope.runtime.scale.shards import read_blocks
from flawscope.runtime.scale.work import encode_work
from flawscope.versions import package_versions

KINDS = ("threads", "processes", "ray", "apart", "ray-apart")
"""One process with all threads; as many processes with one thread each; the same as Ray workers; and both with a memory
bank of its own in each. A run has one cluster: `ray` and `ray-apart` go in runs of their own."""


@dataclass
class Case:
    """One of the ways.

    Attributes:
        kind: Its name, of `KINDS`.
        planned: The plan, in a folder of its own.
        executor: What does it.
        placement: How many workers and threads.
        rates: Images a second, by turn.
    """

    kind: str
    planned: Planned
    executor: Executor
    placement: Placement
    rates: list[float] = field(default_factory=list)

    def turn(self) -> None:
        """Do all shards, and note how fast."""
        plan = self.planned.plan
        started = time.perf_counter()
        Driver(self.planned.work, self.executor, lambda done, total: None).run(plan.tasks(), plan.items)
        self.rates.append(plan.items / (time.perf_counter() - started))

    def lines(self) -> list[bytes]:
        """Return the lines of all shards."""
        plan, out = self.planned.plan, Path(self.planned.work.out)
        return [b"".join(read_blocks(out, plan, task)) for task in plan.tasks()]

    def pids(self) -> list[int]:
        """Return the numbers of its worker processes, which their names end with."""
        return [int(name.rpartition(" ")[2].rstrip(")")) for name in self.executor.workers]


def memory_mib(pids: Sequence[int]) -> dict[str, float]:
    """Return the proportional (pss), resident (rss) and own (uss) memory of processes in MiB, each summed over them."""
    sums = {"pss": 0, "rss": 0, "uss": 0}
    names = {"Pss:": "pss", "Rss:": "rss", "Private_Clean:": "uss", "Private_Dirty:": "uss"}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            word, *rest = line.split()
            if word in names:
                sums[names[word]] += int(rest[0])
    return {name: round(kib / 1024, 1) for name, kib in sums.items()}


def opened(kind: str, folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack) -> Case:
    """Return a case, its workers ready."""
    cores = options.workers
    workers, threads = (1, cores) if kind == "threads" else (cores, 1)
    on = "ray" if kind.startswith("ray") else "local"
    placement = Placement(on=on, workers=workers, threads=threads, shares=not kind.endswith("apart"))
    request = ScoreRequest(
        bundle=options.bundle,
        images=options.files,
        out=folder / kind,
        placement=placement,
        backend="cpu",
        threads=threads,
        batch=options.batch,
        shard_size=options.shard_size,
    )
    planned = plan_score(request)
    executor = stack.enter_context(make_executor(encode_work(planned.work), placement))
    return Case(kind, planned, executor, placement)


def check_equal(cases: Sequence[Case]) -> None:
    """Raise SystemExit where two ways with as many threads have other results: with more, a sum may be rounded else."""
    known: dict[int, tuple[str, list[bytes]]] = {}
    for case in cases:
        kind, lines = known.setdefault(case.placement.threads, (case.kind, case.lines()))
        if case.lines() != lines:
            raise SystemExit(f"{case.kind}: expected the results of {kind}, got others.")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each case.

    Raises:
        SystemExit: If one has other results.
    """
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        cases = [opened(kind, Path(scratch), options, stack) for kind in options.kinds]
        for turn in range(options.turns + 1):
            for step in range(len(cases)):
                cases[(turn + step) % len(cases)].turn()
        check_equal(cases)
        first = cases[0].rates[1:]
        return [
            {
                "kind": case.kind,
                "workers": case.placement.workers,
                "threads": case.placement.threads,
                "images_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
                # Of the same turn: what else the machine does meets all of them.
                "times_first": {
                    "median": statistics.median(ratios := [a / b for a, b in zip(rates, first, strict=True)]),
                    "min": min(ratios),
                    "max": max(ratios),
                },
                "memory_mib": memory_mib(case.pids()),
            }
            for case in cases
            for rates in [case.rates[1:]]  # the first turn warms up
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all kinds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS[:3]), help="the first is compared with")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="workers, or threads of the one")
    parser.add_argument("--number", type=int, default=128, help="images")
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    settings = {
        name: str(value.name if isinstance(value, Path) else value)
        for name, value in vars(options).items()
        if name != "out"
    }
    options.files = images_in(options.images)[: options.number]
    rows = measure(options)
    for row in rows:
        print(json.dumps(row), flush=True)
    if options.out is not None:
        document = {
            "suite": "scale_throughput",
            "settings": settings,
            "machine": machine(),
            "versions": package_versions() | ({"ray": version("ray")} if "ray" in " ".join(options.kinds) else {}),
            "rows": rows,
        }
        write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
