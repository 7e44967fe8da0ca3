"""What operators say of parts: events `reviewed` in the chain, which never change a verdict."""

from __future__ import annotations

import re
import sqlite3
from typing import Literal, NamedTuple

import msgspec

from flawscope.runtime.line.parts import Verdict
from flawscope.text import NOT_JSON

ACTION = "reviewed"
"""Action of the event."""

IS_REVIEWED = f"EXISTS (SELECT 1 FROM event WHERE action = '{ACTION}' AND object = 'part ' || part.seq)"
"""Condition of SQL on a row of `part`."""

_OBJECT = re.compile(r"part ([1-9][0-9]{0,18})")

Label = Literal["normal", "anomalous", "unsure"]


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a review says, as `new` of its event holds it in JSON.

    Attributes:
        view: Name of the view; empty for all of the part.
        label: What the image shows.
        type: Type of the defect; empty where none was named.
    """

    view: str
    label: Label
    type: str = ""


class Review(msgspec.Struct, frozen=True):
    """A review on record.

    Attributes:
        link: Its place in the chain: of two on one image the later one counts.
        seq: Number of the part.
        utc: When it was made.
        actor: Who made it.
        role: His role.
        view: Name of the view; empty for all of the part.
        label: What the image shows.
        type: Type of the defect; empty where none was named.
        note: What he wrote.
    """

    link: int
    seq: int
    utc: str
    actor: str
    role: str
    view: str
    label: Label
    type: str
    note: str


class PartFacts(NamedTuple):
    """What decides how long images of a part stay.

    Attributes:
        verdict: Its verdict.
        is_reviewed: Whether somebody has reviewed it.
    """

    verdict: Verdict
    is_reviewed: bool


def object_of(seq: int) -> str:
    """Return the object of events about a part."""
    return f"part {seq}"


def reviews_of(connection: sqlite3.Connection, seq: int | None, after: int = 0, limit: int = 1000) -> list[Review]:
    """Return reviews in the order in which they were made.

    Args:
        connection: A connection to the journal.
        seq: Number of the part; None for all parts.
        after: Place in the chain after which they begin.
        limit: Most reviews.

    Raises:
        sqlite3.Error: If the file cannot be read.
    """
    conditions = "action = ? AND link > ?" + (" AND object = ?" if seq is not None else "")
    query = f"SELECT link, object, utc, actor, role, new, reason FROM event WHERE {conditions} ORDER BY link LIMIT ?"
    values: tuple[str | int, ...] = (ACTION, after, *(() if seq is None else (object_of(seq),)), limit)
    reviews = []
    for link, subject, utc, actor, role, new, note in connection.execute(query, values):
        found = _OBJECT.fullmatch(subject)
        try:
            said = msgspec.json.decode(new, type=Said)
        except NOT_JSON:
            continue  # an event of that name which is none of ours says nothing about a part
        if found is not None:
            reviews.append(Review(link, int(found[1]), utc, actor, role, said.view, said.label, said.type, note))
    return reviews


def facts_of(connection: sqlite3.Connection, first: int, last: int) -> dict[int, PartFacts]:
    """Return number -> facts of the parts on record from `first` to `last`. Raises sqlite3.Error."""
    query = f"SELECT seq, verdict, {IS_REVIEWED} FROM part WHERE seq BETWEEN ? AND ?"
    return {
        seq: PartFacts(verdict, bool(is_reviewed))
        for seq, verdict, is_reviewed in connection.execute(query, (first, last))
    }
