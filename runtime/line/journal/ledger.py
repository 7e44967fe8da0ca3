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
from flawscope.runtime.line.journal.schema import CHAIN_COLUMNS, COLUMNS, TABLES, snapshot
from flawscope.runtime.line.journal.sealed import Sealed, add_sealed, last_sealed

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
        sealed_link: Place of the last entry that is sealed, or the one before the first of this file.
        sealed_seq: Largest number of a part that is sealed; 0 for none.
    """

    first_seq: int
    link: int
    hash: str
    kind: Kind | str = ""
    last_seq: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    missing: set[int] = field(default_factory=set)
    lost: int = 0
    sealed_link: int = 0
    sealed_seq: int = 0


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
        if seq <= at.sealed_seq and (earlier is None or earlier[3] <= at.sealed_link):
            raise RecordRefused(
                f"part {seq}: expected a part whose rows are not sealed, got one before {at.sealed_seq:,}."
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

    def _earlier(self, seq: int) -> tuple[int, str, str, int] | None:
        query = "SELECT revision, station, verdict, link FROM part_record WHERE seq = ? ORDER BY revision DESC LIMIT 1"
        found: tuple[int, str, str, int] | None = self.connection.execute(query, (seq,)).fetchone()
        return found

    def add_event(self, row: Row) -> None:
        """Add an event. Raises sqlite3.Error."""
        self._add("event", row)

    def add_head(self, head: Head) -> None:
        """Add a head to the chain that it is the head of. Raises sqlite3.Error."""
        fields = msgspec.structs.asdict(head)
        self._add("head", {**fields, "head_link": head.link, "head_hash": head.hash})

    def seal(self, sealed: Sealed) -> None:
        """Note that entries are sealed.

        Raises:
            RecordRefused: If they do not follow those that are.
            sqlite3.Error: If the file cannot be written.
        """
        at = self.standing
        if sealed.first_link != at.sealed_link + 1 or sealed.last_link > at.link:
            raise RecordRefused(
                f"sealed rows: expected them from entry {at.sealed_link + 1:,} on, got {sealed.first_link:,} to "
                f"{sealed.last_link:,}."
            )
        add_sealed(self.connection, sealed)
        at.sealed_link, at.sealed_seq = sealed.last_link, sealed.highest_seq

    def drop(self, last: int) -> None:
        """Delete the rows of sealed entries until a place. Raises sqlite3.Error."""
        for table in TABLES.values():
            self.connection.execute(f"DELETE FROM {table} WHERE link <= ?", (min(last, self.standing.sealed_link),))

    def set_cursor(self, sink: str, link: int) -> None:
        """Note how far a sink is; it is not in the chain. Raises sqlite3.Error."""
        self.connection.execute("INSERT OR REPLACE INTO sink_cursor (sink, link) VALUES (?, ?)", (sink, link))

    def _add(self, kind: Kind, row: Row) -> None:
        at = self.standing
        record = {name: row[name] for name in COLUMNS[kind]}
        value = entry_hash(at.hash, kind, at.link + 1, record)
        self.connection.execute(_INSERT[kind], (*record.values(), at.link + 1, at.hash, value))
        at.link, at.hash, at.kind = at.link + 1, value, kind


def _check_revision(row: Row, earlier: tuple[int, str, str, int] | None) -> None:
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
    at = Standing(first_seq, first_link - 1, beginning, last_seq=first_seq - 1, sealed_link=first_link - 1)
    if (sealed := last_sealed(connection)) is not None:
        at.link, at.hash, at.kind = sealed.last_link, sealed.hash, "event"
        at.last_seq = max(at.last_seq, sealed.highest_seq)
        at.sealed_link, at.sealed_seq = sealed.last_link, sealed.highest_seq
    for kind, table in TABLES.items():
        last = connection.execute(f"SELECT link, hash FROM {table} ORDER BY link DESC LIMIT 1").fetchone()
        if last is not None and last[0] > at.link:
            at.link, at.hash, at.kind = last[0], last[1], kind
    at.counts.update(counts_of(connection))
    (largest,) = connection.execute("SELECT MAX(seq) FROM part_record").fetchone()
    at.last_seq = max(at.last_seq, largest or 0)
    return at


def counts_of(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """Return station and verdict -> number of parts, each by its last revision, those that are sealed included.

    Raises:
        DataError: If what is said of sealed rows was changed by hand.
        sqlite3.Error: If the file cannot be read.
    """
    with snapshot(connection):
        sealed = last_sealed(connection)
        counts = counts_between(connection, 0 if sealed is None else sealed.last_link, None)
    for station, of_station in (sealed.counts if sealed else {}).items():
        for verdict, number in of_station.items():
            counts[station, verdict] = counts.get((station, verdict), 0) + number
    return counts


def counts_between(connection: sqlite3.Connection, after: int, last: int | None) -> dict[tuple[str, str], int]:
    """Return station and verdict -> parts whose last revision lies behind a place, and not behind another.

    Raises:
        sqlite3.Error: If the file cannot be read.
    """
    until = "" if last is None else f" AND link <= {last:d}"
    query = f"SELECT station, verdict, COUNT(*) FROM part WHERE link > ?{until} GROUP BY station, verdict"
    return {(station, verdict): number for station, verdict, number in connection.execute(query, (after,))}


def unrecorded(connection: sqlite3.Connection, first: int, last: int) -> list[int]:
    """Return the numbers from `first` to `last`, both included, that no part has. Raises sqlite3.Error.

    Numbers of sealed parts are not among them.
    """
    sealed = last_sealed(connection)
    first = first if sealed is None else max(first, sealed.highest_seq + 1)
    query = "SELECT DISTINCT seq FROM part_record WHERE seq BETWEEN ? AND ? ORDER BY seq"
    found: list[int] = []
    expected = first
    for (seq,) in connection.execute(query, (first, last)):
        found.extend(range(expected, seq))
        expected = seq + 1
    return [*found, *range(expected, last + 1)]
