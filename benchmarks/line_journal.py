"""Measure the journal of a line: time until a part is on the disk, parts per second, bytes, opening, verification.

The same time, too, while old rows are sealed and dropped beside it.

Beside it, what the disk itself takes: `fdatasync` after a page is appended. The folder must be on the disk that counts,
and nothing else should run.

    python benchmarks/line_journal.py FOLDER --out results/NAME.json

See README.md beside this file for the method.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from result_file import machine

from flawscope.files import write_text
from flawscope.runtime.line.clock import SystemClock, iso
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.keeping import Bounds, RowKeeper
from flawscope.runtime.line.journal.schema import FILE
from flawscope.runtime.line.journal.sealed import SEALED
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.parts import PartRecord, ViewRecord
from flawscope.versions import package_versions


def part(seq: int) -> PartRecord:
    """Return an accept with one view, as stations record them."""
    score = 0.8 + 0.001 * (seq % 100)
    view = ViewRecord("cam0", "accept", "", "", score, 1.25, 0, "ab" * 32, seq, "", "")
    latency = {"collected": 12.345, "scored": 61.789, "verdict": 62.012}
    now = time.time_ns()
    return PartRecord(
        seq, "top", f"id-{seq}", iso(now), now, "boot", 1, "accept", "", "", score, 1.25, 0, latency, (view,)
    )


def percentiles(times_s: Sequence[float]) -> dict[str, float]:
    """Return milliseconds."""
    values = np.array(times_s) * 1e3
    names = ("p50", "p90", "p99", "p99.9", "max")
    return dict(zip(names, map(float, np.percentile(values, (50, 90, 99, 99.9, 100))), strict=True))


def fdatasync(folder: Path, number: int) -> dict[str, float]:
    """Return what the disk takes to store an appended page."""
    times = []
    handle = os.open(folder / "page", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(number):
        started = time.perf_counter()
        os.write(handle, b"\1" * 4096)
        os.fdatasync(handle)
        times.append(time.perf_counter() - started)
    os.close(handle)
    (folder / "page").unlink()
    return percentiles(times)


def paced(journal: Journal, number: int, rate: float | None) -> dict[str, Any]:
    """Record parts at a rate, or each after the one before it (None); return milliseconds until each is on the disk."""
    times: list[float] = []
    answered = threading.Semaphore(0)
    first = journal.last_seq + 1
    began = time.perf_counter()
    for index in range(number):
        if rate is not None:
            time.sleep(max(0.0, began + index / rate - time.perf_counter()))
        started = time.perf_counter()

        def done(error: Exception | None, started: float = started) -> None:
            if error is not None:
                raise SystemExit(str(error))
            times.append(time.perf_counter() - started)
            answered.release()

        journal.record(part(first + index), done)
        if rate is None:
            answered.acquire()
    journal.flush(60.0)
    taken = time.perf_counter() - began
    return {"rate": rate, "parts": len(times), "per_second": len(times) / taken, "commit_ms": percentiles(times)}


def flooded(journal: Journal, number: int, open_parts: int) -> dict[str, Any]:
    """Record parts as fast as they are taken, so many of them open at once."""
    room = threading.Semaphore(open_parts)
    times: list[float] = []
    first = journal.last_seq + 1
    began = time.perf_counter()
    for seq in range(first, first + number):
        room.acquire()
        started = time.perf_counter()

        def done(error: Exception | None, started: float = started) -> None:
            times.append(time.perf_counter() - started)
            room.release()

        journal.record(part(seq), done)
    journal.flush(60.0)
    taken = time.perf_counter() - began
    return {"open": open_parts, "parts": number, "per_second": number / taken, "commit_ms": percentiles(times)}


class _Tomorrow(SystemClock):
    """The clock of the day after next: all rows are old by it."""

    def utc_ns(self) -> int:
        return super().utc_ns() + 2 * 24 * 3600 * 10**9


def kept(folder: Path, number: int, rates: Sequence[float], most_rows: int) -> dict[str, Any]:
    """Record parts at rates while old rows are sealed and dropped as a line does it, and once as fast as it goes."""
    journal = Journal.open(folder, "benchmark", SystemClock())
    rows, clock = [], _Tomorrow()
    journal.event("begun")
    journal.flush(60.0)
    for rate in rates:
        keeper = RowKeeper(folder, journal, clock, 1.0, Bounds(), most_rows=most_rows, settle_s=0.0)
        first, began = journal.entries(0, 1)[0]["link"], time.perf_counter()
        keeper.start()
        row = paced(journal, min(number, round(30 * rate)), rate)
        keeper.stop(60.0)
        dropped = journal.entries(0, 1)[0]["link"] - first
        rows.append({**row, "dropped": dropped, "dropped_per_second": dropped / (time.perf_counter() - began)})
    keeper = RowKeeper(folder, journal, clock, 1.0, Bounds(), most_rows=most_rows, load=1.0, settle_s=0.0)
    before, began = journal.entries(0, 1)[0]["link"], time.perf_counter()
    while keeper.turn():
        pass
    taken = time.perf_counter() - began
    keeper.stop()
    after = journal.entries(0, 1)[0]["link"]
    journal.close()
    files = list((folder / SEALED).iterdir())
    return {
        "paced": rows,
        "entries_per_second_of_a_core": (after - before) / taken,
        "files": len(files),
        "bytes_per_entry": sum(file.stat().st_size for file in files) / max(1, after - 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the journal is written, and removed afterwards")
    parser.add_argument("--number", type=int, default=2000, help="parts at each rate")
    parser.add_argument("--rates", type=float, nargs="*", default=[20.0, 200.0], help="parts a second")
    parser.add_argument("--open", type=int, nargs="*", default=[4, 64, 1024], help="parts that wait at once")
    parser.add_argument("--flood", type=int, default=50_000, help="parts as fast as they are taken")
    parser.add_argument("--sealed", type=int, default=10_000, help="most entries of a sealed file")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        figures["fdatasync_ms"] = fdatasync(folder, options.number)
        journal = Journal.open(folder, "benchmark", SystemClock())
        figures["one_by_one"] = paced(journal, options.number, None)
        figures["paced"] = [paced(journal, min(options.number, round(30 * rate)), rate) for rate in options.rates]
        figures["flooded"] = [flooded(journal, options.flood, number) for number in options.open]
        parts = journal.last_seq
        journal.close()
        figures["parts"] = parts
        figures["bytes_per_part"] = (folder / FILE).stat().st_size / parts
        started = time.perf_counter()
        Journal.open(folder, "benchmark", SystemClock()).close()
        figures["open_and_close_s"] = time.perf_counter() - started
        figures["kept"] = kept(folder, options.number, options.rates, options.sealed)
        started = time.perf_counter()
        found = verify(folder)
        figures["verify_entries_per_second"] = found.last_link / (time.perf_counter() - started)
        if not found.is_whole:
            raise SystemExit(found.wrong)
    document = {
        "suite": "line_journal",
        "settings": {name: value for name, value in vars(options).items() if name not in ("out", "folder")},
        "machine": machine(),
        "versions": {**package_versions(), "sqlite": sqlite3.sqlite_version},
        "figures": figures,
    }
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
