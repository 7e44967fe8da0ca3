"""Images of a camera that does not wait: a thread reads them all the time, so that none grows old in a library's queue.

It also keeps the time: a library may wait for an image far longer than a line can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from flawscope.runtime.line.sources.grabber import SourceLost
from flawscope.runtime.line.sources.source import Frame, Policy

_log = logging.getLogger(__name__)

_ROOM = 4
_LOOK_S = 0.05
_FIRST_S = 15.0
"""How long the first image may take while data arrive: a stream entered between two key images begins at the next."""


class LiveImages:
    """The images of a camera between the thread that reads them and the grabber.

    Args:
        read: Reads the camera until `is_stopping`: calls `opened` once, `alive` with each packet, `put` with each
            image. It raises SourceLost, or returns when the stream ends.
        policy: What happens when the station is full. With `wait` the camera goes on: images beyond the room here are
            left out and counted as lost. Otherwise the line frees room at once.
        read_s: Seconds until the next image must come.
    """

    def __init__(self, read: Callable[[LiveImages], None], policy: Policy, read_s: float) -> None:
        self._read, self._policy, self._read_s = read, policy, read_s
        self._changed = threading.Condition()
        self._images: deque[Frame] = deque()
        self._lost = 0
        self._is_open = self._has_come = self._is_heard = False
        self._stopping = False
        self._end: str | None = None
        self._silent_s = self._without_s = 0.0
        self._looked: float | None = None
        self._thread = threading.Thread(target=self._run, name="live images", daemon=True)

    # The grabber's side.

    def start(self, open_s: float) -> None:
        """Begin to read; returns when the camera is open.

        Raises:
            SourceLost: If it is not within the time.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._end is not None, open_s)
            # One that was open and has ended since may have left images; `take` says so behind them.
            if self._end is not None and not self._is_open:
                raise SourceLost(self._end)
            if not self._is_open:
                raise SourceLost(f"expected an answer within {open_s:g} s, got none. Check the camera and its network.")

    def take(self, timeout_s: float) -> Frame | None:
        """Return the next image, or None if none came within the time.

        Raises:
            SourceLost: If the stream has ended, or no image came for `read_s`.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            while not self._images:
                if self._end is not None:
                    raise SourceLost(self._end)
                self._watch()
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, _LOOK_S))
            self._silent_s = self._without_s = 0.0
            self._looked = time.monotonic()
            frame = self._images.popleft()
            self._changed.notify_all()
            if self._lost:
                frame, self._lost = dataclasses.replace(frame, lost=frame.lost + self._lost), 0
            return frame

    def _watch(self) -> None:
        """Raise SourceLost if no image has come for too long."""
        now = time.monotonic()
        # Only time in which this thread looked: one that was stopped, or waited for room, must not take that for
        # the camera's silence.
        passed_s = 0.0 if self._looked is None else min(now - self._looked, 2 * _LOOK_S)
        self._looked = now
        self._silent_s = 0.0 if self._is_heard else self._silent_s + passed_s
        self._without_s += passed_s
        self._is_heard = False
        if (self._has_come and self._without_s > self._read_s) or self._silent_s > self._read_s:
            raise SourceLost(
                f"expected an image within {self._read_s:g} s, got none. Check the camera and its network."
            )
        if self._without_s > max(_FIRST_S, self._read_s):
            raise SourceLost(
                f"expected a first image within {max(_FIRST_S, self._read_s):g} s, got data without one. Let the "
                "camera send key images more often."
            )

    def stop(self, timeout_s: float = 0.5) -> None:
        """End the thread; one that hangs in a library is left to the end of the process."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # The reading thread's side.

    @property
    def is_stopping(self) -> bool:
        """Whether the thread has to end."""
        return self._stopping

    def opened(self) -> None:
        """Note that the camera is open."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def alive(self) -> None:
        """Note that data came."""
        self._is_heard = True

    def put(self, frame: Frame) -> None:
        """Hand an image over."""
        with self._changed:
            self._has_come = True
            while len(self._images) >= _ROOM and not self._stopping:
                if self._policy == "wait":
                    self._lost += 1 + self._images.popleft().lost
                else:
                    self._changed.wait()
            self._images.append(frame)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._read(self)
            end = "the stream ended"
        except SourceLost as err:
            end = str(err)
        except Exception as err:
            # Its text may hold an address with a password.
            _log.error("reading a camera failed: %s", type(err).__name__)
            end = f"reading it failed: {type(err).__name__}"
        with self._changed:
            self._end = end
            self._changed.notify_all()


class LiveGrabber:
    """What all grabbers of live images have in common; what they differ in is `open` and how a camera is named.

    Args:
        shown: Returns the name of the camera in messages, without secrets.
    """

    def __init__(self, shown: Callable[[], str]) -> None:
        self._name_of = shown
        self._live: LiveImages | None = None

    def begin(self, live: LiveImages, open_s: float) -> None:
        """Begin to read; returns when the camera is open.

        Raises:
            SourceLost: If it is not within the time.
        """
        self._live = live
        with self._named():
            live.start(open_s)

    def grab(self, timeout_s: float) -> Frame | None:
        """Return the next image, or None if none came within the time.

        Raises:
            SourceLost: If the stream has ended or the camera is gone, or no image came for `read_s`.
        """
        with self._named():
            if self._live is None:
                raise SourceLost("it is not open")
            return self._live.take(timeout_s)

    def trigger(self) -> None:
        """Do nothing: images come by themselves."""

    def done(self, source: str) -> None:
        """Do nothing: an image is no file."""

    def close(self) -> None:
        """End reading."""
        if self._live is not None:
            self._live.stop()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SourceLost as err:
            raise SourceLost(f"{self._name_of()}: {err}") from None
