"""Opening the journal of a line: its lock, its check, and what happens to one that is broken."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawscope.errors import ArgumentError, DataError, StorageError
from flawscope.files import storage_errors
from flawscope.open_files import list_folder
from flawscope.runtime.line.clock import Clock, iso
from flawscope.runtime.line.journal.chain import beginning_hash, canonical
from flawscope.runtime.line.journal.heads import HEADS, Head, append_heads, read_heads
from flawscope.runtime.line.journal.schema import (
    APPLICATION,
    BEGINNING,
    FILE,
    HEAD_COLUMNS,
    SCHEMA,
    STATEMENTS,
    TABLES,
    complete_schema,
    has_sealed,
    open_reader,
    open_writer,
    snapshot,
)
from flawscope.runtime.line.journal.sealed import SEALED, last_sealed, links_of
from flawscope.runtime.line.journal.sealed_file import last_head
from flawscope.scratch import sync

LOCK = "journal.lock"
JUMP = 1_000_000
"""How much higher numbers go on after a broken journal: more than an hour of parts, so that none is given twice."""


@dataclass(frozen=True)
class Opened:
    """A journal that is open to write.

    Attributes:
        connection: The writer's connection.
        lock: Descriptor of the lock, which excludes other processes until it is closed.
        begun: Why it is a new one: `new`, or what was wrong with the one before; empty where it went on.
        problem: What an operator has to acknowledge; empty for nothing.
    """

    connection: sqlite3.Connection
    lock: int
    begun: str
    problem: str


class _Broken(Exception):
    """The file cannot be gone on with. The message is a clause without a subject."""


def open_file(folder: Path, line: str, clock: Clock) -> Opened:
    """Open the journal of a line, or begin it.

    A broken one is kept under another name, and a new one is begun that is chained to the last head that is known.

    Args:
        folder: State folder of the line; it is made where it is missing.
        line: Name of the line.
        clock: Clock of the line.

    Raises:
        ArgumentError: If it is the journal of another line, of a newer flawscope, or no journal at all.
        StorageError: If another process has it open, or the system refuses to read or write it.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with contextlib.ExitStack() as stack:
        lock = _locked(folder / LOCK)
        stack.callback(os.close, lock)
        with _database_errors(path):
            head = _last_head(folder, line)
            begun = _examined(path, line, head)
            if begun:
                told = "" if begun == "new" else _set_aside(path, begun, clock)
                known = None if begun == "new" else _known(folder, head)
                _begin(path, _beginning(line, clock, head, known), told)
            connection = open_writer(path)
            stack.callback(connection.close)
            if not has_sealed(connection):
                connection.execute("BEGIN IMMEDIATE")
                complete_schema(connection)
                connection.execute("COMMIT")
            (problem,) = connection.execute("SELECT problem FROM journal").fetchone()
            _complete_heads(connection, folder / HEADS, line)
        stack.pop_all()
    return Opened(connection, lock, begun, problem)


@contextlib.contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as err:
        raise StorageError(
            f"{path}: expected a journal that can be read and written, got: {err}. Check the permissions, the space of "
            "the disk, and whether another program has the file open."
        ) from err


def _locked(path: Path) -> int:
    with storage_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(handle)
        if isinstance(err, BlockingIOError):
            raise StorageError(
                f"{path.parent}: expected a state folder that no process uses, got one whose journal is open. Stop the "
                "line that runs there, or name another folder."
            ) from err
        raise StorageError(
            f"{path}: expected a file system with locks, got: {err.strerror}. Name a folder on a local disk."
        ) from err
    return handle


def is_in_use(folder: Path) -> bool:
    """Return whether a process has the journal of this state folder open; holds a shared lock for a moment."""
    try:
        handle = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # no line ran here, or its lock is not ours to open
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as err:
        return isinstance(err, BlockingIOError)
    finally:
        os.close(handle)
    return False


def _last_head(folder: Path, line: str) -> Head | None:
    heads = [head for head in read_heads(folder / HEADS)[0] if head.line == line]
    return max(heads, key=lambda head: head.link, default=None)


def _examined(path: Path, line: str, head: Head | None) -> str:
    """Return why a journal must be begun: `new`, or what is wrong with the one that is there; empty for a good one."""
    lost = "" if head is None else f"is missing although heads were signed until entry {head.link:,}"
    if not os.path.lexists(path):
        return lost or "new"
    connection = open_reader(path)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            # Killed while it was begun.
            return lost.replace("missing", "empty") or "new"
        _check_whose(connection, path, line)
        answers = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
        if answers != ["ok"]:
            return f"is broken ({answers[0]})"
        _check_begin(connection)
        _check_head(connection, head)
    except sqlite3.OperationalError:
        # It could not be read, which says nothing about what is in it.
        raise
    except sqlite3.DatabaseError as err:
        return f"is broken ({err})"
    except DataError as err:
        return f"is broken ({err})"
    except _Broken as err:
        return str(err)
    finally:
        connection.close()
    return ""


