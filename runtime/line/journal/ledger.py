"""Where the chain of a journal stands, and how an entry is added to it inside of a transaction."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass, field, replace

import msgspec

from flawscope.errors import FlawscopeError
from flawscope.runtime.line.journal.chain import Kind, entry_hash
from flawscope.runtime.line.journal.heads import Head
from flawscope.runtime.line.journal.rows import Row
from flawscope.runtime.line.journal.schema import CHAIN_COLUMNS, COLUMNS, TABLES

MOST_OPEN = 64 * 1024
"""Most parts that a line can have open at once: stations times their depth. A number further behind is lost."""

MOST_AHEAD = 10_000_000
"""How far ahead of all others a number may be: one that is further has been read wrong."""

_INSERT = {
    kind: f"INSERT INTO {TABLES[kind]} ({', '.join((*names, *CHAIN_COLUMNS))}) "
    f"VALUES ({', '.join('?' * (len(names) + len(CHAIN_COLUMNS)))})"
    for kind, names in COLUMNS.items()
}


class RecordRefused(FlawscopeError):
    """A record cannot be in the journal: another of the part is there, or its number is impossible."""


@dataclass
class Standing:
    """What the writer knows of the chain without asking the file.

    Attributes:
        first_seq: Number of the first part of this file.
        link: Place of the last entry.
        hash: Its hash.
        kind: Its kind; empty before the first entry.
        last_seq: Largest number of a part.
        counts: Station and verdict -> parts, each by its last revision.
        missing: Numbers below `last_seq` that were passed over since the file was opened: open parts, mostly.
        lost: How many numbers were passed over at once that were too many to be open.
    """

    first_seq: int
    link: int
    hash: str
    kind: Kind | str = ""
    last_seq: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    missing: set[int] = field(default_factory=set)
    lost: int = 0


class Ledger:
    """Adds entries to the chain. The caller begins and ends transactions, and calls `restore` where one failed.

    Args:
        connection: Connection of the writer.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.standing = _standing(connection)

    def saved(self) -> Standing:
        """Return a copy of the standing, for `restore`."""
        at = self.standing
        return replace(at, counts=Counter(at.counts), missing=set(at.missing))

    def restore(self, saved: Standing) -> None:
        """Return to an earlier standing, because what was added since then has been rolled back."""
        self.standing = saved

    def add_part(self, row: Row) -> None:
        """Add a part.

        Raises:
            RecordRefused: If the part has a record that this one may not follow, or its number is impossible.
            sqlite3.Error: If the file cannot be written.
        """
        at = self.standing
        seq, station, verdict = row["seq"], row["station"], row["verdict"]
        if seq > at.last_seq + MOST_AHEAD or seq < 1:
            raise RecordRefused(
                f"part {seq}: expected a number from 1 to {at.last_seq + MOST_AHEAD:,}, as {at.last_seq:,} is the last "
                f"on record, got {seq:,}."
            )
        earlier = self._earlier(seq) if seq <= at.last_seq else None
        if seq < at.first_seq and verdict != "fault":
            raise RecordRefused(
                f"part {seq}: expected a fault, because this journal begins with part {at.first_seq:,}, got {verdict}. "
                "What was open before it may be a fault alone."
            )
        _check_revision(row, earlier)
        self._add("part", row)
        if earlier is not None:
            was = (earlier[1], earlier[2])
            at.counts[was] -= 1
            if not at.counts[was]:
                del at.counts[was]
        at.counts[station, verdict] += 1
        at.missing.discard(seq)
        if seq > at.last_seq:
            known = max(at.last_seq + 1, seq - MOST_OPEN)
            at.lost += known - at.last_seq - 1
            at.missing.update(range(known, seq))
            at.last_seq = seq

    def _earlier(self, seq: int) -> tuple[int, str, str] | None:
        query = "SELECT revision, station, verdict FROM part_record WHERE seq = ? ORDER BY revision DESC LIMIT 1"
        found: tuple[int, str, str] | None = self.connection.execute(query, (seq,)).fetchone()
        return found

    def add_event(self, row: Row) -> None:
        """Add an event. Raises sqlite3.Error."""
        self._add("event", row)

    def add_head(self, head: Head) -> None:
        """Add a head to the chain that it is the head of. Raises sqlite3.Error."""
        fields = msgspec.structs.asdict(head)
        self._add("head", {**fields, "head_link": head.link, "head_hash": head.hash})

    def set_cursor(self, sink: str, link: int) -> None:
        """Note how far a sink is; it is not in the chain. Raises sqlite3.Error."""
        self.connection.execute("INSERT OR REPLACE INTO sink_cursor (sink, link) VALUES (?, ?)", (sink, link))

    def _add(self, kind: Kind, row: Row) -> None:
        at = self.standing
        record = {name: row[name] for name in COLUMNS[kind]}
        value = entry_hash(at.hash, kind, at.link + 1, record)
        self.connection.execute(_INSERT[kind], (*record.values(), at.link + 1, at.hash, value))
        at.link, at.hash, at.kind = at.link + 1, value, kind


def _check_revision(row: Row, earlier: tuple[int, str, str] | None) -> None:
    seq, revision, verdict = row["seq"], row["revision"], row["verdict"]
    if revision and verdict != "fault":
        raise RecordRefused(f"part {seq}: expected a fault in place of an earlier record, got {verdict}.")
    if earlier is None:
        # A fault takes the place of an accept whose own record failed: the fault must not be lost with it.
        return
    if revision <= earlier[0]:
        raise RecordRefused(
            f"part {seq}: expected a part without a record, got one that is on record as {earlier[2]} "
            f"(revision {earlier[0]})."
        )
    if earlier[2] != "accept" or earlier[1] != row["station"]:
        raise RecordRefused(
            f"part {seq}: expected an accept of station {row['station']} to take the place of, got a record as "
            f"{earlier[2]} of station {earlier[1]}."
        )


def _standing(connection: sqlite3.Connection) -> Standing:
    """Return where the chain of a file ends."""
    query = "SELECT first_link, first_seq, beginning_hash FROM journal"
    first_link, first_seq, beginning = connection.execute(query).fetchone()
    at = Standing(first_seq, first_link - 1, beginning, last_seq=first_seq - 1)
    for kind, table in TABLES.items():
        last = connection.execute(f"SELECT link, hash FROM {table} ORDER BY link DESC LIMIT 1").fetchone()
        if last is not None and last[0] > at.link:
            at.link, at.hash, at.kind = last[0], last[1], kind
    at.counts.update(counts_of(connection))
    (largest,) = connection.execute("SELECT MAX(seq) FROM part_record").fetchone()
    at.last_seq = max(at.last_seq, largest or 0)
    return at


def counts_of(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """Return station and verdict -> number of parts, each by its last revision, as the file says."""
    query = "SELECT station, verdict, COUNT(*) FROM part GROUP BY station, verdict"
    return {(station, verdict): number for station, verdict, number in connection.execute(query)}


def unrecorded(connection: sqlite3.Connection, first: int, last: int) -> list[int]:
    """Return the numbers from `first` to `last`, both included, that no part has. Raises sqlite3.Error."""
    query = "SELECT DISTINCT seq FROM part_record WHERE seq BETWEEN ? AND ? ORDER BY seq"
    found: list[int] = []
    expected = first
    for (seq,) in connection.execute(query, (first, last)):
        found.extend(range(expected, seq))
        expected = seq + 1
    return [*found, *range(expected, last + 1)]
