"""Which rows of a journal are sealed: they are in a signed file, and the journal may drop them, or has done so.

The chain goes through all sealed files and on into the journal. What is asked of rows that are gone (how many parts
there were, the last word of an event that is needed at a start) is carried forward with each file.
"""

from __future__ import annotations

import re
import sqlite3

import msgspec

from flawscope.errors import DataError
from flawscope.runtime.line.journal.chain import canonical
from flawscope.runtime.line.journal.schema import SEALED_TABLE, has_sealed
from flawscope.text import NOT_JSON

SEALED = "sealed"
"""Folder of the sealed files, in the state folder."""

ACTION = "rows_sealed"
"""Action of the event that says what a sealed file holds."""

CARRIED = ("generation", "threshold", "user_added")
"""Actions whose last event on each object a line asks for, however old it is."""

_NAMES = ("file", "first_link", "last_link", "first_seq", "last_seq")
_NAME = re.compile(r"[0-9]{8}-([0-9]{1,19})-([0-9]{1,19})\.jsonl\.gz")


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sealed file holds. The event of the sealing says the same.

    Attributes:
        file: Its name.
        first_link: Place of its first entry.
        last_link: Place of its last entry.
        prev_hash: Hash of the entry before the first.
        hash: Hash of the last entry.
        first_seq: Smallest number of a part in it; 0 for none.
        last_seq: Largest number of a part in it; 0 for none.
        highest_seq: Largest number of a part in it and all files before it.
        first_utc: When its first entry was made.
        last_utc: When its last entry was made.
        parts: Records of parts in it, earlier revisions included.
        sha256: SHA-256 of the file.
        counts: Station -> verdict -> parts in it and all files before it, each by its last revision.
        carried: Action -> object -> what the last such event had as new, in it and all files before it.
    """

    file: str
    first_link: int
    last_link: int
    prev_hash: str
    hash: str
    first_seq: int
    last_seq: int
    highest_seq: int
    first_utc: str
    last_utc: str
    parts: int
    sha256: str
    counts: dict[str, dict[str, int]]
    carried: dict[str, dict[str, str]]

    def said(self) -> str:
        """Return it as the table and the event have it."""
        return canonical(msgspec.structs.asdict(self)).decode()


def file_name(first_utc: str, first_link: int, last_link: int) -> str:
    """Return the name of a sealed file: the day of its first entry, and the places of the first and the last."""
    day = first_utc[:10].replace("-", "")
    return f"{day if re.fullmatch('[0-9]{8}', day) else '0' * 8}-{first_link}-{last_link}.jsonl.gz"


def links_of(name: str) -> tuple[int, int] | None:
    """Return the places of the first and the last entry of a sealed file; None for other files."""
    found = _NAME.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def sealed_from(said: str) -> Sealed:
    """Return what a row of the table says.

    Raises:
        DataError: If it says something else, as after a change by hand.
    """
    try:
        return msgspec.json.decode(said, type=Sealed)
    except (*NOT_JSON, TypeError) as err:
        raise DataError(
            f"sealed rows of the journal: expected what a file holds, got something else: {err}. Somebody has changed "
            "the file: verify the journal."
        ) from err


def last_sealed(connection: sqlite3.Connection) -> Sealed | None:
    """Return the last sealed file; None for none.

    Raises:
        DataError: If the journal says something that is no such file.
        sqlite3.Error: If it cannot be read.
    """
    if not has_sealed(connection):
        return None
    row = connection.execute(f"SELECT said FROM {SEALED_TABLE} ORDER BY last_link DESC LIMIT 1").fetchone()
    return None if row is None else sealed_from(row[0])


def sealed_after(connection: sqlite3.Connection, link: int) -> Sealed | None:
    """Return the first sealed file with an entry behind a place; None for none.

    Raises:
        DataError: If the journal says something that is no such file.
        sqlite3.Error: If it cannot be read.
    """
    if not has_sealed(connection):
        return None
    query = f"SELECT said, {', '.join(_NAMES)} FROM {SEALED_TABLE} WHERE last_link > ? ORDER BY last_link LIMIT 1"
    row = connection.execute(query, (link,)).fetchone()
    if row is None:
        return None
    sealed = sealed_from(row[0])
    if tuple(row[1:]) != tuple(getattr(sealed, name) for name in _NAMES) or links_of(sealed.file) is None:
        raise DataError(f"sealed rows of the journal: expected what {sealed.file} holds, got other columns.")
    return sealed


def files_with(connection: sqlite3.Connection, seq: int) -> list[str]:
    """Return the names of the sealed files in which a part can be, the last one first. Raises sqlite3.Error."""
    if not has_sealed(connection):
        return []
    query = f"SELECT file FROM {SEALED_TABLE} WHERE ? BETWEEN first_seq AND last_seq ORDER BY last_link DESC"
    return [name for (name,) in connection.execute(query, (seq,))]


def add_sealed(connection: sqlite3.Connection, sealed: Sealed) -> None:
    """Note a sealed file, inside of a transaction. Raises sqlite3.Error."""
    values = [getattr(sealed, name) for name in _NAMES]
    query = f"INSERT INTO {SEALED_TABLE} ({', '.join(_NAMES)}, said) VALUES ({', '.join('?' * (len(_NAMES) + 1))})"
    connection.execute(query, (*values, sealed.said()))
