"""Verifying a journal: whether its chain is whole, and whether it is the one that was signed before."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flawscope.bundle.ed25519 import PublicKey
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.open_files import list_folder
from flawscope.runtime.line.journal.chain import beginning_hash
from flawscope.runtime.line.journal.heads import HEADS, PUBLIC_KEY, Head, public_key, read_heads
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.schema import BEGINNING, expected_schemas, stored_schema
from flawscope.runtime.line.journal.sealed import SEALED, links_of
from flawscope.runtime.line.journal.walk import Walk


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        line: Name of the line.
        first_link: Place of the first entry.
        last_link: Place of the last entry that is whole.
        parts: Records of parts, earlier revisions included.
        events: Events.
        heads: Heads that were compared, each place once.
        signed: How many of them have the signature of the key.
        wrong_link: Place of the first entry that is wrong or missing; None where none is.
        wrong: What is wrong, a sentence; empty where nothing is.
        missing: Numbers of parts below the last one that have no record: open ones, or lost at a power cut.
        notes: What could not be checked, and what else an auditor should know.
        sealed: Sealed files that were followed.
    """

    line: str
    first_link: int
    last_link: int
    parts: int
    events: int
    heads: int
    signed: int
    wrong_link: int | None
    wrong: str
    missing: tuple[int, ...]
    notes: tuple[str, ...]
    sealed: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    def lines(self) -> list[str]:
        """Return what a person should read."""
        entries = max(0, self.last_link - self.first_link + 1)
        found = [
            f"line {self.line}: {entries:,} entries from {self.first_link:,} on: {self.parts:,} records of parts, "
            f"{self.events:,} events; compared with {self.heads:,} heads, {self.signed:,} of them signed"
        ]
        if self.sealed:
            found.append(f"{self.sealed:,} sealed files and the journal are one chain")
        found.append(f"WRONG at entry {self.wrong_link:,}: {self.wrong}" if self.wrong else "The chain is whole.")
        if self.missing:
            found.append(f"parts without a record: {', '.join(map(str, self.missing))}")
        return found + [f"note: {note}" for note in self.notes]


def verify(
    folder: Path, heads: Path | Sequence[Head] | None = None, *, key: Path | None = None, sealed: Path | None = None
) -> Verification:
    """Verify the journal of a state folder and its sealed files as one chain, while it is written or not.

    The chain alone shows changed, deleted and inserted rows. The heads beside the journal show a cut-off end. Who
    computes all hashes anew, and has the device's key, can make a chain and heads that agree: only heads that were
    kept elsewhere (`heads`) show that.

    Args:
        folder: State folder of the line.
        heads: Heads that were kept elsewhere: a file such as `heads.jsonl`, or the heads themselves.
        key: Public key of the device, kept elsewhere: heads must be signed by it. By default that of the folder is
            taken, and heads of another key are a note.
        sealed: A further folder of sealed files, for those that were moved away.

    Raises:
        ArgumentError: If there is no journal that this version can read, or heads, key or folder cannot be read.
        StorageError: If the file cannot be opened.
    """
    notes: list[str] = []
    # Before the journal: what is appended meanwhile is then in the journal at least.
    beside, elsewhere = _known_heads(folder, heads, notes)
    trusted = _trusted(folder, key, notes)
    if sealed is not None and not sealed.is_dir():
        raise ArgumentError(f"{sealed}: expected a folder of sealed files, got none. Name another.")
    folders = [folder / SEALED, *([] if sealed is None else [sealed])]
    reader = JournalReader(folder)
    try:
        with reader.connection() as connection:
            return _verified(
                connection, folders, reader.line, beside, elsewhere, trusted, is_strict=key is not None, notes=notes
            )
    finally:
        reader.close()


def _known_heads(folder: Path, heads: Path | Sequence[Head] | None, notes: list[str]) -> tuple[list[Head], list[Head]]:
    """Return the heads beside the journal, and those that were kept elsewhere."""
    beside, problems = read_heads(folder / HEADS)
    if isinstance(heads, Path):
        if not heads.exists():
            raise ArgumentError(f"{heads}: expected heads that were kept elsewhere, got no file. Name another.")
        elsewhere, more = read_heads(heads)
        problems = problems + more
        if not elsewhere:
            notes.append(f"{heads} holds no head")
    else:
        elsewhere = list(heads or ())
    notes.extend(problems)
    if heads is None:
        notes.append(
            "no heads kept elsewhere were given: a chain that somebody with the device's key wrote anew would not be "
            "noticed"
        )
    return beside, elsewhere


def _trusted(folder: Path, key: Path | None, notes: list[str]) -> PublicKey | None:
    try:
        if key is not None:
            return public_key(key)
        if (folder / PUBLIC_KEY).is_file():
            return public_key(folder / PUBLIC_KEY)
    except MissingExtra:
        if key is not None:
            raise
        notes.append("the package cryptography is not installed: signatures were not checked")
        return None
    notes.append("no public key of the device: signatures were not checked")
    return None