def _check_whose(connection: sqlite3.Connection, path: Path, line: str) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION:
        raise ArgumentError(f"{path}: expected the journal of a line, got another SQLite file. Name another folder.")
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema != SCHEMA:
        raise ArgumentError(
            f"{path}: expected a journal of schema {SCHEMA}, got {schema}. Install the flawscope that wrote it, or "
            "name another state folder."
        )
    row = connection.execute("SELECT line FROM journal").fetchone()
    if row is not None and row[0] != line:
        raise ArgumentError(
            f"{path}: expected the journal of line {line}, got that of line {row[0]}. Name another state folder, or "
            "the line as before."
        )


def _check_begin(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT COUNT(*) FROM journal").fetchone() != (1,):
        raise _Broken("does not say where it begins")


def _check_head(connection: sqlite3.Connection, head: Head | None) -> None:
    """Refuse to go on with a file that ends before what was signed: its numbers would be given a second time."""
    first_link = connection.execute("SELECT first_link FROM journal").fetchone()[0]
    sealed = last_sealed(connection)
    if head is None or head.link < max(first_link, sealed.last_link if sealed else 0):
        return
    if sealed is not None and (head.link, head.hash) == (sealed.last_link, sealed.hash):
        return
    for table in TABLES.values():
        found = connection.execute(f"SELECT hash FROM {table} WHERE link = ?", (head.link,)).fetchone()
        if found is not None:
            if found[0] != head.hash:
                raise _Broken(f"has another entry {head.link:,} than the head that was signed")
            return
    raise _Broken(f"ends before entry {head.link:,}, whose head was signed")


def _set_aside(path: Path, reason: str, clock: Clock) -> str:
    """Rename a broken journal and what belongs to it; return what an operator is told."""
    if not os.path.lexists(path):
        return f"the journal {reason}"
    # Of the time alone: names with the place in the chain would say what nobody knows any more.
    stem = f"journal-broken-{iso(clock.utc_ns())[:19].replace('-', '').replace(':', '')}Z"
    names = (path.with_name(f"{stem}{end}.db") for end in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
    kept = next(name for name in names if not os.path.lexists(name))
    with storage_errors(path):
        # The main file last: a process that is killed in between finds it again.
        for end in ("-wal", "-shm", ""):
            beside = path.with_name(path.name + end)
            if os.path.lexists(beside):
                beside.rename(kept.with_name(kept.name + end))
        sync(path.parent)
    return f"the journal {reason}; it is kept as {kept.name}"


def _known(folder: Path, head: Head | None) -> tuple[int, int]:
    """Return the largest link and part number that heads and files that were kept aside can tell."""
    link, seq = (0, 0) if head is None else (head.link, head.seq)
    kept = [path for path in list_folder(folder) if path.match("journal-broken-*.db")]
    for path in kept:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(open_reader(path)) as connection:
            for table in TABLES.values():
                link = max(link, connection.execute(f"SELECT MAX(link) FROM {table}").fetchone()[0] or 0)
            seq = max(seq, connection.execute("SELECT MAX(seq) FROM part_record").fetchone()[0] or 0)
    sealed = (
        [path for path in list_folder(folder / SEALED) if links_of(path.name)] if (folder / SEALED).is_dir() else []
    )
    for path in sorted(sealed, key=lambda path: links_of(path.name) or (0, 0))[-1:]:
        if (last := last_head(path)) is not None:
            link, seq = max(link, last.link), max(seq, last.seq)
    return link, seq


def _beginning(line: str, clock: Clock, head: Head | None, known: tuple[int, int] | None) -> dict[str, Any]:
    """Return what a journal says of itself; `known` is where numbers have been before, None for the first of a line."""
    link, seq = (0, 0) if known is None else (known[0] + JUMP, known[1] + JUMP)
    before = None if head is None else {"link": head.link, "hash": head.hash, "seq": head.seq}
    values = (line, SCHEMA, link + 1, seq + 1, iso(clock.utc_ns()), canonical(before).decode())
    return dict(zip(BEGINNING, values, strict=True))


def _begin(path: Path, beginning: dict[str, Any], problem: str) -> None:
    """Make the file."""
    connection = open_writer(path)
    try:
        # One transaction: whoever finds tables finds all of them.
        connection.execute("BEGIN IMMEDIATE")
        for statement in STATEMENTS:
            connection.execute(statement)
        complete_schema(connection)
        row = (*beginning.values(), beginning_hash(beginning), problem)
        connection.execute(f"INSERT INTO journal VALUES ({', '.join('?' * len(row))})", row)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    finally:
        connection.close()
    with storage_errors(path):
        sync(path.parent)


def _complete_heads(connection: sqlite3.Connection, path: Path, line: str) -> None:
    """Write the heads of the chain that a killed process, or a full disk, has kept out of their file."""
    known = {head.link for head in read_heads(path)[0] if head.line == line}
    with snapshot(connection):
        rows = connection.execute(f"SELECT {', '.join(HEAD_COLUMNS)} FROM head ORDER BY link DESC LIMIT 100").fetchall()
    heads = [
        Head(**{name.removeprefix("head_"): value for name, value in zip(HEAD_COLUMNS, row, strict=True)})
        for row in reversed(rows)
    ]
    if missing := [head for head in heads if head.link not in known]:
        with storage_errors(path):
            append_heads(path, missing)
