"""What a sink needs of the journal, in memory; and entries as the journal gives them."""

from __future__ import annotations

import threading
from typing import Any

Entry = dict[str, Any]


def part_entry(link: int, *, line: str = "press", station: str = "top", utc: str = "2026-11-30T03:52:59.123Z") -> Entry:
    """Return the entry of an accepted part whose number is its place."""
    return {
        "line": line,
        "link": link,
        "kind": "part",
        "seq": link,
        "station": station,
        "part_id": f"bolt-{link}",
        "utc": utc,
        "mono_ns": link * 10**6,
        "boot_id": "",
        "generation": 1,
        "verdict": "accept",
        "reason": "",
        "score": 0.25,
        "views": [],
        "hash": f"{link:064x}",
    }


def event_entry(link: int, action: str = "started", **fields: str) -> Entry:
    """Return the entry of an event."""
    return {
        "line": "press",
        "link": link,
        "kind": "event",
        "utc": "2026-11-30T03:52:59.123Z",
        "mono_ns": link * 10**6,
        "boot_id": "",
        "actor": "line",
        "role": "",
        "action": action,
        **fields,
        "hash": f"{link:064x}",
    }


def head_entry(link: int) -> Entry:
    """Return the entry of a signed head."""
    return {"line": "press", "link": link, "kind": "head", "utc": "2026-11-30T03:52:59.123Z", "head_link": link - 1}


class MemoryJournal:
    """Entries in a list; events become entries as they do in the journal."""

    def __init__(self, entries: list[Entry] | None = None) -> None:
        self.list = list(entries or [])
        self.cursors: dict[str, int] = {}
        self.actions: list[str] = []
        self._changed = threading.Condition()

    @property
    def last_link(self) -> int:
        return self.list[-1]["link"] if self.list else 0

    def add(self, *entries: Entry) -> None:
        with self._changed:
            self.list.extend(entries)
            self._changed.notify_all()

    def add_parts(self, count: int) -> None:
        with self._changed:
            first = self.last_link + 1
            self.list.extend(part_entry(link) for link in range(first, first + count))
            self._changed.notify_all()

    def cursor(self, sink: str) -> int:
        return self.cursors.get(sink, 0)

    def set_cursor(self, sink: str, link: int) -> None:
        self.cursors[sink] = link

    def entries(self, after: int, limit: int) -> list[Entry]:
        with self._changed:
            return [entry for entry in self.list if entry["link"] > after][:limit]

    def wait(self, after: int, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.last_link > after, timeout_s)

    def event(self, action: str, *, object: str = "", new: str = "", reason: str = "") -> None:
        with self._changed:
            self.actions.append(action)
            self.list.append(event_entry(self.last_link + 1, action, object=object, new=new, reason=reason))
            self._changed.notify_all()
