"""The file of a journal: its tables, and connections to it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from flawscope.runtime.line.journal.chain import Kind

SCHEMA = 1
APPLICATION = 0x466C4C6A
"""`application_id` of the file, which tells it from other SQLite files."""

FILE = "journal.db"
BUSY_S = 2.0
"""How long a connection waits for another program that locks the file."""

PART_COLUMNS = (
    "seq",
    "station",
    "part_id",
    "utc",
    "mono_ns",
    "boot_id",
    "generation",
    "verdict",
    "reason",
    "detail",
    "score",
    "threshold",
    "threshold_revision",
    "latency_json",
    "views_json",
    "revision",
)
EVENT_COLUMNS = ("utc", "mono_ns", "boot_id", "actor", "role", "action", "object", "old", "new", "reason")
HEAD_COLUMNS = ("line", "head_link", "head_hash", "seq", "utc", "key", "signature")
CHAIN_COLUMNS = ("link", "prev_hash", "hash")

TABLES: dict[Kind, str] = {"part": "part_record", "event": "event", "head": "head"}
"""Kind of an entry -> its table."""

COLUMNS: dict[Kind, tuple[str, ...]] = {"part": PART_COLUMNS, "event": EVENT_COLUMNS, "head": HEAD_COLUMNS}
"""Kind of an entry -> the columns that are hashed."""

BEGINNING = ("line", "schema", "first_link", "first_seq", "begun", "before_json")
"""Columns of the one row of `journal` that the first entry is chained to."""

# NOT NULL is left out on purpose where a record may have nothing; types are affinities, which keep each value as it is:
# numbers of REAL columns come back as floats, so that the same bytes are hashed.
STATEMENTS = (
    """CREATE TABLE journal (
    line TEXT NOT NULL, schema INTEGER NOT NULL, first_link INTEGER NOT NULL, first_seq INTEGER NOT NULL,
    begun TEXT NOT NULL, before_json TEXT NOT NULL, beginning_hash TEXT NOT NULL, problem TEXT NOT NULL
)""",
    """CREATE TABLE part_record (
    seq INTEGER NOT NULL, station TEXT NOT NULL, part_id TEXT NOT NULL, utc TEXT NOT NULL, mono_ns INTEGER NOT NULL,
    boot_id TEXT NOT NULL, generation INTEGER NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL, score REAL, threshold REAL, threshold_revision INTEGER, latency_json TEXT NOT NULL,
    views_json TEXT NOT NULL, revision INTEGER NOT NULL,
    link INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, hash TEXT NOT NULL
)""",
    "CREATE UNIQUE INDEX part_by_seq ON part_record (seq, revision)",
    "CREATE INDEX part_by_verdict ON part_record (verdict, seq, station, revision)",
    """CREATE TABLE event (
    utc TEXT NOT NULL, mono_ns INTEGER NOT NULL, boot_id TEXT NOT NULL, actor TEXT NOT NULL, role TEXT NOT NULL,
    action TEXT NOT NULL, object TEXT NOT NULL, old TEXT NOT NULL, new TEXT NOT NULL, reason TEXT NOT NULL,
    link INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, hash TEXT NOT NULL
)""",
    "CREATE INDEX event_by_object ON event (action, object, link)",
    """CREATE TABLE head (
    line TEXT NOT NULL, head_link INTEGER NOT NULL, head_hash TEXT NOT NULL, seq INTEGER NOT NULL, utc TEXT NOT NULL,
    key TEXT NOT NULL, signature TEXT NOT NULL,
    link INTEGER PRIMARY KEY, prev_hash TEXT NOT NULL, hash TEXT NOT NULL
)""",
    "CREATE TABLE sink_cursor (sink TEXT PRIMARY KEY NOT NULL, link INTEGER NOT NULL)",
    f"""CREATE VIEW part AS SELECT {", ".join(f"r.{name}" for name in (*PART_COLUMNS, *CHAIN_COLUMNS))}
FROM part_record AS r WHERE NOT EXISTS (
    SELECT 1 FROM part_record AS later WHERE later.seq = r.seq AND later.revision > r.revision
)""",
)

SEALED_TABLE = "sealed"
ADDED = (
    f"""CREATE TABLE {SEALED_TABLE} (
    file TEXT NOT NULL, first_link INTEGER NOT NULL, last_link INTEGER PRIMARY KEY, first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL, said TEXT NOT NULL
)""",
)
"""What was added to the schema: a journal that was begun before has it from the next time on that a line opens it."""


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the file to write, and make it where it is missing: WAL, and on the disk before a commit returns.

    Raises:
        sqlite3.Error: If it cannot be opened.
    """
    # Statements begin and end transactions themselves; the thread that opens it is not the one that writes.
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # What a burst has made of the WAL is given back to the disk.
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the file to read alone; several threads may use the connection, one after the other.

    Raises:
        sqlite3.Error: If it cannot be opened.
    """
    options = "mode=ro"
    # SQLite makes a file of locks beside a journal in WAL; a copy on a medium that is read-only has no writer either.
    wal = path.with_name(path.name + "-wal")
    if not os.access(path.parent, os.W_OK) and not wal.exists():
        options += "&immutable=1"
    name = f"file:{quote(str(path.absolute()), safe='/')}?{options}"
    return sqlite3.connect(name, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all queries of a block see the file at one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def complete_schema(connection: sqlite3.Connection) -> None:
    """Add what a journal that was begun before does not have. Raises sqlite3.Error."""
    if not has_sealed(connection):
        for statement in ADDED:
            connection.execute(statement)


def has_sealed(connection: sqlite3.Connection) -> bool:
    """Return whether the file has the table of sealed files: one that no line has opened since has none."""
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (SEALED_TABLE,)).fetchone() is not None


def expected_schemas() -> tuple[set[tuple[str, str]], ...]:
    """Return name and text of everything that the file defines, today and where no line has opened it since."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in STATEMENTS:
            connection.execute(statement)
        before = stored_schema(connection)
        complete_schema(connection)
        return before, stored_schema(connection)
    finally:
        connection.close()


def stored_schema(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return name and text of everything that a file defines."""
    # Indexes of primary keys have no text. sqlite_stat1 is made by ANALYZE, which changes no answer.
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_stat%'"
    return {(name, sql) for name, sql in connection.execute(query)}
