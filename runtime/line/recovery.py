"""Parts that were open when the process before ended: each gets its record before anything new is triggered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from flawscope.errors import StorageError
from flawscope.runtime.line.clock import Clock, boot_id, iso
from flawscope.runtime.line.journal.ledger import RecordRefused
from flawscope.runtime.line.journal.recorder import Recorder
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.station.open_parts import OpenPart, OpenParts

_WAIT_S = 30.0
_GROUP = 1000
"""Parts that are recorded before it is waited for the disk."""
_ENDED = "the line ended before it had a verdict"
_UNRECORDED = "its accept may have been given out before it was on record (`record: after`), and the line ended"
_NOT_GIVEN = "the line ended before its accept was given out"


class ReadableJournal(Recorder, Protocol):
    """A journal whose records can be looked up."""

    def part_of(self, seq: int) -> PartRecord | None:
        """Return the last record of a part, or None."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was queued is on the disk; returns whether it is."""


def record_open_parts(journal: ReadableJournal, numbers: OpenParts, clock: Clock) -> int:
    """Record the parts that were left open, and return how many became faults.

    An accept on record that was certainly not given out becomes a fault. One that may have been stays what it is, and
    an event says that it may not have been heard: the part lies where accepted parts lie, or the PLC took silence for a
    reject, and nobody can say which.

    Raises:
        StorageError: If the journal does not take them.
    """
    faults, heard = 0, []
    problems: list[Exception] = []

    def done_of(seq: int) -> Callable[[Exception | None], None]:
        def done(error: Exception | None) -> None:
            if error is None or isinstance(error, RecordRefused):  # refused: it is of a journal that was set aside
                numbers.recorded(seq)
            else:
                problems.append(error)

        return done

    def wait() -> None:
        if not journal.flush(_WAIT_S):
            raise StorageError("journal: parts that were left open could not be recorded in time. Is the disk full?")
        if problems:
            raise StorageError(f"journal: parts that were left open could not be recorded: {problems[0]}")

    for part in numbers.left_open:
        record = journal.part_of(part.seq)
        if record is not None and (record.verdict != "accept" or part.is_given):
            if record.verdict == "accept":
                journal.event(
                    "maybe_not_heard",
                    object=f"part {part.seq}",
                    reason="the line ended while its accept was given out; the PLC may not have read it",
                )
            heard.append(part.seq)
            continue
        faults += 1
        journal.record(_fault_of(part, record, clock), done_of(part.seq))
        if faults % _GROUP == 0:
            # There may be far more than the journal keeps in memory, after hours with a full disk.
            wait()
    wait()
    # Noted when the events are on the disk: killed before, the next start would not know of these parts.
    for seq in heard:
        numbers.recorded(seq)
    return faults


def _fault_of(part: OpenPart, record: PartRecord | None, clock: Clock) -> PartRecord:
    if record is not None:
        return msgspec.structs.replace(
            record, verdict="fault", reason="interrupted", detail=_NOT_GIVEN, revision=record.revision + 1
        )
    return PartRecord(
        part.seq,
        part.station,
        part.part_id,
        iso(part.utc_ns or clock.utc_ns()),
        part.mono_ns or clock.mono_ns(),
        boot_id(),
        0,
        "fault",
        "interrupted",
        _UNRECORDED if part.is_given else _ENDED,
    )
