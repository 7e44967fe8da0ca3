"""Files of JSON lines: appended, on the disk before an entry counts as sent, and a new file each hour or day of UTC."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import JsonlSink
from flawscope.scratch import sync
from flawscope.text import NOT_JSON, encode_json, printable

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d):")
_BLOCK = 1 << 16
_MOST_CHECKED = 8


class JsonLines:
    """Files of one folder; a `Sink`.

    The file of an entry goes by its own time, so that one that is sent again comes to the same file.

    Args:
        options: Its options.
        line: Name of the line, with which the names of the files begin.
    """

    batch = 500

    def __init__(self, options: JsonlSink, line: str) -> None:
        self._folder, self._rotate, self._line = options.path, options.rotate, line
        self._checked: set[Path] = set()

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        """Append entries, and return when the disk has them; see `Sink`."""
        for name, group in itertools.groupby(entries, key=self._name):
            path = self._folder / name
            try:
                self._append(path, b"".join(encode_json(entry) + b"\n" for entry in group))
            except OSError as err:
                # Its end may be torn now: it is looked at before it is written again.
                self._checked.discard(path)
                raise SinkError(f"{printable(str(path))}: could not be written: {err.strerror or err}") from None

    def close(self) -> None:
        """Nothing is open between two batches."""

    def _name(self, entry: dict[str, Any]) -> str:
        if self._rotate == "never":
            return f"{self._line}.jsonl"
        match = _TIME.match(str(entry["utc"]))
        if match is None:
            return f"{self._line}-undated.jsonl"
        day, hour = match.groups()
        return f"{self._line}-{day}.jsonl" if self._rotate == "daily" else f"{self._line}-{day}T{hour}.jsonl"

    def _append(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # A pipe of that name would block without O_NONBLOCK, which files do not mind.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(path, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError("it is no regular file")
            is_first = path not in self._checked
            if is_first:
                _mend(handle)
            size = os.fstat(handle).st_size
            try:
                _write(handle, data)
                os.fsync(handle)
            except OSError:
                # The batch is sent again: without what was written of it, no line of it is there twice.
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
        if is_first:
            sync(self._folder)
            if len(self._checked) >= _MOST_CHECKED:
                self._checked.clear()
            self._checked.add(path)


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _mend(handle: int) -> None:
    """Give a file whole lines again whose last line was torn by a kill or a power cut: that entry is sent again."""
    size = os.fstat(handle).st_size
    start = _line_start(handle, size)
    if start == size:
        return
    try:
        msgspec.json.decode(os.pread(handle, size - start, start))
    except NOT_JSON:
        os.ftruncate(handle, start)
    else:
        _write(handle, b"\n")


def _line_start(handle: int, size: int) -> int:
    """Return where the last line begins that has no end; the size where all have one."""
    end = size
    while end:
        begin = max(end - _BLOCK, 0)
        found = os.pread(handle, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
