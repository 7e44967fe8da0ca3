"""Measure a line beside the bare inspector: time from trigger to verdict, parts per second, and memory.

The same image files, from memory, go to `Inspector` (decode, score, decide) and to the stations of a line (decode,
scene, score, decide, record on the disk, verdict), in turns. The journal lies in FOLDER, on the disk that counts.

    python benchmarks/line.py BUNDLE IMAGE_FOLDER FOLDER --out results/NAME.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
from result_file import machine

from flawscope.files import write_text
from flawscope.imaging.image_files import images_in
from flawscope.resident_memory import resident_kib
from flawscope.runtime import Inspector
from flawscope.runtime.bench.trend import fit_slope
from flawscope.runtime.line import line as line_module
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.garbage import only_new_garbage
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.outputs.output import Signal
from flawscope.versions import package_versions

CONFIG = """
line: {{name: bench, state: state}}
http: {{listen: "127.0.0.1:0"}}
images: {images}
stations:
{stations}
"""
STATION = """
  - name: s{number}
    deadline_ms: {deadline_ms}
    collect_ms: 1000
    depth: {depth}
    outputs: [{{kind: modbus, listen: "127.0.0.1:{port}"}}]
    views:
      - name: cam0
        source: {{kind: push}}
        bundle: {bundle}
        backend: "{backend}"
        threads: {threads}
        scene: {{frozen: allow}}
