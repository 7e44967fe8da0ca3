"""Stations that use one bundle on one device share its inspector: a queue by deadline, and batches where they pay.

An image waits for nobody: what is in the queue when the inspector is free is what can be scored together, and only as
many images as will be done before the earliest deadline among them. Whoever asked waits no longer than his deadline; an
inspector that hangs then holds up nobody but itself.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from flawscope.bundle import InForce
from flawscope.errors import DeviceError
from flawscope.runtime.results import Result

_GAIN = 0.9
"""A batch is used where an image in it takes at most this share of the time that it takes alone."""
_MOST_WAITING = 256
"""Requests that may wait before those whose deadline has passed are thrown out: an inspector may hang for hours."""
_STEADY_S = 60.0
"""A device that fails again so soon after it was opened again is lost: only a new process may help."""
_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between two looks whether what is away is back; the last one from then on."""
_NEVER = (1 << 63) - 1
"""Deadline of what can wait."""
_NO_COLOR = ""
_WEIGHT = 0.1
"""Weight of the last time in the running mean of times."""


class ScoresImages(Protocol):
    """What an `Inspector` does, as far as it is used here."""

    @property
    def max_batch(self) -> int:
        """Most images of one inference."""

    @property
    def device_failed(self) -> bool:
        """Whether the device failed at the last images, and has not worked since."""

    def score(self, sources: list[Any], color: str, in_force: InForce | None) -> list[Result]:
        """Return the results of images, in their order; by other thresholds where there are some."""

    def warm(self, batch: int) -> None:
        """Run the graphs once on so many blank images."""


@dataclass(order=True)
class _Request:
    """An image that waits, first by its deadline and then by its arrival; or a call, which comes after all of them."""

    deadline_ns: int
    order: int
    source: Any = field(compare=False)
    color: str = field(compare=False)
    in_force: InForce | None = field(compare=False)
    future: Future[Any] = field(compare=False)
    call: Callable[[], None] | None = field(compare=False, default=None)


