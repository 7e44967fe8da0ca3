"""The seam of all sources: what an image on a line is, and what a source does.

Cameras and files are read in a child process (`child`), which may hang, leak or be killed; images of the HTTP interface
come from the line's own. Both hand `Frame`s to a `FrameSink`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from flawscope.arrays import UInt8Array
from flawscope.runtime.line.parts import Reason

Problem = Reason
"""Why an image must not be scored; empty where it may be."""

Policy = Literal["every", "wait", "latest"]
"""What happens when the station is full: a fault at once, the source waits, or older images are skipped."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image as it came, or the word that one should have come.

    Attributes:
        image: uint8 [H, W] grey or [H, W, 3] RGB, owned by the receiver; or the bytes of an image file, which are
            decoded as `flawscope score` decodes them; None where `problem` says that there is none.
        mono_ns: When it arrived, by the monotonic clock (all processes of a machine share it).
        frame_id: The camera's number; None where it has none.
        source: Name of its file; empty for cameras.
        problem: Why it must not be scored, such as `incomplete_image`; empty where it may be.
        detail: The problem in words.
        lost: Images that the camera took and nobody received, between the last one and this.
        is_last: The source has ended, as a file of video or a folder that is not watched does; it carries no image.
    """

    image: UInt8Array | bytes | None
    mono_ns: int
    frame_id: int | None = None
    source: str = ""
    problem: Problem = ""
    detail: str = ""
    lost: int = 0
    is_last: bool = False


def without_pixels(frames: Mapping[str, Frame]) -> dict[str, Frame]:
    """Return frames by their views without what they show, for whoever waits and must not keep it in memory."""
    return {name: replace(frame, image=None) for name, frame in frames.items()}


class FrameSink(Protocol):
    """Who receives the images of one view: its station."""

    def frame(self, view: str, frame: Frame) -> None:
        """Take an image. With the policies `wait` and `latest` it returns when there is room; it never raises."""

    def source_up(self, view: str, detail: str = "") -> None:
        """The source works: the camera answers, the stream flows, the folder is there."""

    def source_down(self, view: str, reason: str) -> None:
        """The source does not work; the station is not ready until `source_up`."""

    def skipped(self, view: str, count: int) -> None:
        """Count images that were left out by the policy `latest`: a number on the page, never a part."""


class Source(Protocol):
    """Brings the images of one view, from `start` to `stop`."""

    policy: Policy
    is_triggered: bool
    """Whether it gives an image only after `trigger`: then a part begins with the trigger, else with its image."""

    def start(self, sink: FrameSink) -> None:
        """Begin to hand images to the sink, from a thread of its own. It returns at once; faults go to the sink."""

    def trigger(self, seq: int) -> None:
        """Ask for one image (software trigger). It returns at once; an image that never comes is a missing view."""

    def done(self, source: str) -> None:
        """Take note that the part of the file `source` has its verdict on record. It returns at once."""

    def stop(self, timeout_s: float) -> None:
        """End, whatever its state is, within the time; nothing is handed over afterwards."""