"""

SOAK_IMAGES = {"quota_gb": 1.0, "min_days": 0.0}
"""What is stored of images in a soak: 100,000 parts would fill a disk otherwise, and deleting them belongs to it."""

SOAK_DEADLINE_MS = 600_000.0
"""Others may stop a process that runs for so long, and no part is a fault for that."""


class Told:
    """An output that notes when it is told a verdict; whoever gives parts waits for room here, and takes no core."""

    def __init__(self, depth: int) -> None:
        self.at: dict[int, int] = {}
        self._room = threading.Semaphore(depth)

    def wait_for_room(self) -> None:
        """Return when one of the last parts of this station has its verdict."""
        self._room.acquire()

    def verdict(self, signal: Signal) -> None:
        """Note when."""
        self.at[signal.seq] = time.monotonic_ns()
        self._room.release()

    def start(self, control: object) -> None:
        """Do nothing."""

    def state(self, state: object) -> None:
        """Do nothing."""

    def beat(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


@contextmanager
def running(
    options: argparse.Namespace,
    stations: int,
    *,
    deadline_ms: float = 5000.0,
    images: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Line]:
    """Yield a line of so many stations, with a journal of its own.

    Args:
        options: Those of the command line.
        stations: Number of stations.
        deadline_ms: Time for a verdict, in milliseconds.
        images: What is kept of images; by default as the line does.
    """
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = Path(folder) / "line.yml"
        bundle = json.dumps(str(options.bundle.resolve()))
        rows = [
            STATION.format(
                # A part has its verdict a moment before it is open no more.
                number=number,
                port=15020 + number,
                depth=options.depth + 2,
                deadline_ms=deadline_ms,
                bundle=bundle,
                backend=options.backend,
                threads="null" if options.threads is None else options.threads,
            )
            for number in range(stations)
        ]
        config.write_text(CONFIG.format(images=json.dumps(dict(images)), stations="".join(rows)))
        line = Line(read_config(config), lambda text: None)
        told = {f"s{number}": Told(options.depth) for number in range(stations)}
        line.told = told  # type: ignore[attr-defined]
        # In place of a PLC: it notes when it hears a verdict.
        with mock.patch.object(line_module, "open_output", lambda _, station: told[station]):
            line.start()
        try:
            with only_new_garbage():  # as `flawscope line run` does
                yield line
        finally:
            line.stop()


def with_rejects(inspector: Inspector, images: Sequence[bytes], share: float) -> list[bytes]:
    """Return as many images, of which so large a share are rejects: an image of a reject is stored, with its map."""
    kinds: dict[str, list[bytes]] = {"accept": [], "reject": []}
    for image, result in zip(images, inspector.stream(images), strict=True):
        kinds[result.decision].append(image)
    if not all(kinds.values()):
        raise SystemExit("expected images that are accepted and others that are rejected, got one kind")
    rejects = round(share * len(images))
    given = [*itertools.islice(itertools.cycle(kinds["accept"]), len(images) - rejects)]
    given += itertools.islice(itertools.cycle(kinds["reject"]), rejects)
    return [given[number] for number in np.random.default_rng(0).permutation(len(given))]


def settled(line: Line, count: int, *, may_fault: bool = False) -> None:
    """Wait until so many parts have their verdict on record."""
    stations = line.stations.values()
    end = time.monotonic() + 600  # others may stop this process for a while
    while True:
        counts = [station.counters.now() for station in stations]
        if sum(each.parts for each in counts) >= count and not any(each.open or each.unrecorded for each in counts):
            break
        if time.monotonic() > end:
            raise SystemExit(f"expected {count} parts, got {counts}")
        time.sleep(0.001)
    if not may_fault and any(each.fault for each in counts):
        raise SystemExit(f"expected no fault, got {counts}")


def inspect(inspector: Inspector, images: Sequence[bytes], batch: int) -> dict[str, Any]:
    """Inspect all images with the bare inspector."""
    started = time.perf_counter()
    times = [result.timings_ms["total"] for result in inspector.stream(images, batch)]
    return {"images_per_s": len(images) / (time.perf_counter() - started), "ms": times}


def inspect_paced(inspector: Inspector, images: Sequence[bytes], parts_per_s: float) -> list[float]:
    """Give images to a thread with the bare inspector at equal distances; return the times from arrival to decision.

    The least that a line can do at this rate: the same pauses, in which caches and clocks of the cores cool down, and
    the same waiting of an image for the one before it.
    """
    waiting: SimpleQueue[tuple[bytes, float] | None] = SimpleQueue()
    times: list[float] = []

    def work() -> None:
        while (item := waiting.get()) is not None:
            list(inspector.stream([item[0]]))
            times.append(1e3 * (time.perf_counter() - item[1]))

    thread = threading.Thread(target=work)
    thread.start()
    for image in at_distances(images, parts_per_s):
        waiting.put((image, time.perf_counter()))
    waiting.put(None)
    thread.join()
    return times


def at_distances(images: Sequence[bytes], parts_per_s: float) -> Iterator[bytes]:
    """Yield images at equal distances."""
    start = time.perf_counter()
    for number, image in enumerate(images):
        if (left := start + number / parts_per_s - time.perf_counter()) > 0:
            time.sleep(left)
        yield image


def burst(line: Line, images: Sequence[bytes], *, may_fault: bool = False) -> float:
    """Give all images to the stations in turn as fast as they have room, and return the parts per second."""
    before = sum(station.counters.now().parts for station in line.stations.values())
    stations = list(line.stations.values())
    started = time.perf_counter()
    for image, station in zip(images, itertools.cycle(stations), strict=False):
        line.told[station.name].wait_for_room()  # type: ignore[attr-defined]
        station.push({"cam0": image})
    settled(line, before + len(images), may_fault=may_fault)
    return len(images) / (time.perf_counter() - started)


def paced(line: Line, images: Sequence[bytes], parts_per_s: float) -> list[dict[str, float]]:
    """Trigger parts at equal distances, and return the times of each, from its trigger."""
    stations = list(line.stations.values())
    before = line.journal.last_seq
    count = sum(station.counters.now().parts for station in stations)
    for image, station in zip(at_distances(images, parts_per_s), itertools.cycle(stations), strict=False):
        line.told[station.name].wait_for_room()  # type: ignore[attr-defined]
        station.push({"cam0": image})
    settled(line, count + len(images))
    return [
        {
            "scored": record.latency_ms["scored"],
            "told": (line.told[record.station].at[record.seq] - record.mono_ns) / 1e6,  # type: ignore[attr-defined]
            "accept": float(record.verdict == "accept"),
        }
        for record in line.journal.parts(after_seq=before, limit=len(images))
    ]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of times."""
    return dict(zip(("p50", "p99", "p99_9", "max"), np.percentile(values, (50, 99, 99.9, 100)).tolist(), strict=True))


def measure(
    options: argparse.Namespace, inspector: Inspector, images: Sequence[bytes], stations: int
) -> dict[str, Any]:
    """Measure the bare inspector and a line in turns."""
    bare: list[dict[str, Any]] = []
    bare_paced: list[float] = []
    batches: list[float] = []
    bursts: list[float] = []
    verdicts: list[dict[str, float]] = []
    with running(options, stations) as line:
        burst(line, images)  # the first warms up
        inspect(inspector, images, 1)
        for _ in range(options.turns):
            bare.append(inspect(inspector, images, 1))
            batches.append(inspect(inspector, images, min(options.batch, inspector.manifest.max_batch))["images_per_s"])
            bursts.append(burst(line, images))
            parts_per_s = options.load * bare[-1]["images_per_s"]
            bare_paced += inspect_paced(inspector, images, parts_per_s)
            verdicts += paced(line, images, parts_per_s)
    alone = percentiles([ms for turn in bare for ms in turn["ms"]])
    alone_paced = percentiles(bare_paced)
    scored = percentiles([row["scored"] for row in verdicts])
    line_ms = percentiles([row["told"] for row in verdicts])
    record = percentiles([row["told"] - row["scored"] for row in verdicts if row["accept"]] or [0.0])
    per_s = {
        "inspector": float(np.median([turn["images_per_s"] for turn in bare])),
        "inspector_batch": float(np.median(batches)),
        "line": float(np.median(bursts)),
    }
    return {
        "stations": stations,
        "parts": len(verdicts),
        "inspector_ms": alone,
        "inspector_paced_ms": alone_paced,
        "trigger_to_verdict_ms": line_ms,
        "trigger_to_scored_ms": scored,
        "record_ms": record,
        "overhead_beside_record_ms": scored["p99"] - alone_paced["p99"],
        "per_s": per_s,
        "line_of_inspector": per_s["line"] / per_s["inspector"],
        "line_of_batch": per_s["line"] / per_s["inspector_batch"],
    }


