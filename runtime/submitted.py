"""Images that are submitted by any thread and inspected by one, in their order, as those of cameras are.

The thread is that of the line (`SharedScoring`): what goes wrong in it is a fault of the image, and the next is
inspected; a device that failed is opened again once, and one that fails again soon is lost until the process is
started anew. A server is looked for until it is back.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

import numpy as np

from flawscope.errors import ArgumentError, BundleError, QueueFull
from flawscope.runtime.backends.table import backend_row
from flawscope.runtime.ready_scorer import ReadyScorer
from flawscope.runtime.results import Result
from flawscope.runtime.shared_scoring import SharedScoring

_NEVER = (1 << 63) - 1  # no deadline: in the order in which they came
_CLOSE_S = 5.0


class _Jobs:
    """What `SharedScoring` asks of an inspector; an image comes as the call that inspects it."""

    max_batch = 1

    def __init__(self, ready: ReadyScorer, size: tuple[int, int]) -> None:
        self._ready, self._size = ready, size

    @property
    def device_failed(self) -> bool:
        """Whether the device failed at the last image."""
        return self._ready.device_failed

    def score(self, sources: list[Any], color: str, in_force: object) -> list[Result]:
        """Return the results of the calls."""
        return [inspect() for inspect in sources]

    def warm(self, batch: int) -> None:
        """Run the graphs once on blank images."""
        self._ready.score(np.zeros((batch, *self._size, 3), np.uint8))


class Submissions:
    """The images that were submitted to an inspector and have no result yet. Its thread begins with the first.

    Args:
        ready: The inspector's scorer.
        size: Height and width of its input.
        name: What the bundle is called in messages.
    """

    def __init__(self, ready: ReadyScorer, size: tuple[int, int], name: str) -> None:
        self._jobs, self._name = _Jobs(ready, size), name
        self._comes_back = backend_row(ready.options.backend).remote
        self._lock = threading.Lock()
        self._scoring: SharedScoring | None = None
        self._numbers = itertools.count()
        self._pending = 0
        self._is_closed = False

    def next_number(self) -> int:
        """Return the place of the next image among those that were submitted, from 0."""
        return next(self._numbers)

    def submit(
        self, inspect: Callable[[], Result], fault: Callable[[str], Result], most_pending: int
    ) -> Future[Result]:
        """Queue an image.

        Args:
            inspect: Inspects it.
            fault: Makes a fault of a reason, where it is not inspected. It holds no image: it lives longer.
            most_pending: Most images without a result, this one included.

        Returns:
            Its result; a fault where it cannot be inspected, never an exception of ours. One that is cancelled before
            its turn is not inspected.

        Raises:
            ArgumentError: If `most_pending` is no whole number from 1 on.
            BundleError: If it was closed.
            QueueFull: If there are so many already.
        """
        if type(most_pending) is not int or most_pending < 1:
            raise ArgumentError(f"most_pending: expected a whole number from 1 on, got {most_pending!r}.")
        future: Future[Result] = Future()
        with self._lock:
            if self._is_closed:
                raise BundleError(f"{self._name}: the inspector was closed. Load the bundle again.")
            if self._pending >= most_pending:
                raise QueueFull(
                    f"{self._name}: expected at most {most_pending} images without a result, got one more. Wait for a "
                    "result, leave this image out, or allow more with most_pending=."
                )
            if self._scoring is None:
                self._scoring = SharedScoring(self._jobs, "of submitted images", comes_back=self._comes_back)
                # Where nobody closes the inspector: its thread would hold the graphs, and use them while Python ends.
                weakref.finalize(self, self._scoring.close, _CLOSE_S)
            self._pending += 1
            scoring = self._scoring
        # Without the lock: where the inspector was just closed, the answer comes at once.
        scoring.submit(partial(_unless_cancelled, future, inspect), _NEVER).add_done_callback(
            partial(self._answer, future, fault)
        )
        return future

    def _answer(self, future: Future[Result], fault: Callable[[str], Result], scored: Future[Result]) -> None:
        result = scored.result()
        if result.time is None:  # not the inspector's own: it never came to its turn, or it raised
            result = fault(result.reason or "no reason was given")
        with self._lock:
            self._pending -= 1
        # It may have been cancelled, where its turn never came.
        with contextlib.suppress(InvalidStateError):
            future.set_result(result)

    def close(self) -> bool:
        """End the thread; images that wait become faults. Returns whether it ended in time: foreign code may hang."""
        with self._lock:
            self._is_closed, scoring = True, self._scoring
        return scoring is None or scoring.close(_CLOSE_S)


def _unless_cancelled(future: Future[Result], inspect: Callable[[], Result]) -> Result:
    if not future.set_running_or_notify_cancel():
        return Result("image", "fault", reason="it was cancelled")
    return inspect()
