"""Journals whose old rows are sealed and dropped, and processes that are killed meanwhile."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from line_journals import WAIT_S, SetClock, a_part, by_hand, opened

from flawscope.runtime.line.clock import iso
from flawscope.runtime.line.journal import keeping
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.keeping import Bounds, RowKeeper
from flawscope.runtime.line.journal.sealed import SEALED
from flawscope.runtime.line.parts import PartRecord, Verdict

DAY_NS = 24 * 3600 * 10**9
DAYS = 30
PARTS = 25
ALL = Bounds()


def part(seq: int, utc_ns: int) -> PartRecord:
    """Return a part of a time; every fifth is a reject, every seventh a fault."""
    verdict: Verdict = "fault" if seq % 7 == 0 else "reject" if seq % 5 == 0 else "accept"
    return msgspec.structs.replace(a_part(seq, verdict), utc=iso(utc_ns))


def filled(folder: Path, clock: SetClock, parts: int = PARTS) -> None:
    """Record parts and events as of the clock, and then some that are 40 days younger."""
    for _ in range(2):
        with opened(folder, clock) as journal:
            for seq in range(journal.last_seq + 1, journal.last_seq + parts + 1):
                journal.record(part(seq, clock.utc_ns()))
                journal.event("tick", object=str(seq))
            journal.event("generation", object="station top", new=f"{clock.utc_ns() // DAY_NS}: cam0 by bundle ab")
            if journal.last_seq < parts + 1:
                journal.event("user_added", actor="anna", object="user anna")
            assert journal.flush(WAIT_S)
        clock.wall_ns += 40 * DAY_NS
        clock.now_ns += 40 * DAY_NS
    clock.wall_ns -= 40 * DAY_NS


def keeper_of(folder: Path, journal: Journal, clock: SetClock, bounds: Bounds = ALL, **more: int) -> RowKeeper:
    return RowKeeper(folder, journal, clock, DAYS, bounds, load=1.0, settle_s=0.0, **more)  # type: ignore[arg-type]


def kept(folder: Path, clock: SetClock, bounds: Bounds = ALL, **more: int) -> None:
    """Open the journal, seal and drop all that is due, and close it."""
    with opened(folder, clock) as journal:
        keeper = keeper_of(folder, journal, clock, bounds, **more)
        try:
            while keeper.turn():
                pass
        finally:
            keeper.stop()


def files(folder: Path) -> list[Path]:
    return sorted((folder / SEALED).iterdir()) if (folder / SEALED).is_dir() else []


def rows(folder: Path) -> list[tuple[int, int]]:
    """Return number and revision of the parts whose rows are in the journal."""
    with by_hand(folder) as connection:
        return connection.execute("SELECT seq, revision FROM part_record ORDER BY link").fetchall()


def seqs_in(path: Path) -> list[int]:
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [line["record"]["seq"] for line in lines if line.get("kind") == "part"]


def counts(folder: Path, clock: SetClock) -> dict[tuple[str, str], int]:
    with opened(folder, clock) as journal:
        return journal.counts()


class Killed(Exception):
    """Stands for the end of the process at a place."""


def killed_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the keeper end at a place, as a kill does; nothing behind it is done."""

    def killed(*given: object) -> None:
        raise Killed

    if place == "while it is written":
        monkeypatch.setattr(keeping, "head_line", killed)
    elif place == "before it is noted":
        monkeypatch.setattr(RowKeeper, "_note", killed)
    elif place == "before the first drop":
        monkeypatch.setattr(Journal, "drop", killed)
    else:
        steps: list[int] = []
        drop = Journal.drop

        def dropped(self: Journal, last: int, timeout_s: float = 10.0) -> None:
            steps.append(last)
            if len(steps) > 2:
                raise Killed
            drop(self, last, timeout_s)

        monkeypatch.setattr(keeping, "DROP_ROWS", 7)
        monkeypatch.setattr(Journal, "drop", dropped)