def _verified(
    connection: sqlite3.Connection,
    folders: list[Path],
    line: str,
    beside: list[Head],
    elsewhere: list[Head],
    key: PublicKey | None,
    *,
    is_strict: bool,
    notes: list[str],
) -> Verification:
    beginning = connection.execute(f"SELECT {', '.join(BEGINNING)}, beginning_hash FROM journal").fetchone()
    says: dict[str, Any] = dict(zip(BEGINNING, beginning, strict=False))
    first_link, first_seq = says["first_link"], says["first_seq"]
    if says["before_json"] != "null":
        notes.append(f"the journal goes on after an earlier one that was broken or lost: {says['before_json']}")
    wanted = {head.link for head in (*beside, *elsewhere)}
    walk = Walk(connection, folders, (first_link - 1, beginning[-1]), first_seq, wanted)
    if beginning_hash(says) != beginning[-1]:
        walk.wrong = (first_link, "what the journal says of its beginning was changed.")
    elif stored_schema(connection) not in expected_schemas():
        walk.wrong = (first_link, "tables, indexes or views were changed: queries may say what no entry says.")
    try:
        walk.follow()
    except sqlite3.DatabaseError as err:
        walk.wrong = walk.wrong or (walk.link + 1, f"the file is broken: {err}.")
    _note_unknown(folders[0], walk, notes)
    # Apart: heads beside a journal that somebody made anew agree with it, and say nothing about where it is sound.
    agree = [*_check_heads(walk, elsewhere, line, first_link, notes)]
    agree += _check_heads(walk, beside, line, first_link, notes)
    agree += walk.heads
    checked = list(dict.fromkeys(agree))
    signed = _check_signatures(walk, checked, key, is_strict=is_strict, notes=notes)
    wrong_link, wrong = walk.wrong or (None, "")
    return Verification(
        line,
        first_link,
        walk.link,
        walk.numbers["part"],
        walk.numbers["event"],
        len({head.link for head in checked}),
        signed,
        wrong_link,
        wrong,
        tuple(walk.seqs.missing()),
        tuple(notes),
        len(walk.sealed),
    )


def _note_unknown(folder: Path, walk: Walk, notes: list[str]) -> None:
    """Say which sealed files the chain does not lead through."""
    names = [path.name for path in list_folder(folder)] if folder.is_dir() else []
    unknown = sorted(name for name in names if links_of(name) and name not in walk.sealed)
    if unknown and walk.wrong is None:
        notes.append(
            f"{len(unknown):,} sealed files are of an earlier journal of this line, or not noted yet, and were not "
            f"followed: {', '.join(unknown[:3])}{' ...' if len(unknown) > 3 else ''}"
        )


def _check_heads(walk: Walk, heads: Sequence[Head], line: str, first_link: int, notes: list[str]) -> list[Head]:
    """Compare the chain with heads, of which the first that differs is what is wrong; return those that agree."""
    agree: list[Head] = []
    other = earlier = 0
    sound = first_link
    for head in sorted(heads, key=lambda head: head.link):
        if head.line != line:
            other += 1
        elif head.link < first_link:
            earlier += 1
        elif head.link > walk.link:
            if walk.wrong is None:
                walk.wrong = (walk.link + 1, f"the end was cut off: a head of entry {head.link:,} was signed.")
        elif walk.hashes.get(head.link) != head.hash:
            if walk.wrong is None or walk.wrong[0] > head.link:
                walk.wrong = (
                    sound,
                    f"the chain was computed anew from here on, or from an entry until {head.link:,}: a head of entry "
                    f"{head.link:,} says another hash.",
                )
            break
        else:
            sound = head.link + 1
            agree.append(head)
    if other:
        notes.append(f"{other:,} heads are of another line")
    if earlier:
        notes.append(f"{earlier:,} heads are of an earlier journal of this line, and were not compared")
    return agree


def _check_signatures(
    walk: Walk, heads: Sequence[Head], key: PublicKey | None, *, is_strict: bool, notes: list[str]
) -> int:
    """Check the signatures of heads; return how many are good."""
    unsigned = foreign = good = 0
    for head in heads:
        if not head.signature:
            unsigned += 1
        elif key is None:
            continue
        elif head.key != key.id and not is_strict:
            foreign += 1
        elif head.key == key.id and head.is_signed_by(key):
            good += 1
        elif walk.wrong is None or walk.wrong[0] > head.link:
            walk.wrong = (head.link, f"the head of this entry has no signature of the key {key.id}.")
    if unsigned:
        notes.append(f"{unsigned:,} heads are not signed")
    if foreign:
        notes.append(f"{foreign:,} heads are signed by another key than that of the folder")
    return good
