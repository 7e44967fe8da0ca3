"""A grabber for tests of child processes: it counts, and does what its script says, such as to hang."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from flawscope.runtime.line.options import Options
from flawscope.runtime.line.sources.grabber import SourceLost, SourcePlace
from flawscope.runtime.line.sources.source import Frame, Policy

PLACE = "stand_in_grabbers:Counter"


class CounterSource(Options, kw_only=True, tag="counter", tag_field="kind"):
    """Options of `Counter`.

    Attributes:
        folder: A folder of the test: files in it steer the grabber, and it writes `starts` there.
        images: Number of images; then it is idle, or with `ends` the source has ended.
        pause_s: Seconds between two images.
        at: Number of the image before which `act` is done, by the first child alone (`start` once by each).
        act: hang, raise, lost (unread: with messages that it has not read), segv, exit, leak, or nothing.
        size: Height and width of its images.
        trigger: As `GenicamSource`.
        named: Whether images have the name of a file, and numbers begin anew with each child.
    """

    folder: Path
    images: int = 10
    pause_s: float = 0.0
    at: int = -1
    act: str = ""
    ends: bool = False
    size: tuple[int, int] = (4, 5)
    trigger: str = "free"
    named: bool = False
    on_full: Policy | None = None


class Counter:
    """Gives images whose pixels are all their number."""

    def __init__(self, options: CounterSource, place: SourcePlace) -> None:
        self.policy: Policy = options.on_full or ("latest" if options.trigger == "free" else "every")
        self.is_triggered = options.trigger == "software"
        self._options, self._place = options, place
        self._asked = 0
        self._starts = options.folder / "starts"
        started = self._starts.read_text() if self._starts.exists() else ""
        self._is_first = not started
        self._starts.write_text(f"{started}{os.getpid()} {place.last_id} {','.join(place.in_flight)}\n")
        self._next = 0 if options.named or place.last_id is None else place.last_id + 1
        self._held: list[bytes] = []

    def open(self) -> None:
        if (self._options.folder / "absent").exists():
            raise SourceLost("it is not there")
        if self._options.act == "hang in open" and self._is_first:
            time.sleep(3600)

    def grab(self, timeout_s: float) -> Frame | None:
        options = self._options
        if self._next == options.at and (self._is_first or "always" in options.act):
            self._misbehave()
        if self._next >= options.images:
            if options.ends:
                return Frame(None, time.monotonic_ns(), is_last=True)
            time.sleep(timeout_s)
            return None
        if self.is_triggered and not self._asked:
            time.sleep(min(timeout_s, 0.01))
            return None
        self._asked -= self.is_triggered
        time.sleep(options.pause_s)
        number, self._next = self._next, self._next + 1
        name = f"{number}.png" if options.named else ""
        if name in self._place.in_flight:
            return None
        image = np.full(options.size, number % 256, np.uint8)
        return Frame(image, time.monotonic_ns(), None if options.named else number, name)

    def _misbehave(self) -> None:
        act = self._options.act
        sys.stderr.write(f"about to {act}\n")
        sys.stderr.flush()
        if act.startswith("hang"):
            time.sleep(3600)
        elif act.startswith("raise"):
            raise ValueError("no such register")
        elif act.startswith("lost"):
            if "unread" in act:
                time.sleep(0.5)  # meanwhile its slots are given back, which it does not read
            raise SourceLost("the cable is out")
        elif act.startswith("segv"):
            os.kill(os.getpid(), signal.SIGSEGV)
        elif act.startswith("leak"):
            self._held.append(b"\1" * (200 << 20))  # zeros would take no memory

    def trigger(self) -> None:
        self._asked += 1

    def done(self, source: str) -> None:
        with (self._options.folder / "done").open("a") as file:
            file.write(f"{source}\n")

    def close(self) -> None:
        if self._options.act == "hang in close":
            time.sleep(3600)


class WrongPolicy(Counter):
    """Says another policy than its options."""

    def __init__(self, options: CounterSource, place: SourcePlace) -> None:
        super().__init__(options, place)
        self.policy = "wait"
