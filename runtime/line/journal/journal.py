"""The journal of a line: parts and events in one chain, on the disk before anybody is told."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from flawscope.bundle.ed25519 import PrivateKey
from flawscope.errors import ArgumentError, StorageError
from flawscope.runtime.line.clock import Clock, boot_id, iso
from flawscope.runtime.line.journal.events import EventRecord
from flawscope.runtime.line.journal.heads import HEADS, Head, append_heads, device_key
from flawscope.runtime.line.journal.ledger import RecordRefused, Standing
from flawscope.runtime.line.journal.opening import Opened, open_file
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.recorder import Done
from flawscope.runtime.line.journal.reviews import PartFacts, Review
from flawscope.runtime.line.journal.rows import event_row, part_of, part_row
from flawscope.runtime.line.journal.schema import FILE
from flawscope.runtime.line.journal.sealed import ACTION as SEALING
from flawscope.runtime.line.journal.sealed import SEALED, Sealed
from flawscope.runtime.line.journal.writer import Drop, Entry, Mark, Writer
from flawscope.runtime.line.parts import PartRecord

CLOSE_S = 10.0
"""Longest time that the end waits for the disk."""

_log = logging.getLogger(__name__)


class Journal:
    """The record of truth of a line. Make one with `open`. Calls may come from any thread."""

    def __init__(self, folder: Path, line: str, clock: Clock, opened: Opened, key: PrivateKey | None) -> None:
        self._path, self._line, self._clock, self._boot = folder / FILE, line, clock, boot_id()
        self._key, self._lock = key, opened.lock
        self._is_closed = False
        self._reader = JournalReader(folder)
        try:
            self._writer = Writer(
                opened.connection,
                self._path,
                clock,
                self._boot,
                sign=self._head,
                export=lambda heads: append_heads(folder / HEADS, heads),
                problem=opened.problem,
            )
        except BaseException:
            self._reader.close()
            raise
        self._writer.start()

    @classmethod
    def open(cls, folder: Path, line: str, clock: Clock, *, sign: PrivateKey | None = None) -> Journal:
        """Open the journal of a line, or begin it.

        One that is broken, or that ends before a signed head, is kept under another name; a new one is begun, and
        `problem` says so until somebody acknowledges it. Its numbers go on a million higher, so that none is given
        twice.

        Args:
            folder: State folder of the line; it is made where it is missing.
            line: Name of the line.
            clock: Clock of the line.
            sign: Signs the heads; by default `keys/device.key` of the folder, which is made at the first start.

        Raises:
            ArgumentError: If it is the journal of another line or of a newer flawscope, or the key cannot be used.
            StorageError: If another process has it open, or the system refuses to read or write it.
        """
        opened = open_file(folder, line, clock)
        try:
            key = device_key(folder) if sign is None else sign
            journal = cls(folder, line, clock, opened, key)
        except BaseException:
            opened.connection.close()
            os.close(opened.lock)
            raise
        if opened.begun:
            journal.event("journal_begun", object=FILE, reason="" if opened.begun == "new" else opened.problem)
        if key is None:
            reason = "The package cryptography is not installed: heads are not signed."
            journal.event("heads_unsigned", reason=reason)
        return journal

    @property
    def last_seq(self) -> int:
        """Largest number of a part on record, or the one before the first of this journal."""
        return self._writer.standing.last_seq

    @property
    def last_link(self) -> int:
        """Place of the last entry on record, or the one before the first of this journal."""
        return self._writer.standing.link

    @property
    def oldest_open(self) -> int:
        """Smallest number that was passed over and has no record yet; 0 for none."""
        return min(self._writer.standing.missing, default=0)

    @property
    def problem(self) -> str:
        """What keeps the journal from being written, or what was wrong when it was opened; empty for nothing."""
        return self._writer.problem

    def record(self, part: PartRecord, done: Done | None = None) -> None:
        """Queue the record of a part.

        Parts come in the order of their verdicts, so numbers may be left open for a while. Revision 1 of a part is a
        fault that takes the place of an accept; the view `part` then shows the fault, and the chain keeps both.

        Args:
            part: The part.
            done: Called once: with None when the record is on the disk, or with the reason why it never will be.
                `RecordRefused`: the part is on record already, or its number is impossible. `StorageError`: the disk
                failed (accepts alone: all else is kept and tried again each second), or 10,000 entries wait for it.
                The writer calls it, which must not be held up; where nothing can be queued, this thread, before it
                returns.
        """
        try:
            row = part_row(part)
            # What could not be read again would be in the way of all that follows.
            part_of(row)
        except Exception as err:
            refused = RecordRefused(f"part {part.seq}: expected a record that can be stored, got: {err}.")
            refused.__cause__ = err
            self.event("record_refused", object=f"part {part.seq}", reason=str(refused))
            Entry({"seq": part.seq}, is_part=True, done=done).settle(refused)
            return
        self._writer.put(Entry(row, is_part=True, done=done))

    def event(
        self,
        action: str,
        *,
        actor: str = "line",
        role: str = "",
        object: str = "",
        old: str = "",
        new: str = "",
        reason: str = "",
    ) -> None:
        """Queue an event, as of now; see `EventRecord`."""
        self._queue_event(action, actor, role, object, old, new, reason)

    def acknowledge(self, actor: str, role: str = "") -> None:
        """Record that somebody knows what was wrong when the journal was opened; `problem` then forgets it."""
        self._queue_event("journal_acknowledged", actor, role, FILE, self.problem, "", "", clears_problem=True)

    def _queue_event(
        self,
        action: str,
        actor: str,
        role: str,
        object: str,
        old: str,
        new: str,
        reason: str,
        *,
        clears_problem: bool = False,
    ) -> None:
        utc, now = iso(self._clock.utc_ns()), self._clock.mono_ns()
        row = event_row(EventRecord(utc, now, self._boot, actor, role, action, object, old, new, reason))
        self._writer.put(Entry(row, is_part=False, clears_problem=clears_problem))

    def seal(self, sealed: Sealed, reason: str, done: Done) -> None:
        """Queue the note, with an event, that entries are in a sealed file; `drop` may delete them afterwards.

        Args:
            sealed: What the file holds.
            reason: Why they are sealed.
            done: Called by the writer, as that of `record`.
        """
        utc, now = iso(self._clock.utc_ns()), self._clock.mono_ns()
        said = EventRecord(
            utc, now, self._boot, "line", "", SEALING, f"{SEALED}/{sealed.file}", "", sealed.said(), reason
        )
        self._writer.put(Entry(event_row(said), is_part=False, done=done, seals=sealed))

    def drop(self, last: int, timeout_s: float = CLOSE_S) -> None:
        """Delete the rows of sealed entries until a place, when nothing else is to be written; one thread may ask.

        Raises:
            StorageError: If the disk fails, or there was no moment for it in time: it is done later then.
        """
        drop = Drop(last)
        self._writer.drop(drop)
        if not drop.is_over.wait(timeout_s):
            raise StorageError(f"{self._path}: sealed rows could not be deleted in {timeout_s:.0f} s. See to the disk.")
        if drop.error is not None:
            raise drop.error

    def signed_head(self, link: int, hash: str, seq: int) -> Head:
        """Return a signed head of an entry on record.

        Args:
            link: Its place.
            hash: Its hash.
            seq: Largest number of a part until then.
        """
        return Head(self._line, link, hash, seq, iso(self._clock.utc_ns())).signed_by(self._key)

    def cursor(self, sink: str) -> int:
        """Return the place until which a sink has been told; before the first time, that before the first entry."""
        # Not 0: after a broken journal places go on a million higher, and nobody is so far behind.
        return self._writer.cursors.get(sink, self._writer.beginning)

    def set_cursor(self, sink: str, link: int) -> None:
        """Note until where a sink has been told; a process that is killed may forget the last half second.

        Raises:
            ArgumentError: If nothing has that place yet.
        """
        if not 0 <= link <= self.last_link:
            raise ArgumentError(
                f"cursor of {sink}: expected a place in the chain of at most {self.last_link:,}, got {link:,}."
            )
        self._writer.move_cursor(sink, link)

    def entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Return entries in the order of the chain; see `JournalReader.entries`."""
        return self._reader.entries(after, limit)

    def events(
        self, after: int = 0, limit: int = 100, *, before: int | None = None, newest_first: bool = False
    ) -> list[dict[str, Any]]:
        """Return events alone, in the order of the chain; see `JournalReader.events`."""
        return self._reader.events(after, limit, before=before, newest_first=newest_first)

    def has_event(self, action: str) -> bool:
        """Return whether there is an event of an action; see `JournalReader.has_event`."""
        return self._reader.has_event(action)

    def last_event(self, action: str, object: str) -> str:
        """Return what the last event of an action on an object has as new; see `JournalReader.last_event`."""
        return self._reader.last_event(action, object)

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
        """Return parts, each by its last revision; see `JournalReader.parts`."""
        return self._reader.parts(after_seq, limit, station, verdict, newest_first, before_seq, is_reviewed)

    def part_of(self, seq: int) -> PartRecord | None:
        """Return a part by its last revision; see `JournalReader.part_of`."""
        return self._reader.part_of(seq)

    def sealed_in(self, seq: int) -> str:
        """Return the sealed file that a part is in; see `JournalReader.sealed_in`."""
        return self._reader.sealed_in(seq)

    def reviews(self, seq: int | None = None, after: int = 0, limit: int = 1000) -> list[Review]:
        """Return reviews in the order in which they were made; see `JournalReader.reviews`."""
        return self._reader.reviews(seq, after, limit)

    def facts(self, first: int, last: int) -> dict[int, PartFacts]:
        """Return verdicts, and whether parts were reviewed; see `JournalReader.facts`."""
        return self._reader.facts(first, last)

    def missing(self, first: int, last: int) -> list[int]:
        """Return the numbers from `first` to `last` that no part has; see `JournalReader.missing`."""
        return self._reader.missing(first, last)

    def counts(self) -> dict[tuple[str, str], int]:
        """Return station and verdict -> parts on record, each by its last revision; no query is made."""
        return dict(self._writer.standing.counts)

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until there is an entry beyond a place in the chain.

        Args:
            after: The place.
            timeout_s: Longest time to wait.

        Returns:
            Whether there is one.
        """
        with self._writer.committed:
            self._writer.committed.wait_for(lambda: self.last_link > after or self._is_closed, timeout_s)
            return self.last_link > after

    def flush(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait until what was queued before is on the disk, cursors too; return whether it is."""
        mark = Mark()
        self._writer.put(mark)
        end = time.monotonic() + timeout_s
        # In steps: a journal that is closed meanwhile never comes to the mark.
        while not mark.is_written.wait(min(0.1, max(0.0, end - time.monotonic()))):
            if self._is_closed or time.monotonic() >= end:
                return mark.is_written.is_set()
        return True

    def close(self) -> None:
        """Write what waits, sign the head and close the file. Calls after the first do nothing.

        What cannot be written within 10 seconds is given up, and said in the log.
        """
        if self._is_closed:
            return
        self._is_closed = True
        # First: the last connection moves the WAL into the file, which a reader cannot.
        self._reader.close()
        has_ended = self._writer.close(CLOSE_S)
        if has_ended:
            os.close(self._lock)
        else:
            # The lock stays: whoever opens the file now would write beside a thread that may come back.
            _log.error("%s: the disk did not answer in %.0f s; the last entries may be lost.", self._path, CLOSE_S)

    def _head(self, at: Standing) -> Head:
        return self.signed_head(at.link, at.hash, at.last_seq)
