"""Events: what happened on a line beside its parts, with who did it. They are in the same chain as the parts."""

from __future__ import annotations

import msgspec


class EventRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event, as the journal keeps it.

    Attributes:
        utc: When it happened, ISO 8601 with milliseconds, in UTC.
        mono_ns: The same by the monotonic clock.
        boot_id: Boot of the machine that the monotonic clock belongs to.
        actor: Who did it: the name of a user, or `line`.
        role: Role of the user; empty for the line itself.
        action: What was done, one word: `started`, `state`, `generation`, `late_verdict`, `clock_jump`, ...
        object: What it was done to: `station top`, `part 17`, `bundle 3fa9...`.
        old: What held before, empty where nothing did.
        new: What holds now.
        reason: Why, in words.
    """

    utc: str
    mono_ns: int
    boot_id: str
    actor: str
    role: str
    action: str
    object: str = ""
    old: str = ""
    new: str = ""
    reason: str = ""
