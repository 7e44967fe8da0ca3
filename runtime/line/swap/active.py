"""By what a station decides, on the disk: a small file that is replaced whole, so that any start finds one state."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from flawscope.ranges import Count, PositiveCount, Sha256
from flawscope.runtime.line.state_record import read_record, write_record


class ActiveView(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By what a view decides.

    Attributes:
        view: Its name.
        digest: Digest of its bundle, which is in the store.
        configured: Digest of the bundle that the configuration named when this was written. Where it names another one
            at a start, that one is taken.
        threshold_revision: Revision of the view's own thresholds for this bundle; 0 for the bundle's.
    """

    view: str
    digest: Sha256
    configured: Sha256
    threshold_revision: Count = 0


class Active(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `active/STATION.json`.

    Attributes:
        station: Name of the station.
        generation: Number of this set of bundles and thresholds; it only grows, over all starts.
        views: The set.
        previous: What the views that were changed last had before.
        changed: UTC time of this state, ISO 8601.
        schema: Version of this struct.
    """

    station: str
    generation: PositiveCount
    views: tuple[ActiveView, ...]
    previous: tuple[ActiveView, ...] = ()
    changed: str = ""
    schema: Literal[1] = 1

    def of(self, view: str) -> ActiveView | None:
        """Return what a view has; None where it has nothing yet."""
        return next((each for each in self.views if each.view == view), None)

    def before(self, view: str) -> ActiveView | None:
        """Return what a view had before; None where nobody knows."""
        return next((each for each in self.previous if each.view == view), None)


def active_file(state: Path, station: str) -> Path:
    """Return the path of a station's file below the state folder of its line."""
    return state / "active" / f"{station}.json"


def read_active(path: Path) -> Active | None:
    """Return what a file says; None where there is none. Raises StorageError if it is broken or cannot be read."""
    then = "The station begins with those of the configuration."
    return read_record(path, Active, "which bundles are in force", then)


def write_active(path: Path, active: Active) -> None:
    """Replace a file, on the disk before it returns; raises StorageError, and then the one before stays."""
    write_record(path, active)
