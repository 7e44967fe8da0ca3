"""Sealed files: entries of a journal as JSON lines in gzip, exactly as the chain hashes them, and a signed head.

{"sealed": {"first_link": 1, "last_link": 100000, "line": "press", "prev_hash": "...", "schema": 1}}
{"hash": "...", "kind": "part", "link": 1, "record": {...}}
...
{"head": {"hash": "...", "key": "...", "line": "press", "link": 100000, "seq": 99313, "signature": "...", "utc": "..."}}
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flawscope.errors import DataError
from flawscope.open_files import open_regular
from flawscope.runtime.line.journal.chain import Kind, canonical, entry_of_chain, hash_of
from flawscope.runtime.line.journal.heads import Head
from flawscope.runtime.line.journal.schema import COLUMNS
from flawscope.runtime.line.journal.sealed import CARRIED, Sealed
from flawscope.text import NOT_JSON

SCHEMA = 1
MOST_LINE = 64 << 20
"""Longest line that is read."""

Line = dict[str, Any]


class Content:
    """What a sealed file holds, while entries are added in the order of the chain.

    Args:
        line: Name of the line.
        first_link: Place of its first entry.
        last_link: Place of its last entry.
        before: The file before it; None for the first.
        prev_hash: Hash of the entry before the first.
    """

    def __init__(self, line: str, first_link: int, last_link: int, before: Sealed | None, prev_hash: str) -> None:
        self._line, self._first, self._last, self._before = line, first_link, last_link, before
        self._prev = prev_hash
        self.link, self.hash = first_link - 1, prev_hash
        self._utc = ("", "")
        self._parts = 0
        self._seqs: tuple[int, int] | None = None
        self._carried = {action: dict(known) for action, known in (before.carried if before else {}).items()}

    def header(self) -> Line:
        """Return the first line."""
        return {
            "sealed": {
                "line": self._line,
                "schema": SCHEMA,
                "first_link": self._first,
                "last_link": self._last,
                "prev_hash": self._prev,
            }
        }

    def add(self, kind: Kind, link: int, record: dict[str, Any], said: str) -> bytes:
        """Take an entry, and return its line.

        Args:
            kind: Its kind.
            link: Its place.
            record: Its columns, as they are hashed.
            said: Its hash, as it is on record.

        Raises:
            DataError: If it does not follow the one before it, or its hash is another.
        """
        if link != self.link + 1:
            raise DataError(f"entry {self.link + 1:,}: expected it, got entry {link:,}. Verify the journal.")
        try:
            entry = entry_of_chain(kind, link, record)
        except (TypeError, ValueError):
            entry = b""
        if hash_of(self.hash, entry) != said:
            raise DataError(
                f"entry {link:,}: expected what was recorded ({kind}), got something else. Verify the journal."
            )
        self.link, self.hash = link, said
        self._utc = (self._utc[0] or record["utc"], record["utc"])
        if kind == "part":
            low, high = self._seqs or (record["seq"], record["seq"])
            self._seqs = (min(low, record["seq"]), max(high, record["seq"]))
            self._parts += 1
        elif kind == "event" and record["action"] in CARRIED:
            self._carried.setdefault(record["action"], {})[record["object"]] = record["new"]
        return b'{"hash":"%s",%s\n' % (said.encode(), entry[1:])

    @property
    def highest_seq(self) -> int:
        """Largest number of a part in it and all files before it."""
        return max(self._before.highest_seq if self._before else 0, self._seqs[1] if self._seqs else 0)

    def sealed(self, file: str, sha256: str, counts: dict[tuple[str, str], int]) -> Sealed:
        """Return what it holds, when all entries were added.

        Args:
            file: Its name.
            sha256: Its SHA-256.
            counts: Station and verdict -> parts in it, each by its last revision.
        """
        total = {station: dict(known) for station, known in (self._before.counts if self._before else {}).items()}
        for (station, verdict), number in counts.items():
            of_station = total.setdefault(station, {})
            of_station[verdict] = of_station.get(verdict, 0) + number
        first_seq, last_seq = self._seqs or (0, 0)
        return Sealed(
            file,
            self._first,
            self.link,
            self._prev,
            self.hash,
            first_seq,
            last_seq,
            self.highest_seq,
            *self._utc,
            self._parts,
            sha256,
            total,
            self._carried,
        )


def line_of(value: Line) -> bytes:
    """Return a line of a sealed file."""
    return canonical(value) + b"\n"


def head_line(head: Head) -> bytes:
    """Return the last line of a sealed file."""
    return line_of({"head": msgspec.structs.asdict(head)})


def packed(file: BinaryIO) -> gzip.GzipFile:
    """Return a file to write lines into, which are packed: the same lines are the same bytes."""
    return gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=6, mtime=0)


def lines_of(path: Path) -> Iterator[Line]:
    """Yield the lines of a sealed file.

    Raises:
        DataError: If it cannot be read, or is none.
    """
    try:
        with open_regular(path) as file, gzip.GzipFile(fileobj=file, mode="rb") as lines:
            while line := lines.readline(MOST_LINE):
                if not line.endswith(b"\n"):
                    raise ValueError("a line has no end")
                found = msgspec.json.decode(line)
                if not isinstance(found, dict):
                    raise ValueError("a line is no JSON object")
                yield found
    except (OSError, EOFError, zlib.error, ValueError, *NOT_JSON) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise DataError(f"{path}: expected a sealed file, got: {reason}. Put a copy back.") from err


def entry_in(line: Line) -> tuple[Kind, int, dict[str, Any], str] | None:
    """Return kind, place, columns and hash of the entry of a line; None where it is none."""
    kind, link, record, said = line.get("kind"), line.get("link"), line.get("record"), line.get("hash")
    if kind not in COLUMNS or type(link) is not int or not isinstance(record, dict) or not isinstance(said, str):
        return None
    return (kind, link, record, said) if set(record) == set(COLUMNS[kind]) else None


def head_in(line: Line) -> Head | None:
    """Return the head of a line; None where it is none."""
    try:
        return msgspec.convert(line.get("head"), Head)
    except msgspec.ValidationError:
        return None


def last_head(path: Path) -> Head | None:
    """Return the head of a sealed file; None where it has none that can be read."""
    head = None
    with contextlib.suppress(DataError):
        for line in lines_of(path):
            head = head_in(line)
    return head