class SharedScoring:
    """One inspector and the thread that uses it.

    Args:
        inspector: The inspector.
        name: Name of the thread.
        comes_back: Whether a device that failed comes back by itself, as a server does. It is looked for until then:
            images that come meanwhile are faults at once, and it is never lost.
        away: Why such a one is not there at the beginning; empty where it is.

    Attributes:
        comes_back: As above.
        batches: Inferences so far.
        images: Images so far.
        problem: Why nothing can be scored now, in words: the device failed, and is being opened again; else empty.
        lost: The same where it did not come back, for good; else empty.
        device_failures: How many times the device failed.
    """

    def __init__(self, inspector: ScoresImages, name: str, *, comes_back: bool = False, away: str = "") -> None:
        self._inspector = inspector
        self._ready = threading.Condition()
        self._waiting: list[_Request] = []
        self._numbers = itertools.count()
        self._is_closed = False
        self._took_ms: dict[int, float] = {}
        self._busy_since: int | None = None
        self._idle_since = time.monotonic_ns()
        self.batches = self.images = self.device_failures = 0
        self.comes_back, self._away = comes_back, away
        self.problem, self.lost = (_AWAY.format(away) if away else ""), ""
        self._opened_again = float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"scoring {name}", daemon=True)
        self._thread.start()

    def submit(
        self, source: Any, deadline_ns: int, color: str = "rgb", in_force: InForce | None = None
    ) -> Future[Result]:
        """Queue an image; its result is a fault where the inspector fails, and never late without being asked for.

        Args:
            source: The image, as the inspector takes it.
            deadline_ns: When its part must have a verdict, by the monotonic clock.
            color: Order of the channels of an array.
            in_force: Thresholds that decide; None for those that the inspector was loaded with.
        """
        future: Future[Result] = Future()
        with self._ready:
            if self._is_closed:
                future.set_result(_CLOSED)
                return future
            heapq.heappush(self._waiting, _Request(deadline_ns, next(self._numbers), source, color, in_force, future))
            expired = self._take_expired() if len(self._waiting) > _MOST_WAITING else []
            self._ready.notify()
        for request in expired:  # without the lock: whoever asked is called
            _answer(request, _EXPIRED)
        return future

    def submit_last(self, call: Callable[[], None], latest_ns: int = _NEVER) -> Future[Any]:
        """Queue a call, for when no image waits; an image that comes while it runs waits for it.

        Args:
            call: The call.
            latest_ns: From then on, by the monotonic clock, it comes before images: where there is always one that
                waits, as of a camera that is faster than the inspector, it would never be called.

        Returns:
            When it was called None, or what it raised; a fault where it will not be.
        """
        future: Future[Any] = Future()
        with self._ready:
            if self._is_closed:
                future.set_result(_CLOSED)
                return future
            # A colour of its own: it is never in a batch with images.
            request = _Request(latest_ns, next(self._numbers), b"", _NO_COLOR, None, future, call)
            heapq.heappush(self._waiting, request)
            self._ready.notify()
        return future

    def idle_s(self) -> float:
        """Return for how many seconds nothing has been scored and nothing has waited."""
        with self._ready:
            is_idle = self._busy_since is None and not self._waiting
            return (time.monotonic_ns() - self._idle_since) / 1e9 if is_idle else 0.0

    def measure(self) -> None:
        """Run the graphs alone and in batches of 2, 4, ... and keep the times; before the first part."""
        size = 1
        while size <= self._inspector.max_batch:
            for repeat in range(3):  # the first is slower: memory is taken, kernels are chosen
                started = time.perf_counter()
                self._inspector.warm(size)
                if repeat:
                    self._note(size, 1e3 * (time.perf_counter() - started))
            size *= 2

    def stuck_s(self) -> float:
        """Return for how many seconds the inspector has been at one batch; 0 while it waits for images."""
        with self._ready:
            return 0.0 if self._busy_since is None else (time.monotonic_ns() - self._busy_since) / 1e9

    def close(self, timeout_s: float = 5.0) -> bool:
        """End the thread; images that wait become faults. Returns whether it ended in time: foreign code may hang."""
        with self._ready:
            self._is_closed = True
            self._ready.notify()
        if threading.current_thread() is not self._thread:  # a callback of a result may close it
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._away:
            self._look_for_it(self._away)
        while (batch := self._next()) is not None:
            if not batch:
                continue
            if batch[0].call is not None:
                self._call(batch[0], batch[0].call)
                continue
            started, first = time.perf_counter(), batch[0]
            try:
                if self.lost:
                    raise DeviceError(self.lost)
                results = self._inspector.score([request.source for request in batch], first.color, first.in_force)
                if len(results) != len(batch):
                    raise RuntimeError(f"expected {len(batch)} results, got {len(results)}")
            # Whatever it is (panics of Rust are no Exception): these images have no verdict, the next must get theirs.
            except BaseException as err:
                text = str(err) if isinstance(err, DeviceError) else f"unexpected {type(err).__name__}: {err}"
                results = [_fault(text)] * len(batch)
            self._note(len(batch), 1e3 * (time.perf_counter() - started))
            self.batches, self.images = self.batches + 1, self.images + len(batch)
            self._is_free()
            # An inspector may give anything: what is no result is a fault further on.
            reason = getattr(results[0], "reason", None) or "no reason was given"
            has_failed = self._has_failed(reason)
            for request, result in zip(batch, results, strict=True):
                _answer(request, result)
            if has_failed:
                self._open_again(reason)
            # Else the images of the last batch would stay in memory until the next one comes.
            del batch, first, results, request, result

    def _call(self, request: _Request, call: Callable[[], None]) -> None:
        try:
            if self.lost:
                raise DeviceError(self.lost)
            call()
        except BaseException as err:  # as above
            failure: BaseException | None = err
        else:
            failure = None
        self._is_free()
        has_failed = self._has_failed(reason := str(failure))
        if failure is None:
            with contextlib.suppress(BaseException):  # as in `_answer`
                request.future.set_result(None)
        else:
            _fail(request, failure)
        if has_failed:
            self._open_again(reason)

    def _has_failed(self, reason: str) -> bool:
        """Return whether the device failed; of a server it is said before the answer: it is no fault of the bundle."""
        has_failed = not self.lost and self._inspector.device_failed
        if has_failed and self.comes_back:
            self.problem = _AWAY.format(reason)
            self.device_failures += 1
        return has_failed

    def _is_free(self) -> None:
        with self._ready:
            self._busy_since, self._idle_since = None, time.monotonic_ns()

    def _open_again(self, reason: str) -> None:
        """Have the device opened again, once; the images that it failed on are faults already."""
        if self.comes_back:
            self._look_for_it(reason)
            return
        self.device_failures += 1
        if time.monotonic() - self._opened_again < _STEADY_S:
            self.problem = self.lost = f"the device failed again soon after it was opened again: {reason}"
            return
        self.problem = f"the device failed, and is being opened again: {reason}"
        try:
            self._inspector.warm(1)
        except BaseException as err:  # of foreign code: whatever it is, the device does not work
            self.problem = self.lost = f"the device failed ({reason}) and could not be opened again: {err}"
            return
        self._opened_again = time.monotonic()
        self.problem = ""

    def _look_for_it(self, reason: str) -> None:
        """Look for a device that is away until it is back, or this is closed; who asks meanwhile has a fault."""
        pauses, pause_s, is_measured = iter(_PAUSES_S), 0.0, bool(self._took_ms)
        while True:
            self.problem = _AWAY.format(reason)
            pause_s = next(pauses, pause_s)
            if not self._refuse_until(time.monotonic() + pause_s):
                return
            try:
                self._inspector.warm(1)
                if not is_measured:
                    self.measure()
            except BaseException as err:  # of foreign code, as above
                reason = str(err) or type(err).__name__
            else:
                self.problem = ""
                return

    def _refuse_until(self, end: float) -> bool:
        """Answer all that waits with a fault until a moment; returns whether this was not closed meanwhile."""
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._is_closed, max(0.0, end - time.monotonic()))
                if self._is_closed:
                    return False
                waiting, self._waiting = self._waiting, []
            for request in waiting:
                if request.call is None:
                    _answer(request, _fault(self.problem))
                else:
                    _fail(request, DeviceError(self.problem))
            if time.monotonic() >= end:
                return True

    def _next(self) -> list[_Request] | None:
        """Return the images to be scored together, perhaps none, or None when it is closed."""
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._is_closed)
            if is_closed := self._is_closed:
                left, self._waiting = self._waiting, []
            else:
                left = self._take_expired()
            batch: list[_Request] = []
            if self._waiting:
                batch = [heapq.heappop(self._waiting) for _ in range(self._batch_size(self._waiting[0]))]
                self._busy_since = time.monotonic_ns()
        for request in left:
            _answer(request, _CLOSED if is_closed else _EXPIRED)
        return None if is_closed else batch

    def _take_expired(self) -> list[_Request]:
        """Return the requests whose deadline has passed, which wait no more. Holds the lock."""
        expired: list[_Request] = []
        calls: list[_Request] = []
        now = time.monotonic_ns()
        while self._waiting and self._waiting[0].deadline_ns < now:
            request = heapq.heappop(self._waiting)
            (expired if request.call is None else calls).append(request)
        for request in calls:  # their time has come, and is not over
            heapq.heappush(self._waiting, request)
        return expired

    def _batch_size(self, first: _Request) -> int:
        """Return how many of those that wait are scored together with the first of them, which counts."""
        there = 0
        for request in heapq.nsmallest(self._inspector.max_batch, self._waiting):
            # The thresholds of a station are its own, and after a change those of parts that are open already.
            if request.color != first.color or request.in_force is not first.in_force:
                break
            there += 1
        left_ms, best, alone = (first.deadline_ns - time.monotonic_ns()) / 1e6, 1, self._took_ms.get(1)
        if alone is None:
            return 1
        for size, took in self._took_ms.items():
            # The earliest deadline is the first image's own.
            if best < size <= there and took <= left_ms and took <= _GAIN * size * alone:
                best = size
        return best

    def _note(self, size: int, took_ms: float) -> None:
        before = self._took_ms.get(size)
        self._took_ms[size] = took_ms if before is None else before + _WEIGHT * (took_ms - before)


def when_all(futures: Sequence[Future[Result]], call: Callable[[], None]) -> None:
    """Call a function when all results are there: in the thread that brings the last one, or at once."""
    lock, left = threading.Lock(), [len(futures)]
    # Futures keep their callbacks for good, and this one holds the futures: a cycle in which the images of a part would
    # stay until Python collects its garbage, which counts objects and knows nothing of megabytes.
    calls = [call]

    def done(future: Future[Result]) -> None:
        with lock:
            left[0] -= 1
            is_last = left[0] == 0
        if is_last:
            calls.pop()()

    if not futures:
        call()
    for future in futures:
        future.add_done_callback(done)


def _answer(request: _Request, result: Result) -> None:
    with contextlib.suppress(BaseException):  # a callback of the caller's, which must not end the thread
        request.future.set_result(result)


def _fail(request: _Request, failure: BaseException) -> None:
    with contextlib.suppress(BaseException):  # as in `_answer`
        request.future.set_exception(failure)


def _fault(reason: str) -> Result:
    return Result("image", "fault", reason=reason)


_AWAY = "the server does not work, and is looked for: {}"
_CLOSED = _fault("the inspector was closed")
_EXPIRED = _fault("its deadline passed before it was scored")
