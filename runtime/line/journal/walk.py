"""Following the chain of a journal from its first entry to its last, through all sealed files and on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.runtime.line.journal.chain import Kind, entry_hash
from flawscope.runtime.line.journal.heads import Head
from flawscope.runtime.line.journal.reader import first_row, rows_after, rows_between
from flawscope.runtime.line.journal.rows import Row
from flawscope.runtime.line.journal.schema import COLUMNS, snapshot
from flawscope.runtime.line.journal.sealed import ACTION, SEALED, Sealed, last_sealed, sealed_after
from flawscope.runtime.line.journal.sealed_file import SCHEMA, Line, entry_in, head_in, lines_of

_BATCH = 2000


class Walk:
    """What is known while the chain is followed.

    Args:
        connection: A connection to the journal that is in no transaction.
        folders: Folders of sealed files, in which each is looked for.
        beginning: Place and hash of what the first entry is chained to.
        first_seq: Number of the first part.
        wanted: Places whose hashes are kept; those of heads are, too.

    Attributes:
        link: Place of the last entry that is whole.
        hash: Its hash.
        numbers: Kind -> entries.
        wrong: Place of the first entry that is wrong, and what is wrong; None where nothing is.
        hashes: Place -> hash.
        heads: The heads in the chain, and those of sealed files.
        seqs: Which parts have not come.
        sealed: Sealed files that were followed: name -> what the journal says of it.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        folders: list[Path],
        beginning: tuple[int, str],
        first_seq: int,
        wanted: set[int],
    ) -> None:
        self._connection, self._folders, self._wanted = connection, folders, wanted
        self.link, self.hash = beginning
        self.numbers = {"part": 0, "event": 0, "head": 0}
        self.wrong: tuple[int, str] | None = None
        self.hashes: dict[int, str] = {}
        self.heads: list[Head] = []
        self.seqs = Seqs(first_seq)
        self.sealed: dict[str, Sealed] = {}
        self._told: dict[str, str] = {}

    def follow(self) -> None:
        """Follow the chain until its end, or the first entry that is wrong. Raises sqlite3.Error."""
        try:
            while self.wrong is None and self._step():
                pass
            if self.wrong is None:
                self._check_told()
                self._check_left()
        except DataError as err:
            self.wrong = self.wrong or (self.link + 1, str(err))

    def _step(self) -> bool:
        """Follow a sealed file or some rows; return whether there may be more."""
        if (sealed := sealed_after(self._connection, self.link)) is not None:
            self._follow_file(sealed)
            return True
        rows = rows_after(self._connection, self.link, _BATCH)
        if rows and rows[0][1]["link"] != self.link + 1 and sealed_after(self._connection, self.link) is not None:
            # Sealed and dropped since it was asked: a line that runs goes on with its work.
            return True
        return bool(rows) and all(self._take(kind, row) for kind, row in rows)

    def _take(self, kind: Kind, row: Row, where: str = "") -> bool:
        """Take an entry; return whether it is right."""
        problem = self._problem(kind, row)
        if problem:
            self.wrong = (self.link + 1, f"{where}{problem}")
            return False
        self.link, self.hash = row["link"], row["hash"]
        self.numbers[kind] += 1
        if self.link in self._wanted or kind == "head":
            self.hashes[self.link] = self.hash
        if kind == "part":
            self.seqs.add(row["seq"])
        elif kind == "head":
            self.heads.append(_head_of(row))
        elif row["action"] == ACTION:
            self._told[row["object"]] = row["new"]
        return True

    def _problem(self, kind: Kind, row: Row) -> str:
        if row["link"] != self.link + 1:
            return "it was deleted: the next entry is " + format(row["link"], ",") + "."
        if row["prev_hash"] != self.hash:
            return f"it is not chained to the entry before it ({kind})."
        if _hash_of(kind, row) != row["hash"]:
            return f"it was changed: its hash belongs to another {kind}."
        if kind == "head" and (row["head_link"], row["head_hash"]) != (self.link, self.hash):
            return "it is the head of another chain."
        return ""

    def _follow_file(self, sealed: Sealed) -> None:
        path = next((one for folder in self._folders if os.path.lexists(one := folder / sealed.file)), None)
        if sealed.first_link > self.link + 1:
            self._is_wrong(self.link + 1, f"it was deleted: the next sealed entry is {sealed.first_link:,}.")
        elif path is None:
            places = " or ".join(map(str, self._folders))
            self._is_wrong(
                sealed.first_link,
                f"the sealed file {sealed.file} was deleted or moved: expected it in {places}, got none.",
            )
        elif _sha256(path) != sealed.sha256:
            # Its entries are followed all the same: that says where.
            self._follow_lines(path, sealed)
            self._is_wrong(sealed.first_link, f"the sealed file {sealed.file} was changed: its SHA-256 is another.")
        else:
            self._follow_lines(path, sealed)
        self.sealed[sealed.file] = sealed

    def _follow_lines(self, path: Path, sealed: Sealed) -> None:
        lines = lines_of(path)
        where = f"{sealed.file}: "
        header = {
            "line": self._line,
            "schema": SCHEMA,
            "first_link": sealed.first_link,
            "last_link": sealed.last_link,
            "prev_hash": sealed.prev_hash,
        }
        if next(lines, {}).get("sealed") != header:
            self._is_wrong(sealed.first_link, f"{where}its first line says another beginning.")
            return
        head: Line = {}
        for line in lines:
            if head or (entry := entry_in(line)) is None:
                if head or "head" not in line:
                    self._is_wrong(self.link + 1, f"{where}a line is no entry.")
                    return
                head = line
                continue
            kind, link, record, said = entry
            # Followed in the journal already, before it was sealed.
            if link <= self.link and self.hashes.get(link, said) == said:
                continue
            if not self._take(kind, {**record, "link": link, "prev_hash": self.hash, "hash": said}, where):
                return
        found = head_in(head)
        if self.link != sealed.last_link:
            self._is_wrong(self.link + 1, f"{where}expected entries until {sealed.last_link:,}, got others.")
        elif found is None or (found.link, found.hash) != (sealed.last_link, sealed.hash):
            self._is_wrong(sealed.last_link, f"{where}its head is of another chain.")
        else:
            self.hashes[found.link] = sealed.hash
            self.heads.append(found)

    @property
    def _line(self) -> str:
        return str(self._connection.execute("SELECT line FROM journal").fetchone()[0])

    def _is_wrong(self, link: int, what: str) -> None:
        self.wrong = self.wrong or (link, what)

    def _check_told(self) -> None:
        """Compare what the journal says of sealed files with the events, which are in the chain."""
        for name, sealed in self.sealed.items():
            if self._told.get(f"{SEALED}/{name}") != sealed.said():
                self._is_wrong(sealed.first_link, f"what the journal says of the sealed file {name} was changed.")

    def _check_left(self) -> None:
        """Check rows that are sealed and not dropped yet: by their hashes they lead to the end of the sealed file."""
        with snapshot(self._connection):
            sealed = last_sealed(self._connection)
            first = first_row(self._connection)
            if sealed is None or first is None or first > sealed.last_link:
                return
            link, previous = first - 1, ""
            while link < sealed.last_link:
                until = min(link + _BATCH, sealed.last_link)
                for kind, row in rows_between(self._connection, link, until):
                    is_next = row["link"] == link + 1 and previous in ("", row["prev_hash"])
                    if not is_next or _hash_of(kind, row) != row["hash"]:
                        self._is_wrong(link + 1, "it is sealed, and its row that is left was changed or deleted.")
                        return
                    link, previous = row["link"], row["hash"]
                if link < until:
                    self._is_wrong(link + 1, "it is sealed, and the row that is left was deleted.")
                    return
            if previous != sealed.hash:
                self._is_wrong(first, "it is sealed, and the rows that are left are of another chain.")


