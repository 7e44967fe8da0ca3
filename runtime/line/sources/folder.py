"""Image files of a folder as parts: each file once, when nobody writes it any more.

The folder is listed again and again, which works on network drives, too. What was handed over and what has its verdict
is on record (`folder_record`), so that neither a new child process nor a new start of the line loses a file or inspects
one twice; after a crash between a verdict and its note the file is inspected twice, never not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import itertools
import logging
import os
import shutil
import stat
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from flawscope.errors import StorageError
from flawscope.files import atomic_file, is_litter
from flawscope.open_files import open_regular
from flawscope.runtime.line.sources.folder_record import FolderRecord, Identity
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.source import Frame
from flawscope.runtime.line.sources.table import FolderSource
from flawscope.scratch import is_scratch
from flawscope.text import printable, storable

_log = logging.getLogger(__name__)

_UNFINISHED = ("~", ".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".swp", ".lock")
_TRIES = 3
_LONGEST_SHARE = 2.0
_FORGET_S = 60.0


class FolderGrabber:
    """Gives the files of a folder.

    Args:
        options: The folder and how it is read.
        place: Where the source stands.
    """

    is_triggered = False

    def __init__(self, options: FolderSource, place: SourcePlace) -> None:
        self.policy = options.on_full
        self._options, self._folder = options, options.path
        # Without case: cameras write IMG.PNG, and a file that is passed over is a part without a verdict.
        self._match = options.match.lower()
        self._slot_bytes = place.slot_bytes
        self._done_folder = place.state / "done" / place.station / place.view
        self._record = FolderRecord(
            place.state / "sources" / place.station / f"{place.view}.folder.jsonl", place.in_flight
        )
        # Seen, but perhaps not whole: what it looked like, since when, and whether it was there at the start.
        self._unsettled: dict[str, tuple[Identity, float, bool]] = {}
        self._queue: deque[tuple[str, Identity]] = deque()
        self._queued: dict[str, Identity] = {}
        self._tries: dict[str, int] = {}
        self._is_first = True
        self._next_scan = self._next_forget = 0.0

    def open(self) -> None:
        """Look whether the folder is there, and read what is on record.

        Raises:
            SourceLost: If it cannot be listed, or the record not be read or written.
        """
        with self._recorded():
            self._record.open()
        self._scan()
        if self._options.after == "move":
            # The line may have been killed between the note and the move.
            for name in self._record.done_names():
                self._move(name)

    def grab(self, timeout_s: float) -> Frame | None:
        """Return the next file as bytes, or None if none came within the time.

        Raises:
            SourceLost: If the folder cannot be listed, or the record not be written.
        """
        with self._recorded():
            self._record.sync()
        until = time.monotonic() + timeout_s
        while True:
            frame = self._next_file()
            if frame is not None:
                return frame
            now = time.monotonic()
            if now >= self._next_scan:
                self._scan()
                if self._queue:
                    continue
                now = time.monotonic()
            if not self._options.watch and not self._unsettled and not self._queue:
                return Frame(None, time.monotonic_ns(), is_last=True)
            if now >= until:
                return None
            time.sleep(max(0.0, min(until, self._next_scan) - now))

    def trigger(self) -> None:
        """Do nothing: files come by themselves."""

    def done(self, source: str) -> None:
        """Note that a file has its verdict; with `after: move` it is moved.

        Raises:
            SourceLost: If that cannot be written.
        """
        with self._recorded():
            name = self._record.done(source)
        if name is not None and self._options.after == "move":
            self._move(name)

    def close(self) -> None:
        """Close the record."""
        self._record.close()

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        """Turn errors of the record into the word that the source does not work: it could inspect files twice."""
        try:
            yield
        except OSError as err:
            raise SourceLost(
                f"{printable(str(self._record.path))}: the record of inspected files cannot be kept: "
                f"{err.strerror or err}. Free space, or check the state folder."
            ) from err

    # Listing.

    def _scan(self) -> None:
        began = time.monotonic()
        found = self._listed()
        # Gone before they were whole, or renamed: no parts.
        self._unsettled = {name: seen for name, seen in self._unsettled.items() if name in found}
        settled = []
        for name, identity in found.items():
            if self._record.knows(name, identity) or self._queued.get(name) == identity:
                self._unsettled.pop(name, None)
                continue
            before = self._unsettled.get(name)
            if before is None or before[0] != identity:
                before = self._unsettled[name] = (identity, began, self._is_first or (before is not None and before[2]))
            if began - before[1] >= self._options.settle_ms / 1000:
                settled.append((not before[2], name, identity))
        for _, name, identity in sorted(settled):
            del self._unsettled[name]
            self._queue.append((name, identity))
            self._queued[name] = identity
        self._is_first = False
        if began >= self._next_forget:
            self._next_forget = began + _FORGET_S
            self._record.forget(found.keys(), began, moved=self._options.after == "move")
        now = time.monotonic()
        # A folder of a hundred thousand files takes a while to list: never more than a third of a core.
        self._next_scan = now + max(self._options.poll_ms / 1000, _LONGEST_SHARE * (now - began))

    def _listed(self) -> dict[str, Identity]:
        """Return the files that may be images, with what they look like."""
        found = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if _is_left_out(entry.name) or not fnmatch.fnmatchcase(entry.name.lower(), self._match):
                        continue
                    try:
                        facts = entry.stat()
                    except FileNotFoundError:  # gone meanwhile, or a link to nothing
                        continue
                    if stat.S_ISREG(facts.st_mode):
                        found[entry.name] = _identity(facts)
        except OSError as err:
            raise self._lost(err) from err
        return found

    def _lost(self, err: OSError) -> SourceLost:
        return SourceLost(
            f"{printable(str(self._folder))}: the folder cannot be listed: {err.strerror or err}. Check that it is "
            "there and may be read."
        )

    # Reading.

    def _next_file(self) -> Frame | None:
        """Return the next file that is whole and whose part can be told from others; None where there is none."""
        for _ in range(len(self._queue)):
            name, identity = self._queue.popleft()
            if self._record.is_open(name):
                # Rewritten before its first part has a verdict: `done` names a file, and must mean one part alone.
                self._queue.append((name, identity))
                continue
            del self._queued[name]
            if self._record.knows(name, identity):
                continue
            frame = self._read(name, identity)
            if frame is not None:
                self._tries.pop(name, None)
                with self._recorded():
                    self._record.taken(name, identity)
                return frame
        return None

    def _read(self, name: str, identity: Identity) -> Frame | None:
        """Return a file as an image, or as the word that it cannot be read; None where it is not to be taken now."""
        try:
            with open_regular(self._folder / name) as file:
                if _identity(os.fstat(file.fileno())) != identity:
                    self._wait_again(name, identity)
                    return None
                # One byte more than fits shows that it does not fit.
                data = file.read(min(identity.size, self._slot_bytes) + 1)
                if _identity(os.fstat(file.fileno())) != identity:
                    self._wait_again(name, identity)
                    return None
        except FileNotFoundError:
            self._look_at_folder()
            self._tries.pop(name, None)
            _log.warning("%s: was deleted before it was read: it is no part", printable(name))
            return None
        except OSError as err:
            self._look_at_folder()
            self._tries[name] = self._tries.get(name, 0) + 1
            if self._tries[name] < _TRIES:
                self._wait_again(name, identity)
                return None
            return _unreadable(name, f"the file cannot be read: {err.strerror or err}")
        if len(data) > self._slot_bytes:
            need = identity.size / (1 << 20) + 0.1
            return _unreadable(name, f"it has {identity.size:,} bytes: set slot_mb of the view to {need:.1f} or more")
        if len(data) != identity.size:
            self._wait_again(name, identity)
            return None
        if not data:
            return _unreadable(name, "the file is empty")
        return Frame(data, time.monotonic_ns(), source=storable(name))

    def _wait_again(self, name: str, identity: Identity) -> None:
        """Let a file settle once more."""
        self._unsettled[name] = (identity, time.monotonic(), False)

    def _look_at_folder(self) -> None:
        try:
            os.stat(self._folder)  # noqa: PTH116 its error, not whether it exists
        except OSError as err:
            raise self._lost(err) from err

    # After the verdict.

    def _move(self, name: str) -> None:
        """Move a file that has its verdict to the folder of such files, under a name that is free."""
        path = self._folder / name
        try:
            if not self._record.knows(name, _identity(os.stat(path))):  # noqa: PTH116
                return  # rewritten: another part
            target = _free_name(self._done_folder, name)
            try:
                path.rename(target)
            except OSError as err:
                if err.errno != errno.EXDEV:
                    raise
                _copy(path, target)
                path.unlink()
        except FileNotFoundError:
            return  # somebody else took it
        except (OSError, StorageError) as err:
            why = err.strerror or err if isinstance(err, OSError) else err
            _log.warning("%s: has its verdict, but could not be moved: %s", printable(name), why)


def _identity(facts: os.stat_result) -> Identity:
    return Identity(facts.st_ino, facts.st_mtime_ns, facts.st_size)


def _is_left_out(name: str) -> bool:
    """Return whether a file is hidden, or one that programs leave behind or write to before they rename it."""
    return name.startswith(".") or name.lower().endswith(_UNFINISHED) or is_litter(name) or is_scratch(name)


def _unreadable(name: str, detail: str) -> Frame:
    return Frame(None, time.monotonic_ns(), None, storable(name), "unreadable_image", f"{printable(name)}: {detail}")


def _copy(path: Path, target: Path) -> None:
    """Copy a file to another file system. Raises OSError or StorageError."""
    with (
        atomic_file(target, durable=True) as temporary,
        open_regular(path) as source,
        temporary.open("wb") as copy,
    ):
        shutil.copyfileobj(source, copy, 1 << 20)


def _free_name(folder: Path, name: str) -> Path:
    """Return a path in a folder, which is made, that nothing lies at: `a.png`, `a-1.png`, ... Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = os.path.splitext(name)  # noqa: PTH122 the same for names that are no UTF-8
    names = itertools.chain((name,), (f"{stem}-{number}{ending}" for number in itertools.count(1)))
    return next(folder / free for free in names if not os.path.lexists(folder / free))
