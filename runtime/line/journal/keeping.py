"""Keeping a journal small: rows that are old enough are sealed in a signed file, and then dropped.

One thread does both in small steps, each followed by a pause that is many times as long, so that verdicts and records
find the processor and the disk free. The file is whole before the journal notes it, and the journal has noted it before
a row goes: a process that is killed in between goes on where it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from flawscope.errors import DataError, FlawscopeError
from flawscope.files import atomic_file, sha256_file
from flawscope.open_files import list_folder
from flawscope.runtime.line.clock import Clock, iso
from flawscope.runtime.line.journal.heads import Head
from flawscope.runtime.line.journal.ledger import counts_between
from flawscope.runtime.line.journal.reader import JournalReader, first_row, rows_between
from flawscope.runtime.line.journal.recorder import Done, TakesEvents
from flawscope.runtime.line.journal.schema import COLUMNS, TABLES
from flawscope.runtime.line.journal.sealed import SEALED, Sealed, file_name, last_sealed, links_of
from flawscope.runtime.line.journal.sealed_file import (
    Content,
    Line,
    entry_in,
    head_in,
    head_line,
    line_of,
    lines_of,
    packed,
)
from flawscope.text import NOT_JSON

MOST_ROWS = 100_000
"""Most entries of a sealed file."""

READ_ROWS = 128
"""Entries that are read, hashed and packed before a pause."""

DROP_ROWS = 200
"""Entries whose rows are deleted in one transaction, which a record that comes meanwhile has to wait for."""

LOAD = 0.05
"""Largest share of the time in which the thread works."""

PERIOD_S = 60.0

SETTLE_S = 3600.0
"""How long the wall clock must have gone evenly: one that is years ahead until it is set would make all rows old."""

_JUMP_NS = 60 * 10**9
_WAIT_S = 0.2

_log = logging.getLogger(__name__)

PartImages = tuple[int, tuple[str, ...]]
"""Number of a part, and the paths of its stored images below the state folder."""


class KeptJournal(TakesEvents, Protocol):
    """What is asked of the journal."""

    @property
    def oldest_open(self) -> int:
        """Smallest number that has no record yet; 0 for none."""

    def cursor(self, sink: str) -> int:
        """Return the place in the chain until which a sink has been told."""

    def seal(self, sealed: Sealed, reason: str, done: Done) -> None:
        """Queue the note that entries are in a sealed file."""

    def drop(self, last: int) -> None:
        """Delete the rows of sealed entries until a place."""

    def signed_head(self, link: int, hash: str, seq: int) -> Head:
        """Return a signed head."""


class Bounds(NamedTuple):
    """What must not be sealed, although it is old.

    Attributes:
        required: Sinks that must have been told before.
        oldest_open: Returns the smallest number of a part that is open; 0 for none.
        drop_images: Deletes the stored images of parts whose rows go next, and returns what went wrong.
    """

    required: Sequence[str] = ()
    oldest_open: Callable[[], int] = lambda: 0
    drop_images: Callable[[Sequence[PartImages]], str] = lambda parts: ""


class _Due(NamedTuple):
    """Entries that are sealed next."""

    before: Sealed | None
    prev_hash: str
    first: int
    last: int


class _Stopped(Exception):
    """The line ends; what was begun is begun anew at the next start."""


class RowKeeper:
    """Seals and drops old rows, from `start` to `stop`.

    Args:
        folder: State folder of the line.
        journal: Its journal, which is open.
        clock: Clock of the line.
        days: Whole days, in UTC, for which rows stay.
        bounds: What stays longer.
        most_rows: Most entries of a sealed file.
        load: Largest share of the time in which the thread works.
        settle_s: Seconds for which the wall clock must have gone evenly before anything is old; `SETTLE_S` by default.

    Raises:
        FlawscopeError: If the journal cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        journal: KeptJournal,
        clock: Clock,
        days: float,
        bounds: Bounds,
        *,
        most_rows: int = MOST_ROWS,
        load: float = LOAD,
        settle_s: float | None = None,
    ) -> None:
        self._folder, self._journal, self._clock, self._days, self._bounds = folder, journal, clock, days, bounds
        self._most_rows, self._load = most_rows, load
        self._settle_ns = round((SETTLE_S if settle_s is None else settle_s) * 1e9)
        self._ahead_ns: int | None = None
        self._even_since_ns = 0
        self._reader = JournalReader(folder)
        self._told = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="old rows", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End after the step that is being done. Twice is harmless."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._reader.close()

    def turn(self) -> bool:
        """Drop what is sealed, then seal one file of what is due; return whether there may be more.

        Raises:
            FlawscopeError: If a file cannot be written, or rows are not what was recorded; nothing is lost then.
        """
        with self._reader.connection() as connection:
            before = last_sealed(connection)
        if before is not None:
            self._drop_until(before.last_link)
        if not self._is_settled() or (due := self._due()) is None:
            return False
        if (sealed := self._sealed(due)) is None:
            return False
        self._note(sealed)
        self._drop_until(sealed.last_link)
        return True

    def _run(self) -> None:
        # Verdicts come first. Linux has a priority for each thread; others have none, and then it stays what it is.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._stopping.is_set():
            try:
                while self.turn():
                    pass
                self._told = ""
            except _Stopped:
                return
            except Exception as err:  # whatever it is: the line goes on, and so do the attempts
                self._tell(str(err) if isinstance(err, FlawscopeError) else f"{type(err).__name__}: {err}")
            self._stopping.wait(PERIOD_S)

    def _tell(self, problem: str) -> None:
        """Say once what is wrong; all rows are still there, or in a sealed file."""
        if problem != self._told and not self._stopping.is_set():
            self._told = problem
            _log.error("Old rows of the journal stay for now: %s", problem)
            self._journal.event("sealing_failed", object="journal", reason=problem)

    def _is_settled(self) -> bool:
        """Return whether the wall clock has gone evenly for long enough."""
        now = self._clock.mono_ns()
        ahead_ns = self._clock.utc_ns() - now
        if self._ahead_ns is None or abs(ahead_ns - self._ahead_ns) > _JUMP_NS:
            self._ahead_ns, self._even_since_ns = ahead_ns, now
        return now - self._even_since_ns >= self._settle_ns

    def _due(self) -> _Due | None:
        """Return what is sealed next; None for nothing."""
        with self._reader.connection() as connection:
            before = last_sealed(connection)
            query = "SELECT first_link - 1, beginning_hash FROM journal"
            floor, prev_hash = connection.execute(query).fetchone()
            if before is not None:
                floor, prev_hash = before.last_link, before.hash
            limits = [floor + self._most_rows, *(self._journal.cursor(name) for name in self._bounds.required)]
            # The last signed head stays, with the entry that it is the head of: a start looks for it.
            limits.append((connection.execute("SELECT MAX(head_link) FROM head").fetchone()[0] or 0) - 1)
            opened = [seq for seq in (self._journal.oldest_open, self._bounds.oldest_open()) if seq]
            if opened:
                # All of the parts behind it, too: whatever is sealed has a smaller number than all that may come.
                query = "SELECT MIN(link) FROM part_record WHERE seq >= ?"
                (link,) = connection.execute(query, (min(opened),)).fetchone()
                limits += [] if link is None else [link - 1]
            now = self._clock.utc_ns()
            last = _last_old(connection, floor, min(limits), iso(_day_before(now, self._days)), iso(now))
        return None if last is None else _Due(before, prev_hash, floor + 1, last)

    def _sealed(self, due: _Due) -> Sealed | None:
        """Return the sealed file of what is due: one that a killed process has left, or a new one; None for not yet."""
        folder = self._folder / SEALED
        for path in list_folder(folder) if folder.is_dir() else []:
            links = links_of(path.name)
            if links is not None and links[0] == due.first:
                # Where it has more: a sink whose cursor was lost in the kill must catch up first.
                return (
                    None
                    if links[1] > due.last
                    else self._found(path, _Due(due.before, due.prev_hash, due.first, links[1]))
                )
        return self._written(due)

    def _written(self, due: _Due) -> Sealed:
        """Write a sealed file."""
        content = Content(self._reader.line, due.first, due.last, due.before, due.prev_hash)
        with self._reader.connection() as connection:
            utc = next(iter(rows_between(connection, due.first - 1, due.first)))[1]["utc"]
        path = self._folder / SEALED / file_name(utc, due.first, due.last)
        with atomic_file(path, durable=True) as temporary:
            with temporary.open("wb") as file, packed(file) as lines:
                lines.write(line_of(content.header()))
                while content.link < due.last:
                    with self._step():
                        lines.write(b"".join(self._next_lines(content, due.last)))
                head = self._journal.signed_head(content.link, content.hash, content.highest_seq)
                lines.write(head_line(head))
            sha256 = sha256_file(temporary)
        return content.sealed(path.name, sha256, self._counts(due))

    def _next_lines(self, content: Content, last: int) -> list[bytes]:
        until = min(content.link + READ_ROWS, last)
        with self._reader.connection() as connection:
            rows = rows_between(connection, content.link, until)
        lines = []
        for kind, row in rows:
            record = {name: row[name] for name in COLUMNS[kind]}
            lines.append(content.add(kind, row["link"], record, row["hash"]))
        if content.link < until:
            raise DataError(f"entry {content.link + 1:,}: expected it in the journal, got none. Verify the journal.")
        return lines

    def _found(self, path: Path, due: _Due) -> Sealed:
        """Return what a file holds that was written, and not noted, before a process was killed."""
        content = Content(self._reader.line, due.first, due.last, due.before, due.prev_hash)
        lines = lines_of(path)
        is_right = next(lines, {}) == content.header()
        head: Line = {}
        is_over = not is_right
        while not is_over:
            with self._step():
                for _ in range(READ_ROWS):
                    line = next(lines, None)
                    entry = None if line is None else entry_in(line)
                    if line is None or entry is None:
                        is_over, head = True, line or {}
                        break
                    content.add(*entry)
        with self._reader.connection() as connection:
            (_, row), *_ = rows_between(connection, due.last - 1, due.last) or [("event", {"hash": ""})]
        found = head_in(head)
        # The same hash at its end: all of it is what the journal has.
        is_right = is_right and found is not None and (found.link, found.hash) == (due.last, row["hash"])
        if not is_right or (content.link, content.hash) != (due.last, row["hash"]) or next(lines, None) is not None:
            raise DataError(
                f"{path}: expected the entries {due.first:,} to {due.last:,} of the journal, got something else. "
                "Move it away."
            )
        return content.sealed(path.name, sha256_file(path), self._counts(due))

    def _counts(self, due: _Due) -> dict[tuple[str, str], int]:
        with self._reader.connection() as connection:
            return counts_between(connection, due.first - 1, due.last)

    def _note(self, sealed: Sealed) -> None:
        """Note a file in the journal, and wait until that is on the disk."""
        answers: list[Exception | None] = []
        is_over = threading.Event()

        def done(error: Exception | None) -> None:
            answers.append(error)
            is_over.set()

        self._journal.seal(sealed, f"rows older than {self._days:g} days", done)
        while not is_over.wait(_WAIT_S):
            # A disk that fails is tried again by the writer; what it writes after the end is found at the next start.
            if self._stopping.is_set():
                raise _Stopped
        if answers[0] is not None:
            raise answers[0]

    def _drop_until(self, last: int) -> None:
        """Delete rows that are sealed, and the images that they name."""
        while True:
            with self._reader.connection() as connection:
                first = first_row(connection)
                if first is None or first > last:
                    return
                until = min(last, first + DROP_ROWS - 1)
                query = "SELECT seq, views_json FROM part_record WHERE link <= ?"
                images = [(seq, _images_of(views)) for seq, views in connection.execute(query, (until,))]
            with self._step():
                # Before the rows: killed in between, the rows that are left find their images again.
                if problem := self._bounds.drop_images([(seq, paths) for seq, paths in images if paths]):
                    self._tell(problem)
                self._journal.drop(until)

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Do a step, and pause for many times as long."""
        if self._stopping.is_set():
            raise _Stopped
        began = time.monotonic()
        yield
        if self._load < 1.0 and self._stopping.wait((time.monotonic() - began) * (1.0 / self._load - 1.0)):
            raise _Stopped


def _day_before(now_ns: int, days: float) -> int:
    """Return the beginning of the day, in UTC, that was so many days ago, in ns."""
    then = datetime.fromtimestamp(now_ns / 1e9, timezone.utc) - timedelta(days=days)
    return int(then.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()) * 10**9


def _last_old(connection: sqlite3.Connection, floor: int, top: int, before: str, now: str) -> int | None:
    """Return the last entry that is old, with all between `floor` and it; None for none.

    Times of a clock that was wrong do not count: later than now they are neither old nor young.
    """
    end = top
    for table in TABLES.values():
        query = f"SELECT link FROM {table} WHERE link > ? AND link <= ? AND utc BETWEEN ? AND ? ORDER BY link LIMIT 1"
        young = connection.execute(query, (floor, end, before, now)).fetchone()
        end = end if young is None else young[0] - 1
    last: int | None = None
    for table in TABLES.values():
        query = f"SELECT link FROM {table} WHERE link > ? AND link <= ? AND utc < ? ORDER BY link DESC LIMIT 1"
        old = connection.execute(query, (floor if last is None else last, end, before)).fetchone()
        last = last if old is None else old[0]
    return last


class _Named(msgspec.Struct, frozen=True):
    image: str = ""


def _images_of(views: str) -> tuple[str, ...]:
    try:
        return tuple(view.image for view in msgspec.json.decode(views, type=tuple[_Named, ...]) if view.image)
    except NOT_JSON:
        return ()  # changed by hand: its images stay