def _hash_of(kind: Kind, row: Row) -> str:
    """Return the hash that a row should have; empty where it can have none."""
    record: dict[str, Any] = {name: row[name] for name in COLUMNS[kind]}
    try:
        return entry_hash(row["prev_hash"], kind, row["link"], record)
    except (TypeError, ValueError, AttributeError):
        # Bytes, or a number that is infinite: no writer of ours stores them.
        return ""


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as err:
        raise DataError(f"{path}: expected a sealed file, got: {err.strerror}. Put a copy back.") from err


def _head_of(row: Row) -> Head:
    names = ("line", "head_link", "head_hash", "seq", "utc", "key", "signature")
    return Head(*(row[name] for name in names))


class Seqs:
    """Which numbers of parts have not come, in little memory: parts come almost in order."""

    MOST_SHOWN = 20

    def __init__(self, first: int) -> None:
        self._next, self._ahead = first, set[int]()

    def add(self, seq: int) -> None:
        """Note a number; numbers below the first are of parts that were open before this journal."""
        if seq >= self._next:
            self._ahead.add(seq)
            while self._next in self._ahead:
                self._ahead.remove(self._next)
                self._next += 1

    def missing(self) -> list[int]:
        """Return the first numbers that have not come although a larger one has."""
        found: list[int] = []
        for seq in range(self._next, max(self._ahead, default=0)):
            if seq not in self._ahead:
                found.append(seq)
                if len(found) >= self.MOST_SHOWN:
                    break
        return found