def soak(options: argparse.Namespace, images: Sequence[bytes]) -> dict[str, Any]:
    """Give many parts to one station as fast as it takes them, and return how its memory grows.

    Nobody asks the page for anything. The line turns once a second, as its command lets it.
    """
    parts: list[int] = []
    resident: list[int] = []
    ends = threading.Event()
    started = time.perf_counter()
    with running(options, 1, deadline_ms=SOAK_DEADLINE_MS, images=SOAK_IMAGES) as line:
        (station,), (told,) = line.stations.values(), line.told.values()  # type: ignore[attr-defined]
        turning = threading.Thread(target=turn, args=(line, ends.wait))
        turning.start()
        try:
            while (given := station.counters.now().parts) < options.soak:
                # Whoever stops this process for ten seconds makes faults: an inspector counts as stuck then.
                burst(line, images, may_fault=True)
                # The benchmark's own list, not the line's.
                told.at.clear()
                if given >= options.soak * len(parts) // options.soak_points:
                    parts.append(station.counters.now().parts)
                    resident.append(resident_kib() or 0)
        finally:
            ends.set()
            turning.join()
        counts, stored = station.counters.now(), line.status().images
    seconds = time.perf_counter() - started
    # The first half is left out: pools and caches fill.
    half = len(parts) // 2
    slope = fit_slope(np.array(parts[half:], float), 1024.0 * np.array(resident[half:], float))
    if slope is None:
        raise SystemExit(f"expected at least 16 points, got {len(parts)}. Give more parts or points.")
    return {
        "parts": counts.parts,
        "verdicts": {"accept": counts.accept, "reject": counts.reject, "fault": counts.fault},
        "images": {"stored": stored.stored, "deleted": stored.deleted, "left_out": stored.left_out}
        if stored is not None
        else {},
        "seconds": round(seconds, 1),
        "bytes_per_part": {"slope": slope.value, "low": slope.low, "high": slope.high, "from_part": parts[half]},
        "points": {"parts": parts, "resident_kib": resident},
    }


def turn(line: Line, wait: Callable[[float], bool]) -> None:
    """Turn a line once a second until its end."""
    while not wait(1.0):
        line.turn()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure lines of 1 and 4 stations, and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("folder", type=Path, help="folder for the journals, on the disk that counts")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, help="threads of the inference; all cores by default")
    parser.add_argument("--rejects", type=float, help="share of rejects among the images; as they are by default")
    parser.add_argument("--count", type=int, default=200, help="images of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--stations", type=int, nargs="*", default=[1, 4], help="none: the soak alone")
    parser.add_argument("--load", type=float, default=0.5, help="share of the inspector's rate at which parts come")
    parser.add_argument("--soak", type=int, default=0, help="parts of the soak; 0 for none")
    parser.add_argument("--soak-points", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    images = [path.read_bytes() for path in itertools.islice(itertools.cycle(images_in(options.images)), options.count)]
    document: dict[str, Any] = {
        "suite": "line",
        "settings": {
            name: getattr(options, name)
            for name in ("backend", "threads", "rejects", "count", "turns", "batch", "depth", "load", "soak")
        },
        "machine": machine(),
        "versions": package_versions(),
    }
    with Inspector.load(options.bundle, options.backend, threads=options.threads) as inspector:
        if options.rejects is not None:
            images = with_rejects(inspector, images, options.rejects)
        document["bundle"] = {
            "method": inspector.manifest.method,
            "input": list(inspector.manifest.input.size),
            "backend": inspector.backend,
        }
        decisions = [result.decision for result in inspector.stream(images)]
        document["rejects"] = decisions.count("reject") / len(decisions)
        document["rows"] = [measure(options, inspector, images, stations) for stations in options.stations]
    if options.soak:
        document["soak"] = soak(options, images)
    text = json.dumps(document, indent=1)
    print(text)
    if options.out is not None:
        write_text(options.out, text + "\n")


if __name__ == "__main__":
    main()
