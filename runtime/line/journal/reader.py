"""Reading a journal, in the process that writes it and in others, while it is written."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flawscope.errors import ArgumentError, StorageError
from flawscope.runtime.line.journal.chain import Kind
from flawscope.runtime.line.journal.ledger import counts_of, unrecorded
from flawscope.runtime.line.journal.reviews import IS_REVIEWED, PartFacts, Review, facts_of, reviews_of
from flawscope.runtime.line.journal.rows import Row, entry_of, part_of
from flawscope.runtime.line.journal.schema import (
    APPLICATION,
    CHAIN_COLUMNS,
    COLUMNS,
    FILE,
    PART_COLUMNS,
    SCHEMA,
    TABLES,
    open_reader,
    snapshot,
)
from flawscope.runtime.line.journal.sealed import SEALED, files_with, last_sealed
from flawscope.runtime.line.parts import PartRecord

MOST_IDLE = 8
"""Connections that are kept for the next reader."""

_MOST_LINK = (1 << 63) - 1


class JournalReader:
    """Reads the journal of a state folder. Calls may come from any thread; each sees the last commit.

    Args:
        folder: State folder of the line.

    Attributes:
        line: Name of the line.

    Raises:
        ArgumentError: If there is no journal that this version can read.
        StorageError: If it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._is_closed = False
        if not self._path.is_file():
            raise ArgumentError(f"{folder}: expected a state folder with {FILE}, got none. Name that of a line.")
        try:
            self.line = self._checked()
        except BaseException:
            self.close()
            raise

    def _checked(self) -> str:
        """Return the line of the journal, if this version can read it."""
        with self.connection() as connection:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (schema,) = connection.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION or schema != SCHEMA:
                raise ArgumentError(
                    f"{self._path}: expected a journal of schema {SCHEMA}, got another file or version. Name the "
                    "state folder of a line, or install the flawscope that wrote it."
                )
            line: str = connection.execute("SELECT line FROM journal").fetchone()[0]
            return line

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection of its own to a block. Raises StorageError."""
        with self._lock:
            if self._is_closed:
                raise StorageError(f"{self._path}: expected an open journal, got one that was closed.")
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = open_reader(self._path)
            yield connection
        except sqlite3.Error as err:
            raise StorageError(f"{self._path}: could not be read: {err}. See to the disk.") from err
        finally:
            with self._lock:
                if connection is not None and not self._is_closed and len(self._idle) < MOST_IDLE:
                    self._idle.append(connection)
                    connection = None
            if connection is not None:
                connection.close()

    def entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Return entries in the order of the chain.

        Args:
            after: Place after which they begin; 0 for all.
            limit: Most entries.

        Returns:
            Entries as `rows.entry_of` makes them.

        Raises:
            DataError: If a row is no record, as after a change by hand.
            StorageError: If the file cannot be read.
        """
        with self.connection() as connection:
            return [entry_of(self.line, kind, row) for kind, row in rows_after(connection, after, limit)]

    def parts(
        self,
        after_seq: int = 0,
        limit: int = 100,
        station: str | None = None,
        verdict: str | None = None,
        newest_first: bool = False,
        before_seq: int | None = None,
        is_reviewed: bool | None = None,
    ) -> list[PartRecord]:
        """Return parts, each by its last revision, in the order of their numbers.

        Args:
            after_seq: Only those with a larger number.
            limit: Most parts.
            station: Only those of this station.
            verdict: Only those with this verdict.
            newest_first: Whether the order is from the largest number on.
            before_seq: Only those with a smaller number: the page that follows, where the newest come first.
            is_reviewed: Only those that somebody has reviewed, or only those that nobody has.

        Raises:
            DataError: If a row is no record, as after a change by hand.
            StorageError: If the file cannot be read.
        """
        conditions: list[str] = ["seq > ?"]
        values: list[int | str] = [after_seq]
        for text, value in (("station = ?", station), ("verdict = ?", verdict), ("seq < ?", before_seq)):
            if value is not None:
                conditions.append(text)
                values.append(value)
        if is_reviewed is not None:
            conditions.append(IS_REVIEWED if is_reviewed else f"NOT {IS_REVIEWED}")
        order = "DESC" if newest_first else "ASC"
        query = (
            f"SELECT {', '.join(PART_COLUMNS)} FROM part WHERE {' AND '.join(conditions)} ORDER BY seq {order} LIMIT ?"
        )
        with self.connection() as connection:
            rows = connection.execute(query, (*values, limit)).fetchall()
        return [part_of(dict(zip(PART_COLUMNS, row, strict=True))) for row in rows]

    def events(
        self, after: int = 0, limit: int = 100, *, before: int | None = None, newest_first: bool = False
    ) -> list[dict[str, Any]]:
        """Return events alone, in the order of the chain.

        Args:
            after: Only those with a later place in the chain.
            limit: Most events.
            before: Only those with an earlier place.
            newest_first: Whether the last one comes first.

        Returns:
            Events as `rows.entry_of` makes them.

        Raises:
            DataError: If a row is no record, as after a change by hand.
            StorageError: If the file cannot be read.
        """
        names = (*COLUMNS["event"], *CHAIN_COLUMNS)
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT {', '.join(names)} FROM event WHERE link > ? AND link < ? ORDER BY link {order} LIMIT ?"
        with self.connection() as connection:
            end = _MOST_LINK if before is None else before
            rows = connection.execute(query, (after, end, limit)).fetchall()
        return [entry_of(self.line, "event", dict(zip(names, row, strict=True))) for row in rows]

    def has_event(self, action: str) -> bool:
        """Return whether there is an event of an action; a sealed one counts where it is among `CARRIED`.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self.connection() as connection:
            query = "SELECT EXISTS (SELECT 1 FROM event WHERE action = ?)"
            if connection.execute(query, (action,)).fetchone()[0]:
                return True
            last = last_sealed(connection)
            return last is not None and action in last.carried

    def last_event(self, action: str, object: str) -> str:
        """Return what the last event of an action on an object has as new; empty for none. Raises StorageError.

        Of events that are sealed those among `CARRIED` are known.
        """
        with self.connection() as connection:
            query = "SELECT new FROM event WHERE action = ? AND object = ? ORDER BY link DESC LIMIT 1"
            row = connection.execute(query, (action, object)).fetchone()
            if row is not None:
                return str(row[0])
            last = last_sealed(connection)
            return "" if last is None else last.carried.get(action, {}).get(object, "")

    def sealed_in(self, seq: int) -> str:
        """Return the sealed file that a part is in, from the state folder on; empty for none. Raises StorageError."""
        with self.connection() as connection:
            return next((f"{SEALED}/{name}" for name in files_with(connection, seq)), "")

    def counts(self) -> dict[tuple[str, str], int]:
        """Return station and verdict -> number of parts, each by its last revision. Raises StorageError."""
        with self.connection() as connection:
            return counts_of(connection)

    def part_of(self, seq: int) -> PartRecord | None:
        """Return a part by its last revision; None where it has no record.

        Raises:
            DataError: If the row is no record, as after a change by hand.
            StorageError: If the file cannot be read.
        """
        return next(iter(self.parts(after_seq=seq - 1, before_seq=seq + 1)), None)

    def reviews(self, seq: int | None = None, after: int = 0, limit: int = 1000) -> list[Review]:
        """Return reviews of a part, or of all, in the order in which they were made; see `reviews_of`.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self.connection() as connection:
            return reviews_of(connection, seq, after, limit)

    def facts(self, first: int, last: int) -> dict[int, PartFacts]:
        """Return number -> verdict, and whether it was reviewed, of the parts from `first` to `last`.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self.connection() as connection:
            return facts_of(connection, first, last)

    def missing(self, first: int, last: int) -> list[int]:
        """Return the numbers from `first` to `last`, both included, that no part has: open parts, and lost ones.

        Raises:
            StorageError: If the file cannot be read.
        """
        with self.connection() as connection:
            return unrecorded(connection, first, last)

    def close(self) -> None:
        """Close the connections; those that are lent are closed when they come back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def rows_after(connection: sqlite3.Connection, after: int, limit: int) -> list[tuple[Kind, Row]]:
    """Return kind and row of entries in the order of the chain.

    Args:
        connection: A connection that is in no transaction.
        after: Place after which they begin.
        limit: Most entries.

    Raises:
        sqlite3.Error: If the file cannot be read.
    """
    # All tables at one moment: an entry that comes in between would leave a gap.
    with snapshot(connection):
        return _rows(connection, "link > ? ORDER BY link LIMIT ?", (after, limit))[:limit]


def rows_between(connection: sqlite3.Connection, after: int, last: int) -> list[tuple[Kind, Row]]:
    """Return kind and row of the entries behind a place, until another, which is written already.

    Raises:
        sqlite3.Error: If the file cannot be read.
    """
    return _rows(connection, "link > ? AND link <= ? ORDER BY link", (after, last))


def first_row(connection: sqlite3.Connection) -> int | None:
    """Return the place of the first entry whose row is there; None for none. Raises sqlite3.Error."""
    links = (connection.execute(f"SELECT MIN(link) FROM {table}").fetchone()[0] for table in TABLES.values())
    return min((link for link in links if link is not None), default=None)


def _rows(connection: sqlite3.Connection, condition: str, values: tuple[int, ...]) -> list[tuple[Kind, Row]]:
    found: list[list[tuple[Kind, Row]]] = []
    for kind, table in TABLES.items():
        names = (*COLUMNS[kind], *CHAIN_COLUMNS)
        rows = connection.execute(f"SELECT {', '.join(names)} FROM {table} WHERE {condition}", values).fetchall()
        found.append([(kind, dict(zip(names, row, strict=True))) for row in rows])
    return sorted(itertools.chain(*found), key=lambda entry: entry[1]["link"])
