"""The seam of the HTTP interface: what it asks of a line. `flawscope.runtime.line.line.Line` is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from flawscope.runtime.line.drift.state import ViewDrift
from flawscope.runtime.line.gallery.gallery import Gallery
from flawscope.runtime.line.journal.recorder import TakesEvents
from flawscope.runtime.line.journal.reviews import Review
from flawscope.runtime.line.parts import PartRecord
from flawscope.runtime.line.status import LineStatus
from flawscope.runtime.line.swap.swaps import Swaps
from flawscope.runtime.line.users.line_users import LineUsers


class StationView(Protocol):
    """A station; calls may take the time of its locks, no longer."""

    @property
    def is_triggered(self) -> bool:
        """Whether its parts begin with a trigger."""

    def trigger(self, part_id: str = "") -> int:
        """Open a part and return its number; a station that is full or not ready gives a fault."""

    def push(self, images: Mapping[str, bytes], part_id: str = "") -> int:
        """Open a part with images (view -> bytes of an image file) and return its number."""

    def acknowledge(self, actor: str, role: str = "") -> None:
        """Leave `error`, where its cause is gone, and `halted`."""

    def halt(self, actor: str, role: str = "") -> None:
        """Score no more parts until it is acknowledged."""


class JournalView(TakesEvents, Protocol):
    """The journal; see `flawscope.runtime.line.journal.journal.Journal`."""

    @property
    def last_link(self) -> int:
        """Place of the last entry in the chain."""

    def entries(self, after: int, limit: int) -> list[dict[str, Any]]:
        """Return entries in the order of the chain."""

    def events(
        self, after: int = 0, limit: int = 100, *, before: int | None = None, newest_first: bool = False
    ) -> list[dict[str, Any]]:
        """Return events alone, in the order of the chain."""

    def parts(
        self,
        after_seq: int = 0,
        limit: int = 100,
        station: str | None = None,
        verdict: str | None = None,
        newest_first: bool = False,
        before_seq: int | None = None,
        is_reviewed: bool | None = None,
    ) -> list[PartRecord]:
        """Return parts, each by its last revision."""

    def part_of(self, seq: int) -> PartRecord | None:
        """Return a part by its last revision; None where it has no record."""

    def sealed_in(self, seq: int) -> str:
        """Return the sealed file that a part is in; empty for none."""

    def reviews(self, seq: int | None = None, after: int = 0, limit: int = 1000) -> list[Review]:
        """Return reviews of a part, or of all, in the order in which they were made."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was queued before is on the disk; return whether it is."""

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until there is an entry beyond a place in the chain."""


class DriftView(Protocol):
    """What watches for drift; see `flawscope.runtime.line.drift.monitor.DriftMonitor`."""

    def state(self) -> tuple[ViewDrift, ...]:
        """Return what is known of all views that are watched."""

    def relearn(self, station: str, view: str, actor: str, role: str = "") -> bool:
        """Begin a new reference of a view; returns whether there is such a view."""


class LineView(Protocol):
    """A line that runs."""

    @property
    def drift(self) -> DriftView | None:
        """What watches for drift; None where no view is watched."""

    @property
    def stations(self) -> Mapping[str, StationView]:
        """Name -> station."""

    @property
    def journal(self) -> JournalView:
        """The journal."""

    @property
    def gallery(self) -> Gallery | None:
        """What is kept of images; None where nothing is."""

    @property
    def swaps(self) -> Swaps | None:
        """Bundles and thresholds while it runs; None before its start."""

    @property
    def users(self) -> LineUsers | None:
        """Who may ask; None for nobody."""

    def status(self) -> LineStatus:
        """Return what is known now."""
