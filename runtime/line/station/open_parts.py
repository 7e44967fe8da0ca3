"""Numbers of parts, and which of them have no record yet: a small mapped file that outlives the process.

The journal learns of a part when its verdict is known. Were the process killed before, nobody would know that there was
a part. So its number is noted here when it is triggered, without waiting for a disk: what a process has written to a
mapped file stays when it is killed. A power cut may take it, and a part that was open then has no record; its verdict
was no accept, because accepts are recorded before they are given out.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import NamedTuple

from flawscope.errors import StorageError
from flawscope.files import storage_errors
from flawscope.open_files import open_regular

MOST_ID_BYTES = 160
"""Longest name of a part in UTF-8; longer ones are cut."""

_MAGIC = b"flawscope parts\x01"
_HEADER = struct.Struct("<16sQQ")  # magic, number of slots, last number given
_SLOT = struct.Struct("<QBBHqq64s160s")  # number, phase, length of the name, length of the station's, clocks, names
_SLOTS = 4096
_SIZE = _HEADER.size + _SLOTS * _SLOT.size
_LAST = struct.Struct("<Q")
_LAST_AT = _HEADER.size - _LAST.size

FREE, OPEN, GIVING = 0, 1, 2
"""Phases of a slot: free; the part has no verdict out; its accept is about to be given out, or was."""


class OpenPart(NamedTuple):
    """A part that was open when the process before this one ended.

    Attributes:
        seq: Its number.
        station: Its station; empty where that is not known.
        part_id: What the trigger called it.
        mono_ns: When it was triggered, by the monotonic clock of that time.
        utc_ns: The same in UTC.
        is_given: Whether its accept was about to be given out, or was.
    """

    seq: int
    station: str
    part_id: str
    mono_ns: int
    utc_ns: int
    is_given: bool


class OpenParts:
    """Gives parts their numbers and notes the open ones. Calls may come from any thread.

    Args:
        path: The file; it is made where it is missing.
        last_recorded: Largest number in the journal: numbers go on after it.

    Attributes:
        left_open: Parts that had no record when the process before this one ended, by number; those whose record was
            written just before it could be noted are among them.

    Raises:
        StorageError: If the file cannot be made, or is something else.
    """

    def __init__(self, path: Path, last_recorded: int) -> None:
        self._lock = threading.Lock()
        self._map = _mapped(path)
        last_noted: int = _LAST.unpack_from(self._map, _LAST_AT)[0]
        # A slot is written before its number is given: one beyond the last was killed in between, and is no part.
        noted = {part.seq: part for part in self._noted() if part.seq <= last_noted}
        for seq in range(last_recorded + 1, last_noted + 1):
            # More were open than there are slots: of such a part only its number is known.
            noted.setdefault(seq, OpenPart(seq, "", "", 0, 0, False))
        self.left_open = [noted[seq] for seq in sorted(noted)]
        self._last = max(last_recorded, last_noted)
        _LAST.pack_into(self._map, _LAST_AT, self._last)
        self._slots: dict[int, int] = {}
        # What was left open keeps its slots until it is recorded: the next process may be killed, too.
        taken = set()
        for index in range(_SLOTS):
            seq, phase = _SLOT.unpack_from(self._map, _at(index))[:2]
            if phase != FREE and seq <= last_noted:
                self._slots[seq] = index
                taken.add(index)
        self._free = [index for index in reversed(range(_SLOTS)) if index not in taken]

    @property
    def last(self) -> int:
        """The last number that was given; 0 before the first."""
        return self._last

    @property
    def oldest(self) -> int:
        """The smallest number of a part that is open; 0 for none."""
        with self._lock:
            return min(self._slots, default=0)

    def begin(self, station: str, part_id: str, mono_ns: int, utc_ns: int) -> int:
        """Note a new part and return its number."""
        name, place = cut(part_id, MOST_ID_BYTES).encode(), station.encode()
        with self._lock:
            seq = self._last + 1
            if self._free:
                index = self._slots[seq] = self._free.pop()
                values = (seq, OPEN, len(name), len(place), mono_ns, utc_ns, place, name)
                _SLOT.pack_into(self._map, _at(index), *values)
            # After the slot: whoever finds the number finds the rest, too.
            self._last = seq
            _LAST.pack_into(self._map, _LAST_AT, seq)
            return seq

    def giving(self, seq: int) -> None:
        """Note that the accept of a part, which is on record, is about to be given out."""
        with self._lock:
            if (index := self._slots.get(seq)) is not None:
                self._map[_at(index) + 8] = GIVING

    def recorded(self, seq: int) -> None:
        """Note that a part has its verdict, given out and on record."""
        with self._lock:
            if (index := self._slots.pop(seq, None)) is not None:
                self._map[_at(index) + 8] = FREE
                self._free.append(index)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._map.close()

    def _noted(self) -> list[OpenPart]:
        found = []
        for index in range(_SLOTS):
            seq, phase, name, place, mono_ns, utc_ns, station, part_id = _SLOT.unpack_from(self._map, _at(index))
            if phase != FREE:
                texts = (station[:place].decode(errors="replace"), part_id[:name].decode(errors="replace"))
                found.append(OpenPart(seq, *texts, mono_ns, utc_ns, phase == GIVING))
        return found


def cut(text: str, most_bytes: int) -> str:
    """Return a text cut to at most so many bytes of UTF-8, never inside a character; what has no UTF-8 is replaced."""
    return text.encode(errors="replace")[:most_bytes].decode(errors="ignore")


def _at(index: int) -> int:
    return _HEADER.size + index * _SLOT.size


def _mapped(path: Path) -> mmap.mmap:
    with storage_errors(path):
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.close(handle)
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            begin = file.read(_HEADER.size)
        # Made by a process that was killed at once, or on a disk that was full, or before the power was cut: nothing is
        # in it yet, whatever its size.
        is_new = size <= _SIZE and not begin.strip(b"\0")
        if not is_new and (size != _SIZE or begin[:24] != _HEADER.pack(_MAGIC, _SLOTS, 0)[:24]):
            raise StorageError(
                f"{path}: expected the parts that are open, as this version writes them, got something else. "
                "Move it away: parts that it held as open then have no record."
            )
        with path.open("r+b") as file:
            if is_new:
                file.truncate(_SIZE)
                # The disk must have room for all of it now: writing to a mapping cannot say that it is full.
                os.posix_fallocate(file.fileno(), 0, _SIZE)
            mapped = mmap.mmap(file.fileno(), _SIZE)
        if is_new:
            mapped[: _HEADER.size] = _HEADER.pack(_MAGIC, _SLOTS, 0)
        return mapped
