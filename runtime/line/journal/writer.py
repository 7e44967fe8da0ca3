"""The one thread that writes the journal: what is queued while it waits for the disk goes into one commit together."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flawscope.errors import FlawscopeError, StorageError
from flawscope.runtime.line.clock import Clock, iso
from flawscope.runtime.line.journal.events import EventRecord
from flawscope.runtime.line.journal.heads import Head
from flawscope.runtime.line.journal.ledger import MOST_OPEN, Ledger, RecordRefused, Standing
from flawscope.runtime.line.journal.recorder import Done
from flawscope.runtime.line.journal.rows import Row, event_row
from flawscope.runtime.line.journal.sealed import Sealed

MOST_KEPT = 10_000
"""Most entries that wait in memory."""

GROUP = 512
"""Most entries of a commit."""

RETRY_S = 1.0
CURSOR_S = 0.5
"""How long a cursor may wait for a commit of something else: a sink that was told too little sends again."""

IDLE_S = 5.0
HEAD_NS = 3600 * 10**9

_log = logging.getLogger(__name__)


@dataclass
class Entry:
    """A part or an event that waits to be written.

    Attributes:
        row: Its row.
        is_part: Whether it is a part.
        done: Called once, when it is written or given up.
        clears_problem: Whether it acknowledges what was wrong when the journal was opened.
        seals: What its event says is sealed; None for other events.
    """

    row: Row
    is_part: bool
    done: Done | None = None
    clears_problem: bool = False
    seals: Sealed | None = None

    @property
    def is_accept(self) -> bool:
        """Whether it is an accept, which nobody may give out later."""
        return self.is_part and self.row["verdict"] == "accept"

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"part {self.row['seq']}" if self.is_part else f"event {self.row['action']}"

    def settle(self, error: Exception | None) -> None:
        """Tell whoever waits. Nothing that goes wrong there ends the writer."""
        if self.done is None:
            if error is not None:
                _log.error("%s", error)
            return
        try:
            self.done(error)
        except Exception:
            _log.exception("%s is written, but whoever waited for it failed.", self.name)


@dataclass
class Mark:
    """Set when everything that was queued before it is written."""

    is_written: threading.Event = field(default_factory=threading.Event)


@dataclass
class Drop:
    """Rows of sealed entries that are deleted when nothing else is to be written.

    Attributes:
        last: Place of the last of them.
        is_over: Set when they are gone, or will not be.
        error: Why they will not; None where they are gone.
    """

    last: int
    is_over: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        self.error = error
        self.is_over.set()


class Writer:
    """Writes what is queued until it is closed.

    Args:
        connection: Its connection, which it closes.
        path: The file, for messages.
        clock: Clock of the line.
        boot: Boot of the machine.
        sign: Returns the head of a standing, signed.
        export: Writes heads to the file beside the journal; it may raise OSError.
        problem: What was wrong when the journal was opened.

    Attributes:
        committed: Notified after each commit.
        standing: Where the chain stood at the last commit; never changed, but replaced.
        beginning: Place before the first entry of this file.
        cursors: Sink -> link until which it has been told.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        clock: Clock,
        boot: str,
        *,
        sign: Callable[[Standing], Head],
        export: Callable[[list[Head]], None],
        problem: str,
    ) -> None:
        self._connection, self._path, self._clock, self._boot = connection, path, clock, boot
        self._sign, self._export = sign, export
        self._ledger = Ledger(connection)
        self.standing = self._ledger.saved()
        self.beginning: int = connection.execute("SELECT first_link - 1 FROM journal").fetchone()[0]
        self.cursors: dict[str, int] = dict(connection.execute("SELECT sink, link FROM sink_cursor"))
        self.committed = threading.Condition()
        self._wake = threading.Condition()
        self._inbox: deque[Entry | Mark] = deque()
        self._kept: deque[Entry | Mark] = deque()
        self._moved: dict[str, int] = {}
        self._moved_at = 0.0
        self._drop: Drop | None = None
        self._opening_problem = problem
        self._failure = ""
        self._failed_at = 0.0
        self._lost = 0
        self._head_ns: int | None = None
        self._unexported: list[Head] = []
        self._is_closing = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def problem(self) -> str:
        """What keeps the journal from being written, or what was wrong when it was opened; empty for nothing."""
        full = ""
        if self._lost:
            full = f"{self._lost:,} entries were given up, because {MOST_KEPT:,} wait already"
        return "; ".join(part for part in (self._opening_problem, self._failure, full) if part)

    def put(self, item: Entry | Mark) -> None:
        """Queue something, and never wait. What finds no place is given up at once, by this thread."""
        with self._wake:
            is_full = len(self._inbox) + len(self._kept) >= MOST_KEPT and isinstance(item, Entry)
            # Who is told by the writer of what was recorded may have something to record, until the end.
            is_open = not self._is_closing or (self._thread is threading.current_thread() and not self._has_ended)
            if is_open and not is_full:
                self._inbox.append(item)
                self._wake.notify()
                return
            reason = f"{MOST_KEPT:,} entries wait for the disk" if is_full else "the journal is closed"
            self._lost += is_full
        if isinstance(item, Entry):
            item.settle(self._given_up(item, reason))

    def move_cursor(self, sink: str, link: int) -> None:
        """Note how far a sink is; it is written with the next commit, or soon."""
        with self._wake:
            if not self._moved:
                self._moved_at = time.monotonic()
                self._wake.notify()
            self.cursors[sink] = self._moved[sink] = link

    def drop(self, drop: Drop) -> None:
        """Delete rows of sealed entries soon; one at a time is asked for."""
        with self._wake:
            if self._is_closing:
                drop.end(StorageError(f"{self._path}: sealed rows could not be deleted: the journal is closed."))
                return
            self._drop = drop
            self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        """Write what waits, sign the head and end; return whether it ended in time."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _given_up(self, entry: Entry, reason: str) -> StorageError:
        return StorageError(
            f"{self._path}: {entry.name} could not be recorded: {reason}. Free space, or see to the disk."
        )

    def _run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._turn()
            except Exception as err:
                # Whatever it was: the parts that come must get an answer.
                _log.exception("The writer of the journal goes on after an error.")
                self._fail(err)
                is_open = not self._is_closing
        self._end()

    def _turn(self) -> bool:
        """Write what there is; return whether there will be more."""
        with self._wake:
            # One wait alone: a cursor that moves meanwhile shortens the pause.
            if not self._is_due():
                self._wake.wait(self._pause_s())
            new, is_closing = list(self._inbox), self._is_closing
            # In one step with emptying the inbox: entries in between would be counted nowhere.
            self._kept.extend(new)
            self._inbox.clear()
        if self._failure and not is_closing and time.monotonic() < self._failed_at + RETRY_S:
            self._give_up_accepts(self._failure)
            return True
        self._tell_of_missing()
        is_written = self._write_kept(is_closing)
        if is_written:
            self._sign_if_due(is_closing)
            self._drop_if_idle()
        with self._wake:
            return not is_closing or (is_written and bool(self._inbox))

    def _is_due(self) -> bool:
        return bool(self._inbox) or self._is_closing or (self._drop is not None and not self._failure)

    def _pause_s(self) -> float:
        now = time.monotonic()
        pauses = [IDLE_S]
        if self._failure:
            pauses.append(self._failed_at + RETRY_S - now)
        elif self._moved:
            pauses.append(self._moved_at + CURSOR_S - now)
        return max(0.0, min(pauses))

    def _write_kept(self, is_closing: bool) -> bool:
        """Write all that waits; return whether that worked."""
        while self._kept or self._cursors_due(is_closing):
            group = list(itertools.islice(self._kept, GROUP))
            if not self._commit(group):
                return False
        return True

    def _cursors_due(self, is_closing: bool) -> bool:
        return bool(self._moved) and (is_closing or time.monotonic() >= self._moved_at + CURSOR_S)

    def _commit(self, group: list[Entry | Mark]) -> bool:
        """Write a group in one transaction and tell whoever waits; return whether that worked."""
        with self._wake:
            moved, lost = dict(self._moved), self._lost
        saved = self._ledger.saved()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            answers = [self._add(item) if isinstance(item, Entry) else None for item in group]
            if self._failure or lost:
                words = f"{lost:,} entries were given up, because {MOST_KEPT:,} waited." if lost else ""
                self._ledger.add_event(self._event("journal_recovered", old=self._failure, reason=words))
            for sink, link in moved.items():
                self._ledger.set_cursor(sink, link)
            self._connection.execute("COMMIT")
        except Exception as err:
            self._roll_back(saved)
            self._fail(err)
            return False
        with self._wake:
            for _ in group:
                self._kept.popleft()
            self._moved = {sink: link for sink, link in self._moved.items() if moved.get(sink) != link}
            self._failure, self._lost = "", self._lost - lost
        self._publish()
        for item, answer in zip(group, answers, strict=True):
            if isinstance(item, Mark):
                item.is_written.set()
                continue
            if item.clears_problem:
                self._opening_problem = ""
            item.settle(answer)
        return True

    def _drop_if_idle(self) -> None:
        """Delete the rows that may go, unless anything came meanwhile: nobody waits for that."""
        with self._wake:
            if self._drop is None or self._inbox:
                return
            drop, self._drop = self._drop, None
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._ledger.drop(drop.last)
            self._connection.execute("COMMIT")
        except Exception as err:
            # No failure of the journal: the next entry finds out by itself whether it can be written.
            with contextlib.suppress(sqlite3.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            drop.end(StorageError(f"{self._path}: sealed rows could not be deleted: {err}. See to the disk."))
            return
        drop.end(None)

    def _add(self, entry: Entry) -> Exception | None:
        """Add an entry to the chain; return why it is refused, which becomes an event."""
        if not entry.is_part:
            if entry.seals is not None:
                try:
                    self._ledger.seal(entry.seals)
                except RecordRefused as err:
                    return err
            self._ledger.add_event(entry.row)
            if entry.clears_problem:
                self._connection.execute("UPDATE journal SET problem = ''")
            return None
        try:
            self._ledger.add_part(entry.row)
        except RecordRefused as err:
            refused = self._event("record_refused", object=entry.name, new=entry.row["verdict"], reason=str(err))
            self._ledger.add_event(refused)
            return err
        return None

    def _roll_back(self, saved: Standing) -> None:
        with contextlib.suppress(sqlite3.Error):
            # A full disk has rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._ledger.restore(saved)

    def _publish(self) -> None:
        with self.committed:
            self.standing = self._ledger.saved()
            self.committed.notify_all()

    def _fail(self, err: Exception) -> None:
        """Note that the file cannot be written; accepts are given up, all else is kept."""
        reason = str(err) if isinstance(err, sqlite3.Error | FlawscopeError) else f"{type(err).__name__}: {err}"
        if not self._failure:
            _log.error("%s: could not be written: %s. It is tried again each second.", self._path, reason)
            failed = Entry(self._event("journal_failed", reason=reason), is_part=False)
            with self._wake:
                self._kept.append(failed)
        self._failure = f"the journal cannot be written: {reason}"
        self._failed_at = time.monotonic()
        self._give_up_accepts(self._failure)

    def _give_up_accepts(self, reason: str) -> None:
        with self._wake:
            accepts = [item for item in self._kept if isinstance(item, Entry) and item.is_accept]
            if accepts:
                rest = [item for item in self._kept if not (isinstance(item, Entry) and item.is_accept)]
                self._kept = deque(rest)
        for item in accepts:
            item.settle(self._given_up(item, reason))

    def _event(self, action: str, *, object: str = "", old: str = "", new: str = "", reason: str = "") -> Row:
        now, utc = self._clock.mono_ns(), iso(self._clock.utc_ns())
        return event_row(EventRecord(utc, now, self._boot, "line", "", action, object, old, new, reason))

    def _tell_of_missing(self) -> None:
        """Say which numbers have no record although far more parts followed than can be open at once."""
        at = self._ledger.standing
        lost = sorted(seq for seq in at.missing if seq < at.last_seq - MOST_OPEN) if at.missing else []
        if not lost and not at.lost:
            return
        words = [", ".join(map(str, lost[:10]))] if lost else []
        if more := at.lost + max(0, len(lost) - 10):
            words.append(f"{more:,} more")
        shown = " and ".join(words)
        at.missing.difference_update(lost)
        at.lost = 0
        _log.error("%s: parts without a record: %s.", self._path, shown)
        with self._wake:
            self._kept.append(Entry(self._event("missing_parts", new=shown), is_part=False))

    def _sign_if_due(self, is_closing: bool) -> None:
        now, at = self._clock.mono_ns(), self._ledger.standing
        is_due = is_closing or self._head_ns is None or now - self._head_ns >= HEAD_NS
        # A head of a head says nothing new.
        if is_due and at.kind and at.kind != "head":
            saved = self._ledger.saved()
            head = self._sign(saved)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._ledger.add_head(head)
                self._connection.execute("COMMIT")
            except Exception as err:
                self._roll_back(saved)
                self._fail(err)
                return
            self._unexported.append(head)
            self._publish()
        if is_due and at.kind:
            self._head_ns = now
            self._export_heads()

    def _export_heads(self) -> None:
        try:
            if self._unexported:
                self._export(self._unexported)
                self._unexported = []
        except OSError as err:
            # They are in the chain: the next time, or the next start, writes them.
            _log.error("%s: its signed heads could not be written beside it: %s.", self._path, err.strerror)

    def _end(self) -> None:
        """Give up what could not be written, and close the file."""
        with self._wake:
            self._has_ended = True
            rest = [item for item in (*self._kept, *self._inbox) if isinstance(item, Entry)]
            self._kept.clear()
            self._inbox.clear()
            drop, self._drop = self._drop, None
        if drop is not None:
            drop.end(StorageError(f"{self._path}: sealed rows could not be deleted: the journal is closed."))
        for item in rest:
            item.settle(self._given_up(item, self._failure or "the journal is closed"))
        if rest:
            _log.error("%s: %d entries could not be written before the end.", self._path, len(rest))
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        with self.committed:
            self.committed.notify_all()
