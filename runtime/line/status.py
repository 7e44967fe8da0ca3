"""What a line says about itself: for `flawscope line status`, the HTTP interface and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from flawscope.runtime.line.station.station import Station

STATUS = "status.json"
"""Name of its file in the state folder, written once a second."""


class StationStatus(msgspec.Struct, frozen=True):
    """A station at one moment; numbers are since the start of the line.

    Attributes:
        name: Its name.
        state: Its state.
        reason: Why it is not ready, in words.
        generation: Number of its set of bundles.
        parts: Parts that were opened.
        accept: Those that were accepted.
        reject: Those that were rejected.
        fault: Those that are faults.
        open: Those without a verdict.
        late: Verdicts after the deadline.
        skipped: Images that were left out.
        sources: View -> why its source does not work, empty where it does.
    """

    name: str
    state: str
    reason: str
    generation: int
    parts: int
    accept: int
    reject: int
    fault: int
    open: int
    late: int
    skipped: int
    sources: dict[str, str] = {}

    @staticmethod
    def of(station: Station) -> StationStatus:
        """Return the status of a station."""
        counts = station.counters.now()
        return StationStatus(
            station.name,
            station.readiness.state,
            station.readiness.reason,
            station.generation,
            counts.parts,
            counts.accept,
            counts.reject,
            counts.fault,
            counts.open,
            counts.late,
            counts.skipped,
            {view: station.readiness.against(f"source {view}") for view in station.views},
        )


class SinkStatus(msgspec.Struct, frozen=True):
    """A sink at one moment.

    Attributes:
        name: Its name.
        sent: Entries that have arrived since the start.
        behind: Entries that have not been sent.
        errors: Attempts that failed since the start.
        last_error: Why the last one failed; empty where it did not.
    """

    name: str
    sent: int
    behind: int
    errors: int
    last_error: str


class LineStatus(msgspec.Struct, frozen=True):
    """A line at one moment.

    Attributes:
        line: Its name.
        utc: When this was written.
        pid: Its process.
        is_running: Whether it was running then.
        last_seq: Number of the last part on record.
        journal: What is wrong with the journal, empty for nothing.
        account_holds: Whether parts = accept + reject + fault + open, and no number is missing.
        stations: Its stations.
        sinks: Its sinks.
    """

    line: str
    utc: str
    pid: int
    is_running: bool
    last_seq: int
    journal: str
    account_holds: bool
    stations: tuple[StationStatus, ...]
    sinks: tuple[SinkStatus, ...]
