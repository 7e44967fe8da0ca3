"""A line whose bundles are changed while it runs: bundles that differ by their threshold, and waiting for swaps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from line_project import png, read_line
from line_stand_ins import wait_until
from tiny_bundle import write_tiny_bundle

from flawscope.bundle import Limits, Threshold, ThresholdLimits, Thresholds
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.station.station import Station
from flawscope.runtime.line.swap.swaps import Swaps

SWAP_S = 60.0
"""Longest wait for a swap of bundles of a few kilobytes."""


def limited(value: float, low: float = 90.0, high: float = 220.0) -> Thresholds:
    """Return thresholds of one value, with limits for overlays."""
    limits = Limits(low, high)
    return Thresholds(Threshold(value, "manual"), Threshold(value, "manual"), ThresholdLimits(limits, limits))


def write_bundle_at(path: Path, threshold: float, **changes: Any) -> str:
    """Write a tiny bundle that accepts what is no brighter than a threshold; returns its digest."""
    return write_tiny_bundle(path, thresholds=limited(threshold), **changes).digest


@contextlib.contextmanager
def running(folder: Path, *, said: list[str] | None = None, read: Any = None, **station: Any) -> Iterator[Line]:
    """Run a line of one station `top` with one view `cam0`; it is stopped afterwards, and its account must hold."""
    line = Line(read or read_line(folder, **station), (said if said is not None else []).append)
    line.start()
    try:
        yield line
    finally:
        line.stop()
    assert line.status().account_holds


def swaps_of(line: Line) -> Swaps:
    """Return the swaps of a line that was started."""
    assert line.swaps is not None
    return line.swaps


def top(line: Line) -> Station:
    """Return the station, which is ready."""
    station = line.stations["top"]
    wait_until(lambda: station.readiness.is_ready)
    return station


def verdict_of(line: Line, value: int) -> PartRecord:
    """Push an image of one brightness and return what is on record of it."""
    seq = top(line).push({"cam0": png(value)})
    wait_until(lambda: line.journal.part_of(seq) is not None)
    record = line.journal.part_of(seq)
    assert record is not None
    return record


def swapped(line: Line, digest: str, **options: Any) -> dict[str, Any]:
    """Swap to a bundle of the store, and return what is known when it is over."""
    swaps = swaps_of(line)
    swaps.begin("top", None, digest, **options)
    wait_until(lambda: swaps.state("top")["state"] != "running", SWAP_S)
    return swaps.state("top")


def step_of(state: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a step of a swap."""
    return next(step for step in state["steps"] if step["name"] == name)


def events_of(folder: Path, *actions: str) -> list[dict[str, Any]]:
    """Return the events of a line in their order, of some actions; of a line that has stopped, or has flushed."""
    reader = JournalReader(folder / "state")
    try:
        return [entry for entry in reader.entries(0, 10**6) if entry.get("action") in actions]
    finally:
        reader.close()


def check_generations(folder: Path) -> dict[int, str]:
    """Check that each part was decided by the bundle that its generation held; returns generation -> digest.

    For lines of one station with one view: each `generation` event comes before the first part of its number.
    """
    reader = JournalReader(folder / "state")
    try:
        entries = reader.entries(0, 10**6)
    finally:
        reader.close()
    held: dict[int, str] = {}
    for entry in entries:
        if entry.get("action") == "generation":
            number, _, rest = str(entry["new"]).partition(": ")
            digest = rest.partition(" by bundle ")[2].partition(",")[0]
            assert held.setdefault(int(number), digest) == digest, f"generation {number} held two bundles"
        if entry["kind"] == "part":
            for view in entry["views"]:
                assert not view["bundle"] or view["bundle"] == held[entry["generation"]], entry
    return held


def flip_a_byte(folder: Path, digest: str) -> None:
    """Change one byte of a bundle in the store."""
    path = folder / "state" / "bundles" / f"{digest}.flaw"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
