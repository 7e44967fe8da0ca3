"""The seam inside the child process of a source: what a camera, a stream or a folder has to give.

The child (`child`) calls `open`, then `grab` again and again, and `close`; all from one thread. Whatever hangs or
crashes in there takes the child alone with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flawscope.runtime.line.sources.source import Frame, Policy


class SourceLost(Exception):
    """The source does not work, or no longer: it is opened anew, with a pause that grows. The message says why."""


@dataclass(frozen=True)
class SourcePlace:
    """Where a source stands.

    Attributes:
        station: Name of its station.
        view: Name of its view.
        state: The line's state folder.
        slot_bytes: Largest image that can be handed over, in bytes.
        in_flight: Names of files that a child before this one handed over and whose parts have no verdict yet.
        last_id: `frame_id` of the last image that was received from the child before; None for the first child.
    """

    station: str
    view: str
    state: Path
    slot_bytes: int = 64 << 20
    in_flight: tuple[str, ...] = ()
    last_id: int | None = None


class Grabber(Protocol):
    """Gives the images of one view, inside a child process. Made with its options and a `SourcePlace`."""

    policy: Policy
    is_triggered: bool
    """Whether it gives an image only after `trigger`."""

    def open(self) -> None:
        """Open the source, write its settings, read them back and compare.

        Raises:
            SourceLost: If it is not there, or a setting does not read back.
        """

    def grab(self, timeout_s: float) -> Frame | None:
        """Return the next image, or None if none came within the time; after `is_last` it is not called again.

        Raises:
            SourceLost: If the source no longer works. That no image comes is no reason: a camera waits for its parts.
        """

    def trigger(self) -> None:
        """Ask for one image (software trigger); for others it does nothing.

        Raises:
            SourceLost: As `grab`.
        """

    def done(self, source: str) -> None:
        """Take note that the part of the file `source` has its verdict on record; only `folder` does anything."""

    def close(self) -> None:
        """Close the source; never raises."""
