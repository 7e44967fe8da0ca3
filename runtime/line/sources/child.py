"""A source whose images come from a child process, which may hang, leak or crash: the line goes on and starts it anew.

Two threads serve it: one hears the child and judges it, the other hands images to the station and may wait for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from flawscope.runtime.line.sources.child_messages import (
    Beat,
    Done,
    Free,
    Lost,
    Noted,
    Order,
    Ready,
    Stop,
    Trigger,
    Up,
    encode_options,
)
from flawscope.runtime.line.sources.child_process import ChildProcess
from flawscope.runtime.line.sources.grabber import SourcePlace
from flawscope.runtime.line.sources.restarts import Restarts
from flawscope.runtime.line.sources.ring import SLOTS
from flawscope.runtime.line.sources.source import FrameSink
from flawscope.runtime.line.sources.table import SOURCES, is_triggered, policy_of
from flawscope.runtime.line.sources.waiting import WaitingImages

_log = logging.getLogger(__name__)

_TICK_S = 0.25
_GRACE_S = 1.0


@dataclass(frozen=True)
class ChildLimits:
    """What a child process may do.

    Attributes:
        hang_s: Seconds without a sign of life after which it is killed.
        open_s: The same until the source is open; the library of a camera may take long.
        memory_mb: Memory of its own, in MiB, at which it is exchanged for a new one between two images.
        young_s: Seconds until a child may be exchanged for its memory.
    """

    hang_s: float = 5.0
    open_s: float = 30.0
    memory_mb: float = 1024.0
    young_s: float = 10.0


@dataclass(frozen=True)
class _End:
    """Why a child has ended.

    Attributes:
        reason: In words.
        crashed: Whether it crashed or hung.
        exchanged: Whether it was asked to end, and the next one begins at once.
    """

    reason: str
    crashed: bool = False
    exchanged: bool = False


class ChildSource:
    """Brings the images of one view from a child process.

    Args:
        options: Options of the source.
        place: Where it stands; `slot_bytes` is the largest image.
        limits: What the child may do.
        grabber: `module:attribute` of the grabber; None for that of the table.

    Attributes:
        policy: What happens when the station is full.
        is_triggered: Whether it gives an image only after `trigger`.
    """

    def __init__(
        self, options: Any, place: SourcePlace, limits: ChildLimits = ChildLimits(), *, grabber: str | None = None
    ) -> None:
        self.policy, self.is_triggered = policy_of(options), is_triggered(options)
        kind = type(options)
        self._place, self._limits = place, limits
        self._order = Order(
            grabber or SOURCES[kind].place,
            f"{kind.__module__}:{kind.__qualname__}",
            msgspec.Raw(encode_options(options)),
            place.station,
            place.view,
            str(place.state),
            (),
            None,
            SLOTS,
            place.slot_bytes,
            self.policy,
            self.is_triggered,
        )
        self._restarts = Restarts()
        self._lock = threading.Lock()
        # Names in the order in which they came: of parts that are open, and of parts that the child must hear are done.
        self._in_flight: dict[str, None] = {}
        self._undone: dict[str, None] = {}
        self._last_id: int | None = None
        self._waiting = WaitingImages(self.policy, self._taken)
        self._process: ChildProcess | None = None
        self._stopping = threading.Event()
        self._down_reason: str | None = None
        self._up_at: float | None = None
        self._measured = 0.0
        self._grace_s = _GRACE_S
        self._threads: list[threading.Thread] = []

    def start(self, sink: FrameSink) -> None:
        """Begin to hand images to the sink. It returns at once; faults go to the sink.

        Raises:
            RuntimeError: If it was started before.
        """
        if self._threads:
            raise RuntimeError(f"source {self._place.view}: expected to be started once.")
        name = f"{self._place.station}/{self._place.view}"
        self._threads = [
            threading.Thread(target=self._supervise, args=(sink,), name=f"source {name}", daemon=True),
            threading.Thread(target=self._deliver, args=(sink,), name=f"images {name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def trigger(self, seq: int) -> None:
        """Ask for one image. It returns at once; without a child that works, no image comes.

        Args:
            seq: Number of the part.
        """
        process = self._process
        if process is not None:
            process.send(Trigger(time.monotonic_ns()))

    def done(self, source: str) -> None:
        """Take note that the part of the file `source` has its verdict on record. It returns at once."""
        with self._lock:
            if not source:
                return
            self._undone[source] = None
            process = self._process
        if process is not None:
            process.send(Done(source))

    def stop(self, timeout_s: float) -> None:
        """End, whatever its state is, within the time; nothing is handed over afterwards."""
        until = time.monotonic() + timeout_s
        self._grace_s = min(_GRACE_S, timeout_s / 2)
        self._stopping.set()
        self._waiting.close()
        process = self._process
        if process is not None:
            process.send(Stop())
            process.wake()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _log.warning("%s: did not end within %.1f s and was left behind.", thread.name, timeout_s)

    # The thread that hears the child.

    def _supervise(self, sink: FrameSink) -> None:
        while not self._stopping.is_set():
            if self._waiting.has_ended and not self._undone:
                # Nothing more comes, and nobody has to be told anything.
                self._stopping.wait(_TICK_S)
                continue
            end = self._serve(sink)
            if self._stopping.is_set():
                return
            if end.exchanged:
                _log.info("source %s: %s.", self._place.view, end.reason)
                continue
            self._down(sink, end.reason)
            now = time.monotonic()
            up_s = now - self._up_at if self._up_at is not None else 0.0
            self._stopping.wait(self._restarts.pause_s(now, up_s, crashed=end.crashed))

    def _serve(self, sink: FrameSink) -> _End:
        """Run one child until it ends."""
        process = None
        self._up_at = None
        try:
            with self._lock:
                order = msgspec.structs.replace(self._order, in_flight=tuple(self._in_flight), last_id=self._last_id)
            process = ChildProcess(order)
            with self._lock:
                self._process = process
                for source in self._undone:
                    process.send(Done(source))
            end = self._hear(process, sink)
        except OSError as err:
            end = _End(f"its process could not be started: {err.strerror or err}", crashed=True)
        except Exception as err:
            _log.exception("source %s", self._place.view)
            end = _End(f"its process was not understood: {type(err).__name__}: {err}", crashed=True)
        with self._lock:
            self._process = None
        if process is None:
            return end
        if self._stopping.is_set():
            process.send(Stop())
        # One that crashed is ending by itself, and a moment later the system can say how; one that hangs is not.
        hangs = end.crashed and end.reason and not self._stopping.is_set()
        how = process.end(0.0 if hangs else self._grace_s)
        self._waiting.forget(process)
        return end if end.reason else dataclasses.replace(end, reason=how)

    def _hear(self, process: ChildProcess, sink: FrameSink) -> _End:
        """Take what a child says, until it ends, hangs or has to be exchanged."""
        is_up, up_s, silent_s, looked = False, 0.0, 0.0, time.monotonic()
        end: _End | None = None
        while not self._stopping.is_set():
            messages = process.receive(_TICK_S)
            # A line that was itself stopped for a while must not take that for the child's silence.
            passed_s, looked = min(time.monotonic() - looked, 2 * _TICK_S), time.monotonic()
            if messages is None:
                return end or _End("", crashed=True)
            silent_s = 0.0 if messages else silent_s + passed_s
            up_s += passed_s if is_up else 0.0
            for message in messages:
                match message:
                    case Up():
                        is_up = True
                        self._up(sink)
                    case Ready():
                        self._ready(process, message, sink)
                    case Noted(source):
                        self._noted(source)
                    case Lost(reason):
                        end = _End(reason)
                    case Beat():
                        pass
            if end is not None:
                if silent_s > _GRACE_S:
                    return end
            elif silent_s > (self._limits.hang_s if is_up else max(self._limits.open_s, self._limits.hang_s)):
                said = f": {process.last_line}" if process.last_line else ""
                doing = "its process gave no sign of life" if is_up else "it did not open"
                return _End(f"{doing} for {silent_s:.0f} s and was killed{said}", crashed=True)
            elif up_s > self._limits.young_s and self._is_too_large(process):
                process.send(Stop())
                end = _End(
                    f"its process had more than {self._limits.memory_mb:.0f} MiB and was exchanged", exchanged=True
                )
        return _End("stopped")

    def _is_too_large(self, process: ChildProcess) -> bool:
        now = time.monotonic()
        if now - self._measured < 1.0:
            return False
        self._measured = now
        return process.resident_mb() > self._limits.memory_mb

    def _ready(self, process: ChildProcess, ready: Ready, sink: FrameSink) -> None:
        if self._waiting.has_ended:
            process.send(Free(ready.slot))
            return
        left_out = self._waiting.put(process, ready)
        if left_out:
            with self._told():
                sink.skipped(self._place.view, left_out)

    def _noted(self, source: str) -> None:
        with self._lock:
            self._undone.pop(source, None)
            self._in_flight.pop(source, None)

    def _up(self, sink: FrameSink) -> None:
        self._down_reason, self._up_at = None, time.monotonic()
        if not self._stopping.is_set():
            with self._told():
                sink.source_up(self._place.view)

    def _down(self, sink: FrameSink, reason: str) -> None:
        if reason != self._down_reason:
            self._down_reason = reason
            _log.warning("source %s: %s", self._place.view, reason)
            with self._told():
                sink.source_down(self._place.view, reason)

    @contextlib.contextmanager
    def _told(self) -> Any:
        """Keep this thread alive where a sink raises, which it must not."""
        try:
            yield
        except Exception:
            _log.exception("source %s: its station failed", self._place.view)

    # The thread that hands images over.

    def _taken(self, ready: Ready) -> None:
        with self._lock:
            if ready.source:
                self._in_flight[ready.source] = None
            if ready.frame_id is not None:
                self._last_id = ready.frame_id

    def _deliver(self, sink: FrameSink) -> None:
        while (image := self._waiting.take()) is not None:
            frame = image.process.ring.read(image.ready.slot, image.ready.sequence)
            image.process.send(Free(image.ready.slot))
            if frame.lost != image.lost:
                frame = dataclasses.replace(frame, lost=image.lost)
            if self._stopping.is_set():
                return
            with self._told():
                sink.frame(self._place.view, frame)
