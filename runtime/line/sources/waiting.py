"""Images of a child process that wait for the station, in order; which of them are left out by the policy `latest`."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from flawscope.runtime.line.sources.child_messages import Free, Ready
from flawscope.runtime.line.sources.child_process import ChildProcess
from flawscope.runtime.line.sources.source import Policy


@dataclass(frozen=True)
class Waiting:
    """An image that lies in a slot.

    Attributes:
        process: Whose ring it is in.
        ready: What the child said of it.
        lost: Images that were lost before it, with those before images that were left out.
    """

    process: ChildProcess
    ready: Ready
    lost: int


class WaitingImages:
    """The images between the thread that hears of them and the one that hands them over.

    Args:
        policy: What happens when the station is full.
        taken: Called with each image that is taken out, before anything else may look at the queue.
    """

    def __init__(self, policy: Policy, taken: Callable[[Ready], None]) -> None:
        self._policy, self._taken = policy, taken
        self._images: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the last image of the source was taken out."""
        return self._ended

    def put(self, process: ChildProcess, ready: Ready) -> int:
        """Add an image; return how many older ones were left out."""
        left_out = 0
        with self._changed:
            lost = ready.lost
            # The word that a source has ended comes beside its last image, not in its place.
            while self._policy == "latest" and not ready.is_last and self._images:
                older = self._images.popleft()
                lost += older.lost
                left_out += 1
                older.process.send(Free(older.ready.slot))
            self._images.append(Waiting(process, ready, lost))
            self._changed.notify()
        return left_out

    def take(self) -> Waiting | None:
        """Return the next image, waiting for it; None when the queue is closed."""
        with self._changed:
            while not self._images and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            waiting = self._images.popleft()
            self._ended = self._ended or waiting.ready.is_last
            self._taken(waiting.ready)
            return waiting

    def forget(self, process: ChildProcess) -> None:
        """Forget images of files of a process that has ended: the next one hands them over again."""
        with self._changed:
            self._images = deque(
                image for image in self._images if image.process is not process or not image.ready.source
            )

    def close(self) -> None:
        """Let `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._images.clear()
            self._changed.notify_all()
