"""Which changes of the users are in the journal: each is told once, or twice where the process is killed in between."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

import msgspec

from flawscope.errors import FlawscopeError
from flawscope.files import write_bytes
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.runtime.line.journal.recorder import TakesEvents
from flawscope.runtime.line.users.users_file import FOLDER, Users
from flawscope.text import NOT_JSON, encode_json

FILE = "recorded.json"


class Events(TakesEvents, Protocol):
    """Where events go."""

    def has_event(self, action: str) -> bool:
        """Return whether there is an event of an action."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was queued is on the disk; return whether it is."""


class _Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int = 0
    sha256: str = ""


class Recorded:
    """Tells the journal of changes. One thread uses it.

    Args:
        state: State folder of the line.
        events: The journal.
    """

    def __init__(self, state: Path, events: Events) -> None:
        self._path, self._events = state / FOLDER / FILE, events
        self._told = _Mark()
        with contextlib.suppress(OSError, *NOT_JSON):
            self._told = msgspec.json.decode(read_regular(self._path, SETTINGS_BYTES), type=_Mark)
        self._kept = self._told

    def tell(self, users: Users, sha256: str, timeout_s: float) -> None:
        """Tell what has changed, and note it when that is on the disk.

        Args:
            users: The users now.
            sha256: Hash of their file.
            timeout_s: Longest time to wait for the disk.
        """
        if sha256 != self._told.sha256:
            self._queue(users, sha256)
        # Again where the disk failed before.
        if self._told != self._kept and self._events.flush(timeout_s):
            with contextlib.suppress(FlawscopeError):
                write_bytes(self._path, encode_json(self._told), durable=True, private=True)
                self._kept = self._told

    def _queue(self, users: Users, sha256: str) -> None:
        new = [change for change in users.changes if change.number > self._told.number]
        for change in new:
            self._events.event(
                change.action,
                actor=change.actor,
                object=change.object,
                old=change.old,
                new=change.new,
                reason=f"change {change.number}, by command at {change.utc}",
            )
        if new and new[0].number > self._told.number + 1:
            lost = f"changes {self._told.number + 1} to {new[0].number - 1} are not known any more"
            self._events.event("users_changed", actor="line", object="users", new=sha256, reason=lost)
        if not new:
            self._events.event(
                "users_changed",
                actor="line",
                object="users",
                old=self._told.sha256,
                new=sha256,
                reason="the file was changed by other means than the commands",
            )
        number = users.changes[-1].number if users.changes else 0
        self._told = _Mark(number, sha256)
