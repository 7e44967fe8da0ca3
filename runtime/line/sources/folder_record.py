"""The record of a folder source: which files were handed over, and which of them have their verdict.

One line is appended for each; a torn last line, as a power cut leaves it, is passed over. It is for the source alone:
the journal says what the verdicts were.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO, NamedTuple

from flawscope.files import atomic_file
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.scratch import sync
from flawscope.text import storable

_FORGET_S = 3600.0
_SMALL_BYTES = 1 << 20
_GROWTH = 4


class Identity(NamedTuple):
    """What tells a file from an earlier one of the same name.

    Attributes:
        inode: Its number in the file system.
        mtime_ns: When it was last written.
        size: Its bytes.
    """

    inode: int
    mtime_ns: int
    size: int


class FolderRecord:
    """What one folder source has handed over. Methods that write raise OSError.

    Args:
        path: The file of the record.
        in_flight: Names, as in `Frame.source`, of files that an earlier process of the same line handed over: all
            others that have no verdict are handed over again.
    """

    def __init__(self, path: Path, in_flight: Iterable[str]) -> None:
        self.path = path
        self._in_flight = frozenset(in_flight)
        self._done: dict[str, Identity] = {}
        # By the text that frames and verdicts name them by, which is not the name where that is no UTF-8.
        self._open: dict[str, tuple[str, Identity | None]] = {}
        self._interrupted: dict[str, tuple[str, Identity | None]] = {}
        self._missing_since: dict[str, float] = {}
        self._file: IO[bytes] | None = None
        self._written = 0
        self._is_unsynced = False

    def open(self) -> None:
        """Read what is on record, and begin to write."""
        try:
            text = read_regular(self.path, RECORD_BYTES)
        except FileNotFoundError:
            text = b""
        for line in text.split(b"\n"):
            entry = _entry(line)
            if entry is not None:
                self._replay(*entry)
        for name in self._in_flight - self._open.keys():
            self._open[name] = (name, None)
        self._write_anew() if len(text) > self._most_bytes() else self._append_to(text)

    def _replay(self, name: str, identity: Identity, is_done: bool) -> None:
        key = storable(name)
        self._open.pop(key, None)
        self._interrupted.pop(key, None)
        if is_done:
            self._done[name] = identity
        elif key in self._in_flight:
            self._open[key] = (name, identity)
        else:
            self._interrupted[key] = (name, identity)

    def _append_to(self, text: bytes) -> None:
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab", buffering=0)
        self._written = len(text)
        if is_new:
            sync(self.path.parent)
        if text and not text.endswith(b"\n"):
            self._append(b"\n")

    def knows(self, name: str, identity: Identity) -> bool:
        """Return whether a file, as it is now, was handed over."""
        return self._done.get(name) == identity or self._open.get(storable(name), (name, None)) == (name, identity)

    def is_open(self, name: str) -> bool:
        """Return whether a file of this name was handed over and its part has no verdict yet."""
        return storable(name) in self._open

    def done_names(self) -> list[str]:
        """Return the names of files that have their verdict."""
        return [name for name in self._done if storable(name) not in self._open]

    def taken(self, name: str, identity: Identity) -> None:
        """Note that a file is handed over. It survives the end of this process, not a power cut: `done` does."""
        self._open[storable(name)] = (name, identity)
        self._append(_line(name, identity, is_done=False))

    def done(self, source: str) -> str | None:
        """Note that a file has its verdict; return its name, or None where none of that name was handed over.

        Args:
            source: Its name as in `Frame.source`.
        """
        known = self._open.pop(source, None)
        name, identity = known if known is not None else self._interrupted.pop(source, ("", None))
        if identity is None:
            return None
        self._done[name] = identity
        self._append(_line(name, identity, is_done=True))
        self._is_unsynced = True
        return name

    def sync(self) -> None:
        """Let the disk store the verdicts noted since the last call."""
        if self._is_unsynced and self._file is not None:
            os.fdatasync(self._file.fileno())
            self._is_unsynced = False
            if self._written > self._most_bytes():
                self._write_anew()

    def forget(self, present: Collection[str], now_s: float, *, moved: bool) -> None:
        """Forget files that have been gone for an hour, so that the record does not grow for ever.

        Args:
            present: Names of all files in the folder.
            now_s: Seconds of the monotonic clock.
            moved: Whether files that have their verdict leave the folder. If they stay, a folder without any of them is
                taken for a network drive that is not there, and nothing is forgotten.
        """
        gone = [name for name in self._done if name not in present]
        if not moved and len(gone) == len(self._done):
            gone = []
        self._missing_since = {name: self._missing_since.get(name, now_s) for name in gone}
        for name, since in list(self._missing_since.items()):
            if now_s - since >= _FORGET_S:
                del self._done[name], self._missing_since[name]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self.sync()
            self._file.close()
            self._file = None

    def _append(self, line: bytes) -> None:
        if self._file is None:
            raise OSError("the record is closed")
        written = self._file.write(line)
        self._written += written
        if written != len(line):
            # A disk that is full took a part of the line; the next one begins anew.
            with contextlib.suppress(OSError):
                self._written += self._file.write(b"\n")
            raise OSError("the disk is full")

    def _most_bytes(self) -> int:
        # About the bytes of a line for each file.
        return max(_SMALL_BYTES, _GROWTH * 120 * (len(self._done) + len(self._open)))

    def _write_anew(self) -> None:
        """Write the record without what no longer holds."""
        lines = [_line(name, identity, is_done=True) for name, identity in self._done.items()]
        lines += [_line(name, known, is_done=False) for name, known in self._open.values() if known is not None]
        lines += [_line(name, known, is_done=False) for name, known in self._interrupted.values() if known is not None]
        with atomic_file(self.path, durable=True) as temporary:
            temporary.write_bytes(b"".join(lines))
        if self._file is not None:
            self._file.close()
        self._file = self.path.open("ab", buffering=0)
        self._written = sum(map(len, lines))


def _line(name: str, identity: Identity, *, is_done: bool) -> bytes:
    # Not msgspec: names that are no UTF-8 must come back as they were, and it writes no surrogates.
    return json.dumps([name, *identity, int(is_done)]).encode() + b"\n"


def _entry(line: bytes) -> tuple[str, Identity, bool] | None:
    """Return what a line says; None for a line that is torn."""
    try:
        match json.loads(line):
            case [str(name), int(inode), int(mtime_ns), int(size), (0 | 1) as is_done]:
                return name, Identity(inode, mtime_ns, size), bool(is_done)
    except (ValueError, RecursionError):
        pass
    return None
