"""What a line says about itself: for `flawscope line status`, the HTTP interface and metrics."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flawscope.errors import FlawscopeError
from flawscope.files import write_bytes
from flawscope.runtime.line.drift.state import ViewDrift
from flawscope.runtime.line.rollout.rollout_status import RolloutStatus
from flawscope.runtime.line.selftest_status import SelfTestStatus
from flawscope.runtime.line.swap.challenge_status import ChallengeStatus
from flawscope.text import encode_json

if TYPE_CHECKING:
    from flawscope.runtime.line.station.station import Station
    from flawscope.runtime.line.station.view import Measure

STATUS = "status.json"
"""Name of its file in the state folder, written once a second."""


class ViewStatus(msgspec.Struct, frozen=True):
    """By what a view decides.

    Attributes:
        name: Its name.
        bundle: Name of its bundle; empty where it has none that can be used.
        digest: Digest of the bundle.
        threshold: Threshold on the score.
        threshold_revision: Revision of the thresholds; 0 for the bundle's own.
    """

    name: str
    bundle: str
    digest: str
    threshold: float | None
    threshold_revision: int

    @staticmethod
    def of(name: str, measure: Measure) -> ViewStatus:
        """Return the status of a view."""
        bundle = "" if measure.manifest is None else measure.manifest.name
        return ViewStatus(name, bundle, measure.bundle, measure.threshold, measure.revision)


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
        warnings: What somebody should see to although it runs, in words.
        views: By what its views decide.
        challenges: How the last challenges of its bundles ended.
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
    warnings: tuple[str, ...] = ()
    views: tuple[ViewStatus, ...] = ()
    challenges: tuple[ChallengeStatus, ...] = ()

    @staticmethod
    def of(
        station: Station, warnings: tuple[str, ...] = (), challenges: tuple[ChallengeStatus, ...] = ()
    ) -> StationStatus:
        """Return the status of a station, with what others have to say of it."""
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
            (*station.watch.warnings, *warnings),
            tuple(ViewStatus.of(name, measure) for name, measure in station.measures.items()),
            challenges,
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


class ImagesStatus(msgspec.Struct, frozen=True):
    """The images of a line at one moment; numbers are since its start.

    Attributes:
        disk: What the disk has room for: `ok`, `prune`, `stop` (no images) or `fault` (no parts).
        free_gb: Free gigabytes.
        stored: Images that were stored.
        left_out: Images that should have been stored, and are not.
        lost: Images that a record names and that could not be written.
        deleted: Files that were deleted to make room.
        waiting: Images that wait for the disk.
        warning: What is wrong, in words; empty for nothing.
    """

    disk: str
    free_gb: float
    stored: int
    left_out: int
    lost: int
    deleted: int
    waiting: int
    warning: str = ""


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
        mono_ns: When this was written by the monotonic clock, which does not jump.
        boot_id: Boot of the machine that the monotonic clock belongs to.
        images: What is kept of images, and how full the disk is.
        drift: What is known of the drift of each view that is watched.
        drift_missed: Images that were not looked at for drift, as too many waited.
        selftests: What is known of the self-test of each bundle in use.
        timezone: Where it stands: times are shown in this one.
        rollouts: What is known of the releases of each view that follows a tag.
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
    mono_ns: int = 0
    boot_id: str = ""
    images: ImagesStatus | None = None
    drift: tuple[ViewDrift, ...] = ()
    drift_missed: int = 0
    selftests: tuple[SelfTestStatus, ...] = ()
    timezone: str = "UTC"
    rollouts: tuple[RolloutStatus, ...] = ()


class StatusFile:
    """Writes the state of a line to its file, in a thread: a disk that hangs must not hold up the line.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wake = threading.Condition()
        self._next: LineStatus | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def write(self, status: LineStatus) -> None:
        """Have a state written, in place of one that still waits."""
        with self._wake:
            self._next = status
            if self._thread.ident is None:
                self._thread.start()
            self._wake.notify()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what waits and end the thread; a disk that hangs is left behind."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._is_closed)
                status, self._next = self._next, None
            if status is None:
                return
            # Whoever asks sees that it is old.
            with contextlib.suppress(FlawscopeError, OSError):
                write_bytes(self._path, msgspec.json.format(encode_json(status)))
