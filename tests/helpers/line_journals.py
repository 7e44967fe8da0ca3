"""Journals of lines for tests: parts, a clock that is set, and changes by hand of whoever has the file."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from flawscope.runtime.line.journal.chain import Kind, entry_hash
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.schema import COLUMNS, FILE, TABLES
from flawscope.runtime.line.parts import PartRecord, Reason, Verdict, ViewRecord

WAIT_S = 30.0
"""Longest wait of a test: reached only where something is broken."""

NOW_NS = 1_780_000_000 * 10**9


class SetClock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_ns, self.wall_ns = 10**12, NOW_NS

    def mono_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.wall_ns


def a_part(
    seq: int, verdict: Verdict = "accept", *, station: str = "top", reason: Reason = "inference", revision: int = 0
) -> PartRecord:
    """Return a part with one view, or a fault of the part itself."""
    views: tuple[ViewRecord, ...] = ()
    if verdict != "fault":
        views = (ViewRecord("cam0", verdict, score=0.1 * seq, threshold=1.5, threshold_revision=0, bundle="ab" * 32),)
    return PartRecord(
        seq,
        station,
        f"id-{seq}",
        "2026-11-30T03:52:59.123Z",
        10**12 + seq,
        "boot",
        1,
        verdict,
        reason if verdict == "fault" else "",
        score=0.1 * seq if views else None,
        threshold=1.5 if views else None,
        threshold_revision=0 if views else None,
        latency_ms={"collected": 1.5, "verdict": 20.25},
        views=views,
        revision=revision,
    )


class Answers:
    """What `done` was called with, in order."""

    def __init__(self) -> None:
        self.given: list[tuple[int, Exception | None]] = []
        self._came = threading.Condition()

    def of(self, seq: int):
        """Return the `done` of a part."""

        def done(error: Exception | None) -> None:
            with self._came:
                self.given.append((seq, error))
                self._came.notify_all()

        return done

    def wait_for(self, number: int) -> list[tuple[int, Exception | None]]:
        """Return the answers when so many have come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.given) >= number, WAIT_S), self.given
            return list(self.given)


@contextlib.contextmanager
def opened(folder: Path, clock: SetClock | None = None) -> Iterator[Journal]:
    """Open the journal of line `press` for a block."""
    journal = Journal.open(folder, "press", clock or SetClock())
    try:
        yield journal
    finally:
        journal.close()


@contextlib.contextmanager
def by_hand(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the file of a journal as anybody can."""
    connection = sqlite3.connect(folder / FILE, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def computed_anew(connection: sqlite3.Connection) -> None:
    """Compute all hashes of a journal anew, as whoever changed a row can; heads are of the chain that results."""
    previous = connection.execute("SELECT beginning_hash FROM journal").fetchone()[0]
    link = connection.execute("SELECT first_link FROM journal").fetchone()[0]
    while found := _entry(connection, link):
        kind, record = found
        if kind == "head":
            record["head_hash"] = previous
            connection.execute("UPDATE head SET head_hash = ? WHERE link = ?", (previous, link))
        value = entry_hash(previous, kind, link, record)
        query = f"UPDATE {TABLES[kind]} SET prev_hash = ?, hash = ? WHERE link = ?"
        connection.execute(query, (previous, value, link))
        previous, link = value, link + 1


def _entry(connection: sqlite3.Connection, link: int) -> tuple[Kind, dict[str, object]] | None:
    for kind, table in TABLES.items():
        row = connection.execute(f"SELECT {', '.join(COLUMNS[kind])} FROM {table} WHERE link = ?", (link,)).fetchone()
        if row is not None:
            return kind, dict(zip(COLUMNS[kind], row, strict=True))
    return None
