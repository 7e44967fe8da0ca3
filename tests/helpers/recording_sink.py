"""A station that writes down what its sources tell it, and may be full."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flawscope.runtime.line.sources.source import Frame


class RecordingSink:
    """Keeps the frames and the words about one view.

    Attributes:
        frames: The frames, in order.
        words: `up` or `down: REASON`, in order.
        left_out: Images that were left out.
        room: While it is not set, `frame` waits, as a station that is full.
        entered: Frames that came, those that wait for room among them.
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.words: list[str] = []
        self.left_out = 0
        self.entered = 0
        self.room = threading.Event()
        self.room.set()
        self._changed = threading.Condition()

    def frame(self, view: str, frame: Frame) -> None:
        with self._changed:
            self.entered += 1
            self._changed.notify_all()
        assert self.room.wait(60)
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()

    def source_up(self, view: str, detail: str = "") -> None:
        self._say("up")

    def source_down(self, view: str, reason: str) -> None:
        self._say(f"down: {reason}")

    def skipped(self, view: str, count: int) -> None:
        with self._changed:
            self.left_out += count
            self._changed.notify_all()

    def _say(self, word: str) -> None:
        with self._changed:
            self.words.append(word)
            self._changed.notify_all()

    def wait(self, holds: Callable[[RecordingSink], bool], timeout_s: float = 60.0) -> None:
        """Wait until something holds; fail if it does not within the time, which is far above what it takes."""
        assert self.comes(holds, timeout_s), (
            self.words,
            len(self.frames),
            [f.detail for f in self.frames if f.detail],
            self.left_out,
        )

    def comes(self, holds: Callable[[RecordingSink], bool], timeout_s: float) -> bool:
        """Wait until something holds, and return whether it did within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: holds(self), timeout_s)

    @property
    def downs(self) -> list[str]:
        """Why the source did not work, each time."""
        return [word.removeprefix("down: ") for word in self.words if word != "up"]
